/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether a snapshot is still what it was. Theory: its checksum was made from a second reading when it was (volume.c). Before the
 * first use after a start of the broker its disk is read again; from then on it counts as good as long as the file is the same (inode,
 * size, times). One whose content differs is DAMAGED: every use is refused, with that reason, until the file is another. A reading
 * runs in a program of its own; whoever wants the same snapshot meanwhile waits for it.
 */
#ifndef NB_BROKER_VERIFY_H
#define NB_BROKER_VERIFY_H

#include "vmm/broker/broker.h"

struct request;
struct verify_wait;

/* Once, unless cancelled. RC_DAMAGED, RC_ABSENT. */
typedef void verify_fn(void *arg, enum rc rc, const struct fault *f);

/* RC_OK: it is good. RC_AGAIN: fn is called when that is known. anew: it is read in any case. */
enum rc verify_get(struct broker *b, const char *snapshot, bool anew, verify_fn *fn, void *arg, struct verify_wait **ret,
		   struct fault *ret_f);
void verify_cancel(struct verify_wait *w); /* NULL is fine */
/* It was read a moment ago, and was good. */
void verify_good(struct broker *b, const char *snapshot);
/* VOLUME_VERIFY; ends the request. */
void verify_request(struct broker *b, struct request *r, const char *name);

enum rc verify_new(struct broker *b, struct fault *ret_f);
void verify_free(struct broker *b);

#endif
