/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections to the agent in a guest. Theory: the agent's bytes are a guest's bytes. An answer is at most one line of
 * AGENT_LINE_MAX bytes within a deadline, parsed with a depth bound; nothing of it is logged or passed on.
 * A connection that is refused or not answered is tried again until the deadline: a guest may just be starting.
 */
#ifndef NB_BROKER_AGENT_LINK_H
#define NB_BROKER_AGENT_LINK_H

#include "base/fault.h"
#include "base/loop.h"
#include "vmm/net/net.h"

#include <json-c/json.h>

struct agent_call;

/*
 * Comes exactly once, unless cancelled. AGENT_CONNECT and AGENT_SEND: fd is the connection, the callee's. AGENT_ASK: answer
 * is the agent's object with "ok": true, valid during the callback. RC_GUEST: an error or nonsense was answered.
 */
typedef void agent_done_fn(void *arg, enum rc rc, int fd, struct json_object *answer, const struct fault *f);

enum agent_mode {
	AGENT_CONNECT, /* a bare connection */
	AGENT_SEND,    /* after the line was sent; the answer is for whoever gets the descriptor */
	AGENT_ASK,     /* line sent, answer read, connection closed */
};

/* line: without '\n', copied. net: must stay until done or cancelled. */
enum rc agent_call(struct loop *loop, const struct net *net, enum agent_mode mode, const char *line,
		   uint64_t deadline_ms, agent_done_fn *done, void *arg, struct agent_call **ret,
		   struct fault *ret_f);
void agent_cancel(struct agent_call *c); /* NULL is fine */

/* The answer's line, without '\n'. For agent_call() and the fuzzer: RC_GUEST unless an object with "ok": true. */
enum rc agent_parse(const char *line, size_t n, struct json_object **ret, struct fault *ret_f);

#endif
