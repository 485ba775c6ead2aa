/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/auth.h"

#include "base/fd.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#define TOKEN_RANDOM 40 /* characters of ID_ALPHABET: 200 bits */
#define DAY_MS 86400000

static const char *bearer(const struct request *r)
{
	const char *h = request_param(r, "HTTP_AUTHORIZATION");
	size_t n;

	if (!h || strncasecmp(h, "Bearer ", 7) != 0)
		return NULL;
	h += 7;
	n = strlen(h);
	return n && n < TOKEN_MAX ? h : NULL;
}

static enum api_code token_find(struct request *r, const char *token, bool *ret_org_token, int64_t *ret_day)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	uint8_t hash[SHA256_BYTES];
	struct fault f = { 0 };
	enum rc rc;

	sha256(token, strlen(token), hash);
	db_start(&q, r->api->db, "SELECT id, kind, last_used_day FROM tokens WHERE hash = ? AND revoked_ms IS NULL");
	db_blob(&q, hash, sizeof(hash));
	rc = db_row(&q, &f);
	if (rc == RC_ABSENT)
		return API_INVALID_TOKEN;
	if (rc)
		return api_fault(r, &f);
	snprintf(r->token_id, sizeof(r->token_id), "%s", db_col_text(&q, 0));
	*ret_org_token = !strcmp(db_col_text(&q, 1), "org");
	*ret_day = db_col_int(&q, 2);
	return API_OK;
}

static enum api_code org_find(struct request *r, const char *wanted)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	struct fault f = { 0 };
	enum rc rc;

	db_start(&q, r->api->db,
		 "SELECT o.id, o.name FROM token_orgs t JOIN organizations o ON o.id = t.org_id "
		 "WHERE t.token_id = ?1 AND (?2 IS NULL OR o.name = ?2 OR o.id = ?2) LIMIT 1");
	db_text(&q, r->token_id);
	db_text(&q, wanted);
	rc = db_row(&q, &f);
	if (rc == RC_ABSENT)
		return API_ORG_NOT_FOUND;
	if (rc)
		return api_fault(r, &f);
	snprintf(r->org_id, sizeof(r->org_id), "%s", db_col_text(&q, 0));
	snprintf(r->org_name, sizeof(r->org_name), "%s", db_col_text(&q, 1));
	return API_OK;
}

/* Best effort: a token's day of last use is for people, not for decisions. */
static void token_touch(struct request *r, int64_t day)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	db_start(&q, r->api->db, "UPDATE tokens SET last_used_day = ? WHERE id = ?");
	db_int(&q, day);
	db_text(&q, r->token_id);
	db_run(&q, NULL);
}

enum api_code auth_check(struct request *r)
{
	const char *token = bearer(r), *org = request_param(r, "HTTP_X_DENO_ORG");
	int64_t last_day = 0, day = (int64_t)wall_ms() / DAY_MS;
	bool org_token = false;
	enum api_code code;

	if (!token)
		return API_INVALID_TOKEN;
	if (org && (!*org || strlen(org) > 64))
		org = *org ? "?" : NULL;
	code = token_find(r, token, &org_token, &last_day);
	if (code)
		return code;
	if (!org_token && !org)
		return API_MISSING_ORG;
	code = org_find(r, org);
	if (!code && day != last_day)
		token_touch(r, day);
	return code;
}

enum rc org_create(struct db *db, const char *name, char ret_id[ID_MAX], struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum rc rc;

	if (!slug_is_valid(name))
		return fault_set(ret_f, RC_INVALID, 0, "%s", api_code_text(API_INVALID_SLUG));
	id_plain(ret_id, "org");
	db_start(&q, db, "INSERT INTO organizations (id, name, created_ms) VALUES (?, ?, ?)");
	db_text(&q, ret_id);
	db_text(&q, name);
	db_int(&q, (int64_t)wall_ms());
	rc = db_run(&q, ret_f);
	return rc == RC_EXISTS ? fault_set(ret_f, rc, 0, "organization '%s' exists", name) : rc;
}

static enum rc token_add_org(struct db *db, const char *token_id, const char *org, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum rc rc;

	db_start(&q, db,
		 "INSERT OR IGNORE INTO token_orgs (token_id, org_id) SELECT ?, id FROM organizations WHERE name = ?");
	db_text(&q, token_id);
	db_text(&q, org);
	rc = db_run(&q, ret_f);
	if (!rc && !q.changes)
		return fault_set(ret_f, RC_ABSENT, 0, "no organization '%s'", shown(org));
	return rc;
}

enum rc token_create(struct db *db, bool personal, const char *const *org_names, size_t n_orgs, const char *name,
		     char out[TOKEN_MAX], char ret_id[ID_MAX], struct fault *ret_f)
{
	_cleanup_db_txn_ struct db_txn txn = { 0 };
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	const char *prefix = personal ? TOKEN_PERSONAL_PREFIX : TOKEN_ORG_PREFIX;
	uint8_t hash[SHA256_BYTES];
	enum rc rc;

	if (!n_orgs || (!personal && n_orgs != 1))
		return fault_set(ret_f, RC_INVALID, 0, "an organization token belongs to exactly one organization");
	strcpy(out, prefix);
	id_random(out + strlen(prefix), TOKEN_RANDOM);
	sha256(out, strlen(out), hash);
	id_plain(ret_id, "tok");
	rc = db_begin(&txn, db, ret_f);
	if (rc)
		return rc;
	db_start(&q, db, "INSERT INTO tokens (id, hash, kind, name, created_ms) VALUES (?, ?, ?, ?, ?)");
	db_text(&q, ret_id);
	db_blob(&q, hash, sizeof(hash));
	db_text(&q, personal ? "personal" : "org");
	db_text(&q, name ? name : "");
	db_int(&q, (int64_t)wall_ms());
	rc = db_run(&q, ret_f);
	for (size_t i = 0; !rc && i < n_orgs; i++)
		rc = token_add_org(db, ret_id, org_names[i], ret_f);
	return rc ? rc : db_commit(&txn, ret_f);
}

enum rc token_revoke(struct db *db, const char *id, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum rc rc;

	db_start(&q, db, "UPDATE tokens SET revoked_ms = ? WHERE id = ? AND revoked_ms IS NULL");
	db_int(&q, (int64_t)wall_ms());
	db_text(&q, id);
	rc = db_run(&q, ret_f);
	return !rc && !q.changes ? fault_set(ret_f, RC_ABSENT, 0, "no such token in use") : rc;
}
