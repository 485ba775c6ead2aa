/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SQLite with the house's manners. A query is bound and read through a small struct whose error is sticky: bind in the
 * order of the question marks, then db_row() or db_run(), then read columns, and db_end() (or the cleanup) hands the
 * prepared statement back to the connection's cache.
 *
 *	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
 *
 *	db_start(&q, db, "SELECT slug, created_ms FROM apps WHERE id = ?");
 *	db_text(&q, id);
 *	rc = db_row(&q, ret_f);            RC_OK: a row; RC_ABSENT: none (left)
 *	slug = db_col_text(&q, 0);         valid until the next db_row() or db_end()
 *
 * Writing, or beginning a transaction, while a query of the same connection still has rows to give is a mistake: another
 * process's write in between would make it fail (SQLITE_BUSY_SNAPSHOT). db_end() the query first, or begin before it.
 *
 * The SQL text must come from fixed fragments; values are always bound. One connection is one thread's, and must not be
 * carried over a fork.
 */
#ifndef NB_FCGI_DB_H
#define NB_FCGI_DB_H

#include "base/cleanup.h"
#include "base/fault.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct db;
struct sqlite3_stmt;

/* Opens or creates; WAL, foreign keys, waits up to DB_BUSY_MS for another writer. */
enum rc db_open(struct db **ret, const char *path, struct fault *ret_f);
#define DB_FILE "db/nestbox.db" /* below state_dir; the directory belongs to user_api */
enum rc db_open_state(struct db **ret, const char *state_dir, struct fault *ret_f);
void db_close(struct db *db);
static inline void db_cleanup(struct db **db)
{
	db_close(*db);
}
#define _cleanup_db_ _cleanup_(db_cleanup)

/* Applies those of `dir`/NNN-*.sql that the database does not have yet, in order, each in one transaction. RC_STATE if the
 * database has one that is not in the directory. dir NULL: $NESTBOX_SCHEMA_DIR, else where `make install` put it. */
enum rc db_migrate(struct db *db, const char *dir, struct fault *ret_f);

struct db_q {
	struct db *db;
	struct sqlite3_stmt *stmt;
	int slot;      /* in the connection's cache; -1: finalized at the end */
	int n_bound;
	int64_t changes; /* after db_run() */
	enum rc rc;    /* sticky */
	struct fault fault;
};
#define DB_Q_INIT { .slot = -1 }

void db_start(struct db_q *q, struct db *db, const char *sql);
void db_text(struct db_q *q, const char *value); /* NULL binds NULL; copied */
void db_int(struct db_q *q, int64_t value);
void db_blob(struct db_q *q, const void *data, size_t n);
void db_null(struct db_q *q);
enum rc db_row(struct db_q *q, struct fault *ret_f);
/* For statements without rows. RC_EXISTS: a UNIQUE or PRIMARY KEY is taken; RC_STATE: another constraint. */
enum rc db_run(struct db_q *q, struct fault *ret_f);
void db_end(struct db_q *q);
#define _cleanup_db_q_ _cleanup_(db_end)

bool db_col_null(const struct db_q *q, int column);
const char *db_col_text(const struct db_q *q, int column); /* "" for NULL */
int64_t db_col_int(const struct db_q *q, int column);      /* 0 for NULL */
const void *db_col_blob(const struct db_q *q, int column, size_t *ret_n);

/* BEGIN IMMEDIATE .. COMMIT; left without a commit it rolls back. */
struct db_txn {
	struct db *db;
};
enum rc db_begin(struct db_txn *txn, struct db *db, struct fault *ret_f);
enum rc db_commit(struct db_txn *txn, struct fault *ret_f);
void db_rollback(struct db_txn *txn);
#define _cleanup_db_txn_ _cleanup_(db_rollback)

/* Within its scope commits do not wait for the disk: for rows whose loss with the power takes along what they describe. The
 * next commit outside of it makes them durable, too. Begun before the transaction, so that it ends after it. */
struct db_relaxed {
	struct db *db;
};
void db_relax(struct db_relaxed *r, struct db *db);
void db_unrelax(struct db_relaxed *r);
#define _cleanup_db_relaxed_ _cleanup_(db_unrelax)

#endif
