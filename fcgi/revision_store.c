/* SPDX-License-Identifier: Apache-2.0 */
#include "base/fd.h"
#include "fcgi/domains.h"
#include "fcgi/limits.h"
#include "fcgi/revisions.h"
#include "schema/broker.h"
#include "schema/gateway.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

enum rc revision_log_append(int logs_fd, const char *id, const char *suffix, const char *text, struct fault *ret_f)
{
	char name[REVISION_FILE_MAX];
	_cleanup_fd_ int fd = -1;

	snprintf(name, sizeof(name), "%.16s%.12s", id, suffix);
	fd = openat(logs_fd, name, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0640);
	if (fd < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "log of revision %s", id);
	return fd_write_all(fd, text, strlen(text), UINT64_MAX, ret_f);
}

static struct json_object *stage(const char *status, bool command)
{
	struct json_object *o = json_object_new_object();

	json_add_str(o, "status", status);
	if (command)
		json_add(o, "command", NULL);
	return o;
}

struct json_object *revision_progress_json(const char *queued_status, int64_t start_ms, int64_t end_ms,
					   const char *others_status)
{
	struct json_object *o = json_object_new_object(), *queued = stage(queued_status, false);
	struct json_object *deploying = stage(others_status, false);

	json_add_time(queued, "start", start_ms);
	if (end_ms)
		json_add_time(queued, "end", end_ms);
	json_add(deploying, "timelines", json_object_new_array());
	json_add(o, "queued", queued);
	json_add(o, "preparing", stage(others_status, false));
	json_add(o, "installing", stage(others_status, true));
	json_add(o, "building", stage(others_status, true));
	json_add(o, "deploying", deploying);
	return o;
}

static enum rc progress_append(int logs_fd, const char *id, struct json_object *take, bool end, struct fault *ret_f)
{
	_cleanup_json_ struct json_object *o = take;
	_cleanup_free_ char *text = NULL;

	if (asprintf(&text, "%s\n%s", json_text(o), end ? GATEWAY_LOG_END "\n" : "") < 0) {
		text = NULL;
		return fault_set(ret_f, RC_NOMEM, 0, "progress of revision %s", id);
	}
	return revision_log_append(logs_fd, id, REVISION_PROGRESS, text, ret_f);
}

static enum rc row_insert(struct db *db, const struct revision_new *n, const char *id, int64_t now,
			  struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	db_start(&q, db,
		 "INSERT INTO revisions (id, app_id, status, stage, labels, layers, env_vars, config, production, preview, "
		 "bundle, bundle_bytes, created_ms) VALUES (?, ?, 'queued', 'queued', ?, ?, ?, ?, ?, ?, ?, ?, ?)");
	db_text(&q, id);
	db_text(&q, n->app_id);
	db_text(&q, n->labels);
	db_text(&q, n->layers);
	db_text(&q, n->env_vars);
	db_text(&q, n->config);
	db_int(&q, n->production);
	db_int(&q, n->preview);
	db_text(&q, n->bundle);
	db_int(&q, (int64_t)n->bundle_bytes);
	db_int(&q, now);
	return db_run(&q, ret_f);
}

static enum rc preview_insert(struct db *db, const struct revision_new *n, const char *id, int64_t now,
			      struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	char host[BROKER_HOST_MAX], slug[32];
	enum rc rc;

	snprintf(slug, sizeof(slug), "preview/%.16s", id);
	snprintf(host, sizeof(host), "%.32s-%.16s.%.190s", n->app_slug, id, n->domain);
	db_start(&q, db,
		 "INSERT INTO timelines (app_id, slug, context, desired_revision_id, updated_ms) VALUES (?, ?, 'preview', ?, ?)");
	db_text(&q, n->app_id);
	db_text(&q, slug);
	db_text(&q, id);
	db_int(&q, now);
	rc = db_run(&q, ret_f);
	return rc ? rc : domain_claim(db, host, n->app_id, slug, n->names_max, ret_f);
}

enum rc revision_create(struct db *db, const struct revision_new *n, int logs_fd, char ret_id[REVISION_ID_CHARS + 1],
			struct fault *ret_f)
{
	_cleanup_db_txn_ struct db_txn txn = { 0 };
	int64_t now = (int64_t)wall_ms();
	char id[REVISION_ID_CHARS + 1];
	enum rc rc;

	id_random(id, REVISION_ID_CHARS);
	/* Files first: a follower may come as soon as the row is there. */
	rc = progress_append(logs_fd, id, revision_progress_json("running", now, 0, "pending"), false, ret_f);
	if (!rc)
		rc = revision_log_append(logs_fd, id, REVISION_BUILD_LOG, "", ret_f);
	if (!rc)
		rc = db_begin(&txn, db, ret_f);
	if (!rc)
		rc = row_insert(db, n, id, now, ret_f);
	if (!rc && n->preview)
		rc = preview_insert(db, n, id, now, ret_f);
	if (!rc)
		rc = db_commit(&txn, ret_f);
	if (!rc)
		memcpy(ret_id, id, sizeof(id));
	return rc;
}

static enum rc cancel_row(struct db *db, const char *id, int64_t now, bool *ret_done, int64_t *ret_created,
			  struct fault *ret_f)
{
	_cleanup_db_txn_ struct db_txn txn = { 0 };
	_cleanup_db_q_ struct db_q end = DB_Q_INIT, wish = DB_Q_INIT, created = DB_Q_INIT;
	enum rc rc = db_begin(&txn, db, ret_f);

	if (rc)
		return rc;
	db_start(&wish, db,
		 "UPDATE revisions SET cancel_requested_ms = ? WHERE id = ? AND cancel_requested_ms IS NULL AND "
		 "status IN ('queued', 'building')");
	db_int(&wish, now);
	db_text(&wish, id);
	rc = db_run(&wish, ret_f);
	if (rc)
		return rc;
	db_start(&end, db,
		 "UPDATE revisions SET status = 'failed', stage = 'done', failure_reason = 'cancelled', "
		 "failure = 'cancelled before it started', build_finished_ms = ? WHERE id = ? AND status = 'queued'");
	db_int(&end, now);
	db_text(&end, id);
	rc = db_run(&end, ret_f);
	if (rc)
		return rc;
	db_start(&created, db, "SELECT created_ms FROM revisions WHERE id = ?");
	db_text(&created, id);
	rc = db_row(&created, ret_f);
	if (rc)
		return rc;
	*ret_done = end.changes > 0;
	*ret_created = db_col_int(&created, 0);
	db_end(&created);
	return db_commit(&txn, ret_f);
}

enum rc revision_cancel(struct db *db, const char *id, int logs_fd, bool *ret_done, struct fault *ret_f)
{
	int64_t now = (int64_t)wall_ms(), created = 0;
	enum rc rc = cancel_row(db, id, now, ret_done, &created, ret_f);

	if (rc || !*ret_done)
		return rc;
	rc = progress_append(logs_fd, id, revision_progress_json("cancelled", created, now, "skipped"), true, ret_f);
	return rc ? rc : revision_log_append(logs_fd, id, REVISION_BUILD_LOG, GATEWAY_LOG_END "\n", ret_f);
}
