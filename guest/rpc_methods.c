/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/rpc.h"

#include "base/cleanup.h"
#include "guest/deno.h"
#include "guest/http.h"
#include "guest/proc.h"

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

static const char *env_key(struct params *p)
{
	const char *key = params_str(p, "key");

	if (params_ok(p) && (!*key || strchr(key, '=')))
		params_fail(p, "key", "must not be empty or have '='");
	return key;
}

static void method_env_get(struct rpc_conn *c, struct rpc_call *call, struct json_object *params)
{
	struct json_object *v;
	struct params p;
	const char *key;

	params_init(&p, params);
	key = env_key(&p);
	if (!params_ok(&p))
		rpc_call_params(call, &p);
	else if (json_object_object_get_ex(rpc_conn_session(c)->env, key, &v))
		rpc_call_ok(call, json_object_get(v));
	else
		rpc_call_ok(call, NULL);
}

static void method_env_set(struct rpc_conn *c, struct rpc_call *call, struct json_object *params)
{
	struct session *s = rpc_conn_session(c);
	const char *key, *value;
	struct params p;

	params_init(&p, params);
	key = env_key(&p);
	value = params_str(&p, "value");
	if (!params_ok(&p)) {
		rpc_call_params(call, &p);
	} else if (json_object_object_length(s->env_own) >= ENV_VARS_MAX) {
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
	struct session *s = rpc_conn_session(c);
	struct params p;
	const char *key;

	params_init(&p, params);
	key = env_key(&p);
	if (!params_ok(&p)) {
		rpc_call_params(call, &p);
		return;
	}
	if (json_object_object_get_ex(s->env, key, NULL)) {
		json_object_object_del(s->env, key);
		json_put(s->env_own, key, NULL);
	}
	rpc_call_ok(call, NULL);
}

/* --- editor ---------------------------------------------------------------------------------------------------- */

static void method_vscode(struct rpc_conn *c, struct rpc_call *call, struct json_object *params)
{
	(void)c;
	(void)params;
	rpc_call_error(call, "NotSupported", "ENOTSUP",
		       "VS Code is not in this image. Build an image with the npm package 'code-server' to get it.");
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
	{ "vscode", method_vscode },
};

rpc_method_fn *rpc_method_find(const char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(methods); i++)
		if (!strcmp(methods[i].name, name))
			return methods[i].fn;
	return NULL;
}
