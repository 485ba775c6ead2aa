/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory: jail.h. What runs here between clone3(2) and execveat(2) runs in a copy of the broker, which is
 * single-threaded; it calls nothing that allocates or locks. The stages are in the order in which each needs what the next one takes away.
 */
#include "vmm/jail/jail.h"

#include "base/cleanup.h"
#include "vmm/jail/root.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <grp.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

/* Where the reason of a failure goes: the broker's number for it until descriptors are placed. */
static int jail_err_fd;

_Noreturn static void jail_fail(const char *stage)
{
	char text[200];
	int sys = errno, n;

	n = snprintf(text, sizeof(text), "jail: %s: %s\n", stage, strerrordesc_np(sys));
	if (n > 0 && write(jail_err_fd, text, MIN_OF((size_t)n, sizeof(text) - 1)) < 0)
		_exit(JAIL_EXIT - 1);
	_exit(JAIL_EXIT);
}

/* A granted descriptor may sit on a number that another one is to get: all are moved out of the way first. */
static int fds_place(const struct jail_spec *spec, int *ret_exec_fd, int *ret_ns_fd)
{
	int last = JAIL_FD_FIRST + (int)spec->n_fds, from[JAIL_FDS_MAX], std[3];

	std[0] = std[1] = fcntl(spec->null_fd, F_DUPFD_CLOEXEC, last + 2);
	std[2] = fcntl(spec->err_fd, F_DUPFD_CLOEXEC, last + 2);
	for (size_t i = 0; i < spec->n_fds; i++)
		from[i] = fcntl(spec->fds[i], F_DUPFD_CLOEXEC, last + 2);
	*ret_exec_fd = fcntl(spec->exec_fd, F_DUPFD_CLOEXEC, last + 2);
	*ret_ns_fd = fcntl(spec->root->ns_fd, F_DUPFD_CLOEXEC, last + 2);
	for (int i = 0; i < 3; i++)
		if (dup2(std[i], i) < 0)
			return -1;
	for (size_t i = 0; i < spec->n_fds; i++)
		if (from[i] < 0 || dup2(from[i], JAIL_FD_FIRST + (int)i) < 0)
			return -1;
	if (dup3(*ret_exec_fd, last, O_CLOEXEC) < 0 || dup3(*ret_ns_fd, last + 1, O_CLOEXEC) < 0)
		return -1;
	*ret_exec_fd = last;
	*ret_ns_fd = last + 1;
	return close_range((unsigned int)last + 2, ~0U, 0);
}

/* Should: leave nothing of the broker but the granted descriptors. Mustn't: need anything of the jail yet. */
static void jail_early(const struct jail_spec *spec, int *ret_exec_fd, int *ret_ns_fd)
{
	struct sigaction dfl = { .sa_handler = SIG_DFL }, ign = { .sa_handler = SIG_IGN };
	sigset_t none;

	/* First of all, because it is a descriptor that is not granted. */
	if (spec->cgroup_procs_fd >= 0 && write(spec->cgroup_procs_fd, "0", 1) != 1)
		jail_fail("join the cgroup");
	if (fds_place(spec, ret_exec_fd, ret_ns_fd) < 0)
		jail_fail("place descriptors");
	jail_err_fd = STDERR_FILENO;
	for (int s = 1; s < NSIG; s++)
		if (s != SIGKILL && s != SIGSTOP)
			sigaction(s, &dfl, NULL);
	/* Writing beyond RLIMIT_FSIZE is an error of that write and not the machine's end. */
	sigaction(SIGXFSZ, &ign, NULL);
	sigaction(SIGPIPE, &ign, NULL);
	sigemptyset(&none);
	if (sigprocmask(SIG_SETMASK, &none, NULL) < 0 || setsid() < 0)
		jail_fail("signals and session");
	umask(0077);
}

static void limit_set(__rlimit_resource_t what, uint64_t value)
{
	struct rlimit l = { value, value };

	if (setrlimit(what, &l) < 0)
		jail_fail("resource limits");
}

/* Should: show the jail's root only, read-only, without a way back. Mustn't: look up a path of the host. */
static void jail_root_enter(const struct jail_spec *spec, int ns_fd)
{
	/* clone3 already gave an empty PID namespace, which only it can. The mount namespace is a private copy of the prepared one: its
	 * old root is gone, so there is nothing to go back to. A network namespace takes the kernel long, on a busy host
	 * up to tens of milliseconds: made here and not by clone3, it is not the broker that waits for it. */
	if (setns(ns_fd, CLONE_NEWNS) < 0 ||
	    unshare(CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET) < 0)
		jail_fail("namespaces");
	if (spec->root->proc && mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY,
				      "subset=pid,hidepid=invisible") < 0)
		jail_fail("mount /proc");
	if (chroot("/") < 0 || chdir("/") < 0)
		jail_fail("enter the root");
	if (sethostname("vm", 2) < 0 || setdomainname("", 0) < 0)
		jail_fail("host name");
	limit_set(RLIMIT_CORE, 0);
	limit_set(RLIMIT_NOFILE, spec->max_files);
	limit_set(RLIMIT_FSIZE, spec->max_file_bytes);
	limit_set(RLIMIT_MEMLOCK, spec->max_locked_bytes);
	limit_set(RLIMIT_NPROC, spec->max_processes);
	limit_set(RLIMIT_MSGQUEUE, 0);
	limit_set(RLIMIT_RTPRIO, 0);
	limit_set(RLIMIT_NICE, 0);
}

static void prove_dropped(uid_t uid)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct caps[2];
	uid_t r, e, s;

	if (getresuid(&r, &e, &s) < 0 || r != uid || e != uid || s != uid || getgroups(0, NULL) != 0)
		jail_fail("ids did not change");
	if (syscall(SYS_capget, &head, caps) < 0 || caps[0].effective || caps[0].permitted || caps[0].inheritable ||
	    caps[1].effective || caps[1].permitted || caps[1].inheritable)
		jail_fail("capabilities are left");
	if (setresuid(0, 0, 0) == 0 || setresgid(0, 0, 0) == 0)
		jail_fail("root could be regained");
}

/* Should: be nobody and stay it. Mustn't: leave a capability in any set, or a group. */
static void jail_ids(const struct jail_spec *spec)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct none[2] = { { 0 }, { 0 } };

	for (unsigned long cap = 0; prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
		if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0)
			jail_fail("empty the bounding set");
	if (setgroups(0, NULL) < 0 || setresgid(spec->uid, spec->uid, spec->uid) < 0 ||
	    setresuid(spec->uid, spec->uid, spec->uid) < 0)
		jail_fail("change ids");
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0 || syscall(SYS_capset, &head, none) < 0)
		jail_fail("drop capabilities");
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		jail_fail("no_new_privs");
	prove_dropped(spec->uid);
}

_Noreturn static void jail_child(const struct jail_spec *spec)
{
	int exec_fd = -1, ns_fd = -1;

	jail_err_fd = spec->err_fd;
	jail_early(spec, &exec_fd, &ns_fd);
	jail_root_enter(spec, ns_fd);
	jail_ids(spec);
	if (spec->filter && jail_filter_load(spec->filter) < 0)
		jail_fail("load the system call filter");
	syscall(SYS_execveat, exec_fd, "", spec->argv, spec->envp, AT_EMPTY_PATH);
	jail_fail("execute");
}

enum rc jail_spawn(const struct jail_spec *spec, pid_t *ret_pid, int *ret_pidfd, struct fault *ret_f)
{
	int pidfd = -1;
	struct clone_args args = {
		.flags = CLONE_PIDFD | CLONE_NEWPID,
		.pidfd = (uint64_t)(uintptr_t)&pidfd,
		.exit_signal = SIGCHLD,
	};
	long pid;

	if (spec->n_fds > JAIL_FDS_MAX)
		return fault_set(ret_f, RC_LIMIT, 0, "more than %d descriptors for a jail", JAIL_FDS_MAX);
	if (!spec->uid)
		return fault_set(ret_f, RC_INVALID, 0, "a jailed process may not be root");
	pid = syscall(SYS_clone3, &args, sizeof(args));
	if (!pid)
		jail_child(spec);
	if (pid < 0)
		return fault_set(ret_f, RC_SYS, errno, "start a jailed process");
	*ret_pid = (pid_t)pid;
	*ret_pidfd = pidfd;
	return RC_OK;
}
