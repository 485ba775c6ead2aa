/* SPDX-License-Identifier: Apache-2.0 */
#include "base/fd.h"
#include "fcgi/apps.h"
#include "fcgi/env.h"
#include "fcgi/handlers.h"
#include "fcgi/page.h"
#include "fcgi/peers.h"
#include "fcgi/starts.h"

#include <stdio.h>
#include <string.h>

static const char *const init_keys[] = { "slug", "description", "layers", "env_vars", NULL };

#define LAYER_COLUMNS "created_ms, id, slug, description, updated_ms"

enum api_code layer_find(struct request *r, const char *id_or_slug, struct layer_found *ret)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	struct fault f = { 0 };
	enum rc rc;

	db_start(&q, r->api->db,
		 "SELECT id, slug FROM layers WHERE org_id = ?1 AND (id = ?2 OR slug = ?2) ORDER BY id = ?2 DESC LIMIT 1");
	db_text(&q, r->org_id);
	db_text(&q, id_or_slug);
	rc = db_row(&q, &f);
	if (rc == RC_ABSENT)
		return api_fail(r, API_LAYER_NOT_FOUND, "no such layer: %s", shown(id_or_slug));
	if (rc)
		return api_fault(r, &f);
	snprintf(ret->id, sizeof(ret->id), "%s", db_col_text(&q, 0));
	snprintf(ret->slug, sizeof(ret->slug), "%s", db_col_text(&q, 1));
	return API_OK;
}

static bool has_ref(struct json_object *refs, const char *id)
{
	for (size_t i = 0; i < json_object_array_length(refs); i++)
		if (!strcmp(json_object_get_string(json_get(json_object_array_get_idx(refs, i), "id")), id))
			return true;
	return false;
}

static void ref_add(struct json_object *refs, const char *id, const char *slug)
{
	struct json_object *o = json_object_new_object();

	json_add_str(o, "id", id);
	json_add_str(o, "slug", slug);
	json_object_array_add(refs, o);
}

enum api_code layers_resolve(struct request *r, struct json_object *names, struct json_object **ret)
{
	_cleanup_json_ struct json_object *refs = json_object_new_array();
	enum api_code code = API_OK;

	for (size_t i = 0; !code && i < json_object_array_length(names); i++) {
		struct layer_found layer;
		struct fault f = { 0 };
		const char *name;

		if (json_as_str(json_object_array_get_idx(names, i), "layers", ID_MAX, &name, &f))
			return api_refuse(r, API_INVALID_REQUEST, &f);
		code = layer_find(r, name, &layer);
		if (!code && !has_ref(refs, layer.id))
			ref_add(refs, layer.id, layer.slug);
	}
	if (!code)
		*ret = take_ptr(refs);
	return code;
}

enum rc layer_refs(struct db *db, const char *sql, const char *owner_id, struct json_object **ret,
		   struct fault *ret_f)
{
	_cleanup_json_ struct json_object *refs = json_object_new_array();
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum rc rc;

	db_start(&q, db, sql);
	db_text(&q, owner_id);
	while (!(rc = db_row(&q, ret_f)))
		ref_add(refs, db_col_text(&q, 0), db_col_text(&q, 1));
	if (rc != RC_ABSENT)
		return rc;
	*ret = take_ptr(refs);
	return RC_OK;
}

static enum rc ref_insert(struct db *db, bool of_app, const char *owner_id, size_t position, const char *layer_id,
			  struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	db_start(&q, db,
		 of_app ? "INSERT INTO app_layers (app_id, position, layer_id) VALUES (?, ?, ?)" :
			  "INSERT INTO layer_layers (layer_id, position, included_id) VALUES (?, ?, ?)");
	db_text(&q, owner_id);
	db_int(&q, (int64_t)position);
	db_text(&q, layer_id);
	return db_run(&q, ret_f);
}

enum rc layer_refs_set(struct db *db, bool of_app, const char *owner_id, struct json_object *refs,
		       struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum rc rc;

	db_start(&q, db,
		 of_app ? "DELETE FROM app_layers WHERE app_id = ?" : "DELETE FROM layer_layers WHERE layer_id = ?");
	db_text(&q, owner_id);
	rc = db_run(&q, ret_f);
	for (size_t i = 0; !rc && i < json_object_array_length(refs); i++)
		rc = ref_insert(db, of_app, owner_id, i,
				json_object_get_string(json_get(json_object_array_get_idx(refs, i), "id")), ret_f);
	return rc;
}

/*
 * Longest chain of inclusions from a layer in one direction, itself counted; LAYER_DEPTH_MAX + 1 stands for all longer ones, and for a circle. ret_back:
 * it comes back to where it began.
 */
static enum rc chain(struct db *db, bool down, const char *id, int64_t *ret_n, bool *ret_back, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum rc rc;

	db_start(&q, db,
		 down ? "WITH RECURSIVE way(id, n) AS (SELECT ?1, 1 UNION SELECT x.included_id, n + 1 FROM way JOIN layer_layers x "
			"ON x.layer_id = way.id WHERE n <= ?2) SELECT max(n), max(n > 1 AND id = ?1) FROM way" :
			"WITH RECURSIVE way(id, n) AS (SELECT ?1, 1 UNION SELECT x.layer_id, n + 1 FROM way JOIN layer_layers x "
			"ON x.included_id = way.id WHERE n <= ?2) SELECT max(n), max(n > 1 AND id = ?1) FROM way");
	db_text(&q, id);
	db_int(&q, LAYER_DEPTH_MAX);
	rc = db_row(&q, ret_f);
	if (rc)
		return rc;
	*ret_n = db_col_int(&q, 0);
	*ret_back = db_col_int(&q, 1);
	return RC_OK;
}

/* What a layer includes may make those that include it too deep, which nobody looks at then: so the chain through it is measured both ways. */
static enum rc depth_check(struct db *db, const char *id, struct fault *ret_f)
{
	int64_t below = 0, above = 0;
	bool back = false, ignored;
	enum rc rc = chain(db, true, id, &below, &back, ret_f);

	if (!rc)
		rc = chain(db, false, id, &above, &ignored, ret_f);
	if (rc)
		return rc;
	if (back)
		return fault_set(ret_f, RC_LIMIT, 0, "layers include each other in a circle");
	if (below + above - 1 > LAYER_DEPTH_MAX)
		return fault_set(ret_f, RC_LIMIT, 0, "layers include each other more than %d deep", LAYER_DEPTH_MAX);
	return RC_OK;
}

static struct json_object *layer_json(struct request *r, const struct db_q *q, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q count = DB_Q_INIT;
	_cleanup_json_ struct json_object *o = json_object_new_object();
	struct json_object *env = NULL, *layers = NULL;
	const char *id = db_col_text(q, 1);
	struct db *db = r->api->db;
	enum rc rc = env_list(db, ENV_LAYER, id, &env, ret_f);

	if (!rc)
		rc = layer_refs(db, LAYER_LAYERS_SQL, id, &layers, ret_f);
	json_add_str(o, "id", id);
	json_add_str(o, "slug", db_col_text(q, 2));
	if (!db_col_null(q, 3))
		json_add_str(o, "description", db_col_text(q, 3));
	json_add(o, "layers", layers);
	json_add(o, "env_vars", env);
	db_start(&count, db, "SELECT count(*) FROM app_layers WHERE layer_id = ?");
	db_text(&count, id);
	if (!rc)
		rc = db_row(&count, ret_f);
	if (rc)
		return NULL;
	json_add_int(o, "app_count", db_col_int(&count, 0));
	json_add_time(o, "created_at", db_col_int(q, 0));
	json_add_time(o, "updated_at", db_col_int(q, 4));
	return take_ptr(o);
}

static enum api_code layer_reply(struct request *r, const char *id)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	struct json_object *o = NULL;
	struct fault f = { 0 };
	enum rc rc;

	db_start(&q, r->api->db, "SELECT " LAYER_COLUMNS " FROM layers WHERE id = ?");
	db_text(&q, id);
	rc = db_row(&q, &f);
	if (!rc)
		o = layer_json(r, &q, &f);
	return o ? reply_json(r, 200, o) : api_fault(r, &f);
}

enum api_code layer_get(struct request *r)
{
	struct layer_found layer;
	enum api_code code = layer_find(r, r->args[0], &layer);

	return code ? code : layer_reply(r, layer.id);
}

enum api_code layer_list(struct request *r)
{
	_cleanup_page_ struct page page = { 0 };
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum api_code code = page_start(r, &page);

	if (code)
		return code;
	db_start(&q, r->api->db,
		 "SELECT " LAYER_COLUMNS " FROM layers WHERE org_id = ?1 AND (?2 IS NULL OR instr(slug, ?2) OR "
		 "instr(ifnull(description, ''), ?2)) AND (created_ms, id) < (?3, ?4) ORDER BY created_ms DESC, id DESC "
		 "LIMIT ?5");
	db_text(&q, r->org_id);
	db_text(&q, request_query(r, "search"));
	return page_rows(r, &page, &q, 0, 1, layer_json);
}

static struct json_object *layer_app_json(struct request *r, const struct db_q *q, struct fault *ret_f)
{
	struct json_object *o = json_object_new_object();

	(void)r, (void)ret_f;
	json_add_str(o, "id", db_col_text(q, 1));
	json_add_str(o, "slug", db_col_text(q, 2));
	json_add_int(o, "layer_position", db_col_int(q, 3));
	return o;
}

enum api_code layer_apps(struct request *r)
{
	_cleanup_page_ struct page page = { 0 };
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	struct layer_found layer;
	enum api_code code = layer_find(r, r->args[0], &layer);

	if (!code)
		code = page_start(r, &page);
	if (code)
		return code;
	db_start(&q, r->api->db,
		 "SELECT a.created_ms, a.id, a.slug, x.position FROM app_layers x JOIN apps a ON a.id = x.app_id "
		 "WHERE x.layer_id = ? AND a.deleted_ms IS NULL AND (a.created_ms, a.id) < (?, ?) "
		 "ORDER BY a.created_ms DESC, a.id DESC LIMIT ?");
	db_text(&q, layer.id);
	return page_rows(r, &page, &q, 0, 1, layer_app_json);
}

/* --- changes ---------------------------------------------------------------------------------------------------- */

struct change {
	const char *slug, *description;
	struct json_object *env_vars, *layer_names;
	struct json_object *layers; /* owned */
};

static void change_free(struct change *c)
{
	json_object_put(c->layers);
}

static enum api_code change_parse(struct request *r, struct change *c)
{
	struct json_object *body = NULL;
	struct fault f = { 0 };
	enum api_code code = request_json(r, false, &body);

	if (code)
		return code;
	if (json_only_keys(body, init_keys, &f) || json_get_str(body, "slug", HTTP_SEGMENT_MAX, &c->slug, &f) ||
	    json_get_str(body, "description", DESCRIPTION_MAX, &c->description, &f) ||
	    json_get_array(body, "env_vars", ENV_VARS_MAX, &c->env_vars, &f) ||
	    json_get_array(body, "layers", LAYERS_MAX, &c->layer_names, &f))
		return api_refuse(r, API_INVALID_REQUEST, &f);
	if (c->slug && !slug_is_valid(c->slug))
		return API_INVALID_SLUG;
	return c->layer_names ? layers_resolve(r, c->layer_names, &c->layers) : API_OK;
}

static enum api_code changed(struct request *r, enum rc rc, const struct fault *f)
{
	switch (rc) {
	case RC_OK:
		return API_OK;
	case RC_EXISTS:
		return API_SLUG_TAKEN;
	case RC_INVALID:
		return api_refuse(r, API_INVALID_REQUEST, f);
	case RC_ABSENT:
		return API_ENV_VAR_NOT_FOUND;
	case RC_LIMIT:
		return api_refuse(r, API_LAYER_CYCLE, f);
	default:
		return api_fault(r, f);
	}
}

static enum rc insert_row(struct request *r, const char *id, const struct change *c, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	db_start(&q, r->api->db,
		 "INSERT INTO layers (id, org_id, slug, description, created_ms, updated_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?5)");
	db_text(&q, id);
	db_text(&q, r->org_id);
	db_text(&q, c->slug);
	db_text(&q, c->description);
	db_int(&q, (int64_t)wall_ms());
	return db_run(&q, ret_f);
}

static enum rc update_row(struct request *r, const char *id, const struct change *c, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	db_start(&q, r->api->db,
		 "UPDATE layers SET slug = ifnull(?, slug), description = ifnull(?, description), updated_ms = ? WHERE id = ?");
	db_text(&q, c->slug);
	db_text(&q, c->description);
	db_int(&q, (int64_t)wall_ms());
	db_text(&q, id);
	return db_run(&q, ret_f);
}

static enum rc write_rows(struct request *r, const char *id, bool is_new, const struct change *c,
			  struct fault *ret_f)
{
	_cleanup_db_txn_ struct db_txn txn = { 0 };
	struct db *db = r->api->db;
	enum rc rc = db_begin(&txn, db, ret_f);

	if (!rc)
		rc = is_new ? insert_row(r, id, c, ret_f) : update_row(r, id, c, ret_f);
	if (!rc && c->env_vars)
		rc = is_new ? env_insert(db, &r->api->app_key, ENV_LAYER, id, c->env_vars, ret_f) :
			      env_update(db, &r->api->app_key, ENV_LAYER, id, c->env_vars, ret_f);
	if (!rc && c->layers)
		rc = layer_refs_set(db, false, id, c->layers, ret_f);
	if (!rc && c->layers)
		rc = depth_check(db, id, ret_f);
	if (!rc && !is_new)
		rc = starts_forget_of_org(db, r->org_id, ret_f);
	return rc ? rc : db_commit(&txn, ret_f);
}

enum api_code layer_create(struct request *r)
{
	_cleanup_(change_free) struct change c = { 0 };
	struct fault f = { 0 };
	char id[ID_MAX];
	enum api_code code = change_parse(r, &c);

	if (!code && !c.slug)
		code = API_INVALID_SLUG;
	if (!code && c.env_vars && env_check_init(c.env_vars, &f))
		code = api_refuse(r, API_INVALID_REQUEST, &f);
	if (code)
		return code;
	id_plain(id, "lay");
	code = changed(r, write_rows(r, id, true, &c, &f), &f);
	return code ? code : layer_reply(r, id);
}

enum api_code layer_update(struct request *r)
{
	_cleanup_(change_free) struct change c = { 0 };
	struct layer_found layer;
	struct fault f = { 0 };
	enum api_code code = layer_find(r, r->args[0], &layer);

	if (!code)
		code = change_parse(r, &c);
	if (!code)
		code = changed(r, write_rows(r, layer.id, false, &c, &f), &f);
	return code ? code : layer_reply(r, layer.id);
}

enum api_code layer_delete(struct request *r)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	struct layer_found layer;
	struct fault f = { 0 };
	enum api_code code = layer_find(r, r->args[0], &layer);
	enum rc rc;

	if (code)
		return code;
	db_start(&q, r->api->db, "DELETE FROM layers WHERE id = ?");
	db_text(&q, layer.id);
	rc = db_run(&q, &f);
	if (rc == RC_STATE)
		return API_LAYER_IN_USE;
	return rc ? api_fault(r, &f) : reply_empty(r, 204);
}
