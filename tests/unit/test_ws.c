/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/ws.h"

#include "tests/lib/check.h"

#include <stdint.h>

static const uint8_t mask[4] = { 1, 2, 3, 4 };

/* One client frame into out; returns its length. */
static size_t frame(uint8_t *out, uint8_t first, const void *data, size_t n)
{
	size_t at = ws_head(out, WS_TEXT, n);

	out[0] = first;
	out[1] |= 0x80;
	memcpy(out + at, mask, 4);
	for (size_t i = 0; i < n; i++)
		out[at + 4 + i] = ((const uint8_t *)data)[i] ^ mask[i & 3];
	return at + 4 + n;
}

/* Feeds all; the last result. */
static enum rc feed(struct ws_in *ws, const uint8_t *data, size_t n, struct ws_message *m)
{
	size_t used = 0, k;
	enum rc rc = RC_AGAIN;

	while (used < n && rc == RC_AGAIN) {
		rc = ws_feed(ws, data + used, n - used, &k, m, NULL);
		used += k;
	}
	return rc;
}

static int status_of(const uint8_t *data, size_t n)
{
	struct ws_message m;
	struct ws_in ws;
	enum rc rc;
	int status;

	ws_in_init(&ws, 1000, 8);
	rc = feed(&ws, data, n, &m);
	status = rc == RC_OK || rc == RC_AGAIN ? 0 : ws.failed;
	ws_in_free(&ws);
	return status;
}

TEST(text_in_every_split)
{
	uint8_t wire[600];
	char text[300];
	size_t n;

	memset(text, 'x', sizeof(text));
	memcpy(text + 100, "\xe2\x82\xac", 3);
	n = frame(wire, 0x81, text, sizeof(text));
	for (size_t cut = 1; cut < n; cut++) {
		struct ws_message m = { 0 };
		struct ws_in ws;
		size_t used;

		ws_in_init(&ws, 1000, 8);
		CHECK_EQ(ws_feed(&ws, wire, cut, &used, &m, NULL), RC_AGAIN);
		CHECK_EQ(used, cut);
		CHECK_EQ(ws_feed(&ws, wire + cut, n - cut, &used, &m, NULL), RC_OK);
		CHECK_EQ(used, n - cut);
		CHECK_EQ(m.n, sizeof(text));
		CHECK(!memcmp(m.data, text, sizeof(text)) && m.data[m.n] == 0);
		ws_in_free(&ws);
	}
}

TEST(fragments_with_a_ping_between)
{
	struct ws_message m;
	struct ws_in ws;
	uint8_t wire[100];
	size_t n = frame(wire, 0x01, "ab", 2), used, at = 0;

	n += frame(wire + n, 0x89, "p", 1);
	n += frame(wire + n, 0x80, "cd", 2);
	n += frame(wire + n, 0x81, "", 0);
	ws_in_init(&ws, 1000, 8);
	REQUIRE(ws_feed(&ws, wire, n, &used, &m, NULL) == RC_OK);
	at += used;
	CHECK_EQ(m.opcode, WS_PING);
	CHECK(m.n == 1 && m.data[0] == 'p');
	REQUIRE(ws_feed(&ws, wire + at, n - at, &used, &m, NULL) == RC_OK);
	at += used;
	CHECK_EQ(m.opcode, WS_TEXT);
	CHECK_STR(m.data, "abcd");
	REQUIRE(ws_feed(&ws, wire + at, n - at, &used, &m, NULL) == RC_OK);
	CHECK_EQ(m.n, 0);
	CHECK_STR(m.data, "");
	ws_in_free(&ws);
}

TEST(refusals)
{
	uint8_t wire[2048], big[1001] = { 0 };
	size_t n;

	memset(big, 'a', sizeof(big));
	CHECK_EQ(status_of((const uint8_t *)"\x81\x02hi", 4), WS_PROTOCOL); /* unmasked */
	CHECK_EQ(status_of((const uint8_t *)"\xc1\x80", 2), WS_PROTOCOL);   /* reserved bit */
	CHECK_EQ(status_of(wire, frame(wire, 0x83, "x", 1)), WS_PROTOCOL);  /* reserved opcode */
	CHECK_EQ(status_of(wire, frame(wire, 0x82, "x", 1)), WS_UNSUPPORTED);
	CHECK_EQ(status_of(wire, frame(wire, 0x80, "x", 1)), WS_PROTOCOL);  /* continues nothing */
	CHECK_EQ(status_of(wire, frame(wire, 0x09, "x", 1)), WS_PROTOCOL);  /* fragmented ping */
	CHECK_EQ(status_of(wire, frame(wire, 0x89, big, 126)), WS_PROTOCOL);
	n = frame(wire, 0x01, "x", 1);
	n += frame(wire + n, 0x01, "x", 1);
	CHECK_EQ(status_of(wire, n), WS_PROTOCOL); /* a message within a message */
	CHECK_EQ(status_of(wire, frame(wire, 0x81, big, 1000)), 0);
	CHECK_EQ(status_of(wire, frame(wire, 0x81, big, 1001)), WS_TOO_BIG);
	CHECK_EQ(status_of((const uint8_t *)"\x81\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0", 14), WS_TOO_BIG);
	n = frame(wire, 0x01, big, 600);
	n += frame(wire + n, 0x80, big, 401);
	CHECK_EQ(status_of(wire, n), WS_TOO_BIG); /* together */
}

TEST(fragments_without_end)
{
	uint8_t wire[32];
	struct ws_message m;
	struct ws_in ws;
	enum rc rc = RC_AGAIN;
	int frames = 0;

	ws_in_init(&ws, 1000, 8);
	while (rc == RC_AGAIN && frames < 100) {
		size_t n = frame(wire, frames ? 0x00 : 0x01, "", 0);

		rc = feed(&ws, wire, n, &m);
		frames++;
	}
	CHECK_EQ(frames, 9);
	CHECK_EQ(ws.failed, WS_POLICY);
	ws_in_free(&ws);
}

TEST(failed_stays_failed)
{
	uint8_t wire[32];
	struct ws_message m;
	struct ws_in ws;
	size_t used;

	ws_in_init(&ws, 1000, 8);
	CHECK(feed(&ws, (const uint8_t *)"\x81\x02hi", 4, &m) != RC_OK);
	CHECK(ws_feed(&ws, wire, frame(wire, 0x81, "x", 1), &used, &m, NULL) == RC_PROTO);
	CHECK_EQ(used, 0);
	ws_in_free(&ws);
}

TEST(utf8)
{
	static const char *const good[] = { "", "plain", "\xc3\xa4", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\xed\x9f\xbf", "\xee\x80\x80",
					    "\xf4\x8f\xbf\xbf", "12345678\xc3\xa4""12345678" };
	static const char *const bad[] = { "\x80", "\xc3", "\xc0\xaf", "\xc1\xbf", "\xe0\x9f\xbf", "\xed\xa0\x80", "\xf0\x8f\xbf\xbf",
					   "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff", "12345678\xe2\x82", "\xe2\x28\xa1" };

	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
		CHECK(utf8_valid((const uint8_t *)good[i], strlen(good[i])));
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		CHECK(!utf8_valid((const uint8_t *)bad[i], strlen(bad[i])));
	CHECK_EQ(status_of((const uint8_t *)"\x81\x81\0\0\0\0\xff", 7), WS_NOT_UTF8);
}

TEST(close_status)
{
	char data[8];
	struct ws_message m = { .opcode = WS_CLOSE, .data = data };

	CHECK_EQ(ws_close_status(&m), 1005);
	m.n = 1;
	CHECK_EQ(ws_close_status(&m), WS_PROTOCOL);
	memcpy(data, "\x03\xe8", 2);
	m.n = 2;
	CHECK_EQ(ws_close_status(&m), 1000);
	memcpy(data, "\x03\xed", 2); /* 1005 may not be sent */
	CHECK_EQ(ws_close_status(&m), WS_PROTOCOL);
	memcpy(data, "\x0f\xa0", 2);
	CHECK_EQ(ws_close_status(&m), 4000);
	memcpy(data, "\x03\xe8\xff", 3);
	m.n = 3;
	CHECK_EQ(ws_close_status(&m), WS_PROTOCOL);
}

CHECK_MAIN()
