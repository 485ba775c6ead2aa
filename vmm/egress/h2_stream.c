/* SPDX-License-Identifier: Apache-2.0 */
/* One request of an HTTP/2 connection, and its answer; h2.c has the theory. */
#include "vmm/egress/h2_stream.h"

#include "base/cleanup.h"

#include <openssl/crypto.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#define GIVE_BACK_BELOW 32768 /* bytes waiting in a flow */

/* --- streams ------------------------------------------------------------------------------------------------- */

static void flow_end(struct h2_flow *f)
{
	if (f->data.mem)
		OPENSSL_cleanse(f->data.mem, f->data.cap);
	buf_free(&f->data);
	if (f->trailers)
		block_free(f->trailers);
	free(f->trailers);
	f->trailers = NULL;
}

static struct h2_stream *stream_new(struct h2 *h, int32_t id)
{
	struct h2_stream *s = calloc(1, sizeof(*s));

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
static void forget(struct h2_stream *s, struct h2_flow *f, enum h2_side from)
{
	if (f->owed && s->id[from] > 0)
		nghttp2_session_consume(s->h->half[from].session, s->id[from], f->owed);
	f->owed = 0;
	flow_end(f);
}

void h2_stream_free(struct h2_stream *s)
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

void h2_reset(struct h2_stream *s, enum h2_side side, uint32_t code)
{
	if (s->open[side])
		nghttp2_submit_rst_stream(s->h->half[side].session, NGHTTP2_FLAG_NONE, s->id[side], code);
}

/* Our own doing: both sides end. */
static void stream_abort(struct h2_stream *s, const char *note)
{
	s->note = note;
	s->decision = "error";
	h2_reset(s, H2_GUEST, NGHTTP2_INTERNAL_ERROR);
	h2_reset(s, H2_UP, NGHTTP2_CANCEL);
}

/* What was read of `from` may come again. */
static void give_back(struct h2_stream *s, struct h2_flow *f, enum h2_side from)
{
	if (!f->owed || buf_len(&f->data) > GIVE_BACK_BELOW)
		return;
	if (s->id[from] > 0)
		nghttp2_session_consume(s->h->half[from].session, s->id[from], f->owed);
	f->owed = 0;
}

static void wake(struct h2_stream *s, struct h2_flow *f, enum h2_side to)
{
	if (!f->waits || !s->open[to])
		return;
	f->waits = false;
	nghttp2_session_resume_data(s->h->half[to].session, s->id[to]);
}

static ssize_t flow_read(struct h2_stream *s, struct h2_flow *f, enum h2_side to, uint8_t *mem, size_t max, uint32_t *flags)
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
	struct h2_stream *s = source->ptr;

	(void)session;
	(void)id;
	(void)arg;
	return flow_read(s, &s->request, H2_UP, mem, max, flags);
}

static ssize_t read_response(nghttp2_session *session, int32_t id, uint8_t *mem, size_t max, uint32_t *flags,
			     nghttp2_data_source *source, void *arg)
{
	struct h2_stream *s = source->ptr;

	(void)session;
	(void)id;
	(void)arg;
	return flow_read(s, &s->response, H2_GUEST, mem, max, flags);
}

/* No new requests; what is under way may end. */
void h2_up_goes_away(struct h2 *h)
{
	nghttp2_session *guest = h->half[H2_GUEST].session;

	if (!h->ending)
		nghttp2_submit_goaway(guest, NGHTTP2_FLAG_NONE, nghttp2_session_get_last_proc_stream_id(guest), NGHTTP2_NO_ERROR, NULL, 0);
	h->ending = true;
}

/* --- requests ------------------------------------------------------------------------------------------------ */

/* An answer of our own; the rest of the request is read and dropped. */
static int answer(struct h2_stream *s, unsigned int status, const char *decision, const char *why)
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

static void note_report(struct h2_stream *s, const struct secret_report *report)
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
static const char *request_parts(const struct block *in, struct h2_stream *s, struct http_text *authority, struct http_text *target)
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

static int request_submit(struct h2_stream *s, const struct block *in, struct judged *j, const struct http_text *target, bool end)
{
	nghttp2_data_provider provider = { .source.ptr = s, .read_callback = read_request };
	struct h2_half *up = &s->h->half[H2_UP];
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

int h2_request_head(struct h2 *h, const struct block *in, int32_t id, bool end)
{
	struct http_text authority = { "", 0 }, target = { "", 0 };
	struct judged *j = NULL;
	struct h2_stream *s = stream_new(h, id);
	const char *why;
	int status = 0, rv;

	if (!s || nghttp2_session_set_stream_user_data(h->half[H2_GUEST].session, id, s)) {
		if (s)
			h2_stream_free(s);
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
		h2_up_goes_away(h);
	} else if (h->half[H2_UP].eof || !nghttp2_session_check_request_allowed(h->half[H2_UP].session)) {
		s->note = "the upstream takes no more requests";
		h2_reset(s, H2_GUEST, NGHTTP2_REFUSED_STREAM);
		rv = 0;
	} else {
		s->has_normal = j->normal;
		memcpy(s->normal, j->path, j->normal ? strlen(j->path) + 1 : 0);
		rv = request_submit(s, in, j, &target, end);
	}
	free(j);
	return rv;
}

int h2_request_trailers(struct h2_stream *s, const struct block *in)
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

void h2_request_data(struct h2_stream *s, const uint8_t *data, size_t n)
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

void h2_request_end(struct h2_stream *s)
{
	s->request.eof = true;
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

void h2_response_head(struct h2_stream *s, const struct block *in, bool end)
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
		h2_reset(s, H2_UP, NGHTTP2_CANCEL);
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
static bool response_pass(struct h2_stream *s, const uint8_t *data, size_t n, bool last)
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

void h2_response_end(struct h2_stream *s)
{
	if (!response_pass(s, NULL, 0, true))
		return;
	s->response.eof = true;
	give_back(s, &s->response, H2_UP);
	wake(s, &s->response, H2_GUEST);
}

void h2_response_trailers(struct h2_stream *s, const struct block *in)
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
	h2_response_end(s);
}

void h2_response_data(struct h2_stream *s, const uint8_t *data, size_t n)
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

/* --- ends ---------------------------------------------------------------------------------------------------- */

void h2_up_closed(struct h2_stream *s, uint32_t code)
{
	/* A reset that is no error says that the answer was complete (RFC 9113, 8.1). Node's server, which looks at no request's
	 * body, sometimes sends it before the end. Whether the length is right the guest sees. */
	if (code == NGHTTP2_NO_ERROR && s->answered && !s->ours && !s->response.eof && s->open[H2_GUEST])
		h2_response_end(s);
	s->open[H2_UP] = false;
	forget(s, &s->request, H2_GUEST);
	/* What came is passed on; what did not come to its end is ended as it was. */
	if (s->ours || s->response.eof || !s->open[H2_GUEST]) {
		if (s->complete && s->open[H2_GUEST] && !s->request.eof)
			h2_reset(s, H2_GUEST, NGHTTP2_NO_ERROR);
		return;
	}
	s->note = s->note ? s->note : "the upstream reset the stream";
	h2_reset(s, H2_GUEST, code == NGHTTP2_NO_ERROR ? NGHTTP2_INTERNAL_ERROR : code);
}

void h2_guest_closed(struct h2_stream *s)
{
	s->open[H2_GUEST] = false;
	forget(s, &s->response, H2_UP);
	h2_reset(s, H2_UP, NGHTTP2_CANCEL);
}
