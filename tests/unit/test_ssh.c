/* SPDX-License-Identifier: Apache-2.0 */
/* What of the SSH gateway needs no client: who may connect, and what a guest may say. */
#include "base/cleanup.h"
#include "fcgi/ssh/frames.h"
#include "fcgi/ssh/rate.h"
#include "schema/agent.h"
#include "tests/lib/check.h"

#include <arpa/inet.h>
#include <netinet/in.h>

static struct rate rate;

static enum rc admit(const char *addr, uint64_t now, struct source_addr **ret)
{
	struct sockaddr_in v4 = { .sin_family = AF_INET };
	struct sockaddr_in6 v6 = { .sin6_family = AF_INET6 };

	if (inet_pton(AF_INET, addr, &v4.sin_addr) == 1)
		return rate_admit(&rate, (struct sockaddr *)&v4, now, ret, NULL);
	inet_pton(AF_INET6, addr, &v6.sin6_addr);
	return rate_admit(&rate, (struct sockaddr *)&v6, now, ret, NULL);
}

TEST(an_address_that_fails_is_turned_away_for_a_while)
{
	struct source_addr *a, *b;
	uint64_t t = 1000;

	rate = (struct rate){ .started = false };
	for (int i = 0; i < SSH_FAILS_MAX; i++) {
		CHECK_EQ(admit("192.0.2.1", t += 100, &a), RC_OK);
		rate_failed(a, t);
		rate_leave(a);
	}
	CHECK_EQ(admit("192.0.2.1", t, &a), RC_LIMIT);
	CHECK_EQ(admit("192.0.2.2", t, &b), RC_OK);
	rate_leave(b);
	CHECK_EQ(admit("192.0.2.1", 1100 + SSH_FAIL_WINDOW_MS - 1, &a), RC_LIMIT);
	CHECK_EQ(admit("192.0.2.1", 1100 + SSH_FAIL_WINDOW_MS, &a), RC_OK);
	CHECK_EQ(a->fails, 0);
	rate_leave(a);
}

TEST(connections_of_one_address_are_bounded)
{
	struct source_addr *a = NULL, *b;
	uint64_t t = 0;

	rate = (struct rate){ .started = false };
	for (int i = 0; i < SSH_SOURCE_MAX; i++)
		CHECK_EQ(admit("2001:db8::1", t += 100, &a), RC_OK);
	/* The whole /64 is one, and an IPv4 address written as IPv6 is itself. */
	CHECK_EQ(admit("2001:db8::ffff:1", t += 100, &b), RC_LIMIT);
	CHECK_EQ(admit("2001:db8:0:1::1", t += 100, &b), RC_OK);
	CHECK_EQ(admit("192.0.2.1", t += 100, &a), RC_OK);
	CHECK_EQ(admit("::ffff:192.0.2.1", t += 100, &b), RC_OK);
	CHECK(a == b);
	CHECK_EQ(admit("::ffff:192.0.2.2", t += 100, &b), RC_OK);
	CHECK(a != b);
}

TEST(new_connections_have_a_rate)
{
	struct source_addr *a;
	char addr[32];
	int n = 0;

	rate = (struct rate){ .started = false };
	for (int i = 0; i < SSH_RATE_BURST + 50; i++) {
		snprintf(addr, sizeof(addr), "10.0.%d.%d", i / 200, i % 200);
		if (!admit(addr, 5000, &a))
			n++;
	}
	CHECK_EQ(n, SSH_RATE_BURST);
	CHECK_EQ(admit("10.1.0.1", 5000 + 1000 / SSH_RATE_PER_S, &a), RC_OK);
	CHECK_EQ(admit("10.1.0.2", 5000 + 1000 / SSH_RATE_PER_S, &a), RC_LIMIT);
}

TEST(addresses_are_forgotten_but_not_those_that_are_connected)
{
	struct source_addr *kept, *a;
	char addr[32];
	uint64_t t = 0;

	rate = (struct rate){ .started = false };
	CHECK_EQ(admit("192.0.2.1", t, &kept), RC_OK);
	for (int i = 0; i < 2 * SSH_SOURCES; i++) {
		snprintf(addr, sizeof(addr), "10.0.%d.%d", i / 200, i % 200);
		CHECK_EQ(admit(addr, t += 100, &a), RC_OK);
		CHECK(a != kept);
		rate_failed(a, t);
		rate_leave(a);
	}
	CHECK_EQ(admit("192.0.2.1", t += 100, &a), RC_OK);
	CHECK(a == kept);
	CHECK_EQ(kept->connections, 2);
}

TEST(frames)
{
	_cleanup_buf_ struct buf b = BUF_INIT(2 * AGENT_FRAME_MAX);
	struct frame f;

	CHECK_EQ(frame_get(&b, &f, NULL), RC_AGAIN);
	CHECK_EQ(frame_put(&b, FRAME_STDOUT, "abc", 3), RC_OK);
	CHECK_EQ(frame_put(&b, FRAME_STDERR, NULL, 0), RC_OK);
	CHECK_EQ(frame_get(&b, &f, NULL), RC_OK);
	CHECK(f.kind == FRAME_STDOUT && f.n == 3 && !memcmp(f.data, "abc", 3));
	frame_done(&b, &f);
	CHECK_EQ(frame_get(&b, &f, NULL), RC_OK);
	CHECK(f.kind == FRAME_STDERR && f.n == 0);
	frame_done(&b, &f);
	CHECK_EQ(buf_len(&b), 0);
	CHECK_EQ(buf_put(&b, "\1\4\0\0\0abc", 8), RC_OK);
	CHECK_EQ(frame_get(&b, &f, NULL), RC_AGAIN);
	buf_consume(&b, 8);
	CHECK_EQ(buf_put(&b, "\1\1\0\1\0", 5), RC_OK); /* one more than AGENT_FRAME_MAX */
	CHECK_EQ(frame_get(&b, &f, NULL), RC_GUEST);
	buf_consume(&b, 5);
	CHECK_EQ(buf_put(&b, "\0\0\0\0\0", 5), RC_OK); /* no guest sends input */
	CHECK_EQ(frame_get(&b, &f, NULL), RC_GUEST);
	CHECK_EQ(frame_put(&b, FRAME_STDIN, "", AGENT_FRAME_MAX + 1), RC_LIMIT);
}

static enum rc exit_of(const char *text, struct frame_exit *ret)
{
	struct frame f = { .kind = FRAME_EXIT, .data = (const uint8_t *)text, .n = strlen(text) };

	return frame_exit_parse(&f, ret, NULL);
}

TEST(exits)
{
	struct frame_exit e;

	CHECK_EQ(exit_of("{\"code\": 3, \"signal\": null, \"oom\": false}", &e), RC_OK);
	CHECK(e.code == 3 && !*e.signal);
	CHECK_EQ(exit_of("{\"code\": 143, \"signal\": \"SIGTERM\"}", &e), RC_OK);
	CHECK_STR(e.signal, "TERM");
	CHECK_EQ(exit_of("{\"code\": -1, \"signal\": \"SIG\\nABCDEFGHIJKLMNOPQRSTU\"}", &e), RC_OK);
	CHECK_EQ(e.code, 255);
	CHECK_STR(e.signal, "ABCDEFGHIJKLMNO");
	CHECK_EQ(exit_of("{\"signal\": \"SIGTERM\"}", &e), RC_GUEST);
	CHECK_EQ(exit_of("{\"code\": \"0\"}", &e), RC_GUEST);
	CHECK_EQ(exit_of("[]", &e), RC_GUEST);
	CHECK_EQ(exit_of("", &e), RC_GUEST);
}

TEST(answers)
{
	CHECK_EQ(frame_answer_parse("{\"ok\": true}", NULL), RC_OK);
	CHECK_EQ(frame_answer_parse("{\"ok\": false}", NULL), RC_GUEST);
	CHECK_EQ(frame_answer_parse("{\"ok\": 1}", NULL), RC_GUEST);
	CHECK_EQ(frame_answer_parse("{\"error\": {\"code\": \"ECONNREFUSED\"}}", NULL), RC_GUEST);
	CHECK_EQ(frame_answer_parse("true", NULL), RC_GUEST);
	CHECK_EQ(frame_answer_parse("", NULL), RC_GUEST);
}

CHECK_MAIN()
