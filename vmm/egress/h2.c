/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory: two sessions of nghttp2, a server towards the guest and a client towards the upstream, and a stream here for each
 * request, which has an id in both. What a session understood (nghttp2 enforces RFC 9113's rules on messages) is judged,
 * changed and submitted to the other; no byte is copied through.
 *
 *   guest session -> request headers -> judge -> up session        data: flow.data, read by the other session when it may send
 *   guest session <- redact <- response headers, data, trailers <- up session
 *
 * Memory: a side's window is given back only when its bytes have gone to the other side, so what is held for a stream is
 * bounded by its window and for all of them by the connection's (limits.h); header blocks by EGRESS_HEAD_MAX, one at a time and
 * session. A value in an answer may be shorter than its placeholder: flow.data has a bound of its own.
 *
 * Attacks: each stream's authority must be the connection's host, so nothing is coalesced; CONNECT, plain and extended, is
 * refused; pushes are disabled; what is cheap to send and dear to handle (RST_STREAM, PING, SETTINGS, PRIORITY, empty DATA) is
 * counted; a peer that makes us queue answers and does not read them is not read either.
 */
#include "vmm/egress/h2.h"

#include "base/cleanup.h"
#include "vmm/egress/h2_fields.h"

#include <openssl/crypto.h>
#include <stdio.h>
#include <string.h>

#define PATH_ROW_MAX 256
#define FLOOD_WINDOW_MS 10000
#define GIVE_BACK_BELOW 32768 /* bytes waiting in a flow */

struct flow {
	struct buf data;
	size_t owed;       /* received and not given back to the window */
	bool eof, waits;   /* all is here; the reader found nothing and waits */
	struct block *trailers;
};

struct stream {
	struct h2 *h;
	struct stream *next, *prev;
	int32_t id[2];     /* H2_GUEST, H2_UP */
	bool open[2];
	struct flow request, response;
	bool answered;     /* the final response's headers are there, ours or the upstream's */
	bool ours, grpc, head, complete;
	struct secrets *set;
	struct redactor redactor;
	struct secret_watch watch;
	unsigned int status;
	char method[HTTP_METHOD_MAX], path[PATH_ROW_MAX], rule[POLICY_RULE_MAX], secret[POLICY_SECRET_NAME_MAX];
	char normal[JUDGE_PATH_MAX];
	bool has_normal;
	const char *decision, *note;
	uint64_t started_ms, bytes_out, bytes_in;
};

struct half {
	nghttp2_session *session;
	struct block block;      /* of the header block that is being received */
	uint64_t flood_ms;
	unsigned int flood;
	bool eof;
};

struct h2 {
	struct h2_hooks hooks;
	struct half half[2];
	struct stream *streams;
	size_t n_streams;
	bool ending; /* the guest was told to open no more streams */
	struct block scratch;
};

static struct half *half_of(struct h2 *h, const nghttp2_session *session)
{
	return session == h->half[H2_GUEST].session ? &h->half[H2_GUEST] : &h->half[H2_UP];
}

static enum h2_side side_of(const struct h2 *h, const nghttp2_session *session)
{
	return session == h->half[H2_GUEST].session ? H2_GUEST : H2_UP;
}

/* --- streams ------------------------------------------------------------------------------------------------- */

static void flow_end(struct flow *f)
{
	if (f->data.mem)
		OPENSSL_cleanse(f->data.mem, f->data.cap);
	buf_free(&f->data);
	if (f->trailers)
		block_free(f->trailers);
	free(f->trailers);
	f->trailers = NULL;
}

static struct stream *stream_new(struct h2 *h, int32_t id)
{
	struct stream *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->h = h;
	s->next = h->streams;
	if (s->next)
		s->next->prev = s;
	h->streams = s;
	h->n_streams++;
	s->id[H2_GUEST] = id;
	s->id[H2_UP] = -1;
	s->open[H2_GUEST] = true;
	s->request.data.max = s->response.data.max = EGRESS_H2_HELD_MAX;
	s->started_ms = h->hooks.now(h->hooks.arg);
	s->set = secrets_ref(h->hooks.secrets(h->hooks.arg));
	s->decision = "allow";
	return s;
}

/* Nobody will read it: its bytes count no more against the connection. */
static void forget(struct stream *s, struct flow *f, enum h2_side from)
{
	if (f->owed && s->id[from] > 0)
		nghttp2_session_consume(s->h->half[from].session, s->id[from], f->owed);
	f->owed = 0;
	flow_end(f);
}

static void stream_free(struct stream *s)
{
	struct h2 *h = s->h;
	struct h2_row row = { .method = s->method, .path = s->path, .rule = s->rule, .secret = s->secret, .status = s->status,
			      .decision = s->complete || s->decision[0] != 'a' ? s->decision : "error",
			      .reason = s->note ? s->note : s->complete ? NULL : "the stream was reset", .bytes_out = s->bytes_out,
			      .bytes_in = s->bytes_in, .started_ms = s->started_ms };

	h->hooks.row(h->hooks.arg, &row);
	if (s->prev)
		s->prev->next = s->next;
	else
		h->streams = s->next;
	if (s->next)
		s->next->prev = s->prev;
	h->n_streams--;
	forget(s, &s->request, H2_GUEST);
	forget(s, &s->response, H2_UP);
	redactor_end(&s->redactor);
	secrets_unref(s->set);
	free(s);
}

static void reset(struct stream *s, enum h2_side side, uint32_t code)
{
	if (s->open[side])
		nghttp2_submit_rst_stream(s->h->half[side].session, NGHTTP2_FLAG_NONE, s->id[side], code);
}

/* Our own doing: both sides end. */
static void stream_abort(struct stream *s, const char *note)
{
	s->note = note;
	s->decision = "error";
	reset(s, H2_GUEST, NGHTTP2_INTERNAL_ERROR);
	reset(s, H2_UP, NGHTTP2_CANCEL);
}

/* What was read of `from` may come again. */
static void give_back(struct stream *s, struct flow *f, enum h2_side from)
{
	if (!f->owed || buf_len(&f->data) > GIVE_BACK_BELOW)
		return;
	if (s->id[from] > 0)
		nghttp2_session_consume(s->h->half[from].session, s->id[from], f->owed);
	f->owed = 0;
}

static void wake(struct stream *s, struct flow *f, enum h2_side to)
{
	if (!f->waits || !s->open[to])
		return;
	f->waits = false;
	nghttp2_session_resume_data(s->h->half[to].session, s->id[to]);
}

static ssize_t flow_read(struct stream *s, struct flow *f, enum h2_side to, uint8_t *mem, size_t max, uint32_t *flags)
{
	size_t n = MIN_OF(buf_len(&f->data), max);
	nghttp2_nv nv[HTTP_HEADERS_MAX];

	if (!n && !f->eof) {
		f->waits = true;
		return NGHTTP2_ERR_DEFERRED;
	}
	if (n)
		memcpy(mem, buf_data(&f->data), n);
	buf_consume(&f->data, n);
	if (!s->ours)
		give_back(s, f, to == H2_UP ? H2_GUEST : H2_UP);
	if (buf_len(&f->data) || !f->eof)
		return (ssize_t)n;
	*flags |= NGHTTP2_DATA_FLAG_EOF;
	if (f->trailers) {
		*flags |= NGHTTP2_DATA_FLAG_NO_END_STREAM;
		if (nghttp2_submit_trailer(s->h->half[to].session, s->id[to], nv, block_nv(f->trailers, nv)))
			return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
	}
	return (ssize_t)n;
}

static ssize_t read_request(nghttp2_session *session, int32_t id, uint8_t *mem, size_t max, uint32_t *flags,
			    nghttp2_data_source *source, void *arg)
{
	struct stream *s = source->ptr;

	(void)session;
	(void)id;
	(void)arg;
	return flow_read(s, &s->request, H2_UP, mem, max, flags);
}

static ssize_t read_response(nghttp2_session *session, int32_t id, uint8_t *mem, size_t max, uint32_t *flags,
			     nghttp2_data_source *source, void *arg)
{
	struct stream *s = source->ptr;

	(void)session;
	(void)id;
	(void)arg;
	return flow_read(s, &s->response, H2_GUEST, mem, max, flags);
}

/* No new requests; what is under way may end. */
static void up_goes_away(struct h2 *h)
{
	nghttp2_session *guest = h->half[H2_GUEST].session;

	if (!h->ending)
		nghttp2_submit_goaway(guest, NGHTTP2_FLAG_NONE, nghttp2_session_get_last_proc_stream_id(guest), NGHTTP2_NO_ERROR, NULL, 0);
	h->ending = true;
}

/* --- requests ------------------------------------------------------------------------------------------------ */

/* An answer of our own; the rest of the request is read and dropped. */
static int answer(struct stream *s, unsigned int status, const char *decision, const char *why)
{
	char code[12], length[16], body[512];
	int n = snprintf(body, sizeof(body), "nestbox: the request to %s was not passed on: %s\n", s->h->hooks.host, why);
	nghttp2_data_provider provider = { .source.ptr = s, .read_callback = read_response };
	struct block *out = &s->h->scratch;
	nghttp2_nv nv[HTTP_HEADERS_MAX];
	bool ok;

	snprintf(code, sizeof(code), "%03u", status);
	snprintf(length, sizeof(length), "%d", n);
	s->answered = s->ours = true;
	s->status = status;
	s->decision = decision;
	s->note = why;
	block_clear(out);
	ok = block_add(out, ":status", 7, code, 3) && block_add(out, "content-type", 12, "text/plain", 10) &&
	     block_add(out, "content-length", 14, length, strlen(length)) && block_add(out, "x-nestbox-egress", 16, "denied", 6);
	forget(s, &s->response, H2_UP);
	if (!s->head)
		ok = ok && !buf_put(&s->response.data, body, (size_t)n);
	s->response.eof = true;
	ok = ok && !nghttp2_submit_response(s->h->half[H2_GUEST].session, s->id[H2_GUEST], nv, block_nv(out, nv),
					    s->head ? NULL : &provider);
	block_clear(out);
	return ok ? 0 : NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
}

static void note_report(struct stream *s, const struct secret_report *report)
{
	if (report->used)
		snprintf(s->secret, sizeof(s->secret), "%s", report->used);
	if (report->strange)
		s->note = "a placeholder of a secret that is not bound to this host";
	else if (report->outside)
		s->note = "a placeholder where its secret may not go";
}

static bool plain_text(const struct http_text *t)
{
	for (size_t i = 0; i < t->n; i++)
		if ((unsigned char)t->at[i] <= 0x20 || (unsigned char)t->at[i] == 0x7f)
			return false;
	return true;
}

/* Authority and target; or why not. */
static const char *request_parts(const struct block *in, struct stream *s, struct http_text *authority, struct http_text *target)
{
	struct http_text method, scheme, host;
	int found = block_find(in, ":authority", authority), hosts = block_find(in, "host", &host);

	if (block_find(in, ":method", &method) != 1 || method.n >= sizeof(s->method))
		return "malformed method";
	memcpy(s->method, method.at, method.n);
	s->method[method.n] = '\0';
	s->head = !strcmp(s->method, "HEAD");
	if (block_find(in, ":path", target) == 1) {
		const char *query = memchr(target->at, '?', target->n);
		size_t n = query ? (size_t)(query - target->at) : target->n;

		snprintf(s->path, sizeof(s->path), "%.*s", (int)MIN_OF(n, sizeof(s->path) - 1), target->at);
	} else if (strcmp(s->method, "CONNECT") != 0) {
		return "malformed path";
	}
	if (!plain_text(target))
		return "malformed path";
	if (block_find(in, ":scheme", &scheme) == 1 ? !http_is(&scheme, "https") : strcmp(s->method, "CONNECT") != 0)
		return "the scheme is not https";
	if (hosts < 0 || (found != 1 && hosts != 1))
		return "not exactly one authority";
	if (found != 1)
		*authority = host;
	else if (hosts && (host.n != authority->n || strncasecmp(host.at, authority->at, host.n) != 0))
		return "host is not the authority";
	return NULL;
}

static int request_submit(struct stream *s, const struct block *in, struct judged *j, const struct http_text *target, bool end)
{
	nghttp2_data_provider provider = { .source.ptr = s, .read_callback = read_request };
	struct half *up = &s->h->half[H2_UP];
	struct block *out = &s->h->scratch;
	struct secret_report report = { 0 };
	nghttp2_nv nv[HTTP_HEADERS_MAX];
	enum rc rc;

	block_clear(out);
	rc = fields_request(in, j, target, s->set, out, &report);
	if (rc) {
		block_clear(out);
		return answer(s, 431, "deny", "the head is too long");
	}
	note_report(s, &report);
	s->request.eof = end;
	s->id[H2_UP] = nghttp2_submit_request(up->session, NULL, nv, block_nv(out, nv), end ? NULL : &provider, s);
	block_clear(out);
	if (s->id[H2_UP] < 0)
		return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
	s->open[H2_UP] = true;
	return 0;
}

static int request_head(struct h2 *h, const struct block *in, int32_t id, bool end)
{
	struct http_text authority = { "", 0 }, target = { "", 0 };
	struct judged *j = NULL;
	struct stream *s = stream_new(h, id);
	const char *why;
	int status = 0, rv;

	if (!s || nghttp2_session_set_stream_user_data(h->half[H2_GUEST].session, id, s)) {
		if (s)
			stream_free(s);
		return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
	}
	if (in->over)
		return answer(s, 431, "deny", "the head is too long");
	why = request_parts(in, s, &authority, &target);
	if (why)
		return answer(s, 400, "deny", why);
	j = calloc(1, sizeof(*j));
	if (!j)
		return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
	status = judge_request(h->hooks.policy(h->hooks.arg), h->hooks.host, h->hooks.port, s->method, &authority, &target, j, &why);
	snprintf(s->rule, sizeof(s->rule), "%s", j->verdict.rule);
	if (status) {
		/* j's own text goes with it. */
		rv = answer(s, (unsigned int)status, "deny", why == j->verdict.rule ? s->rule : why);
	} else if (h->hooks.up_failed) {
		rv = answer(s, 502, "error", h->hooks.up_failed);
		up_goes_away(h);
	} else if (h->half[H2_UP].eof || !nghttp2_session_check_request_allowed(h->half[H2_UP].session)) {
		s->note = "the upstream takes no more requests";
		reset(s, H2_GUEST, NGHTTP2_REFUSED_STREAM);
		rv = 0;
	} else {
		s->has_normal = j->normal;
		memcpy(s->normal, j->path, j->normal ? strlen(j->path) + 1 : 0);
		rv = request_submit(s, in, j, &target, end);
	}
	free(j);
	return rv;
}

static int request_trailers(struct stream *s, const struct block *in)
{
	struct secret_place at = { .host = s->h->hooks.host, .port = s->h->hooks.port, .method = s->method,
				   .path = s->has_normal ? s->normal : NULL };
	struct secret_report report = { 0 };
	bool found = false;

	if (!s->open[H2_UP])
		return 0;
	s->request.trailers = calloc(1, sizeof(*s->request.trailers));
	if (s->request.trailers)
		block_init(s->request.trailers);
	if (!s->request.trailers || in->over || fields_trailers(in, s->set, &at, s->request.trailers, &report, &found)) {
		stream_abort(s, "trailers are too long");
		return 0;
	}
	note_report(s, &report);
	s->request.eof = true;
	wake(s, &s->request, H2_UP);
	return 0;
}

static void request_data(struct stream *s, const uint8_t *data, size_t n)
{
	s->bytes_out += n;
	if (secrets_watch(s->set, &s->watch, data, n))
		s->note = "a placeholder in the body, where it is not replaced";
	/* Nobody reads it any more: what was asked is answered, or the upstream has ended it. */
	if (!s->open[H2_UP]) {
		nghttp2_session_consume(s->h->half[H2_GUEST].session, s->id[H2_GUEST], n);
		return;
	}
	s->request.owed += n;
	if (buf_put(&s->request.data, data, n))
		stream_abort(s, "out of memory");
	else
		wake(s, &s->request, H2_UP);
}

/* --- responses ----------------------------------------------------------------------------------------------- */

#define NOTE_FOUND "the answer held a secret; its placeholder was put back"

static unsigned int status_of(const struct block *in)
{
	struct http_text t;
	unsigned int v = 0;

	if (block_find(in, ":status", &t) != 1 || t.n != 3)
		return 0;
	for (size_t i = 0; i < 3; i++)
		v = v * 10 + (unsigned int)(t.at[i] - '0');
	return v;
}

static void response_head(struct stream *s, const struct block *in, bool end)
{
	nghttp2_session *guest = s->h->half[H2_GUEST].session;
	nghttp2_data_provider provider = { .source.ptr = s, .read_callback = read_response };
	unsigned int status = status_of(in);
	bool no_body = end || s->head || status == 204 || status == 304, found = false;
	struct block *out = &s->h->scratch;
	nghttp2_nv nv[HTTP_HEADERS_MAX];
	const char *why = in->over || !status ? "the upstream's answer has a head that is too long" : NULL;
	struct http_text type;
	int rv;

	if (!why && !no_body && s->set)
		why = fields_unsearchable(in);
	block_clear(out);
	if (!why && fields_response(in, s->set, no_body || status < 200, out, &found))
		why = "the upstream's answer has a head that is too long";
	if (why) {
		reset(s, H2_UP, NGHTTP2_CANCEL);
		if (answer(s, 502, "error", why))
			stream_abort(s, "out of memory");
		return;
	}
	if (found)
		s->note = NOTE_FOUND;
	if (status < 200) {
		rv = nghttp2_submit_headers(guest, NGHTTP2_FLAG_NONE, s->id[H2_GUEST], NULL, nv, block_nv(out, nv), NULL);
	} else {
		s->answered = true;
		s->status = status;
		s->grpc = block_find(in, "content-type", &type) == 1 && type.n >= 16 && !strncasecmp(type.at, "application/grpc", 16);
		s->response.eof = end;
		redactor_start(&s->redactor, s->set);
		rv = nghttp2_submit_response(guest, s->id[H2_GUEST], nv, block_nv(out, nv), end ? NULL : &provider);
	}
	block_clear(out);
	if (rv)
		stream_abort(s, "out of memory");
}

/* What the redactor lets through, or with `last` all that it holds. */
static bool response_pass(struct stream *s, const uint8_t *data, size_t n, bool last)
{
	if (redactor_run(&s->redactor, data, n, last, &s->response.data)) {
		stream_abort(s, "the answer holds more placeholders than are kept");
		return false;
	}
	if (!s->redactor.found)
		return true;
	/* Messages inside say their own length, which a placeholder would not have. */
	if (s->grpc) {
		stream_abort(s, "the answer held a secret and was refused");
		return false;
	}
	s->note = NOTE_FOUND;
	return true;
}

static void response_end(struct stream *s)
{
	if (!response_pass(s, NULL, 0, true))
		return;
	s->response.eof = true;
	give_back(s, &s->response, H2_UP);
	wake(s, &s->response, H2_GUEST);
}

static void response_trailers(struct stream *s, const struct block *in)
{
	struct secret_report report = { 0 };
	bool found = false;

	s->response.trailers = calloc(1, sizeof(*s->response.trailers));
	if (s->response.trailers)
		block_init(s->response.trailers);
	if (!s->response.trailers || in->over || fields_trailers(in, s->set, NULL, s->response.trailers, &report, &found)) {
		stream_abort(s, "trailers are too long");
		return;
	}
	if (found)
		s->note = NOTE_FOUND;
	response_end(s);
}

static void response_data(struct stream *s, const uint8_t *data, size_t n)
{
	s->bytes_in += n;
	s->response.owed += n;
	if (s->ours || !s->open[H2_GUEST]) {
		nghttp2_session_consume(s->h->half[H2_UP].session, s->id[H2_UP], n);
		s->response.owed -= n;
		return;
	}
	if (!response_pass(s, data, n, false))
		return;
	give_back(s, &s->response, H2_UP);
	wake(s, &s->response, H2_GUEST);
}

/* --- nghttp2's callbacks ------------------------------------------------------------------------------------- */

static int on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *arg)
{
	(void)frame;
	block_clear(&half_of(arg, session)->block);
	return 0;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_n,
		     const uint8_t *value, size_t value_n, uint8_t flags, void *arg)
{
	(void)frame;
	(void)flags;
	block_add(&half_of(arg, session)->block, name, name_n, value, value_n);
	return 0;
}

/* Left out by default: a request is not to be passed on without a header that its sender took for sent. */
static int on_invalid_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_n,
			     const uint8_t *value, size_t value_n, uint8_t flags, void *arg)
{
	(void)session;
	(void)frame;
	(void)name;
	(void)name_n;
	(void)value;
	(void)value_n;
	(void)flags;
	(void)arg;
	return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
}

static void flooded(struct h2 *h, struct half *half)
{
	uint64_t now = h->hooks.now(h->hooks.arg);

	if (now - half->flood_ms > FLOOD_WINDOW_MS) {
		half->flood_ms = now;
		half->flood = 0;
	}
	if (++half->flood == EGRESS_H2_CONTROL_MAX)
		nghttp2_session_terminate_session(half->session, NGHTTP2_ENHANCE_YOUR_CALM);
}

static int guest_frame(struct h2 *h, const nghttp2_frame *frame, struct stream *s)
{
	const struct block *in = &h->half[H2_GUEST].block;
	bool end = frame->hd.flags & NGHTTP2_FLAG_END_STREAM;

	if (frame->hd.type == NGHTTP2_HEADERS)
		return frame->headers.cat == NGHTTP2_HCAT_REQUEST ? request_head(h, in, frame->hd.stream_id, end) :
		       s					  ? request_trailers(s, in) : 0;
	if (frame->hd.type == NGHTTP2_DATA && end && s) {
		s->request.eof = true;
		wake(s, &s->request, H2_UP);
	}
	return 0;
}

static int up_frame(struct h2 *h, const nghttp2_frame *frame, struct stream *s)
{
	const struct block *in = &h->half[H2_UP].block;
	bool end = frame->hd.flags & NGHTTP2_FLAG_END_STREAM;

	if (frame->hd.type == NGHTTP2_GOAWAY)
		up_goes_away(h);
	if (!s || s->ours || !s->open[H2_GUEST])
		return 0;
	if (frame->hd.type == NGHTTP2_HEADERS && !s->answered)
		response_head(s, in, end);
	else if (frame->hd.type == NGHTTP2_HEADERS)
		response_trailers(s, in);
	else if (frame->hd.type == NGHTTP2_DATA && end)
		response_end(s);
	return 0;
}

static int on_frame_recv(nghttp2_session *session, const nghttp2_frame *frame, void *arg)
{
	struct h2 *h = arg;
	enum h2_side side = side_of(h, session);
	struct stream *s = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);

	switch (frame->hd.type) {
	case NGHTTP2_RST_STREAM:
	case NGHTTP2_PING:
	case NGHTTP2_SETTINGS:
	case NGHTTP2_PRIORITY: flooded(h, &h->half[side]); break;
	case NGHTTP2_DATA:
		if (!frame->hd.length && !(frame->hd.flags & NGHTTP2_FLAG_END_STREAM))
			flooded(h, &h->half[side]);
		break;
	default: break;
	}
	return side == H2_GUEST ? guest_frame(h, frame, s) : up_frame(h, frame, s);
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *data, size_t n, void *arg)
{
	struct stream *s = nghttp2_session_get_stream_user_data(session, id);

	(void)flags;
	if (!s)
		nghttp2_session_consume(session, id, n);
	else if (side_of(arg, session) == H2_GUEST)
		request_data(s, data, n);
	else
		response_data(s, data, n);
	return 0;
}

/* The response is out and nobody reads the rest of the request: the guest need not send it (RFC 9113 8.1). */
static int on_frame_send(nghttp2_session *session, const nghttp2_frame *frame, void *arg)
{
	struct h2 *h = arg;
	struct stream *s = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);

	if (side_of(h, session) != H2_GUEST || !s || (frame->hd.type != NGHTTP2_DATA && frame->hd.type != NGHTTP2_HEADERS) ||
	    !(frame->hd.flags & NGHTTP2_FLAG_END_STREAM))
		return 0;
	s->complete = true;
	if (!s->request.eof && !s->open[H2_UP])
		reset(s, H2_GUEST, NGHTTP2_NO_ERROR);
	return 0;
}

static void up_closed(struct stream *s, uint32_t code)
{
	s->open[H2_UP] = false;
	forget(s, &s->request, H2_GUEST);
	/* What came is passed on; what did not come to its end is ended as it was. */
	if (s->ours || s->response.eof || !s->open[H2_GUEST]) {
		if (s->complete && s->open[H2_GUEST] && !s->request.eof)
			reset(s, H2_GUEST, NGHTTP2_NO_ERROR);
		return;
	}
	s->note = s->note ? s->note : "the upstream reset the stream";
	reset(s, H2_GUEST, code == NGHTTP2_NO_ERROR ? NGHTTP2_INTERNAL_ERROR : code);
}

static int on_stream_close(nghttp2_session *session, int32_t id, uint32_t code, void *arg)
{
	struct stream *s = nghttp2_session_get_stream_user_data(session, id);
	enum h2_side side = side_of(arg, session);

	if (!s)
		return 0;
	if (side == H2_UP) {
		up_closed(s, code);
	} else {
		s->open[H2_GUEST] = false;
		forget(s, &s->response, H2_UP);
		reset(s, H2_UP, NGHTTP2_CANCEL);
	}
	if (!s->open[H2_GUEST] && !s->open[H2_UP])
		stream_free(s);
	return 0;
}

/* A request that waited for its turn, until it could not be sent any more. */
static int on_frame_not_send(nghttp2_session *session, const nghttp2_frame *frame, int error, void *arg)
{
	struct h2 *h = arg;

	(void)error;
	if (side_of(h, session) != H2_UP || frame->hd.type != NGHTTP2_HEADERS || frame->headers.cat != NGHTTP2_HCAT_REQUEST)
		return 0;
	for (struct stream *s = h->streams; s; s = s->next)
		if (s->open[H2_UP] && s->id[H2_UP] == frame->hd.stream_id) {
			nghttp2_session_set_stream_user_data(session, s->id[H2_UP], NULL);
			up_closed(s, NGHTTP2_REFUSED_STREAM);
			if (!s->open[H2_GUEST])
				stream_free(s);
			break;
		}
	return 0;
}

/* --- the whole ----------------------------------------------------------------------------------------------- */

static bool session_new(struct h2 *h, enum h2_side side, nghttp2_session_callbacks *cb, nghttp2_option *option)
{
	const nghttp2_settings_entry settings[] = {
		{ NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, EGRESS_H2_STREAM_WINDOW },
		{ NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, EGRESS_HEAD_MAX },
		{ NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, EGRESS_H2_STREAMS_MAX },
		{ NGHTTP2_SETTINGS_ENABLE_PUSH, 0 }, /* only a client says so */
	};
	size_t n = ARRAY_SIZE(settings) - (side == H2_GUEST);
	struct half *half = &h->half[side];
	int rv = side == H2_GUEST ? nghttp2_session_server_new2(&half->session, cb, h, option)
				  : nghttp2_session_client_new2(&half->session, cb, h, option);

	block_init(&half->block);
	return !rv && !nghttp2_submit_settings(half->session, NGHTTP2_FLAG_NONE, settings, n) &&
	       !nghttp2_session_set_local_window_size(half->session, NGHTTP2_FLAG_NONE, 0, EGRESS_H2_WINDOW);
}

enum rc h2_new(const struct h2_hooks *hooks, struct h2 **ret)
{
	struct h2 *h = calloc(1, sizeof(*h));
	nghttp2_session_callbacks *cb = NULL;
	nghttp2_option *option = NULL;
	bool ok = h && !nghttp2_session_callbacks_new(&cb) && !nghttp2_option_new(&option);

	if (ok) {
		h->hooks = *hooks;
		block_init(&h->scratch);
		nghttp2_option_set_no_auto_window_update(option, 1);
		nghttp2_option_set_peer_max_concurrent_streams(option, EGRESS_H2_STREAMS_MAX);
		nghttp2_session_callbacks_set_on_begin_headers_callback(cb, on_begin_headers);
		nghttp2_session_callbacks_set_on_header_callback(cb, on_header);
		nghttp2_session_callbacks_set_on_invalid_header_callback(cb, on_invalid_header);
		nghttp2_session_callbacks_set_on_frame_recv_callback(cb, on_frame_recv);
		nghttp2_session_callbacks_set_on_data_chunk_recv_callback(cb, on_data);
		nghttp2_session_callbacks_set_on_frame_send_callback(cb, on_frame_send);
		nghttp2_session_callbacks_set_on_frame_not_send_callback(cb, on_frame_not_send);
		nghttp2_session_callbacks_set_on_stream_close_callback(cb, on_stream_close);
		ok = session_new(h, H2_GUEST, cb, option) && session_new(h, H2_UP, cb, option);
	}
	nghttp2_session_callbacks_del(cb);
	nghttp2_option_del(option);
	if (!ok) {
		h2_free(h);
		return RC_NOMEM;
	}
	*ret = h;
	return RC_OK;
}

void h2_free(struct h2 *h)
{
	if (!h)
		return;
	while (h->streams)
		stream_free(h->streams);
	for (int i = 0; i < 2; i++) {
		nghttp2_session_del(h->half[i].session);
		block_free(&h->half[i].block);
	}
	block_free(&h->scratch);
	free(h);
}

bool h2_takes(const struct h2 *h, enum h2_side side)
{
	return !h->half[side].eof && nghttp2_session_get_outbound_queue_size(h->half[H2_GUEST].session) < EGRESS_H2_QUEUE_MAX &&
	       nghttp2_session_get_outbound_queue_size(h->half[H2_UP].session) < EGRESS_H2_QUEUE_MAX;
}

enum rc h2_in(struct h2 *h, enum h2_side side, const uint8_t *data, size_t n)
{
	ssize_t k = h->half[side].eof ? (ssize_t)n : nghttp2_session_mem_recv(h->half[side].session, data, n);

	return k < 0 ? RC_PROTO : RC_OK;
}

enum rc h2_out(struct h2 *h, enum h2_side side, struct buf *out, size_t full)
{
	while (buf_len(out) < full && !h->half[side].eof) {
		const uint8_t *data;
		ssize_t n = nghttp2_session_mem_send(h->half[side].session, &data);

		if (n < 0)
			return RC_PROTO;
		if (!n)
			break;
		if (buf_put(out, data, (size_t)n))
			return RC_NOMEM;
	}
	if (side == H2_UP && !h->half[side].eof && !nghttp2_session_want_read(h->half[side].session) &&
	    !nghttp2_session_want_write(h->half[side].session))
		h2_eof(h, side);
	return RC_OK;
}

void h2_eof(struct h2 *h, enum h2_side side)
{
	struct stream *next;

	if (h->half[side].eof)
		return;
	h->half[side].eof = true;
	if (side == H2_UP)
		up_goes_away(h);
	for (struct stream *s = h->streams; s; s = next) {
		next = s->next;
		if (side == H2_GUEST) {
			s->open[H2_GUEST] = false;
			reset(s, H2_UP, NGHTTP2_CANCEL);
		} else if (s->open[H2_UP]) {
			up_closed(s, NGHTTP2_INTERNAL_ERROR);
		}
		if (!s->open[H2_GUEST] && !s->open[H2_UP])
			stream_free(s);
	}
}

bool h2_done(const struct h2 *h)
{
	const struct half *guest = &h->half[H2_GUEST];

	if (guest->eof)
		return true;
	if (!nghttp2_session_want_read(guest->session) && !nghttp2_session_want_write(guest->session))
		return true;
	/* The upstream is gone and everything that it said was passed on. */
	return h->ending && !h->streams && !nghttp2_session_want_write(guest->session);
}
