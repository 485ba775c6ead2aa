/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/fake_kvm.h"

#include <errno.h>
#include <linux/if_tun.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define FDS 1024
#define RUN_BYTES 8192

enum kind { NOTHING, KVM, VM, VCPU };

struct object {
	enum kind kind;
	struct kvm_run *run; /* mapped a second time, to see immediate_exit */
	uint64_t memory_bytes[2];
	/* a vCPU's */
	struct kvm_mp_state mp;
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	uint8_t xsave[FAKE_XSAVE_MAX];
	struct kvm_xcrs xcrs;
	struct kvm_debugregs debug;
	struct kvm_lapic_state lapic;
	struct kvm_vcpu_events events;
	uint64_t msrs[FAKE_MSRS];
	uint64_t tsc_offset;
	/* a machine's */
	struct kvm_irqchip chips[3];
	uint64_t clock;
};

struct fake_kvm fake_kvm = { .tsc_khz = 2000000, .tsc_offset_attr = true };
static struct object *objects[FDS];

/* As a host lists them: TSC, SYSENTER, the deadline in the middle, STAR.., KVM's own. */
static const uint32_t msr_index[FAKE_MSRS] = { 0x174, 0x175, 0x176, 0x10, 0x6e0, 0x1b, 0x277, 0x1a0, 0x48, 0x3b, 0xc0000081,
					       0xc0000082, 0xc0000083, 0xc0000084, 0xc0000102, 0xc0000103, 0x4b564d00,
					       0x4b564d01, 0x4b564d02, 0x4b564d03, 0x4b564d04, 0x4b564d05, 0x2ff, 0x200 };

/* By syscall(2): a test that lets library calls fail means those of the code under test. */
static void *map(size_t n, int flags, int fd)
{
	long at = syscall(SYS_mmap, NULL, n, PROT_READ | PROT_WRITE, flags, fd, 0);

	if (at == -1)
		abort();
	return (void *)(uintptr_t)at;
}

static int object_new(enum kind kind, const char *name)
{
	int fd = (int)syscall(SYS_memfd_create, name, MFD_CLOEXEC);

	if (fd < 0 || fd >= FDS || syscall(SYS_ftruncate, fd, RUN_BYTES) < 0) {
		errno = EMFILE;
		return -1;
	}
	if (!objects[fd])
		objects[fd] = map(sizeof(struct object), MAP_PRIVATE | MAP_ANONYMOUS, -1);
	else if (objects[fd]->run)
		munmap(objects[fd]->run, RUN_BYTES);
	memset(objects[fd], 0, sizeof(struct object));
	objects[fd]->kind = kind;
	if (kind == VCPU)
		objects[fd]->run = map(RUN_BYTES, MAP_SHARED, fd);
	for (uint32_t i = 0; i < 3; i++)
		objects[fd]->chips[i].chip_id = i;
	objects[fd]->xcrs.nr_xcrs = fake_kvm.xsave_bytes ? 1 : 0;
	return fd;
}

int fake_kvm_open(void)
{
	return object_new(KVM, "kvm");
}

void fake_kvm_forget(void)
{
	fake_kvm.n_log = fake_kvm.n_msr_log = 0;
}

void *fake_kvm_lapic(int fd)
{
	return objects[fd]->lapic.regs;
}

static int msr_at(uint32_t index)
{
	for (int i = 0; i < FAKE_MSRS; i++)
		if (msr_index[i] == index)
			return i;
	return -1;
}

uint64_t fake_kvm_msr(int fd, uint32_t index)
{
	return objects[fd]->msrs[msr_at(index)];
}

void fake_kvm_set_msr(int fd, uint32_t index, uint64_t value)
{
	objects[fd]->msrs[msr_at(index)] = value;
}

static void fill(void *at, size_t n)
{
	for (size_t i = 0; i < n; i++)
		((uint8_t *)at)[i] = (uint8_t)random();
}

void fake_kvm_fill(int fd, unsigned int seed)
{
	struct object *o = objects[fd];

	srandom(seed);
	if (o->kind == VCPU) {
		size_t n = fake_kvm.xsave_bytes > 4096 ? fake_kvm.xsave_bytes : 4096;

		fill(&o->mp, sizeof(o->mp));
		fill(&o->regs, sizeof(o->regs));
		fill(&o->sregs, sizeof(o->sregs));
		fill(o->xsave, n);
		fill(&o->xcrs, sizeof(o->xcrs));
		o->xcrs.nr_xcrs = fake_kvm.xsave_bytes ? 1 : 0;
		fill(&o->debug, sizeof(o->debug));
		fill(&o->lapic, sizeof(o->lapic));
		fill(&o->events, sizeof(o->events));
		fill(o->msrs, sizeof(o->msrs));
	} else if (o->kind == VM) {
		fill(o->chips, sizeof(o->chips));
		for (uint32_t i = 0; i < 3; i++)
			o->chips[i].chip_id = i;
		fill(&o->clock, sizeof(o->clock));
	}
}

bool fake_kvm_same(int a, int b)
{
	const struct object *x = objects[a], *y = objects[b];

	if (x->kind == VM)
		return !memcmp(x->chips, y->chips, sizeof(x->chips)) && x->clock == y->clock;
	for (int i = 0; i < FAKE_MSRS; i++)
		if (msr_index[i] != 0x10 && msr_index[i] != fake_kvm.refused_msr && x->msrs[i] != y->msrs[i])
			return false;
	return !memcmp(&x->mp, &y->mp, sizeof(x->mp)) && !memcmp(&x->regs, &y->regs, sizeof(x->regs)) &&
	       !memcmp(&x->sregs, &y->sregs, sizeof(x->sregs)) && !memcmp(x->xsave, y->xsave, sizeof(x->xsave)) &&
	       (!x->xcrs.nr_xcrs || !memcmp(&x->xcrs, &y->xcrs, sizeof(x->xcrs))) &&
	       !memcmp(&x->debug, &y->debug, sizeof(x->debug)) && !memcmp(&x->lapic, &y->lapic, sizeof(x->lapic)) &&
	       !memcmp(&x->events, &y->events, sizeof(x->events));
}

static int cpuid(struct kvm_cpuid2 *c)
{
	static const uint32_t functions[] = { 0, 1, 4, 7, 0xa, 0xb, 0xd, 0x40000000, 0x80000000, 0x80000001, 0x80000008 };
	size_t n = sizeof(functions) / sizeof(functions[0]);

	if (c->nent < n) {
		errno = E2BIG;
		return -1;
	}
	c->nent = (uint32_t)n;
	for (size_t i = 0; i < n; i++)
		c->entries[i] = (struct kvm_cpuid_entry2){ .function = functions[i], .eax = 0x1000u + functions[i],
							   .ebx = fake_kvm.cpuid_word };
	return 0;
}

static int msrs(struct object *o, struct kvm_msrs *m, bool set)
{
	for (uint32_t i = 0; i < m->nmsrs; i++) {
		int at = msr_at(m->entries[i].index);

		if (at < 0 || m->entries[i].index == fake_kvm.refused_msr)
			return (int)i;
		if (set && fake_kvm.n_msr_log < 256)
			fake_kvm.msr_log[fake_kvm.n_msr_log++] = m->entries[i].index;
		if (set)
			o->msrs[at] = m->entries[i].data;
		else
			m->entries[i].data = o->msrs[at];
	}
	return (int)m->nmsrs;
}

static int run(struct object *o)
{
	struct timespec wait = { 0, 2000000 };

	if (fake_kvm.run) {
		int err = 0, result = fake_kvm.run(o->run, &err);

		errno = err;
		if (result != FAKE_HALTS)
			return result;
	}
	for (;;) {
		if (__atomic_load_n(&o->run->immediate_exit, __ATOMIC_SEQ_CST) || nanosleep(&wait, NULL) < 0) {
			errno = EINTR;
			return -1;
		}
	}
}

static int dirty(const struct object *o, struct kvm_dirty_log *l)
{
	uint64_t words = (o->memory_bytes[l->slot] / 4096 + 63) / 64, *bits = l->dirty_bitmap;
	unsigned int seed = fake_kvm.dirty_seed;

	for (uint64_t i = 0; i < words; i++)
		bits[i] = seed && rand_r(&seed) % 16 == 0 ? (uint64_t)rand_r(&seed) << 20 : 0;
	return 0;
}

static int memory_region(struct object *o, const struct kvm_userspace_memory_region *r)
{
	if (r->slot > 1) {
		errno = EINVAL;
		return -1;
	}
	o->memory_bytes[r->slot] = r->memory_size;
	fake_kvm.logged = (fake_kvm.logged & ~(1u << r->slot)) | (r->flags & KVM_MEM_LOG_DIRTY_PAGES) << r->slot;
	return 0;
}

static int tsc_attr(struct object *o, const struct kvm_device_attr *a, bool set)
{
	if (!fake_kvm.tsc_offset_attr) {
		errno = ENXIO;
		return -1;
	}
	if (set)
		memcpy(&o->tsc_offset, (const void *)(uintptr_t)a->addr, 8);
	return 0;
}

#define GET(field) (memcpy(arg, &o->field, sizeof(o->field)), 0)
#define SET(field) (memcpy(&o->field, arg, sizeof(o->field)), 0)

static int on_vcpu(struct object *o, unsigned long request, void *arg)
{
	size_t n = fake_kvm.xsave_bytes > 4096 ? fake_kvm.xsave_bytes : 4096;

	switch (request) {
	case KVM_RUN: return run(o);
	case KVM_SET_CPUID2: return 0;
	case KVM_KVMCLOCK_CTRL: errno = EINVAL; return -1;
	case KVM_GET_TSC_KHZ: return fake_kvm.tsc_khz;
	case KVM_SET_TSC_KHZ: errno = EINVAL; return fake_kvm.tsc_scales ? 0 : -1;
	case KVM_GET_MP_STATE: return GET(mp);
	case KVM_SET_MP_STATE: return SET(mp);
	case KVM_GET_REGS: return GET(regs);
	case KVM_SET_REGS: return SET(regs);
	case KVM_GET_SREGS: return GET(sregs);
	case KVM_SET_SREGS: return SET(sregs);
	case KVM_GET_XSAVE: memcpy(arg, o->xsave, 4096); return 0;
	case KVM_GET_XSAVE2: memcpy(arg, o->xsave, n); return 0;
	case KVM_SET_XSAVE: memcpy(o->xsave, arg, n); return 0;
	case KVM_GET_XCRS: return GET(xcrs);
	case KVM_SET_XCRS: return SET(xcrs);
	case KVM_GET_DEBUGREGS: return GET(debug);
	case KVM_SET_DEBUGREGS: return SET(debug);
	case KVM_GET_LAPIC: return GET(lapic);
	case KVM_SET_LAPIC: return SET(lapic);
	case KVM_GET_VCPU_EVENTS: return GET(events);
	case KVM_SET_VCPU_EVENTS: return SET(events);
	case KVM_GET_MSRS: return msrs(o, arg, false);
	case KVM_SET_MSRS: return msrs(o, arg, true);
	case KVM_HAS_DEVICE_ATTR: return tsc_attr(o, arg, false);
	case KVM_SET_DEVICE_ATTR: return tsc_attr(o, arg, true);
	default: errno = ENOTTY; return -1;
	}
}

static int on_vm(struct object *o, unsigned long request, void *arg)
{
	struct kvm_irqchip *chip = arg;
	struct kvm_clock_data *clock = arg;

	switch (request) {
	case KVM_CREATE_VCPU: return object_new(VCPU, "vcpu");
	case KVM_SET_USER_MEMORY_REGION: return memory_region(o, arg);
	case KVM_CHECK_EXTENSION: return (uintptr_t)arg == KVM_CAP_XSAVE2 ? (int)fake_kvm.xsave_bytes : 0;
	case KVM_GET_DIRTY_LOG: return dirty(o, arg);
	case KVM_GET_IRQCHIP: *chip = o->chips[chip->chip_id]; return 0;
	case KVM_SET_IRQCHIP: o->chips[chip->chip_id] = *chip; return 0;
	case KVM_GET_CLOCK: clock->clock = o->clock; return 0;
	case KVM_SET_CLOCK: o->clock = clock->clock; return 0;
	default: return 0; /* interrupt chips, eventfds, KVM's own pages */
	}
}

static int on_kvm(unsigned long request, void *arg)
{
	struct kvm_msr_list *list = arg;

	switch (request) {
	case KVM_CREATE_VM: return object_new(VM, "vm");
	case KVM_GET_VCPU_MMAP_SIZE: return RUN_BYTES;
	case KVM_GET_SUPPORTED_CPUID: return cpuid(arg);
	case KVM_GET_MSR_INDEX_LIST:
		list->nmsrs = FAKE_MSRS;
		memcpy(list->indices, msr_index, sizeof(msr_index));
		return 0;
	default: errno = ENOTTY; return -1;
	}
}

static bool sets(unsigned long request)
{
	return request == KVM_SET_MP_STATE || request == KVM_SET_REGS || request == KVM_SET_SREGS || request == KVM_SET_XSAVE ||
	       request == KVM_SET_XCRS || request == KVM_SET_DEBUGREGS || request == KVM_SET_LAPIC || request == KVM_SET_MSRS ||
	       request == KVM_SET_VCPU_EVENTS || request == KVM_SET_CLOCK || request == KVM_SET_IRQCHIP ||
	       request == KVM_SET_DEVICE_ATTR || request == KVM_RUN;
}

int ioctl(int fd, unsigned long request, ...)
{
	struct object *o = fd >= 0 && fd < FDS ? objects[fd] : NULL;
	va_list ap;
	void *arg;
	int err;

	va_start(ap, request);
	arg = va_arg(ap, void *);
	va_end(ap);
	if (request == TUNSETVNETHDRSZ || request == TUNSETOFFLOAD) {
		if (!fake_kvm.fail || !fake_kvm.fail(request, &err))
			return 0;
		errno = err;
		return -1;
	}
	if (!o || (request >> 8 & 0xff) != KVMIO)
		return (int)syscall(SYS_ioctl, fd, request, arg);
	if (request != KVM_RUN && fake_kvm.fail && fake_kvm.fail(request, &err)) {
		errno = err;
		return -1;
	}
	if (sets(request) && fake_kvm.n_log < 512)
		fake_kvm.log[fake_kvm.n_log++] = request;
	switch (o->kind) {
	case KVM: return on_kvm(request, arg);
	case VM: return on_vm(o, request, arg);
	case VCPU: return on_vcpu(o, request, arg);
	default: errno = ENOTTY; return -1;
	}
}
