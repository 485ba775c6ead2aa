/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The runner's own process: hands queued revisions to jobs, keeps what should serve serving, writes down what the broker
 * says ended, removes what clients deleted. It never blocks for long: work that does is a job.
 */
#ifndef NB_RUNNER_WATCH_H
#define NB_RUNNER_WATCH_H

#include "base/config.h"
#include "base/loop.h"
#include "fcgi/db.h"

enum rc watch_run(const struct config *c, const char *config_path, struct db *db, int kick_fd, struct fault *ret_f);
/* A job's claim on its revision, a keeper's on its instance: held while the descriptor is open. RC_AGAIN: taken. */
enum rc watch_lock(const struct config *c, const char *id, int *ret_fd, struct fault *ret_f);

#endif
