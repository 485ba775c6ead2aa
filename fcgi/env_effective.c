/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory: layers form a graph without circles in which the ways from an app to a layer may be without number (16 layers that all include the
 * same 16, eight deep, have 4 billion), so a layer that was taken is not taken again: what it has is there, and what came first stays.
 * Only if it is reached by a shorter way, what it includes may go deeper than before.
 */
#include "fcgi/env.h"

#include "fcgi/ids.h"
#include "fcgi/limits.h"

#include <string.h>

struct gather {
	struct db *db;
	const struct seal_key *key;
	const char *context;
	struct json_object *env;
	struct json_object *seen; /* layer -> the least depth it was taken at */
	size_t bytes;
};

static enum rc put(struct gather *g, const char *name, const char *value, struct fault *ret_f)
{
	g->bytes += strlen(name) + strlen(value) + 2;
	if (g->bytes > ENV_EFFECTIVE_MAX)
		return fault_set(ret_f, RC_LIMIT, 0, "the variables of the app and its layers are larger than %d bytes together",
				 ENV_EFFECTIVE_MAX);
	json_add_str(g->env, name, value);
	return RC_OK;
}

static bool in_context(const char *contexts, const char *context)
{
	_cleanup_json_ struct json_object *o = json_stored(contexts);

	if (!json_object_is_type(o, json_type_array))
		return true;
	for (size_t i = 0; i < json_object_array_length(o); i++)
		if (!strcmp(json_object_get_string(json_object_array_get_idx(o, i)), context))
			return true;
	return false;
}

/* keep: a name that is there already stays. */
static enum rc add_owner(struct gather *g, const char *sql, const char *owner_id, bool keep, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum rc rc;

	db_start(&q, g->db, sql);
	db_text(&q, owner_id);
	while (!(rc = db_row(&q, ret_f))) {
		_cleanup_free_ char *plain = NULL;
		const char *name = db_col_text(&q, 1);

		if (!in_context(db_col_text(&q, 4), g->context) ||
		    (keep && json_object_object_get_ex(g->env, name, NULL)))
			continue;
		if (db_col_int(&q, 3)) {
			rc = seal_open(g->key, db_col_text(&q, 2), db_col_text(&q, 0), &plain, ret_f);
			if (rc)
				return rc;
		}
		rc = put(g, name, plain ? plain : db_col_text(&q, 2), ret_f);
		if (rc)
			return rc;
	}
	return rc == RC_ABSENT ? RC_OK : rc;
}

/* A layer first, then what it includes: what came first stays. */
static enum rc add_layer(struct gather *g, const char *layer_id, int depth, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	int64_t before = INT64_MAX;
	enum rc rc = json_get_int(g->seen, layer_id, &before, ret_f);

	if (rc || depth >= before)
		return rc;
	/* Changes of layers are refused before it comes to this; what has deeper ones all the same does not start without their variables. */
	if (depth > LAYER_DEPTH_MAX)
		return fault_set(ret_f, RC_LIMIT, 0, "layers include each other more than %d deep", LAYER_DEPTH_MAX);
	json_add_int(g->seen, layer_id, depth);
	rc = add_owner(g, "SELECT id, key, value, secret, contexts FROM env_vars WHERE layer_id = ? ORDER BY position",
		       layer_id, true, ret_f);
	if (rc)
		return rc;
	db_start(&q, g->db, "SELECT included_id FROM layer_layers WHERE layer_id = ? ORDER BY position");
	db_text(&q, layer_id);
	while (!(rc = db_row(&q, ret_f))) {
		rc = add_layer(g, db_col_text(&q, 0), depth + 1, ret_f);
		if (rc)
			return rc;
	}
	return rc == RC_ABSENT ? RC_OK : rc;
}

static enum rc add_layers(struct gather *g, const char *layers, struct fault *ret_f)
{
	_cleanup_json_ struct json_object *list = json_stored(layers);
	enum rc rc = RC_OK;

	for (size_t i = 0; !rc && json_object_is_type(list, json_type_array) && i < json_object_array_length(list); i++) {
		struct json_object *id = json_get(json_object_array_get_idx(list, i), "id");

		if (id)
			rc = add_layer(g, json_object_get_string(id), 1, ret_f);
	}
	return rc;
}

static enum rc add_own(struct gather *g, const char *env_vars, struct fault *ret_f)
{
	_cleanup_json_ struct json_object *list = json_stored(env_vars);
	enum rc rc = RC_OK;

	for (size_t i = 0; !rc && json_object_is_type(list, json_type_array) && i < json_object_array_length(list); i++) {
		struct json_object *o = json_object_array_get_idx(list, i);
		struct json_object *key = json_get(o, "key"), *value = json_get(o, "value");

		if (key && value)
			rc = put(g, json_object_get_string(key), json_object_get_string(value), ret_f);
	}
	return rc;
}

enum rc env_effective(struct db *db, const struct seal_key *key, const char *revision_id, const char *context,
		      struct json_object **ret, struct fault *ret_f)
{
	_cleanup_json_ struct json_object *env = json_object_new_object(), *seen = json_object_new_object();
	struct gather g = { .db = db, .key = key, .context = context, .env = env, .seen = seen };
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum rc rc;

	if (!env || !seen)
		return fault_set(ret_f, RC_NOMEM, 0, "environment");
	db_start(&q, db, "SELECT app_id, layers, env_vars FROM revisions WHERE id = ?");
	db_text(&q, revision_id);
	rc = db_row(&q, ret_f);
	if (!rc)
		rc = add_layers(&g, db_col_text(&q, 1), ret_f);
	if (!rc)
		rc = add_owner(&g, "SELECT id, key, value, secret, contexts FROM env_vars WHERE app_id = ? ORDER BY position",
			       db_col_text(&q, 0), false, ret_f);
	if (!rc)
		rc = add_own(&g, db_col_text(&q, 2), ret_f);
	if (rc)
		return rc;
	*ret = take_ptr(env);
	return RC_OK;
}
