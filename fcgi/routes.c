/* SPDX-License-Identifier: Apache-2.0 */
#include "base/cleanup.h"
#include "fcgi/handlers.h"
#include "fcgi/router.h"

static enum api_code health(struct request *r)
{
	struct json_object *o = json_object_new_object();

	json_add_str(o, "status", "ok");
	json_add_str(o, "version", NB_VERSION);
	return reply_json(r, 200, o);
}

const struct route routes[] = {
	{ "GET", "/healthz", health, ROUTE_OPEN },
	{ "GET", "/api/v3/sandboxes/create", sandbox_create, 0 },
	{ "GET", "/api/v3/sandbox/{}/connect", sandbox_connect, 0 },
	{ "DELETE", "/api/v3/sandbox/{}", sandbox_kill, 0 },
	{ "PATCH", "/api/v3/sandbox/{}", sandbox_extend, 0 },
	{ "POST", "/api/v3/sandbox/{}/expose/http", sandbox_expose_http, 0 },
	{ "POST", "/api/v3/sandbox/{}/expose/ssh", sandbox_expose_ssh, 0 },
	{ "POST", "/api/v3/sandbox/{}/expose/vscode", sandbox_expose_vscode, 0 },
	{ "GET", "/api/v2/sandboxes", sandbox_list, 0 },
	{ "GET", "/api/v2/sandboxes/{}", sandbox_get, 0 },
};
const size_t n_routes = ARRAY_SIZE(routes);
