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

extern rpc_method_fn rpc_expose_http, rpc_fetch;

#endif
