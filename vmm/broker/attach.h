/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Volumes of a machine. Theory: slot 0 is the root's disk, slot 1 + n is the n-th spare disk. A volume is attached as long as a machine
 * that names it is in the list, whatever its state, so the list is the lock: one writer at a time, after a restart too,
 * since the names are in the machine's record.
 *
 * What a guest wrote is on its disk only when the guest has flushed it, and a machine ends by SIGKILL. So a machine with
 * volumes is asked to freeze its file systems first, for at most SETTLE_MS: all is flushed then and the journals are empty.
 */
#ifndef NB_BROKER_ATTACH_H
#define NB_BROKER_ATTACH_H

#include "schema/agent.h"
#include "vmm/broker/machine.h"

struct attach_list {
	size_t n;
	struct {
		const char *volume, *path;
	} mounts[AGENT_SPARE_DISKS];
};

/* "volume\0path\0" repeated; what it points to is in the blob. */
enum rc attach_parse(const uint8_t *mounts, size_t n, struct attach_list *ret, struct fault *ret_f);
/* Before machine_prepare(). root: "" for none; a volume's name. */
enum rc attach_volumes(struct machine *m, const char *root, const struct attach_list *list, struct fault *ret_f);
/* Whose it is; NULL: free. */
struct machine *attach_find(struct broker *b, const char *volume);

/* It ends, and its process is still there: true if the flush is under way, after which it is stopped. */
bool attach_settle(struct machine *m);
/* A broker that went away may have left its file systems frozen. */
void attach_thaw(struct machine *m);

/* The names as one field of the record, and back. */
#define ATTACH_TEXT_MAX (MACHINE_VOLUMES * BROKER_NAME_MAX)
void attach_text(const struct machine *m, char out[ATTACH_TEXT_MAX]);
bool attach_from_text(struct machine *m, const char *text);

#endif
