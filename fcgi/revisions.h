/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Revisions, for the workers and the runner.
 *
 * Theory: the API makes a revision 'queued' together with its bundle, its log files and, for a preview, its timeline and
 * domain, and kicks the runner. Taking one is `UPDATE ... SET status = 'building' WHERE id = ? AND status = 'queued'`: of a
 * runner that takes and an API that cancels, one finds no row. Whoever ends a revision writes the last line of both log
 * files, GATEWAY_LOG_END; until then followers wait. What production shall be is not decided here: the runner moves the
 * timeline when the revision has answered, so a failed one leaves no trace in it.
 *
 *   <state_dir>/logs/revisions/<id>.progress   lines of RevisionProgress, the last one counts
 *   <state_dir>/logs/revisions/<id>.build      lines of BuildLog
 */
#ifndef NB_FCGI_REVISIONS_H
#define NB_FCGI_REVISIONS_H

#include "fcgi/db.h"
#include "fcgi/ids.h"
#include "fcgi/json.h"

#define REVISION_PROGRESS ".progress"
#define REVISION_BUILD_LOG ".build"
#define REVISION_FILE_MAX 32

struct revision_new {
	const char *app_id, *app_slug, *domain;
	const char *labels, *layers, *env_vars, *config; /* JSON */
	bool production, preview;
	uint64_t names_max; /* of its organization, see domain_claim() */
	const char *bundle; /* hex SHA-256 */
	uint64_t bundle_bytes;
};

/* The row, its timeline and domain. logs_fd: <state_dir>/logs/revisions. RC_EXISTS: the preview's host name is taken; RC_LIMIT: too many names. */
enum rc revision_create(struct db *db, const struct revision_new *n, int logs_fd, char ret_id[REVISION_ID_CHARS + 1],
			struct fault *ret_f);
/* Ends it if it still waits: true in *ret_done. Else only notes the wish. Writes the logs' last lines if it ended it. */
enum rc revision_cancel(struct db *db, const char *id, int logs_fd, bool *ret_done, struct fault *ret_f);

/* Appends to a log file, which is made if need be. text: complete lines. */
enum rc revision_log_append(int logs_fd, const char *id, const char *suffix, const char *text, struct fault *ret_f);
/* The first progress line and the one of a cancel before the start, as RevisionProgress. */
struct json_object *revision_progress_json(const char *queued_status, int64_t start_ms, int64_t end_ms,
					   const char *others_status);

#endif
