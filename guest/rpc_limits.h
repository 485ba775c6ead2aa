/* SPDX-License-Identifier: Apache-2.0 */
/* Bounds of the RPC that a sandbox's clients speak. Each is in doc/limits.md. */
#ifndef NB_GUEST_RPC_LIMITS_H
#define NB_GUEST_RPC_LIMITS_H

#define RPC_CONNECTIONS_MAX 256            /* clients of one sandbox at once */
#define RPC_MESSAGE_MAX (128u << 20)       /* one message from a client: 96 MiB of file content as base64 */
#define RPC_FRAGMENTS_MAX 16384            /* frames of one message */
#define RPC_REPLY_MAX (100u << 20)         /* one message to a client: what the SDK's WebSocket takes by default */
#define RPC_OUT_HIGH (1u << 20)            /* with more than this to send, producers and further requests wait */
#define RPC_OUT_LOW (256u << 10)           /* ... until there is less than this */
#define RPC_OUT_MAX (1u << 30)             /* replies to calls that ran already; past it the connection ends */
#define RPC_JSON_DEPTH 256
#define RPC_CALLS_MAX 4096                 /* unanswered calls of a connection; then its further requests wait */
#define RPC_CHUNK (96u << 10)              /* raw bytes in one message of a stream; a multiple of 3 */
#define RPC_STREAMS_MAX 4096               /* streams of a connection, each way */
#define RPC_END_AT_ONCE 4096               /* a stream of no more bytes, sent in one turn, ends in it */
#define RPC_REACT_MS 100                   /* for a second ping's answer: what the client says to what it was told is here by then */
#define RPC_END_GRACE_MS 10                /* the same after the last of several answers, before the end of a walk */
#define RPC_END_QUIET 2                    /* pings answered with nothing else said before the end of a walk */
#define RPC_END_PATIENCE_MS 1000           /* ... but no longer than this */
#define RPC_PONG_WAIT_MS 30000             /* for the answer to a ping, of a client on a host that may be busy */
#define RPC_PONG_DEAF_MS 1000              /* ... of one that has never answered any: it is believed to have seen all */
#define RPC_HELD_MAX (32u << 20)           /* client chunks not yet consumed; then the connection isn't read */
#define RPC_STUCK_MS 1000                  /* ... until a reader has taken nothing for so long: its chunks go to a file */
#define RPC_SPILL_MAX (1u << 30)           /* in such files of one connection; then the stream fails */
#define RPC_REFILL (1u << 20)              /* bytes taken back from a file at once */
#define RPC_REFILLS_PER_TURN 16            /* ... before others get a turn */
#define RPC_UNCLAIMED_MAX (16u << 20)      /* client chunks before the calls that name their streams; then they fail */
#define RPC_CLOSE_WAIT_MS 2000             /* for the close frame to leave and the peer to hang up */

#define JOB_THREADS_MAX 64                 /* file calls at work; they may block (a FIFO, a lock) */
#define JOB_STACK (512u << 10)

#define PROC_FINISHED_MAX 4096             /* exit statuses that are remembered */
#define PROC_RUNNING_MAX 4096              /* children at once */
#define PROC_PIPE_SIZE (256 << 10)
#define PROC_READS_PER_TURN 4              /* chunks from one pipe before others get a turn */
#define PROC_TREE_MAX 4096                 /* processes looked at when searching a listening port */

#define ENV_VARS_MAX 4096
#define EXPOSED_MAX 256
#define EXPOSED_NAME_MAX 253

#define HTTP_WAIT_FIRST_MS 20              /* search for a listening port: first pause, doubled up to the last */
#define HTTP_WAIT_LAST_MS 250
#define PROC_LOOK_EACH 16                  /* looks for a port of which one goes through all processes although no socket is new */
#define HTTP_HEAD_MAX (256u << 10)         /* response head of a fetch, all hops of curl's output together */
#define HTTP_REDIRECTS_MAX 20
#define HTTP_URL_MAX 65536
#define HTTP_CONNECT_MS 10000              /* dial of an exposed service */
#define HTTP_RELAY_BUF (64u << 10)

#define REPL_REPLY_MAX RPC_REPLY_MAX
#define WARM_AVAILABLE_MIB 256             /* free memory with which a REPL is started ahead of its use, and spare ones stay */
#define WARM_UNWANTED_MS 600000            /* ... and the time after which it ends unused */
#define WARM_SHAPE_MAX (1u << 20)          /* text of all that it must have in common with what is asked for */
#define WARM_CONFIG_MAX (256u << 10)       /* configuration file that is looked into for it */
#define DENO_EVAL_MAX (96u << 10)          /* longer code goes through a file: one argument holds 128 KiB */

#endif
