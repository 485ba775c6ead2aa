/* SPDX-License-Identifier: Apache-2.0 */
/* HTTP into and out of the guest: exposed services, and `fetch`. */
#ifndef NB_GUEST_HTTP_H
#define NB_GUEST_HTTP_H

#include "guest/rpc.h"

/*
 * Service `http` of the agent protocol: connects to what was exposed as `domain`, writes the answer line to fd, then relays
 * bytes both ways until both directions have ended. Takes over fd.
 */
void http_service(struct session *s, int fd, const char *domain);

/*
 * The absolute form of a Location header: `location` seen from `base`, both http(s). False if it leads to no http(s) URL
 * or does not fit.
 */
bool http_resolve(const char *base, const char *location, char *out, size_t size);
/* "scheme://host[:port]" of an http(s) URL, without user info; false if it is none. */
bool http_origin(const char *url, char *out, size_t size);

/* The head of a response, as any server may send it. */
struct http_head {
	int status;                  /* 100..599 */
	char reason[128];
	struct json_object *headers; /* owned: pairs of name and value */
	const char *location;        /* borrowed from headers, NULL if there is none */
};

/* Length of the head at the start of data with its empty line, 0 if it isn't complete. */
size_t http_head_length(const void *data, size_t n);
/* One head of n bytes, its empty line included. False: it isn't one; also then http_head_done(). */
bool http_head_parse(struct http_head *r, const char *head, size_t n);
void http_head_done(struct http_head *r);
/* Header bytes are Latin-1. */
struct json_object *http_latin1(const char *s, size_t n);

extern rpc_method_fn rpc_expose_http, rpc_fetch;

#endif
