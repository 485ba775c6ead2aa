/* SPDX-License-Identifier: Apache-2.0 */
#include "base/harden.h"

#include "base/cleanup.h"

#include <cap-ng.h>
#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <seccomp.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#define CALL(name, why) { SCMP_SYS(name), why, 0, { { 0, 0, 0 } } }

const struct harden_call harden_common[] = {
	CALL(read, "sockets, files, signalfd"),
	CALL(write, "sockets, files, log"),
	CALL(readv, "stdio, scatter reads"),
	CALL(writev, "stdio, gather writes"),
	CALL(pread64, "files at an offset"),
	CALL(pwrite64, "files at an offset"),
	CALL(lseek, "files"),
	CALL(close, "descriptors"),
	CALL(fstat, "checking what was opened"),
	CALL(newfstatat, "glibc's fstat"),
	CALL(fcntl, "O_NONBLOCK, locks"),
	CALL(epoll_wait, "event loop"),
	CALL(epoll_pwait, "event loop"),
	CALL(epoll_ctl, "event loop"),
	CALL(epoll_create1, "event loop"),
	CALL(poll, "deadlines"),
	CALL(ppoll, "deadlines"),
	CALL(recvmsg, "packets with descriptors"),
	CALL(sendmsg, "packets with descriptors"),
	CALL(recvfrom, "sockets"),
	CALL(sendto, "sockets, MSG_NOSIGNAL"),
	CALL(getsockopt, "SO_ERROR, SO_PEERCRED"),
	CALL(accept4, "listening sockets"),
	CALL(shutdown, "half-close"),
	CALL(brk, "malloc"),
	CALL(munmap, "malloc"),
	CALL(mremap, "malloc"),
	CALL(madvise, "malloc"),
	{ SCMP_SYS(mmap), "malloc, files; never executable", 1, { { 2, 0x4, 0 } } },
	{ SCMP_SYS(mprotect), "malloc; never executable", 1, { { 2, 0x4, 0 } } },
	CALL(clock_gettime, "time where the vDSO is missing"),
	CALL(gettimeofday, "time where the vDSO is missing"),
	CALL(clock_nanosleep, "bounded waits"),
	CALL(nanosleep, "bounded waits"),
	CALL(getrandom, "tokens"),
	CALL(futex, "libraries' locks"),
	CALL(rt_sigaction, "signals"),
	CALL(rt_sigprocmask, "signals"),
	CALL(rt_sigreturn, "signals"),
	CALL(signalfd4, "signals"),
	CALL(restart_syscall, "interrupted waits"),
	CALL(getpid, "logs"),
	CALL(gettid, "abort"),
	CALL(tgkill, "abort"),
	CALL(getuid, "libraries"),
	CALL(geteuid, "libraries"),
	CALL(exit, "end of a thread"),
	CALL(exit_group, "end"),
	CALL(sched_yield, "libraries' locks"),
	CALL(uname, "libraries"),
	CALL(rseq, "threads"),
	CALL(set_robust_list, "threads"),
#ifdef HARDEN_SANITIZER
	CALL(sigaltstack, "sanitizer"),
	CALL(readlink, "sanitizer symbolizer"),
	CALL(sched_getaffinity, "sanitizer"),
	CALL(prlimit64, "sanitizer"),
	CALL(getrlimit, "sanitizer"),
	CALL(gettid, "sanitizer"),
	CALL(openat, "sanitizer reads /proc/self/maps"),
#endif
};
const size_t harden_n_common = ARRAY_SIZE(harden_common);

static enum rc caps_keep(const int *keep, size_t n, struct fault *ret_f)
{
	capng_clear(CAPNG_SELECT_ALL);
	for (size_t i = 0; i < n; i++)
		if (capng_update(CAPNG_ADD, CAPNG_EFFECTIVE | CAPNG_PERMITTED | CAPNG_BOUNDING_SET,
				 (unsigned int)keep[i]) < 0)
			return fault_set(ret_f, RC_SYS, 0, "libcap-ng refused capability %d", keep[i]);
	return RC_OK;
}

static enum rc prove_dropped(uid_t uid, struct fault *ret_f)
{
	if (setuid(0) == 0 || seteuid(0) == 0)
		return fault_set(ret_f, RC_DENIED, 0, "root could be regained after leaving it");
	if (getuid() != uid || geteuid() != uid)
		return fault_set(ret_f, RC_DENIED, 0, "uid did not change");
	return RC_OK;
}

enum rc harden_ids(const char *user, const int *keep_caps, size_t n_keep, struct fault *ret_f)
{
	enum rc rc = caps_keep(keep_caps, n_keep, ret_f);
	struct passwd *pw = NULL;
	int err;

	if (rc)
		return rc;
	if (user && getuid() == 0) {
		pw = getpwnam(user);
		if (!pw)
			return fault_set(ret_f, RC_ABSENT, 0, "no user '%s'", user);
		if (initgroups(user, pw->pw_gid) < 0)
			return fault_set(ret_f, RC_SYS, errno, "initgroups for '%s'", user);
		err = capng_change_id((int)pw->pw_uid, (int)pw->pw_gid, CAPNG_CLEAR_BOUNDING);
	} else {
		err = capng_apply(getuid() == 0 ? CAPNG_SELECT_BOTH : CAPNG_SELECT_CAPS);
	}
	if (err)
		return fault_set(ret_f, RC_SYS, 0, "libcap-ng error %d while dropping privileges", err);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return fault_set(ret_f, RC_SYS, errno, "no_new_privs");
	return pw && pw->pw_uid ? prove_dropped(pw->pw_uid, ret_f) : RC_OK;
}

static enum rc add_calls(scmp_filter_ctx ctx, const struct harden_call *calls, size_t n, struct fault *ret_f)
{
	for (size_t i = 0; i < n; i++) {
		struct scmp_arg_cmp cmp[3];
		int err;

		for (unsigned int k = 0; k < calls[i].n_args; k++)
			cmp[k] = (struct scmp_arg_cmp){ .arg = calls[i].args[k].index, .op = SCMP_CMP_MASKED_EQ,
							.datum_a = calls[i].args[k].mask,
							.datum_b = calls[i].args[k].value };
		err = seccomp_rule_add_array(ctx, SCMP_ACT_ALLOW, calls[i].nr, calls[i].n_args, cmp);
		if (err && err != -EEXIST)
			return fault_set(ret_f, RC_SYS, -err, "seccomp rule for call %d", calls[i].nr);
	}
	return RC_OK;
}

enum rc harden_final(const struct harden_call *calls, size_t n_calls, struct fault *ret_f)
{
	const char *mode = getenv("NESTBOX_SECCOMP");
	struct rlimit no_core = { 0, 0 };
	scmp_filter_ctx ctx;
	enum rc rc;
	int err;

	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0 || setrlimit(RLIMIT_CORE, &no_core) < 0)
		return fault_set(ret_f, RC_SYS, errno, "switch off core dumps");
	ctx = seccomp_init(mode && !strcmp(mode, "log") ? SCMP_ACT_LOG : SCMP_ACT_KILL_PROCESS);
	if (!ctx)
		return fault_set(ret_f, RC_NOMEM, 0, "seccomp_init");
	/* Threads that exist already are confined with the caller. */
	seccomp_attr_set(ctx, SCMP_FLTATR_CTL_TSYNC, 1);
	rc = add_calls(ctx, harden_common, harden_n_common, ret_f);
	if (!rc)
		rc = add_calls(ctx, calls, n_calls, ret_f);
	if (!rc) {
		err = seccomp_load(ctx);
		if (err)
			rc = fault_set(ret_f, RC_SYS, -err, "seccomp_load");
	}
	seccomp_release(ctx);
	return rc;
}
