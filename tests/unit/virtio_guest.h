/* SPDX-License-Identifier: Apache-2.0 */
/* A driver in fake guest memory: sets a block device's queue up by its registers and puts requests into its ring. */
#ifndef NB_TESTS_VIRTIO_GUEST_H
#define NB_TESTS_VIRTIO_GUEST_H

#include "vmm/engines/kvm/blk.h"
#include "vmm/engines/kvm/virtio.h"

#include <linux/virtio_ring.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#define GUEST_BYTES (64ull << 20)
#define GUEST_QUEUE 16u
#define GUEST_DESC 0x1000u
#define GUEST_AVAIL 0x2000u
#define GUEST_USED 0x3000u
#define GUEST_DATA 0x10000u
#define GUEST_SECTORS 64u

struct guest {
	struct memory memory;
	struct virtio_device d;
	struct blk blk;
	int disk;
	uint16_t avail;
};

static inline void guest_set(struct guest *g, uint64_t reg, uint32_t value)
{
	virtio_mmio_write(&g->d, reg, &value, 4);
}

static inline uint32_t guest_get(struct guest *g, uint64_t reg)
{
	uint32_t v = 0;

	virtio_mmio_read(&g->d, reg, &v, 4);
	return v;
}

static inline void guest_driver(struct guest *g)
{
	guest_set(g, 0x70, 0);
	guest_set(g, 0x70, 3);
	guest_set(g, 0x24, 1);
	guest_set(g, 0x20, 1); /* VERSION_1 */
	guest_set(g, 0x70, 11);
	guest_set(g, 0x30, 0);
	guest_set(g, 0x38, GUEST_QUEUE);
	guest_set(g, 0x80, GUEST_DESC);
	guest_set(g, 0x90, GUEST_AVAIL);
	guest_set(g, 0xa0, GUEST_USED);
	guest_set(g, 0x44, 1);
	guest_set(g, 0x70, 15);
	g->avail = 0;
}

static inline bool guest_new(struct guest *g)
{
	struct fault f;

	memset(g, 0, sizeof(*g));
	g->disk = memfd_create("disk", MFD_CLOEXEC);
	if (g->disk < 0 || ftruncate(g->disk, GUEST_SECTORS * 512) < 0 || memory_create(GUEST_BYTES, -1, -1, &g->memory, &f) ||
	    blk_init(&g->blk, g->disk, false, "disk", &f))
		return false;
	blk_device_init(&g->d, &g->blk, &g->memory, 0);
	if (g->d.irq_fd <= 0)
		g->d.irq_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	guest_driver(g);
	return true;
}

static inline void guest_free(struct guest *g)
{
	memory_free(&g->memory);
	close(g->disk);
	close(g->d.irq_fd);
}

static inline void guest_desc(struct guest *g, unsigned int i, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next)
{
	struct vring_desc *t = memory_at(&g->memory, GUEST_DESC, GUEST_QUEUE * sizeof(*t), true);

	t[i] = (struct vring_desc){ addr, len, flags, next };
}

static inline void guest_kick(struct guest *g)
{
	pthread_mutex_lock(&g->d.lock);
	if (virtio_live(&g->d))
		g->d.ops->kick(&g->d, 0);
	pthread_mutex_unlock(&g->d.lock);
}

static inline void guest_offer(struct guest *g, uint16_t head)
{
	uint16_t *a = memory_at(&g->memory, GUEST_AVAIL, 4 + 2 * GUEST_QUEUE, true);

	a[2 + g->avail % GUEST_QUEUE] = head;
	a[1] = ++g->avail;
	guest_kick(g);
}

static inline uint16_t guest_used(struct guest *g)
{
	return ((uint16_t *)memory_at(&g->memory, GUEST_USED, 4, false))[1];
}

#endif
