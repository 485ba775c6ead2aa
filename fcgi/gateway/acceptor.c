/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/gateway/acceptor.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "fcgi/gateway/limits.h"

#include <sys/epoll.h>
#include <sys/socket.h>

static void on_pause_over(void *arg)
{
	struct acceptor *a = arg;

	if (loop_fd_events(a->source, EPOLLIN, NULL))
		log_error("a listening socket cannot be watched again");
}

/* A level-triggered listener that cannot accept would keep the loop spinning. */
static void acceptor_pause(struct acceptor *a, int sys)
{
	static struct log_limit limit = LOG_LIMIT_INIT(3, 6);

	log_limited(&limit, LOG_LEVEL_WARN, "no connection accepted for a moment errno=%d", sys);
	if (!a->pause && loop_timer(a->loop, UINT64_MAX, on_pause_over, a, &a->pause, NULL))
		return;
	if (!loop_fd_events(a->source, 0, NULL))
		loop_timer_set(a->pause, now_ms() + GATEWAY_ACCEPT_PAUSE_MS);
}

static void on_listener(void *arg, uint32_t events)
{
	struct acceptor *a = arg;

	(void)events;
	for (int i = 0; i < GATEWAY_ACCEPT_BATCH; i++) {
		int fd = accept4(a->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

		if (fd >= 0) {
			a->fn(a->arg, fd);
			continue;
		}
		if (errno == EINTR || errno == ECONNABORTED)
			continue;
		if (errno != EAGAIN)
			acceptor_pause(a, errno);
		return;
	}
}

enum rc acceptor_start(struct acceptor *a, struct loop *loop, int fd, void (*fn)(void *arg, int fd), void *arg,
		       struct fault *ret_f)
{
	enum rc rc;

	*a = (struct acceptor){ .loop = loop, .fd = fd, .fn = fn, .arg = arg };
	rc = loop_fd(loop, fd, EPOLLIN, on_listener, a, &a->source, ret_f);
	if (rc)
		acceptor_stop(a);
	return rc;
}

void acceptor_stop(struct acceptor *a)
{
	if (!a->loop)
		return;
	source_drop(&a->source);
	source_drop(&a->pause);
	close_fd(&a->fd);
	a->loop = NULL;
}
