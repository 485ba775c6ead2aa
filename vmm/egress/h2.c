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
#include "vmm/egress/h2_stream.h"

#include "base/cleanup.h"

#define FLOOD_WINDOW_MS 10000

static struct h2_half *half_of(struct h2 *h, const nghttp2_session *session)
{
	return session == h->half[H2_GUEST].session ? &h->half[H2_GUEST] : &h->half[H2_UP];
}

static enum h2_side side_of(const struct h2 *h, const nghttp2_session *session)
{
	return session == h->half[H2_GUEST].session ? H2_GUEST : H2_UP;
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

static void flooded(struct h2 *h, struct h2_half *half)
{
	uint64_t now = h->hooks.now(h->hooks.arg);

	if (now - half->flood_ms > FLOOD_WINDOW_MS) {
		half->flood_ms = now;
		half->flood = 0;
	}
	if (++half->flood == EGRESS_H2_CONTROL_MAX)
		nghttp2_session_terminate_session(half->session, NGHTTP2_ENHANCE_YOUR_CALM);
}

static int guest_frame(struct h2 *h, const nghttp2_frame *frame, struct h2_stream *s)
{
	const struct block *in = &h->half[H2_GUEST].block;
	bool end = frame->hd.flags & NGHTTP2_FLAG_END_STREAM;

	if (frame->hd.type == NGHTTP2_HEADERS)
		return frame->headers.cat == NGHTTP2_HCAT_REQUEST ? h2_request_head(h, in, frame->hd.stream_id, end) :
		       s					  ? h2_request_trailers(s, in) : 0;
	if (frame->hd.type == NGHTTP2_DATA && end && s) {
		h2_request_end(s);
	}
	return 0;
}

static int up_frame(struct h2 *h, const nghttp2_frame *frame, struct h2_stream *s)
{
	const struct block *in = &h->half[H2_UP].block;
	bool end = frame->hd.flags & NGHTTP2_FLAG_END_STREAM;

	if (frame->hd.type == NGHTTP2_GOAWAY)
		h2_up_goes_away(h);
	if (!s || s->ours || !s->open[H2_GUEST])
		return 0;
	if (frame->hd.type == NGHTTP2_HEADERS && !s->answered)
		h2_response_head(s, in, end);
	else if (frame->hd.type == NGHTTP2_HEADERS)
		h2_response_trailers(s, in);
	else if (frame->hd.type == NGHTTP2_DATA && end)
		h2_response_end(s);
	return 0;
}

static int on_frame_recv(nghttp2_session *session, const nghttp2_frame *frame, void *arg)
{
	struct h2 *h = arg;
	enum h2_side side = side_of(h, session);
	struct h2_stream *s = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);

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
	struct h2_stream *s = nghttp2_session_get_stream_user_data(session, id);

	(void)flags;
	if (!s)
		nghttp2_session_consume(session, id, n);
	else if (side_of(arg, session) == H2_GUEST)
		h2_request_data(s, data, n);
	else
		h2_response_data(s, data, n);
	return 0;
}

/* The response is out and nobody reads the rest of the request: the guest need not send it (RFC 9113 8.1). */
static int on_frame_send(nghttp2_session *session, const nghttp2_frame *frame, void *arg)
{
	struct h2 *h = arg;
	struct h2_stream *s = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);

	if (side_of(h, session) != H2_GUEST || !s || (frame->hd.type != NGHTTP2_DATA && frame->hd.type != NGHTTP2_HEADERS) ||
	    !(frame->hd.flags & NGHTTP2_FLAG_END_STREAM))
		return 0;
	s->complete = true;
	if (!s->request.eof && !s->open[H2_UP])
		h2_reset(s, H2_GUEST, NGHTTP2_NO_ERROR);
	return 0;
}

/* nghttp2 has refused it before there was a stream: fields that no request may have, or two of what must be one. */
static void refused_row(struct h2 *h)
{
	const struct h2_row row = { .decision = "deny", .reason = "malformed request", .method = "", .path = "", .rule = "",
				    .secret = "", .started_ms = h->hooks.now(h->hooks.arg) };

	h->hooks.row(h->hooks.arg, &row);
}

static int on_stream_close(nghttp2_session *session, int32_t id, uint32_t code, void *arg)
{
	struct h2_stream *s = nghttp2_session_get_stream_user_data(session, id);
	enum h2_side side = side_of(arg, session);

	if (!s) {
		if (side == H2_GUEST && (code == NGHTTP2_PROTOCOL_ERROR || code == NGHTTP2_INTERNAL_ERROR))
			refused_row(arg);
		return 0;
	}
	if (side == H2_UP) {
		h2_up_closed(s, code);
	} else {
		h2_guest_closed(s);
	}
	if (!s->open[H2_GUEST] && !s->open[H2_UP])
		h2_stream_free(s);
	return 0;
}

/* A request that waited for its turn, until it could not be sent any more. */
static int on_frame_not_send(nghttp2_session *session, const nghttp2_frame *frame, int error, void *arg)
{
	struct h2 *h = arg;

	(void)error;
	if (side_of(h, session) != H2_UP || frame->hd.type != NGHTTP2_HEADERS || frame->headers.cat != NGHTTP2_HCAT_REQUEST)
		return 0;
	for (struct h2_stream *s = h->streams; s; s = s->next)
		if (s->open[H2_UP] && s->id[H2_UP] == frame->hd.stream_id) {
			nghttp2_session_set_stream_user_data(session, s->id[H2_UP], NULL);
			h2_up_closed(s, NGHTTP2_REFUSED_STREAM);
			if (!s->open[H2_GUEST])
				h2_stream_free(s);
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
	struct h2_half *half = &h->half[side];
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
		h2_stream_free(h->streams);
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

size_t h2_held(const struct h2 *h, enum h2_side from)
{
	size_t n = 0;

	for (const struct h2_stream *s = h->streams; s; s = s->next)
		n += from == H2_GUEST ? s->request.data.cap : s->response.data.cap;
	return n;
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
	struct h2_stream *next;

	if (h->half[side].eof)
		return;
	h->half[side].eof = true;
	if (side == H2_UP)
		h2_up_goes_away(h);
	for (struct h2_stream *s = h->streams; s; s = next) {
		next = s->next;
		if (side == H2_GUEST) {
			h2_guest_closed(s);
		} else if (s->open[H2_UP]) {
			h2_up_closed(s, NGHTTP2_INTERNAL_ERROR);
		}
		if (!s->open[H2_GUEST] && !s->open[H2_UP])
			h2_stream_free(s);
	}
}

bool h2_done(const struct h2 *h)
{
	const struct h2_half *guest = &h->half[H2_GUEST];

	if (guest->eof)
		return true;
	if (!nghttp2_session_want_read(guest->session) && !nghttp2_session_want_write(guest->session))
		return true;
	/* The upstream is gone and everything that it said was passed on. */
	return h->ending && !h->streams && !nghttp2_session_want_write(guest->session);
}
