/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/revision_json.h"

#include "fcgi/revisions.h"

#include <stdio.h>
#include <string.h>

struct json_object *revision_json(struct request *r, const struct db_q *q, struct fault *ret_f)
{
	struct json_object *o = json_object_new_object();

	(void)r, (void)ret_f;
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
