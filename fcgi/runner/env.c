/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/runner/env.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "fcgi/runner/limits.h"
#include "fcgi/seal.h"

#include <string.h>

static bool in_context(const char *contexts, const char *context)
{
	struct json_object *o = json_tokener_parse(contexts);
	bool hit = json_object_is_type(o, json_type_string) && !strcmp(json_object_get_string(o), "all");

	for (size_t i = 0; !hit && json_object_is_type(o, json_type_array) && i < json_object_array_length(o); i++) {
		struct json_object *v = json_object_array_get_idx(o, i);

		hit = json_object_is_type(v, json_type_string) && !strcmp(json_object_get_string(v), context);
	}
	json_object_put(o);
	return hit;
}

static enum rc add_rows(struct db *db, const struct config *c, const char *sql, const char *id, const char *context,
			struct json_object *env, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	struct seal_key key;
	bool have_key = false;
	enum rc rc;

	db_start(&q, db, sql);
	db_text(&q, id);
	while (!(rc = db_row(&q, ret_f))) {
		_cleanup_free_ char *value = NULL;

		if (!in_context(db_col_text(&q, 4), context))
			continue;
		if (!db_col_int(&q, 3)) {
			json_object_object_add(env, db_col_text(&q, 1), json_object_new_string(db_col_text(&q, 2)));
			continue;
		}
		rc = have_key ? RC_OK : seal_key_load(&key, c->state_dir, SEAL_API_KEY_FILE, ret_f);
		have_key = !rc;
		if (!rc)
			rc = seal_open(&key, db_col_text(&q, 2), db_col_text(&q, 0), &value, ret_f);
		if (rc || !value)
			break;
		json_object_object_add(env, db_col_text(&q, 1), json_object_new_string(value));
		explicit_bzero(value, strlen(value));
	}
	explicit_bzero(&key, sizeof(key));
	return rc == RC_ABSENT ? RC_OK : rc;
}

static enum rc add_own(struct db *db, const char *revision, struct json_object *env, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	struct json_object *list;
	enum rc rc;

	db_start(&q, db, "SELECT env_vars FROM revisions WHERE id = ?");
	db_text(&q, revision);
	rc = db_row(&q, ret_f);
	if (rc)
		return rc;
	list = json_tokener_parse(db_col_text(&q, 0));
	for (size_t i = 0; json_object_is_type(list, json_type_array) && i < json_object_array_length(list); i++) {
		struct json_object *o = json_object_array_get_idx(list, i), *key, *value;

		if (json_object_object_get_ex(o, "key", &key) && json_object_object_get_ex(o, "value", &value))
			json_object_object_add(env, json_object_get_string(key), json_object_get(value));
	}
	json_object_put(list);
	return RC_OK;
}

enum rc env_load(struct db *db, const struct config *c, const char *app_id, const char *revision, bool production,
		 struct json_object **ret, struct fault *ret_f)
{
	static const char layers[] =
		"SELECT e.id, e.key, e.value, e.secret, e.contexts FROM app_layers l JOIN env_vars e ON e.layer_id = l.layer_id "
		"WHERE l.app_id = ? ORDER BY l.position, e.position";
	static const char own[] = "SELECT id, key, value, secret, contexts FROM env_vars WHERE app_id = ? ORDER BY position";
	const char *context = production ? "production" : "preview";
	struct json_object *env = json_object_new_object();
	char port[16], address[48];
	enum rc rc;

	if (!env)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	rc = add_rows(db, c, layers, app_id, context, env, ret_f);
	if (!rc)
		rc = add_rows(db, c, own, app_id, context, env, ret_f);
	if (!rc)
		rc = add_own(db, revision, env, ret_f);
	if (rc) {
		json_object_put(env);
		return rc;
	}
	snprintf(port, sizeof(port), "%d", RUNNER_APP_PORT);
	snprintf(address, sizeof(address), "tcp:0.0.0.0:%d", RUNNER_APP_PORT);
	json_object_object_add(env, "PORT", json_object_new_string(port));
	/* Deno.serve() without arguments listens here. */
	json_object_object_add(env, "DENO_SERVE_ADDRESS", json_object_new_string(address));
	json_object_object_add(env, "DENO_DEPLOYMENT_ID", json_object_new_string(revision));
	json_object_object_add(env, "DENO_REGION", json_object_new_string(c->region));
	json_object_object_add(env, "DENO_TIMELINE", json_object_new_string(context));
	*ret = env;
	return RC_OK;
}
