/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory: two lanes. A lane reads only while it holds nothing, writes at once what it has read, and holds what the other side did
 * not take: at most EGRESS_BUFFER bytes, in memory that exists only as long as they wait. A side is watched for reading
 * exactly when its lane is empty, for writing when the lane towards it is not: that is all of the back-pressure of one connection
 * (of a whole sandbox: conn.c). An end of
 * file is passed on as a half-close after the last byte; a reset is passed on as a reset.
 */
#include "base/cleanup.h"
#include "vmm/egress/conn.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>

enum flow { FLOW_ON, FLOW_WAIT, FLOW_BROKEN, FLOW_OVER };

static enum flow send_some(struct lane *lane, int to, const uint8_t *data, size_t n, size_t *ret_n)
{
	*ret_n = 0;
	while (*ret_n < n) {
		ssize_t k = send(to, data + *ret_n, n - *ret_n, MSG_NOSIGNAL);

		if (k < 0 && errno == EINTR)
			continue;
		if (k < 0)
			return errno == EAGAIN ? FLOW_WAIT : FLOW_BROKEN;
		*ret_n += (size_t)k;
		lane->bytes += (uint64_t)k;
	}
	return FLOW_ON;
}

static enum flow lane_flush(struct lane *lane, int to)
{
	enum flow flow;
	size_t n;

	if (!buf_len(&lane->held))
		return FLOW_ON;
	flow = send_some(lane, to, buf_data(&lane->held), buf_len(&lane->held), &n);
	buf_consume(&lane->held, n);
	if (!buf_len(&lane->held))
		buf_free(&lane->held);
	return flow;
}

static enum flow lane_run(struct conn *c, struct lane *lane, enum conn_way way, int from, int to)
{
	uint8_t *mem = c->sb->eg->relay;
	enum flow flow = lane_flush(lane, to);

	for (int i = 0; flow == FLOW_ON && !lane->eof && i < EGRESS_RELAY_ROUNDS; i++) {
		bool over;
		size_t max = conn_may_read(c, way, EGRESS_BUFFER, &over), sent;
		ssize_t n;

		if (!max)
			return over ? FLOW_OVER : FLOW_WAIT;
		n = recv(from, mem, max, 0);
		if (n < 0)
			return errno == EAGAIN || errno == EINTR ? FLOW_WAIT : FLOW_BROKEN;
		c->active_ms = conn_now(c);
		meter_take(&c->sb->meter, (size_t)n);
		if (!n) {
			lane->eof = true;
			break;
		}
		flow = send_some(lane, to, mem, (size_t)n, &sent);
		if (sent < (size_t)n && buf_put(&lane->held, mem + sent, (size_t)n - sent))
			return FLOW_BROKEN;
		/* Less than there was room for is all there was: asking once more would be a system call for nothing. */
		if ((size_t)n < max)
			break;
	}
	if (lane->eof && !lane->shut && !buf_len(&lane->held)) {
		lane->shut = true;
		/* The second end is told by the close that follows. */
		if (!(c->out.shut && c->in.shut) && shutdown(to, SHUT_WR) < 0)
			return FLOW_BROKEN;
	}
	return flow;
}

/* A side whose two directions are both over would report its hang-up for ever: it is watched no more. */
static bool watch(struct side *s, enum conn_way way, const struct lane *from, const struct lane *to)
{
	bool reading = !from->eof && !buf_len(&from->held) && !s->conn->waits && !s->conn->full[way], writing = buf_len(&to->held) > 0;

	if (from->eof && to->shut) {
		source_drop(&s->source);
		return true;
	}
	return !s->source || !loop_fd_events(s->source, (reading ? EPOLLIN : 0u) | (writing ? EPOLLOUT : 0u), NULL);
}

static void relay_run(struct conn *c, bool out, bool in)
{
	enum flow flow = out ? lane_run(c, &c->out, WAY_OUT, c->guest.fd, c->up.fd) : FLOW_ON;

	if (in && flow < FLOW_BROKEN)
		flow = lane_run(c, &c->in, WAY_IN, c->up.fd, c->guest.fd);
	if (flow >= FLOW_BROKEN) {
		conn_end(c, flow == FLOW_OVER ? "deny" : "allow", flow == FLOW_OVER ? CONN_OVER : "connection reset", true);
		return;
	}
	conn_holds(c, c->out.held.cap, c->in.held.cap);
	if (c->out.shut && c->in.shut)
		conn_end(c, "allow", NULL, false);
	else if (!watch(&c->guest, WAY_OUT, &c->out, &c->in) || !watch(&c->up, WAY_IN, &c->in, &c->out))
		conn_end(c, "error", "out of memory", true);
}

void relay_event(struct side *s, uint32_t events)
{
	bool readable = events & (EPOLLIN | EPOLLHUP), writable = events & (EPOLLOUT | EPOLLHUP);
	struct conn *c = s->conn;

	/* What was received before the reset is not worth more than telling the other side at once. */
	if (events & EPOLLERR)
		conn_end(c, "allow", "connection reset", true);
	else if (s == &c->guest)
		relay_run(c, readable, writable);
	else
		relay_run(c, writable, readable);
}

static uint64_t idle_ms(const struct conn *c)
{
	return c->out.eof || c->in.eof ? EGRESS_HALF_MS : EGRESS_IDLE_MS;
}

void relay_timeout(struct conn *c)
{
	uint64_t at = c->active_ms + idle_ms(c);

	/* Re-arming at each byte would cost more than looking again now and then. */
	if (at > conn_now(c))
		loop_timer_set(c->timer, MIN_OF(at, conn_now(c) + EGRESS_HALF_MS));
	else
		conn_end(c, "allow", "idle", true);
}

void relay_resume(struct conn *c)
{
	relay_run(c, true, true);
}

/* The guest has mostly spoken by now; who speaks first on the other side is heard by its event. */
void relay_start(struct conn *c)
{
	c->active_ms = conn_now(c);
	loop_timer_set(c->timer, c->active_ms + EGRESS_HALF_MS);
	relay_run(c, true, false);
}
