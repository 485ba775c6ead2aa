/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/page.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum api_code page_limit(struct request *r, int64_t standard, int64_t max, int64_t *ret)
{
	const char *s = request_query(r, "limit");
	size_t n = s ? strlen(s) : 0;
	int64_t v = standard;

	if (s) {
		if (!n || n > 6 || strspn(s, "0123456789") != n)
			return api_fail(r, API_INVALID_REQUEST, "limit must be a number from 1 to %lld", (long long)max);
		v = strtoll(s, NULL, 10);
		if (v < 1 || v > max)
			return api_fail(r, API_INVALID_REQUEST, "limit must be a number from 1 to %lld", (long long)max);
	}
	*ret = v;
	return API_OK;
}

static enum api_code cursor_parse(const char *s, struct page *p)
{
	size_t digits = strspn(s, "0123456789"), n;

	if (strlen(s) > CURSOR_MAX || !digits || digits > 15 || s[digits] != '.')
		return API_INVALID_CURSOR;
	n = strlen(s + digits + 1);
	if (!n || n >= sizeof(p->before_id) || strspn(s + digits + 1, ID_ALPHABET "_ilo") != n)
		return API_INVALID_CURSOR;
	p->before_ms = strtoll(s, NULL, 10);
	memcpy(p->before_id, s + digits + 1, n + 1);
	return API_OK;
}

enum api_code page_start(struct request *r, struct page *p)
{
	const char *cursor = request_query(r, "cursor");
	enum api_code code = page_limit(r, PAGE_DEFAULT, PAGE_MAX, &p->limit);

	p->before_ms = INT64_MAX;
	if (!code && cursor)
		code = cursor_parse(cursor, p);
	p->list = json_object_new_array();
	return code ? code : p->list ? API_OK : API_BUSY;
}

/* False if the page is full, then the row is not part of it. Takes `row`. */
static bool page_add(struct page *p, int64_t created_ms, const char *id, struct json_object *row)
{
	if (json_object_array_length(p->list) >= (size_t)p->limit) {
		json_object_put(row);
		p->more = true;
		return false;
	}
	json_object_array_add(p->list, row);
	p->last_ms = created_ms;
	snprintf(p->last_id, sizeof(p->last_id), "%s", id);
	return true;
}

/* Query values go back into the link, except for the characters that would end it or its parts. */
static size_t encode(char *out, size_t size, size_t at, const char *s)
{
	static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.~";
	static const char digits[] = "0123456789ABCDEF";

	for (; *s && at + 4 < size; s++) {
		if (strchr(plain, *s)) {
			out[at++] = *s;
		} else {
			out[at++] = '%';
			out[at++] = digits[(unsigned char)*s >> 4];
			out[at++] = digits[(unsigned char)*s & 15];
		}
	}
	out[at] = '\0';
	return at;
}

void page_link(struct request *r, const char *cursor)
{
	const struct config *cfg = &r->api->config;
	const char *uri = request_param(r, "REQUEST_URI");
	char rest[1024] = "", port[8] = "";
	size_t at = 0;

	for (size_t i = 0; i < r->n_query; i++) {
		if (!strcmp(r->query[i].key, "cursor") || at + 16 > sizeof(rest))
			continue;
		at = encode(rest, sizeof(rest), at, r->query[i].key);
		rest[at++] = '=';
		at = encode(rest, sizeof(rest), at, r->query[i].value);
		rest[at++] = '&';
		rest[at] = '\0';
	}
	if (cfg->https_port != 443)
		snprintf(port, sizeof(port), ":%u", (unsigned int)cfg->https_port & 0xffffu);
	reply_header(r, "Link: <https://api.%s%s%.*s?%scursor=%s>; rel=\"next\"", cfg->domain, port,
		     (int)strcspn(uri, "?,;>"), uri, rest, cursor);
}

static enum api_code page_reply(struct request *r, struct page *p)
{
	char cursor[CURSOR_MAX];

	if (p->more) {
		snprintf(cursor, sizeof(cursor), "%lld.%s", (long long)p->last_ms, p->last_id);
		page_link(r, cursor);
	}
	return reply_json(r, 200, take_ptr(p->list));
}

enum api_code page_rows(struct request *r, struct page *p, struct db_q *q, int created, int id, page_row_fn *row)
{
	struct fault f = { 0 };
	enum rc rc;

	db_int(q, p->before_ms);
	db_text(q, p->before_id);
	db_int(q, p->limit + 1);
	while (!(rc = db_row(q, &f))) {
		struct json_object *o = row(r, q, &f);

		if (!o) {
			rc = f.rc ? f.rc : fault_set(&f, RC_NOMEM, 0, "a row of a list");
			break;
		}
		if (!page_add(p, db_col_int(q, created), db_col_text(q, id), o))
			break;
	}
	return rc && rc != RC_ABSENT ? api_fault(r, &f) : page_reply(r, p);
}
