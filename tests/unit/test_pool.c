/* SPDX-License-Identifier: Apache-2.0 */
#include "base/cleanup.h"
#include "base/fd.h"
#include "fcgi/limits.h"
#include "fcgi/pool.h"
#include "tests/lib/check.h"

#include <poll.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static struct pool *begin(size_t n, size_t alive)
{
	struct pool *p = NULL;

	if (pool_make(&p, n, NULL))
		abort();
	for (size_t i = 0; i < alive; i++)
		pool_set_alive(p, i, true);
	return p;
}

/* Long requests of one organization until it is refused, in the slots from `from` on. */
static size_t fill(struct pool *p, size_t from, size_t n, const char *org, enum pool_kind kind)
{
	size_t i = from;

	while (i < n) {
		pool_take(p, i);
		if (!pool_enter(p, i, org, kind))
			break;
		i++;
	}
	if (i < n)
		pool_release(p, i);
	return i - from;
}

static bool told(const struct pool *p)
{
	struct pollfd pfd = { .fd = pool_fd(p), .events = POLLIN };

	return poll(&pfd, 1, 0) == 1;
}

TEST(an_organization_has_its_share_and_leaves_some)
{
	struct pool *p = begin(96, 96);
	size_t first = fill(p, 0, 96, "org_a", POOL_LONG), second = fill(p, first, 96, "org_b", POOL_LONG);

	CHECK_EQ(first, 64);
	CHECK_EQ(second, 21);
	CHECK(fill(p, first + second, 96, "org_c", POOL_LONG) > 0);
}

TEST(what_ends_machines_has_a_larger_share)
{
	struct pool *p = begin(96, 96);
	size_t first = fill(p, 0, 96, "org_a", POOL_LONG), ends = fill(p, first, 96, "org_a", POOL_END);

	CHECK(ends > 8);
	CHECK(first + ends < 96);
}

TEST(who_is_refused_or_done_takes_nothing)
{
	struct pool *p = begin(96, 96);

	for (int i = 0; i < 3; i++) {
		size_t n = fill(p, 0, 96, "org_a", POOL_LONG);

		CHECK_EQ(n, 64);
		CHECK(!pool_enter(p, 95, "org_a", POOL_LONG));
		while (n)
			pool_release(p, --n);
	}
}

TEST(the_slot_of_a_dead_worker_is_free)
{
	struct pool *p = begin(4, 4);

	CHECK_EQ(fill(p, 0, 4, "org_a", POOL_LONG), 2);
	CHECK(!pool_is_idle(p, 1));
	pool_set_alive(p, 1, false);
	CHECK(pool_is_idle(p, 1));
	CHECK(pool_enter(p, 2, "org_a", POOL_LONG));
}

TEST(the_smallest_pool_lets_somebody_in)
{
	struct pool *p = begin(4, 1);

	CHECK(pool_enter(p, 0, "org_a", POOL_LONG));
}

TEST(the_parent_hears_when_nobody_is_idle)
{
	struct pool *p = begin(8, 3);

	pool_take(p, 0);
	pool_take(p, 2);
	CHECK(!told(p));
	pool_take(p, 1);
	CHECK(told(p));
	pool_heard(p);
	CHECK(!told(p));
	pool_release(p, 0);
	pool_take(p, 0);
	CHECK(told(p));
}

TEST(only_requests_that_wait_make_it_grow)
{
	struct pool *p = begin(12, 4);
	struct pool_view v;

	for (size_t i = 0; i < 4; i++)
		pool_take(p, i);
	pool_look(p, now_ms() + 1000, &v);
	CHECK_EQ(v.alive, 4);
	CHECK_EQ(v.busy, 4);
	CHECK_EQ(pool_growth(&v, 12), 0);
	for (size_t i = 0; i < 3; i++)
		CHECK(pool_enter(p, i, "org_a", POOL_LONG));
	pool_look(p, now_ms() + POOL_YOUNG_MS, &v);
	CHECK_EQ(v.waiting, 3);
	CHECK_EQ(pool_growth(&v, 12), 3);
	CHECK_EQ(pool_growth(&v, 5), 1);
	CHECK_EQ(pool_growth(&v, 4), 0);
	pool_release(p, 3);
	pool_look(p, now_ms() + POOL_YOUNG_MS, &v);
	CHECK_EQ(pool_growth(&v, 12), 0);
}

TEST(a_surplus_goes_when_it_has_lasted)
{
	struct pool_shrink s = { 0 };
	struct pool_view v = { .alive = 20, .waiting = 5 };

	CHECK_EQ(pool_surplus(&s, &v, 8, 1000), 0);
	CHECK_EQ(pool_surplus(&s, &v, 8, 1000 + POOL_IDLE_MS - 1), 0);
	v.waiting = 2;
	/* What was wanted meanwhile counts. */
	CHECK_EQ(pool_surplus(&s, &v, 8, 1000 + POOL_IDLE_MS), 7);
	v.alive = 13;
	CHECK_EQ(pool_surplus(&s, &v, 8, 20000), 0);
	v.waiting = 9;
	CHECK_EQ(pool_surplus(&s, &v, 8, 20500), 0);
	v.waiting = 0;
	CHECK_EQ(pool_surplus(&s, &v, 8, 20000 + POOL_IDLE_MS), 0);
	CHECK_EQ(pool_surplus(&s, &v, 8, 20000 + 2 * POOL_IDLE_MS), 5);
}

/* Processes at once: never more than the share are in, and at the end it is all there again. */
TEST(the_share_holds_against_many_at_once)
{
	enum { PLACES = 6, MAX = 4, ROUNDS = 3000 };
	struct pool *p = begin(PLACES, PLACES);
	_Atomic int *in = mmap(NULL, 2 * sizeof(*in), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int status;

	REQUIRE(in != MAP_FAILED);
	for (size_t me = 0; me < PLACES; me++) {
		pid_t pid = fork();

		REQUIRE(pid >= 0);
		if (pid)
			continue;
		for (int i = 0; i < ROUNDS; i++) {
			pool_take(p, me);
			if (pool_enter(p, me, "org_a", POOL_LONG)) {
				if (atomic_fetch_add(&in[0], 1) >= MAX)
					atomic_fetch_add(&in[1], 1);
				if (i % 16 == 0)
					sched_yield();
				atomic_fetch_sub(&in[0], 1);
			}
			pool_release(p, me);
		}
		_exit(0);
	}
	for (size_t i = 0; i < PLACES; i++)
		REQUIRE(wait(&status) > 0 && status == 0);
	CHECK_EQ(in[1], 0);
	CHECK_EQ(fill(p, 0, PLACES, "org_a", POOL_LONG), MAX);
}

CHECK_MAIN()
