/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A vCPU's registers out of KVM and back. The order matters in both directions; what is known to go wrong otherwise:
 *  - GET: MP_STATE first (it may deliver INIT or SIPI and so change the local APIC and registers); VCPU_EVENTS last (the others
 *    may move pending events).
 *  - SET: SREGS before LAPIC (it holds the APIC base), LAPIC before the TSC deadline MSR, the TSC itself before that deadline,
 *    REGS before VCPU_EVENTS (setting REGS clears pending exceptions).
 *  - A deadline that had fired, whose interrupt was still on its way inside KVM, reads as 0: the guest would wait for ever. It is
 *    saved as "now", and one interrupt too many is one the guest's timer code finds nothing to do for.
 *  - All vCPUs get one common TSC offset, so that they cannot drift apart however long the restore takes.
 */
#include "vmm/engines/kvm/vcpu.h"

#include "base/cleanup.h"

#include <cpuid.h>
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <x86intrin.h>

#define MSRS_MAX 512u
#define MSR_TSC 0x10u
#define MSR_TSC_DEADLINE 0x6e0u
#define LVT_TIMER 0x320u
#define LVT_MODE_DEADLINE 2u
#define XSAVE_MAX 16384u

struct msrs {
	struct kvm_msrs head;
	struct kvm_msr_entry entries[MSRS_MAX];
};

/* The parts that are plain structures, in the order they are set in. */
struct plain {
	struct kvm_mp_state mp;
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_xcrs xcrs;
	struct kvm_debugregs debug;
	struct kvm_lapic_state lapic;
	struct kvm_vcpu_events events;
};

static enum rc get(int fd, unsigned long op, void *out, const char *what, struct fault *ret_f)
{
	return ioctl(fd, op, out) < 0 ? fault_set(ret_f, RC_SYS, errno, "%s", what) : RC_OK;
}

static enum rc msr_indices(int kvm_fd, struct kvm_msr_list **ret, struct fault *ret_f)
{
	_cleanup_free_ struct kvm_msr_list *list = calloc(1, sizeof(*list) + MSRS_MAX * sizeof(uint32_t));

	if (!list)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	list->nmsrs = MSRS_MAX;
	if (ioctl(kvm_fd, KVM_GET_MSR_INDEX_LIST, list) < 0)
		return fault_set(ret_f, RC_SYS, errno, "KVM_GET_MSR_INDEX_LIST");
	*ret = take_ptr(list);
	return RC_OK;
}

/* Machine-check banks and performance counters, which the guest does not have. */
static bool msr_unwanted(uint32_t index)
{
	return (index >= 0x400 && index < 0x480) || index == 0x17b || (index >= 0xc1 && index < 0xc9) ||
	       (index >= 0x186 && index < 0x18e) || (index >= 0x309 && index < 0x30d) || index == 0x345 ||
	       (index >= 0x38d && index <= 0x390) || index == 0x3f1 || (index >= 0x4c1 && index < 0x4c9) ||
	       (index >= 0xc0010000 && index < 0xc0010008) || (index >= 0xc0010200 && index < 0xc001020c) ||
	       (index >= 0x480 && index <= 0x491);
}

/* Those that KVM lists but does not give are left out: it ends a batch at the first it refuses. */
static enum rc msrs_get(struct vcpu *c, struct msrs *m, struct fault *ret_f)
{
	_cleanup_free_ struct kvm_msr_list *list = NULL;
	enum rc rc = msr_indices(c->vm->kvm_fd, &list, ret_f);
	uint32_t n = 0;

	if (rc || !list)
		return rc;
	for (uint32_t i = 0; i < list->nmsrs && n < MSRS_MAX; i++)
		if (!msr_unwanted(list->indices[i]))
			m->entries[n++] = (struct kvm_msr_entry){ .index = list->indices[i] };
	for (uint32_t done = 0; done < n;) {
		struct msrs part = { 0 };
		int got;

		part.head.nmsrs = MIN_OF(n - done, 64u);
		memcpy(part.entries, m->entries + done, part.head.nmsrs * sizeof(part.entries[0]));
		got = ioctl(c->fd, KVM_GET_MSRS, &part);
		if (got < 0)
			return fault_set(ret_f, RC_SYS, errno, "KVM_GET_MSRS");
		memcpy(m->entries + done, part.entries, (size_t)got * sizeof(part.entries[0]));
		done += (uint32_t)got;
		if ((uint32_t)got < part.head.nmsrs) {
			memmove(m->entries + done, m->entries + done + 1, (n - done - 1) * sizeof(m->entries[0]));
			n--;
		}
	}
	m->head.nmsrs = n;
	return RC_OK;
}

static struct kvm_msr_entry *msr_find(struct msrs *m, uint32_t index)
{
	for (uint32_t i = 0; i < m->head.nmsrs; i++)
		if (m->entries[i].index == index)
			return &m->entries[i];
	return NULL;
}

static uint32_t lapic_word(const struct kvm_lapic_state *l, unsigned int at)
{
	uint32_t v;

	memcpy(&v, l->regs + at, 4);
	return v;
}

static void repair_deadline(struct msrs *m, const struct kvm_lapic_state *lapic)
{
	struct kvm_msr_entry *deadline = msr_find(m, MSR_TSC_DEADLINE), *tsc = msr_find(m, MSR_TSC);
	uint32_t lvt = lapic_word(lapic, LVT_TIMER);

	if (deadline && tsc && !deadline->data && (lvt >> 17 & 3) == LVT_MODE_DEADLINE && !(lvt & 1u << 16))
		deadline->data = tsc->data;
}

static enum rc xsave_bytes(struct vcpu *c, size_t *ret, struct fault *ret_f)
{
	int n = ioctl(c->vm->vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2);

	if (n < 0)
		return fault_set(ret_f, RC_SYS, errno, "size of the processor's XSAVE state");
	if (n > (int)XSAVE_MAX)
		return fault_set(ret_f, RC_LIMIT, 0, "processor state of %d bytes", n);
	*ret = n > 4096 ? (size_t)n : 4096;
	return RC_OK;
}

enum rc vcpu_save(struct vcpu *c, struct wire *w, struct fault *ret_f)
{
	_cleanup_free_ struct msrs *m = calloc(1, sizeof(*m));
	_cleanup_free_ struct plain *p = calloc(1, sizeof(*p));
	_cleanup_free_ uint8_t *xsave = calloc(1, XSAVE_MAX);
	size_t n = 0;
	int khz = ioctl(c->fd, KVM_GET_TSC_KHZ, 0);
	enum rc rc;

	if (!m || !p || !xsave)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	rc = xsave_bytes(c, &n, ret_f);
	rc = rc ?: get(c->fd, KVM_GET_MP_STATE, &p->mp, "KVM_GET_MP_STATE", ret_f);
	rc = rc ?: get(c->fd, KVM_GET_REGS, &p->regs, "KVM_GET_REGS", ret_f);
	rc = rc ?: get(c->fd, KVM_GET_SREGS, &p->sregs, "KVM_GET_SREGS", ret_f);
	rc = rc ?: get(c->fd, n > 4096 ? KVM_GET_XSAVE2 : KVM_GET_XSAVE, xsave, "KVM_GET_XSAVE", ret_f);
	rc = rc ?: get(c->fd, KVM_GET_XCRS, &p->xcrs, "KVM_GET_XCRS", ret_f);
	rc = rc ?: get(c->fd, KVM_GET_DEBUGREGS, &p->debug, "KVM_GET_DEBUGREGS", ret_f);
	rc = rc ?: get(c->fd, KVM_GET_LAPIC, &p->lapic, "KVM_GET_LAPIC", ret_f);
	rc = rc ?: msrs_get(c, m, ret_f);
	rc = rc ?: get(c->fd, KVM_GET_VCPU_EVENTS, &p->events, "KVM_GET_VCPU_EVENTS", ret_f);
	if (rc)
		return rc;
	repair_deadline(m, &p->lapic);
	wire_put_u32(w, khz > 0 ? (uint32_t)khz : 0);
	wire_put_bytes(w, p, sizeof(*p));
	wire_put_bytes(w, xsave, n);
	wire_put_u32(w, m->head.nmsrs);
	for (uint32_t i = 0; i < m->head.nmsrs; i++) {
		wire_put_u32(w, m->entries[i].index);
		wire_put_u64(w, m->entries[i].data);
	}
	return RC_OK;
}

/* --- back in ------------------------------------------------------------------------------------------------------- */

static enum rc msr_set(struct vcpu *c, uint32_t index, uint64_t data, struct fault *ret_f)
{
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entry;
	} one = { .head = { .nmsrs = 1 }, .entry = { .index = index } };

	one.entry.data = data;
	if (ioctl(c->fd, KVM_SET_MSRS, &one) == 1)
		return RC_OK;
	/* Refused: fine if it has that value already (read-only ones), else the machine would not be the same. */
	one.entry.data = ~data;
	if (ioctl(c->fd, KVM_GET_MSRS, &one) == 1 && one.entry.data == data)
		return RC_OK;
	return fault_set(ret_f, RC_STATE, 0, "this host's KVM refuses MSR 0x%x of the snapshot", index);
}

static enum rc msrs_set(struct vcpu *c, struct msrs *m, struct fault *ret_f)
{
	for (uint32_t done = 0; done < m->head.nmsrs;) {
		struct msrs part = { 0 };
		int put;
		enum rc rc;

		part.head.nmsrs = MIN_OF(m->head.nmsrs - done, 64u);
		memcpy(part.entries, m->entries + done, part.head.nmsrs * sizeof(part.entries[0]));
		put = ioctl(c->fd, KVM_SET_MSRS, &part);
		if (put < 0)
			return fault_set(ret_f, RC_SYS, errno, "KVM_SET_MSRS");
		done += (uint32_t)put;
		if ((uint32_t)put == part.head.nmsrs)
			continue;
		rc = msr_set(c, m->entries[done].index, m->entries[done].data, ret_f);
		if (rc)
			return rc;
		done++;
	}
	return RC_OK;
}

/* The first vCPU's TSC decides; every vCPU gets the same distance to the host's counter. */
static enum rc set_tsc(struct vcpu *c, uint64_t tsc, struct fault *ret_f)
{
	uint64_t offset;
	struct kvm_device_attr attr = { .group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET };

	if (c->index == 0)
		c->vm->tsc_offset = tsc - __rdtsc();
	offset = c->vm->tsc_offset;
	attr.addr = (uintptr_t)&offset;
	/* Before Linux 5.16, and where it is a distance to the scaled counter, which only KVM knows: its own matching of writes. */
	if (c->vm->tsc_scaled || ioctl(c->fd, KVM_HAS_DEVICE_ATTR, &attr) < 0)
		return msr_set(c, MSR_TSC, tsc, ret_f);
	if (ioctl(c->fd, KVM_SET_DEVICE_ATTR, &attr) < 0)
		return fault_set(ret_f, RC_SYS, errno, "KVM_VCPU_TSC_OFFSET");
	return RC_OK;
}

static enum rc check_khz(struct vcpu *c, uint32_t khz, struct fault *ret_f)
{
	int now = ioctl(c->fd, KVM_GET_TSC_KHZ, 0);
	uint32_t have = now > 0 ? (uint32_t)now : 0, diff = have > khz ? have - khz : khz - have;

	if (!khz || !have || (uint64_t)diff * 1000000 <= (uint64_t)khz * 250)
		return RC_OK;
	if (ioctl(c->fd, KVM_SET_TSC_KHZ, (unsigned long)khz) < 0)
		return fault_set(ret_f, RC_STATE, 0, "snapshot's TSC runs at %u kHz, this host's at %u and cannot scale", khz,
				 have);
	c->vm->tsc_scaled = true;
	return RC_OK;
}

static enum rc set(int fd, unsigned long op, void *in, const char *what, struct fault *ret_f)
{
	return ioctl(fd, op, in) < 0 ? fault_set(ret_f, RC_STATE, errno, "%s", what) : RC_OK;
}

static enum rc read_msrs(struct wire *w, struct msrs *m, uint64_t *tsc, uint64_t *deadline, struct fault *ret_f)
{
	uint32_t n = wire_get_u32(w);

	if (n > MSRS_MAX)
		return fault_set(ret_f, RC_INVALID, 0, "snapshot has %u MSRs", n);
	for (uint32_t i = 0; i < n; i++) {
		uint32_t index = wire_get_u32(w);
		uint64_t data = wire_get_u64(w);

		if (index == MSR_TSC)
			*tsc = data;
		else if (index == MSR_TSC_DEADLINE)
			*deadline = data;
		else
			m->entries[m->head.nmsrs++] = (struct kvm_msr_entry){ .index = index, .data = data };
	}
	return wire_ok(w) ? RC_OK : fault_set(ret_f, RC_INVALID, 0, "snapshot ends inside a processor");
}

enum rc vcpu_load(struct vcpu *c, struct wire *w, struct fault *ret_f)
{
	_cleanup_free_ struct msrs *m = calloc(1, sizeof(*m));
	_cleanup_free_ struct plain *p = calloc(1, sizeof(*p));
	_cleanup_free_ uint8_t *xsave = calloc(1, XSAVE_MAX);
	uint32_t khz = wire_get_u32(w);
	uint64_t tsc = 0, deadline = 0;
	const uint8_t *raw, *raw_xsave;
	size_t n, n_xsave, want = 0;
	enum rc rc;

	if (!m || !p || !xsave)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	rc = xsave_bytes(c, &want, ret_f);
	if (rc)
		return rc;
	raw = wire_get_bytes(w, &n);
	raw_xsave = wire_get_bytes(w, &n_xsave);
	if (!raw || n != sizeof(*p) || !raw_xsave || n_xsave != want)
		return fault_set(ret_f, RC_INVALID, 0, "snapshot has a processor of another kind");
	memcpy(p, raw, n);
	memcpy(xsave, raw_xsave, n_xsave);
	rc = read_msrs(w, m, &tsc, &deadline, ret_f);
	rc = rc ?: check_khz(c, khz, ret_f);
	rc = rc ?: set(c->fd, KVM_SET_MP_STATE, &p->mp, "KVM_SET_MP_STATE", ret_f);
	rc = rc ?: set(c->fd, KVM_SET_REGS, &p->regs, "KVM_SET_REGS", ret_f);
	rc = rc ?: set(c->fd, KVM_SET_SREGS, &p->sregs, "KVM_SET_SREGS", ret_f);
	rc = rc ?: set(c->fd, KVM_SET_XSAVE, xsave, "KVM_SET_XSAVE", ret_f);
	if (p->xcrs.nr_xcrs) /* none on a processor without XSAVE, where the call is refused */
		rc = rc ?: set(c->fd, KVM_SET_XCRS, &p->xcrs, "KVM_SET_XCRS", ret_f);
	rc = rc ?: set(c->fd, KVM_SET_DEBUGREGS, &p->debug, "KVM_SET_DEBUGREGS", ret_f);
	rc = rc ?: set(c->fd, KVM_SET_LAPIC, &p->lapic, "KVM_SET_LAPIC", ret_f);
	rc = rc ?: msrs_set(c, m, ret_f);
	rc = rc ?: set_tsc(c, tsc, ret_f);
	rc = rc ?: (deadline ? msr_set(c, MSR_TSC_DEADLINE, deadline, ret_f) : RC_OK);
	return rc ?: set(c->fd, KVM_SET_VCPU_EVENTS, &p->events, "KVM_SET_VCPU_EVENTS", ret_f);
}
