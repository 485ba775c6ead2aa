/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls that fail when a program's own fails() says so, by the linker's --wrap (vmm/engines/kvm/local.mk has the list for each program).
 * Included once, after static bool fails(const char *what).
 */
#ifndef NB_TESTS_WRAP_H
#define NB_TESTS_WRAP_H

#include <errno.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/types.h>

#define WRAP(ret, name, params, args, bad, error)        \
	ret __real_##name params;                        \
	ret __wrap_##name params;                        \
	ret __wrap_##name params                         \
	{                                                \
		if (fails(#name)) {                      \
			errno = error;                   \
			return bad;                      \
		}                                        \
		return __real_##name args;               \
	}

WRAP(void *, mmap, (void *a, size_t n, int p, int f, int fd, off_t o), (a, n, p, f, fd, o), MAP_FAILED, ENOMEM)
WRAP(int, eventfd, (unsigned int v, int f), (v, f), -1, EMFILE)
WRAP(int, epoll_create1, (int f), (f), -1, EMFILE)
WRAP(int, epoll_ctl, (int e, int op, int fd, struct epoll_event *ev), (e, op, fd, ev), -1, ENOSPC)
WRAP(int, memfd_create, (const char *n, unsigned int f), (n, f), -1, EMFILE)
WRAP(int, ftruncate, (int fd, off_t n), (fd, n), -1, ENOSPC)
WRAP(off_t, lseek, (int fd, off_t o, int w), (fd, o, w), -1, EIO)
WRAP(ssize_t, pread, (int fd, void *d, size_t n, off_t o), (fd, d, n, o), -1, EIO)
WRAP(ssize_t, pwrite, (int fd, const void *d, size_t n, off_t o), (fd, d, n, o), -1, ENOSPC)
WRAP(int, fsync, (int fd), (fd), -1, EIO)

int __real_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*fn)(void *), void *arg);
int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*fn)(void *), void *arg);
int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*fn)(void *), void *arg)
{
	return fails("pthread_create") ? EAGAIN : __real_pthread_create(t, a, fn, arg);
}

#endif
