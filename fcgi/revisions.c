/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/revisions.h"

#include "base/fd.h"
#include "base/log.h"
#include "fcgi/apps.h"
#include "fcgi/handlers.h"
#include "fcgi/page.h"
#include "fcgi/peers.h"
#include "fcgi/revision_json.h"
#include "fcgi/starts.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

static enum api_code revision_row(struct request *r, const char *id, struct db_q *q)
{
	struct fault f = { 0 };
	enum rc rc;

	if (!id_is_revision(id))
		return API_REVISION_NOT_FOUND;
	db_start(q, r->api->db,
		 "SELECT " REVISION_COLUMNS " FROM revisions v JOIN apps a ON a.id = v.app_id "
		 "WHERE v.id = ? AND a.org_id = ? AND a.deleted_ms IS NULL AND v.deleted_ms IS NULL");
	db_text(q, id);
	db_text(q, r->org_id);
	rc = db_row(q, &f);
	if (rc == RC_ABSENT)
		return API_REVISION_NOT_FOUND;
	return rc ? api_fault(r, &f) : API_OK;
}

enum api_code revision_reply(struct request *r, const char *id)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum api_code code = revision_row(r, id, &q);

	struct json_object *o, *starts;

	if (code)
		return code;
	o = revision_json(r, &q, NULL);
	starts = starts_json(r->api->db, id);
	if (starts)
		json_add(o, "starts", starts);
	return reply_json(r, 200, o);
}

enum api_code revision_get(struct request *r)
{
	return revision_reply(r, r->args[0]);
}

enum api_code revision_list(struct request *r)
{
	static const char *const statuses[] = { "queued", "building", "succeeded", "failed", "skipped" };
	_cleanup_page_ struct page page = { 0 };
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	const char *status = request_query(r, "status");
	bool known = !status;
	struct app_found app;
	enum api_code code = app_find(r, r->args[0], &app);

	for (size_t i = 0; i < ARRAY_SIZE(statuses) && status; i++)
		known |= !strcmp(status, statuses[i]);
	if (!code && !known)
		code = api_fail(r, API_INVALID_REQUEST, "unknown status");
	if (!code)
		code = page_start(r, &page);
	if (code)
		return code;
	db_start(&q, r->api->db,
		 "SELECT " REVISION_COLUMNS " FROM revisions v JOIN apps a ON a.id = v.app_id WHERE v.app_id = ?1 AND "
		 "v.deleted_ms IS NULL AND (?2 IS NULL OR v.status = ?2) AND (v.created_ms, v.id) < (?3, ?4) "
		 "ORDER BY v.created_ms DESC, v.id DESC LIMIT ?5");
	db_text(&q, app.id);
	db_text(&q, status);
	return page_rows(r, &page, &q, REVISION_CREATED, 0, revision_json);
}

enum api_code revision_cancel_handler(struct request *r)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	struct fault f = { 0 };
	bool done = false;
	enum api_code code = revision_row(r, r->args[0], &q);

	if (code)
		return code;
	if (strcmp(db_col_text(&q, 1), "queued") != 0 && strcmp(db_col_text(&q, 1), "building") != 0)
		return API_REVISION_FINISHED;
	db_end(&q);
	if (revision_cancel(r->api->db, r->args[0], r->api->logs_fd, &done, &f))
		return api_fault(r, &f);
	runner_kick(r->api);
	return revision_reply(r, r->args[0]);
}

/* An UPDATE of one row: what it was told holds at the moment of the change, not only when it was looked up. */
static enum api_code change(struct request *r, const char *sql, int64_t *ret_changes)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	struct fault f = { 0 };

	db_start(&q, r->api->db, sql);
	db_text(&q, r->args[0]);
	db_int(&q, (int64_t)wall_ms());
	if (db_run(&q, &f))
		return api_fault(r, &f);
	*ret_changes = q.changes;
	return API_OK;
}

/*
 * Production becomes this revision, older or newer, as soon as the runner has it answering. The row is what counts, and what is
 * acknowledged is in it: one promotion replaces another, a deployment that was asked for before does not (promoted_ms).
 */
enum api_code revision_promote(struct request *r)
{
	_cleanup_db_q_ struct db_q row = DB_Q_INIT;
	struct fault f = { 0 };
	int64_t n = 0;
	enum api_code code = revision_row(r, r->args[0], &row);

	if (code)
		return code;
	if (strcmp(db_col_text(&row, 1), "succeeded") != 0)
		return api_fail(r, API_REVISION_NOT_READY, "only a revision that succeeded can become production");
	db_end(&row);
	code = change(r,
		      "UPDATE timelines SET desired_revision_id = ?1, updated_ms = ?2, promoted_ms = ?2 WHERE slug = 'production' AND "
		      "app_id = (SELECT app_id FROM revisions WHERE id = ?1 AND deleted_ms IS NULL)", &n);
	if (!code && !n)
		code = API_REVISION_NOT_FOUND;
	if (code)
		return code;
	if (starts_forget(r->api->db, r->args[0], &f))
		log_fault(LOG_LEVEL_WARN, &f, "forget failed starts revision=%s", r->args[0]);
	runner_kick(r->api);
	return revision_reply(r, r->args[0]);
}

/* A revision that serves, or is about to, stays. */
enum api_code revision_delete(struct request *r)
{
	_cleanup_db_q_ struct db_q row = DB_Q_INIT;
	struct fault f = { 0 };
	int64_t n = 0;
	bool done;
	enum api_code code = revision_row(r, r->args[0], &row);

	db_end(&row);
	if (!code)
		code = change(r,
			      "UPDATE revisions SET deleted_ms = ?2 WHERE id = ?1 AND deleted_ms IS NULL AND NOT EXISTS (SELECT 1 FROM "
			      "timelines t WHERE t.app_id = revisions.app_id AND t.context = 'production' AND "
			      "?1 IN (t.revision_id, t.desired_revision_id))", &n);
	if (!code && !n)
		code = API_REVISION_ACTIVE;
	if (code)
		return code;
	if (revision_cancel(r->api->db, r->args[0], r->api->logs_fd, &done, &f))
		return api_fault(r, &f);
	runner_kick(r->api);
	return reply_empty(r, 204);
}

/* --- logs -------------------------------------------------------------------------------------------------------- */

static bool finished(const struct db_q *q)
{
	const char *status = db_col_text(q, 1);

	return strcmp(status, "queued") != 0 && strcmp(status, "building") != 0;
}

/* The file may have been collected, or a crash may have cut its end off: then an ended revision has an empty stream. */
static enum api_code follow(struct request *r, const char *suffix, const char *filter)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	_cleanup_fd_ int fd = -1;
	char name[REVISION_FILE_MAX];
	struct fault f = { 0 };
	enum api_code code = revision_row(r, r->args[0], &q);

	if (code)
		return code;
	snprintf(name, sizeof(name), "%.16s%.12s", r->args[0], suffix);
	fd = openat(r->api->logs_fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0 && errno == ENOENT && finished(&q))
		return reply_text(r, "text/event-stream", NULL, 0);
	if (fd < 0 && errno == ENOENT) {
		if (revision_log_append(r->api->logs_fd, r->args[0], suffix, "", &f))
			return api_fault(r, &f);
		fd = openat(r->api->logs_fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	}
	if (fd < 0) {
		fault_set(&f, RC_SYS, errno, "log %s", name);
		return api_fault(r, &f);
	}
	return ticket_follow(r, fd, 0, false, filter);
}

enum api_code revision_progress(struct request *r)
{
	return follow(r, REVISION_PROGRESS, "");
}

static bool is_word(const char *s)
{
	return *s && strlen(s) < 100 && strspn(s, "abcdefghijklmnopqrstuvwxyz0123456789-_/") == strlen(s);
}

enum api_code revision_build_logs(struct request *r)
{
	const char *step = request_query(r, "step"), *timeline = request_query(r, "timeline");
	char filter[GATEWAY_FILTER_MAX] = "";
	int n = 0;

	if ((step && !is_word(step)) || (timeline && !is_word(timeline)))
		return api_fail(r, API_INVALID_REQUEST, "no such step or timeline");
	/* As the runner writes the members: a quotation mark inside a string has a backslash before it. */
	if (step)
		n = snprintf(filter, sizeof(filter), "\"step\":\"%s\"\n", step);
	if (timeline)
		snprintf(filter + n, sizeof(filter) - (size_t)n, "\"timeline\":\"%s\"\n", timeline);
	return follow(r, REVISION_BUILD_LOG, filter);
}

/* --- timelines ---------------------------------------------------------------------------------------------------- */

static struct json_object *domains_json(struct request *r, const char *app_id, const char *timeline)
{
	struct json_object *list = json_object_new_array();
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	char shown_as[BROKER_HOST_MAX + 8];

	db_start(&q, r->api->db, "SELECT host FROM domains WHERE app_id = ? AND timeline = ? ORDER BY created_ms, host");
	db_text(&q, app_id);
	db_text(&q, timeline);
	while (!db_row(&q, NULL)) {
		struct json_object *o = json_object_new_object();

		domain_shown(&r->api->config, db_col_text(&q, 0), shown_as, sizeof(shown_as));
		json_add_str(o, "domain", shown_as);
		json_object_array_add(list, o);
	}
	return list;
}

/* Columns: slug, context, revision_id, app id, app slug. */
static struct json_object *timeline_json(struct request *r, const struct db_q *q, struct fault *ret_f)
{
	struct json_object *o = json_object_new_object(), *app = json_object_new_object();
	struct json_object *context = json_object_new_object(), *partition = json_object_new_object();

	(void)ret_f;
	json_add_str(app, "id", db_col_text(q, 3));
	json_add_str(app, "slug", db_col_text(q, 4));
	json_add_str(context, "slug", db_col_text(q, 1));
	if (!strcmp(db_col_text(q, 1), "preview"))
		json_add_str(partition, "revision", db_col_text(q, 2));
	json_add_str(o, "slug", db_col_text(q, 0));
	json_add(o, "partition", partition);
	json_add(o, "app", app);
	json_add(o, "context", context);
	json_add(o, "domains", domains_json(r, db_col_text(q, 3), db_col_text(q, 0)));
	return o;
}

enum api_code revision_timelines(struct request *r)
{
	_cleanup_db_q_ struct db_q row = DB_Q_INIT, q = DB_Q_INIT;
	_cleanup_json_ struct json_object *list = json_object_new_array();
	struct fault f = { 0 };
	enum api_code code = revision_row(r, r->args[0], &row);
	enum rc rc;

	if (code)
		return code;
	db_start(&q, r->api->db,
		 "SELECT t.slug, t.context, t.revision_id, a.id, a.slug FROM timelines t JOIN apps a ON a.id = t.app_id "
		 "WHERE t.revision_id = ? ORDER BY t.context DESC, t.slug");
	db_text(&q, r->args[0]);
	while (!(rc = db_row(&q, &f)))
		json_object_array_add(list, timeline_json(r, &q, NULL));
	return rc == RC_ABSENT ? reply_json(r, 200, take_ptr(list)) : api_fault(r, &f);
}

enum api_code timeline_list(struct request *r)
{
	_cleanup_page_ struct page page = { 0 };
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	struct app_found app;
	enum api_code code = app_find(r, r->args[0], &app);

	if (!code)
		code = page_start(r, &page);
	if (code)
		return code;
	/* The key of a page is (time of the revision's making, its id); production without a revision comes first. */
	db_start(&q, r->api->db,
		 "SELECT t.slug, t.context, t.revision_id, a.id, a.slug, ifnull(v.created_ms, 999999999999999), "
		 "ifnull(v.id, 'production') FROM timelines t JOIN apps a ON a.id = t.app_id "
		 "LEFT JOIN revisions v ON v.id = t.revision_id AND t.context = 'preview' WHERE t.app_id = ? AND "
		 "(t.context = 'production' OR t.revision_id IS NOT NULL) AND "
		 "(ifnull(v.created_ms, 999999999999999), ifnull(v.id, 'production')) < (?, ?) ORDER BY 6 DESC, 7 DESC LIMIT ?");
	db_text(&q, app.id);
	return page_rows(r, &page, &q, 5, 6, timeline_json);
}
