/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One list of operations, tried in each state that a machine can be in; what each answers is a line "parity STATE OPERATION: ANSWER" on
 * standard output. The lines of two engines must be the same (tests/lib/parity.sh): they stand behind one interface, and the broker
 * does not know which it has.
 */
#ifndef NB_TEST_ENGINE_PARITY_H
#define NB_TEST_ENGINE_PARITY_H

#include "tests/it/engine_rig.h"

/* Of one that start() has just returned, and has not answered yet. */
void parity_starting(struct machine *m);
/* Of one that runs; it does afterwards, and has been paused, and asked for two things at once. */
void parity_life(struct machine *m);
/* Of one that is paused: it is stopped in the middle of an operation, and freed. */
void parity_stop(struct machine *m);
/* What needs no machine that runs. like: a machine of the snapshot's shape. */
void parity_others(struct engine_snapshot *snap, const struct machine *like);

#endif
