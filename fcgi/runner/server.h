/* SPDX-License-Identifier: Apache-2.0 */
/* The server of an app inside its machine: how it is started, whether it answers, what it said. It is the agent's unit "app". */
#ifndef NB_RUNNER_SERVER_H
#define NB_RUNNER_SERVER_H

#include "fcgi/runner/link.h"

struct server_state {
	bool running;
	int starts, code;
	uint64_t seq; /* of its last line of output */
};

/* The program and its arguments for a RevisionConfig; a static one is served by our own fcgi/runner/static.js,
 * one with a preset or a working directory is started by fcgi/runner/start.sh. */
struct json_object *server_argv(struct json_object *config);
enum rc server_stat(struct link *l, const char *vm, struct server_state *ret, struct fault *ret_f);
/* One request on a fresh connection; any HTTP answer is an answer. host: for its Host header. */
enum rc server_ask(struct link *l, const char *vm, const char *host, int wait_ms, struct fault *ret_f);
/* Somebody listens. */
enum rc server_listens(struct link *l, const char *vm, int wait_ms, struct fault *ret_f);
/* What it has printed lately, for about a second. */
void server_quote(struct link *l, const char *vm, link_line_fn *line, void *arg);

#endif
