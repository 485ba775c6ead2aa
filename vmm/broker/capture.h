/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Captures: running machines kept on disk below a name, from which others start.
 *
 * Theory: captures/<name>/ has machine/ (the engine's snapshot), overlay (the disk as it was in the same instant) and record (what
 * machine that was). One is made as captures/.<name>/ and gets its name when all of it is on stable storage, so what has its
 * name is whole; one that had the name before is exchanged for it and removed. Whoever started from that one has its files
 * open and goes on.
 *
 *   checked -> pages copied -> machine stands still -> disk copied -> machine goes on -> written -> flushed -> named
 *
 * The machine stands still as long as for a fork. It goes on whatever fails, and if the broker is killed the next one lets it go on. A
 * machine that was started from a capture or kept as one before has only written what differs (engine.h, snapshot_store()), and shares
 * the rest with that one's first: by hard links, so that deleting either does not hurt the other. Memory is not loaded: machines map
 * the file, so a capture that nobody uses costs no memory of the host. What was opened for one start stays open a little
 * while for the next.
 *
 * Memory is compared with its checksum before the first start since the broker's, and again if its files are not the same as then; not at
 * each start, because reading all of it is what a start from it saves.
 */
#ifndef NB_BROKER_CAPTURE_H
#define NB_BROKER_CAPTURE_H

#include "vmm/broker/template.h"

struct capture_use;
struct machine;
struct request;

/* Opens captures/, removes what was not finished and lists what is there. */
enum rc captures_init(struct broker *b, struct fault *ret_f);
void captures_free(struct broker *b);

/* Each ends the request, now or later. */
void capture_make(struct broker *b, struct request *r, struct machine *m, const char *name);
void capture_delete(struct broker *b, struct request *r, const char *name);
void capture_list(struct broker *b, struct request *r, const char *after);

/*
 * To start a machine of this size from it: opened, and held open until capture_release(). ret_image: its image's name, also for RC_AGAIN,
 * which says that it is being checked: fn will be called once unless *ret_wait is cancelled, with `use` NULL if it cannot be used.
 * RC_ABSENT: no such capture. RC_STATE: it cannot be used on this host, by this engine or with the image as it is now.
 */
struct capture_wait;
typedef void capture_fn(void *arg, struct capture_use *use, const struct fault *f);
enum rc capture_get(struct broker *b, const char *name, uint32_t memory_mib, capture_fn *fn, void *arg, struct capture_use **ret,
		    char ret_image[BROKER_NAME_MAX], struct capture_wait **ret_wait, struct fault *ret_f);
void capture_cancel(struct capture_wait *w); /* NULL is fine */
const struct template_use *capture_use(const struct capture_use *u);
void capture_release(struct capture_use *u); /* NULL is fine */

bool capture_machine_busy(const struct machine *m);
void capture_machine_ends(struct machine *m);

#endif
