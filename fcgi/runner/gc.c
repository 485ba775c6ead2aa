/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/runner/gc.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "fcgi/runner/capture.h"
#include "fcgi/runner/limits.h"

#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#define BATCH 32
#define ID 64
#define BUNDLE_SUFFIX ".tar.zst"

static size_t list(struct db *db, const char *sql, const char *a, int64_t n, char out[BATCH][ID])
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	size_t k = 0;

	db_start(&q, db, sql);
	if (a)
		db_text(&q, a);
	if (n >= 0)
		db_int(&q, n);
	while (k < BATCH && !db_row(&q, NULL))
		snprintf(out[k++], ID, "%s", db_col_text(&q, 0));
	return k;
}

static enum rc run(struct db *db, const char *sql, const char *a, int64_t ms)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	struct fault f;
	enum rc rc;

	db_start(&q, db, sql);
	if (a)
		db_text(&q, a);
	if (ms)
		db_int(&q, ms);
	rc = db_run(&q, &f);
	if (rc)
		log_fault(LOG_LEVEL_ERROR, &f, "tidying up");
	return rc;
}

static int dir_open(const struct config *c, const char *name)
{
	char path[512];

	snprintf(path, sizeof(path), "%.300s/%.150s", c->state_dir, name);
	return open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
}

/* --- files --------------------------------------------------------------------------------------------------------- */

static void lock_remove(const struct config *c, const char *id)
{
	_cleanup_fd_ int dirfd = dir_open(c, "logs/revisions");
	char name[ID + 16];

	snprintf(name, sizeof(name), ".%.60s.lock", id);
	if (dirfd >= 0)
		unlinkat(dirfd, name, 0);
}

static void revision_files_remove(const struct config *c, const char *id)
{
	static const char *const suffixes[] = { ".progress", ".build" };
	_cleanup_fd_ int dirfd = dir_open(c, "logs/revisions");
	char name[ID + 16];

	for (size_t i = 0; dirfd >= 0 && i < ARRAY_SIZE(suffixes); i++) {
		snprintf(name, sizeof(name), "%.60s%s", id, suffixes[i]);
		unlinkat(dirfd, name, 0);
	}
	lock_remove(c, id);
}

static void app_logs_remove(const struct config *c, const char *app)
{
	_cleanup_fd_ int parent = dir_open(c, "logs/apps");
	int fd = parent < 0 ? -1 : openat(parent, app, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;

	if (!dir) {
		close_fd(&fd);
		return;
	}
	while ((e = readdir(dir)))
		if (strcmp(e->d_name, ".") && strcmp(e->d_name, ".."))
			unlinkat(fd, e->d_name, 0);
	closedir(dir);
	unlinkat(parent, app, AT_REMOVEDIR);
}

/* --- what was deleted ---------------------------------------------------------------------------------------------- */

/* True when none is left. */
static bool machines_end(struct db *db, struct link *l, const char *sql, const char *id, const char *reason)
{
	char ids[BATCH][ID];
	size_t n = list(db, sql, id, -1, ids);

	for (size_t i = 0; i < n; i++) {
		if (link_vm_kill(l, ids[i], reason, NULL))
			return false; /* the broker is away: later */
		run(db, "UPDATE instances SET state = 'ended', reason = 'deleted' WHERE id = ?", ids[i], 0);
	}
	return n < BATCH;
}

static void captures_drop(struct db *db, struct link *l, const char *revision)
{
	char names[BATCH][ID];
	size_t n = list(db, "SELECT name FROM captures WHERE revision_id = ?", revision, -1, names);

	for (size_t i = 0; i < n; i++)
		capture_drop(db, l, names[i]);
}

static void app_remove(const struct config *c, struct db *db, struct link *l, const char *app)
{
	char revisions[BATCH][ID];
	size_t n;

	if (!machines_end(db, l, "SELECT id FROM instances WHERE state != 'ended' AND app_id = ?", app, "its app was deleted"))
		return;
	while ((n = list(db, "SELECT id FROM revisions WHERE app_id = ?", app, -1, revisions))) {
		for (size_t i = 0; i < n; i++) {
			captures_drop(db, l, revisions[i]);
			revision_files_remove(c, revisions[i]);
			if (run(db, "DELETE FROM revisions WHERE id = ?", revisions[i], 0))
				return;
		}
	}
	if (run(db, "DELETE FROM domains WHERE app_id = ?", app, 0) || run(db, "DELETE FROM apps WHERE id = ?", app, 0))
		return;
	app_logs_remove(c, app);
	lock_remove(c, app);
	log_info("app removed app=%s", app);
}

/* Its row stays as long as people may ask what became of it. */
static void revision_end(struct db *db, struct link *l, const char *id)
{
	static const char domains[] = "DELETE FROM domains WHERE EXISTS (SELECT 1 FROM timelines t WHERE t.app_id = domains.app_id AND "
				      "t.slug = domains.timeline AND t.context = 'preview' AND t.slug = 'preview/' || ?)";
	static const char timelines[] = "DELETE FROM timelines WHERE context = 'preview' AND slug = 'preview/' || ?";

	if (run(db, domains, id, 0) || run(db, timelines, id, 0))
		return;
	machines_end(db, l, "SELECT id FROM instances WHERE state != 'ended' AND revision_id = ?", id, "its revision was deleted");
	captures_drop(db, l, id);
}

void gc_deleted(const struct config *c, struct db *db, struct link *l)
{
	static const char revisions[] =
		"SELECT id FROM revisions r WHERE deleted_ms IS NOT NULL AND (EXISTS (SELECT 1 FROM instances i WHERE "
		"i.revision_id = r.id AND i.state != 'ended') OR EXISTS (SELECT 1 FROM captures k WHERE k.revision_id = r.id) OR "
		"EXISTS (SELECT 1 FROM timelines t WHERE t.app_id = r.app_id AND t.slug = 'preview/' || r.id)) LIMIT 32";
	char ids[BATCH][ID];
	size_t n = list(db, "SELECT id FROM apps WHERE deleted_ms IS NOT NULL LIMIT 32", NULL, -1, ids);

	for (size_t i = 0; i < n; i++)
		app_remove(c, db, l, ids[i]);
	n = list(db, revisions, NULL, -1, ids);
	for (size_t i = 0; i < n; i++)
		revision_end(db, l, ids[i]);
}

/* --- what is old --------------------------------------------------------------------------------------------------- */

static bool bundle_is_wanted(struct db *db, const char *file, size_t n)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	char name[80];

	snprintf(name, sizeof(name), "%.*s", (int)MIN_OF(n, sizeof(name) - 1), file);
	db_start(&q, db, "SELECT 1 FROM revisions WHERE bundle = ? AND deleted_ms IS NULL");
	db_text(&q, name);
	return db_row(&q, NULL) != RC_ABSENT;
}

/* What is written and not yet recorded is young. Half a bundle that a crash left is old one day, too. */
static void bundles_collect(const struct config *c, struct db *db)
{
	int fd = dir_open(c, "bundles");
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;

	if (!dir) {
		close_fd(&fd);
		return;
	}
	while ((e = readdir(dir))) {
		size_t n = strlen(e->d_name), k = strlen(BUNDLE_SUFFIX);
		bool whole = n > k && !strcmp(e->d_name + n - k, BUNDLE_SUFFIX);
		struct stat st;

		if (fstatat(fd, e->d_name, &st, AT_SYMLINK_NOFOLLOW) || !S_ISREG(st.st_mode) ||
		    (uint64_t)st.st_mtim.tv_sec * 1000 + c->bundle_keep_s * 1000 > wall_ms() ||
		    (whole && bundle_is_wanted(db, e->d_name, n - k)))
			continue;
		if (!unlinkat(fd, e->d_name, 0))
			log_info("bundle removed name=%.20s bytes=%lld", e->d_name, (long long)st.st_size);
	}
	closedir(dir);
}

/* Production and what it may be rolled back to within revisions_keep stay. */
static void revisions_retire(const struct config *c, struct db *db)
{
	static const char sql[] =
		"SELECT id FROM (SELECT id, app_id, row_number() OVER (PARTITION BY app_id ORDER BY created_ms DESC) AS age FROM revisions "
		"WHERE deleted_ms IS NULL AND status NOT IN ('queued', 'building')) v WHERE age > ?1 AND NOT EXISTS (SELECT 1 FROM "
		"timelines t WHERE t.app_id = v.app_id AND t.context = 'production' AND v.id IN (t.revision_id, t.desired_revision_id)) LIMIT 32";
	char ids[BATCH][ID];
	size_t n = list(db, sql, NULL, (int64_t)c->revisions_keep, ids);

	for (size_t i = 0; i < n; i++) {
		log_info("revision retired revision=%s", ids[i]);
		run(db, "UPDATE revisions SET deleted_ms = ?2 WHERE id = ?1 AND deleted_ms IS NULL", ids[i], (int64_t)wall_ms());
	}
}

void gc_old(const struct config *c, struct db *db, struct link *l)
{
	char ids[BATCH][ID];
	size_t n = list(db, "SELECT id FROM instances WHERE state = 'ended' AND max(created_ms, ifnull(ended_ms, 0)) < ? LIMIT 32", NULL,
			(int64_t)(wall_ms() - GC_INSTANCE_MS), ids);

	for (size_t i = 0; i < n; i++) {
		lock_remove(c, ids[i]);
		run(db, "DELETE FROM instances WHERE id = ?", ids[i], 0);
	}
	revisions_retire(c, db);
	n = list(db, "SELECT id FROM revisions r WHERE deleted_ms < ? AND NOT EXISTS (SELECT 1 FROM instances i WHERE "
		     "i.revision_id = r.id AND i.state != 'ended') LIMIT 32", NULL, (int64_t)(wall_ms() - PURGE_KEEP_MS), ids);
	for (size_t i = 0; i < n; i++) {
		revision_files_remove(c, ids[i]);
		run(db, "DELETE FROM revisions WHERE id = ?", ids[i], 0);
	}
	bundles_collect(c, db);
	capture_collect(c, db, l);
	capture_collect_sandboxes(db, l);
}
