/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory: a child is running until it has exited and both pipes have ended, then finished: only its status is kept, for the
 * last PROC_FINISHED_MAX. Exit and end of output are independent: processWait answers at the exit; a grandchild that
 * holds a pipe keeps that stream open, as with Deno.Command. Nothing that a fast child wrote is lost, since
 * streams are started before the first read and pipes are read to their end.
 *
 * A pipe is read only while its stream has room, so a client that does not read stops the child, not our memory. When
 * the client is gone the output is read and thrown away: a server goes on when its creator disconnects. When the client
 * cancels the stream the pipe is closed, and the child sees EPIPE.
 *
 * A child leads a session and so a process group of its own; signals go to the group.
 */
#include "guest/proc.h"

#include "base/cleanup.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static void proc_unlink(struct proc *p)
{
	*p->at = p->next;
	if (p->next)
		p->next->at = p->at;
}

static void proc_link(struct proc *p, struct proc **list)
{
	p->next = *list;
	p->at = list;
	if (p->next)
		p->next->at = &p->next;
	*list = p;
}

static void stdin_close(struct proc *p)
{
	source_drop(&p->stdin_source);
	close_fd(&p->stdin_fd);
}

static void proc_free(struct proc *p)
{
	proc_unlink(p);
	stdin_close(p);
	rpc_in_drop(p->in, rpc_error_new("BrokenPipe", "EPIPE", "Broken pipe (os error 32)"));
	free(p->temp_file);
	free(p);
}

static void forget_oldest(struct session *s)
{
	struct proc *p = s->finished;

	while (p->next)
		p = p->next;
	s->n_finished--;
	proc_free(p);
}

static void maybe_finished(struct proc *p)
{
	struct session *s = p->session;

	if (!p->running || !p->exited || p->pipe[0].fd >= 0 || p->pipe[1].fd >= 0)
		return;
	p->running = false;
	proc_unlink(p);
	s->n_running--;
	proc_link(p, &s->finished);
	if (++s->n_finished > PROC_FINISHED_MAX)
		forget_oldest(s);
}

/* --- stdout, stderr -------------------------------------------------------------------------------------------- */

static void on_pipe(void *arg, uint32_t events);

static void pipe_close(struct proc_pipe *pp)
{
	source_drop(&pp->source);
	close_fd(&pp->fd);
}

static void pipe_watch(struct proc_pipe *pp)
{
	if (pp->fd < 0 || pp->source)
		return;
	if (loop_fd(pp->proc->session->loop, pp->fd, EPOLLIN, on_pipe, pp, &pp->source, NULL)) {
		rpc_out_error(take_ptr(pp->out), rpc_error_new("Error", NULL, "out of memory"));
		pipe_close(pp);
	}
}

static void pipe_resume(void *arg)
{
	pipe_watch(arg);
}

static void pipe_gone(void *arg, bool cancelled)
{
	struct proc_pipe *pp = arg;

	rpc_out_free(take_ptr(pp->out));
	if (pp->kill_when_gone)
		proc_kill_group(pp->proc, SIGKILL);
	if (pp->fd < 0) {
		return;
	} else if (cancelled && !pp->tap) {
		pipe_close(pp);
		if (pp->at_end)
			pp->at_end(pp->proc);
		maybe_finished(pp->proc);
	} else {
		pipe_watch(pp);
	}
}

static const struct rpc_out_ops pipe_ops = { .resume = pipe_resume, .gone = pipe_gone };

static void on_pipe(void *arg, uint32_t events)
{
	static uint8_t chunk[RPC_CHUNK]; /* one thread */
	struct proc_pipe *pp = arg;

	(void)events;
	for (int i = 0; i < PROC_READS_PER_TURN; i++) {
		ssize_t n;

		if (pp->out && !rpc_out_room(pp->out)) {
			source_drop(&pp->source);
			rpc_out_wait(pp->out);
			return;
		}
		n = read(pp->fd, chunk, sizeof(chunk));
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (n <= 0)
			break;
		if (pp->tap)
			pp->tap(pp->proc, chunk, (size_t)n);
		if (pp->out)
			rpc_out_send(pp->out, chunk, (size_t)n);
		if (i == PROC_READS_PER_TURN - 1)
			return;
	}
	pipe_close(pp);
	if (pp->at_end)
		pp->at_end(pp->proc);
	else
		rpc_out_end(take_ptr(pp->out));
	maybe_finished(pp->proc);
}

/* --- stdin ----------------------------------------------------------------------------------------------------- */

static void on_stdin(void *arg, uint32_t events);

static void stdin_pump(struct proc *p)
{
	enum rc rc = RC_OK;
	struct fault f;

	if (p->in->failed && p->owned_input)
		proc_kill_group(p, SIGKILL);
	while (p->stdin_fd >= 0 && buf_len(&p->in->data) && !rc) {
		rc = buf_write(&p->in->data, p->stdin_fd, &f);
		if (rc == RC_AGAIN && !p->stdin_source &&
		    loop_fd(p->session->loop, p->stdin_fd, EPOLLOUT, on_stdin, p, &p->stdin_source, NULL))
			rc = RC_NOMEM;
		if (rc && rc != RC_AGAIN)
			stdin_close(p);
	}
	rpc_in_used(p->in);
	if (!buf_len(&p->in->data))
		source_drop(&p->stdin_source);
	if (p->stdin_fd < 0 && !p->in->ended && buf_len(&p->in->data)) {
		/* It is the write that fails, as with Deno; that the child has closed its end alone is not an error. */
		rpc_in_drop(take_ptr(p->in), rpc_error_new("BrokenPipe", "EPIPE", "Broken pipe (os error 32)"));
	} else if (p->in->ended && (!buf_len(&p->in->data) || p->stdin_fd < 0)) {
		stdin_close(p);
		rpc_in_drop(take_ptr(p->in), NULL);
	}
}

static void on_stdin(void *arg, uint32_t events)
{
	(void)events;
	stdin_pump(arg);
}

static void stdin_ready(void *arg)
{
	stdin_pump(arg);
}

static const struct rpc_in_ops stdin_ops = { .ready = stdin_ready };

/* --- exit ------------------------------------------------------------------------------------------------------ */

/* At every start of a program: two reads of a file that stays open. The kernel adds all of it up anew for each. */
uint64_t proc_oom_count(void)
{
	static const char key[] = "\noom_kill ";
	static int fd = -1;
	char text[8192];
	size_t n = 0;
	ssize_t got;

	if (fd < 0)
		fd = open("/proc/vmstat", O_RDONLY | O_CLOEXEC);
	while (fd >= 0 && n < sizeof(text) - 1 && (got = pread(fd, text + n, sizeof(text) - 1 - n, (off_t)n)) > 0) {
		const char *at;

		n += (size_t)got;
		text[n] = 0;
		at = strstr(text, key);
		if (at && strchr(at + 1, '\n'))
			return strtoull(at + sizeof(key) - 1, NULL, 10);
	}
	return 0;
}

static struct json_object *status_json(const struct proc *p)
{
	struct json_object *r = json_object_new_object();
	int sig = WIFSIGNALED(p->status) ? WTERMSIG(p->status) : 0;
	int code = sig ? 128 + sig : WEXITSTATUS(p->status);

	json_put(r, "success", json_object_new_boolean(code == 0));
	json_put(r, "code", json_object_new_int(code));
	json_put(r, "signal", json_str(sig ? signal_name(sig) : NULL));
	json_put(r, "oom", json_str(p->oom));
	return r;
}

/*
 * The kernel counts its out-of-memory kills for the whole machine. A child that got SIGKILL, not from us, while the
 * count rose above what it was at the start was one; one that reports a killed child of its own may have been.
 */
static void judge_oom(struct proc *p)
{
	bool killed = WIFSIGNALED(p->status) && WTERMSIG(p->status) == SIGKILL && !p->killed_by_us;
	bool reports = WIFEXITED(p->status) && WEXITSTATUS(p->status) == 128 + SIGKILL;
	uint64_t known = MAX_OF(p->session->oom_seen, p->oom_at_start);

	if ((killed || reports) && proc_oom_count() > known) {
		p->session->oom_seen = known + 1;
		p->oom = killed ? "high-confidence" : "low-confidence";
	}
}

/* Of a pipe that nobody will read any more, the end that is written says so. */
static bool has_reader(int fd)
{
	struct pollfd poll_fd = { .fd = fd };

	return fd >= 0 && !(poll(&poll_fd, 1, 0) > 0 && poll_fd.revents & POLLERR);
}

static void stdin_after_exit(struct proc *p)
{
	if (has_reader(p->stdin_fd)) /* a grandchild */
		return;
	stdin_close(p);
	if (p->in) {
		/* What was under way is dropped; what comes from now on fails. */
		buf_consume(&p->in->data, buf_len(&p->in->data));
		stdin_pump(p);
	}
}

void proc_on_child(void *arg, int wait_status)
{
	struct proc *p = arg;

	source_drop(&p->child);
	p->exited = true;
	p->status = wait_status;
	judge_oom(p);
	if (p->temp_file)
		unlink(p->temp_file);
	if (p->on_exit)
		p->on_exit(p);
	while (p->waits) {
		struct proc_wait *w = p->waits;

		p->waits = w->next;
		rpc_call_ok(w->call, status_json(p));
		free(w);
	}
	stdin_after_exit(p);
	maybe_finished(p);
}

/* --- methods --------------------------------------------------------------------------------------------------- */

struct proc *proc_find_running(struct session *s, pid_t pid)
{
	for (struct proc *p = s->running; p; p = p->next)
		if (p->pid == pid)
			return p;
	return NULL;
}

struct proc *proc_find(struct session *s, pid_t pid)
{
	struct proc *p = proc_find_running(s, pid);

	if (p)
		return p;
	for (p = s->finished; p; p = p->next)
		if (p->pid == pid)
			return p;
	return NULL;
}

void proc_kill_group(struct proc *p, int signal)
{
	if (signal == SIGKILL)
		p->killed_by_us = true;
	if (!p->exited && kill(-p->pid, signal) < 0)
		kill(p->pid, signal);
}

void proc_spec_params(struct proc_spec *spec, struct params *p)
{
	static const char *const modes[] = { "stdout", "stderr" };
	bool *piped[] = { &spec->pipe_out, &spec->pipe_err };

	spec->env = params_record_opt(p, "env");
	spec->clear_env = params_bool_opt(p, "clearEnv", false);
	spec->cwd = params_str_opt(p, "cwd");
	spec->pipe_in = params_has(p, "stdinStreamId");
	spec->pass_fds[0] = spec->pass_fds[1] = -1;
	for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
		const char *mode = params_str(p, modes[i]);

		*piped[i] = !strcmp(mode, "piped");
		if (!*piped[i] && strcmp(mode, "null"))
			params_fail(p, modes[i], "expected 'piped' or 'null'");
	}
}

struct json_object *proc_connect_pipe(struct proc *p, int i, struct rpc_conn *c)
{
	struct proc_pipe *pp = &p->pipe[i];
	struct json_object *id = NULL;

	if (pp->fd < 0)
		return NULL;
	if (!pp->muted)
		pp->out = rpc_out_new(c, &pipe_ops, pp);
	if (pp->out)
		id = json_object_new_int64((int64_t)pp->out->id);
	pipe_watch(pp);
	return id;
}

void proc_connect_stdin(struct proc *p, struct rpc_conn *c, int64_t stream)
{
	if (p->stdin_fd < 0)
		return;
	p->in = rpc_in_claim(c, stream, &stdin_ops, p);
	if (p->in)
		stdin_pump(p);
	else
		stdin_close(p);
}

struct json_object *proc_connect(struct proc *p, struct rpc_conn *c, int64_t stdin_stream)
{
	struct json_object *ok = json_object_new_object();

	json_put(ok, "pid", json_object_new_int(p->pid));
	json_put(ok, "stdoutStreamId", proc_connect_pipe(p, 0, c));
	json_put(ok, "stderrStreamId", proc_connect_pipe(p, 1, c));
	proc_connect_stdin(p, c, stdin_stream);
	return ok;
}

static bool has_nul(struct json_object *v)
{
	return json_object_is_type(v, json_type_string) && strlen(json_object_get_string(v)) != (size_t)json_object_get_string_len(v);
}

static bool any_has_nul(struct json_object *v)
{
	bool found = false;

	if (json_object_is_type(v, json_type_array))
		for (size_t i = 0; i < json_object_array_length(v); i++)
			found |= has_nul(json_object_array_get_idx(v, i));
	if (json_object_is_type(v, json_type_object)) {
		json_object_object_foreach(v, name, value) {
			(void)name;
			found |= has_nul(value);
		}
	}
	return found;
}

/* What is searched for in PATH is named whole, NUL and what follows it included. */
static void no_such_name(struct rpc_call *call, struct json_object *name)
{
	static const char before[] = "Failed to spawn '", after[] = "': entity not found";
	struct json_object *error = rpc_error_new("NotFound", "ENOENT", "");
	size_t n = (size_t)json_object_get_string_len(name);
	_cleanup_free_ char *text = malloc(sizeof(before) + n + sizeof(after));
	char *at = text;

	if (text) {
		at = mempcpy(at, before, sizeof(before) - 1);
		at = mempcpy(at, json_object_get_string(name), n);
		at = mempcpy(at, after, sizeof(after) - 1);
		json_put(error, "message", json_object_new_string_len(text, (int)(at - text)));
	}
	rpc_call_error_json(call, error);
}

/* How errors name the file of a command; NULL: there is none, and it was said. */
static const char *spawn_name(struct session *s, struct rpc_call *call, struct json_object *name, const struct proc_spec *spec,
			      char **ret_file)
{
	if (has_nul(name)) {
		if (memchr(json_object_get_string(name), '/', (size_t)json_object_get_string_len(name)))
			return "<string-with-nul>";
		no_such_name(call, name);
		return NULL;
	}
	*ret_file = proc_file(s, spec);
	if (!*ret_file)
		rpc_call_error(call, "NotFound", "ENOENT", "Failed to spawn '%.1000s': entity not found", spec->command);
	return *ret_file;
}

bool proc_refuse_nul(struct session *s, struct rpc_call *call, struct json_object *params, const char *command)
{
	struct json_object *v = NULL, *args = NULL, *script = NULL, *env = NULL, *cwd = NULL;
	struct proc_spec spec = { .command = command };
	_cleanup_free_ char *file = NULL;
	char at[PATH_MAX * 2] = "/";
	const char *shown;
	struct params p;
	struct stat st;

	json_object_object_get_ex(params, "args", &args);
	json_object_object_get_ex(params, "scriptArgs", &script);
	json_object_object_get_ex(params, "env", &env);
	json_object_object_get_ex(params, "cwd", &cwd);
	if (!command && json_object_object_get_ex(params, "command", &v) && json_object_is_type(v, json_type_string))
		spec.command = json_object_get_string(v);
	if (!spec.command || (!has_nul(v) && !any_has_nul(args) && !any_has_nul(script) && !any_has_nul(env) && !has_nul(cwd)))
		return false;
	params_init(&p, params);
	spec.env = json_object_is_type(env, json_type_object) ? env : NULL;
	spec.clear_env = params_bool_opt(&p, "clearEnv", false);
	spec.cwd = json_object_is_type(cwd, json_type_string) && !has_nul(cwd) ? json_object_get_string(cwd) : NULL;
	shown = spawn_name(s, call, v, &spec, &file);
	if (!shown)
		return true;
	if (spec.cwd)
		snprintf(at, sizeof(at), "%s/%.4095s", *spec.cwd == '/' ? "" : s->home, spec.cwd);
	if (has_nul(cwd)) /* which a command relative to it has in its path, too */
		rpc_call_error(call, "NotFound", "ENOENT", "Failed to spawn '%.1000s': No such cwd '<string-with-nul>'",
			       *spec.command != '/' && strchr(spec.command, '/') && strncmp(spec.command, "../", 3) ? "<string-with-nul>" :
			       shown);
	else if (spec.cwd && (stat(at, &st) || !S_ISDIR(st.st_mode)))
		rpc_call_error(call, "NotFound", "ENOENT", "Failed to spawn '%.1000s': %s '%.1000s'", shown,
			       stat(at, &st) ? "No such cwd" : "cwd is not a directory", spec.cwd);
	else
		rpc_call_error(call, "TypeError", "EINVAL", "Failed to spawn '%.1000s': nul byte found in provided data", shown);
	return true;
}

void rpc_spawn(struct rpc_conn *c, struct rpc_call *call, struct json_object *params)
{
	struct proc_spec spec = { 0 };
	struct json_object *error;
	int64_t stdin_stream;
	struct params p;
	struct proc *child;

	if (proc_refuse_nul(rpc_conn_session(c), call, params, NULL))
		return;
	params_init(&p, params);
	spec.command = params_str(&p, "command");
	spec.args = params_strings_opt(&p, "args");
	proc_spec_params(&spec, &p);
	stdin_stream = params_int_opt(&p, "stdinStreamId", 0, INT64_MAX, -1);
	if (!params_ok(&p))
		rpc_call_params(call, &p);
	else if (proc_start(rpc_conn_session(c), &spec, &child, &error))
		rpc_call_error_json(call, error);
	else
		rpc_call_ok(call, proc_connect(child, c, stdin_stream));
}

static void no_such_process(struct rpc_call *call, int64_t pid)
{
	rpc_call_error(call, "NotFound", "ENOENT", "No such process: %d", (int)pid);
}

static void wait_gone(struct rpc_call *call, void *arg)
{
	struct proc *p = arg;

	for (struct proc_wait **at = &p->waits; *at; at = &(*at)->next) {
		struct proc_wait *w = *at;

		if (w->call == call) {
			*at = w->next;
			free(w);
			break;
		}
	}
	rpc_call_drop(call);
}

void rpc_process_wait(struct rpc_conn *c, struct rpc_call *call, struct json_object *params)
{
	struct params p;
	int64_t pid;
	struct proc *child;
	struct proc_wait *w;

	params_init(&p, params);
	pid = params_int(&p, "pid", 1, INT32_MAX);
	if (!params_ok(&p)) {
		rpc_call_params(call, &p);
		return;
	}
	child = proc_find(rpc_conn_session(c), (pid_t)pid);
	if (!child) {
		no_such_process(call, pid);
		return;
	}
	if (child->exited) {
		rpc_call_ok(call, status_json(child));
		return;
	}
	w = calloc(1, sizeof(*w));
	if (!w) {
		rpc_call_fault(call, -32603, "out of memory");
		return;
	}
	*w = (struct proc_wait){ .call = call, .next = child->waits };
	child->waits = w;
	call->gone = wait_gone;
	call->arg = child;
}

void rpc_process_kill(struct rpc_conn *c, struct rpc_call *call, struct json_object *params)
{
	const char *name;
	struct params p;
	int64_t pid;
	struct proc *child;
	int sig;

	params_init(&p, params);
	pid = params_int(&p, "pid", 1, INT32_MAX);
	name = params_str_opt(&p, "signal");
	if (!params_ok(&p)) {
		rpc_call_params(call, &p);
		return;
	}
	sig = name ? signal_from_name(name) : SIGTERM;
	child = proc_find(rpc_conn_session(c), (pid_t)pid);
	if (sig < 0) {
		rpc_call_error(call, "TypeError", NULL, "Invalid signal: %.64s", name);
	} else if (!child || child->exited) {
		no_such_process(call, pid);
	} else {
		proc_kill_group(child, sig);
		rpc_call_ok(call, NULL);
	}
}

void proc_drain(struct proc *p)
{
	pipe_watch(&p->pipe[0]);
	pipe_watch(&p->pipe[1]);
}

void proc_conn_lost(struct session *s, struct rpc_conn *c)
{
	for (struct proc *p = s->running; p; p = p->next) {
		if (p->watcher_conn == c)
			p->watcher_conn = NULL;
		if (p->on_conn_lost)
			p->on_conn_lost(p, c);
	}
}
