/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/ssh/session.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/harden.h"
#include "base/log.h"
#include "fcgi/ssh/gate.h"

#include <poll.h>
#include <seccomp.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>

#define KEY_MAX 16384
#define CALL(name, why) { SCMP_SYS(name), why, 0, { { 0, 0, 0 } } }

/* No file, no socket of its own, no process: what it needs was there when it began. */
static const struct harden_call session_calls[] = {
	CALL(ioctl, "libssh asks how much there is to read"),
	CALL(getpeername, "libssh's log"),
	CALL(gettimeofday, "libssh's timeouts"),
};

static const char kex[] = "curve25519-sha256,curve25519-sha256@libssh.org,ecdh-sha2-nistp256";
static const char ciphers[] = "chacha20-poly1305@openssh.com,aes256-gcm@openssh.com,aes128-gcm@openssh.com,aes256-ctr";
static const char macs[] = "hmac-sha2-256-etm@openssh.com,hmac-sha2-512-etm@openssh.com,hmac-sha2-256";

/* --- login ------------------------------------------------------------------------------------------------------ */

static int login(struct session *s, const char *user)
{
	struct fault f;

	if (s->logged_in || !*user || strlen(user) > SSH_NAME_MAX || gate_login(s->gate, user, &f))
		return SSH_AUTH_DENIED;
	s->logged_in = true;
	return SSH_AUTH_SUCCESS;
}

static int on_none(ssh_session ssh, const char *user, void *arg)
{
	(void)ssh;
	return login(arg, user);
}

/* For clients that never try "none": the name is the proof, the password is not looked at. */
static int on_password(ssh_session ssh, const char *user, const char *password, void *arg)
{
	(void)ssh, (void)password;
	return login(arg, user);
}

static ssh_channel on_session_channel(ssh_session ssh, void *arg)
{
	struct session *s = arg;

	(void)ssh;
	return s->logged_in ? chan_open_session(s) : NULL;
}

/* What has no callback: forwarding. 1: libssh answers that it is refused. */
static int on_message(ssh_session ssh, ssh_message message, void *arg)
{
	struct session *s = arg;

	(void)ssh;
	if (!s->logged_in || ssh_message_type(message) != SSH_REQUEST_CHANNEL_OPEN ||
	    ssh_message_subtype(message) != SSH_CHANNEL_DIRECT_TCPIP)
		return 1;
	return chan_open_dial(s, message) ? 0 : 1;
}

/* --- start ------------------------------------------------------------------------------------------------------ */

static enum rc limits(struct fault *ret_f)
{
	const struct rlimit memory = { SSH_MEMORY, SSH_MEMORY }, files = { SSH_FILES, SSH_FILES };

	if (setrlimit(RLIMIT_AS, &memory) < 0 || setrlimit(RLIMIT_NOFILE, &files) < 0)
		return fault_set(ret_f, RC_SYS, errno, "limit resources");
	return RC_OK;
}

static enum rc read_key(ssh_key *ret, struct fault *ret_f)
{
	char text[KEY_MAX];
	ssize_t n = pread(SESSION_KEY, text, sizeof(text) - 1, 0);
	int err;

	close(SESSION_KEY);
	if (n <= 0)
		return fault_set(ret_f, RC_SYS, errno, "read the host key");
	text[n] = '\0';
	err = ssh_pki_import_privkey_base64(text, NULL, NULL, NULL, ret);
	explicit_bzero(text, sizeof(text));
	return err == SSH_OK ? RC_OK : fault_set(ret_f, RC_INVALID, 0, "the host key is none");
}

static int set(ssh_bind b, enum ssh_bind_options_e option, const char *value)
{
	return ssh_bind_options_set(b, option, value);
}

static enum rc make_ssh(struct session *s, struct fault *ret_f)
{
	const bool no = false;
	ssh_bind b = ssh_bind_new();
	ssh_key key = NULL;
	enum rc rc;

	s->ssh = ssh_new();
	s->event = ssh_event_new();
	if (!b || !s->ssh || !s->event)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	rc = read_key(&key, ret_f);
	if (rc)
		return rc;
	/* The key belongs to b from here. */
	if (ssh_bind_options_set(b, SSH_BIND_OPTIONS_PROCESS_CONFIG, &no) < 0 ||
	    ssh_bind_options_set(b, SSH_BIND_OPTIONS_IMPORT_KEY, key) < 0 ||
	    set(b, SSH_BIND_OPTIONS_KEY_EXCHANGE, kex) < 0 || set(b, SSH_BIND_OPTIONS_CIPHERS_C_S, ciphers) < 0 ||
	    set(b, SSH_BIND_OPTIONS_CIPHERS_S_C, ciphers) < 0 || set(b, SSH_BIND_OPTIONS_HMAC_C_S, macs) < 0 ||
	    set(b, SSH_BIND_OPTIONS_HMAC_S_C, macs) < 0 || ssh_bind_accept_fd(b, s->ssh, SESSION_CLIENT) != SSH_OK)
		return fault_set(ret_f, RC_SYS, 0, "libssh: %.100s", ssh_get_error(b));
	ssh_bind_free(b);
	s->cb = (struct ssh_server_callbacks_struct){ .userdata = s, .auth_none_function = on_none,
						      .auth_password_function = on_password,
						      .channel_open_request_session_function = on_session_channel };
	ssh_callbacks_init(&s->cb);
	ssh_set_server_callbacks(s->ssh, &s->cb);
	ssh_set_message_callback(s->ssh, on_message, s);
	/* What a client is offered after "none" failed. No key is ever accepted, but with this one nobody is asked for a password. */
	ssh_set_auth_methods(s->ssh, SSH_AUTH_METHOD_PUBLICKEY);
	return RC_OK;
}

/* --- the loop --------------------------------------------------------------------------------------------------- */

static void turn(struct session *s)
{
	struct pollfd p[2 + SSH_CHANNELS_MAX];
	size_t of[SSH_CHANNELS_MAX];
	nfds_t n = 2;

	p[0] = (struct pollfd){ .fd = s->gate, .events = POLLIN };
	p[1] = (struct pollfd){ .fd = SESSION_CLIENT, .events = POLLIN };
	if (ssh_get_poll_flags(s->ssh) & SSH_WRITE_PENDING)
		p[1].events |= POLLOUT;
	for (size_t i = 0; i < SSH_CHANNELS_MAX; i++) {
		struct channel *c = &s->channels[i];
		short events = chan_events(c);

		c->revents = 0;
		/* One that is not waited for is left out: it would report its end again and again. */
		if (!events)
			continue;
		of[n - 2] = i;
		p[n++] = (struct pollfd){ .fd = c->fd, .events = events };
	}
	if (poll(p, n, -1) < 0)
		return;
	if (p[0].revents) {
		s->over = true; /* the daemon says nothing that was not asked for, so this is its end or ours */
		return;
	}
	if (p[1].revents && (ssh_event_dopoll(s->event, 0) == SSH_ERROR ||
			     ssh_get_status(s->ssh) & (SSH_CLOSED | SSH_CLOSED_ERROR))) {
		s->over = true;
		return;
	}
	/* Looked at once, or the first channel's output would hold up the others. */
	s->full = ssh_get_poll_flags(s->ssh) & SSH_WRITE_PENDING;
	for (nfds_t i = 2; i < n; i++)
		s->channels[of[i - 2]].revents = p[i].revents;
	for (size_t i = 0; i < SSH_CHANNELS_MAX; i++)
		chan_pump(&s->channels[i]);
}

static enum rc run(struct session *s, struct fault *ret_f)
{
	enum rc rc = limits(ret_f);

	if (!rc)
		rc = make_ssh(s, ret_f);
	if (!rc)
		rc = harden_final(session_calls, ARRAY_SIZE(session_calls), ret_f);
	if (rc)
		return rc;
	if (ssh_handle_key_exchange(s->ssh) != SSH_OK || ssh_event_add_session(s->event, s->ssh) != SSH_OK)
		return RC_OK; /* its own mistake, and nothing to tell */
	ssh_set_blocking(s->ssh, 0);
	while (!s->over)
		turn(s);
	for (size_t i = 0; i < SSH_CHANNELS_MAX; i++)
		chan_free(&s->channels[i]);
	ssh_event_remove_session(s->event, s->ssh);
	ssh_disconnect(s->ssh);
	return RC_OK;
}

int session_main(void)
{
	static struct session s = { .gate = SESSION_GATE };
	struct fault f;

	for (size_t i = 0; i < SSH_CHANNELS_MAX; i++)
		s.channels[i] = (struct channel){ .s = &s, .fd = -1, .to_guest = BUF_INIT(SSH_BACKLOG_MAX + SSH_GUEST_BYTES),
						  .from_guest = BUF_INIT(SSH_GUEST_BYTES) };
	if (run(&s, &f)) {
		log_fault(LOG_LEVEL_ERROR, &f, "connection");
		return 1;
	}
	return 0;
}
