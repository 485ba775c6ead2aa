/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory: one loop, one thread but for the jobs. The session outlives its clients: children, environment and exposed
 * services belong to it. What clients send is hostile to the host but not to this process's own user: everything a client
 * can ask for, `app` may do anyway.
 */
#include "guest/session.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "guest/deno_warm.h"
#include "guest/http.h"
#include "guest/proc.h"
#include "guest/rpc.h"
#include "guest/rpc_jobs.h"
#include "guest/ws.h"

#include <errno.h>
#include <linux/close_range.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define HOME_DIR "/home/app"

extern char **environ;

static void env_from_process(struct session *s)
{
	s->env = json_object_new_object();
	s->env_own = json_object_new_object();
	for (char **e = environ; *e; e++) {
		const char *eq = strchr(*e, '=');
		_cleanup_free_ char *name = eq && eq > *e ? strndup(*e, (size_t)(eq - *e)) : NULL;

		if (name)
			json_put(s->env, name, json_str(eq + 1));
	}
}

static void env_default(struct session *s, const char *name, const char *value)
{
	if (!json_object_object_get_ex(s->env, name, NULL))
		json_put(s->env, name, json_str(value));
}

static void set_home(struct session *s)
{
	const char *home = getenv("HOME");
	struct stat st;

	if (stat(HOME_DIR, &st) == 0 && S_ISDIR(st.st_mode))
		home = HOME_DIR;
	if (!home || *home != '/' || strlen(home) >= sizeof(s->home))
		home = "/";
	memcpy(s->home, home, strlen(home) + 1);
}

static enum rc session_new(struct session **ret, struct fault *ret_f)
{
	struct session *s = calloc(1, sizeof(*s));
	enum rc rc;

	if (!s)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	close_range(3, ~0U, CLOSE_RANGE_CLOEXEC); /* whatever our starter left open is not for our children */
	s->uid = geteuid();
	s->gid = getegid();
	s->change_ids = getuid() == 0 && s->uid != 0;
	s->oom_seen = proc_oom_count();
	set_home(s);
	env_from_process(s);
	env_default(s, "HOME", s->home);
	env_default(s, "PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
	rc = loop_new(&s->loop, ret_f);
	if (!rc)
		rc = jobs_new(s->loop, &s->jobs, ret_f);
	*ret = s;
	return rc;
}

/* Descriptors: 500 children with three pipes each and their pidfds are ordinary. */
static void raise_limits(void)
{
	struct rlimit l;

	if (getrlimit(RLIMIT_NOFILE, &l) == 0 && l.rlim_cur < l.rlim_max) {
		l.rlim_cur = l.rlim_max < 65536 ? l.rlim_max : 65536;
		setrlimit(RLIMIT_NOFILE, &l);
	}
}

static enum rc session_run(struct session *s, const bool *ended)
{
	struct fault f;
	enum rc rc = RC_OK;

	signal(SIGPIPE, SIG_IGN);
	raise_limits();
	while (!*ended && !rc) {
		rc = loop_once(s->loop, -1, &f);
		rpc_conns_flush(s);
	}
	if (rc)
		log_fault(LOG_LEVEL_ERROR, &f, "loop");
	return rc;
}

/* --- what PID 1 says ------------------------------------------------------------------------------------------- */

struct control {
	struct session *session;
	struct source *source;
	int fd;
	bool ended;
};

/* What clients set or deleted themselves holds, also in a clone. */
static void control_env(struct session *s, struct json_object *env)
{
	if (!json_object_is_type(env, json_type_object))
		return;
	json_object_put(s->env);
	s->env = json_object_new_object();
	json_object_object_foreach(env, name, value) {
		if (json_object_is_type(value, json_type_string))
			json_put(s->env, name, json_object_get(value));
	}
	json_object_object_foreach(s->env_own, own, own_value) {
		if (own_value)
			json_put(s->env, own, json_object_get(own_value));
		else
			json_object_object_del(s->env, own);
	}
}

static void control_identity(struct session *s, struct json_object *who)
{
	struct json_object *v;

	if (json_object_object_get_ex(who, "generation", &v))
		s->generation = json_object_get_uint64(v);
	warm_drop(s);
	rpc_conns_close(s, WS_GOING_AWAY, "this sandbox is a clone of the one you were connected to");
}

static void control_packet(struct control *k, char *packet, size_t n, int *fd)
{
	static struct log_limit limit = LOG_LIMIT_INIT(20, 20);
	struct session *s = k->session;
	struct json_object *j;
	struct fault f;

	switch (packet[0]) {
	case 'r':
		if (*fd >= 0 && rpc_conn_new(s, take_fd(fd), &f) && log_allowed(&limit))
			log_fault(LOG_LEVEL_WARN, &f, "rpc connection");
		break;
	case 'h':
		if (*fd >= 0)
			http_service(s, take_fd(fd), packet + 1);
		break;
	case 'e':
	case 'i':
		j = json_parse(packet + 1, n - 1);
		if (packet[0] == 'e')
			control_env(s, j);
		else
			control_identity(s, j);
		json_object_put(j);
		break;
	default:
		log_limited(&limit, LOG_LEVEL_WARN, "control packet of unknown kind %d", packet[0]);
	}
}

static void on_control(void *arg, uint32_t events)
{
	static char packet[SESSION_PACKET_MAX + 1];
	struct control *k = arg;
	int fds[FD_PASS_MAX];
	size_t n, n_fds;
	struct fault f;
	enum rc rc;

	(void)events;
	rc = packet_recv(k->fd, packet, SESSION_PACKET_MAX, &n, fds, &n_fds, &f);
	if (rc == RC_AGAIN)
		return;
	if (rc || !n) {
		if (rc && rc != RC_CLOSED)
			log_fault(LOG_LEVEL_ERROR, &f, "control");
		k->ended = rc != RC_PROTO;
		return;
	}
	packet[n] = 0;
	if (!n_fds)
		fds[0] = -1;
	control_packet(k, packet, n, &fds[0]);
	if (fds[0] >= 0)
		close(fds[0]);
	if (n_fds > 1)
		fds_close(fds + 1, n_fds - 1);
}

int session_main(int control_fd)
{
	static struct control k; /* lives as long as the process, as all it leads to */
	struct fault f;
	enum rc rc;

	k.fd = control_fd;
	log_init("nestbox-session");
	rc = session_new(&k.session, &f);
	if (!rc)
		rc = fd_nonblock(control_fd, &f);
	if (!rc)
		rc = loop_fd(k.session->loop, control_fd, EPOLLIN, on_control, &k, &k.source, &f);
	if (rc) {
		log_fault(LOG_LEVEL_ERROR, &f, "start");
		return 1;
	}
	return session_run(k.session, &k.ended) ? 1 : 0;
}

/* --- for tests ------------------------------------------------------------------------------------------------- */

struct listener {
	struct session *session;
	int fd;
	bool ended;
};

static void on_accept(void *arg, uint32_t events)
{
	struct listener *l = arg;
	struct fault f;
	int fd = accept4(l->fd, NULL, NULL, SOCK_CLOEXEC);

	(void)events;
	if (fd >= 0 && rpc_conn_new(l->session, fd, &f))
		log_fault(LOG_LEVEL_WARN, &f, "rpc connection");
}

static void on_stdin(void *arg, uint32_t events)
{
	struct listener *l = arg;
	char c[64];
	ssize_t n = read(0, c, sizeof(c));

	(void)events;
	l->ended = n == 0 || (n < 0 && errno != EINTR && errno != EAGAIN);
}

int session_listen(const char *path)
{
	static struct source *accepts, *input;
	static struct listener l;
	struct fault f;
	enum rc rc;

	log_init("nestbox-session");
	rc = session_new(&l.session, &f);
	if (!rc)
		rc = unix_listen(path, SOCK_STREAM, 0600, (gid_t)-1, &l.fd, &f);
	if (!rc)
		rc = loop_fd(l.session->loop, l.fd, EPOLLIN, on_accept, &l, &accepts, &f);
	if (!rc)
		rc = loop_fd(l.session->loop, 0, EPOLLIN, on_stdin, &l, &input, &f);
	if (rc) {
		log_fault(LOG_LEVEL_ERROR, &f, "start");
		return 1;
	}
	log_info("listening at %s", path);
	return session_run(l.session, &l.ended) ? 1 : 0;
}
