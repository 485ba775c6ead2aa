/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What goes out. File contents stay raw bytes until the answer is serialised, which writes base64 or escaped text straight
 * into the output: nothing is held twice.
 */
#include "guest/b64.h"
#include "guest/fs_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <json-c/printbuf.h>
#include <string.h>
#include <sys/sysmacros.h>

#define REPLACEMENT "\xef\xbf\xbd"

struct blob {
	size_t n;
	uint8_t *mem;
};

static void blob_free(struct json_object *obj, void *data)
{
	struct blob *b = data;

	(void)obj;
	free(b->mem);
	free(b);
}

static int base64_serialise(struct json_object *obj, struct printbuf *out, int level, int flags)
{
	const struct blob *b = json_object_get_userdata(obj);
	char text[B64_LEN(12288)];
	size_t chunk;

	(void)level, (void)flags;
	if (B64_LEN(b->n) + 2 > INT32_MAX || printbuf_memappend(out, "\"", 1) < 0)
		return -1;
	for (size_t i = 0; i < b->n; i += chunk) {
		size_t n;

		chunk = MIN_OF(b->n - i, (size_t)12288);
		n = b64_encode(text, b->mem + i, chunk);
		if (printbuf_memappend(out, text, (int)n) < 0)
			return -1;
	}
	return printbuf_memappend(out, "\"", 1);
}

static size_t utf8_length(uint8_t lead)
{
	if (lead < 0x80)
		return 1;
	if (lead < 0xc2)
		return 0;
	return lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : lead < 0xf5 ? 4 : 0;
}

static bool utf8_second_ok(uint8_t lead, uint8_t second)
{
	switch (lead) {
	case 0xe0:
		return second >= 0xa0 && second <= 0xbf;
	case 0xed:
		return second >= 0x80 && second <= 0x9f;
	case 0xf0:
		return second >= 0x90 && second <= 0xbf;
	case 0xf4:
		return second >= 0x80 && second <= 0x8f;
	default:
		return (second & 0xc0) == 0x80;
	}
}

size_t fs_utf8_next(const uint8_t *s, size_t n, size_t *ret_bad)
{
	size_t len = utf8_length(s[0]);

	*ret_bad = 1;
	if (len <= 1)
		return len;
	if (n < 2 || !utf8_second_ok(s[0], s[1]))
		return 0;
	for (size_t i = 2; i < len; i++) {
		if (i == n || (s[i] & 0xc0) != 0x80) {
			*ret_bad = i;
			return 0;
		}
	}
	return len;
}

/* What must not stand in a JSON string as it is; s[0] is ASCII. */
static const char *escape_of(uint8_t c, char room[8])
{
	switch (c) {
	case '"':
		return "\\\"";
	case '\\':
		return "\\\\";
	case '\n':
		return "\\n";
	default:
		snprintf(room, 8, "\\u%04x", c);
		return room;
	}
}

static bool is_plain(uint8_t c)
{
	return c >= 0x20 && c < 0x80 && c != '"' && c != '\\';
}

static int text_run(struct printbuf *out, const uint8_t *s, size_t n)
{
	return n ? printbuf_memappend(out, (const char *)s, (int)n) : 0;
}

static int text_serialise(struct json_object *obj, struct printbuf *out, int level, int flags)
{
	const struct blob *b = json_object_get_userdata(obj);
	size_t from = 0, i = 0;

	(void)level, (void)flags;
	if (printbuf_memappend(out, "\"", 1) < 0)
		return -1;
	while (i < b->n) {
		size_t bad = 0, len;
		char room[8];
		const char *instead = REPLACEMENT;

		if (is_plain(b->mem[i])) {
			i++;
			continue;
		}
		len = b->mem[i] < 0x80 ? 0 : fs_utf8_next(b->mem + i, b->n - i, &bad);
		if (len) {
			i += len;
			continue;
		}
		if (b->mem[i] < 0x80)
			instead = escape_of(b->mem[i], room), bad = 1;
		if (text_run(out, b->mem + from, i - from) < 0 ||
		    printbuf_memappend(out, instead, (int)strlen(instead)) < 0)
			return -1;
		from = i += bad;
	}
	return text_run(out, b->mem + from, i - from) < 0 ? -1 : printbuf_memappend(out, "\"", 1);
}

static struct json_object *value_blob(uint8_t *mem, size_t n, json_object_to_json_string_fn *serialise)
{
	struct blob *b = malloc(sizeof(*b));
	struct json_object *obj = b ? json_object_new_string("") : NULL;

	if (!obj) {
		free(b);
		free(mem);
		return NULL;
	}
	*b = (struct blob){ .mem = mem, .n = n };
	json_object_set_serializer(obj, serialise, b, blob_free);
	return obj;
}

struct json_object *fs_value_base64(uint8_t *mem, size_t n)
{
	return value_blob(mem, n, base64_serialise);
}

struct json_object *fs_value_text(uint8_t *mem, size_t n)
{
	return value_blob(mem, n, text_serialise);
}

struct json_object *fs_value_name(const char *s, size_t n)
{
	_cleanup_free_ char *out = NULL;
	size_t o = 0, bad;

	if (n > INT32_MAX / 3)
		return NULL;
	out = malloc(n * 3 + 1);
	if (!out)
		return NULL;
	for (size_t i = 0; i < n;) {
		size_t len = fs_utf8_next((const uint8_t *)s + i, n - i, &bad);

		memcpy(out + o, len ? s + i : REPLACEMENT, len ? len : 3);
		o += len ? len : 3;
		i += len ? len : bad;
	}
	return json_object_new_string_len(out, (int)o);
}

bool fs_add(struct json_object *parent, const char *key, struct json_object *obj)
{
	if (obj && json_object_object_add(parent, key, obj) == 0)
		return true;
	json_object_put(obj);
	return false;
}

/* --- stat ---------------------------------------------------------------------------------------------------------- */

static void civil_from_days(int64_t z, int64_t *y, int *m, int *d)
{
	int64_t era, doe, yoe, doy, mp;

	z += 719468;
	era = (z >= 0 ? z : z - 146096) / 146097;
	doe = z - era * 146097;
	yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
	doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
	mp = (5 * doy + 2) / 153;
	*d = (int)(doy - (153 * mp + 2) / 5 + 1);
	*m = (int)(mp < 10 ? mp + 3 : mp - 9);
	*y = yoe + era * 400 + (*m <= 2);
}

/* Date.toISOString(); times that a Date cannot hold become its first or last. */
static struct json_object *value_date(int64_t ms)
{
	const int64_t limit = 8640000000000000;
	int64_t days, rest, y;
	int m, d;
	char out[80], year[16];

	ms = ms > limit ? limit : ms < -limit ? -limit : ms;
	days = ms / 86400000;
	rest = ms % 86400000;
	if (rest < 0)
		rest += 86400000, days--;
	civil_from_days(days, &y, &m, &d);
	if (y >= 0 && y <= 9999)
		snprintf(year, sizeof(year), "%04d", (int)y);
	else
		snprintf(year, sizeof(year), "%c%06d", y < 0 ? '-' : '+', (int)(y < 0 ? -y : y));
	snprintf(out, sizeof(out), "%s-%02d-%02dT%02d:%02d:%02d.%03dZ", year, m, d, (int)(rest / 3600000),
		 (int)(rest / 60000 % 60), (int)(rest / 1000 % 60), (int)(rest % 1000));
	return json_object_new_string(out);
}

/* Milliseconds, towards zero as Deno does it. */
static int64_t ms_of(const struct statx_timestamp *t)
{
	int64_t ms = (int64_t)t->tv_sec * 1000 + t->tv_nsec / 1000000;

	if (t->tv_sec > INT64_MAX / 1000 - 1 || t->tv_sec < INT64_MIN / 1000 + 1)
		return t->tv_sec > 0 ? INT64_MAX : INT64_MIN;
	return ms < 0 && t->tv_nsec % 1000000 ? ms + 1 : ms;
}

static bool add_dates(struct json_object *o, const struct statx *st)
{
	/* The client's schema knows no absent birth time, some file systems do. */
	const struct statx_timestamp *birth = st->stx_mask & STATX_BTIME ? &st->stx_btime : &st->stx_ctime;

	/* Deno gives ctime in whole seconds. */
	return fs_add(o, "mtime", value_date(ms_of(&st->stx_mtime))) &&
	       fs_add(o, "atime", value_date(ms_of(&st->stx_atime))) &&
	       fs_add(o, "birthtime", value_date(ms_of(birth))) &&
	       fs_add(o, "ctime", value_date(st->stx_ctime.tv_sec * 1000));
}

static bool add_numbers(struct json_object *o, const struct statx *st)
{
	return fs_add(o, "dev", json_object_new_uint64(makedev(st->stx_dev_major, st->stx_dev_minor))) &&
	       fs_add(o, "ino", json_object_new_uint64(st->stx_ino)) &&
	       fs_add(o, "mode", json_object_new_int64(st->stx_mode)) &&
	       fs_add(o, "nlink", json_object_new_int64(st->stx_nlink)) &&
	       fs_add(o, "uid", json_object_new_int64(st->stx_uid)) &&
	       fs_add(o, "gid", json_object_new_int64(st->stx_gid)) &&
	       fs_add(o, "rdev", json_object_new_uint64(makedev(st->stx_rdev_major, st->stx_rdev_minor))) &&
	       fs_add(o, "blksize", json_object_new_int64(st->stx_blksize)) &&
	       fs_add(o, "blocks", json_object_new_uint64(st->stx_blocks));
}

enum rc fs_value_stat(const struct statx *st, struct json_object **ret, struct fs_error *e)
{
	struct json_object *o = json_object_new_object();

	if (o && fs_add(o, "isFile", json_object_new_boolean(S_ISREG(st->stx_mode))) &&
	    fs_add(o, "isDirectory", json_object_new_boolean(S_ISDIR(st->stx_mode))) &&
	    fs_add(o, "isSymlink", json_object_new_boolean(S_ISLNK(st->stx_mode))) &&
	    fs_add(o, "size", json_object_new_uint64(st->stx_size)) && add_dates(o, st) && add_numbers(o, st) &&
	    fs_add(o, "isBlockDevice", json_object_new_boolean(S_ISBLK(st->stx_mode))) &&
	    fs_add(o, "isCharDevice", json_object_new_boolean(S_ISCHR(st->stx_mode))) &&
	    fs_add(o, "isFifo", json_object_new_boolean(S_ISFIFO(st->stx_mode))) &&
	    fs_add(o, "isSocket", json_object_new_boolean(S_ISSOCK(st->stx_mode)))) {
		*ret = o;
		return RC_OK;
	}
	json_object_put(o);
	return fs_fail(e, ENOMEM, NULL, NULL);
}
