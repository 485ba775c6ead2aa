/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Linked into a nestbox-vmm for tests (local.mk wraps the calls): the n-th call of the main thread fails, n from the environment's
 * NESTBOX_NTH for a start, or from the value of SIGUSR2 for what comes later. What failed is said on standard error. The making of the
 * system call filter counts as one call: of libseccomp's hundreds of allocations some fail without its saying so, and the filter then
 * lacks a rule, which ends the process at the first call that the rule was for.
 */
#include "vmm/engines/kvm/filter.h"

#include <errno.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

static volatile long countdown;
static pid_t self;

static void on_arm(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	(void)context;
	countdown = info->si_value.sival_int;
}

__attribute__((constructor)) static void begin(void)
{
	struct sigaction sa = { .sa_sigaction = on_arm, .sa_flags = SA_SIGINFO | SA_RESTART };
	const char *n = getenv("NESTBOX_NTH");

	sigaction(SIGUSR2, &sa, NULL);
	self = getpid();
	countdown = n ? atol(n) : 0;
}

static bool fails(const char *what)
{
	char text[64];
	int n, err = errno;

	if (!countdown || gettid() != self || --countdown)
		return false;
	n = snprintf(text, sizeof(text), "nth: %s\n", what);
	if (write(2, text, (size_t)n) < 0)
		_exit(9);
	errno = err;
	return true;
}

#include "tests/lib/wrap.h"

WRAP(void *, malloc, (size_t n), (n), NULL, ENOMEM)
WRAP(void *, calloc, (size_t n, size_t m), (n, m), NULL, ENOMEM)
WRAP(void *, realloc, (void *p, size_t n), (p, n), NULL, ENOMEM)
WRAP(void *, reallocarray, (void *p, size_t n, size_t m), (p, n, m), NULL, ENOMEM)
WRAP(int, dup, (int fd), (fd), -1, EMFILE)

enum rc __real_filter_main(struct fault *ret_f);
enum rc __wrap_filter_main(struct fault *ret_f);
enum rc __wrap_filter_main(struct fault *ret_f)
{
	long left;
	enum rc rc;

	if (fails("filter_main"))
		return fault_set(ret_f, RC_SYS, ENOMEM, "seccomp");
	left = countdown;
	countdown = 0;
	rc = __real_filter_main(ret_f);
	countdown = left;
	return rc;
}

int __wrap_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...)
{
	char what[32];
	va_list ap;
	void *arg;

	va_start(ap, request);
	arg = va_arg(ap, void *);
	va_end(ap);
	snprintf(what, sizeof(what), "ioctl 0x%lx", request & 0xffff);
	if (request != KVM_RUN && fails(what)) {
		errno = EIO;
		return -1;
	}
	return (int)syscall(SYS_ioctl, fd, request, arg);
}
