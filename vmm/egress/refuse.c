/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory: a program that speaks HTTP is told why it is refused. Its head is read, looked at only for being one, and answered;
 * anything else gets the reset that other ports get.
 */
#include "base/cleanup.h"
#include "vmm/egress/conn.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define HEAD_READ 4096

static bool head_complete(const struct buf *b)
{
	return memmem(buf_data(b), buf_len(b), "\r\n\r\n", 4) || memmem(buf_data(b), buf_len(b), "\n\n", 2);
}

static const char *status_text(int status)
{
	return status == 403 ? "Forbidden" : "Bad Gateway";
}

static void refuse_answer(struct conn *c)
{
	char where[ADDRESS_TEXT_MAX], body[1024], head[512];
	int body_n, head_n;

	address_text(&c->dst, where);
	body_n = snprintf(body, sizeof(body), "nestbox: the connection to %s port %u was %s: %s\n",
			  c->name[0] ? c->name : where, c->port,
			  c->refuse_status == 403 ? "refused by this sandbox's network policy" : "not possible", c->refuse_why);
	head_n = snprintf(head, sizeof(head),
			  "HTTP/1.1 %d %s\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n"
			  "X-Nestbox-Egress: %s\r\n\r\n",
			  c->refuse_status, status_text(c->refuse_status), body_n,
			  c->refuse_status == 403 ? "denied" : "failed");
	/* A fresh socket takes this much at once. */
	send(c->guest.fd, head, (size_t)head_n, MSG_NOSIGNAL | MSG_MORE);
	send(c->guest.fd, body, (size_t)body_n, MSG_NOSIGNAL);
	shutdown(c->guest.fd, SHUT_WR);
	c->state = CONN_LINGER;
	loop_timer_set(c->timer, conn_now(c) + EGRESS_LINGER_MS);
}

void refuse_start(struct conn *c)
{
	buf_free(&c->out.held);
	loop_fd_events(c->guest.source, EPOLLIN, NULL);
}

void refuse_event(struct conn *c, uint32_t events)
{
	struct buf *b = &c->out.held;
	uint8_t *mem;
	ssize_t n;

	if (events & EPOLLERR || buf_reserve(b, HEAD_READ, &mem)) {
		conn_drop(c, true);
		return;
	}
	n = recv(c->guest.fd, mem, HEAD_READ, 0);
	if (n < 0 && errno == EAGAIN)
		return;
	if (n <= 0) {
		conn_drop(c, n < 0);
		return;
	}
	if (c->state == CONN_LINGER)
		return; /* read and forgotten: closing with unread bytes would reset the answer away */
	buf_commit(b, (size_t)n);
	if (!isupper(buf_data(b)[0]))
		conn_drop(c, true);
	else if (head_complete(b))
		refuse_answer(c);
}
