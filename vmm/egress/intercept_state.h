/* SPDX-License-Identifier: Apache-2.0 */
/* An intercepted connection, for intercept.c and intercept_http1.c alone. */
#ifndef NB_EGRESS_INTERCEPT_STATE_H
#define NB_EGRESS_INTERCEPT_STATE_H

#include "vmm/egress/h2.h"
#include "vmm/egress/http1.h"
#include "vmm/egress/intercept.h"
#include "vmm/egress/tls.h"
#include "vmm/egress/ws.h"

#define INTERCEPT_FULL 65536 /* an outgoing buffer with this much gets no more */
#define INTERCEPT_PATH_MAX 256

enum side_state { SIDE_HANDSHAKE, SIDE_OPEN, SIDE_EOF };

struct end {
	SSL *ssl;
	enum side_state state;
	bool wants_write;   /* the last TLS step waits for room in the socket */
	struct buf in, out; /* plain text */
};

struct intercept {
	struct conn *c;
	struct end guest, up;
	struct tls_alpn alpn;
	struct h2 *h2;          /* both sides speak HTTP/2: it has the requests, nothing below is used */
	bool upgrade, is_ws;    /* a WebSocket was asked for; there is one, instead of further requests */
	struct ws ws;
	const char *up_failed;  /* why upstream's handshake did not come about; a literal */
	bool over;              /* the sandbox's total is used up */
	bool room;              /* of what the sandbox may hold, again */
	bool again;             /* there is more to do, in the next turn */
	bool ending, shut;      /* nothing is to come but what guest.out holds; that is written, too */
	const char *reason;     /* of the connection's row */

	/* The request that is under way. */
	bool active, request_done, response_head_done;
	struct http_body request_body, response_body;
	enum http_framing request_out, response_out;
	bool head_request, close_after;
	unsigned int minor;
	struct secrets *set;
	struct redactor redactor;
	char method[HTTP_METHOD_MAX], path[INTERCEPT_PATH_MAX], secret[POLICY_SECRET_NAME_MAX], rule[POLICY_RULE_MAX];
	const char *note;
	struct secret_watch watch;
	unsigned int status;
	uint64_t started_ms, bytes_out, bytes_in;
};

/* The row of the request that is under way. */
void intercept_row(struct intercept *t, const char *decision, const char *reason);
void intercept_wipe(struct buf *b);
/* Each goes one step on, if it can. */
bool intercept_http1_request(struct intercept *t);
bool intercept_http1_response(struct intercept *t);

#endif
