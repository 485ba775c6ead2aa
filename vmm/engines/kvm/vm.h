/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One machine: KVM descriptors, vCPU threads, devices and their workers.
 *
 * Threads: the main thread (control, this file's functions), one per vCPU (KVM_RUN, register accesses), two workers: disks, and
 * everything else (net, rng, balloon). A paused machine has every vCPU out of KVM_RUN with its last exit completed, every
 * worker idle and every device flagged paused, so that memory and state stand still.
 */
#ifndef NB_VMM_VM_H
#define NB_VMM_VM_H

#include "base/buf.h"
#include "base/loop.h"
#include "vmm/engines/kvm/balloon.h"
#include "vmm/engines/kvm/blk.h"
#include "vmm/engines/kvm/boot.h"
#include "vmm/engines/kvm/net.h"
#include "vmm/engines/kvm/rng.h"
#include "vmm/engines/kvm/serial.h"

#include <linux/kvm.h>
#include <stdatomic.h>

enum vm_state { VM_NEW, VM_RUNNING, VM_PAUSED, VM_ENDED };

struct vm;

struct vcpu {
	struct vm *vm;
	unsigned int index;
	int fd;
	struct kvm_run *run;
	size_t run_bytes;
	pthread_t thread;
	bool started;
};

struct worker {
	struct vm *vm;
	struct loop *loop;
	pthread_t thread;
	bool started;
	int wake_fd; /* commands from the main thread */
	struct source *wake;
};

enum { WORKER_DISK, WORKER_OTHER, WORKERS };

struct vm {
	int kvm_fd, vm_fd;
	struct memory memory;
	bool logged; /* KVM keeps a log of what the guest writes */
	int pagemap_fd; /* of this process, while a fork or save is under way; -1: none (memory_own_used()) */
	uint64_t *log_bits; /* where the main thread has KVM put its dirty log, a slot at a time */
	unsigned int n_cpus;
	struct vcpu cpus[VMM_CPUS_MAX];
	struct kvm_cpuid2 *cpuid; /* what the vCPUs were given */
	struct virtio_device devices[VMM_DEVICES_MAX];
	unsigned int n_devices;
	struct blk disks[VMM_DISKS_MAX];
	unsigned int n_disks;
	struct net_dev nics[VMM_NICS_MAX];
	unsigned int n_nics;
	struct balloon balloon; /* the last device */
	struct serial serial;
	struct worker workers[WORKERS];
	struct kick *kicks[VMM_DEVICES_MAX * (VMM_QUEUES_MAX + 1)];
	unsigned int n_kicks;
	int end_fd; /* eventfd: a vCPU thread says the machine ended */
	const char *end_reason;
	uint64_t tsc_offset; /* of every vCPU, after a restore */
	bool tsc_scaled; /* after a restore: the guest's TSC has another rate than the host's */
	int ged_fd;
	bool filtered; /* vCPU threads confine themselves */

	/* Pause: the main thread raises `stop`, kicks every vCPU and waits until `parked` counts them all. A kick is kvm_run's immediate_exit
	 * and a signal; only the vCPU's thread takes it back, before it looks at `stop`. */
	pthread_mutex_t lock;
	pthread_cond_t changed;
	_Atomic bool stop;
	bool quit;
	unsigned int parked;
	enum vm_state state;
};

struct vm_disk_spec {
	int fd; /* taken */
	bool read_only;
	char serial[21];
};
struct vm_nic_spec {
	int tap_fd; /* taken */
	char mac[18];
};
struct vm_spec {
	int kvm_fd; /* taken */
	unsigned int n_cpus;
	struct vm_disk_spec disks[VMM_DISKS_MAX];
	unsigned int n_disks;
	struct vm_nic_spec nics[VMM_NICS_MAX];
	unsigned int n_nics;
	int serial_fd; /* borrowed */
	struct vm_limits {
		uint32_t disk_iops, disk_mbps; /* of each disk; 10^6 bytes a second; 0: none */
		uint32_t net_pps, net_mbps;    /* of the first network card, in each direction */
	} limits;
};

/* memory and descriptors are taken, whatever comes of it. The machine is VM_NEW: no vCPU runs. */
enum rc vm_create(const struct vm_spec *spec, struct memory *memory, struct vm **ret, struct fault *ret_f);
enum rc vm_boot(struct vm *vm, int kernel_fd, int initrd_fd, const char *cmdline, struct fault *ret_f);
/* Starts the threads, in state VM_PAUSED; vm_resume() then lets them run. */
enum rc vm_start_threads(struct vm *vm, struct fault *ret_f);
enum rc vm_pause(struct vm *vm, struct fault *ret_f);
enum rc vm_resume(struct vm *vm, struct fault *ret_f);
/* Pages written since the last call, into memory.own and the bitmap `fresh` (may be NULL). */
enum rc vm_gather(struct vm *vm, uint64_t *fresh, uint64_t *ret_pages, struct fault *ret_f);
void vm_free(struct vm *vm); /* ends all threads first */

/* snapshot.c: everything but memory, of a paused machine; and into a VM_NEW one of the same shape. */
enum rc vm_save_state(struct vm *vm, struct buf *out, struct fault *ret_f);
enum rc vm_load_state(struct vm *vm, const void *data, size_t n, struct fault *ret_f);

#endif
