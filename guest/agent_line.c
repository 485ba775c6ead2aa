/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/agent_line.h"

#include "base/cleanup.h"
#include "guest/agent_limits.h"
#include "schema/agent.h"

#include <limits.h>
#include <json-c/json.h>
#include <string.h>

static const char *const service_names[] = {
	[SERVICE_RPC] = "rpc",	 [SERVICE_EXEC] = "exec", [SERVICE_TAR_OUT] = "tar-out", [SERVICE_TAR_IN] = "tar-in",
	[SERVICE_DIAL] = "dial", [SERVICE_HTTP] = "http", [SERVICE_UNIT] = "unit",	 [SERVICE_CONTROL] = "control",
};

enum rc agent_get_str(struct json_object *o, const char *key, size_t max, const char *dflt, const char **ret,
		      struct fault *ret_f)
{
	struct json_object *v;
	const char *s;
	size_t n;

	if (!json_object_object_get_ex(o, key, &v) || !v) {
		if (!dflt)
			return fault_set(ret_f, RC_INVALID, 0, "'%s' is missing", key);
		*ret = dflt;
		return RC_OK;
	}
	if (!json_object_is_type(v, json_type_string))
		return fault_set(ret_f, RC_INVALID, 0, "'%s' is not a string", key);
	s = json_object_get_string(v);
	n = (size_t)json_object_get_string_len(v);
	if (n > max || strlen(s) != n)
		return fault_set(ret_f, RC_INVALID, 0, "'%s' is longer than %zu bytes or has a NUL inside", key, max);
	*ret = s;
	return RC_OK;
}

enum rc agent_get_int(struct json_object *o, const char *key, int64_t min, int64_t max, int64_t dflt, int64_t *ret,
		      struct fault *ret_f)
{
	struct json_object *v;
	int64_t i;

	if (!json_object_object_get_ex(o, key, &v) || !v) {
		i = dflt;
	} else {
		if (!json_object_is_type(v, json_type_int))
			return fault_set(ret_f, RC_INVALID, 0, "'%s' is not an integer", key);
		i = json_object_get_int64(v);
	}
	if (i < min || i > max)
		return fault_set(ret_f, RC_INVALID, 0, "'%s' is missing or out of range", key);
	*ret = i;
	return RC_OK;
}

enum rc agent_get_bool(struct json_object *o, const char *key, bool dflt, bool *ret, struct fault *ret_f)
{
	struct json_object *v;

	*ret = dflt;
	if (!json_object_object_get_ex(o, key, &v) || !v)
		return RC_OK;
	if (!json_object_is_type(v, json_type_boolean))
		return fault_set(ret_f, RC_INVALID, 0, "'%s' is not a boolean", key);
	*ret = json_object_get_boolean(v);
	return RC_OK;
}

enum rc agent_get_strv(struct json_object *o, const char *key, size_t max, char ***ret, struct fault *ret_f)
{
	_cleanup_free_ char **v = NULL;
	struct json_object *a;
	size_t n;

	*ret = NULL;
	if (!json_object_object_get_ex(o, key, &a) || !a)
		return RC_OK;
	if (!json_object_is_type(a, json_type_array))
		return fault_set(ret_f, RC_INVALID, 0, "'%s' is not an array", key);
	n = json_object_array_length(a);
	if (n > max)
		return fault_set(ret_f, RC_LIMIT, 0, "'%s' has more than %zu entries", key, max);
	v = calloc(n + 1, sizeof(*v));
	if (!v)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	for (size_t i = 0; i < n; i++) {
		struct json_object *e = json_object_array_get_idx(a, i);
		const char *s;

		if (!json_object_is_type(e, json_type_string))
			return fault_set(ret_f, RC_INVALID, 0, "'%s' has an entry that is not a string", key);
		s = json_object_get_string(e);
		if (strlen(s) != (size_t)json_object_get_string_len(e))
			return fault_set(ret_f, RC_INVALID, 0, "'%s' has an entry with a NUL inside", key);
		memcpy(&v[i], &s, sizeof(s)); /* execve wants char *const[], but writes nothing */
	}
	*ret = take_ptr(v);
	return RC_OK;
}

void agent_env_free(char **env)
{
	for (size_t i = 0; env && env[i]; i++)
		free(env[i]);
	free(env);
}

static void cleanup_env(char ***env)
{
	agent_env_free(*env);
}

static bool env_name_ok(const char *name)
{
	return *name && !strchr(name, '=');
}

enum rc agent_get_env(struct json_object *o, const char *key, char ***ret, struct fault *ret_f)
{
	_cleanup_(cleanup_env) char **env = NULL;
	struct json_object *e;
	size_t n = 0;

	if (!json_object_object_get_ex(o, key, &e))
		e = NULL;
	if (e && !json_object_is_type(e, json_type_object))
		return fault_set(ret_f, RC_INVALID, 0, "'%s' is not an object", key);
	if (e && json_object_object_length(e) > AGENT_ENV_MAX)
		return fault_set(ret_f, RC_LIMIT, 0, "'%s' has more than %d entries", key, AGENT_ENV_MAX);
	env = calloc((size_t)(e ? json_object_object_length(e) : 0) + 1, sizeof(*env));
	if (!env)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	if (e) {
		struct json_object_iterator at = json_object_iter_begin(e), end = json_object_iter_end(e);

		for (; !json_object_iter_equal(&at, &end); json_object_iter_next(&at)) {
			const char *name = json_object_iter_peek_name(&at), *value;
			struct json_object *v = json_object_iter_peek_value(&at);

			if (!env_name_ok(name) || !json_object_is_type(v, json_type_string))
				return fault_set(ret_f, RC_INVALID, 0, "'%s' is not an object of strings", key);
			value = json_object_get_string(v);
			if (strlen(value) != (size_t)json_object_get_string_len(v))
				return fault_set(ret_f, RC_INVALID, 0, "'%s' has a value with a NUL inside", key);
			if (asprintf(&env[n], "%s=%s", name, value) < 0) {
				env[n] = NULL;
				return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
			}
			n++;
		}
	}
	*ret = take_ptr(env);
	return RC_OK;
}

static enum rc spec_tty(struct json_object *o, struct agent_spec *s, struct fault *ret_f)
{
	struct json_object *tty;
	int64_t cols, rows;

	if (!json_object_object_get_ex(o, "tty", &tty) || !tty)
		return RC_OK;
	if (!json_object_is_type(tty, json_type_object))
		return fault_set(ret_f, RC_INVALID, 0, "'tty' is not an object");
	if (agent_get_int(tty, "cols", 1, UINT16_MAX, 80, &cols, ret_f) ||
	    agent_get_int(tty, "rows", 1, UINT16_MAX, 24, &rows, ret_f) ||
	    agent_get_str(tty, "term", 64, "xterm-256color", &s->term, ret_f))
		return RC_INVALID;
	s->tty = true;
	s->cols = (uint16_t)cols;
	s->rows = (uint16_t)rows;
	return RC_OK;
}

enum rc agent_spec_parse(struct json_object *o, struct agent_spec *ret, struct fault *ret_f)
{
	struct agent_spec s = { 0 };
	const char *user;
	enum rc rc = agent_get_strv(o, "argv", AGENT_ARGS_MAX, &s.argv, ret_f);

	if (!rc && (!s.argv || !s.argv[0] || !*s.argv[0]))
		rc = fault_set(ret_f, RC_INVALID, 0, "'argv' is missing or empty");
	if (!rc)
		rc = agent_get_str(o, "cwd", PATH_MAX - 1, "/home/app", &s.cwd, ret_f);
	if (!rc)
		rc = agent_get_str(o, "user", 16, "app", &user, ret_f);
	if (!rc) {
		s.root = !strcmp(user, "root");
		if (!s.root && strcmp(user, "app"))
			rc = fault_set(ret_f, RC_INVALID, 0, "'user' is neither \"app\" nor \"root\"");
	}
	if (!rc)
		rc = agent_get_bool(o, "clear_env", false, &s.clear_env, ret_f);
	if (!rc)
		rc = agent_get_env(o, "env", &s.env, ret_f);
	if (!rc)
		rc = spec_tty(o, &s, ret_f);
	if (rc) {
		agent_spec_free(&s);
		return rc;
	}
	*ret = s;
	return RC_OK;
}

void agent_spec_free(struct agent_spec *s)
{
	free(s->argv);
	agent_env_free(s->env);
	memset(s, 0, sizeof(*s));
}

static enum rc request_check(struct json_object *root, struct agent_request *ret, struct fault *ret_f)
{
	const char *name, *op = "";

	if (!json_object_is_type(root, json_type_object))
		return fault_set(ret_f, RC_INVALID, 0, "the service line is not a JSON object");
	if (agent_get_str(root, "service", 32, NULL, &name, ret_f) || agent_get_str(root, "op", 32, "", &op, ret_f))
		return RC_INVALID;
	for (size_t i = 0; i < ARRAY_SIZE(service_names); i++)
		if (!strcmp(service_names[i], name)) {
			ret->service = (enum agent_service)i;
			ret->op = op;
			ret->root = root;
			return RC_OK;
		}
	return fault_set(ret_f, RC_INVALID, 0, "there is no such service");
}

enum rc agent_request_parse(const char *line, size_t n, struct agent_request *ret, struct fault *ret_f)
{
	struct json_tokener *tok;
	struct json_object *root;
	enum rc rc;

	if (n > AGENT_LINE_MAX)
		return fault_set(ret_f, RC_LIMIT, 0, "the service line is longer than %d bytes", AGENT_LINE_MAX);
	tok = json_tokener_new_ex(AGENT_JSON_DEPTH_MAX);
	if (!tok)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	json_tokener_set_flags(tok, JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8);
	root = json_tokener_parse_ex(tok, line, (int)n);
	if (json_tokener_get_error(tok) != json_tokener_success || json_tokener_get_parse_end(tok) != n) {
		json_object_put(root);
		json_tokener_free(tok);
		return fault_set(ret_f, RC_INVALID, 0, "the service line is not JSON");
	}
	json_tokener_free(tok);
	rc = request_check(root, ret, ret_f);
	if (rc)
		json_object_put(root);
	return rc;
}

void agent_request_free(struct agent_request *r)
{
	json_object_put(r->root);
	memset(r, 0, sizeof(*r));
}

static const char *error_code(const struct fault *f)
{
	const char *name = f->sys ? strerrorname_np(f->sys) : NULL;

	if (name)
		return name;
	switch (f->rc) {
	case RC_INVALID: return "EINVAL";
	case RC_DENIED: return "EPERM";
	case RC_ABSENT: return "ENOENT";
	case RC_LIMIT: return "E2BIG";
	case RC_NOMEM: return "ENOMEM";
	case RC_TIMEOUT: return "ETIMEDOUT";
	case RC_AGAIN: return "EAGAIN";
	case RC_NOSPACE: return "ENOSPC";
	case RC_EXISTS: return "EEXIST";
	case RC_STATE: return "EBUSY";
	default: return "EIO";
	}
}

enum rc agent_put_error(struct buf *b, const struct fault *f)
{
	struct json_object *root = json_object_new_object(), *e = json_object_new_object();
	enum rc rc;

	json_object_object_add(e, "code", json_object_new_string(error_code(f)));
	json_object_object_add(e, "message", json_object_new_string(f->text));
	json_object_object_add(root, "error", e);
	rc = buf_printf(b, "%s\n", json_object_to_json_string_ext(root, JSON_C_TO_STRING_PLAIN));
	json_object_put(root);
	return rc;
}
