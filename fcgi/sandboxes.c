/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory: `create` does everything before it answers: row, machine, agent connection, ticket. The order makes each
 * failure reversible: the row is written first and removed when nothing came of it; the machine is ended if it cannot be
 * handed over; the ticket is last. A worker that dies in between leaves a 'starting' row without a machine (marked by the
 * next comparison with the broker), or a machine whose lease died with the worker.
 */
#include "fcgi/sandboxes.h"

#include "base/fd.h"
#include "base/log.h"
#include "fcgi/handlers.h"
#include "fcgi/peers.h"
#include "fcgi/sandbox_capture.h"
#include "fcgi/sandbox_config.h"
#include "fcgi/sandbox_store.h"
#include "fcgi/volumes.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#define MEMORY_DEFAULT_MIB 1280
#define RPC_LINE "{\"service\":\"rpc\"}\n"

/* A request that could not become a WebSocket anyway must not cost a machine. */
static enum api_code upgrade_check(struct request *r)
{
	const char *upgrade = request_param(r, "HTTP_UPGRADE");
	const char *key = request_param(r, "HTTP_SEC_WEBSOCKET_KEY");
	const char *version = request_param(r, "HTTP_SEC_WEBSOCKET_VERSION");
	_cleanup_free_ uint8_t *nonce = NULL;
	size_t n = 0;

	if (!upgrade || strcasecmp(upgrade, "websocket") != 0 || !version || strcmp(version, "13") != 0 || !key ||
	    base64_decode(key, strlen(key), &nonce, &n, NULL) || n != 16)
		return API_UPGRADE_REQUIRED;
	return API_OK;
}

enum api_code sandbox_find(struct request *r, const char *id, struct sandbox_found *ret)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	struct fault f = { 0 };
	enum rc rc;

	if (!id_is_regional(id, "sbx"))
		return API_SANDBOX_NOT_FOUND;
	db_start(&q, r->api->db, "SELECT lease, status != 'stopped', paused FROM sandboxes WHERE id = ? AND org_id = ?");
	db_text(&q, id);
	db_text(&q, r->org_id);
	rc = db_row(&q, &f);
	if (rc == RC_ABSENT)
		return API_SANDBOX_NOT_FOUND;
	if (rc)
		return api_fault(r, &f);
	snprintf(ret->id, sizeof(ret->id), "%s", id);
	ret->lease = db_col_int(&q, 0);
	ret->live = db_col_int(&q, 1);
	ret->paused = ret->live && db_col_int(&q, 2);
	return API_OK;
}

enum api_code sandbox_find_live(struct request *r, const char *id, struct sandbox_found *ret)
{
	enum api_code code = sandbox_find(r, id, ret);

	return !code && !ret->live ? API_SANDBOX_STOPPED : code;
}

enum api_code sandbox_find_running(struct request *r, const char *id, struct sandbox_found *ret)
{
	enum api_code code = sandbox_find_live(r, id, ret);

	return !code && ret->paused ? API_SANDBOX_PAUSED : code;
}

enum api_code sandbox_is_gone(struct request *r, const char *id)
{
	struct fault f = { 0 };

	if (sandbox_set_stopped(r->api->db, id, "its machine is gone", &f))
		log_fault(LOG_LEVEL_WARN, &f, "sandbox %s", id);
	return API_SANDBOX_STOPPED;
}

/* --- create ---------------------------------------------------------------------------------------------------- */

struct creation {
	struct request *r;
	struct sandbox_config config;
	struct sandbox_policy policy;
	char id[ID_MAX], hostname[64];
	struct json_object *record;
	struct capture_use capture;
	struct volume_use root, mounts[VOLUMES_MAX];
	char *mount_blob, *env_blob;
	size_t mount_n, env_n;
	int agent, lease;
};

static void creation_free(struct creation *c)
{
	sandbox_config_free(&c->config);
	sandbox_policy_free(&c->policy);
	json_object_put(c->record);
	free(c->mount_blob);
	free(c->env_blob);
	close_fd(&c->agent);
	close_fd(&c->lease);
}

static enum api_code create_parse(struct creation *c)
{
	struct request *r = c->r;
	const struct config *cfg = &r->api->config;
	const struct sandbox_bounds bounds = {
		.memory_mib_min = cfg->vm_memory_mib_min,
		.memory_mib_max = cfg->vm_memory_mib_max,
		.memory_mib_step = cfg->vm_memory_mib_step,
		.memory_mib_default = MIN_OF(MAX_OF(MEMORY_DEFAULT_MIB, cfg->vm_memory_mib_min), cfg->vm_memory_mib_max),
		.now_ms = wall_ms(),
		.stop_max_s = cfg->stop_max_s,
	};
	struct fault f = { 0 };
	enum api_code code = API_INVALID_CONFIG;

	if (sandbox_config_parse(request_param(r, "HTTP_X_DENO_SANDBOX_CONFIG"), &bounds, &c->config, &code, &f))
		return api_refuse(r, code, &f);
	id_regional(c->id, "sbx", cfg->region);
	snprintf(c->hostname, sizeof(c->hostname), "%s", c->id + 8);
	return API_OK;
}

/* Memory is part of what is kept, and so is the root; there were no volumes. */
static enum api_code create_from_capture(struct creation *c)
{
	if (c->config.n_mounts)
		return api_fail(c->r, API_INVALID_CONFIG, "a sandbox that starts from a capture has no volumes");
	if (json_get(c->config.json, "memory_mb") && c->config.memory_mib != c->capture.memory_mib)
		return api_fail(c->r, API_INVALID_MEMORY, "the capture is of a sandbox with %u MiB", c->capture.memory_mib);
	c->config.memory_mib = c->capture.memory_mib;
	return API_OK;
}

static enum api_code create_volumes(struct creation *c)
{
	enum api_code code = c->config.root ? capture_resolve(c->r, c->config.root, &c->capture) : API_OK;

	if (code || *c->capture.id)
		return code ? code : create_from_capture(c);
	if (c->config.root)
		code = volume_resolve(c->r, c->config.root, true, &c->root);
	for (size_t i = 0; !code && i < c->config.n_mounts; i++) {
		code = volume_resolve(c->r, c->config.mounts[i].volume, false, &c->mounts[i]);
		if (!code)
			code = volume_pack_mount(c->r, &c->mounts[i], c->config.mounts[i].path, &c->mount_blob, &c->mount_n);
	}
	return code;
}

/* What every sandbox is told about itself, then the placeholders of its secrets. */
static enum api_code create_env(struct creation *c)
{
	struct request *r = c->r;
	struct fault f = { 0 };
	char own[256];
	int n;

	if (sandbox_policy_make(&c->config, c->id, r->org_name, r->api->has_egress_key ? &r->api->egress_key : NULL,
				&c->policy, &f))
		return f.rc == RC_LIMIT ? api_refuse(r, API_INVALID_CONFIG, &f) : api_fault(r, &f);
	n = snprintf(own, sizeof(own), "DENO_DEPLOY_ORGANIZATION_ID=%s%cDENO_DEPLOY_ORG=%s%cNESTBOX_SANDBOX_ID=%s%c",
		     r->org_id, 0, r->org_name, 0, c->id, 0);
	c->env_blob = malloc((size_t)n + c->policy.env_n);
	if (!c->env_blob)
		return API_BUSY;
	memcpy(c->env_blob, own, (size_t)n);
	memcpy(c->env_blob + n, c->policy.env, c->policy.env_n);
	c->env_n = (size_t)n + c->policy.env_n;
	return API_OK;
}

static enum api_code create_row(struct creation *c)
{
	struct request *r = c->r;
	struct sandbox_row row = {
		.id = c->id,
		.org_id = r->org_id,
		.region = r->api->config.region,
		.node = r->api->config.node,
		.lease = !c->config.stop_at_ms,
		.memory_mib = c->config.memory_mib,
		.stop_at_ms = c->config.stop_at_ms,
	};
	uint64_t quota = r->api->config.tenant_vms;
	struct fault f = { 0 };
	enum rc rc;

	c->record = sandbox_config_record(&c->config);
	row.config = c->record ? json_text(c->record) : "{}";
	row.labels = c->config.labels ? json_text(c->config.labels) : "{}";
	if (c->config.root && !*c->capture.id && !c->root.snapshot) {
		row.volumes[row.n_volumes].volume_id = c->root.id;
		row.volumes[row.n_volumes++].path = "/";
	}
	for (size_t i = 0; i < c->config.n_mounts; i++) {
		row.volumes[row.n_volumes].volume_id = c->mounts[i].id;
		row.volumes[row.n_volumes++].path = c->config.mounts[i].path;
	}
	rc = sandbox_insert(r->api->db, &row, quota, &f);
	/* Rows of machines that ended unnoticed must not count against anybody. */
	if ((rc == RC_LIMIT || rc == RC_EXISTS) && !sandboxes_reconcile(r->api, NULL))
		rc = sandbox_insert(r->api->db, &row, quota, &f);
	if (rc == RC_LIMIT)
		return api_refuse(r, API_SANDBOX_QUOTA_EXCEEDED, &f);
	if (rc == RC_EXISTS)
		return API_VOLUME_IN_USE;
	if (rc == RC_ABSENT)
		return API_VOLUME_NOT_FOUND;
	return rc ? api_fault(r, &f) : API_OK;
}

static enum api_code create_machine(struct creation *c)
{
	struct broker_vm_create req = {
		.memory_mib = c->config.memory_mib,
		.flags = c->config.stop_at_ms ? 0 : BROKER_VM_LEASE,
		.stop_at_ms = c->config.stop_at_ms,
		.mounts = (const uint8_t *)c->mount_blob,
		.mounts_n = c->mount_n,
		.env = (const uint8_t *)c->env_blob,
		.env_n = c->env_n,
		.policy = (const uint8_t *)c->policy.policy,
		.policy_n = strlen(c->policy.policy),
	};
	struct broker_vm_created created = { 0 };
	struct fault f = { 0 };

	snprintf(req.id, sizeof(req.id), "%s", c->id);
	snprintf(req.hostname, sizeof(req.hostname), "%s", c->hostname);
	snprintf(req.capture, sizeof(req.capture), "%s", c->capture.id);
	if (c->config.root && !*c->capture.id)
		snprintf(req.root_volume, sizeof(req.root_volume), "%s%s", c->root.snapshot ? "snapshot:" : "", c->root.id);
	if (broker_vm_start(c->r->api, &req, &created, &c->lease, &f)) {
		if (*c->capture.id && (f.rc == RC_STATE || f.rc == RC_ABSENT || f.rc == RC_DAMAGED))
			return api_refuse(c->r, API_CAPTURE_UNUSABLE, &f);
		return broker_code(c->r, &f, API_SANDBOX_START_FAILED);
	}
	log_info("created id=%s restore_us=%u agent_us=%u total_us=%u trace=%s", c->id, created.restore_us,
		 created.agent_us, created.total_us, c->r->trace);
	if (broker_service(c->r->api, c->id, RPC_LINE, &c->agent, NULL, &f))
		return broker_code(c->r, &f, API_SANDBOX_START_FAILED);
	return API_OK;
}

static enum api_code create_finish(struct creation *c)
{
	struct fault f = { 0 };
	enum api_code code = create_machine(c);
	bool gone;

	if (!code && sandbox_set_running(c->r->api->db, c->id, &f))
		code = f.rc == RC_STATE ? API_SANDBOX_STOPPED : api_fault(c->r, &f);
	if (!code)
		code = ticket_ws(c->r, c->agent, c->lease, c->id);
	if (!code)
		return API_OK;
	close_fd(&c->lease);
	/* After a timeout the broker may still be at it, so it is told in every case. */
	gone = !broker_kill(c->r->api, c->id, "create failed", &f) || f.rc == RC_ABSENT;
	if (!gone)
		log_fault(LOG_LEVEL_WARN, &f, "undo create of %s", c->id);
	/* By a row that says stopped the runner ends a machine that could not be ended here. */
	if ((gone && sandbox_forget(c->r->api->db, c->id, &f)) || sandbox_set_stopped(c->r->api->db, c->id, "create failed", &f))
		log_fault(LOG_LEVEL_WARN, &f, "undo create of %s", c->id);
	return code;
}

enum api_code sandbox_create(struct request *r)
{
	_cleanup_(creation_free) struct creation c = { .r = r, .agent = -1, .lease = -1 };
	enum api_code code = create_parse(&c);

	if (!code)
		code = upgrade_check(r);
	if (!code)
		code = create_volumes(&c);
	if (!code)
		code = create_env(&c);
	if (!code)
		code = create_row(&c);
	return code ? code : create_finish(&c);
}

/* --- the living ------------------------------------------------------------------------------------------------ */

enum api_code sandbox_connect(struct request *r)
{
	_cleanup_fd_ int agent = -1, lease = -1;
	struct sandbox_found s = { 0 };
	struct fault f = { 0 };
	enum api_code code = sandbox_find_running(r, r->args[0], &s);

	if (!code)
		code = upgrade_check(r);
	if (code)
		return code;
	/* Its own connection may just have broken: whoever comes in the grace takes the lease over. */
	if (broker_service(r->api, s.id, RPC_LINE, &agent, s.lease ? &lease : NULL, &f))
		return f.rc == RC_ABSENT ? sandbox_is_gone(r, s.id) : broker_code(r, &f, API_SANDBOX_UNREACHABLE);
	return ticket_ws(r, agent, lease, s.id);
}

enum api_code sandbox_kill(struct request *r)
{
	struct sandbox_found s = { 0 };
	struct fault f = { 0 };
	enum api_code code = sandbox_find(r, r->args[0], &s);

	if (code)
		return code;
	/* Killing what is dead is done already: a client may repeat it after a lost answer. */
	if (s.live) {
		static const char why[] = "killed by its owner";
		enum rc rc = broker_kill(r->api, s.id, why, &f);
		bool absent = rc == RC_ABSENT;

		if (rc && !absent)
			return broker_code(r, &f, API_SANDBOX_UNREACHABLE);
		if (sandbox_set_stopped(r->api->db, s.id, why, &f))
			return api_fault(r, &f);
		/* One that just starts: who makes it undoes that if it sees the row as it is now, and has its machine by now if not. */
		if (absent && (rc = broker_kill(r->api, s.id, why, &f)) && rc != RC_ABSENT)
			return broker_code(r, &f, API_SANDBOX_UNREACHABLE);
	}
	return reply_json(r, 200, json_object_new_object());
}

static enum api_code stop_at_get(struct request *r, uint64_t *ret)
{
	static const char *const keys[] = { "stop_at_ms", NULL };
	uint64_t now = wall_ms(), max_s = r->api->config.stop_max_s;
	struct json_object *body = NULL;
	struct fault f = { 0 };
	int64_t at = 0;
	enum api_code code = request_json(r, false, &body);

	if (code)
		return code;
	if (json_only_keys(body, keys, &f) || json_get_int(body, "stop_at_ms", &at, &f))
		return api_refuse(r, API_INVALID_REQUEST, &f);
	if (at <= 0 || (uint64_t)at <= now || at > 253402300799000)
		return API_INVALID_STOP_AT;
	if (max_s && (uint64_t)at - now > max_s * 1000)
		return api_fail(r, API_INVALID_STOP_AT, "stop_at_ms is more than %llu s away", (unsigned long long)max_s);
	*ret = (uint64_t)at;
	return API_OK;
}

enum api_code sandbox_extend(struct request *r)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	struct sandbox_found s = { 0 };
	struct json_object *o;
	struct fault f = { 0 };
	uint64_t stop_at = 0;
	enum api_code code = sandbox_find_live(r, r->args[0], &s);

	if (!code)
		code = stop_at_get(r, &stop_at);
	if (code)
		return code;
	if (broker_extend(r->api, s.id, stop_at, &stop_at, &f))
		return f.rc == RC_ABSENT ? sandbox_is_gone(r, s.id) : broker_code(r, &f, API_SANDBOX_UNREACHABLE);
	db_start(&q, r->api->db, "UPDATE sandboxes SET stop_at_ms = ? WHERE id = ?");
	db_int(&q, (int64_t)stop_at);
	db_text(&q, s.id);
	if (db_run(&q, &f))
		return api_fault(r, &f);
	o = json_object_new_object();
	json_add_int(o, "stop_at_ms", (int64_t)stop_at);
	return reply_json(r, 200, o);
}
