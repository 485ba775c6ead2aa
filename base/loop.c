/* SPDX-License-Identifier: Apache-2.0 */
#include "base/loop.h"

#include "base/cleanup.h"
#include "base/fd.h"

#include <errno.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/pidfd.h>
#include <sys/signalfd.h>
#include <sys/wait.h>

#define LOOP_BATCH 64

enum kind { KIND_FD, KIND_TIMER, KIND_SIGNAL, KIND_CHILD };

struct source {
	struct loop *loop;
	struct source *next, *prev; /* all live sources, or the chain of dropped ones through `next` */
	enum kind kind;
	bool dropped;
	int fd;       /* owned for signals and children only */
	uint32_t events;
	uint64_t at_ms; /* timers */
	size_t heap_at; /* timers: index in the heap, SIZE_MAX if not armed */
	union {
		loop_fd_fn *fd;
		loop_timer_fn *timer;
		loop_signal_fn *signal;
		loop_child_fn *child;
	} fn;
	void *arg;
};

struct loop {
	int epoll;
	bool stop;
	uint64_t now;
	struct source *live, *dropped;
	struct source **heap; /* armed timers, a binary heap by at_ms */
	size_t n_heap, cap_heap, n_timers;
};

enum rc loop_new(struct loop **ret, struct fault *ret_f)
{
	struct loop *loop = calloc(1, sizeof(*loop));

	if (!loop)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	loop->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (loop->epoll < 0) {
		free(loop);
		return fault_set(ret_f, RC_SYS, errno, "epoll_create1");
	}
	loop->now = now_ms();
	*ret = loop;
	return RC_OK;
}

static void heap_swap(struct loop *loop, size_t a, size_t b)
{
	struct source *t = loop->heap[a];

	loop->heap[a] = loop->heap[b];
	loop->heap[b] = t;
	loop->heap[a]->heap_at = a;
	loop->heap[b]->heap_at = b;
}

static void heap_fix(struct loop *loop, size_t i)
{
	while (i && loop->heap[i]->at_ms < loop->heap[(i - 1) / 2]->at_ms) {
		heap_swap(loop, i, (i - 1) / 2);
		i = (i - 1) / 2;
	}
	for (;;) {
		size_t least = i, l = 2 * i + 1, r = l + 1;

		if (l < loop->n_heap && loop->heap[l]->at_ms < loop->heap[least]->at_ms)
			least = l;
		if (r < loop->n_heap && loop->heap[r]->at_ms < loop->heap[least]->at_ms)
			least = r;
		if (least == i)
			return;
		heap_swap(loop, i, least);
		i = least;
	}
}

static void heap_remove(struct source *s)
{
	struct loop *loop = s->loop;
	size_t i = s->heap_at;

	if (i == SIZE_MAX)
		return;
	heap_swap(loop, i, --loop->n_heap);
	s->heap_at = SIZE_MAX;
	if (i < loop->n_heap)
		heap_fix(loop, i);
}

static struct source *source_new(struct loop *loop, enum kind kind, void *arg)
{
	struct source *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->loop = loop;
	s->kind = kind;
	s->fd = -1;
	s->heap_at = SIZE_MAX;
	s->arg = arg;
	s->next = loop->live;
	if (loop->live)
		loop->live->prev = s;
	loop->live = s;
	return s;
}

void loop_drop(struct source *s)
{
	struct loop *loop;

	if (!s || s->dropped)
		return;
	loop = s->loop;
	s->dropped = true;
	if (s->kind == KIND_TIMER) {
		heap_remove(s);
		loop->n_timers--;
	} else if (s->fd >= 0) {
		epoll_ctl(loop->epoll, EPOLL_CTL_DEL, s->fd, NULL);
		if (s->kind != KIND_FD)
			close(s->fd);
	}
	if (s->prev)
		s->prev->next = s->next;
	else
		loop->live = s->next;
	if (s->next)
		s->next->prev = s->prev;
	s->prev = NULL;
	s->next = loop->dropped;
	loop->dropped = s;
}

static void free_dropped(struct loop *loop)
{
	while (loop->dropped) {
		struct source *s = loop->dropped;

		loop->dropped = s->next;
		free(s);
	}
}

void loop_free(struct loop *loop)
{
	if (!loop)
		return;
	while (loop->live)
		loop_drop(loop->live);
	free_dropped(loop);
	close(loop->epoll);
	free(loop->heap);
	free(loop);
}

static enum rc source_watch(struct source *s, int fd, uint32_t events, struct source **ret, struct fault *ret_f)
{
	struct epoll_event ev = { .events = events, .data.ptr = s };

	if (epoll_ctl(s->loop->epoll, EPOLL_CTL_ADD, fd, &ev) < 0) {
		int sys = errno;

		loop_drop(s);
		return fault_set(ret_f, RC_SYS, sys, "epoll_ctl");
	}
	s->fd = fd;
	s->events = events;
	*ret = s;
	return RC_OK;
}

enum rc loop_fd(struct loop *loop, int fd, uint32_t events, loop_fd_fn *fn, void *arg, struct source **ret,
		struct fault *ret_f)
{
	struct source *s = source_new(loop, KIND_FD, arg);

	if (!s)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	s->fn.fd = fn;
	return source_watch(s, fd, events, ret, ret_f);
}

enum rc loop_fd_events(struct source *s, uint32_t events, struct fault *ret_f)
{
	struct epoll_event ev = { .events = events, .data.ptr = s };

	if (s->events == events)
		return RC_OK;
	if (epoll_ctl(s->loop->epoll, EPOLL_CTL_MOD, s->fd, &ev) < 0)
		return fault_set(ret_f, RC_SYS, errno, "epoll_ctl");
	s->events = events;
	return RC_OK;
}

enum rc loop_timer(struct loop *loop, uint64_t at_ms, loop_timer_fn *fn, void *arg, struct source **ret,
		   struct fault *ret_f)
{
	struct source *s;

	/* Room for every timer is made here, so that arming one later cannot fail. */
	if (loop->n_timers == loop->cap_heap) {
		size_t cap = loop->cap_heap ? loop->cap_heap * 2 : 16;
		struct source **heap = reallocarray(loop->heap, cap, sizeof(struct source *));

		if (!heap)
			return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
		loop->heap = heap;
		loop->cap_heap = cap;
	}
	s = source_new(loop, KIND_TIMER, arg);
	if (!s)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	loop->n_timers++;
	s->fn.timer = fn;
	loop_timer_set(s, at_ms);
	*ret = s;
	return RC_OK;
}

void loop_timer_set(struct source *s, uint64_t at_ms)
{
	struct loop *loop = s->loop;

	s->at_ms = at_ms;
	if (at_ms == UINT64_MAX) {
		heap_remove(s);
		return;
	}
	if (s->heap_at == SIZE_MAX) {
		s->heap_at = loop->n_heap++;
		loop->heap[s->heap_at] = s;
	}
	heap_fix(loop, s->heap_at);
}

enum rc loop_signal(struct loop *loop, int signal, loop_signal_fn *fn, void *arg, struct source **ret,
		    struct fault *ret_f)
{
	struct source *s;
	sigset_t set;
	enum rc rc;
	int fd;

	sigemptyset(&set);
	sigaddset(&set, signal);
	if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
		return fault_set(ret_f, RC_SYS, errno, "sigprocmask");
	fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (fd < 0)
		return fault_set(ret_f, RC_SYS, errno, "signalfd");
	s = source_new(loop, KIND_SIGNAL, arg);
	if (!s) {
		close(fd);
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	}
	s->fn.signal = fn;
	rc = source_watch(s, fd, EPOLLIN, ret, ret_f);
	if (rc)
		close(fd);
	return rc;
}

enum rc loop_child(struct loop *loop, pid_t pid, loop_child_fn *fn, void *arg, struct source **ret,
		   struct fault *ret_f)
{
	int fd = pidfd_open(pid, 0);
	struct source *s;
	enum rc rc;

	if (fd < 0)
		return fault_set(ret_f, RC_SYS, errno, "pidfd_open");
	s = source_new(loop, KIND_CHILD, arg);
	if (!s) {
		close(fd);
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	}
	s->fn.child = fn;
	rc = source_watch(s, fd, EPOLLIN, ret, ret_f);
	if (rc)
		close(fd);
	return rc;
}

uint64_t loop_now_ms(const struct loop *loop)
{
	return loop->now;
}

void loop_stop(struct loop *loop)
{
	loop->stop = true;
}

static void on_signal(struct source *s)
{
	struct signalfd_siginfo info;

	while (!s->dropped && read(s->fd, &info, sizeof(info)) == (ssize_t)sizeof(info))
		s->fn.signal(s->arg, (int)info.ssi_signo);
}

static void on_child(struct source *s)
{
	siginfo_t info = { 0 };
	int status;

	if (waitid(P_PIDFD, (id_t)s->fd, &info, WEXITED | WNOHANG) < 0 || !info.si_pid)
		return;
	if (info.si_code == CLD_EXITED)
		status = W_EXITCODE(info.si_status, 0);
	else
		status = W_EXITCODE(0, info.si_status) | (info.si_code == CLD_DUMPED ? WCOREFLAG : 0);
	epoll_ctl(s->loop->epoll, EPOLL_CTL_DEL, s->fd, NULL);
	s->fn.child(s->arg, status);
}

static void run_timers(struct loop *loop)
{
	/* Only those due at `now`: a timer that re-arms itself for the past waits for the next turn. */
	size_t budget = loop->n_heap;

	while (budget-- && loop->n_heap && loop->heap[0]->at_ms <= loop->now) {
		struct source *s = loop->heap[0];

		heap_remove(s);
		s->fn.timer(s->arg);
	}
}

enum rc loop_once(struct loop *loop, int timeout_ms, struct fault *ret_f)
{
	struct epoll_event events[LOOP_BATCH];
	int n;

	if (loop->n_heap) {
		uint64_t at = loop->heap[0]->at_ms, now = now_ms();
		int wait = at <= now ? 0 : (int)MIN_OF(at - now, (uint64_t)3600000);

		if (timeout_ms < 0 || wait < timeout_ms)
			timeout_ms = wait;
	}
	n = epoll_wait(loop->epoll, events, LOOP_BATCH, timeout_ms);
	if (n < 0 && errno != EINTR)
		return fault_set(ret_f, RC_SYS, errno, "epoll_wait");
	loop->now = now_ms();
	run_timers(loop);
	for (int i = 0; i < n; i++) {
		struct source *s = events[i].data.ptr;

		if (s->dropped)
			continue;
		switch (s->kind) {
		case KIND_FD: s->fn.fd(s->arg, events[i].events); break;
		case KIND_SIGNAL: on_signal(s); break;
		case KIND_CHILD: on_child(s); break;
		case KIND_TIMER: break;
		}
	}
	free_dropped(loop);
	return RC_OK;
}

enum rc loop_run(struct loop *loop, struct fault *ret_f)
{
	loop->stop = false;
	while (!loop->stop) {
		enum rc rc = loop_once(loop, -1, ret_f);

		if (rc)
			return rc;
	}
	return RC_OK;
}
