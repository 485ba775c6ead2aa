/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/gateway/answer.h"

#include "base/cleanup.h"
#include "base/fd.h"

#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

struct parting {
	struct gateway *gw;
	struct parting *next, *prev;
	int fd;
	size_t dropped;
	struct source *source, *deadline;
};

static const char *status_text(int status)
{
	switch (status) {
	case 400: return "Bad Request";
	case 404: return "Not Found";
	case 408: return "Request Timeout";
	case 426: return "Upgrade Required";
	case 431: return "Request Header Fields Too Large";
	case 502: return "Bad Gateway";
	case 503: return "Service Unavailable";
	case 504: return "Gateway Timeout";
	default: return "Error";
	}
}

static void parting_free(struct parting *p)
{
	if (p->prev)
		p->prev->next = p->next;
	else if (p->gw->partings == p)
		p->gw->partings = p->next;
	if (p->next)
		p->next->prev = p->prev;
	source_drop(&p->source);
	source_drop(&p->deadline);
	close_fd(&p->fd);
	p->gw->n_streams--;
	free(p);
}

void partings_free(struct gateway *gw)
{
	while (gw->partings)
		parting_free(gw->partings);
}

static void on_deadline(void *arg)
{
	parting_free(arg);
}

static void on_rest(void *arg, uint32_t events)
{
	struct parting *p = arg;
	char waste[4096];
	ssize_t n;

	(void)events;
	do {
		n = recv(p->fd, waste, sizeof(waste), 0);
		if (n > 0)
			p->dropped += (size_t)n;
	} while (n > 0 && p->dropped < ANSWER_LINGER_BYTES);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	parting_free(p);
}

static void send_answer(int fd, int status, const char *code, const char *message)
{
	char body[512], head[512];
	int n, k;

	/* Both texts are ours: nothing in them needs escaping. */
	if (code)
		n = snprintf(body, sizeof(body), "{\"code\":\"%s\",\"message\":\"%s\"}\n", code, message);
	else
		n = snprintf(body, sizeof(body), "%d %s\n\n%s\n", status, status_text(status), message);
	k = snprintf(head, sizeof(head),
		     "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %d\r\nCache-Control: no-store\r\n%s"
		     "Connection: close\r\n\r\n",
		     status, status_text(status), code ? "application/json" : "text/plain; charset=utf-8", n,
		     status == 503 ? "Retry-After: 2\r\n" : "");
	/* A fresh socket has room for this; one that has not is not worth waiting for. */
	if (send(fd, head, (size_t)k, MSG_NOSIGNAL | MSG_DONTWAIT | MSG_MORE) == k &&
	    send(fd, body, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT) == n)
		shutdown(fd, SHUT_WR);
}

void answer_end(struct gateway *gw, int fd, int status, const char *code, const char *message)
{
	struct parting *p = calloc(1, sizeof(*p));

	send_answer(fd, status, code, message);
	if (!p) {
		close(fd);
		gw->n_streams--;
		return;
	}
	p->gw = gw;
	p->fd = fd;
	p->next = gw->partings;
	if (p->next)
		p->next->prev = p;
	gw->partings = p;
	if (loop_fd(gw->loop, fd, EPOLLIN, on_rest, p, &p->source, NULL) ||
	    loop_timer(gw->loop, now_ms() + ANSWER_LINGER_MS, on_deadline, p, &p->deadline, NULL))
		parting_free(p);
}
