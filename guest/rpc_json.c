/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/rpc_json.h"

#include "guest/rpc_limits.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

void params_init(struct params *p, struct json_object *obj)
{
	*p = (struct params){ .obj = obj };
	if (!json_object_is_type(obj, json_type_object)) {
		p->bad = true;
		snprintf(p->why, sizeof(p->why), "params must be an object");
	}
}

void params_fail(struct params *p, const char *key, const char *what)
{
	if (p->bad)
		return;
	p->bad = true;
	snprintf(p->why, sizeof(p->why), "%s: %s", key, what);
}

static struct json_object *params_get(const struct params *p, const char *key)
{
	struct json_object *v = NULL;

	if (p->bad || !json_object_object_get_ex(p->obj, key, &v))
		return NULL;
	return v;
}

bool params_has(const struct params *p, const char *key)
{
	return params_get(p, key) != NULL;
}

/* The string's bytes if it is one without a NUL inside. */
static const char *plain_string(struct json_object *v)
{
	const char *s;

	if (!json_object_is_type(v, json_type_string))
		return NULL;
	s = json_object_get_string(v);
	return strlen(s) == (size_t)json_object_get_string_len(v) ? s : NULL;
}

const char *params_str_opt(struct params *p, const char *key)
{
	struct json_object *v = params_get(p, key);
	const char *s;

	if (!v)
		return NULL;
	s = plain_string(v);
	if (!s)
		params_fail(p, key, "expected a string without NUL");
	return s;
}

const char *params_str(struct params *p, const char *key)
{
	const char *s = params_str_opt(p, key);

	if (!s)
		params_fail(p, key, "missing");
	return s ? s : "";
}

int64_t params_int_opt(struct params *p, const char *key, int64_t min, int64_t max, int64_t absent)
{
	struct json_object *v = params_get(p, key);
	int64_t n = absent;

	if (!v)
		return absent;
	if (json_object_is_type(v, json_type_int)) {
		n = json_object_get_int64(v);
	} else if (json_object_is_type(v, json_type_double)) {
		double d = json_object_get_double(v);

		if (!(fabs(d) < 9007199254740992.0) || d != floor(d)) {
			params_fail(p, key, "expected an integer");
			return absent;
		}
		n = (int64_t)d;
	} else {
		params_fail(p, key, "expected a number");
		return absent;
	}
	if (n < min || n > max) {
		params_fail(p, key, "out of range");
		return absent;
	}
	return n;
}

int64_t params_int(struct params *p, const char *key, int64_t min, int64_t max)
{
	if (!params_has(p, key))
		params_fail(p, key, "missing");
	return params_int_opt(p, key, min, max, min);
}

bool params_bool_opt(struct params *p, const char *key, bool absent)
{
	struct json_object *v = params_get(p, key);

	if (!v)
		return absent;
	if (!json_object_is_type(v, json_type_boolean)) {
		params_fail(p, key, "expected a boolean");
		return absent;
	}
	return json_object_get_boolean(v);
}

struct json_object *params_strings_opt(struct params *p, const char *key)
{
	struct json_object *v = params_get(p, key);

	if (!v)
		return NULL;
	if (!json_object_is_type(v, json_type_array)) {
		params_fail(p, key, "expected an array");
		return NULL;
	}
	for (size_t i = 0; i < json_object_array_length(v); i++) {
		if (!plain_string(json_object_array_get_idx(v, i))) {
			params_fail(p, key, "expected strings without NUL");
			return NULL;
		}
	}
	return v;
}

struct json_object *params_record_opt(struct params *p, const char *key)
{
	struct json_object *v = params_get(p, key);

	if (!v)
		return NULL;
	if (!json_object_is_type(v, json_type_object)) {
		params_fail(p, key, "expected an object");
		return NULL;
	}
	json_object_object_foreach(v, name, value) {
		(void)name;
		if (!plain_string(value)) {
			params_fail(p, key, "expected strings without NUL");
			return NULL;
		}
	}
	return v;
}

struct json_object *json_parse(const char *text, size_t n)
{
	struct json_tokener *tok;
	struct json_object *obj;
	size_t end;

	if (n > INT_MAX)
		return NULL;
	tok = json_tokener_new_ex(RPC_JSON_DEPTH);
	if (!tok)
		return NULL;
	json_tokener_set_flags(tok, JSON_TOKENER_STRICT);
	obj = json_tokener_parse_ex(tok, text, (int)n);
	end = json_tokener_get_parse_end(tok);
	/* A bare number ends only at what follows it. */
	if (json_tokener_get_error(tok) == json_tokener_continue) {
		obj = json_tokener_parse_ex(tok, "", -1);
		end = n;
	}
	while (end < n && strchr(" \t\r\n", text[end]) && text[end])
		end++;
	if (json_tokener_get_error(tok) != json_tokener_success || end != n) {
		json_object_put(obj);
		obj = NULL;
	}
	json_tokener_free(tok);
	return obj;
}

struct json_object *json_str(const char *s)
{
	return s ? json_object_new_string(s) : NULL;
}

void json_put(struct json_object *obj, const char *key, struct json_object *value)
{
	json_object_object_add(obj, key, value);
}
