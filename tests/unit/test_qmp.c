/* SPDX-License-Identifier: Apache-2.0 */
#include "base/cleanup.h"
#include "base/fd.h"
#include "tests/lib/check.h"
#include "vmm/engines/qemu/vm.h"

#include <sys/socket.h>

static enum rc parse(const char *line, struct qmp_message *m)
{
	struct fault f;

	return qmp_parse(line, strlen(line), m, &f);
}

TEST(messages)
{
	struct qmp_message m;

	REQUIRE(!parse("{\"return\": {\"running\": true}, \"id\": 7}\r", &m));
	CHECK(m.kind == QMP_RETURN && m.id == 7 && m.body);
	qmp_message_free(&m);
	REQUIRE(!parse("{\"error\": {\"desc\": \"a\\u001bb\"}, \"id\": 1}", &m));
	CHECK(m.kind == QMP_ERROR);
	CHECK_STR(m.text, "a?b");
	qmp_message_free(&m);
	REQUIRE(!parse("{\"event\": \"STOP\"}", &m));
	CHECK_STR(m.text, "STOP");
	qmp_message_free(&m);
	CHECK_EQ(parse("{\"return\": {}}", &m), RC_PROTO);
	CHECK_EQ(parse("{\"return\": {}, \"id\": -1}", &m), RC_PROTO);
	CHECK_EQ(parse("{\"return\": {}, \"id\": \"1\"}", &m), RC_PROTO);
	CHECK_EQ(parse("{\"id\": 1}", &m), RC_PROTO);
	CHECK_EQ(parse("[]", &m), RC_PROTO);
	CHECK_EQ(parse("", &m), RC_PROTO);
	CHECK_EQ(parse("{\"id\": 1, \"return\": 1} x", &m), RC_PROTO);
	CHECK_EQ(parse("{\"id\":1,\"return\":[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]}", &m), RC_PROTO);
}

TEST(long_message)
{
	static char line[QMP_LINE_MAX + 10];
	struct qmp_message m;
	struct fault f;

	memset(line, ' ', sizeof(line));
	CHECK_EQ(qmp_parse(line, sizeof(line), &m, &f), RC_LIMIT);
}

TEST(address)
{
	struct fault f;
	uint64_t v = 0;

	CHECK(!gpa2hva_parse("Host virtual address for 0x0 (ram) is 0x7f1200000000\r\n", &v, &f));
	CHECK(v == 0x7f1200000000);
	CHECK_EQ(gpa2hva_parse("Host virtual address for 0x0 (ram) is 0x7f1200000001\r\n", &v, &f), RC_PROTO);
	CHECK_EQ(gpa2hva_parse("Host virtual address for 0x0 (ram) is 0xffff120000000000\r\n", &v, &f), RC_PROTO);
	CHECK_EQ(gpa2hva_parse("Host virtual address for 0x0 (ram) is 0x", &v, &f), RC_PROTO);
	CHECK_EQ(gpa2hva_parse("Memory at 0x0 is not RAM\r\n", &v, &f), RC_PROTO);
}

/* --- the client against a QEMU that says what it wants ---- */
static struct {
	int ready, events, replies, failures, closed;
	struct fault fault;
} seen;

static void on_ready(void *arg, struct json_object *value, const struct fault *f)
{
	(void)arg, (void)value, (void)f;
	seen.ready++;
}

static void on_reply(void *arg, struct json_object *value, const struct fault *f)
{
	(void)arg, (void)value;
	seen.replies++;
	seen.failures += f != NULL;
}

static void on_event(void *arg, const char *name, struct json_object *data)
{
	(void)arg, (void)name, (void)data;
	seen.events++;
}

static void on_closed(void *arg, const struct fault *f)
{
	(void)arg;
	seen.closed++;
	seen.fault = *f;
}

struct talk {
	struct loop *loop;
	struct qmp *q;
	int peer;
};

static bool talk_start(struct talk *t)
{
	int fds[2];
	struct fault f;

	memset(&seen, 0, sizeof(seen));
	return !socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) && (t->peer = fds[1]) >= 0 && !loop_new(&t->loop, &f) &&
	       !qmp_new(t->loop, fds[0], on_ready, on_event, on_closed, t, &t->q, &f);
}

static void talk_say(struct talk *t, const char *text)
{
	CHECK(write(t->peer, text, strlen(text)) == (ssize_t)strlen(text));
	loop_once(t->loop, 0, NULL);
}

static void talk_end(struct talk *t)
{
	qmp_free(t->q);
	loop_free(t->loop);
	close(t->peer);
}

TEST(client_order)
{
	struct talk t;
	struct fault f;
	char line[256];

	REQUIRE(talk_start(&t));
	REQUIRE(!fd_read_line(t.peer, line, sizeof(line), now_ms() + 1000, &f));
	CHECK_STR(line, "{\"execute\":\"qmp_capabilities\",\"id\":0}");
	CHECK(!qmp_send(t.q, "stop", NULL, -1, on_reply, &f));
	CHECK(!qmp_send(t.q, "migrate", "{\"uri\":\"fd:x\"}", -1, on_reply, &f));
	talk_say(&t, "{\"QMP\":{}}\n{\"return\":{},\"id\":0}\n{\"event\":\"STOP\"}\n{\"retu");
	CHECK_EQ(seen.ready, 1);
	CHECK_EQ(seen.events, 1);
	CHECK_EQ(seen.replies, 0);
	talk_say(&t, "rn\":{},\"id\":1}\r\n{\"error\":{\"desc\":\"no\"},\"id\":2}\n");
	CHECK_EQ(seen.replies, 2);
	CHECK_EQ(seen.failures, 1);
	CHECK_EQ(seen.closed, 0);
	talk_end(&t);
}

/* Each of these ends the connection, once. */
TEST(client_breaches)
{
	static const char *const breaches[] = {
		"nonsense\n", "{\"QMP\":{}}\n{\"QMP\":{}}\n", "{\"return\":{},\"id\":1}\n", "{\"return\":{},\"id\":0}\n{\"return\":{},\"id\":0}\n",
		"{\"return\":{}}\n",
	};

	for (size_t i = 0; i < ARRAY_SIZE(breaches); i++) {
		struct talk t;

		REQUIRE(talk_start(&t));
		talk_say(&t, breaches[i]);
		talk_say(&t, "x\n");
		CHECK_EQ(seen.closed, 1);
		CHECK_EQ(seen.fault.rc, RC_PROTO);
		talk_end(&t);
	}
}

TEST(client_bounds)
{
	static char flood[65536];
	struct talk t;
	struct fault f;

	REQUIRE(talk_start(&t));
	for (int i = 1; i < QMP_PENDING_MAX; i++)
		CHECK(!qmp_send(t.q, "stop", NULL, -1, on_reply, &f));
	CHECK_EQ(qmp_send(t.q, "stop", NULL, -1, on_reply, &f), RC_AGAIN);
	/* a line without end */
	memset(flood, 'a', sizeof(flood) - 1);
	for (int i = 0; i < 40 && !seen.closed; i++) {
		(void)!send(t.peer, flood, sizeof(flood) - 1, MSG_DONTWAIT);
		for (int k = 0; k < 8; k++)
			loop_once(t.loop, 0, &f);
	}
	CHECK_EQ(seen.closed, 1);
	CHECK_EQ(seen.fault.rc, RC_LIMIT);
	talk_end(&t);
}

TEST(client_end)
{
	struct talk t;

	REQUIRE(talk_start(&t));
	CHECK_EQ(shutdown(t.peer, SHUT_RDWR), 0);
	loop_once(t.loop, 100, NULL);
	CHECK_EQ(seen.closed, 1);
	CHECK_EQ(seen.fault.rc, RC_CLOSED);
	talk_end(&t);
}

CHECK_MAIN()
