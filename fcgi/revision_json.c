/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/revision_json.h"

#include "base/buf.h"
#include "fcgi/revisions.h"
#include "schema/gateway.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>

struct json_object *revision_json(const struct db_q *q)
{
	struct json_object *o = json_object_new_object();

	json_add_str(o, "id", db_col_text(q, 0));
	json_add_str(o, "status", db_col_text(q, 1));
	json_add_str(o, "failure_reason", db_col_null(q, 2) ? NULL : db_col_text(q, 2));
	json_add_str(o, "failure_message", *db_col_text(q, 11) ? db_col_text(q, 11) : NULL);
	json_add(o, "labels", json_stored(db_col_text(q, 3)));
	json_add(o, "layers", json_stored(db_col_text(q, 4)));
	json_add(o, "env_vars", json_stored(db_col_text(q, 5)));
	json_add(o, "config", json_stored(db_col_text(q, 6)));
	json_add_time(o, "created_at", db_col_int(q, 7));
	json_add_time_or_null(o, "cancellation_requested_at", db_col_int(q, 8));
	json_add_time_or_null(o, "build_finished_at", db_col_int(q, 9));
	json_add_time_or_null(o, "deleted_at", db_col_int(q, 10));
	json_add_str(o, "app_id", db_col_text(q, 12));
	return o;
}

static bool member_is(struct json_object *o, const char *key, const char *want)
{
	struct json_object *v = json_get(o, key);

	return !want || (json_object_is_type(v, json_type_string) && !strcmp(json_object_get_string(v), want));
}

static enum rc put_line(struct buf *out, const char *line, size_t n, const char *step, const char *timeline)
{
	_cleanup_json_ struct json_object *o = NULL;

	if (json_parse_object(line, n, JSON_DEPTH_CONFIG, &o, NULL) || !member_is(o, "step", step) ||
	    !member_is(o, "timeline", timeline))
		return RC_OK;
	return buf_printf(out, "data: %.*s\n\n", (int)n, line);
}

enum api_code revision_build_logs_filtered(struct request *r, const char *step, const char *timeline)
{
	_cleanup_buf_ struct buf out = BUF_INIT(HTTP_RESPONSE_MAX);
	_cleanup_free_ char *text = NULL;
	char name[REVISION_FILE_MAX], *copy;
	struct fault f = { 0 };
	enum api_code code = revision_reply(r, r->args[0]); /* for its checks; replaced below */
	enum rc rc;

	if (code)
		return code;
	snprintf(name, sizeof(name), "%.16s%.12s", r->args[0], REVISION_BUILD_LOG);
	rc = file_read_at(r->api->logs_fd, name, HTTP_RESPONSE_MAX, &text, NULL, &f);
	if (rc && rc != RC_ABSENT)
		return api_fault(r, &f);
	for (char *line = text, *next = NULL; !rc && line && *line; line = next) {
		size_t n = strcspn(line, "\n");

		next = line + n + (line[n] != '\0');
		rc = put_line(&out, line, n, step, timeline);
	}
	copy = malloc(buf_len(&out) + 1);
	if (!copy)
		return API_BUSY;
	if (buf_len(&out))
		memcpy(copy, buf_data(&out), buf_len(&out));
	return reply_text(r, "text/event-stream", copy, buf_len(&out));
}
