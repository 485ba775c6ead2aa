/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One epoll loop per daemon. Theory: a source is embedded in or pointed to by its owner; `now` is read once per
 * wake-up; a source dropped while a batch is handled gets no further callback from that batch and its memory is freed
 * after it. The loop never owns the descriptor of a source made by loop_fd(): close it after loop_drop().
 */
#ifndef NB_BASE_LOOP_H
#define NB_BASE_LOOP_H

#include "base/fault.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct loop;
struct source;

typedef void loop_fd_fn(void *arg, uint32_t epoll_events);
typedef void loop_timer_fn(void *arg);
typedef void loop_signal_fn(void *arg, int signal);
typedef void loop_child_fn(void *arg, int wait_status);

enum rc loop_new(struct loop **ret, struct fault *ret_f);
void loop_free(struct loop *loop); /* drops all sources; NULL is fine */
/* Until loop_stop(). */
enum rc loop_run(struct loop *loop, struct fault *ret_f);
/* One batch: waits at most timeout_ms (-1: for ever). For tests and for daemons with an outer loop of their own. */
enum rc loop_once(struct loop *loop, int timeout_ms, struct fault *ret_f);
void loop_stop(struct loop *loop);
uint64_t loop_now_ms(const struct loop *loop); /* CLOCK_MONOTONIC at the last wake-up */

/* events: EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLLET. EPOLLERR and EPOLLHUP always arrive. */
enum rc loop_fd(struct loop *loop, int fd, uint32_t events, loop_fd_fn *fn, void *arg, struct source **ret,
		struct fault *ret_f);
enum rc loop_fd_events(struct source *s, uint32_t events, struct fault *ret_f); /* no system call if unchanged */

/* Fires once at `at_ms` (CLOCK_MONOTONIC); the source stays and may be set again. UINT64_MAX disarms. */
enum rc loop_timer(struct loop *loop, uint64_t at_ms, loop_timer_fn *fn, void *arg, struct source **ret,
		   struct fault *ret_f);
void loop_timer_set(struct source *s, uint64_t at_ms);

/* Blocks the signal in this thread and delivers it here. */
enum rc loop_signal(struct loop *loop, int signal, loop_signal_fn *fn, void *arg, struct source **ret,
		    struct fault *ret_f);
/* Reaps a child of ours through a pidfd and reports its wait status once; drop the source afterwards. */
enum rc loop_child(struct loop *loop, pid_t pid, loop_child_fn *fn, void *arg, struct source **ret,
		   struct fault *ret_f);

/* NULL is fine. Sets nothing in the owner; prefer `source_drop(&s)`. */
void loop_drop(struct source *s);
static inline void source_drop(struct source **s)
{
	loop_drop(*s);
	*s = 0;
}

#endif
