/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/runner/names.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "fcgi/runner/limits.h"
#include "fcgi/runner/watch.h"

#include <string.h>
#include <time.h>

#define LOCK_PAUSE_NS 5000000
#define ORG_OF(row) "(SELECT a.org_id FROM apps a WHERE a.id = " row ".app_id)"

void names_free(struct names *s)
{
	free(s->hosts);
	*s = (struct names){ .n = 0 };
}

enum rc names_lock(const struct config *c, const char *app, uint64_t deadline_ms, int *ret_fd, struct fault *ret_f)
{
	struct timespec pause = { 0, LOCK_PAUSE_NS };
	enum rc rc;

	while ((rc = watch_lock(c, app, ret_fd, ret_f)) == RC_AGAIN && now_ms() < deadline_ms)
		nanosleep(&pause, NULL);
	return rc == RC_AGAIN && deadline_ms ? fault_set(ret_f, RC_TIMEOUT, 0, "the app's names are being moved by somebody else") : rc;
}

static enum rc names_list(struct db_q *q, struct names *ret, struct fault *ret_f)
{
	_cleanup_names_ struct names s = { .n = 0 };
	enum rc rc;

	while (!(rc = db_row(q, ret_f))) {
		char (*more)[BROKER_HOST_MAX] = s.n < RUNNER_NAMES_MAX ? reallocarray(s.hosts, s.n + 1, BROKER_HOST_MAX) : NULL;

		if (!more)
			return fault_set(ret_f, RC_NOMEM, 0, "too many names");
		s.hosts = more;
		snprintf(s.hosts[s.n++], BROKER_HOST_MAX, "%s", db_col_text(q, 0));
		snprintf(s.org, sizeof(s.org), "%s", db_col_text(q, 1));
	}
	if (rc != RC_ABSENT)
		return rc;
	*ret = s;
	s = (struct names){ .n = 0 };
	return RC_OK;
}

enum rc names_of_timeline(struct db *db, const char *app, const char *timeline, struct names *ret, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	db_start(&q, db, "SELECT host, " ORG_OF("domains") " FROM domains WHERE app_id = ? AND timeline = ?");
	db_text(&q, app);
	db_text(&q, timeline);
	return names_list(&q, ret, ret_f);
}

enum rc names_of_revision(struct db *db, const char *revision, struct names *ret, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	db_start(&q, db, "SELECT d.host, " ORG_OF("d") " FROM timelines t JOIN domains d ON d.app_id = t.app_id AND d.timeline = t.slug "
			 "WHERE t.revision_id = ?");
	db_text(&q, revision);
	return names_list(&q, ret, ret_f);
}

enum rc names_of_host(struct db *db, const char *host, struct names *ret, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	db_start(&q, db, "SELECT host, " ORG_OF("domains") " FROM domains WHERE host = ?");
	db_text(&q, host);
	return names_list(&q, ret, ret_f);
}

enum rc names_of_app(struct db *db, const char *app, struct names *ret, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	db_start(&q, db, "SELECT host, " ORG_OF("domains") " FROM domains WHERE app_id = ?");
	db_text(&q, app);
	return names_list(&q, ret, ret_f);
}

enum rc names_point(struct link *l, const struct names *s, const char *vm, struct fault *ret_f)
{
	char line[64];
	enum rc rc = RC_OK;

	snprintf(line, sizeof(line), "{\"service\":\"dial\",\"port\":%d}", RUNNER_APP_PORT);
	for (size_t i = 0; !rc && i < s->n; i++)
		rc = link_expose(l, s->hosts[i], vm, s->org, line, ret_f);
	return rc;
}

enum rc names_visits(struct link *l, const struct names *s, struct gateway_host_stat *ret, struct fault *ret_f)
{
	struct gateway_host_stat sum = { .idle_ms = UINT64_MAX };

	for (size_t i = 0; i < s->n; i++) {
		struct gateway_host_stat one;
		enum rc rc = link_host_stat(l, s->hosts[i], &one, ret_f);

		if (rc)
			return rc;
		if (!one.known)
			continue;
		sum.known++;
		sum.open += one.open;
		sum.waiting += one.waiting;
		sum.idle_ms = MIN_OF(sum.idle_ms, one.idle_ms);
		sum.oldest_ms = MAX_OF(sum.oldest_ms, one.oldest_ms);
	}
	*ret = sum;
	return RC_OK;
}

enum rc names_target(struct db *db, const char *host, char app[64], char revision[64], char vm[64], struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum rc rc;

	db_start(&q, db,
		 "SELECT t.app_id, t.revision_id, (SELECT i.id FROM instances i WHERE i.revision_id = t.revision_id AND "
		 "i.state = 'running' ORDER BY i.created_ms DESC LIMIT 1) FROM domains d JOIN timelines t ON t.app_id = d.app_id AND "
		 "t.slug = d.timeline JOIN apps a ON a.id = t.app_id WHERE d.host = ? AND t.revision_id IS NOT NULL AND "
		 "a.deleted_ms IS NULL");
	db_text(&q, host);
	rc = db_row(&q, ret_f);
	if (rc)
		return rc;
	snprintf(app, 64, "%s", db_col_text(&q, 0));
	snprintf(revision, 64, "%s", db_col_text(&q, 1));
	snprintf(vm, 64, "%s", db_col_text(&q, 2));
	return RC_OK;
}

/* --- repairs ------------------------------------------------------------------------------------------------------- */

static void stale_remove(struct db *db, struct link *l)
{
	_cleanup_names_ struct names s = { .n = 0 };
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	struct fault f;

	db_start(&q, db, "SELECT host, NULL FROM stale_hosts LIMIT 64");
	if (names_list(&q, &s, &f)) {
		log_fault(LOG_LEVEL_WARN, &f, "stale names");
		return;
	}
	db_end(&q);
	for (size_t i = 0; i < s.n; i++) {
		_cleanup_db_q_ struct db_q gone = DB_Q_INIT;

		if (link_unexpose(l, s.hosts[i], &f)) {
			log_fault(LOG_LEVEL_WARN, &f, "name '%s' could not be given up", s.hosts[i]);
			return;
		}
		db_start(&gone, db, "DELETE FROM stale_hosts WHERE host = ?");
		db_text(&gone, s.hosts[i]);
		db_run(&gone, NULL);
	}
}

static void on_host(void *arg, const char *host)
{
	struct names *s = arg;
	char (*more)[BROKER_HOST_MAX] = s->hosts;

	/* Grown in steps of 256. */
	if (s->n % 256 == 0)
		more = reallocarray(s->hosts, s->n + 256, BROKER_HOST_MAX);
	if (!more)
		return;
	s->hosts = more;
	snprintf(s->hosts[s->n++], BROKER_HOST_MAX, "%s", host);
}

static int by_text(const void *a, const void *b)
{
	return strcmp(a, b);
}

static void missing_add(const struct config *c, struct db *db, struct link *l, const char *host)
{
	_cleanup_names_ struct names s = { .n = 0 };
	char app[64], revision[64], vm[64];
	_cleanup_fd_ int lock = -1;
	struct fault f;

	/* Looked up again under the lock: somebody may just have moved it. */
	if (names_target(db, host, app, revision, vm, NULL) || names_lock(c, app, 0, &lock, NULL) ||
	    names_target(db, host, app, revision, vm, NULL) || names_of_host(db, host, &s, NULL))
		return;
	if (names_point(l, &s, vm, &f))
		log_fault(LOG_LEVEL_WARN, &f, "name '%s' could not be given to the broker", host);
	else
		log_info("name given to the broker host=%s instance=%s", host, vm);
}

void names_sync(const struct config *c, struct db *db, struct link *l)
{
	_cleanup_names_ struct names there = { .n = 0 }, wanted = { .n = 0 };
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	stale_remove(db, l);
	if (link_hosts(l, on_host, &there, NULL))
		return;
	if (there.n)
		qsort(there.hosts, there.n, BROKER_HOST_MAX, by_text);
	db_start(&q, db, "SELECT d.host FROM domains d JOIN timelines t ON t.app_id = d.app_id AND t.slug = d.timeline "
			 "JOIN apps a ON a.id = t.app_id WHERE t.revision_id IS NOT NULL AND a.deleted_ms IS NULL");
	while (!db_row(&q, NULL))
		if (!there.n || !bsearch(db_col_text(&q, 0), there.hosts, there.n, BROKER_HOST_MAX, by_text))
			on_host(&wanted, db_col_text(&q, 0));
	db_end(&q);
	for (size_t i = 0; i < wanted.n; i++)
		missing_add(c, db, l, wanted.hosts[i]);
}
