/* SPDX-License-Identifier: Apache-2.0 */
/* Two peers of nghttp2, a client and a server, with vmm/egress/h2.c between them; bytes are carried by h2_pump(). */
#ifndef NB_TESTS_H2_PEER_H
#define NB_TESTS_H2_PEER_H

#include "base/cleanup.h"
#include "vmm/egress/h2.h"
#include "vmm/egress/limits.h"

#include <nghttp2/nghttp2.h>
#include <stdio.h>
#include <string.h>

#define PEER_STREAMS 512
#define PEER_TEXT 16384

struct peer_stream {
	char text[PEER_TEXT];  /* "name: value\n" of all its header blocks */
	size_t text_n, data_n;
	char data[4096];       /* the first of it */
	bool ended, closed, waits;
	uint32_t code;
	/* what it sends */
	const char *out;
	size_t out_n, at;
	bool out_end;
	nghttp2_nv trailer;
	bool has_trailer;
};

struct peer {
	nghttp2_session *session;
	struct peer_stream *streams; /* by id */
	uint32_t goaway;
	bool got_goaway;
	bool hold; /* gives no window back */
};

struct h2_world {
	struct peer guest, up;
	struct h2 *h2;
	enum rc failed;
	size_t rows;
	char last_row[256];
	struct h2_hooks hooks;
	struct policy *policy;
	struct secrets *set;
	uint64_t now;
};

static inline struct peer_stream *peer_at(struct peer *p, int32_t id)
{
	return &p->streams[(id > 0 && id < PEER_STREAMS ? id : 0)];
}

static inline int peer_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_n,
			      const uint8_t *value, size_t value_n, uint8_t flags, void *arg)
{
	struct peer_stream *s = peer_at(arg, frame->hd.stream_id);
	int n = snprintf(s->text + s->text_n, PEER_TEXT - s->text_n, "%.*s: %.*s\n", (int)name_n, name, (int)value_n, value);

	(void)session;
	(void)flags;
	s->text_n = MIN_OF(s->text_n + (size_t)n, (size_t)PEER_TEXT - 1);
	return 0;
}

static inline int peer_data(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *data, size_t n, void *arg)
{
	struct peer *p = arg;
	struct peer_stream *s = peer_at(p, id);

	(void)flags;
	if (s->data_n < sizeof(s->data) - 1)
		memcpy(s->data + s->data_n, data, MIN_OF(n, sizeof(s->data) - 1 - s->data_n));
	s->data_n += n;
	if (!p->hold)
		nghttp2_session_consume(session, id, n);
	return 0;
}

static inline int peer_frame(nghttp2_session *session, const nghttp2_frame *frame, void *arg)
{
	struct peer *p = arg;

	(void)session;
	if (frame->hd.type == NGHTTP2_GOAWAY) {
		p->got_goaway = true;
		p->goaway = frame->goaway.error_code;
	}
	if ((frame->hd.type == NGHTTP2_DATA || frame->hd.type == NGHTTP2_HEADERS) && frame->hd.flags & NGHTTP2_FLAG_END_STREAM)
		peer_at(p, frame->hd.stream_id)->ended = true;
	return 0;
}

static inline int peer_close(nghttp2_session *session, int32_t id, uint32_t code, void *arg)
{
	(void)session;
	peer_at(arg, id)->closed = true;
	peer_at(arg, id)->code = code;
	return 0;
}

static inline ssize_t peer_read(nghttp2_session *session, int32_t id, uint8_t *mem, size_t max, uint32_t *flags,
				nghttp2_data_source *source, void *arg)
{
	struct peer_stream *s = source->ptr;
	size_t n = MIN_OF(max, s->out_n - s->at);

	(void)arg;
	if (!n && !s->out_end) {
		s->waits = true;
		return NGHTTP2_ERR_DEFERRED;
	}
	if (n)
		memcpy(mem, s->out + s->at, n);
	s->at += n;
	if (s->at == s->out_n && s->out_end) {
		*flags |= NGHTTP2_DATA_FLAG_EOF;
		if (s->has_trailer) {
			*flags |= NGHTTP2_DATA_FLAG_NO_END_STREAM;
			nghttp2_submit_trailer(session, id, &s->trailer, 1);
		}
	}
	return (ssize_t)n;
}

/* "name: value" lines into nv; the text stays the caller's. */
static inline size_t peer_nv(const char *lines, nghttp2_nv *nv, size_t max)
{
	size_t n = 0;

	for (const char *line = lines; *line && n < max;) {
		const char *end = strchr(line, '\n'), *colon = strstr(line + 1, ": ");

		nv[n++] = (nghttp2_nv){ .name = (uint8_t *)(uintptr_t)line, .namelen = (size_t)(colon - line),
					.value = (uint8_t *)(uintptr_t)(colon + 2), .valuelen = (size_t)(end - colon - 2) };
		line = end + 1;
	}
	return n;
}

/* data NULL: ends with its headers; end false: more may come with peer_more(). */
static inline int32_t peer_request(struct peer *p, const char *lines, const char *data, bool end)
{
	nghttp2_nv nv[200];
	struct peer_stream *s = peer_at(p, (int32_t)nghttp2_session_get_next_stream_id(p->session));
	nghttp2_data_provider provider = { .source.ptr = s, .read_callback = peer_read };

	s->out = data;
	s->out_n = data ? strlen(data) : 0;
	s->out_end = end;
	return nghttp2_submit_request(p->session, NULL, nv, peer_nv(lines, nv, 200), data ? &provider : NULL, NULL);
}

static inline void peer_respond(struct peer *p, int32_t id, const char *lines, const char *data, size_t n, bool end)
{
	nghttp2_nv nv[200];
	struct peer_stream *s = peer_at(p, id);
	nghttp2_data_provider provider = { .source.ptr = s, .read_callback = peer_read };

	s->out = data;
	s->out_n = n;
	s->out_end = end;
	nghttp2_submit_response(p->session, id, nv, peer_nv(lines, nv, 200), data ? &provider : NULL);
}

static inline void peer_more(struct peer *p, int32_t id, const char *data, bool end)
{
	struct peer_stream *s = peer_at(p, id);

	s->out = data;
	s->out_n = strlen(data);
	s->at = 0;
	s->out_end = end;
	if (s->waits)
		nghttp2_session_resume_data(p->session, id);
	s->waits = false;
}

static inline void peer_start(struct peer *p, bool server, bool hold)
{
	nghttp2_session_callbacks *cb;
	nghttp2_option *option;

	memset(p, 0, sizeof(*p));
	p->streams = calloc(PEER_STREAMS, sizeof(*p->streams));
	p->hold = hold;
	nghttp2_session_callbacks_new(&cb);
	nghttp2_option_new(&option);
	nghttp2_option_set_no_auto_window_update(option, 1);
	nghttp2_option_set_no_http_messaging(option, 1); /* what is wrong with a message is for h2.c to say */
	nghttp2_session_callbacks_set_on_header_callback(cb, peer_header);
	nghttp2_session_callbacks_set_on_data_chunk_recv_callback(cb, peer_data);
	nghttp2_session_callbacks_set_on_frame_recv_callback(cb, peer_frame);
	nghttp2_session_callbacks_set_on_stream_close_callback(cb, peer_close);
	if (server)
		nghttp2_session_server_new2(&p->session, cb, p, option);
	else
		nghttp2_session_client_new2(&p->session, cb, p, option);
	nghttp2_submit_settings(p->session, NGHTTP2_FLAG_NONE, NULL, 0);
	nghttp2_session_callbacks_del(cb);
	nghttp2_option_del(option);
}

static inline void peer_end(struct peer *p)
{
	nghttp2_session_del(p->session);
	free(p->streams);
}

static inline const struct policy *world_policy(void *arg)
{
	return ((struct h2_world *)arg)->policy;
}

static inline struct secrets *world_secrets(void *arg)
{
	return ((struct h2_world *)arg)->set;
}

static inline uint64_t world_now(void *arg)
{
	return ((struct h2_world *)arg)->now;
}

static inline void world_row(void *arg, const struct h2_row *r)
{
	struct h2_world *w = arg;

	w->rows++;
	snprintf(w->last_row, sizeof(w->last_row), "%s %s %s %u [%s] %s", r->decision, r->method, r->path, r->status, r->secret,
		 r->reason ? r->reason : "");
}

static inline void world_hooks(struct h2_world *w)
{
	w->hooks = (struct h2_hooks){ .arg = w, .host = "api.test", .port = 443, .policy = world_policy, .secrets = world_secrets,
				      .now = world_now, .row = world_row };
}

/* What one peer has to say, into h2; true if there was something. */
static inline bool pump_peer(struct h2_world *w, struct peer *p, enum h2_side side)
{
	struct buf out = BUF_INIT(1u << 24);
	const uint8_t *data;
	bool went = false;
	ssize_t n;

	while (!w->failed && h2_takes(w->h2, side) && (n = nghttp2_session_mem_send(p->session, &data)) > 0) {
		w->failed = h2_in(w->h2, side, data, (size_t)n);
		went = true;
	}
	if (!w->failed)
		w->failed = h2_out(w->h2, side, &out, 65536);
	if (buf_len(&out)) {
		went = true;
		if (nghttp2_session_mem_recv(p->session, buf_data(&out), buf_len(&out)) < 0)
			w->failed = RC_PROTO;
	}
	buf_free(&out);
	return went;
}

static inline void h2_pump(struct h2_world *w)
{
	while (!w->failed && (pump_peer(w, &w->guest, H2_GUEST) | pump_peer(w, &w->up, H2_UP)))
		;
}

#endif
