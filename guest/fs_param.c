/* SPDX-License-Identifier: Apache-2.0 */
/* What comes in: fields of the params, as the client's schema encodes them. */
#include "guest/b64.h"
#include "guest/fs_internal.h"

#include <errno.h>
#include <math.h>
#include <string.h>

enum rc fs_param_invalid(struct fs_error *e, const char *name, const char *want)
{
	fs_error_set(e, 0, "TypeError", "", "Invalid params: '%s' must be %s", name, want);
	return RC_INVALID;
}

/* NULL if absent or null. */
static struct json_object *field(struct json_object *params, const char *name)
{
	struct json_object *v = NULL;

	if (params && json_object_object_get_ex(params, name, &v))
		return v;
	return NULL;
}

static enum rc text_of(struct json_object *v, const char *name, struct fs_text *ret, struct fs_error *e)
{
	if (!json_object_is_type(v, json_type_string))
		return fs_param_invalid(e, name, "a string");
	ret->s = json_object_get_string(v);
	ret->n = (size_t)json_object_get_string_len(v);
	return RC_OK;
}

enum rc fs_param_text(struct json_object *params, const char *name, struct fs_text *ret, struct fs_error *e)
{
	return text_of(field(params, name), name, ret, e);
}

enum rc fs_param_opt_text(struct json_object *params, const char *name, struct fs_text *ret, bool *ret_set,
			  struct fs_error *e)
{
	struct json_object *v = field(params, name);

	if (ret_set)
		*ret_set = v;
	return v ? text_of(v, name, ret, e) : RC_OK;
}

static enum rc number_of(struct json_object *v, const char *name, double *ret, struct fs_error *e)
{
	if (!json_object_is_type(v, json_type_int) && !json_object_is_type(v, json_type_double))
		return fs_param_invalid(e, name, "a number");
	*ret = json_object_get_double(v);
	return RC_OK;
}

enum rc fs_param_number(struct json_object *params, const char *name, double *ret, struct fs_error *e)
{
	return number_of(field(params, name), name, ret, e);
}

enum rc fs_param_opt_number(struct json_object *params, const char *name, double *ret, bool *ret_set,
			    struct fs_error *e)
{
	struct json_object *v = field(params, name);

	if (ret_set)
		*ret_set = v;
	return v ? number_of(v, name, ret, e) : RC_OK;
}

enum rc fs_param_opt_bool(struct json_object *params, const char *name, bool *ret, struct fs_error *e)
{
	struct json_object *v = field(params, name);

	if (!v)
		return RC_OK;
	if (!json_object_is_type(v, json_type_boolean))
		return fs_param_invalid(e, name, "a boolean");
	*ret = json_object_get_boolean(v);
	return RC_OK;
}

enum rc fs_param_opt_object(struct json_object *params, const char *name, struct json_object **ret, struct fs_error *e)
{
	struct json_object *v = field(params, name);

	if (v && !json_object_is_type(v, json_type_object))
		return fs_param_invalid(e, name, "an object");
	*ret = v;
	return RC_OK;
}

enum rc fs_param_opt_array(struct json_object *params, const char *name, struct json_object **ret, struct fs_error *e)
{
	struct json_object *v = field(params, name);

	if (v && !json_object_is_type(v, json_type_array))
		return fs_param_invalid(e, name, "an array");
	*ret = v;
	return RC_OK;
}

enum rc fs_param_bytes(struct json_object *params, const char *name, uint8_t **ret, size_t *ret_n, struct fs_error *e)
{
	struct fs_text t;
	_cleanup_free_ uint8_t *mem = NULL;
	enum rc rc = fs_param_text(params, name, &t, e);

	if (rc != RC_OK)
		return rc;
	mem = malloc(B64_ROOM(t.n) + 1);
	if (!mem)
		return fs_fail(e, ENOMEM, NULL, NULL);
	if (!b64_decode(mem, ret_n, t.s, t.n))
		return fs_param_invalid(e, name, "base64");
	*ret = take_ptr(mem);
	return RC_OK;
}

/* --- dates: what Date.toISOString() makes, "YYYY-MM-DDTHH:mm:ss.sssZ" with years of 4 or of a sign and 6 digits ---- */

struct cursor {
	const char *s, *end;
	bool failed;
};

static int64_t digits(struct cursor *c, int n)
{
	int64_t v = 0;

	while (n--) {
		if (c->s == c->end || *c->s < '0' || *c->s > '9') {
			c->failed = true;
			return 0;
		}
		v = v * 10 + (*c->s++ - '0');
	}
	return v;
}

static void literal(struct cursor *c, char want)
{
	if (c->s == c->end || *c->s != want)
		c->failed = true;
	else
		c->s++;
}

/* Days since 1970-01-01 of the proleptic Gregorian calendar. */
static int64_t days_from_civil(int64_t y, int64_t m, int64_t d)
{
	int64_t era, yoe, doy;

	y -= m <= 2;
	era = (y >= 0 ? y : y - 399) / 400;
	yoe = y - era * 400;
	doy = (153 * (m + (m > 2 ? -3 : 9)) + 2) / 5 + d - 1;
	return era * 146097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719468;
}

static int64_t year_of(struct cursor *c)
{
	int sign = 0;

	if (c->s != c->end && (*c->s == '+' || *c->s == '-'))
		sign = *c->s++ == '+' ? 1 : -1;
	return sign ? sign * digits(c, 6) : digits(c, 4);
}

enum rc fs_param_time(struct json_object *params, const char *name, struct timespec *ret, struct fs_error *e)
{
	struct fs_text t;
	struct cursor c;
	int64_t y, mo, d, h, mi, s, ms = 0;
	enum rc rc = fs_param_text(params, name, &t, e);

	if (rc != RC_OK)
		return rc;
	c = (struct cursor){ .s = t.s, .end = t.s + t.n };
	y = year_of(&c);
	literal(&c, '-'), mo = digits(&c, 2);
	literal(&c, '-'), d = digits(&c, 2);
	literal(&c, 'T'), h = digits(&c, 2);
	literal(&c, ':'), mi = digits(&c, 2);
	literal(&c, ':'), s = digits(&c, 2);
	if (c.s != c.end && *c.s == '.')
		c.s++, ms = digits(&c, 3);
	literal(&c, 'Z');
	if (c.failed || c.s != c.end || mo < 1 || mo > 12 || d < 1 || d > 31 || h > 24 || mi > 59 || s > 59)
		return fs_param_invalid(e, name, "an ISO 8601 date");
	ret->tv_sec = ((days_from_civil(y, mo, d) * 24 + h) * 60 + mi) * 60 + s;
	ret->tv_nsec = ms * 1000000;
	return RC_OK;
}

/* --- numbers ------------------------------------------------------------------------------------------------------ */

uint32_t fs_to_u32(double v)
{
	return (uint32_t)fs_to_i64(v);
}

uint32_t fs_to_u32_clamped(double v)
{
	uint64_t n = fs_to_u64(v);

	return n > UINT32_MAX ? UINT32_MAX : (uint32_t)n;
}

uint64_t fs_to_u64(double v)
{
	if (!(v > 0))
		return 0;
	return v >= 18446744073709551616.0 ? UINT64_MAX : (uint64_t)v;
}

int64_t fs_to_i64(double v)
{
	if (isnan(v))
		return 0;
	if (v >= 9223372036854775808.0)
		return INT64_MAX;
	return v < -9223372036854775808.0 ? INT64_MIN : (int64_t)v;
}
