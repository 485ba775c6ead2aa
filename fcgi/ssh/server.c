/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/ssh/server.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "fcgi/gateway/acceptor.h"
#include "fcgi/gateway/link.h"
#include "fcgi/ssh/gate.h"
#include "fcgi/ssh/limits.h"
#include "fcgi/ssh/rate.h"
#include "fcgi/ssh/session.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

struct conn {
	struct server *s;
	struct conn *next, **at;
	struct source_addr *source;
	pid_t pid;
	int gate;                 /* -1: ending */
	struct source *io, *child, *timer;
	bool logged_in, answer_late;
	char asked;               /* the question that is open, 0: none */
	unsigned int tries;
	char key[GATE_KEY + 1];   /* of the login; or of the one that is asked for */
	struct link_call *call, *check;
};

struct server {
	struct loop *loop;
	struct acceptor acceptor;
	struct link *link;
	struct rate rate;
	struct conn *conns;
	size_t n, n_starts;
	int key_fd;
	const char *conf;
};

static struct log_limit refused_limit = LOG_LIMIT_INIT(10, 10), login_limit = LOG_LIMIT_INIT(60, 60);

/* --- ending ----------------------------------------------------------------------------------------------------- */

static void conn_end(struct conn *c)
{
	if (c->gate < 0)
		return;
	source_drop(&c->io);
	close_fd(&c->gate);
	link_cancel(c->call);
	link_cancel(c->check);
	c->call = c->check = NULL;
	loop_timer_set(c->timer, loop_now_ms(c->s->loop) + SSH_END_MS);
}

static void conn_kill(struct conn *c)
{
	conn_end(c);
	kill(c->pid, SIGKILL);
}

static void conn_free(struct conn *c)
{
	conn_end(c);
	source_drop(&c->child);
	source_drop(&c->timer);
	rate_leave(c->source);
	c->s->n--;
	c->s->n_starts -= !c->logged_in;
	*c->at = c->next;
	if (c->next)
		c->next->at = c->at;
	free(c);
}

static void on_child(void *arg, int status)
{
	struct conn *c = arg;

	if (WIFSIGNALED(status) && WTERMSIG(status) != SIGKILL)
		log_limited(&refused_limit, LOG_LEVEL_WARN, "a connection's process died pid=%d signal=%d", (int)c->pid, WTERMSIG(status));
	conn_free(c);
}

/* --- answers ---------------------------------------------------------------------------------------------------- */

static void answer(struct conn *c, enum rc rc, const int *fd)
{
	const uint8_t text[2] = { (uint8_t)c->asked, (uint8_t)-rc };
	struct fault f;

	c->asked = 0;
	if (c->gate >= 0 && packet_send(c->gate, text, sizeof(text), fd, fd ? 1 : 0, &f))
		conn_kill(c);
}

/* Every login that fails takes the same time, whatever the reason. */
static void login_failed(struct conn *c, bool guessed)
{
	if (guessed)
		rate_failed(c->source, loop_now_ms(c->s->loop));
	c->answer_late = true;
	loop_timer_set(c->timer, loop_now_ms(c->s->loop) + SSH_FAIL_MS);
}

static void on_timer(void *arg)
{
	struct conn *c = arg;

	if (c->gate < 0 || !c->answer_late) {
		conn_kill(c); /* its end or its grace is over */
		return;
	}
	c->answer_late = false;
	loop_timer_set(c->timer, loop_now_ms(c->s->loop) + SSH_GRACE_MS);
	answer(c, RC_DENIED, NULL);
	if (c->tries >= SSH_TRIES)
		conn_end(c);
}

static void on_login(void *arg, enum rc rc, const struct fault *f, struct wire *w, int *fds, size_t n_fds)
{
	struct conn *c = arg;

	(void)f, (void)w, (void)fds, (void)n_fds;
	c->call = NULL;
	if (rc) {
		log_limited(&login_limit, LOG_LEVEL_INFO, "login failed pid=%d why=%s", (int)c->pid, rc_name(rc));
		login_failed(c, rc == RC_ABSENT);
		return;
	}
	c->logged_in = true;
	c->s->n_starts--;
	loop_timer_set(c->timer, UINT64_MAX);
	log_limited(&login_limit, LOG_LEVEL_INFO, "logged in pid=%d login=%.8s", (int)c->pid, c->key);
	answer(c, RC_OK, NULL);
}

static void on_open(void *arg, enum rc rc, const struct fault *f, struct wire *w, int *fds, size_t n_fds)
{
	struct conn *c = arg;

	(void)f, (void)w;
	c->call = NULL;
	if (!rc && n_fds != 1)
		rc = RC_PROTO;
	answer(c, rc, rc ? NULL : fds);
	if (rc == RC_ABSENT)
		conn_end(c);
}

static enum rc ask(struct conn *c, bool connect_it, link_reply_fn *fn, struct link_call **ret, struct fault *ret_f)
{
	struct broker_login_dial q = { .connect = connect_it };

	memcpy(q.key, c->key, sizeof(q.key));
	return link_ask(c->s->link, c->key, NULL, BROKER_LOGIN_DIAL, (message_put_fn *)broker_login_dial_put, &q, fn, c, ret, ret_f);
}

static void question(struct conn *c, const char *text, size_t n)
{
	struct fault f;

	c->asked = text[0];
	if (text[0] == GATE_LOGIN && n == 1 + GATE_KEY && !c->logged_in && c->tries < SSH_TRIES) {
		c->tries++;
		memcpy(c->key, text + 1, GATE_KEY);
		if (strspn(c->key, "0123456789abcdef") != GATE_KEY)
			conn_kill(c);
		else if (ask(c, false, on_login, &c->call, &f))
			login_failed(c, false);
	} else if (text[0] == GATE_OPEN && n == 1 && c->logged_in) {
		if (ask(c, true, on_open, &c->call, &f))
			answer(c, f.rc, NULL);
	} else {
		conn_kill(c);
	}
}

static void on_gate(void *arg, uint32_t events)
{
	struct conn *c = arg;
	char text[1 + GATE_KEY + 1];
	int fds[FD_PASS_MAX];
	size_t n, n_fds = 0;
	enum rc rc = packet_recv(c->gate, text, sizeof(text), &n, fds, &n_fds, NULL);

	(void)events;
	if (rc == RC_AGAIN)
		return;
	if (rc || n_fds || (n && c->asked)) {
		fds_close(fds, n_fds);
		conn_kill(c);
	} else if (!n) {
		conn_end(c); /* it ends by itself */
	} else {
		question(c, text, n);
	}
}

/* --- the broker's word ------------------------------------------------------------------------------------------ */

static void on_check(void *arg, enum rc rc, const struct fault *f, struct wire *w, int *fds, size_t n_fds)
{
	struct conn *c = arg;

	(void)f, (void)w, (void)fds, (void)n_fds;
	c->check = NULL;
	if (rc == RC_ABSENT)
		conn_end(c);
}

static void on_subscribed(void *arg, enum rc rc, const struct fault *f, struct wire *w, int *fds, size_t n_fds)
{
	(void)arg, (void)w, (void)fds, (void)n_fds;
	if (rc)
		log_fault(LOG_LEVEL_ERROR, f, "the broker sends no events");
}

static void on_link_state(void *arg, bool up)
{
	struct server *s = arg;
	struct broker_none none;
	struct fault f;

	if (!up)
		return;
	/* Subscribed first: a name that goes while the others are checked arrives as an event. */
	if (link_ask(s->link, NULL, NULL, BROKER_SUBSCRIBE, (message_put_fn *)broker_none_put, &none, on_subscribed, s, NULL, &f))
		log_fault(LOG_LEVEL_ERROR, &f, "the broker sends no events");
	for (struct conn *c = s->conns; c; c = c->next)
		if (c->logged_in && c->gate >= 0 && !c->check && ask(c, false, on_check, &c->check, &f))
			log_fault(LOG_LEVEL_WARN, &f, "a login is not checked");
}

static void on_link_event(void *arg, uint16_t event, struct wire *w)
{
	struct server *s = arg;
	struct broker_login_key m;

	if (event != BROKER_EVENT_LOGIN_GONE)
		return;
	broker_login_key_get(w, &m);
	for (struct conn *c = s->conns; wire_done(w) && c; c = c->next)
		if (c->logged_in && !strcmp(c->key, m.key))
			conn_end(c);
}

/* --- connections ------------------------------------------------------------------------------------------------ */

/* A peer that vanished is noticed in about two minutes, also while nothing is sent. */
static void client_options(int fd)
{
	const int on = 1, idle = 60, every = 15, count = 4, user_ms = 120000;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &every, sizeof(every));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(count));
	setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &user_ms, sizeof(user_ms));
}

/* In the child. All else is close-on-exec. */
static void __attribute__((noreturn)) become_session(const struct server *s, int client, int gate)
{
	const int from[3] = { client, gate, s->key_fd };
	int high[3];
	sigset_t none;

	/* It ends with the daemon, however that ends. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	for (int i = 0; i < 3; i++)
		high[i] = fcntl(from[i], F_DUPFD_CLOEXEC, 16);
	for (int i = 0; i < 3; i++)
		if (high[i] < 0 || dup2(high[i], SESSION_CLIENT + i) < 0)
			_exit(127);
	if (s->conf)
		execl("/proc/self/exe", "nestbox-ssh", "-c", s->conf, "session", NULL);
	else
		execl("/proc/self/exe", "nestbox-ssh", "session", NULL);
	_exit(127);
}

static enum rc conn_start(struct server *s, struct conn *c, int client, int gates[2], struct fault *ret_f)
{
	enum rc rc;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, gates) < 0)
		return fault_set(ret_f, RC_SYS, errno, "socketpair");
	rc = fd_nonblock(gates[0], ret_f);
	if (!rc)
		rc = loop_timer(s->loop, loop_now_ms(s->loop) + SSH_GRACE_MS, on_timer, c, &c->timer, ret_f);
	if (!rc)
		rc = loop_fd(s->loop, gates[0], EPOLLIN, on_gate, c, &c->io, ret_f);
	if (rc)
		return rc;
	c->pid = fork();
	if (c->pid == 0)
		become_session(s, client, gates[1]);
	if (c->pid < 0)
		return fault_set(ret_f, RC_SYS, errno, "fork");
	rc = loop_child(s->loop, c->pid, on_child, c, &c->child, ret_f);
	if (rc) {
		kill(c->pid, SIGKILL);
		waitpid(c->pid, NULL, 0);
	}
	return rc;
}

static enum rc admit(struct server *s, int client, struct source_addr **ret, struct fault *ret_f)
{
	struct sockaddr_storage addr = { 0 };
	socklen_t len = sizeof(addr);

	if (s->n >= SSH_CONNECTIONS_MAX || s->n_starts >= SSH_STARTS_MAX)
		return fault_set(ret_f, RC_LIMIT, 0, "%zu connections, %zu of them not logged in", s->n, s->n_starts);
	if (getpeername(client, (struct sockaddr *)&addr, &len) < 0)
		return fault_set(ret_f, RC_SYS, errno, "getpeername");
	return rate_admit(&s->rate, (struct sockaddr *)&addr, loop_now_ms(s->loop), ret, ret_f);
}

static void on_client(void *arg, int fd)
{
	_cleanup_fd_ int client = fd, ours = -1, theirs = -1;
	struct server *s = arg;
	struct source_addr *source = NULL;
	struct conn *c = NULL;
	int gates[2] = { -1, -1 };
	struct fault f;
	enum rc rc = admit(s, client, &source, &f);

	if (!rc) {
		client_options(client);
		c = calloc(1, sizeof(*c));
		rc = c ? RC_OK : fault_set(&f, RC_NOMEM, 0, "out of memory");
	}
	if (!rc) {
		*c = (struct conn){ .s = s, .source = source, .gate = -1 };
		rc = conn_start(s, c, client, gates, &f);
	}
	ours = gates[0];
	theirs = gates[1];
	if (rc) {
		log_limited(&refused_limit, LOG_LEVEL_WARN, "connection refused: %s", f.text);
		if (source)
			rate_leave(source);
		if (c) {
			source_drop(&c->io);
			source_drop(&c->timer);
		}
		free(c);
		return;
	}
	c->gate = take_fd(&ours);
	c->next = s->conns;
	c->at = &s->conns;
	if (c->next)
		c->next->at = &c->next;
	s->conns = c;
	s->n++;
	s->n_starts++;
}

enum rc server_new(struct loop *loop, const struct config *cfg, const char *conf, int listen_fd, int key_fd, struct server **ret,
		   struct fault *ret_f)
{
	struct server *s = calloc(1, sizeof(*s));
	const struct link_client client = { .event = on_link_event, .state = on_link_state, .arg = s };
	char path[CONFIG_STR_MAX * 2];
	enum rc rc;

	if (!s) {
		close(listen_fd);
		close(key_fd);
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	}
	s->loop = loop;
	s->key_fd = key_fd;
	s->conf = conf;
	rc = acceptor_start(&s->acceptor, loop, listen_fd, on_client, s, ret_f);
	if (!rc)
		rc = path_join(path, sizeof(path), cfg->run_dir, "broker.sock", ret_f);
	if (!rc)
		rc = link_new(loop, path, &client, &s->link, ret_f);
	if (rc) {
		server_free(s);
		return rc;
	}
	*ret = s;
	return RC_OK;
}

void server_free(struct server *s)
{
	if (!s)
		return;
	acceptor_stop(&s->acceptor);
	while (s->conns) {
		kill(s->conns->pid, SIGKILL);
		conn_free(s->conns);
	}
	link_free(s->link);
	close_fd(&s->key_fd);
	free(s);
}
