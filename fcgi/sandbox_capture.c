/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/sandbox_capture.h"

#include "base/fd.h"
#include "base/log.h"
#include "fcgi/handlers.h"
#include "fcgi/page.h"
#include "fcgi/peers.h"
#include "fcgi/quota.h"
#include "fcgi/sandboxes.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define COLUMNS "created_ms, id, sandbox_id, region, memory_mib, bytes, labels"

static struct json_object *capture_json(struct request *r, const struct db_q *q, struct fault *ret_f)
{
	struct json_object *o = json_object_new_object(), *labels = json_stored(db_col_text(q, 6));

	(void)r, (void)ret_f;
	json_add_str(o, "id", db_col_text(q, 1));
	json_add_str(o, "sandboxId", db_col_text(q, 2));
	json_add_str(o, "region", db_col_text(q, 3));
	json_add_int(o, "memoryMib", db_col_int(q, 4));
	json_add_int(o, "bytes", db_col_int(q, 5));
	json_add(o, "labels", labels ? labels : json_object_new_object());
	json_add_time(o, "createdAt", db_col_int(q, 0));
	return o;
}

/* Those that are being taken (bytes 0) are nobody's business yet. */
static enum api_code capture_row(struct request *r, const char *id, struct db_q *q)
{
	struct fault f = { 0 };
	enum rc rc;

	if (!id_is_regional(id, "cap"))
		return API_CAPTURE_NOT_FOUND;
	db_start(q, r->api->db, "SELECT " COLUMNS " FROM sandbox_captures WHERE org_id = ? AND id = ? AND bytes > 0");
	db_text(q, r->org_id);
	db_text(q, id);
	rc = db_row(q, &f);
	return !rc ? API_OK : rc == RC_ABSENT ? API_CAPTURE_NOT_FOUND : api_fault(r, &f);
}

enum api_code capture_resolve(struct request *r, const char *root, struct capture_use *ret)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum api_code code;

	*ret->id = '\0';
	if (!id_is_regional(root, "cap"))
		return API_OK;
	code = capture_row(r, root, &q);
	if (code)
		return code;
	snprintf(ret->id, sizeof(ret->id), "%s", root);
	ret->memory_mib = (uint32_t)db_col_int(&q, 4);
	return API_OK;
}

/* --- lists --------------------------------------------------------------------------------------------------------- */

static enum api_code list(struct request *r, const char *sandbox)
{
	_cleanup_page_ struct page page = { 0 };
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum api_code code = page_start(r, &page);

	if (code)
		return code;
	db_start(&q, r->api->db,
		 "SELECT " COLUMNS " FROM sandbox_captures WHERE org_id = ?1 AND (?2 IS NULL OR sandbox_id = ?2) AND bytes > 0 AND "
		 "(created_ms, id) < (?3, ?4) ORDER BY created_ms DESC, id DESC LIMIT ?5");
	db_text(&q, r->org_id);
	db_text(&q, sandbox);
	return page_rows(r, &page, &q, 0, 1, capture_json);
}

enum api_code capture_list(struct request *r)
{
	return list(r, NULL);
}

enum api_code sandbox_capture_list(struct request *r)
{
	struct sandbox_found s = { 0 };
	enum api_code code = sandbox_find(r, r->args[0], &s);

	return code ? code : list(r, s.id);
}

enum api_code capture_get(struct request *r)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum api_code code = capture_row(r, r->args[0], &q);

	return code ? code : reply_json(r, 200, capture_json(r, &q, NULL));
}

/* --- taking and removing ------------------------------------------------------------------------------------------- */

static enum api_code row_insert(struct request *r, const char *id, const char *sandbox, struct json_object *labels)
{
	_cleanup_db_txn_ struct db_txn txn = { 0 };
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	struct db *db = r->api->db;
	struct fault f = { 0 };
	enum rc rc = db_begin(&txn, db, &f);

	if (!rc)
		rc = quota_storage(db, r->org_id, 1, r->api->config.tenant_storage_gib, &f);
	if (rc)
		return rc == RC_DENIED ? API_STORAGE_QUOTA_EXCEEDED : api_fault(r, &f);
	db_start(&q, db,
		 "INSERT INTO sandbox_captures (id, org_id, sandbox_id, region, memory_mib, labels, created_ms) "
		 "SELECT ?1, ?2, s.id, s.region, s.memory_mib, ifnull(?4, s.labels), ?5 FROM sandboxes s WHERE s.id = ?3 AND "
		 "(SELECT count(*) FROM sandbox_captures WHERE org_id = ?2) < ?6");
	db_text(&q, id);
	db_text(&q, r->org_id);
	db_text(&q, sandbox);
	db_text(&q, labels ? json_text(labels) : NULL);
	db_int(&q, (int64_t)wall_ms());
	db_int(&q, (int64_t)r->api->config.tenant_captures);
	rc = db_run(&q, &f);
	if (!rc && !q.changes)
		return API_CAPTURE_QUOTA_EXCEEDED;
	if (!rc)
		rc = db_commit(&txn, &f);
	return rc ? api_fault(r, &f) : API_OK;
}

static enum rc row_change(struct request *r, const char *sql, int64_t n, const char *id, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	db_start(&q, r->api->db, sql);
	if (n)
		db_int(&q, n);
	db_text(&q, id);
	return db_run(&q, ret_f);
}

#define DELETE_SQL "DELETE FROM sandbox_captures WHERE id = ?"

static enum api_code take(struct request *r, const char *id, const char *sandbox, struct broker_vm_captured *ret)
{
	struct fault f = { 0 }, undo = { 0 };
	enum rc rc = broker_capture(r->api, sandbox, id, ret, &f);

	if (!rc) {
		if (row_change(r, "UPDATE sandbox_captures SET bytes = ? WHERE id = ?", (int64_t)MAX_OF(ret->bytes, 1ull), id, &f))
			return api_fault(r, &f);
		return API_OK;
	}
	/* After a timeout the broker may still be at it; what it has without a row is collected. */
	if (row_change(r, DELETE_SQL, 0, id, &undo))
		log_fault(LOG_LEVEL_WARN, &undo, "undo capture %s", id);
	if (rc == RC_ABSENT)
		return sandbox_is_gone(r, sandbox);
	return rc == RC_STATE ? api_refuse(r, API_SANDBOX_NOT_CAPTURABLE, &f) : broker_code(r, &f, API_SANDBOX_UNREACHABLE);
}

enum api_code sandbox_capture(struct request *r)
{
	static const char *const keys[] = { "labels", NULL };
	struct json_object *body = NULL, *labels = NULL, *o;
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	struct broker_vm_captured done = { 0 };
	struct sandbox_found s = { 0 };
	char id[ID_MAX];
	struct fault f = { 0 };
	enum api_code code = sandbox_find_running(r, r->args[0], &s);

	if (!code)
		code = request_json(r, true, &body);
	if (code)
		return code;
	if (json_only_keys(body, keys, &f) || json_get_object(body, "labels", &labels, &f))
		return api_refuse(r, API_INVALID_REQUEST, &f);
	if (labels && json_check_labels(labels, &f))
		return api_refuse(r, API_INVALID_LABELS, &f);
	id_regional(id, "cap", r->api->config.region);
	code = row_insert(r, id, s.id, labels);
	if (!code)
		code = take(r, id, s.id, &done);
	if (!code)
		code = capture_row(r, id, &q);
	if (code)
		return code;
	log_info("captured id=%s capture=%s pause_us=%u bytes=%" PRIu64 " trace=%s", s.id, id, done.pause_us, done.bytes, r->trace);
	o = capture_json(r, &q, NULL);
	json_add_int(o, "pauseUs", done.pause_us);
	return reply_json(r, 201, o);
}

enum api_code capture_delete(struct request *r)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	struct fault f = { 0 };
	enum api_code code = capture_row(r, r->args[0], &q);
	enum rc rc;

	if (code)
		return code;
	db_end(&q);
	rc = broker_capture_remove(r->api, r->args[0], &f);
	if (rc && rc != RC_ABSENT)
		return broker_code(r, &f, API_NODE_UNAVAILABLE);
	if (row_change(r, DELETE_SQL, 0, r->args[0], &f))
		return api_fault(r, &f);
	return reply_empty(r, 204);
}
