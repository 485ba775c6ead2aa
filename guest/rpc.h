/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The parts of the session process and what they promise each other. All of it runs on one thread, that of the loop,
 * except the work of jobs (guest/rpc_jobs.h).
 *
 *   session   the loop, the children, the environment, the exposed services: shared by all connections
 *   rpc_conn  one client: a WebSocket, its unanswered calls, its streams
 *   rpc_call  one request until it is answered; whoever holds it answers exactly once, also when nobody listens any more
 *   rpc_out   a stream to the client       rpc_in   a stream from the client
 */
#ifndef NB_GUEST_RPC_H
#define NB_GUEST_RPC_H

#include "base/buf.h"
#include "base/loop.h"
#include "guest/rpc_json.h"
#include "guest/rpc_limits.h"
#include "guest/rpc_spill.h"

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct jobs;
struct proc;
struct exposed;
struct warm;
struct rpc_conn;
struct rpc_fs;

struct session {
	struct loop *loop;
	struct jobs *jobs;
	struct json_object *env;       /* of new children: names to strings */
	struct json_object *env_own;   /* what clients made of it: names to strings, null for deleted */
	struct rpc_conn *conns, *dead; /* dead ones are freed between two turns of the loop */
	size_t n_conns;
	struct proc *running, *finished;
	size_t n_running, n_finished;
	uint64_t n_spare;              /* REPLs that became so (guest/deno_repl.c) */
	struct exposed *exposed;
	size_t n_exposed;
	struct warm *warm;             /* guest/deno_warm.h; NULL until a REPL was asked for */
	uid_t uid;                     /* children's */
	gid_t gid;
	bool change_ids;               /* real uid 0 with another effective one */
	char home[PATH_MAX];           /* where relative paths and children start */
	uint64_t generation;
	uint64_t oom_seen;             /* of the kernel's count, what was attributed already */
};

/* --- a client's connection (rpc_conn.c) ------------------------------------------------------------------------ */

/* Takes over fd, whatever happens. */
enum rc rpc_conn_new(struct session *s, int fd, struct fault *ret_f);
/* Sends a close frame and ends; everything that hangs on the connection is told now. */
void rpc_conn_close(struct rpc_conn *c, int status, const char *reason);
/* What the turn of the loop left to do: writes what is queued, frees the dead. */
void rpc_conns_flush(struct session *s);
void rpc_conns_close(struct session *s, int status, const char *reason);
struct session *rpc_conn_session(struct rpc_conn *c);
struct rpc_fs *rpc_conn_fs(struct rpc_conn *c);
bool rpc_conn_room(const struct rpc_conn *c); /* producers may send */
size_t rpc_conn_queued(const struct rpc_conn *c); /* bytes to be sent */
/* A text frame made of three parts. If the queue has no room the connection ends, but not before the turn does. */
void rpc_conn_text(struct rpc_conn *c, const char *a, size_t n_a, const char *b, size_t n_b, const char *z, size_t n_z);
/* The same with base64 of `data` in the middle. */
void rpc_conn_text_b64(struct rpc_conn *c, const char *a, size_t n_a, const void *data, size_t n, const char *z,
		       size_t n_z);
void rpc_conn_ping(struct rpc_conn *c, const void *data, size_t n); /* n <= 125; the answer: rpc_streams_pong() */
void rpc_conn_notify(struct rpc_conn *c, const char *method, struct json_object *params); /* owns params */

/* --- calls (rpc_call.c) ---------------------------------------------------------------------------------------- */

/* Something that `abort` with this id stops. */
struct rpc_abort {
	int64_t id; /* < 0: none */
	void (*fn)(void *arg);
	void *arg;
	struct rpc_abort *next, **at;
};

void rpc_abort_add(struct rpc_conn *c, struct rpc_abort *a);
void rpc_abort_remove(struct rpc_abort *a); /* also if never added */
void rpc_aborts_fire(struct rpc_conn *c, int64_t id);

struct rpc_call {
	struct rpc_conn *conn; /* NULL: nobody waits for the answer any more */
	struct rpc_call *next, **at;
	struct json_object *id;
	struct rpc_abort abort;
	/* Told once, when the answer isn't wanted any more (aborted, connection lost). May be NULL. */
	void (*gone)(struct rpc_call *call, void *arg);
	void *arg;
};

struct rpc_call *rpc_call_new(struct rpc_conn *c, struct json_object *id); /* takes a reference to id */
void rpc_calls_detach(struct rpc_conn *c); /* the connection is lost */
/* `abortId` of the parameters: from here `abort` answers the call with an AbortError. */
void rpc_call_abortable(struct rpc_call *call, struct params *p);

/* Each of these answers and frees. */
void rpc_call_ok(struct rpc_call *call, struct json_object *ok); /* owns ok; NULL: null */
void rpc_call_error(struct rpc_call *call, const char *class_name, const char *code, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
void rpc_call_error_json(struct rpc_call *call, struct json_object *error); /* owns error */
void rpc_call_errno(struct rpc_call *call, int sys, const char *context);
void rpc_call_fault(struct rpc_call *call, int code, const char *message); /* a JSON-RPC error */
void rpc_call_params(struct rpc_call *call, const struct params *p);        /* -32602 with p->why */
void rpc_call_drop(struct rpc_call *call);                                  /* no answer: its connection is lost */

struct json_object *rpc_error_new(const char *class_name, const char *code, const char *message);
struct json_object *rpc_error_abort(void); /* DOMException AbortError */
/* s with what is not UTF-8 replaced, as a JSON string. */
struct json_object *json_str_lossy(const char *s, size_t n);

/* --- streams (rpc_stream.c) ------------------------------------------------------------------------------------ */

struct rpc_out_ops {
	void (*resume)(void *arg); /* there is room again; only after rpc_out_wait() */
	void (*gone)(void *arg, bool cancelled); /* by the client, or else the connection is lost. Still to be freed. */
};

enum rpc_out_state { OUT_NEW, OUT_OPEN, OUT_ENDING };

struct rpc_out {
	struct rpc_conn *conn; /* NULL: gone */
	uint64_t id;
	const struct rpc_out_ops *ops;
	void *arg;
	enum rpc_out_state state;
	bool waiting, ended;
	bool answered;             /* one ping was, since the client was told what it may react to */
	bool often_left;           /* consumers break off in the middle: its end waits until they are quiet */
	int quiet;                 /* pings answered since anything else was said */
	uint64_t activity;         /* the connection's when that was counted */
	uint64_t end_by_ms;        /* quiet or not */
	struct json_object *error; /* to end with; owned */
	uint64_t sent;             /* bytes */
	uint64_t first_turn;       /* the connection's when the first of them was sent */
	uint64_t mark;             /* the ping whose answer moves a new or an ending stream on */
	struct source *timer;      /* ... or the time, if there is no answer */
	struct rpc_out *next, **at;
};

struct rpc_out *rpc_out_new(struct rpc_conn *c, const struct rpc_out_ops *ops, void *arg); /* NULL: too many */
static inline bool rpc_out_room(const struct rpc_out *o)
{
	return o->conn && o->state == OUT_OPEN && rpc_conn_room(o->conn);
}
void rpc_out_wait(struct rpc_out *o);
void rpc_out_send(struct rpc_out *o, const void *data, size_t n);  /* n <= RPC_CHUNK; nothing if n is 0 */
void rpc_out_end(struct rpc_out *o);                               /* frees, as the next two; NULL is fine */
void rpc_out_error(struct rpc_out *o, struct json_object *error);  /* owns error */
void rpc_out_free(struct rpc_out *o);

struct rpc_in_ops {
	void (*ready)(void *arg); /* more data, or the end. May drop the stream. */
};

struct rpc_in {
	struct rpc_conn *conn; /* NULL: lost, then also ended and failed */
	int64_t id;
	const struct rpc_in_ops *ops; /* NULL: no call has named it yet */
	void *arg;
	struct buf data;
	size_t counted;    /* bytes of it that the connection's bound knows of */
	struct spill spill; /* what follows `data` when the reader stands still */
	uint64_t moved_ms; /* when the reader last took something, or first could */
	bool last;         /* the client has ended it; `ended` when `spill` is empty */
	bool ended, failed; /* failed: by the client's error, an overflow, or because the connection is lost */
	struct rpc_in *next, **at;
};

/* The stream that a call names. NULL: no such stream, or it has a reader. */
struct rpc_in *rpc_in_claim(struct rpc_conn *c, int64_t id, const struct rpc_in_ops *ops, void *arg);
void rpc_in_used(struct rpc_in *in); /* after taking from in->data */
/* The reader is done with it. Not ended: the client is told to stop, for this reason (owned, may be NULL). */
void rpc_in_drop(struct rpc_in *in, struct json_object *reason);

/* For the connection. */
bool rpc_stream_notification(struct rpc_conn *c, const char *method, struct json_object *params);
/* A chunk in the form that JSON.stringify gives it, decoded without a parser. False: not of that form. */
bool rpc_stream_fast(struct rpc_conn *c, char *text, size_t n);
void rpc_streams_ping(struct rpc_conn *c); /* sends the wanted ping, if any */
void rpc_streams_pong(struct rpc_conn *c, const void *data, size_t n);
void rpc_streams_resume(struct rpc_conn *c);
void rpc_streams_refill(struct rpc_conn *c); /* readers that go on get what was put away */
void rpc_streams_stuck(struct rpc_conn *c);  /* too much is held: if that lasts, it is put away */
void rpc_streams_detach(struct rpc_conn *c);

/* --- methods --------------------------------------------------------------------------------------------------- */

typedef void rpc_method_fn(struct rpc_conn *c, struct rpc_call *call, struct json_object *params);
/* The function of a method of this process; NULL if there is none. */
rpc_method_fn *rpc_method_find(const char *name);
/* Dispatches one request: finds the method, checks what all have in common, calls it. */
void rpc_dispatch(struct rpc_conn *c, const char *method, struct json_object *id, struct json_object *params);

/* The lists that hang on a connection, for the three files above. */
struct rpc_lists {
	struct rpc_call *calls;
	size_t n_calls;
	struct rpc_abort *aborts;
	struct rpc_out *outs;
	size_t n_outs;
	struct rpc_in *ins;
	size_t n_ins;
	size_t held;          /* bytes in all `ins` that have a reader */
	size_t unclaimed;     /* and in those that have none */
	uint64_t spilled;     /* bytes in their files */
	struct source *stuck; /* looks for readers that stand still; NULL: never needed */
	bool stuck_set;
	uint64_t activity;    /* messages but those of streams and pings, both ways */
	uint64_t turn;        /* what is queued while it stays the same leaves together */
	bool ping_wanted;     /* when the turn ends, after all that it has queued */
	uint64_t next_ping;
	uint64_t next_pong;   /* all pings below it were answered */
	bool deaf;            /* the client has never answered one */
	uint64_t next_stream; /* from a random base: the SDK's tables are shared by all its connections */
};
struct rpc_lists *rpc_conn_lists(struct rpc_conn *c);

#endif
