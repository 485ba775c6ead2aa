/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/engines/turns.h"

#include "vmm/engines/limits.h"

static void wait_end(struct turn *t)
{
	*t->at = t->next;
	if (t->next)
		t->next->at = t->at;
	t->next = NULL;
	t->at = NULL;
}

bool turn_take(struct turns *all, struct turn *t, bool reads, void (*go)(void *arg), void *arg)
{
	struct turn **at = reads ? &all->reading : &all->writing;

	*t = (struct turn){ .of = all, .running = all->running < ENGINE_STORES_MAX, .go = go, .arg = arg };
	if (t->running) {
		all->running++;
		return true;
	}
	while (*at)
		at = &(*at)->next;
	t->at = at;
	*at = t;
	return false;
}

void turn_give(struct turn *t)
{
	struct turns *all = t->of;

	if (!all)
		return;
	t->of = NULL;
	if (!t->running) {
		wait_end(t);
		return;
	}
	all->running--;
	/* What goes on may fail at once and give its turn back, from in here: then the loop below takes the next, not another one in it. */
	if (all->giving)
		return;
	all->giving = true;
	while (all->running < ENGINE_STORES_MAX && (all->reading || all->writing)) {
		struct turn *next = all->reading ? all->reading : all->writing;

		wait_end(next);
		next->running = true;
		all->running++;
		next->go(next->arg);
	}
	all->giving = false;
}
