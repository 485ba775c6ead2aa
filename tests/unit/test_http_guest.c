/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/http.h"
#include "guest/proc.h"

#include "tests/lib/check.h"

#include <signal.h>

TEST(resolve)
{
	static const struct {
		const char *base, *location, *wanted;
	} cases[] = {
		{ "http://h/a/b?q", "/c", "http://h/c" },
		{ "http://h/a/b?q=/", "c", "http://h/a/c" },
		{ "http://h:1/a/b", "?x", "http://h:1/a/b?x" },
		{ "http://h", "c", "http://h/c" },
		{ "http://h?q", "c", "http://h/c" },
		{ "https://h/a", "//other/x", "https://other/x" },
		{ "https://h/a", "http://other/x#frag", "http://other/x" },
		{ "https://h/a#f", "", "https://h/a" },
		{ "https://h/a", "ftp://x/", NULL },
		{ "https://h/a", "javascript:alert(1)", NULL },
		{ "https://h/a", "mailto:x@y", NULL },
		{ "http://h/a/", "b:c/../d", NULL },
		{ "ftp://h/", "/x", NULL },
	};
	char out[64];

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		bool ok = http_resolve(cases[i].base, cases[i].location, out, sizeof(out));

		CHECK_EQ(ok, cases[i].wanted != NULL);
		if (ok && cases[i].wanted)
			CHECK_STR(out, cases[i].wanted);
	}
	CHECK(!http_resolve("http://h/a", "/0123456789", out, 12));
}

TEST(origin)
{
	char out[32];

	CHECK(http_origin("HTTP://User:Pw@Host:80/x?@y", out, sizeof(out)));
	CHECK_STR(out, "http://host:80");
	CHECK(http_origin("https://[::1]:8/", out, sizeof(out)));
	CHECK_STR(out, "https://[::1]:8");
	CHECK(!http_origin("http:///x", out, sizeof(out)));
	CHECK(!http_origin("file:///x", out, sizeof(out)));
	CHECK(!http_origin("http://01234567890123456789012345", out, sizeof(out)));
}

TEST(head)
{
	static const char text[] = "HTTP/1.1 302 Found it\r\nA: b \r\nLocation:\t/x\r\nbad line\r\nX: caf\xe9\r\n\r\nbody";
	struct http_head h = { 0 };
	size_t n = http_head_length(text, sizeof(text) - 1);

	REQUIRE(n == sizeof(text) - 1 - 4);
	REQUIRE(http_head_parse(&h, text, n));
	CHECK_EQ(h.status, 302);
	CHECK_STR(h.reason, "Found it");
	CHECK_STR(h.location, "/x");
	CHECK_EQ(json_object_array_length(h.headers), 3);
	CHECK_STR(json_object_to_json_string_ext(h.headers, JSON_WRITE_FLAGS),
		  "[[\"A\",\"b\"],[\"Location\",\"/x\"],[\"X\",\"caf\xc3\xa9\"]]");
	http_head_done(&h);
	for (size_t k = 0; k < n; k++)
		CHECK_EQ(http_head_length(text, k), 0);
}

TEST(bad_heads)
{
	static const char *const bad[] = { "HTTP/1.1 99 x\r\n\r\n", "HTTP/1.1 600 x\r\n\r\n", "nonsense\r\n\r\n", "HTTP/1.1 abc\r\n\r\n", "\r\n\r\n" };

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct http_head h = { 0 };

		CHECK(!http_head_parse(&h, bad[i], strlen(bad[i])));
		http_head_done(&h);
	}
}

TEST(signals)
{
	CHECK_EQ(signal_from_name("SIGTERM"), SIGTERM);
	CHECK_EQ(signal_from_name("SIGKILL"), SIGKILL);
	CHECK_EQ(signal_from_name("TERM"), -1);
	CHECK_EQ(signal_from_name(""), -1);
	CHECK_STR(signal_name(SIGUSR2), "SIGUSR2");
	for (int i = 1; i < 32; i++)
		CHECK_EQ(signal_from_name(signal_name(i)), i);
}

CHECK_MAIN()
