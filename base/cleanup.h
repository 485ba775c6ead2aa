/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scope-bound ownership. A variable marked _cleanup_x_ is released when its scope ends; take_fd() and
 * take_ptr() hand the value on and leave "nothing owned" behind. Every destructor accepts "nothing".
 */
#ifndef NB_BASE_CLEANUP_H
#define NB_BASE_CLEANUP_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define _cleanup_(f) __attribute__((cleanup(f)))

static inline void cleanup_free(void *p)
{
	free(*(void **)p);
}

/* Keeps errno, so that an error path may still read it after an early return closed something. */
static inline void cleanup_fd(int *fd)
{
	if (*fd >= 0) {
		int saved = errno;

		close(*fd);
		errno = saved;
	}
}

static inline void cleanup_file(FILE **f)
{
	if (*f)
		fclose(*f);
}

#define _cleanup_free_ _cleanup_(cleanup_free)
#define _cleanup_fd_ _cleanup_(cleanup_fd)
#define _cleanup_file_ _cleanup_(cleanup_file)

static inline int take_fd(int *fd)
{
	int v = *fd;

	*fd = -1;
	return v;
}

#define take_ptr(p)                        \
	({                                 \
		__typeof__(p) take_v_ = (p); \
		(p) = NULL;                \
		take_v_;                   \
	})

/* Closes *fd if it is open and marks it closed. */
static inline void close_fd(int *fd)
{
	cleanup_fd(fd);
	*fd = -1;
}

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define MIN_OF(a, b) ((a) < (b) ? (a) : (b))
#define MAX_OF(a, b) ((a) > (b) ? (a) : (b))

#endif
