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
	{ "GET", "/api/v3/sandboxes/create", sandbox_create, ROUTE_LONG },
	{ "GET", "/api/v3/sandbox/{}/connect", sandbox_connect, ROUTE_LONG },
	{ "DELETE", "/api/v3/sandbox/{}", sandbox_kill, ROUTE_END },
	{ "PATCH", "/api/v3/sandbox/{}", sandbox_extend, 0 },
	{ "POST", "/api/v3/sandbox/{}/expose/http", sandbox_expose_http, ROUTE_LONG },
	{ "POST", "/api/v3/sandbox/{}/expose/ssh", sandbox_expose_ssh, 0 },
	{ "DELETE", "/api/v3/sandbox/{}/expose/ssh", sandbox_revoke_ssh, 0 },
	{ "POST", "/api/v3/sandbox/{}/expose/vscode", sandbox_expose_vscode, ROUTE_LONG },
	{ "GET", "/api/v2/sandboxes", sandbox_list, 0 },
	{ "GET", "/api/v2/sandboxes/{}", sandbox_get, 0 },
	{ "POST", "/api/v2/sandboxes/{}/deploy", sandbox_deploy, ROUTE_LONG },
	{ "POST", "/api/v2/sandboxes/{}/fork", sandbox_fork, ROUTE_LONG },
	{ "POST", "/api/v2/sandboxes/{}/captures", sandbox_capture, ROUTE_LONG },
	{ "GET", "/api/v2/sandboxes/{}/captures", sandbox_capture_list, 0 },
	{ "GET", "/api/v2/captures", capture_list, 0 },
	{ "GET", "/api/v2/captures/{}", capture_get, 0 },
	{ "DELETE", "/api/v2/captures/{}", capture_delete, ROUTE_END },
	{ "POST", "/api/v2/sandboxes/{}/pause", sandbox_pause, ROUTE_LONG },
	{ "POST", "/api/v2/sandboxes/{}/resume", sandbox_resume, ROUTE_LONG },
	{ "GET", "/api/v2/sandboxes/{}/egress", egress_sandbox_list, ROUTE_LONG },
	{ "GET", "/api/v2/sandboxes/{}/egress/tail", egress_sandbox_tail, ROUTE_LONG },
	{ "GET", "/api/v2/sandboxes/{}/egress/learn", egress_sandbox_learn, ROUTE_LONG },
	{ "GET", "/api/v2/sandboxes/{}/egress-policy", egress_policy_get, 0 },
	{ "PUT", "/api/v2/sandboxes/{}/egress-policy", egress_policy_put, ROUTE_LONG },
	{ "PATCH", "/api/v2/sandboxes/{}/egress-policy", egress_policy_patch, ROUTE_LONG },
	{ "GET", "/api/v2/egress", egress_list, ROUTE_LONG },
	{ "GET", "/api/v2/egress/tail", egress_tail, ROUTE_LONG },
	{ "GET", "/api/v2/egress/learn", egress_learn, ROUTE_LONG },
	{ "POST", "/api/v2/egress/evaluate", egress_evaluate, 0 },
	{ "GET", "/api/v2/apps", app_list, 0 },
	{ "POST", "/api/v2/apps", app_create, 0 },
	{ "GET", "/api/v2/apps/{}", app_get, 0 },
	{ "PATCH", "/api/v2/apps/{}", app_update, 0 },
	{ "DELETE", "/api/v2/apps/{}", app_delete, ROUTE_LONG },
	{ "POST", "/api/v2/apps/{}/deploy", app_deploy, ROUTE_BIG_BODY | ROUTE_LONG },
	{ "GET", "/api/v2/apps/{}/logs", app_logs, ROUTE_LONG },
	{ "GET", "/api/v2/apps/{}/logs/stream", app_logs_stream, ROUTE_LONG },
	{ "GET", "/api/v2/apps/{}/instances", app_instance_list, 0 },
	{ "GET", "/api/v2/apps/{}/domains", app_domain_list, 0 },
	{ "POST", "/api/v2/apps/{}/domains", app_domain_add, 0 },
	{ "DELETE", "/api/v2/apps/{}/domains/{}", app_domain_delete, 0 },
	{ "GET", "/api/v2/apps/{}/revisions", revision_list, 0 },
	{ "GET", "/api/v2/apps/{}/timelines", timeline_list, 0 },
	{ "GET", "/api/v2/revisions/{}", revision_get, 0 },
	{ "DELETE", "/api/v2/revisions/{}", revision_delete, 0 },
	{ "POST", "/api/v2/revisions/{}/cancel", revision_cancel_handler, 0 },
	{ "POST", "/api/v2/revisions/{}/promote", revision_promote, 0 },
	{ "GET", "/api/v2/revisions/{}/progress", revision_progress, 0 },
	{ "GET", "/api/v2/revisions/{}/build_logs", revision_build_logs, 0 },
	{ "GET", "/api/v2/revisions/{}/timelines", revision_timelines, 0 },
	{ "GET", "/api/v2/layers", layer_list, 0 },
	{ "POST", "/api/v2/layers", layer_create, 0 },
	{ "GET", "/api/v2/layers/{}", layer_get, 0 },
	{ "PATCH", "/api/v2/layers/{}", layer_update, 0 },
	{ "DELETE", "/api/v2/layers/{}", layer_delete, 0 },
	{ "GET", "/api/v2/layers/{}/apps", layer_apps, 0 },
	{ "GET", "/api/v2/volumes", volume_list, 0 },
	{ "POST", "/api/v2/volumes", volume_create, ROUTE_LONG },
	{ "GET", "/api/v2/volumes/{}", volume_get, 0 },
	{ "DELETE", "/api/v2/volumes/{}", volume_delete, 0 },
	{ "POST", "/api/v2/volumes/{}/snapshot", volume_snapshot, ROUTE_LONG },
	{ "GET", "/api/v2/snapshots", snapshot_list, 0 },
	{ "GET", "/api/v2/snapshots/{}", snapshot_get, 0 },
	{ "DELETE", "/api/v2/snapshots/{}", snapshot_delete, 0 },
};
const size_t n_routes = ARRAY_SIZE(routes);
