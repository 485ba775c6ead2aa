/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Copies of a machine's memory, and the bound of its control group.
 *
 * Theory: an engine whose own process copies what its guest changed, when it is forked or captured (engine.h, copies_charged), writes that into
 * a memfd. The kernel counts those pages against the group of the process that wrote them, until nobody has them any more: not the
 * store's program, not one child of that fork. A machine that forks while earlier children live has several. One bound for all would either end a
 * parent that forks often, or leave a process that its guest took over several times its guest's memory. So the bound is the guest's
 * memory, the engine's overhead and the copies that there are: as much as there can be while one is made, what it is when that is known, and
 * nothing when the last who has it is gone. It is lowered when less is used, or with a later change (cgroup.h): never beyond the largest sum there was.
 *
 * What copies a machine had before the broker was restarted is not written down: what its bound had beyond its memory then stays.
 */
#ifndef NB_BROKER_CHARGE_H
#define NB_BROKER_CHARGE_H

#include "base/fault.h"

#include <stdint.h>

struct charge; /* one copy; counted by reference, on the loop's thread */
struct machine;

/* Before the copy is made. *ret is NULL if the engine's processes do not pay for it. */
enum rc charge_begin(struct machine *m, struct charge **ret, struct fault *ret_f);
void charge_known(struct charge *c, uint64_t bytes);
struct charge *charge_hold(struct charge *c); /* NULL is fine for all of them */
void charge_release(struct charge *c);

/* Of the machine's group. */
uint64_t charge_bound(const struct machine *m);
/* It was made by an earlier broker. */
void charge_adopt(struct machine *m);
/* It is gone; its copies may outlive it. */
void charge_machine_gone(struct machine *m);

#endif
