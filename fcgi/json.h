/* SPDX-License-Identifier: Apache-2.0 */
/*
 * json-c with bounds: strict parsing of a client's text, typed getters that refuse instead of converting, and building of
 * answers in which running out of memory is remembered once. Faults of RC_INVALID carry the sentence for the client.
 */
#ifndef NB_FCGI_JSON_H
#define NB_FCGI_JSON_H

#include "base/cleanup.h"
#include "base/fault.h"

#include <json-c/json.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline void json_cleanup(struct json_object **o)
{
	json_object_put(*o);
}
#define _cleanup_json_ _cleanup_(json_cleanup)

/* One value, UTF-8, nothing behind it, nested at most `depth` deep, no NUL in any string or key. */
enum rc json_parse(const char *text, size_t n, int depth, struct json_object **ret, struct fault *ret_f);
/* Also an object. */
enum rc json_parse_object(const char *text, size_t n, int depth, struct json_object **ret, struct fault *ret_f);

/* RC_INVALID if `o` has a key that is not in the NULL-terminated list. */
enum rc json_only_keys(struct json_object *o, const char *const *keys, struct fault *ret_f);

/* The member, or NULL if it is absent or null. */
struct json_object *json_get(struct json_object *o, const char *key);
/* Absent or null: *ret keeps its value and RC_OK. Another type: RC_INVALID. */
enum rc json_get_bool(struct json_object *o, const char *key, bool *ret, struct fault *ret_f);
enum rc json_get_int(struct json_object *o, const char *key, int64_t *ret, struct fault *ret_f);
/* Points into o. At most max bytes, no control bytes but tab and newline. */
enum rc json_get_str(struct json_object *o, const char *key, size_t max, const char **ret, struct fault *ret_f);
enum rc json_get_array(struct json_object *o, const char *key, size_t max, struct json_object **ret,
		       struct fault *ret_f);
enum rc json_get_object(struct json_object *o, const char *key, struct json_object **ret, struct fault *ret_f);
/* A string element or member, checked like json_get_str(). what: for the message. */
enum rc json_as_str(struct json_object *v, const char *what, size_t max, const char **ret, struct fault *ret_f);

/* {"k": "v"}: at most LABELS_MAX, keys 1..LABEL_KEY_MAX bytes, values up to LABEL_VALUE_MAX. */
enum rc json_check_labels(struct json_object *labels, struct fault *ret_f);

/* Builders. A value that could not be had for lack of memory is left out. */
void json_add(struct json_object *o, const char *key, struct json_object *take);
void json_add_str(struct json_object *o, const char *key, const char *value); /* NULL: null */
void json_add_int(struct json_object *o, const char *key, int64_t value);
void json_add_bool(struct json_object *o, const char *key, bool value);
void json_add_time(struct json_object *o, const char *key, int64_t ms);         /* ISO 8601 */
void json_add_time_or_null(struct json_object *o, const char *key, int64_t ms); /* 0: null */
/* Text that we stored ourselves; {} if it should be damaged. */
struct json_object *json_stored(const char *text);
const char *json_text(struct json_object *o); /* compact, valid as long as o is unchanged */

#endif
