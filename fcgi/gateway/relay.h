/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes between two stream sockets, both ways, unread. Theory: bytes go from a socket into a pipe and from the pipe into
 * the other socket by splice(2), so they are never copied here. A pipe is taken only when a source has something, and goes
 * back as soon as it is empty, so an idle relay holds two descriptors and this struct. While a pipe holds bytes the other
 * side would not take, its source is not read: the kernel's buffers fill and the sender stops (back-pressure). The end of one direction
 * is passed on by shutdown(2); the other goes on. A side that has gone altogether ends the relay, once what
 * it sent before has been delivered or RELAY_LINGER_MS have passed.
 */
#ifndef NB_GATEWAY_RELAY_H
#define NB_GATEWAY_RELAY_H

#include "base/loop.h"
#include "fcgi/gateway/limits.h"

#include <stddef.h>

/* What all relays of a process share. */
struct relay_pool {
	struct loop *loop;
	int pipes[RELAY_PIPES_KEPT][2];
	size_t n_pipes;
	uint64_t bytes; /* delivered, of all relays */
};
void relay_pool_free(struct relay_pool *pool);

struct relay_end {
	int fd;
	struct source *source; /* NULL once the peer has gone altogether */
};

struct relay_way {
	int pipe[2];
	size_t pending; /* bytes in the pipe */
	bool eof;       /* the source will give no more */
	bool done;      /* and its end was passed on, or nobody is left to take it */
};

typedef void relay_done_fn(void *arg);

struct relay {
	struct relay_pool *pool;
	struct relay_end end[2];
	struct relay_way way[2]; /* way[i]: from end[i] to end[1 - i] */
	struct source *linger;
	relay_done_fn *done;
	void *arg;
};

/*
 * Starts on memory of the caller. Both descriptors are nonblocking and stay the caller's; they must outlive the relay. done() is
 * called once, from the loop, never from here; relay_stop() is still needed then.
 */
enum rc relay_start(struct relay *r, struct relay_pool *pool, int fd_a, int fd_b, relay_done_fn *done, void *arg,
		    struct fault *ret_f);
/* Fine on a zeroed or a stopped relay. */
void relay_stop(struct relay *r);

#endif
