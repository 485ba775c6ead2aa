/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/db.h"

#include "base/config.h"
#include "base/fd.h"
#include "fcgi/limits.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sqlite3.h>
#include <stdio.h>
#include <string.h>

struct cached {
	sqlite3_stmt *stmt;
	bool busy;
};

struct db {
	sqlite3 *handle;
	struct cached cache[DB_CACHED_STATEMENTS];
	int n_cached;
};

static enum rc rc_of(int code)
{
	switch (code & 0xff) {
	case SQLITE_OK:
	case SQLITE_ROW:
	case SQLITE_DONE:
		return RC_OK;
	case SQLITE_CONSTRAINT:
		return code == SQLITE_CONSTRAINT_UNIQUE || code == SQLITE_CONSTRAINT_PRIMARYKEY ? RC_EXISTS : RC_STATE;
	case SQLITE_BUSY:
	case SQLITE_LOCKED:
		return RC_AGAIN;
	case SQLITE_NOMEM:
		return RC_NOMEM;
	case SQLITE_FULL:
		return RC_NOSPACE;
	case SQLITE_TOOBIG:
		return RC_LIMIT;
	default:
		return RC_SYS;
	}
}

static enum rc fault_db(struct db *db, int code, const char *what, struct fault *ret_f)
{
	return fault_set(ret_f, rc_of(code), 0, "database: %s: %s", what,
			 db->handle ? sqlite3_errmsg(db->handle) : sqlite3_errstr(code));
}

static enum rc exec(struct db *db, const char *sql, struct fault *ret_f)
{
	int code = sqlite3_exec(db->handle, sql, NULL, NULL, NULL);

	if (code == SQLITE_OK)
		return RC_OK;
	return fault_db(db, sqlite3_extended_errcode(db->handle), "exec", ret_f);
}

enum rc db_open(struct db **ret, const char *path, struct fault *ret_f)
{
	_cleanup_db_ struct db *db = calloc(1, sizeof(*db));
	int code;
	enum rc rc;

	if (!db)
		return fault_set(ret_f, RC_NOMEM, 0, "database handle");
	code = sqlite3_open_v2(path, &db->handle, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX, NULL);
	if (code != SQLITE_OK)
		return fault_db(db, code, path, ret_f);
	sqlite3_extended_result_codes(db->handle, 1);
	sqlite3_busy_timeout(db->handle, DB_BUSY_MS);
	sqlite3_db_config(db->handle, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
	sqlite3_db_config(db->handle, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL);
	/* FULL: what an answer acknowledged is there after a power loss. The kernel's cache has the file, and all workers share it: a worker's own is
	 * for what one question reads, 1 MiB. */
	rc = exec(db,
		  "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;"
		  "PRAGMA temp_store = MEMORY; PRAGMA cache_size = -1024;",
		  ret_f);
	if (rc)
		return rc;
	*ret = take_ptr(db);
	return RC_OK;
}

enum rc db_open_state(struct db **ret, const char *state_dir, struct fault *ret_f)
{
	char path[PATH_MAX];
	enum rc rc = path_join(path, sizeof(path), state_dir, DB_FILE, ret_f);

	return rc ? rc : db_open(ret, path, ret_f);
}

void db_close(struct db *db)
{
	if (!db)
		return;
	for (int i = 0; i < db->n_cached; i++)
		sqlite3_finalize(db->cache[i].stmt);
	sqlite3_close_v2(db->handle);
	free(db);
}

static void q_fail(struct db_q *q, int code, const char *what)
{
	if (!q->rc)
		q->rc = fault_db(q->db, code, what, &q->fault);
}

void db_start(struct db_q *q, struct db *db, const char *sql)
{
	bool keep = db->n_cached < DB_CACHED_STATEMENTS;
	int code;

	db_end(q);
	*q = (struct db_q){ .db = db, .slot = -1 };
	for (int i = 0; i < db->n_cached; i++) {
		if (strcmp(sqlite3_sql(db->cache[i].stmt), sql) != 0)
			continue;
		keep = false;
		if (db->cache[i].busy)
			continue;
		db->cache[i].busy = true;
		q->slot = i;
		q->stmt = db->cache[i].stmt;
		return;
	}
	code = sqlite3_prepare_v3(db->handle, sql, -1, keep ? SQLITE_PREPARE_PERSISTENT : 0, &q->stmt, NULL);
	if (code != SQLITE_OK) {
		q_fail(q, code, "prepare");
		return;
	}
	if (keep) {
		q->slot = db->n_cached++;
		db->cache[q->slot] = (struct cached){ .stmt = q->stmt, .busy = true };
	}
}

static void bound(struct db_q *q, int code)
{
	if (code != SQLITE_OK)
		q_fail(q, code, "bind");
}

void db_text(struct db_q *q, const char *value)
{
	if (!q->rc)
		bound(q, sqlite3_bind_text(q->stmt, ++q->n_bound, value, -1, SQLITE_TRANSIENT));
}

void db_int(struct db_q *q, int64_t value)
{
	if (!q->rc)
		bound(q, sqlite3_bind_int64(q->stmt, ++q->n_bound, value));
}

void db_blob(struct db_q *q, const void *data, size_t n)
{
	if (!q->rc)
		bound(q, n > INT_MAX ? SQLITE_TOOBIG :
				       sqlite3_bind_blob(q->stmt, ++q->n_bound, data, (int)n, SQLITE_TRANSIENT));
}

void db_null(struct db_q *q)
{
	if (!q->rc)
		bound(q, sqlite3_bind_null(q->stmt, ++q->n_bound));
}

/* A statement that has rows left keeps the connection at the state of its first one. */
static bool is_reading(struct db *db)
{
	for (sqlite3_stmt *s = sqlite3_next_stmt(db->handle, NULL); s; s = sqlite3_next_stmt(db->handle, s))
		if (sqlite3_stmt_busy(s))
			return true;
	return false;
}

/* Refused at once, whatever DB_BUSY_MS is, if another process wrote since that first row: rarely, so it is caught here, always. */
static void write_check(struct db_q *q)
{
	assert(sqlite3_stmt_readonly(q->stmt) || sqlite3_stmt_busy(q->stmt) || !sqlite3_get_autocommit(q->db->handle) ||
	       !is_reading(q->db));
}

static enum rc step(struct db_q *q, bool *ret_row)
{
	int code;

	*ret_row = false;
	if (!q->rc && q->n_bound != sqlite3_bind_parameter_count(q->stmt))
		q->rc = fault_set(&q->fault, RC_INVALID, 0, "database: %d of %d values bound: %.100s", q->n_bound,
				  sqlite3_bind_parameter_count(q->stmt), sqlite3_sql(q->stmt));
	if (q->rc)
		return q->rc;
	write_check(q);
	code = sqlite3_step(q->stmt);
	if (code == SQLITE_ROW)
		*ret_row = true;
	else if (code != SQLITE_DONE)
		q_fail(q, sqlite3_extended_errcode(q->db->handle), "step");
	return q->rc;
}

enum rc db_row(struct db_q *q, struct fault *ret_f)
{
	bool row;
	enum rc rc = step(q, &row);

	if (rc) {
		if (ret_f)
			*ret_f = q->fault;
		return rc;
	}
	return row ? RC_OK : fault_set(ret_f, RC_ABSENT, 0, "no such row");
}

enum rc db_run(struct db_q *q, struct fault *ret_f)
{
	bool row;
	enum rc rc;

	do {
		rc = step(q, &row);
	} while (!rc && row);
	if (rc) {
		if (ret_f)
			*ret_f = q->fault;
	} else {
		q->changes = sqlite3_changes64(q->db->handle);
	}
	if (q->stmt)
		sqlite3_reset(q->stmt);
	return rc;
}

void db_end(struct db_q *q)
{
	if (!q->stmt)
		return;
	if (q->slot >= 0) {
		sqlite3_reset(q->stmt);
		sqlite3_clear_bindings(q->stmt);
		q->db->cache[q->slot].busy = false;
	} else {
		sqlite3_finalize(q->stmt);
	}
	q->stmt = NULL;
	q->slot = -1;
}

bool db_col_null(const struct db_q *q, int column)
{
	return sqlite3_column_type(q->stmt, column) == SQLITE_NULL;
}

const char *db_col_text(const struct db_q *q, int column)
{
	const char *s = (const char *)sqlite3_column_text(q->stmt, column);

	return s ? s : "";
}

int64_t db_col_int(const struct db_q *q, int column)
{
	return sqlite3_column_int64(q->stmt, column);
}

const void *db_col_blob(const struct db_q *q, int column, size_t *ret_n)
{
	const void *p = sqlite3_column_blob(q->stmt, column);

	*ret_n = (size_t)sqlite3_column_bytes(q->stmt, column);
	return p;
}

enum rc db_begin(struct db_txn *txn, struct db *db, struct fault *ret_f)
{
	enum rc rc;

	assert(!is_reading(db));
	rc = exec(db, "BEGIN IMMEDIATE", ret_f);
	txn->db = rc ? NULL : db;
	return rc;
}

enum rc db_commit(struct db_txn *txn, struct fault *ret_f)
{
	enum rc rc = exec(txn->db, "COMMIT", ret_f);

	if (!rc)
		txn->db = NULL;
	return rc;
}

void db_rollback(struct db_txn *txn)
{
	/* An error may have rolled back already; then this one fails and there is nothing to undo. */
	if (txn->db)
		exec(txn->db, "ROLLBACK", NULL);
	txn->db = NULL;
}

void db_relax(struct db_relaxed *r, struct db *db)
{
	r->db = exec(db, "PRAGMA synchronous = NORMAL", NULL) ? NULL : db;
}

void db_unrelax(struct db_relaxed *r)
{
	if (r->db)
		exec(r->db, "PRAGMA synchronous = FULL", NULL);
	r->db = NULL;
}

static int is_migration(const struct dirent *d)
{
	size_t n = strlen(d->d_name);

	return strspn(d->d_name, "0123456789") == 3 && d->d_name[3] == '-' && n > 4 &&
	       !strcmp(d->d_name + n - 4, ".sql");
}

/*
 * Which migrations a database has is a table of their numbers, because one of a lower number may come later than one of a higher.
 * A database from before that table has all up to its user_version.
 */
static enum rc migrations_table(struct db *db, struct fault *ret_f)
{
	static const char sql[] =
		"CREATE TABLE IF NOT EXISTS migrations (number INTEGER PRIMARY KEY) STRICT;"
		"WITH RECURSIVE had(n) AS (SELECT user_version FROM pragma_user_version UNION ALL SELECT n - 1 FROM had WHERE n > 1) "
		"INSERT INTO migrations SELECT n FROM had WHERE n > 0 AND NOT EXISTS (SELECT 1 FROM migrations);";
	_cleanup_db_txn_ struct db_txn txn = { 0 };
	enum rc rc = db_begin(&txn, db, ret_f);

	if (!rc)
		rc = exec(db, sql, ret_f);
	return rc ? rc : db_commit(&txn, ret_f);
}

static enum rc migration_is_applied(struct db *db, int64_t number, bool *ret, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum rc rc;

	db_start(&q, db, "SELECT 1 FROM migrations WHERE number = ?");
	db_int(&q, number);
	rc = db_row(&q, ret_f);
	*ret = !rc;
	return rc == RC_ABSENT ? RC_OK : rc;
}

static enum rc migrate_one(struct db *db, int dirfd, const char *name, int64_t number, struct fault *ret_f)
{
	_cleanup_db_txn_ struct db_txn txn = { 0 };
	_cleanup_free_ char *sql = NULL;
	char note[160];
	bool applied = false;
	enum rc rc = file_read_at(dirfd, name, DB_MIGRATION_MAX, &sql, NULL, ret_f);

	if (!rc)
		rc = db_begin(&txn, db, ret_f);
	/* Asked again inside the transaction: another process may have been quicker. */
	if (!rc)
		rc = migration_is_applied(db, number, &applied, ret_f);
	if (rc || applied)
		return rc;
	rc = exec(db, sql, ret_f);
	snprintf(note, sizeof(note), "INSERT INTO migrations VALUES (%lld)", (long long)number);
	if (!rc)
		rc = exec(db, note, ret_f);
	/* For people who look at the file; nothing here reads it again. */
	snprintf(note, sizeof(note), "PRAGMA user_version = %lld", (long long)number);
	if (!rc)
		rc = exec(db, note, ret_f);
	if (rc)
		return fault_wrap(ret_f, "migration %s", name);
	return db_commit(&txn, ret_f);
}

/* RC_STATE: it has one that this program does not know. */
static enum rc unknown_check(struct db *db, struct dirent **names, int n, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum rc rc;

	db_start(&q, db, "SELECT number FROM migrations ORDER BY number");
	while (!(rc = db_row(&q, ret_f))) {
		bool known = false;

		for (int i = 0; i < n && !known; i++)
			known = strtol(names[i]->d_name, NULL, 10) == db_col_int(&q, 0);
		if (!known)
			return fault_set(ret_f, RC_STATE, 0, "the database has migration %lld, which this program does not know",
					 (long long)db_col_int(&q, 0));
	}
	return rc == RC_ABSENT ? RC_OK : rc;
}

static void names_free(struct dirent **names, int n)
{
	for (int i = 0; i < n; i++)
		free(names[i]);
	free(names);
}

enum rc db_migrate(struct db *db, const char *dir, struct fault *ret_f)
{
	const char *from = dir ? dir : getenv("NESTBOX_SCHEMA_DIR");
	_cleanup_fd_ int dirfd = -1;
	struct dirent **names = NULL;
	enum rc rc;
	int n;

	if (!from)
		from = NB_DATADIR "/schema";
	dirfd = open(from, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	n = dirfd < 0 ? -1 : scandirat(dirfd, ".", &names, is_migration, alphasort);
	if (n < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "migrations in %s", from);
	rc = migrations_table(db, ret_f);
	if (!rc)
		rc = unknown_check(db, names, n, ret_f);
	for (int i = 0; !rc && i < n; i++) {
		int64_t number = strtol(names[i]->d_name, NULL, 10);
		bool applied = false;

		rc = migration_is_applied(db, number, &applied, ret_f);
		if (!rc && !applied)
			rc = migrate_one(db, dirfd, names[i]->d_name, number, ret_f);
	}
	names_free(names, n);
	return rc;
}
