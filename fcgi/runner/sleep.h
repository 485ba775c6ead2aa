/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Machines that nobody needs, each in a process of its own (`nestbox-runner sleep INSTANCE`, `nestbox-runner drain APP`).
 *
 * Sleep: under the app's lock the names are pointed nowhere first, and only then the gateway is asked whether anybody is there. A visitor
 * who dialled before is seen and the names are pointed back; one who comes after finds no machine, waits at the gateway, and the
 * broker's word that a machine is wanted wakes the app. So nobody's connection is ever cut by sleeping.
 *
 * Drain: machines that no name leads to any more end when the last visitor from before has gone, RUNNER_DRAIN_MS later at the latest.
 */
#ifndef NB_RUNNER_SLEEP_H
#define NB_RUNNER_SLEEP_H

#include "base/config.h"
#include "base/fault.h"
#include "fcgi/db.h"

enum rc sleep_run(const struct config *c, struct db *db, const char *instance, struct fault *ret_f);
enum rc drain_run(const struct config *c, struct db *db, const char *app, struct fault *ret_f);

/* A running instance that no name leads to or is about to, or that a younger one of its revision has replaced: rows of i. */
#define DRAIN_SQL                                                                                                            \
	"i.state = 'running' AND (NOT EXISTS (SELECT 1 FROM timelines t WHERE t.app_id = i.app_id AND "                      \
	"i.revision_id IN (t.revision_id, t.desired_revision_id)) OR EXISTS (SELECT 1 FROM instances y WHERE y.revision_id = i.revision_id AND "       \
	"y.state = 'running' AND y.created_ms > i.created_ms))"

#endif
