/* SPDX-License-Identifier: Apache-2.0 */
/* The resolver against a server that never answers. */
#include "vmm/egress/resolve.h"

#include "base/cleanup.h"
#include "tests/lib/check.h"
#include "vmm/egress/limits.h"

#include <arpa/inet.h>
#include <sys/socket.h>

#define SHARES (EGRESS_LOOKUPS_MAX / EGRESS_LOOKUPS_SANDBOX_MAX + 1)

static int answers;

static void on_resolved(void *arg, const struct address *addrs, size_t n, uint32_t ttl_s, const char *why)
{
	(void)arg, (void)addrs, (void)n, (void)ttl_s, (void)why;
	answers++;
}

/* A UDP port that somebody has and nobody reads. */
static int silent_server(char out[32])
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	socklen_t n = sizeof(a);

	if (fd < 0 || bind(fd, (struct sockaddr *)&a, n) < 0 || getsockname(fd, (struct sockaddr *)&a, &n) < 0)
		abort();
	snprintf(out, 32, "127.0.0.1:%u", ntohs(a.sin_port));
	return fd;
}

static size_t ask(struct resolver *r, struct lookup_share *share, size_t n, bool cancel)
{
	size_t taken = 0;

	for (size_t i = 0; i < n; i++) {
		struct lookup *l = NULL;
		struct fault f;
		char name[32];
		enum rc rc;

		snprintf(name, sizeof(name), "n%zu.test", i);
		rc = resolver_lookup(r, share, name, on_resolved, NULL, &l, &f);
		if (rc) {
			CHECK_EQ(rc, RC_LIMIT);
			continue;
		}
		taken++;
		if (cancel)
			lookup_cancel(l);
	}
	return taken;
}

/* A guest gives up as often as it likes: what it asked is still under way. Without a bound the numbers of questions run out, and
 * c-ares looks for a free one for ever. */
TEST(lookups_are_bounded)
{
	static struct lookup_share *shares[SHARES];
	struct resolver *r = NULL;
	struct loop *loop = NULL;
	size_t taken = 0;
	char server[32];
	_cleanup_fd_ int fd = silent_server(server);

	REQUIRE(!loop_new(&loop, NULL) && !resolver_new(loop, server, &r, NULL));
	for (size_t i = 0; i < SHARES; i++)
		REQUIRE(!lookup_share_new(NULL, &shares[i], NULL));
	alarm(120);
	taken = ask(r, shares[0], EGRESS_LOOKUPS_SANDBOX_MAX + 10, true);
	CHECK_EQ(taken, EGRESS_LOOKUPS_SANDBOX_MAX);
	for (size_t i = 1; i < SHARES; i++)
		taken += ask(r, shares[i], EGRESS_LOOKUPS_SANDBOX_MAX, i % 2);
	CHECK_EQ(taken, EGRESS_LOOKUPS_MAX);
	alarm(0);
	/* A sandbox that ends does not take its lookups along. */
	for (size_t i = 0; i < SHARES; i += 2)
		lookup_share_free(shares[i]);
	resolver_free(r);
	for (size_t i = 1; i < SHARES; i += 2)
		lookup_share_free(shares[i]);
	loop_free(loop);
	/* Those that were cancelled were told nothing. */
	CHECK_EQ(answers, EGRESS_LOOKUPS_SANDBOX_MAX * (SHARES / 2 - 1));
}

/* One organization has half of the places, however many machines it has; the next finds half of the rest. */
TEST(an_organization_leaves_as_much_as_it_has)
{
	static struct lookup_share *shares[2][SHARES];
	struct lookup_share *orgs[2];
	struct resolver *r = NULL;
	struct loop *loop = NULL;
	size_t taken[2] = { 0 };
	char server[32];
	_cleanup_fd_ int fd = silent_server(server);

	REQUIRE(!loop_new(&loop, NULL) && !resolver_new(loop, server, &r, NULL));
	alarm(120);
	for (size_t o = 0; o < 2; o++) {
		REQUIRE(!lookup_share_new(NULL, &orgs[o], NULL));
		for (size_t i = 0; i < SHARES; i++) {
			/* A machine whose policy came later. */
			REQUIRE(!lookup_share_new(orgs[i % 2 ? 0 : o], &shares[o][i], NULL));
			lookup_share_move(shares[o][i], orgs[o]);
			taken[o] += ask(r, shares[o][i], EGRESS_LOOKUPS_SANDBOX_MAX, true);
		}
	}
	alarm(0);
	CHECK_EQ(taken[0], EGRESS_LOOKUPS_MAX / 2);
	CHECK_EQ(taken[1], EGRESS_LOOKUPS_MAX / 4);
	/* Whichever goes first; what is under way frees what is left. */
	lookup_share_free(orgs[0]);
	for (size_t o = 0; o < 2; o++)
		for (size_t i = 0; i < SHARES; i++)
			lookup_share_free(shares[o][i]);
	lookup_share_free(orgs[1]);
	resolver_free(r);
	loop_free(loop);
}

CHECK_MAIN()
