/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What QEMU may ask of the kernel, found by tracing it through every operation of the engine. The filter is in force
 * before QEMU's first instruction, so it contains what the dynamic loader needs too. Not in here, among others: socket, connect, bind,
 * execve, fork, ptrace, process_vm_*, kill, mount, unshare, setns, bpf, keyctl, perf_event_open, userfaultfd, open_by_handle_at.
 */
#include "vmm/engines/qemu/vm.h"

#include "base/cleanup.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/if_tun.h>
#include <linux/kvm.h>
#include <sched.h>
#include <seccomp.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>

#define ALL UINT64_MAX
#define CALL(name, why) { SCMP_SYS(name), why, 0, { { 0, 0, 0 } } }
#define CALL_IF(name, i, mask, value, why) { SCMP_SYS(name), why, 1, { { i, mask, value } } }
#define IOCTL(request, why) CALL_IF(ioctl, 1, 0xffffffff, (request), why)
#define PRCTL(option, why) CALL_IF(prctl, 0, ALL, (option), why)
#define XFS_IOC_DIOINFO 0x800c581e

static const struct jail_call calls[] = {
	/* starting */
	CALL_IF(execveat, 4, ALL, AT_EMPTY_PATH, "QEMU itself; only a descriptor's program, nothing by name"),
	CALL(arch_prctl, "thread-local storage"),
	CALL(set_tid_address, "threads"),
	CALL(set_robust_list, "threads"),
	CALL(rseq, "threads"),
	CALL_IF(clone, 0, CLONE_THREAD | CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET, CLONE_THREAD,
		"threads only"),
	{ SCMP_SYS(prlimit64), "reading own limits", 2, { { 0, ALL, 0 }, { 2, ALL, 0 } } },
	CALL(access, "libraries, firmware"),
	CALL(openat, "libraries, firmware, memory; the root has nothing else"),
	CALL(readlink, "/proc/self/exe"),
	CALL(newfstatat, "fstat"),
	CALL(fstat, "files"),
	CALL(statx, "files"),
	CALL(statfs, "page size of memory's file"),
	CALL(fstatfs, "kind of a disk's file system"),
	CALL(getdents64, "/proc/self/fd"),
	CALL(sysinfo, "size of the translation cache"),
	CALL(uname, "libraries"),
	CALL(sched_getaffinity, "number of processors"),
	CALL(get_mempolicy, "memory backend"),
	CALL(set_mempolicy, "libnuma's self-test"),
	CALL(memfd_create, "probing for it; memory of its own only"),
	CALL(seccomp, "QEMU's own, additional filter"),
	CALL(getuid, "libraries"),
	CALL(geteuid, "libraries"),
	CALL(getgid, "libraries"),
	CALL(getegid, "libraries"),
	PRCTL(PR_SET_NO_NEW_PRIVS, "QEMU's own filter"),
	PRCTL(PR_SET_TIMERSLACK, "timers"),
	PRCTL(PR_MCE_KILL, "memory failures"),
	PRCTL(PR_GET_DUMPABLE, "libraries"),
	PRCTL(PR_SET_NAME, "names of threads"),
	/* memory: executable too, because the loader and TCG make code */
	CALL(brk, "malloc"),
	CALL(mmap, "malloc, libraries, guest memory, translated code"),
	CALL(munmap, "malloc"),
	CALL(mremap, "malloc"),
	CALL(mprotect, "libraries, translated code"),
	CALL(madvise, "huge pages, freed stacks"),
	/* waiting and time */
	CALL(futex, "locks"),
	CALL(poll, "event loop"),
	CALL(ppoll, "event loop"),
	CALL(epoll_create1, "event loop with many descriptors"),
	CALL(epoll_ctl, "event loop with many descriptors"),
	CALL(epoll_wait, "event loop with many descriptors"),
	CALL(epoll_pwait, "event loop with many descriptors"),
	CALL(eventfd2, "waking threads"),
	CALL(signalfd4, "signals"),
	CALL(pipe2, "waking threads"),
	CALL(clock_gettime, "time where the vDSO is missing"),
	CALL(clock_getres, "time"),
	CALL(gettimeofday, "time where the vDSO is missing"),
	CALL(clock_nanosleep, "timers"),
	CALL(nanosleep, "timers"),
	CALL(sched_yield, "locks"),
	CALL(restart_syscall, "interrupted waits"),
	CALL(getrandom, "virtio-rng, libraries"),
	CALL(rt_sigaction, "signals"),
	CALL(rt_sigprocmask, "signals"),
	CALL(rt_sigreturn, "signals"),
	CALL(rt_sigtimedwait, "waking processors"),
	CALL(sigaltstack, "coroutines"),
	CALL(gettid, "threads"),
	CALL(getpid, "waking processors, abort"),
	CALL(getppid, "libraries"),
	CALL(tgkill, "waking processors, abort; it is alone in its PID namespace"),
	CALL(exit, "end of a thread"),
	CALL(exit_group, "end"),
	/* granted descriptors */
	CALL(read, "disks, taps, control socket"),
	CALL(readv, "taps"),
	CALL(write, "disks, log, wake-ups"),
	CALL(writev, "taps"),
	CALL(pread64, "disks"),
	CALL(preadv, "disks"),
	CALL(pwrite64, "disks"),
	CALL(pwritev, "disks"),
	CALL(lseek, "holes of disks and memory"),
	CALL(fallocate, "discards"),
	CALL(ftruncate, "a disk's new size"),
	CALL(fadvise64, "disks"),
	CALL(fdatasync, "flushes"),
	CALL(fsync, "flushes"),
	CALL(fcntl, "non-blocking, duplicates"),
	CALL(dup, "descriptors"),
	CALL(dup2, "descriptors"),
	CALL(dup3, "descriptors"),
	CALL(close, "descriptors"),
	CALL(listen, "the control socket it was given"),
	CALL(accept4, "control"),
	CALL(recvmsg, "control, descriptors"),
	CALL(sendmsg, "control"),
	CALL(recvfrom, "control"),
	CALL(sendto, "control"),
	CALL(getsockname, "control"),
	CALL(getpeername, "control"),
	CALL(getsockopt, "control"),
	CALL(setsockopt, "control"),
	CALL(shutdown, "control"),
	IOCTL(TCGETS, "is it a terminal"),
	IOCTL(FIONBIO, "non-blocking"),
	IOCTL(TUNGETFEATURES, "taps"),
	IOCTL(TUNGETIFF, "taps"),
	IOCTL(TUNGETVNETHDRSZ, "taps"),
	IOCTL(TUNSETVNETHDRSZ, "taps"),
	IOCTL(TUNSETVNETLE, "taps"),
	IOCTL(TUNSETVNETBE, "taps"),
	IOCTL(TUNSETOFFLOAD, "taps"),
	IOCTL(TUNSETSNDBUF, "taps"),
	IOCTL(BLKSSZGET, "disks"),
	IOCTL(BLKPBSZGET, "disks"),
	IOCTL(BLKGETSIZE64, "disks"),
	IOCTL(XFS_IOC_DIOINFO, "disks on XFS"),
	/* /dev/kvm exists in the root only if the engine uses it; there is nothing else of type 0xae */
	CALL_IF(ioctl, 1, 0xff00, KVMIO << 8, "KVM"),
};

static const struct jail_refusal refused[] = {
	{ SCMP_SYS(clone3), ENOSYS },         /* its flags are in memory, where no filter sees them: glibc falls back to clone */
	{ SCMP_SYS(io_uring_setup), ENOSYS }, /* QEMU falls back to its own threads */
	{ SCMP_SYS(unlink), EPERM },          /* QEMU would remove the control socket at its end */
	{ SCMP_SYS(socket), EPERM },          /* libraries that look for a system log */
	{ SCMP_SYS(sched_setaffinity), EPERM },
	{ SCMP_SYS(setpriority), EPERM },
};

const struct jail_list qemu_calls = { calls, ARRAY_SIZE(calls), refused, ARRAY_SIZE(refused) };
