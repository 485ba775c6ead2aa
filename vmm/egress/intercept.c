/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory: four buffers of plain text between two TLS connections. Over HTTP/1.1 one request at a time:
 *
 *   guest -TLS-> from_guest -> request() -> to_up -TLS-> upstream
 *   guest <-TLS- to_guest <- response() <- from_up <-TLS- upstream
 *
 * pump() moves what can be moved until nothing can; every step stops at a full buffer, which is the back-pressure. The
 * upstream handshake comes first: if its certificate is not the host's, the guest is told so in HTTP and no request leaves.
 * Each request is judged by itself (Host, target, framing), so a connection that was good once is not good for another
 * host. Bodies are taken apart and framed anew, so two readings of one message do not exist.
 *
 * Instead of request() and response(), h2.c has the four buffers if both sides chose HTTP/2, and ws.c once an upstream has
 * switched to WebSocket. What is read is paid for at the sandbox's meter (fill()); without tokens a connection waits.
 */
#include "vmm/egress/intercept.h"

#include "base/cleanup.h"
#include "vmm/egress/ca.h"
#include "vmm/egress/h2.h"
#include "vmm/egress/rewrite.h"
#include "vmm/egress/tls.h"
#include "vmm/egress/ws.h"

#include <openssl/x509.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define ROUNDS 64       /* of pump() before others have their turn */
#define PATH_ROW_MAX 256
#define NOTE_STRANGE "a placeholder of a secret that is not bound to this host"
#define NOTE_OUTSIDE "a placeholder where its secret may not go"
#define NOTE_MESSAGE "a placeholder in a message, where it is not replaced"
#define NOTE_BODY "a placeholder in the body, where it is not replaced"
#define FULL 65536      /* an outgoing buffer with this much gets no more */

enum side_state { SIDE_HANDSHAKE, SIDE_OPEN, SIDE_EOF };

struct end {
	SSL *ssl;
	enum side_state state;
	bool wants_write;   /* the last TLS step waits for room in the socket */
	struct buf in, out; /* plain text */
};

struct intercept {
	struct conn *c;
	struct end guest, up;
	struct tls_alpn alpn;
	struct h2 *h2;          /* both sides speak HTTP/2: it has the requests, nothing below is used */
	bool upgrade, is_ws;    /* a WebSocket was asked for; there is one, instead of further requests */
	struct ws ws;
	const char *up_failed;  /* why upstream's handshake did not come about; a literal */
	bool over;              /* the sandbox's total is used up */
	bool again;             /* there is more to do, in the next turn */
	bool ending, shut;      /* nothing is to come but what guest.out holds; that is written, too */
	const char *reason;     /* of the connection's row */

	/* The request that is under way. */
	bool active, request_done, response_head_done;
	struct http_body request_body, response_body;
	enum http_framing request_out, response_out;
	bool head_request, close_after;
	unsigned int minor;
	struct secrets *set;
	struct redactor redactor;
	char method[HTTP_METHOD_MAX], path[PATH_ROW_MAX], secret[POLICY_SECRET_NAME_MAX], rule[POLICY_RULE_MAX];
	const char *note;
	struct secret_watch watch;
	unsigned int status;
	uint64_t started_ms, bytes_out, bytes_in;
};

static void wipe(struct buf *b)
{
	if (b->mem)
		OPENSSL_cleanse(b->mem, b->cap);
	buf_free(b);
}

static void request_row(struct intercept *t, const char *decision, const char *reason)
{
	struct conn *c = t->c;
	char address[ADDRESS_TEXT_MAX];
	struct ledger_row row = { .protocol = "https", .name = c->name, .port = c->port, .decision = decision,
				  .address = address_text(&c->addrs[c->at_addr], address), .rule = t->rule[0] ? t->rule : c->verdict.rule,
				  .reason = reason ? reason : t->note, .method = t->method, .path = t->path,
				  .secret = t->secret, .status = t->status, .bytes_out = t->bytes_out,
				  .bytes_in = t->bytes_in, .duration_ms = conn_now(c) - t->started_ms };

	sandbox_row(c->sb, &row);
}

void intercept_free(struct intercept *t)
{
	if (!t)
		return;
	SSL_free(t->guest.ssl);
	SSL_free(t->up.ssl);
	wipe(&t->guest.in);
	wipe(&t->guest.out);
	wipe(&t->up.in);
	wipe(&t->up.out);
	/* What was under way, and ended with the connection. */
	if (t->active)
		request_row(t, t->is_ws ? "allow" : "error", t->is_ws ? NULL : "the connection ended before the answer did");
	h2_free(t->h2);
	ws_end(&t->ws);
	redactor_end(&t->redactor);
	secrets_unref(t->set);
	free(t);
}

/* An answer of our own; the last on this connection. */
static void answer(struct intercept *t, unsigned int status, const char *title, const char *why)
{
	char body[512];
	int n = snprintf(body, sizeof(body), "nestbox: the request to %s was not passed on: %s\n", t->c->name, why);

	if (buf_printf(&t->guest.out,
		       "HTTP/1.1 %u %s\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n"
		       "X-Nestbox-Egress: denied\r\n\r\n%s", status, title, n, body))
		t->reason = "out of memory";
	t->status = status;
	t->ending = true;
	t->active = false;
}

static void request_begin(struct intercept *t, const struct http_head *h)
{
	const char *query = memchr(h->target.at, '?', h->target.n);
	size_t path_n = query ? (size_t)(query - h->target.at) : h->target.n;

	t->active = true;
	t->request_done = t->response_head_done = false;
	t->head_request = !strcmp(h->method, "HEAD");
	t->close_after = h->close;
	t->upgrade = rewrite_is_websocket(h, true);
	t->minor = h->minor;
	t->started_ms = conn_now(t->c);
	t->bytes_out = t->bytes_in = 0;
	t->status = 0;
	t->note = NULL;
	t->secret[0] = t->rule[0] = '\0';
	t->watch.n = 0;
	memcpy(t->method, h->method, sizeof(t->method));
	snprintf(t->path, sizeof(t->path), "%.*s", (int)MIN_OF(path_n, (size_t)PATH_ROW_MAX - 1), h->target.at);
	secrets_unref(t->set);
	t->set = secrets_ref(t->c->sb->secrets);
}

static const char *status_text(int status)
{
	return status == 400 ? "Bad Request" : status == 403 ? "Forbidden" : status == 414 ? "URI Too Long" : "Misdirected Request";
}

static bool request_head(struct intercept *t)
{
	struct buf *in = &t->guest.in;
	struct judged j = { .verdict.rule = "" };
	struct secret_report report = { 0 };
	const char *why = NULL;
	struct http_text host;
	struct http_head h;
	enum http_result r = http_parse(buf_data(in), buf_len(in), true, &h, &why);
	int status;

	if (r == HTTP_MORE && buf_len(in) < EGRESS_HEAD_MAX)
		return false;
	if (r != HTTP_OK) {
		t->started_ms = conn_now(t->c);
		answer(t, r == HTTP_MORE ? 431 : 400, "Bad Request", r == HTTP_MORE ? "the head is too long" : why);
		request_row(t, "deny", r == HTTP_MORE ? "the head is too long" : why);
		return true;
	}
	request_begin(t, &h);
	status = http_find(&h, "host", &host) == 1
			 ? judge_request(t->c->sb->policy, t->c->name, t->c->port, t->method, &host, &h.target, &j, &why)
			 : 421;
	if (status == 421 && !why)
		why = "not exactly one Host header";
	snprintf(t->rule, sizeof(t->rule), "%s", j.verdict.rule);
	if (status || t->up_failed) {
		answer(t, status ? (unsigned int)status : 502, status ? status_text(status) : "Bad Gateway", status ? why : t->up_failed);
		request_row(t, status ? "deny" : "error", status ? why : t->up_failed);
		return true;
	}
	if (rewrite_request(&h, &j, t->set, &t->up.out, &report)) {
		answer(t, 431, "Bad Request", "the head is too long");
		request_row(t, "deny", "the head is too long");
		return true;
	}
	if (report.used)
		snprintf(t->secret, sizeof(t->secret), "%s", report.used);
	if (report.strange)
		t->note = NOTE_STRANGE;
	else if (report.outside)
		t->note = NOTE_OUTSIDE;
	t->request_out = h.framing;
	http_body_start(&t->request_body, h.framing, h.length);
	t->request_done = t->request_body.done;
	buf_consume(in, h.n);
	return true;
}

static bool request_piece(struct intercept *t)
{
	struct http_text piece;
	size_t used;
	enum http_result r = http_body_read(&t->request_body, buf_data(&t->guest.in),
					    MIN_OF(buf_len(&t->guest.in), (size_t)EGRESS_TLS_PIECE), &used, &piece);

	if (r == HTTP_MORE)
		return false;
	if (r == HTTP_BAD) {
		request_row(t, "deny", "malformed chunk");
		answer(t, 400, "Bad Request", "malformed chunk");
		return true;
	}
	t->bytes_out += piece.n;
	if (piece.n && secrets_watch(t->set, &t->watch, (const uint8_t *)piece.at, piece.n))
		t->note = NOTE_BODY;
	if (t->request_out == HTTP_CHUNKED && (piece.n || t->request_body.done)) {
		if (rewrite_chunk(&t->up.out, piece.at, piece.n))
			t->reason = "out of memory";
	} else if (piece.n && buf_put(&t->up.out, piece.at, piece.n)) {
		t->reason = "out of memory";
	}
	buf_consume(&t->guest.in, used);
	t->request_done = t->request_body.done;
	return true;
}

static bool request(struct intercept *t)
{
	if (t->ending || buf_len(&t->up.out) >= FULL)
		return false;
	if (t->active)
		return !t->request_done && request_piece(t);
	return t->guest.state != SIDE_HANDSHAKE && buf_len(&t->guest.in) && request_head(t);
}

/* --- responses ----------------------------------------------------------------------------------------------- */

static bool encoded(const struct http_head *h)
{
	struct http_text v;
	int n = http_find(h, "content-encoding", &v);

	return n < 0 || (n && !http_is(&v, "identity"));
}

static bool response_head(struct intercept *t)
{
	struct buf *in = &t->up.in;
	const char *why = NULL;
	bool found = false;
	struct http_head h;
	enum http_framing framing;
	enum http_result r = http_parse(buf_data(in), buf_len(in), false, &h, &why);

	if (r == HTTP_MORE && buf_len(in) < EGRESS_HEAD_MAX)
		return false;
	framing = r == HTTP_OK ? http_response_framing(&h, t->head_request) : HTTP_NO_BODY;
	if (r != HTTP_OK || (h.status == 101 && !(t->upgrade && rewrite_is_websocket(&h, false))))
		why = "the upstream's answer is not HTTP that is passed on";
	else if (framing != HTTP_NO_BODY && t->set && encoded(&h))
		why = "the upstream's answer is compressed and cannot be searched";
	if (r != HTTP_OK || why) {
		answer(t, 502, "Bad Gateway", why);
		request_row(t, "error", why);
		return true;
	}
	t->status = h.status;
	t->response_out = framing == HTTP_NO_BODY ? HTTP_NO_BODY : t->minor ? HTTP_CHUNKED : HTTP_UNTIL_CLOSE;
	if (h.status >= 200)
		t->close_after |= h.close || t->response_out == HTTP_UNTIL_CLOSE;
	if (rewrite_response(&h, t->set, t->response_out, t->close_after, &t->guest.out, &found))
		t->reason = "the answer's head is too long";
	if (found)
		t->note = "the answer held a secret; its placeholder was put back";
	buf_consume(in, h.n);
	if (h.status == 101) {
		t->is_ws = true;
		ws_start(&t->ws, t->set);
	}
	if (h.status < 200)
		return true;
	t->response_head_done = true;
	http_body_start(&t->response_body, framing, h.length);
	redactor_start(&t->redactor, t->set);
	return true;
}

static enum rc body_out(struct intercept *t, const struct http_text *piece, bool last)
{
	struct buf clean = BUF_INIT(EGRESS_TLS_OUT / 2);
	enum rc rc = redactor_run(&t->redactor, piece->at, piece->n, last, &clean);

	if (!rc && buf_len(&clean))
		rc = t->response_out == HTTP_CHUNKED ? rewrite_chunk(&t->guest.out, buf_data(&clean), buf_len(&clean))
						     : buf_put(&t->guest.out, buf_data(&clean), buf_len(&clean));
	if (!rc && last && t->response_out == HTTP_CHUNKED)
		rc = rewrite_chunk(&t->guest.out, NULL, 0);
	wipe(&clean);
	return rc;
}

static void response_done(struct intercept *t)
{
	if (t->redactor.found)
		t->note = "the answer held a secret; its placeholder was put back";
	redactor_end(&t->redactor);
	request_row(t, "allow", NULL);
	t->active = false;
	/* A request that upstream did not want to read to its end cannot be followed by another. */
	if (t->close_after || !t->request_done)
		t->ending = true;
}

static bool response_piece(struct intercept *t)
{
	struct http_text piece = { NULL, 0 };
	size_t used = 0;
	enum http_result r = HTTP_OK;
	bool last;

	if (t->response_body.framing == HTTP_UNTIL_CLOSE && !buf_len(&t->up.in) && t->up.state == SIDE_EOF)
		t->response_body.done = true;
	if (!t->response_body.done)
		r = http_body_read(&t->response_body, buf_data(&t->up.in), MIN_OF(buf_len(&t->up.in), (size_t)EGRESS_TLS_PIECE),
				   &used, &piece);
	if (r == HTTP_MORE)
		return false;
	last = t->response_body.done;
	if (r == HTTP_BAD || ((piece.n || last) && t->response_out != HTTP_NO_BODY && body_out(t, &piece, last))) {
		t->reason = "malformed chunk in the upstream's answer";
		return true;
	}
	t->bytes_in += piece.n;
	buf_consume(&t->up.in, used);
	if (last)
		response_done(t);
	return true;
}

static bool response(struct intercept *t)
{
	if (!t->active || t->ending || buf_len(&t->guest.out) >= FULL)
		return false;
	return t->response_head_done ? response_piece(t) : buf_len(&t->up.in) && response_head(t);
}

/* --- WebSocket ----------------------------------------------------------------------------------------------- */

/* The guest is told why in the protocol's own way. */
static void ws_refuse(struct intercept *t, const char *why)
{
	t->note = why;
	if (ws_put_close(&t->guest.out, 1008, why))
		t->reason = "out of memory";
	t->ending = true;
}

static bool ws_step(struct intercept *t)
{
	size_t before = buf_len(&t->guest.in) + buf_len(&t->up.in), now;
	const char *why = NULL;
	enum rc rc;

	if (t->ending)
		return false;
	rc = ws_from_guest(&t->ws, &t->guest.in, &t->up.out, FULL, &why);
	if (!rc && !why)
		rc = ws_from_up(&t->ws, &t->up.in, &t->guest.out, FULL, &why);
	now = buf_len(&t->guest.in) + buf_len(&t->up.in);
	if (rc)
		t->reason = "out of memory";
	if (t->ws.placeholder)
		t->note = NOTE_MESSAGE;
	if (t->ws.found)
		t->note = "a message held a secret; its placeholder was put back";
	if (why)
		ws_refuse(t, why);
	/* Whoever ends its half has said its close before. */
	if ((t->guest.state == SIDE_EOF && !buf_len(&t->guest.in)) || (t->up.state == SIDE_EOF && now == before))
		t->ending = true;
	t->bytes_out = t->c->out.bytes;
	t->bytes_in = t->c->in.bytes;
	if (t->ending) {
		request_row(t, why ? "deny" : "allow", NULL);
		t->active = false;
	}
	return now != before;
}

/* --- HTTP/2 -------------------------------------------------------------------------------------------------- */

static const struct policy *hook_policy(void *arg)
{
	return ((struct intercept *)arg)->c->sb->policy;
}

static struct secrets *hook_secrets(void *arg)
{
	return ((struct intercept *)arg)->c->sb->secrets;
}

static uint64_t hook_now(void *arg)
{
	return conn_now(((struct intercept *)arg)->c);
}

static void hook_row(void *arg, const struct h2_row *r)
{
	struct conn *c = ((struct intercept *)arg)->c;
	char address[ADDRESS_TEXT_MAX];
	struct ledger_row row = { .protocol = "https", .name = c->name, .port = c->port, .decision = r->decision,
				  .address = address_text(&c->addrs[c->at_addr], address),
				  .rule = r->rule && *r->rule ? r->rule : c->verdict.rule, .reason = r->reason,
				  .method = r->method, .path = r->path, .secret = r->secret, .status = r->status,
				  .bytes_out = r->bytes_out, .bytes_in = r->bytes_in, .duration_ms = conn_now(c) - r->started_ms };

	sandbox_row(c->sb, &row);
}

static void h2_start(struct intercept *t)
{
	const struct h2_hooks hooks = { .arg = t, .host = t->c->name, .port = t->c->port, .up_failed = t->up_failed,
					.policy = hook_policy, .secrets = hook_secrets, .now = hook_now, .row = hook_row };

	if (h2_new(&hooks, &t->h2))
		t->reason = "out of memory";
}

static bool h2_feed(struct intercept *t, enum h2_side side, struct end *e)
{
	bool went = buf_len(&e->in) && h2_takes(t->h2, side);

	if (went) {
		if (h2_in(t->h2, side, buf_data(&e->in), buf_len(&e->in)))
			t->reason = side == H2_UP ? "the upstream's HTTP/2 is broken" : "the guest's HTTP/2 is broken";
		buf_consume(&e->in, buf_len(&e->in));
	}
	if (e->state == SIDE_EOF && !buf_len(&e->in) && !(side == H2_UP && t->up_failed))
		h2_eof(t->h2, side);
	return went;
}

static bool h2_pull(struct intercept *t, enum h2_side side, struct end *e)
{
	size_t before = buf_len(&e->out);

	if (h2_out(t->h2, side, &e->out, FULL))
		t->reason = "HTTP/2 session failed";
	return buf_len(&e->out) != before;
}

static bool h2_step(struct intercept *t)
{
	bool went;

	if (t->guest.state == SIDE_HANDSHAKE || t->ending)
		return false;
	went = h2_feed(t, H2_GUEST, &t->guest) | h2_feed(t, H2_UP, &t->up);
	if (t->up.state == SIDE_OPEN)
		went |= h2_pull(t, H2_UP, &t->up);
	went |= h2_pull(t, H2_GUEST, &t->guest);
	if (h2_done(t->h2))
		t->ending = true;
	if (t->guest.state == SIDE_EOF)
		wipe(&t->guest.out); /* it listens no more than it speaks */
	return went;
}

/* --- moving bytes -------------------------------------------------------------------------------------------- */

static void up_handshake_failed(struct intercept *t)
{
	long verify = SSL_get_verify_result(t->up.ssl);

	t->up_failed = verify != X509_V_OK ? X509_verify_cert_error_string(verify) : "no TLS with the upstream";
	t->up.state = SIDE_EOF;
}

/* Upstream has said what it speaks: the guest gets the same. */
static void choose(struct intercept *t)
{
	bool h2 = t->up_failed ? t->alpn.h2 && !t->alpn.h1 : tls_is_h2(t->up.ssl);

	t->alpn.choose = h2 ? ALPN_H2 : ALPN_H1;
	if (h2)
		h2_start(t);
	else if (t->alpn.any && !t->alpn.h1)
		t->reason = "the guest speaks nothing that the upstream does";
}

/* The guest's ClientHello, then all of upstream's handshake, then the rest of the guest's: it is answered once it is known what
 * to say. */
static bool handshake(struct intercept *t, struct end *e)
{
	enum tls_step step;

	if (e->state != SIDE_HANDSHAKE || (e == &t->up ? !t->alpn.seen : t->alpn.seen && t->up.state == SIDE_HANDSHAKE))
		return false;
	step = tls_handshake(e->ssl);
	e->wants_write = step == TLS_WRITE;
	if (step == TLS_READ || step == TLS_WRITE)
		return false;
	if (step == TLS_HELLO) {
		if (!tls_offer(t->up.ssl, &t->alpn))
			t->reason = "out of memory";
		return true;
	}
	if (step == TLS_DONE)
		e->state = SIDE_OPEN;
	else if (e == &t->up)
		up_handshake_failed(t);
	else
		t->reason = "the guest ended the TLS handshake";
	if (e == &t->up)
		choose(t);
	return true;
}

static bool fill(struct intercept *t, struct end *e, uint64_t *count)
{
	bool over;
	size_t n;
	enum tls_step step;

	if (e->state != SIDE_OPEN || buf_len(&e->in) > EGRESS_TLS_BUFFER - EGRESS_TLS_PIECE)
		return false;
	n = conn_may_read(t->c, EGRESS_TLS_PIECE, &over);
	if (!n) {
		t->over = over;
		t->reason = over ? CONN_OVER : t->reason;
		return false;
	}
	step = tls_fill(e->ssl, &e->in, n, &n);
	*count += n;
	meter_take(&t->c->sb->meter, n);
	if (n)
		t->c->active_ms = conn_now(t->c);
	if (step == TLS_EOF)
		e->state = SIDE_EOF;
	else if (step == TLS_BROKEN)
		t->reason = "connection reset";
	return step == TLS_DONE || step == TLS_EOF;
}

static bool drain(struct intercept *t, struct end *e)
{
	size_t n;
	enum tls_step step;

	if (e->state == SIDE_HANDSHAKE || !buf_len(&e->out))
		return false;
	step = tls_drain(e->ssl, &e->out, &n);
	e->wants_write = step == TLS_WRITE;
	if (step == TLS_BROKEN)
		t->reason = "connection reset";
	if (!buf_len(&e->out))
		wipe(&e->out);
	return step == TLS_DONE;
}

/* An end of file where it matters. */
static void check_eof(struct intercept *t)
{
	if (t->ending || t->h2 || t->is_ws)
		return;
	if (t->guest.state == SIDE_EOF && !buf_len(&t->guest.in) && (!t->active || !t->request_done))
		t->ending = true;
	if (t->up.state != SIDE_EOF || t->up_failed || buf_len(&t->up.in))
		return;
	if (t->active && !(t->response_head_done && t->response_body.framing == HTTP_UNTIL_CLOSE))
		t->reason = "the upstream closed before its answer was complete";
	else if (!t->active)
		t->ending = true;
}

static void finish(struct intercept *t)
{
	struct conn *c = t->c;

	if (t->shut || buf_len(&t->guest.out) || t->guest.state == SIDE_HANDSHAKE)
		return;
	t->shut = true;
	SSL_shutdown(t->guest.ssl);
	shutdown(c->guest.fd, SHUT_WR);
	source_drop(&c->up.source);
	c->deadline_ms = conn_now(c) + EGRESS_LINGER_MS;
	loop_timer_set(c->timer, c->deadline_ms);
}

static void interest(struct intercept *t)
{
	struct conn *c = t->c;
	bool guest_in = t->guest.state == SIDE_HANDSHAKE || buf_len(&t->guest.in) <= EGRESS_TLS_BUFFER - EGRESS_TLS_PIECE;
	bool up_in = t->up.state == SIDE_HANDSHAKE || buf_len(&t->up.in) <= EGRESS_TLS_BUFFER - EGRESS_TLS_PIECE;

	/* A handshake costs no tokens. */
	up_in = up_in && (!c->waits || t->up.state == SIDE_HANDSHAKE);
	guest_in = guest_in && (!c->waits || t->guest.state == SIDE_HANDSHAKE);
	guest_in = t->shut || (guest_in && t->guest.state != SIDE_EOF && (t->up.state != SIDE_HANDSHAKE || !t->alpn.seen));
	if (t->up.state == SIDE_EOF)
		source_drop(&c->up.source);
	if (c->up.source)
		loop_fd_events(c->up.source, (up_in ? EPOLLIN : 0u) | (t->up.wants_write ? EPOLLOUT : 0u), NULL);
	loop_fd_events(c->guest.source, (guest_in ? EPOLLIN : 0u) | (t->guest.wants_write ? EPOLLOUT : 0u), NULL);
}

static bool step(struct intercept *t)
{
	struct conn *c = t->c;
	bool went = handshake(t, &t->up) | handshake(t, &t->guest);

	went |= fill(t, &t->guest, &c->out.bytes);
	went |= fill(t, &t->up, &c->in.bytes);
	if (t->h2) {
		went |= h2_step(t);
	} else if (t->is_ws) {
		went |= ws_step(t);
	} else {
		went |= request(t);
		went |= response(t);
	}
	went |= drain(t, &t->up);
	went |= drain(t, &t->guest);
	return went;
}

static void pump(struct intercept *t)
{
	struct conn *c = t->c;
	int rounds = 0;

	while (!t->reason && step(t) && ++rounds < ROUNDS)
		;
	if (!t->reason)
		check_eof(t);
	if (t->reason) {
		if (t->active)
			request_row(t, "error", t->reason);
		t->active = false;
		conn_end(c, t->over ? "deny" : "allow", t->reason, true);
		return;
	}
	if (t->ending)
		finish(t);
	t->again = rounds == ROUNDS;
	if (t->again)
		loop_timer_set(c->timer, conn_now(c));
	interest(t);
}

/* After the last byte: read and forget until the guest closes, or closing would reset what it has not read yet. */
static void linger(struct conn *c)
{
	uint8_t mem[4096];
	ssize_t n = recv(c->guest.fd, mem, sizeof(mem), 0);

	if (n == 0)
		conn_end(c, "allow", NULL, false);
	else if (n < 0)
		conn_end(c, "allow", NULL, true);
}

void intercept_event(struct conn *c, uint32_t events)
{
	struct intercept *t = c->tls;

	if (t->shut)
		linger(c);
	else if (events & EPOLLERR)
		conn_end(c, "allow", "connection reset", true);
	else
		pump(t);
}

void intercept_resume(struct conn *c)
{
	if (!c->tls->shut)
		pump(c->tls);
}

void intercept_timeout(struct conn *c)
{
	struct intercept *t = c->tls;
	bool handshakes = t->guest.state == SIDE_HANDSHAKE || t->up.state == SIDE_HANDSHAKE;

	if (t->again) {
		t->again = false;
		loop_timer_set(c->timer, c->deadline_ms);
		pump(t);
		return;
	}
	if (!t->shut && !handshakes && c->active_ms + EGRESS_TLS_IDLE_MS > conn_now(c)) {
		c->deadline_ms = c->active_ms + EGRESS_TLS_IDLE_MS;
		loop_timer_set(c->timer, c->deadline_ms);
		return;
	}
	conn_end(c, "allow", t->shut ? NULL : handshakes ? "the TLS handshake took too long" : "idle", true);
}

void intercept_start(struct conn *c)
{
	struct intercept *t = calloc(1, sizeof(*t));
	struct egress *eg = c->sb->eg;
	struct fault f;

	c->tls = t;
	c->protocol = "https";
	if (!t) {
		conn_end(c, "error", "out of memory", true);
		return;
	}
	t->c = c;
	t->guest.in.max = t->up.in.max = EGRESS_TLS_BUFFER + EGRESS_TLS_PIECE;
	t->guest.out.max = t->up.out.max = EGRESS_TLS_OUT;
	t->guest.ssl = tls_guest(eg->tls, c->guest.fd, &t->alpn);
	t->up.ssl = tls_up(eg->tls, c->up.fd, c->name);
	if (!t->guest.ssl || !t->up.ssl || ca_use(c->sb->ca, t->guest.ssl, c->name, &f)) {
		conn_end(c, "error", "no certificate could be made", true);
		return;
	}
	c->active_ms = conn_now(c);
	c->deadline_ms = c->active_ms + EGRESS_TLS_HANDSHAKE_MS;
	loop_timer_set(c->timer, c->deadline_ms);
	pump(t);
}
