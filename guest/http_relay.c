/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory: exposed services and connections to them. `exposeHttp` records which port or process answers for a domain; a
 * connection for that domain (from the host's relay) is connected to it now, since the port of a process is only
 * known once it listens. A relay has two halves, each a bounded buffer from one socket to the other; a half ends at
 * end of file, which is passed on as a half-close once its bytes are out; both ended or any error frees the relay.
 */
#include "guest/http.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "guest/proc.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

/* --- what is exposed ------------------------------------------------------------------------------------------- */

struct exposed {
	struct exposed *next;
	pid_t pid; /* or 0 */
	uint16_t port;
	char domain[EXPOSED_NAME_MAX + 1];
};

static struct exposed *exposed_find(struct session *s, const char *domain)
{
	for (struct exposed *e = s->exposed; e; e = e->next)
		if (!strcasecmp(e->domain, domain))
			return e;
	return NULL;
}

static struct exposed *exposed_get(struct session *s, const char *domain)
{
	struct exposed *e = exposed_find(s, domain);

	if (e || s->n_exposed >= EXPOSED_MAX)
		return e;
	e = calloc(1, sizeof(*e));
	if (!e)
		return NULL;
	snprintf(e->domain, sizeof(e->domain), "%s", domain);
	e->next = s->exposed;
	s->exposed = e;
	s->n_exposed++;
	return e;
}

void rpc_expose_http(struct rpc_conn *c, struct rpc_call *call, struct json_object *params)
{
	struct session *s = rpc_conn_session(c);
	int64_t port, pid;
	const char *domain;
	struct exposed *e;
	struct params p;

	params_init(&p, params);
	domain = params_str(&p, "domain");
	port = params_int_opt(&p, "port", 1, 65535, 0);
	pid = params_int_opt(&p, "pid", 1, INT32_MAX, 0);
	if (params_ok(&p) && (!*domain || strlen(domain) > EXPOSED_NAME_MAX))
		params_fail(&p, "domain", "bad length");
	if (params_ok(&p) && !port == !pid)
		params_fail(&p, "port", "expected either a port or a pid");
	if (!params_ok(&p)) {
		rpc_call_params(call, &p);
		return;
	}
	if (pid && !proc_find_running(s, (pid_t)pid)) {
		rpc_call_error(call, "NotFound", "ENOENT", "No such process: %d", (int)pid);
		return;
	}
	e = exposed_get(s, domain);
	if (!e) {
		rpc_call_error(call, "RangeError", NULL, "More than %d exposed services", EXPOSED_MAX);
		return;
	}
	e->port = (uint16_t)port;
	e->pid = (pid_t)pid;
	rpc_call_ok(call, NULL);
}

/* --- relay ----------------------------------------------------------------------------------------------------- */

struct half {
	struct buf buf;
	bool ended, shut;
};

struct relay {
	struct session *session;
	int fd[2]; /* the host's side, the service */
	struct source *source[2], *timer;
	struct half half[2]; /* from fd[i] to fd[!i] */
	uint16_t port;
	bool connecting, tried_v6;
};

static void relay_free(struct relay *r)
{
	source_drop(&r->timer);
	for (int i = 0; i < 2; i++) {
		source_drop(&r->source[i]);
		close_fd(&r->fd[i]);
		buf_free(&r->half[i].buf);
	}
	free(r);
}

static void on_relay_host(void *arg, uint32_t events);
static void on_relay_service(void *arg, uint32_t events);

static bool relay_watch(struct relay *r)
{
	for (int i = 0; i < 2; i++) {
		uint32_t events = 0;

		if (!r->half[i].ended && buf_room(&r->half[i].buf))
			events |= EPOLLIN;
		if (buf_len(&r->half[!i].buf))
			events |= EPOLLOUT;
		/* Hang-ups arrive always: a side that nothing is wanted of now is not watched at all. */
		if (!events) {
			source_drop(&r->source[i]);
			continue;
		}
		if (!r->source[i] && loop_fd(r->session->loop, r->fd[i], events, i ? on_relay_service : on_relay_host, r,
					     &r->source[i], NULL))
			return false;
		if (loop_fd_events(r->source[i], events, NULL))
			return false;
	}
	return true;
}

/* One direction, as far as it goes now. False: broken. */
static bool half_pump(struct relay *r, int from)
{
	struct half *h = &r->half[from];
	struct fault f;
	enum rc rc = RC_OK;
	size_t n = 1;

	while (!h->ended && buf_room(&h->buf) && !rc && n) {
		rc = buf_read(&h->buf, r->fd[from], MIN_OF(buf_room(&h->buf), (size_t)HTTP_RELAY_BUF), &n, &f);
		if (rc && rc != RC_AGAIN)
			return false;
		if (!rc && !n)
			h->ended = true;
		if (buf_len(&h->buf)) {
			enum rc rc2 = buf_write(&h->buf, r->fd[!from], &f);

			if (rc2 && rc2 != RC_AGAIN)
				return false;
			if (rc2)
				break;
		}
	}
	if (buf_len(&h->buf)) {
		rc = buf_write(&h->buf, r->fd[!from], &f);
		if (rc && rc != RC_AGAIN)
			return false;
	}
	if (h->ended && !buf_len(&h->buf) && !h->shut) {
		h->shut = true;
		shutdown(r->fd[!from], SHUT_WR);
	}
	return true;
}

static void relay_pump(struct relay *r)
{
	if (!half_pump(r, 0) || !half_pump(r, 1) || (r->half[0].shut && r->half[1].shut) || !relay_watch(r))
		relay_free(r);
}

static void on_relay_host(void *arg, uint32_t events)
{
	(void)events;
	relay_pump(arg);
}

/* --- connecting ------------------------------------------------------------------------------------------------ */

static void answer_line(int fd, const char *line)
{
	(void)!send(fd, line, strlen(line), MSG_NOSIGNAL | MSG_DONTWAIT); /* the first bytes of the connection: they fit */
}

static void relay_refuse(struct relay *r, const char *code, const char *why)
{
	char line[256];

	snprintf(line, sizeof(line), "{\"error\":{\"code\":\"%s\",\"message\":\"%s\"}}\n", code, why);
	answer_line(r->fd[0], line);
	shutdown(r->fd[0], SHUT_WR);
	relay_free(r);
}

static int try_connect(struct relay *r)
{
	struct sockaddr_in v4 = { .sin_family = AF_INET, .sin_port = htons(r->port),
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct sockaddr_in6 v6 = { .sin6_family = AF_INET6, .sin6_port = htons(r->port),
				   .sin6_addr = IN6ADDR_LOOPBACK_INIT };
	int fd = socket(r->tried_v6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return errno;
	source_drop(&r->source[1]);
	close_fd(&r->fd[1]);
	r->fd[1] = fd;
	if ((r->tried_v6 ? connect(fd, (struct sockaddr *)&v6, sizeof(v6))
			 : connect(fd, (struct sockaddr *)&v4, sizeof(v4))) < 0 && errno != EINPROGRESS)
		return errno;
	return loop_fd(r->session->loop, fd, EPOLLOUT, on_relay_service, r, &r->source[1], NULL) ? ENOMEM : 0;
}

static void relay_connect(struct relay *r)
{
	int sys = try_connect(r);

	if (sys && !r->tried_v6) {
		r->tried_v6 = true;
		sys = try_connect(r);
	}
	if (sys)
		relay_refuse(r, "ECONNREFUSED", "nothing listens there");
}

static void on_connected(struct relay *r)
{
	socklen_t n = sizeof(int);
	int sys = 0;

	getsockopt(r->fd[1], SOL_SOCKET, SO_ERROR, &sys, &n);
	if (sys && !r->tried_v6) {
		r->tried_v6 = true;
		relay_connect(r);
		return;
	}
	if (sys) {
		relay_refuse(r, "ECONNREFUSED", "nothing listens there");
		return;
	}
	r->connecting = false;
	source_drop(&r->timer);
	answer_line(r->fd[0], "{\"ok\":true}\n");
	relay_pump(r);
}

static void on_relay_service(void *arg, uint32_t events)
{
	struct relay *r = arg;

	(void)events;
	if (r->connecting)
		on_connected(r);
	else
		relay_pump(r);
}

static void on_connect_timer(void *arg)
{
	relay_refuse(arg, "ETIMEDOUT", "the service does not accept");
}

void http_service(struct session *s, int fd, const char *domain)
{
	const struct exposed *e = exposed_find(s, domain);
	struct relay *r = calloc(1, sizeof(*r));

	if (!r) {
		close(fd);
		return;
	}
	*r = (struct relay){ .session = s, .fd = { fd, -1 }, .connecting = true };
	for (int i = 0; i < 2; i++)
		r->half[i].buf = (struct buf)BUF_INIT(HTTP_RELAY_BUF);
	if (fd_nonblock(fd, NULL) ||
	    loop_timer(s->loop, now_ms() + HTTP_CONNECT_MS, on_connect_timer, r, &r->timer, NULL)) {
		relay_free(r);
	} else if (!e) {
		relay_refuse(r, "ENOENT", "no service has this name");
	} else if (e->pid && proc_listens(e->pid, NULL, &r->port, &r->tried_v6)) {
		relay_refuse(r, "ECONNREFUSED", "the process does not listen");
	} else {
		if (!e->pid)
			r->port = e->port;
		relay_connect(r);
	}
}
