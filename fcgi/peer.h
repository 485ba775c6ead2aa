/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What workers and the runner have in common when they talk to other parts: a kept connection to a daemon, and the line with which a guest's agent
 * answers a service. The messages themselves are in schema/; what a worker asks is in peers.h, what the runner asks in runner/link.h.
 */
#ifndef NB_FCGI_PEER_H
#define NB_FCGI_PEER_H

#include "fcgi/json.h"
#include "schema/message.h"

#include <stddef.h>
#include <stdint.h>

/* A connection that is made when it is first needed and again after it broke. */
struct peer {
	char path[108];
	int fd;
};

enum rc peer_init(struct peer *p, const char *run_dir, const char *name, struct fault *ret_f);
void peer_close(struct peer *p);
/* Descriptors of the answer are the caller's. RC_CLOSED with text "nobody listens" if the peer is not there at all. */
enum rc peer_ask(struct peer *p, struct message_call *call, uint64_t timeout_ms, struct fault *ret_f);

/*
 * The next answer of an agent: a guest's bytes, bounded, and of its error only code and text are shown, cleaned. RC_GUEST: it refused; RC_PROTO: it
 * answered something else, or closed. ret may be NULL; what is there is the caller's.
 */
/* A service's first line and the answer to it, both until AGENT_ANSWER_MS from now; returns as agent_answer(). */
enum rc agent_ask(int fd, const char *line, struct json_object **ret, struct fault *ret_f);
enum rc agent_answer(int fd, uint64_t deadline_ms, struct json_object **ret, struct fault *ret_f);
enum rc agent_answer_parse(const char *line, size_t n, struct json_object **ret, struct fault *ret_f);

/* A guest wrote this: anything may be in it. */
void guest_text(char *out, size_t size, const char *text);

#endif
