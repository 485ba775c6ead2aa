/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/rpc.h"

#include "base/cleanup.h"
#include "guest/deno.h"
#include "guest/http.h"
#include "guest/proc.h"
#include "guest/vscode.h"

#include <string.h>

static void method_abort(struct rpc_conn *c, struct rpc_call *call, struct json_object *params)
{
	struct params p;
	int64_t id;

	params_init(&p, params);
	id = params_int(&p, "abortId", 0, INT64_MAX);
	if (!params_ok(&p)) {
		rpc_call_params(call, &p);
		return;
	}
	rpc_aborts_fire(c, id);
	rpc_call_ok(call, NULL);
}

/* --- environment ----------------------------------------------------------------------------------------------- */

/* As Rust's debug format writes a string, which is how Deno names it. */
static void quote(char *to, size_t room, const char *s, size_t n)
{
	static const char plain[] = "\"\\\n\r\t", escaped[] = "\"\\nrt0";
	size_t at = 0;

	to[at++] = '"';
	for (size_t i = 0; i < n && at + 4 < room; i++) {
		const char *special = memchr(plain, s[i], sizeof(plain)); /* with its NUL */

		if (special)
			to[at++] = '\\';
		to[at++] = special ? escaped[special - plain] : s[i];
	}
	to[at++] = '"';
	to[at] = 0;
}

/*
 * A name or a value of the environment; NULL: answered already. What no environment can hold is a TypeError, in Deno's words;
 * what is not a string at all breaks the protocol.
 */
static const char *env_string(struct rpc_call *call, struct json_object *params, const char *name, const char *title)
{
	struct json_object *v = NULL;
	struct params p;
	char text[256];
	const char *s;
	size_t n;

	params_init(&p, params);
	if (!json_object_object_get_ex(params, name, &v) || !json_object_is_type(v, json_type_string)) {
		params_fail(&p, name, "expected a string");
		rpc_call_params(call, &p);
		return NULL;
	}
	s = json_object_get_string(v);
	n = (size_t)json_object_get_string_len(v);
	if (strlen(s) == n && (*title == 'V' || (n && !strchr(s, '='))))
		return s;
	quote(text, sizeof(text), s, n);
	if (n)
		rpc_call_error(call, "TypeError", NULL, "%s contains invalid characters: %s", title, text);
	else
		rpc_call_error(call, "TypeError", NULL, "Key is an empty string.");
	return NULL;
}

static void method_env_get(struct rpc_conn *c, struct rpc_call *call, struct json_object *params)
{
	const char *key = env_string(call, params, "key", "Key");
	struct json_object *v;

	if (!key)
		return;
	if (json_object_object_get_ex(rpc_conn_session(c)->env, key, &v))
		rpc_call_ok(call, json_object_get(v));
	else
		rpc_call_ok(call, NULL);
}

static void method_env_set(struct rpc_conn *c, struct rpc_call *call, struct json_object *params)
{
	struct session *s = rpc_conn_session(c);
	const char *key = env_string(call, params, "key", "Key"), *value;

	value = key ? env_string(call, params, "value", "Value") : NULL;
	if (!value)
		return;
	if (json_object_object_length(s->env_own) >= ENV_VARS_MAX) {
		rpc_call_error(call, "RangeError", NULL, "More than %d environment variables", ENV_VARS_MAX);
	} else {
		json_put(s->env, key, json_str(value));
		json_put(s->env_own, key, json_str(value));
		rpc_call_ok(call, NULL);
	}
}

static void method_env_all(struct rpc_conn *c, struct rpc_call *call, struct json_object *params)
{
	(void)params;
	rpc_call_ok(call, json_object_get(rpc_conn_session(c)->env));
}

static void method_env_delete(struct rpc_conn *c, struct rpc_call *call, struct json_object *params)
{
	const char *key = env_string(call, params, "key", "Key");
	struct session *s = rpc_conn_session(c);

	if (!key)
		return;
	if (json_object_object_get_ex(s->env, key, NULL)) {
		json_object_object_del(s->env, key);
		json_put(s->env_own, key, NULL);
	}
	rpc_call_ok(call, NULL);
}

/* --- */

static const struct {
	const char *name;
	rpc_method_fn *fn;
} methods[] = {
	{ "abort", method_abort },
	{ "spawn", rpc_spawn },
	{ "processWait", rpc_process_wait },
	{ "processKill", rpc_process_kill },
	{ "envGet", method_env_get },
	{ "envSet", method_env_set },
	{ "envToObject", method_env_all },
	{ "envDelete", method_env_delete },
	{ "spawnDeno", rpc_spawn_deno },
	{ "denoHttpWait", rpc_deno_http_wait },
	{ "spawnDenoRepl", rpc_spawn_repl },
	{ "denoReplEval", rpc_repl_eval },
	{ "denoReplCall", rpc_repl_call },
	{ "denoReplClose", rpc_repl_close },
	{ "fetch", rpc_fetch },
	{ "exposeHttp", rpc_expose_http },
	{ "vscode", rpc_vscode },
};

rpc_method_fn *rpc_method_find(const char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(methods); i++)
		if (!strcmp(methods[i].name, name))
			return methods[i].fn;
	return NULL;
}
