/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/runner/watch.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "fcgi/runner/gc.h"
#include "fcgi/runner/limits.h"
#include "fcgi/runner/link.h"
#include "fcgi/runner/names.h"
#include "fcgi/runner/purge.h"
#include "fcgi/runner/sleep.h"
#include "fcgi/limits.h"
#include "fcgi/sandbox_store.h"
#include "fcgi/starts.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <sysexits.h>

#define ROW_ID_MAX 64 /* of anything in the database */
#define RETRIES_MAX 256
#define RECONNECT_MS 500
/* Of a revision r: it has a machine, or will be woken by its next visitor. */
#define LIVES "EXISTS (SELECT 1 FROM instances i WHERE i.revision_id = r.id AND i.state IN ('running', 'asleep', 'starting'))"

struct watch;

enum kind { KIND_JOB, KIND_AGAIN, KIND_SLEEP, KIND_DRAIN, KINDS };

static const struct {
	const char *verb; /* of `nestbox-runner VERB ID` */
	size_t max;       /* at once */
	size_t org_max;   /* of one organization; not 0: of a revision, and one that fails is tried again later */
} kinds[KINDS] = {
	[KIND_JOB] = { "job", RUNNER_JOBS_MAX, RUNNER_JOBS_ORG_MAX },
	[KIND_AGAIN] = { "again", RUNNER_WAKES_MAX, RUNNER_WAKES_ORG_MAX },
	[KIND_SLEEP] = { "sleep", RUNNER_SLEEPS_MAX, 0 },
	[KIND_DRAIN] = { "drain", RUNNER_DRAINS_MAX, 0 },
};

struct running {
	struct watch *w;
	struct running *next;
	enum kind kind;
	char id[ROW_ID_MAX], org[ROW_ID_MAX];
	struct source *child;
};

struct keeper { /* writes the log of a running instance */
	struct watch *w;
	char instance[ROW_ID_MAX];
	struct source *child;
	struct keeper *next;
};

struct retry { /* when what failed may be tried again; of revisions that are started again the database knows (fcgi/starts.h) */
	char id[ROW_ID_MAX];
	uint64_t at_ms, wait_ms;
};

struct watch {
	const struct config *c;
	const char *config_path;
	struct db *db;
	struct loop *loop;
	struct link link;
	int kick_fd, events_fd;
	struct source *kick, *tick, *events, *term, *intr;
	struct running *running;
	size_t n_running[KINDS];
	struct retry retries[RETRIES_MAX];
	struct keeper *keepers;
	uint64_t reconcile_at_ms, gc_at_ms;
	int64_t names_n, names_newest_ms;
	char wanted[BROKER_HOST_MAX]; /* the host that was wanted last, so that a crowd before one door costs one look */
	uint64_t wanted_ms;
};

/* --- small statements ---------------------------------------------------------------------------------------------- */

static void run(struct watch *w, const char *sql, const char *a, const char *b, int64_t ms)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	struct fault f;

	db_start(&q, w->db, sql);
	if (ms)
		db_int(&q, ms);
	if (a)
		db_text(&q, a);
	if (b)
		db_text(&q, b);
	if (db_run(&q, &f))
		log_fault(LOG_LEVEL_ERROR, &f, "database");
}

/* First column of up to n rows. */
static size_t list(struct watch *w, const char *sql, const char *a, char out[][ROW_ID_MAX], size_t n)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	size_t k = 0;

	db_start(&q, w->db, sql);
	if (a)
		db_text(&q, a);
	while (k < n && !db_row(&q, NULL))
		snprintf(out[k++], ROW_ID_MAX, "%s", db_col_text(&q, 0));
	return k;
}

/* --- jobs ---------------------------------------------------------------------------------------------------------- */

enum rc watch_lock(const struct config *c, const char *id, int *ret_fd, struct fault *ret_f)
{
	char path[512];
	_cleanup_fd_ int fd = -1;

	snprintf(path, sizeof(path), "%.400s/logs/revisions/.%.64s.lock", c->state_dir, id);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return fault_set(ret_f, RC_SYS, errno, "open lock");
	if (flock(fd, LOCK_EX | LOCK_NB) < 0)
		return fault_set(ret_f, errno == EWOULDBLOCK ? RC_AGAIN : RC_SYS, errno, "lock");
	*ret_fd = take_fd(&fd);
	return RC_OK;
}

static struct running *running_of(struct watch *w, enum kind kind, const char *id)
{
	for (struct running *j = w->running; j; j = j->next)
		if (j->kind == kind && !strcmp(j->id, id))
			return j;
	return NULL;
}

static bool revision_is_busy(struct watch *w, const char *id)
{
	return running_of(w, KIND_JOB, id) || running_of(w, KIND_AGAIN, id);
}

static struct retry *retry_find(struct watch *w, const char *id)
{
	for (size_t i = 0; i < RETRIES_MAX; i++)
		if (!strcmp(w->retries[i].id, id))
			return &w->retries[i];
	return NULL;
}

static struct retry *retry_of(struct watch *w, const char *id)
{
	struct retry *oldest = &w->retries[0], *r = retry_find(w, id);

	if (r)
		return r;
	for (size_t i = 0; i < RETRIES_MAX; i++)
		if (w->retries[i].at_ms < oldest->at_ms)
			oldest = &w->retries[i];
	*oldest = (struct retry){ .wait_ms = 0 };
	snprintf(oldest->id, sizeof(oldest->id), "%s", id);
	return oldest;
}

static void tick(void *arg);

static void back_off(struct watch *w, const char *id)
{
	struct retry *r = retry_of(w, id);

	r->wait_ms = MIN_OF(r->wait_ms ? r->wait_ms * 2 : RUNNER_BACKOFF_MIN_MS, (uint64_t)RUNNER_BACKOFF_MAX_MS);
	r->at_ms = loop_now_ms(w->loop) + r->wait_ms;
}

/* max_ms: of the pause. */
static void start_failed(struct watch *w, const char *revision, int64_t max_ms)
{
	struct starts s;
	struct fault f;

	if (starts_failed(w->db, revision, (int64_t)wall_ms(), max_ms, &s, &f))
		log_fault(LOG_LEVEL_ERROR, &f, "record a failed start");
	else
		log_warn("a start failed revision=%s failures=%" PRId64 " next_s=%" PRId64, revision, s.failures, (s.retry_ms - s.failed_ms) / 1000);
}

static bool may_start(struct watch *w, enum kind kind, const char *id)
{
	const struct retry *r = retry_find(w, id);

	if (kind == KIND_AGAIN)
		return starts_due(w->db, id, (int64_t)wall_ms());
	return !r || r->at_ms <= loop_now_ms(w->loop);
}

/*
 * A job that was killed leaves an instance that will never be more. Its machine is ended as one that nobody has. Not if somebody holds the revision's
 * lock: then a process of a runner that was killed goes on with it, and what ended is one that found that out.
 */
static void starting_end(struct watch *w, const char *revision, const char *reason)
{
	int fd;

	if (watch_lock(w->c, revision, &fd, NULL))
		return;
	run(w, "UPDATE instances SET state = 'ended', reason = ? WHERE revision_id = ? AND state = 'starting'", reason, revision, 0);
	close(fd);
}

static void on_child_end(void *arg, int status)
{
	struct running *j = arg, **at = &j->w->running;
	struct watch *w = j->w;

	log_info("ended kind=%s id=%s status=%d", kinds[j->kind].verb, j->id,
		 WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
	if (status && j->kind == KIND_AGAIN)
		start_failed(w, j->id, WIFEXITED(status) && WEXITSTATUS(status) != EX_TEMPFAIL ? STARTS_BACKOFF_MAX_MS : RUNNER_BACKOFF_MAX_MS);
	else if (status)
		back_off(w, j->id);
	if (status && kinds[j->kind].org_max)
		starting_end(w, j->id, "its start failed");
	while (*at != j)
		at = &(*at)->next;
	*at = j->next;
	w->n_running[j->kind]--;
	source_drop(&j->child);
	free(j);
	tick(w);
}

static pid_t spawn(struct watch *w, const char *verb, const char *id)
{
	pid_t pid = fork();
	sigset_t none;

	if (pid)
		return pid;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	setsid();
	if (w->config_path)
		execl("/proc/self/exe", "nestbox-runner", "-c", w->config_path, verb, id, NULL);
	else
		execl("/proc/self/exe", "nestbox-runner", verb, id, NULL);
	_exit(127);
}

/* False: its organization has as many of this kind as it may. One whose builds hang, or whose apps do not start, leaves places to others. */
static bool org_has_room(struct watch *w, enum kind kind, const char *revision, char org[ROW_ID_MAX])
{
	size_t n = 0;

	if (!list(w, "SELECT a.org_id FROM revisions r JOIN apps a ON a.id = r.app_id WHERE r.id = ?", revision, (char (*)[ROW_ID_MAX])org, 1))
		return false;
	for (const struct running *j = w->running; j; j = j->next)
		n += j->kind == kind && !strcmp(j->org, org);
	return n < kinds[kind].org_max;
}

static void start(struct watch *w, enum kind kind, const char *id)
{
	char org[ROW_ID_MAX] = "";
	struct running *j;
	struct fault f;
	pid_t pid;

	if (running_of(w, kind, id) || w->n_running[kind] >= kinds[kind].max || !may_start(w, kind, id) ||
	    (kinds[kind].org_max && (revision_is_busy(w, id) || !org_has_room(w, kind, id, org))))
		return;
	j = calloc(1, sizeof(*j));
	pid = j ? spawn(w, kinds[kind].verb, id) : -1;
	if (pid < 0) {
		log_error("could not start a process for %s", id);
		free(j);
		return;
	}
	*j = (struct running){ .w = w, .kind = kind };
	snprintf(j->id, sizeof(j->id), "%s", id);
	memcpy(j->org, org, sizeof(j->org));
	log_info("started kind=%s id=%s pid=%d", kinds[kind].verb, id, (int)pid);
	if (loop_child(w->loop, pid, on_child_end, j, &j->child, &f)) {
		log_fault(LOG_LEVEL_ERROR, &f, "watch a process");
		free(j);
		return;
	}
	j->next = w->running;
	w->running = j;
	w->n_running[kind]++;
}

/* Revisions whose job died with an earlier runner, or was killed: nobody holds their lock. */
static void requeue_orphans(struct watch *w)
{
	char ids[16][ROW_ID_MAX];
	size_t n = list(w, "SELECT id FROM revisions WHERE status = 'building'", NULL, ids, ARRAY_SIZE(ids));

	for (size_t i = 0; i < n; i++) {
		int fd;

		if (revision_is_busy(w, ids[i]) || watch_lock(w->c, ids[i], &fd, NULL))
			continue;
		log_warn("revision was interrupted and starts over revision=%s", ids[i]);
		run(w, "UPDATE revisions SET status = 'queued', stage = 'queued' WHERE id = ? AND status = 'building'", ids[i], NULL, 0);
		close(fd);
	}
	n = list(w, "SELECT DISTINCT revision_id FROM instances WHERE state = 'starting'", NULL, ids, ARRAY_SIZE(ids));
	for (size_t i = 0; i < n; i++) {
		if (!revision_is_busy(w, ids[i]))
			starting_end(w, ids[i], "its start was interrupted");
	}
}

/*
 * Organizations take turns: the oldest of each, then the next of each. More are looked at than there are places, since those that wait for
 * another attempt, or for a place of their organization, must not be in the way of the others.
 */
static void start_queued(struct watch *w)
{
	char ids[RUNNER_LOOK_MAX][ROW_ID_MAX];
	size_t n = list(w,
		"SELECT id FROM (SELECT r.id, r.created_ms, row_number() OVER (PARTITION BY a.org_id ORDER BY r.created_ms, r.id) AS turn "
		"FROM revisions r JOIN apps a ON a.id = r.app_id WHERE r.status = 'queued' AND r.bundle != '' AND r.deleted_ms IS NULL "
		"AND a.deleted_ms IS NULL) ORDER BY turn, created_ms",
		NULL, ids, ARRAY_SIZE(ids));

	for (size_t i = 0; i < n; i++)
		start(w, KIND_JOB, ids[i]);
}

/* A revision that failed is wanted no more: what served before it is, also when its machine has to be started again. */
static void unwant_failed(struct watch *w)
{
	run(w, "UPDATE timelines SET desired_revision_id = revision_id WHERE desired_revision_id IS NOT revision_id AND "
	       "desired_revision_id IN (SELECT id FROM revisions WHERE status IN ('failed', 'skipped'))", NULL, NULL, 0);
}

/*
 * What a name should lead to but no machine serves: lost with the host, crashed, or chosen by a rollback. And what it leads to until the chosen
 * one has answered, if that has no machine either: one that does not come up leaves the app with what it had.
 */
static void start_wanted(struct watch *w)
{
	char ids[RUNNER_LOOK_MAX][ROW_ID_MAX];
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	size_t n = 0;

	db_start(&q, w->db,
		"SELECT id FROM (SELECT id, row_number() OVER (PARTITION BY org_id ORDER BY id) AS turn FROM ("
		"SELECT r.id AS id, a.org_id FROM timelines t JOIN apps a ON a.id = t.app_id JOIN revisions r ON r.id = t.desired_revision_id "
		"WHERE a.deleted_ms IS NULL AND r.deleted_ms IS NULL AND r.status = 'succeeded' AND (t.revision_id IS NOT r.id OR NOT " LIVES ") AND " STARTS_DUE_SQL " "
		"UNION SELECT r.id, a.org_id FROM timelines t JOIN apps a ON a.id = t.app_id JOIN revisions r ON r.id = t.revision_id "
		"WHERE a.deleted_ms IS NULL AND r.deleted_ms IS NULL AND r.status = 'succeeded' AND NOT " LIVES " AND " STARTS_DUE_SQL ")) ORDER BY turn, id");
	db_int(&q, (int64_t)wall_ms());
	db_int(&q, STARTS_BACKOFF_MAX_MS);
	while (n < ARRAY_SIZE(ids) && !db_row(&q, NULL))
		snprintf(ids[n++], ROW_ID_MAX, "%s", db_col_text(&q, 0));
	db_end(&q);
	for (size_t i = 0; i < n; i++)
		start(w, KIND_AGAIN, ids[i]);
}

/* A visitor is at a door that nobody is behind. */
static void wake(struct watch *w, const char *host)
{
	char app[ROW_ID_MAX], revision[ROW_ID_MAX], vm[ROW_ID_MAX];
	_cleanup_names_ struct names names = { .n = 0 };
	_cleanup_fd_ int lock = -1;
	uint64_t now = loop_now_ms(w->loop);

	if (!strcmp(w->wanted, host) && now - w->wanted_ms < RUNNER_WANTED_MS)
		return;
	snprintf(w->wanted, sizeof(w->wanted), "%s", host);
	w->wanted_ms = now;
	if (names_target(w->db, host, app, revision, vm, NULL))
		return;
	if (!*vm) {
		starts_visited(w->db, revision, NULL);
		start(w, KIND_AGAIN, revision);
		return;
	}
	/* It runs, and the name leads nowhere: somebody is moving it, or died while he did. */
	if (!names_lock(w->c, app, 0, &lock, NULL) && !names_target(w->db, host, app, revision, vm, NULL) && *vm &&
	    !names_of_host(w->db, host, &names, NULL))
		names_point(&w->link, &names, vm, NULL);
}

/* Those whose names nobody has visited for app_idle_ms. The process looks again, under the app's lock. */
static void start_sleeping(struct watch *w)
{
	_cleanup_free_ struct idle {
		char id[ROW_ID_MAX], revision[ROW_ID_MAX];
		uint64_t ms;
	} *idle = calloc(w->c->vm_max, sizeof(*idle));
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	size_t n = 0;

	db_start(&q, w->db,
		 "SELECT i.id, i.revision_id, ifnull(a.idle_ms, ?1) AS idle FROM instances i JOIN apps a ON a.id = i.app_id WHERE "
		 "i.state = 'running' AND idle > 0 AND i.running_ms < ?2 - idle AND NOT (" DRAIN_SQL ")");
	db_int(&q, (int64_t)w->c->app_idle_ms);
	db_int(&q, (int64_t)wall_ms());
	for (; idle && n < w->c->vm_max && !db_row(&q, NULL); n++) {
		snprintf(idle[n].id, ROW_ID_MAX, "%s", db_col_text(&q, 0));
		snprintf(idle[n].revision, ROW_ID_MAX, "%s", db_col_text(&q, 1));
		idle[n].ms = (uint64_t)db_col_int(&q, 2);
	}
	db_end(&q);
	for (size_t i = 0; i < n; i++) {
		_cleanup_names_ struct names names = { .n = 0 };
		struct gateway_host_stat st;

		if (names_of_revision(w->db, idle[i].revision, &names, NULL) || names_visits(&w->link, &names, &st, NULL))
			return; /* the gateway is away: nobody is put to sleep */
		if (st.known && !st.open && st.idle_ms >= idle[i].ms)
			start(w, KIND_SLEEP, idle[i].id);
	}
}

static void start_draining(struct watch *w)
{
	char ids[RUNNER_LOOK_MAX][ROW_ID_MAX];
	size_t n = list(w, "SELECT DISTINCT app_id FROM instances i WHERE " DRAIN_SQL, NULL, ids, ARRAY_SIZE(ids));

	run(w, "UPDATE instances SET state = 'ended', reason = 'replaced' WHERE state = 'asleep' AND NOT EXISTS (SELECT 1 FROM timelines t "
	       "WHERE t.app_id = instances.app_id AND instances.revision_id IN (t.revision_id, t.desired_revision_id))", NULL, NULL, 0);
	for (size_t i = 0; i < n; i++)
		start(w, KIND_DRAIN, ids[i]);
}

static void on_keeper_end(void *arg, int status)
{
	struct keeper *k = arg, **at = &k->w->keepers;

	(void)status; /* its machine ended, or it will be started again */
	while (*at != k)
		at = &(*at)->next;
	*at = k->next;
	source_drop(&k->child);
	free(k);
}

/* Keepers of an earlier runner go on by themselves and hold their locks. */
static void start_keepers(struct watch *w)
{
	_cleanup_free_ char (*ids)[ROW_ID_MAX] = calloc(w->c->vm_max, ROW_ID_MAX);
	size_t n = ids ? list(w, "SELECT id FROM instances WHERE state = 'running'", NULL, ids, w->c->vm_max) : 0;

	for (size_t i = 0; i < n; i++) {
		struct keeper *k = w->keepers;
		pid_t pid;
		int fd;

		while (k && strcmp(k->instance, ids[i]))
			k = k->next;
		if (k || watch_lock(w->c, ids[i], &fd, NULL))
			continue;
		close(fd);
		k = calloc(1, sizeof(*k));
		if (!k)
			return;
		k->w = w;
		memcpy(k->instance, ids[i], sizeof(k->instance));
		pid = spawn(w, "keep", ids[i]);
		if (pid < 0 || loop_child(w->loop, pid, on_keeper_end, k, &k->child, NULL)) {
			free(k);
			return;
		}
		k->next = w->keepers;
		w->keepers = k;
	}
}

/* --- what ended, what was deleted ---------------------------------------------------------------------------------- */

/* A machine that ended by itself: its revision waits longer each time, unless it had been well for a while. */
static void instance_gone(struct watch *w, const char *id, const char *reason)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	char revision[ROW_ID_MAX] = "";
	int64_t now = (int64_t)wall_ms(), since = 0;

	db_start(&q, w->db, "SELECT revision_id, running_ms FROM instances WHERE id = ? AND state = 'running'");
	db_text(&q, id);
	if (!db_row(&q, NULL)) {
		snprintf(revision, sizeof(revision), "%s", db_col_text(&q, 0));
		since = db_col_int(&q, 1);
	}
	db_end(&q);
	if (*revision) {
		log_warn("an app's machine ended instance=%s reason=%s", id, reason);
		if (now - since > STARTS_HEALTHY_MS)
			starts_forget(w->db, revision, NULL);
		start_failed(w, revision, STARTS_BACKOFF_MAX_MS);
	}
	run(w, "UPDATE instances SET ended_ms = ?, state = 'ended', reason = ? WHERE id = ? AND state NOT IN ('ended', 'asleep')", reason, id, now);
}

static void vm_gone(struct watch *w, const char *id, const char *reason)
{
	struct fault f;

	if (!strncmp(id, "rev_", 4))
		instance_gone(w, id, reason);
	else if (sandbox_set_stopped(w->db, id, reason, &f))
		log_fault(LOG_LEVEL_ERROR, &f, "record the end of sandbox=%s", id);
}

struct seen {
	struct watch *w;
	char (*ids)[BROKER_ID_MAX];
	size_t n, cap;
};

static void on_vm(void *arg, const struct broker_vm_stat *vm)
{
	struct seen *s = arg;

	if (vm->state != BROKER_VM_GONE && s->n < s->cap)
		memcpy(s->ids[s->n++], vm->id, BROKER_ID_MAX);
}

/* A job writes its instance down before it asks for the machine; what sleeps has none. */
static bool instance_known(struct watch *w, const char *id)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	db_start(&q, w->db, "SELECT 1 FROM instances WHERE id = ? AND state NOT IN ('ended', 'asleep')");
	db_text(&q, id);
	return db_row(&q, NULL) != RC_ABSENT;
}

/* Its create was undone, or somebody has ended it before the broker knew it, and whoever did could not tell the broker. */
static bool sandbox_is_over(struct watch *w, const char *id)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	db_start(&q, w->db, "SELECT 1 FROM sandboxes WHERE id = ? AND status = 'stopped'");
	db_text(&q, id);
	return !db_row(&q, NULL);
}

/* After every connect and every RUNNER_RECONCILE_MS: what the database believes to run, and the broker does not know, ended while nobody looked. */
static void reconcile(struct watch *w)
{
	struct seen s = { .w = w, .cap = w->c->vm_max + 64 };
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	char (*lost)[ROW_ID_MAX] = calloc(s.cap, ROW_ID_MAX);
	size_t n_lost = 0;
	struct fault f;

	w->reconcile_at_ms = now_ms() + RUNNER_RECONCILE_MS;
	s.ids = calloc(s.cap, BROKER_ID_MAX);
	if (!s.ids || !lost || link_vms(&w->link, on_vm, &s, &f)) {
		free(s.ids);
		free(lost);
		return;
	}
	if (starts_settle(w->db, (int64_t)wall_ms(), &f))
		log_fault(LOG_LEVEL_WARN, &f, "forget failed starts");
	purge_run(w->db, &w->link);
	names_sync(w->c, w->db, &w->link);
	if (now_ms() >= w->gc_at_ms) {
		w->gc_at_ms = now_ms() + RUNNER_GC_MS;
		gc_old(w->c, w->db, &w->link);
	}
	/* One that starts and is younger than its create's deadline may not have reached the broker yet. */
	db_start(&q, w->db, "SELECT id FROM sandboxes WHERE status != 'stopped' AND node = ? "
			    "AND (status = 'running' OR created_ms < ?) "
			    "UNION ALL SELECT id FROM instances WHERE state NOT IN ('ended', 'asleep') AND (state = 'running' OR created_ms < ?)");
	db_text(&q, w->c->node);
	db_int(&q, (int64_t)(wall_ms() - w->c->create_timeout_ms));
	db_int(&q, (int64_t)(wall_ms() - w->c->create_timeout_ms));
	while (n_lost < s.cap && !db_row(&q, NULL)) {
		bool here = false;

		for (size_t i = 0; i < s.n; i++)
			here |= !strcmp(s.ids[i], db_col_text(&q, 0));
		if (!here)
			snprintf(lost[n_lost++], ROW_ID_MAX, "%s", db_col_text(&q, 0));
	}
	db_end(&q);
	for (size_t i = 0; i < s.n; i++)
		if (!strncmp(s.ids[i], "rev_", 4) && !instance_known(w, s.ids[i])) {
			log_warn("ending a machine that no revision has instance=%s", s.ids[i]);
			link_vm_kill(&w->link, s.ids[i], "no revision has it", NULL);
		} else if (!strncmp(s.ids[i], "sbx_", 4) && sandbox_is_over(w, s.ids[i])) {
			log_warn("ending a machine whose sandbox has ended sandbox=%s", s.ids[i]);
			link_vm_kill(&w->link, s.ids[i], "its sandbox has ended", NULL);
		}
	for (size_t i = 0; i < n_lost; i++) {
		struct broker_vm_stat st;
		bool known = !link_vm_stat(&w->link, lost[i], &st, NULL);

		vm_gone(w, lost[i], known && st.reason[0] ? st.reason : "lost with its host");
	}
	free(s.ids);
	free(lost);
}

/* --- the broker's events ------------------------------------------------------------------------------------------- */

static void events_lost(struct watch *w)
{
	source_drop(&w->events);
	close_fd(&w->events_fd);
	loop_timer_set(w->tick, loop_now_ms(w->loop) + RECONNECT_MS);
}

static void on_event(void *arg, uint32_t events)
{
	static uint8_t mem[MESSAGE_MAX];
	struct watch *w = arg;
	struct message_head head;
	struct broker_vm_event e;
	int fds[FD_PASS_MAX];
	size_t n, n_fds = 0;
	struct wire in;
	enum rc rc = packet_recv(w->events_fd, mem, sizeof(mem), &n, fds, &n_fds, NULL);

	(void)events;
	if (rc == RC_AGAIN)
		return;
	if (rc || !n || message_open(mem, n, n_fds, &head, &in, NULL)) {
		events_lost(w);
		return;
	}
	fds_close(fds, n_fds);
	if (head.op == (BROKER_EVENT_WANTED | MESSAGE_EVENT)) {
		struct broker_host wanted;

		broker_host_get(&in, &wanted);
		if (wire_done(&in))
			wake(w, wanted.host);
		return;
	}
	if (head.op != (BROKER_EVENT_VM | MESSAGE_EVENT))
		return;
	broker_vm_event_get(&in, &e);
	if (wire_done(&in) && e.state == BROKER_VM_GONE) {
		vm_gone(w, e.id, e.reason);
		loop_timer_set(w->tick, loop_now_ms(w->loop));
	}
}

static void subscribe(struct watch *w)
{
	static struct message_call call = { .op = BROKER_SUBSCRIBE };
	struct fault f;

	if (unix_connect(w->link.broker.path, SOCK_SEQPACKET, &w->events_fd, &f))
		return;
	if (message_call(w->events_fd, &call, now_ms() + 5000, &f) || fd_nonblock(w->events_fd, &f) ||
	    loop_fd(w->loop, w->events_fd, EPOLLIN, on_event, w, &w->events, &f)) {
		log_fault(LOG_LEVEL_WARN, &f, "subscribe to the broker");
		close_fd(&w->events_fd);
		return;
	}
	log_info("connected to the broker");
	reconcile(w);
}

static void tick(void *arg)
{
	struct watch *w = arg;

	loop_timer_set(w->tick, now_ms() + RUNNER_POLL_MS);
	if (w->events_fd < 0)
		subscribe(w);
	if (w->events_fd < 0)
		return;
	if (now_ms() >= w->reconcile_at_ms)
		reconcile(w);
	requeue_orphans(w);
	start_queued(w);
	unwant_failed(w);
	start_wanted(w);
	start_keepers(w);
	start_draining(w);
	start_sleeping(w);
	gc_deleted(w->c, w->db, &w->link);
}

/* Whether names came or went since the last look. Asking the broker for all that it has is for then, and for every reconcile. */
static bool names_changed(struct watch *w)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	int64_t n, newest;
	bool same;

	db_start(&q, w->db, "SELECT count(*), ifnull(max(created_ms), 0) FROM domains");
	if (db_row(&q, NULL))
		return true;
	n = db_col_int(&q, 0);
	newest = db_col_int(&q, 1);
	same = n == w->names_n && newest == w->names_newest_ms;
	w->names_n = n;
	w->names_newest_ms = newest;
	return !same;
}

static void on_kick(void *arg, uint32_t events)
{
	struct watch *w = arg;
	char data[16];

	(void)events;
	while (recv(w->kick_fd, data, sizeof(data), MSG_DONTWAIT) >= 0)
		;
	tick(w);
	if (w->events_fd >= 0 && names_changed(w))
		names_sync(w->c, w->db, &w->link);
}

static void on_signal(void *arg, int signal)
{
	log_info("ending signal=%d", signal);
	loop_stop(((struct watch *)arg)->loop);
}

enum rc watch_run(const struct config *c, const char *config_path, struct db *db, int kick_fd, struct fault *ret_f)
{
	static struct watch w = { .events_fd = -1 };
	enum rc rc = loop_new(&w.loop, ret_f);

	w.c = c;
	w.config_path = config_path;
	w.db = db;
	w.kick_fd = kick_fd;
	if (!rc)
		rc = link_init(&w.link, c, ret_f);
	if (!rc)
		rc = loop_signal(w.loop, SIGTERM, on_signal, &w, &w.term, ret_f);
	if (!rc)
		rc = loop_signal(w.loop, SIGINT, on_signal, &w, &w.intr, ret_f);
	if (!rc)
		rc = loop_timer(w.loop, now_ms(), tick, &w, &w.tick, ret_f);
	if (!rc)
		rc = loop_fd(w.loop, kick_fd, EPOLLIN, on_kick, &w, &w.kick, ret_f);
	if (!rc)
		rc = loop_run(w.loop, ret_f);
	loop_free(w.loop);
	return rc;
}
