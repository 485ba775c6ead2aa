/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/json.h"

#include "fcgi/ids.h"
#include "fcgi/limits.h"

#include <limits.h>
#include <string.h>

static void tokener_cleanup(struct json_tokener **t)
{
	if (*t)
		json_tokener_free(*t);
}

/* json-c keeps strings with a length, everything behind us with a terminator: a NUL would cut them silently. */
static bool has_nul(const char *text, size_t n)
{
	if (memchr(text, 0, n))
		return true;
	for (const char *p = text, *end = text + n; (p = memmem(p, (size_t)(end - p), "\\u0000", 6)); p += 6) {
		size_t slashes = 0;

		while (p - slashes > text && p[-1 - (ptrdiff_t)slashes] == '\\')
			slashes++;
		if (slashes % 2 == 0)
			return true;
	}
	return false;
}

/* At least as many values as the parser will make before it fails: what begins a list or an object, or follows a comma. An empty object
 * takes 700 bytes of memory for three of text. */
static bool too_many_values(const char *text, size_t n)
{
	bool in_string = false;
	size_t values = 1;

	for (size_t i = 0; i < n && values <= JSON_VALUES_MAX; i++) {
		char c = text[i];

		if (in_string && c == '\\')
			i++;
		else if (c == '"')
			in_string = !in_string;
		else if (!in_string && (c == ',' || c == '[' || c == '{'))
			values++;
	}
	return values > JSON_VALUES_MAX;
}

enum rc json_parse(const char *text, size_t n, int depth, struct json_object **ret, struct fault *ret_f)
{
	_cleanup_(tokener_cleanup) struct json_tokener *t = json_tokener_new_ex(depth);
	struct json_object *o;
	enum json_tokener_error err;

	if (!t)
		return fault_set(ret_f, RC_NOMEM, 0, "JSON parser");
	if (n >= INT_MAX || has_nul(text, n))
		return fault_set(ret_f, RC_INVALID, 0, "not JSON: a NUL in the text");
	if (too_many_values(text, n))
		return fault_set(ret_f, RC_INVALID, 0, "more than %d JSON values", JSON_VALUES_MAX);
	json_tokener_set_flags(t, JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8);
	while (n && strchr(" \t\r\n", text[n - 1]))
		n--;
	o = json_tokener_parse_ex(t, text, (int)n);
	err = json_tokener_get_error(t);
	/* A bare number could go on; a NUL says that it does not. */
	if (err == json_tokener_continue && n) {
		o = json_tokener_parse_ex(t, "", 1);
		err = json_tokener_get_error(t);
		if (err == json_tokener_success) {
			*ret = o;
			return RC_OK;
		}
	}
	if (err != json_tokener_success || json_tokener_get_parse_end(t) < n) {
		json_object_put(o);
		return fault_set(ret_f, RC_INVALID, 0, "not JSON: %s at %zu",
				 err ? json_tokener_error_desc(err) : "text behind the value",
				 json_tokener_get_parse_end(t));
	}
	*ret = o;
	return RC_OK;
}

enum rc json_parse_object(const char *text, size_t n, int depth, struct json_object **ret, struct fault *ret_f)
{
	struct json_object *o = NULL;
	enum rc rc = json_parse(text, n, depth, &o, ret_f);

	if (rc)
		return rc;
	if (!json_object_is_type(o, json_type_object)) {
		json_object_put(o);
		return fault_set(ret_f, RC_INVALID, 0, "not a JSON object");
	}
	*ret = o;
	return RC_OK;
}

enum rc json_only_keys(struct json_object *o, const char *const *keys, struct fault *ret_f)
{
	json_object_object_foreach(o, key, value)
	{
		const char *const *k = keys;

		(void)value;
		while (*k && strcmp(*k, key) != 0)
			k++;
		if (!*k)
			return fault_set(ret_f, RC_INVALID, 0, "unknown key '%s'", shown(key));
	}
	return RC_OK;
}

struct json_object *json_get(struct json_object *o, const char *key)
{
	struct json_object *v = NULL;

	json_object_object_get_ex(o, key, &v);
	return v;
}

static enum rc wrong(const char *key, const char *should, struct fault *ret_f)
{
	return fault_set(ret_f, RC_INVALID, 0, "%s must be %s", key, should);
}

enum rc json_get_bool(struct json_object *o, const char *key, bool *ret, struct fault *ret_f)
{
	struct json_object *v = json_get(o, key);

	if (!v)
		return RC_OK;
	if (!json_object_is_type(v, json_type_boolean))
		return wrong(key, "true or false", ret_f);
	*ret = json_object_get_boolean(v);
	return RC_OK;
}

enum rc json_get_int(struct json_object *o, const char *key, int64_t *ret, struct fault *ret_f)
{
	struct json_object *v = json_get(o, key);
	double d;

	if (!v)
		return RC_OK;
	if (json_object_is_type(v, json_type_int)) {
		*ret = json_object_get_int64(v);
		return RC_OK;
	}
	/* 1.5e12 is an integer to a JavaScript client. */
	d = json_object_is_type(v, json_type_double) ? json_object_get_double(v) : 0.5;
	if (!(d >= -9007199254740991.0 && d <= 9007199254740991.0) || (double)(int64_t)d < d || (double)(int64_t)d > d)
		return wrong(key, "an integer", ret_f);
	*ret = (int64_t)d;
	return RC_OK;
}

enum rc json_as_str(struct json_object *v, const char *what, size_t max, const char **ret, struct fault *ret_f)
{
	const char *s;

	if (!json_object_is_type(v, json_type_string))
		return wrong(what, "a string", ret_f);
	s = json_object_get_string(v);
	if (strlen(s) > max)
		return fault_set(ret_f, RC_INVALID, 0, "%s is longer than %zu bytes", what, max);
	for (const char *p = s; *p; p++)
		if (((unsigned char)*p < 0x20 && *p != '\n' && *p != '\t' && *p != '\r') || *p == 0x7f)
			return fault_set(ret_f, RC_INVALID, 0, "%s has a control character", what);
	*ret = s;
	return RC_OK;
}

enum rc json_get_str(struct json_object *o, const char *key, size_t max, const char **ret, struct fault *ret_f)
{
	struct json_object *v = json_get(o, key);

	return v ? json_as_str(v, key, max, ret, ret_f) : RC_OK;
}

enum rc json_get_array(struct json_object *o, const char *key, size_t max, struct json_object **ret,
		       struct fault *ret_f)
{
	struct json_object *v = json_get(o, key);

	if (!v)
		return RC_OK;
	if (!json_object_is_type(v, json_type_array))
		return wrong(key, "a list", ret_f);
	if (json_object_array_length(v) > max)
		return fault_set(ret_f, RC_INVALID, 0, "%s has more than %zu elements", key, max);
	*ret = v;
	return RC_OK;
}

enum rc json_get_object(struct json_object *o, const char *key, struct json_object **ret, struct fault *ret_f)
{
	struct json_object *v = json_get(o, key);

	if (!v)
		return RC_OK;
	if (!json_object_is_type(v, json_type_object))
		return wrong(key, "an object", ret_f);
	*ret = v;
	return RC_OK;
}

enum rc json_check_labels(struct json_object *labels, struct fault *ret_f)
{
	const char *text;
	enum rc rc = RC_OK;

	if (json_object_object_length(labels) > LABELS_MAX)
		return fault_set(ret_f, RC_INVALID, 0, "labels: at most %d", LABELS_MAX);
	json_object_object_foreach(labels, key, value)
	{
		if (!*key || strlen(key) > LABEL_KEY_MAX)
			return fault_set(ret_f, RC_INVALID, 0, "labels: a key has 1 to %d bytes", LABEL_KEY_MAX);
		rc = json_as_str(value, "label", LABEL_VALUE_MAX, &text, ret_f);
		if (rc)
			return rc;
	}
	return RC_OK;
}

void json_add(struct json_object *o, const char *key, struct json_object *take)
{
	if (!o || json_object_object_add(o, key, take) < 0)
		json_object_put(take);
}

void json_add_str(struct json_object *o, const char *key, const char *value)
{
	json_add(o, key, value ? json_object_new_string(value) : NULL);
}

void json_add_int(struct json_object *o, const char *key, int64_t value)
{
	json_add(o, key, json_object_new_int64(value));
}

void json_add_bool(struct json_object *o, const char *key, bool value)
{
	json_add(o, key, json_object_new_boolean(value));
}

void json_add_time(struct json_object *o, const char *key, int64_t ms)
{
	char iso[ISO_MAX];

	time_to_iso(ms, iso);
	json_add_str(o, key, iso);
}

void json_add_time_or_null(struct json_object *o, const char *key, int64_t ms)
{
	if (ms)
		json_add_time(o, key, ms);
	else
		json_add(o, key, NULL);
}

struct json_object *json_stored(const char *text)
{
	struct json_object *o = NULL;

	return json_parse(text, strlen(text), JSON_DEPTH_MAX, &o, NULL) ? json_object_new_object() : o;
}

const char *json_text(struct json_object *o)
{
	return json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE);
}
