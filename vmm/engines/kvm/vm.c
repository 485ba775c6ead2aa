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

/* Also of slots that are there: then only their flags change. */
static enum rc set_memory(struct vm *vm, struct fault *ret_f)
{
	const struct memory *m = &vm->memory;
	uint32_t flags = vm->logged ? KVM_MEM_LOG_DIRTY_PAGES : 0;
	struct kvm_userspace_memory_region low = { .slot = 0, .flags = flags, .guest_phys_addr = 0, .memory_size = m->low,
						   .userspace_addr = (uintptr_t)m->base };
	struct kvm_userspace_memory_region high = { .slot = 1, .flags = flags, .guest_phys_addr = MEMORY_HIGH, .memory_size = m->high,
						    .userspace_addr = (uintptr_t)m->base + m->low };

	if (ioctl(vm->vm_fd, KVM_SET_USER_MEMORY_REGION, &low) < 0 ||
	    (m->high && ioctl(vm->vm_fd, KVM_SET_USER_MEMORY_REGION, &high) < 0))
		return fault_set(ret_f, RC_SYS, errno, "KVM_SET_USER_MEMORY_REGION");
	return RC_OK;
}

/* Before the pages are looked at: what is written meanwhile is in the log. */
static enum rc log_begin(struct vm *vm, struct fault *ret_f)
{
	enum rc rc;

	vm->logged = true;
	rc = set_memory(vm, ret_f);
	if (rc)
		vm->logged = false;
	else
		memory_own_used(&vm->memory, vm->pagemap_fd);
	return rc;
}

static enum rc gather_slot(struct vm *vm, uint32_t slot, uint64_t first, uint64_t bytes, uint64_t *fresh, uint64_t *count,
			   struct fault *ret_f)
{
	uint64_t words = (bytes / MEMORY_PAGE + 63) / 64;
	struct kvm_dirty_log log = { .slot = slot };

	log.dirty_bitmap = vm->log_bits;
	if (ioctl(vm->vm_fd, KVM_GET_DIRTY_LOG, &log) < 0)
		return fault_set(ret_f, RC_SYS, errno, "KVM_GET_DIRTY_LOG");
	*count += memory_gather(&vm->memory, first, vm->log_bits, words, fresh);
	return RC_OK;
}

enum rc vm_gather(struct vm *vm, uint64_t *fresh, uint64_t *ret_pages, struct fault *ret_f)
{
	const struct memory *m = &vm->memory;
	uint64_t count = 0;
	enum rc rc = vm->logged ? RC_OK : log_begin(vm, ret_f);

	if (!rc)
		rc = gather_slot(vm, 0, 0, m->low, fresh, &count, ret_f);
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
	/* A page that is copied on its first write faults then anyway, so there the log is on from the start. */
	vm->logged = vm->memory.base_fd >= 0 || vm->memory.delta_fd >= 0;
	return set_memory(vm, ret_f);
}

/* --- devices ------------------------------------------------------------------------------------------------------- */

/* A queue, or a network card's tap, as a source of its worker's loop. */
struct kick {
	struct virtio_device *d;
	unsigned int q;
	struct source *source, *timer; /* timer: of a device with a limit */
	struct source *tap;            /* of a NIC: its tap, to be watched again when the driver gives buffers */
};

static void serve_queue(void *arg)
{
	struct kick *k = arg;
	uint32_t wait_ms = 0;

	pthread_mutex_lock(&k->d->lock);
	if (virtio_live(k->d) && !k->d->paused) {
		k->d->ops->kick(k->d, k->q);
		wait_ms = k->d->queues[k->q].wait_ms;
	}
	pthread_mutex_unlock(&k->d->lock);
	if (wait_ms && k->timer)
		loop_timer_set(k->timer, now_ms() + wait_ms);
	if (k->tap && k->q == 0 && ((struct net_dev *)k->d->state)->rx_waits)
		loop_fd_events(k->tap, EPOLLIN, NULL);
}

/* Edge-triggered: each signal of the eventfd comes here once, and nobody needs to read it. */
static void on_queue(void *arg, uint32_t events)
{
	(void)events;
	serve_queue(arg);
}

static void on_tap(void *arg, uint32_t events)
{
	struct kick *k = arg;
	uint32_t wait_ms;

	(void)events;
	if (net_tap_ready(k->d, &wait_ms))
		return;
	loop_fd_events(k->source, 0, NULL);
	if (wait_ms && k->timer)
		loop_timer_set(k->timer, now_ms() + wait_ms);
}

static void on_tap_timer(void *arg)
{
	loop_fd_events(((struct kick *)arg)->source, EPOLLIN, NULL);
}

static enum rc kick_new(struct vm *vm, struct worker *worker, struct virtio_device *d, bool limited, loop_timer_fn *timer,
			struct kick **ret, struct fault *ret_f)
{
	struct kick *k = calloc(1, sizeof(*k));

	if (!k)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	vm->kicks[vm->n_kicks++] = k;
	k->d = d;
	*ret = k;
	return limited ? loop_timer(worker->loop, UINT64_MAX, timer, k, &k->timer, ret_f) : RC_OK;
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
static enum rc wire_device(struct vm *vm, struct virtio_device *d, struct worker *worker, int tap_fd, bool limited,
			   struct fault *ret_f)
{
	struct source *tap = NULL;
	struct kick *k;
	enum rc rc;

	d->irq_fd = event_new();
	rc = irqfd(vm, d->irq_fd, VIRTIO_IRQ_BASE + d->index, ret_f);
	if (!rc && tap_fd >= 0) {
		rc = kick_new(vm, worker, d, limited, on_tap_timer, &k, ret_f);
		if (!rc)
			rc = loop_fd(worker->loop, tap_fd, EPOLLIN, on_tap, k, &k->source, ret_f);
		if (!rc)
			tap = k->source;
	}
	for (unsigned int q = 0; !rc && q < d->ops->n_queues; q++) {
		rc = kick_new(vm, worker, d, limited, serve_queue, &k, ret_f);
		if (rc)
			break;
		k->q = q;
		k->tap = tap;
		rc = wire_queue(vm, d, q, ret_f);
		if (!rc)
			rc = loop_fd(worker->loop, d->queues[q].notify_fd, EPOLLIN | EPOLLET, on_queue, k, &k->source, ret_f);
	}
	return rc;
}

static enum rc add_disk(struct vm *vm, const struct vm_disk_spec *spec, unsigned int i, const struct vm_limits *l,
			struct fault *ret_f)
{
	struct virtio_device *d = &vm->devices[vm->n_devices];
	struct blk *b = &vm->disks[i];
	enum rc rc = blk_init(b, spec->fd, spec->read_only, spec->serial, ret_f);

	if (rc)
		return rc;
	rate_init(&b->rate, l->disk_iops, l->disk_mbps * 1000000ull, now_us());
	blk_device_init(d, b, &vm->memory, vm->n_devices++);
	return wire_device(vm, d, &vm->workers[WORKER_DISK], -1, rate_limited(&b->rate), ret_f);
}

static enum rc add_nic(struct vm *vm, const struct vm_nic_spec *spec, unsigned int i, const struct vm_limits *l,
		       struct fault *ret_f)
{
	struct virtio_device *d = &vm->devices[vm->n_devices];
	struct net_dev *n = &vm->nics[i];
	enum rc rc = net_dev_init(n, spec->tap_fd, spec->mac, ret_f);

	if (rc)
		return rc;
	if (i == 0) {
		rate_init(&n->rx, l->net_pps, l->net_mbps * 1000000ull, now_us());
		rate_init(&n->tx, l->net_pps, l->net_mbps * 1000000ull, now_us());
	}
	net_device_init(d, n, &vm->memory, vm->n_devices++);
	return wire_device(vm, d, &vm->workers[WORKER_OTHER], spec->tap_fd, rate_limited(&n->rx), ret_f);
}

static enum rc add_devices(struct vm *vm, const struct vm_spec *spec, struct fault *ret_f)
{
	struct worker *other = &vm->workers[WORKER_OTHER];
	struct virtio_device *d;
	enum rc rc = RC_OK;

	for (unsigned int i = 0; !rc && i < spec->n_disks; i++)
		rc = add_disk(vm, &spec->disks[i], i, &spec->limits, ret_f);
	for (unsigned int i = 0; !rc && i < spec->n_nics; i++)
		rc = add_nic(vm, &spec->nics[i], i, &spec->limits, ret_f);
	if (!rc) {
		d = &vm->devices[vm->n_devices];
		rng_device_init(d, &vm->memory, vm->n_devices++);
		rc = wire_device(vm, d, other, -1, false, ret_f);
	}
	if (!rc) {
		d = &vm->devices[vm->n_devices];
		balloon_device_init(d, &vm->balloon, &vm->memory, vm->n_devices++);
		rc = wire_device(vm, d, other, -1, false, ret_f);
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
	if (rc)
		return rc;
	w->wake_fd = event_new();
	if (w->wake_fd < 0)
		rc = fault_set(ret_f, RC_SYS, errno, "eventfd");
	if (!rc)
		rc = loop_fd(w->loop, w->wake_fd, EPOLLIN, on_wake, w, &w->wake, ret_f);
	return rc;
}

/* --- life ---------------------------------------------------------------------------------------------------------- */

/* From here vm_free() closes what the caller gave, however far it came. */
static void take_all(struct vm *vm, const struct vm_spec *spec, struct memory *memory)
{
	vm->kvm_fd = spec->kvm_fd;
	vm->vm_fd = vm->pagemap_fd = -1;
	vm->n_cpus = spec->n_cpus;
	for (unsigned int i = 0; i < VMM_CPUS_MAX; i++)
		vm->cpus[i].fd = -1;
	for (unsigned int i = 0; i < WORKERS; i++)
		vm->workers[i].wake_fd = -1;
	for (unsigned int i = 0; i < spec->n_disks; i++)
		vm->disks[i].fd = spec->disks[i].fd;
	for (unsigned int i = 0; i < spec->n_nics; i++)
		vm->nics[i].tap_fd = spec->nics[i].tap_fd;
	vm->n_disks = spec->n_disks;
	vm->n_nics = spec->n_nics;
	vm->memory = *memory;
	memory->base = NULL;
	memory->written = memory->own = NULL;
	memory->base_fd = memory->delta_fd = -1;
}

static void spec_close(const struct vm_spec *spec)
{
	close(spec->kvm_fd);
	for (unsigned int i = 0; i < spec->n_disks; i++)
		close(spec->disks[i].fd);
	for (unsigned int i = 0; i < spec->n_nics; i++)
		close(spec->nics[i].tap_fd);
}

enum rc vm_create(const struct vm_spec *spec, struct memory *memory, struct vm **ret, struct fault *ret_f)
{
	struct vm *vm = calloc(1, sizeof(*vm));
	enum rc rc;
	int serial_irq;

	if (!vm) {
		spec_close(spec);
		memory_free(memory);
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	}
	take_all(vm, spec, memory);
	pthread_mutex_init(&vm->lock, NULL);
	pthread_cond_init(&vm->changed, NULL);
	vm->stop = true;
	vm->end_fd = event_new();
	serial_irq = event_new();
	vm->ged_fd = event_new();
	rc = vm->end_fd < 0 ? fault_set(ret_f, RC_SYS, errno, "eventfd") : cpuid_make(vm->kvm_fd, &vm->cpuid, ret_f);
	vm->log_bits = memory_bitmap(vm->memory.bytes);
	if (!rc && !vm->log_bits)
		rc = fault_set(ret_f, RC_NOMEM, 0, "out of memory");
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
	for (unsigned int i = 0; i < vm->n_devices; i++)
		vm->devices[i].paused = paused; /* a worker in a batch ends it after the request at hand */
	for (unsigned int i = 0; i < vm->n_devices; i++) {
		struct virtio_device *d = &vm->devices[i];

		/* Taking the lock waits for that request. */
		pthread_mutex_lock(&d->lock);
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
	/* Says "you were stopped" to the guest's watchdogs; EINVAL when it does not use kvmclock. */
	for (unsigned int i = 0; i < vm->n_cpus; i++)
		ioctl(vm->cpus[i].fd, KVM_KVMCLOCK_CTRL, 0);
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
	for (unsigned int i = 0; i < vm->n_kicks; i++)
		free(vm->kicks[i]);
	for (unsigned int i = 0; i < vm->n_disks; i++)
		close_fd(&vm->disks[i].fd);
	for (unsigned int i = 0; i < vm->n_nics; i++)
		close_fd(&vm->nics[i].tap_fd);
	for (unsigned int i = 0; i < vm->n_cpus; i++)
		vcpu_free(&vm->cpus[i]);
	close_fd(&vm->serial.irq_fd);
	close_fd(&vm->ged_fd);
	close_fd(&vm->end_fd);
	close_fd(&vm->pagemap_fd);
	close_fd(&vm->vm_fd);
	close_fd(&vm->kvm_fd);
	memory_free(&vm->memory);
	free(vm->cpuid);
	free(vm->log_bits);
	free(vm);
}
