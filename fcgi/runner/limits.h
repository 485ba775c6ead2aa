/* SPDX-License-Identifier: Apache-2.0 */
/* Bounds of nestbox-runner. doc/limits.md names the test of each. */
#ifndef NB_RUNNER_LIMITS_H
#define NB_RUNNER_LIMITS_H

#define RUNNER_JOBS_MAX 4              /* revisions at once */
#define RUNNER_JOBS_ORG_MAX 3          /* of them of one organization */
#define RUNNER_LOOK_MAX 1024           /* of those that wait for a place, looked at each time */
#define RUNNER_POLL_MS 2000            /* looks for work by itself this often */
#define RUNNER_RECONCILE_MS 10000      /* compares the database with the broker this often */
#define RUNNER_CALL_MS 90000           /* one question to the broker */
#define RUNNER_LINE_MAX 8192           /* of a build or app log; longer ones are cut */
#define RUNNER_BUILD_LOG_MAX (8u << 20)
#define RUNNER_APP_PORT 8000
#define RUNNER_APP_MEMORY_MIB 1280
#define RUNNER_WAKES_MAX 8             /* revisions at once that are started again or woken */
#define RUNNER_WAKES_ORG_MAX 6         /* of them of one organization */
#define RUNNER_SLEEPS_MAX 4            /* instances at once that are put to sleep */
#define RUNNER_DRAINS_MAX 16           /* apps at once whose old machines are waited for */
#define RUNNER_WAKE_MS 10000           /* a woken machine's server must listen by then */
#define RUNNER_LISTEN_MS 1000          /* its agent waits so long for a server that does not listen yet, then it is asked how it is */
#define RUNNER_DRAIN_MS 60000          /* visitors of a replaced revision may stay so long */
#define RUNNER_LOCK_MS 90000           /* wait for whoever moves an app's names */
#define RUNNER_GATEWAY_MS 2000         /* one question to the gateway */
#define RUNNER_WANTED_MS 200           /* a host that is wanted again within this is not looked up again */
#define RUNNER_NAMES_MAX 1024          /* names of one app */
#define RUNNER_TARGETS_MAX 8           /* timelines that one revision is led to at once */
#define RUNNER_ROUTE_TRIES 3           /* looks at where names shall lead, if that changes while they are moved */
#define RUNNER_GC_MS 60000             /* between looks for what is old */
#define RUNNER_LOG_RATE 2000           /* lines of one instance a second; more are counted, not kept */
#define RUNNER_RESTARTS_MS 5000        /* restarts of an instance that come sooner are written down together */
#define GC_INSTANCE_MS 259200000ull    /* ended instances can be asked about for so long */
#define RUNNER_BACKOFF_MIN_MS 1000
#define PURGE_KEEP_MS 86400000ull     /* what was deleted can be restored for so long */
#define RUNNER_BACKOFF_MAX_MS 60000    /* between attempts at what failed by the host, not by the app */

#endif
