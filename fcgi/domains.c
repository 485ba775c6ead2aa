/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/domains.h"

#include "base/address.h"
#include "base/fd.h"

#include <stdio.h>
#include <string.h>

bool domain_is_valid(const char *host, const char *own_domain)
{
	size_t n = strlen(host), own = strlen(own_domain);
	const char *last = strrchr(host, '.');

	if (n > DOMAIN_MAX || !host_name_is_valid(host))
		return false;
	if (n >= own && !strcmp(host + n - own, own_domain) && (n == own || host[n - own - 1] == '.'))
		return false;
	/* Something of the form of an address is none. */
	return last && last[1 + strspn(last + 1, "0123456789")];
}

static enum rc asked(struct db *db, const char *host, const char *app, char ret_id[64], struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum rc rc;

	db_start(&q, db,
		 "SELECT a.id FROM custom_domains c JOIN apps a ON a.id = c.app_id WHERE c.host = ?1 AND a.deleted_ms IS NULL AND "
		 "(?2 IS NULL OR a.id = ?2 OR a.slug = ?2)");
	db_text(&q, host);
	db_text(&q, app);
	rc = db_row(&q, ret_f);
	if (rc == RC_ABSENT)
		return fault_set(ret_f, RC_ABSENT, 0, "no app asks for '%.100s'", host);
	if (rc)
		return rc;
	snprintf(ret_id, 64, "%s", db_col_text(&q, 0));
	rc = db_row(&q, ret_f);
	if (!rc)
		return fault_set(ret_f, RC_LIMIT, 0, "several apps ask for '%.100s': say which", host);
	return rc == RC_ABSENT ? RC_OK : rc;
}

enum rc domain_approve(struct db *db, const char *host, const char *app, struct fault *ret_f)
{
	_cleanup_db_txn_ struct db_txn txn = { 0 };
	_cleanup_db_q_ struct db_q own = DB_Q_INIT, mark = DB_Q_INIT;
	int64_t now = (int64_t)wall_ms();
	char id[64];
	enum rc rc = db_begin(&txn, db, ret_f);

	if (!rc)
		rc = asked(db, host, app, id, ret_f);
	if (rc)
		return rc;
	db_start(&own, db,
		 "INSERT INTO domains (host, app_id, timeline, created_ms) VALUES (?1, ?2, 'production', ?3) "
		 "ON CONFLICT (host) DO UPDATE SET created_ms = created_ms WHERE app_id = ?2");
	db_text(&own, host);
	db_text(&own, id);
	db_int(&own, now);
	rc = db_run(&own, ret_f);
	if (!rc && !own.changes)
		rc = fault_set(ret_f, RC_EXISTS, 0, "'%.100s' belongs to another app", host);
	if (rc)
		return rc;
	db_start(&mark, db, "UPDATE custom_domains SET approved_ms = ifnull(approved_ms, ?3) WHERE host = ?1 AND app_id = ?2");
	db_text(&mark, host);
	db_text(&mark, id);
	db_int(&mark, now);
	rc = db_run(&mark, ret_f);
	return rc ? rc : db_commit(&txn, ret_f);
}

enum rc domain_claim(struct db *db, const char *host, const char *app_id, const char *timeline, uint64_t most, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT, whose = DB_Q_INIT;
	enum rc rc;

	/* One statement: parallel claims are counted one after the other. */
	db_start(&q, db,
		 "INSERT OR IGNORE INTO domains (host, app_id, timeline, created_ms) SELECT ?1, ?2, ?3, ?4 WHERE ?5 > "
		 "(SELECT count(*) FROM apps me JOIN apps a ON a.org_id = me.org_id JOIN domains d ON d.app_id = a.id WHERE me.id = ?2)");
	db_text(&q, host);
	db_text(&q, app_id);
	db_text(&q, timeline);
	db_int(&q, (int64_t)wall_ms());
	db_int(&q, (int64_t)most);
	rc = db_run(&q, ret_f);
	if (rc)
		return rc;
	db_start(&whose, db, "SELECT app_id IS ?2 FROM domains WHERE host = ?1");
	db_text(&whose, host);
	db_text(&whose, app_id);
	rc = db_row(&whose, ret_f);
	if (rc == RC_ABSENT)
		return fault_set(ret_f, RC_LIMIT, 0, "the organization's apps have %llu names together, as many as they may: a deleted app "
				 "or revision gives its own up", (unsigned long long)most);
	if (!rc && !db_col_int(&whose, 0))
		return fault_set(ret_f, RC_EXISTS, 0, "the name %.100s belongs to something else", host);
	return rc;
}

static enum rc run_two(struct db *db, const char *sql, const char *a, const char *b, int64_t *ret_changes, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum rc rc;

	db_start(&q, db, sql);
	db_text(&q, a);
	db_text(&q, b);
	rc = db_run(&q, ret_f);
	if (!rc)
		*ret_changes += q.changes;
	return rc;
}

enum rc domain_remove(struct db *db, const char *host, const char *app_id, struct fault *ret_f)
{
	_cleanup_db_txn_ struct db_txn txn = { 0 };
	int64_t asked_for = 0, had = 0;
	enum rc rc = db_begin(&txn, db, ret_f);

	/* Only what was asked for: the names that an app has by its slug are not taken here. */
	if (!rc)
		rc = run_two(db, "DELETE FROM domains WHERE host = ?1 AND app_id = ?2 AND EXISTS (SELECT 1 FROM custom_domains c WHERE "
				 "c.host = ?1 AND c.app_id = ?2)", host, app_id, &had, ret_f);
	if (!rc)
		rc = run_two(db, "DELETE FROM custom_domains WHERE host = ?1 AND app_id = ?2", host, app_id, &asked_for, ret_f);
	if (!rc && !asked_for)
		rc = fault_set(ret_f, RC_ABSENT, 0, "the app has no domain '%.100s'", host);
	return rc ? rc : db_commit(&txn, ret_f);
}
