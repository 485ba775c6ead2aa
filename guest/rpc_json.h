/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading a call's parameters, with a sticky error: once one is not what the schema says every later read gives its
 * default, and one check of params_ok() at the end decides. Strings with a NUL inside are refused. JSON null is the
 * same as absent.
 */
#ifndef NB_GUEST_RPC_JSON_H
#define NB_GUEST_RPC_JSON_H

#include <json-c/json.h>

#include <stdbool.h>
#include <stdint.h>

struct params {
	struct json_object *obj;
	bool bad;
	char why[120];
};

void params_init(struct params *p, struct json_object *obj);
static inline bool params_ok(const struct params *p)
{
	return !p->bad;
}

const char *params_str(struct params *p, const char *key);
const char *params_str_opt(struct params *p, const char *key); /* NULL if absent */
int64_t params_int(struct params *p, const char *key, int64_t min, int64_t max);
int64_t params_int_opt(struct params *p, const char *key, int64_t min, int64_t max, int64_t absent);
bool params_bool_opt(struct params *p, const char *key, bool absent);
bool params_has(const struct params *p, const char *key);
/* An array of strings / an object with string values; borrowed from the parameters, NULL if absent. */
struct json_object *params_strings_opt(struct params *p, const char *key);
struct json_object *params_record_opt(struct params *p, const char *key);
void params_fail(struct params *p, const char *key, const char *what);

/* One JSON text of n bytes, at most RPC_JSON_DEPTH deep, nothing after it. NULL if it is none. */
struct json_object *json_parse(const char *text, size_t n);
struct json_object *json_str(const char *s);
/* obj[key] = value; value is owned by obj from here. */
void json_put(struct json_object *obj, const char *key, struct json_object *value);
#define JSON_WRITE_FLAGS (JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE)

#endif
