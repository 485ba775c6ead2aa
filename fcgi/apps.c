/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/apps.h"

#include "base/fd.h"
#include "base/log.h"
#include "fcgi/app_config.h"
#include "fcgi/env.h"
#include "fcgi/handlers.h"
#include "fcgi/page.h"
#include "fcgi/peers.h"
#include "fcgi/quota.h"
#include "fcgi/router.h"
#include "fcgi/starts.h"

#include <stdio.h>
#include <string.h>

static const char *const init_keys[] = { "slug", "labels", "env_vars", "config", "layers", NULL };
static const char *const reserved[] = { "api", "www", "console", "admin", "ssh" };

#define APP_COLUMNS "created_ms, id, slug, labels, config, updated_ms"

void domain_shown(const struct config *config, const char *host, char *out, size_t size)
{
	if (config->https_port == 443)
		snprintf(out, size, "%s", host);
	else
		snprintf(out, size, "%s:%u", host, (unsigned int)config->https_port & 0xffffu);
}

enum api_code app_find(struct request *r, const char *id_or_slug, struct app_found *ret)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	struct fault f = { 0 };
	enum rc rc;

	db_start(&q, r->api->db,
		 "SELECT id, slug FROM apps WHERE org_id = ?1 AND (id = ?2 OR slug = ?2) AND deleted_ms IS NULL "
		 "ORDER BY id = ?2 DESC LIMIT 1");
	db_text(&q, r->org_id);
	db_text(&q, id_or_slug);
	rc = db_row(&q, &f);
	if (rc == RC_ABSENT)
		return API_APP_NOT_FOUND;
	if (rc)
		return api_fault(r, &f);
	snprintf(ret->id, sizeof(ret->id), "%s", db_col_text(&q, 0));
	snprintf(ret->slug, sizeof(ret->slug), "%s", db_col_text(&q, 1));
	return API_OK;
}

/* The row under q (APP_COLUMNS) with what other tables know of it. */
static struct json_object *app_json(struct request *r, const struct db_q *q, struct fault *ret_f)
{
	_cleanup_json_ struct json_object *o = json_object_new_object();
	struct db *db = r->api->db;
	struct json_object *env = NULL, *layers = NULL;
	const char *id = db_col_text(q, 1);
	enum rc rc = env_list(db, ENV_APP, id, &env, ret_f);

	if (!rc)
		rc = layer_refs(db, APP_LAYERS_SQL, id, &layers, ret_f);
	json_add_str(o, "id", id);
	json_add_str(o, "slug", db_col_text(q, 2));
	json_add(o, "labels", json_stored(db_col_text(q, 3)));
	json_add(o, "env_vars", env);
	json_add(o, "config", json_stored(db_col_text(q, 4)));
	json_add(o, "layers", layers);
	json_add_time(o, "created_at", db_col_int(q, 0));
	json_add_time(o, "updated_at", db_col_int(q, 5));
	return rc ? NULL : take_ptr(o);
}

static enum api_code app_reply(struct request *r, const char *id)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	struct json_object *o = NULL;
	struct fault f = { 0 };
	enum rc rc;

	db_start(&q, r->api->db, "SELECT " APP_COLUMNS " FROM apps WHERE id = ?");
	db_text(&q, id);
	rc = db_row(&q, &f);
	if (!rc)
		o = app_json(r, &q, &f);
	return o ? reply_json(r, 200, o) : api_fault(r, &f);
}

enum api_code app_get(struct request *r)
{
	struct app_found app;
	enum api_code code = app_find(r, r->args[0], &app);

	return code ? code : app_reply(r, app.id);
}

enum api_code app_list(struct request *r)
{
	_cleanup_page_ struct page page = { 0 };
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	_cleanup_json_ struct json_object *labels = NULL;
	const char *layer = request_query(r, "layer"), *search = request_query(r, "search");
	struct layer_found found = { 0 };
	enum api_code code = page_start(r, &page);

	if (!code)
		code = request_labels(r, &labels);
	if (!code && layer)
		code = layer_find(r, layer, &found);
	if (code)
		return code;
	db_start(&q, r->api->db,
		 "SELECT " APP_COLUMNS " FROM apps WHERE org_id = ? AND deleted_ms IS NULL AND "
		 "(?2 IS NULL OR instr(slug, ?2)) AND "
		 "(?3 IS NULL OR EXISTS (SELECT 1 FROM app_layers x WHERE x.app_id = apps.id AND x.layer_id = ?3)) AND "
		 "(?4 IS NULL OR NOT EXISTS (SELECT 1 FROM json_each(?4) w WHERE NOT EXISTS "
		 "(SELECT 1 FROM json_each(apps.labels) h WHERE h.key = w.key AND h.value = w.value))) AND "
		 "(created_ms, id) < (?5, ?6) ORDER BY created_ms DESC, id DESC LIMIT ?7");
	db_text(&q, r->org_id);
	db_text(&q, search);
	db_text(&q, layer ? found.id : NULL);
	db_text(&q, labels ? json_text(labels) : NULL);
	return page_rows(r, &page, &q, 0, 1, app_json);
}

/* --- changes ---------------------------------------------------------------------------------------------------- */

/* What POST and PATCH have in common, checked. */
struct change {
	const char *slug;
	char made[SLUG_MAX + 1];
	struct json_object *labels, *env_vars, *config, *layer_names;
	struct json_object *layers; /* owned */
};

static void change_free(struct change *c)
{
	json_object_put(c->layers);
}

static enum api_code slug_check(struct request *r, const char *slug)
{
	bool taken = !strcmp(r->api->config.region, slug); /* the API's other name */

	if (!slug_is_valid(slug))
		return API_INVALID_SLUG;
	for (size_t i = 0; i < ARRAY_SIZE(reserved) && !taken; i++)
		taken = !strcmp(reserved[i], slug);
	return taken ? api_fail(r, API_SLUG_TAKEN, "the slug '%s' is reserved", slug) : API_OK;
}

static enum api_code change_parse(struct request *r, struct change *c)
{
	struct json_object *body = NULL;
	struct fault f = { 0 };
	enum api_code code = request_json(r, true, &body);

	if (code)
		return code;
	if (json_only_keys(body, init_keys, &f) || json_get_str(body, "slug", HTTP_SEGMENT_MAX, &c->slug, &f) ||
	    json_get_object(body, "labels", &c->labels, &f) ||
	    json_get_array(body, "env_vars", ENV_VARS_MAX, &c->env_vars, &f) ||
	    json_get_object(body, "config", &c->config, &f) ||
	    json_get_array(body, "layers", LAYERS_MAX, &c->layer_names, &f))
		return api_refuse(r, API_INVALID_REQUEST, &f);
	if (c->slug)
		code = slug_check(r, c->slug);
	if (!code && c->labels && json_check_labels(c->labels, &f))
		code = api_refuse(r, API_INVALID_LABELS, &f);
	if (!code && c->config && app_config_check(c->config, &f))
		code = api_refuse(r, API_INVALID_REQUEST, &f);
	if (!code && c->layer_names)
		code = layers_resolve(r, c->layer_names, &c->layers);
	return code;
}

static enum rc app_insert(struct request *r, const char *id, const struct change *c, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	db_start(&q, r->api->db,
		 "INSERT INTO apps (id, org_id, slug, labels, config, created_ms, updated_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6)");
	db_text(&q, id);
	db_text(&q, r->org_id);
	db_text(&q, c->slug);
	db_text(&q, c->labels ? json_text(c->labels) : "{}");
	db_text(&q, c->config ? json_text(c->config) : "{}");
	db_int(&q, (int64_t)wall_ms());
	return db_run(&q, ret_f);
}

static enum rc timeline_insert(struct db *db, const char *app_id, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	db_start(&q, db,
		 "INSERT INTO timelines (app_id, slug, context, updated_ms) VALUES (?, 'production', 'production', ?)");
	db_text(&q, app_id);
	db_int(&q, (int64_t)wall_ms());
	return db_run(&q, ret_f);
}

/* RC_EXISTS: another app or a preview has the name. */
static enum rc domain_insert(struct request *r, const char *app_id, const char *slug, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	char host[BROKER_HOST_MAX];

	snprintf(host, sizeof(host), "%.32s.%.200s", slug, r->api->config.domain);
	db_start(&q, r->api->db,
		 "INSERT INTO domains (host, app_id, timeline, created_ms) VALUES (?, ?, 'production', ?)");
	db_text(&q, host);
	db_text(&q, app_id);
	db_int(&q, (int64_t)wall_ms());
	return db_run(&q, ret_f);
}

static enum rc create_rows(struct request *r, const char *id, const struct change *c, struct fault *ret_f)
{
	_cleanup_db_txn_ struct db_txn txn = { 0 };
	struct db *db = r->api->db;
	enum rc rc = db_begin(&txn, db, ret_f);

	if (!rc)
		rc = quota_room(db, "SELECT count(*) FROM apps WHERE org_id = ? AND deleted_ms IS NULL", r->org_id, 1, r->api->config.tenant_apps,
				"apps", ret_f);
	if (!rc)
		rc = app_insert(r, id, c, ret_f);
	if (!rc)
		rc = domain_insert(r, id, c->slug, ret_f);
	if (!rc)
		rc = timeline_insert(db, id, ret_f);
	if (!rc && c->env_vars)
		rc = env_insert(db, &r->api->app_key, ENV_APP, id, c->env_vars, ret_f);
	if (!rc && c->layers)
		rc = layer_refs_set(db, true, id, c->layers, ret_f);
	return rc ? rc : db_commit(&txn, ret_f);
}

static enum api_code changed(struct request *r, enum rc rc, const struct fault *f)
{
	if (rc == RC_EXISTS)
		return API_SLUG_TAKEN;
	if (rc == RC_LIMIT)
		return API_APP_QUOTA_EXCEEDED;
	if (rc == RC_INVALID)
		return api_refuse(r, API_INVALID_REQUEST, f);
	if (rc == RC_ABSENT)
		return API_ENV_VAR_NOT_FOUND;
	return rc ? api_fault(r, f) : API_OK;
}

enum api_code app_create(struct request *r)
{
	_cleanup_(change_free) struct change c = { 0 };
	struct fault f = { 0 };
	char id[ID_MAX];
	enum api_code code = change_parse(r, &c);

	if (!code && c.env_vars && env_check_init(c.env_vars, &f))
		code = api_refuse(r, API_INVALID_REQUEST, &f);
	if (code)
		return code;
	if (!c.slug) {
		memcpy(c.made, "app-", 4);
		id_random(c.made + 4, 12);
		c.slug = c.made;
	}
	id_plain(id, "app");
	code = changed(r, create_rows(r, id, &c, &f), &f);
	return code ? code : app_reply(r, id);
}

static enum rc app_update_row(struct request *r, const char *id, const struct change *c, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum rc rc;

	db_start(&q, r->api->db,
		 "UPDATE apps SET slug = ifnull(?, slug), labels = ifnull(?, labels), config = ifnull(?, config), "
		 "updated_ms = ? WHERE id = ? AND deleted_ms IS NULL");
	db_text(&q, c->slug);
	db_text(&q, c->labels ? json_text(c->labels) : NULL);
	db_text(&q, c->config ? json_text(c->config) : NULL);
	db_int(&q, (int64_t)wall_ms());
	db_text(&q, id);
	rc = db_run(&q, ret_f);
	/* Asked again it is answered that there is none. */
	return !rc && !q.changes ? fault_set(ret_f, RC_AGAIN, 0, "app %s was deleted meanwhile", id) : rc;
}

/* Judged by what is in the table, under the write lock: the slug that was read before may have been changed by another request since. */
static enum rc domain_rename(struct request *r, const char *app_id, const char *slug, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q gone = DB_Q_INIT, has = DB_Q_INIT;
	char host[BROKER_HOST_MAX];
	enum rc rc;

	snprintf(host, sizeof(host), "%.32s.%.200s", slug, r->api->config.domain);
	db_start(&gone, r->api->db,
		 "DELETE FROM domains WHERE app_id = ?1 AND timeline = 'production' AND host != ?2 AND host NOT IN "
		 "(SELECT host FROM custom_domains WHERE app_id = ?1)");
	db_text(&gone, app_id);
	db_text(&gone, host);
	rc = db_run(&gone, ret_f);
	if (rc)
		return rc;
	db_start(&has, r->api->db, "SELECT 1 FROM domains WHERE host = ? AND app_id = ?");
	db_text(&has, host);
	db_text(&has, app_id);
	rc = db_row(&has, ret_f);
	return rc == RC_ABSENT ? domain_insert(r, app_id, slug, ret_f) : rc;
}

static enum rc update_rows(struct request *r, const struct app_found *app, const struct change *c,
			   struct fault *ret_f)
{
	_cleanup_db_txn_ struct db_txn txn = { 0 };
	struct db *db = r->api->db;
	enum rc rc = db_begin(&txn, db, ret_f);

	if (!rc)
		rc = app_update_row(r, app->id, c, ret_f);
	if (!rc && c->slug)
		rc = domain_rename(r, app->id, c->slug, ret_f);
	if (!rc && c->env_vars)
		rc = env_update(db, &r->api->app_key, ENV_APP, app->id, c->env_vars, ret_f);
	if (!rc && c->layers)
		rc = layer_refs_set(db, true, app->id, c->layers, ret_f);
	if (!rc && (c->env_vars || c->layers))
		rc = starts_forget_of_app(db, app->id, ret_f);
	return rc ? rc : db_commit(&txn, ret_f);
}

enum api_code app_update(struct request *r)
{
	_cleanup_(change_free) struct change c = { 0 };
	struct app_found app;
	struct fault f = { 0 };
	enum api_code code = app_find(r, r->args[0], &app);

	if (!code)
		code = change_parse(r, &c);
	if (!code)
		code = changed(r, update_rows(r, &app, &c, &f), &f);
	if (code)
		return code;
	runner_kick(r->api);
	return app_reply(r, app.id);
}

static enum rc run_for(struct db *db, const char *sql, const char *id, bool with_time, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	db_start(&q, db, sql);
	db_text(&q, id);
	if (with_time)
		db_int(&q, (int64_t)wall_ms());
	return db_run(&q, ret_f);
}

static enum rc delete_rows(struct db *db, const char *id, struct fault *ret_f)
{
	_cleanup_db_txn_ struct db_txn txn = { 0 };
	enum rc rc = db_begin(&txn, db, ret_f);

	if (!rc)
		rc = run_for(db, "UPDATE apps SET deleted_ms = ?2 WHERE id = ?1", id, true, ret_f);
	if (!rc)
		rc = run_for(db,
			     "UPDATE revisions SET cancel_requested_ms = ?2 WHERE app_id = ?1 AND "
			     "status IN ('queued', 'building') AND cancel_requested_ms IS NULL",
			     id, true, ret_f);
	if (!rc)
		rc = run_for(db, "DELETE FROM app_layers WHERE app_id = ?", id, false, ret_f);
	if (!rc)
		rc = run_for(db, "DELETE FROM domains WHERE app_id = ?", id, false, ret_f);
	return rc ? rc : db_commit(&txn, ret_f);
}

/* From now on the app's names lead nowhere; the runner ends its machines. */
static void unexpose(struct request *r, const char *id)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	struct fault f = { 0 };

	db_start(&q, r->api->db, "SELECT host FROM domains WHERE app_id = ?");
	db_text(&q, id);
	while (!db_row(&q, &f))
		if (broker_expose_remove(r->api, db_col_text(&q, 0), &f) && f.rc != RC_ABSENT)
			log_fault(LOG_LEVEL_WARN, &f, "unexpose app %s", id);
}

enum api_code app_delete(struct request *r)
{
	struct app_found app;
	struct fault f = { 0 };
	enum api_code code = app_find(r, r->args[0], &app);

	if (code)
		return code;
	unexpose(r, app.id);
	if (delete_rows(r->api->db, app.id, &f))
		return api_fault(r, &f);
	runner_kick(r->api);
	return reply_empty(r, 204);
}
