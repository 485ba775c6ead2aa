/* SPDX-License-Identifier: Apache-2.0 */
#include "base/buf.h"
#include "fcgi/egress_config.h"
#include "fcgi/ids.h"
#include "fcgi/json.h"
#include "fcgi/policy_text.h"
#include "fcgi/sandbox_config.h"
#include "schema/broker.h"
#include "schema/policy.h"

#include <stdio.h>
#include <string.h>

static enum rc put_secret(struct buf *policy, struct buf *env, const char *name, struct json_object *secret,
			  const char *vm_id, const struct seal_key *key, struct fault *ret_f)
{
	struct json_object *hosts = json_get(secret, "hosts");
	_cleanup_free_ char *sealed = NULL;
	char placeholder[PLACEHOLDER_MAX], ad[ID_MAX + ENV_NAME_MAX + 2];
	enum rc rc;

	placeholder_make(placeholder);
	snprintf(ad, sizeof(ad), "%s %s", vm_id, name);
	rc = seal(key, json_object_get_string(json_get(secret, "value")), ad, &sealed, ret_f);
	if (rc)
		return rc;
	rc = buf_printf(policy, "secret %s %s %s ", name, placeholder, sealed);
	for (size_t i = 0; !rc && i < json_object_array_length(hosts); i++) {
		if (i)
			rc = buf_puts(policy, ",");
		if (!rc)
			rc = buf_puts_lower(policy, json_object_get_string(json_object_array_get_idx(hosts, i)));
	}
	if (!rc)
		rc = buf_puts(policy, "\n");
	if (!rc)
		rc = egress_secret_put(name, secret, policy);
	if (!rc)
		rc = buf_printf(env, "%s=%s", name, placeholder);
	if (!rc)
		rc = buf_put(env, "", 1);
	return rc;
}

static enum rc put_policy(const struct sandbox_config *c, const char *vm_id, const char *org,
			  const struct seal_key *key, struct buf *policy, struct buf *env, struct fault *ret_f)
{
	enum rc rc = buf_printf(policy, "%s\norg %s\ndefault %s\n", POLICY_HEAD, org, c->allow_net ? "none" : "public");

	for (size_t i = 0; !rc && c->allow_net && i < json_object_array_length(c->allow_net); i++) {
		rc = buf_puts(policy, "allow ");
		if (!rc)
			rc = buf_puts_lower(policy, json_object_get_string(json_object_array_get_idx(c->allow_net, i)));
		if (!rc)
			rc = buf_puts(policy, "\n");
	}
	if (!rc && c->egress)
		rc = egress_config_put(c->egress, policy);
	if (rc || !c->secrets)
		return rc;
	json_object_object_foreach(c->secrets, name, secret)
	{
		rc = put_secret(policy, env, name, secret, vm_id, key, ret_f);
		if (rc)
			return rc;
	}
	return RC_OK;
}

/* More, and the proxy would take the whole policy for invalid. */
static enum rc lines_fit(const struct buf *policy)
{
	size_t n = 0;

	for (size_t i = 0; i < buf_len(policy); i++)
		n += buf_data(policy)[i] == '\n';
	return n > POLICY_LINES_MAX ? RC_LIMIT : RC_OK;
}

static enum rc take_text(struct buf *b, char **ret, size_t *ret_n)
{
	size_t n = buf_len(b);
	char *s = malloc(n + 1);

	if (!s)
		return RC_NOMEM;
	if (n)
		memcpy(s, buf_data(b), n);
	s[n] = '\0';
	*ret = s;
	*ret_n = n;
	return RC_OK;
}

enum rc sandbox_policy_make(const struct sandbox_config *c, const char *vm_id, const char *org,
			    const struct seal_key *key, struct sandbox_policy *ret, struct fault *ret_f)
{
	_cleanup_buf_ struct buf policy = BUF_INIT(BROKER_POLICY_MAX), env = BUF_INIT(BROKER_ENV_MAX - 1024);
	struct sandbox_policy p = { 0 };
	size_t n;
	enum rc rc;

	if (c->secrets && json_object_object_length(c->secrets) && !key)
		return fault_set(ret_f, RC_STATE, 0, "secrets need the key file %s", POLICY_KEY_FILE);
	rc = put_policy(c, vm_id, org, key, &policy, &env, ret_f);
	if (!rc)
		rc = lines_fit(&policy);
	if (!rc)
		rc = take_text(&policy, &p.policy, &n);
	if (!rc)
		rc = take_text(&env, &p.env, &p.env_n);
	if (rc) {
		sandbox_policy_free(&p);
		return rc == RC_LIMIT ? fault_set(ret_f, rc, 0, "allow_net, egress and secrets are too large together") :
					fault_set(ret_f, rc, 0, "egress policy");
	}
	*ret = p;
	return RC_OK;
}

void sandbox_policy_free(struct sandbox_policy *p)
{
	free(p->policy);
	free(p->env);
	*p = (struct sandbox_policy){ 0 };
}
