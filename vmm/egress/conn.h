/* SPDX-License-Identifier: Apache-2.0 */
/* One TCP connection of a guest; shared by conn.c, relay.c and refuse.c, private to this directory. */
#ifndef NB_EGRESS_CONN_H
#define NB_EGRESS_CONN_H

#include "base/buf.h"
#include "vmm/egress/limits.h"
#include "vmm/egress/sandbox.h"

#include <stdbool.h>

struct intercept;

enum conn_way { WAY_OUT, WAY_IN }; /* guest to upstream, upstream to guest */

enum conn_state {
	CONN_FIRST,      /* waits for the ClientHello */
	CONN_RESOLVING,
	CONN_CONNECTING,
	CONN_RELAY,
	CONN_TLS,        /* intercept.c has it */
	CONN_REFUSING,   /* reads a request's head to answer it */
	CONN_LINGER,     /* the refusal is written, waits for the client to close */
};

/* One direction: from one side's socket through a buffer to the other's. */
struct lane {
	struct buf held;  /* read and not yet taken by the other side */
	bool eof, shut;   /* the end was read; the end was passed on */
	uint64_t bytes;   /* passed on */
};

struct side {
	struct conn *conn;
	int fd;
	struct source *source;
};

struct conn {
	struct sandbox *sb;
	struct conn *next, *prev;
	enum conn_state state;
	struct side guest, up;
	struct source *timer;
	struct address dst;          /* where the guest connected to */
	uint16_t port;
	char name[POLICY_NAME_MAX];  /* what dst stands for; empty if it is a literal address */
	const char *protocol;
	struct verdict verdict;
	struct lookup *lookup;
	struct address addrs[EGRESS_ADDRS_MAX];
	size_t n_addrs, at_addr;     /* addrs[at_addr] is being tried or in use */
	uint64_t started_ms, active_ms, deadline_ms;
	struct intercept *tls;
	size_t held[2];              /* its part of the sandbox's, by enum conn_way */
	bool full[2];                /* not read because of that */
	bool waits;                  /* for the meter, in its queue: nothing is read */
	struct conn *waits_next;
	struct lane out, in;         /* guest to upstream, upstream to guest */
	int low_water;               /* FIRST: SO_RCVLOWAT */
	int refuse_status;
	const char *refuse_why;      /* a literal or verdict.rule */
};

/* Writes the ledger row, closes everything. With reset, both sides see a reset instead of an orderly end. */
void conn_end(struct conn *c, const char *decision, const char *reason, bool reset);
/* The verdict is no: a readable answer where HTTP is expected, else a reset. */
void conn_refuse(struct conn *c, int status, const char *decision, const char *why);
/* Closes everything; the row was written before. */
void conn_drop(struct conn *c, bool reset);
uint64_t conn_now(const struct conn *c);
/* Of `want` bytes as many as may be read now. 0: the connection waits, or its sandbox's total is used up: *ret_over. */
size_t conn_may_read(struct conn *c, enum conn_way way, size_t want, bool *ret_over);
/* What it holds now. True: it may read again where it could not. */
bool conn_holds(struct conn *c, size_t out, size_t in);
#define CONN_OVER "limit of total bytes"

/* relay.c: both sides are connected. */
void relay_start(struct conn *c);
void relay_event(struct side *s, uint32_t events);
void relay_timeout(struct conn *c);
/* There are tokens again. */
void relay_resume(struct conn *c);

/* refuse.c */
void refuse_start(struct conn *c);
void refuse_event(struct conn *c, uint32_t events);

#endif
