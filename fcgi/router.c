/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/router.h"

#include <ctype.h>
#include <string.h>

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c = (char)(c | 0x20);
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Percent-decodes n bytes into out (of size), with a terminator. Refuses NUL and broken escapes. */
static const char *decode(const char *s, size_t n, bool plus, char *out, size_t size, size_t *ret_n)
{
	size_t used = 0;

	for (size_t i = 0; i < n; i++) {
		int c = (unsigned char)s[i];

		if (c == '%') {
			int hi = i + 2 < n ? hex_digit(s[i + 1]) : -1, lo = i + 2 < n ? hex_digit(s[i + 2]) : -1;

			if (hi < 0 || lo < 0)
				return "a broken %-escape";
			c = hi << 4 | lo;
			i += 2;
		} else if (plus && c == '+') {
			c = ' ';
		}
		if (!c)
			return "a NUL";
		if (used + 1 >= size)
			return "too long";
		out[used++] = (char)c;
	}
	out[used] = '\0';
	*ret_n = used;
	return NULL;
}

static enum api_code parse_segments(struct request *r, const char *path, size_t n)
{
	size_t at = 0;

	for (const char *p = path, *end = path + n; p < end;) {
		const char *next;
		const char *bad;
		size_t used = 0;

		p++;
		next = memchr(p, '/', (size_t)(end - p));
		if (!next)
			next = end;
		if (r->n_segments == HTTP_SEGMENTS_MAX || at >= sizeof(r->path))
			return API_NOT_FOUND;
		bad = decode(p, (size_t)(next - p), false, r->path + at, sizeof(r->path) - at, &used);
		if (bad)
			return api_fail(r, API_INVALID_PATH, "the path has %s", bad);
		if (used > HTTP_SEGMENT_MAX)
			return api_fail(r, API_INVALID_PATH, "a part of the path is longer than %d bytes", HTTP_SEGMENT_MAX);
		r->segments[r->n_segments++] = r->path + at;
		at += used + 1;
		p = next;
	}
	return API_OK;
}

static enum api_code parse_query(struct request *r, const char *query)
{
	size_t at = 0;

	for (const char *p = query; *p;) {
		size_t n = strcspn(p, "&"), used = 0;
		const char *eq = memchr(p, '=', n);
		size_t key_n = eq ? (size_t)(eq - p) : n;
		const char *bad = NULL;

		if (n && r->n_query == HTTP_QUERY_PAIRS_MAX)
			return api_fail(r, API_INVALID_REQUEST, "more than %d query parameters", HTTP_QUERY_PAIRS_MAX);
		if (n) {
			struct pair *pair = &r->query[r->n_query++];

			pair->key = r->query_text + at;
			bad = decode(p, key_n, true, r->query_text + at, sizeof(r->query_text) - at, &used);
			at += used + 1;
			pair->value = r->query_text + at;
			if (!bad && at >= sizeof(r->query_text))
				bad = "too long";
			if (!bad)
				bad = decode(eq ? eq + 1 : "", eq ? n - key_n - 1 : 0, true, r->query_text + at,
					     sizeof(r->query_text) - at, &used);
			at += used + 1;
			if (!bad && at >= sizeof(r->query_text))
				bad = "too long";
		}
		if (bad)
			return api_fail(r, API_INVALID_REQUEST, "the query is broken or too long: %s", bad);
		p += n;
		if (*p)
			p++;
	}
	return API_OK;
}

enum api_code request_parse_uri(struct request *r, const char *uri)
{
	const char *query = strchr(uri, '?');
	size_t n = query ? (size_t)(query - uri) : strlen(uri);
	enum api_code code;

	r->n_segments = r->n_query = 0;
	if (*uri != '/')
		return API_INVALID_REQUEST;
	if (n >= HTTP_PATH_MAX)
		return api_fail(r, API_INVALID_PATH, "the path is longer than %d bytes", HTTP_PATH_MAX - 1);
	code = parse_segments(r, uri, n);
	return code || !query ? code : parse_query(r, query + 1);
}

static bool matches(const struct route *route, const struct request *r, const char *args[4])
{
	const char *p = route->pattern;
	size_t n_args = 0;

	for (size_t i = 0; i < r->n_segments; i++) {
		size_t n;

		if (*p != '/')
			return false;
		p++;
		n = strcspn(p, "/");
		if (n == 2 && p[0] == '{')
			args[n_args++] = r->segments[i];
		else if (strlen(r->segments[i]) != n || strncmp(p, r->segments[i], n) != 0)
			return false;
		p += n;
	}
	return !*p;
}

enum api_code request_route(struct request *r)
{
	char allow[64] = "";
	const char *args[4] = { NULL };

	for (size_t i = 0; i < n_routes; i++) {
		if (!matches(&routes[i], r, args))
			continue;
		if (!strcmp(routes[i].method, r->method)) {
			memcpy(r->args, args, sizeof(args));
			r->route = &routes[i];
			return API_OK;
		}
		if (!strstr(allow, routes[i].method) && strlen(allow) + strlen(routes[i].method) + 3 < sizeof(allow)) {
			if (*allow)
				strcat(allow, ", ");
			strcat(allow, routes[i].method);
		}
	}
	if (!*allow)
		return API_NOT_FOUND;
	reply_header(r, "Allow: %s", allow);
	return API_METHOD_NOT_ALLOWED;
}

enum api_code request_labels(struct request *r, struct json_object **ret)
{
	_cleanup_json_ struct json_object *o = NULL;
	char name[LABEL_KEY_MAX + 1];

	for (size_t i = 0; i < r->n_query; i++) {
		const char *key = r->query[i].key;
		size_t n = strlen(key);

		if (strncmp(key, "labels[", 7) != 0)
			continue;
		if (n < 9 || key[n - 1] != ']' || n - 8 > LABEL_KEY_MAX || strlen(r->query[i].value) > LABEL_VALUE_MAX)
			return api_fail(r, API_INVALID_LABELS, "expected labels[key]=value");
		memcpy(name, key + 7, n - 8);
		name[n - 8] = '\0';
		if (!o)
			o = json_object_new_object();
		json_add_str(o, name, r->query[i].value);
	}
	*ret = take_ptr(o);
	return API_OK;
}
