/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/lib/check.h"
#include "tests/lib/h2_peer.h"
#include "tests/lib/seal.h"

#include <openssl/crypto.h>

#define PH "nbsecret_0123456789abcdef"
#define PH2 "nbsecret_fedcba9876543210"
#define VALUE "sk-real-value-0042"
#define HEAD(method, path) ":method: " method "\n:scheme: https\n:authority: api.test\n:path: " path "\n"
#define GET HEAD("GET", "/v1?x=1")
#define POST HEAD("POST", "/v1")
#define OK200 ":status: 200\n"

static const uint8_t key[EGRESS_KEY_BYTES] = "0123456789abcdef0123456789abcde";
static struct h2_world w;

static void begin(const char *lines)
{
	char a[SEAL_MAX], b[SEAL_MAX], text[3 * SEAL_MAX];
	size_t bad;

	memset(&w, 0, sizeof(w));
	snprintf(text, sizeof(text),
		 POLICY_HEAD "\ndefault public\nsecret KEY " PH " %s api.test\nsecret OTHER " PH2 " %s other.test\n%s",
		 seal(key, "sbx", "KEY", VALUE, a), seal(key, "sbx", "OTHER", "another-value", b), lines);
	CHECK_EQ(policy_parse(text, strlen(text), &w.policy, NULL), RC_OK);
	CHECK_EQ(secrets_open(w.policy, "sbx", key, &w.set, &bad, NULL), RC_OK);
	world_hooks(&w);
	CHECK_EQ(h2_new(&w.hooks, &w.h2), RC_OK);
	peer_start(&w.guest, false, false);
	peer_start(&w.up, true, false);
}

static void end(void)
{
	h2_free(w.h2);
	peer_end(&w.guest);
	peer_end(&w.up);
	secrets_unref(w.set);
	policy_free(w.policy);
}

/* A request that gets this status without anything reaching the upstream. */
static void refused(const char *lines, const char *status)
{
	char want[32];
	int32_t id;

	begin("rule api.test * /v1\n");
	id = peer_request(&w.guest, lines, NULL, true);
	h2_pump(&w);
	snprintf(want, sizeof(want), ":status: %s\n", status);
	if (*status ? !strstr(peer_at(&w.guest, id)->text, want) : peer_at(&w.guest, id)->text_n || !peer_at(&w.guest, id)->closed) {
		printf("  %s-> %s (closed %d)\n", lines, peer_at(&w.guest, id)->text, peer_at(&w.guest, id)->closed);
		check_failed_here++;
	}
	CHECK_EQ(w.up.streams[1].text_n, 0);
	/* What nghttp2 refuses by itself is on record, too. */
	if (!*status)
		CHECK_STR(w.last_row, "deny   0 [] malformed request");
	/* The connection itself is as good as before. */
	if (!w.guest.got_goaway) {
		id = peer_request(&w.guest, GET, NULL, true);
		h2_pump(&w);
		CHECK(strstr(peer_at(&w.up, 1)->text, ":path: /v1?x=1\n"));
	}
	end();
}

TEST(headers_are_changed_on_the_way)
{
	struct peer_stream *up, *guest;
	int32_t id;

	begin("");
	id = peer_request(&w.guest, GET "authorization: Bearer " PH "\nuser-agent: " PH "\nx-other: " PH2 "\nte: trailers\n"
				    "accept-encoding: gzip\ngrpc-accept-encoding: gzip\nhost: api.test\n", NULL, true);
	h2_pump(&w);
	up = peer_at(&w.up, 1);
	CHECK(!strncmp(up->text, ":method: GET\n:scheme: https\n:authority: api.test\n:path: /v1?x=1\naccept-encoding: identity\n", 90));
	CHECK(strstr(up->text, "\nauthorization: Bearer " VALUE "\n"));
	CHECK(strstr(up->text, "\nuser-agent: " PH "\n") && strstr(up->text, "\nx-other: " PH2 "\n"));
	CHECK(strstr(up->text, "\nte: trailers\n") && strstr(up->text, "\ngrpc-accept-encoding: identity\n"));
	CHECK(!strstr(up->text, "gzip") && !strstr(up->text, "\nhost:"));
	CHECK(up->ended);
	peer_respond(&w.up, 1, OK200 "content-length: 5\nx-echo: a" VALUE "b\nset-cookie: " VALUE "\nalt-svc: h3\n", "hello", 5, true);
	h2_pump(&w);
	guest = peer_at(&w.guest, id);
	CHECK_STR(guest->text, OK200 "x-echo: a" PH "b\nset-cookie: " PH "\n");
	CHECK_STR(guest->data, "hello");
	CHECK(guest->ended && guest->closed && !guest->code);
	CHECK_EQ(w.rows, 1);
	CHECK_STR(w.last_row, "allow GET /v1 200 [KEY] the answer held a secret; its placeholder was put back");
	end();
}

TEST(a_value_across_frames_and_in_trailers_is_taken_out)
{
	static const char trailer[] = "x-last";
	struct peer_stream *guest;
	int32_t id;

	begin("");
	id = peer_request(&w.guest, GET, NULL, true);
	h2_pump(&w);
	peer_respond(&w.up, 1, OK200, "<<sk-real-", 10, false);
	h2_pump(&w);
	guest = peer_at(&w.guest, id);
	CHECK_STR(guest->data, "<<");
	peer_more(&w.up, 1, "val", false);
	h2_pump(&w);
	peer_at(&w.up, 1)->has_trailer = true;
	peer_at(&w.up, 1)->trailer = (nghttp2_nv){ (uint8_t *)(uintptr_t)trailer, (uint8_t *)(uintptr_t)VALUE, 6, strlen(VALUE), 0 };
	peer_more(&w.up, 1, "ue-0042>>sk-real", true);
	h2_pump(&w);
	CHECK_STR(guest->data, "<<" PH ">>sk-real");
	CHECK_STR(guest->text, OK200 "x-last: " PH "\n");
	CHECK(guest->ended);
	end();
}

TEST(requests_for_somebody_else_or_in_doubt_go_nowhere)
{
	refused(":method: GET\n:scheme: https\n:authority: evil.test\n:path: /v1\n", "421");
	refused(":method: GET\n:scheme: https\n:authority: api.test:444\n:path: /v1\n", "421");
	refused(":method: GET\n:scheme: https\n:authority: api.test\n:path: /v1\nhost: evil.test\n", "400");
	refused(":method: GET\n:scheme: https\n:path: /v1\nhost: evil.test\n", "421");
	refused(":method: GET\n:scheme: http\n:authority: api.test\n:path: /v1\n", "400");
	refused(":method: CONNECT\n:authority: api.test\n", "421");
	refused(":method: CONNECT\n:authority: evil.test:443\n", "421");
	refused(":method: TRACE\n:scheme: https\n:authority: api.test\n:path: /v1\n", "421");
	refused(HEAD("GET", "/v2"), "403");
	refused(HEAD("GET", "/v1/..%2fadmin"), "400");
	refused(HEAD("GET", "//v1"), "400");
	/* What RFC 9113 forbids ends the stream. */
	refused(":method: CONNECT\n:protocol: websocket\n:scheme: https\n:authority: api.test\n:path: /v1\n", "");
	refused(":method: GET\n:method: POST\n:scheme: https\n:authority: api.test\n:path: /v1\n", "");
	refused(":method: GET\n:scheme: https\n:authority: api.test\n:authority: evil.test\n:path: /v1\n", "");
	refused(":method: GET\n:scheme: https\n:authority: api.test\nx: y\n:path: /v1\n", "");
	refused(":method: GET\n:scheme: https\n:authority: api.test\n:path: /v1\n:status: 200\n", "");
	refused(GET "connection: close\n", "");
	refused(GET "transfer-encoding: chunked\n", "");
	refused(GET "te: gzip\n", "");
	refused(GET "host: api.test\nhost: api.test\n", "");
	refused(GET "x: a\x01" "b\n", "");
	refused(GET "content-length: 5\n", "");
	refused(":method: GET\n:scheme: https\n:authority: api.test\n:path: \n", "");
}

TEST(a_long_head_is_refused)
{
	static char lines[200 * 512];
	int32_t id;

	strcpy(lines, GET);
	for (int i = 0; i < 140; i++)
		sprintf(lines + strlen(lines), "x%d: y\n", i);
	begin("");
	id = peer_request(&w.guest, lines, NULL, true);
	h2_pump(&w);
	CHECK(strstr(peer_at(&w.guest, id)->text, ":status: 431\n"));
	CHECK_EQ(w.up.streams[1].text_n, 0);
	end();
}

static void answered_by_502(const char *lines)
{
	int32_t id;

	begin("");
	id = peer_request(&w.guest, GET, NULL, true);
	h2_pump(&w);
	peer_respond(&w.up, 1, lines, "xyz", 3, true);
	h2_pump(&w);
	CHECK(strstr(peer_at(&w.guest, id)->text, ":status: 502\n"));
	CHECK(strstr(peer_at(&w.guest, id)->data, "compressed"));
	end();
}

TEST(what_cannot_be_searched_is_refused)
{
	int32_t id;

	answered_by_502(OK200 "content-encoding: gzip\n");
	answered_by_502(OK200 "content-encoding: br\n");
	answered_by_502(OK200 "content-encoding: identity, zstd\n");
	answered_by_502(OK200 "content-type: application/grpc\ngrpc-encoding: gzip\n");
	/* An answer to HEAD has nothing to search, and its length stays. */
	begin("");
	id = peer_request(&w.guest, HEAD("HEAD", "/v1"), NULL, true);
	h2_pump(&w);
	peer_respond(&w.up, 1, OK200 "content-encoding: gzip\ncontent-length: 77\n", NULL, 0, true);
	h2_pump(&w);
	CHECK_STR(peer_at(&w.guest, id)->text, OK200 "content-encoding: gzip\ncontent-length: 77\n");
	end();
}

TEST(grpc_streams_both_ways)
{
	static const char name[] = "grpc-status";
	struct peer_stream *guest, *up;
	int32_t id;

	begin("");
	id = peer_request(&w.guest, POST "content-type: application/grpc\nte: trailers\nauthorization: " PH "\n", "one", false);
	h2_pump(&w);
	up = peer_at(&w.up, 1);
	guest = peer_at(&w.guest, id);
	CHECK_STR(up->data, "one");
	CHECK(!up->ended);
	peer_respond(&w.up, 1, OK200 "content-type: application/grpc\n", "ONE", 3, false);
	h2_pump(&w);
	CHECK_STR(guest->data, "ONE");
	peer_more(&w.guest, id, "two", false);
	h2_pump(&w);
	CHECK_STR(up->data, "onetwo");
	peer_more(&w.guest, id, "three", true);
	h2_pump(&w);
	CHECK(up->ended);
	up->has_trailer = true;
	up->trailer = (nghttp2_nv){ (uint8_t *)(uintptr_t)name, (uint8_t *)(uintptr_t) "0", sizeof(name) - 1, 1, 0 };
	peer_more(&w.up, 1, "END", true);
	h2_pump(&w);
	CHECK_STR(guest->data, "ONEEND");
	CHECK(strstr(guest->text, "grpc-status: 0\n") && guest->closed && !guest->code);
	CHECK_STR(w.last_row, "allow POST /v1 200 [KEY] ");
	end();
	/* Lengths are inside: a message with a value is not repaired but refused. */
	begin("");
	id = peer_request(&w.guest, POST "content-type: application/grpc\n", NULL, true);
	h2_pump(&w);
	peer_respond(&w.up, 1, OK200 "content-type: application/grpc\n", "a" VALUE "b", strlen(VALUE) + 2, true);
	h2_pump(&w);
	guest = peer_at(&w.guest, id);
	CHECK(guest->closed && guest->code == NGHTTP2_INTERNAL_ERROR && !strstr(guest->data, VALUE));
	CHECK_STR(w.last_row, "error POST /v1 200 [] the answer held a secret and was refused");
	end();
}

TEST(request_trailers_and_bodies_pass)
{
	static const char name[] = "x-sum";
	struct peer_stream *up, *guest;
	int32_t id;

	begin("");
	id = peer_request(&w.guest, POST "content-length: 25\n", PH, false);
	h2_pump(&w);
	up = peer_at(&w.up, 1);
	guest = peer_at(&w.guest, id);
	CHECK_STR(up->data, PH);
	CHECK(strstr(up->text, "content-length: 25\n"));
	guest->has_trailer = true;
	guest->trailer = (nghttp2_nv){ (uint8_t *)(uintptr_t)name, (uint8_t *)(uintptr_t)PH, 5, strlen(PH), 0 };
	peer_more(&w.guest, id, "", true);
	h2_pump(&w);
	CHECK(up->ended && strstr(up->text, "x-sum: " VALUE "\n"));
	peer_respond(&w.up, 1, OK200, NULL, 0, true);
	h2_pump(&w);
	CHECK_STR(w.last_row, "allow POST /v1 200 [KEY] a placeholder in the body, where it is not replaced");
	end();
}

TEST(what_waits_is_bounded_and_one_slow_stream_does_not_stop_others)
{
	static char big[4u << 20];
	int32_t slow, fast;

	memset(big, 'x', sizeof(big));
	begin("");
	w.guest.hold = true;
	slow = peer_request(&w.guest, GET, NULL, true);
	h2_pump(&w);
	peer_respond(&w.up, 1, OK200, big, sizeof(big), true);
	h2_pump(&w);
	/* The guest's window is 64 KiB, as the protocol begins; here may wait a window more. */
	CHECK_EQ(peer_at(&w.guest, slow)->data_n, 65535);
	CHECK(peer_at(&w.up, 1)->at <= 65535 + EGRESS_H2_STREAM_WINDOW + 65536);
	CHECK(peer_at(&w.up, 1)->at >= EGRESS_H2_STREAM_WINDOW);
	nghttp2_session_set_local_window_size(w.guest.session, NGHTTP2_FLAG_NONE, 0, 1 << 20);
	fast = peer_request(&w.guest, GET, NULL, true);
	h2_pump(&w);
	peer_respond(&w.up, 3, OK200, "quick", 5, true);
	h2_pump(&w);
	CHECK_STR(peer_at(&w.guest, fast)->data, "quick");
	w.guest.hold = false;
	nghttp2_session_consume(w.guest.session, slow, 65535);
	h2_pump(&w);
	CHECK_EQ(peer_at(&w.guest, slow)->data_n, sizeof(big));
	CHECK(peer_at(&w.guest, slow)->ended);
	end();
}

/* EGRESS_H2_HELD_MAX: short values, long placeholders, and a guest that does not read. */
TEST(an_answer_that_grows_without_end_ends_its_stream_alone)
{
	static char big[EGRESS_H2_STREAM_WINDOW];
	char lines[SEAL_MAX + 256], sealed[SEAL_MAX], placeholder[120];
	int32_t id;

	memset(placeholder, 'p', sizeof(placeholder) - 1);
	placeholder[sizeof(placeholder) - 1] = '\0';
	for (size_t i = 0; i + 8 <= sizeof(big); i += 8)
		memcpy(big + i, "8-bytes.", 8);
	snprintf(lines, sizeof(lines), "secret SHORT %s %s api.test\n", placeholder, seal(key, "sbx", "SHORT", "8-bytes.", sealed));
	begin(lines);
	w.guest.hold = true;
	id = peer_request(&w.guest, GET, NULL, true);
	h2_pump(&w);
	peer_respond(&w.up, 1, OK200, big, sizeof(big), true);
	h2_pump(&w);
	CHECK(peer_at(&w.guest, id)->closed && peer_at(&w.guest, id)->code != NGHTTP2_NO_ERROR);
	CHECK(strstr(w.last_row, "the answer holds more placeholders than are kept"));
	id = peer_request(&w.guest, GET, NULL, true);
	h2_pump(&w);
	peer_respond(&w.up, 3, OK200, NULL, 0, true);
	h2_pump(&w);
	CHECK(peer_at(&w.guest, id)->ended);
	end();
}

/* EGRESS_H2_QUEUE_MAX: every malformed request is answered by a frame, and the guest takes none. */
TEST(a_guest_that_does_not_take_answers_is_not_read)
{
	struct buf out = BUF_INIT(1u << 20);
	int n = 0;

	begin("");
	CHECK_EQ(h2_in(w.h2, H2_GUEST, (const uint8_t *)NGHTTP2_CLIENT_MAGIC, NGHTTP2_CLIENT_MAGIC_LEN), RC_OK);
	CHECK_EQ(h2_in(w.h2, H2_GUEST, (const uint8_t[]){ 0, 0, 0, 4, 0, 0, 0, 0, 0 }, 9), RC_OK);
	while (n < 2 * EGRESS_H2_QUEUE_MAX && h2_takes(w.h2, H2_GUEST)) {
		int id = 2 * n++ + 1;
		/* ":method: GET" is all of it. */
		const uint8_t frame[] = { 0, 0, 1, 1, 5, 0, 0, (uint8_t)(id >> 8), (uint8_t)id, 0x82 };

		CHECK_EQ(h2_in(w.h2, H2_GUEST, frame, sizeof(frame)), RC_OK);
	}
	printf("  %d requests\n", n);
	CHECK(n > EGRESS_H2_QUEUE_MAX / 2 && n <= EGRESS_H2_QUEUE_MAX);
	CHECK_EQ(h2_out(w.h2, H2_GUEST, &out, 1u << 20), RC_OK);
	CHECK(h2_takes(w.h2, H2_GUEST));
	buf_free(&out);
	end();
}

TEST(uploads_are_held_back_and_dropped_when_nobody_wants_them)
{
	static char big[(4u << 20) + 1];
	struct peer_stream *guest;
	int32_t id;

	memset(big, 'x', sizeof(big) - 1);
	begin("");
	w.up.hold = true;
	id = peer_request(&w.guest, POST, big, true);
	h2_pump(&w);
	guest = peer_at(&w.guest, id);
	CHECK(guest->at <= 65535 + EGRESS_H2_STREAM_WINDOW + 65536);
	/* The upstream has seen enough: its answer goes out, the rest is not asked for. */
	peer_respond(&w.up, 1, OK200, "no", 2, true);
	h2_pump(&w);
	nghttp2_submit_rst_stream(w.up.session, NGHTTP2_FLAG_NONE, 1, NGHTTP2_NO_ERROR);
	h2_pump(&w);
	CHECK_STR(guest->data, "no");
	CHECK(guest->closed && guest->code == NGHTTP2_NO_ERROR);
	CHECK(guest->at < sizeof(big) - 1);
	/* And what it had waited for does not count against the connection for ever. */
	w.up.hold = false;
	nghttp2_session_set_local_window_size(w.up.session, NGHTTP2_FLAG_NONE, 0, 8 << 20);
	for (int i = 0; i < 8; i++) {
		id = peer_request(&w.guest, POST, big, true);
		h2_pump(&w);
		CHECK_EQ(peer_at(&w.guest, id)->at, sizeof(big) - 1);
		nghttp2_submit_rst_stream(w.guest.session, NGHTTP2_FLAG_NONE, id, NGHTTP2_CANCEL);
		h2_pump(&w);
	}
	end();
}

TEST(floods_end_the_connection)
{
	begin("");
	for (int i = 0; i < EGRESS_H2_CONTROL_MAX + 200 && !w.guest.got_goaway; i++) {
		nghttp2_submit_ping(w.guest.session, NGHTTP2_FLAG_NONE, NULL);
		h2_pump(&w);
	}
	CHECK(w.guest.got_goaway && w.guest.goaway == NGHTTP2_ENHANCE_YOUR_CALM);
	CHECK(h2_done(w.h2));
	end();
	/* Rapid reset: opened and cancelled in one breath. */
	begin("");
	for (int i = 0; i < EGRESS_H2_CONTROL_MAX + 200 && !w.guest.got_goaway; i++) {
		int32_t id = peer_request(&w.guest, GET, NULL, true);

		h2_pump(&w);
		nghttp2_submit_rst_stream(w.guest.session, NGHTTP2_FLAG_NONE, id, NGHTTP2_CANCEL);
		h2_pump(&w);
	}
	CHECK(w.guest.got_goaway && w.guest.goaway == NGHTTP2_ENHANCE_YOUR_CALM);
	end();
	/* An upstream does no better. */
	begin("");
	for (int i = 0; i < EGRESS_H2_CONTROL_MAX + 200 && !w.up.got_goaway; i++) {
		nghttp2_submit_settings(w.up.session, NGHTTP2_FLAG_NONE, NULL, 0);
		h2_pump(&w);
	}
	CHECK(w.up.got_goaway && w.up.goaway == NGHTTP2_ENHANCE_YOUR_CALM && w.guest.got_goaway);
	end();
}

/* SETTINGS, HEADERS of stream 1 without an end, then as many empty CONTINUATIONs. */
TEST(a_header_block_without_end_ends_the_connection)
{
	static const uint8_t start[] = { 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 0x82 }, more[] = { 0, 0, 0, 9, 0, 0, 0, 0, 1 };
	int n = 0;

	begin("");
	CHECK_EQ(h2_in(w.h2, H2_GUEST, (const uint8_t *)NGHTTP2_CLIENT_MAGIC, NGHTTP2_CLIENT_MAGIC_LEN), RC_OK);
	CHECK_EQ(h2_in(w.h2, H2_GUEST, start, sizeof(start)), RC_OK);
	while (n < 1000 && !h2_in(w.h2, H2_GUEST, more, sizeof(more)) && !h2_done(w.h2))
		n++;
	CHECK(n < 100);
	end();
}

TEST(streams_are_bounded)
{
	int32_t last = 0;
	size_t open = 0;

	begin("");
	h2_pump(&w);
	for (int i = 0; i < EGRESS_H2_STREAMS_MAX + 50; i++)
		last = peer_request(&w.guest, GET, NULL, true);
	h2_pump(&w);
	for (int32_t id = 1; id <= last; id += 2)
		open += peer_at(&w.up, id)->text_n > 0;
	CHECK_EQ(open, EGRESS_H2_STREAMS_MAX);
	end();
}

TEST(an_upstream_that_resets_goes_away_or_dies)
{
	int32_t id, next;

	begin("");
	id = peer_request(&w.guest, GET, NULL, true);
	h2_pump(&w);
	nghttp2_submit_rst_stream(w.up.session, NGHTTP2_FLAG_NONE, 1, NGHTTP2_REFUSED_STREAM);
	h2_pump(&w);
	CHECK(peer_at(&w.guest, id)->closed && peer_at(&w.guest, id)->code == NGHTTP2_REFUSED_STREAM);
	end();

	/* Without an error that is the end of an answer, and what was held back for its search comes, too. */
	begin("");
	id = peer_request(&w.guest, GET, NULL, true);
	h2_pump(&w);
	peer_respond(&w.up, 1, OK200, "whole", 5, false);
	h2_pump(&w);
	nghttp2_submit_rst_stream(w.up.session, NGHTTP2_FLAG_NONE, 1, NGHTTP2_NO_ERROR);
	h2_pump(&w);
	CHECK_STR(peer_at(&w.guest, id)->data, "whole");
	CHECK(peer_at(&w.guest, id)->ended && peer_at(&w.guest, id)->code == NGHTTP2_NO_ERROR);
	CHECK_STR(w.last_row, "allow GET /v1 200 [] ");
	end();

	begin("");
	id = peer_request(&w.guest, GET, NULL, true);
	h2_pump(&w);
	nghttp2_submit_rst_stream(w.up.session, NGHTTP2_FLAG_NONE, 1, NGHTTP2_NO_ERROR);
	h2_pump(&w);
	CHECK(peer_at(&w.guest, id)->closed && peer_at(&w.guest, id)->code == NGHTTP2_INTERNAL_ERROR);
	end();

	begin("");
	id = peer_request(&w.guest, GET, NULL, true);
	h2_pump(&w);
	nghttp2_submit_goaway(w.up.session, NGHTTP2_FLAG_NONE, 1, NGHTTP2_NO_ERROR, NULL, 0);
	h2_pump(&w);
	CHECK(w.guest.got_goaway && !w.guest.goaway && !h2_done(w.h2));
	peer_respond(&w.up, 1, OK200, "late", 4, true);
	h2_pump(&w);
	CHECK_STR(peer_at(&w.guest, id)->data, "late");
	CHECK(h2_done(w.h2));
	end();

	begin("");
	id = peer_request(&w.guest, GET, NULL, true);
	h2_pump(&w);
	peer_respond(&w.up, 1, OK200, "half", 4, false);
	h2_pump(&w);
	h2_eof(w.h2, H2_UP);
	h2_pump(&w);
	CHECK(peer_at(&w.guest, id)->closed && peer_at(&w.guest, id)->code == NGHTTP2_INTERNAL_ERROR);
	CHECK(h2_done(w.h2));
	end();

	begin("");
	h2_free(w.h2);
	w.hooks.up_failed = "certificate has expired";
	CHECK_EQ(h2_new(&w.hooks, &w.h2), RC_OK);
	id = peer_request(&w.guest, GET, NULL, true);
	next = peer_request(&w.guest, GET, NULL, true);
	while (pump_peer(&w, &w.guest, H2_GUEST))
		;
	CHECK(strstr(peer_at(&w.guest, id)->text, ":status: 502\n") && strstr(peer_at(&w.guest, id)->data, "certificate has expired"));
	CHECK(next > 0 && h2_done(w.h2));
	end();
}

TEST(a_guest_that_cancels_or_leaves_takes_its_requests_along)
{
	int32_t id;

	begin("");
	id = peer_request(&w.guest, GET, NULL, true);
	h2_pump(&w);
	nghttp2_submit_rst_stream(w.guest.session, NGHTTP2_FLAG_NONE, id, NGHTTP2_CANCEL);
	h2_pump(&w);
	CHECK(peer_at(&w.up, 1)->closed && peer_at(&w.up, 1)->code == NGHTTP2_CANCEL);
	CHECK_STR(w.last_row, "error GET /v1 0 [] the stream was reset");
	id = peer_request(&w.guest, GET, NULL, true);
	h2_pump(&w);
	h2_eof(w.h2, H2_GUEST);
	CHECK(h2_done(w.h2));
	h2_pump(&w);
	CHECK(peer_at(&w.up, 3)->closed);
	end();
}

TEST(informational_answers_pass)
{
	nghttp2_nv nv[2];
	int32_t id;

	begin("");
	id = peer_request(&w.guest, POST "expect: 100-continue\n", "x", true);
	h2_pump(&w);
	nghttp2_submit_headers(w.up.session, NGHTTP2_FLAG_NONE, 1, NULL, nv, peer_nv(":status: 103\nlink: " VALUE "\n", nv, 2), NULL);
	peer_respond(&w.up, 1, OK200, "y", 1, true);
	h2_pump(&w);
	CHECK_STR(peer_at(&w.guest, id)->text, ":status: 103\nlink: " PH "\n" OK200);
	end();
}

CHECK_MAIN()
