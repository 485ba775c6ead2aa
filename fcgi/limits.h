/* SPDX-License-Identifier: Apache-2.0 */
/* Every bound of the API workers. doc/limits.md lists them with the tests. */
#ifndef NB_FCGI_LIMITS_H
#define NB_FCGI_LIMITS_H

#define DB_BUSY_MS 5000
#define DB_CACHED_STATEMENTS 128
#define DB_MIGRATION_MAX (1u << 20) /* bytes of one migration file */

#define HTTP_BODY_MAX (4u << 20)
#define HTTP_DEPLOY_BODY_MAX (64u << 20) /* inline assets; base64 costs a third */
#define HTTP_PATH_MAX 2048
#define HTTP_SEGMENTS_MAX 8
#define HTTP_SEGMENT_MAX 256
#define HTTP_QUERY_MAX 8192
#define HTTP_QUERY_PAIRS_MAX 32
#define HTTP_RESPONSE_MAX (16u << 20)
#define HTTP_REQUEST_S 300 /* a worker that is busy longer with one request is replaced */

#define ACCEPT_S 10        /* an idle worker looks whether it is to end, unless a signal tells it */
#define POOL_SHARE 2       /* long requests of one organization: times the places without one */
#define POOL_SHARE_END 4   /* the same, of requests that end a machine */
#define POOL_YOUNG_MS 20   /* a long request that has not taken so long yet is no reason for another worker */
#define POOL_LOOK_MS 1000  /* how often the parent looks while there are more than api_workers */
#define POOL_IDLE_MS 5000  /* workers that were too many for so long end */

#define JSON_DEPTH_MAX 32
#define JSON_DEPTH_CONFIG 8
#define JSON_VALUES_MAX 65536 /* lists, objects and elements of a text; ASSETS_MAX files are some 40000 */

#define TOKEN_MAX 128

#define CONFIG_HEADER_MAX 65536 /* base64 characters of x-deno-sandbox-config */
#define LABELS_MAX 5
#define LABEL_KEY_MAX 64
#define LABEL_VALUE_MAX 128
#define ALLOW_NET_MAX 512
#define VOLUMES_MAX 4
#define MOUNT_PATH_MAX 512
#define SECRET_HOSTS_MAX 32
#define EGRESS_RULES_MAX 128 /* entries of egress.rules */
#define ENV_NAME_MAX 127
#define ENV_VALUE_MAX 32768
#define ENV_VARS_MAX 256
#define ENV_TOTAL_MAX 65536
#define ENV_EFFECTIVE_MAX 131072 /* of an app and its layers; an agent takes no longer line */
#define LAYERS_MAX 16
#define APP_DOMAINS_MAX 32 /* of its own, asked for or approved */
#define LAYER_DEPTH_MAX 8
#define STARTS_BACKOFF_MIN_MS 1000    /* before a revision that did not start is started again, the first time */
#define STARTS_BACKOFF_MAX_MS 3600000 /* the longest pause */
#define STARTS_VISIT_MS 15000         /* the longest if somebody asks for it */
#define STARTS_HEALTHY_MS 60000       /* a machine that ran so long starts its back-off over */
#define DESCRIPTION_MAX 1024
#define COMMAND_MAX 4096
#define ARGS_MAX 64
#define ARG_BYTES_MAX 1024
#define PATH_IN_GUEST_MAX 4096
#define ASSETS_MAX 10000
#define EXPOSURES_MAX 32 /* of one sandbox */
#define SSH_NAME_CHARS 26 /* of a user name that opens a sandbox: 131 bits */

#define SLUG_MIN 2
#define SLUG_MAX 32
#define VOLUME_BYTES_MIN 300000000ull
#define VOLUME_BYTES_MAX 21474836480ull

#define PAGE_DEFAULT 30
#define PAGE_MAX 100
#define LOG_PAGE_DEFAULT 100
#define LOG_PAGE_MAX 1000
#define LOG_SCAN_MAX (64u << 20) /* bytes of app logs that one query reads */
#define EGRESS_SCAN_MAX (64u << 20) /* bytes of the egress ledger that one page reads */
#define EGRESS_EXPORT_MAX 10000      /* rows of one answer as lines .. */
#define EGRESS_EXPORT_BYTES 16777216 /* .. and their bytes */
#define EGRESS_LEARN_MAX 2048        /* hosts and ports learnt */
#define EGRESS_LEARN_SCANS 4         /* times EGRESS_SCAN_MAX */
#define CURSOR_MAX 128
#define SEARCH_MAX 128

#define FORK_LIFETIME_MS 600000 /* of children whose parent lived by its connection and that nobody gave a stop_at_ms */
#define BROKER_CALL_MS 10000
#define BROKER_KILL_MS 9000   /* the client gives up after ten seconds */
#define POLICY_CALL_MS 15000  /* proxy, then agent */
#define VOLUME_CALL_MS 60000
#define GUIDE_RETRY_MS 500            /* to the gateway again */
#define TICKET_TTL_MS 10000
#define TREE_QUIET_MS 30000     /* a tree out of a sandbox: without a byte, .. */
#define TREE_BASE_MS 90000      /* .. all of it, .. */
#define TREE_BYTES_PER_S 524288 /* .. and a second more for each so many, .. */
#define TREE_MOST_MS 270000     /* .. but no longer: Node's fetch() waits 300 s for an answer's head */

#endif
