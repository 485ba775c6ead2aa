/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/runner/purge.h"

#include "base/fd.h"
#include "base/log.h"
#include "fcgi/runner/limits.h"

#include <stdio.h>

/* Any of those that are due: one that cannot be removed must not be in the way of the others. */
static const struct {
	const char *due, *claim, *drop, *prefix;
} kinds[] = {
	{ "SELECT id FROM volumes WHERE deleted_ms < ? ORDER BY random() LIMIT 1",
	  "UPDATE volumes SET deleted_ms = 1 WHERE id = ? AND deleted_ms IS NOT NULL", "DELETE FROM volumes WHERE id = ?", "" },
	{ "SELECT id FROM snapshots WHERE deleted_ms < ? ORDER BY random() LIMIT 1",
	  "UPDATE snapshots SET deleted_ms = 1 WHERE id = ? AND deleted_ms IS NOT NULL", "DELETE FROM snapshots WHERE id = ?",
	  "snapshot:" },
};

static enum rc run_for(struct db *db, const char *sql, const char *id, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	db_start(&q, db, sql);
	db_text(&q, id);
	return db_run(&q, ret_f);
}

static enum rc due(struct db *db, const char *sql, char id[BROKER_NAME_MAX], struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum rc rc;

	db_start(&q, db, sql);
	db_int(&q, (int64_t)(wall_ms() - PURGE_KEEP_MS));
	rc = db_row(&q, ret_f);
	if (!rc)
		snprintf(id, BROKER_NAME_MAX, "%.100s", db_col_text(&q, 0));
	return rc;
}

void purge_run(struct db *db, struct link *l)
{
	char id[BROKER_NAME_MAX], name[BROKER_NAME_MAX];
	struct fault f;

	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		enum rc rc = due(db, kinds[i].due, id, &f);

		if (rc == RC_ABSENT)
			continue;
		/* Claimed first: from here nobody can restore it. */
		if (!rc)
			rc = run_for(db, kinds[i].claim, id, &f);
		snprintf(name, sizeof(name), "%s%.100s", kinds[i].prefix, id);
		if (!rc)
			rc = link_volume_delete(l, name, &f);
		if (!rc)
			rc = run_for(db, kinds[i].drop, id, &f);
		if (rc)
			log_fault(LOG_LEVEL_WARN, &f, "purge of %s", id);
		else
			log_info("purged id=%s", id);
	}
}
