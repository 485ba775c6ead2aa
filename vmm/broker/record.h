/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vms/<id>/record: what a restarted broker needs to know of a machine. Text, one `key value` a line, first line
 * "nestbox-vm 1"; written to a temporary name and renamed. Not synced to disk: after a power loss the machine is gone anyway.
 * Policy (vms/<id>/policy) is a file of its own. The environment is not kept: the agent has it.
 */
#ifndef NB_BROKER_RECORD_H
#define NB_BROKER_RECORD_H

#include "schema/broker.h"
#include "vmm/broker/machine.h"

struct record {
	char engine[16], image[BROKER_NAME_MAX], image_tag[MACHINE_TAG_MAX];
	char volumes[MACHINE_VOLUMES * BROKER_NAME_MAX]; /* attach.h */
	uint32_t state, flags, memory_mib, vcpus, slot, own_root;
	uint64_t created_ms, stop_at_ms;
};

enum rc record_write(int dirfd, const struct record *r, struct fault *ret_f);
enum rc record_read(int dirfd, struct record *ret, struct fault *ret_f);
/* For the fuzzer: text of a record. */
enum rc record_parse(char *text, struct record *ret, struct fault *ret_f);

/* Like file_write_at() without the syncs. */
enum rc file_replace_at(int dirfd, const char *name, const void *data, size_t n, struct fault *ret_f);

#endif
