/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A driver in fake guest memory: sets a device's queues up by its registers and puts requests into its rings. The network card's
 * tap is a pair of datagram sockets, of which the test holds the other end (peer).
 */
#ifndef NB_TESTS_VIRTIO_GUEST_H
#define NB_TESTS_VIRTIO_GUEST_H

#include "vmm/engines/kvm/balloon.h"
#include "vmm/engines/kvm/blk.h"
#include "vmm/engines/kvm/net.h"
#include "vmm/engines/kvm/rng.h"
#include "vmm/engines/kvm/virtio.h"

#include <linux/virtio_ring.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define GUEST_BYTES (64ull << 20)
#define GUEST_QUEUE 16u
#define GUEST_DESC(q) (0x1000u + (q) * 0x3000u)
#define GUEST_AVAIL(q) (0x2000u + (q) * 0x3000u)
#define GUEST_USED(q) (0x3000u + (q) * 0x3000u)
#define GUEST_RINGS_END 0xa000u
#define GUEST_DATA 0x10000u
#define GUEST_SECTORS 64u
#define GUEST_EVENT_IDX (1ull << VIRTIO_RING_F_EVENT_IDX)
#define GUEST_NEEDS_RESET 64u

struct guest {
	struct memory memory;
	struct virtio_device d;
	union {
		struct blk blk;
		struct net_dev net;
		struct balloon balloon;
	};
	int disk, peer;
	uint64_t features; /* besides VERSION_1 */
	uint16_t avail[VMM_QUEUES_MAX];
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

/* Memory of the guest as it sees it, without marking anything as the device's writing. */
static inline void *guest_at(struct guest *g, uint64_t addr)
{
	return memory_at(&g->memory, addr, 1, false);
}

static inline void guest_driver(struct guest *g)
{
	guest_set(g, 0x70, 0);
	guest_set(g, 0x70, 3);
	guest_set(g, 0x24, 0);
	guest_set(g, 0x20, (uint32_t)g->features);
	guest_set(g, 0x24, 1);
	guest_set(g, 0x20, 1 | (uint32_t)(g->features >> 32)); /* VERSION_1 */
	guest_set(g, 0x70, 11);
	for (unsigned int q = 0; q < g->d.ops->n_queues; q++) {
		guest_set(g, 0x30, q);
		guest_set(g, 0x38, GUEST_QUEUE);
		guest_set(g, 0x80, GUEST_DESC(q));
		guest_set(g, 0x90, GUEST_AVAIL(q));
		guest_set(g, 0xa0, GUEST_USED(q));
		guest_set(g, 0x44, 1);
		g->avail[q] = 0;
	}
	guest_set(g, 0x70, 15);
}

static inline bool guest_start(struct guest *g)
{
	g->d.irq_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	for (unsigned int q = 0; q < g->d.ops->n_queues; q++)
		g->d.queues[q].notify_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	guest_driver(g);
	return g->d.irq_fd >= 0;
}

static inline bool guest_memory(struct guest *g)
{
	memset(g, 0, sizeof(*g));
	g->disk = g->peer = -1;
	return !memory_create(GUEST_BYTES, -1, -1, &g->memory, NULL);
}

/* disk: taken */
static inline bool guest_new_on(struct guest *g, int disk)
{
	if (!guest_memory(g))
		return false;
	g->disk = disk;
	if (blk_init(&g->blk, disk, false, "disk", NULL))
		return false;
	blk_device_init(&g->d, &g->blk, &g->memory, 0);
	return guest_start(g);
}

static inline bool guest_new(struct guest *g)
{
	int disk = memfd_create("disk", MFD_CLOEXEC);

	return disk >= 0 && ftruncate(disk, GUEST_SECTORS * 512) == 0 && guest_new_on(g, disk);
}

static inline bool guest_new_net(struct guest *g, uint64_t features)
{
	int pair[2];

	if (!guest_memory(g) || socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
		return false;
	g->net.tap_fd = pair[0];
	g->peer = pair[1];
	g->features = features;
	net_device_init(&g->d, &g->net, &g->memory, 0);
	return guest_start(g);
}

static inline bool guest_new_balloon(struct guest *g)
{
	if (!guest_memory(g))
		return false;
	balloon_device_init(&g->d, &g->balloon, &g->memory, 0);
	return guest_start(g);
}

static inline bool guest_new_rng(struct guest *g)
{
	if (!guest_memory(g))
		return false;
	rng_device_init(&g->d, &g->memory, 0);
	return guest_start(g);
}

static inline void guest_free(struct guest *g)
{
	memory_free(&g->memory);
	if (g->disk >= 0)
		close(g->disk);
	if (g->peer >= 0) {
		close(g->peer);
		close(g->net.tap_fd);
	}
	close(g->d.irq_fd);
	for (unsigned int q = 0; q < g->d.ops->n_queues; q++)
		close(g->d.queues[q].notify_fd);
}

static inline void guest_desc(struct guest *g, unsigned int q, unsigned int i, uint64_t addr, uint32_t len, uint16_t flags,
			      uint16_t next)
{
	struct vring_desc *t = guest_at(g, GUEST_DESC(q));

	t[i] = (struct vring_desc){ addr, len, flags, next };
}

static inline void guest_kick(struct guest *g, unsigned int q)
{
	pthread_mutex_lock(&g->d.lock);
	if (virtio_live(&g->d))
		g->d.ops->kick(&g->d, q);
	pthread_mutex_unlock(&g->d.lock);
}

static inline void guest_put(struct guest *g, unsigned int q, uint16_t head)
{
	uint16_t *a = guest_at(g, GUEST_AVAIL(q));

	a[2 + g->avail[q] % GUEST_QUEUE] = head;
	a[1] = ++g->avail[q];
}

static inline void guest_offer(struct guest *g, unsigned int q, uint16_t head)
{
	guest_put(g, q, head);
	guest_kick(g, q);
}

static inline uint16_t guest_used(struct guest *g, unsigned int q)
{
	return ((uint16_t *)guest_at(g, GUEST_USED(q)))[1];
}

/* The i-th used element. */
static inline void guest_used_at(struct guest *g, unsigned int q, uint16_t i, uint32_t *head, uint32_t *bytes)
{
	const uint32_t *u = guest_at(g, GUEST_USED(q) + 4 + 8u * (i % GUEST_QUEUE));

	*head = u[0];
	*bytes = u[1];
}

/* Interrupts since the last call: 0 or more. */
static inline uint64_t guest_interrupts(struct guest *g)
{
	uint64_t n = 0;

	return read(g->d.irq_fd, &n, sizeof(n)) == sizeof(n) ? n : 0;
}

#endif
