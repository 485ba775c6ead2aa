/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/runner/job.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "fcgi/deploy/bundle.h"
#include "fcgi/domains.h"
#include "fcgi/env.h"
#include "fcgi/runner/limits.h"
#include "fcgi/runner/capture.h"
#include "fcgi/runner/link.h"
#include "fcgi/runner/names.h"
#include "fcgi/runner/progress.h"
#include "fcgi/runner/server.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#define APP_DIR "/home/app"

struct job {
	const struct config *c;
	struct db *db;
	struct link link;
	struct progress progress;
	enum stage stage;
	bool again, cancelled, superseded, passed_over, production, preview, adopted, sleeps;
	uint64_t deadline_ms, last_cancel_check_ms;
	char revision[64], app_id[64], slug[128], org[64], bundle[BUNDLE_NAME_MAX], vm[BROKER_ID_MAX];
	struct json_object *config; /* RevisionConfig */
	struct json_object *env;       /* name -> value, of the server */
	struct json_object *build_env; /* of install and build */
	const char *context;           /* whose variables env has */
	char capture[BROKER_CAPTURE_MAX];
	uint64_t log_seq;
	int bundles_fd;
};

/* --- the database -------------------------------------------------------------------------------------------------- */

static enum rc load(struct job *j, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	uint64_t created;
	enum rc rc;

	db_start(&q, j->db,
		 "SELECT r.app_id, a.slug, a.org_id, r.bundle, r.config, r.production, r.preview, r.created_ms, "
		 "ifnull(a.idle_ms, ?) "
		 "FROM revisions r JOIN apps a ON a.id = r.app_id WHERE r.id = ? AND r.deleted_ms IS NULL AND a.deleted_ms IS NULL");
	db_int(&q, (int64_t)j->c->app_idle_ms);
	db_text(&q, j->revision);
	rc = db_row(&q, ret_f);
	if (rc)
		return rc;
	j->sleeps = db_col_int(&q, 8) > 0;
	snprintf(j->app_id, sizeof(j->app_id), "%s", db_col_text(&q, 0));
	snprintf(j->slug, sizeof(j->slug), "%s", db_col_text(&q, 1));
	snprintf(j->org, sizeof(j->org), "%s", db_col_text(&q, 2));
	snprintf(j->bundle, sizeof(j->bundle), "%s", db_col_text(&q, 3));
	j->config = json_tokener_parse(db_col_text(&q, 4));
	j->production = db_col_int(&q, 5);
	j->preview = db_col_int(&q, 6);
	created = (uint64_t)db_col_int(&q, 7);
	db_end(&q);
	if (!json_object_is_type(j->config, json_type_object))
		return fault_set(ret_f, RC_STATE, 0, "the revision's configuration is damaged");
	if (j->again)
		return RC_OK;
	rc = progress_open(&j->progress, j->c->state_dir, j->revision, created, ret_f);
	j->progress.production = j->production;
	j->progress.preview = j->preview;
	return rc;
}

static enum rc update(struct job *j, const char *sql, const char *a, const char *b, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	db_start(&q, j->db, sql);
	if (a)
		db_text(&q, a);
	if (b)
		db_text(&q, b);
	return db_run(&q, ret_f);
}

/*
 * What a revision that is started again shall serve: NULL if nothing any more. A rollback may make production of what was a preview. What
 * serves is wanted until the one that was chosen instead has answered: that may take long, or never come.
 */
static const char *wanted_as(struct job *j)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	db_start(&q, j->db, "SELECT max(context = 'production') FROM timelines WHERE ?1 IN (desired_revision_id, revision_id)");
	db_text(&q, j->revision);
	return db_row(&q, NULL) || db_col_null(&q, 0) ? NULL : db_col_int(&q, 0) ? "production" : "preview";
}

/* Another one was chosen, or it was for something else: with other variables. */
static bool superseded(struct job *j)
{
	const char *as = wanted_as(j);

	j->superseded = !as || strcmp(as, j->context) != 0;
	return j->superseded;
}

/* Asked at most twice a second. */
static bool cancelled(void *arg)
{
	struct job *j = arg;
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	if (j->cancelled || now_ms() - j->last_cancel_check_ms < 500)
		return j->cancelled;
	j->last_cancel_check_ms = now_ms();
	if (j->again)
		return superseded(j);
	db_start(&q, j->db, "SELECT 1 FROM revisions WHERE id = ? AND cancel_requested_ms IS NULL AND deleted_ms IS NULL");
	db_text(&q, j->revision);
	j->cancelled = db_row(&q, NULL) == RC_ABSENT;
	return j->cancelled;
}

static enum rc out_of_time(const struct job *j, struct fault *ret_f)
{
	return fault_set(ret_f, RC_TIMEOUT, 0, "the revision took longer than %" PRIu64 " s", j->c->build_s);
}

static enum rc enter(struct job *j, enum stage stage, const char *command, struct fault *ret_f)
{
	enum rc rc;

	if (j->again)
		return RC_OK;
	if (cancelled(j))
		return fault_set(ret_f, RC_STATE, 0, "cancelled");
	if (now_ms() > j->deadline_ms)
		return out_of_time(j, ret_f);
	if (j->progress.stages[j->stage].status == ST_RUNNING)
		progress_stage(&j->progress, j->stage, ST_SUCCEEDED, NULL);
	j->stage = stage;
	progress_stage(&j->progress, stage, ST_RUNNING, command);
	rc = update(j, "UPDATE revisions SET status = 'building', stage = ? WHERE id = ?", stage_name(stage), j->revision,
		    ret_f);
	return rc;
}

static void note(struct job *j, bool is_error, const char *text)
{
	if (!j->again)
		progress_log(&j->progress, j->stage, is_error, text);
}

/* Ends the job's own machine. */
static void instance_end(struct job *j, const char *reason)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	link_vm_kill(&j->link, j->vm, reason, NULL);
	db_start(&q, j->db, "UPDATE instances SET state = 'ended', ended_ms = ?, reason = ? WHERE id = ?");
	db_int(&q, (int64_t)wall_ms());
	db_text(&q, reason);
	db_text(&q, j->vm);
	db_run(&q, NULL);
}

/* --- the machine --------------------------------------------------------------------------------------------------- */

/* capture: "" begins from the template. */
static enum rc make_machine(struct job *j, const char *capture, uint64_t memory_mib, struct fault *ret_f)
{
	static struct broker_vm_create m;
	char policy[256], tail[9];
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum rc rc;

	random_hex(tail, 4);
	snprintf(j->vm, sizeof(j->vm), "rev_%.20s_%s", j->revision, tail);
	db_start(&q, j->db, "INSERT INTO instances (id, app_id, revision_id, node, state, created_ms, capture, log_seq, warm) "
			    "VALUES (?, ?, ?, ?, 'starting', ?, ?, ?, ?)");
	db_text(&q, j->vm);
	db_text(&q, j->app_id);
	db_text(&q, j->revision);
	db_text(&q, j->c->node);
	db_int(&q, (int64_t)wall_ms());
	db_text(&q, j->capture);
	db_int(&q, *capture ? (int64_t)j->log_seq : 0);
	db_int(&q, *capture != '\0');
	rc = db_run(&q, ret_f);
	if (rc)
		return rc;
	memset(&m, 0, sizeof(m));
	snprintf(m.capture, sizeof(m.capture), "%s", capture);
	memcpy(m.id, j->vm, sizeof(m.id));
	m.memory_mib = (uint32_t)memory_mib;
	snprintf(m.hostname, sizeof(m.hostname), "%.60s", j->slug);
	snprintf(policy, sizeof(policy), "nestbox-policy 1\ndefault public\norg %s\n", j->org);
	m.policy = (const uint8_t *)policy;
	m.policy_n = strlen(policy);
	return link_vm_create(&j->link, &m, ret_f);
}

static enum rc unpack(struct job *j, struct fault *ret_f)
{
	struct json_object *o = json_object_new_object(), *answer = NULL;
	_cleanup_fd_ int fd = -1;
	enum rc rc;

	json_object_object_add(o, "service", json_object_new_string("tar-in"));
	json_object_object_add(o, "path", json_object_new_string(APP_DIR));
	json_object_object_add(o, "user", json_object_new_string("app"));
	rc = link_service(&j->link, j->vm, o, &fd, NULL, ret_f);
	if (!rc)
		rc = bundle_write_tar(j->bundles_fd, j->bundle, fd, j->deadline_ms, ret_f);
	if (!rc && shutdown(fd, SHUT_WR) < 0)
		rc = fault_set(ret_f, RC_CLOSED, errno, "end of the bundle");
	if (!rc)
		rc = agent_answer(fd, j->deadline_ms, &answer, ret_f);
	json_object_put(answer);
	return rc;
}

static void on_line(void *arg, bool is_error, const char *text)
{
	note(arg, is_error, text);
}

static struct json_object *request(const char *service)
{
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "service", json_object_new_string(service));
	json_object_object_add(o, "cwd", json_object_new_string(APP_DIR));
	json_object_object_add(o, "user", json_object_new_string("app"));
	return o;
}

static const char *config_text(struct job *j, const char *key)
{
	struct json_object *v;

	return json_object_object_get_ex(j->config, key, &v) && json_object_is_type(v, json_type_string) &&
			       json_object_get_string_len(v) ?
		       json_object_get_string(v) : NULL;
}

static enum rc run_command(struct job *j, enum stage stage, const char *key, struct fault *ret_f)
{
	const char *command = config_text(j, key);
	struct json_object *o;
	char said[300];
	enum rc rc;

	if (!command) {
		progress_stage(&j->progress, stage, ST_SKIPPED, NULL);
		return RC_OK;
	}
	rc = enter(j, stage, command, ret_f);
	if (rc)
		return rc;
	snprintf(said, sizeof(said), "$ %s", command);
	note(j, false, said);
	o = request("exec");
	json_object_object_add(o, "env", json_object_get(j->build_env));
	json_object_object_add(o, "argv", json_strings((const char *[]){ "bash", "-c", command, NULL }));
	return link_exec(&j->link, j->vm, o, MIN_OF(j->deadline_ms, now_ms() + j->c->build_command_s * 1000), on_line, cancelled, j, ret_f);
}

/* What was built is what later machines of this revision start from. */
static enum rc keep_built(struct job *j, struct fault *ret_f)
{
	struct bundle_limits limits = BUNDLE_LIMITS_DEFAULT;
	uint64_t now = now_ms();
	struct bundle_pace pace = BUNDLE_PACE_WITHIN(j->deadline_ms > now ? j->deadline_ms - now : 0);
	struct json_object *o = json_object_new_object();
	_cleanup_fd_ int fd = -1;
	struct bundle b;
	enum rc rc;

	json_object_object_add(o, "service", json_object_new_string("tar-out"));
	json_object_object_add(o, "path", json_object_new_string(APP_DIR));
	json_object_object_add(o, "exclude", json_strings((const char *[]){ ".cache", NULL }));
	rc = link_service(&j->link, j->vm, o, &fd, NULL, ret_f);
	if (!rc)
		rc = bundle_from_tar(fd, &limits, j->bundles_fd, &pace, &b, ret_f);
	if (rc)
		return rc;
	memcpy(j->bundle, b.name, sizeof(j->bundle));
	return update(j, "UPDATE revisions SET bundle = ? WHERE id = ?", j->bundle, j->revision, ret_f);
}

/* --- the server ---------------------------------------------------------------------------------------------------- */

static enum rc start_server(struct job *j, struct fault *ret_f)
{
	struct json_object *o = request("unit");
	_cleanup_fd_ int fd = -1;

	json_object_object_add(o, "env", json_object_get(j->env));
	json_object_object_add(o, "op", json_object_new_string("start"));
	json_object_object_add(o, "name", json_object_new_string("app"));
	json_object_object_add(o, "argv", server_argv(j->config));
	json_object_object_add(o, "restart", json_object_new_boolean(1));
	return link_service(&j->link, j->vm, o, &fd, NULL, ret_f);
}

static enum rc wait_ready(struct job *j, struct fault *ret_f)
{
	uint64_t until = MIN_OF(j->deadline_ms, now_ms() + j->c->app_ready_s * 1000);
	char host[BROKER_HOST_MAX];
	struct server_state u;
	struct fault f = { 0 };

	snprintf(host, sizeof(host), "%.60s.%.150s", j->slug, j->c->domain);
	while (now_ms() < until) {
		struct timespec pause = { 0, 50000000 };
		enum rc rc = server_ask(&j->link, j->vm, host, RUNNER_LISTEN_MS, &f);

		if (!rc)
			return RC_OK;
		if (cancelled(j))
			return fault_set(ret_f, RC_STATE, 0, "cancelled");
		rc = server_stat(&j->link, j->vm, &u, ret_f);
		if (rc)
			return rc;
		if (u.starts > 1 || (u.starts == 1 && !u.running)) {
			server_quote(&j->link, j->vm, on_line, j);
			return fault_set(ret_f, RC_GUEST, 0, "the server ended with exit code %d instead of listening", u.code);
		}
		nanosleep(&pause, NULL);
	}
	server_quote(&j->link, j->vm, on_line, j);
	return fault_set(ret_f, RC_TIMEOUT, 0, "nothing answered on port %d within %" PRIu64 " s: %.80s", RUNNER_APP_PORT,
			 j->c->app_ready_s, f.text);
}

/* The capture is a convenience: without it the next start is a cold one. */
static void keep_warm(struct job *j)
{
	struct fault f;

	if (j->sleeps && capture_take(j->c, j->db, &j->link, j->revision, j->vm, j->capture, &f))
		log_fault(LOG_LEVEL_WARN, &f, "no capture revision=%s", j->revision);
}

/* From the memory of an earlier machine of this revision, its server still listening. RC_ABSENT: there is none that can be used. */
static enum rc wake(struct job *j, struct fault *ret_f)
{
	uint64_t until = now_ms() + RUNNER_WAKE_MS;
	struct timespec pause = { 0, 20000000 };
	struct fault f = { 0 };
	enum rc rc = capture_find(j->db, j->capture, &j->log_seq, ret_f);

	if (rc)
		return rc;
	rc = make_machine(j, j->capture, RUNNER_APP_MEMORY_MIB, &f);
	while (!rc && (rc = server_listens(&j->link, j->vm, RUNNER_LISTEN_MS, &f)) && now_ms() < until) {
		nanosleep(&pause, NULL);
		rc = RC_OK;
	}
	if (!rc)
		return RC_OK;
	instance_end(j, "it did not wake");
	j->vm[0] = '\0';
	if (rc == RC_LIMIT || rc == RC_NOMEM || rc == RC_CLOSED) {
		*ret_f = f;
		return rc;
	}
	log_fault(LOG_LEVEL_WARN, &f, "a capture is given up name=%s", j->capture);
	capture_drop(j->db, &j->link, j->capture);
	return fault_set(ret_f, RC_ABSENT, 0, "the capture could not be used");
}

/* --- routing ------------------------------------------------------------------------------------------------------- */

/* Builds end in any order; a newer revision that serves already is not replaced by an older one. */
static bool newer_serves(struct job *j, const char *timeline)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	if (j->again)
		return false;
	db_start(&q, j->db, "SELECT 1 FROM timelines t JOIN revisions s ON s.id = t.revision_id JOIN revisions m ON m.id = ? "
			    "WHERE t.app_id = ? AND t.slug = ? AND s.created_ms > m.created_ms");
	db_text(&q, j->revision);
	db_text(&q, j->app_id);
	db_text(&q, timeline);
	return !db_row(&q, NULL);
}

/* Somebody chose another revision after this one was asked for: it is made all the same, and waits to be chosen itself. */
static bool promoted_since(struct job *j)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	db_start(&q, j->db, "SELECT 1 FROM timelines t JOIN revisions m ON m.id = ? WHERE t.app_id = ? AND t.slug = 'production' AND "
			    "t.promoted_ms > m.created_ms");
	db_text(&q, j->revision);
	db_text(&q, j->app_id);
	return !db_row(&q, NULL);
}

struct target {
	char slug[96], context[16];
};

/* The timelines that shall lead here. */
static enum rc targets(struct job *j, struct target out[RUNNER_TARGETS_MAX], size_t *ret_n, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	size_t n = 0;

	if (j->again) {
		db_start(&q, j->db, "SELECT slug, context FROM timelines WHERE app_id = ? AND ? IN (desired_revision_id, revision_id)");
		db_text(&q, j->app_id);
		db_text(&q, j->revision);
		for (; n < RUNNER_TARGETS_MAX && !db_row(&q, NULL); n++) {
			snprintf(out[n].slug, sizeof(out[n].slug), "%s", db_col_text(&q, 0));
			snprintf(out[n].context, sizeof(out[n].context), "%s", db_col_text(&q, 1));
		}
		*ret_n = n;
		return superseded(j) ? fault_set(ret_f, RC_STATE, 0, "another revision was chosen meanwhile") : RC_OK;
	}
	if (j->preview || !j->production) {
		snprintf(out[n].slug, sizeof(out[n].slug), "preview/%s", j->revision);
		snprintf(out[n++].context, sizeof(out[0].context), "preview");
	}
	j->passed_over = j->production && promoted_since(j);
	if (j->passed_over)
		note(j, false, "Another revision was made production since this one was asked for; it stays.");
	if (j->production && !j->passed_over && newer_serves(j, "production")) {
		if (!n) {
			j->superseded = true;
			return fault_set(ret_f, RC_STATE, 0, "a newer revision serves already");
		}
	} else if (j->production && !j->passed_over) {
		snprintf(out[n].slug, sizeof(out[n].slug), "production");
		snprintf(out[n++].context, sizeof(out[0].context), "production");
	}
	*ret_n = n;
	return RC_OK;
}

/*
 * After the exposures, so that a death in between leaves a row that says there is something to do. RC_AGAIN: a promotion came
 * between the look at the targets and now, and nothing is recorded. RC_ABSENT: the machine was ended meanwhile.
 */
static enum rc record_route(struct job *j, const struct target *t, size_t n, struct fault *ret_f)
{
	/* A promotion that came this moment is not undone by one that it overtook, nor by what serves until then; a new deployment is the last word. */
	static const char again_sql[] =
		"UPDATE timelines SET revision_id = ?4, updated_ms = ?5 WHERE app_id = ?1 AND slug = ?2 AND context = ?3 AND "
		"?4 IN (desired_revision_id, revision_id)";
	static const char timeline_sql[] =
		"INSERT INTO timelines (app_id, slug, context, revision_id, desired_revision_id, updated_ms) "
		"VALUES (?1, ?2, ?3, ?4, ?4, ?5) ON CONFLICT (app_id, slug) DO UPDATE SET revision_id = excluded.revision_id, "
		"desired_revision_id = excluded.desired_revision_id, updated_ms = excluded.updated_ms";
	_cleanup_db_txn_ struct db_txn txn = { 0 };
	int64_t now = (int64_t)wall_ms();
	enum rc rc = db_begin(&txn, j->db, ret_f);

	for (size_t i = 0; !rc && i < n; i++) {
		_cleanup_db_q_ struct db_q q = DB_Q_INIT;

		db_start(&q, j->db, j->again ? again_sql : timeline_sql);
		db_text(&q, j->app_id);
		db_text(&q, t[i].slug);
		db_text(&q, t[i].context);
		db_text(&q, j->revision);
		db_int(&q, now);
		rc = db_run(&q, ret_f);
		if (!rc && !q.changes)
			rc = fault_set(ret_f, RC_AGAIN, 0, "another revision was chosen this moment");
	}
	if (!rc)
		rc = update(j, "UPDATE instances SET state = 'ended', reason = 'woken' WHERE revision_id = ? AND state = 'asleep'",
			    j->revision, NULL, ret_f);
	if (!rc) {
		_cleanup_db_q_ struct db_q q = DB_Q_INIT;

		db_start(&q, j->db, "UPDATE instances SET state = 'running', running_ms = max(running_ms, ?) WHERE id = ? AND "
				    "state IN ('starting', 'running')");
		db_int(&q, now);
		db_text(&q, j->vm);
		rc = db_run(&q, ret_f);
		if (!rc && !q.changes)
			rc = fault_set(ret_f, RC_ABSENT, 0, "the machine was ended meanwhile");
	}
	return rc ? rc : db_commit(&txn, ret_f);
}

static enum rc route(struct job *j, const struct target *t, struct fault *ret_f)
{
	_cleanup_names_ struct names s = { .n = 0 };
	char host[BROKER_HOST_MAX];
	enum rc rc = names_of_timeline(j->db, j->app_id, t->slug, &s, ret_f);

	/* A deployment that is neither production nor asked for as a preview is one all the same. */
	if (!rc && !s.n && !strcmp(t->context, "preview")) {
		snprintf(host, sizeof(host), "%.60s-%.20s.%.150s", j->slug, j->revision, j->c->domain);
		rc = domain_claim(j->db, host, j->app_id, t->slug, j->c->tenant_names, ret_f);
		if (!rc)
			rc = names_of_timeline(j->db, j->app_id, t->slug, &s, ret_f);
	}
	return rc ? rc : names_point(&j->link, &s, j->vm, ret_f);
}

/* Names lead again to what the database says they do. What cannot be done is left to the next visitor, who wakes it. */
static void route_back(struct job *j, const struct target *t)
{
	_cleanup_names_ struct names s = { .n = 0 };
	char app[64], revision[64], vm[64];
	struct fault f;

	if (!names_of_timeline(j->db, j->app_id, t->slug, &s, NULL) && s.n && !names_target(j->db, s.hosts[0], app, revision, vm, NULL) &&
	    names_point(&j->link, &s, vm, &f))
		log_fault(LOG_LEVEL_WARN, &f, "names of timeline %s of %s", t->slug, j->app_id);
}

static enum rc route_all(struct job *j, struct fault *ret_f)
{
	struct target t[RUNNER_TARGETS_MAX];
	_cleanup_fd_ int lock = -1;
	size_t n = 0;
	enum rc rc = names_lock(j->c, j->app_id, now_ms() + RUNNER_LOCK_MS, &lock, ret_f);

	/* Another promotion each time: whoever goes on like that is served by the next attempt. */
	for (int tries = 0; tries < RUNNER_ROUTE_TRIES && (!tries || rc == RC_AGAIN); tries++) {
		rc = rc == RC_AGAIN ? RC_OK : rc;
		if (!rc)
			rc = targets(j, t, &n, ret_f);
		for (size_t i = 0; !rc && i < n; i++)
			rc = route(j, &t[i], ret_f);
		if (!rc)
			rc = record_route(j, t, n, ret_f);
		for (size_t i = 0; rc && i < n; i++)
			route_back(j, &t[i]);
	}
	return rc;
}

/* --- all of it ----------------------------------------------------------------------------------------------------- */

static bool is_built(struct job *j)
{
	return config_text(j, "install") || config_text(j, "build");
}

static enum rc build(struct job *j, struct fault *ret_f)
{
	enum rc rc = run_command(j, STAGE_INSTALLING, "install", ret_f);

	if (!rc)
		rc = run_command(j, STAGE_BUILDING, "build", ret_f);
	if (!rc && is_built(j))
		rc = keep_built(j, ret_f);
	return rc;
}

/* Part of the deploying stage; what it prints is in the build log. */
static enum rc predeploy(struct job *j, struct fault *ret_f)
{
	const char *command = config_text(j, "predeploy");
	struct json_object *o;
	char said[300];
	enum rc rc;

	progress_stage(&j->progress, STAGE_PREDEPLOY, command ? ST_RUNNING : ST_SKIPPED, command);
	if (!command)
		return RC_OK;
	snprintf(said, sizeof(said), "$ %s", command);
	note(j, false, said);
	o = request("exec");
	json_object_object_add(o, "env", json_object_get(j->env));
	json_object_object_add(o, "argv", json_strings((const char *[]){ "bash", "-c", command, NULL }));
	rc = link_exec(&j->link, j->vm, o, MIN_OF(j->deadline_ms, now_ms() + j->c->build_command_s * 1000), on_line, cancelled, j, ret_f);
	if (!rc)
		progress_stage(&j->progress, STAGE_PREDEPLOY, ST_SUCCEEDED, NULL);
	return rc;
}

/* What the app's own variables do not set is set here. */
static void env_default(struct job *j, const char *name, const char *value)
{
	if (!json_object_object_get_ex(j->env, name, NULL))
		json_object_object_add(j->env, name, json_object_new_string(value));
}

static enum rc load_env(struct job *j, struct fault *ret_f)
{
	const char *in = j->again ? wanted_as(j) : j->production ? "production" : "preview";
	struct seal_key key;
	char port[16], address[48];
	enum rc rc;

	j->superseded = !in;
	if (j->superseded)
		return fault_set(ret_f, RC_STATE, 0, "another revision was chosen meanwhile");
	j->context = in;
	rc = seal_key_load(&key, j->c->state_dir, SEAL_API_KEY_FILE, ret_f);
	if (!rc)
		rc = env_effective(j->db, &key, j->revision, in, &j->env, ret_f);
	if (!rc && !j->again)
		rc = env_effective(j->db, &key, j->revision, "build", &j->build_env, ret_f);
	if (rc) {
		explicit_bzero(&key, sizeof(key));
		return rc;
	}
	snprintf(port, sizeof(port), "%d", RUNNER_APP_PORT);
	snprintf(address, sizeof(address), "tcp:0.0.0.0:%d", RUNNER_APP_PORT);
	env_default(j, "PORT", port);
	env_default(j, "DENO_SERVE_ADDRESS", address); /* Deno.serve() without arguments listens here */
	env_default(j, "DENO_DEPLOYMENT_ID", j->revision);
	env_default(j, "DENO_REGION", j->c->region);
	env_default(j, "DENO_TIMELINE", in);
	rc = capture_name(j->revision, &key, j->env, j->config, j->capture, ret_f);
	explicit_bzero(&key, sizeof(key));
	return rc;
}

/* A build may need more memory than what it makes: then that starts in a machine of its own, as it does whenever it is started again. */
static enum rc build_elsewhere(struct job *j, struct fault *ret_f)
{
	enum rc rc = build(j, ret_f);

	if (rc)
		return rc;
	instance_end(j, "it has built");
	j->vm[0] = '\0';
	rc = make_machine(j, "", RUNNER_APP_MEMORY_MIB, ret_f);
	return rc ? rc : unpack(j, ret_f);
}

static enum rc start_cold(struct job *j, struct fault *ret_f)
{
	bool elsewhere = !j->again && is_built(j) && j->c->build_memory_mib != RUNNER_APP_MEMORY_MIB;
	enum rc rc = make_machine(j, "", elsewhere ? j->c->build_memory_mib : RUNNER_APP_MEMORY_MIB, ret_f);

	if (!rc)
		rc = unpack(j, ret_f);
	if (!rc && !j->again) {
		note(j, false, "The source is in its machine.");
		rc = elsewhere ? build_elsewhere(j, ret_f) : build(j, ret_f);
	}
	if (!rc)
		rc = enter(j, STAGE_DEPLOYING, NULL, ret_f);
	if (!rc && !j->again)
		rc = predeploy(j, ret_f);
	if (!rc && !j->again)
		progress_stage(&j->progress, STAGE_WARMUP, ST_RUNNING, NULL);
	if (!rc)
		rc = start_server(j, ret_f);
	if (!rc)
		rc = wait_ready(j, ret_f);
	if (!rc && !j->again)
		progress_stage(&j->progress, STAGE_WARMUP, ST_SUCCEEDED, NULL);
	/* Before the first visitor: what is kept has nobody's connection or request in it. Visitors who wait are not kept waiting. */
	if (!rc && !j->again)
		keep_warm(j);
	return rc;
}

/* A machine of this revision, started with the same variables, may serve already (a preview that becomes production). */
static bool adopt(struct job *j)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	db_start(&q, j->db, "SELECT id FROM instances WHERE revision_id = ? AND state = 'running' AND capture = ? ORDER BY created_ms DESC");
	db_text(&q, j->revision);
	db_text(&q, j->capture);
	if (db_row(&q, NULL))
		return false;
	snprintf(j->vm, sizeof(j->vm), "%s", db_col_text(&q, 0));
	j->adopted = !server_listens(&j->link, j->vm, 0, NULL);
	if (!j->adopted)
		j->vm[0] = '\0';
	return j->adopted;
}

static enum rc steps(struct job *j, struct fault *ret_f)
{
	enum rc rc = enter(j, STAGE_PREPARING, NULL, ret_f);

	if (!rc)
		rc = load_env(j, ret_f);
	if (!rc && j->again && adopt(j))
		return route_all(j, ret_f);
	if (!rc)
		rc = j->again ? wake(j, ret_f) : RC_ABSENT;
	if (rc == RC_ABSENT)
		rc = start_cold(j, ret_f);
	if (!rc && !j->again)
		progress_stage(&j->progress, STAGE_ROUTING, ST_RUNNING, NULL);
	return rc ? rc : route_all(j, ret_f);
}

static void finish(struct job *j, enum rc rc, const struct fault *f)
{
	const char *reason = j->cancelled ? "cancelled" : j->superseded ? "skipped" : rc == RC_TIMEOUT ? "timed_out" : "error";
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	if (rc && j->vm[0] && !j->adopted) {
		instance_end(j, f->text);
	}
	if (j->again)
		return;
	if (rc)
		note(j, true, f->text);
	else if (!j->passed_over)
		note(j, false, "The server answers; the app's names lead to it now.");
	db_start(&q, j->db,
		 "UPDATE revisions SET status = ?, stage = 'done', failure_reason = ?, failure = ?, build_finished_ms = ? WHERE id = ?");
	db_text(&q, j->superseded ? "skipped" : rc ? "failed" : "succeeded");
	db_text(&q, rc ? reason : NULL);
	db_text(&q, rc ? f->text : "");
	db_int(&q, (int64_t)wall_ms());
	db_text(&q, j->revision);
	if (db_run(&q, NULL))
		log_error("could not record the end of a revision revision=%s", j->revision);
	/* After the row: a client that saw the stream end reads the row next. */
	progress_end(&j->progress, !rc ? ST_SUCCEEDED : j->cancelled ? ST_CANCELLED : j->superseded ? ST_SKIPPED :
		     rc == RC_TIMEOUT ? ST_TIMED_OUT : ST_ERRORED);
}

enum rc job_run(const struct config *c, struct db *db, const char *revision, bool again, struct fault *ret_f)
{
	struct job j = { .c = c, .db = db, .again = again, .deadline_ms = now_ms() + c->build_s * 1000, .bundles_fd = -1 };
	char path[512];
	struct fault f = { 0 };
	enum rc rc;

	j.progress.progress_fd = j.progress.build_fd = -1;
	snprintf(j.revision, sizeof(j.revision), "%s", revision);
	snprintf(path, sizeof(path), "%.400s/bundles", c->state_dir);
	j.bundles_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	rc = j.bundles_fd < 0 ? fault_set(&f, RC_SYS, errno, "open '%s'", path) : link_init(&j.link, c, &f);
	if (!rc)
		rc = load(&j, &f);
	if (!rc) {
		rc = steps(&j, &f);
		if (rc == RC_TIMEOUT && now_ms() >= j.deadline_ms) /* whatever was under way just then */
			out_of_time(&j, &f);
		finish(&j, rc, &f);
	}
	/* What was chosen instead is started by itself: nothing failed that would have to wait before its next attempt. */
	if (j.again && j.superseded)
		rc = RC_OK;
	if (rc && ret_f)
		*ret_f = f;
	link_close(&j.link);
	close_fd(&j.bundles_fd);
	json_object_put(j.config);
	json_object_put(j.env);
	json_object_put(j.build_env);
	return rc;
}
