/* SPDX-License-Identifier: Apache-2.0 */
/* Bounds of the egress proxy; doc/egress.md lists each with its test. */
#ifndef NB_EGRESS_LIMITS_H
#define NB_EGRESS_LIMITS_H

/* One sandbox. */
#define EGRESS_CONNS_MAX 1024          /* open TCP connections */
#define EGRESS_CONN_PER_S 200          /* new ones, on average .. */
#define EGRESS_CONN_BURST 400          /* .. and at once */
#define EGRESS_DNS_PER_S 100
#define EGRESS_DNS_BURST 300
#define EGRESS_DNS_CONNS_MAX 16        /* DNS over TCP */
#define EGRESS_NAMES_MAX 4096          /* names with a synthetic address; the longest unused one goes */
#define EGRESS_DNS_ROWS_PER_S 10       /* refused names written to the ledger */
#define EGRESS_DNS_ROWS_BURST 100

#define EGRESS_HELD_MAX 33554432       /* bytes of all its connections that wait here for a peer to take them .. */
#define EGRESS_HELD_FLOOR 8192         /* .. beyond, a connection reads on only while it holds less than this in that direction */

#define EGRESS_METER_BURST_MIN 65536   /* bytes at once, where a byte rate is set; else an eighth of a second's */
#define EGRESS_METER_PIECE 16384       /* a connection that waits for tokens is not woken for less */
#define EGRESS_METER_TICK_MS 10        /* and not sooner */
#define EGRESS_METER_FILL_MS 86400000  /* more time than this fills no more */

/* The whole proxy. */
#define EGRESS_SANDBOXES_MAX 4096
#define EGRESS_FDS 262144
#define EGRESS_ACCEPT_BATCH 16         /* connections taken from one listener before others have their turn */
#define EGRESS_ACCEPT_PAUSE_MS 200     /* after running out of descriptors */
#define EGRESS_DNS_BATCH 32

/* Of these an organization may take one more while it has less than what is left (tenant.h). */
#define EGRESS_FDS_PER_CONN 4          /* connections in all: the descriptors divided by this; each takes two, the rest is for listeners and DNS */
#define EGRESS_TLS_CONNS_ALL 16384     /* intercepted connections: some 1 GiB of TLS states */
#define EGRESS_HELD_ALL 1073741824     /* bytes held; beyond, as beyond EGRESS_HELD_MAX */
#define EGRESS_LOOKUPS_MAX 8192        /* names being resolved: two questions each, and their numbers have 16 bits */
#define EGRESS_LOOKUPS_SANDBOX_MAX 256 /* of one sandbox, those that nobody waits for any more included */

/* One connection. */
#define EGRESS_BUFFER 65536            /* bytes held in each direction while the other side does not take them */
#define EGRESS_RELAY_ROUNDS 4          /* reads of EGRESS_BUFFER in a row */
#define EGRESS_HELLO_MAX 16384         /* TLS records up to and with the ClientHello */
#define EGRESS_HEAD_MAX 65536          /* HTTP/1 head */
#define EGRESS_FIRST_MS 20000          /* for the ClientHello, or the head of a request that is refused; an emulated machine is slow */
#define EGRESS_RESOLVE_MS 8000
#define EGRESS_CONNECT_MS 15000        /* all addresses together */
#define EGRESS_CONNECT_ONE_MS 5000
#define EGRESS_TLS_CONNS_MAX 512       /* of a sandbox that are intercepted: these may hold more, see EGRESS_TLS_OUT */
#define EGRESS_ADDRS_MAX 8             /* addresses of a name that are tried */
#define EGRESS_IDLE_MS 3600000         /* nothing in either direction */
#define EGRESS_HALF_MS 600000          /* nothing in the direction that is left */
#define EGRESS_LINGER_MS 5000          /* for a client to take a refusal and close */
#define EGRESS_KEEPALIVE_S 60

/* Intercepted TLS. */
#define EGRESS_LEAVES_MAX 64           /* certificates that a sandbox keeps */
#define EGRESS_TLS_BUFFER 131072       /* decrypted bytes held in each direction; a head and what follows it */
#define EGRESS_TLS_OUT 524288          /* the same, with placeholders put back */
#define EGRESS_TLS_PIECE 16384         /* of a body, taken at a time */
#define EGRESS_SECURE_BYTES 4194304    /* locked memory for secrets, a power of two */
#define EGRESS_TLS_HANDSHAKE_MS 30000  /* either handshake; see EGRESS_FIRST_MS */
#define EGRESS_TLS_IDLE_MS 600000

/* HTTP/2 on intercepted connections. */
#define EGRESS_H2_STREAMS_MAX 128      /* at once on one connection */
#define EGRESS_H2_STREAM_WINDOW 262144 /* bytes of one stream and direction that may wait here */
#define EGRESS_H2_WINDOW 524288        /* of all streams of a connection and direction */
#define EGRESS_H2_HELD_MAX 1048576     /* of one stream, with placeholders put back */
#define EGRESS_H2_QUEUE_MAX 1024       /* frames that wait to be written; then nothing is read */
#define EGRESS_H2_CONTROL_MAX 1000     /* resets, pings, settings, priorities and empty frames of a peer in 10 s */

/* DNS. */
#define EGRESS_DNS_MESSAGE_MAX 1232    /* longest answer over UDP, and the longest question */
#define EGRESS_DNS_TTL_S 60            /* of a synthetic address */
#define EGRESS_DNS_IDLE_MS 10000       /* DNS over TCP */
#define EGRESS_CACHE_MIN_S 5           /* upstream addresses are remembered for their TTL, within these */
#define EGRESS_CACHE_MAX_S 60

/* Ledger. */
#define EGRESS_LEDGER_QUEUE 4194304    /* bytes waiting for the disk; what comes beyond is dropped and counted */
#define EGRESS_ROWS_PER_S 20           /* of one sandbox, on average .. */
#define EGRESS_ROWS_BURST 2000         /* .. and at once */
#define EGRESS_LEDGER_PART 67108864    /* bytes of a file, or an eighth of what is kept */
#define EGRESS_LEDGER_PARTS 1000       /* files of a day */
#define EGRESS_LEDGER_OPEN 64          /* organizations whose files are held open */
#define EGRESS_LEDGER_SWEEP_S 3600     /* old files are looked for */

/* Broker connection. */
#define EGRESS_RETRY_MIN_MS 100
#define EGRESS_RETRY_MAX_MS 5000
#define EGRESS_STALE_MS 10000          /* a restarted broker names its machines within this */

#endif
