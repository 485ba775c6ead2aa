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
 * Instead of intercept_http1.c, h2.c has the four buffers if both sides chose HTTP/2, and ws.c once an upstream has
 * switched to WebSocket. What is read is paid for at the sandbox's meter (fill()); without tokens a connection waits.
 */
#include "vmm/egress/intercept_state.h"

#include "base/cleanup.h"
#include "vmm/egress/ca.h"

#include <openssl/x509.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define ROUNDS 64       /* of pump() before others have their turn */
#define NOTE_MESSAGE "a placeholder in a message, where it is not replaced"

void intercept_wipe(struct buf *b)
{
	if (b->mem)
		OPENSSL_cleanse(b->mem, b->cap);
	buf_free(b);
}

void intercept_row(struct intercept *t, const char *decision, const char *reason)
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
	intercept_wipe(&t->guest.in);
	intercept_wipe(&t->guest.out);
	intercept_wipe(&t->up.in);
	intercept_wipe(&t->up.out);
	/* What was under way, and ended with the connection. */
	if (t->active)
		intercept_row(t, t->is_ws ? "allow" : "error", t->is_ws ? NULL : "the connection ended before the answer did");
	h2_free(t->h2);
	ws_end(&t->ws);
	redactor_end(&t->redactor);
	secrets_unref(t->set);
	free(t);
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
	rc = ws_from_guest(&t->ws, &t->guest.in, &t->up.out, INTERCEPT_FULL, &why);
	if (!rc && !why)
		rc = ws_from_up(&t->ws, &t->up.in, &t->guest.out, INTERCEPT_FULL, &why);
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
		intercept_row(t, why ? "deny" : "allow", NULL);
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

	if (h2_out(t->h2, side, &e->out, INTERCEPT_FULL))
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
		intercept_wipe(&t->guest.out); /* it listens no more than it speaks */
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
		t->reason = t->up_failed ? t->up_failed : "the guest speaks nothing that the upstream does";
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
	else if (!t->reason) /* it is told of ours by an alert, and that is no reason of its own */
		t->reason = "the guest ended the TLS handshake";
	if (e == &t->up)
		choose(t);
	return true;
}

/* What it holds. `room`: it may read again, and the TLS below may have the bytes already. */
static void count_held(struct intercept *t)
{
	t->room |= conn_holds(t->c, t->guest.in.cap + t->up.out.cap + (t->h2 ? h2_held(t->h2, H2_GUEST) : 0),
			      t->up.in.cap + t->guest.out.cap + (t->h2 ? h2_held(t->h2, H2_UP) : 0));
}

static bool fill(struct intercept *t, struct end *e, enum conn_way way, uint64_t *count)
{
	bool over;
	size_t n;
	enum tls_step step;

	if (e->state != SIDE_OPEN || buf_len(&e->in) > EGRESS_TLS_BUFFER - EGRESS_TLS_PIECE)
		return false;
	count_held(t);
	n = conn_may_read(t->c, way, EGRESS_TLS_PIECE, &over);
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
		intercept_wipe(&e->out);
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
	up_in = up_in && ((!c->waits && !c->full[WAY_IN]) || t->up.state == SIDE_HANDSHAKE);
	guest_in = guest_in && ((!c->waits && !c->full[WAY_OUT]) || t->guest.state == SIDE_HANDSHAKE);
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

	went |= fill(t, &t->guest, WAY_OUT, &c->out.bytes);
	went |= fill(t, &t->up, WAY_IN, &c->in.bytes);
	if (t->h2) {
		went |= h2_step(t);
	} else if (t->is_ws) {
		went |= ws_step(t);
	} else {
		went |= intercept_http1_request(t);
		went |= intercept_http1_response(t);
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
			intercept_row(t, "error", t->reason);
		t->active = false;
		conn_end(c, t->over ? "deny" : "allow", t->reason, true);
		return;
	}
	if (t->ending)
		finish(t);
	/* What holds nothing is given back. */
	if (!buf_len(&t->guest.in))
		intercept_wipe(&t->guest.in);
	if (!buf_len(&t->up.in))
		intercept_wipe(&t->up.in);
	count_held(t);
	t->again = t->room || rounds == ROUNDS;
	t->room = false;
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
