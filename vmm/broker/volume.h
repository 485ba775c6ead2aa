/* SPDX-License-Identifier: Apache-2.0 */
/*
 * VOLUME_CREATE, _DELETE, _STAT and _SNAPSHOT. Theory: what takes long is a struct volume_op on its way through
 *   [file systems frozen ->] filled by mkfs or copied [-> thawed] -> flushed -> named -> answered
 * with a program of its own for each long step. While it reads a volume, that volume is neither attached nor deleted, and a
 * machine that has it is neither paused nor resumed. A guest that does not thaw in time is tried THAW_TRIES times; a guest that
 * lies about having frozen has a torn snapshot of its own volume.
 */
#ifndef NB_BROKER_VOLUME_H
#define NB_BROKER_VOLUME_H

#include "vmm/broker/broker.h"

struct request;
struct volume;

/* Opens volumes/ and snapshots/ and removes what an earlier broker did not finish. */
enum rc volumes_init(struct broker *b, struct fault *ret_f);
void volumes_free(struct broker *b);

/* Each ends the request, now or later. */
void volume_create(struct broker *b, struct request *r, const struct broker_volume_create *q);
void volume_remove(struct broker *b, struct request *r, const char *name);
void volume_stat(struct broker *b, struct request *r, const char *name);
void volume_snapshot(struct broker *b, struct request *r, const struct broker_volume_snapshot *q);

/* An operation reads this volume now. */
bool volume_busy(struct broker *b, const char *name);
/* An operation has this machine's file systems frozen, or is about to. */
bool volume_machine_busy(const struct machine *m);
void volume_machine_ends(struct machine *m);

/* "snapshot:<name>" as a root: opened. RC_INVALID if no machine can start from it. */
#define VOLUME_SNAPSHOT_PREFIX "snapshot:"
#define VOLUME_IMAGE_PREFIX "image:"
enum rc volume_snapshot_root(struct broker *b, const char *name, struct volume *ret, struct fault *ret_f);

#endif
