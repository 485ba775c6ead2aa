/* SPDX-License-Identifier: Apache-2.0 */
/* Every bound of the SSH gateway. doc/limits.md lists them with the tests. */
#ifndef NB_SSH_LIMITS_H
#define NB_SSH_LIMITS_H

#define SSH_CONNECTIONS_MAX 256      /* at once, one process each */
#define SSH_STARTS_MAX 64            /* of them not logged in yet */
#define SSH_SOURCE_MAX 64            /* of them from one address (IPv6: one /64) */
#define SSH_RATE_PER_S 20            /* new connections, on average */
#define SSH_RATE_BURST 100
#define SSH_FAILS_MAX 10             /* failed logins of one address in SSH_FAIL_WINDOW_MS; then it is turned away */
#define SSH_FAIL_WINDOW_MS 60000
#define SSH_SOURCES 1024             /* addresses that are remembered */
#define SSH_TRIES 3                  /* logins in one connection */
#define SSH_FAIL_MS 1000             /* every failed login is answered after this long */
#define SSH_GRACE_MS 30000           /* from the connection to the login */
#define SSH_END_MS 3000              /* for a process that was told to end */

#define SSH_CHANNELS_MAX 32          /* of one connection */
#define SSH_NAME_MAX 64              /* bytes of a user name that is looked at */
#define SSH_ENV_MAX 32               /* variables of one channel */
#define SSH_ENV_BYTES 4096           /* of one variable */
#define SSH_COMMAND_MAX 65536        /* bytes of a command; with the rest it has to fit AGENT_LINE_MAX */
#define SSH_TERM_MAX 64
#define SSH_OPEN_MS 10000            /* for a connection to the agent, and for its answer */
#define SSH_ANSWER_MAX 4096
#define SSH_GUEST_BYTES 131072       /* that wait, of one channel and direction, beside what libssh keeps in a window (1.28 MB) */
#define SSH_BACKLOG_MAX (4u << 20)   /* that a client sent in spite of its window; beyond: it is disconnected */
#define SSH_WRITE_MAX 65536          /* to one channel a turn */
#define SSH_MEMORY (512ull << 20)    /* address space of a session's process */
#define SSH_FILES 64                 /* its descriptors */

#endif
