/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/sandbox_store.h"

#include "base/fd.h"
#include "fcgi/quota.h"

static enum rc insert_row(struct db *db, const struct sandbox_row *row, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	db_start(&q, db,
		 "INSERT INTO sandboxes (id, org_id, region, node, status, lease, memory_mib, labels, config, created_ms, "
		 "stop_at_ms, forked_from) VALUES (?, ?, ?, ?, 'starting', ?, ?, ?, ?, ?, nullif(?, 0), ?)");
	db_text(&q, row->id);
	db_text(&q, row->org_id);
	db_text(&q, row->region);
	db_text(&q, row->node);
	db_int(&q, row->lease);
	db_int(&q, row->memory_mib);
	db_text(&q, row->labels);
	db_text(&q, row->config);
	db_int(&q, (int64_t)wall_ms());
	db_int(&q, (int64_t)row->stop_at_ms);
	db_text(&q, row->forked_from ? row->forked_from : "");
	return db_run(&q, ret_f);
}

static enum rc insert_volume(struct db *db, const char *id, const char *volume_id, const char *path,
			     struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum rc rc;

	/* It may have been deleted since it was looked up. */
	db_start(&q, db, "INSERT INTO sandbox_volumes (sandbox_id, volume_id, path) SELECT ?, id, ? FROM volumes WHERE id = ? AND deleted_ms IS NULL");
	db_text(&q, id);
	db_text(&q, path);
	db_text(&q, volume_id);
	rc = db_run(&q, ret_f);
	return !rc && !q.changes ? fault_set(ret_f, RC_ABSENT, 0, "volume %s was deleted", volume_id) : rc;
}

enum rc sandbox_insert(struct db *db, const struct sandbox_row *row, uint64_t quota, struct fault *ret_f)
{
	_cleanup_db_relaxed_ struct db_relaxed relaxed = { 0 };
	_cleanup_db_txn_ struct db_txn txn = { 0 };
	enum rc rc;

	/* A machine does not outlive the power either; that it runs is what gets acknowledged, and written. */
	db_relax(&relaxed, db);
	rc = db_begin(&txn, db, ret_f);
	if (rc)
		return rc;
	rc = quota_room(db, "SELECT count(*) FROM sandboxes WHERE org_id = ? AND status IN ('starting', 'running')", row->org_id, 1, quota,
			"sandboxes are running", ret_f);
	if (!rc)
		rc = insert_row(db, row, ret_f);
	for (size_t i = 0; !rc && i < row->n_volumes; i++)
		rc = insert_volume(db, row->id, row->volumes[i].volume_id, row->volumes[i].path, ret_f);
	return rc ? rc : db_commit(&txn, ret_f);
}

enum rc sandbox_set_running(struct db *db, const char *id, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	enum rc rc;

	db_start(&q, db, "UPDATE sandboxes SET status = 'running' WHERE id = ? AND status = 'starting'");
	db_text(&q, id);
	rc = db_run(&q, ret_f);
	return !rc && !q.changes ? fault_set(ret_f, RC_STATE, 0, "sandbox %s was ended while it started", id) : rc;
}

enum rc sandbox_forget(struct db *db, const char *id, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	db_start(&q, db, "DELETE FROM sandboxes WHERE id = ? AND status = 'starting'");
	db_text(&q, id);
	return db_run(&q, ret_f);
}

static enum rc run_for(struct db *db, const char *sql, const char *id, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	db_start(&q, db, sql);
	db_text(&q, id);
	return db_run(&q, ret_f);
}

static enum rc mark(struct db *db, const char *id, const char *reason, int64_t *ret_changes, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum rc rc;

	db_start(&q, db,
		 "UPDATE sandboxes SET status = 'stopped', stopped_ms = ?, stop_reason = ? "
		 "WHERE id = ? AND status != 'stopped'");
	db_int(&q, (int64_t)wall_ms());
	db_text(&q, reason);
	db_text(&q, id);
	rc = db_run(&q, ret_f);
	*ret_changes = q.changes;
	return rc;
}

enum rc sandbox_set_stopped(struct db *db, const char *id, const char *reason, struct fault *ret_f)
{
	_cleanup_db_txn_ struct db_txn txn = { 0 };
	int64_t changes = 0;
	enum rc rc = db_begin(&txn, db, ret_f);

	if (!rc)
		rc = mark(db, id, reason, &changes, ret_f);
	if (rc || !changes)
		return rc;
	rc = run_for(db, "DELETE FROM sandbox_volumes WHERE sandbox_id = ?", id, ret_f);
	if (!rc)
		rc = run_for(db, "DELETE FROM domains WHERE sandbox_id = ?", id, ret_f);
	return rc ? rc : db_commit(&txn, ret_f);
}
