/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory: a REPL is a Deno child that runs a small driver (deno_repl.js, built in). Requests are JSON lines on a pipe to it,
 * answers lines on a pipe back; standard input and output are the user's. Answers carry the request's number, so several
 * evaluations may be under way. What the driver says is the guest's word: its JSON is parsed before it is passed on, and a
 * line that is none of ours is dropped. Requests wait in a bounded queue for a driver that is busy.
 *
 * Nobody but the client that started a REPL can ask it anything: the SDK has no way to name another's. Once its connection has ended the
 * REPL is left: it ends when nothing keeps it, as any program does; a server in it goes on. And deno.eval of the SDK closes the
 * REPL that it started only if the evaluation succeeded. One that looks like that (started as deno.eval does, asked once, that failed)
 * may as well be a client's that goes on with it, so it is not ended for that. It is `spare` until it is asked something again: the kernel
 * kills it first when memory is short, and the one that has been spare for longest is left when another REPL starts without enough.
 */
#include "guest/deno.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "guest/deno_repl_js.h"
#include "guest/deno_warm.h"
#include "guest/proc.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#define READ_SIZE 65536
#define CLOSE_WAIT_MS 1000

struct request {
	struct request *next;
	struct rpc_call *call;
	uint64_t id;
	struct repl *repl;
};

struct repl {
	struct proc *proc;
	int to, from;
	struct source *to_source, *from_source, *timer;
	struct buf out, in;
	struct request *requests;
	uint64_t next_id;
	size_t scanned;        /* bytes of `in` without a line end */
	bool claimed;          /* a client has it; else it waits for one */
	struct rpc_conn *conn; /* that client's; NULL: it has gone, or there never was one */
	bool as_eval;          /* started as deno.eval of the SDK does */
	bool left;             /* takes no more requests */
	uint64_t spare;        /* 0, or since when by the session's count */
};

static void repl_fail_all(struct repl *r)
{
	while (r->requests) {
		struct request *q = r->requests;

		r->requests = q->next;
		rpc_call_error(q->call, "Error", NULL, "The REPL has ended");
		free(q);
	}
}

static void repl_close_pipes(struct repl *r)
{
	source_drop(&r->to_source);
	source_drop(&r->from_source);
	close_fd(&r->to);
	close_fd(&r->from);
	buf_free(&r->out);
}

static void on_answers(void *arg, uint32_t events);

/* The last answers may still be in the pipe. */
static void repl_on_exit(struct proc *p)
{
	struct repl *r = p->owner;
	struct session *s = p->session;

	p->owner = NULL;
	if (r->from >= 0)
		on_answers(r, EPOLLIN);
	repl_fail_all(r);
	repl_close_pipes(r);
	source_drop(&r->timer);
	buf_free(&r->in);
	warm_ended(s, p);
	if (r->claimed)
		warm_refill(s);
	free(r);
}

/* --- to the driver --------------------------------------------------------------------------------------------- */

static void on_writable(void *arg, uint32_t events);

static void repl_flush(struct repl *r)
{
	enum rc rc = RC_OK;
	struct fault f;

	while (r->to >= 0 && buf_len(&r->out) && !rc) {
		rc = buf_write(&r->out, r->to, &f);
		if (rc == RC_AGAIN && !r->to_source)
			rc = loop_fd(r->proc->session->loop, r->to, EPOLLOUT, on_writable, r, &r->to_source, &f) ? RC_NOMEM
														  : RC_AGAIN;
		if (rc && rc != RC_AGAIN) {
			repl_close_pipes(r);
			repl_fail_all(r);
		}
	}
	if (!buf_len(&r->out))
		source_drop(&r->to_source);
}

static void on_writable(void *arg, uint32_t events)
{
	(void)events;
	repl_flush(arg);
}

/* --- without a client ------------------------------------------------------------------------------------------- */

static struct repl *repl_in(const struct proc *p)
{
	return p->on_exit == repl_on_exit ? p->owner : NULL;
}

static void repl_leave(struct repl *r)
{
	static const char line[] = "{\"op\":\"leave\"}\n";

	if (r->left)
		return;
	r->left = true;
	r->spare = 0;
	if (r->to < 0 || buf_put(&r->out, line, sizeof(line) - 1))
		close_fd(&r->to);
	else
		repl_flush(r);
}

static void repl_on_conn_lost(struct proc *p, const struct rpc_conn *c)
{
	struct repl *r = p->owner;

	if (r && r->conn == c) {
		r->conn = NULL;
		repl_leave(r);
	}
}

static void repl_set_spare(struct repl *r, bool spare)
{
	if (spare == (r->spare > 0) || !proc_set_oom_first(r->proc, spare))
		return;
	r->spare = spare ? ++r->proc->session->n_spare : 0;
}

/* Memory is short, another starts. Two, so that they get fewer. */
static void leave_spares(struct session *s)
{
	for (int i = 0; i < 2 && !warm_enough_memory(); i++) {
		struct repl *oldest = NULL;

		for (struct proc *p = s->running; p; p = p->next) {
			struct repl *r = repl_in(p);

			if (r && r->spare && (!oldest || r->spare < oldest->spare))
				oldest = r;
		}
		if (!oldest)
			return;
		repl_leave(oldest);
	}
}

/* --- from the driver ------------------------------------------------------------------------------------------- */

static struct request *take_request(struct repl *r, uint64_t id)
{
	for (struct request **at = &r->requests; *at; at = &(*at)->next) {
		struct request *q = *at;

		if (q->id == id) {
			*at = q->next;
			return q;
		}
	}
	return NULL;
}

/* "<id> ok <json>", "<id> none", "<id> error <json>"; the line is NUL-terminated. */
static void on_line(struct repl *r, char *line, size_t n)
{
	struct json_object *value = NULL;
	struct request *q;
	char *rest, *end = line + n;
	bool ok, none, error;

	q = take_request(r, strtoull(line, &rest, 10));
	if (!q)
		return;
	ok = !strncmp(rest, " ok ", 4);
	none = !strcmp(rest, " none");
	error = !strncmp(rest, " error ", 7);
	if (ok || error) {
		rest += ok ? 4 : 7;
		value = json_parse(rest, (size_t)(end - rest));
	}
	if (none)
		rpc_call_ok(q->call, NULL); /* the client's schema has no room for undefined */
	else if (ok && (value || !strcmp(rest, "null")))
		rpc_call_ok(q->call, take_ptr(value));
	else if (error && json_object_is_type(value, json_type_object))
		rpc_call_error_json(q->call, take_ptr(value));
	else
		rpc_call_error(q->call, "RangeError", NULL, "The value cannot be sent: too large or nested too deeply");
	if (!ok && !none && r->as_eval && r->conn)
		repl_set_spare(r, true);
	json_object_put(value);
	free(q);
	if (!r->requests)
		warm_refill(r->proc->session);
}

static void take_lines(struct repl *r)
{
	while (r->scanned < buf_len(&r->in)) {
		char *start = (char *)buf_data(&r->in);
		char *end = memchr(start + r->scanned, '\n', buf_len(&r->in) - r->scanned);

		if (!end) {
			r->scanned = buf_len(&r->in);
			return;
		}
		*end = 0;
		on_line(r, start, (size_t)(end - start));
		buf_consume(&r->in, (size_t)(end - start) + 1);
		r->scanned = 0;
	}
}

static void on_answers(void *arg, uint32_t events)
{
	struct repl *r = arg;
	enum rc rc = RC_OK;
	struct fault f;
	size_t n = 1;

	(void)events;
	while (!rc && n && r->from >= 0) {
		rc = buf_read(&r->in, r->from, READ_SIZE, &n, &f);
		if (!rc)
			take_lines(r);
	}
	if (rc == RC_AGAIN)
		return;
	/* The end, or an answer past all bounds. */
	repl_close_pipes(r);
	repl_fail_all(r);
}

/* --- methods --------------------------------------------------------------------------------------------------- */

static enum rc repl_new(struct proc *p, int to, int from)
{
	struct repl *r = calloc(1, sizeof(*r));

	if (!r) {
		close(to);
		close(from);
		return RC_NOMEM;
	}
	*r = (struct repl){ .proc = p, .to = to, .from = from, .out = BUF_INIT(RPC_MESSAGE_MAX),
			    .in = BUF_INIT(REPL_REPLY_MAX) };
	p->owner = r;
	p->on_exit = repl_on_exit;
	p->on_conn_lost = repl_on_conn_lost;
	return loop_fd(p->session->loop, from, EPOLLIN, on_answers, r, &r->from_source, NULL);
}

struct pipes {
	int to[2], from[2];
};

static void pipes_close(struct pipes *p)
{
	close_fd(&p->to[0]);
	close_fd(&p->to[1]);
	close_fd(&p->from[0]);
	close_fd(&p->from[1]);
}

static bool pipes_open(struct pipes *p)
{
	return pipe2(p->to, O_CLOEXEC) == 0 && pipe2(p->from, O_CLOEXEC) == 0 && !fd_nonblock(p->to[1], NULL) &&
	       !fd_nonblock(p->from[0], NULL);
}

void repl_spec(struct proc_spec *spec, struct params *p)
{
	static const char *const head[] = { "eval", "--ext=js", deno_repl_js, NULL };

	*spec = (struct proc_spec){ .command = "deno", .argv_head = head };
	proc_spec_params(spec, p);
	spec->args = params_strings_opt(p, "scriptArgs");
}

enum rc repl_start(struct session *s, struct json_object *params, bool waits, struct proc **ret, struct json_object **ret_error)
{
	_cleanup_(pipes_close) struct pipes pipes = { { -1, -1 }, { -1, -1 } };
	struct proc_spec spec;
	struct params p;
	enum rc rc;

	params_init(&p, params);
	repl_spec(&spec, &p);
	spec.oom_first = waits;
	if (!pipes_open(&pipes)) {
		*ret_error = rpc_error_new("Error", NULL, "no more pipes");
		return RC_SYS;
	}
	spec.pass_fds[0] = pipes.to[0];
	spec.pass_fds[1] = pipes.from[1];
	rc = proc_start(s, &spec, ret, ret_error);
	if (!rc && repl_new(*ret, take_fd(&pipes.to[1]), take_fd(&pipes.from[0])))
		proc_kill_group(*ret, SIGKILL);
	return rc;
}

/* deno.eval gives no options: its parameters say that both outputs are wanted, and nothing else. */
static bool is_as_eval(struct json_object *params)
{
	json_object_object_foreach(params, name, value) {
		bool output = !strcmp(name, "stdout") || !strcmp(name, "stderr");

		if (output ? strcmp(json_object_get_string(value), "piped") != 0 : value != NULL)
			return false;
	}
	return true;
}

void rpc_spawn_repl(struct rpc_conn *c, struct rpc_call *call, struct json_object *params)
{
	struct session *s = rpc_conn_session(c);
	struct json_object *error;
	struct proc_spec spec;
	int64_t stdin_stream;
	struct params p;
	struct proc *child;
	struct repl *r;

	if (proc_refuse_nul(s, call, params, "deno"))
		return;
	params_init(&p, params);
	repl_spec(&spec, &p);
	stdin_stream = params_int_opt(&p, "stdinStreamId", 0, INT64_MAX, -1);
	if (!params_ok(&p)) {
		rpc_call_params(call, &p);
		return;
	}
	leave_spares(s);
	child = warm_take(s, params);
	if (!child && repl_start(s, params, false, &child, &error)) {
		rpc_call_error_json(call, error);
		return;
	}
	r = child->owner;
	if (r) {
		r->claimed = true;
		r->conn = c;
		r->as_eval = is_as_eval(params);
	}
	rpc_call_ok(call, proc_connect(child, c, stdin_stream));
}

static struct repl *repl_of(struct rpc_conn *c, struct rpc_call *call, int64_t pid)
{
	struct proc *p = proc_find_running(rpc_conn_session(c), (pid_t)pid);
	struct repl *r = p && p->on_exit == repl_on_exit ? p->owner : NULL;

	if (r && r->claimed && !r->left && r->to >= 0)
		return r;
	rpc_call_error(call, "NotFound", "ENOENT", "No such REPL: %d", (int)pid);
	return NULL;
}

static void request_gone(struct rpc_call *call, void *arg)
{
	struct request *q = arg;

	take_request(q->repl, q->id);
	rpc_call_drop(call);
	free(q);
}

/* Owns m. */
static void repl_send(struct repl *r, struct rpc_call *call, struct json_object *m)
{
	struct request *q = calloc(1, sizeof(*q));
	const char *text;
	size_t n;

	json_put(m, "id", json_object_new_int64((int64_t)++r->next_id));
	text = json_object_to_json_string_length(m, JSON_WRITE_FLAGS, &n);
	if (!q || n > buf_room(&r->out) - 1 || buf_put(&r->out, text, n) || buf_put(&r->out, "\n", 1)) {
		rpc_call_fault(call, -32603, "the REPL is busy");
		free(q);
	} else {
		*q = (struct request){ .next = r->requests, .call = call, .id = r->next_id, .repl = r };
		r->requests = q;
		call->gone = request_gone;
		call->arg = q;
		r->as_eval &= r->next_id == 1;
		repl_set_spare(r, false);
		repl_flush(r);
	}
	json_object_put(m);
}

/* The REPL of `pid` in the parameters; NULL: the call was answered. */
static struct repl *repl_asked(struct rpc_conn *c, struct rpc_call *call, struct params *p)
{
	int64_t pid = params_int(p, "pid", 1, INT32_MAX);

	if (params_ok(p))
		return repl_of(c, call, pid);
	rpc_call_params(call, p);
	return NULL;
}

/* The parameter goes into m; one of another type fails. */
static void pass_on(struct params *p, struct json_object *params, const char *name, enum json_type type, struct json_object *m)
{
	struct json_object *v = NULL;

	json_object_object_get_ex(params, name, &v);
	if (!json_object_is_type(v, type))
		params_fail(p, name, type == json_type_string ? "expected a string" : "expected an array");
	json_put(m, name, json_object_get(v));
}

static void repl_ask(struct rpc_conn *c, struct rpc_call *call, struct json_object *params, bool eval)
{
	struct json_object *m = json_object_new_object();
	struct params p;
	struct repl *r;

	params_init(&p, params);
	json_put(m, "op", json_str(eval ? "eval" : "call"));
	pass_on(&p, params, eval ? "code" : "fn", json_type_string, m);
	if (!eval)
		pass_on(&p, params, "args", json_type_array, m);
	r = repl_asked(c, call, &p);
	if (!r) {
		json_object_put(m);
		return;
	}
	r->as_eval &= eval;
	repl_send(r, call, m);
}

void rpc_repl_eval(struct rpc_conn *c, struct rpc_call *call, struct json_object *params)
{
	repl_ask(c, call, params, true);
}

void rpc_repl_call(struct rpc_conn *c, struct rpc_call *call, struct json_object *params)
{
	repl_ask(c, call, params, false);
}

static void on_close_timer(void *arg)
{
	struct repl *r = arg;

	proc_kill_group(r->proc, SIGKILL);
}

void rpc_repl_close(struct rpc_conn *c, struct rpc_call *call, struct json_object *params)
{
	struct params p;
	struct repl *r;

	params_init(&p, params);
	r = repl_asked(c, call, &p);
	if (!r)
		return;
	/* Its end of file is the driver's sign to exit; one that is stuck in its own code is killed. */
	source_drop(&r->to_source);
	close_fd(&r->to);
	buf_free(&r->out);
	if (loop_timer(r->proc->session->loop, now_ms() + CLOSE_WAIT_MS, on_close_timer, r, &r->timer, NULL))
		proc_kill_group(r->proc, SIGKILL);
	rpc_call_ok(call, NULL);
}
