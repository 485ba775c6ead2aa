/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attempts to start a revision that a name leads to, and the pauses between them.
 *
 * Theory: a row is there from the first failure on; its pause doubles up to a bound, so that a revision that will never start costs a machine
 * an hour and not each minute. The row, and not the runner's memory, is what counts: a runner that is started anew does not begin over.
 * What may have changed the matter ends the pause: it is promoted (a new deployment is a revision of its own, without a row), its app's or
 * organization's variables were changed. A visitor makes it STARTS_VISIT_MS at most, since he waits at the door. The row goes when a machine
 * has been well for STARTS_HEALTHY_MS. All times are of the wall clock; a pause that a clock put back has made longer than the bound is over.
 */
#ifndef NB_FCGI_STARTS_H
#define NB_FCGI_STARTS_H

#include "fcgi/db.h"
#include "fcgi/json.h"

struct starts {
	int64_t failures, failed_ms, retry_ms;
};

/* It failed at now_ms; max_ms bounds the pause. */
enum rc starts_failed(struct db *db, const char *revision, int64_t now_ms, int64_t max_ms, struct starts *ret, struct fault *ret_f);
/* It may be started; also if that cannot be found out. */
bool starts_due(struct db *db, const char *revision, int64_t now_ms);
/* Somebody wants it. RC_ABSENT: it has not failed. */
enum rc starts_visited(struct db *db, const char *revision, struct fault *ret_f);
enum rc starts_forget(struct db *db, const char *revision, struct fault *ret_f);
enum rc starts_forget_of_app(struct db *db, const char *app, struct fault *ret_f);
enum rc starts_forget_of_org(struct db *db, const char *org, struct fault *ret_f);
/* Forgets those whose machine has been well long enough, or sleeps, and those that nothing shall lead to any more. */
enum rc starts_settle(struct db *db, int64_t now_ms, struct fault *ret_f);
/* {failures, last_failed_at, next_at}, NULL if it has not failed. */
struct json_object *starts_json(struct db *db, const char *revision);

/* Of `revisions r`; parameters ?1, the time, and ?2, STARTS_BACKOFF_MAX_MS. */
#define STARTS_DUE_SQL                                                                                                          \
	"NOT EXISTS (SELECT 1 FROM starts s WHERE s.revision_id = r.id AND s.retry_ms > ?1 AND s.retry_ms <= ?1 + ?2)"

#endif
