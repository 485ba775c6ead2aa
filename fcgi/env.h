/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Environment variables of apps and layers. Values of secrets are sealed in the database and never answered.
 *
 * What a process of a revision gets in a context ("production", "preview", "build"): the app's layers (or the revision's own
 * list), where an earlier layer wins over a later one and a layer over what it includes; then the app's variables; then
 * the revision's; each of the later overriding.
 */
#ifndef NB_FCGI_ENV_H
#define NB_FCGI_ENV_H

#include "fcgi/db.h"
#include "fcgi/json.h"
#include "fcgi/seal.h"

#include <stdbool.h>

enum env_owner { ENV_APP, ENV_LAYER };

/* A list of EnvVarInit. RC_INVALID with a text for the client. Only checks. */
enum rc env_check_init(struct json_object *list, struct fault *ret_f);
/* A list of {key, value}: a revision's own. */
enum rc env_check_plain(struct json_object *list, struct fault *ret_f);
/* Inside the caller's transaction. list as env_check_init() passed it. */
enum rc env_insert(struct db *db, const struct seal_key *key, enum env_owner owner, const char *owner_id,
		   struct json_object *list, struct fault *ret_f);
/* A list of EnvVarUpdate: by id, else by key; RC_ABSENT: no such variable. Checks too. */
enum rc env_update(struct db *db, const struct seal_key *key, enum env_owner owner, const char *owner_id,
		   struct json_object *list, struct fault *ret_f);
/* As clients see it: [{id, key, value?, secret, contexts}]. */
enum rc env_list(struct db *db, enum env_owner owner, const char *owner_id, struct json_object **ret,
		 struct fault *ret_f);
/* {NAME: value} for a process of this revision, secrets opened. RC_LIMIT: more than ENV_EFFECTIVE_MAX bytes, replaced ones counted. */
enum rc env_effective(struct db *db, const struct seal_key *key, const char *revision_id, const char *context,
		      struct json_object **ret, struct fault *ret_f);

#endif
