/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/egress_config.h"

#include "fcgi/ids.h"
#include "fcgi/json.h"
#include "fcgi/limits.h"
#include "schema/policy.h"

#include <ctype.h>
#include <string.h>

static const char *const egress_keys[] = { "deny", "rules", "limits", NULL };
static const char *const rule_keys[] = { "host", "methods", "paths", NULL };
static const char *const limit_keys[] = { "bytes_per_second", "total_bytes", "connections_per_second", NULL };
static const char *const limit_words[] = { "bytes_per_s", "total_bytes", "conns_per_s" };

/* Header names are written in any case and compared in none. */
static bool header_ok(const char *s)
{
	char lower[POLICY_WORD_MAX + 1];
	size_t n = strlen(s);

	if (n > POLICY_WORD_MAX)
		return false;
	for (size_t i = 0; i <= n; i++)
		lower[i] = (char)tolower((unsigned char)s[i]);
	return policy_header_ok(lower);
}

static const struct list {
	const char *key;
	bool (*ok)(const char *);
	const char *what;
} lists[] = { { "methods", policy_method_ok, "a method in capitals" },
	      { "paths", policy_path_ok, "the beginning of a path in its plainest form" },
	      { "headers", header_ok, "the name of a header" },
	      { "query", policy_query_ok, "the name of a query parameter" } };

static enum rc check_list(struct json_object *o, const struct list *l, const char *what, struct fault *ret_f)
{
	struct json_object *items = NULL;
	enum rc rc = json_get_array(o, l->key, POLICY_WORDS_MAX, &items, ret_f);
	const char *s;

	if (!rc && items && !json_object_array_length(items))
		return fault_set(ret_f, RC_INVALID, 0, "%s: %s is an empty list, which would allow nothing", what, l->key);
	for (size_t i = 0; !rc && items && i < json_object_array_length(items); i++) {
		rc = json_as_str(json_object_array_get_idx(items, i), l->key, POLICY_WORD_MAX, &s, ret_f);
		if (!rc && !l->ok(s))
			rc = fault_set(ret_f, RC_INVALID, 0, "%s: '%s' is not %s", what, shown(s), l->what);
	}
	return rc;
}

static enum rc check_deny(struct json_object *egress, struct fault *ret_f)
{
	struct json_object *list = NULL;
	enum rc rc = json_get_array(egress, "deny", ALLOW_NET_MAX, &list, ret_f);
	const char *s;

	for (size_t i = 0; !rc && list && i < json_object_array_length(list); i++) {
		rc = json_as_str(json_object_array_get_idx(list, i), "egress: deny", POLICY_PATTERN_MAX, &s, ret_f);
		if (!rc && !policy_pattern_ok(s))
			rc = fault_set(ret_f, RC_INVALID, 0, "egress: deny: '%s' is no host, *.suffix, address or host:port",
				       shown(s));
	}
	return rc;
}

static enum rc check_rule(struct json_object *rule, struct fault *ret_f)
{
	const char *host = NULL;
	enum rc rc;

	if (!json_object_is_type(rule, json_type_object))
		return fault_set(ret_f, RC_INVALID, 0, "egress: rules must be a list of objects");
	rc = json_only_keys(rule, rule_keys, ret_f);
	if (!rc)
		rc = json_get_str(rule, "host", POLICY_PATTERN_MAX, &host, ret_f);
	if (!rc && (!host || !policy_host_ok(host)))
		rc = fault_set(ret_f, RC_INVALID, 0, "egress: rules: '%s' is no host, *.suffix or host:port",
			       host ? shown(host) : "");
	for (size_t i = 0; !rc && i < 2; i++)
		rc = check_list(rule, &lists[i], "egress: rules", ret_f);
	return rc;
}

static enum rc check_limits(struct json_object *egress, struct fault *ret_f)
{
	struct json_object *limits = NULL;
	enum rc rc = json_get_object(egress, "limits", &limits, ret_f);

	if (rc || !limits)
		return rc;
	rc = json_only_keys(limits, limit_keys, ret_f);
	for (size_t i = 0; !rc && limit_keys[i]; i++) {
		int64_t v = 1;

		rc = json_get_int(limits, limit_keys[i], &v, ret_f);
		if (!rc && (v < 1 || (uint64_t)v > POLICY_NUMBER_MAX))
			rc = fault_set(ret_f, RC_INVALID, 0, "egress: limits: %s must be 1 to %llu", limit_keys[i],
				       (unsigned long long)POLICY_NUMBER_MAX);
	}
	return rc;
}

enum rc egress_config_check(struct json_object *egress, struct fault *ret_f)
{
	struct json_object *rules = NULL;
	enum rc rc = json_only_keys(egress, egress_keys, ret_f);

	if (!rc)
		rc = check_deny(egress, ret_f);
	if (!rc)
		rc = json_get_array(egress, "rules", EGRESS_RULES_MAX, &rules, ret_f);
	for (size_t i = 0; !rc && rules && i < json_object_array_length(rules); i++)
		rc = check_rule(json_object_array_get_idx(rules, i), ret_f);
	return rc ? rc : check_limits(egress, ret_f);
}

enum rc egress_secret_check(const char *name, struct json_object *secret, struct fault *ret_f)
{
	enum rc rc = RC_OK;

	for (size_t i = 0; !rc && i < ARRAY_SIZE(lists); i++)
		rc = check_list(secret, &lists[i], name, ret_f);
	return rc;
}

static enum rc put_words(struct buf *b, struct json_object *list, bool lower)
{
	enum rc rc = RC_OK;

	for (size_t i = 0; !rc && i < json_object_array_length(list); i++) {
		const char *s = json_object_get_string(json_object_array_get_idx(list, i));

		rc = i ? buf_puts(b, ",") : RC_OK;
		if (!rc)
			rc = lower ? buf_puts_lower(b, s) : buf_puts(b, s);
	}
	return rc;
}

static enum rc put_rule_line(struct buf *b, struct json_object *rule, const char *path)
{
	struct json_object *methods = json_get(rule, "methods");
	enum rc rc = buf_puts(b, "rule ");

	if (!rc)
		rc = buf_puts_lower(b, json_object_get_string(json_get(rule, "host")));
	if (!rc)
		rc = buf_puts(b, " ");
	if (!rc)
		rc = methods ? put_words(b, methods, false) : buf_puts(b, "*");
	return rc ? rc : buf_printf(b, " %s\n", path);
}

static enum rc put_rule(struct buf *b, struct json_object *rule)
{
	struct json_object *paths = json_get(rule, "paths");
	enum rc rc = paths ? RC_OK : put_rule_line(b, rule, "/");

	for (size_t i = 0; !rc && paths && i < json_object_array_length(paths); i++)
		rc = put_rule_line(b, rule, json_object_get_string(json_object_array_get_idx(paths, i)));
	return rc;
}

static enum rc put_limits(struct buf *b, struct json_object *limits)
{
	bool any = false;
	enum rc rc = RC_OK;

	for (size_t i = 0; !rc && limits && limit_keys[i]; i++) {
		struct json_object *v = json_get(limits, limit_keys[i]);

		if (!v)
			continue;
		rc = buf_printf(b, "%s %s=%lld", any ? "" : "limit", limit_words[i], (long long)json_object_get_int64(v));
		any = true;
	}
	return rc || !any ? rc : buf_puts(b, "\n");
}

enum rc egress_config_put(struct json_object *egress, struct buf *policy)
{
	struct json_object *deny = json_get(egress, "deny"), *rules = json_get(egress, "rules");
	enum rc rc = RC_OK;

	for (size_t i = 0; !rc && deny && i < json_object_array_length(deny); i++) {
		rc = buf_puts(policy, "deny ");
		if (!rc)
			rc = buf_puts_lower(policy, json_object_get_string(json_object_array_get_idx(deny, i)));
		if (!rc)
			rc = buf_puts(policy, "\n");
	}
	for (size_t i = 0; !rc && rules && i < json_object_array_length(rules); i++)
		rc = put_rule(policy, json_object_array_get_idx(rules, i));
	return rc ? rc : put_limits(policy, json_get(egress, "limits"));
}

enum rc egress_secret_put(const char *name, struct json_object *secret, struct buf *policy)
{
	bool any = false;
	enum rc rc = RC_OK;

	for (size_t i = 0; !rc && i < ARRAY_SIZE(lists); i++) {
		struct json_object *list = json_get(secret, lists[i].key);

		if (!list)
			continue;
		rc = any ? RC_OK : buf_printf(policy, "secret-rule %s", name);
		if (!rc)
			rc = buf_printf(policy, " %s=", lists[i].key);
		if (!rc)
			rc = put_words(policy, list, lists[i].ok == header_ok);
		any = true;
	}
	return rc || !any ? rc : buf_puts(policy, "\n");
}
