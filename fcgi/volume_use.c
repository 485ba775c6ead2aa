/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/volumes.h"

#include <stdio.h>
#include <string.h>

/* One row (id, bootable) by id or slug. RC_ABSENT if there is none. */
static enum rc look(struct request *r, const char *sql, const char *id_or_slug, struct volume_use *ret,
		    bool *ret_bootable, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum rc rc;

	db_start(&q, r->api->db, sql);
	db_text(&q, r->org_id);
	db_text(&q, id_or_slug);
	rc = db_row(&q, ret_f);
	if (rc)
		return rc;
	snprintf(ret->id, sizeof(ret->id), "%s", db_col_text(&q, 0));
	*ret_bootable = db_col_int(&q, 1);
	return RC_OK;
}

enum api_code volume_resolve(struct request *r, const char *id_or_slug, bool as_root, struct volume_use *ret)
{
	struct fault f = { 0 };
	bool bootable = false;
	enum rc rc = look(r,
			  "SELECT id, bootable FROM volumes WHERE org_id = ?1 AND (id = ?2 OR slug = ?2) AND "
			  "deleted_ms IS NULL",
			  id_or_slug, ret, &bootable, &f);

	ret->snapshot = false;
	if (rc == RC_ABSENT && as_root) {
		rc = look(r,
			  "SELECT id, bootable FROM snapshots WHERE org_id = ?1 AND (id = ?2 OR slug = ?2) AND "
			  "deleted_ms IS NULL",
			  id_or_slug, ret, &bootable, &f);
		ret->snapshot = true;
	}
	if (rc == RC_ABSENT)
		return api_fail(r, API_VOLUME_NOT_FOUND, "no such volume%s: %s", as_root ? " or snapshot" : "",
				shown(id_or_slug));
	if (rc)
		return api_fault(r, &f);
	return as_root && !bootable ? API_VOLUME_NOT_BOOTABLE : API_OK;
}

enum api_code volume_pack_mount(struct request *r, const struct volume_use *use, const char *path, char **blob,
				size_t *n)
{
	size_t a = strlen(use->id) + 1, b = strlen(path) + 1;
	char *more;

	if (*n + a + b > BROKER_MOUNTS_MAX)
		return api_fail(r, API_INVALID_CONFIG, "volumes: the paths are too long together");
	more = realloc(*blob, *n + a + b);
	if (!more)
		return API_BUSY;
	memcpy(more + *n, use->id, a);
	memcpy(more + *n + a, path, b);
	*blob = more;
	*n += a + b;
	return API_OK;
}
