/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/starts.h"

#include "fcgi/limits.h"

/* id NULL, ms 0: no such parameter. */
static enum rc run(struct db *db, const char *sql, const char *id, int64_t ms, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	db_start(&q, db, sql);
	if (id)
		db_text(&q, id);
	if (ms)
		db_int(&q, ms);
	return db_run(&q, ret_f);
}

static enum rc read_row(struct db *db, const char *revision, struct starts *ret, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum rc rc;

	db_start(&q, db, "SELECT failures, failed_ms, retry_ms FROM starts WHERE revision_id = ?");
	db_text(&q, revision);
	rc = db_row(&q, ret_f);
	if (rc)
		return rc;
	*ret = (struct starts){ db_col_int(&q, 0), db_col_int(&q, 1), db_col_int(&q, 2) };
	return RC_OK;
}

static int64_t pause_ms(int64_t failures, int64_t max_ms)
{
	int64_t ms = STARTS_BACKOFF_MIN_MS;

	while (--failures > 0 && ms < max_ms)
		ms *= 2;
	return MIN_OF(ms, max_ms);
}

enum rc starts_failed(struct db *db, const char *revision, int64_t now_ms, int64_t max_ms, struct starts *ret, struct fault *ret_f)
{
	struct starts s = { 0 };
	enum rc rc = read_row(db, revision, &s, ret_f);
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	if (rc && rc != RC_ABSENT)
		return rc;
	s = (struct starts){ s.failures + 1, now_ms, now_ms + pause_ms(s.failures + 1, max_ms) };
	/* One that was deleted meanwhile has no row. */
	db_start(&q, db, "INSERT OR REPLACE INTO starts (revision_id, failures, failed_ms, retry_ms) SELECT id, ?2, ?3, ?4 FROM revisions WHERE id = ?1");
	db_text(&q, revision);
	db_int(&q, s.failures);
	db_int(&q, s.failed_ms);
	db_int(&q, s.retry_ms);
	rc = db_run(&q, ret_f);
	if (!rc)
		*ret = s;
	return rc;
}

bool starts_due(struct db *db, const char *revision, int64_t now_ms)
{
	struct starts s;

	return read_row(db, revision, &s, NULL) || s.retry_ms <= now_ms || s.retry_ms > now_ms + STARTS_BACKOFF_MAX_MS;
}

enum rc starts_visited(struct db *db, const char *revision, struct fault *ret_f)
{
	struct starts s;
	enum rc rc = read_row(db, revision, &s, ret_f);

	if (rc || s.retry_ms <= s.failed_ms + STARTS_VISIT_MS)
		return rc;
	return run(db, "UPDATE starts SET retry_ms = failed_ms + ?2 WHERE revision_id = ?1", revision, STARTS_VISIT_MS, ret_f);
}

enum rc starts_forget(struct db *db, const char *revision, struct fault *ret_f)
{
	return run(db, "DELETE FROM starts WHERE revision_id = ?", revision, 0, ret_f);
}

enum rc starts_forget_of_app(struct db *db, const char *app, struct fault *ret_f)
{
	return run(db, "DELETE FROM starts WHERE revision_id IN (SELECT id FROM revisions WHERE app_id = ?)", app, 0, ret_f);
}

enum rc starts_forget_of_org(struct db *db, const char *org, struct fault *ret_f)
{
	return run(db, "DELETE FROM starts WHERE revision_id IN (SELECT r.id FROM revisions r JOIN apps a ON a.id = r.app_id WHERE a.org_id = ?)",
		   org, 0, ret_f);
}

enum rc starts_settle(struct db *db, int64_t now_ms, struct fault *ret_f)
{
	return run(db, "DELETE FROM starts WHERE EXISTS (SELECT 1 FROM instances i WHERE i.revision_id = starts.revision_id AND "
		       "(i.state = 'asleep' OR (i.state = 'running' AND i.running_ms <= ?1))) OR NOT EXISTS (SELECT 1 FROM timelines t "
		       "WHERE starts.revision_id IN (t.revision_id, t.desired_revision_id))", NULL, now_ms - STARTS_HEALTHY_MS, ret_f);
}

struct json_object *starts_json(struct db *db, const char *revision)
{
	struct json_object *o;
	struct starts s;

	if (read_row(db, revision, &s, NULL))
		return NULL;
	o = json_object_new_object();
	json_add_int(o, "failures", s.failures);
	json_add_time(o, "last_failed_at", s.failed_ms);
	json_add_time(o, "next_at", s.retry_ms);
	return o;
}
