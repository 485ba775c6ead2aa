/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/agent_line.h"
#include "guest/agent_limits.h"
#include "schema/agent.h"
#include "tests/lib/check.h"

#include <json-c/json.h>

static enum rc parse(const char *line, struct agent_request *r, struct fault *f)
{
	return agent_request_parse(line, strlen(line), r, f);
}

static enum rc spec(const char *line, struct agent_spec *s, struct agent_request *r)
{
	struct fault f = { 0 };

	if (parse(line, r, &f))
		return f.rc;
	if (agent_spec_parse(r->root, s, &f)) {
		agent_request_free(r);
		return f.rc;
	}
	return RC_OK;
}

TEST(services_by_name)
{
	static const char *const names[] = { "rpc", "exec", "tar-out", "tar-in", "dial", "http", "unit", "control" };
	struct agent_request r;
	char line[80];

	for (size_t i = 0; i < 8; i++) {
		snprintf(line, sizeof(line), "{\"service\": \"%s\", \"op\": \"x\"}", names[i]);
		REQUIRE(parse(line, &r, NULL) == RC_OK);
		CHECK_EQ(r.service, i);
		CHECK_STR(r.op, "x");
		agent_request_free(&r);
	}
}

TEST(refuses_what_is_not_a_request)
{
	static const char *const bad[] = { "",	 " ",	     "{",	    "[]",   "null", "{\"service\": \"rpc\"} x", "{\"service\": \"rpc\",}",
					   "{}", "{\"service\": 1}", "{\"service\": \"RPC\"}", "{\"service\": null}",
					   "{\"service\": \"rpc\", \"op\": []}", "{'service': 'rpc'}", "{\"service\": \"rpc\\u0000\"}",
					   "{\"service\": \"rpc\", \"x\": \"\xff\"}" };
	struct agent_request r;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct fault f = { 0 };

		if (parse(bad[i], &r, &f) != RC_INVALID)
			printf("  taken: %s\n", bad[i]);
		CHECK_EQ(f.rc, RC_INVALID);
	}
}

TEST(depth_and_length_are_bounded)
{
	static char deep[AGENT_LINE_MAX + 2];
	struct agent_request r;
	struct fault f = { 0 };

	memset(deep, '[', sizeof(deep));
	CHECK_EQ(agent_request_parse(deep, AGENT_LINE_MAX, &r, &f), RC_INVALID);
	CHECK_EQ(agent_request_parse(deep, AGENT_LINE_MAX + 1, &r, &f), RC_LIMIT);
}

TEST(spec_defaults)
{
	struct agent_request r;
	struct agent_spec s;

	REQUIRE(spec("{\"service\": \"exec\", \"argv\": [\"a\", \"\"]}", &s, &r) == RC_OK);
	CHECK_STR(s.argv[0], "a");
	CHECK_STR(s.argv[1], "");
	CHECK(!s.argv[2]);
	CHECK_STR(s.cwd, "/home/app");
	CHECK(!s.root && !s.tty && !s.clear_env && !s.env[0]);
	agent_spec_free(&s);
	agent_request_free(&r);
}

TEST(spec_full)
{
	struct agent_request r;
	struct agent_spec s;

	REQUIRE(spec("{\"service\": \"exec\", \"argv\": [\"a\"], \"cwd\": \"/\", \"user\": \"root\", \"clear_env\": true, "
		     "\"env\": {\"A\": \"1=2\", \"B\": \"\"}, \"tty\": {\"cols\": 100, \"rows\": 65535}}", &s, &r) == RC_OK);
	CHECK(s.root && s.clear_env && s.tty);
	CHECK_EQ(s.cols, 100);
	CHECK_EQ(s.rows, 65535);
	CHECK_STR(s.term, "xterm-256color");
	CHECK_STR(s.env[0], "A=1=2");
	CHECK_STR(s.env[1], "B=");
	CHECK(!s.env[2]);
	agent_spec_free(&s);
	agent_request_free(&r);
}

TEST(spec_refuses)
{
	static const char *const bad[] = {
		"",
		"\"argv\": []",
		"\"argv\": [\"\"]",
		"\"argv\": \"a\"",
		"\"argv\": [1]",
		"\"argv\": [null]",
		"\"argv\": [\"a\\u0000b\"]",
		"\"argv\": [\"a\"], \"cwd\": 1",
		"\"argv\": [\"a\"], \"user\": \"nobody\"",
		"\"argv\": [\"a\"], \"env\": []",
		"\"argv\": [\"a\"], \"env\": {\"\": \"x\"}",
		"\"argv\": [\"a\"], \"env\": {\"A=\": \"x\"}",
		"\"argv\": [\"a\"], \"env\": {\"A\": 1}",
		"\"argv\": [\"a\"], \"env\": {\"A\": \"\\u0000\"}",
		"\"argv\": [\"a\"], \"tty\": 1",
		"\"argv\": [\"a\"], \"tty\": {\"cols\": 0}",
		"\"argv\": [\"a\"], \"tty\": {\"cols\": 65536}",
		"\"argv\": [\"a\"], \"tty\": {\"term\": 5}",
		"\"argv\": [\"a\"], \"clear_env\": 1",
	};
	struct agent_request r;
	struct agent_spec s;
	char line[200];

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		snprintf(line, sizeof(line), "{\"service\": \"exec\"%s%s}", *bad[i] ? ", " : "", bad[i]);
		if (spec(line, &s, &r) != RC_INVALID) {
			printf("  taken: %s\n", line);
			CHECK(0);
		}
	}
}

TEST(counts_are_bounded)
{
	struct buf b = BUF_INIT(AGENT_LINE_MAX);
	struct agent_request r;
	struct agent_spec s;

	REQUIRE(!buf_puts(&b, "{\"service\": \"exec\", \"argv\": [\"a\""));
	for (int i = 0; i < AGENT_ARGS_MAX; i++)
		REQUIRE(!buf_puts(&b, ",\"a\""));
	REQUIRE(!buf_puts(&b, "]}") && !buf_put(&b, "", 1));
	CHECK_EQ(spec((const char *)buf_data(&b), &s, &r), RC_LIMIT);
	buf_free(&b);
	REQUIRE(!buf_puts(&b, "{\"service\": \"exec\", \"argv\": [\"a\"], \"env\": {\"x\": \"\""));
	for (int i = 0; i < AGENT_ENV_MAX; i++)
		REQUIRE(!buf_printf(&b, ",\"a%d\":\"\"", i));
	REQUIRE(!buf_puts(&b, "}}") && !buf_put(&b, "", 1));
	CHECK_EQ(spec((const char *)buf_data(&b), &s, &r), RC_LIMIT);
	buf_free(&b);
}

TEST(errors_are_json)
{
	struct buf b = BUF_INIT(4096);
	struct fault f = { .rc = RC_ABSENT, .sys = 2, .text = "no \"x\"\n" };
	struct json_object *o, *e, *v;

	REQUIRE(!agent_put_error(&b, &f));
	REQUIRE(buf_data(&b)[buf_len(&b) - 1] == '\n');
	buf_data(&b)[buf_len(&b) - 1] = '\0';
	o = json_tokener_parse((const char *)buf_data(&b));
	REQUIRE(o && json_object_object_get_ex(o, "error", &e));
	CHECK(json_object_object_get_ex(e, "code", &v));
	CHECK_STR(json_object_get_string(v), "ENOENT");
	CHECK(json_object_object_get_ex(e, "message", &v));
	CHECK_STR(json_object_get_string(v), "no \"x\"\n");
	json_object_put(o);
	buf_free(&b);
}

CHECK_MAIN()
