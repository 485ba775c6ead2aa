/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The children of the session: started for any client, known to all by pid, remembered after their end.
 */
#ifndef NB_GUEST_PROC_H
#define NB_GUEST_PROC_H

#include "guest/rpc.h"

struct proc_wait {
	struct rpc_call *call;
	struct proc_wait *next;
};

/* One of stdout and stderr. */
struct proc_pipe {
	struct proc *proc;
	int fd;
	struct source *source; /* NULL while it waits for room */
	struct rpc_out *out;   /* NULL: nobody listens, what comes is thrown away */
	bool muted;            /* piped for the tap only: the client gets no stream */
	bool kill_when_gone;   /* nobody else may want the output */
	void (*tap)(struct proc *p, const uint8_t *data, size_t n); /* sees all bytes first; may be NULL */
	void (*at_end)(struct proc *p); /* ends `out` itself, now or later; may be NULL */
};

struct proc {
	struct session *session;
	pid_t pid;
	struct proc *next, **at; /* running or finished */
	struct source *child;
	bool running, exited, killed_by_us;
	int status;            /* of waitpid */
	uint64_t oom_at_start; /* the kernel's count */
	const char *oom;       /* "high-confidence", "low-confidence" or NULL */
	struct proc_pipe pipe[2];
	int stdin_fd;
	struct source *stdin_source;
	struct rpc_in *in;
	struct proc_wait *waits;
	/* Told once, when the process has exited, before the waiters. May be NULL. */
	void (*on_exit)(struct proc *p);
	/* A client has gone, which may have started it. May be NULL; p stays. */
	void (*on_conn_lost)(struct proc *p, const struct rpc_conn *c);
	void *owner;           /* what on_exit, on_conn_lost, tap and at_end belong to; NULL after on_exit */
	bool owned_input;      /* the input's failure is fatal */
	char *temp_file;       /* removed at the end */
	char watcher[40];      /* id of a Deno watcher, empty if none */
	struct rpc_conn *watcher_conn;
	size_t watcher_match;
};

/* What to start. Strings are borrowed for the call. */
struct proc_spec {
	const char *command;
	struct json_object *args, *env; /* array of strings, object of strings; may be NULL */
	const char *const *argv_head;   /* before args, after argv[0]; NULL-terminated, may be NULL */
	bool clear_env;
	const char *cwd;                /* NULL: home */
	bool pipe_in, pipe_out, pipe_err;
	bool oom_first;                 /* the kernel kills it before all others when memory is short */
	int pass_fds[2];                /* become 3 and 4 in the child; -1: none. Not closed here. */
};

/* The file that would be run, to be freed; NULL: none is found. */
char *proc_file(struct session *s, const struct proc_spec *spec);

/* Starts it; the pipes' ends are in *ret, nothing reads them yet. On failure *ret_call_error says so to a client. */
enum rc proc_start(struct session *s, const struct proc_spec *spec, struct proc **ret, struct json_object **ret_error);

void proc_on_child(void *arg, int wait_status); /* for proc_start() */

/* Answers the call as Deno would if a string that no program can be given is among its parameters. command: NULL if that is one of them. */
bool proc_refuse_nul(struct session *s, struct rpc_call *call, struct json_object *params, const char *command);
/* Reads spawn's common parameters. */
void proc_spec_params(struct proc_spec *spec, struct params *p);
/* Connects the pipes to streams of c and fills {pid, stdoutStreamId, stderrStreamId}. */
struct json_object *proc_connect(struct proc *p, struct rpc_conn *c, int64_t stdin_stream);

/* Connects one of them: the id of the new stream, or NULL. */
struct json_object *proc_connect_pipe(struct proc *p, int i, struct rpc_conn *c);
void proc_connect_stdin(struct proc *p, struct rpc_conn *c, int64_t stream);

struct proc *proc_find(struct session *s, pid_t pid); /* running or finished, NULL if unknown */
struct proc *proc_find_running(struct session *s, pid_t pid);
uint64_t proc_oom_count(void); /* kills by the kernel for lack of memory, since boot */
void proc_kill_group(struct proc *p, int signal);
bool proc_set_oom_first(const struct proc *p, bool first); /* as in proc_spec, later */
void proc_drain(struct proc *p); /* reads what nobody has asked for, and throws it away */
void proc_conn_lost(struct session *s, struct rpc_conn *c);

int signal_from_name(const char *name);   /* "SIGTERM" -> 15; -1 if unknown */
const char *signal_name(int signal);      /* "SIGTERM"; "SIGRTMIN+3"-like names aren't known: "SIG35" */

/*
 * For who looks again and again, zeros at first: as long as no socket of the machine has begun to listen, or ended, since the last look, processes
 * are looked through only each PROC_LOOK_EACH times (one may have been handed a socket that listens already).
 */
struct proc_look {
	uint64_t listeners;
	unsigned int n;
};
/* The TCP port that a process of p's tree listens on. RC_ABSENT if none does. *ret_v6: only reachable at ::1. look may be NULL. */
enum rc proc_listens(pid_t pid, struct proc_look *look, uint16_t *ret_port, bool *ret_v6);

extern rpc_method_fn rpc_spawn, rpc_process_wait, rpc_process_kill;

#endif
