/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where an app's names lead. Theory: a row of `domains` says whose a host is, its timeline which revision serves, `instances` which
 * machine that has; the broker's exposure is what visitors meet. Whoever moves a name holds the app's lock from its look at the database
 * until the exposure is what the database says: a job that routes, one that puts to sleep, and the daemon's own repairs.
 */
#ifndef NB_RUNNER_NAMES_H
#define NB_RUNNER_NAMES_H

#include "base/config.h"
#include "base/fault.h"
#include "fcgi/db.h"
#include "fcgi/runner/link.h"

struct names {
	size_t n;
	char org[BROKER_ORG_MAX];
	char (*hosts)[BROKER_HOST_MAX]; /* owned */
};
void names_free(struct names *s);
#define _cleanup_names_ _cleanup_(names_free)

/* Held while the descriptor is open. RC_TIMEOUT; with deadline 0 RC_AGAIN at once. */
enum rc names_lock(const struct config *c, const char *app, uint64_t deadline_ms, int *ret_fd, struct fault *ret_f);

/* Hosts of one timeline of an app; of all timelines that this revision serves; of the whole app. */
enum rc names_of_timeline(struct db *db, const char *app, const char *timeline, struct names *ret, struct fault *ret_f);
enum rc names_of_revision(struct db *db, const char *revision, struct names *ret, struct fault *ret_f);
enum rc names_of_host(struct db *db, const char *host, struct names *ret, struct fault *ret_f);
enum rc names_of_app(struct db *db, const char *app, struct names *ret, struct fault *ret_f);

/* vm "": nowhere at the moment. */
enum rc names_point(struct link *l, const struct names *s, const char *vm, struct fault *ret_f);

/* Sums and extremes over the hosts; known: the gateway knows at least one of them. */
enum rc names_visits(struct link *l, const struct names *s, struct gateway_host_stat *ret, struct fault *ret_f);

/* The revision that serves this host and its running machine ("" if none); RC_ABSENT if nothing does. */
enum rc names_target(struct db *db, const char *host, char app[64], char revision[64], char vm[64], struct fault *ret_f);

/* Takes given up names from the broker and gives it those that it lacks. */
void names_sync(const struct config *c, struct db *db, struct link *l);

#endif
