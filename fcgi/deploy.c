/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A revision from a sandbox's directory or from files in the request. The tree is checked and packed by fcgi/deploy before
 * anything is recorded; a failure leaves no row, and a bundle without a row is collected by the runner.
 */
#include "base/fd.h"
#include "base/log.h"
#include "fcgi/app_config.h"
#include "fcgi/apps.h"
#include "fcgi/deploy_tree.h"
#include "fcgi/env.h"
#include "fcgi/guest_test.h"
#include "fcgi/handlers.h"
#include "fcgi/peers.h"
#include "fcgi/quota.h"
#include "fcgi/revision_json.h"
#include "fcgi/revisions.h"
#include "fcgi/sandboxes.h"

#include <stdio.h>
#include <string.h>

#define HOME "/home/app"

struct deploy {
	struct app_found app;
	struct json_object *config, *layers; /* owned */
	struct json_object *labels, *env_vars;
	bool production, preview;
	struct deploy_tree tree;
};

static void deploy_free(struct deploy *d)
{
	json_object_put(d->config);
	json_object_put(d->layers);
}

static enum api_code revision_make(struct request *r, struct deploy *d, char id[REVISION_ID_CHARS + 1])
{
	struct revision_new n = {
		.app_id = d->app.id,
		.app_slug = d->app.slug,
		.domain = r->api->config.domain,
		.labels = d->labels ? json_text(d->labels) : "{}",
		.layers = json_text(d->layers),
		.env_vars = d->env_vars ? json_text(d->env_vars) : "[]",
		.config = json_text(d->config),
		.production = d->production,
		.preview = d->preview,
		.names_max = r->api->config.tenant_names,
		.bundle = d->tree.sha256,
		.bundle_bytes = d->tree.bytes,
	};
	struct fault f = { 0 };

	if (revision_create(r->api->db, &n, r->api->logs_fd, id, &f))
		return f.rc == RC_LIMIT ? api_refuse(r, API_NAME_QUOTA_EXCEEDED, &f) : api_fault(r, &f);
	runner_kick(r->api);
	return API_OK;
}

static enum api_code room_check(struct request *r)
{
	struct fault f = { 0 };
	enum rc rc = quota_trees(r->api->db, r->org_id, r->api->config.tenant_storage_gib, &f);

	return rc == RC_DENIED ? api_refuse(r, API_STORAGE_QUOTA_EXCEEDED, &f) : rc ? api_fault(r, &f) : API_OK;
}

/* The app's own configuration and layers are what a deployment does not say itself. */
static enum api_code inherit(struct request *r, struct deploy *d)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	_cleanup_json_ struct json_object *app = NULL, *own = take_ptr(d->config);
	struct fault f = { 0 };
	enum rc rc;

	db_start(&q, r->api->db, "SELECT config FROM apps WHERE id = ?");
	db_text(&q, d->app.id);
	rc = db_row(&q, &f);
	if (!rc) {
		app = json_stored(db_col_text(&q, 0));
		d->config = app_config_merge(app, own);
	}
	if (!rc && !d->layers)
		rc = layer_refs(r->api->db, APP_LAYERS_SQL, d->app.id, &d->layers, &f);
	return rc ? api_fault(r, &f) : d->config ? API_OK : API_BUSY;
}

/* --- from a sandbox ---------------------------------------------------------------------------------------------- */

static const char *const sandbox_keys[] = { "app",  "entrypoint",      "args",	       "production",   "preview",	 "path",
					    "mode", "frameworkPreset", "installCommand", "buildCommand", "buildDirectory", NULL };

/* A relative path is the home directory's. */
static enum api_code path_get(struct request *r, struct json_object *body, char *out, size_t size)
{
	const char *path = HOME;
	struct fault f = { 0 };
	size_t n;

	if (json_get_str(body, "path", PATH_IN_GUEST_MAX, &path, &f))
		return api_refuse(r, API_INVALID_PATH, &f);
	while (!strncmp(path, "./", 2))
		path += 2;
	if (!*path || !strcmp(path, "."))
		path = HOME;
	snprintf(out, size, "%s%s%s", *path == '/' ? "" : HOME, *path == '/' ? "" : "/", path);
	n = strlen(out);
	while (n > 1 && out[n - 1] == '/')
		out[--n] = '\0';
	if (n == 1 || !path_is_clean(out, PATH_IN_GUEST_MAX + sizeof(HOME)))
		return api_fail(r, API_INVALID_PATH, "path must name a directory, without . and .. in it");
	return API_OK;
}

static enum api_code sandbox_body(struct request *r, struct deploy *d, char *path, size_t size)
{
	struct json_object *body = NULL;
	const char *app = NULL;
	struct fault f = { 0 };
	enum api_code code = request_json(r, false, &body);

	if (code)
		return code;
	d->production = true;
	if (json_only_keys(body, sandbox_keys, &f) || json_get_str(body, "app", HTTP_SEGMENT_MAX, &app, &f) ||
	    json_get_bool(body, "production", &d->production, &f) || json_get_bool(body, "preview", &d->preview, &f) ||
	    app_config_of_sandbox_deploy(body, &d->config, &f))
		return api_refuse(r, API_INVALID_REQUEST, &f);
	code = app ? app_find(r, app, &d->app) : API_APP_NOT_FOUND;
	return code ? code : path_get(r, body, path, size);
}

static enum api_code tree_code(struct request *r, const struct fault *f)
{
	switch (f->rc) {
	case RC_LIMIT:
		return api_refuse(r, API_TREE_TOO_LARGE, f);
	case RC_INVALID:
	case RC_DENIED:
	case RC_PROTO:
	case RC_GUEST:
		return api_refuse(r, API_INVALID_TREE, f);
	case RC_TIMEOUT:
	case RC_CLOSED:
		return api_fail(r, API_SANDBOX_UNREACHABLE, "the sandbox did not deliver the directory: %s", f->text);
	default:
		return api_fault(r, f);
	}
}

static enum api_code tree_fetch(struct request *r, const char *sandbox_id, const char *path, struct deploy *d)
{
	_cleanup_json_ struct json_object *line = json_object_new_object();
	struct json_object *exclude = json_object_new_array();
	_cleanup_free_ char *text = NULL;
	_cleanup_fd_ int fd = -1;
	struct fault f = { 0 };
	enum rc rc;

	json_add_str(line, "service", "tar-out");
	json_add_str(line, "path", path);
	/* What tools keep for themselves in a home directory is no part of a program (and links to the machine's own files). */
	json_object_array_add(exclude, json_object_new_string(".cache"));
	json_add(line, "exclude", exclude);
	if (!line || asprintf(&text, "%s\n", json_text(line)) < 0) {
		text = NULL;
		return API_BUSY;
	}
	rc = broker_service(r->api, sandbox_id, text, &fd, NULL, &f);
	if (rc == RC_ABSENT)
		return sandbox_is_gone(r, sandbox_id);
	if (rc == RC_GUEST)
		return api_refuse(r, API_INVALID_TREE, &f);
	if (rc)
		return broker_code(r, &f, API_SANDBOX_UNREACHABLE);
	rc = deploy_tree_of_tar(r->api->bundles_fd, fd, &d->tree, &f);
	return rc ? tree_code(r, &f) : API_OK;
}

/* What the revision will run, unless a build makes it first. */
static const char *entrypoint_of(struct json_object *config)
{
	struct json_object *runtime = json_get(config, "runtime");
	struct json_object *type = runtime ? json_get(runtime, "type") : NULL;
	struct json_object *entrypoint = runtime ? json_get(runtime, "entrypoint") : NULL;
	struct json_object *framework = json_get(config, "framework"), *cwd = runtime ? json_get(runtime, "cwd") : NULL;

	if (json_get(config, "install") || json_get(config, "build") || !entrypoint ||
	    (framework && *json_object_get_string(framework)) || (cwd && *json_object_get_string(cwd)) ||
	    (type && strcmp(json_object_get_string(type), "dynamic") != 0))
		return NULL;
	return json_object_get_string(entrypoint);
}

static enum api_code entrypoint_check(struct request *r, const char *sandbox_id, const char *dir, struct deploy *d)
{
	const char *entrypoint = entrypoint_of(d->config);
	_cleanup_free_ char *path = NULL;
	struct fault f = { 0 };
	bool there = false;
	enum rc rc;

	if (!entrypoint)
		return API_OK;
	if (asprintf(&path, "%s/%s", dir, entrypoint) < 0) {
		path = NULL;
		return API_BUSY;
	}
	rc = guest_test(r->api, sandbox_id, "-d", dir, &there, &f);
	if (!rc && !there)
		return api_fail(r, API_INVALID_TREE, "no such directory: %s", shown(dir));
	if (!rc)
		rc = guest_test(r->api, sandbox_id, "-f", path, &there, &f);
	if (rc == RC_ABSENT)
		return sandbox_is_gone(r, sandbox_id);
	if (rc)
		return broker_code(r, &f, API_SANDBOX_UNREACHABLE);
	return there ? API_OK : api_fail(r, API_INVALID_ENTRYPOINT, "no such entrypoint: %s", shown(entrypoint));
}

enum api_code sandbox_deploy(struct request *r)
{
	_cleanup_(deploy_free) struct deploy d = { 0 };
	char id[REVISION_ID_CHARS + 1], path[PATH_IN_GUEST_MAX + 16];
	struct sandbox_found s = { 0 };
	struct json_object *o;
	enum api_code code = sandbox_find_live(r, r->args[0], &s);

	if (!code)
		code = sandbox_body(r, &d, path, sizeof(path));
	if (!code)
		code = room_check(r);
	if (!code)
		code = inherit(r, &d);
	if (!code)
		code = entrypoint_check(r, s.id, path, &d);
	if (!code)
		code = tree_fetch(r, s.id, path, &d);
	if (!code)
		code = revision_make(r, &d, id);
	if (code)
		return code;
	o = json_object_new_object();
	json_add_str(o, "revision_id", id);
	return reply_json(r, 200, o);
}

/* --- from files in the request ------------------------------------------------------------------------------------- */

static const char *const app_keys[] = { "assets", "config", "layers", "env_vars", "labels", "production", "preview", NULL };

static enum api_code app_body(struct request *r, struct deploy *d, struct json_object **ret_assets)
{
	struct json_object *body = NULL, *config = NULL, *layers = NULL;
	struct fault f = { 0 };
	enum api_code code = request_json(r, false, &body);

	if (code)
		return code;
	d->production = true;
	if (json_only_keys(body, app_keys, &f) || json_get_object(body, "assets", ret_assets, &f) ||
	    json_get_object(body, "config", &config, &f) || json_get_array(body, "layers", LAYERS_MAX, &layers, &f) ||
	    json_get_array(body, "env_vars", ENV_VARS_MAX, &d->env_vars, &f) ||
	    json_get_object(body, "labels", &d->labels, &f) ||
	    json_get_bool(body, "production", &d->production, &f) ||
	    json_get_bool(body, "preview", &d->preview, &f) || (config && app_config_check(config, &f)) ||
	    (d->env_vars && env_check_plain(d->env_vars, &f)))
		return api_refuse(r, API_INVALID_REQUEST, &f);
	if (d->labels && json_check_labels(d->labels, &f))
		return api_refuse(r, API_INVALID_LABELS, &f);
	if (!*ret_assets || !json_object_object_length(*ret_assets))
		return api_fail(r, API_INVALID_TREE, "assets must hold at least one file");
	if (json_object_object_length(*ret_assets) > ASSETS_MAX)
		return api_fail(r, API_TREE_TOO_LARGE, "assets: at most %d", ASSETS_MAX);
	d->config = json_object_get(config);
	return layers ? layers_resolve(r, layers, &d->layers) : API_OK;
}

enum api_code app_deploy(struct request *r)
{
	_cleanup_(deploy_free) struct deploy d = { 0 };
	char id[REVISION_ID_CHARS + 1];
	struct json_object *assets = NULL;
	struct fault f = { 0 };
	enum api_code code = app_find(r, r->args[0], &d.app);

	if (!code)
		code = app_body(r, &d, &assets);
	if (!code)
		code = room_check(r);
	if (!code)
		code = inherit(r, &d);
	if (!code && entrypoint_of(d.config) && !json_get(assets, entrypoint_of(d.config)))
		code = api_fail(r, API_INVALID_ENTRYPOINT, "no such entrypoint: %s", shown(entrypoint_of(d.config)));
	if (!code && deploy_tree_of_assets(r->api->bundles_fd, assets, &d.tree, &f))
		code = tree_code(r, &f);
	if (!code)
		code = revision_make(r, &d, id);
	return code ? code : revision_reply(r, id);
}
