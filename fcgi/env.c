/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/env.h"

#include "fcgi/ids.h"
#include "fcgi/limits.h"

#include <stdio.h>
#include <string.h>

static const char *const init_keys[] = { "key", "value", "secret", "contexts", NULL };
static const char *const plain_keys[] = { "key", "value", NULL };
static const char *const update_keys[] = { "id", "key", "value", "secret", "contexts", "delete", NULL };

#define CONTEXTS_MAX 8
#define CONTEXT_MAX 32

static const char *column(enum env_owner owner)
{
	return owner == ENV_APP ? "app_id" : "layer_id";
}

static enum rc contexts_check(struct json_object *o, struct fault *ret_f)
{
	struct json_object *v = json_get(o, "contexts"), *list = NULL;
	const char *s;
	enum rc rc;

	if (!v || (json_object_is_type(v, json_type_string) && !strcmp(json_object_get_string(v), "all")))
		return RC_OK;
	rc = json_get_array(o, "contexts", CONTEXTS_MAX, &list, ret_f);
	if (rc)
		return fault_set(ret_f, RC_INVALID, 0, "contexts must be \"all\" or a list of names");
	for (size_t i = 0; !rc && i < json_object_array_length(list); i++)
		rc = json_as_str(json_object_array_get_idx(list, i), "contexts", CONTEXT_MAX, &s, ret_f);
	return rc;
}

/* One variable's key, value, flags; key and value may be absent in an update. */
static enum rc fields_check(struct json_object *o, const char *const *keys, const char **ret_key,
			    const char **ret_value, struct fault *ret_f)
{
	bool flag = false;
	enum rc rc;

	if (!json_object_is_type(o, json_type_object))
		return fault_set(ret_f, RC_INVALID, 0, "env_vars must be a list of objects");
	rc = json_only_keys(o, keys, ret_f);
	if (!rc)
		rc = json_get_str(o, "key", ENV_NAME_MAX, ret_key, ret_f);
	if (!rc)
		rc = json_get_str(o, "value", ENV_VALUE_MAX, ret_value, ret_f);
	if (!rc)
		rc = json_get_bool(o, "secret", &flag, ret_f);
	if (!rc)
		rc = contexts_check(o, ret_f);
	if (!rc && *ret_key && !env_name_is_valid(*ret_key))
		rc = fault_set(ret_f, RC_INVALID, 0, "env_vars: '%s' is no name of a variable", shown(*ret_key));
	return rc;
}

static enum rc list_check(struct json_object *list, const char *const *keys, struct fault *ret_f)
{
	size_t total = 0;

	for (size_t i = 0; i < json_object_array_length(list); i++) {
		const char *key = NULL, *value = NULL;
		struct json_object *o = json_object_array_get_idx(list, i);
		enum rc rc = fields_check(o, keys, &key, &value, ret_f);

		if (rc)
			return rc;
		if (!key || !value)
			return fault_set(ret_f, RC_INVALID, 0, "env_vars need a key and a value each");
		total += strlen(key) + strlen(value) + 2;
		if (total > ENV_TOTAL_MAX)
			return fault_set(ret_f, RC_INVALID, 0, "env_vars are larger than %d bytes together", ENV_TOTAL_MAX);
		/* The same name may have another value in another context. */
		for (size_t k = 0; k < i && !json_get(o, "contexts"); k++)
			if (!strcmp(key, json_object_get_string(json_get(json_object_array_get_idx(list, k), "key"))))
				return fault_set(ret_f, RC_INVALID, 0, "env_vars names %s twice", key);
	}
	return RC_OK;
}

enum rc env_check_init(struct json_object *list, struct fault *ret_f)
{
	return list_check(list, init_keys, ret_f);
}

enum rc env_check_plain(struct json_object *list, struct fault *ret_f)
{
	return list_check(list, plain_keys, ret_f);
}

/* What is there after a change. A sealed value is base64 of itself and 28 bytes, and up to two of padding, which count for nothing. */
#define COUNT_SQL                                                                                                       \
	"SELECT count(*), ifnull(sum(length(CAST(key AS BLOB)) + 2 + CASE WHEN secret THEN length(value) / 4 * 3 - 30 " \
	"ELSE length(CAST(value AS BLOB)) END), 0) FROM env_vars WHERE "

static enum rc count_check(struct db *db, enum env_owner owner, const char *owner_id, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum rc rc;

	db_start(&q, db, owner == ENV_APP ? COUNT_SQL "app_id = ?" : COUNT_SQL "layer_id = ?");
	db_text(&q, owner_id);
	rc = db_row(&q, ret_f);
	if (!rc && db_col_int(&q, 0) > ENV_VARS_MAX)
		return fault_set(ret_f, RC_INVALID, 0, "at most %d env_vars", ENV_VARS_MAX);
	if (!rc && db_col_int(&q, 1) > ENV_TOTAL_MAX)
		return fault_set(ret_f, RC_INVALID, 0, "env_vars are larger than %d bytes together", ENV_TOTAL_MAX);
	return rc;
}

static enum rc insert_one(struct db *db, const struct seal_key *key, enum env_owner owner, const char *owner_id,
			  struct json_object *o, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	_cleanup_free_ char *sealed = NULL;
	const char *value = json_object_get_string(json_get(o, "value"));
	struct json_object *contexts = json_get(o, "contexts");
	bool secret = false;
	char id[ID_MAX];
	enum rc rc = json_get_bool(o, "secret", &secret, ret_f);

	id_plain(id, "env");
	if (!rc && secret)
		rc = seal(key, value, id, &sealed, ret_f);
	if (rc)
		return rc;
	db_start(&q, db,
		 owner == ENV_APP ? "INSERT INTO env_vars (id, app_id, key, value, secret, contexts, position) VALUES (?1, ?2, "
				    "?3, ?4, ?5, ?6, (SELECT ifnull(max(position), 0) + 1 FROM env_vars WHERE app_id = ?2))" :
				    "INSERT INTO env_vars (id, layer_id, key, value, secret, contexts, position) VALUES (?1, ?2, "
				    "?3, ?4, ?5, ?6, (SELECT ifnull(max(position), 0) + 1 FROM env_vars WHERE layer_id = ?2))");
	db_text(&q, id);
	db_text(&q, owner_id);
	db_text(&q, json_object_get_string(json_get(o, "key")));
	db_text(&q, secret ? sealed : value);
	db_int(&q, secret);
	db_text(&q, contexts ? json_text(contexts) : "\"all\"");
	return db_run(&q, ret_f);
}

enum rc env_insert(struct db *db, const struct seal_key *key, enum env_owner owner, const char *owner_id,
		   struct json_object *list, struct fault *ret_f)
{
	enum rc rc = RC_OK;

	for (size_t i = 0; !rc && i < json_object_array_length(list); i++)
		rc = insert_one(db, key, owner, owner_id, json_object_array_get_idx(list, i), ret_f);
	return rc ? rc : count_check(db, owner, owner_id, ret_f);
}

/* The stored variable that an update names. */
struct found {
	char id[ID_MAX];
	char *value; /* as stored */
	bool secret;
};

static void found_free(struct found *f)
{
	free(f->value);
}

static enum rc find(struct db *db, enum env_owner owner, const char *owner_id, const char *by, const char *what,
		    struct found *ret, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	char sql[160];
	enum rc rc;

	snprintf(sql, sizeof(sql), "SELECT id, value, secret FROM env_vars WHERE %s = ? AND %s = ? LIMIT 1", column(owner),
		 by);
	db_start(&q, db, sql);
	db_text(&q, owner_id);
	db_text(&q, what);
	rc = db_row(&q, ret_f);
	if (rc)
		return rc;
	snprintf(ret->id, sizeof(ret->id), "%s", db_col_text(&q, 0));
	ret->value = strdup(db_col_text(&q, 1));
	ret->secret = db_col_int(&q, 2);
	return ret->value ? RC_OK : fault_set(ret_f, RC_NOMEM, 0, "environment variable");
}

static enum rc delete_one(struct db *db, const char *id, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	db_start(&q, db, "DELETE FROM env_vars WHERE id = ?");
	db_text(&q, id);
	return db_run(&q, ret_f);
}

/* The plain value after the update: a new one, or the old one opened. */
static enum rc value_after(const struct seal_key *key, const struct found *old, const char *new_value, char **ret,
			   struct fault *ret_f)
{
	if (!new_value && old->secret)
		return seal_open(key, old->value, old->id, ret, ret_f);
	*ret = strdup(new_value ? new_value : old->value);
	return *ret ? RC_OK : fault_set(ret_f, RC_NOMEM, 0, "environment variable");
}

static enum rc change_one(struct db *db, const struct seal_key *key, const struct found *old, struct json_object *o,
			  const char *name, const char *value, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	_cleanup_free_ char *plain = NULL, *sealed = NULL;
	struct json_object *contexts = json_get(o, "contexts");
	bool secret = old->secret;
	enum rc rc = json_get_bool(o, "secret", &secret, ret_f);

	/* Unsealing by a change of the flag would show what was hidden. */
	if (!rc && old->secret && !secret && !value)
		rc = fault_set(ret_f, RC_INVALID, 0, "a secret becomes public only with a new value");
	if (!rc)
		rc = value_after(key, old, value, &plain, ret_f);
	if (!rc && secret)
		rc = seal(key, plain, old->id, &sealed, ret_f);
	if (rc)
		return rc;
	db_start(&q, db,
		 "UPDATE env_vars SET key = ifnull(?, key), value = ?, secret = ?, contexts = ifnull(?, contexts) WHERE id = ?");
	db_text(&q, name);
	db_text(&q, secret ? sealed : plain);
	db_int(&q, secret);
	db_text(&q, contexts ? json_text(contexts) : NULL);
	db_text(&q, old->id);
	return db_run(&q, ret_f);
}

static enum rc update_one(struct db *db, const struct seal_key *key, enum env_owner owner, const char *owner_id,
			  struct json_object *o, struct fault *ret_f)
{
	_cleanup_(found_free) struct found old = { 0 };
	const char *name = NULL, *value = NULL, *id = NULL;
	bool gone = false;
	enum rc rc = fields_check(o, update_keys, &name, &value, ret_f);

	if (!rc)
		rc = json_get_str(o, "id", ID_MAX, &id, ret_f);
	if (!rc)
		rc = json_get_bool(o, "delete", &gone, ret_f);
	if (rc)
		return rc;
	if (!id && !name)
		return fault_set(ret_f, RC_INVALID, 0, "env_vars: an update needs an id or a key");
	rc = find(db, owner, owner_id, id ? "id" : "key", id ? id : name, &old, ret_f);
	if (rc == RC_ABSENT && !id && !gone) {
		if (!value)
			return fault_set(ret_f, RC_INVALID, 0, "env_vars: %s is new and needs a value", name);
		return insert_one(db, key, owner, owner_id, o, ret_f);
	}
	if (rc == RC_ABSENT)
		return fault_set(ret_f, rc, 0, "no such environment variable");
	if (rc)
		return rc;
	return gone ? delete_one(db, old.id, ret_f) : change_one(db, key, &old, o, name, value, ret_f);
}

enum rc env_update(struct db *db, const struct seal_key *key, enum env_owner owner, const char *owner_id,
		   struct json_object *list, struct fault *ret_f)
{
	enum rc rc = RC_OK;

	for (size_t i = 0; !rc && i < json_object_array_length(list); i++)
		rc = update_one(db, key, owner, owner_id, json_object_array_get_idx(list, i), ret_f);
	return rc ? rc : count_check(db, owner, owner_id, ret_f);
}

enum rc env_list(struct db *db, enum env_owner owner, const char *owner_id, struct json_object **ret,
		 struct fault *ret_f)
{
	_cleanup_json_ struct json_object *list = json_object_new_array();
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum rc rc;

	db_start(&q, db,
		 owner == ENV_APP ? "SELECT id, key, value, secret, contexts FROM env_vars WHERE app_id = ? ORDER BY position" :
				    "SELECT id, key, value, secret, contexts FROM env_vars WHERE layer_id = ? ORDER BY position");
	db_text(&q, owner_id);
	while (!(rc = db_row(&q, ret_f))) {
		struct json_object *o = json_object_new_object();
		bool secret = db_col_int(&q, 3);

		json_add_str(o, "id", db_col_text(&q, 0));
		json_add_str(o, "key", db_col_text(&q, 1));
		if (!secret)
			json_add_str(o, "value", db_col_text(&q, 2));
		json_add_bool(o, "secret", secret);
		json_add(o, "contexts", json_stored(db_col_text(&q, 4)));
		json_object_array_add(list, o);
	}
	if (rc != RC_ABSENT)
		return rc;
	*ret = take_ptr(list);
	return RC_OK;
}
