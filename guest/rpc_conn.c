/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory: a connection is open, then closing, then dead.
 *
 * Open: bytes go through ws_feed() into messages, messages to rpc_dispatch() or to a stream. What is sent is appended to
 * `out` and written when the turn of the loop ends. The client is hostile: nothing may grow because it does not read or
 * does not stop sending. So no more is read while `out` is above RPC_OUT_HIGH, while too many calls are unanswered, or
 * while too many of its stream bytes are held (until those of readers that stand still went to a file, rpc_stream.c); producers of streams ask rpc_conn_room() and wait for the resume.
 * Only answers to calls that ran already may pass the mark; RPC_OUT_MAX ends that, with the connection.
 *
 * Closing: all calls and streams were told; what is queued and the close frame leave, the peer's bytes are thrown away until
 * it hangs up or RPC_CLOSE_WAIT_MS pass. Closing a socket with unread bytes would reset it and lose the close frame.
 *
 * Dead: memory only, freed after the turn, since callers up the stack may still hold the pointer.
 */
#include "guest/rpc.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "guest/b64.h"
#include "guest/proc.h"
#include "guest/rpc_fs.h"
#include "guest/ws.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define READ_SIZE 65536

struct rpc_conn {
	struct session *session;
	struct rpc_conn *next, **at;
	int fd;
	struct source *source, *timer;
	struct ws_in ws;
	struct buf out;
	struct buf in; /* read but not yet taken, when reading has to wait in the middle */
	struct rpc_lists lists;
	struct rpc_fs *fs;
	bool closing, sent_close, dead, shut;
	bool overrun; /* its queue has no room: it ends when the turn does, so that sending never ends anything */
};

struct session *rpc_conn_session(struct rpc_conn *c)
{
	return c->session;
}

struct rpc_fs *rpc_conn_fs(struct rpc_conn *c)
{
	return c->fs;
}

struct rpc_lists *rpc_conn_lists(struct rpc_conn *c)
{
	return &c->lists;
}

bool rpc_conn_room(const struct rpc_conn *c)
{
	return !c->closing && !c->overrun && buf_len(&c->out) < RPC_OUT_HIGH;
}

size_t rpc_conn_queued(const struct rpc_conn *c)
{
	return buf_len(&c->out);
}

static bool may_read(const struct rpc_conn *c)
{
	return !c->dead && !c->overrun && (c->closing || (buf_len(&c->out) < RPC_OUT_HIGH && c->lists.n_calls < RPC_CALLS_MAX &&
					   c->lists.held < RPC_HELD_MAX));
}

/* All that hangs on the connection is told that it is lost. */
static void conn_detach(struct rpc_conn *c)
{
	c->closing = true;
	rpc_calls_detach(c);
	rpc_streams_detach(c);
	rpc_fs_detach(take_ptr(c->fs));
	proc_conn_lost(c->session, c);
}

static void conn_kill(struct rpc_conn *c)
{
	struct session *s = c->session;

	if (c->dead)
		return;
	c->dead = true;
	if (!c->closing)
		conn_detach(c);
	source_drop(&c->source);
	source_drop(&c->timer);
	close_fd(&c->fd);
	*c->at = c->next;
	if (c->next)
		c->next->at = c->at;
	c->next = s->dead;
	s->dead = c;
	s->n_conns--;
}

static void conn_free(struct rpc_conn *c)
{
	ws_in_free(&c->ws);
	buf_free(&c->out);
	buf_free(&c->in);
	free(c);
}

static void put_frame(struct rpc_conn *c, enum ws_opcode opcode, const void *data, size_t n)
{
	uint8_t head[10];
	size_t n_head = ws_head(head, opcode, n);

	if (c->dead || c->sent_close)
		return;
	if (n_head + n > buf_room(&c->out) || buf_put(&c->out, head, n_head) || buf_put(&c->out, data, n))
		c->overrun = true;
}

/* Room for a text frame of n bytes at the queue's end, its head already there. NULL: the connection is to end. */
static uint8_t *reserve_text(struct rpc_conn *c, size_t n)
{
	uint8_t *to;

	if (c->closing || c->overrun)
		return NULL;
	if (buf_reserve(&c->out, n + 10, &to)) {
		c->overrun = true;
		return NULL;
	}
	buf_commit(&c->out, ws_head(to, WS_TEXT, n));
	return buf_data(&c->out) + buf_len(&c->out);
}

void rpc_conn_text(struct rpc_conn *c, const char *a, size_t n_a, const char *b, size_t n_b, const char *z, size_t n_z)
{
	uint8_t *to = reserve_text(c, n_a + n_b + n_z);

	if (!to)
		return;
	memcpy(to, a, n_a);
	if (n_b)
		memcpy(to + n_a, b, n_b);
	memcpy(to + n_a + n_b, z, n_z);
	buf_commit(&c->out, n_a + n_b + n_z);
	c->lists.activity++;
}

void rpc_conn_text_b64(struct rpc_conn *c, const char *a, size_t n_a, const void *data, size_t n, const char *z, size_t n_z)
{
	size_t n_b = B64_LEN(n);
	uint8_t *to = reserve_text(c, n_a + n_b + n_z);

	if (!to)
		return;
	memcpy(to, a, n_a);
	b64_encode((char *)to + n_a, data, n);
	memcpy(to + n_a + n_b, z, n_z);
	buf_commit(&c->out, n_a + n_b + n_z);
}

void rpc_conn_ping(struct rpc_conn *c, const void *data, size_t n)
{
	put_frame(c, WS_PING, data, n);
}

void rpc_conn_notify(struct rpc_conn *c, const char *method, struct json_object *params)
{
	struct json_object *m = json_object_new_object();
	const char *text;
	size_t n;

	json_put(m, "jsonrpc", json_str("2.0"));
	json_put(m, "method", json_str(method));
	json_put(m, "params", params);
	text = json_object_to_json_string_length(m, JSON_WRITE_FLAGS, &n);
	rpc_conn_text(c, text, n, NULL, 0, "", 0);
	json_object_put(m);
}

static void on_close_timer(void *arg)
{
	conn_kill(arg);
}

void rpc_conn_close(struct rpc_conn *c, int status, const char *reason)
{
	uint8_t payload[WS_CONTROL_MAX] = { (uint8_t)(status >> 8), (uint8_t)status };
	size_t n = MIN_OF(strlen(reason), sizeof(payload) - 2);

	if (c->closing)
		return;
	conn_detach(c);
	if (c->dead)
		return;
	memcpy(payload + 2, reason, n);
	put_frame(c, WS_CLOSE, payload, status == 1005 ? 0 : n + 2);
	c->sent_close = true;
	buf_free(&c->in);
	if (loop_timer(c->session->loop, now_ms() + RPC_CLOSE_WAIT_MS, on_close_timer, c, &c->timer, NULL))
		conn_kill(c);
}

void rpc_conns_close(struct session *s, int status, const char *reason)
{
	for (struct rpc_conn *c = s->conns, *next; c; c = next) {
		next = c->next;
		rpc_conn_close(c, status, reason);
	}
}

static void on_message(struct rpc_conn *c, char *text, size_t n)
{
	struct json_object *m, *v, *method = NULL, *id = NULL, *params = NULL;

	if (n == 4 && !memcmp(text, "ping", 4)) {
		put_frame(c, WS_TEXT, "pong", 4);
		return;
	}
	if (rpc_stream_fast(c, text, n))
		return;
	c->lists.activity++;
	m = json_parse(text, n);
	if (n > READ_SIZE)
		buf_free(&c->ws.message); /* its content is in m now; don't keep it twice */
	if (!m) {
		rpc_conn_close(c, WS_INVALID_JSON, "Invalid JSON");
		return;
	}
	json_object_object_get_ex(m, "method", &method);
	json_object_object_get_ex(m, "params", &params);
	json_object_object_get_ex(m, "id", &id);
	if (!json_object_is_type(m, json_type_object) || !json_object_object_get_ex(m, "jsonrpc", &v) ||
	    !json_object_is_type(v, json_type_string) || strcmp(json_object_get_string(v), "2.0") ||
	    !json_object_is_type(method, json_type_string) ||
	    (id && !json_object_is_type(id, json_type_int) && !json_object_is_type(id, json_type_double) &&
	     !json_object_is_type(id, json_type_string)))
		rpc_conn_close(c, WS_INVALID_RPC, "Invalid message");
	else if (id)
		rpc_dispatch(c, json_object_get_string(method), id, params);
	else
		rpc_stream_notification(c, json_object_get_string(method), params);
	json_object_put(m);
}

static void on_frame(struct rpc_conn *c, const struct ws_message *m)
{
	int status;

	switch (m->opcode) {
	case WS_PING: put_frame(c, WS_PONG, m->data, m->n); break;
	case WS_CLOSE:
		status = ws_close_status(m);
		rpc_conn_close(c, status, "");
		break;
	case WS_TEXT: on_message(c, m->data, m->n); break;
	case WS_PONG: rpc_streams_pong(c, m->data, m->n); break;
	default: break;
	}
}

/* Feeds what was read; what may not be taken now stays in c->in. Returns the bytes taken. */
static size_t take(struct rpc_conn *c, const uint8_t *data, size_t n)
{
	size_t at = 0;

	while (at < n && !c->closing && may_read(c)) {
		struct ws_message m;
		struct fault f;
		size_t used;
		enum rc rc = ws_feed(&c->ws, data + at, n - at, &used, &m, &f);

		at += used;
		if (rc == RC_AGAIN)
			continue;
		if (rc) {
			rpc_conn_close(c, c->ws.failed, f.text);
			break;
		}
		on_frame(c, &m);
	}
	return c->closing ? n : at;
}

static void take_kept(struct rpc_conn *c)
{
	while (buf_len(&c->in) && !c->closing && may_read(c)) {
		struct buf kept = c->in;
		size_t n = buf_len(&kept), used;

		c->in = (struct buf)BUF_INIT(READ_SIZE);
		used = take(c, buf_data(&kept), n);
		if (c->closing || c->dead) {
			buf_free(&kept);
			return;
		}
		buf_consume(&kept, used);
		c->in = kept;
	}
}

static void watch(struct rpc_conn *c)
{
	uint32_t events = 0;

	if (c->dead)
		return;
	if (may_read(c) && !buf_len(&c->in))
		events |= EPOLLIN;
	if (buf_len(&c->out))
		events |= EPOLLOUT;
	if (loop_fd_events(c->source, events, NULL))
		conn_kill(c);
}

static void on_readable(struct rpc_conn *c)
{
	static uint8_t chunk[READ_SIZE]; /* one thread */
	ssize_t n;
	size_t used;

	do
		n = recv(c->fd, chunk, sizeof(chunk), MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (n < 0 && errno == EAGAIN)
		return;
	if (n <= 0) {
		conn_kill(c);
		return;
	}
	used = take(c, chunk, (size_t)n);
	if (used < (size_t)n && !c->dead && buf_put(&c->in, chunk + used, (size_t)n - used))
		conn_kill(c);
}

static void on_conn(void *arg, uint32_t events)
{
	struct rpc_conn *c = arg;

	if (events & (EPOLLERR | EPOLLHUP)) {
		conn_kill(c);
		return;
	}
	if (events & EPOLLIN && may_read(c) && !buf_len(&c->in))
		on_readable(c);
	/* Writing is done for all when the turn ends. */
}

static void flush_conn(struct rpc_conn *c)
{
	enum rc rc = RC_OK;
	struct fault f;

	if (c->overrun && !c->dead) {
		conn_kill(c);
		return;
	}
	if (!c->closing)
		rpc_streams_ping(c);
	c->lists.turn++;
	while (!c->dead && buf_len(&c->out) && !rc) {
		rc = buf_write(&c->out, c->fd, &f);
		if (rc && rc != RC_AGAIN)
			conn_kill(c);
	}
	if (c->dead)
		return;
	if (c->closing && !buf_len(&c->out) && !c->shut) {
		c->shut = true;
		shutdown(c->fd, SHUT_WR);
	}
	if (!c->closing && buf_len(&c->out) < RPC_OUT_LOW)
		rpc_streams_resume(c);
	if (!c->closing)
		rpc_streams_refill(c);
	take_kept(c);
	if (!c->closing && c->lists.held >= RPC_HELD_MAX)
		rpc_streams_stuck(c);
	watch(c);
}

void rpc_conns_flush(struct session *s)
{
	for (struct rpc_conn *c = s->conns, *next; c; c = next) {
		next = c->next;
		flush_conn(c);
		if (next && next->dead)
			next = s->conns; /* an answer to it overran its queue: begin again, what was written is written */
	}
	while (s->dead) {
		struct rpc_conn *c = s->dead;

		s->dead = c->next;
		conn_free(c);
	}
}

static enum rc conn_start(struct rpc_conn *c, struct fault *ret_f)
{
	uint64_t base;
	enum rc rc = fd_nonblock(c->fd, ret_f);

	if (rc)
		return rc;
	setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &(int){ 1 }, sizeof(int)); /* a Unix socket in tests has none */
	random_bytes(&base, sizeof(base));
	c->lists.next_stream = (base >> 14) + 1; /* 50 bits: below 2^53 for as long as anyone counts */
	rc = rpc_fs_new(c->session, &c->fs, ret_f);
	if (rc)
		return rc;
	return loop_fd(c->session->loop, c->fd, EPOLLIN, on_conn, c, &c->source, ret_f);
}

enum rc rpc_conn_new(struct session *s, int fd, struct fault *ret_f)
{
	_cleanup_fd_ int owned = fd;
	struct rpc_conn *c;
	enum rc rc;

	if (s->n_conns >= RPC_CONNECTIONS_MAX)
		return fault_set(ret_f, RC_LIMIT, 0, "more than %d connections", RPC_CONNECTIONS_MAX);
	c = calloc(1, sizeof(*c));
	if (!c)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	c->session = s;
	c->fd = owned;
	c->out = (struct buf)BUF_INIT(RPC_OUT_MAX);
	c->in = (struct buf)BUF_INIT(READ_SIZE);
	ws_in_init(&c->ws, RPC_MESSAGE_MAX, RPC_FRAGMENTS_MAX);
	rc = conn_start(c, ret_f);
	if (rc) {
		rpc_fs_detach(c->fs);
		conn_free(c);
		return rc;
	}
	take_fd(&owned);
	c->next = s->conns;
	c->at = &s->conns;
	if (c->next)
		c->next->at = &c->next;
	s->conns = c;
	s->n_conns++;
	return RC_OK;
}
