/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fork, pause and resume of a running sandbox.
 *
 * Theory: children are ordinary sandboxes: rows first, as `create` does, then the broker makes all of them or none, then the rows are
 * 'running' or gone. A child has what its parent was asked for (labels unless the request has others, policy, memory), a new id
 * and new placeholders (policy_text.h). It never lives by a connection, since nobody holds one yet: it ends at stop_at_ms of
 * the request, else of its parent, else FORK_LIFETIME_MS from now; all can be extended.
 */
#include "base/buf.h"
#include "base/fd.h"
#include "base/log.h"
#include "fcgi/handlers.h"
#include "fcgi/peers.h"
#include "fcgi/policy_text.h"
#include "fcgi/sandbox_store.h"
#include "fcgi/sandboxes.h"

#include <openssl/crypto.h>
#include <stdio.h>
#include <string.h>

struct fork {
	struct request *r;
	struct sandbox_found parent;
	uint32_t memory_mib;
	uint64_t stop_at_ms;
	struct json_object *config, *labels;
	char *policy;             /* the parent's */
	size_t n, n_rows;         /* children; of which rows were written */
	char ids[BROKER_FORK_MAX][ID_MAX];
	uint8_t *rows;            /* for the broker */
	size_t rows_n;
};

static void fork_free(struct fork *k)
{
	json_object_put(k->config);
	json_object_put(k->labels);
	free(k->policy);
	free(k->rows);
}

/* --- what is asked for ---------------------------------------------------------------------------------------------- */

static enum api_code stop_at_check(struct fork *k, int64_t at)
{
	struct request *r = k->r;
	uint64_t now = wall_ms(), max_s = r->api->config.stop_max_s;

	if (at) {
		if (at < 0 || (uint64_t)at <= now || at > 253402300799000)
			return API_INVALID_STOP_AT;
		if (max_s && (uint64_t)at - now > max_s * 1000)
			return api_fail(r, API_INVALID_STOP_AT, "stop_at_ms is more than %llu s away", (unsigned long long)max_s);
		k->stop_at_ms = (uint64_t)at;
	}
	if (!k->stop_at_ms)
		k->stop_at_ms = now + (max_s ? MIN_OF(max_s * 1000, (uint64_t)FORK_LIFETIME_MS) : FORK_LIFETIME_MS);
	return API_OK;
}

static enum api_code fork_parse(struct fork *k)
{
	static const char *const keys[] = { "count", "stop_at_ms", "labels", NULL };
	struct json_object *body = NULL, *labels = NULL;
	struct request *r = k->r;
	struct fault f = { 0 };
	int64_t count = 1, at = 0;
	enum api_code code = request_json(r, true, &body);

	if (code)
		return code;
	if (json_only_keys(body, keys, &f) || json_get_int(body, "count", &count, &f) ||
	    json_get_int(body, "stop_at_ms", &at, &f) || json_get_object(body, "labels", &labels, &f))
		return api_refuse(r, API_INVALID_REQUEST, &f);
	if (count < 1 || count > BROKER_FORK_MAX)
		return api_fail(r, API_INVALID_REQUEST, "count must be 1 to %d", BROKER_FORK_MAX);
	if (labels && json_check_labels(labels, &f))
		return api_refuse(r, API_INVALID_LABELS, &f);
	k->n = (size_t)count;
	if (labels) {
		json_object_put(k->labels);
		k->labels = json_object_get(labels);
	}
	return stop_at_check(k, at);
}

static enum api_code parent_read(struct fork *k)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	struct request *r = k->r;
	struct fault f = { 0 };
	enum api_code code = sandbox_find_running(r, r->args[0], &k->parent);

	if (code)
		return code;
	db_start(&q, r->api->db, "SELECT memory_mib, coalesce(stop_at_ms, 0), labels, config FROM sandboxes WHERE id = ?");
	db_text(&q, k->parent.id);
	if (db_row(&q, &f))
		return api_fault(r, &f);
	k->memory_mib = (uint32_t)db_col_int(&q, 0);
	k->stop_at_ms = (uint64_t)db_col_int(&q, 1);
	k->labels = json_stored(db_col_text(&q, 2));
	k->config = json_stored(db_col_text(&q, 3));
	if (!k->labels || !k->config)
		return API_BUSY;
	if (broker_policy_get(r->api, k->parent.id, &k->policy, &f))
		return f.rc == RC_ABSENT ? sandbox_is_gone(r, k->parent.id) : broker_code(r, &f, API_SANDBOX_UNREACHABLE);
	return API_OK;
}

/* --- the children ----------------------------------------------------------------------------------------------------- */

static enum rc env_put(struct fork *k, const char *id, struct buf *env)
{
	enum rc rc = buf_printf(env, "DENO_DEPLOY_ORGANIZATION_ID=%s%cDENO_DEPLOY_ORG=%s%cNESTBOX_SANDBOX_ID=%s", k->r->org_id, 0,
				k->r->org_name, 0, id);

	return rc ? rc : buf_put(env, "", 1);
}

static enum rc child_put(struct fork *k, const char *id, struct wire *w, struct fault *ret_f)
{
	_cleanup_buf_ struct buf policy = BUF_INIT(BROKER_POLICY_MAX), env = BUF_INIT(BROKER_ENV_MAX);
	struct broker_fork_child child = { .stop_at_ms = k->stop_at_ms };
	enum rc rc = env_put(k, id, &env);

	if (rc)
		return fault_set(ret_f, rc, 0, "environment of a child");
	rc = policy_text_fork(k->policy, k->parent.id, id, k->r->api->has_egress_key ? &k->r->api->egress_key : NULL, &policy, &env,
			      ret_f);
	if (rc)
		return rc;
	snprintf(child.id, sizeof(child.id), "%s", id);
	snprintf(child.hostname, sizeof(child.hostname), "%s", id + 8);
	child.env = buf_data(&env);
	child.env_n = buf_len(&env);
	child.policy = buf_data(&policy);
	child.policy_n = buf_len(&policy);
	broker_fork_child_put(w, &child);
	return wire_ok(w) ? RC_OK : fault_set(ret_f, RC_LIMIT, 0, "policies of %zu children are too large together", k->n);
}

static enum api_code children_make(struct fork *k)
{
	struct request *r = k->r;
	struct fault f = { 0 };
	struct wire w;
	enum rc rc = RC_OK;

	k->rows = malloc(BROKER_CHILDREN_MAX);
	if (!k->rows)
		return API_BUSY;
	wire_init(&w, k->rows, BROKER_CHILDREN_MAX);
	for (size_t i = 0; !rc && i < k->n; i++) {
		id_regional(k->ids[i], "sbx", r->api->config.region);
		rc = child_put(k, k->ids[i], &w, &f);
	}
	if (rc)
		return rc == RC_LIMIT ? api_refuse(r, API_SANDBOX_NOT_FORKABLE, &f) : api_fault(r, &f);
	k->rows_n = wire_len(&w);
	json_object_object_del(k->config, "stop_at_ms");
	json_add_int(k->config, "stop_at_ms", (int64_t)k->stop_at_ms);
	json_object_object_del(k->config, "labels");
	json_add(k->config, "labels", json_object_get(k->labels));
	return API_OK;
}

/* machine: there may be one. By a row that says stopped the runner ends one that cannot be ended here. */
static void child_undo(struct fork *k, const char *id, bool machine)
{
	struct db *db = k->r->api->db;
	struct fault f = { 0 };
	bool gone = !machine || !broker_kill(k->r->api, id, "fork failed", &f) || f.rc == RC_ABSENT;

	if (!gone)
		log_fault(LOG_LEVEL_WARN, &f, "undo fork %s", id);
	if ((gone && sandbox_forget(db, id, &f)) || sandbox_set_stopped(db, id, "fork failed", &f))
		log_fault(LOG_LEVEL_WARN, &f, "undo fork %s", id);
}

static void children_undo(struct fork *k, bool machines)
{
	for (size_t i = 0; i < k->n_rows; i++)
		child_undo(k, k->ids[i], machines);
}

static enum rc rows_write(struct fork *k, struct fault *ret_f)
{
	struct request *r = k->r;

	for (k->n_rows = 0; k->n_rows < k->n; k->n_rows++) {
		struct sandbox_row row = {
			.id = k->ids[k->n_rows],
			.org_id = r->org_id,
			.region = r->api->config.region,
			.node = r->api->config.node,
			.memory_mib = k->memory_mib,
			.stop_at_ms = k->stop_at_ms,
			.labels = json_text(k->labels),
			.config = json_text(k->config),
			.forked_from = k->parent.id,
		};
		enum rc rc = sandbox_insert(r->api->db, &row, r->api->config.tenant_vms, ret_f);

		if (rc)
			return rc;
	}
	return RC_OK;
}

static enum api_code fork_rows(struct fork *k)
{
	struct fault f = { 0 };
	enum rc rc = rows_write(k, &f);

	if (rc)
		children_undo(k, false);
	/* Rows of machines that ended unnoticed must not count against anybody. */
	if (rc == RC_LIMIT && !sandboxes_reconcile(k->r->api, NULL)) {
		rc = rows_write(k, &f);
		if (rc)
			children_undo(k, false);
	}
	if (rc == RC_LIMIT)
		return api_refuse(k->r, API_SANDBOX_QUOTA_EXCEEDED, &f);
	return rc ? api_fault(k->r, &f) : API_OK;
}

static enum api_code fork_machines(struct fork *k, struct broker_vm_forked *ret)
{
	struct broker_vm_fork req = { .n = (uint32_t)k->n, .children = k->rows, .children_n = k->rows_n };
	struct request *r = k->r;
	struct fault f = { 0 };
	enum rc rc;

	snprintf(req.id, sizeof(req.id), "%s", k->parent.id);
	rc = broker_fork(r->api, &req, ret, &f);
	if (!rc)
		return API_OK;
	/* After a timeout the broker may still be at it. */
	children_undo(k, rc == RC_TIMEOUT || rc == RC_CLOSED);
	if (rc == RC_ABSENT)
		return sandbox_is_gone(r, k->parent.id);
	return rc == RC_STATE ? api_refuse(r, API_SANDBOX_NOT_FORKABLE, &f) : broker_code(r, &f, API_SANDBOX_START_FAILED);
}

static enum api_code fork_reply(struct fork *k, const struct broker_vm_forked *forked)
{
	struct json_object *o = json_object_new_object(), *list = json_object_new_array();
	struct fault f = { 0 };

	json_add_int(o, "pauseUs", forked->pause_us);
	json_add_int(o, "privateBytes", (int64_t)forked->private_bytes);
	for (size_t i = 0; i < k->n; i++) {
		struct json_object *one;

		enum rc rc = sandbox_set_running(k->r->api->db, k->ids[i], &f);

		if (rc == RC_STATE) {
			child_undo(k, k->ids[i], true);
			continue;
		}
		if (rc) {
			json_object_put(o);
			json_object_put(list);
			return api_fault(k->r, &f);
		}
		one = sandbox_shown(k->r, k->ids[i], &f);
		if (one)
			json_object_array_add(list, one);
	}
	json_add(o, "sandboxes", list);
	return reply_json(k->r, 201, o);
}

enum api_code sandbox_fork(struct request *r)
{
	_cleanup_(fork_free) struct fork k = { .r = r };
	struct broker_vm_forked forked = { 0 };
	enum api_code code = parent_read(&k);

	if (!code)
		code = fork_parse(&k);
	if (!code)
		code = children_make(&k);
	if (!code)
		code = fork_rows(&k);
	if (!code)
		code = fork_machines(&k, &forked);
	if (code)
		return code;
	log_info("forked id=%s children=%zu pause_us=%u trace=%s", k.parent.id, k.n, forked.pause_us, r->trace);
	return fork_reply(&k, &forked);
}

/* --- pause and resume --------------------------------------------------------------------------------------------------- */

static enum api_code pause_or_resume(struct request *r, bool pause)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	struct sandbox_found s = { 0 };
	struct fault f = { 0 };
	enum api_code code = sandbox_find_live(r, r->args[0], &s);

	if (code)
		return code;
	if (broker_pause(r->api, s.id, pause, &f))
		return f.rc == RC_ABSENT ? sandbox_is_gone(r, s.id) : broker_code(r, &f, API_SANDBOX_UNREACHABLE);
	db_start(&q, r->api->db, "UPDATE sandboxes SET paused = ? WHERE id = ?");
	db_int(&q, pause);
	db_text(&q, s.id);
	return db_run(&q, &f) ? api_fault(r, &f) : sandbox_get(r);
}

enum api_code sandbox_pause(struct request *r)
{
	return pause_or_resume(r, true);
}

enum api_code sandbox_resume(struct request *r)
{
	return pause_or_resume(r, false);
}
