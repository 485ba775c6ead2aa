/* SPDX-License-Identifier: Apache-2.0 */
#include "base/buf.h"
#include "base/cleanup.h"
#include "tests/lib/check.h"
#include "vmm/egress/rewrite.h"

static enum http_result parse(const char *text, bool request, struct http_head *h)
{
	const char *why;

	return http_parse((const uint8_t *)text, strlen(text), request, h, &why);
}

#define GET "GET / HTTP/1.1\r\n"

TEST(one_way_to_say_each_thing)
{
	static const char *const bad[] = {
		"\r\n\r\n", "GET /\r\n\r\n", "GET  / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1 \r\n\r\n", "GET / HTTP/1.2\r\n\r\n",
		"GET / HTTP/2.0\r\n\r\n", "GET / http/1.1\r\n\r\n", "G T / HTTP/1.1\r\n\r\n", "GET /a b HTTP/1.1\r\n\r\n",
		"GET /\x01 HTTP/1.1\r\n\r\n", GET "a: b\n\r\n", GET "a: b\r\n c\r\n\r\n", GET " a: b\r\n\r\n", GET "a : b\r\n\r\n",
		GET "a\r\n\r\n", GET ": b\r\n\r\n", GET "a: b\rc\r\n\r\n", GET "a: \x7f\r\n\r\n", "GET / HTTP/1.1\n\n",
		GET "Content-Length: 1\r\nContent-Length: 1\r\n\r\n", GET "Content-Length: +1\r\n\r\n",
		GET "Content-Length: 1, 1\r\n\r\n", GET "Content-Length: \r\n\r\n", GET "Content-Length: 0x1\r\n\r\n",
		GET "Content-Length: 1234567890123456\r\n\r\n", GET "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
		GET "Transfer-Encoding: gzip, chunked\r\n\r\n", GET "Transfer-Encoding: xchunked\r\n\r\n",
		GET "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
		"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", "ABCDEFGHIJKLMNOPQ / HTTP/1.1\r\n\r\n",
	};
	struct http_head h;

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		if (parse(bad[i], true, &h) != HTTP_BAD) {
			printf("  accepted: %s\n", bad[i]);
			CHECK(!"refused");
		}
}

TEST(a_request_is_read)
{
	const char *text = "POST /a?b HTTP/1.1\r\nHost: x\r\nA:  b c \t\r\nContent-Length: 5\r\nConnection: foo, Close\r\n\r\nhello";
	struct http_head h;
	struct http_text t;

	for (size_t n = 0; n < strlen(text) - 5; n++) {
		const char *why;

		CHECK_EQ(http_parse((const uint8_t *)text, n, true, &h, &why), HTTP_MORE);
	}
	CHECK_EQ(parse(text, true, &h), HTTP_OK);
	CHECK_STR(h.method, "POST");
	CHECK(h.target.n == 4 && !memcmp(h.target.at, "/a?b", 4));
	CHECK_EQ(http_find(&h, "a", &t), 1);
	CHECK(t.n == 3 && !memcmp(t.at, "b c", 3));
	CHECK_EQ(h.framing, HTTP_LENGTH);
	CHECK_EQ(h.length, 5);
	CHECK(h.close);
	CHECK_EQ(h.n, strlen(text) - 5);
}

TEST(a_response_has_its_framing)
{
	struct http_head h;

	CHECK_EQ(parse("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", false, &h), HTTP_OK);
	CHECK_EQ(http_response_framing(&h, false), HTTP_LENGTH);
	CHECK_EQ(http_response_framing(&h, true), HTTP_NO_BODY);
	CHECK_EQ(parse("HTTP/1.1 200\r\n\r\n", false, &h), HTTP_OK);
	CHECK_EQ(http_response_framing(&h, false), HTTP_UNTIL_CLOSE);
	CHECK_EQ(parse("HTTP/1.1 304 Not\r\nContent-Length: 3\r\n\r\n", false, &h), HTTP_OK);
	CHECK_EQ(http_response_framing(&h, false), HTTP_NO_BODY);
	CHECK_EQ(parse("HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n", false, &h), HTTP_OK);
	CHECK_EQ(http_response_framing(&h, false), HTTP_CHUNKED);
	CHECK_EQ(parse("HTTP/1.1 20 OK\r\n\r\n", false, &h), HTTP_BAD);
	CHECK_EQ(parse("HTTP/1.1 2000 OK\r\n\r\n", false, &h), HTTP_BAD);
	CHECK_EQ(parse("ICY 200 OK\r\n\r\n", false, &h), HTTP_BAD);
}

static enum http_result body(const char *in, size_t step, char *out)
{
	struct http_body b;
	size_t at = 0, have = 0, n = strlen(in), used, k = 0;

	http_body_start(&b, HTTP_CHUNKED, 0);
	while (!b.done) {
		struct http_text piece;
		enum http_result r = http_body_read(&b, (const uint8_t *)in + at, have - at, &used, &piece);

		if (r == HTTP_BAD)
			return r;
		if (r == HTTP_MORE) {
			if (have == n)
				return HTTP_MORE;
			have = MIN_OF(have + step, n);
			continue;
		}
		if (piece.n)
			memcpy(out + k, piece.at, piece.n);
		k += piece.n;
		at += used;
	}
	out[k] = '\0';
	return at == n ? HTTP_OK : HTTP_MORE;
}

TEST(chunks_are_put_together_however_they_are_cut)
{
	static const char *const bad[] = { "\r\n", "x\r\n", "1\nab", "-1\r\n", "1\r\nab\r\n0\r\n\r\n", "1 2\x01\r\na\r\n",
					   "1234567890abcdef0\r\n", "0x1\r\na\r\n0\r\n\r\n" };
	char out[64];

	for (size_t step = 1; step < 40; step++) {
		CHECK_EQ(body("3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nTrailer: z\r\n\r\n", step, out), HTTP_OK);
		CHECK_STR(out, "abc0123456789");
	}
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		CHECK_EQ(body(bad[i], 100, out), HTTP_BAD);
}

static struct policy *policy_of(const char *lines)
{
	struct policy *p = NULL;
	char text[1024];

	snprintf(text, sizeof(text), POLICY_HEAD "\ndefault public\n%s", lines);
	policy_parse(text, strlen(text), &p, NULL);
	return p;
}

/* 0: may go */
static int judged(const char *lines, const char *text, struct judged *j)
{
	struct policy *p = policy_of(lines);
	const char *why = NULL;
	struct http_text host;
	struct http_head h;
	int status = 400;

	if (parse(text, true, &h) == HTTP_OK)
		status = http_find(&h, "host", &host) != 1 ? 421 :
			 judge_request(p, "api.test", 443, h.method, &host, &h.target, j, &why);
	policy_free(p);
	if (status && status != 421)
		CHECK(why || status == 400);
	return status;
}

static int refuses(const char *text)
{
	struct judged j;

	return judged("", text, &j);
}

#define RULES "rule api.test GET,HEAD /v1/\nrule api.test POST /v1/messages\nrule *.test * /any\n"

static int asked(const char *line, struct judged *j)
{
	char text[256];

	snprintf(text, sizeof(text), "%s HTTP/1.1\r\nHost: api.test\r\n\r\n", line);
	return judged(RULES, text, j);
}

TEST(rules_are_about_method_and_path)
{
	struct judged j;

	CHECK_EQ(asked("GET /v1/models", &j), 0);
	CHECK_STR(j.verdict.rule, "rule GET,HEAD /v1/");
	CHECK_EQ(asked("GET /v1/models?x=../../y", &j), 0);
	CHECK_EQ(asked("DELETE /v1/models", &j), 403);
	CHECK_EQ(asked("get /v1/models", &j), 403);
	CHECK_EQ(asked("GET /v1", &j), 403);
	CHECK_EQ(asked("GET /v10/", &j), 403);
	CHECK_EQ(asked("POST /v1/messages", &j), 0);
	CHECK_EQ(asked("POST /v1/messages/x", &j), 0);
	CHECK_EQ(asked("POST /v1/messagesx", &j), 403);
	CHECK_EQ(asked("PATCH /any", &j), 0);
	CHECK_EQ(asked("OPTIONS *", &j), 403);
	CHECK_EQ(asked("GET /v1/../admin", &j), 403);
	CHECK_EQ(asked("GET /v1/%2e%2E/admin", &j), 403);
	CHECK_EQ(asked("GET /x/../%76%31/models", &j), 0);
	CHECK(j.normal);
	CHECK_STR(j.path, "/v1/models");
	/* Without rules the path is nobody's business here. */
	CHECK_EQ(judged("", "GET //a%2fb/../..;/c HTTP/1.1\r\nHost: api.test\r\n\r\n", &j), 0);
	CHECK(!j.normal);
}

TEST(paths_that_servers_read_in_different_ways_are_refused)
{
	static const char *const bad[] = { "//v1/x", "/v1//x", "/v1/a%2fb", "/v1/a%2Fb", "/v1/a%5cb", "/v1/a\\b", "/v1/..;/x", "/v1/.;x/y",
					   "/v1/%2e%2e;a=b/x", "/v1/..%3b/x", "/v1/%252e", "/v1/%00", "/v1/%0a", "/v1/%", "/v1/%4",
					   "/v1/%zz", "/../v1/x", "/v1/../../x", "/v1/#x", "/.%2e/v1/" };
	struct judged j;

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		char line[64];

		snprintf(line, sizeof(line), "GET %s", bad[i]);
		if (asked(line, &j) != 400) {
			printf("  not refused: %s\n", bad[i]);
			check_failed_here++;
		}
	}
}

TEST(normal_forms)
{
	static const char *const same[][2] = { { "/", "/" }, { "/a/./b", "/a/b" }, { "/a/b/..", "/a/" }, { "/a/.", "/a/" },
					       { "/a/../b", "/b" }, { "/%61%2D%7e", "/a-~" }, { "/%c3%a4", "/%C3%A4" },
					       { "/a%20b", "/a%20b" }, { "/...", "/..." }, { "/a;x/b", "/a;x/b" }, { "/.a;b", "/.a;b" },
					       { "/a/b/../../c", "/c" }, { "/a/..", "/" } };
	char out[64], again[64];

	for (size_t i = 0; i < ARRAY_SIZE(same); i++) {
		CHECK_EQ(policy_path_normalize(same[i][0], strlen(same[i][0]), out, sizeof(out)), POLICY_PATH_OK);
		CHECK_STR(out, same[i][1]);
		CHECK_EQ(policy_path_normalize(out, strlen(out), again, sizeof(again)), POLICY_PATH_OK);
		CHECK_STR(out, again);
	}
	CHECK_EQ(policy_path_normalize("/aaaa", 5, out, 5), POLICY_PATH_LONG);
}

TEST(a_request_must_be_for_the_connections_host)
{
	CHECK(!refuses(GET "Host: api.test\r\n\r\n"));
	CHECK(!refuses(GET "Host: API.test:443\r\n\r\n"));
	CHECK(!refuses("OPTIONS * HTTP/1.1\r\nHost: api.test\r\n\r\n"));
	CHECK(refuses(GET "\r\n"));
	CHECK(refuses(GET "Host: evil.test\r\n\r\n"));
	CHECK(refuses(GET "Host: api.test:444\r\n\r\n"));
	CHECK(refuses(GET "Host: api.test\r\nHost: api.test\r\n\r\n"));
	CHECK(refuses(GET "Host: api.test, evil.test\r\n\r\n"));
	CHECK(refuses("GET https://evil.test/ HTTP/1.1\r\nHost: api.test\r\n\r\n"));
	CHECK(refuses("CONNECT evil.test:443 HTTP/1.1\r\nHost: api.test\r\n\r\n"));
	CHECK(refuses("TRACE / HTTP/1.1\r\nHost: api.test\r\n\r\n"));
	CHECK(refuses("GET * HTTP/1.1\r\nHost: api.test\r\n\r\n"));
}

TEST(heads_are_written_anew)
{
	struct judged j = { .place = { .host = "api.test", .port = 443 } };
	struct secret_report report = { 0 };
	struct buf out = BUF_INIT(4096);
	struct http_head h;

	CHECK_EQ(parse("GET /x HTTP/1.1\r\nHost: API.test\r\nConnection: upgrade\r\nUpgrade: h2c\r\nAccept-Encoding: gzip\r\n"
		       "TE: trailers\r\nX-A:  1\r\n\r\n", true, &h), HTTP_OK);
	CHECK_EQ(rewrite_request(&h, &j, NULL, &out, &report), RC_OK);
	buf_put(&out, "", 1);
	CHECK_STR((char *)buf_data(&out), "GET /x HTTP/1.1\r\nHost: api.test\r\nAccept-Encoding: gzip\r\nX-A: 1\r\n\r\n");
	buf_free(&out);
}

CHECK_MAIN()
