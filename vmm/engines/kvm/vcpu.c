/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/engines/kvm/vcpu.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "vmm/engines/kvm/acpi.h"
#include "vmm/engines/kvm/filter.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#define CPUID_ENTRIES 256
#define KICK_SIGNAL SIGUSR1

/* --- CPUID --------------------------------------------------------------------------------------------------------- */

static void cpuid_mask(struct kvm_cpuid_entry2 *e)
{
	switch (e->function) {
	case 1:
		e->ecx &= ~(1u << 5);               /* VMX */
		e->ecx |= 1u << 31 | 1u << 24;      /* hypervisor; TSC deadline timer, which KVM's local APIC has */
		break;
	case 0xa: e->eax = e->ebx = e->ecx = e->edx = 0; break; /* no performance counters */
	case 0x80000001: e->ecx &= ~(1u << 2 | 1u << 23 | 1u << 24 | 1u << 28); break; /* SVM, PMU extensions */
	case 0x8000000a: e->eax = e->ebx = e->ecx = e->edx = 0; break;
	case 0x80000008: e->ecx = 0; break; /* core counts of the host */
	default: break;
	}
}

enum rc cpuid_make(int kvm_fd, struct kvm_cpuid2 **ret, struct fault *ret_f)
{
	_cleanup_free_ struct kvm_cpuid2 *c =
		calloc(1, sizeof(*c) + CPUID_ENTRIES * sizeof(struct kvm_cpuid_entry2));

	if (!c)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	c->nent = CPUID_ENTRIES;
	if (ioctl(kvm_fd, KVM_GET_SUPPORTED_CPUID, c) < 0)
		return fault_set(ret_f, RC_SYS, errno, "KVM_GET_SUPPORTED_CPUID");
	for (unsigned int i = 0; i < c->nent; i++)
		cpuid_mask(&c->entries[i]);
	*ret = take_ptr(c);
	return RC_OK;
}

/* Topology: every vCPU is a core of one package. */
static void cpuid_personal(struct kvm_cpuid2 *c, unsigned int index, unsigned int n_cpus)
{
	unsigned int bits = 0;

	while ((1u << bits) < n_cpus)
		bits++;
	for (unsigned int i = 0; i < c->nent; i++) {
		struct kvm_cpuid_entry2 *e = &c->entries[i];

		if (e->function == 1) {
			e->ebx = (e->ebx & 0xffff) | n_cpus << 16 | index << 24;
			e->edx = n_cpus > 1 ? e->edx | 1u << 28 : e->edx & ~(1u << 28);
		} else if (e->function == 4) {
			e->eax = (e->eax & 0x3fff) | (e->eax & 0x1f ? (1u << bits) - 1 : 0) << 26;
		} else if (e->function == 0xb || e->function == 0x1f) {
			e->edx = index;
			e->eax = e->index == 0 ? 0 : e->index == 1 ? bits : 0;
			e->ebx = e->index == 0 ? 1 : e->index == 1 ? n_cpus : 0;
			e->ecx = e->index | (e->index == 0 ? 1u << 8 : e->index == 1 ? 2u << 8 : 0);
		} else if (e->function == 0x8000001e) {
			e->eax = index;
			e->ebx = index;
			e->ecx = 0;
		}
	}
}

/* --- creation ------------------------------------------------------------------------------------------------------ */

enum rc vcpu_create(struct vm *vm, unsigned int index, struct fault *ret_f)
{
	struct vcpu *c = &vm->cpus[index];
	size_t n = sizeof(*vm->cpuid) + vm->cpuid->nent * sizeof(struct kvm_cpuid_entry2);
	_cleanup_free_ struct kvm_cpuid2 *own = malloc(n);
	int bytes = ioctl(vm->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);

	c->vm = vm;
	c->index = index;
	if (!own)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	c->fd = ioctl(vm->vm_fd, KVM_CREATE_VCPU, (unsigned long)index);
	if (c->fd < 0 || bytes <= 0)
		return fault_set(ret_f, RC_SYS, errno, "KVM_CREATE_VCPU %u", index);
	c->run_bytes = (size_t)bytes;
	c->run = mmap(NULL, c->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, c->fd, 0);
	if (c->run == MAP_FAILED) {
		c->run = NULL;
		return fault_set(ret_f, RC_NOMEM, errno, "map vCPU %u", index);
	}
	memcpy(own, vm->cpuid, n);
	cpuid_personal(own, index, vm->n_cpus);
	if (ioctl(c->fd, KVM_SET_CPUID2, own) < 0)
		return fault_set(ret_f, RC_SYS, errno, "KVM_SET_CPUID2");
	return RC_OK;
}

void vcpu_free(struct vcpu *c)
{
	if (c->run)
		munmap(c->run, c->run_bytes);
	c->run = NULL;
	if (c->fd > 0)
		close(c->fd);
	c->fd = -1;
}

/* --- the thread ---------------------------------------------------------------------------------------------------- */

static void end_machine(struct vm *vm, const char *reason)
{
	uint64_t one = 1;

	pthread_mutex_lock(&vm->lock);
	if (!vm->end_reason)
		vm->end_reason = reason;
	pthread_mutex_unlock(&vm->lock);
	if (write(vm->end_fd, &one, sizeof(one)) < 0)
		return;
}

static void on_port(struct vm *vm, const struct kvm_run *run)
{
	uint8_t *data = (uint8_t *)(uintptr_t)run + run->io.data_offset;
	uint16_t port = run->io.port;
	bool in = run->io.direction == KVM_EXIT_IO_IN;

	for (uint32_t i = 0; i < run->io.count; i++, data += run->io.size) {
		if (port >= SERIAL_PORT && port < SERIAL_PORT + 8 && run->io.size == 1) {
			if (in)
				*data = serial_read(&vm->serial, (uint16_t)(port - SERIAL_PORT));
			else
				serial_write(&vm->serial, (uint16_t)(port - SERIAL_PORT), *data);
		} else if (in) {
			/* Nothing answers there: a floating bus; the keyboard controller is ready for its reset command. */
			memset(data, port == 0x64 ? 0 : 0xff, run->io.size);
		} else if (port == 0x64 && *data == 0xfe) {
			end_machine(vm, "guest reset");
		} else if (port == ACPI_SLEEP_PORT && (*data >> 2 & 7) == ACPI_SLP_TYP_S5 && (*data & 0x20)) {
			end_machine(vm, "guest powered off");
		}
	}
}

static void on_mmio(struct vm *vm, struct kvm_run *run)
{
	uint64_t at = run->mmio.phys_addr, n = (uint64_t)vm->n_devices * VIRTIO_WINDOW;

	if (at >= VIRTIO_MMIO_BASE && at - VIRTIO_MMIO_BASE < n) {
		struct virtio_device *d = &vm->devices[(at - VIRTIO_MMIO_BASE) / VIRTIO_WINDOW];
		uint64_t offset = (at - VIRTIO_MMIO_BASE) % VIRTIO_WINDOW;

		if (run->mmio.is_write)
			virtio_mmio_write(d, offset, run->mmio.data, run->mmio.len);
		else
			virtio_mmio_read(d, offset, run->mmio.data, run->mmio.len);
	} else if (!run->mmio.is_write) {
		memset(run->mmio.data, 0xff, run->mmio.len);
	}
}

/* True if the machine goes on. */
static bool on_exit_reason(struct vcpu *c)
{
	static struct log_limit limit = LOG_LIMIT_INIT(10, 10);

	switch (c->run->exit_reason) {
	case KVM_EXIT_IO: on_port(c->vm, c->run); return true;
	case KVM_EXIT_MMIO: on_mmio(c->vm, c->run); return true;
	case KVM_EXIT_INTR: return true;
	case KVM_EXIT_HLT: return true;
	case KVM_EXIT_SHUTDOWN: end_machine(c->vm, "guest reset (triple fault)"); return false;
	case KVM_EXIT_SYSTEM_EVENT: end_machine(c->vm, "guest shut down"); return false;
	default:
		log_limited(&limit, LOG_LEVEL_ERROR, "vCPU stopped cpu=%u exit=%u detail=%llu", c->index,
			    c->run->exit_reason,
			    c->run->exit_reason == KVM_EXIT_INTERNAL_ERROR ?
				    (unsigned long long)c->run->internal.suberror :
				    (unsigned long long)c->run->hw.hardware_exit_reason);
		end_machine(c->vm, "processor could not go on (KVM internal error)");
		return false;
	}
}

/*
 * Out of KVM_RUN with the last exit completed: what a read of MMIO or a port returns is taken in by one more entry. That one may come out
 * again with the next part of the same instruction (a string of ports, an access across two pages), which is served like any
 * other: what was lost here the guest would have written or read in vain. False: the processor does not go on.
 */
static bool complete_exit(struct vcpu *c)
{
	bool runs = true;

	/* Nobody else takes this back while it is so (vcpu_main()), so no guest instruction runs in here. */
	__atomic_store_n(&c->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
	while (runs && !ioctl(c->fd, KVM_RUN, 0))
		runs = on_exit_reason(c);
	return runs;
}

/* Waits here while the machine is paused. False: end of the thread. */
static bool park(struct vcpu *c, bool *runs)
{
	struct vm *vm = c->vm;
	bool quit;

	if (!complete_exit(c))
		*runs = false;
	pthread_mutex_lock(&vm->lock);
	vm->parked++;
	pthread_cond_broadcast(&vm->changed);
	while (vm->stop && !vm->quit)
		pthread_cond_wait(&vm->changed, &vm->lock);
	vm->parked--;
	quit = vm->quit;
	pthread_mutex_unlock(&vm->lock);
	return !quit;
}

static void on_kick(int signal)
{
	(void)signal; /* its only purpose is EINTR out of KVM_RUN */
}

static void *vcpu_main(void *arg)
{
	static struct log_limit limit = LOG_LIMIT_INIT(10, 10);
	struct vcpu *c = arg;
	bool runs = true, confined = false;
	sigset_t none;

	sigemptyset(&none);
	pthread_sigmask(SIG_SETMASK, &none, NULL);
	for (;;) {
		if ((c->vm->stop || !runs) && !park(c, &runs))
			return NULL;
		/*
		 * Only this thread takes a kick back, and looks at `stop` after it: vcpu_kick() comes after `stop` was set, so whoever
		 * finds it clear still has the kick before it at KVM_RUN.
		 */
		__atomic_store_n(&c->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
		if (c->vm->stop)
			continue;
		if (!runs) {
			c->vm->stop = true; /* ended: stays parked until the process goes */
			continue;
		}
		/* Before the first guest instruction; not earlier, because the process's own filter comes first. */
		if (c->vm->filtered && !confined) {
			runs = !filter_vcpu(NULL);
			confined = true;
			if (!runs)
				end_machine(c->vm, "processor thread could not be confined");
			continue;
		}
		if (ioctl(c->fd, KVM_RUN, 0) < 0) {
			if (errno == EINTR || errno == EAGAIN)
				continue;
			log_limited(&limit, LOG_LEVEL_ERROR, "KVM_RUN failed cpu=%u errno=%d", c->index, errno);
			end_machine(c->vm, "KVM_RUN failed");
			runs = false;
			continue;
		}
		runs = on_exit_reason(c);
	}
}

void vcpu_kick(struct vcpu *c)
{
	__atomic_store_n(&c->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
	pthread_kill(c->thread, KICK_SIGNAL);
}

enum rc vcpu_thread_start(struct vcpu *c, struct fault *ret_f)
{
	struct sigaction sa = { .sa_handler = on_kick };
	int err;

	sigaction(KICK_SIGNAL, &sa, NULL);
	err = pthread_create(&c->thread, NULL, vcpu_main, c);
	if (err)
		return fault_set(ret_f, RC_SYS, err, "start vCPU thread");
	c->started = true;
	return RC_OK;
}
