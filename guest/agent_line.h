/* SPDX-License-Identifier: Apache-2.0 */
/* The service line of schema/agent.h: from bytes to checked values, and answers back. No side effects: it is fuzzed. */
#ifndef NB_GUEST_AGENT_LINE_H
#define NB_GUEST_AGENT_LINE_H

#include "base/buf.h"
#include "base/fault.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct json_object;

enum agent_service {
	SERVICE_RPC,
	SERVICE_EXEC,
	SERVICE_TAR_OUT,
	SERVICE_TAR_IN,
	SERVICE_DIAL,
	SERVICE_HTTP,
	SERVICE_UNIT,
	SERVICE_CONTROL,
};

/* Strings point into `root`. */
struct agent_request {
	enum agent_service service;
	struct json_object *root;
	const char *op; /* unit, control; else "" */
};

/* `line` is without its '\n'. On success the caller calls agent_request_free(). */
enum rc agent_request_parse(const char *line, size_t n, struct agent_request *ret, struct fault *ret_f);
void agent_request_free(struct agent_request *r);

/* Typed members. Absent is the default; of the wrong type, with a NUL inside or out of bounds is RC_INVALID. */
enum rc agent_get_str(struct json_object *o, const char *key, size_t max, const char *dflt, const char **ret,
		      struct fault *ret_f);
enum rc agent_get_int(struct json_object *o, const char *key, int64_t min, int64_t max, int64_t dflt, int64_t *ret,
		      struct fault *ret_f);
enum rc agent_get_bool(struct json_object *o, const char *key, bool dflt, bool *ret, struct fault *ret_f);
/* NULL-terminated vector whose strings point into `o`; free() the vector. Absent: NULL. */
enum rc agent_get_strv(struct json_object *o, const char *key, size_t max, char ***ret, struct fault *ret_f);
/* An object of strings as "NAME=value", NULL-terminated; agent_env_free(). Absent: empty. */
enum rc agent_get_env(struct json_object *o, const char *key, char ***ret, struct fault *ret_f);
void agent_env_free(char **env);

/* What a process is started with: exec and unit start. Strings point into the request. */
struct agent_spec {
	char **argv, **env;
	const char *cwd, *term;
	bool root, clear_env, tty;
	uint16_t cols, rows;
};
enum rc agent_spec_parse(struct json_object *o, struct agent_spec *ret, struct fault *ret_f);
void agent_spec_free(struct agent_spec *s);

/* {"error": {"code", "message"}} + '\n' for a fault, appended to *b. */
enum rc agent_put_error(struct buf *b, const struct fault *f);

#endif
