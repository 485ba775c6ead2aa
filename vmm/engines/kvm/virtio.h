/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio-mmio, version 2 (virtio 1.2, section 4.2) and split virtqueues (section 2.7).
 *
 * Theory. The guest may write any register in any order at any time and any bytes into its rings. What holds nevertheless:
 *  - A queue is used only between DRIVER_OK and reset, and only if its three areas lay in guest memory, aligned, with a
 *    power-of-two size, when it was enabled; registers of an enabled queue are read-only.
 *  - Ring areas are looked up by address at each use (never cached pointers), a descriptor is copied once and the copy
 *    checked, a chain has at most ops->chain_max descriptors, indices are taken modulo the size that was fixed.
 *  - A table of descriptors beside the ring (indirect, 2.7.5.3) exists only where the device offers it and the driver took it: one
 *    a chain, as its last link, whole descriptors, wholly in one region; what it has counts as the chain's.
 *  - A violation sets DEVICE_NEEDS_RESET and the device stops until the driver resets it. Only that guest suffers.
 * Locking: registers are handled on vCPU threads, queues on the device's worker; device->lock covers both. Two registers are
 * served without it, because an interrupt handler uses them while the worker may be in a disk's read: the interrupt's status and
 * its acknowledgement, both one atomic word.
 *
 * What a device writes is marked as written (memory.h) after it was written and before the driver can see it: marked before, a
 * fork could copy the page in between and never look at it again.
 */
#ifndef NB_VMM_VIRTIO_H
#define NB_VMM_VIRTIO_H

#include "base/wire.h"
#include "vmm/engines/kvm/limits.h"
#include "vmm/engines/kvm/memory.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/uio.h>

#define VIRTIO_WINDOW 0x1000u          /* bytes of MMIO space a device has */
#define VIRTIO_MMIO_BASE 0xd0000000ull /* in the hole; device i at + i * VIRTIO_WINDOW */
#define VIRTIO_IRQ_BASE 5u             /* device i has GSI VIRTIO_IRQ_BASE + i */
#define VIRTIO_CONFIG_MAX 64

enum { VIRTIO_ID_NET = 1, VIRTIO_ID_BLK = 2, VIRTIO_ID_RNG = 4, VIRTIO_ID_BALLOON = 5 };

struct virtqueue {
	bool ready;
	uint16_t size;              /* chosen by the driver, a power of two <= ops->queue_max */
	uint64_t desc, avail, used; /* guest addresses, checked when enabled */
	uint16_t last_avail, used_idx;
	uint16_t signalled;         /* used index when the driver was last considered for an interrupt */
	bool signalled_valid;
	uint32_t wait_ms;           /* set by kick(): over its limit, to be kicked again after that; 0: no */
	int notify_fd;              /* ioeventfd */
};

struct virtio_device;

struct virtio_ops {
	uint32_t id;
	unsigned int n_queues;
	uint16_t queue_max, chain_max; /* 0: VMM_QUEUE_SIZE, VMM_CHAIN_MAX */
	uint64_t features; /* without VIRTIO_F_VERSION_1 and RING_EVENT_IDX, which the transport offers */
	/* On the device's worker, lock held: the driver kicked queue q. */
	void (*kick)(struct virtio_device *d, unsigned int q);
	/* Lock held: after DRIVER_OK (features settled), and after a reset. */
	void (*activate)(struct virtio_device *d);
	void (*reset)(struct virtio_device *d);
	/* Lock held: guest writes n bytes at offset, wholly inside config space; may be NULL. The device stores what it accepts. */
	void (*config_write)(struct virtio_device *d, uint32_t offset, const void *data, uint32_t n);
	/* Device's own state in a snapshot; may be NULL. */
	void (*save)(struct virtio_device *d, struct wire *w);
	void (*load)(struct virtio_device *d, struct wire *w);
};

struct virtio_device {
	const struct virtio_ops *ops;
	struct memory *memory;
	pthread_mutex_t lock;
	unsigned int index;
	uint32_t status, features_sel, driver_features_sel, queue_sel, config_generation;
	_Atomic uint32_t interrupt;
	uint64_t driver_features;
	struct virtqueue queues[VMM_QUEUES_MAX];
	uint8_t config[VIRTIO_CONFIG_MAX];
	uint32_t config_n;
	int irq_fd;
	_Atomic bool paused; /* the VM is stopped: kicks wait; set without the lock, to end a worker's batch */
	void *state; /* the device's own */
	struct iovec parts[VMM_BLK_CHAIN_MAX]; /* of the chain that was popped last */
};

/* One request: the copied, checked descriptors as pointers into guest memory, neighbours there as one. Until the next virtio_pop(). */
struct virtio_chain {
	uint16_t head;
	unsigned int n_out, n_in; /* device reads `out`, writes `in` */
	struct iovec *out, *in;
	uint64_t out_bytes, in_bytes;
};

void virtio_init(struct virtio_device *d, const struct virtio_ops *ops, struct memory *memory, unsigned int index,
		 void *state);
/* A vCPU's access. n is 1, 2, 4 or 8; anything odd reads as zero and writes nothing. */
void virtio_mmio_read(struct virtio_device *d, uint64_t offset, void *data, uint32_t n);
void virtio_mmio_write(struct virtio_device *d, uint64_t offset, const void *data, uint32_t n);

/* Lock held. True and a filled chain if the driver has offered one; false if none or the device was stopped. */
bool virtio_pop(struct virtio_device *d, unsigned int q, struct virtio_chain *ret);
/* Gives the last n popped chains back: they stay at the head of the queue. */
void virtio_unpop(struct virtio_device *d, unsigned int q, unsigned int n);
/* A chain is done. With written > 0 all of its `in` counts as written. */
void virtio_push(struct virtio_device *d, unsigned int q, const struct virtio_chain *chain, uint32_t written);
/* The same in two steps, for several chains that the driver shall see at once: virtio_done() for each, then virtio_publish(). */
void virtio_done(struct virtio_device *d, unsigned int q, const struct virtio_chain *chain, uint32_t written);
/* virtio_done() of what the caller has marked itself. */
void virtio_put(struct virtio_device *d, unsigned int q, uint16_t head, uint32_t written);
void virtio_publish(struct virtio_device *d, unsigned int q);
/* Interrupts the driver if it wants to know of what was pushed since the last call. */
void virtio_flush(struct virtio_device *d, unsigned int q);
void virtio_config_changed(struct virtio_device *d);
void virtio_broken(struct virtio_device *d); /* DEVICE_NEEDS_RESET */
bool virtio_live(const struct virtio_device *d);

void virtio_save(struct virtio_device *d, struct wire *w);
enum rc virtio_load(struct virtio_device *d, struct wire *w, struct fault *ret_f);

/* Copies between a chain's parts and flat memory; return the bytes moved. */
size_t iov_read(const struct iovec *iov, unsigned int n, uint64_t skip, void *to, size_t bytes);
size_t iov_write(const struct iovec *iov, unsigned int n, uint64_t skip, const void *from, size_t bytes);
/* The part of `in` that starts at `skip` and is at most `bytes` long. Returns how many entries of `out` it took. */
unsigned int iov_slice(const struct iovec *in, unsigned int n, uint64_t skip, uint64_t bytes, struct iovec *out);

#endif
