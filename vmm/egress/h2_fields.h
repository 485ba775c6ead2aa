/* SPDX-License-Identifier: Apache-2.0 */
/* Header blocks of HTTP/2: collected from one session, changed, and handed to the other. Shared by h2*.c only. */
#ifndef NB_EGRESS_H2_FIELDS_H
#define NB_EGRESS_H2_FIELDS_H

#include "base/buf.h"
#include "vmm/egress/judge.h"
#include "vmm/egress/limits.h"

#include <nghttp2/nghttp2.h>

struct field {
	size_t name, name_n, value, value_n; /* offsets into text */
	bool secret;
};

struct block {
	struct buf text;
	struct field at[HTTP_HEADERS_MAX];
	size_t n;
	bool over; /* more or longer than allowed */
};

void block_init(struct block *b);
/* Wiped, and empty again. */
void block_clear(struct block *b);
void block_free(struct block *b);
bool block_add(struct block *b, const void *name, size_t name_n, const void *value, size_t value_n);
struct http_text block_name(const struct block *b, size_t i);
struct http_text block_value(const struct block *b, size_t i);
/* -1: twice. */
int block_find(const struct block *b, const char *name, struct http_text *ret);
/* For nghttp2, which copies them. */
size_t block_nv(const struct block *b, nghttp2_nv nv[HTTP_HEADERS_MAX]);

/* Of a request that was judged; in's pseudo headers become ours. */
enum rc fields_request(const struct block *in, const struct judged *j, const struct http_text *target, struct secrets *set,
		       struct block *out, struct secret_report *report);
/* no_body: there is none, so a Content-Length stays true. */
enum rc fields_response(const struct block *in, struct secrets *set, bool no_body, struct block *out, bool *ret_found);
/* Trailers, either way: with `at` placeholders are replaced, without it values are taken out. */
enum rc fields_trailers(const struct block *in, struct secrets *set, const struct secret_place *at, struct block *out,
			struct secret_report *report, bool *ret_found);
/* NULL, or why this answer cannot be searched. */
const char *fields_unsearchable(const struct block *in);

#endif
