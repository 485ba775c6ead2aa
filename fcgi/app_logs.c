/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/app_log.h"

#include "base/fd.h"
#include "fcgi/apps.h"
#include "fcgi/handlers.h"
#include "fcgi/page.h"
#include "fcgi/peers.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static const char *const levels[] = { "debug", "info", "warn", "error" };

struct search {
	int64_t start_ms, end_ms, limit;
	const char *revision, *text;
	size_t level; /* index of the least one */
	char from_file[APP_LOG_NAME_MAX]; /* of the cursor; empty: from the beginning */
	uint64_t from_offset;
	struct json_object *list;
	uint64_t scanned;
	char at_file[APP_LOG_NAME_MAX]; /* where the next page starts */
	uint64_t at_offset;
	bool more;
};

static void search_free(struct search *s)
{
	json_object_put(s->list);
}

static size_t level_index(const char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(levels); i++)
		if (!strcmp(levels[i], name))
			return i;
	return ARRAY_SIZE(levels);
}

static bool name_is_valid(const char *name)
{
	size_t n = strlen(name), s = strlen(APP_LOG_SUFFIX);

	return n > s && n < APP_LOG_NAME_MAX && *name != '.' && !strcmp(name + n - s, APP_LOG_SUFFIX) &&
	       strspn(name, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz._-") == n;
}

static enum api_code cursor_parse(struct search *s, const char *cursor)
{
	const char *tilde = strrchr(cursor, '~');
	size_t n = tilde ? (size_t)(tilde - cursor) : 0, digits = tilde ? strlen(tilde + 1) : 0;

	if (!n || n >= sizeof(s->from_file) || !digits || digits > 15 || strspn(tilde + 1, "0123456789") != digits)
		return API_INVALID_CURSOR;
	memcpy(s->from_file, cursor, n);
	s->from_file[n] = '\0';
	s->from_offset = strtoull(tilde + 1, NULL, 10);
	return name_is_valid(s->from_file) ? API_OK : API_INVALID_CURSOR;
}

static enum api_code filter_parse(struct request *r, struct search *s)
{
	const char *level = request_query(r, "level");

	s->level = level ? level_index(level) : 0;
	if (s->level == ARRAY_SIZE(levels))
		return api_fail(r, API_INVALID_REQUEST, "level must be debug, info, warn or error");
	s->revision = request_query(r, "revision_id");
	s->text = request_query(r, "query");
	if (s->text && strlen(s->text) > SEARCH_MAX)
		return api_fail(r, API_INVALID_REQUEST, "query is longer than %d bytes", SEARCH_MAX);
	return API_OK;
}

static enum api_code search_parse(struct request *r, struct search *s)
{
	const char *start = request_query(r, "start"), *end = request_query(r, "end");
	const char *cursor = request_query(r, "cursor");
	struct fault f = { 0 };
	enum api_code code = page_limit(r, LOG_PAGE_DEFAULT, LOG_PAGE_MAX, &s->limit);

	if (code)
		return code;
	s->end_ms = INT64_MAX;
	if (!start || time_from_iso(start, &s->start_ms, &f))
		return api_fail(r, API_INVALID_REQUEST, "start must be an ISO 8601 time");
	if (end && time_from_iso(end, &s->end_ms, &f))
		return api_fail(r, API_INVALID_REQUEST, "end must be an ISO 8601 time");
	code = filter_parse(r, s);
	if (code)
		return code;
	s->list = json_object_new_array();
	return cursor ? cursor_parse(s, cursor) : API_OK;
}

/* Lines hold what guests said: only what has the right form is shown. */
static struct json_object *line_parse(const struct search *s, const char *line, size_t n)
{
	_cleanup_json_ struct json_object *o = NULL;
	const char *level = "info", *message = NULL, *revision = NULL, *region = NULL, *instance = NULL, *timestamp = NULL;
	struct json_object *out;
	int64_t time_ms = -1;

	if (json_parse_object(line, n, JSON_DEPTH_CONFIG, &o, NULL) || json_get_str(o, "timestamp", 40, &timestamp, NULL) ||
	    !timestamp || time_from_iso(timestamp, &time_ms, NULL) || json_get_str(o, "instance", ID_MAX, &instance, NULL) ||
	    json_get_str(o, "level", 8, &level, NULL) || json_get_str(o, "revision_id", ID_MAX, &revision, NULL) ||
	    json_get_str(o, "region", 8, &region, NULL) ||
	    !json_object_is_type(json_get(o, "message"), json_type_string))
		return NULL;
	message = json_object_get_string(json_get(o, "message"));
	if (time_ms < s->start_ms || time_ms > s->end_ms || level_index(level) < s->level ||
	    (s->revision && (!revision || strcmp(revision, s->revision) != 0)) ||
	    (s->text && !strcasestr(message, s->text)))
		return NULL;
	out = json_object_new_object();
	json_add_str(out, "timestamp", timestamp);
	json_add_str(out, "level", level_index(level) < ARRAY_SIZE(levels) ? level : "info");
	json_add_str(out, "message", message);
	if (revision)
		json_add_str(out, "revision_id", revision);
	if (instance)
		json_add_str(out, "instance", instance);
	if (region)
		json_add_str(out, "region", region);
	return out;
}

/* True: go on with the next file. */
static bool file_search(struct search *s, int dirfd, const char *name, char *line)
{
	uint64_t offset = !strcmp(name, s->from_file) ? s->from_offset : 0;
	_cleanup_fd_ int fd = openat(dirfd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	_cleanup_file_ FILE *file = fd < 0 ? NULL : fdopen(fd, "r");

	if (!file)
		return true;
	fd = -1;
	if (fseeko(file, (off_t)offset, SEEK_SET) < 0)
		return true;
	while (fgets(line, APP_LOG_LINE_MAX, file)) {
		size_t n = strlen(line);
		struct json_object *found;

		if (!n || line[n - 1] != '\n')
			break; /* being written, or damaged */
		if (json_object_array_length(s->list) >= (size_t)s->limit || s->scanned > LOG_SCAN_MAX) {
			snprintf(s->at_file, sizeof(s->at_file), "%.63s", name);
			s->at_offset = offset;
			s->more = true;
			return false;
		}
		found = line_parse(s, line, n - 1);
		if (found)
			json_object_array_add(s->list, found);
		s->scanned += n;
		offset += n;
	}
	return true;
}

static int is_log(const struct dirent *d)
{
	return name_is_valid(d->d_name);
}

static enum api_code dir_search(struct request *r, struct search *s, const char *app_id)
{
	_cleanup_fd_ int dirfd = openat(r->api->app_logs_fd, app_id, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	_cleanup_free_ char *line = malloc(APP_LOG_LINE_MAX);
	struct dirent **names = NULL;
	bool on = true;
	int n;

	if (!line)
		return API_BUSY;
	n = dirfd < 0 ? 0 : scandirat(dirfd, ".", &names, is_log, alphasort);
	for (int i = 0; i < n; i++) {
		/* A file's lines end where the next one's name begins. */
		if (on && strcmp(names[i]->d_name, s->from_file) >= 0 &&
		    (i + 1 == n || strtoll(names[i + 1]->d_name, NULL, 10) >= s->start_ms))
			on = file_search(s, dirfd, names[i]->d_name, line);
		free(names[i]);
	}
	free(names);
	return API_OK;
}

/* --- live ---------------------------------------------------------------------------------------------------------- */

static void filter_add(char *filter, size_t size, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static void filter_add(char *filter, size_t size, const char *fmt, ...)
{
	size_t n = strlen(filter);
	va_list args;

	va_start(args, fmt);
	vsnprintf(filter + n, size - n, fmt, args);
	va_end(args);
}

/* What a line must hold, by the letter of app_log.h: inside a string no quotation mark stands without a backslash before it. */
static enum api_code filter_make(struct request *r, const struct search *s, char filter[GATEWAY_FILTER_MAX])
{
	_cleanup_json_ struct json_object *text = s->text ? json_object_new_string(s->text) : NULL;
	const char *quoted = text ? json_object_to_json_string_ext(text, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE) : NULL;

	*filter = '\0';
	if (s->level) {
		for (size_t i = s->level; i < ARRAY_SIZE(levels); i++)
			filter_add(filter, GATEWAY_FILTER_MAX, "%s\"level\":\"%s\"", i == s->level ? "" : "\t", levels[i]);
		filter_add(filter, GATEWAY_FILTER_MAX, "\n");
	}
	if (s->revision && !id_is_revision(s->revision))
		return API_REVISION_NOT_FOUND;
	if (s->revision)
		filter_add(filter, GATEWAY_FILTER_MAX, "\"revision_id\":\"%s\"\n", s->revision);
	if (quoted && strlen(quoted) > 2)
		filter_add(filter, GATEWAY_FILTER_MAX, "%.*s\n", (int)strlen(quoted) - 2, quoted + 1);
	return strlen(filter) + 1 < GATEWAY_FILTER_MAX ? API_OK : api_fail(r, API_INVALID_REQUEST, "the query is too long");
}

/* The newest file from its end, or from its beginning; an app that has not run yet gets an empty stream. */
enum api_code app_logs_stream(struct request *r)
{
	const char *tail = request_query(r, "tail");
	_cleanup_(search_free) struct search s = { 0 };
	_cleanup_fd_ int dirfd = -1, fd = -1;
	char filter[GATEWAY_FILTER_MAX];
	struct dirent **names = NULL;
	struct app_found app;
	struct stat st;
	enum api_code code = app_find(r, r->args[0], &app);
	int n;

	if (!code)
		code = filter_parse(r, &s);
	if (!code)
		code = filter_make(r, &s, filter);
	if (code)
		return code;
	dirfd = openat(r->api->app_logs_fd, app.id, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	n = dirfd < 0 ? 0 : scandirat(dirfd, ".", &names, is_log, alphasort);
	for (int i = 0; i < n; i++) {
		if (i == n - 1)
			fd = openat(dirfd, names[i]->d_name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
		free(names[i]);
	}
	free(names);
	if (fd < 0 || fstat(fd, &st) < 0)
		return reply_text(r, "text/event-stream", NULL, 0);
	return ticket_follow(r, fd, tail && !strcmp(tail, "0") ? (uint64_t)st.st_size : 0, false, filter);
}

enum api_code app_logs(struct request *r)
{
	_cleanup_(search_free) struct search s = { 0 };
	char cursor[APP_LOG_NAME_MAX + 24];
	struct json_object *o;
	struct app_found app;
	enum api_code code = app_find(r, r->args[0], &app);

	if (!code)
		code = search_parse(r, &s);
	if (!code)
		code = dir_search(r, &s, app.id);
	if (code)
		return code;
	if (s.more) {
		snprintf(cursor, sizeof(cursor), "%s~%llu", s.at_file, (unsigned long long)s.at_offset);
		page_link(r, cursor);
	}
	o = json_object_new_object();
	json_add(o, "logs", take_ptr(s.list));
	return reply_json(r, 200, o);
}
