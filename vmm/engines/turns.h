/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Turns: how many programs beside read or write a whole memory at once. Each takes a processor and the disk for as long as it runs, and
 * whoever may ask for captures could start as many as there are machines. At most ENGINE_STORES_MAX have a turn; the others wait, those
 * that only read before those that write: a start waits for them.
 */
#ifndef NB_ENGINES_TURNS_H
#define NB_ENGINES_TURNS_H

#include <stdbool.h>
#include <stddef.h>

struct turn {
	struct turns *of; /* NULL: neither waits nor has one */
	struct turn *next, **at;
	bool running;
	void (*go)(void *arg);
	void *arg;
};

/* All zero to begin with; does not move. */
struct turns {
	size_t running;
	bool giving; /* in turn_give() */
	struct turn *reading, *writing;
};

/* True: it has its turn now. False: go() is called when it has. t must not be in use, and not move. */
bool turn_take(struct turns *all, struct turn *t, bool reads, void (*go)(void *arg), void *arg);
/* Over, or not wanted any more; go() is not called from now on. Whoever waits goes on from in here. None taken is fine. */
void turn_give(struct turn *t);

#endif
