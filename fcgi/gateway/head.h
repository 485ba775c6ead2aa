/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The head of an HTTP/1.1 request as nginx passes it, read strictly: CRLF line ends, no folded lines, no control bytes,
 * token characters in names, at most HEAD_MAX bytes and HEAD_HEADERS_MAX lines. Only what the gateway acts upon is kept.
 */
#ifndef NB_GATEWAY_HEAD_H
#define NB_GATEWAY_HEAD_H

#include "base/fault.h"
#include "fcgi/gateway/limits.h"

#include <stdbool.h>
#include <stddef.h>

#define HEAD_WS_KEY 24 /* base64 of 16 bytes */
#define HEAD_WS_ACCEPT 28

struct head {
	char token[HEAD_TOKEN_MAX];       /* what follows "/_stream/" */
	bool upgrade;                     /* Upgrade: websocket and Connection: upgrade */
	unsigned int ws_version;          /* 0: absent or no number */
	char ws_key[HEAD_WS_KEY + 1];     /* "" if absent or of another form */
};

/* Length of the head including its empty line; 0 if that has not arrived. */
size_t head_length(const char *data, size_t n);
/* n: what head_length() gave. RC_INVALID: not a request of this form. RC_ABSENT: another path than /_stream/<token>. */
enum rc head_parse(const char *data, size_t n, struct head *ret, struct fault *ret_f);

/* Sec-WebSocket-Accept of a key (RFC 6455, section 4.2.2), terminated. */
enum rc head_ws_accept(const char *key, char out[HEAD_WS_ACCEPT + 1], struct fault *ret_f);

#endif
