/* SPDX-License-Identifier: Apache-2.0 */
#include "base/fd.h"
#include "base/log.h"
#include "fcgi/handlers.h"
#include "fcgi/peers.h"
#include "fcgi/router.h"
#include "fcgi/sandbox_store.h"
#include "fcgi/sandboxes.h"

#include <stdio.h>
#include <string.h>

#define STOPPED_SHOWN_MS 86400000 /* stopped sandboxes are listed for a day */
#define STARTING_GRACE_MS 30000   /* beyond create_timeout_ms */
#define LIST_MAX 1000

/* Ids of live rows. A 'starting' one proves nothing while its create may still be under way. */
static enum rc live_rows(struct api *api, struct json_object *live, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum rc rc;

	db_start(&q, api->db,
		 "SELECT id FROM sandboxes WHERE node = ? AND (status = 'running' OR "
		 "(status = 'starting' AND created_ms < ?))");
	db_text(&q, api->config.node);
	db_int(&q, (int64_t)wall_ms() - (int64_t)api->config.create_timeout_ms - STARTING_GRACE_MS);
	while (!(rc = db_row(&q, ret_f)))
		json_add_bool(live, db_col_text(&q, 0), true);
	return rc == RC_ABSENT ? RC_OK : rc;
}

static void vm_seen(void *arg, const struct broker_vm_stat *vm)
{
	if (vm->state != BROKER_VM_GONE)
		json_object_object_del(arg, vm->id);
}

/* The rows are read before the broker is asked: a machine that comes in between is then in neither list. */
enum rc sandboxes_reconcile(struct api *api, struct fault *ret_f)
{
	_cleanup_json_ struct json_object *lost = json_object_new_object();
	enum rc rc;

	if (!lost)
		return fault_set(ret_f, RC_NOMEM, 0, "list of machines");
	rc = live_rows(api, lost, ret_f);
	if (!rc && json_object_object_length(lost))
		rc = broker_vms(api, vm_seen, lost, ret_f);
	if (rc)
		return rc;
	json_object_object_foreach(lost, id, value)
	{
		(void)value;
		rc = sandbox_set_stopped(api->db, id, "its machine ended", ret_f);
		if (rc)
			return rc;
	}
	return RC_OK;
}

static bool labels_match(struct json_object *have, struct json_object *want)
{
	if (!want)
		return true;
	json_object_object_foreach(want, key, value)
	{
		struct json_object *v = NULL;

		if (!json_object_object_get_ex(have, key, &v) || !json_object_equal(v, value))
			return false;
	}
	return true;
}

#define SANDBOX_COLUMNS                                                                                            \
	"id, created_ms, stopped_ms, region, status, labels, stop_at_ms, memory_mib, stop_reason, paused, forked_from"

static struct json_object *sandbox_json(const struct db_q *q, struct json_object *labels)
{
	struct json_object *o = json_object_new_object();

	json_add_str(o, "id", db_col_text(q, 0));
	json_add_time(o, "createdAt", db_col_int(q, 1));
	json_add_time_or_null(o, "stoppedAt", db_col_int(q, 2));
	json_add_str(o, "region", db_col_text(q, 3));
	json_add_str(o, "status", !strcmp(db_col_text(q, 4), "stopped") ? "stopped" : "running");
	json_add(o, "labels", json_object_get(labels));
	json_add_time_or_null(o, "stopAt", db_col_int(q, 6));
	json_add_int(o, "memoryMb", db_col_int(q, 7));
	json_add_str(o, "stopReason", *db_col_text(q, 8) ? db_col_text(q, 8) : NULL);
	/* Members of ours: a client that knows the other two states only takes a paused one for running, which it is. */
	json_add_bool(o, "paused", db_col_int(q, 9) && strcmp(db_col_text(q, 4), "stopped") != 0);
	json_add_str(o, "forkedFrom", *db_col_text(q, 10) ? db_col_text(q, 10) : NULL);
	return o;
}

static void reconcile_or_log(struct request *r)
{
	struct fault f = { 0 };

	/* Without a broker the rows are the best answer there is. */
	if (sandboxes_reconcile(r->api, &f))
		log_fault(LOG_LEVEL_WARN, &f, "reconcile trace=%s", r->trace);
}

enum api_code sandbox_list(struct request *r)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	_cleanup_json_ struct json_object *want = NULL, *list = json_object_new_array();
	struct fault f = { 0 };
	enum api_code code = request_labels(r, &want);
	enum rc rc;

	if (code)
		return code;
	if (!list)
		return API_BUSY;
	reconcile_or_log(r);
	db_start(&q, r->api->db,
		 "SELECT " SANDBOX_COLUMNS " FROM sandboxes WHERE org_id = ? AND (status IN ('starting', 'running') OR "
		 "stopped_ms > ?) ORDER BY status = 'stopped', created_ms DESC, id LIMIT ?");
	db_text(&q, r->org_id);
	db_int(&q, (int64_t)wall_ms() - STOPPED_SHOWN_MS);
	db_int(&q, LIST_MAX);
	while (!(rc = db_row(&q, &f))) {
		_cleanup_json_ struct json_object *labels = json_stored(db_col_text(&q, 5));

		if (labels_match(labels, want))
			json_object_array_add(list, sandbox_json(&q, labels));
	}
	return rc == RC_ABSENT ? reply_json(r, 200, take_ptr(list)) : api_fault(r, &f);
}

struct json_object *sandbox_shown(struct request *r, const char *id, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	_cleanup_json_ struct json_object *labels = NULL;

	db_start(&q, r->api->db, "SELECT " SANDBOX_COLUMNS " FROM sandboxes WHERE org_id = ? AND id = ?");
	db_text(&q, r->org_id);
	db_text(&q, id);
	if (db_row(&q, ret_f))
		return NULL;
	labels = json_stored(db_col_text(&q, 5));
	return sandbox_json(&q, labels);
}

enum api_code sandbox_get(struct request *r)
{
	struct json_object *o;
	struct fault f = { 0 };

	if (!id_is_regional(r->args[0], "sbx"))
		return API_SANDBOX_NOT_FOUND;
	reconcile_or_log(r);
	o = sandbox_shown(r, r->args[0], &f);
	if (!o)
		return !f.rc || f.rc == RC_ABSENT ? API_SANDBOX_NOT_FOUND : api_fault(r, &f);
	return reply_json(r, 200, o);
}
