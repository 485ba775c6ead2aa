/* SPDX-License-Identifier: Apache-2.0 */
#ifndef NB_FCGI_REVISION_JSON_H
#define NB_FCGI_REVISION_JSON_H

#include "fcgi/request.h"

/* Of `revisions v JOIN apps a`; the order is revision_json()'s. */
#define REVISION_COLUMNS                                                                                   \
	"v.id, v.status, v.failure_reason, v.labels, v.layers, v.env_vars, v.config, v.created_ms, "     \
	"v.cancel_requested_ms, v.build_finished_ms, v.deleted_ms, v.failure, a.id, a.slug"
#define REVISION_CREATED 7

/* A page_row_fn that cannot fail but for memory. */
struct json_object *revision_json(struct request *r, const struct db_q *q, struct fault *ret_f);
/* Answers the revision as clients see it. */
enum api_code revision_reply(struct request *r, const char *id);

#endif
