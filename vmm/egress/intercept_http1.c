/* SPDX-License-Identifier: Apache-2.0 */
/* HTTP/1.1 on an intercepted connection: one request and its answer at a time; intercept.c has the theory. */
#include "vmm/egress/intercept_state.h"

#include "base/cleanup.h"
#include "vmm/egress/rewrite.h"

#include <stdio.h>
#include <string.h>

#define NOTE_STRANGE "a placeholder of a secret that is not bound to this host"
#define NOTE_OUTSIDE "a placeholder where its secret may not go"
#define NOTE_BODY "a placeholder in the body, where it is not replaced"

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
	snprintf(t->path, sizeof(t->path), "%.*s", (int)MIN_OF(path_n, (size_t)INTERCEPT_PATH_MAX - 1), h->target.at);
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
		intercept_row(t, "deny", r == HTTP_MORE ? "the head is too long" : why);
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
		intercept_row(t, status ? "deny" : "error", status ? why : t->up_failed);
		return true;
	}
	if (rewrite_request(&h, &j, t->set, &t->up.out, &report)) {
		answer(t, 431, "Bad Request", "the head is too long");
		intercept_row(t, "deny", "the head is too long");
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
		intercept_row(t, "deny", "malformed chunk");
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

bool intercept_http1_request(struct intercept *t)
{
	if (t->ending || buf_len(&t->up.out) >= INTERCEPT_FULL)
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
		intercept_row(t, "error", why);
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
	intercept_wipe(&clean);
	return rc;
}

static void response_done(struct intercept *t)
{
	if (t->redactor.found)
		t->note = "the answer held a secret; its placeholder was put back";
	redactor_end(&t->redactor);
	intercept_row(t, "allow", NULL);
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

bool intercept_http1_response(struct intercept *t)
{
	if (!t->active || t->ending || buf_len(&t->guest.out) >= INTERCEPT_FULL)
		return false;
	return t->response_head_done ? response_piece(t) : buf_len(&t->up.in) && response_head(t);
}
