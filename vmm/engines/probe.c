/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/engines/probe.h"

#include "base/cleanup.h"
#include "base/fd.h"

#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#define MEMORY_BYTES (2u << 20)
#define AT_PML4 0x1000u
#define AT_PDPT 0x2000u
#define AT_PD 0x3000u
#define AT_STACK 0x9000u
#define AT_CODE 0x10000u
#define CPUID_MAX 256
#define EXITS_MAX 16
#define KILL_MS 2000 /* for a killed probe to be gone */

#define LOOPS 4000000
#define SWAPS 1000
#define PORT 0x3f8
#define SEED 0x1234
#define RESULT (2 * SEED + SWAPS + LOOPS)

#define STR_(x) #x
#define STR(x) STR_(x)

/* rdi: 16 zero bytes, aligned; r8: whether the host's processor has cmpxchg16b. Doubles SEED with SSE, counts SWAPS in memory with
 * cmpxchg16b (or without), LOOPS in a register. */
__asm__(".pushsection .rodata\n"
	".balign 16\n"
	"probe_code:\n"
	"	movl $" STR(SEED) ", %eax\n"
	"	movd %eax, %xmm0\n"
	"	paddd %xmm0, %xmm0\n"
	"	movd %xmm0, %esi\n"
	"	movl $" STR(SWAPS) ", %ebp\n"
	"	xorl %eax, %eax\n"
	"	xorl %edx, %edx\n"
	"	testl %r8d, %r8d\n"
	"	jnz 1f\n"
	"	addl %ebp, %esi\n"
	"	jmp 3f\n"
	"1:	leaq 1(%rax), %rbx\n"
	"	movq %rdx, %rcx\n"
	"	lock cmpxchg16b (%rdi)\n"
	"	jnz 1b\n"
	"	movq (%rdi), %rax\n"
	"	movq 8(%rdi), %rdx\n"
	"	decl %ebp\n"
	"	jnz 1b\n"
	"	addl %eax, %esi\n"
	"3:	movl $" STR(LOOPS) ", %ebp\n"
	"2:	incl %esi\n"
	"	decl %ebp\n"
	"	jnz 2b\n"
	"	movl %esi, %eax\n"
	"	movl $" STR(PORT) ", %edx\n"
	"	outl %eax, %dx\n"
	"	hlt\n"
	"probe_code_end:\n"
	".popsection\n");
extern const uint8_t probe_code[], probe_code_end[];

struct guest {
	int kvm, vm, vcpu;
	uint8_t *memory;
	struct kvm_run *run;
};

static const char *guest_memory(struct guest *g)
{
	struct kvm_userspace_memory_region region = { .memory_size = MEMORY_BYTES };
	uint64_t pml4 = AT_PDPT | 3, pdpt = AT_PD | 3, pd = 0x83; /* one page of 2 MiB, present and writable */

	g->memory = mmap(NULL, MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (g->memory == MAP_FAILED)
		return "no memory";
	memcpy(g->memory + AT_PML4, &pml4, sizeof(pml4));
	memcpy(g->memory + AT_PDPT, &pdpt, sizeof(pdpt));
	memcpy(g->memory + AT_PD, &pd, sizeof(pd));
	memcpy(g->memory + AT_CODE, probe_code, (size_t)(probe_code_end - probe_code));
	region.userspace_addr = (uint64_t)(uintptr_t)g->memory;
	return ioctl(g->vm, KVM_SET_USER_MEMORY_REGION, &region) < 0 ? "KVM_SET_USER_MEMORY_REGION" : NULL;
}

/* KVM refuses long mode for a processor that does not have it in its CPUID. */
static const char *guest_cpuid(struct guest *g)
{
	static union {
		struct kvm_cpuid2 head;
		uint8_t room[sizeof(struct kvm_cpuid2) + CPUID_MAX * sizeof(struct kvm_cpuid_entry2)];
	} cpuid;

	cpuid.head.nent = CPUID_MAX;
	if (ioctl(g->kvm, KVM_GET_SUPPORTED_CPUID, &cpuid) < 0)
		return "KVM_GET_SUPPORTED_CPUID";
	return ioctl(g->vcpu, KVM_SET_CPUID2, &cpuid) < 0 ? "KVM_SET_CPUID2" : NULL;
}

/* A kernel uses what its processor has: that is what must work. */
static uint64_t host_cx16(void)
{
	unsigned int a, b, c, d;

	return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_CMPXCHG16B);
}

static const char *guest_long_mode(struct guest *g)
{
	struct kvm_segment data = { .limit = 0xffffffff, .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1 };
	struct kvm_segment code = { .limit = 0xffffffff, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1 };
	struct kvm_regs regs = { .rip = AT_CODE, .rsp = AT_STACK, .rdi = AT_STACK, .r8 = host_cx16(),
				 .rflags = 2 };
	struct kvm_sregs s;

	if (ioctl(g->vcpu, KVM_GET_SREGS, &s) < 0)
		return "KVM_GET_SREGS";
	s.cr3 = AT_PML4;
	s.cr4 = 0x620;      /* PAE, OSFXSR, OSXMMEXCPT */
	s.cr0 = 0x80010033; /* PG, WP, NE, ET, MP, PE */
	s.efer = 0x500;     /* LME, LMA */
	s.cs = code;
	s.ds = s.es = s.fs = s.gs = s.ss = data;
	if (ioctl(g->vcpu, KVM_SET_SREGS, &s) < 0)
		return "KVM_SET_SREGS (long mode)";
	return ioctl(g->vcpu, KVM_SET_REGS, &regs) < 0 ? "KVM_SET_REGS" : NULL;
}

static const char *guest_make(struct guest *g, const char *device)
{
	const char *failed;
	int size;

	g->kvm = open(device, O_RDWR | O_CLOEXEC);
	if (g->kvm < 0)
		return "it does not open";
	if (ioctl(g->kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION)
		return "it has another API version";
	g->vm = ioctl(g->kvm, KVM_CREATE_VM, 0);
	if (g->vm < 0)
		return "KVM_CREATE_VM";
	failed = guest_memory(g);
	if (failed)
		return failed;
	g->vcpu = ioctl(g->vm, KVM_CREATE_VCPU, 0);
	size = ioctl(g->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (g->vcpu < 0 || size < (int)sizeof(struct kvm_run))
		return "KVM_CREATE_VCPU";
	g->run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, g->vcpu, 0);
	if (g->run == MAP_FAILED)
		return "map the processor";
	failed = guest_cpuid(g);
	return failed ? failed : guest_long_mode(g);
}

/* The value the program puts out, or 0 with *ret_why. */
static uint32_t guest_run(struct guest *g, uint32_t *ret_exit)
{
	uint32_t value = 0;

	for (int i = 0; i < EXITS_MAX; i++) {
		if (ioctl(g->vcpu, KVM_RUN, 0) < 0 && errno != EINTR)
			return 0;
		*ret_exit = g->run->exit_reason;
		if (*ret_exit == KVM_EXIT_HLT)
			return value;
		if (*ret_exit != KVM_EXIT_IO || g->run->io.port != PORT || g->run->io.size != 4)
			return 0;
		memcpy(&value, (const uint8_t *)g->run + g->run->io.data_offset, sizeof(value));
	}
	return 0;
}

/* What the child writes: an empty text means that the program ran and its result is right. */
static void probe_child(const char *device, char out[PROBE_REASON_MAX])
{
	struct guest g = { -1, -1, -1, NULL, NULL };
	const char *failed = guest_make(&g, device);
	uint32_t why = 0, value;

	out[0] = '\0';
	if (failed) {
		snprintf(out, PROBE_REASON_MAX, "%s: %s (%s)", device, failed, strerror(errno));
		return;
	}
	value = guest_run(&g, &why);
	if (value != RESULT && why == KVM_EXIT_INTERNAL_ERROR)
		snprintf(out, PROBE_REASON_MAX, "%s opens but emulates instructions, and failed to (cmpxchg16b, SSE)", device);
	else if (value != RESULT)
		snprintf(out, PROBE_REASON_MAX, "%s: a test program did not run (exit reason %u, result %u)", device, why, value);
}

static void child_reap(pid_t pid)
{
	uint64_t end = now_ms() + KILL_MS;
	siginfo_t info;

	kill(pid, SIGKILL);
	do {
		info.si_pid = 0;
		if (waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG) < 0 || info.si_pid)
			return;
		poll(NULL, 0, 1);
	} while (now_ms() < end);
}

void probe_kvm(const char *device, uint32_t deadline_ms, struct probe *ret)
{
	uint64_t start = now_ms();
	_cleanup_fd_ int from = -1, to = -1;
	char text[PROBE_REASON_MAX];
	int fds[2];
	pid_t pid;
	struct fault f;

	memset(ret, 0, sizeof(*ret));
	if (pipe2(fds, O_CLOEXEC) < 0) {
		snprintf(ret->reason, sizeof(ret->reason), "the probe has no pipe");
		return;
	}
	from = fds[0];
	to = fds[1];
	pid = fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		probe_child(device, text);
		_exit(write(to, text, sizeof(text)) == (ssize_t)sizeof(text) ? 0 : 1);
	}
	close_fd(&to);
	if (pid < 0) {
		snprintf(ret->reason, sizeof(ret->reason), "the probe has no process");
		return;
	}
	if (fd_read_exact(from, text, sizeof(text), start + deadline_ms, &f)) {
		snprintf(ret->reason, sizeof(ret->reason),
			 f.rc == RC_TIMEOUT ? "%s opens but emulates each instruction (probe stopped after %u ms)"
					    : "%s: the probe died after %u ms",
			 device, (uint32_t)(now_ms() - start));
	} else {
		text[sizeof(text) - 1] = '\0';
		ret->usable = !text[0];
		snprintf(ret->reason, sizeof(ret->reason), "%.140s", text);
	}
	child_reap(pid);
	ret->took_ms = (uint32_t)(now_ms() - start);
	if (ret->usable)
		snprintf(ret->reason, sizeof(ret->reason), "%s ran a test program in %u ms", device, ret->took_ms);
}
