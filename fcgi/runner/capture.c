/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/runner/capture.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/hex.h"
#include "base/log.h"
#include "fcgi/runner/limits.h"
#include "fcgi/runner/server.h"

#include <inttypes.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <string.h>

#define FORM "1" /* changes when machines of apps are started differently */
#define PREFIX "rev-" /* of revisions */
#define SANDBOX_PREFIX "cap_" /* of sandboxes: the API takes and removes them, fcgi/sandbox_capture.h */
#define TAKEN_MS 600000       /* a row without its capture is a dead worker's by then */

enum rc capture_name(const char *revision, const struct seal_key *key, struct json_object *env, struct json_object *config,
		     char ret[BROKER_CAPTURE_MAX], struct fault *ret_f)
{
	struct json_object *all = json_object_new_array(), *argv = server_argv(config);
	unsigned char digest[EVP_MAX_MD_SIZE];
	unsigned int n = 0;
	const char *text;
	int at;

	json_object_array_add(all, json_object_new_string(FORM));
	json_object_array_add(all, json_object_get(env));
	json_object_array_add(all, json_object_get(config));
	json_object_array_add(all, argv);
	json_object_array_add(all, json_object_new_int(RUNNER_APP_MEMORY_MIB));
	text = json_object_to_json_string_ext(all, JSON_C_TO_STRING_PLAIN);
	if (!text || !HMAC(EVP_sha256(), key->bytes, sizeof(key->bytes), (const unsigned char *)text, strlen(text), digest, &n)) {
		json_object_put(all);
		return fault_set(ret_f, RC_NOMEM, 0, "name of a capture");
	}
	json_object_put(all);
	at = snprintf(ret, BROKER_CAPTURE_MAX, PREFIX "%.20s-", revision);
	hex_of(ret + at, digest, 10);
	return RC_OK;
}

enum rc capture_find(struct db *db, const char *name, uint64_t *ret_log_seq, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum rc rc;

	db_start(&q, db, "SELECT log_seq FROM captures WHERE name = ?");
	db_text(&q, name);
	rc = db_row(&q, ret_f);
	if (!rc)
		*ret_log_seq = (uint64_t)db_col_int(&q, 0);
	return rc;
}

static enum rc run_text(struct db *db, const char *sql, const char *a, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	db_start(&q, db, sql);
	db_text(&q, a);
	return db_run(&q, ret_f);
}

static void drop_others(struct db *db, struct link *l, const char *revision, const char *name)
{
	char old[8][BROKER_CAPTURE_MAX];
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	size_t n = 0;

	db_start(&q, db, "SELECT name FROM captures WHERE revision_id = ? AND name != ?");
	db_text(&q, revision);
	db_text(&q, name);
	while (n < ARRAY_SIZE(old) && !db_row(&q, NULL))
		snprintf(old[n++], sizeof(old[0]), "%s", db_col_text(&q, 0));
	db_end(&q);
	for (size_t i = 0; i < n; i++)
		capture_drop(db, l, old[i]);
}

enum rc capture_take(const struct config *c, struct db *db, struct link *l, const char *revision, const char *vm,
		     const char *name, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	struct broker_vm_captured done = { 0 };
	struct server_state s;
	enum rc rc;

	if (!c->captures_max_mib)
		return RC_OK;
	/* Lines after this one that are in the capture are logged twice rather than never. */
	rc = server_stat(l, vm, &s, ret_f);
	if (!rc)
		rc = link_capture(l, vm, name, &done, ret_f);
	if (rc)
		return rc;
	log_info("captured name=%s instance=%s pause_us=%u bytes=%" PRIu64, name, vm, done.pause_us, done.bytes);
	db_start(&q, db, "INSERT OR REPLACE INTO captures (name, revision_id, memory_mib, log_seq, created_ms) VALUES (?, ?, ?, ?, ?)");
	db_text(&q, name);
	db_text(&q, revision);
	db_int(&q, RUNNER_APP_MEMORY_MIB);
	db_int(&q, (int64_t)s.seq);
	db_int(&q, (int64_t)wall_ms());
	rc = db_run(&q, ret_f);
	if (!rc)
		drop_others(db, l, revision, name);
	return rc;
}

void capture_drop(struct db *db, struct link *l, const char *name)
{
	struct fault f;

	if (run_text(db, "DELETE FROM captures WHERE name = ?", name, &f) || link_capture_delete(l, name, &f))
		log_fault(LOG_LEVEL_WARN, &f, "capture %s", name);
}

struct kept {
	struct broker_capture_row *rows;
	const char *prefix;
	size_t n;
};

static void on_capture(void *arg, const struct broker_capture_row *row)
{
	struct kept *k = arg;
	struct broker_capture_row *more;

	if (strncmp(row->name, k->prefix, strlen(k->prefix)))
		return;
	more = reallocarray(k->rows, k->n + 1, sizeof(*row));
	if (!more)
		return;
	k->rows = more;
	k->rows[k->n++] = *row;
}

static uint64_t used_ms(const struct broker_capture_row *r)
{
	return MAX_OF(r->last_used_ms, r->created_ms);
}

static int newest_first(const void *a, const void *b)
{
	uint64_t x = used_ms(a), y = used_ms(b);

	return x < y ? 1 : x > y ? -1 : 0;
}

static bool is_wanted(struct db *db, const char *name)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	db_start(&q, db, "SELECT 1 FROM captures c JOIN revisions r ON r.id = c.revision_id JOIN apps a ON a.id = r.app_id "
			 "WHERE c.name = ? AND r.deleted_ms IS NULL AND a.deleted_ms IS NULL");
	db_text(&q, name);
	return db_row(&q, NULL) != RC_ABSENT;
}

void capture_collect(const struct config *c, struct db *db, struct link *l)
{
	struct kept k = { .prefix = PREFIX };
	uint64_t total = 0;

	if (link_captures(l, on_capture, &k, NULL)) {
		free(k.rows);
		return;
	}
	if (k.n)
		qsort(k.rows, k.n, sizeof(*k.rows), newest_first);
	for (size_t i = 0; i < k.n; i++) {
		/* The row of one that is being taken is written after it is there. */
		bool young = wall_ms() - k.rows[i].created_ms < RUNNER_CALL_MS;

		total += k.rows[i].bytes;
		if ((young || is_wanted(db, k.rows[i].name)) && total <= c->captures_max_mib << 20)
			continue;
		log_info("capture removed name=%s bytes=%" PRIu64, k.rows[i].name, k.rows[i].bytes);
		total -= k.rows[i].bytes;
		capture_drop(db, l, k.rows[i].name);
	}
	free(k.rows);
}

static bool sandbox_capture_is_known(struct db *db, const char *name)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	db_start(&q, db, "SELECT 1 FROM sandbox_captures WHERE id = ?");
	db_text(&q, name);
	return db_row(&q, NULL) != RC_ABSENT;
}

void capture_collect_sandboxes(struct db *db, struct link *l)
{
	struct kept k = { .prefix = SANDBOX_PREFIX };
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	struct fault f;

	db_start(&q, db, "DELETE FROM sandbox_captures WHERE bytes = 0 AND created_ms < ?");
	db_int(&q, (int64_t)(wall_ms() - TAKEN_MS));
	if (db_run(&q, &f))
		log_fault(LOG_LEVEL_WARN, &f, "captures of sandboxes");
	if (!link_captures(l, on_capture, &k, NULL))
		for (size_t i = 0; i < k.n; i++) {
			if (sandbox_capture_is_known(db, k.rows[i].name))
				continue;
			if (link_capture_delete(l, k.rows[i].name, &f))
				log_fault(LOG_LEVEL_WARN, &f, "capture %s", k.rows[i].name);
			else
				log_info("capture removed, nobody has it name=%s", k.rows[i].name);
		}
	free(k.rows);
}
