/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/gateway/stream.h"

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/fd.h"
#include "fcgi/gateway/answer.h"
#include "fcgi/gateway/follow.h"
#include "fcgi/gateway/head.h"

#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

struct stream {
	struct gateway *gw;
	struct stream *next, *prev;
	int fd;
	struct source *source, *deadline;
	struct buf head;
	struct ticket ticket;
	struct relay relay;
};

static void stream_free(struct stream *s)
{
	if (s->prev)
		s->prev->next = s->next;
	else if (s->gw->streams == s)
		s->gw->streams = s->next;
	if (s->next)
		s->next->prev = s->prev;
	relay_stop(&s->relay);
	source_drop(&s->source);
	source_drop(&s->deadline);
	buf_free(&s->head);
	ticket_close(&s->ticket);
	if (s->fd >= 0) {
		close_fd(&s->fd);
		s->gw->n_streams--;
	}
	free(s);
}

void streams_free(struct gateway *gw)
{
	while (gw->streams)
		stream_free(gw->streams);
}

static void stream_refuse(struct stream *s, int status, const char *code, const char *message)
{
	source_drop(&s->source);
	answer_end(s->gw, take_fd(&s->fd), status, code, message);
	stream_free(s);
}

static void on_relay_done(void *arg)
{
	stream_free(arg);
}

static enum rc stream_greet(struct stream *s, const struct head *head, struct fault *ret_f)
{
	char accept[HEAD_WS_ACCEPT + 1], text[GATEWAY_HEADERS_MAX + 256];
	enum rc rc = head_ws_accept(head->ws_key, accept, ret_f);
	int n;

	if (rc)
		return rc;
	n = snprintf(text, sizeof(text),
		     "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
		     "Sec-WebSocket-Accept: %s\r\n%s\r\n",
		     accept, s->ticket.headers);
	if (n < 0 || (size_t)n >= sizeof(text))
		return fault_set(ret_f, RC_LIMIT, 0, "headers of the answer are too long");
	/* The buffer of a fresh socket holds this; a peer that took less would not read the rest either. */
	if (send(s->fd, text, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT) != n)
		return fault_set(ret_f, RC_CLOSED, 0, "the client has gone");
	return RC_OK;
}

static void stream_relay(struct stream *s, const struct head *head)
{
	struct fault f;
	enum rc rc;

	if (!head->upgrade) {
		stream_refuse(s, 426, "UPGRADE_REQUIRED", "this endpoint takes a WebSocket upgrade");
		return;
	}
	if (head->ws_version != 13 || !*head->ws_key) {
		stream_refuse(s, 400, "INVALID_REQUEST", "a WebSocket of version 13 with a key is expected");
		return;
	}
	source_drop(&s->source);
	rc = fd_nonblock(s->ticket.fd, &f);
	if (!rc)
		rc = stream_greet(s, head, &f);
	if (!rc)
		rc = relay_start(&s->relay, &s->gw->pool, s->fd, s->ticket.fd, on_relay_done, s, &f);
	if (rc) {
		log_fault(LOG_LEVEL_WARN, &f, "a stream could not begin");
		stream_free(s);
	}
}

static void stream_log(struct stream *s)
{
	struct gateway *gw = s->gw;
	int fd = take_fd(&s->fd);

	source_drop(&s->source);
	follow_start(gw, fd, &s->ticket);
	stream_free(s);
}

static void stream_redeem(struct stream *s, const struct head *head)
{
	source_drop(&s->deadline);
	buf_free(&s->head);
	if (tickets_redeem(s->gw->tickets, head->token, &s->ticket, NULL))
		stream_refuse(s, 404, "STREAM_NOT_FOUND", "no such stream, or it was opened before, or too late");
	else if (s->ticket.kind == GATEWAY_TICKET_WS)
		stream_relay(s, head);
	else
		stream_log(s);
}

static void on_head(void *arg, uint32_t events)
{
	struct stream *s = arg;
	struct head head;
	struct fault f;
	size_t n = 0;
	enum rc rc;

	(void)events;
	rc = buf_read(&s->head, s->fd, MIN_OF(buf_room(&s->head), (size_t)4096), &n, &f);
	if (rc == RC_AGAIN)
		return;
	if (rc || !n) {
		stream_free(s);
		return;
	}
	n = head_length((char *)buf_data(&s->head), buf_len(&s->head));
	if (!n) {
		if (!buf_room(&s->head))
			stream_refuse(s, 431, "INVALID_REQUEST", "the request head is too long");
		return;
	}
	/* Bytes behind the head cannot be: the client has to wait for the answer. */
	rc = head_parse((char *)buf_data(&s->head), buf_len(&s->head), &head, &f);
	if (rc == RC_ABSENT)
		stream_refuse(s, 404, "STREAM_NOT_FOUND", "no such stream");
	else if (rc)
		stream_refuse(s, rc == RC_LIMIT ? 431 : 400, "INVALID_REQUEST", f.text);
	else
		stream_redeem(s, &head);
}

static void on_deadline(void *arg)
{
	stream_refuse(arg, 408, "INVALID_REQUEST", "the request did not arrive in time");
}

void stream_accept(void *arg, int fd)
{
	struct gateway *gw = arg;
	struct stream *s;
	struct fault f;
	enum rc rc;

	if (!stream_admit(gw)) {
		static struct log_limit limit = LOG_LIMIT_INIT(3, 6);

		log_limited(&limit, LOG_LEVEL_WARN, "a stream was refused: %d are open", GATEWAY_STREAMS_MAX);
		gw->n_streams++;
		answer_end(gw, fd, 503, "BUSY", "too many streams are open");
		return;
	}
	s = calloc(1, sizeof(*s));
	if (!s) {
		close(fd);
		gw->n_streams--;
		return;
	}
	*s = (struct stream){ .gw = gw, .fd = fd, .head.max = HEAD_MAX, .ticket.fd = -1, .ticket.lease = -1,
			      .next = gw->streams };
	if (s->next)
		s->next->prev = s;
	gw->streams = s;
	rc = loop_fd(gw->loop, fd, EPOLLIN, on_head, s, &s->source, &f);
	if (!rc)
		rc = loop_timer(gw->loop, now_ms() + HEAD_DEADLINE_MS, on_deadline, s, &s->deadline, &f);
	if (rc) {
		log_fault(LOG_LEVEL_WARN, &f, "a connection could not be watched");
		stream_free(s);
	}
}
