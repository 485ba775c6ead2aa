/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One revision from its bundle to a serving machine, in a process of its own (`nestbox-runner job ID`): it blocks freely, and if it
 * dies the runner sees that and nothing else suffers. A lock on the revision's progress file says that it is being worked on.
 *
 * A machine is made, the bundle unpacked in it, the install and build commands run, the server started and asked until it
 * answers; only then the app's names point to it, and only after that the machine that had them ends. Whatever fails on the way
 * ends this revision's machine and leaves everything else as it was.
 */
#ifndef NB_RUNNER_JOB_H
#define NB_RUNNER_JOB_H

#include "base/config.h"
#include "base/fault.h"
#include "fcgi/db.h"

/* Builds, starts and routes. again: the revision had succeeded before and its machine was lost: only starts and routes. */
enum rc job_run(const struct config *c, struct db *db, const char *revision, bool again, struct fault *ret_f);

#endif
