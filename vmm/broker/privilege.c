/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory: the broker is root because namespaces, taps and uids need it. Its capabilities are bounded to those in the table,
 * for itself and for all it starts. Its system call filter is a list of what is refused, not of what is allowed: a
 * filter is inherited, VM processes begin as children of this one and load their own allow-list (vmm/jail), and a list
 * that allowed for both would allow more than it says. Refused is what would change the host itself.
 */
#include "vmm/broker/privilege.h"

#include "base/cleanup.h"
#include "base/harden.h"
#include "base/log.h"

#include <cap-ng.h>
#include <errno.h>
#include <linux/capability.h>
#include <seccomp.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#define NOFILE_WANTED 65536

static const struct {
	int cap;
	const char *reason;
} caps[] = {
	{ CAP_SYS_ADMIN, "network, mount and PID namespaces; bind mounts that hold them" },
	{ CAP_NET_ADMIN, "taps, addresses and nftables rules inside a machine's namespace" },
	{ CAP_NET_BIND_SERVICE, "the DNS socket on port 53 inside a machine's namespace" },
	{ CAP_SETUID, "a VM process gets its own uid" },
	{ CAP_SETGID, "and gid" },
	{ CAP_SETPCAP, "a VM process's bounding set is emptied" },
	{ CAP_SYS_CHROOT, "a VM process gets an empty root" },
	{ CAP_SYS_RESOURCE, "a VM process's limits; our own number of descriptors" },
	{ CAP_KILL, "ending VM processes, which have other uids" },
	{ CAP_CHOWN, "control sockets and memory files of a VM process belong to its uid" },
	{ CAP_DAC_OVERRIDE, "connecting to those sockets" },
	{ CAP_FOWNER, "modes of files that belong to a VM's uid" },
	{ CAP_SYS_PTRACE, "memory statistics and open files of VM processes that are not dumpable" },
	{ CAP_MKNOD, "/dev/null and /dev/kvm in a VM process's root" },
};

static const struct {
	int nr;
	const char *reason;
} refused[] = {
	{ SCMP_SYS(init_module), "kernel code" },
	{ SCMP_SYS(finit_module), "kernel code" },
	{ SCMP_SYS(delete_module), "kernel code" },
	{ SCMP_SYS(kexec_load), "another kernel" },
	{ SCMP_SYS(kexec_file_load), "another kernel" },
	{ SCMP_SYS(bpf), "kernel code" },
	{ SCMP_SYS(perf_event_open), "watching other processes" },
	{ SCMP_SYS(ptrace), "other processes" },
	{ SCMP_SYS(process_vm_writev), "other processes" },
	{ SCMP_SYS(reboot), "the host" },
	{ SCMP_SYS(swapon), "the host" },
	{ SCMP_SYS(swapoff), "the host" },
	{ SCMP_SYS(settimeofday), "the host's clock" },
	{ SCMP_SYS(clock_settime), "the host's clock" },
	{ SCMP_SYS(adjtimex), "the host's clock" },
	{ SCMP_SYS(clock_adjtime), "the host's clock" },
	{ SCMP_SYS(iopl), "hardware" },
	{ SCMP_SYS(ioperm), "hardware" },
	{ SCMP_SYS(acct), "the host" },
	{ SCMP_SYS(quotactl), "the host" },
	{ SCMP_SYS(syslog), "the kernel's log" },
	{ SCMP_SYS(add_key), "the kernel's key store" },
	{ SCMP_SYS(request_key), "the kernel's key store" },
	{ SCMP_SYS(keyctl), "the kernel's key store" },
	{ SCMP_SYS(open_by_handle_at), "files around every path check" },
	{ SCMP_SYS(vhangup), "terminals" },
	{ SCMP_SYS(modify_ldt), "a rarely used corner of the kernel" },
	{ SCMP_SYS(io_uring_setup), "system calls around this filter" },
};

static enum rc filter_load(struct fault *ret_f)
{
	scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_ALLOW);
	int err = 0;

	if (!ctx)
		return fault_set(ret_f, RC_NOMEM, 0, "seccomp_init");
	for (size_t i = 0; !err && i < ARRAY_SIZE(refused); i++)
		err = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(EPERM), refused[i].nr, 0);
	if (!err)
		err = seccomp_load(ctx);
	seccomp_release(ctx);
	return err ? fault_set(ret_f, RC_SYS, -err, "system call filter") : RC_OK;
}

enum rc privilege_drop(struct fault *ret_f)
{
	struct rlimit no_core = { 0, 0 }, files;
	int keep[ARRAY_SIZE(caps)];
	size_t n = 0;
	enum rc rc;

	/* Where even root lacks one (containers), what needs it says so when it comes to it. */
	if (capng_get_caps_process() < 0)
		return fault_set(ret_f, RC_SYS, errno, "read own capabilities");
	for (size_t i = 0; i < ARRAY_SIZE(caps); i++) {
		if (capng_have_capability(CAPNG_PERMITTED, (unsigned int)caps[i].cap))
			keep[n++] = caps[i].cap;
		else
			log_warn("capability missing capability=%d for=\"%s\"", caps[i].cap, caps[i].reason);
	}
	if (getrlimit(RLIMIT_NOFILE, &files) < 0)
		return fault_set(ret_f, RC_SYS, errno, "number of descriptors");
	files.rlim_cur = MIN_OF(files.rlim_max, (rlim_t)NOFILE_WANTED);
	if (setrlimit(RLIMIT_NOFILE, &files) < 0)
		return fault_set(ret_f, RC_SYS, errno, "number of descriptors");
	rc = harden_ids(NULL, keep, n, ret_f);
	if (rc)
		return rc;
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0 || setrlimit(RLIMIT_CORE, &no_core) < 0)
		return fault_set(ret_f, RC_SYS, errno, "switch off core dumps");
	return filter_load(ret_f);
}
