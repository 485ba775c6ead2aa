/* SPDX-License-Identifier: Apache-2.0 */
/* The heads of intercepted requests and responses, as they are passed on. Bytes to bytes; used by intercept.c. */
#ifndef NB_EGRESS_REWRITE_H
#define NB_EGRESS_REWRITE_H

#include "vmm/egress/http1.h"
#include "vmm/egress/judge.h"

/* Headers that are never passed on, or not with a value in them; for http1 and http2 alike. */
bool rewrite_is_ours_in_requests(const struct http_text *name);
bool rewrite_is_ours_in_responses(const struct http_text *name);
bool rewrite_may_carry_secrets(const struct http_text *name);
/* "identity" has to be asked for, and answers in other codings refused: there are values to look for. */
bool rewrite_is_encoded(const struct http_text *value);

/* A request that asks for a WebSocket, or an answer that grants it: with no extension, in an answer. */
bool rewrite_is_websocket(const struct http_head *h, bool request);

/* An asked for WebSocket is passed on as such, without extensions; no other upgrade is. */
enum rc rewrite_request(const struct http_head *h, const struct judged *j, struct secrets *set, struct buf *out,
			struct secret_report *report);
/* framing: how the body will be sent. */
enum rc rewrite_response(const struct http_head *h, struct secrets *set, enum http_framing framing, bool close, struct buf *out,
			 bool *ret_found);
enum rc rewrite_chunk(struct buf *out, const void *data, size_t n); /* n 0: the last */

#endif
