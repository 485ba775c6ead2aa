/* SPDX-License-Identifier: Apache-2.0 */
#include "base/fd.h"
#include "fcgi/db.h"
#include "tests/lib/check.h"

#include <fcntl.h>
#include <sys/stat.h>
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

CHECK_MAIN()
