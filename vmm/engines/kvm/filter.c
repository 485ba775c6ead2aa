/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory: after this filter the process can use what it holds and gain nothing: no open, no socket, no exec, no new process, no
 * executable memory, and of ioctl only the KVM and tap requests listed. KVM_CREATE_VM and KVM_CREATE_VCPU are not among them.
 */
#include "vmm/engines/kvm/filter.h"

#include "base/cleanup.h"
#include "base/harden.h"

#include <errno.h>
#include <linux/if_tun.h>
#include <linux/kvm.h>
#include <seccomp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define CALL(name, why) { SCMP_SYS(name), why, 0, { { 0, 0, 0 } } }
#define IOCTL(request, why) { SCMP_SYS(ioctl), why, 1, { { 1, 0xffffffff, (uint32_t)(request) } } }

static const struct harden_call main_calls[] = {
	CALL(preadv, "disks"),
	CALL(pwritev, "disks"),
	CALL(preadv2, "disks"),
	CALL(pwritev2, "disks"),
	CALL(fdatasync, "disk flush"),
	CALL(fsync, "snapshot"),
	CALL(fallocate, "discard, write-zeroes"),
	CALL(ftruncate, "snapshot, delta"),
	CALL(memfd_create, "delta and state of a fork"),
	CALL(eventfd2, "waking threads"),
	CALL(dup, "base of a fork"),
	CALL(seccomp, "vCPU threads narrow themselves further"),
	CALL(timerfd_create, "timers"),
	CALL(timerfd_settime, "timers"),
	CALL(set_tid_address, "threads"),
	CALL(sched_getaffinity, "threads"),
	CALL(getdents64, "never with a directory; libc's abort path"),
	IOCTL(KVM_RUN, "vCPU"),
	IOCTL(KVM_KVMCLOCK_CTRL, "resume"),
	IOCTL(KVM_GET_DIRTY_LOG, "fork, snapshot"),
	/* Lets the guest see no more than this process has for itself. */
	IOCTL(KVM_SET_USER_MEMORY_REGION, "the log of a machine that booted begins with its first fork or snapshot"),
	IOCTL(KVM_CHECK_EXTENSION, "size of XSAVE"),
	IOCTL(KVM_GET_MSR_INDEX_LIST, "save"),
	IOCTL(KVM_GET_MP_STATE, "save"),
	IOCTL(KVM_GET_REGS, "save"),
	IOCTL(KVM_GET_SREGS, "save"),
	IOCTL(KVM_GET_XSAVE, "save"),
	IOCTL(KVM_GET_XSAVE2, "save"),
	IOCTL(KVM_GET_XCRS, "save"),
	IOCTL(KVM_GET_DEBUGREGS, "save"),
	IOCTL(KVM_GET_LAPIC, "save"),
	IOCTL(KVM_GET_MSRS, "save"),
	IOCTL(KVM_GET_VCPU_EVENTS, "save"),
	IOCTL(KVM_GET_TSC_KHZ, "save"),
	IOCTL(KVM_GET_IRQCHIP, "save"),
	IOCTL(KVM_GET_CLOCK, "save"),
	IOCTL(TUNSETOFFLOAD, "what the driver negotiated"),
};

enum rc filter_main(struct fault *ret_f)
{
	return harden_final(main_calls, ARRAY_SIZE(main_calls), ret_f);
}

enum rc filter_vcpu(struct fault *ret_f)
{
	static const int calls[] = { SCMP_SYS(write), SCMP_SYS(writev), SCMP_SYS(futex), SCMP_SYS(rt_sigreturn),
				     SCMP_SYS(rt_sigprocmask), SCMP_SYS(clock_gettime), SCMP_SYS(exit), SCMP_SYS(exit_group),
				     SCMP_SYS(madvise), SCMP_SYS(munmap), SCMP_SYS(mprotect), SCMP_SYS(mmap), SCMP_SYS(brk),
				     SCMP_SYS(gettid), SCMP_SYS(getpid), SCMP_SYS(tgkill), SCMP_SYS(restart_syscall),
				     SCMP_SYS(rseq), SCMP_SYS(set_robust_list), SCMP_SYS(sched_yield) };
	const char *mode = getenv("NESTBOX_SECCOMP");
	scmp_filter_ctx ctx = seccomp_init(mode && !strcmp(mode, "log") ? SCMP_ACT_LOG : SCMP_ACT_KILL_PROCESS);
	int err = ctx ? 0 : -ENOMEM;

	/* Set by the jail already; prctl() is not allowed any more. */
	if (!err)
		err = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_NNP, 0);
	for (size_t i = 0; !err && i < ARRAY_SIZE(calls); i++)
		err = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, calls[i], 0);
	if (!err)
		err = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(ioctl), 1, SCMP_A1_32(SCMP_CMP_EQ, (uint32_t)KVM_RUN));
	/* Offloads are set when the driver says DRIVER_OK, which is a register write on this thread. */
	if (!err)
		err = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(ioctl), 1,
				       SCMP_A1_32(SCMP_CMP_EQ, (uint32_t)TUNSETOFFLOAD));
	if (!err)
		err = seccomp_load(ctx);
	if (ctx)
		seccomp_release(ctx);
	return err ? fault_set(ret_f, RC_SYS, -err, "seccomp of a vCPU thread") : RC_OK;
}
