/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The dial service: a TCP port of the guest's loopback. Theory: connect to 127.0.0.1, else to [::1]; again after a while if nobody
 * listens and the host wants to wait, which costs less here than if it came back each time. Then two bounded one-way pipes; a
 * side that ends its sending is passed on as a half-close, an error ends both.
 */
#include "guest/agent.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "guest/agent_limits.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

struct side {
	struct dial *d;
	int fd;
	struct source *source;
	struct buf out;      /* to this side */
	bool ended, shut;    /* sends no more; was told that the other sends no more */
	bool hung;           /* closed in both directions: epoll says so for ever, also to those who ask for nothing */
};

struct dial {
	struct attached attached;
	struct side host, port;
	uint16_t number;
	bool ipv6, connected;
	uint64_t wait_until_ms, pause_ms;
	struct source *deadline, *retry;
};

static void dial_free(struct dial *d)
{
	agent_detach(&d->attached);
	source_drop(&d->deadline);
	source_drop(&d->retry);
	for (int i = 0; i < 2; i++) {
		struct side *s = i ? &d->port : &d->host;

		source_drop(&s->source);
		if (!i && s->fd >= 0)
			agent_connection_done();
		close_fd(&s->fd);
		buf_free(&s->out);
	}
	free(d);
}

static void dial_inherited(struct attached *a)
{
	dial_free((struct dial *)a);
}

static void on_side(void *arg, uint32_t events);

static bool side_flow(struct side *s, struct side *other)
{
	uint32_t events = 0;

	if (other->ended && !s->shut && !buf_len(&s->out)) {
		if (shutdown(s->fd, SHUT_WR) < 0)
			return false;
		s->shut = true;
	}
	if (!s->ended && buf_room(&other->out))
		events |= EPOLLIN;
	if (buf_len(&s->out))
		events |= EPOLLOUT;
	if (!events && s->hung) {
		source_drop(&s->source);
		return true;
	}
	if (s->source)
		return !loop_fd_events(s->source, events, NULL);
	return !loop_fd(agent.loop, s->fd, events, on_side, s, &s->source, NULL);
}

static void on_side(void *arg, uint32_t events)
{
	struct side *s = arg;
	struct dial *d = s->d;
	struct side *other = s == &d->host ? &d->port : &d->host;
	enum rc rc = RC_OK;
	size_t n;

	if (!d->connected) { /* the host went before the port answered */
		if (events & (EPOLLHUP | EPOLLERR))
			dial_free(d);
		return;
	}
	if (buf_len(&s->out))
		rc = buf_write(&s->out, s->fd, NULL);
	if ((!rc || rc == RC_AGAIN) && (events & (EPOLLIN | EPOLLHUP)) && !s->ended && buf_room(&other->out)) {
		rc = buf_read(&other->out, s->fd, buf_room(&other->out), &n, NULL);
		if (!rc && n == 0)
			s->ended = true;
		if (!rc && n)
			rc = buf_write(&other->out, other->fd, NULL); /* mostly takes it, saves a wake-up */
	}
	/* What a closed side sent before is still passed on; an error is the end. */
	s->hung |= (events & EPOLLHUP) != 0;
	if ((rc && rc != RC_AGAIN) || (events & EPOLLERR) || !side_flow(s, other) || !side_flow(other, s) || (d->host.shut && d->port.shut))
		dial_free(d);
}

static enum rc dial_connect(struct dial *d, struct fault *ret_f);

static void dial_failed(struct dial *d, const struct fault *f)
{
	agent_answer_fault(d->host.fd, f);
	source_drop(&d->host.source);
	agent_connection_end(take_fd(&d->host.fd));
	dial_free(d);
}

static void on_retry(void *arg)
{
	struct dial *d = arg;
	struct fault f = { 0 };

	source_drop(&d->retry);
	d->ipv6 = false;
	if (dial_connect(d, &f))
		dial_failed(d, &f);
}

/* Nobody listens on either address. True: that is tried again. */
static bool dial_waits(struct dial *d, int sys)
{
	uint64_t now = loop_now_ms(agent.loop);

	d->pause_ms = MIN_OF(MAX_OF(2 * d->pause_ms, (uint64_t)AGENT_DIAL_RETRY_MIN_MS), (uint64_t)AGENT_DIAL_RETRY_MAX_MS);
	return sys == ECONNREFUSED && now < d->wait_until_ms &&
	       !loop_timer(agent.loop, now + d->pause_ms, on_retry, d, &d->retry, NULL);
}

static void on_connected(void *arg, uint32_t events)
{
	struct dial *d = arg;
	struct fault f = { 0 };
	int sys = 0;
	socklen_t n = sizeof(sys);

	(void)events;
	source_drop(&d->port.source);
	getsockopt(d->port.fd, SOL_SOCKET, SO_ERROR, &sys, &n);
	if (sys) {
		close_fd(&d->port.fd);
		if (!d->ipv6) {
			d->ipv6 = true;
			if (!dial_connect(d, NULL))
				return;
		}
		if (dial_waits(d, sys))
			return;
		fault_set(&f, rc_from_errno(sys), sys, "port %u: %s", d->number, strerrordesc_np(sys));
		dial_failed(d, &f);
		return;
	}
	source_drop(&d->deadline);
	d->connected = true;
	if (!agent_answer(d->host.fd, "{\"ok\": true}\n") ||
	    loop_fd(agent.loop, d->port.fd, EPOLLIN, on_side, &d->port, &d->port.source, NULL) ||
	    loop_fd_events(d->host.source, EPOLLIN, NULL))
		dial_free(d);
}

static void on_deadline(void *arg)
{
	struct fault f = { 0 };

	fault_set(&f, RC_TIMEOUT, ETIMEDOUT, "no connection within %d ms", AGENT_DIAL_DEADLINE_MS);
	dial_failed(arg, &f);
}

static enum rc dial_connect(struct dial *d, struct fault *ret_f)
{
	struct sockaddr_in a4 = { .sin_family = AF_INET, .sin_port = htons(d->number) };
	struct sockaddr_in6 a6 = { .sin6_family = AF_INET6, .sin6_port = htons(d->number), .sin6_addr = IN6ADDR_LOOPBACK_INIT };
	const struct sockaddr *a = d->ipv6 ? (struct sockaddr *)&a6 : (struct sockaddr *)&a4;
	const int one = 1;
	int r;

	a4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	d->port.fd = socket(a->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (d->port.fd < 0)
		return fault_set(ret_f, RC_SYS, errno, "socket");
	setsockopt(d->port.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	r = connect(d->port.fd, a, d->ipv6 ? sizeof(a6) : sizeof(a4));
	/* A refusal on loopback comes at once; a socket that failed or is through reports itself to epoll all the same,
	 * except for one that was refused before it was watched. */
	if (r < 0 && errno != EINPROGRESS) {
		int sys = errno;

		close_fd(&d->port.fd);
		if (!d->ipv6) {
			d->ipv6 = true;
			if (!dial_connect(d, NULL))
				return RC_OK;
		}
		if (dial_waits(d, sys))
			return RC_OK;
		return fault_set(ret_f, rc_from_errno(sys), sys, "port %u: %s", d->number, strerrordesc_np(sys));
	}
	return loop_fd(agent.loop, d->port.fd, EPOLLOUT, on_connected, d, &d->port.source, ret_f);
}

void agent_dial_start(int fd, const struct agent_request *req)
{
	struct dial *d = calloc(1, sizeof(*d));
	struct fault f = { 0 };
	int64_t port = 0, wait_ms = 0;
	enum rc rc;

	if (!d) {
		close(fd);
		agent_connection_done();
		return;
	}
	d->host = (struct side){ .d = d, .fd = fd, .out = BUF_INIT(AGENT_RELAY_BUFFER) };
	d->port = (struct side){ .d = d, .fd = -1, .out = BUF_INIT(AGENT_RELAY_BUFFER) };
	agent_attach(&d->attached, dial_inherited);
	rc = agent_get_int(req->root, "port", 1, 65535, 0, &port, &f);
	d->number = (uint16_t)port;
	if (!rc)
		rc = agent_get_int(req->root, "wait_ms", 0, AGENT_DIAL_WAIT_MS, 0, &wait_ms, &f);
	d->wait_until_ms = loop_now_ms(agent.loop) + (uint64_t)wait_ms;
	if (!rc)
		rc = loop_fd(agent.loop, fd, 0, on_side, &d->host, &d->host.source, &f);
	if (!rc)
		rc = loop_timer(agent.loop, d->wait_until_ms + AGENT_DIAL_DEADLINE_MS, on_deadline, d, &d->deadline, &f);
	if (!rc)
		rc = dial_connect(d, &f);
	if (rc)
		dial_failed(d, &f);
}
