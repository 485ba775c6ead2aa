/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Captures: the memory of a revision's machine after its server first answered, kept by the broker, from which an idle app wakes. A row
 * of `captures` says that one may be used; the broker has the bytes. The name has a keyed digest of everything that the
 * server was started with, so that one made with other variables is not found.
 */
#ifndef NB_RUNNER_CAPTURE_H
#define NB_RUNNER_CAPTURE_H

#include "base/config.h"
#include "base/fault.h"
#include "fcgi/db.h"
#include "fcgi/runner/link.h"
#include "fcgi/seal.h"

enum rc capture_name(const char *revision, const struct seal_key *key, struct json_object *env, struct json_object *config,
		     char ret[BROKER_CAPTURE_MAX], struct fault *ret_f);
/* RC_ABSENT if there is none of this name. */
enum rc capture_find(struct db *db, const char *name, uint64_t *ret_log_seq, struct fault *ret_f);
/* Of a running machine whose server answers. Those of the same revision by other names go. */
enum rc capture_take(const struct config *c, struct db *db, struct link *l, const char *revision, const char *vm,
		     const char *name, struct fault *ret_f);
/* The row first: what is left at the broker then is collected. */
void capture_drop(struct db *db, struct link *l, const char *name);
/* Removes what no revision has, then the longest unused until the rest is within captures_max_mib. */
void capture_collect(const struct config *c, struct db *db, struct link *l);
/* Of sandboxes: what the broker has and no row does, and rows of captures that were never finished. */
void capture_collect_sandboxes(struct db *db, struct link *l);

#endif
