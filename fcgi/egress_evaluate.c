/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a policy would decide, asked of the code that decides (schema/verdict.h). Nothing is resolved and nothing is sent: of a
 * name only the name is judged, and what it may resolve to is said to be judged later.
 */
#include "fcgi/handlers.h"
#include "fcgi/sandbox_config.h"
#include "schema/verdict.h"

#include <stdio.h>
#include <string.h>

struct question {
	const char *host, *method, *path;
	int64_t port;
	char name[POLICY_NAME_MAX]; /* empty: address */
	struct address address;
};

/* "[::1]" as well as "::1". */
static bool address_get(struct address *ret, const char *host)
{
	char text[ADDRESS_TEXT_MAX + 2];
	size_t n = strlen(host);

	if (*host == '[' && n > 2 && n < sizeof(text) && host[n - 1] == ']') {
		snprintf(text, sizeof(text), "%.*s", (int)n - 2, host + 1);
		return address_parse(ret, text);
	}
	return address_parse(ret, host);
}

static enum api_code question_parse(struct request *r, struct json_object *body, struct question *q, struct json_object **ret_policy)
{
	static const char *const keys[] = { "policy", "host", "port", "method", "path", NULL };
	struct fault f = { 0 };

	q->port = 443;
	if (json_only_keys(body, keys, &f) || json_get_str(body, "host", 300, &q->host, &f) || json_get_int(body, "port", &q->port, &f) ||
	    json_get_str(body, "method", POLICY_METHOD_MAX, &q->method, &f) || json_get_str(body, "path", HTTP_PATH_MAX, &q->path, &f) ||
	    json_get_object(body, "policy", ret_policy, &f))
		return api_refuse(r, API_INVALID_REQUEST, &f);
	if (!q->host || q->port < 1 || q->port > 65535)
		return api_fail(r, API_INVALID_REQUEST, "a host and a port from 1 to 65535 are needed");
	if (!address_get(&q->address, q->host) && !name_normalize(q->name, q->host, strlen(q->host)))
		return api_fail(r, API_INVALID_REQUEST, "'%s' is neither a name nor an address", shown(q->host));
	if (q->method && !policy_method_ok(q->method))
		return api_fail(r, API_INVALID_REQUEST, "'%s' is no method", shown(q->method));
	return API_OK;
}

static void judge_request(const struct policy *p, const struct question *q, struct verdict *v)
{
	char path[HTTP_PATH_MAX] = "/";

	if (q->path && policy_path_normalize(q->path, strcspn(q->path, "?"), path, sizeof(path)) != POLICY_PATH_OK &&
	    policy_judges_paths(p, q->name, (uint16_t)q->port)) {
		v->allowed = false;
		snprintf(v->rule, sizeof(v->rule), "servers read this path in different ways");
		return;
	}
	policy_evaluate_request(p, q->name, (uint16_t)q->port, q->method ? q->method : "GET", path, v);
}

static const char *why(const struct question *q, const struct verdict *v, bool dns)
{
	if (!v->allowed)
		return *q->name && !dns ? "the name does not resolve in the sandbox, and a connection is reset" :
		       *q->name ? "the name resolves, but this connection or request is refused" :
				  "a connection to this address is reset";
	return *q->name ? "allowed by name; the addresses that it resolves to are judged when it is connected to: public or permitted by the operator, and not denied" :
			  "allowed as an address; the host's own addresses are refused by the proxy in any case";
}

static enum api_code answer(struct request *r, const struct policy *p, const struct question *q)
{
	struct reach reach = { .is_local = NULL }; /* a worker cannot ask the kernel */
	struct verdict v = { 0 }, any = { 0 };
	struct json_object *o = json_object_new_object();
	struct fault f = { 0 };
	bool dns = false, intercepted = false;

	if (prefixes_parse(&reach.private_ok, r->api->config.egress_allow_private, &f)) {
		json_object_put(o);
		return api_fault(r, &f);
	}
	if (*q->name) {
		dns = policy_evaluate_name(p, q->name, 0, &any);
		intercepted = policy_intercepts(p, q->name, (uint16_t)q->port);
		if (policy_evaluate_name(p, q->name, (uint16_t)q->port, &v) && intercepted && (q->method || q->path))
			judge_request(p, q, &v);
	} else {
		policy_evaluate_address(p, &q->address, (uint16_t)q->port, &reach, &v);
	}
	json_add_str(o, "decision", v.allowed ? "allow" : "deny");
	json_add_str(o, "rule", v.rule);
	json_add_str(o, "why", why(q, &v, dns));
	json_add_bool(o, "resolves", *q->name ? dns : true);
	json_add_bool(o, "intercepted", intercepted);
	return reply_json(r, 200, o);
}

/* Secrets matter for which hosts are intercepted; their values do not. */
static void values_fill(struct json_object *policy)
{
	struct json_object *secrets = json_get(policy, "secrets");

	if (!json_object_is_type(secrets, json_type_object))
		return;
	json_object_object_foreach(secrets, name, secret)
	{
		(void)name;
		if (json_object_is_type(secret, json_type_object) && !json_get(secret, "value"))
			json_add_str(secret, "value", "none");
	}
}

enum api_code egress_evaluate(struct request *r)
{
	static const struct seal_key no_key;
	struct json_object *body = NULL, *wanted = NULL;
	struct sandbox_config config = { 0 };
	struct sandbox_policy text = { 0 };
	struct policy *p = NULL;
	struct question q = { 0 };
	struct fault f = { 0 };
	enum api_code code = request_json(r, false, &body);

	if (!code)
		code = question_parse(r, body, &q, &wanted);
	if (code)
		return code;
	if (!wanted)
		return api_fail(r, API_INVALID_REQUEST, "a policy is needed: an object of allow_net, secrets and egress");
	values_fill(wanted);
	if (sandbox_config_parse_egress(wanted, &config, &f))
		return f.rc == RC_INVALID ? api_refuse(r, API_INVALID_CONFIG, &f) : api_fault(r, &f);
	if (sandbox_policy_make(&config, "none", r->org_name, &no_key, &text, &f))
		code = f.rc == RC_LIMIT ? api_refuse(r, API_INVALID_CONFIG, &f) : api_fault(r, &f);
	else if (policy_parse(text.policy, strlen(text.policy), &p, &f))
		code = api_refuse(r, API_INVALID_CONFIG, &f);
	else
		code = answer(r, p, &q);
	policy_free(p);
	sandbox_policy_free(&text);
	sandbox_config_free(&config);
	return code;
}
