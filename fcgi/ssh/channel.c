/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/ssh/session.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "fcgi/json.h"
#include "fcgi/ssh/frames.h"
#include "fcgi/ssh/gate.h"
#include "schema/agent.h"

#include <arpa/inet.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#define SFTP_SERVER "/usr/lib/openssh/sftp-server"

static struct channel *chan_take(struct session *s)
{
	for (size_t i = 0; i < SSH_CHANNELS_MAX; i++)
		if (!s->channels[i].ssh)
			return &s->channels[i];
	return NULL;
}

void chan_free(struct channel *c)
{
	if (!c->ssh)
		return;
	ssh_remove_channel_callbacks(c->ssh, &c->cb);
	ssh_channel_close(c->ssh);
	ssh_channel_free(c->ssh);
	json_object_put(c->env);
	json_object_put(c->tty);
	close_fd(&c->fd);
	buf_free(&c->to_guest);
	buf_free(&c->from_guest);
	*c = (struct channel){ .s = c->s, .fd = -1, .to_guest = BUF_INIT(SSH_BACKLOG_MAX + SSH_GUEST_BYTES),
			       .from_guest = BUF_INIT(SSH_GUEST_BYTES) };
}

/* --- from the client -------------------------------------------------------------------------------------------- */

/* As much as there is room for; what is left stays in libssh, which does not open the window for it. */
static size_t guest_put(struct channel *c, const uint8_t *data, size_t n, size_t max)
{
	size_t done = 0;

	while (done < n && buf_len(&c->to_guest) < max) {
		size_t room = max - buf_len(&c->to_guest), part = n - done;

		if (c->raw) {
			part = MIN_OF(part, room);
			if (!part || buf_put(&c->to_guest, data + done, part))
				break;
		} else {
			part = MIN_OF(part, (size_t)AGENT_FRAME_MAX);
			if (room <= FRAME_HEAD)
				break;
			part = MIN_OF(part, room - FRAME_HEAD);
			if (frame_put(&c->to_guest, FRAME_STDIN, data + done, part))
				break;
		}
		done += part;
	}
	return done;
}

static int on_data(ssh_session ssh, ssh_channel channel, void *data, uint32_t n, int is_stderr, void *arg)
{
	struct channel *c = arg;
	size_t done;

	(void)ssh, (void)channel;
	if (is_stderr || (c->started && c->fd < 0))
		return (int)n;
	if (n > SSH_BACKLOG_MAX) {
		c->s->over = true; /* it does not keep to its window */
		return (int)n;
	}
	done = c->started && !c->client_data ? guest_put(c, data, n, SSH_GUEST_BYTES) : 0;
	c->client_data = done < n;
	return (int)done;
}

static void on_eof(ssh_session ssh, ssh_channel channel, void *arg)
{
	struct channel *c = arg;

	(void)ssh, (void)channel;
	c->client_eof = true;
}

static void on_close(ssh_session ssh, ssh_channel channel, void *arg)
{
	struct channel *c = arg;

	(void)ssh, (void)channel;
	c->closed = true;
}

static void on_signal(ssh_session ssh, ssh_channel channel, const char *name, void *arg)
{
	struct channel *c = arg;

	(void)ssh, (void)channel;
	/* One that finds no room is lost: a program that does not even read its input is ended by closing the channel. */
	if (c->fd >= 0 && !c->raw && strlen(name) < 16)
		(void)frame_put(&c->to_guest, FRAME_SIGNAL, name, strlen(name));
}

static int on_resize(ssh_session ssh, ssh_channel channel, int cols, int rows, int x, int y, void *arg)
{
	const uint8_t size[4] = { (uint8_t)cols, (uint8_t)(cols >> 8), (uint8_t)rows, (uint8_t)(rows >> 8) };
	struct channel *c = arg;

	(void)ssh, (void)channel, (void)x, (void)y;
	if (c->fd >= 0 && c->tty)
		(void)frame_put(&c->to_guest, FRAME_RESIZE, size, sizeof(size));
	return 0;
}

/* --- requests before the start ---------------------------------------------------------------------------------- */

static bool text_ok(const char *s, size_t max)
{
	size_t n = strlen(s);

	return n && n <= max;
}

static int on_env(ssh_session ssh, ssh_channel channel, const char *name, const char *value, void *arg)
{
	struct channel *c = arg;

	(void)ssh, (void)channel;
	if (c->started || c->n_env >= SSH_ENV_MAX || strlen(value) > SSH_ENV_BYTES ||
	    (strcmp(name, "LANG") && strncmp(name, "LC_", 3) && strcmp(name, "COLORTERM")) || !text_ok(name, 64))
		return 1;
	if (!c->env)
		c->env = json_object_new_object();
	json_add_str(c->env, name, value);
	c->n_env++;
	return 0;
}

static int on_pty(ssh_session ssh, ssh_channel channel, const char *term, int cols, int rows, int x, int y, void *arg)
{
	struct channel *c = arg;

	(void)ssh, (void)channel, (void)x, (void)y;
	if (c->started || c->tty || strlen(term) > SSH_TERM_MAX)
		return 1;
	c->tty = json_object_new_object();
	json_add_int(c->tty, "cols", cols > 0 && cols < 10000 ? cols : 80);
	json_add_int(c->tty, "rows", rows > 0 && rows < 10000 ? rows : 24);
	json_add_str(c->tty, "term", *term ? term : "xterm-256color");
	return c->tty ? 0 : 1;
}

/* argv ends with NULL. 0, or 1: refused. */
static int start_exec(struct channel *c, const char *const *argv)
{
	_cleanup_json_ struct json_object *o = json_object_new_object();
	struct json_object *list = json_object_new_array();
	const char *line;
	struct fault f;

	if (c->started || !o || !list) {
		json_object_put(list);
		return 1;
	}
	for (; *argv; argv++)
		json_object_array_add(list, json_object_new_string(*argv));
	json_add_str(o, "service", "exec");
	json_add(o, "argv", list);
	json_add_str(o, "cwd", "/home/app");
	json_add_str(o, "user", "app");
	if (c->env)
		json_add(o, "env", json_object_get(c->env));
	if (c->tty)
		json_add(o, "tty", json_object_get(c->tty));
	line = json_text(o);
	if (!line || strlen(line) >= AGENT_LINE_MAX - 1 || gate_service(c->s->gate, line, &c->fd, &f))
		return 1;
	c->started = true;
	return 0;
}

static int on_shell(ssh_session ssh, ssh_channel channel, void *arg)
{
	static const char *const argv[] = { "bash", "-l", NULL };

	(void)ssh, (void)channel;
	return start_exec(arg, argv);
}

static int on_exec(ssh_session ssh, ssh_channel channel, const char *command, void *arg)
{
	const char *const argv[] = { "bash", "-c", command, NULL };

	(void)ssh, (void)channel;
	return strlen(command) > SSH_COMMAND_MAX ? 1 : start_exec(arg, argv);
}

static int on_subsystem(ssh_session ssh, ssh_channel channel, const char *name, void *arg)
{
	static const char *const argv[] = { SFTP_SERVER, NULL };

	(void)ssh, (void)channel;
	return strcmp(name, "sftp") ? 1 : start_exec(arg, argv);
}

/* --- opening ---------------------------------------------------------------------------------------------------- */

static bool chan_bind(struct channel *c, ssh_channel channel)
{
	c->cb = (struct ssh_channel_callbacks_struct){ .userdata = c,
						       .channel_data_function = on_data,
						       .channel_eof_function = on_eof,
						       .channel_close_function = on_close,
						       .channel_signal_function = on_signal,
						       .channel_pty_request_function = on_pty,
						       .channel_shell_request_function = on_shell,
						       .channel_pty_window_change_function = on_resize,
						       .channel_exec_request_function = on_exec,
						       .channel_env_request_function = on_env,
						       .channel_subsystem_request_function = on_subsystem };
	ssh_callbacks_init(&c->cb);
	if (ssh_set_channel_callbacks(channel, &c->cb) != SSH_OK)
		return false;
	c->ssh = channel;
	return true;
}

ssh_channel chan_open_session(struct session *s)
{
	struct channel *c = chan_take(s);
	ssh_channel channel = c ? ssh_channel_new(s->ssh) : NULL;

	if (channel && !chan_bind(c, channel)) {
		ssh_channel_free(channel);
		return NULL;
	}
	return channel;
}

/* The machine itself, by the names that it has for itself: there is no way from here to anything else. */
static bool is_guest(const char *host)
{
	struct in_addr v4;

	if (!strcmp(host, "localhost") || !strcmp(host, "sandbox") || !strcmp(host, "::1"))
		return true;
	return inet_pton(AF_INET, host, &v4) == 1 && ntohl(v4.s_addr) >> 24 == 127;
}

bool chan_open_dial(struct session *s, ssh_message message)
{
	const char *host = ssh_message_channel_request_open_destination(message);
	int port = ssh_message_channel_request_open_destination_port(message), fd;
	struct channel *c = chan_take(s);
	ssh_channel channel;
	char line[64];
	struct fault f;

	if (!c || !host || !is_guest(host) || port < 1 || port > 65535)
		return false;
	snprintf(line, sizeof(line), "{\"service\":\"dial\",\"port\":%d}", port);
	if (gate_service(s->gate, line, &fd, &f))
		return false;
	channel = ssh_message_channel_request_open_reply_accept(message);
	if (!channel || !chan_bind(c, channel)) {
		close(fd);
		return channel != NULL;
	}
	c->fd = fd;
	c->started = c->raw = true;
	return true;
}

/* --- moving bytes ----------------------------------------------------------------------------------------------- */

short chan_events(const struct channel *c)
{
	short events = 0;

	if (!c->ssh || c->fd < 0)
		return 0;
	if (!c->guest_eof && buf_room(&c->from_guest))
		events |= POLLIN;
	if (buf_len(&c->to_guest))
		events |= POLLOUT;
	return events;
}

/* The agent's connection is no more; what it sent before is still passed on. */
static void guest_gone(struct channel *c)
{
	close_fd(&c->fd);
	c->guest_eof = true;
	buf_consume(&c->to_guest, buf_len(&c->to_guest));
}

/*
 * What on_data() left with libssh. All of it at once, and only when ours is empty: reading opens the window again, whatever is
 * still unread, so taking less would let the client send more than we pass on.
 */
static void take_kept(struct channel *c)
{
	int left = ssh_channel_poll(c->ssh, 0);
	uint8_t mem[16384];

	c->client_data = false;
	while (left > 0) {
		int n = ssh_channel_read_nonblocking(c->ssh, mem, (uint32_t)MIN_OF((size_t)left, sizeof(mem)), 0);

		if (n <= 0)
			break;
		guest_put(c, mem, (size_t)n, c->to_guest.max);
		left -= n;
	}
}

static void pump_to_guest(struct channel *c)
{
	enum rc rc = RC_OK;

	while (!rc && c->fd >= 0) {
		if (c->client_data && !buf_len(&c->to_guest))
			take_kept(c);
		if (c->client_eof && !c->client_data && !c->eof_sent && buf_room(&c->to_guest) >= FRAME_HEAD) {
			c->eof_sent = true;
			if (!c->raw)
				(void)frame_put(&c->to_guest, FRAME_STDIN, NULL, 0);
		}
		if (!buf_len(&c->to_guest))
			break;
		rc = buf_write(&c->to_guest, c->fd, NULL);
	}
	if (rc && rc != RC_AGAIN)
		guest_gone(c);
	else if (c->raw && c->eof_sent && !c->shut && !buf_len(&c->to_guest)) {
		shutdown(c->fd, SHUT_WR);
		c->shut = true;
	}
}

static void read_guest(struct channel *c)
{
	size_t n = 1;
	enum rc rc = RC_OK;

	if (!c->guest_eof && buf_room(&c->from_guest))
		rc = buf_read(&c->from_guest, c->fd, MIN_OF(buf_room(&c->from_guest), (size_t)SSH_WRITE_MAX), &n, NULL);
	if (rc == RC_AGAIN)
		return;
	if (rc)
		guest_gone(c);
	else if (!n)
		c->guest_eof = true;
}

/* How much of these bytes the client takes now. */
static size_t pass(struct channel *c, const uint8_t *data, size_t n, bool is_stderr)
{
	int done;

	n = MIN_OF(n, (size_t)ssh_channel_window_size(c->ssh));
	if (!n)
		return 0;
	done = is_stderr ? ssh_channel_write_stderr(c->ssh, data, (uint32_t)n) : ssh_channel_write(c->ssh, data, (uint32_t)n);
	if (done < 0) {
		c->closed = true;
		return 0;
	}
	return (size_t)done;
}

static void told_exit(struct channel *c, const struct frame *f)
{
	struct frame_exit e = { .code = 255 };

	c->exited = true;
	if (frame_exit_parse(f, &e, NULL))
		return;
	if (*e.signal)
		ssh_channel_request_send_exit_signal(c->ssh, e.signal, 0, "", "");
	else
		ssh_channel_request_send_exit_status(c->ssh, e.code);
}

/* True if something moved. */
static bool pump_frame(struct channel *c)
{
	struct frame f;
	enum rc rc = frame_get(&c->from_guest, &f, NULL);
	size_t done;

	if (rc == RC_AGAIN)
		return false;
	if (rc) {
		guest_gone(c);
		buf_consume(&c->from_guest, buf_len(&c->from_guest));
		return false;
	}
	if (f.kind == FRAME_EXIT) {
		told_exit(c, &f);
		buf_consume(&c->from_guest, buf_len(&c->from_guest));
		return false;
	}
	done = pass(c, f.data + c->passed, f.n - c->passed, f.kind == FRAME_STDERR);
	c->passed += done;
	if (c->passed < f.n)
		return done > 0;
	frame_done(&c->from_guest, &f);
	c->passed = 0;
	return true;
}

static void pump_to_client(struct channel *c)
{
	size_t before = buf_len(&c->from_guest);

	while (!c->closed && !c->exited && buf_len(&c->from_guest) && before - buf_len(&c->from_guest) < SSH_WRITE_MAX) {
		if (c->raw) {
			size_t done = pass(c, buf_data(&c->from_guest), buf_len(&c->from_guest), false);

			buf_consume(&c->from_guest, done);
			if (!done)
				break;
		} else if (!pump_frame(c)) {
			break;
		}
	}
}

/* Nothing more comes from the guest, and all that came has been passed on. */
static bool guest_done(const struct channel *c)
{
	struct frame f;

	if (c->exited)
		return true;
	if (!c->guest_eof)
		return false;
	/* Half a frame is the end, too. */
	return c->raw ? !buf_len(&c->from_guest) : frame_get(&c->from_guest, &f, NULL) != RC_OK;
}

void chan_pump(struct channel *c)
{
	if (!c->ssh)
		return;
	if (c->closed) {
		chan_free(c);
		return;
	}
	if (!c->started)
		return;
	if (c->fd >= 0 && (c->revents & (POLLIN | POLLHUP | POLLERR)))
		read_guest(c);
	if (c->fd >= 0)
		pump_to_guest(c);
	if (!c->s->full)
		pump_to_client(c);
	if (c->closed) {
		chan_free(c);
		return;
	}
	if (!guest_done(c))
		return;
	/* A forwarded connection that the guest half-closed still takes what the client sends. */
	if (c->raw && c->fd >= 0 && !c->shut) {
		if (!c->exited)
			ssh_channel_send_eof(c->ssh);
		c->exited = true;
		return;
	}
	ssh_channel_send_eof(c->ssh);
	chan_free(c);
}
