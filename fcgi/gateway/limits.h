/* SPDX-License-Identifier: Apache-2.0 */
/* Every bound of the gateway. doc/limits.md lists them with the tests. */
#ifndef NB_GATEWAY_LIMITS_H
#define NB_GATEWAY_LIMITS_H

#define GATEWAY_FILES 65536          /* RLIMIT_NOFILE asked for */
#define GATEWAY_STREAMS_MAX 16384    /* at once, of all kinds; a stream has at most 7 descriptors, idle 3 */
#define GATEWAY_PEERS_MAX 512        /* API workers connected */
#define GATEWAY_ACCEPT_BATCH 64      /* connections taken from one listener a wake-up */
#define GATEWAY_ACCEPT_PAUSE_MS 100  /* when the process is out of descriptors */

#define TICKETS_MAX 1024
#define TICKET_TTL_MAX_MS 60000

#define HEAD_MAX 16384               /* bytes of a request head */
#define HEAD_HEADERS_MAX 100
#define HEAD_DEADLINE_MS 10000
#define HEAD_TOKEN_MAX 64            /* of a path: longer than any token is */

#define RELAY_CHUNK (256u * 1024)    /* asked of one splice; a pipe holds 64 KiB unless its pages are larger */
#define RELAY_ROUNDS 8               /* splices of one direction a wake-up */
#define RELAY_PIPES_KEPT 16          /* empty pipes kept for the next stream that needs one */
#define RELAY_LINGER_MS 10000        /* for the last bytes, once the other side has gone */

#define FOLLOW_LINE_MAX 65536        /* a longer log line is left out */
#define FOLLOW_KEEPALIVE_MS 15000
#define FOLLOW_ASK_MS 500             /* between questions about the file after one that has ended */
#define FOLLOW_POLL_MS 250           /* only where inotify cannot watch the file */

#define EXPOSE_HOSTS_MAX 16384       /* as many as the broker names (EXPOSE_MAX): one more would be exposed and not served */
#define EXPOSE_NAME_MAX 102          /* bytes of a host: "<host>.sock" must fit sockaddr_un */
#define EXPOSE_DIAL_MS 5000          /* one answer of the broker */
#define EXPOSE_ANSWER_MS 15000       /* the agent's answer line */
#define EXPOSE_ANSWER_MAX 4096
#define EXPOSE_WAKE_MS 60000         /* for a machine that sleeps */
#define EXPOSE_WAKE_FIRST_MS 50
#define EXPOSE_WAKE_STEP_MAX_MS 1000
#define EXPOSE_WAITING_MAX 2048      /* connections that wait for a machine at once */
#define EXPOSE_WAITING_HOST_MAX 512  /* of them for the machines of one host */

#define ANSWER_LINGER_MS 2000        /* reading on after an answer of our own */
#define ANSWER_LINGER_BYTES (1u << 20)

#define LINK_RETRY_FIRST_MS 100
#define LINK_RETRY_MAX_MS 2000
#define LINK_CALLS_MAX 4096          /* questions asked and not answered */
#define LINK_FLIGHT_MAX 56           /* of them at the broker; the others wait here */
#define LINK_GROUP_CALLS_MAX 1024    /* questions about one host, asked and not answered */
#define LINK_GROUP_FLIGHT_MAX 8      /* of them at the broker, if the last answer came soon */
#define LINK_GROUP_NEW_MAX 2         /* if there was none yet; one if it was slow */
#define LINK_SLOW_MS 2500            /* an answer that took so long was slow */
#define LINK_SLOW_FLIGHT_MAX 12      /* questions at the broker about hosts that are slow, all together */
#define LINK_DOUBT_FLIGHT_MAX 40     /* the same, about those and hosts that are new; what is left is for the others alone */

#endif
