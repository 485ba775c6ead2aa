/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Device state of a machine (doc/vmm.md has the layout). Little-endian, versioned; the file around it carries the checksum.
 * Read as hostile: whoever could write a snapshot must gain nothing that the guest in it does not have anyway.
 */
#include "vmm/engines/kvm/vcpu.h"

#include "base/cleanup.h"
#include "vmm/engines/kvm/acpi.h"
#include "base/fd.h"

#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#define STATE_MAGIC 0x31534d56u /* "VMS1" */
#define STATE_VERSION 2u
#define STATE_MAX (1u << 20)
#define IRQCHIPS 3u

/* Of what the guest was told its processor is: equal hashes, equal processors. FNV-1a; it guards against mistakes only. */
static uint64_t cpuid_hash(const struct kvm_cpuid2 *c)
{
	uint64_t h = 0xcbf29ce484222325;

	for (unsigned int i = 0; i < c->nent; i++) {
		struct kvm_cpuid_entry2 e = c->entries[i];
		uint32_t words[6] = { e.function, e.index, e.eax, e.ebx, e.ecx, e.edx };

		/* The APIC id of the asking processor is in these. */
		if (e.function == 1)
			words[3] &= 0x00ffffff;
		if (e.function == 0xb || e.function == 0x1f || e.function == 0x8000001e)
			continue;
		for (unsigned int k = 0; k < 24; k++)
			h = (h ^ ((const uint8_t *)words)[k]) * 0x100000001b3;
	}
	return h;
}

static enum rc save_chips(struct vm *vm, struct wire *w, struct fault *ret_f)
{
	struct kvm_clock_data clock;

	for (uint32_t i = 0; i < IRQCHIPS; i++) {
		struct kvm_irqchip chip = { .chip_id = i };

		if (ioctl(vm->vm_fd, KVM_GET_IRQCHIP, &chip) < 0)
			return fault_set(ret_f, RC_SYS, errno, "KVM_GET_IRQCHIP %u", i);
		wire_put_bytes(w, &chip, sizeof(chip));
	}
	if (ioctl(vm->vm_fd, KVM_GET_CLOCK, &clock) < 0)
		return fault_set(ret_f, RC_SYS, errno, "KVM_GET_CLOCK");
	wire_put_u64(w, clock.clock);
	return RC_OK;
}

enum rc vm_save_state(struct vm *vm, struct buf *out, struct fault *ret_f)
{
	struct wire w;
	uint8_t *mem;
	enum rc rc;

	if (vm->state != VM_PAUSED)
		return fault_set(ret_f, RC_STATE, 0, "machine is not paused");
	rc = buf_reserve(out, STATE_MAX, &mem);
	if (rc)
		return fault_set(ret_f, rc, 0, "no room for the state");
	wire_init(&w, mem, STATE_MAX);
	wire_put_u32(&w, STATE_MAGIC);
	wire_put_u32(&w, STATE_VERSION);
	wire_put_u32(&w, vm->n_cpus);
	wire_put_u32(&w, vm->n_devices);
	wire_put_u64(&w, vm->memory.bytes);
	wire_put_u64(&w, cpuid_hash(vm->cpuid));
	/* vCPUs first: KVM_GET_MP_STATE may still change interrupt state. */
	for (unsigned int i = 0; !rc && i < vm->n_cpus; i++)
		rc = vcpu_save(&vm->cpus[i], &w, ret_f);
	if (!rc)
		rc = save_chips(vm, &w, ret_f);
	serial_save(&vm->serial, &w);
	for (unsigned int i = 0; i < vm->n_devices; i++) {
		pthread_mutex_lock(&vm->devices[i].lock);
		virtio_save(&vm->devices[i], &w);
		pthread_mutex_unlock(&vm->devices[i].lock);
	}
	if (rc)
		return rc;
	if (!wire_ok(&w))
		return fault_set(ret_f, RC_LIMIT, 0, "state is larger than %u bytes", STATE_MAX);
	buf_commit(out, wire_len(&w));
	return RC_OK;
}

static enum rc check_shape(struct vm *vm, struct wire *w, struct fault *ret_f)
{
	if (wire_get_u32(w) != STATE_MAGIC)
		return fault_set(ret_f, RC_INVALID, 0, "not a machine state");
	if (wire_get_u32(w) != STATE_VERSION)
		return fault_set(ret_f, RC_STATE, 0, "state was written by another version of nestbox-vmm");
	if (wire_get_u32(w) != vm->n_cpus || wire_get_u32(w) != vm->n_devices ||
	    wire_get_u64(w) != vm->memory.bytes)
		return fault_set(ret_f, RC_STATE, 0, "state is of a machine of another shape");
	if (wire_get_u64(w) != cpuid_hash(vm->cpuid))
		return fault_set(ret_f, RC_STATE, 0, "state was saved on another kind of processor");
	return RC_OK;
}

static enum rc load_chips(struct vm *vm, struct wire *w, struct kvm_irqchip chips[IRQCHIPS], struct fault *ret_f)
{
	struct kvm_clock_data clock = { 0 };

	for (uint32_t i = 0; i < IRQCHIPS; i++) {
		size_t n;
		const uint8_t *raw = wire_get_bytes(w, &n);

		if (!raw || n != sizeof(chips[i]))
			return fault_set(ret_f, RC_INVALID, 0, "state ends inside the interrupt controllers");
		memcpy(&chips[i], raw, n);
		if (chips[i].chip_id != i)
			return fault_set(ret_f, RC_INVALID, 0, "state has another interrupt controller");
	}
	clock.clock = wire_get_u64(w);
	/* Before the first KVM_RUN, or the guest may hang for minutes. */
	if (ioctl(vm->vm_fd, KVM_SET_CLOCK, &clock) < 0)
		return fault_set(ret_f, RC_SYS, errno, "KVM_SET_CLOCK");
	for (uint32_t i = 0; i < IRQCHIPS; i++)
		if (ioctl(vm->vm_fd, KVM_SET_IRQCHIP, &chips[i]) < 0)
			return fault_set(ret_f, RC_STATE, errno, "KVM_SET_IRQCHIP %u", i);
	return RC_OK;
}

/* A clone is somebody else: a new generation id, and the event that makes the guest's driver look. */
static void new_generation(struct vm *vm)
{
	void *genid = memory_at(&vm->memory, ACPI_GENID, 16, true);
	uint64_t one = 1;

	if (!genid)
		return;
	random_bytes(genid, 16);
	if (write(vm->ged_fd, &one, sizeof(one)) < 0)
		return;
}

enum rc vm_load_state(struct vm *vm, const void *data, size_t n, struct fault *ret_f)
{
	_cleanup_free_ uint8_t *copy = malloc(n ? n : 1);
	struct kvm_irqchip chips[IRQCHIPS];
	struct wire w;
	enum rc rc;

	if (!copy)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	memcpy(copy, data, n);
	wire_init(&w, copy, n);
	rc = check_shape(vm, &w, ret_f);
	for (unsigned int i = 0; !rc && i < vm->n_cpus; i++)
		rc = vcpu_load(&vm->cpus[i], &w, ret_f);
	if (!rc)
		rc = load_chips(vm, &w, chips, ret_f);
	if (rc)
		return rc;
	serial_load(&vm->serial, &w);
	for (unsigned int i = 0; !rc && i < vm->n_devices; i++)
		rc = virtio_load(&vm->devices[i], &w, ret_f);
	if (!rc && !wire_done(&w))
		rc = fault_set(ret_f, RC_INVALID, 0, "state has bytes left over");
	if (!rc)
		new_generation(vm);
	return rc;
}
