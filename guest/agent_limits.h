/* SPDX-License-Identifier: Apache-2.0 */
/* Bounds of the agent (PID 1). doc/agent.md says what happens at each. */
#ifndef NB_GUEST_AGENT_LIMITS_H
#define NB_GUEST_AGENT_LIMITS_H

#define AGENT_CONNECTIONS_MAX 1024     /* at once, whatever their service; more are closed unanswered */
#define AGENT_LINE_DEADLINE_MS 10000   /* from accept to the end of the service line */
#define AGENT_JSON_DEPTH_MAX 16
#define AGENT_ARGS_MAX 1024            /* argv entries */
#define AGENT_ENV_MAX 1024             /* environment entries of one request */
#define AGENT_NAME_MAX 64              /* unit names */
#define AGENT_EXCLUDE_MAX 64
#define AGENT_OUT_MAX 262144           /* bytes waiting for the host on one exec connection; then the process waits */
#define AGENT_STDIN_MAX 262144         /* bytes waiting for a process; then the host waits */
#define AGENT_RELAY_BUFFER 131072      /* each direction of one dialled connection */
#define AGENT_HANGUP_MS 5000           /* SIGHUP to SIGKILL */
#define AGENT_LINGER_QUIET_MS 200      /* output of what a finished command left behind: until this long nothing came, */
#define AGENT_LINGER_MAX_MS 2000       /* at most so long */
#define AGENT_UNITS_MAX 32
#define AGENT_UNIT_LINE_MAX 8192
#define AGENT_UNIT_BACKOFF_MIN_MS 1000
#define AGENT_UNIT_BACKOFF_MAX_MS 60000
#define AGENT_DIAL_DEADLINE_MS 5000
#define AGENT_DIAL_WAIT_MS 10000 /* longest wait for somebody to listen */
#define AGENT_DIAL_RETRY_MIN_MS 5
#define AGENT_DIAL_RETRY_MAX_MS 80
#define AGENT_TAR_ERROR_MAX 512
#define AGENT_SESSION_BACKOFF_MS 100
#define AGENT_HOOK_DEADLINE_MS 5000
#define AGENT_WARM_DEADLINE_MS 60000   /* the image's warm-up while a template is made */
#define AGENT_POWEROFF_TERM_MS 2000
#define AGENT_DEVICE_WAIT_MS 5000
#define AGENT_DISKS_KNOWN 8            /* as many as a machine has */
#define AGENT_OLD_ROOT_MS 1500         /* from another root to the end of the template's */
#define AGENT_MEMORY_RESERVE_MIB 48    /* kept from user processes for the agent and the kernel */
#define AGENT_PIDS_MAX 16384
#define AGENT_CA_MAX 65536
#define AGENT_BUNDLE_MAX (4u << 20)

#endif
