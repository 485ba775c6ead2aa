/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/volumes.h"

#include "base/fd.h"
#include "base/log.h"
#include "fcgi/handlers.h"
#include "fcgi/page.h"
#include "fcgi/peers.h"
#include "fcgi/quota.h"
#include "fcgi/sandboxes.h"

#include <stdio.h>
#include <string.h>

/* Volume.create() and Snapshot.create() of the client send all of their options, those for the client itself, too. */
#define CLIENT_KEYS "token", "org", "apiEndpoint"

#define BUILTIN_PREFIX "builtin:"

#define VOLUME_COLUMNS "created_ms, id, slug, region, capacity, bootable, base, base_slug"
#define SNAPSHOT_COLUMNS "created_ms, id, slug, region, volume_id, volume_slug, bootable, allocated, flattened"

/* --- answers ---------------------------------------------------------------------------------------------------- */

static struct json_object *ref_json(const char *id, const char *slug)
{
	struct json_object *o = json_object_new_object();

	json_add_str(o, "id", id);
	json_add_str(o, "slug", slug);
	return o;
}

static struct json_object *volume_json(struct request *r, const struct db_q *q, struct fault *ret_f)
{
	struct json_object *o = json_object_new_object();
	struct broker_volume stat = { 0 };
	struct fault f = { 0 };

	(void)ret_f;
	/* Sizes are estimates by contract: without a broker they are 0, not an error. */
	if (broker_volume_stat(r->api, db_col_text(q, 1), &stat, &f))
		log_debug("volume %s: %s", db_col_text(q, 1), f.text);
	json_add_str(o, "id", db_col_text(q, 1));
	json_add_str(o, "slug", db_col_text(q, 2));
	json_add_str(o, "region", db_col_text(q, 3));
	json_add_int(o, "capacity", db_col_int(q, 4));
	json_add_int(o, "estimated_allocated_size", (int64_t)(stat.own_bytes & INT64_MAX));
	json_add_int(o, "estimated_flattened_size", (int64_t)(stat.used_bytes & INT64_MAX));
	json_add_bool(o, "is_bootable", db_col_int(q, 5));
	if (*db_col_text(q, 7))
		json_add(o, "base_snapshot", ref_json(db_col_text(q, 6), db_col_text(q, 7)));
	else
		json_add(o, "base_snapshot", NULL);
	return o;
}

static struct json_object *snapshot_json(struct request *r, const struct db_q *q, struct fault *ret_f)
{
	struct json_object *o = json_object_new_object();

	(void)r, (void)ret_f;
	json_add_str(o, "id", db_col_text(q, 1));
	json_add_str(o, "slug", db_col_text(q, 2));
	json_add_str(o, "region", db_col_text(q, 3));
	json_add_int(o, "allocated_size", db_col_int(q, 7));
	json_add_int(o, "flattened_size", db_col_int(q, 8));
	json_add_bool(o, "is_bootable", db_col_int(q, 6));
	json_add(o, "volume", ref_json(db_col_text(q, 4), db_col_text(q, 5)));
	return o;
}

/* The two kinds differ in their table, their row's form and the word for a missing one. */
struct kind {
	const char *list_sql, *get_sql;
	page_row_fn *json;
	enum api_code absent;
};

#define LIST_SQL(columns, table)                                                                                     \
	"SELECT " columns " FROM " table " WHERE org_id = ?1 AND deleted_ms IS NULL AND "                            \
	"(?2 IS NULL OR instr(slug, ?2)) AND (created_ms, id) < (?3, ?4) ORDER BY created_ms DESC, id DESC LIMIT ?5"
#define GET_SQL(columns, table)                                                                                      \
	"SELECT " columns " FROM " table " WHERE org_id = ?1 AND (id = ?2 OR slug = ?2) AND deleted_ms IS NULL "     \
	"ORDER BY id = ?2 DESC LIMIT 1"

static const struct kind volume_kind = { LIST_SQL(VOLUME_COLUMNS, "volumes"), GET_SQL(VOLUME_COLUMNS, "volumes"),
					 volume_json, API_VOLUME_NOT_FOUND };
static const struct kind snapshot_kind = { LIST_SQL(SNAPSHOT_COLUMNS, "snapshots"),
					   GET_SQL(SNAPSHOT_COLUMNS, "snapshots"), snapshot_json,
					   API_SNAPSHOT_NOT_FOUND };

static enum api_code kind_list(struct request *r, const struct kind *kind)
{
	_cleanup_page_ struct page page = { 0 };
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum api_code code = page_start(r, &page);

	if (code)
		return code;
	db_start(&q, r->api->db, kind->list_sql);
	db_text(&q, r->org_id);
	db_text(&q, request_query(r, "search"));
	return page_rows(r, &page, &q, 0, 1, kind->json);
}

static enum api_code kind_row(struct request *r, const struct kind *kind, const char *id_or_slug, struct db_q *q)
{
	struct fault f = { 0 };
	enum rc rc;

	db_start(q, r->api->db, kind->get_sql);
	db_text(q, r->org_id);
	db_text(q, id_or_slug);
	rc = db_row(q, &f);
	if (rc == RC_ABSENT)
		return kind->absent;
	return rc ? api_fault(r, &f) : API_OK;
}

static enum api_code kind_get(struct request *r, const struct kind *kind, const char *id_or_slug)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum api_code code = kind_row(r, kind, id_or_slug, &q);

	return code ? code : reply_json(r, 200, kind->json(r, &q, NULL));
}

enum api_code volume_list(struct request *r)
{
	return kind_list(r, &volume_kind);
}

enum api_code volume_get(struct request *r)
{
	return kind_get(r, &volume_kind, r->args[0]);
}

enum api_code snapshot_list(struct request *r)
{
	return kind_list(r, &snapshot_kind);
}

enum api_code snapshot_get(struct request *r)
{
	return kind_get(r, &snapshot_kind, r->args[0]);
}

/* --- create ------------------------------------------------------------------------------------------------------ */

/* Bytes, or "2GB", "1.5GiB" as the SDK writes it. */
static enum api_code capacity_parse(struct json_object *v, int64_t *ret)
{
	static const struct {
		const char *unit;
		double bytes;
	} units[] = { { "GB", 1e9 },   { "MB", 1e6 },		 { "kB", 1e3 },
		      { "GiB", 1024.0 * 1024 * 1024 }, { "MiB", 1024.0 * 1024 }, { "KiB", 1024 } };
	double bytes = -1;

	if (json_object_is_type(v, json_type_int) || json_object_is_type(v, json_type_double)) {
		bytes = json_object_get_double(v);
	} else if (json_object_is_type(v, json_type_string)) {
		const char *s = json_object_get_string(v);
		size_t n = strspn(s, "0123456789.");
		char *end = NULL;
		double number = n && n < 20 ? strtod(s, &end) : -1;

		for (size_t i = 0; end && end == s + n && i < ARRAY_SIZE(units); i++)
			if (!strcmp(end, units[i].unit))
				bytes = number * units[i].bytes;
	}
	if (!(bytes >= (double)VOLUME_BYTES_MIN && bytes <= (double)VOLUME_BYTES_MAX))
		return API_INVALID_CAPACITY;
	*ret = (int64_t)bytes;
	return API_OK;
}

struct volume_new {
	char id[ID_MAX];
	const char *slug, *region, *from;
	int64_t capacity;
	bool bootable;
	char base[BROKER_NAME_MAX], base_id[ID_MAX], base_slug[SLUG_MAX + 1]; /* for the broker; for the row */
};

static enum api_code from_resolve(struct request *r, struct volume_new *v)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum api_code code;

	if (!v->from)
		return API_OK;
	v->bootable = true;
	if (!strncmp(v->from, BUILTIN_PREFIX, strlen(BUILTIN_PREFIX))) {
		if (strcmp(v->from + strlen(BUILTIN_PREFIX), r->api->config.image) != 0)
			return api_fail(r, API_SNAPSHOT_NOT_FOUND, "no such image: %s", shown(v->from));
		snprintf(v->base, sizeof(v->base), "image:%.100s", r->api->config.image);
		snprintf(v->base_id, sizeof(v->base_id), "%.40s", v->from);
		return API_OK;
	}
	code = kind_row(r, &snapshot_kind, v->from, &q);
	if (code)
		return code;
	snprintf(v->base, sizeof(v->base), "snapshot:%.100s", db_col_text(&q, 1));
	snprintf(v->base_id, sizeof(v->base_id), "%.40s", db_col_text(&q, 1));
	snprintf(v->base_slug, sizeof(v->base_slug), "%.32s", db_col_text(&q, 2));
	v->bootable = db_col_int(&q, 6);
	return API_OK;
}

static enum api_code volume_parse(struct request *r, struct volume_new *v)
{
	static const char *const keys[] = { "slug", "region", "capacity", "from", CLIENT_KEYS, NULL };
	struct json_object *body = NULL;
	struct fault f = { 0 };
	enum api_code code = request_json(r, false, &body);

	if (code)
		return code;
	if (json_only_keys(body, keys, &f) || json_get_str(body, "slug", HTTP_SEGMENT_MAX, &v->slug, &f) ||
	    json_get_str(body, "region", 16, &v->region, &f) ||
	    json_get_str(body, "from", HTTP_SEGMENT_MAX, &v->from, &f))
		return api_refuse(r, API_INVALID_REQUEST, &f);
	if (!v->slug || !slug_is_valid(v->slug))
		return API_INVALID_SLUG;
	if (!v->region || strcmp(v->region, r->api->config.region) != 0)
		return api_fail(r, API_INVALID_REGION, "unknown region; this host is '%s'", r->api->config.region);
	code = capacity_parse(json_get(body, "capacity"), &v->capacity);
	return code ? code : from_resolve(r, v);
}

/*
 * Inside the transaction that inserts; bytes: at least so many will be stored. Slugs are one name space for volumes and snapshots. Deleted
 * ones count until their storage has gone. RC_EXISTS, RC_LIMIT, RC_DENIED: no room for the bytes.
 */
static enum rc may_insert(struct request *r, const char *slug, uint64_t bytes, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	const char *org_id = r->org_id;
	struct db *db = r->api->db;
	enum rc rc = quota_room(db, "SELECT (SELECT count(*) FROM volumes WHERE org_id = ?1) + (SELECT count(*) FROM snapshots WHERE org_id = ?1)",
				org_id, 1, r->api->config.tenant_volumes, "volumes", ret_f);

	if (!rc)
		rc = quota_storage(db, org_id, bytes, r->api->config.tenant_storage_gib, ret_f);
	if (rc)
		return rc;
	db_start(&q, db,
		 "SELECT 1 FROM volumes WHERE org_id = ?1 AND slug = ?2 AND deleted_ms IS NULL UNION ALL "
		 "SELECT 1 FROM snapshots WHERE org_id = ?1 AND slug = ?2 AND deleted_ms IS NULL");
	db_text(&q, org_id);
	db_text(&q, slug);
	rc = db_row(&q, ret_f);
	if (!rc)
		return fault_set(ret_f, RC_EXISTS, 0, "slug taken");
	return rc == RC_ABSENT ? RC_OK : rc;
}

static enum api_code insert_code(struct request *r, enum rc rc, const struct fault *f)
{
	if (rc == RC_DENIED)
		return API_STORAGE_QUOTA_EXCEEDED;
	return rc == RC_EXISTS ? API_SLUG_TAKEN : rc == RC_LIMIT ? API_VOLUME_QUOTA_EXCEEDED : api_fault(r, f);
}

static enum rc volume_insert(struct request *r, const struct volume_new *v, struct fault *ret_f)
{
	_cleanup_db_txn_ struct db_txn txn = { 0 };
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum rc rc = db_begin(&txn, r->api->db, ret_f);

	if (!rc)
		rc = may_insert(r, v->slug, (uint64_t)v->capacity, ret_f);
	if (rc)
		return rc;
	db_start(&q, r->api->db,
		 "INSERT INTO volumes (id, org_id, slug, region, capacity, bootable, base, base_slug, created_ms) "
		 "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)");
	db_text(&q, v->id);
	db_text(&q, r->org_id);
	db_text(&q, v->slug);
	db_text(&q, v->region);
	db_int(&q, v->capacity);
	db_int(&q, v->bootable);
	db_text(&q, v->base_id);
	db_text(&q, v->base_slug);
	db_int(&q, (int64_t)wall_ms());
	rc = db_run(&q, ret_f);
	return rc ? rc : db_commit(&txn, ret_f);
}

static enum rc row_drop(struct db *db, const char *sql, const char *id, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	db_start(&q, db, sql);
	db_text(&q, id);
	return db_run(&q, ret_f);
}

/* state: what it means if the broker has the volume in another state. */
static enum api_code storage_code(struct request *r, const struct fault *f, enum api_code state)
{
	/* What was asked is in order otherwise: it was checked before. */
	if (f->rc == RC_INVALID)
		return api_fail(r, API_INVALID_CAPACITY, "%s", f->text);
	if (f->rc == RC_STATE)
		return api_fail(r, state, "volumes: %s", f->text);
	return broker_code(r, f, f->rc == RC_ABSENT ? API_SNAPSHOT_NOT_FOUND : API_INTERNAL);
}

enum api_code volume_create(struct request *r)
{
	struct volume_new v = { 0 };
	struct fault f = { 0 };
	enum api_code code = volume_parse(r, &v);
	enum rc rc;

	if (code)
		return code;
	id_regional(v.id, "vol", v.region);
	rc = volume_insert(r, &v, &f);
	if (rc)
		return insert_code(r, rc, &f);
	if (broker_volume_make(r->api, v.id, (uint64_t)v.capacity, v.base, &f)) {
		code = storage_code(r, &f, API_NOT_SUPPORTED);
		row_drop(r->api->db, "DELETE FROM volumes WHERE id = ?", v.id, NULL);
		return code;
	}
	return kind_get(r, &volume_kind, v.id);
}

/* --- delete and snapshot ------------------------------------------------------------------------------------------ */

static enum api_code unused_check(struct request *r, const char *volume_id)
{
	struct fault f = { 0 };

	for (int tries = 0; tries < 2; tries++) {
		_cleanup_db_q_ struct db_q q = DB_Q_INIT;
		enum rc rc;

		db_start(&q, r->api->db, "SELECT 1 FROM sandbox_volumes WHERE volume_id = ?");
		db_text(&q, volume_id);
		rc = db_row(&q, &f);
		db_end(&q);
		if (rc)
			return rc == RC_ABSENT ? API_OK : api_fault(r, &f);
		/* Its sandbox may have ended unnoticed. */
		if (tries == 0 && sandboxes_reconcile(r->api, NULL))
			break;
	}
	return API_VOLUME_IN_USE;
}

/* RC_STATE: nothing was to be marked. */
static enum rc mark_deleted(struct request *r, const char *sql, const char *id, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum rc rc;

	db_start(&q, r->api->db, sql);
	db_int(&q, (int64_t)wall_ms());
	db_text(&q, id);
	rc = db_run(&q, ret_f);
	return !rc && !q.changes ? fault_set(ret_f, RC_STATE, 0, "nothing to delete") : rc;
}

/* Gone for requests at once; the storage goes a day later, so that an operator can bring it back. */
enum api_code volume_delete(struct request *r)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	char id[ID_MAX];
	struct fault f = { 0 };
	enum api_code code = kind_row(r, &volume_kind, r->args[0], &q);

	if (code)
		return code;
	snprintf(id, sizeof(id), "%s", db_col_text(&q, 1));
	db_end(&q);
	code = unused_check(r, id);
	if (code)
		return code;
	/* A create may have attached it since. */
	if (mark_deleted(r, "UPDATE volumes SET deleted_ms = ? WHERE id = ? AND deleted_ms IS NULL AND NOT EXISTS "
			    "(SELECT 1 FROM sandbox_volumes v WHERE v.volume_id = volumes.id)", id, &f))
		return f.rc == RC_STATE ? API_VOLUME_IN_USE : api_fault(r, &f);
	return reply_empty(r, 204);
}

enum api_code snapshot_delete(struct request *r)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	char id[ID_MAX];
	struct fault f = { 0 };
	enum api_code code = kind_row(r, &snapshot_kind, r->args[0], &q);

	if (code)
		return code;
	snprintf(id, sizeof(id), "%s", db_col_text(&q, 1));
	db_end(&q);
	if (mark_deleted(r, "UPDATE snapshots SET deleted_ms = ? WHERE id = ? AND deleted_ms IS NULL", id, &f) && f.rc != RC_STATE)
		return api_fault(r, &f);
	return reply_empty(r, 204);
}

struct origin { /* what a snapshot has of its volume */
	char id[ID_MAX], slug[HTTP_SEGMENT_MAX + 1], region[HTTP_SEGMENT_MAX + 1];
	int64_t bootable;
};

static enum rc snapshot_insert(struct request *r, const char *id, const char *slug, const struct origin *from, struct fault *ret_f)
{
	_cleanup_db_txn_ struct db_txn txn = { 0 };
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum rc rc = db_begin(&txn, r->api->db, ret_f);

	if (!rc)
		rc = may_insert(r, slug, 1, ret_f);
	if (rc)
		return rc;
	db_start(&q, r->api->db,
		 "INSERT INTO snapshots (id, org_id, slug, region, volume_id, volume_slug, bootable, created_ms) "
		 "VALUES (?, ?, ?, ?, ?, ?, ?, ?)");
	db_text(&q, id);
	db_text(&q, r->org_id);
	db_text(&q, slug);
	db_text(&q, from->region);
	db_text(&q, from->id);
	db_text(&q, from->slug);
	db_int(&q, from->bootable);
	db_int(&q, (int64_t)wall_ms());
	rc = db_run(&q, ret_f);
	return rc ? rc : db_commit(&txn, ret_f);
}

static enum api_code snapshot_make(struct request *r, const char *id, const char *volume_id)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	struct broker_volume stat = { 0 };
	struct fault f = { 0 };

	if (broker_volume_snapshot_make(r->api, volume_id, id, &stat, &f)) {
		enum api_code code = storage_code(r, &f, API_VOLUME_IN_USE);

		row_drop(r->api->db, "DELETE FROM snapshots WHERE id = ?", id, NULL);
		return code;
	}
	db_start(&q, r->api->db, "UPDATE snapshots SET allocated = ?, flattened = ? WHERE id = ?");
	db_int(&q, (int64_t)(stat.own_bytes & INT64_MAX));
	db_int(&q, (int64_t)(stat.used_bytes & INT64_MAX));
	db_text(&q, id);
	return db_run(&q, &f) ? api_fault(r, &f) : kind_get(r, &snapshot_kind, id);
}

enum api_code volume_snapshot(struct request *r)
{
	static const char *const keys[] = { "slug", CLIENT_KEYS, NULL };
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	struct json_object *body = NULL;
	const char *slug = NULL;
	char id[ID_MAX];
	struct origin from;
	struct fault f = { 0 };
	enum api_code code = kind_row(r, &volume_kind, r->args[0], &q);
	enum rc rc;

	if (!code)
		code = request_json(r, false, &body);
	if (code)
		return code;
	if (json_only_keys(body, keys, &f) || json_get_str(body, "slug", HTTP_SEGMENT_MAX, &slug, &f))
		return api_refuse(r, API_INVALID_REQUEST, &f);
	if (!slug || !slug_is_valid(slug))
		return API_INVALID_SLUG;
	snprintf(from.id, sizeof(from.id), "%s", db_col_text(&q, 1));
	snprintf(from.slug, sizeof(from.slug), "%s", db_col_text(&q, 2));
	snprintf(from.region, sizeof(from.region), "%s", db_col_text(&q, 3));
	from.bootable = db_col_int(&q, 5);
	db_end(&q);
	id_regional(id, "snp", from.region);
	rc = snapshot_insert(r, id, slug, &from, &f);
	if (rc)
		return insert_code(r, rc, &f);
	return snapshot_make(r, id, from.id);
}
