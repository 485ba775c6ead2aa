/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/egress_judge.h"

#include "fcgi/ids.h"
#include "fcgi/json.h"
#include "fcgi/limits.h"
#include "fcgi/sandbox_config.h"

#include <stdio.h>
#include <string.h>

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

enum rc egress_question_parse(struct json_object *o, struct egress_question *ret, struct fault *ret_f)
{
	static const char *const keys[] = { "policy", "host", "port", "method", "path", NULL };
	struct egress_question q = { .port = 443 };

	if (json_only_keys(o, keys, ret_f) || json_get_str(o, "host", 300, &q.host, ret_f) || json_get_int(o, "port", &q.port, ret_f) ||
	    json_get_str(o, "method", POLICY_METHOD_MAX, &q.method, ret_f) || json_get_str(o, "path", HTTP_PATH_MAX, &q.path, ret_f) ||
	    json_get_object(o, "policy", &q.policy, ret_f))
		return RC_INVALID;
	if (!q.host || q.port < 1 || q.port > 65535)
		return fault_set(ret_f, RC_INVALID, 0, "a host and a port from 1 to 65535 are needed");
	if (!address_get(&q.address, q.host) && !name_normalize(q.name, q.host, strlen(q.host)))
		return fault_set(ret_f, RC_INVALID, 0, "'%s' is neither a name nor an address", shown(q.host));
	if (q.method && !policy_method_ok(q.method))
		return fault_set(ret_f, RC_INVALID, 0, "'%s' is no method", shown(q.method));
	*ret = q;
	return RC_OK;
}

static void judge_request(const struct policy *p, const struct egress_question *q, struct verdict *v)
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

static const char *why(const struct egress_question *q, const struct verdict *v, bool dns, const struct reach *reach)
{
	if (!v->allowed)
		return *q->name && !dns ? "the name does not resolve in the sandbox, and a connection is reset" :
		       *q->name ? "the name resolves, but this connection or request is refused" :
				  "a connection to this address is reset";
	if (*q->name)
		return "allowed by name; the addresses that it resolves to are judged when it is connected to: public or permitted by the operator, and not denied";
	return prefixes_name(&reach->private_ok, &q->address) ? "allowed as an address, one that the operator names by itself" :
	       "allowed as an address; if it is one of this host's own, which only the proxy can tell, it is refused";
}

static enum rc answer(const struct policy *p, const struct egress_question *q, const char *allow_private, struct json_object **ret,
		      struct fault *ret_f)
{
	struct reach reach = { .is_local = NULL }; /* who asks may be in another network, or behind a filter */
	struct verdict v = { 0 }, any = { 0 };
	bool dns = false, intercepted = false;
	struct json_object *o;
	enum rc rc = prefixes_parse(&reach.private_ok, allow_private, ret_f);

	if (rc)
		return rc;
	if (*q->name) {
		dns = policy_evaluate_name(p, q->name, 0, &any);
		intercepted = policy_intercepts(p, q->name, (uint16_t)q->port);
		if (policy_evaluate_name(p, q->name, (uint16_t)q->port, &v) && intercepted && (q->method || q->path))
			judge_request(p, q, &v);
	} else {
		policy_evaluate_address(p, &q->address, (uint16_t)q->port, &reach, &v);
	}
	o = json_object_new_object();
	json_add_str(o, "decision", v.allowed ? "allow" : "deny");
	json_add_str(o, "rule", v.rule);
	json_add_str(o, "why", why(q, &v, dns, &reach));
	json_add_bool(o, "resolves", *q->name ? dns : true);
	json_add_bool(o, "intercepted", intercepted);
	*ret = o;
	return RC_OK;
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

enum rc egress_judge(const struct egress_question *q, const char *org, const char *allow_private, struct json_object **ret,
		     struct fault *ret_f)
{
	static const struct seal_key no_key;
	struct sandbox_config config = { 0 };
	struct sandbox_policy text = { 0 };
	struct policy *p = NULL;
	enum rc rc;

	if (!q->policy)
		return fault_set(ret_f, RC_INVALID, 0, "a policy is needed: an object of allow_net, secrets and egress");
	values_fill(q->policy);
	rc = sandbox_config_parse_egress(q->policy, &config, ret_f);
	if (!rc)
		rc = sandbox_policy_make(&config, "none", org, &no_key, &text, ret_f);
	if (!rc)
		rc = policy_parse(text.policy, strlen(text.policy), &p, ret_f);
	if (!rc)
		rc = answer(p, q, allow_private, ret, ret_f);
	policy_free(p);
	sandbox_policy_free(&text);
	sandbox_config_free(&config);
	return rc;
}
