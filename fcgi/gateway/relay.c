/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/gateway/relay.h"

#include "base/cleanup.h"
#include "base/fd.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

void relay_pool_free(struct relay_pool *pool)
{
	while (pool->n_pipes) {
		pool->n_pipes--;
		fds_close(pool->pipes[pool->n_pipes], 2);
	}
}

static bool pipe_take(struct relay_pool *pool, int ret[2])
{
	if (pool->n_pipes) {
		memcpy(ret, pool->pipes[--pool->n_pipes], 2 * sizeof(int));
		return true;
	}
	return pipe2(ret, O_CLOEXEC | O_NONBLOCK) == 0;
}

static void pipe_give(struct relay_pool *pool, struct relay_way *w)
{
	/* One that still holds bytes would give them to a stranger. */
	if (w->pipe[0] >= 0 && !w->pending && pool->n_pipes < RELAY_PIPES_KEPT)
		memcpy(pool->pipes[pool->n_pipes++], w->pipe, sizeof(w->pipe));
	else
		fds_close(w->pipe, 2);
	w->pipe[0] = w->pipe[1] = -1;
	w->pending = 0;
}

static void way_end(struct relay *r, int i)
{
	pipe_give(r->pool, &r->way[i]);
	r->way[i].eof = true;
	r->way[i].done = true;
}

enum step { STEP_ON, STEP_WAIT, STEP_FAILED };

static enum step way_fill(struct relay *r, int i)
{
	struct relay_way *w = &r->way[i];
	ssize_t n;

	if (w->pipe[0] < 0 && !pipe_take(r->pool, w->pipe)) {
		w->pipe[0] = w->pipe[1] = -1;
		return STEP_FAILED;
	}
	do
		n = splice(r->end[i].fd, NULL, w->pipe[1], NULL, RELAY_CHUNK, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
	while (n < 0 && errno == EINTR);
	if (n > 0) {
		w->pending = (size_t)n;
		return STEP_ON;
	}
	if (n < 0 && errno == EAGAIN && r->end[i].source) {
		pipe_give(r->pool, w);
		return STEP_WAIT;
	}
	/* The end, a reset, or nothing left of a peer that has gone. */
	w->eof = true;
	return STEP_ON;
}

static enum step way_drain(struct relay *r, int i)
{
	struct relay_way *w = &r->way[i];
	ssize_t n;

	do
		n = splice(w->pipe[0], NULL, r->end[1 - i].fd, NULL, w->pending, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
	while (n < 0 && errno == EINTR);
	if (n < 0 && errno == EAGAIN)
		return STEP_WAIT;
	if (n <= 0) {
		way_end(r, i);
		return STEP_WAIT;
	}
	w->pending -= (size_t)n;
	r->pool->bytes += (uint64_t)n;
	return STEP_ON;
}

/* False if the process ran out of descriptors. */
static bool way_pump(struct relay *r, int i)
{
	struct relay_way *w = &r->way[i];
	enum step step = STEP_ON;

	/*
	 * Without a source there will be no further wake-up; what its socket still holds is bounded by its buffer. Nor will there
	 * be one between reading the end and passing it on.
	 */
	for (int round = 0; !w->done && step == STEP_ON && (round < RELAY_ROUNDS || w->eof || !r->end[i].source); round++) {
		if (w->pending) {
			step = way_drain(r, i);
		} else if (w->eof) {
			shutdown(r->end[1 - i].fd, SHUT_WR);
			way_end(r, i);
		} else {
			step = way_fill(r, i);
		}
	}
	if (!w->pending && !w->done && w->pipe[0] >= 0)
		pipe_give(r->pool, w);
	return step != STEP_FAILED;
}

static void relay_finish(struct relay *r)
{
	relay_done_fn *done = r->done;

	r->done = NULL;
	if (done)
		done(r->arg);
}

static void on_linger(void *arg)
{
	relay_finish(arg);
}

static uint32_t end_events(const struct relay *r, int i)
{
	uint32_t events = 0;

	if (!r->way[i].eof && !r->way[i].pending)
		events |= EPOLLIN;
	if (r->way[1 - i].pending)
		events |= EPOLLOUT;
	return events;
}

static void relay_settle(struct relay *r)
{
	if (r->way[0].done && r->way[1].done) {
		relay_finish(r);
		return;
	}
	for (int i = 0; i < 2; i++) {
		if (r->end[i].source && loop_fd_events(r->end[i].source, end_events(r, i), NULL)) {
			relay_finish(r);
			return;
		}
	}
}

/* The peer of end i takes nothing more and sends nothing more than it has sent. */
static bool end_gone(struct relay *r, int i)
{
	source_drop(&r->end[i].source);
	way_end(r, 1 - i);
	return r->linger || !loop_timer(r->pool->loop, now_ms() + RELAY_LINGER_MS, on_linger, r, &r->linger, NULL);
}

static void on_end(struct relay *r, int i, uint32_t events)
{
	bool fine = true;

	if (events & (EPOLLHUP | EPOLLERR))
		fine = end_gone(r, i);
	if (fine && !r->way[i].done && !r->way[i].pending)
		fine = way_pump(r, i);
	if (fine && !r->way[1 - i].done && r->way[1 - i].pending)
		fine = way_pump(r, 1 - i);
	if (fine)
		relay_settle(r);
	else
		relay_finish(r);
}

static void on_end_a(void *arg, uint32_t events)
{
	on_end(arg, 0, events);
}

static void on_end_b(void *arg, uint32_t events)
{
	on_end(arg, 1, events);
}

enum rc relay_start(struct relay *r, struct relay_pool *pool, int fd_a, int fd_b, relay_done_fn *done, void *arg,
		    struct fault *ret_f)
{
	static loop_fd_fn *const fn[2] = { on_end_a, on_end_b };
	const int fds[2] = { fd_a, fd_b };

	*r = (struct relay){ .pool = pool, .done = done, .arg = arg };
	for (int i = 0; i < 2; i++) {
		r->end[i].fd = fds[i];
		r->way[i].pipe[0] = r->way[i].pipe[1] = -1;
	}
	for (int i = 0; i < 2; i++) {
		enum rc rc = loop_fd(pool->loop, fds[i], EPOLLIN, fn[i], r, &r->end[i].source, ret_f);

		if (rc) {
			relay_stop(r);
			return rc;
		}
	}
	return RC_OK;
}

void relay_stop(struct relay *r)
{
	if (!r->pool)
		return;
	for (int i = 0; i < 2; i++) {
		source_drop(&r->end[i].source);
		pipe_give(r->pool, &r->way[i]);
	}
	source_drop(&r->linger);
	r->done = NULL;
	r->pool = NULL;
}
