/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/http.h"

#include "base/cleanup.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

void http_head_done(struct http_head *r)
{
	json_object_put(r->headers);
}

struct json_object *http_latin1(const char *s, size_t n)
{
	char *out = malloc(2 * n + 1);
	struct json_object *v;
	size_t at = 0;

	if (!out)
		return NULL;
	for (size_t i = 0; i < n; i++) {
		uint8_t c = (uint8_t)s[i];

		if (c >= 0x80)
			out[at++] = (char)(0xc0 | c >> 6);
		out[at++] = (char)(c >= 0x80 ? 0x80 | (c & 0x3f) : c);
	}
	v = json_object_new_string_len(out, (int)at);
	free(out);
	return v;
}

static void parse_header(struct http_head *r, const char *line, size_t n)
{
	static const char token[] = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
	size_t name = 0, from;
	struct json_object *pair, *value;

	while (name < n && line[name] && strchr(token, line[name]))
		name++;
	if (!name || name == n || line[name] != ':')
		return;
	from = name + 1;
	while (from < n && (line[from] == ' ' || line[from] == '\t'))
		from++;
	while (n > from && (line[n - 1] == ' ' || line[n - 1] == '\t'))
		n--;
	if (memchr(line + from, 0, n - from) || memchr(line + from, '\r', n - from))
		return;
	value = http_latin1(line + from, n - from);
	pair = json_object_new_array();
	json_object_array_add(pair, json_object_new_string_len(line, (int)name));
	json_object_array_add(pair, value);
	json_object_array_add(r->headers, pair);
	if (name == 8 && !strncasecmp(line, "location", 8))
		r->location = json_object_get_string(value);
}

bool http_head_parse(struct http_head *r, const char *head, size_t n)
{
	const char *end = head + n, *line = head;
	int reason_at = 0;
	char first[256];

	r->headers = json_object_new_array();
	for (size_t i = 0; line < end; i++) {
		const char *nl = memchr(line, '\n', (size_t)(end - line));
		size_t len = nl ? (size_t)(nl - line) : (size_t)(end - line);

		if (len && line[len - 1] == '\r')
			len--;
		if (i) {
			parse_header(r, line, len);
		} else {
			snprintf(first, sizeof(first), "%.*s", (int)MIN_OF(len, sizeof(first) - 1), line);
			if (sscanf(first, "HTTP/%*[0-9.] %3d%n", &r->status, &reason_at) != 1)
				return false;
			snprintf(r->reason, sizeof(r->reason), "%.127s",
				 first[reason_at] == ' ' ? first + reason_at + 1 : first + reason_at);
		}
		line = nl ? nl + 1 : end;
	}
	return r->status >= 100 && r->status <= 599;
}

size_t http_head_length(const void *data, size_t n)
{
	const char *s = data;

	for (size_t i = 0; i + 1 < n; i++) {
		if (s[i] != '\n')
			continue;
		if (s[i + 1] == '\n')
			return i + 2;
		if (i + 2 < n && s[i + 1] == '\r' && s[i + 2] == '\n')
			return i + 3;
	}
	return 0;
}
