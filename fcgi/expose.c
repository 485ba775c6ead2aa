/* SPDX-License-Identifier: Apache-2.0 */
#include "base/fd.h"
#include "base/hex.h"
#include "base/log.h"
#include "fcgi/handlers.h"
#include "fcgi/peers.h"
#include "fcgi/sandboxes.h"

#include <stdio.h>
#include <string.h>

/* One statement, so that requests at once are counted one after the other. RC_LIMIT: as many as a sandbox may have. */
static enum rc domain_insert(struct request *r, const char *host, const char *id, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum rc rc;

	db_start(&q, r->api->db,
		 "INSERT INTO domains (host, sandbox_id, created_ms) SELECT ?1, ?2, ?3 WHERE ?4 > "
		 "(SELECT count(*) FROM domains WHERE sandbox_id = ?2)");
	db_text(&q, host);
	db_text(&q, id);
	db_int(&q, (int64_t)wall_ms());
	db_int(&q, EXPOSURES_MAX);
	rc = db_run(&q, ret_f);
	return !rc && !q.changes ? fault_set(ret_f, RC_LIMIT, 0, "too many exposures") : rc;
}

static void domain_delete(struct request *r, const char *host)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	db_start(&q, r->api->db, "DELETE FROM domains WHERE host = ?");
	db_text(&q, host);
	db_run(&q, NULL);
}

/* The SDK hands `domain` to the agent as it is, so the line that the broker will send says the same, port included. */
static enum api_code expose_http(struct request *r, const char *id)
{
	const struct config *cfg = &r->api->config;
	char label[ID_RANDOM + 1], host[BROKER_HOST_MAX], domain[BROKER_HOST_MAX + 8], port[8] = "";
	_cleanup_json_ struct json_object *line = json_object_new_object();
	struct json_object *answer;
	struct fault f = { 0 };

	id_random(label, ID_RANDOM);
	if (cfg->https_port != 443)
		snprintf(port, sizeof(port), ":%u", (unsigned int)cfg->https_port & 0xffffu);
	if (snprintf(host, sizeof(host), "%s.%s", label, cfg->domain) >= (int)sizeof(host))
		return api_fail(r, API_INTERNAL, "the configured domain is too long");
	snprintf(domain, sizeof(domain), "%s%s", host, port);
	json_add_str(line, "service", "http");
	json_add_str(line, "domain", domain);
	if (!line)
		return API_BUSY;
	if (domain_insert(r, host, id, &f))
		return f.rc == RC_LIMIT ? API_EXPOSURE_QUOTA_EXCEEDED : api_fault(r, &f);
	if (broker_expose_add(r->api, id, r->org_id, host, json_text(line), &f)) {
		domain_delete(r, host);
		return f.rc == RC_ABSENT ? sandbox_is_gone(r, id) : broker_code(r, &f, API_SANDBOX_UNREACHABLE);
	}
	answer = json_object_new_object();
	json_add_str(answer, "domain", domain);
	return reply_json(r, 200, answer);
}

enum api_code sandbox_expose_http(struct request *r)
{
	struct sandbox_found s = { 0 };
	struct json_object *body = NULL;
	enum api_code code = sandbox_find_live(r, r->args[0], &s);

	if (!code)
		code = request_json(r, true, &body);
	return code ? code : expose_http(r, s.id);
}

/* The name is all that a client has to prove, so only its hash is kept, and a second call makes a second one. */
static enum api_code expose_ssh(struct request *r, const char *id)
{
	const struct config *cfg = &r->api->config;
	char name[SSH_NAME_CHARS + 1], key[2 * SHA256_BYTES + 1], host[BROKER_HOST_MAX];
	struct json_object *answer;
	uint8_t hash[SHA256_BYTES];
	struct fault f = { 0 };

	if (!cfg->ssh_port)
		return api_fail(r, API_NOT_SUPPORTED, "this host has no SSH gateway (ssh_port in nestbox.conf)");
	if (snprintf(host, sizeof(host), "ssh.%s", cfg->domain) >= (int)sizeof(host))
		return api_fail(r, API_INTERNAL, "the configured domain is too long");
	id_random(name, SSH_NAME_CHARS);
	sha256(name, SSH_NAME_CHARS, hash);
	hex_of(key, hash, sizeof(hash));
	if (broker_login_add(r->api, id, key, &f)) {
		if (f.rc == RC_ABSENT)
			return sandbox_is_gone(r, id);
		if (f.rc == RC_LIMIT)
			return api_fail(r, API_EXPOSURE_QUOTA_EXCEEDED, "this sandbox has its maximum of SSH user names");
		return broker_code(r, &f, API_SANDBOX_UNREACHABLE);
	}
	answer = json_object_new_object();
	json_add_str(answer, "hostname", host);
	json_add_str(answer, "username", name);
	json_add_int(answer, "port", (int64_t)cfg->ssh_port);
	return reply_json(r, 200, answer);
}

enum api_code sandbox_expose_ssh(struct request *r)
{
	struct sandbox_found s = { 0 };
	enum api_code code = sandbox_find_live(r, r->args[0], &s);

	return code ? code : expose_ssh(r, s.id);
}

/* All of its names at once; who is logged in by one is disconnected. */
enum api_code sandbox_revoke_ssh(struct request *r)
{
	struct sandbox_found s = { 0 };
	struct fault f = { 0 };
	enum api_code code = sandbox_find_live(r, r->args[0], &s);

	if (code)
		return code;
	if (broker_login_clear(r->api, s.id, &f))
		return f.rc == RC_ABSENT ? sandbox_is_gone(r, s.id) : broker_code(r, &f, API_SANDBOX_UNREACHABLE);
	return reply_empty(r, 204);
}

enum api_code sandbox_expose_vscode(struct request *r)
{
	return sandbox_expose_http(r);
}
