/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the workers and their parent know of each other: a page of shared memory, one slot a worker, made before the first fork.
 *
 * Theory: a request is quick (the database, the broker's own knowledge) or long (it may wait for a guest, or works on many
 * megabytes: ROUTE_LONG). A worker says in its slot what it has: a few stores, no system call. `api_workers` is how many are kept
 * for whatever is not long: when a worker finds, as it takes a request, that nobody is idle any more, it tells the parent, who
 * starts one more for each long request under way, up to `api_workers_max`. Quick requests alone start none: those wait for a
 * processor or for the disk, and more workers would not help them.
 *
 * No organization may take all of them. Its long requests may be at most POOL_SHARE times the places that no long request has:
 * of 96 places one organization gets 64, two get 38 each, five 17 each, and there always remain some for the one that comes next.
 * Nobody has to be asked for a number, a lone tenant has nearly everything, and a share that was too large when others came
 * becomes smaller with the first request that is answered. What ends machines (ROUTE_END) has a larger one, so that who has
 * filled the first can still get rid of what fills it.
 *
 * Who enters stores first and counts then, so two at once may both be refused at the bound, but never both pass it. The
 * parent clears the slot of a worker that died. It believes nothing here but as a hint of how many to start, within its own
 * bounds: process ids are not in it.
 */
#ifndef NB_FCGI_POOL_H
#define NB_FCGI_POOL_H

#include "base/fault.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct pool;

enum pool_kind { POOL_LONG, POOL_END };

/* n slots. The descriptor and the memory live until the process ends, and in its children. */
enum rc pool_make(struct pool **ret, size_t n, struct fault *ret_f);

/* --- workers: `me` is the slot --- */

void pool_take(struct pool *p, size_t me);    /* a request was taken */
void pool_release(struct pool *p, size_t me); /* it is answered */
/* The request that was taken is a long one of this organization. False: the organization has its share. */
bool pool_enter(struct pool *p, size_t me, const char *org_id, enum pool_kind kind);

/* --- the parent --- */

int pool_fd(const struct pool *p); /* readable when somebody found nobody idle */
void pool_heard(struct pool *p);
void pool_set_alive(struct pool *p, size_t slot, bool alive); /* clears it, too */
bool pool_is_idle(const struct pool *p, size_t slot);

struct pool_view {
	size_t alive, busy, waiting; /* waiting: long requests that are POOL_YOUNG_MS old */
};
void pool_look(const struct pool *p, uint64_t now_ms, struct pool_view *ret);
/* How many workers more there should be. */
size_t pool_growth(const struct pool_view *v, size_t max);

/* Which surplus has lasted for POOL_IDLE_MS. */
struct pool_shrink {
	uint64_t since_ms;
	size_t wanted; /* the most that was, since then */
};
size_t pool_surplus(struct pool_shrink *s, const struct pool_view *v, size_t usual, uint64_t now_ms);

#endif
