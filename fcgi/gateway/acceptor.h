/* SPDX-License-Identifier: Apache-2.0 */
/* A listening socket in a loop: a bounded batch a wake-up, a pause when the process is out of descriptors. */
#ifndef NB_GATEWAY_ACCEPTOR_H
#define NB_GATEWAY_ACCEPTOR_H

#include "base/loop.h"

struct acceptor {
	struct loop *loop;
	int fd; /* owned */
	struct source *source, *pause;
	void (*fn)(void *arg, int fd); /* takes the nonblocking descriptor */
	void *arg;
};

/* Takes fd, also when it fails. fn must not stop the acceptor. */
enum rc acceptor_start(struct acceptor *a, struct loop *loop, int fd, void (*fn)(void *arg, int fd), void *arg,
		       struct fault *ret_f);
void acceptor_stop(struct acceptor *a); /* fine on a zeroed one */

#endif
