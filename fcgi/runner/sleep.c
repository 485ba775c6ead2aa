/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/runner/sleep.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "fcgi/runner/capture.h"
#include "fcgi/runner/limits.h"
#include "fcgi/runner/link.h"
#include "fcgi/runner/names.h"

#include <string.h>
#include <time.h>

struct sleeper {
	const struct config *c;
	struct db *db;
	struct link link;
	char vm[64], app[64], revision[64], capture[BROKER_CAPTURE_MAX];
};

static enum rc load(struct sleeper *s, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum rc rc;

	db_start(&q, s->db, "SELECT app_id, revision_id, capture FROM instances WHERE id = ? AND state = 'running'");
	db_text(&q, s->vm);
	rc = db_row(&q, ret_f);
	if (rc)
		return rc;
	snprintf(s->app, sizeof(s->app), "%s", db_col_text(&q, 0));
	snprintf(s->revision, sizeof(s->revision), "%s", db_col_text(&q, 1));
	snprintf(s->capture, sizeof(s->capture), "%s", db_col_text(&q, 2));
	return RC_OK;
}

/* RC_AGAIN: somebody is there. */
static enum rc nobody(struct sleeper *s, const struct names *names, struct fault *ret_f)
{
	struct gateway_host_stat st;
	enum rc rc = names_visits(&s->link, names, &st, ret_f);

	if (rc)
		return rc;
	return !st.known || st.open || st.waiting ? fault_set(ret_f, RC_AGAIN, 0, "somebody visits it") : RC_OK;
}

static enum rc mark(struct sleeper *s, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	db_start(&q, s->db, "UPDATE instances SET state = 'asleep', ended_ms = ? WHERE id = ? AND state = 'running'");
	db_int(&q, (int64_t)wall_ms());
	db_text(&q, s->vm);
	return db_run(&q, ret_f);
}

static enum rc put_to_sleep(struct sleeper *s, const struct names *names, struct fault *ret_f)
{
	uint64_t unused;
	struct fault f;
	enum rc rc = names_point(&s->link, names, "", ret_f);

	if (!rc)
		rc = nobody(s, names, ret_f);
	/* One that was started cold because it had no capture gets it now: nobody waits for it. */
	if (!rc && *s->capture && capture_find(s->db, s->capture, &unused, NULL) == RC_ABSENT) {
		if (capture_take(s->c, s->db, &s->link, s->revision, s->vm, s->capture, &f))
			log_fault(LOG_LEVEL_WARN, &f, "no capture revision=%s", s->revision);
		rc = nobody(s, names, ret_f);
	}
	if (!rc)
		rc = mark(s, ret_f);
	if (rc) {
		if (names_point(&s->link, names, s->vm, &f))
			log_fault(LOG_LEVEL_ERROR, &f, "names of a running instance=%s", s->vm);
		return rc;
	}
	log_info("asleep instance=%s revision=%s", s->vm, s->revision);
	/* If the broker is away now it is ended when it is back: an instance asleep has no machine. */
	return link_vm_kill(&s->link, s->vm, "asleep", ret_f);
}

enum rc sleep_run(const struct config *c, struct db *db, const char *instance, struct fault *ret_f)
{
	_cleanup_names_ struct names names = { .n = 0 };
	struct sleeper s = { .c = c, .db = db };
	_cleanup_fd_ int lock = -1;
	enum rc rc;

	snprintf(s.vm, sizeof(s.vm), "%s", instance);
	rc = link_init(&s.link, c, ret_f);
	if (!rc)
		rc = load(&s, ret_f);
	if (!rc)
		rc = names_lock(c, s.app, now_ms() + RUNNER_LOCK_MS, &lock, ret_f);
	/* Again: what was waited for may have replaced it. */
	if (!rc)
		rc = load(&s, ret_f);
	if (!rc)
		rc = names_of_revision(db, s.revision, &names, ret_f);
	if (!rc)
		rc = nobody(&s, &names, ret_f);
	if (!rc)
		rc = put_to_sleep(&s, &names, ret_f);
	link_close(&s.link);
	/* A visitor, or a newer machine, is no failure. */
	return rc == RC_AGAIN || rc == RC_ABSENT ? RC_OK : rc;
}

/* --- drain --------------------------------------------------------------------------------------------------------- */

static size_t replaced(struct db *db, const char *app, char ids[][BROKER_ID_MAX], size_t max)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	size_t n = 0;

	db_start(&q, db, "SELECT id FROM instances i WHERE app_id = ? AND " DRAIN_SQL);
	db_text(&q, app);
	while (n < max && !db_row(&q, NULL))
		snprintf(ids[n++], BROKER_ID_MAX, "%s", db_col_text(&q, 0));
	return n;
}

static void wait_for_visitors(struct link *l, const struct names *names)
{
	struct timespec pause = { 0, 250000000 };
	uint64_t from = now_ms();

	while (now_ms() - from < RUNNER_DRAIN_MS) {
		struct gateway_host_stat st;

		nanosleep(&pause, NULL);
		/* All that are left came to the new machine. */
		if (!names_visits(l, names, &st, NULL) && st.oldest_ms < now_ms() - from)
			return;
	}
}

enum rc drain_run(const struct config *c, struct db *db, const char *app, struct fault *ret_f)
{
	_cleanup_names_ struct names names = { .n = 0 };
	char ids[16][BROKER_ID_MAX];
	struct link l;
	size_t n;
	enum rc rc = link_init(&l, c, ret_f);

	if (rc)
		return rc;
	n = replaced(db, app, ids, ARRAY_SIZE(ids));
	rc = names_of_app(db, app, &names, ret_f);
	if (!rc && n)
		wait_for_visitors(&l, &names);
	for (size_t i = 0; !rc && i < n; i++) {
		_cleanup_db_q_ struct db_q q = DB_Q_INIT;

		db_start(&q, db, "UPDATE instances SET state = 'ended', ended_ms = ?, reason = 'replaced' WHERE id = ? AND "
				 "EXISTS (SELECT 1 FROM instances i WHERE i.id = instances.id AND " DRAIN_SQL ")");
		db_int(&q, (int64_t)wall_ms());
		db_text(&q, ids[i]);
		rc = db_run(&q, ret_f);
		/* A rollback may have chosen it again meanwhile. */
		if (!rc && q.changes)
			rc = link_vm_kill(&l, ids[i], "replaced by another revision", ret_f);
	}
	link_close(&l);
	return rc;
}
