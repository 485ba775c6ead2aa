/* SPDX-License-Identifier: Apache-2.0 */
/* The egress ledger as clients see it: pages, lines, a live tail, and what can be learnt from it. */
#include "base/buf.h"
#include "base/fd.h"
#include "fcgi/egress_learn.h"
#include "fcgi/egress_place.h"
#include "fcgi/egress_scan.h"
#include "fcgi/handlers.h"
#include "fcgi/page.h"
#include "fcgi/peers.h"
#include "fcgi/sandboxes.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

/* The proxy makes the directory; before that there is no ledger. */
static int ledger_dir(const struct request *r)
{
	char path[PATH_MAX];

	return path_join(path, sizeof(path), r->api->config.state_dir, LEDGER_DIR, NULL) ?
		       -1 : open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

struct listing {
	struct egress_query q;
	int64_t limit;
	struct json_object *rows; /* of a page */
	struct buf lines;         /* of an export */
	bool ndjson, failed;
	int64_t n, dropped;
};

static void listing_free(struct listing *l)
{
	json_object_put(l->rows);
	buf_free(&l->lines);
}

/* "2026-01-02T03:04:05Z" and others of ISO 8601, as rows have it. */
static enum api_code time_get(struct request *r, const char *key, char out[ISO_MAX])
{
	const char *s = request_query(r, key);
	struct fault f = { 0 };
	int64_t ms = 0;

	if (!s)
		return API_OK;
	if (time_from_iso(s, &ms, &f) || ms < 0)
		return api_fail(r, API_INVALID_REQUEST, "%s must be an ISO 8601 time", key);
	time_to_iso(ms, out);
	return API_OK;
}

static enum api_code word_get(struct request *r, const char *key, const char *const *words, const char **ret)
{
	const char *s = request_query(r, key);

	*ret = s;
	for (size_t i = 0; s && words[i]; i++)
		if (!strcmp(words[i], s))
			return API_OK;
	return s ? api_fail(r, API_INVALID_REQUEST, "%s: '%s' is none", key, shown(s)) : API_OK;
}

static enum api_code query_parse(struct request *r, struct listing *l)
{
	static const char *const decisions[] = { "allow", "deny", "error", "dropped", NULL };
	static const char *const protocols[] = { "tcp", "tls", "http", "https", "dns", NULL };
	const char *format = request_query(r, "format"), *sandbox = request_query(r, "sandbox");
	enum api_code code;

	l->ndjson = format && !strcmp(format, "jsonl");
	if (format && !l->ndjson && strcmp(format, "json") != 0)
		return api_fail(r, API_INVALID_REQUEST, "format is json or jsonl");
	code = page_limit(r, l->ndjson ? EGRESS_EXPORT_MAX : LOG_PAGE_DEFAULT, l->ndjson ? EGRESS_EXPORT_MAX : LOG_PAGE_MAX, &l->limit);
	if (!code)
		code = time_get(r, "start", l->q.start);
	if (!code)
		code = time_get(r, "end", l->q.end);
	if (!code)
		code = word_get(r, "decision", decisions, &l->q.decision);
	if (!code)
		code = word_get(r, "protocol", protocols, &l->q.protocol);
	if (code)
		return code;
	if (sandbox && !*l->q.sandbox) {
		if (strlen(sandbox) >= sizeof(l->q.sandbox) || strspn(sandbox, ID_ALPHABET "_ilo") != strlen(sandbox))
			return api_fail(r, API_INVALID_REQUEST, "sandbox: '%s' is no id", shown(sandbox));
		snprintf(l->q.sandbox, sizeof(l->q.sandbox), "%s", sandbox);
	}
	l->q.host = request_query(r, "host");
	if (l->q.host && strlen(l->q.host) > SEARCH_MAX * 2)
		return api_fail(r, API_INVALID_REQUEST, "host is too long");
	return API_OK;
}

static bool is_dropped(struct json_object *row)
{
	struct json_object *v = json_get(row, "decision");

	return json_object_is_type(v, json_type_string) && !strcmp(json_object_get_string(v), "dropped");
}

static bool on_row(void *arg, struct json_object *row)
{
	struct listing *l = arg;
	int64_t count = 0;

	if (l->n >= l->limit)
		return false;
	if (l->ndjson) {
		if (buf_printf(&l->lines, "%s\n", json_text(row)))
			return false; /* as many as fit */
	} else if (json_object_array_add(l->rows, json_object_get(row))) {
		json_object_put(row);
		l->failed = true;
		return false;
	}
	l->n++;
	if (is_dropped(row) && !json_get_int(row, "count", &count, NULL))
		l->dropped += count;
	return true;
}

static enum api_code listing_reply(struct request *r, struct listing *l)
{
	struct json_object *o;
	size_t n = buf_len(&l->lines);
	char *text;

	if (l->ndjson) {
		text = malloc(n + 1);
		if (!text)
			return API_BUSY;
		if (n)
			memcpy(text, buf_data(&l->lines), n);
		reply_header(r, "X-Nestbox-Dropped: %lld", (long long)l->dropped);
		return reply_text(r, "application/x-ndjson", text, n);
	}
	o = json_object_new_object();
	json_add(o, "egress", take_ptr(l->rows));
	json_add_int(o, "dropped", l->dropped);
	return reply_json(r, 200, o);
}

static enum api_code list(struct request *r, const char *sandbox)
{
	_cleanup_(listing_free) struct listing l = { .lines = BUF_INIT(EGRESS_EXPORT_BYTES) };
	const char *from = request_query(r, "cursor");
	_cleanup_fd_ int dir = ledger_dir(r);
	char cursor[EGRESS_CURSOR_MAX] = "";
	struct fault f = { 0 };
	enum api_code code;
	enum rc rc;

	snprintf(l.q.sandbox, sizeof(l.q.sandbox), "%s", sandbox);
	code = query_parse(r, &l);
	if (code)
		return code;
	if (from && strlen(from) >= sizeof(cursor))
		return API_INVALID_CURSOR;
	snprintf(cursor, sizeof(cursor), "%s", from ? from : "");
	l.rows = json_object_new_array();
	rc = egress_scan(dir, r->org_name, &l.q, cursor, on_row, &l, &f);
	if (rc)
		return rc == RC_INVALID ? API_INVALID_CURSOR : api_fault(r, &f);
	if (l.failed || !l.rows)
		return API_BUSY;
	if (*cursor)
		page_link(r, cursor);
	return listing_reply(r, &l);
}

enum api_code egress_list(struct request *r)
{
	return list(r, "");
}

enum api_code egress_sandbox_list(struct request *r)
{
	struct sandbox_found s = { 0 };
	enum api_code code = sandbox_find(r, r->args[0], &s);

	return code ? code : list(r, s.id);
}

/* --- live ------------------------------------------------------------------------------------------------------ */

static enum api_code tail(struct request *r, const char *sandbox)
{
	const char *format = request_query(r, "format");
	char since[ISO_MAX] = "", match[ID_MAX + 16] = "", name[LEDGER_NAME_MAX], place[GATEWAY_PLACE_MAX];
	_cleanup_fd_ int fd = -1, dir = ledger_dir(r);
	struct fault f = { 0 };
	uint64_t offset = 0;
	enum api_code code = time_get(r, "since", since);

	if (code)
		return code;
	if (egress_file_since(dir, r->org_name, *since ? since : NULL, name, &fd, &offset, &f) ||
	    egress_place(&r->api->app_key, r->org_name, name, place, &f))
		return f.rc == RC_ABSENT ? api_fail(r, API_NOT_FOUND, "nothing was recorded yet") : api_fault(r, &f);
	if (*sandbox)
		snprintf(match, sizeof(match), "\"sandbox\":\"%s\"", sandbox);
	return ticket_follow_on(r, fd, offset, format && !strcmp(format, "jsonl"), match, place);
}

enum api_code egress_tail(struct request *r)
{
	return tail(r, "");
}

enum api_code egress_sandbox_tail(struct request *r)
{
	struct sandbox_found s = { 0 };
	enum api_code code = sandbox_find(r, r->args[0], &s);

	return code ? code : tail(r, s.id);
}

/* --- learning --------------------------------------------------------------------------------------------------- */

static enum api_code learn(struct request *r, const char *sandbox)
{
	_cleanup_(listing_free) struct listing l = { 0 };
	_cleanup_fd_ int dir = ledger_dir(r);
	struct json_object *o = NULL;
	struct fault f = { 0 };
	enum api_code code;

	snprintf(l.q.sandbox, sizeof(l.q.sandbox), "%s", sandbox);
	code = query_parse(r, &l);
	if (code)
		return code;
	if (egress_learn_from(dir, r->org_name, &l.q, &o, &f))
		return api_fault(r, &f);
	return reply_json(r, 200, o);
}

enum api_code egress_learn(struct request *r)
{
	return learn(r, "");
}

enum api_code egress_sandbox_learn(struct request *r)
{
	struct sandbox_found s = { 0 };
	enum api_code code = sandbox_find(r, r->args[0], &s);

	return code ? code : learn(r, s.id);
}
