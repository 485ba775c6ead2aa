/* SPDX-License-Identifier: Apache-2.0 */
/* What the handlers of apps, layers and revisions share. */
#ifndef NB_FCGI_APPS_H
#define NB_FCGI_APPS_H

#include "fcgi/request.h"

struct app_found {
	char id[ID_MAX], slug[SLUG_MAX + 1];
};

/* By id or slug. API_APP_NOT_FOUND for none and another's alike. */
enum api_code app_find(struct request *r, const char *id_or_slug, struct app_found *ret);

struct layer_found {
	char id[ID_MAX], slug[SLUG_MAX + 1];
};
enum api_code layer_find(struct request *r, const char *id_or_slug, struct layer_found *ret);
/* A list of ids and slugs as [{id, slug}], without repeats. */
enum api_code layers_resolve(struct request *r, struct json_object *names, struct json_object **ret);
/* Rows of app_layers or layer_layers as [{id, slug}]. */
enum rc layer_refs(struct db *db, const char *sql, const char *owner_id, struct json_object **ret,
		   struct fault *ret_f);
#define APP_LAYERS_SQL \
	"SELECT l.id, l.slug FROM app_layers x JOIN layers l ON l.id = x.layer_id WHERE x.app_id = ? ORDER BY x.position"
#define LAYER_LAYERS_SQL                                                                                         \
	"SELECT l.id, l.slug FROM layer_layers x JOIN layers l ON l.id = x.included_id WHERE x.layer_id = ? " \
	"ORDER BY x.position"
/* Replaces an owner's references; refs as layers_resolve() gave them. Inside the caller's transaction. */
enum rc layer_refs_set(struct db *db, bool of_app, const char *owner_id, struct json_object *refs,
		       struct fault *ret_f);

/* "<label>.<domain>[:port]" as clients are given it. */
void domain_shown(const struct config *config, const char *host, char *out, size_t size);

#endif
