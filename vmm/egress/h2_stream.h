/* SPDX-License-Identifier: Apache-2.0 */
/* What h2.c (sessions, callbacks) and h2_stream.c (requests, answers, what flows between them) share; theirs alone. */
#ifndef NB_EGRESS_H2_STREAM_H
#define NB_EGRESS_H2_STREAM_H

#include "vmm/egress/h2.h"
#include "vmm/egress/h2_fields.h"

#define H2_PATH_ROW_MAX 256

struct h2_flow {
	struct buf data;
	size_t owed;       /* received and not given back to the window */
	bool eof, waits;   /* all is here; the reader found nothing and waits */
	struct block *trailers;
};

struct h2_stream {
	struct h2 *h;
	struct h2_stream *next, *prev;
	int32_t id[2];     /* H2_GUEST, H2_UP */
	bool open[2];
	struct h2_flow request, response;
	bool answered;     /* the final response's headers are there, ours or the upstream's */
	bool ours, grpc, head, complete;
	struct secrets *set;
	struct redactor redactor;
	struct secret_watch watch;
	unsigned int status;
	char method[HTTP_METHOD_MAX], path[H2_PATH_ROW_MAX], rule[POLICY_RULE_MAX], secret[POLICY_SECRET_NAME_MAX];
	char normal[JUDGE_PATH_MAX];
	bool has_normal;
	const char *decision, *note;
	uint64_t started_ms, bytes_out, bytes_in;
};

struct h2_half {
	nghttp2_session *session;
	struct block block;      /* of the header block that is being received */
	uint64_t flood_ms;
	unsigned int flood;
	bool eof;
};

struct h2 {
	struct h2_hooks hooks;
	struct h2_half half[2];
	struct h2_stream *streams;
	size_t n_streams;
	bool ending; /* the guest was told to open no more streams */
	struct block scratch;
};

/* A request's headers; the stream that they open is freed when both its sides are closed. The result is one for nghttp2. */
int h2_request_head(struct h2 *h, const struct block *in, int32_t id, bool end);
int h2_request_trailers(struct h2_stream *s, const struct block *in);
void h2_request_data(struct h2_stream *s, const uint8_t *data, size_t n);
void h2_request_end(struct h2_stream *s);
void h2_response_head(struct h2_stream *s, const struct block *in, bool end);
void h2_response_trailers(struct h2_stream *s, const struct block *in);
void h2_response_data(struct h2_stream *s, const uint8_t *data, size_t n);
void h2_response_end(struct h2_stream *s);

/* RST_STREAM, if that side is open. */
void h2_reset(struct h2_stream *s, enum h2_side side, uint32_t code);
void h2_up_closed(struct h2_stream *s, uint32_t code);
void h2_guest_closed(struct h2_stream *s);
/* Writes its row. */
void h2_stream_free(struct h2_stream *s);
/* The upstream takes no new requests; what is under way may end. */
void h2_up_goes_away(struct h2 *h);

#endif
