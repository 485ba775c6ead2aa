/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/runner/job.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "fcgi/deploy/bundle.h"
#include "fcgi/env.h"
#include "fcgi/runner/limits.h"
#include "fcgi/runner/link.h"
#include "fcgi/runner/progress.h"

#include <errno.h>
#include <fcntl.h>
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
	bool again, cancelled, superseded, production, preview;
	uint64_t deadline_ms, last_cancel_check_ms;
	char revision[64], app_id[64], slug[128], org[64], bundle[BUNDLE_NAME_MAX], vm[BROKER_ID_MAX];
	struct json_object *config; /* RevisionConfig */
	struct json_object *env;    /* name -> value */
	int bundles_fd;
};

/* --- the database -------------------------------------------------------------------------------------------------- */

static enum rc load(struct job *j, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	uint64_t created;
	enum rc rc;

	db_start(&q, j->db,
		 "SELECT r.app_id, a.slug, a.org_id, r.bundle, r.config, r.production, r.preview, r.created_ms "
		 "FROM revisions r JOIN apps a ON a.id = r.app_id WHERE r.id = ? AND r.deleted_ms IS NULL AND a.deleted_ms IS NULL");
	db_text(&q, j->revision);
	rc = db_row(&q, ret_f);
	if (rc)
		return rc;
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

/* Asked at most twice a second. */
static bool cancelled(void *arg)
{
	struct job *j = arg;
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	if (j->again || j->cancelled || now_ms() - j->last_cancel_check_ms < 500)
		return j->cancelled;
	j->last_cancel_check_ms = now_ms();
	db_start(&q, j->db, "SELECT 1 FROM revisions WHERE id = ? AND cancel_requested_ms IS NULL AND deleted_ms IS NULL");
	db_text(&q, j->revision);
	j->cancelled = db_row(&q, NULL) == RC_ABSENT;
	return j->cancelled;
}

static enum rc enter(struct job *j, enum stage stage, const char *command, struct fault *ret_f)
{
	enum rc rc;

	if (j->again)
		return RC_OK;
	if (cancelled(j))
		return fault_set(ret_f, RC_STATE, 0, "cancelled");
	if (now_ms() > j->deadline_ms)
		return fault_set(ret_f, RC_TIMEOUT, 0, "the revision took longer than %d s", RUNNER_JOB_MS / 1000);
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

/* --- the machine --------------------------------------------------------------------------------------------------- */

static enum rc make_machine(struct job *j, struct fault *ret_f)
{
	static struct broker_vm_create m;
	char policy[256], tail[9];
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum rc rc;

	random_hex(tail, 4);
	snprintf(j->vm, sizeof(j->vm), "rev_%.20s_%s", j->revision, tail);
	db_start(&q, j->db, "INSERT INTO instances (id, app_id, revision_id, node, state, created_ms) VALUES (?, ?, ?, ?, 'starting', ?)");
	db_text(&q, j->vm);
	db_text(&q, j->app_id);
	db_text(&q, j->revision);
	db_text(&q, j->c->node);
	db_int(&q, (int64_t)wall_ms());
	rc = db_run(&q, ret_f);
	if (rc)
		return rc;
	memset(&m, 0, sizeof(m));
	memcpy(m.id, j->vm, sizeof(m.id));
	m.memory_mib = RUNNER_APP_MEMORY_MIB;
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
		rc = link_answer(fd, j->deadline_ms, &answer, ret_f);
	json_object_put(answer);
	return rc;
}

static void on_line(void *arg, bool is_error, const char *text)
{
	note(arg, is_error, text);
}

static struct json_object *request(struct job *j, const char *service)
{
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "service", json_object_new_string(service));
	json_object_object_add(o, "cwd", json_object_new_string(APP_DIR));
	json_object_object_add(o, "user", json_object_new_string("app"));
	json_object_object_add(o, "env", json_object_get(j->env));
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
	o = request(j, "exec");
	json_object_object_add(o, "argv", json_strings((const char *[]){ "bash", "-c", command, NULL }));
	return link_exec(&j->link, j->vm, o, MIN_OF(j->deadline_ms, now_ms() + RUNNER_COMMAND_MS), on_line, cancelled, j, ret_f);
}

/* What was built is what later machines of this revision start from. */
static enum rc keep_built(struct job *j, struct fault *ret_f)
{
	struct bundle_limits limits = BUNDLE_LIMITS_DEFAULT;
	struct json_object *o = json_object_new_object();
	_cleanup_fd_ int fd = -1;
	struct bundle b;
	enum rc rc;

	json_object_object_add(o, "service", json_object_new_string("tar-out"));
	json_object_object_add(o, "path", json_object_new_string(APP_DIR));
	json_object_object_add(o, "exclude", json_strings((const char *[]){ ".cache", NULL }));
	rc = link_service(&j->link, j->vm, o, &fd, NULL, ret_f);
	if (!rc)
		rc = bundle_from_tar(fd, &limits, j->bundles_fd, j->deadline_ms, &b, ret_f);
	if (rc)
		return rc;
	memcpy(j->bundle, b.name, sizeof(j->bundle));
	return update(j, "UPDATE revisions SET bundle = ? WHERE id = ?", j->bundle, j->revision, ret_f);
}

/* --- the server ---------------------------------------------------------------------------------------------------- */

static struct json_object *server_argv(struct job *j)
{
	struct json_object *runtime = NULL, *v = NULL, *argv;
	const char *entrypoint = "main.ts";

	json_object_object_get_ex(j->config, "runtime", &runtime);
	if (json_object_is_type(runtime, json_type_object) && json_object_object_get_ex(runtime, "type", &v) &&
	    json_object_is_type(v, json_type_string) && !strcmp(json_object_get_string(v), "static")) {
		const char *root = ".";

		if (json_object_object_get_ex(runtime, "cwd", &v) && json_object_is_type(v, json_type_string))
			root = json_object_get_string(v);
		return json_strings((const char *[]){ "python3", "-m", "http.server", "8000", "--directory", root, NULL });
	}
	if (json_object_is_type(runtime, json_type_object) && json_object_object_get_ex(runtime, "entrypoint", &v) &&
	    json_object_is_type(v, json_type_string))
		entrypoint = json_object_get_string(v);
	argv = json_strings((const char *[]){ "deno", "run", "-A", "--no-prompt", entrypoint, NULL });
	if (json_object_is_type(runtime, json_type_object) && json_object_object_get_ex(runtime, "args", &v) &&
	    json_object_is_type(v, json_type_array))
		for (size_t i = 0; i < json_object_array_length(v); i++)
			json_object_array_add(argv, json_object_get(json_object_array_get_idx(v, i)));
	return argv;
}

static enum rc start_server(struct job *j, struct fault *ret_f)
{
	struct json_object *o = request(j, "unit");
	_cleanup_fd_ int fd = -1;

	json_object_object_add(o, "op", json_object_new_string("start"));
	json_object_object_add(o, "name", json_object_new_string("app"));
	json_object_object_add(o, "argv", server_argv(j));
	json_object_object_add(o, "restart", json_object_new_boolean(1));
	return link_service(&j->link, j->vm, o, &fd, NULL, ret_f);
}

/* One request on a fresh connection; any HTTP answer is an answer. */
static enum rc ask(struct job *j, struct fault *ret_f)
{
	struct json_object *o = json_object_new_object();
	_cleanup_fd_ int fd = -1;
	char text[400], got[8];
	enum rc rc;

	json_object_object_add(o, "service", json_object_new_string("dial"));
	json_object_object_add(o, "port", json_object_new_int(RUNNER_APP_PORT));
	rc = link_service(&j->link, j->vm, o, &fd, NULL, ret_f);
	if (rc)
		return rc;
	snprintf(text, sizeof(text), "GET / HTTP/1.1\r\nHost: %.100s.%.100s\r\nUser-Agent: nestbox-health\r\nConnection: close\r\n\r\n",
		 j->slug, j->c->domain);
	rc = fd_write_all(fd, text, strlen(text), now_ms() + 5000, ret_f);
	if (!rc)
		rc = fd_read_exact(fd, got, 7, now_ms() + 30000, ret_f);
	if (!rc && memcmp(got, "HTTP/1.", 7))
		rc = fault_set(ret_f, RC_GUEST, 0, "what listens on port %d does not speak HTTP", RUNNER_APP_PORT);
	return rc;
}

struct unit_state {
	bool running;
	int starts, code;
};

static enum rc unit_stat(struct job *j, struct unit_state *ret, struct fault *ret_f)
{
	struct json_object *o = json_object_new_object(), *answer = NULL, *v;
	_cleanup_fd_ int fd = -1;
	enum rc rc;

	json_object_object_add(o, "service", json_object_new_string("unit"));
	json_object_object_add(o, "op", json_object_new_string("stat"));
	json_object_object_add(o, "name", json_object_new_string("app"));
	rc = link_service(&j->link, j->vm, o, &fd, &answer, ret_f);
	if (rc)
		return rc;
	*ret = (struct unit_state){ .running = false };
	if (json_object_object_get_ex(answer, "running", &v))
		ret->running = json_object_get_boolean(v);
	if (json_object_object_get_ex(answer, "starts", &v))
		ret->starts = json_object_get_int(v);
	if (json_object_object_get_ex(answer, "code", &v))
		ret->code = json_object_get_int(v);
	json_object_put(answer);
	return RC_OK;
}

/* The server's own words, for the build log of a start that failed: what the follower gives within a second. */
static void quote_output(struct job *j)
{
	struct json_object *o = json_object_new_object(), *line, *text;
	_cleanup_fd_ int fd = -1;
	uint64_t deadline = now_ms() + 1000;
	char raw[RUNNER_LINE_MAX * 2];

	json_object_object_add(o, "service", json_object_new_string("unit"));
	json_object_object_add(o, "op", json_object_new_string("follow"));
	json_object_object_add(o, "name", json_object_new_string("app"));
	json_object_object_add(o, "after", json_object_new_int(0));
	if (link_service(&j->link, j->vm, o, &fd, NULL, NULL))
		return;
	for (int n = 0; n < 200 && !fd_read_line(fd, raw, sizeof(raw), deadline, NULL); n++) {
		line = json_tokener_parse(raw);
		if (json_object_is_type(line, json_type_object) && json_object_object_get_ex(line, "line", &text) &&
		    json_object_is_type(text, json_type_string))
			note(j, true, json_object_get_string(text));
		json_object_put(line);
	}
}

static enum rc wait_ready(struct job *j, struct fault *ret_f)
{
	uint64_t until = MIN_OF(j->deadline_ms, now_ms() + RUNNER_READY_MS);
	struct unit_state u;
	struct fault f = { 0 };

	for (unsigned int n = 0; now_ms() < until; n++) {
		struct timespec pause = { 0, n < 20 ? 50000000 : 250000000 };
		enum rc rc = ask(j, &f);

		if (!rc)
			return RC_OK;
		if (cancelled(j))
			return fault_set(ret_f, RC_STATE, 0, "cancelled");
		rc = unit_stat(j, &u, ret_f);
		if (rc)
			return rc;
		if (u.starts > 1 || (u.starts == 1 && !u.running)) {
			quote_output(j);
			return fault_set(ret_f, RC_GUEST, 0, "the server ended with exit code %d instead of listening", u.code);
		}
		nanosleep(&pause, NULL);
	}
	quote_output(j);
	return fault_set(ret_f, RC_TIMEOUT, 0, "nothing answered on port %d within %d s: %.80s", RUNNER_APP_PORT,
			 RUNNER_READY_MS / 1000, f.text);
}

/* --- routing ------------------------------------------------------------------------------------------------------- */

static enum rc claim_host(struct job *j, const char *host, const char *timeline, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT, check = DB_Q_INIT;
	enum rc rc;

	db_start(&q, j->db, "INSERT OR IGNORE INTO domains (host, app_id, timeline, created_ms) VALUES (?, ?, ?, ?)");
	db_text(&q, host);
	db_text(&q, j->app_id);
	db_text(&q, timeline);
	db_int(&q, (int64_t)wall_ms());
	rc = db_run(&q, ret_f);
	if (rc)
		return rc;
	db_start(&check, j->db, "SELECT 1 FROM domains WHERE host = ? AND app_id = ?");
	db_text(&check, host);
	db_text(&check, j->app_id);
	rc = db_row(&check, ret_f);
	return rc == RC_ABSENT ? fault_set(ret_f, RC_EXISTS, 0, "the name %.100s belongs to something else", host) : rc;
}

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

static enum rc route(struct job *j, const char *timeline, const char *context, const char *host, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	char line[64];
	enum rc rc = claim_host(j, host, timeline, ret_f);

	if (rc)
		return rc;
	snprintf(line, sizeof(line), "{\"service\":\"dial\",\"port\":%d}", RUNNER_APP_PORT);
	rc = link_expose(&j->link, host, j->vm, line, ret_f);
	if (rc)
		return rc;
	db_start(&q, j->db,
		 "INSERT INTO timelines (app_id, slug, context, revision_id, desired_revision_id, updated_ms) VALUES (?, ?, ?, ?, ?, ?) "
		 "ON CONFLICT (app_id, slug) DO UPDATE SET revision_id = excluded.revision_id, "
		 "desired_revision_id = excluded.desired_revision_id, updated_ms = excluded.updated_ms");
	db_text(&q, j->app_id);
	db_text(&q, timeline);
	db_text(&q, context);
	db_text(&q, j->revision);
	db_text(&q, j->revision);
	db_int(&q, (int64_t)wall_ms());
	return db_run(&q, ret_f);
}

static enum rc route_all(struct job *j, struct fault *ret_f)
{
	char host[BROKER_HOST_MAX], timeline[96];
	enum rc rc = RC_OK;

	if (j->preview || !j->production) {
		snprintf(host, sizeof(host), "%.60s-%.20s.%.150s", j->slug, j->revision, j->c->domain);
		snprintf(timeline, sizeof(timeline), "preview/%s", j->revision);
		rc = route(j, timeline, "preview", host, ret_f);
	}
	if (!rc && j->production && newer_serves(j, "production")) {
		if (!j->preview) {
			j->superseded = true;
			return fault_set(ret_f, RC_STATE, 0, "a newer revision serves already");
		}
	} else if (!rc && j->production) {
		snprintf(host, sizeof(host), "%.60s.%.150s", j->slug, j->c->domain);
		rc = route(j, "production", "production", host, ret_f);
	}
	return rc;
}

/* Machines of the app that no name leads to any more. What they still serve gets RUNNER_DRAIN_MS. */
static void end_replaced(struct job *j)
{
	static const char sql[] =
		"SELECT id FROM instances i WHERE app_id = ? AND state IN ('running', 'asleep') AND id != ? AND "
		"(revision_id = ? OR NOT EXISTS (SELECT 1 FROM timelines t WHERE t.app_id = i.app_id AND t.revision_id = i.revision_id))";
	struct timespec drain = { RUNNER_DRAIN_MS / 1000, 0 };
	char ids[16][BROKER_ID_MAX];
	size_t n = 0;
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	db_start(&q, j->db, sql);
	db_text(&q, j->app_id);
	db_text(&q, j->vm);
	db_text(&q, j->revision);
	while (n < ARRAY_SIZE(ids) && !db_row(&q, NULL))
		snprintf(ids[n++], BROKER_ID_MAX, "%s", db_col_text(&q, 0));
	db_end(&q);
	if (n)
		nanosleep(&drain, NULL);
	for (size_t i = 0; i < n; i++) {
		link_vm_kill(&j->link, ids[i], "replaced by a newer revision", NULL);
		update(j, "UPDATE instances SET state = 'ended', reason = 'replaced by a newer revision' WHERE id = ?", ids[i], NULL,
		       NULL);
	}
}

/* --- all of it ----------------------------------------------------------------------------------------------------- */

static enum rc build(struct job *j, struct fault *ret_f)
{
	enum rc rc = run_command(j, STAGE_INSTALLING, "install", ret_f);

	if (!rc)
		rc = run_command(j, STAGE_BUILDING, "build", ret_f);
	if (!rc && (config_text(j, "install") || config_text(j, "build")))
		rc = keep_built(j, ret_f);
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
	struct seal_key key;
	char port[16], address[48];
	enum rc rc = seal_key_load(&key, j->c->state_dir, SEAL_API_KEY_FILE, ret_f);

	if (!rc)
		rc = env_effective(j->db, &key, j->revision, j->production ? "production" : "preview", &j->env, ret_f);
	explicit_bzero(&key, sizeof(key));
	if (rc)
		return rc;
	snprintf(port, sizeof(port), "%d", RUNNER_APP_PORT);
	snprintf(address, sizeof(address), "tcp:0.0.0.0:%d", RUNNER_APP_PORT);
	env_default(j, "PORT", port);
	env_default(j, "DENO_SERVE_ADDRESS", address); /* Deno.serve() without arguments listens here */
	env_default(j, "DENO_DEPLOYMENT_ID", j->revision);
	env_default(j, "DENO_REGION", j->c->region);
	env_default(j, "DENO_TIMELINE", j->production ? "production" : "preview");
	return RC_OK;
}

static enum rc steps(struct job *j, struct fault *ret_f)
{
	enum rc rc = enter(j, STAGE_PREPARING, NULL, ret_f);

	if (!rc)
		rc = load_env(j, ret_f);
	if (!rc)
		rc = make_machine(j, ret_f);
	if (!rc)
		rc = unpack(j, ret_f);
	if (!rc && !j->again)
		note(j, false, "The source is in its machine.");
	if (!rc && !j->again)
		rc = build(j, ret_f);
	if (!rc)
		rc = enter(j, STAGE_DEPLOYING, NULL, ret_f);
	if (!rc)
		rc = start_server(j, ret_f);
	if (!rc)
		rc = wait_ready(j, ret_f);
	if (!rc)
		rc = update(j, "UPDATE instances SET state = 'running' WHERE id = ?", j->vm, NULL, ret_f);
	if (!rc)
		rc = route_all(j, ret_f);
	return rc;
}

static void finish(struct job *j, enum rc rc, const struct fault *f)
{
	const char *reason = j->cancelled ? "cancelled" : j->superseded ? "skipped" : rc == RC_TIMEOUT ? "timed_out" : "error";
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	if (rc && j->vm[0]) {
		link_vm_kill(&j->link, j->vm, "its revision failed", NULL);
		update(j, "UPDATE instances SET state = 'ended', reason = ? WHERE id = ?", f->text, j->vm, NULL);
	}
	if (j->again)
		return;
	if (rc)
		note(j, true, f->text);
	else
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
	progress_end(&j->progress, !rc ? ST_SUCCEEDED : j->cancelled ? ST_CANCELLED : rc == RC_TIMEOUT ? ST_TIMED_OUT : ST_ERRORED);
}

enum rc job_run(const struct config *c, struct db *db, const char *revision, bool again, struct fault *ret_f)
{
	struct job j = { .c = c, .db = db, .again = again, .deadline_ms = now_ms() + RUNNER_JOB_MS, .bundles_fd = -1 };
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
		finish(&j, rc, &f);
	}
	if (!rc)
		end_replaced(&j);
	if (rc && ret_f)
		*ret_f = f;
	link_close(&j.link);
	close_fd(&j.bundles_fd);
	json_object_put(j.config);
	json_object_put(j.env);
	return rc;
}
