/* SPDX-License-Identifier: Apache-2.0 */
/* An app's own domains, and the machines that serve it: beyond what the client's package knows. */
#include "base/fd.h"
#include "fcgi/apps.h"
#include "fcgi/domains.h"
#include "fcgi/handlers.h"
#include "fcgi/page.h"
#include "fcgi/peers.h"

#include <string.h>

static struct json_object *domain_json(const char *host, int64_t created_ms, int64_t approved_ms)
{
	struct json_object *o = json_object_new_object();

	json_add_str(o, "domain", host);
	json_add_str(o, "status", approved_ms ? "active" : "pending");
	json_add_time(o, "created_at", created_ms);
	json_add_time_or_null(o, "approved_at", approved_ms);
	return o;
}

enum api_code app_domain_list(struct request *r)
{
	_cleanup_json_ struct json_object *list = json_object_new_array();
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	struct app_found app;
	struct fault f = { 0 };
	enum api_code code = app_find(r, r->args[0], &app);
	enum rc rc;

	if (code)
		return code;
	db_start(&q, r->api->db, "SELECT host, created_ms, approved_ms FROM custom_domains WHERE app_id = ? ORDER BY host");
	db_text(&q, app.id);
	while (!(rc = db_row(&q, &f)))
		json_object_array_add(list, domain_json(db_col_text(&q, 0), db_col_int(&q, 1), db_col_int(&q, 2)));
	return rc == RC_ABSENT ? reply_json(r, 200, take_ptr(list)) : api_fault(r, &f);
}

enum api_code app_domain_add(struct request *r)
{
	static const char *const keys[] = { "domain", NULL };
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	struct json_object *body = NULL;
	const char *host = NULL;
	struct app_found app;
	struct fault f = { 0 };
	int64_t now = (int64_t)wall_ms();
	enum api_code code = app_find(r, r->args[0], &app);

	if (!code)
		code = request_json(r, false, &body);
	if (code)
		return code;
	if (json_only_keys(body, keys, &f) || json_get_str(body, "domain", HTTP_SEGMENT_MAX, &host, &f))
		return api_refuse(r, API_INVALID_REQUEST, &f);
	if (!host || !domain_is_valid(host, r->api->config.domain))
		return API_INVALID_DOMAIN;
	/* One statement, so that requests at once are counted one after the other; what is there already is a conflict first. */
	db_start(&q, r->api->db,
		 "INSERT INTO custom_domains (app_id, host, created_ms) SELECT ?1, ?2, ?3 WHERE ?4 > "
		 "(SELECT count(*) FROM custom_domains WHERE app_id = ?1) OR EXISTS "
		 "(SELECT 1 FROM custom_domains WHERE app_id = ?1 AND host = ?2)");
	db_text(&q, app.id);
	db_text(&q, host);
	db_int(&q, now);
	db_int(&q, APP_DOMAINS_MAX);
	switch (db_run(&q, &f)) {
	case RC_OK: return q.changes ? reply_json(r, 201, domain_json(host, now, 0)) : API_DOMAIN_QUOTA_EXCEEDED;
	case RC_EXISTS: return API_DOMAIN_EXISTS;
	default: return api_fault(r, &f);
	}
}

enum api_code app_domain_delete(struct request *r)
{
	struct app_found app;
	struct fault f = { 0 };
	enum api_code code = app_find(r, r->args[0], &app);
	enum rc rc;

	if (code)
		return code;
	rc = domain_remove(r->api->db, r->args[1], app.id, &f);
	if (rc == RC_ABSENT)
		return API_DOMAIN_NOT_FOUND;
	if (rc)
		return api_fault(r, &f);
	runner_kick(r->api);
	return reply_empty(r, 204);
}

static struct json_object *instance_json(struct request *r, const struct db_q *q, struct fault *ret_f)
{
	struct json_object *o = json_object_new_object();

	(void)r, (void)ret_f;
	json_add_str(o, "id", db_col_text(q, 1));
	json_add_str(o, "revision_id", db_col_text(q, 2));
	json_add_str(o, "state", db_col_text(q, 3));
	json_add_bool(o, "warm", db_col_int(q, 4));
	json_add_int(o, "restarts", db_col_int(q, 5));
	json_add_time(o, "created_at", db_col_int(q, 0));
	json_add_time_or_null(o, "running_at", db_col_int(q, 6));
	json_add_time_or_null(o, "ended_at", db_col_int(q, 7));
	json_add_str(o, "reason", db_col_text(q, 8));
	return o;
}

/* Newest first, those that ended of late included. */
enum api_code app_instance_list(struct request *r)
{
	_cleanup_page_ struct page page = { 0 };
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	struct app_found app;
	enum api_code code = app_find(r, r->args[0], &app);

	if (!code)
		code = page_start(r, &page);
	if (code)
		return code;
	db_start(&q, r->api->db,
		 "SELECT created_ms, id, revision_id, state, warm, restarts, running_ms, ended_ms, reason FROM instances WHERE app_id = ? AND "
		 "(created_ms, id) < (?, ?) ORDER BY created_ms DESC, id DESC LIMIT ?");
	db_text(&q, app.id);
	return page_rows(r, &page, &q, 0, 1, instance_json);
}
