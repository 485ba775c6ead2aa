/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/lib/check.h"
#include "tests/lib/rpc_bed.h"

static char *next_text(void)
{
	uint8_t first = 0;
	size_t n = 0;
	char *text = bed_recv(&first, &n);

	if (text && first != 0x81) {
		free(text);
		return NULL;
	}
	return text;
}

#define EXPECT(wanted)                                \
	do {                                          \
		_cleanup_free_ char *got_ = next_text(); \
		CHECK_STR(got_, wanted);              \
	} while (0)

/* The status that the server closes with; 0 if it does not. */
static int closed_with(void)
{
	uint8_t first = 0;
	size_t n = 0;

	for (int i = 0; i < 20; i++) {
		_cleanup_free_ char *data = bed_recv(&first, &n);

		if (!data)
			return 0;
		if (first == 0x88)
			return n >= 2 ? (uint8_t)data[0] << 8 | (uint8_t)data[1] : 1005;
	}
	return -1;
}

static void finish(void)
{
	bed_close();
	CHECK_EQ(bed.alive, 0);
	CHECK_EQ(bed.session.n_conns, 0);
}

TEST(calls)
{
	bed_open();
	CHECK(bed_send("ping"));
	EXPECT("pong");
	CHECK(bed_send("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"echo\",\"params\":{\"v\":[1,{\"a\":\"/\"}]}}"));
	EXPECT("{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"ok\":[1,{\"a\":\"/\"}]}}");
	CHECK(bed_send("{\"jsonrpc\":\"2.0\",\"id\":\"x\",\"method\":\"echo\",\"params\":{}}"));
	EXPECT("{\"jsonrpc\":\"2.0\",\"id\":\"x\",\"result\":{\"ok\":null}}");
	CHECK(bed_send("{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"fail\",\"params\":{}}"));
	EXPECT("{\"jsonrpc\":\"2.0\",\"id\":2,\"result\":{\"error\":{\"constructorName\":\"NotFound\",\"message\":\"no \\\"such\\\" thing "
	       "\xef\xbf\xbd\",\"code\":\"ENOENT\",\"name\":\"NotFound\",\"stack\":null,\"cause\":null,\"errors\":null,\"suppressed\":null,"
	       "\"error\":null}}}");
	CHECK(bed_send("{\"jsonrpc\":\"2.0\",\"id\":3,\"method\":\"nope\"}"));
	EXPECT("{\"jsonrpc\":\"2.0\",\"id\":3,\"error\":{\"code\":-32601,\"message\":\"Method not found\"}}");
	CHECK(bed_send("{\"jsonrpc\":\"2.0\",\"id\":4,\"method\":\"pour\",\"params\":{\"n\":\"x\"}}"));
	EXPECT("{\"jsonrpc\":\"2.0\",\"id\":4,\"error\":{\"code\":-32602,\"message\":\"Invalid params: n: expected a number\"}}");
	CHECK(bed_send("{\"jsonrpc\":\"2.0\",\"method\":\"echo\",\"params\":{}}")); /* a notification has no answer */
	CHECK(bed_send("ping"));
	EXPECT("pong");
	finish();
}

TEST(abort)
{
	bed_open();
	CHECK(bed_send("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"hang\",\"params\":{\"abortId\":7}}"));
	CHECK(bed_send("{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"abort\",\"params\":{\"abortId\":7}}"));
	{
		_cleanup_free_ char *first = next_text();

		REQUIRE(first != NULL);
		CHECK(strstr(first, "\"id\":1,\"result\":{\"error\":{\"constructorName\":\"DOMException\"") != NULL);
		CHECK(strstr(first, "\"name\":\"AbortError\"") != NULL);
	}
	EXPECT("{\"jsonrpc\":\"2.0\",\"id\":2,\"result\":{\"ok\":null}}");
	CHECK(bed_send("{\"jsonrpc\":\"2.0\",\"id\":3,\"method\":\"abort\",\"params\":{\"abortId\":7}}")); /* too late is fine */
	EXPECT("{\"jsonrpc\":\"2.0\",\"id\":3,\"result\":{\"ok\":null}}");
	finish();
}

TEST(lost_connection_tells_everyone)
{
	bed_open();
	CHECK(bed_send("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"hang\",\"params\":{}}"));
	CHECK(bed_send("{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"pour\",\"params\":{\"n\":16000000}}"));
	CHECK(bed_send("{\"jsonrpc\":\"2.0\",\"method\":\"$sandbox.stream.start\",\"params\":{\"streamId\":5}}"));
	CHECK(bed_send("{\"jsonrpc\":\"2.0\",\"id\":3,\"method\":\"sink\",\"params\":{\"id\":5}}"));
	CHECK_EQ(bed.alive, 3);
	finish();
}

TEST(bad_messages_close)
{
	static const struct {
		const char *text;
		int status;
	} cases[] = {
		{ "{", WS_INVALID_JSON },
		{ "", WS_INVALID_JSON },
		{ "{} x", WS_INVALID_JSON },
		{ "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"echo\",}", WS_INVALID_JSON },
		{ "[]", WS_INVALID_RPC },
		{ "3", WS_INVALID_RPC },
		{ "{\"jsonrpc\":\"1.0\",\"id\":1,\"method\":\"echo\"}", WS_INVALID_RPC },
		{ "{\"jsonrpc\":\"2.0\",\"id\":1}", WS_INVALID_RPC },
		{ "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}", WS_INVALID_RPC },
		{ "{\"jsonrpc\":\"2.0\",\"id\":[],\"method\":\"echo\"}", WS_INVALID_RPC },
		{ "{\"jsonrpc\":\"2.0\",\"method\":\"$sandbox.stream.start\",\"params\":{\"streamId\":-1}}", WS_INVALID_RPC },
		{ "{\"jsonrpc\":\"2.0\",\"method\":\"$sandbox.stream.enqueue\",\"params\":{\"streamId\":1,\"data\":\"*\"}}", WS_INVALID_RPC },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		bed_open();
		CHECK(bed_send(cases[i].text));
		CHECK_EQ(closed_with(), cases[i].status);
		finish();
	}
}

TEST(deep_json_is_refused)
{
	size_t depth = 100000, n = 0;
	_cleanup_free_ char *text = malloc(depth * 2 + 100);

	n = (size_t)sprintf(text, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"echo\",\"params\":{\"v\":");
	memset(text + n, '[', depth);
	memset(text + n + depth, ']', depth);
	strcpy(text + n + 2 * depth, "}}");
	bed_open();
	CHECK(bed_send(text));
	CHECK_EQ(closed_with(), WS_INVALID_JSON);
	finish();
}

TEST(client_streams)
{
	bed_open();
	CHECK(bed_send("{\"jsonrpc\":\"2.0\",\"method\":\"$sandbox.stream.start\",\"params\":{\"streamId\":0}}"));
	/* Before the call that names it, in the fast form and in another. */
	CHECK(bed_send("{\"jsonrpc\":\"2.0\",\"method\":\"$sandbox.stream.enqueue\",\"params\":{\"streamId\":0,\"data\":\"aGVsbG8=\"}}"));
	CHECK(bed_send("{\"method\":\"$sandbox.stream.enqueue\", \"jsonrpc\":\"2.0\", \"params\":{\"data\":\"aGVsbG8=\",\"streamId\":0}}"));
	CHECK(bed_send("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"sink\",\"params\":{\"id\":0}}"));
	CHECK(bed_send("{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"sink\",\"params\":{\"id\":0}}"));
	EXPECT("{\"jsonrpc\":\"2.0\",\"id\":2,\"error\":{\"code\":-32602,\"message\":\"no such stream\"}}");
	CHECK(bed_send("{\"jsonrpc\":\"2.0\",\"method\":\"$sandbox.stream.enqueue\",\"params\":{\"streamId\":0,\"data\":\"\"}}"));
	CHECK(bed_send("{\"jsonrpc\":\"2.0\",\"method\":\"$sandbox.stream.enqueue\",\"params\":{\"streamId\":0,\"data\":\"eA==\"}}"));
	CHECK(bed_send("{\"jsonrpc\":\"2.0\",\"method\":\"$sandbox.stream.end\",\"params\":{\"streamId\":0}}"));
	EXPECT("{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"ok\":{\"taken\":11,\"failed\":false}}}");
	/* One that the server has had enough of. */
	CHECK(bed_send("{\"jsonrpc\":\"2.0\",\"method\":\"$sandbox.stream.start\",\"params\":{\"streamId\":1}}"));
	CHECK(bed_send("{\"jsonrpc\":\"2.0\",\"method\":\"$sandbox.stream.enqueue\",\"params\":{\"streamId\":1,\"data\":\"aGVsbG8=\"}}"));
	CHECK(bed_send("{\"jsonrpc\":\"2.0\",\"id\":3,\"method\":\"sink\",\"params\":{\"id\":1,\"take\":3}}"));
	{
		_cleanup_free_ char *cancel = next_text();

		REQUIRE(cancel != NULL);
		CHECK(strstr(cancel, "{\"jsonrpc\":\"2.0\",\"method\":\"$sandbox.stream.cancel\",\"params\":{\"streamId\":1,\"reason\":{") ==
		      cancel);
	}
	EXPECT("{\"jsonrpc\":\"2.0\",\"id\":3,\"result\":{\"ok\":{\"taken\":5,\"failed\":false}}}");
	CHECK(bed_send("{\"jsonrpc\":\"2.0\",\"method\":\"$sandbox.stream.enqueue\",\"params\":{\"streamId\":1,\"data\":\"aGVsbG8=\"}}"));
	CHECK(bed_send("ping"));
	EXPECT("pong");
	finish();
}

/* A stream of n bytes is n bytes, and what waits to be read stays bounded meanwhile. */
TEST(server_stream_with_a_slow_reader)
{
	size_t got = 0, frames = 0;
	bool started = false, ended = false;

	bed_open();
	CHECK(bed_send("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"pour\",\"params\":{\"n\":16000000}}"));
	while (!ended) {
		_cleanup_free_ char *text = next_text();
		const char *data;

		REQUIRE(text != NULL);
		CHECK(rpc_conn_queued(bed.session.conns) <= RPC_OUT_HIGH + 2 * RPC_CHUNK);
		if (strstr(text, "stream.start"))
			started = true;
		else if (strstr(text, "stream.end"))
			ended = true;
		else if ((data = strstr(text, "\"data\":\""))) {
			CHECK(started);
			data += 8;
			size_t n = strcspn(data, "\""), pad = 0;

			while (pad < 2 && n && data[n - 1 - pad] == '=')
				pad++;
			got += n / 4 * 3 - pad;
		}
		frames++;
	}
	CHECK_EQ(got, 16000000);
	CHECK(frames > 100);
	finish();
}

/* The next frame, pings not answered: those are kept for the test. */
static char *next_unanswered(uint8_t *ret_first, size_t *ret_n, uint64_t wait_ms)
{
	uint64_t deadline = now_ms() + wait_ms;
	char *data;

	while (!(data = bed_recv_any(ret_first, ret_n)) && now_ms() < deadline)
		loop_once(bed.session.loop, 10, NULL);
	return data;
}

/* The next frame is a ping: it is answered. */
static bool pinged(void)
{
	uint8_t first = 0;
	size_t n = 0;
	_cleanup_free_ char *ping = next_unanswered(&first, &n, 1000);

	return ping && first == 0x89 && bed_send_frame(0x8a, ping, n);
}

static bool told(const char *what)
{
	uint8_t first = 0;
	size_t n = 0;
	_cleanup_free_ char *text = next_unanswered(&first, &n, 1000);

	return text && first == 0x81 && strstr(text, what);
}

/*
 * A client on a busy host answers pings late, and must not be told of a stream before it has looked at the answer that names it: its library
 * could not cancel it. Nor of its end before it has cancelled it at once.
 */
TEST(a_stream_waits_for_a_client_that_is_slow)
{
	uint8_t first = 0;
	size_t n = 0;
	_cleanup_free_ char *ping = NULL, *text = NULL;
	uint64_t answered_ms;

	bed_open();
	CHECK(bed_send("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"pour\",\"params\":{\"n\":0}}"));
	CHECK(told("streamId"));
	ping = next_unanswered(&first, &n, 1000);
	REQUIRE(ping && first == 0x89);
	text = next_unanswered(&first, &n, RPC_PONG_DEAF_MS + 500);
	CHECK(!text);
	CHECK(bed_send_frame(0x8a, ping, n));
	answered_ms = now_ms();
	free(take_ptr(ping));
	/* The second ping: its answer, or a while without it. */
	ping = next_unanswered(&first, &n, 1000);
	REQUIRE(ping && first == 0x89);
	CHECK(told("stream.start"));
	CHECK(now_ms() >= answered_ms + RPC_REACT_MS);
	CHECK(told("stream.end"));
	finish();
}

/* Its library throws when a stream ends that it has cancelled: no end is sent while a cancel may be on its way. */
TEST(a_stream_ends_at_once_or_after_the_client_could_react)
{
	static const struct {
		size_t n;
		bool late, at_once;
	} cases[] = { { 0, false, true }, { 100, false, true }, { RPC_END_AT_ONCE, false, true }, { RPC_END_AT_ONCE + 1, false, false },
		      { 1, true, false } };
	uint8_t first = 0;
	size_t n = 0;

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		char call[120];

		bed_open();
		snprintf(call, sizeof(call), "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"pour\",\"params\":{\"n\":%zu,\"late\":%s}}", cases[i].n,
			 cases[i].late ? "true" : "false");
		CHECK(bed_send(call));
		CHECK(told("streamId"));
		CHECK(pinged());
		CHECK(pinged());
		CHECK(told("stream.start"));
		if (cases[i].n)
			CHECK(told("stream.enqueue"));
		if (cases[i].late) {
			CHECK(bed_send("{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"end\"}"));
			CHECK(told("\"id\":2"));
		}
		if (!cases[i].at_once) {
			CHECK(pinged());
			CHECK(pinged());
		}
		CHECK(told("stream.end"));
		finish();
	}
	/* What was cancelled meanwhile has no end. */
	bed_open();
	CHECK(bed_send("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"pour\",\"params\":{\"n\":1,\"late\":true}}"));
	CHECK(told("streamId"));
	CHECK(pinged());
	CHECK(pinged());
	CHECK(told("stream.start"));
	CHECK(told("stream.enqueue"));
	CHECK(bed_send("{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"end\"}"));
	CHECK(told("\"id\":2"));
	CHECK(pinged());
	{
		char cancel[160];

		snprintf(cancel, sizeof(cancel), "{\"jsonrpc\":\"2.0\",\"method\":\"$sandbox.stream.cancel\",\"params\":{\"streamId\":%llu,\"reason\":null}}",
			 (unsigned long long)rpc_conn_lists(bed.session.conns)->next_stream - 1);
		CHECK(bed_send(cancel));
	}
	CHECK(pinged());
	CHECK(!next_unanswered(&first, &n, 2 * RPC_REACT_MS));
	CHECK_EQ(rpc_conn_lists(bed.session.conns)->n_outs, 0);
	finish();
}

TEST(a_client_that_never_reads_is_not_read)
{
	size_t sent = 0;

	bed_open();
	/* Every answer is longer than the question; the socket and our queue fill up, then questions wait. */
	while (sent < 100000 &&
	       bed_send("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"echo\",\"params\":{\"v\":\"" "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx" "\"}}"))
		sent++;
	CHECK(sent > 1000 && sent < 100000);
	CHECK_EQ(bed.session.n_conns, 1);
	CHECK(!rpc_conn_room(bed.session.conns));
	finish();
}

TEST(too_many_unnamed_stream_bytes)
{
	size_t n = 8 << 20, at;
	_cleanup_free_ char *text = malloc(n + 200);
	int failed = 0;

	bed_open();
	CHECK(bed_send("{\"jsonrpc\":\"2.0\",\"method\":\"$sandbox.stream.start\",\"params\":{\"streamId\":9}}"));
	at = (size_t)sprintf(text, "{\"jsonrpc\":\"2.0\",\"method\":\"$sandbox.stream.enqueue\",\"params\":{\"streamId\":9,\"data\":\"");
	memset(text + at, 'A', n);
	strcpy(text + at + n, "\"}}");
	for (int i = 0; i < 5; i++)
		CHECK(bed_send(text));
	CHECK(bed_send("ping"));
	for (int i = 0; i < 3; i++) {
		_cleanup_free_ char *got = next_text();

		failed += got && strstr(got, "stream.cancel") && strstr(got, "RangeError");
	}
	CHECK_EQ(failed, 1);
	CHECK_EQ(rpc_conn_lists(bed.session.conns)->unclaimed, 0);
	finish();
}

TEST(streams_of_two_connections_never_share_an_id)
{
	uint64_t first, second;

	bed_open();
	first = rpc_conn_lists(bed.session.conns)->next_stream;
	finish();
	bed_open();
	second = rpc_conn_lists(bed.session.conns)->next_stream;
	finish();
	CHECK(first != second);
	CHECK(first < (1ull << 51) && second < (1ull << 51));
}

CHECK_MAIN()
