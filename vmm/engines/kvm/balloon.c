/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/engines/kvm/balloon.h"

#include "base/cleanup.h"

#include <linux/virtio_balloon.h>
#include <string.h>

#define INFLATE 0u
#define DEFLATE 1u
#define REPORT 2u /* without the queues of features that are not offered (statistics, hints) */

static void show(struct virtio_device *d)
{
	const struct balloon *b = d->state;

	memcpy(d->config, &b->target, 4);
	memcpy(d->config + 4, &b->actual, 4);
}

/* Page numbers, 32 bits each, in any order; runs of neighbours are given back at once. */
static void inflate(struct virtio_device *d, const struct virtio_chain *c)
{
	struct balloon *b = d->state;
	uint64_t bytes = MIN_OF(c->out_bytes, (uint64_t)VMM_BALLOON_PFNS_MAX * 4), first = 0, n = 0;

	for (uint64_t at = 0; at + 4 <= bytes; at += 4) {
		uint32_t pfn;

		iov_read(c->out, c->n_out, at, &pfn, 4);
		if (n && pfn == first + n) {
			n++;
			continue;
		}
		b->inflated += memory_discard(d->memory, first * MEMORY_PAGE, n * MEMORY_PAGE);
		first = pfn;
		n = 1;
	}
	b->inflated += memory_discard(d->memory, first * MEMORY_PAGE, n * MEMORY_PAGE);
}

/* The ranges themselves are the request's parts. They are not written, so they are not marked either. */
static void report(struct virtio_device *d, const struct virtio_chain *c)
{
	struct balloon *b = d->state;

	for (unsigned int i = 0; i < c->n_in; i++)
		b->reported += memory_discard_at(d->memory, c->in[i].iov_base, c->in[i].iov_len);
}

static void balloon_kick(struct virtio_device *d, unsigned int q)
{
	struct virtio_chain c;

	while (virtio_pop(d, q, &c)) {
		if (q == INFLATE)
			inflate(d, &c);
		else if (q == REPORT)
			report(d, &c);
		virtio_push(d, q, &c, 0);
		virtio_flush(d, q);
	}
}

/* Only `actual` is the driver's to write. */
static void balloon_config_write(struct virtio_device *d, uint32_t offset, const void *data, uint32_t n)
{
	struct balloon *b = d->state;

	if (offset != 4 || n != 4)
		return;
	memcpy(&b->actual, data, 4);
	show(d);
}

void balloon_target(struct virtio_device *d, uint32_t pages)
{
	struct balloon *b = d->state;

	pthread_mutex_lock(&d->lock);
	b->target = pages;
	show(d);
	virtio_config_changed(d);
	pthread_mutex_unlock(&d->lock);
}

static void balloon_save(struct virtio_device *d, struct wire *w)
{
	const struct balloon *b = d->state;

	wire_put_u32(w, b->target);
	wire_put_u32(w, b->actual);
}

static void balloon_load(struct virtio_device *d, struct wire *w)
{
	struct balloon *b = d->state;

	b->target = wire_get_u32(w);
	b->actual = wire_get_u32(w);
	show(d);
}

static void balloon_reset(struct virtio_device *d)
{
	struct balloon *b = d->state;

	b->actual = 0;
	show(d);
}

static const struct virtio_ops balloon_ops = {
	.id = VIRTIO_ID_BALLOON,
	.n_queues = 3,
	.features = 1ull << VIRTIO_BALLOON_F_DEFLATE_ON_OOM | 1ull << VIRTIO_BALLOON_F_REPORTING,
	.kick = balloon_kick,
	.reset = balloon_reset,
	.config_write = balloon_config_write,
	.save = balloon_save,
	.load = balloon_load,
};

void balloon_device_init(struct virtio_device *d, struct balloon *b, struct memory *memory, unsigned int index)
{
	memset(b, 0, sizeof(*b));
	virtio_init(d, &balloon_ops, memory, index, b);
	d->config_n = 8;
	show(d);
}
