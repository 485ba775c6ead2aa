/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/app_config.h"

#include "fcgi/ids.h"
#include "fcgi/limits.h"

#include <string.h>

static const char *const config_keys[] = { "install", "build", "predeploy", "crons", "framework", "runtime", NULL };
static const char *const runtime_keys[] = { "type", "entrypoint", "args", "cwd", "spa", NULL };
static const char *const frameworks[] = { "",	  "nextjs",	"astro",     "nuxt",  "remix",
					  "solidstart", "tanstackstart", "sveltekit", "fresh", "lume" };

enum rc app_path_check(const char *what, const char *path, struct fault *ret_f)
{
	const char *p = path;

	if (!*path || *path == '/' || strlen(path) > PATH_IN_GUEST_MAX)
		return fault_set(ret_f, RC_INVALID, 0, "%s must be a relative path of at most %d bytes", what,
				 PATH_IN_GUEST_MAX);
	while (*p) {
		size_t n = strcspn(p, "/");

		if (n == 2 && p[0] == '.' && p[1] == '.')
			return fault_set(ret_f, RC_INVALID, 0, "%s must not leave the directory", what);
		p += n;
		p += strspn(p, "/");
	}
	return RC_OK;
}

static enum rc framework_check(const char *name, struct fault *ret_f)
{
	for (size_t i = 0; i < ARRAY_SIZE(frameworks); i++)
		if (!strcmp(frameworks[i], name))
			return RC_OK;
	return fault_set(ret_f, RC_INVALID, 0, "unknown framework '%s'", shown(name));
}

static enum rc args_check(struct json_object *o, struct fault *ret_f)
{
	struct json_object *args = NULL;
	const char *s;
	enum rc rc = json_get_array(o, "args", ARGS_MAX, &args, ret_f);

	for (size_t i = 0; !rc && args && i < json_object_array_length(args); i++)
		rc = json_as_str(json_object_array_get_idx(args, i), "args", ARG_BYTES_MAX, &s, ret_f);
	return rc;
}

static enum rc runtime_check(struct json_object *o, struct fault *ret_f)
{
	const char *type = NULL, *entrypoint = NULL, *cwd = NULL;
	bool spa = false;
	enum rc rc = json_only_keys(o, runtime_keys, ret_f);

	if (!rc)
		rc = json_get_str(o, "type", 16, &type, ret_f);
	if (!rc && (!type || (strcmp(type, "dynamic") != 0 && strcmp(type, "static") != 0)))
		rc = fault_set(ret_f, RC_INVALID, 0, "runtime.type must be dynamic or static");
	if (!rc)
		rc = json_get_str(o, "entrypoint", PATH_IN_GUEST_MAX, &entrypoint, ret_f);
	if (!rc && entrypoint)
		rc = app_path_check("entrypoint", entrypoint, ret_f);
	if (!rc)
		rc = json_get_str(o, "cwd", PATH_IN_GUEST_MAX, &cwd, ret_f);
	if (!rc && cwd && *cwd)
		rc = app_path_check("cwd", cwd, ret_f);
	if (!rc)
		rc = json_get_bool(o, "spa", &spa, ret_f);
	return rc ? rc : args_check(o, ret_f);
}

enum rc app_config_check(struct json_object *config, struct fault *ret_f)
{
	static const char *const commands[] = { "install", "build", "predeploy" };
	struct json_object *runtime = NULL;
	const char *s = NULL, *framework = NULL;
	bool crons = true;
	enum rc rc = json_only_keys(config, config_keys, ret_f);

	for (size_t i = 0; !rc && i < ARRAY_SIZE(commands); i++)
		rc = json_get_str(config, commands[i], COMMAND_MAX, &s, ret_f);
	if (!rc)
		rc = json_get_bool(config, "crons", &crons, ret_f);
	if (!rc)
		rc = json_get_str(config, "framework", 32, &framework, ret_f);
	if (!rc && framework)
		rc = framework_check(framework, ret_f);
	if (!rc)
		rc = json_get_object(config, "runtime", &runtime, ret_f);
	if (!rc && runtime && framework && *framework)
		rc = fault_set(ret_f, RC_INVALID, 0, "framework and runtime exclude each other");
	return rc || !runtime ? rc : runtime_check(runtime, ret_f);
}

struct json_object *app_config_merge(struct json_object *app, struct json_object *own)
{
	struct json_object *o = json_object_new_object();

	json_object_object_foreach(app, key, value)
	{
		json_add(o, key, json_object_get(value));
	}
	if (!own)
		return o;
	/* A null of the revision's own switches a command of the app off, so it is copied, too. */
	json_object_object_foreach(own, k, v)
	{
		json_add(o, k, json_object_get(v));
	}
	if (json_get(own, "runtime") && !json_get(own, "framework"))
		json_object_object_del(o, "framework");
	if (!json_get(own, "runtime") && json_get(own, "framework") && json_object_get_string_len(json_get(own, "framework")))
		json_object_object_del(o, "runtime");
	return o;
}

enum rc app_config_of_sandbox_deploy(struct json_object *body, struct json_object **ret, struct fault *ret_f)
{
	_cleanup_json_ struct json_object *o = json_object_new_object();
	struct json_object *runtime = json_object_new_object();
	const char *mode = "none", *entrypoint = "main.ts", *install = NULL, *build = NULL, *dir = NULL, *framework = "";
	enum rc rc = json_get_str(body, "mode", 16, &mode, ret_f);

	json_add(o, "runtime", runtime);
	if (!rc && strcmp(mode, "none") != 0 && strcmp(mode, "local") != 0)
		rc = fault_set(ret_f, RC_INVALID, 0, "mode must be none or local");
	if (!rc)
		rc = json_get_str(body, "entrypoint", PATH_IN_GUEST_MAX, &entrypoint, ret_f);
	if (!rc)
		rc = json_get_str(body, "installCommand", COMMAND_MAX, &install, ret_f);
	if (!rc)
		rc = json_get_str(body, "buildCommand", COMMAND_MAX, &build, ret_f);
	if (!rc)
		rc = json_get_str(body, "buildDirectory", PATH_IN_GUEST_MAX, &dir, ret_f);
	if (!rc)
		rc = json_get_str(body, "frameworkPreset", 32, &framework, ret_f);
	if (!rc)
		rc = framework_check(framework, ret_f);
	if (rc)
		return rc;
	json_add_str(runtime, "type", "dynamic");
	json_add_str(runtime, "entrypoint", entrypoint);
	if (json_get(body, "args"))
		json_add(runtime, "args", json_object_get(json_get(body, "args")));
	/* "none" deploys the directory as it is, whatever came along. */
	if (!strcmp(mode, "none"))
		install = build = dir = framework = NULL;
	if (dir && *dir)
		json_add_str(runtime, "cwd", dir);
	if (framework && *framework)
		json_add_str(o, "framework", framework);
	json_add_str(o, "install", install);
	json_add_str(o, "build", build);
	rc = runtime_check(runtime, ret_f);
	if (!rc)
		*ret = take_ptr(o);
	return rc;
}
