/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/policy_text.h"

#include "base/cleanup.h"
#include "fcgi/ids.h"
#include "fcgi/limits.h"
#include "schema/broker.h"
#include "schema/policy.h"

#include <openssl/crypto.h>
#include <stdio.h>
#include <string.h>

#define PLACEHOLDER_RANDOM 40 /* characters of ID_ALPHABET: 200 bits */

void placeholder_make(char out[PLACEHOLDER_MAX])
{
	memcpy(out, "nbs_", 4);
	id_random(out + 4, PLACEHOLDER_RANDOM);
}

/* A field of a line: up to a blank or the line's end. */
struct field {
	const char *at;
	size_t n;
};

static struct field field_next(const char **at)
{
	struct field f = { *at, strcspn(*at, " \n") };

	*at += f.n + (f.at[f.n] == ' ');
	return f;
}

static bool field_is(struct field f, struct field g)
{
	return f.n == g.n && !memcmp(f.at, g.at, f.n);
}

static const char *line_next(const char *line)
{
	line += strcspn(line, "\n");
	return *line ? line + 1 : line;
}

struct secret_line {
	struct field name, placeholder, sealed, hosts;
	const char *rule; /* its secret-rule line, or NULL */
};

static bool secret_read(const char *line, struct secret_line *ret)
{
	const char *at = line + 7, *after = line_next(line);

	if (strncmp(line, "secret ", 7) != 0)
		return false;
	ret->name = field_next(&at);
	ret->placeholder = field_next(&at);
	ret->sealed = field_next(&at);
	ret->hosts = field_next(&at);
	ret->rule = !strncmp(after, "secret-rule ", 12) ? after : NULL;
	return ret->hosts.n > 0;
}

static bool secret_of(const char *policy, const char *name, struct secret_line *ret)
{
	for (const char *line = policy; *line; line = line_next(line))
		if (secret_read(line, ret) && field_is(ret->name, (struct field){ name, strlen(name) }))
			return true;
	return false;
}

const char *policy_secret_find(const char *policy, const char *name)
{
	struct secret_line s;

	return secret_of(policy, name, &s) ? s.placeholder.at : NULL;
}

/* One of the words between commas. */
static struct field word_next(struct field *rest)
{
	const char *comma = memchr(rest->at, ',', rest->n);
	struct field word = { rest->at, comma ? (size_t)(comma - rest->at) : rest->n };
	size_t used = word.n + (comma != NULL);

	rest->at += used;
	rest->n -= used;
	return word;
}

static bool has_word(struct field list, struct field word)
{
	while (list.n)
		if (field_is(word_next(&list), word))
			return true;
	return false;
}

static struct field rule_of(const struct secret_line *s)
{
	return (struct field){ s->rule ? s->rule : "", s->rule ? strcspn(s->rule, "\n") : 0 };
}

bool policy_secret_no_wider(const char *now, const char *made, const char *name)
{
	struct secret_line had, wanted;

	if (!secret_of(now, name, &had) || !secret_of(made, name, &wanted) || !field_is(rule_of(&had), rule_of(&wanted)))
		return false;
	for (struct field hosts = wanted.hosts; hosts.n;)
		if (!has_word(had.hosts, word_next(&hosts)))
			return false;
	return true;
}

static enum rc secret_put(struct buf *out, const struct secret_line *s, struct field placeholder, struct field sealed)
{
	enum rc rc = buf_printf(out, "secret %.*s %.*s ", (int)s->name.n, s->name.at, (int)placeholder.n, placeholder.at);

	if (!rc)
		rc = buf_put(out, sealed.at, sealed.n);
	if (!rc)
		rc = buf_printf(out, " %.*s\n", (int)s->hosts.n, s->hosts.at);
	if (!rc && s->rule)
		rc = buf_put(out, s->rule, (size_t)(line_next(s->rule) - s->rule));
	return rc;
}

/* --- aliases -------------------------------------------------------------------------------------------------------- */

/* The nth placeholder of this name. */
static bool nth_placeholder(const char *policy, struct field name, unsigned int nth, struct field *ret)
{
	struct secret_line s;

	for (const char *line = policy; *line; line = line_next(line))
		if (secret_read(line, &s) && field_is(s.name, name) && !nth--) {
			*ret = s.placeholder;
			return true;
		}
	return false;
}

static size_t lines_count(const char *text, bool secrets_only)
{
	struct secret_line s;
	size_t n = 0;

	for (const char *line = text; *line; line = line_next(line))
		n += !secrets_only || secret_read(line, &s);
	return n;
}

struct alias_room {
	size_t secrets, lines;
};

/* One round: each secret's nth placeholder. *ret_more false: nobody has that many, or there is no room. */
static enum rc alias_round(struct buf *text, const char *made, const char *from, unsigned int nth, struct alias_room *room,
			   bool *ret_more)
{
	struct field placeholder;
	struct secret_line s;

	*ret_more = false;
	for (const char *line = made; *line; line = line_next(line)) {
		size_t need;
		enum rc rc;

		if (!secret_read(line, &s) || !nth_placeholder(from, s.name, nth, &placeholder) ||
		    field_is(placeholder, s.placeholder))
			continue;
		need = 16 + s.name.n + placeholder.n + s.sealed.n + s.hosts.n +
		       (s.rule ? (size_t)(line_next(s.rule) - s.rule) : 0);
		if (room->secrets >= POLICY_SECRETS_MAX || room->lines + 2 > POLICY_LINES_MAX ||
		    buf_len(text) + need > BROKER_POLICY_MAX)
			return RC_OK;
		rc = secret_put(text, &s, placeholder, s.sealed);
		if (rc)
			return rc;
		room->secrets++;
		room->lines += 2;
		*ret_more = true;
	}
	return RC_OK;
}

enum rc policy_text_alias(struct buf *text, const char *from, bool first)
{
	_cleanup_free_ char *made = strndup((const char *)buf_data(text), buf_len(text));
	struct alias_room room;
	bool more = true;
	enum rc rc = RC_OK;

	if (!made)
		return RC_NOMEM;
	room = (struct alias_room){ lines_count(made, true), lines_count(made, false) };
	for (unsigned int nth = first ? 0 : 1; !rc && more; nth++)
		rc = alias_round(text, made, from, nth, &room, &more);
	return rc;
}

/* --- a child's -------------------------------------------------------------------------------------------------------- */

static enum rc secret_fork(const struct secret_line *s, const char *parent, const char *child, const struct seal_key *key,
			   struct buf *policy, struct buf *env, struct fault *ret_f)
{
	_cleanup_free_ char *old = strndup(s->sealed.at, s->sealed.n), *value = NULL, *sealed = NULL;
	char placeholder[PLACEHOLDER_MAX], ad[ID_MAX + ENV_NAME_MAX + 2];
	enum rc rc;

	if (!old)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	if (!key)
		return fault_set(ret_f, RC_STATE, 0, "secrets need the key file %s", POLICY_KEY_FILE);
	snprintf(ad, sizeof(ad), "%s %.*s", parent, (int)s->name.n, s->name.at);
	rc = seal_open(key, old, ad, &value, ret_f);
	if (rc)
		return rc;
	snprintf(ad, sizeof(ad), "%s %.*s", child, (int)s->name.n, s->name.at);
	rc = seal(key, value, ad, &sealed, ret_f);
	OPENSSL_cleanse(value, strlen(value));
	if (rc)
		return rc;
	placeholder_make(placeholder);
	rc = secret_put(policy, s, (struct field){ placeholder, strlen(placeholder) }, (struct field){ sealed, strlen(sealed) });
	if (!rc)
		rc = buf_printf(env, "%.*s=%s", (int)s->name.n, s->name.at, placeholder);
	if (!rc)
		rc = buf_put(env, "", 1);
	return rc ? fault_set(ret_f, rc, 0, "a child's policy does not fit") : RC_OK;
}

enum rc policy_text_fork(const char *policy, const char *parent, const char *child, const struct seal_key *key,
			 struct buf *ret_policy, struct buf *ret_env, struct fault *ret_f)
{
	struct secret_line s;
	enum rc rc = RC_OK;

	for (const char *line = policy; !rc && *line; line = line_next(line)) {
		struct field first;

		if (!strncmp(line, "secret-rule ", 12))
			continue; /* goes with its secret */
		if (!secret_read(line, &s)) {
			rc = buf_put(ret_policy, line, (size_t)(line_next(line) - line));
			if (rc)
				return fault_set(ret_f, rc, 0, "a child's policy does not fit");
			continue;
		}
		if (!nth_placeholder(policy, s.name, 0, &first) || !field_is(first, s.placeholder))
			continue; /* an alias */
		rc = secret_fork(&s, parent, child, key, ret_policy, ret_env, ret_f);
	}
	if (rc)
		return rc;
	rc = policy_text_alias(ret_policy, policy, true);
	return rc ? fault_set(ret_f, rc, 0, "a child's policy does not fit") : RC_OK;
}
