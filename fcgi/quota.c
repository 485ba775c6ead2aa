/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/quota.h"

enum rc quota_room(struct db *db, const char *sql, const char *org_id, uint64_t more, uint64_t max, const char *what, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	uint64_t have;
	enum rc rc;

	db_start(&q, db, sql);
	db_text(&q, org_id);
	rc = db_row(&q, ret_f);
	if (rc)
		return rc;
	have = (uint64_t)db_col_int(&q, 0);
	if (have > max || more > max - have)
		return fault_set(ret_f, RC_LIMIT, 0, "%llu %s, the organization's limit", (unsigned long long)max, what);
	return RC_OK;
}

static enum rc bytes_room(struct db *db, const char *sql, const char *org_id, uint64_t more, uint64_t gib, struct fault *ret_f)
{
	enum rc rc = gib ? quota_room(db, sql, org_id, more, gib << 30, "bytes are stored", ret_f) : RC_OK;

	if (rc == RC_LIMIT)
		return fault_set(ret_f, RC_DENIED, 0, "%llu GiB are stored, the organization's limit", (unsigned long long)gib);
	return rc;
}

enum rc quota_storage(struct db *db, const char *org_id, uint64_t more, uint64_t gib, struct fault *ret_f)
{
	return bytes_room(db,
			  "SELECT (SELECT ifnull(sum(capacity), 0) FROM volumes WHERE org_id = ?1) + "
			  "(SELECT ifnull(sum(iif(s.flattened, s.flattened, ifnull(v.capacity, 0))), 0) FROM snapshots s "
			  "LEFT JOIN volumes v ON v.id = s.volume_id WHERE s.org_id = ?1) + "
			  "(SELECT ifnull(sum(iif(bytes, bytes, memory_mib * 1048576)), 0) FROM sandbox_captures WHERE org_id = ?1)",
			  org_id, more, gib, ret_f);
}

enum rc quota_trees(struct db *db, const char *org_id, uint64_t gib, struct fault *ret_f)
{
	return bytes_room(db,
			  "SELECT ifnull(sum(bytes), 0) FROM (SELECT max(v.bundle_bytes) AS bytes FROM revisions v JOIN apps a ON a.id = v.app_id "
			  "WHERE a.org_id = ?1 GROUP BY v.bundle)",
			  org_id, 1, gib, ret_f);
}
