/* SPDX-License-Identifier: Apache-2.0 */
/* One FastCGI worker process. */
#ifndef NB_FCGI_WORKER_H
#define NB_FCGI_WORKER_H

#include "base/config.h"
#include "base/fault.h"
#include "fcgi/pool.h"

/* In the child: opens what it needs, sets the filter, serves listen_fd until SIGTERM. Returns the exit status. */
int worker_main(const struct config *config, int listen_fd, struct pool *pool, size_t slot);

#endif
