/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/sandbox_config.h"

#include "fcgi/egress_config.h"
#include "fcgi/ids.h"
#include "fcgi/json.h"
#include "schema/policy.h"

#include <string.h>

static const char *const config_keys[] = { "stop_at_ms", "memory_mb", "labels", "root", "volumes", "allow_net",
					   "secrets", "egress", NULL };
static const char *const root_keys[] = { "volume", NULL };
static const char *const volume_keys[] = { "volume", "path", NULL };
static const char *const secret_keys[] = { "hosts", "value", "methods", "paths", "headers", "query", NULL };

struct parse {
	const struct sandbox_bounds *bounds;
	struct sandbox_config *c;
	enum api_code code;
	struct fault *f;
};

static enum rc parse_stop_at(struct parse *p)
{
	int64_t at = 0;
	uint64_t now = p->bounds->now_ms;
	enum rc rc = json_get_int(p->c->json, "stop_at_ms", &at, p->f);

	if (rc || !json_get(p->c->json, "stop_at_ms"))
		return rc;
	p->code = API_INVALID_STOP_AT;
	if (at <= 0 || (uint64_t)at <= now)
		return fault_set(p->f, RC_INVALID, 0, "stop_at_ms lies in the past");
	if (p->bounds->stop_max_s && (uint64_t)at - now > p->bounds->stop_max_s * 1000)
		return fault_set(p->f, RC_INVALID, 0, "stop_at_ms is more than %llu s away",
				 (unsigned long long)p->bounds->stop_max_s);
	if (at > 253402300799000) /* the year 10000 has no ISO 8601 time */
		return fault_set(p->f, RC_INVALID, 0, "stop_at_ms is too far away");
	p->c->stop_at_ms = (uint64_t)at;
	return RC_OK;
}

static enum rc parse_memory(struct parse *p)
{
	int64_t mib = (int64_t)p->bounds->memory_mib_default;
	enum rc rc = json_get_int(p->c->json, "memory_mb", &mib, p->f);

	if (rc)
		return rc;
	p->code = API_INVALID_MEMORY;
	if (mib < 0 || (uint64_t)mib < p->bounds->memory_mib_min || (uint64_t)mib > p->bounds->memory_mib_max)
		return fault_set(p->f, RC_INVALID, 0, "memory_mb must be %llu to %llu",
				 (unsigned long long)p->bounds->memory_mib_min,
				 (unsigned long long)p->bounds->memory_mib_max);
	/* Each size that runs has a template of its own, on disk and in the broker: those who ask must not choose how many. */
	mib = (mib + (int64_t)p->bounds->memory_mib_step - 1) / (int64_t)p->bounds->memory_mib_step *
	      (int64_t)p->bounds->memory_mib_step;
	p->c->memory_mib = (uint32_t)MIN_OF((uint64_t)mib, p->bounds->memory_mib_max);
	return RC_OK;
}

static enum rc parse_labels(struct parse *p)
{
	enum rc rc = json_get_object(p->c->json, "labels", &p->c->labels, p->f);

	if (rc || !p->c->labels)
		return rc;
	p->code = API_INVALID_LABELS;
	return json_check_labels(p->c->labels, p->f);
}

static enum rc parse_root(struct parse *p)
{
	struct json_object *root = NULL;
	enum rc rc = json_get_object(p->c->json, "root", &root, p->f);

	if (rc || !root)
		return rc;
	rc = json_only_keys(root, root_keys, p->f);
	if (!rc)
		rc = json_get_str(root, "volume", ID_MAX, &p->c->root, p->f);
	if (!rc && (!p->c->root || !*p->c->root))
		rc = fault_set(p->f, RC_INVALID, 0, "root needs a volume");
	return rc;
}

static enum rc parse_mount(struct parse *p, struct json_object *v, struct sandbox_mount *m)
{
	enum rc rc;

	if (!json_object_is_type(v, json_type_object))
		return fault_set(p->f, RC_INVALID, 0, "volumes must be a list of objects");
	rc = json_only_keys(v, volume_keys, p->f);
	if (!rc)
		rc = json_get_str(v, "volume", ID_MAX, &m->volume, p->f);
	if (!rc)
		rc = json_get_str(v, "path", MOUNT_PATH_MAX, &m->path, p->f);
	if (rc)
		return rc;
	if (!m->volume || !*m->volume || !m->path)
		return fault_set(p->f, RC_INVALID, 0, "volumes need a volume and a path each");
	p->code = API_INVALID_PATH;
	if (!path_is_clean(m->path, MOUNT_PATH_MAX) || !m->path[1])
		return fault_set(p->f, RC_INVALID, 0, "a volume's path must be absolute, without . and .., and not /");
	p->code = API_INVALID_CONFIG;
	return RC_OK;
}

static enum rc parse_mounts(struct parse *p)
{
	struct sandbox_config *c = p->c;
	struct json_object *list = NULL;
	enum rc rc = json_get_array(c->json, "volumes", VOLUMES_MAX, &list, p->f);

	for (size_t i = 0; !rc && list && i < json_object_array_length(list); i++) {
		struct sandbox_mount *m = &c->mounts[i];

		rc = parse_mount(p, json_object_array_get_idx(list, i), m);
		for (size_t k = 0; !rc && k < i; k++)
			if (!strcmp(c->mounts[k].path, m->path) || !strcmp(c->mounts[k].volume, m->volume))
				rc = fault_set(p->f, RC_INVALID, 0, "volumes names a volume or a path twice");
		if (!rc && c->root && !strcmp(c->root, m->volume))
			rc = fault_set(p->f, RC_INVALID, 0, "a volume is root and mounted as well");
		c->n_mounts = i + 1;
	}
	return rc;
}

static enum rc parse_allow_net(struct parse *p)
{
	enum rc rc = json_get_array(p->c->json, "allow_net", ALLOW_NET_MAX, &p->c->allow_net, p->f);
	const char *s;

	for (size_t i = 0; !rc && p->c->allow_net && i < json_object_array_length(p->c->allow_net); i++) {
		rc = json_as_str(json_object_array_get_idx(p->c->allow_net, i), "allow_net", POLICY_PATTERN_MAX, &s, p->f);
		if (!rc && !policy_pattern_ok(s))
			rc = fault_set(p->f, RC_INVALID, 0, "allow_net: '%s' is no host, *.suffix, address or host:port",
				       shown(s));
	}
	return rc;
}

static enum rc parse_secret(struct parse *p, const char *name, struct json_object *v)
{
	struct json_object *hosts = NULL;
	const char *value = NULL, *host;
	enum rc rc;

	if (!env_name_is_valid(name))
		return fault_set(p->f, RC_INVALID, 0, "secrets: '%s' is no name of a variable", shown(name));
	if (!json_object_is_type(v, json_type_object))
		return fault_set(p->f, RC_INVALID, 0, "secrets: %s must be an object", name);
	rc = json_only_keys(v, secret_keys, p->f);
	if (!rc)
		rc = json_get_array(v, "hosts", SECRET_HOSTS_MAX, &hosts, p->f);
	if (!rc)
		rc = json_get_str(v, "value", POLICY_SECRET_VALUE_MAX, &value, p->f);
	if (rc)
		return rc;
	if (!hosts || !json_object_array_length(hosts) || !value || !*value)
		return fault_set(p->f, RC_INVALID, 0, "secrets: %s needs a value and at least one host", name);
	/* It becomes part of a header line. */
	if (strpbrk(value, "\r\n"))
		return fault_set(p->f, RC_INVALID, 0, "secrets: the value of %s has a line break", name);
	for (size_t i = 0; !rc && i < json_object_array_length(hosts); i++) {
		rc = json_as_str(json_object_array_get_idx(hosts, i), "secrets: host", POLICY_PATTERN_MAX, &host, p->f);
		if (!rc && (strchr(host, ':') || !policy_host_ok(host)))
			rc = fault_set(p->f, RC_INVALID, 0, "secrets: '%s' is no host name", shown(host));
	}
	return rc ? rc : egress_secret_check(name, v, p->f);
}

static enum rc parse_secrets(struct parse *p)
{
	enum rc rc = json_get_object(p->c->json, "secrets", &p->c->secrets, p->f);

	if (rc || !p->c->secrets)
		return rc;
	if (json_object_object_length(p->c->secrets) > POLICY_SECRETS_MAX)
		return fault_set(p->f, RC_INVALID, 0, "secrets: at most %d", POLICY_SECRETS_MAX);
	json_object_object_foreach(p->c->secrets, name, value)
	{
		rc = parse_secret(p, name, value);
		if (rc)
			return rc;
	}
	return RC_OK;
}

static enum rc parse_egress(struct parse *p)
{
	enum rc rc = json_get_object(p->c->json, "egress", &p->c->egress, p->f);

	return rc || !p->c->egress ? rc : egress_config_check(p->c->egress, p->f);
}

/* The SDK encodes with btoa(), which takes one byte a character: Latin-1. */
static enum rc parse_latin1(struct parse *p, const uint8_t *plain, size_t n)
{
	_cleanup_free_ char *utf8 = malloc(2 * n + 1);
	size_t k = 0;

	if (!utf8)
		return fault_set(p->f, RC_NOMEM, 0, "out of memory");
	for (size_t i = 0; i < n; i++) {
		if (plain[i] >= 0x80)
			utf8[k++] = (char)(0xc0 | plain[i] >> 6);
		utf8[k++] = (char)(plain[i] < 0x80 ? plain[i] : 0x80 | (plain[i] & 0x3f));
	}
	return json_parse_object(utf8, k, JSON_DEPTH_CONFIG, &p->c->json, p->f);
}

static enum rc parse_json(struct parse *p, const char *text)
{
	_cleanup_free_ uint8_t *plain = NULL;
	size_t n = strlen(text), plain_n = 0;
	enum rc rc;

	if (n > CONFIG_HEADER_MAX) {
		p->code = API_CONFIG_TOO_LARGE;
		return fault_set(p->f, RC_INVALID, 0, "x-deno-sandbox-config is longer than %d characters",
				 CONFIG_HEADER_MAX);
	}
	rc = base64_decode(text, n, &plain, &plain_n, p->f);
	if (!rc)
		rc = json_parse_object((const char *)plain, plain_n, JSON_DEPTH_CONFIG, &p->c->json, p->f);
	if (rc == RC_INVALID && plain)
		rc = parse_latin1(p, plain, plain_n);
	if (rc == RC_INVALID)
		fault_wrap(p->f, "x-deno-sandbox-config");
	return rc;
}

enum rc sandbox_config_parse(const char *text, const struct sandbox_bounds *bounds, struct sandbox_config *ret,
			     enum api_code *ret_code, struct fault *ret_f)
{
	static enum rc (*const steps[])(struct parse *) = { parse_stop_at, parse_memory,    parse_labels, parse_root,
							    parse_mounts,  parse_allow_net, parse_secrets, parse_egress };
	struct fault local = { 0 };
	struct sandbox_config c = { 0 };
	struct parse p = { .bounds = bounds, .c = &c, .code = API_INVALID_CONFIG, .f = ret_f ? ret_f : &local };
	enum rc rc = RC_OK;

	if (text)
		rc = parse_json(&p, text);
	else
		c.json = json_object_new_object();
	if (!rc && !c.json)
		rc = fault_set(p.f, RC_NOMEM, 0, "configuration");
	if (!rc)
		rc = json_only_keys(c.json, config_keys, p.f);
	for (size_t i = 0; !rc && i < ARRAY_SIZE(steps); i++) {
		p.code = API_INVALID_CONFIG;
		rc = steps[i](&p);
	}
	if (rc) {
		*ret_code = rc == RC_INVALID ? p.code : API_BUSY;
		sandbox_config_free(&c);
		return rc;
	}
	*ret = c;
	return RC_OK;
}

enum rc sandbox_config_parse_egress(struct json_object *o, struct sandbox_config *ret, struct fault *ret_f)
{
	static const char *const keys[] = { "allow_net", "secrets", "egress", NULL };
	struct sandbox_config c = { .json = json_object_get(o) };
	struct parse p = { .c = &c, .f = ret_f };
	enum rc rc = json_only_keys(o, keys, ret_f);

	if (!rc)
		rc = parse_allow_net(&p);
	if (!rc)
		rc = parse_secrets(&p);
	if (!rc)
		rc = parse_egress(&p);
	if (rc) {
		sandbox_config_free(&c);
		return rc;
	}
	*ret = c;
	return RC_OK;
}

void sandbox_config_free(struct sandbox_config *c)
{
	json_object_put(c->json);
	*c = (struct sandbox_config){ 0 };
}

struct json_object *sandbox_config_record(const struct sandbox_config *c)
{
	struct json_object *o = json_object_new_object();

	json_object_object_foreach(c->json, key, value)
	{
		if (strcmp(key, "secrets") != 0)
			json_add(o, key, json_object_get(value));
	}
	if (o && c->secrets) {
		struct json_object *secrets = json_object_new_object();

		json_object_object_foreach(c->secrets, name, secret)
		{
			struct json_object *one = json_object_new_object();

			for (const char *const *k = secret_keys; *k; k++)
				if (strcmp(*k, "value") != 0 && json_get(secret, *k))
					json_add(one, *k, json_object_get(json_get(secret, *k)));
			json_add(secrets, name, one);
		}
		json_add(o, "secrets", secrets);
	}
	return o;
}
