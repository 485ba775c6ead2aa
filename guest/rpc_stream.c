/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory: a stream to the client (rpc_out) is started, gets chunks, ends or fails; the client may cancel it. The protocol
 * has no credit, so the bound is the connection's queue: a producer asks rpc_out_room() before each chunk, calls
 * rpc_out_wait() when there is none and is resumed once. Two streams of one connection thus share one bound.
 *
 * Pings decide when a stream begins and ends, since the client's library is touchy about both. It cannot cancel a stream
 * properly whose start it saw before it looked at the answer that names the stream. And it throws, taking the client's program
 * with it, when the end arrives of a stream that it has cancelled a moment before. So the client is to have had the time to react
 * to what it was told last: the answer before the start, the last chunk before the end. It has when it has answered two pings,
 * the second sent after the answer to the first (the first it answers in the same breath in which it reads the message; what the
 * message makes the program say comes before its answer to the second), or when RPC_REACT_MS have passed since the first answer,
 * if that is sooner: a client far away need not wait for its whole distance, one on a busy host has not said it after a few ms.
 * The end goes with the last chunk if there is no way between the two: all of the stream was said in this turn of the loop, and is
 * short enough to arrive at once. That is what most commands are: they have ended before their stream may begin.
 *
 * The loop over a walk is one that programs leave early, with calls of their own in it: its end, whatever its length, comes only when
 * two pings in a row were answered and nothing else was said, so that a program which leaves because of what it was just told has
 * said so. One that leaves because of a clock of its own, at the wrong millisecond, is beyond help.
 *
 * A stream from the client (rpc_in) may begin before the call that names it: until then its chunks are held, up to
 * RPC_UNCLAIMED_MAX for the whole connection and one message more; the connection must be read on, since the call is
 * still to come. With a reader they are held up to RPC_HELD_MAX for the whole connection, then the connection isn't
 * read any more, which is TCP's back-pressure on the client. That is right for a reader that is slow; for one that stands still
 * (a child that does not read its input) it would stop all other calls of the client, whose library knows no credit for a
 * stream. So what such a reader has not taken goes to a file after RPC_STUCK_MS, what follows too, until it has taken all.
 * Chunks of streams that nobody knows (any more) are dropped: the client may have sent them before it saw our cancel.
 */
#include "guest/rpc.h"

#include "base/fd.h"
#include "guest/b64.h"
#include "guest/ws.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STREAM_ID_MAX (INT64_C(1) << 53)
#define ENQUEUE_HEAD "{\"jsonrpc\":\"2.0\",\"method\":\"$sandbox.stream.enqueue\",\"params\":{\"streamId\":"

static struct json_object *stream_params(uint64_t id)
{
	struct json_object *p = json_object_new_object();

	json_put(p, "streamId", json_object_new_int64((int64_t)id));
	return p;
}

/* --- to the client --------------------------------------------------------------------------------------------- */

static void out_move_on(void *arg);

/* Lets the next ping's answer move the stream on. */
static void out_wait_for_client(struct rpc_out *o)
{
	struct rpc_lists *l = rpc_conn_lists(o->conn);

	l->ping_wanted = true;
	o->mark = l->next_ping;
	loop_timer_set(o->timer, now_ms() + (l->deaf ? RPC_PONG_DEAF_MS : RPC_PONG_WAIT_MS));
}

struct rpc_out *rpc_out_new(struct rpc_conn *c, const struct rpc_out_ops *ops, void *arg)
{
	struct rpc_lists *l = rpc_conn_lists(c);
	struct rpc_out *o;

	if (l->n_outs >= RPC_STREAMS_MAX)
		return NULL;
	o = calloc(1, sizeof(*o));
	if (!o)
		return NULL;
	*o = (struct rpc_out){ .conn = c, .id = l->next_stream++, .ops = ops, .arg = arg, .next = l->outs, .at = &l->outs };
	if (loop_timer(rpc_conn_session(c)->loop, UINT64_MAX, out_move_on, o, &o->timer, NULL)) {
		free(o);
		return NULL;
	}
	if (o->next)
		o->next->at = &o->next;
	l->outs = o;
	l->n_outs++;
	out_wait_for_client(o);
	return o;
}

static void out_unlink(struct rpc_out *o)
{
	if (!o->conn)
		return;
	rpc_conn_lists(o->conn)->n_outs--;
	source_drop(&o->timer);
	o->conn = NULL;
	*o->at = o->next;
	if (o->next)
		o->next->at = o->at;
}

void rpc_out_wait(struct rpc_out *o)
{
	o->waiting = true;
}

void rpc_out_send(struct rpc_out *o, const void *data, size_t n)
{
	char head[sizeof(ENQUEUE_HEAD) + 40];
	int len;

	if (!o->conn || !n) /* an empty chunk is an error in the client's byte stream */
		return;
	if (!o->sent)
		o->first_turn = rpc_conn_lists(o->conn)->turn;
	o->sent += n;
	len = snprintf(head, sizeof(head), "%s%" PRIu64 ",\"data\":\"", ENQUEUE_HEAD, o->id);
	rpc_conn_text_b64(o->conn, head, (size_t)len, data, n, "\"}}", 3);
}

void rpc_out_free(struct rpc_out *o)
{
	if (!o)
		return;
	out_unlink(o);
	json_object_put(o->error);
	free(o);
}

static void out_finish(struct rpc_out *o)
{
	struct rpc_conn *c = o->conn;
	struct json_object *params = stream_params(o->id);

	out_unlink(o);
	if (o->error) {
		json_put(params, "error", o->error);
		o->error = NULL;
		rpc_conn_notify(c, "$sandbox.stream.error", params);
	} else {
		rpc_conn_notify(c, "$sandbox.stream.end", params);
	}
	rpc_out_free(o);
}

static void ending_resume(void *arg)
{
	(void)arg;
}

static void ending_gone(void *arg, bool cancelled)
{
	(void)cancelled;
	rpc_out_free(arg);
}

static const struct rpc_out_ops ending_ops = { .resume = ending_resume, .gone = ending_gone };

/* Nothing was said that the client can react to before it hears of the end. */
static bool out_is_one_message(const struct rpc_out *o)
{
	return !o->sent || (o->sent <= RPC_END_AT_ONCE && o->first_turn == rpc_conn_lists(o->conn)->turn);
}

/* What is left to do belongs to the stream alone from here. */
static void out_end(struct rpc_out *o)
{
	o->ended = true;
	o->waiting = false;
	o->ops = &ending_ops;
	o->arg = o;
	if (o->state == OUT_NEW)
		return;
	o->state = OUT_ENDING;
	o->end_by_ms = now_ms() + RPC_END_PATIENCE_MS;
	o->answered = false;
	if (o->error || (out_is_one_message(o) && !o->often_left))
		out_finish(o);
	else
		out_wait_for_client(o);
}

static bool out_is_quiet(struct rpc_out *o)
{
	uint64_t activity = rpc_conn_lists(o->conn)->activity;

	if (!o->often_left || now_ms() >= o->end_by_ms)
		return true;
	if (o->activity != activity)
		o->quiet = 0;
	o->activity = activity;
	return o->quiet >= RPC_END_QUIET;
}

static void out_move_on(void *arg)
{
	struct rpc_out *o = arg;
	struct rpc_lists *l = rpc_conn_lists(o->conn);

	/* What does not answer pings never did; one that did is slow, and the time is up all the same. */
	if (o->mark >= l->next_pong && !l->next_pong)
		l->deaf = true;
	if (o->state == OUT_ENDING) {
		if (out_is_quiet(o))
			out_finish(o);
		else
			out_wait_for_client(o);
		return;
	}
	o->state = OUT_OPEN;
	loop_timer_set(o->timer, UINT64_MAX);
	rpc_conn_notify(o->conn, "$sandbox.stream.start", stream_params(o->id));
	if (o->ended)
		out_end(o);
}

void rpc_out_end(struct rpc_out *o)
{
	if (o && o->conn)
		out_end(o);
	else
		rpc_out_free(o);
}

void rpc_out_error(struct rpc_out *o, struct json_object *error)
{
	if (o && o->conn) {
		o->error = error;
		out_end(o);
	} else {
		json_object_put(error);
		rpc_out_free(o);
	}
}

void rpc_streams_ping(struct rpc_conn *c)
{
	struct rpc_lists *l = rpc_conn_lists(c);

	if (!l->ping_wanted)
		return;
	l->ping_wanted = false;
	l->next_ping++;
	rpc_conn_ping(c, &(uint64_t){ l->next_ping - 1 }, sizeof(uint64_t));
}

/* The client has answered a ping that followed what it was told last. */
static void out_answered(struct rpc_out *o)
{
	bool ending = o->state == OUT_ENDING;

	if (ending)
		o->quiet++;
	if (ending && o->often_left) {
		if (out_is_quiet(o))
			loop_timer_set(o->timer, now_ms() + RPC_END_GRACE_MS);
		else
			out_wait_for_client(o);
	} else if (o->answered) {
		out_move_on(o);
	} else {
		o->answered = true;
		out_wait_for_client(o);
		loop_timer_set(o->timer, now_ms() + RPC_REACT_MS);
	}
}

/* Streams begin now; the flush at the end of this turn resumes their producers. */
void rpc_streams_pong(struct rpc_conn *c, const void *data, size_t n)
{
	struct rpc_lists *l = rpc_conn_lists(c);
	uint64_t mark;

	if (n != sizeof(mark))
		return;
	memcpy(&mark, data, sizeof(mark));
	if (mark >= l->next_ping)
		return;
	if (mark >= l->next_pong)
		l->next_pong = mark + 1;
	l->deaf = false;
	for (struct rpc_out *o = l->outs, *next; o; o = next) {
		next = o->next;
		if (o->mark <= mark && o->state != OUT_OPEN)
			out_answered(o);
	}
}

static void out_cancelled(struct rpc_conn *c, int64_t id)
{
	for (struct rpc_out *o = rpc_conn_lists(c)->outs; o; o = o->next) {
		if (o->id == (uint64_t)id) {
			out_unlink(o);
			o->ops->gone(o->arg, true);
			return;
		}
	}
}

void rpc_streams_resume(struct rpc_conn *c)
{
	struct rpc_out *o = rpc_conn_lists(c)->outs;

	/* A resumed producer may end its stream, or others, at once: begin again after each. */
	while (o && rpc_conn_room(c)) {
		if (o->waiting && o->state == OUT_OPEN) {
			o->waiting = false;
			o->ops->resume(o->arg);
			o = rpc_conn_lists(c)->outs;
		} else {
			o = o->next;
		}
	}
}

/* --- from the client ------------------------------------------------------------------------------------------- */

static struct rpc_in *in_find(struct rpc_conn *c, int64_t id)
{
	for (struct rpc_in *in = rpc_conn_lists(c)->ins; in; in = in->next)
		if (in->id == id)
			return in;
	return NULL;
}

/* What a stream holds counts for one of two bounds: that of streams with a reader, or without. */
static size_t *in_bound(struct rpc_in *in)
{
	struct rpc_lists *l = rpc_conn_lists(in->conn);

	return in->ops ? &l->held : &l->unclaimed;
}

static void in_count(struct rpc_in *in)
{
	if (!in->conn)
		return;
	*in_bound(in) += buf_len(&in->data) - in->counted;
	if (buf_len(&in->data) < in->counted || !in->counted)
		in->moved_ms = now_ms();
	in->counted = buf_len(&in->data);
}

static void in_drop_spill(struct rpc_in *in)
{
	rpc_conn_lists(in->conn)->spilled -= spill_len(&in->spill);
	spill_free(&in->spill);
}

static void in_unlink(struct rpc_in *in)
{
	if (!in->conn)
		return;
	*in_bound(in) -= in->counted;
	in_drop_spill(in);
	rpc_conn_lists(in->conn)->n_ins--;
	in->counted = 0;
	in->conn = NULL;
	*in->at = in->next;
	if (in->next)
		in->next->at = in->at;
}

static void in_free(struct rpc_in *in)
{
	in_unlink(in);
	buf_free(&in->data);
	free(in);
}

static void in_cancel(struct rpc_in *in, struct json_object *reason)
{
	struct json_object *p;

	if (!in->conn || in->ended || in->last) {
		json_object_put(reason);
		return;
	}
	p = stream_params((uint64_t)in->id);
	json_put(p, "reason", reason);
	rpc_conn_notify(in->conn, "$sandbox.stream.cancel", p);
}

static void in_start(struct rpc_conn *c, int64_t id)
{
	struct rpc_lists *l = rpc_conn_lists(c);
	struct rpc_in *in;

	if (in_find(c, id))
		return;
	in = l->n_ins < RPC_STREAMS_MAX ? calloc(1, sizeof(*in)) : NULL;
	if (!in) {
		rpc_conn_close(c, WS_POLICY, "too many streams");
		return;
	}
	/* One message may pass the bound that stops reading. */
	*in = (struct rpc_in){ .conn = c, .id = id, .data = BUF_INIT(RPC_HELD_MAX + RPC_MESSAGE_MAX),
			       .spill = SPILL_INIT, .next = l->ins, .at = &l->ins };
	if (in->next)
		in->next->at = &in->next;
	l->ins = in;
	l->n_ins++;
}

static void in_fail(struct rpc_in *in)
{
	in->ended = in->failed = true;
	if (in->ops)
		in->ops->ready(in->arg);
}

static void in_overflow(struct rpc_in *in)
{
	in_cancel(in, rpc_error_new("RangeError", NULL, "Too much data before it is consumed"));
	buf_free(&in->data);
	in_drop_spill(in);
	in_count(in);
	in_fail(in);
}

static bool in_put_away(struct rpc_in *in, const void *data, size_t n)
{
	struct rpc_lists *l = rpc_conn_lists(in->conn);

	if (l->spilled + n > RPC_SPILL_MAX || spill_put(&in->spill, data, n))
		return false;
	l->spilled += n;
	return true;
}

static void in_data(struct rpc_conn *c, int64_t id, const void *data, size_t n)
{
	struct rpc_in *in = in_find(c, id);

	if (!in || in->ended || in->last || !n)
		return;
	if (spill_len(&in->spill)) {
		if (!in_put_away(in, data, n))
			in_overflow(in);
		return;
	}
	if ((!in->ops && rpc_conn_lists(c)->unclaimed > RPC_UNCLAIMED_MAX) || buf_put(&in->data, data, n)) {
		in_overflow(in);
		return;
	}
	in_count(in);
	if (in->ops)
		in->ops->ready(in->arg);
}

static void in_end(struct rpc_conn *c, int64_t id, bool failed)
{
	struct rpc_in *in = in_find(c, id);

	if (!in || in->ended || in->last)
		return;
	in->last = true;
	if (failed)
		in_drop_spill(in);
	if (spill_len(&in->spill))
		return;
	in->ended = true;
	in->failed = failed;
	if (in->ops)
		in->ops->ready(in->arg);
}

static void stuck_set(struct rpc_lists *l, uint64_t at_ms)
{
	l->stuck_set = true;
	loop_timer_set(l->stuck, at_ms);
}

static void on_stuck(void *arg)
{
	struct rpc_lists *l = rpc_conn_lists(arg);
	uint64_t now = now_ms();

	l->stuck_set = false;
	loop_timer_set(l->stuck, UINT64_MAX);
	for (struct rpc_in *in = l->ins; in && l->held >= RPC_HELD_MAX; in = in->next) {
		if (!in->ops || !in->counted || spill_len(&in->spill) || now - in->moved_ms < RPC_STUCK_MS ||
		    !in_put_away(in, buf_data(&in->data), buf_len(&in->data)))
			continue;
		buf_free(&in->data);
		in_count(in);
	}
	/* If that did not help (no disk space, or all of them move) the connection waits on, and the end of the turn looks again. */
}

void rpc_streams_stuck(struct rpc_conn *c)
{
	struct rpc_lists *l = rpc_conn_lists(c);

	if (!l->stuck && loop_timer(rpc_conn_session(c)->loop, UINT64_MAX, on_stuck, c, &l->stuck, NULL))
		return;
	if (!l->stuck_set)
		stuck_set(l, now_ms() + RPC_STUCK_MS);
}

static void in_refill(struct rpc_in *in)
{
	uint64_t before = spill_len(&in->spill);
	enum rc rc = spill_take(&in->spill, &in->data, RPC_REFILL);

	rpc_conn_lists(in->conn)->spilled -= before - spill_len(&in->spill);
	in_count(in);
	if (rc)
		in_overflow(in);
	else if (in->last && !spill_len(&in->spill))
		in->ended = true;
	if (!rc)
		in->ops->ready(in->arg);
}

void rpc_streams_refill(struct rpc_conn *c)
{
	struct rpc_lists *l = rpc_conn_lists(c);
	struct rpc_in *in = l->ins;
	int left = RPC_REFILLS_PER_TURN;

	if (!l->spilled)
		return;
	/* A reader may drop its stream, and others: begin again after each. */
	while (in && left) {
		if (!spill_len(&in->spill) || buf_len(&in->data) >= RPC_CHUNK) {
			in = in->next;
			continue;
		}
		left--;
		in_refill(in);
		in = l->ins;
	}
	if (!left)
		stuck_set(l, now_ms()); /* the rest in the next turn */
}

struct rpc_in *rpc_in_claim(struct rpc_conn *c, int64_t id, const struct rpc_in_ops *ops, void *arg)
{
	struct rpc_in *in = in_find(c, id);

	if (!in || in->ops)
		return NULL;
	*in_bound(in) -= in->counted;
	in->counted = 0;
	in->ops = ops;
	in->arg = arg;
	in_count(in);
	return in;
}

void rpc_in_used(struct rpc_in *in)
{
	in_count(in);
}

void rpc_in_drop(struct rpc_in *in, struct json_object *reason)
{
	if (!in) {
		json_object_put(reason);
		return;
	}
	in_cancel(in, reason);
	in_free(in);
}

/* --- for the connection ---------------------------------------------------------------------------------------- */

void rpc_streams_detach(struct rpc_conn *c)
{
	struct rpc_lists *l = rpc_conn_lists(c);

	source_drop(&l->stuck);
	while (l->outs) {
		struct rpc_out *o = l->outs;

		out_unlink(o);
		o->ops->gone(o->arg, false);
	}
	while (l->ins) {
		struct rpc_in *in = l->ins;

		if (in->ops) {
			in_unlink(in);
			in->failed |= !in->ended;
			in->ended = true;
			in->ops->ready(in->arg);
		} else {
			in_free(in);
		}
	}
}

bool rpc_stream_fast(struct rpc_conn *c, char *text, size_t n)
{
	static const char data_key[] = ",\"data\":\"";
	char *at = text + sizeof(ENQUEUE_HEAD) - 1, *end;
	long long id;
	size_t used;

	if (n < sizeof(ENQUEUE_HEAD) + 16 || memcmp(text, ENQUEUE_HEAD, sizeof(ENQUEUE_HEAD) - 1))
		return false;
	if (*at < '0' || *at > '9')
		return false;
	id = strtoll(at, &end, 10); /* the text ends with a NUL */
	if (id >= STREAM_ID_MAX || strncmp(end, data_key, sizeof(data_key) - 1))
		return false;
	at = end + sizeof(data_key) - 1;
	if (text + n - at < 3 || memcmp(text + n - 3, "\"}}", 3))
		return false;
	if (!b64_decode(at, &used, at, (size_t)(text + n - 3 - at)))
		return false;
	in_data(c, id, at, used);
	return true;
}

static void enqueue(struct rpc_conn *c, struct params *p, int64_t id)
{
	const char *text = params_str(p, "data");
	size_t n = strlen(text), used;
	char *data;

	if (!params_ok(p))
		return;
	data = malloc(B64_ROOM(n) + 1);
	if (data && b64_decode(data, &used, text, n))
		in_data(c, id, data, used);
	else
		params_fail(p, "data", "not base64");
	free(data);
}

bool rpc_stream_notification(struct rpc_conn *c, const char *method, struct json_object *params)
{
	static const char prefix[] = "$sandbox.stream.";
	struct params p;
	int64_t id;

	if (strncmp(method, prefix, sizeof(prefix) - 1))
		return false;
	method += sizeof(prefix) - 1;
	params_init(&p, params);
	id = params_int(&p, "streamId", 0, STREAM_ID_MAX);
	if (!params_ok(&p))
		;
	else if (!strcmp(method, "start"))
		in_start(c, id);
	else if (!strcmp(method, "enqueue"))
		enqueue(c, &p, id);
	else if (!strcmp(method, "end"))
		in_end(c, id, false);
	else if (!strcmp(method, "error"))
		in_end(c, id, true);
	else if (!strcmp(method, "cancel"))
		out_cancelled(c, id);
	if (!params_ok(&p))
		rpc_conn_close(c, WS_INVALID_RPC, "Invalid stream message");
	return true;
}
