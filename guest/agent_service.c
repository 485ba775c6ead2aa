/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections until they are a service. Theory: the line is looked at with MSG_PEEK and only what belongs to it is
 * taken, so that the bytes after it are still in the socket when the service's owner (perhaps another process) gets the
 * descriptor. A connection without a complete line is closed at its deadline.
 */
#include "guest/agent.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "guest/agent_limits.h"
#include "schema/agent.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

struct agent agent = { .listen_fd = -1, .upper_fd = -1, .below_fd = -1, .cgroup_fd = -1 };

struct greeting {
	struct attached attached;
	int fd;
	struct source *source, *deadline;
	struct buf line;
};

void agent_attach(struct attached *a, void (*inherited)(struct attached *))
{
	a->inherited = inherited;
	a->next = agent.attached;
	a->prev = &agent.attached;
	if (a->next)
		a->next->prev = &a->next;
	agent.attached = a;
}

void agent_detach(struct attached *a)
{
	if (!a->prev)
		return;
	*a->prev = a->next;
	if (a->next)
		a->next->prev = a->prev;
	a->prev = NULL;
}

bool agent_answer(int fd, const char *line)
{
	size_t n = strlen(line);

	/* The first bytes ever sent on this connection, or after all others were taken: they fit, or the peer is gone. */
	return send(fd, line, n, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)n;
}

bool agent_answer_fault(int fd, const struct fault *f)
{
	struct buf b = BUF_INIT(4096);
	bool ok = !agent_put_error(&b, f) && !buf_put(&b, "", 1) && agent_answer(fd, (const char *)buf_data(&b));

	buf_free(&b);
	return ok;
}

void agent_connection_done(void)
{
	agent.n_connections--;
}

struct ending {
	struct attached attached;
	int fd;
	struct source *source, *deadline;
};

static void ending_free(struct ending *e)
{
	agent_detach(&e->attached);
	source_drop(&e->source);
	source_drop(&e->deadline);
	close(e->fd);
	agent_connection_done();
	free(e);
}

static void ending_inherited(struct attached *a)
{
	ending_free((struct ending *)a);
}

static void on_ending(void *arg, uint32_t events)
{
	static char mem[65536];
	struct ending *e = arg;
	ssize_t n = recv(e->fd, mem, sizeof(mem), MSG_DONTWAIT);

	if ((events & (EPOLLERR | EPOLLHUP)) || n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
		ending_free(e);
}

static void on_ending_deadline(void *arg)
{
	ending_free(arg);
}

void agent_connection_end(int fd)
{
	struct ending *e = calloc(1, sizeof(*e));

	if (!e) {
		close(fd);
		agent_connection_done();
		return;
	}
	shutdown(fd, SHUT_WR);
	e->fd = fd;
	agent_attach(&e->attached, ending_inherited);
	if (loop_fd(agent.loop, fd, EPOLLIN, on_ending, e, &e->source, NULL) ||
	    loop_timer(agent.loop, loop_now_ms(agent.loop) + AGENT_LINE_DEADLINE_MS, on_ending_deadline, e, &e->deadline, NULL))
		ending_free(e);
}

static void greeting_free(struct greeting *g)
{
	agent_detach(&g->attached);
	source_drop(&g->source);
	source_drop(&g->deadline);
	buf_free(&g->line);
	if (g->fd >= 0) {
		close(g->fd);
		agent_connection_done();
	}
	free(g);
}

/* Tells why, and no more of this connection. */
static void greeting_refuse(struct greeting *g, const struct fault *f)
{
	source_drop(&g->source);
	agent_answer_fault(g->fd, f);
	agent_connection_end(take_fd(&g->fd));
	greeting_free(g);
}

static void greeting_inherited(struct attached *a)
{
	greeting_free((struct greeting *)a);
}

static void to_session(int fd, const struct agent_request *req)
{
	struct fault f = { 0 };
	const char *domain = "";
	enum rc rc;

	if (req->service == SERVICE_HTTP) {
		rc = agent_get_str(req->root, "domain", 255, NULL, &domain, &f);
		if (!rc)
			rc = agent_session_send('h', fd, domain, &f);
	} else if (!agent_answer(fd, "{\"ok\": true}\n")) {
		rc = RC_OK;
	} else {
		rc = agent_session_send('r', fd, "", &f);
	}
	if (rc) {
		agent_answer_fault(fd, &f);
		agent_connection_end(fd);
		return;
	}
	close(fd);
	agent_connection_done();
}

static void dispatch(int fd, const struct agent_request *req)
{
	switch (req->service) {
	case SERVICE_RPC:
	case SERVICE_HTTP: to_session(fd, req); break;
	case SERVICE_EXEC: agent_exec_start(fd, req); break;
	case SERVICE_TAR_OUT: agent_tar_out_start(fd, req); break;
	case SERVICE_TAR_IN: agent_tar_in_start(fd, req); break;
	case SERVICE_DIAL: agent_dial_start(fd, req); break;
	case SERVICE_UNIT: agent_unit_start(fd, req); break;
	case SERVICE_CONTROL: agent_control_start(fd, req); break;
	}
}

static void greeting_finish(struct greeting *g)
{
	struct agent_request req;
	struct fault f = { 0 };
	int fd;

	if (agent_request_parse((const char *)buf_data(&g->line), buf_len(&g->line), &req, &f)) {
		greeting_refuse(g, &f);
		return;
	}
	fd = take_fd(&g->fd);
	source_drop(&g->source);
	agent_detach(&g->attached);
	dispatch(fd, &req);
	agent_request_free(&req);
	greeting_free(g);
}

static void on_greeting(void *arg, uint32_t events)
{
	struct greeting *g = arg;
	struct fault f = { 0 };
	uint8_t *room, *end;
	ssize_t n;

	(void)events;
	if (buf_room(&g->line) == 0) {
		fault_set(&f, RC_LIMIT, 0, "the service line is longer than %d bytes", AGENT_LINE_MAX);
		greeting_refuse(g, &f);
		return;
	}
	if (buf_reserve(&g->line, MIN_OF(buf_room(&g->line), (size_t)4096), &room)) {
		greeting_free(g);
		return;
	}
	n = recv(g->fd, room, MIN_OF(buf_room(&g->line), (size_t)4096), MSG_PEEK | MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		greeting_free(g);
		return;
	}
	end = memchr(room, '\n', (size_t)n);
	if (end)
		n = end - room + 1;
	if (recv(g->fd, room, (size_t)n, MSG_DONTWAIT) != n) {
		greeting_free(g);
		return;
	}
	buf_commit(&g->line, (size_t)(end ? n - 1 : n));
	if (end)
		greeting_finish(g);
}

static void on_deadline(void *arg)
{
	struct greeting *g = arg;
	struct fault f = { 0 };

	fault_set(&f, RC_TIMEOUT, 0, "no service line within %d ms", AGENT_LINE_DEADLINE_MS);
	greeting_refuse(g, &f);
}

static void greeting_new(int fd)
{
	struct greeting *g = calloc(1, sizeof(*g));
	const int one = 1;

	agent.n_connections++;
	if (!g) {
		close(fd);
		agent_connection_done();
		return;
	}
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	g->fd = fd;
	g->line = (struct buf)BUF_INIT(AGENT_LINE_MAX + 1);
	agent_attach(&g->attached, greeting_inherited);
	if (loop_fd(agent.loop, fd, EPOLLIN, on_greeting, g, &g->source, NULL) ||
	    loop_timer(agent.loop, loop_now_ms(agent.loop) + AGENT_LINE_DEADLINE_MS, on_deadline, g, &g->deadline, NULL))
		greeting_free(g);
}

static bool from_host(const struct sockaddr_in *peer)
{
	return !agent.guest || peer->sin_addr.s_addr == inet_addr(AGENT_MGMT_HOST_ADDR);
}

static void on_listen(void *arg, uint32_t events)
{
	struct sockaddr_in peer;
	socklen_t n = sizeof(peer);
	int fd;

	(void)arg;
	(void)events;
	fd = accept4(agent.listen_fd, (struct sockaddr *)&peer, &n, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd < 0)
		return;
	if (!from_host(&peer) || agent.n_connections >= AGENT_CONNECTIONS_MAX)
		close(fd);
	else
		greeting_new(fd);
}

enum rc agent_service_init(int listen_fd, struct fault *ret_f)
{
	static struct source *source;

	agent.listen_fd = listen_fd;
	return loop_fd(agent.loop, listen_fd, EPOLLIN, on_listen, NULL, &source, ret_f);
}
