/* SPDX-License-Identifier: Apache-2.0 */
/* Bounds of nestbox-runner. doc/limits.md names the test of each. */
#ifndef NB_RUNNER_LIMITS_H
#define NB_RUNNER_LIMITS_H

#define RUNNER_JOBS_MAX 4              /* revisions at once */
#define RUNNER_POLL_MS 2000            /* looks for work by itself this often */
#define RUNNER_RECONCILE_MS 10000      /* compares the database with the broker this often */
#define RUNNER_JOB_MS 900000           /* a whole revision */
#define RUNNER_COMMAND_MS 600000       /* one install or build command */
#define RUNNER_READY_MS 60000          /* from start to the first answer of an app's server */
#define RUNNER_CALL_MS 90000           /* one question to the broker */
#define RUNNER_LINE_MAX 8192           /* of a build or app log; longer ones are cut */
#define RUNNER_BUILD_LOG_MAX (8u << 20)
#define RUNNER_APP_PORT 8000
#define RUNNER_APP_MEMORY_MIB 1280
#define RUNNER_DRAIN_MS 3000           /* an old revision goes on this long after the new one took over */
#define PURGE_KEEP_MS 86400000ull     /* what was deleted can be restored for so long */
#define RUNNER_BACKOFF_MAX_MS 60000    /* between attempts to start a production revision again */

#endif
