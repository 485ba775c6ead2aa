/* SPDX-License-Identifier: Apache-2.0 */
/*
 * VM_FORK: children of a machine that goes on running.
 *
 * Theory: one struct forking walks through
 *   children prepared, one a turn of the loop -> engine forks; the parent stands still while its disk is copied for each
 *   -> each child runs -> each agent took its identity -> all RUNNING, answered
 * with one deadline over all. All children or none: until the answer they are STARTING, so that a broker that is killed
 * leaves none, and when one fails the others end and the request is answered when nothing is left of them. The
 * parent goes on whatever happens; its own end ends the fork.
 *
 * A parent with volumes is refused: a volume has one writer.
 */
#ifndef NB_BROKER_FORK_H
#define NB_BROKER_FORK_H

#include "vmm/broker/broker.h"

struct request;

/* Ends the request, now or later. */
void fork_begin(struct broker *b, struct request *r, struct machine *parent, const struct broker_vm_fork *q);
bool fork_machine_busy(const struct machine *m);
void fork_machine_ends(struct machine *m);
void forks_free(struct broker *b);

#endif
