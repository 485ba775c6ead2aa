/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The exec service: one program, its standard streams as frames. Theory: two bounded queues. Output is read only while
 * there is room for the host's side, input is taken only while there is room for the program's, so whoever doesn't
 * read stops the other and nothing grows. States:
 *
 *   STARTING  forked, not yet known whether the program could be started
 *   RUNNING   frames both ways
 *   EXITED    reaped; its output is drained until end of file, or, if something it left behind holds the pipe, until a
 *             short silence; then the exit frame, the last
 *
 * The host closing the connection is SIGHUP, later SIGKILL, to the process group. If instead the connection was inherited by a
 * clone, the program is kept: its output is read and dropped.
 */
#include "guest/agent.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "guest/agent_limits.h"
#include "schema/agent.h"

#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

enum { FRAME_STDIN, FRAME_STDOUT, FRAME_STDERR, FRAME_EXIT, FRAME_SIGNAL, FRAME_RESIZE };
#define FRAME_HEAD 5

struct stream {
	struct exec *x;
	int fd;
	struct source *source;
	uint8_t kind;
};

struct exec {
	struct attached attached;
	enum { STARTING, RUNNING, EXITED } state;
	struct child *child;
	char name[64];
	bool tty, stdin_end, exit_sent;
	bool orphan;       /* a clone's: nobody is connected, the program lives on */
	bool hung, killed; /* the host went away; the group's time is up */
	int status;
	pid_t group;
	uint64_t oom_before, exited_ms, quiet_ms;

	int fd; /* connection; -1 once it is gone */
	struct source *conn, *error, *timer;
	int error_fd;
	struct stream out, err;
	int in_fd; /* pipe; with a terminal the same as out.fd */
	struct source *in;
	struct buf from_host, to_host, input;
};

static void exec_flow(struct exec *x);
static void on_stream(void *arg, uint32_t events);

static void stream_close(struct stream *s)
{
	source_drop(&s->source);
	close_fd(&s->fd);
	if (s->x->tty)
		s->x->in_fd = -1; /* was the same descriptor */
}

static void input_close(struct exec *x)
{
	source_drop(&x->in);
	if (!x->tty)
		close_fd(&x->in_fd);
}

static void conn_close(struct exec *x)
{
	if (x->fd < 0)
		return;
	agent_detach(&x->attached);
	source_drop(&x->conn);
	close_fd(&x->fd);
	agent_connection_done();
}

static void exec_free(struct exec *x)
{
	conn_close(x);
	agent_child_forget(x->child);
	source_drop(&x->error);
	source_drop(&x->timer);
	close_fd(&x->error_fd);
	input_close(x);
	stream_close(&x->out);
	stream_close(&x->err);
	buf_free(&x->from_host);
	buf_free(&x->to_host);
	buf_free(&x->input);
	free(x);
}

/* After the last answer on it. */
static void conn_end(struct exec *x)
{
	if (x->fd < 0)
		return;
	agent_detach(&x->attached);
	source_drop(&x->conn);
	agent_connection_end(take_fd(&x->fd));
}

/* --- towards the host ------------------------------------------------------------------------------------------- */
static bool frame_put(struct exec *x, uint8_t kind, const void *data, size_t n)
{
	const uint8_t head[FRAME_HEAD] = { kind, (uint8_t)n, (uint8_t)(n >> 8), (uint8_t)(n >> 16), (uint8_t)(n >> 24) };

	return !buf_put(&x->to_host, head, sizeof(head)) && !buf_put(&x->to_host, data, n);
}

static void exit_frame(struct exec *x)
{
	char text[128];
	int n, sig = WIFSIGNALED(x->status) ? WTERMSIG(x->status) : 0;
	const char *name = sig ? sigabbrev_np(sig) : NULL;
	/* A shell reports a child that was killed as 137. */
	bool killed = sig ? sig == SIGKILL : WEXITSTATUS(x->status) == 128 + SIGKILL;
	bool oom = killed && agent_oom_kills() > x->oom_before;

	if (name)
		n = snprintf(text, sizeof(text), "{\"code\": %d, \"signal\": \"SIG%s\", \"oom\": %s}", 128 + sig, name,
			     oom ? "true" : "false");
	else
		n = snprintf(text, sizeof(text), "{\"code\": %d, \"signal\": null, \"oom\": %s}",
			     sig ? 128 + sig : WEXITSTATUS(x->status), oom ? "true" : "false");
	x->exit_sent = true;
	if (!frame_put(x, FRAME_EXIT, text, (size_t)n))
		conn_close(x);
}

/* One read of a stream into a frame. False: end of file or nothing there. */
static bool stream_read(struct stream *s)
{
	static uint8_t mem[AGENT_FRAME_MAX];
	struct exec *x = s->x;
	ssize_t n = read(s->fd, mem, sizeof(mem));

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	if (n <= 0) { /* a terminal whose last user went gives EIO */
		stream_close(s);
		return false;
	}
	x->quiet_ms = loop_now_ms(agent.loop);
	if (x->fd >= 0 && !frame_put(x, s->kind, mem, (size_t)n))
		conn_close(x);
	return true;
}

static void on_stream(void *arg, uint32_t events)
{
	struct stream *s = arg;
	struct exec *x = s->x;

	if (x->tty && (events & EPOLLOUT) && buf_len(&x->input) && buf_write(&x->input, s->fd, NULL) == RC_CLOSED)
		buf_consume(&x->input, buf_len(&x->input));
	if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
		stream_read(s);
	exec_flow(x);
}

/* --- from the host ---------------------------------------------------------------------------------------------- */
static void frame_signal(struct exec *x, const uint8_t *name, size_t n)
{
	char text[16];

	if (n >= sizeof(text) || !x->child)
		return;
	memcpy(text, name, n);
	text[n] = '\0';
	for (int s = 1; s < NSIG; s++) {
		const char *abbrev = sigabbrev_np(s);

		if (abbrev && !strcmp(abbrev, !strncmp(text, "SIG", 3) ? text + 3 : text)) {
			agent_child_kill(x->child, s);
			return;
		}
	}
}

static void frame_resize(struct exec *x, const uint8_t *data, size_t n)
{
	struct winsize w = { 0 };

	if (n != 4 || !x->tty || x->out.fd < 0)
		return;
	w.ws_col = (unsigned short)(data[0] | data[1] << 8);
	w.ws_row = (unsigned short)(data[2] | data[3] << 8);
	ioctl(x->out.fd, TIOCSWINSZ, &w);
}

/* False: the frame must wait for room. */
static bool frame_take(struct exec *x, uint8_t kind, const uint8_t *data, size_t n)
{
	static const uint8_t end_of_transmission = 4;

	switch (kind) {
	case FRAME_STDIN:
		if (x->in_fd < 0 || x->stdin_end)
			return true;
		if (n > buf_room(&x->input))
			return false;
		if (n == 0 && x->tty)
			return !buf_put(&x->input, &end_of_transmission, 1);
		if (n == 0)
			x->stdin_end = true;
		return !buf_put(&x->input, data, n);
	case FRAME_SIGNAL: frame_signal(x, data, n); return true;
	case FRAME_RESIZE: frame_resize(x, data, n); return true;
	default: return true; /* the host may be newer */
	}
}

/* Takes complete frames. False: the host broke the protocol. */
static bool frames_take(struct exec *x)
{
	while (x->state == RUNNING && buf_len(&x->from_host) >= FRAME_HEAD) {
		const uint8_t *p = buf_data(&x->from_host);
		size_t n = (size_t)p[1] | (size_t)p[2] << 8 | (size_t)p[3] << 16 | (size_t)p[4] << 24;

		if (n > AGENT_FRAME_MAX)
			return false;
		if (buf_len(&x->from_host) < FRAME_HEAD + n || !frame_take(x, p[0], p + FRAME_HEAD, n))
			return true;
		buf_consume(&x->from_host, FRAME_HEAD + n);
	}
	if (x->state == EXITED)
		buf_consume(&x->from_host, buf_len(&x->from_host));
	return true;
}

static void hang_up(struct exec *x)
{
	conn_close(x);
	if (x->state == EXITED)
		return;
	x->hung = true;
	if (x->child)
		agent_child_kill(x->child, SIGHUP);
	loop_timer_set(x->timer, loop_now_ms(agent.loop) + AGENT_HANGUP_MS);
}

static void on_conn(void *arg, uint32_t events)
{
	struct exec *x = arg;
	enum rc rc = RC_OK;
	size_t n = 1;

	if (events & EPOLLOUT)
		rc = buf_write(&x->to_host, x->fd, NULL);
	if ((!rc || rc == RC_AGAIN) && (events & EPOLLIN) && buf_room(&x->from_host))
		rc = buf_read(&x->from_host, x->fd, buf_room(&x->from_host), &n, NULL);
	if ((rc && rc != RC_AGAIN) || n == 0 || (events & (EPOLLERR | EPOLLHUP)) || !frames_take(x))
		hang_up(x);
	else if ((events & EPOLLRDHUP) && !(events & EPOLLIN))
		hang_up(x); /* gone, although what it sent before still waits for the program */
	exec_flow(x);
}

static void on_input(void *arg, uint32_t events)
{
	struct exec *x = arg;
	enum rc rc = RC_OK;

	if (buf_len(&x->input))
		rc = buf_write(&x->input, x->in_fd, NULL);
	if ((rc && rc != RC_AGAIN) || (events & EPOLLERR))
		input_close(x);
	exec_flow(x);
}

/* --- both: who is waited for now -------------------------------------------------------------------------------- */
/* A source that is not wanted is dropped: a closed pipe reports EPOLLHUP even to those who ask for nothing. */
static void stream_want(struct stream *s, uint32_t events)
{
	if (s->fd < 0)
		return;
	if (!events)
		source_drop(&s->source);
	else if (s->source)
		loop_fd_events(s->source, events, NULL);
	else if (loop_fd(agent.loop, s->fd, events, on_stream, s, &s->source, NULL))
		stream_close(s);
}

static void flow_streams(struct exec *x)
{
	bool room = x->fd < 0 || buf_room(&x->to_host) >= AGENT_FRAME_MAX + FRAME_HEAD + 256;
	uint32_t in = x->state != STARTING && room ? EPOLLIN : 0;

	stream_want(&x->out, in | (x->tty && buf_len(&x->input) ? (uint32_t)EPOLLOUT : 0));
	stream_want(&x->err, in);
	if (x->tty)
		return;
	if (x->in_fd >= 0 && x->stdin_end && !buf_len(&x->input))
		input_close(x);
	if (x->in_fd >= 0)
		loop_fd_events(x->in, buf_len(&x->input) ? EPOLLOUT : 0, NULL);
}

/* True if x is no more. */
static bool flow_exited(struct exec *x)
{
	bool drained = x->out.fd < 0 && x->err.fd < 0;

	if (x->hung && !x->killed)
		return false; /* the rest of its group still has time */
	if (x->fd >= 0 && !drained)
		return false;
	if (x->fd >= 0 && !x->exit_sent)
		exit_frame(x);
	if (x->fd >= 0 && buf_len(&x->to_host))
		return false;
	if (x->orphan && !drained)
		return false;
	conn_end(x);
	exec_free(x);
	return true;
}

static void exec_flow(struct exec *x)
{
	if (x->fd >= 0 && !frames_take(x))
		hang_up(x);
	flow_streams(x);
	if (x->state == EXITED && flow_exited(x))
		return;
	if (x->fd >= 0)
		loop_fd_events(x->conn,
			       EPOLLRDHUP | (buf_room(&x->from_host) ? (uint32_t)EPOLLIN : 0) |
				       (buf_len(&x->to_host) ? (uint32_t)EPOLLOUT : 0), NULL);
}

/* The kill after a hang-up, and the end of waiting for output that nobody will write any more. */
static void on_timer(void *arg)
{
	struct exec *x = arg;
	uint64_t now = loop_now_ms(agent.loop);

	if (x->hung) {
		kill(-x->group, SIGKILL);
		x->killed = true;
		exec_flow(x);
		return;
	}
	/* While the host doesn't read, nothing is read here either: that is no silence. */
	if (buf_len(&x->to_host))
		x->quiet_ms = now;
	if (now - x->quiet_ms >= AGENT_LINGER_QUIET_MS ||
	    (now - x->exited_ms >= AGENT_LINGER_MAX_MS && !buf_len(&x->to_host))) {
		stream_close(&x->out);
		stream_close(&x->err);
		exec_flow(x);
		return;
	}
	loop_timer_set(x->timer, now + AGENT_LINGER_QUIET_MS / 4);
}

static void drain(struct stream *s)
{
	while (s->fd >= 0 && s->x->fd >= 0 && buf_room(&s->x->to_host) >= AGENT_FRAME_MAX + FRAME_HEAD && stream_read(s))
		;
}

static void on_exited(void *arg, int status)
{
	struct exec *x = arg;

	x->child = NULL;
	x->status = status;
	if (x->state == STARTING)
		return; /* on_error() is about to come */
	x->state = EXITED;
	input_close(x);
	x->exited_ms = x->quiet_ms = loop_now_ms(agent.loop);
	drain(&x->out);
	drain(&x->err);
	if (!x->orphan && !x->hung)
		loop_timer_set(x->timer, x->exited_ms + AGENT_LINGER_QUIET_MS);
	exec_flow(x);
}

static void on_error(void *arg, uint32_t events)
{
	struct exec *x = arg;
	struct fault f = { 0 };
	enum rc rc = agent_spawn_result(x->error_fd, x->name, &f);

	(void)events;
	source_drop(&x->error);
	close_fd(&x->error_fd);
	if (rc) {
		if (x->fd >= 0)
			agent_answer_fault(x->fd, &f);
		conn_end(x);
		exec_free(x);
		return;
	}
	x->state = RUNNING;
	if (x->fd >= 0 && !agent_answer(x->fd, "{\"ok\": true}\n"))
		hang_up(x);
	if (!x->child)
		on_exited(x, x->status);
	else
		exec_flow(x);
}

/* --- start ------------------------------------------------------------------------------------------------------ */
static enum rc open_pty(struct exec *x, const struct agent_spec *spec, int *ret_slave, struct fault *ret_f)
{
	struct winsize w = { .ws_col = spec->cols, .ws_row = spec->rows };
	_cleanup_fd_ int master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
	int unlock = 0, slave;

	if (master < 0 || ioctl(master, TIOCSPTLCK, &unlock) < 0)
		return fault_set(ret_f, RC_SYS, errno, "open a terminal");
	slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (slave < 0)
		return fault_set(ret_f, RC_SYS, errno, "open a terminal");
	ioctl(master, TIOCSWINSZ, &w);
	if (geteuid() == 0 && !spec->root && fchown(slave, AGENT_UID, (gid_t)-1) < 0)
		log_warn("cannot give a terminal to its user");
	*ret_slave = slave;
	x->in_fd = x->out.fd = take_fd(&master);
	return RC_OK;
}

/* Ours are nonblocking, the program's are not. */
static enum rc open_pipes(struct exec *x, int theirs[3], struct fault *ret_f)
{
	int *ours[3] = { &x->in_fd, &x->out.fd, &x->err.fd }, fds[2];

	for (int i = 0; i < 3; i++) {
		if (pipe2(fds, O_CLOEXEC) < 0)
			return fault_set(ret_f, RC_SYS, errno, "pipe");
		theirs[i] = fds[i == 0 ? 0 : 1];
		*ours[i] = fds[i == 0 ? 1 : 0];
		if (fd_nonblock(*ours[i], ret_f))
			return RC_SYS;
	}
	return RC_OK;
}

static enum rc exec_spawn(struct exec *x, const struct agent_spec *spec, struct fault *ret_f)
{
	int theirs[3] = { -1, -1, -1 };
	enum rc rc = spec->tty ? open_pty(x, spec, &theirs[0], ret_f) : open_pipes(x, theirs, ret_f);

	x->tty = spec->tty;
	x->oom_before = agent_oom_kills();
	snprintf(x->name, sizeof(x->name), "%s", spec->argv[0]);
	if (!rc) {
		struct spawn s = { .spec = spec, .in = theirs[0], .out = spec->tty ? theirs[0] : theirs[1],
				   .err = spec->tty ? theirs[0] : theirs[2], .tty = spec->tty };

		rc = agent_spawn(&s, on_exited, x, &x->child, &x->error_fd, ret_f);
		x->group = rc ? 0 : agent_child_pid(x->child);
	}
	for (int i = 0; i < 3; i++)
		close_fd(&theirs[i]);
	return rc;
}

static enum rc exec_sources(struct exec *x, struct fault *ret_f)
{
	enum rc rc = loop_fd(agent.loop, x->fd, EPOLLRDHUP, on_conn, x, &x->conn, ret_f);

	if (!rc)
		rc = loop_fd(agent.loop, x->error_fd, EPOLLIN, on_error, x, &x->error, ret_f);
	if (!rc)
		rc = loop_timer(agent.loop, UINT64_MAX, on_timer, x, &x->timer, ret_f);
	if (!rc && !x->tty)
		rc = loop_fd(agent.loop, x->in_fd, 0, on_input, x, &x->in, ret_f);
	return rc;
}

static void exec_inherited(struct attached *a)
{
	struct exec *x = (struct exec *)a;

	x->orphan = true;
	conn_close(x);
	exec_flow(x);
}

void agent_exec_start(int fd, const struct agent_request *req)
{
	struct exec *x = calloc(1, sizeof(*x));
	struct agent_spec spec = { 0 };
	struct fault f = { 0 };
	enum rc rc;

	if (!x) {
		close(fd);
		agent_connection_done();
		return;
	}
	x->fd = fd;
	x->in_fd = x->error_fd = -1;
	x->out = (struct stream){ .x = x, .fd = -1, .kind = FRAME_STDOUT };
	x->err = (struct stream){ .x = x, .fd = -1, .kind = FRAME_STDERR };
	x->from_host = (struct buf)BUF_INIT(FRAME_HEAD + AGENT_FRAME_MAX);
	x->to_host = (struct buf)BUF_INIT(AGENT_OUT_MAX);
	x->input = (struct buf)BUF_INIT(AGENT_STDIN_MAX);
	agent_attach(&x->attached, exec_inherited);
	rc = agent_spec_parse(req->root, &spec, &f);
	if (!rc)
		rc = exec_spawn(x, &spec, &f);
	agent_spec_free(&spec);
	if (!rc)
		rc = exec_sources(x, &f);
	if (rc) {
		if (x->child)
			agent_child_kill(x->child, SIGKILL);
		agent_answer_fault(fd, &f);
		conn_end(x);
		exec_free(x);
	}
}
