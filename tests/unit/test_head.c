/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/gateway/head.h"
#include "tests/lib/check.h"

static enum rc parse(const char *text, struct head *h)
{
	size_t n = head_length(text, strlen(text));

	return n ? head_parse(text, n, h, NULL) : RC_AGAIN;
}

#define WS "Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\n"
#define KEY "dGhlIHNhbXBsZSBub25jZQ=="

TEST(a_good_request)
{
	struct head h;

	REQUIRE(parse("GET /_stream/0123456789abcdef HTTP/1.1\r\nHost: x\r\n" WS "Sec-WebSocket-Key: " KEY "\r\n\r\n", &h) == RC_OK);
	CHECK_STR(h.token, "0123456789abcdef");
	CHECK(h.upgrade);
	CHECK_EQ(h.ws_version, 13);
	CHECK_STR(h.ws_key, KEY);
}

TEST(query_is_cut)
{
	struct head h;

	REQUIRE(parse("GET /_stream/abc?x=1 HTTP/1.1\r\n\r\n", &h) == RC_OK);
	CHECK_STR(h.token, "abc");
	CHECK(!h.upgrade);
}

TEST(upgrade_needs_both_headers)
{
	struct head h;

	REQUIRE(parse("GET /_stream/a HTTP/1.1\r\nUpgrade: websocket\r\n\r\n", &h) == RC_OK);
	CHECK(!h.upgrade);
	REQUIRE(parse("GET /_stream/a HTTP/1.1\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n", &h) == RC_OK);
	CHECK(!h.upgrade);
}

TEST(incomplete)
{
	CHECK_EQ(head_length("GET / HTTP/1.1\r\nHost: x\r\n", 25), 0);
	CHECK_EQ(head_length("", 0), 0);
}

TEST(refused)
{
	static const struct {
		const char *text;
		enum rc rc;
	} cases[] = {
		{ "POST /_stream/a HTTP/1.1\r\n\r\n", RC_INVALID },
		{ "GET /other HTTP/1.1\r\n\r\n", RC_ABSENT },
		{ "GET /_stream/ HTTP/1.1\r\n\r\n", RC_ABSENT },
		{ "GET /_stream/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa HTTP/1.1\r\n\r\n", RC_ABSENT },
		{ "GET /_stream/a HTTP/2.0\r\n\r\n", RC_INVALID },
		{ "GET /_stream/a\r\n\r\n", RC_INVALID },
		{ "GET  /_stream/a HTTP/1.1\r\n\r\n", RC_INVALID },
		{ "GET /_stream/a HTTP/1.1\r\nA b: c\r\n\r\n", RC_INVALID },
		{ "GET /_stream/a HTTP/1.1\r\n: c\r\n\r\n", RC_INVALID },
		{ "GET /_stream/a HTTP/1.1\r\nA: b\r\n folded\r\n\r\n", RC_INVALID },
		{ "GET /_stream/a HTTP/1.1\nA: b\r\n\r\n", RC_INVALID },
		{ "GET /_stream/a HTTP/1.1\r\nA: \001\r\n\r\n", RC_INVALID },
		{ "GET /_stream/a HTTP/1.1\r\nContent-Length: 3\r\n\r\n", RC_INVALID },
		{ "GET /_stream/a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", RC_INVALID },
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct head h;
		enum rc rc = parse(cases[i].text, &h);

		CHECK_EQ(rc, cases[i].rc);
		if (rc != cases[i].rc)
			printf("  case %zu\n", i);
	}
}

TEST(bytes_behind_the_head)
{
	const char *text = "GET /_stream/a HTTP/1.1\r\n\r\nmore";
	struct head h;

	CHECK_EQ(head_parse(text, strlen(text), &h, NULL), RC_INVALID);
}

TEST(too_many_headers)
{
	char text[HEAD_MAX] = "GET /_stream/a HTTP/1.1\r\n";
	struct head h;

	for (int i = 0; i < HEAD_HEADERS_MAX; i++)
		strcat(text, "A: b\r\n");
	strcat(text, "\r\n");
	CHECK_EQ(parse(text, &h), RC_OK);
	text[strlen(text) - 2] = '\0';
	strcat(text, "A: b\r\n\r\n");
	CHECK_EQ(parse(text, &h), RC_LIMIT);
}

TEST(key_of_another_form)
{
	struct head h;

	REQUIRE(parse("GET /_stream/a HTTP/1.1\r\nSec-WebSocket-Key: short==\r\n\r\n", &h) == RC_OK);
	CHECK_STR(h.ws_key, "");
	REQUIRE(parse("GET /_stream/a HTTP/1.1\r\nSec-WebSocket-Key: dGhlIHNh\"XBsZSBub25jZQ==\r\n\r\n", &h) == RC_OK);
	CHECK_STR(h.ws_key, "");
}

TEST(accept_of_the_standard)
{
	char accept[HEAD_WS_ACCEPT + 1];

	REQUIRE(head_ws_accept(KEY, accept, NULL) == RC_OK);
	CHECK_STR(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
	CHECK_EQ(head_ws_accept("x", accept, NULL), RC_INVALID);
}

CHECK_MAIN()
