/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/engines/kvm/vm.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "vmm/engines/kvm/acpi.h"
#include "vmm/engines/kvm/vcpu.h"

#include <errno.h>
#include <linux/virtio_mmio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>

#define TSS_ADDR 0xfffbd000ul
#define IDENTITY_MAP_ADDR 0xfffbc000ull

static int event_new(void)
{
	return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

static enum rc irqfd(struct vm *vm, int fd, uint32_t gsi, struct fault *ret_f)
{
	struct kvm_irqfd arg = { .fd = (uint32_t)fd, .gsi = gsi };

	if (fd < 0 || ioctl(vm->vm_fd, KVM_IRQFD, &arg) < 0)
		return fault_set(ret_f, RC_SYS, errno, "KVM_IRQFD %u", gsi);
	return RC_OK;
}

static enum rc add_memory(struct vm *vm, struct fault *ret_f)
{
	const struct memory *m = &vm->memory;
	/* The log is on from the start: it is how a fork or a snapshot knows which pages are this machine's own, and a page
	 * that is copied on its first write faults then anyway. */
	struct kvm_userspace_memory_region low = { .slot = 0, .flags = KVM_MEM_LOG_DIRTY_PAGES, .guest_phys_addr = 0,
						   .memory_size = m->low, .userspace_addr = (uintptr_t)m->base };
	struct kvm_userspace_memory_region high = { .slot = 1, .flags = KVM_MEM_LOG_DIRTY_PAGES,
						    .guest_phys_addr = MEMORY_HIGH, .memory_size = m->high,
						    .userspace_addr = (uintptr_t)m->base + m->low };

	if (ioctl(vm->vm_fd, KVM_SET_USER_MEMORY_REGION, &low) < 0 ||
	    (m->high && ioctl(vm->vm_fd, KVM_SET_USER_MEMORY_REGION, &high) < 0))
		return fault_set(ret_f, RC_SYS, errno, "KVM_SET_USER_MEMORY_REGION");
	return RC_OK;
}

static enum rc gather_slot(struct vm *vm, uint32_t slot, uint64_t first, uint64_t bytes, uint64_t *fresh, uint64_t *count,
			   struct fault *ret_f)
{
	uint64_t words = (bytes / MEMORY_PAGE + 63) / 64;
	_cleanup_free_ uint64_t *bits = calloc((size_t)words, sizeof(uint64_t));
	struct kvm_dirty_log log = { .slot = slot };

	if (!bits)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	log.dirty_bitmap = bits;
	if (ioctl(vm->vm_fd, KVM_GET_DIRTY_LOG, &log) < 0)
		return fault_set(ret_f, RC_SYS, errno, "KVM_GET_DIRTY_LOG");
	*count += memory_gather(&vm->memory, first, bits, words, fresh);
	return RC_OK;
}

enum rc vm_gather(struct vm *vm, uint64_t *fresh, uint64_t *ret_pages, struct fault *ret_f)
{
	const struct memory *m = &vm->memory;
	uint64_t count = 0;
	enum rc rc = gather_slot(vm, 0, 0, m->low, fresh, &count, ret_f);

	if (!rc && m->high)
		rc = gather_slot(vm, 1, m->low / MEMORY_PAGE, m->high, fresh, &count, ret_f);
	if (!rc)
		*ret_pages = count;
	return rc;
}

static enum rc open_vm(struct vm *vm, struct fault *ret_f)
{
	uint64_t identity = IDENTITY_MAP_ADDR;

	vm->vm_fd = ioctl(vm->kvm_fd, KVM_CREATE_VM, 0);
	if (vm->vm_fd < 0)
		return fault_set(ret_f, RC_SYS, errno, "KVM_CREATE_VM");
	if (ioctl(vm->vm_fd, KVM_SET_IDENTITY_MAP_ADDR, &identity) < 0 ||
	    ioctl(vm->vm_fd, KVM_SET_TSS_ADDR, TSS_ADDR) < 0)
		return fault_set(ret_f, RC_SYS, errno, "set KVM's own pages");
	if (ioctl(vm->vm_fd, KVM_CREATE_IRQCHIP, 0) < 0)
		return fault_set(ret_f, RC_SYS, errno, "KVM_CREATE_IRQCHIP");
	return add_memory(vm, ret_f);
}

/* --- devices ------------------------------------------------------------------------------------------------------- */

struct kick {
	struct virtio_device *d;
	unsigned int q;
	struct source *tap; /* of a NIC: its tap's source, to be watched again when the driver gives buffers */
};

static struct kick kicks[VMM_DEVICES_MAX * (VMM_QUEUES_MAX + 1)];

static void on_queue(void *arg, uint32_t events)
{
	struct kick *k = arg;
	uint64_t n;

	(void)events;
	if (read(k->d->queues[k->q].notify_fd, &n, sizeof(n)) < 0)
		return;
	pthread_mutex_lock(&k->d->lock);
	if (virtio_live(k->d) && !k->d->paused)
		k->d->ops->kick(k->d, k->q);
	pthread_mutex_unlock(&k->d->lock);
	if (k->tap && k->q == 0 && ((struct net_dev *)k->d->state)->rx_waits)
		loop_fd_events(k->tap, EPOLLIN, NULL);
}

static void on_tap(void *arg, uint32_t events)
{
	struct kick *k = arg;

	(void)events;
	if (!net_tap_ready(k->d))
		loop_fd_events(k->tap, 0, NULL);
}

static enum rc wire_queue(struct vm *vm, struct virtio_device *d, unsigned int q, struct fault *ret_f)
{
	struct kvm_ioeventfd io = { .datamatch = q, .len = 4, .flags = KVM_IOEVENTFD_FLAG_DATAMATCH,
				    .addr = VIRTIO_MMIO_BASE + d->index * VIRTIO_WINDOW + VIRTIO_MMIO_QUEUE_NOTIFY };

	d->queues[q].notify_fd = event_new();
	io.fd = d->queues[q].notify_fd;
	if (io.fd < 0 || ioctl(vm->vm_fd, KVM_IOEVENTFD, &io) < 0)
		return fault_set(ret_f, RC_SYS, errno, "KVM_IOEVENTFD");
	return RC_OK;
}

/* Descriptors of a device: its interrupt, a doorbell for each queue. */
static enum rc wire_device(struct vm *vm, struct virtio_device *d, struct worker *worker, int tap_fd,
			   struct fault *ret_f)
{
	struct source *tap = NULL;
	enum rc rc;

	d->irq_fd = event_new();
	rc = irqfd(vm, d->irq_fd, VIRTIO_IRQ_BASE + d->index, ret_f);
	if (!rc && tap_fd >= 0) {
		struct kick *k = &kicks[vm->n_sources];

		k->d = d;
		rc = loop_fd(worker->loop, tap_fd, EPOLLIN, on_tap, k, &k->tap, ret_f);
		tap = k->tap;
		if (!rc)
			vm->sources[vm->n_sources++] = tap;
	}
	for (unsigned int q = 0; !rc && q < d->ops->n_queues; q++) {
		struct kick *k = &kicks[vm->n_sources];

		*k = (struct kick){ .d = d, .q = q, .tap = tap };
		rc = wire_queue(vm, d, q, ret_f);
		if (!rc)
			rc = loop_fd(worker->loop, d->queues[q].notify_fd, EPOLLIN, on_queue, k,
				     &vm->sources[vm->n_sources], ret_f);
		if (!rc)
			vm->n_sources++;
	}
	return rc;
}

static enum rc add_devices(struct vm *vm, const struct vm_spec *spec, struct fault *ret_f)
{
	struct worker *disk = &vm->workers[WORKER_DISK], *other = &vm->workers[WORKER_OTHER];
	enum rc rc = RC_OK;

	for (unsigned int i = 0; !rc && i < spec->n_disks; i++) {
		struct virtio_device *d = &vm->devices[vm->n_devices];

		rc = blk_init(&vm->disks[i], spec->disks[i].fd, spec->disks[i].read_only, spec->disks[i].serial, ret_f);
		if (rc)
			break;
		blk_device_init(d, &vm->disks[i], &vm->memory, vm->n_devices++);
		vm->n_disks++;
		rc = wire_device(vm, d, disk, -1, ret_f);
	}
	for (unsigned int i = 0; !rc && i < spec->n_nics; i++) {
		struct virtio_device *d = &vm->devices[vm->n_devices];

		rc = net_dev_init(&vm->nics[i], spec->nics[i].tap_fd, spec->nics[i].mac, ret_f);
		if (rc)
			break;
		net_device_init(d, &vm->nics[i], &vm->memory, vm->n_devices++);
		vm->n_nics++;
		rc = wire_device(vm, d, other, spec->nics[i].tap_fd, ret_f);
	}
	if (!rc) {
		struct virtio_device *d = &vm->devices[vm->n_devices];

		rng_device_init(d, &vm->memory, vm->n_devices++);
		rc = wire_device(vm, d, other, -1, ret_f);
	}
	for (unsigned int i = 0; i < vm->n_devices; i++)
		vm->devices[i].paused = true;
	return rc;
}

/* --- workers ------------------------------------------------------------------------------------------------------- */

static void on_wake(void *arg, uint32_t events)
{
	struct worker *w = arg;
	uint64_t n;

	(void)events;
	if (read(w->wake_fd, &n, sizeof(n)) < 0)
		return;
	pthread_mutex_lock(&w->vm->lock);
	if (w->vm->quit)
		loop_stop(w->loop);
	pthread_mutex_unlock(&w->vm->lock);
}

static void *worker_main(void *arg)
{
	struct worker *w = arg;

	loop_run(w->loop, NULL);
	return NULL;
}

static enum rc worker_init(struct vm *vm, struct worker *w, struct fault *ret_f)
{
	enum rc rc = loop_new(&w->loop, ret_f);

	w->vm = vm;
	w->wake_fd = event_new();
	if (!rc && w->wake_fd < 0)
		rc = fault_set(ret_f, RC_SYS, errno, "eventfd");
	if (!rc)
		rc = loop_fd(w->loop, w->wake_fd, EPOLLIN, on_wake, w, &w->wake, ret_f);
	return rc;
}

/* --- life ---------------------------------------------------------------------------------------------------------- */

enum rc vm_create(const struct vm_spec *spec, struct memory *memory, struct vm **ret, struct fault *ret_f)
{
	struct vm *vm = calloc(1, sizeof(*vm));
	enum rc rc;
	int serial_irq;

	if (!vm)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	vm->kvm_fd = spec->kvm_fd;
	vm->vm_fd = -1;
	vm->n_cpus = spec->n_cpus;
	vm->memory = *memory;
	memory->base = NULL;
	memory->written = memory->own = NULL;
	memory->base_fd = memory->delta_fd = -1;
	pthread_mutex_init(&vm->lock, NULL);
	pthread_cond_init(&vm->changed, NULL);
	vm->stop = true;
	vm->end_fd = event_new();
	serial_irq = event_new();
	vm->ged_fd = event_new();
	rc = cpuid_make(vm->kvm_fd, &vm->cpuid, ret_f);
	if (!rc)
		rc = open_vm(vm, ret_f);
	for (unsigned int i = 0; !rc && i < WORKERS; i++)
		rc = worker_init(vm, &vm->workers[i], ret_f);
	for (unsigned int i = 0; !rc && i < vm->n_cpus; i++)
		rc = vcpu_create(vm, i, ret_f);
	serial_init(&vm->serial, spec->serial_fd, serial_irq);
	if (!rc)
		rc = irqfd(vm, serial_irq, SERIAL_GSI, ret_f);
	if (!rc)
		rc = irqfd(vm, vm->ged_fd, ACPI_GED_GSI, ret_f);
	if (!rc)
		rc = add_devices(vm, spec, ret_f);
	if (rc) {
		vm_free(vm);
		return rc;
	}
	*ret = vm;
	return RC_OK;
}

enum rc vm_boot(struct vm *vm, int kernel_fd, int initrd_fd, const char *cmdline, struct fault *ret_f)
{
	struct boot_entry entry;
	struct kvm_sregs sregs;
	struct kvm_regs regs;
	void *genid;
	enum rc rc = boot_load(&vm->memory, kernel_fd, initrd_fd, cmdline, &entry, ret_f);

	if (!rc)
		rc = acpi_write(&vm->memory, vm->n_cpus, vm->n_devices, ret_f);
	if (rc)
		return rc;
	genid = memory_at(&vm->memory, ACPI_GENID, 16, true);
	if (genid)
		random_bytes(genid, 16);
	if (ioctl(vm->cpus[0].fd, KVM_GET_SREGS, &sregs) < 0)
		return fault_set(ret_f, RC_SYS, errno, "KVM_GET_SREGS");
	rc = boot_registers(&vm->memory, &entry, &regs, &sregs, ret_f);
	if (rc)
		return rc;
	if (ioctl(vm->cpus[0].fd, KVM_SET_SREGS, &sregs) < 0 || ioctl(vm->cpus[0].fd, KVM_SET_REGS, &regs) < 0)
		return fault_set(ret_f, RC_SYS, errno, "set boot registers");
	return RC_OK;
}

enum rc vm_start_threads(struct vm *vm, struct fault *ret_f)
{
	enum rc rc = RC_OK;

	vm->state = VM_PAUSED;
	for (unsigned int i = 0; !rc && i < WORKERS; i++) {
		int err = pthread_create(&vm->workers[i].thread, NULL, worker_main, &vm->workers[i]);

		vm->workers[i].started = !err;
		if (err)
			rc = fault_set(ret_f, RC_SYS, err, "start worker thread");
	}
	for (unsigned int i = 0; !rc && i < vm->n_cpus; i++)
		rc = vcpu_thread_start(&vm->cpus[i], ret_f);
	return rc;
}

static void devices_paused(struct vm *vm, bool paused)
{
	for (unsigned int i = 0; i < vm->n_devices; i++) {
		struct virtio_device *d = &vm->devices[i];

		/* Taking the lock waits for the request that a worker is serving. */
		pthread_mutex_lock(&d->lock);
		d->paused = paused;
		/* Whatever was kicked or arrived meanwhile is looked at again. */
		for (unsigned int q = 0; !paused && q < d->ops->n_queues; q++) {
			uint64_t one = 1;

			if (write(d->queues[q].notify_fd, &one, sizeof(one)) < 0)
				continue;
		}
		pthread_mutex_unlock(&d->lock);
	}
}

enum rc vm_pause(struct vm *vm, struct fault *ret_f)
{
	if (vm->state != VM_RUNNING)
		return fault_set(ret_f, RC_STATE, 0, "machine does not run");
	vm->stop = true;
	for (unsigned int i = 0; i < vm->n_cpus; i++)
		vcpu_kick(&vm->cpus[i]);
	pthread_mutex_lock(&vm->lock);
	while (vm->parked < vm->n_cpus)
		pthread_cond_wait(&vm->changed, &vm->lock);
	pthread_mutex_unlock(&vm->lock);
	devices_paused(vm, true);
	serial_flush(&vm->serial);
	vm->state = VM_PAUSED;
	return RC_OK;
}

enum rc vm_resume(struct vm *vm, struct fault *ret_f)
{
	if (vm->state != VM_PAUSED)
		return fault_set(ret_f, RC_STATE, 0, "machine is not paused");
	for (unsigned int i = 0; i < vm->n_cpus; i++) {
		vm->cpus[i].run->immediate_exit = 0;
		/* Says "you were stopped" to the guest's watchdogs; EINVAL when it does not use kvmclock. */
		ioctl(vm->cpus[i].fd, KVM_KVMCLOCK_CTRL, 0);
	}
	devices_paused(vm, false);
	pthread_mutex_lock(&vm->lock);
	vm->stop = false;
	pthread_cond_broadcast(&vm->changed);
	pthread_mutex_unlock(&vm->lock);
	vm->state = VM_RUNNING;
	return RC_OK;
}

static void end_threads(struct vm *vm)
{
	pthread_mutex_lock(&vm->lock);
	vm->quit = true;
	vm->stop = true;
	pthread_cond_broadcast(&vm->changed);
	pthread_mutex_unlock(&vm->lock);
	for (unsigned int i = 0; i < vm->n_cpus; i++)
		if (vm->cpus[i].started) {
			vcpu_kick(&vm->cpus[i]);
			pthread_join(vm->cpus[i].thread, NULL);
		}
	for (unsigned int i = 0; i < WORKERS; i++) {
		uint64_t one = 1;

		if (!vm->workers[i].started)
			continue;
		if (write(vm->workers[i].wake_fd, &one, sizeof(one)) == sizeof(one))
			pthread_join(vm->workers[i].thread, NULL);
	}
}

void vm_free(struct vm *vm)
{
	if (!vm)
		return;
	end_threads(vm);
	for (unsigned int i = 0; i < WORKERS; i++) {
		loop_free(vm->workers[i].loop);
		close_fd(&vm->workers[i].wake_fd);
	}
	for (unsigned int i = 0; i < vm->n_devices; i++) {
		close_fd(&vm->devices[i].irq_fd);
		for (unsigned int q = 0; q < VMM_QUEUES_MAX; q++)
			close_fd(&vm->devices[i].queues[q].notify_fd);
	}
	for (unsigned int i = 0; i < vm->n_disks; i++)
		close_fd(&vm->disks[i].fd);
	for (unsigned int i = 0; i < vm->n_nics; i++)
		close_fd(&vm->nics[i].tap_fd);
	for (unsigned int i = 0; i < vm->n_cpus; i++)
		vcpu_free(&vm->cpus[i]);
	close_fd(&vm->serial.irq_fd);
	close_fd(&vm->ged_fd);
	close_fd(&vm->end_fd);
	close_fd(&vm->vm_fd);
	close_fd(&vm->kvm_fd);
	memory_free(&vm->memory);
	free(vm->cpuid);
	free(vm);
}
