/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One SSH connection, in a process of its own: what parses a client's bytes (libssh) and a guest's (frames.c).
 *
 * Theory: until the login libssh blocks and the daemon's grace bounds it. Then one poll loop: libssh's socket, the gate, and a
 * connection to the agent for each channel. Every direction of a channel has a bounded buffer and is read only while there is
 * room behind it: the client's window is opened by libssh only as we take its data, and a guest is not read while libssh has output
 * that the client does not take. Opening a channel waits for the agent (SSH_OPEN_MS at most), and the connection's other channels
 * wait with it.
 *
 * A channel: made -> [env, pty-req] -> started (exec, shell, sftp: frames; direct-tcpip: raw bytes) -> the agent's last bytes are
 * passed on -> closed. Whichever side closes first closes the other.
 */
#ifndef NB_SSH_SESSION_H
#define NB_SSH_SESSION_H

#include "base/buf.h"
#include "fcgi/ssh/limits.h"

#include <json-c/json.h>
#include <libssh/callbacks.h>
#include <libssh/libssh.h>
#include <libssh/server.h>
#include <stdbool.h>

/* The descriptors that the daemon leaves a session's process. */
#define SESSION_CLIENT 3
#define SESSION_GATE 4
#define SESSION_KEY 5

struct session;

struct channel {
	struct session *s;
	ssh_channel ssh;                      /* NULL: the place is free */
	struct ssh_channel_callbacks_struct cb;
	struct json_object *env, *tty;        /* asked for before the start */
	unsigned int n_env;
	int fd;                               /* agent; -1: not started, or ended */
	bool started, raw;                    /* raw: no frames */
	bool client_data, client_eof, eof_sent, shut, closed; /* closed: by the client */
	bool guest_eof, exited;
	short revents;                        /* of fd, this turn */
	size_t passed;                        /* of the frame at the head */
	struct buf to_guest, from_guest;
};

struct session {
	int gate;
	ssh_session ssh;
	ssh_event event;
	bool logged_in, over;
	bool full;                            /* the client has not taken what libssh wrote before this turn */
	struct ssh_server_callbacks_struct cb;
	struct channel channels[SSH_CHANNELS_MAX];
};

/* Never returns to the daemon's code: the process ends with this status. */
int session_main(void);

/* channel.c */
ssh_channel chan_open_session(struct session *s);
/* Answers the message itself if it returns true. */
bool chan_open_dial(struct session *s, ssh_message message);
short chan_events(const struct channel *c);
/* What can be moved now; frees it when nothing is left to do. */
void chan_pump(struct channel *c);
void chan_free(struct channel *c);

#endif
