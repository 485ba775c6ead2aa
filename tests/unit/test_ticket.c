/* SPDX-License-Identifier: Apache-2.0 */
#include "base/cleanup.h"
#include "base/fd.h"
#include "fcgi/gateway/limits.h"
#include "fcgi/gateway/ticket.h"
#include "tests/lib/check.h"

#include <fcntl.h>

#define TOKEN "0123456789abcdef0123456789abcdef"

static struct loop *loop;
static struct tickets *table;

static int open_fd(void)
{
	return open("/dev/null", O_RDWR | O_CLOEXEC);
}

static bool is_open(int fd)
{
	return fcntl(fd, F_GETFD) >= 0;
}

static enum rc add(const char *token, uint32_t ttl_ms, int fd, int lease)
{
	struct ticket t = { .kind = GATEWAY_TICKET_WS, .fd = fd, .lease = lease, .headers = strdup("") };

	return tickets_add(table, token, ttl_ms, &t, NULL);
}

static void begin(void)
{
	if (loop_new(&loop, NULL) || tickets_new(loop, &table, NULL))
		abort();
}

static void end(void)
{
	tickets_free(table);
	loop_free(loop);
}

TEST(redeemed_once)
{
	struct ticket t = { .fd = -1, .lease = -1 };
	int fd = open_fd(), lease = open_fd();

	begin();
	REQUIRE(add(TOKEN, 1000, fd, lease) == RC_OK);
	CHECK_EQ(tickets_count(table), 1);
	CHECK_EQ(tickets_redeem(table, "0123456789abcdef0123456789abcdee", &t, NULL), RC_ABSENT);
	CHECK_EQ(tickets_redeem(table, "0123456789abcdef", &t, NULL), RC_ABSENT);
	CHECK_EQ(tickets_redeem(table, "", &t, NULL), RC_ABSENT);
	REQUIRE(tickets_redeem(table, TOKEN, &t, NULL) == RC_OK);
	CHECK_EQ(t.fd, fd);
	CHECK_EQ(t.lease, lease);
	CHECK(is_open(fd) && is_open(lease));
	CHECK_EQ(tickets_redeem(table, TOKEN, &t, NULL), RC_ABSENT);
	ticket_close(&t);
	CHECK(!is_open(fd) && !is_open(lease));
	end();
}

TEST(expired_ones_are_closed)
{
	struct ticket t;
	int fd = open_fd(), lease = open_fd();
	uint64_t deadline = now_ms() + 5000;

	begin();
	REQUIRE(add(TOKEN, 20, fd, lease) == RC_OK);
	while (tickets_count(table) && now_ms() < deadline)
		loop_once(loop, 1000, NULL);
	CHECK_EQ(tickets_count(table), 0);
	CHECK(!is_open(fd) && !is_open(lease));
	CHECK_EQ(tickets_redeem(table, TOKEN, &t, NULL), RC_ABSENT);
	end();
}

TEST(refused_ones_are_closed)
{
	int first = open_fd(), second = open_fd(), third = open_fd();

	begin();
	REQUIRE(add(TOKEN, 1000, first, -1) == RC_OK);
	CHECK_EQ(add(TOKEN, 1000, second, -1), RC_EXISTS);
	CHECK(!is_open(second));
	CHECK_EQ(add("not a token", 1000, third, -1), RC_INVALID);
	CHECK(!is_open(third));
	CHECK(is_open(first));
	end();
	CHECK(!is_open(first));
}

TEST(the_table_is_bounded)
{
	char token[GATEWAY_TOKEN_MAX];
	int fd;

	begin();
	for (unsigned int i = 0; i < TICKETS_MAX; i++) {
		snprintf(token, sizeof(token), "%032x", i);
		REQUIRE(add(token, 60000, -1, -1) == RC_OK);
	}
	fd = open_fd();
	CHECK_EQ(add(TOKEN, 1000, fd, -1), RC_LIMIT);
	CHECK(!is_open(fd));
	end();
}

CHECK_MAIN()
