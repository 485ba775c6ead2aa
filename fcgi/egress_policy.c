/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The egress policy of a running sandbox.
 *
 * Theory: what was asked for stands in the sandbox's record, without values; what is in force stands with the broker, values sealed. A
 * change is made of both: the new configuration is checked and written like one of `create`, then each secret that was there
 * keeps its placeholder, which processes in the guest have in their environment, and one that came without a value keeps its sealed
 * value. So a rotation changes nothing in the guest. Placeholders of new secrets are given to processes that start from then on.
 * A value can be set and not be read: so whoever wants to send it to other places than before has to know it. What counts as
 * before is the policy in force, where value and places stand in one line: of two changes at once the last record and the last
 * policy may be those of different ones.
 */
#include "base/buf.h"
#include "base/log.h"
#include "fcgi/handlers.h"
#include "fcgi/peers.h"
#include "fcgi/policy_text.h"
#include "fcgi/sandbox_config.h"
#include "fcgi/sandboxes.h"
#include "schema/policy.h"

#include <stdio.h>
#include <string.h>

#define KEPT "kept" /* stands for a value that was not sent */

static const char *const parts[] = { "allow_net", "secrets", "egress", NULL };

struct change {
	struct request *r;
	char id[ID_MAX];
	struct json_object *record; /* of the sandbox: its whole configuration */
	struct json_object *wanted; /* allow_net, secrets, egress */
	char *now;                  /* the policy in force */
	struct sandbox_config config;
	struct sandbox_policy policy;
};

static void change_free(struct change *c)
{
	json_object_put(c->record);
	json_object_put(c->wanted);
	free(c->now);
	sandbox_config_free(&c->config);
	sandbox_policy_free(&c->policy);
}

static enum api_code change_begin(struct request *r, struct change *c)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	struct sandbox_found s = { 0 };
	struct fault f = { 0 };
	enum api_code code = sandbox_find_live(r, r->args[0], &s);

	c->r = r;
	if (code)
		return code;
	snprintf(c->id, sizeof(c->id), "%s", s.id);
	db_start(&q, r->api->db, "SELECT config FROM sandboxes WHERE id = ?");
	db_text(&q, c->id);
	if (db_row(&q, &f))
		return api_fault(r, &f);
	c->record = json_stored(db_col_text(&q, 0));
	if (!c->record)
		return API_BUSY;
	if (broker_policy_get(r->api, c->id, &c->now, &f))
		return f.rc == RC_ABSENT ? sandbox_is_gone(r, c->id) : broker_code(r, &f, API_SANDBOX_UNREACHABLE);
	return API_OK;
}

/* As a client sees it: the record's part of it, with placeholders. */
static enum api_code change_reply(struct change *c)
{
	struct json_object *o = json_object_new_object(), *secrets = json_object_new_object(), *old = json_get(c->record, "secrets");

	json_add(o, "allow_net", json_object_get(json_get(c->record, "allow_net")));
	json_add(o, "egress", json_object_get(json_get(c->record, "egress")));
	if (json_object_is_type(old, json_type_object)) {
		json_object_object_foreach(old, name, secret)
		{
			const char *at = policy_secret_find(c->now, name);
			struct json_object *one = NULL;
			char placeholder[128];

			if (json_object_deep_copy(secret, &one, NULL) < 0)
				continue;
			if (at && (size_t)snprintf(placeholder, sizeof(placeholder), "%.*s", (int)strcspn(at, " "), at) < sizeof(placeholder))
				json_add_str(one, "placeholder", placeholder);
			json_add(secrets, name, one);
		}
	}
	json_add(o, "secrets", secrets);
	return reply_json(c->r, 200, o);
}

enum api_code egress_policy_get(struct request *r)
{
	_cleanup_(change_free) struct change c = { 0 };
	enum api_code code = change_begin(r, &c);

	return code ? code : change_reply(&c);
}

/* --- what is wanted ---------------------------------------------------------------------------------------------- */

/* A secret's members replace the record's; null removes the secret. */
static void merge_secrets(struct json_object *into, struct json_object *from)
{
	json_object_object_foreach(from, name, secret)
	{
		struct json_object *old = json_get(into, name);

		if (!secret) {
			json_object_object_del(into, name);
		} else if (old && json_object_is_type(secret, json_type_object)) {
			json_object_object_foreach(secret, key, value)
			{
				if (value)
					json_add(old, key, json_object_get(value));
				else
					json_object_object_del(old, key);
			}
		} else {
			json_add(into, name, json_object_get(secret));
		}
	}
}

static struct json_object *merge(struct json_object *record, struct json_object *body)
{
	struct json_object *o = json_object_new_object();

	for (const char *const *k = parts; *k; k++) {
		struct json_object *had = json_get(record, *k), *copy = NULL, *want = NULL;
		bool named = json_object_object_get_ex(body, *k, &want);

		if (!named || (!strcmp(*k, "secrets") && json_object_is_type(want, json_type_object))) {
			if (had && json_object_deep_copy(had, &copy, NULL) < 0)
				continue;
			if (named && !copy)
				copy = json_object_new_object();
			if (named)
				merge_secrets(copy, want);
			if (copy)
				json_add(o, *k, copy);
		} else if (want) {
			json_add(o, *k, json_object_get(want));
		}
	}
	/* What nobody knows is refused when it is parsed. */
	json_object_object_foreach(body, key, value)
	{
		if (strcmp(key, "allow_net") && strcmp(key, "secrets") && strcmp(key, "egress"))
			json_add(o, key, json_object_get(value));
	}
	return o;
}

static bool list_has(struct json_object *list, struct json_object *v)
{
	for (size_t i = 0; i < json_object_array_length(list); i++)
		if (json_object_equal(json_object_array_get_idx(list, i), v))
			return true;
	return false;
}

/* Goes to no place where it did not go before. */
static bool no_wider(struct json_object *old, struct json_object *wanted)
{
	struct json_object *had = json_get(old, "hosts"), *hosts = json_get(wanted, "hosts");

	json_object_object_foreach(old, key, value)
	{
		if (strcmp(key, "hosts") != 0 && !json_object_equal(value, json_get(wanted, key)))
			return false;
	}
	json_object_object_foreach(wanted, other, more)
	{
		if (strcmp(other, "hosts") != 0 && !json_object_equal(more, json_get(old, other)))
			return false;
	}
	if (!json_object_is_type(had, json_type_array) || !json_object_is_type(hosts, json_type_array))
		return false;
	for (size_t i = 0; i < json_object_array_length(hosts); i++)
		if (!list_has(had, json_object_array_get_idx(hosts, i)))
			return false;
	return true;
}

/* Values that were not sent are those that are there. kept: a member for each of them. */
static enum api_code values_keep(struct change *c, struct json_object *kept)
{
	struct json_object *secrets = json_get(c->wanted, "secrets"), *old = json_get(c->record, "secrets");

	if (!json_object_is_type(secrets, json_type_object))
		return API_OK;
	json_object_object_foreach(secrets, name, secret)
	{
		if (!json_object_is_type(secret, json_type_object) || json_get(secret, "value"))
			continue;
		if (!policy_secret_find(c->now, name) || !no_wider(json_get(old, name), secret))
			return api_fail(c->r, API_INVALID_CONFIG, "secrets: %s needs its value", shown(name));
		json_add_str(secret, "value", KEPT);
		json_add_bool(kept, name, true);
	}
	return API_OK;
}

/* --- the text ----------------------------------------------------------------------------------------------------- */

static bool was_kept(struct json_object *kept, const char *name, size_t n)
{
	char text[ENV_NAME_MAX + 1];

	snprintf(text, sizeof(text), "%.*s", (int)n, name);
	return json_get(kept, text) != NULL;
}

/* One "secret NAME PLACEHOLDER SEALED HOSTS" line of the new text, with what stays. */
static enum rc put_secret_line(struct buf *out, struct buf *env, const char *now, const char *line, size_t n, struct json_object *kept)
{
	const char *name = line + 7, *end = line + n;
	size_t name_n = strcspn(name, " ");
	const char *placeholder = name + name_n + 1;
	size_t placeholder_n = strcspn(placeholder, " ");
	const char *sealed = placeholder + placeholder_n + 1;
	size_t sealed_n = strcspn(sealed, " ");
	const char *hosts = sealed + sealed_n + 1, *old, *old_sealed;
	char text[ENV_NAME_MAX + 1];
	enum rc rc;

	snprintf(text, sizeof(text), "%.*s", (int)name_n, name);
	old = policy_secret_find(now, text);
	if (!old) {
		rc = buf_put(out, line, n);
		if (!rc)
			rc = buf_printf(env, "%s=%.*s", text, (int)placeholder_n, placeholder);
		return rc ? rc : buf_put(env, "", 1);
	}
	old_sealed = old + strcspn(old, " ") + 1;
	rc = buf_printf(out, "secret %s %.*s ", text, (int)strcspn(old, " "), old);
	if (!rc)
		rc = was_kept(kept, name, name_n) ? buf_put(out, old_sealed, strcspn(old_sealed, " ")) : buf_put(out, sealed, sealed_n);
	if (!rc)
		rc = buf_puts(out, " ");
	return rc ? rc : buf_put(out, hosts, (size_t)(end - hosts));
}

static enum rc text_join(struct buf *out, struct buf *env, const char *now, const char *made, struct json_object *kept)
{
	enum rc rc = RC_OK;

	while (!rc && *made) {
		size_t n = (size_t)(strchrnul(made, '\n') - made) + 1;

		rc = strncmp(made, "secret ", 7) ? buf_put(out, made, n) : put_secret_line(out, env, now, made, n, kept);
		made += n;
	}
	/* Processes that a fork copied have others. */
	if (!rc)
		rc = policy_text_alias(out, now, false);
	return rc ? rc : buf_put(out, "", 1);
}

static enum api_code kept_check(struct change *c, struct json_object *kept)
{
	json_object_object_foreach(kept, name, value)
	{
		(void)value;
		if (!policy_secret_no_wider(c->now, c->policy.policy, name))
			return api_fail(c->r, API_INVALID_CONFIG, "secrets: %s needs its value", shown(name));
	}
	return API_OK;
}

static enum api_code record_write(struct change *c)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	struct json_object *part = sandbox_config_record(&c->config);
	struct fault f = { 0 };

	for (const char *const *k = parts; *k; k++) {
		struct json_object *v = json_get(part, *k);

		json_object_object_del(c->record, *k);
		if (v)
			json_add(c->record, *k, json_object_get(v));
	}
	json_object_put(part);
	db_start(&q, c->r->api->db, "UPDATE sandboxes SET config = ? WHERE id = ?");
	db_text(&q, json_text(c->record));
	db_text(&q, c->id);
	return db_run(&q, &f) ? api_fault(c->r, &f) : API_OK;
}

static enum api_code apply(struct change *c)
{
	struct request *r = c->r;
	_cleanup_buf_ struct buf text = BUF_INIT(BROKER_POLICY_MAX + 1), env = BUF_INIT(BROKER_ENV_MAX);
	_cleanup_json_ struct json_object *kept = json_object_new_object();
	struct fault f = { 0 };
	enum api_code code = values_keep(c, kept);
	enum rc told;

	if (code)
		return code;
	if (sandbox_config_parse_egress(c->wanted, &c->config, &f))
		return f.rc == RC_INVALID ? api_refuse(r, API_INVALID_CONFIG, &f) : api_fault(r, &f);
	if (sandbox_policy_make(&c->config, c->id, r->org_name, r->api->has_egress_key ? &r->api->egress_key : NULL, &c->policy, &f))
		return f.rc == RC_LIMIT ? api_refuse(r, API_INVALID_CONFIG, &f) : api_fault(r, &f);
	code = kept_check(c, kept);
	if (code)
		return code;
	if (text_join(&text, &env, c->now, c->policy.policy, kept))
		return api_fail(r, API_INVALID_CONFIG, "allow_net, egress and secrets are too large together");
	told = broker_policy_set(r->api, c->id, (const char *)buf_data(&text), (const char *)buf_data(&env), buf_len(&env), &f);
	/* It is in force; that the guest does not listen is the guest's business. */
	if (told && told != RC_GUEST)
		return told == RC_ABSENT ? sandbox_is_gone(r, c->id) : broker_code(r, &f, API_SANDBOX_UNREACHABLE);
	if (told)
		log_fault(LOG_LEVEL_INFO, &f, "guest of %s was not told of its new policy", c->id);
	code = record_write(c);
	if (code)
		return code;
	free(c->now);
	c->now = strdup((const char *)buf_data(&text));
	return c->now ? change_reply(c) : API_BUSY;
}

enum api_code egress_policy_put(struct request *r)
{
	_cleanup_(change_free) struct change c = { 0 };
	struct json_object *body = NULL;
	enum api_code code = change_begin(r, &c);

	if (!code)
		code = request_json(r, false, &body);
	if (code)
		return code;
	c.wanted = json_object_get(body);
	return apply(&c);
}

enum api_code egress_policy_patch(struct request *r)
{
	_cleanup_(change_free) struct change c = { 0 };
	struct json_object *body = NULL;
	enum api_code code = change_begin(r, &c);

	if (!code)
		code = request_json(r, false, &body);
	if (code)
		return code;
	c.wanted = merge(c.record, body);
	return c.wanted ? apply(&c) : API_BUSY;
}
