/* SPDX-License-Identifier: Apache-2.0 */
/*
 * HTTP/1 heads and bodies (RFC 9112), as strict as two parsers that must agree have to be: one way to say each thing, the
 * rest refused. Pure functions on bytes; pointers in a head point into what was parsed.
 */
#ifndef NB_EGRESS_HTTP1_H
#define NB_EGRESS_HTTP1_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HTTP_HEADERS_MAX 128
#define HTTP_METHOD_MAX 16
#define HTTP_CHUNK_LINE_MAX 256

struct http_text {
	const char *at;
	size_t n;
};

struct http_header {
	struct http_text name, value; /* value without blanks around it */
};

enum http_framing { HTTP_NO_BODY, HTTP_LENGTH, HTTP_CHUNKED, HTTP_UNTIL_CLOSE };

struct http_head {
	char method[HTTP_METHOD_MAX]; /* requests */
	struct http_text target;
	unsigned int status;          /* responses */
	struct http_text reason;
	unsigned int minor;           /* HTTP/1.<minor> */
	struct http_header headers[HTTP_HEADERS_MAX];
	size_t n_headers;
	enum http_framing framing;    /* of a request; of a response http_response_framing() decides */
	uint64_t length;              /* with HTTP_LENGTH */
	bool has_length, chunked;
	bool close;                   /* "Connection: close", or HTTP/1.0 */
	size_t n;                     /* bytes of the head, with its empty line */
};

enum http_result { HTTP_MORE, HTTP_OK, HTTP_BAD };

/* ret_why: a literal. The caller bounds n. */
enum http_result http_parse(const uint8_t *data, size_t n, bool request, struct http_head *ret, const char **ret_why);
enum http_framing http_response_framing(const struct http_head *h, bool to_head_request);

bool http_is(const struct http_text *t, const char *text); /* without regard to case */
bool http_list_has(const struct http_text *list, const char *word); /* "a, b" */
/* A header that must not be there twice: 0 absent, 1 found, -1 there twice. */
int http_find(const struct http_head *h, const char *name, struct http_text *ret);

/* Takes a body apart. */
struct http_body {
	enum http_framing framing;
	uint64_t left;
	enum { CHUNK_SIZE, CHUNK_DATA, CHUNK_END, CHUNK_TRAILER } state;
	bool done;
};

void http_body_start(struct http_body *b, enum http_framing framing, uint64_t length);
/*
 * Consumes *n_used bytes of in and finds at most one piece of the body in them. HTTP_OK: went on (or b->done); HTTP_MORE: needs
 * more bytes than these; HTTP_BAD. Trailers are read and dropped.
 */
enum http_result http_body_read(struct http_body *b, const uint8_t *in, size_t n, size_t *n_used, struct http_text *piece);

#endif
