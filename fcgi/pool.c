/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/pool.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "fcgi/limits.h"

#include <errno.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

/* A cache line each: a worker writes its own only. */
struct slot {
	_Alignas(64) _Atomic uint64_t taken_ms; /* 0: idle */
	_Atomic uint64_t org;                   /* of a long request, else 0 */
	_Atomic bool alive;
};

struct pool {
	size_t n;
	int fd;
	struct slot slots[];
};

/* Ids of organizations are ours and random, so nobody chooses to share a number with another. */
static uint64_t org_number(const char *id)
{
	uint64_t hash = 14695981039346656037u;

	for (; *id; id++)
		hash = (hash ^ (unsigned char)*id) * 1099511628211u;
	return hash ? hash : 1;
}

enum rc pool_make(struct pool **ret, size_t n, struct fault *ret_f)
{
	_cleanup_fd_ int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	struct pool *p;

	if (fd < 0)
		return fault_set(ret_f, RC_SYS, errno, "eventfd");
	p = mmap(NULL, sizeof(*p) + n * sizeof(p->slots[0]), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		return fault_set(ret_f, RC_NOMEM, errno, "shared table of %zu workers", n);
	p->n = n;
	p->fd = take_fd(&fd);
	*ret = p;
	return RC_OK;
}

static bool somebody_idle(struct pool *p, size_t me)
{
	for (size_t i = 1; i < p->n; i++) {
		struct slot *s = &p->slots[(me + i) % p->n];

		if (atomic_load(&s->alive) && !atomic_load(&s->taken_ms))
			return true;
	}
	return false;
}

void pool_take(struct pool *p, size_t me)
{
	static const uint64_t one = 1;

	atomic_store(&p->slots[me].taken_ms, now_ms());
	/* A full counter is heard as well. */
	if (!somebody_idle(p, me) && write(p->fd, &one, sizeof(one)) < 0)
		return;
}

void pool_release(struct pool *p, size_t me)
{
	atomic_store(&p->slots[me].org, 0);
	atomic_store(&p->slots[me].taken_ms, 0);
}

bool pool_enter(struct pool *p, size_t me, const char *org_id, enum pool_kind kind)
{
	size_t factor = kind == POOL_END ? POOL_SHARE_END : POOL_SHARE, mine = 0, all = 0;
	uint64_t org = org_number(org_id);

	atomic_store(&p->slots[me].org, org);
	for (size_t i = 0; i < p->n; i++) {
		uint64_t other = atomic_load(&p->slots[i].org);

		mine += other == org;
		all += other != 0;
	}
	if (mine <= factor * (p->n - all))
		return true;
	atomic_store(&p->slots[me].org, 0);
	return false;
}

int pool_fd(const struct pool *p)
{
	return p->fd;
}

void pool_heard(struct pool *p)
{
	uint64_t count;

	if (read(p->fd, &count, sizeof(count)) < 0)
		return;
}

void pool_set_alive(struct pool *p, size_t slot, bool alive)
{
	pool_release(p, slot);
	atomic_store(&p->slots[slot].alive, alive);
}

bool pool_is_idle(const struct pool *p, size_t slot)
{
	return !atomic_load(&p->slots[slot].taken_ms);
}

void pool_look(const struct pool *p, uint64_t now, struct pool_view *ret)
{
	*ret = (struct pool_view){ 0 };
	for (size_t i = 0; i < p->n; i++) {
		const struct slot *s = &p->slots[i];
		uint64_t taken = atomic_load(&s->taken_ms);

		if (!atomic_load(&s->alive))
			continue;
		ret->alive++;
		ret->busy += taken != 0;
		ret->waiting += taken && atomic_load(&s->org) && now >= taken + POOL_YOUNG_MS;
	}
}

size_t pool_growth(const struct pool_view *v, size_t max)
{
	return v->busy < v->alive || v->alive >= max ? 0 : MIN_OF(v->waiting, max - v->alive);
}

size_t pool_surplus(struct pool_shrink *s, const struct pool_view *v, size_t usual, uint64_t now)
{
	size_t wanted = usual + v->waiting, surplus;

	if (v->alive <= wanted) {
		s->since_ms = 0;
		return 0;
	}
	if (!s->since_ms) {
		s->since_ms = now;
		s->wanted = 0;
	}
	s->wanted = MAX_OF(s->wanted, wanted);
	if (now < s->since_ms + POOL_IDLE_MS)
		return 0;
	surplus = v->alive - MIN_OF(s->wanted, v->alive);
	s->since_ms = 0;
	return surplus;
}
