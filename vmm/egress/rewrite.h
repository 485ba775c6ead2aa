/* SPDX-License-Identifier: Apache-2.0 */
/* The heads of intercepted requests and responses, as they are passed on. Bytes to bytes; used by intercept.c. */
#ifndef NB_EGRESS_REWRITE_H
#define NB_EGRESS_REWRITE_H

#include "vmm/egress/http1.h"
#include "vmm/egress/secrets.h"

/* NULL, or why this request is not for this host: Host, target and method have to agree with where it goes. */
const char *rewrite_refuses(const struct http_head *h, const char *host, uint16_t port);
enum rc rewrite_request(const struct http_head *h, const char *host, uint16_t port, struct secrets *set, struct buf *out,
			const char **ret_used, const char **ret_strange);
/* framing: how the body will be sent. */
enum rc rewrite_response(const struct http_head *h, struct secrets *set, enum http_framing framing, bool close, struct buf *out,
			 bool *ret_found);
enum rc rewrite_chunk(struct buf *out, const void *data, size_t n); /* n 0: the last */

#endif
