/* SPDX-License-Identifier: Apache-2.0 */
#include "base/fd.h"
#include "fcgi/db.h"
#include "fcgi/domains.h"
#include "fcgi/env.h"
#include "fcgi/limits.h"
#include "fcgi/quota.h"
#include "fcgi/sandbox_store.h"
#include "fcgi/starts.h"
#include "tests/lib/check.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char dir[64];

static struct db *fresh(const char *schema)
{
	struct fault f = { 0 };
	struct db *db = NULL;
	char path[128];

	snprintf(dir, sizeof(dir), "/tmp/nb-db-XXXXXX");
	if (!mkdtemp(dir))
		return NULL;
	snprintf(path, sizeof(path), "%s/x.db", dir);
	if (db_open(&db, path, &f) || (schema && db_migrate(db, schema, &f))) {
		printf("  %s\n", f.text);
		db_close(db);
		return NULL;
	}
	return db;
}

static void away(struct db *db)
{
	char cmd[128];

	db_close(db);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	if (system(cmd))
		printf("  %s failed\n", cmd);
}

static const char *schema_dir(void)
{
	static char path[512];
	const char *src = getenv("srcdir");

	snprintf(path, sizeof(path), "%s/schema/migrations", src ? src : ".");
	return path;
}

static enum rc org_add(struct db *db, const char *id, const char *name, struct fault *f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	db_start(&q, db, "INSERT INTO organizations (id, name, created_ms) VALUES (?, ?, ?)");
	db_text(&q, id);
	db_text(&q, name);
	db_int(&q, 5);
	return db_run(&q, f);
}

static int64_t count(struct db *db, const char *sql)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	db_start(&q, db, sql);
	return db_row(&q, NULL) ? -1 : db_col_int(&q, 0);
}

TEST(migrates_and_is_idempotent)
{
	struct db *db = fresh(schema_dir());
	struct fault f;

	REQUIRE(db);
	CHECK(count(db, "PRAGMA user_version") >= 1);
	CHECK_EQ(db_migrate(db, schema_dir(), &f), RC_OK);
	CHECK_EQ(count(db, "SELECT count(*) FROM sqlite_master WHERE name = 'revisions'"), 1);
	away(db);
}

/* A database from before the table of migrations, and one of a lower number that comes later. */
TEST(a_missing_migration_is_applied)
{
	struct db *db = fresh(NULL);
	struct fault f = { 0 };
	char m[96];
	int dfd;

	REQUIRE(db);
	snprintf(m, sizeof(m), "%s/m", dir);
	REQUIRE(mkdir(m, 0700) == 0);
	dfd = open(m, O_RDONLY | O_DIRECTORY);
	REQUIRE(dfd >= 0);
	CHECK_EQ(file_write_at(dfd, "001-a.sql", "CREATE TABLE a (x);", 19, 0600, &f), RC_OK);
	CHECK_EQ(file_write_at(dfd, "003-c.sql", "CREATE TABLE c (x);", 19, 0600, &f), RC_OK);
	CHECK_EQ(db_migrate(db, m, &f), RC_OK);
	CHECK_EQ(count(db, "SELECT count(*) FROM sqlite_master WHERE name IN ('a', 'c')"), 2);
	CHECK_EQ(file_write_at(dfd, "002-b.sql", "CREATE TABLE b (x);", 19, 0600, &f), RC_OK);
	CHECK_EQ(db_migrate(db, m, &f), RC_OK);
	CHECK_EQ(count(db, "SELECT count(*) FROM sqlite_master WHERE name = 'b'"), 1);
	CHECK_EQ(count(db, "SELECT count(*) FROM migrations"), 3);
	CHECK_EQ(db_migrate(db, m, &f), RC_OK);
	close(dfd);
	away(db);
}

TEST(newer_database_and_gap_refused)
{
	struct db *db = fresh(schema_dir());
	struct fault f = { 0 };
	char empty[96];
	int dfd;

	REQUIRE(db);
	snprintf(empty, sizeof(empty), "%s/m", dir);
	REQUIRE(mkdir(empty, 0700) == 0);
	CHECK_EQ(db_migrate(db, empty, &f), RC_STATE);
	dfd = open(empty, O_RDONLY | O_DIRECTORY);
	REQUIRE(dfd >= 0);
	CHECK_EQ(file_write_at(dfd, "900-gap.sql", "SELECT 1;", 9, 0600, &f), RC_OK);
	CHECK_EQ(db_migrate(db, empty, &f), RC_STATE);
	close(dfd);
	away(db);
}

TEST(failed_migration_leaves_nothing)
{
	struct db *db = fresh(NULL);
	struct fault f = { 0 };
	char m[96];
	int dfd;
	static const char sql[] = "CREATE TABLE a (x); INSERT INTO nowhere VALUES (1);";

	REQUIRE(db);
	snprintf(m, sizeof(m), "%s/m", dir);
	REQUIRE(mkdir(m, 0700) == 0);
	dfd = open(m, O_RDONLY | O_DIRECTORY);
	REQUIRE(dfd >= 0);
	CHECK_EQ(file_write_at(dfd, "001-a.sql", sql, sizeof(sql) - 1, 0600, &f), RC_OK);
	CHECK(db_migrate(db, m, &f) != RC_OK);
	CHECK_EQ(count(db, "PRAGMA user_version"), 0);
	CHECK_EQ(count(db, "SELECT count(*) FROM sqlite_master WHERE name = 'a'"), 0);
	close(dfd);
	away(db);
}

TEST(constraints_have_their_codes)
{
	struct db *db = fresh(schema_dir());
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	struct fault f = { 0 };

	REQUIRE(db);
	CHECK_EQ(org_add(db, "o1", "one", &f), RC_OK);
	CHECK_EQ(org_add(db, "o2", "one", &f), RC_EXISTS);
	CHECK_EQ(org_add(db, "o1", "two", &f), RC_EXISTS);
	CHECK_EQ(org_add(db, "o3", NULL, &f), RC_STATE);
	db_start(&q, db, "INSERT INTO apps (id, org_id, slug, created_ms, updated_ms) VALUES ('a', 'none', 's', 1, 1)");
	CHECK_EQ(db_run(&q, &f), RC_STATE);
	db_end(&q);
	away(db);
}

TEST(rollback_unless_committed)
{
	struct db *db = fresh(schema_dir());
	struct fault f = { 0 };

	REQUIRE(db);
	{
		_cleanup_db_txn_ struct db_txn t = { 0 };

		CHECK_EQ(db_begin(&t, db, &f), RC_OK);
		CHECK_EQ(org_add(db, "o1", "one", &f), RC_OK);
	}
	CHECK_EQ(count(db, "SELECT count(*) FROM organizations"), 0);
	{
		_cleanup_db_txn_ struct db_txn t = { 0 };

		CHECK_EQ(db_begin(&t, db, &f), RC_OK);
		CHECK_EQ(org_add(db, "o1", "one", &f), RC_OK);
		CHECK_EQ(db_commit(&t, &f), RC_OK);
	}
	CHECK_EQ(count(db, "SELECT count(*) FROM organizations"), 1);
	away(db);
}

TEST(sticky_errors_and_wrong_count)
{
	struct db *db = fresh(schema_dir());
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	struct fault f = { 0 };

	REQUIRE(db);
	db_start(&q, db, "SELECT * FROM no_such_table WHERE x = ?");
	db_text(&q, "a");
	CHECK(db_row(&q, &f) != RC_OK);
	CHECK(strstr(f.text, "no_such_table"));
	db_start(&q, db, "SELECT name FROM organizations WHERE id = ? AND name = ?");
	db_text(&q, "a");
	CHECK_EQ(db_row(&q, &f), RC_INVALID);
	db_end(&q);
	away(db);
}

TEST(same_statement_nested)
{
	struct db *db = fresh(schema_dir());
	_cleanup_db_q_ struct db_q a = DB_Q_INIT, b = DB_Q_INIT;
	static const char sql[] = "SELECT name FROM organizations ORDER BY name";
	struct fault f = { 0 };

	REQUIRE(db);
	CHECK_EQ(org_add(db, "o1", "one", &f), RC_OK);
	CHECK_EQ(org_add(db, "o2", "two", &f), RC_OK);
	db_start(&a, db, sql);
	CHECK_EQ(db_row(&a, &f), RC_OK);
	db_start(&b, db, sql);
	CHECK_EQ(db_row(&b, &f), RC_OK);
	CHECK_EQ(db_row(&b, &f), RC_OK);
	CHECK_EQ(db_row(&b, &f), RC_ABSENT);
	CHECK_STR(db_col_text(&a, 0), "one");
	CHECK_EQ(db_row(&a, &f), RC_OK);
	CHECK_STR(db_col_text(&a, 0), "two");
	db_end(&a);
	db_end(&b);
	away(db);
}

/* In a process of its own, because that is what a mistake ends. */
static int ends_by(struct db *db, bool in_transaction)
{
	pid_t pid = fork();
	int status = 0;

	if (!pid) {
		_cleanup_db_q_ struct db_q q = DB_Q_INIT;
		_cleanup_db_txn_ struct db_txn txn = { 0 };

		if (!freopen("/dev/null", "w", stderr) || (in_transaction && db_begin(&txn, db, NULL)))
			_exit(2);
		db_start(&q, db, "SELECT name FROM organizations");
		if (db_row(&q, NULL))
			_exit(3);
		_exit(org_add(db, "o3", "three", NULL) ? 4 : 0);
	}
	waitpid(pid, &status, 0);
	return WIFSIGNALED(status) ? WTERMSIG(status) : -WEXITSTATUS(status);
}

/* What another process writes between the two would make the second fail, now and then. */
TEST(a_write_beside_an_open_read_is_caught)
{
	struct db *db = fresh(schema_dir());

	REQUIRE(db);
	CHECK_EQ(org_add(db, "o1", "one", NULL), RC_OK);
	CHECK_EQ(org_add(db, "o2", "two", NULL), RC_OK);
	CHECK_EQ(ends_by(db, false), SIGABRT);
	CHECK_EQ(ends_by(db, true), 0);
	away(db);
}

TEST(values_never_become_sql)
{
	struct db *db = fresh(schema_dir());
	struct fault f = { 0 };

	REQUIRE(db);
	CHECK_EQ(org_add(db, "o1", "x'); DROP TABLE organizations; --", &f), RC_OK);
	CHECK_EQ(count(db, "SELECT count(*) FROM organizations"), 1);
	away(db);
}

TEST(relaxed_only_within_its_scope)
{
	struct db *db = fresh(schema_dir());

	REQUIRE(db);
	CHECK_EQ(count(db, "PRAGMA synchronous"), 2);
	{
		_cleanup_db_relaxed_ struct db_relaxed r = { 0 };

		db_relax(&r, db);
		CHECK_EQ(count(db, "PRAGMA synchronous"), 1);
	}
	CHECK_EQ(count(db, "PRAGMA synchronous"), 2);
	away(db);
}

/* --- environment variables, which only need a database ---------------------------------------------------------------- */

static enum rc run_sql(struct db *db, const char *sql)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	struct fault f = { 0 };

	db_start(&q, db, sql);
	if (db_run(&q, &f))
		printf("  %s\n", f.text);
	return f.rc;
}

/* Eight levels of `width` layers that each include all of the next level; revision r has those of the first. */
static bool layers_make(struct db *db, int width, const char *value)
{
	char sql[400];

	if (run_sql(db, "INSERT INTO organizations VALUES ('o', 'acme', 1)") ||
	    run_sql(db, "INSERT INTO apps (id, org_id, slug, created_ms, updated_ms) VALUES ('a', 'o', 'app', 1, 1)"))
		return false;
	for (int level = 0; level < LAYER_DEPTH_MAX; level++)
		for (int i = 0; i < width; i++) {
			snprintf(sql, sizeof(sql), "INSERT INTO layers VALUES ('l%d_%d', 'o', 'l%d-%d', NULL, 1, 1)", level, i, level, i);
			if (run_sql(db, sql))
				return false;
			snprintf(sql, sizeof(sql), "INSERT INTO env_vars (id, layer_id, key, value, position) VALUES ('e%d_%d', 'l%d_%d', "
						   "'V%d_%d', '%s', 1), ('f%d_%d', 'l%d_%d', 'SAME', '%d %d', 2)",
				 level, i, level, i, level, i, value, level, i, level, i, level, i);
			if (run_sql(db, sql))
				return false;
		}
	snprintf(sql, sizeof(sql), "INSERT INTO layer_layers SELECT x.id, row_number() OVER (PARTITION BY x.id ORDER BY y.id), y.id FROM layers x "
				   "JOIN layers y ON substr(y.id, 2, 1) + 0 = substr(x.id, 2, 1) + 1");
	return !run_sql(db, sql) &&
	       !run_sql(db, "INSERT INTO revisions (id, app_id, status, created_ms, layers) SELECT 'r', 'a', 'queued', 1, "
			    "json_group_array(json_object('id', id)) FROM layers WHERE id LIKE 'l0%'");
}

TEST(each_layer_is_taken_once)
{
	struct db *db = fresh(schema_dir());
	static const struct seal_key key;
	struct json_object *env = NULL, *v;
	struct fault f = { 0 };

	REQUIRE(db && layers_make(db, LAYERS_MAX, "x"));
	/* One for each way to a layer would take years. */
	alarm(300);
	CHECK_EQ(env_effective(db, &key, "r", "production", &env, &f), RC_OK);
	alarm(0);
	CHECK_EQ(json_object_object_length(env), LAYERS_MAX * LAYER_DEPTH_MAX + 1);
	CHECK(json_object_object_get_ex(env, "SAME", &v) && !strcmp(json_object_get_string(v), "0 0"));
	CHECK(json_object_object_get_ex(env, "V7_15", &v));
	json_object_put(env);
	away(db);
}

/* A database that has deeper ones, however it came to them: an error, not variables that are missing. */
TEST(layers_too_deep_are_an_error)
{
	struct db *db = fresh(schema_dir());
	static const struct seal_key key;
	struct json_object *env = NULL;
	struct fault f = { 0 };

	REQUIRE(db && layers_make(db, 1, "x"));
	CHECK_EQ(run_sql(db, "INSERT INTO layers VALUES ('deeper', 'o', 'deeper', NULL, 1, 1)"), RC_OK);
	CHECK_EQ(run_sql(db, "INSERT INTO layer_layers VALUES ('l7_0', 1, 'deeper')"), RC_OK);
	CHECK_EQ(env_effective(db, &key, "r", "production", &env, &f), RC_LIMIT);
	CHECK(!env && strstr(f.text, "more than 8 deep"));
	/* By a shorter way, too: it is there. */
	CHECK_EQ(run_sql(db, "INSERT INTO layer_layers VALUES ('l0_0', 0, 'deeper')"), RC_OK);
	CHECK_EQ(env_effective(db, &key, "r", "production", &env, &f), RC_OK);
	json_object_put(env);
	away(db);
}

/* --- attempts to start revisions --------------------------------------------------------------------------------------- */

static struct db *with_revision(void)
{
	struct db *db = fresh(schema_dir());

	return db && layers_make(db, 1, "x") &&
	       !run_sql(db, "INSERT INTO timelines (app_id, slug, context, desired_revision_id, updated_ms) VALUES ('a', 'production', 'production', "
			    "'r', 1)") ? db : NULL;
}

static int64_t failures(struct db *db)
{
	struct json_object *o = starts_json(db, "r"), *v;
	int64_t n = json_object_object_get_ex(o, "failures", &v) ? json_object_get_int64(v) : 0;

	json_object_put(o);
	return n;
}

TEST(pauses_between_starts_grow_to_a_bound)
{
	struct db *db = with_revision();
	int64_t now = 1000000, before = 0;
	struct fault f = { 0 };
	struct starts s;

	REQUIRE(db);
	CHECK(starts_due(db, "r", now) && !starts_json(db, "r"));
	for (int i = 1; i <= 40; i++) {
		CHECK_EQ(starts_failed(db, "r", now, STARTS_BACKOFF_MAX_MS, &s, &f), RC_OK);
		CHECK_EQ(s.failures, i);
		CHECK_EQ(s.retry_ms - now, i == 1 ? STARTS_BACKOFF_MIN_MS : MIN_OF(before * 2, STARTS_BACKOFF_MAX_MS));
		CHECK(!starts_due(db, "r", now) && !starts_due(db, "r", s.retry_ms - 1) && starts_due(db, "r", s.retry_ms));
		before = s.retry_ms - now;
		now = s.retry_ms;
	}
	CHECK_EQ(before, STARTS_BACKOFF_MAX_MS);
	CHECK_EQ(failures(db), 40);
	/* A host that had no room does not make the pause that long. */
	CHECK_EQ(starts_failed(db, "r", now, 60000, &s, &f), RC_OK);
	CHECK_EQ(s.retry_ms - now, 60000);
	/* The clock was put back by a year. */
	CHECK(starts_due(db, "r", now - 365ll * 86400000));
	CHECK_EQ(starts_failed(db, "gone", now, 60000, &s, &f), RC_OK);
	CHECK(!starts_json(db, "gone"));
	away(db);
}

TEST(pauses_between_starts_end_for_a_reason)
{
	struct db *db = with_revision();
	int64_t now = 1000000000;
	struct fault f = { 0 };
	struct starts s = { 0 };

	REQUIRE(db);
	for (int i = 0; i < 20; i++)
		CHECK_EQ(starts_failed(db, "r", now, STARTS_BACKOFF_MAX_MS, &s, &f), RC_OK);
	CHECK_EQ(starts_visited(db, "r", &f), RC_OK);
	CHECK(!starts_due(db, "r", now + STARTS_VISIT_MS - 1) && starts_due(db, "r", now + STARTS_VISIT_MS));
	CHECK_EQ(failures(db), 20);
	CHECK_EQ(starts_visited(db, "other", &f), RC_ABSENT);
	CHECK_EQ(starts_forget_of_app(db, "b", &f), RC_OK);
	CHECK_EQ(starts_forget_of_org(db, "b", &f), RC_OK);
	CHECK_EQ(failures(db), 20);
	CHECK_EQ(starts_forget_of_app(db, "a", &f), RC_OK);
	CHECK(starts_due(db, "r", now) && !failures(db));
	CHECK_EQ(starts_failed(db, "r", now, 60000, &s, &f), RC_OK);
	CHECK_EQ(starts_forget_of_org(db, "o", &f), RC_OK);
	CHECK_EQ(failures(db), 0);
	/* A machine that is well, but not for long enough; then it is. */
	CHECK_EQ(starts_failed(db, "r", now, 60000, &s, &f), RC_OK);
	CHECK_EQ(run_sql(db, "INSERT INTO instances (id, app_id, revision_id, node, state, created_ms, running_ms) VALUES ('i', 'a', 'r', 'n', "
			     "'running', 1, 1000000000)"), RC_OK);
	CHECK_EQ(starts_settle(db, now + STARTS_HEALTHY_MS - 1, &f), RC_OK);
	CHECK_EQ(failures(db), 1);
	CHECK_EQ(starts_settle(db, now + STARTS_HEALTHY_MS, &f), RC_OK);
	CHECK_EQ(failures(db), 0);
	/* Nothing shall lead to it any more. */
	CHECK_EQ(starts_failed(db, "r", now, 60000, &s, &f), RC_OK);
	CHECK_EQ(run_sql(db, "UPDATE timelines SET desired_revision_id = NULL"), RC_OK);
	CHECK_EQ(starts_settle(db, now, &f), RC_OK);
	CHECK_EQ(failures(db), 0);
	away(db);
}

TEST(variables_of_all_layers_are_bounded)
{
	struct db *db = fresh(schema_dir());
	static const struct seal_key key;
	struct json_object *env = NULL;
	struct fault f = { 0 };

	REQUIRE(db && layers_make(db, 4, "x"));
	CHECK_EQ(run_sql(db, "UPDATE env_vars SET value = printf('%.*c', 4050, 'x') WHERE key != 'SAME'"), RC_OK);
	CHECK_EQ(env_effective(db, &key, "r", "production", &env, &f), RC_OK);
	json_object_put(env);
	env = NULL;
	CHECK_EQ(run_sql(db, "UPDATE env_vars SET value = printf('%.*c', 4100, 'x') WHERE key != 'SAME'"), RC_OK);
	CHECK_EQ(env_effective(db, &key, "r", "production", &env, &f), RC_LIMIT);
	CHECK(!env && strstr(f.text, "larger than 131072 bytes"));
	away(db);
}

/* {"key", "value" of n letters, "secret"} */
static struct json_object *one_var(const char *name, int n, bool secret)
{
	struct json_object *list = json_object_new_array(), *o = json_object_new_object();
	char *value = malloc((size_t)n + 1);

	memset(value, 'v', (size_t)n);
	value[n] = '\0';
	json_add_str(o, "key", name);
	json_add_str(o, "value", value);
	json_add_bool(o, "secret", secret);
	json_object_array_add(list, o);
	free(value);
	return list;
}

static enum rc update_var(struct db *db, const char *name, int n, bool secret)
{
	_cleanup_json_ struct json_object *list = one_var(name, n, secret);
	_cleanup_db_txn_ struct db_txn txn = { 0 };
	static const struct seal_key key;
	enum rc rc = db_begin(&txn, db, NULL);

	if (!rc)
		rc = env_update(db, &key, ENV_APP, "a", list, NULL);
	return rc ? rc : db_commit(&txn, NULL);
}

TEST(variables_of_one_owner_are_bounded)
{
	struct db *db = fresh(schema_dir());

	REQUIRE(db && layers_make(db, 1, "x"));
	/* 65536 = (1 + 2 + 32765) twice. */
	CHECK_EQ(update_var(db, "A", 32765, true), RC_OK);
	CHECK_EQ(update_var(db, "B", 32765, false), RC_OK);
	CHECK_EQ(update_var(db, "C", 1, false), RC_INVALID);
	CHECK_EQ(update_var(db, "C", 1000, true), RC_INVALID);
	CHECK_EQ(update_var(db, "A", 32000, true), RC_OK);
	CHECK_EQ(update_var(db, "C", 600, true), RC_OK);
	CHECK_EQ(count(db, "SELECT count(*) FROM env_vars WHERE app_id = 'a'"), 3);
	away(db);
}

TEST(names_of_an_organization_are_bounded)
{
	struct db *db = fresh(schema_dir());

	REQUIRE(db && !run_sql(db, "INSERT INTO organizations (id, name, created_ms) VALUES ('o', 'acme', 1), ('p', 'other', 1)") &&
		!run_sql(db, "INSERT INTO apps (id, org_id, slug, created_ms, updated_ms) VALUES ('a', 'o', 'a', 1, 1), ('b', 'o', 'b', 1, 1), "
			     "('c', 'p', 'c', 1, 1)"));
	CHECK_EQ(domain_claim(db, "1.x", "a", "production", 2, NULL), RC_OK);
	CHECK_EQ(domain_claim(db, "2.x", "b", "production", 2, NULL), RC_OK);
	CHECK_EQ(domain_claim(db, "3.x", "a", "preview/1", 2, NULL), RC_LIMIT);
	CHECK_EQ(domain_claim(db, "1.x", "a", "production", 2, NULL), RC_OK); /* has it already */
	CHECK_EQ(domain_claim(db, "1.x", "c", "production", 2, NULL), RC_EXISTS);
	CHECK_EQ(domain_claim(db, "3.x", "c", "production", 2, NULL), RC_OK);
	CHECK_EQ(count(db, "SELECT count(*) FROM domains"), 3);
	away(db);
}

TEST(storage_of_an_organization_is_bounded)
{
	struct db *db = fresh(schema_dir());
	const uint64_t gib = 1 << 30;

	REQUIRE(db && !run_sql(db, "INSERT INTO organizations (id, name, created_ms) VALUES ('o', 'acme', 1), ('p', 'other', 1)"));
	CHECK_EQ(quota_storage(db, "o", 2 * gib, 2, NULL), RC_OK);
	CHECK_EQ(quota_storage(db, "o", 2 * gib + 1, 2, NULL), RC_DENIED);
	CHECK_EQ(quota_storage(db, "o", UINT64_MAX, 0, NULL), RC_OK); /* no bound */
	/* A deleted volume, a snapshot that is being made of it, one that is made, a capture that is taken, one that is there: 100 + 100 + 30 + 1 + 7 MiB. */
	REQUIRE(!run_sql(db, "INSERT INTO volumes (id, org_id, slug, region, capacity, created_ms, deleted_ms) VALUES ('v', 'o', 'v', 'ord', 104857600, 1, 5), "
			     "('w', 'p', 'v', 'ord', 104857600, 1, NULL)") &&
		!run_sql(db, "INSERT INTO snapshots (id, org_id, slug, region, volume_id, volume_slug, flattened, created_ms) VALUES "
			     "('s', 'o', 's', 'ord', 'v', 'v', 0, 1), ('t', 'o', 't', 'ord', 'v', 'v', 31457280, 1)") &&
		!run_sql(db, "INSERT INTO sandbox_captures (id, org_id, sandbox_id, region, memory_mib, bytes, created_ms) VALUES "
			     "('c', 'o', 'x', 'ord', 1, 0, 1), ('d', 'o', 'x', 'ord', 99, 7340032, 1)"));
	CHECK_EQ(quota_storage(db, "o", gib - (238 << 20), 1, NULL), RC_OK);
	CHECK_EQ(quota_storage(db, "o", gib - (238 << 20) + 1, 1, NULL), RC_DENIED);
	CHECK_EQ(quota_storage(db, "p", gib - (100 << 20), 1, NULL), RC_OK);
	away(db);
}

TEST(deployed_trees_of_an_organization_are_bounded)
{
	struct db *db = fresh(schema_dir());

	REQUIRE(db && !run_sql(db, "INSERT INTO organizations (id, name, created_ms) VALUES ('o', 'acme', 1), ('p', 'other', 1)") &&
		!run_sql(db, "INSERT INTO apps (id, org_id, slug, created_ms, updated_ms) VALUES ('a', 'o', 'a', 1, 1), ('b', 'p', 'b', 1, 1)") &&
		!run_sql(db, "INSERT INTO revisions (id, app_id, status, bundle, bundle_bytes, created_ms) VALUES ('1', 'a', 'queued', 'x', 600000000, 1), "
			     "('2', 'a', 'queued', 'x', 600000000, 1), ('3', 'b', 'queued', 'x', 600000000, 1)"));
	CHECK_EQ(quota_trees(db, "o", 1, NULL), RC_OK); /* one tree, twice */
	REQUIRE(!run_sql(db, "INSERT INTO revisions (id, app_id, status, bundle, bundle_bytes, created_ms) VALUES ('4', 'a', 'queued', 'y', 600000000, 1)"));
	CHECK_EQ(quota_trees(db, "o", 1, NULL), RC_DENIED);
	CHECK_EQ(quota_trees(db, "p", 1, NULL), RC_OK);
	CHECK_EQ(quota_trees(db, "o", 0, NULL), RC_OK);
	away(db);
}

/* --- sandboxes --------------------------------------------------------------------------------------------------------- */

static enum rc attach(struct db *db, const char *id, const char *volume)
{
	struct sandbox_row row = { .id = id, .org_id = "o", .region = "ord", .node = "n", .memory_mib = 1280, .labels = "{}", .config = "{}",
				   .volumes = { { volume, "/data" } }, .n_volumes = 1 };
	struct fault f = { 0 };

	return sandbox_insert(db, &row, 10, &f);
}

TEST(a_sandbox_gets_volumes_that_are_there)
{
	struct db *db = fresh(schema_dir());

	REQUIRE(db && !run_sql(db, "INSERT INTO organizations VALUES ('o', 'acme', 1)"));
	CHECK_EQ(run_sql(db, "INSERT INTO volumes (id, org_id, slug, region, capacity, created_ms, deleted_ms) VALUES "
			     "('v1', 'o', 'one', 'ord', 1, 1, NULL), ('v2', 'o', 'two', 'ord', 1, 1, 5)"), RC_OK);
	CHECK_EQ(attach(db, "s1", "v1"), RC_OK);
	CHECK_EQ(attach(db, "s2", "v1"), RC_EXISTS);
	CHECK_EQ(attach(db, "s3", "v2"), RC_ABSENT);
	CHECK_EQ(count(db, "SELECT count(*) FROM sandboxes"), 1);
	CHECK_EQ(sandbox_set_running(db, "s1", NULL), RC_OK);
	CHECK_EQ(sandbox_set_running(db, "s1", NULL), RC_STATE);
	CHECK_EQ(sandbox_set_stopped(db, "s1", "test", NULL), RC_OK);
	CHECK_EQ(attach(db, "s2", "v1"), RC_OK);
	away(db);
}

CHECK_MAIN()
