/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory: `deno run` is a child as any other. Code that a client sends runs through `deno eval`, so that imports are relative
 * to the working directory and nothing is left there; code too long for one argument goes through a file that is
 * removed when the program ends. A watcher's restarts are seen in what Deno says on standard error. httpReady
 * looks again and again, with growing pauses, for a port that the program listens on, until it exits.
 */
#include "guest/deno.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "guest/proc.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char *const extensions[] = { "js", "cjs", "mjs", "ts", "cts", "mts", "jsx", "tsx" };

struct start {
	struct session *session;
	struct proc_spec spec;
	struct json_object *args; /* owned */
	char *temp_file;
};

static void start_done(struct start *st)
{
	json_object_put(st->args);
	if (st->temp_file)
		unlink(st->temp_file);
	free(st->temp_file);
}

static void arg_add(struct start *st, const char *a)
{
	json_object_array_add(st->args, json_str(a));
}

/* A dash at the beginning would make it an option. */
static void arg_code(struct start *st, const char *code)
{
	_cleanup_free_ char *text = malloc(strlen(code) + 2);

	if (!text)
		return;
	snprintf(text, strlen(code) + 2, "%s%s", *code == '-' ? " " : "", code);
	arg_add(st, text);
}

static void args_append(struct start *st, struct json_object *more)
{
	for (size_t i = 0; more && i < json_object_array_length(more); i++)
		json_object_array_add(st->args, json_object_get(json_object_array_get_idx(more, i)));
}

static void args_entrypoint(struct start *st, struct params *p, bool *watch)
{
	struct json_object *v = NULL, *paths = NULL;

	if (json_object_object_get_ex(p->obj, "watch", &v) && json_object_is_type(v, json_type_array))
		paths = params_strings_opt(p, "watch");
	else
		*watch = params_bool_opt(p, "watch", false);
	arg_add(st, "run");
	arg_add(st, "--allow-all");
	if (paths) {
		char list[8192] = "--watch=";
		size_t at = strlen(list);

		*watch = true;
		for (size_t i = 0; i < json_object_array_length(paths); i++) {
			const char *path = json_object_get_string(json_object_array_get_idx(paths, i));

			if (at + strlen(path) + 2 > sizeof(list)) {
				params_fail(p, "watch", "too long");
				return;
			}
			at += (size_t)snprintf(list + at, sizeof(list) - at, "%s%s", i ? "," : "", path);
		}
		arg_add(st, json_object_array_length(paths) ? list : "--watch");
	} else if (*watch) {
		arg_add(st, "--watch");
	}
	if (*watch)
		arg_add(st, "--no-clear-screen");
	arg_add(st, params_str(p, "entrypoint"));
}

/* The file stands where the program works, so that its imports resolve. */
static bool code_to_file(struct start *st, const char *code, const char *extension)
{
	char path[PATH_MAX + 64], name[33];
	_cleanup_fd_ int fd = -1;

	random_hex(name, 16);
	snprintf(path, sizeof(path), "%s/.deno-%s.%s", st->spec.cwd ? st->spec.cwd : st->session->home, name, extension);
	fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return false;
	st->temp_file = strdup(path);
	return st->temp_file && !fd_write_all(fd, code, strlen(code), UINT64_MAX, NULL);
}

static void args_code(struct start *st, struct params *p)
{
	const char *code = params_str(p, "code"), *extension = params_str(p, "extension");
	char ext[16];
	size_t i = 0;

	while (i < ARRAY_SIZE(extensions) && strcmp(extensions[i], extension))
		i++;
	if (i == ARRAY_SIZE(extensions))
		params_fail(p, "extension", "unknown");
	if (!params_ok(p))
		return;
	if (strlen(code) <= DENO_EVAL_MAX) {
		snprintf(ext, sizeof(ext), "--ext=%s", extension);
		arg_add(st, "eval");
		arg_add(st, ext);
		arg_code(st, code);
	} else if (code_to_file(st, code, extension)) {
		arg_add(st, "run");
		arg_add(st, "--allow-all");
		arg_add(st, st->temp_file);
	} else {
		params_fail(p, "code", "cannot be written to the working directory");
	}
}

/* --- restarts -------------------------------------------------------------------------------------------------- */

static void watcher_tap(struct proc *p, const uint8_t *data, size_t n)
{
	static const char mark[] = "Restarting!";

	for (size_t i = 0; i < n; i++) {
		if (data[i] != (uint8_t)mark[p->watcher_match]) {
			p->watcher_match = data[i] == (uint8_t)mark[0];
			continue;
		}
		if (++p->watcher_match < sizeof(mark) - 1)
			continue;
		p->watcher_match = 0;
		if (p->watcher_conn) {
			struct json_object *params = json_object_new_object();

			json_put(params, "watcherId", json_str(p->watcher));
			rpc_conn_notify(p->watcher_conn, "$sandbox.deno.watcher.restart", params);
		}
	}
}

static void watcher_start(struct proc *p, struct rpc_conn *c)
{
	random_hex(p->watcher, 16);
	p->watcher_conn = c;
	p->pipe[1].tap = watcher_tap;
}

static void start_deno(struct start *st, struct rpc_conn *c, struct rpc_call *call, bool watch, bool want_stderr,
		       int64_t stdin_stream)
{
	struct json_object *error, *ok;
	struct proc *child;

	if (watch)
		st->spec.pipe_err = true;
	if (proc_start(st->session, &st->spec, &child, &error)) {
		rpc_call_error_json(call, error);
		return;
	}
	child->temp_file = take_ptr(st->temp_file);
	if (watch)
		watcher_start(child, c);
	if (!want_stderr)
		child->pipe[1].muted = true;
	ok = proc_connect(child, c, stdin_stream);
	json_put(ok, "watcherId", json_str(watch ? child->watcher : NULL));
	rpc_call_ok(call, ok);
}

void rpc_spawn_deno(struct rpc_conn *c, struct rpc_call *call, struct json_object *params)
{
	_cleanup_(start_done) struct start st = { .session = rpc_conn_session(c), .args = json_object_new_array() };
	bool watch = false, want_stderr;
	int64_t stdin_stream;
	struct params p;

	if (proc_refuse_nul(st.session, call, params, "deno"))
		return;
	params_init(&p, params);
	st.spec.command = "deno";
	proc_spec_params(&st.spec, &p);
	want_stderr = st.spec.pipe_err;
	stdin_stream = params_int_opt(&p, "stdinStreamId", 0, INT64_MAX, -1);
	if (params_has(&p, "entrypoint"))
		args_entrypoint(&st, &p, &watch);
	else
		args_code(&st, &p);
	args_append(&st, params_strings_opt(&p, "scriptArgs"));
	if (!params_ok(&p)) {
		rpc_call_params(call, &p);
		return;
	}
	st.spec.args = st.args;
	start_deno(&st, c, call, watch, want_stderr, stdin_stream);
}

/* --- httpReady ------------------------------------------------------------------------------------------------- */

struct ready_wait {
	struct session *session;
	struct rpc_call *call;
	struct source *timer;
	pid_t pid;
	uint64_t pause_ms;
	struct proc_look look;
};

static void ready_answer(struct ready_wait *w, bool ready)
{
	rpc_call_ok(w->call, json_object_new_boolean(ready));
	source_drop(&w->timer);
	free(w);
}

static void ready_look(void *arg)
{
	struct ready_wait *w = arg;
	struct proc *p = proc_find_running(w->session, w->pid);
	uint16_t port;
	bool v6;

	if (!p || p->exited) {
		ready_answer(w, false);
	} else if (!proc_listens(w->pid, &w->look, &port, &v6)) {
		ready_answer(w, true);
	} else {
		w->pause_ms = MIN_OF(w->pause_ms * 3 / 2, (uint64_t)HTTP_WAIT_LAST_MS);
		loop_timer_set(w->timer, now_ms() + w->pause_ms);
	}
}

static void ready_gone(struct rpc_call *call, void *arg)
{
	struct ready_wait *w = arg;

	rpc_call_drop(call);
	source_drop(&w->timer);
	free(w);
}

void rpc_deno_http_wait(struct rpc_conn *c, struct rpc_call *call, struct json_object *params)
{
	struct session *s = rpc_conn_session(c);
	struct ready_wait *w;
	struct params p;
	int64_t pid;

	params_init(&p, params);
	pid = params_int(&p, "pid", 1, INT32_MAX);
	if (!params_ok(&p)) {
		rpc_call_params(call, &p);
		return;
	}
	if (!proc_find(s, (pid_t)pid)) {
		rpc_call_error(call, "NotFound", "ENOENT", "No such process: %d", (int)pid);
		return;
	}
	w = calloc(1, sizeof(*w));
	if (!w || loop_timer(s->loop, now_ms() + HTTP_WAIT_FIRST_MS, ready_look, w, &w->timer, NULL)) {
		free(w);
		rpc_call_fault(call, -32603, "out of memory");
		return;
	}
	w->session = s;
	w->call = call;
	w->pid = (pid_t)pid;
	w->pause_ms = HTTP_WAIT_FIRST_MS;
	call->gone = ready_gone;
	call->arg = w;
}
