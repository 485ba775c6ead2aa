/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/engines/kvm/virtio.h"

#include "base/cleanup.h"

#include <linux/virtio_config.h>
#include <linux/virtio_mmio.h>
#include <linux/virtio_ring.h>
#include <stddef.h>
#include <string.h>

_Static_assert(VMM_CHAIN_MAX <= VMM_BLK_CHAIN_MAX, "a chain's parts are kept in virtio_device");

#define FEATURES_TRANSPORT ((1ull << VIRTIO_F_VERSION_1) | (1ull << VIRTIO_RING_F_EVENT_IDX))

void virtio_init(struct virtio_device *d, const struct virtio_ops *ops, struct memory *memory, unsigned int index,
		 void *state)
{
	memset(d, 0, offsetof(struct virtio_device, parts));
	d->ops = ops;
	d->memory = memory;
	d->index = index;
	d->state = state;
	d->irq_fd = -1;
	for (unsigned int q = 0; q < VMM_QUEUES_MAX; q++)
		d->queues[q].notify_fd = -1;
	pthread_mutex_init(&d->lock, NULL);
}

static uint64_t offered(const struct virtio_device *d)
{
	return d->ops->features | FEATURES_TRANSPORT;
}

static uint16_t queue_max(const struct virtio_device *d)
{
	return d->ops->queue_max ? d->ops->queue_max : VMM_QUEUE_SIZE;
}

bool virtio_live(const struct virtio_device *d)
{
	return (d->status & VIRTIO_CONFIG_S_DRIVER_OK) && !(d->status & VIRTIO_CONFIG_S_NEEDS_RESET);
}

static void interrupt(struct virtio_device *d, uint32_t bits)
{
	uint64_t one = 1;

	/* The status bit first: the handler reads it as soon as the interrupt arrives. */
	atomic_fetch_or(&d->interrupt, bits);
	if (d->irq_fd >= 0 && write(d->irq_fd, &one, sizeof(one)) < 0)
		return; /* the counter is full: an interrupt is on its way already */
}

void virtio_config_changed(struct virtio_device *d)
{
	d->config_generation++;
	if (d->status & VIRTIO_CONFIG_S_DRIVER_OK)
		interrupt(d, VIRTIO_MMIO_INT_CONFIG);
}

void virtio_broken(struct virtio_device *d)
{
	d->status |= VIRTIO_CONFIG_S_NEEDS_RESET;
	interrupt(d, VIRTIO_MMIO_INT_CONFIG);
}

static void reset(struct virtio_device *d)
{
	if (d->ops->reset)
		d->ops->reset(d);
	d->status = 0;
	d->interrupt = 0;
	d->features_sel = d->driver_features_sel = d->queue_sel = 0;
	d->driver_features = 0;
	for (unsigned int q = 0; q < VMM_QUEUES_MAX; q++) {
		int fd = d->queues[q].notify_fd;

		memset(&d->queues[q], 0, sizeof(d->queues[q]));
		d->queues[q].notify_fd = fd;
	}
}

/* Sizes of the three areas (2.7), with the event index words. */
static bool areas_ok(struct virtio_device *d, const struct virtqueue *v)
{
	uint64_t n = v->size;

	if (!n || n > queue_max(d) || (n & (n - 1)))
		return false;
	if ((v->desc & 15) || (v->avail & 1) || (v->used & 3))
		return false;
	return memory_at(d->memory, v->desc, 16 * n, false) && memory_at(d->memory, v->avail, 6 + 2 * n, false) &&
	       memory_at(d->memory, v->used, 6 + 8 * n, false);
}

static void write_status(struct virtio_device *d, uint32_t value)
{
	uint32_t added = value & ~d->status;

	if (!value) {
		reset(d);
		return;
	}
	/* Bits are only ever added, in order (3.1.1); FEATURES_OK stays clear for features we did not offer. */
	if (added & VIRTIO_CONFIG_S_FEATURES_OK) {
		if (!(d->status & VIRTIO_CONFIG_S_DRIVER) || (d->driver_features & ~offered(d)) ||
		    !(d->driver_features & (1ull << VIRTIO_F_VERSION_1)))
			added &= ~(uint32_t)VIRTIO_CONFIG_S_FEATURES_OK;
	}
	if ((added & VIRTIO_CONFIG_S_DRIVER_OK) && !(d->status & VIRTIO_CONFIG_S_FEATURES_OK))
		added &= ~(uint32_t)VIRTIO_CONFIG_S_DRIVER_OK;
	added &= ~(uint32_t)VIRTIO_CONFIG_S_NEEDS_RESET;
	d->status |= added;
	if ((added & VIRTIO_CONFIG_S_DRIVER_OK) && d->ops->activate)
		d->ops->activate(d);
}

static void write_queue(struct virtio_device *d, uint64_t reg, uint32_t value)
{
	struct virtqueue *v;

	if (d->queue_sel >= d->ops->n_queues)
		return;
	v = &d->queues[d->queue_sel];
	if (reg == VIRTIO_MMIO_QUEUE_READY && !value) {
		v->ready = false;
		return;
	}
	if (v->ready || (d->status & VIRTIO_CONFIG_S_DRIVER_OK))
		return;
	switch (reg) {
	case VIRTIO_MMIO_QUEUE_NUM: v->size = (uint16_t)MIN_OF(value, 0xffffu); break;
	case VIRTIO_MMIO_QUEUE_DESC_LOW: v->desc = (v->desc & ~0xffffffffull) | value; break;
	case VIRTIO_MMIO_QUEUE_DESC_HIGH: v->desc = (v->desc & 0xffffffff) | (uint64_t)value << 32; break;
	case VIRTIO_MMIO_QUEUE_AVAIL_LOW: v->avail = (v->avail & ~0xffffffffull) | value; break;
	case VIRTIO_MMIO_QUEUE_AVAIL_HIGH: v->avail = (v->avail & 0xffffffff) | (uint64_t)value << 32; break;
	case VIRTIO_MMIO_QUEUE_USED_LOW: v->used = (v->used & ~0xffffffffull) | value; break;
	case VIRTIO_MMIO_QUEUE_USED_HIGH: v->used = (v->used & 0xffffffff) | (uint64_t)value << 32; break;
	case VIRTIO_MMIO_QUEUE_READY:
		if (areas_ok(d, v)) {
			v->ready = true;
			v->last_avail = v->used_idx = 0;
			v->signalled_valid = false;
		}
		break;
	}
}

static uint32_t read_register(struct virtio_device *d, uint64_t reg)
{
	const struct virtqueue *v = d->queue_sel < d->ops->n_queues ? &d->queues[d->queue_sel] : NULL;

	switch (reg) {
	case VIRTIO_MMIO_MAGIC_VALUE: return 0x74726976;
	case VIRTIO_MMIO_VERSION: return 2;
	case VIRTIO_MMIO_DEVICE_ID: return d->ops->id;
	case VIRTIO_MMIO_VENDOR_ID: return 0x42584e00;
	case VIRTIO_MMIO_DEVICE_FEATURES:
		return d->features_sel > 1 ? 0 : (uint32_t)(offered(d) >> (32 * d->features_sel));
	case VIRTIO_MMIO_QUEUE_NUM_MAX: return v ? queue_max(d) : 0;
	case VIRTIO_MMIO_QUEUE_READY: return v ? v->ready : 0;
	case VIRTIO_MMIO_STATUS: return d->status;
	case VIRTIO_MMIO_CONFIG_GENERATION: return d->config_generation;
	default: return 0;
	}
}

void virtio_mmio_read(struct virtio_device *d, uint64_t offset, void *data, uint32_t n)
{
	memset(data, 0, n);
	if (offset == VIRTIO_MMIO_INTERRUPT_STATUS) {
		uint32_t value = d->interrupt;

		if (n == 4)
			memcpy(data, &value, 4);
		return;
	}
	pthread_mutex_lock(&d->lock);
	if (offset >= VIRTIO_MMIO_CONFIG) {
		uint64_t at = offset - VIRTIO_MMIO_CONFIG;

		if (at < d->config_n && n <= d->config_n - at)
			memcpy(data, d->config + at, n);
	} else if (n == 4 && !(offset & 3)) {
		uint32_t value = read_register(d, offset);

		memcpy(data, &value, 4);
	}
	pthread_mutex_unlock(&d->lock);
}

static void write_register(struct virtio_device *d, uint64_t reg, uint32_t value)
{
	switch (reg) {
	case VIRTIO_MMIO_DEVICE_FEATURES_SEL: d->features_sel = value; break;
	case VIRTIO_MMIO_DRIVER_FEATURES_SEL: d->driver_features_sel = value; break;
	case VIRTIO_MMIO_DRIVER_FEATURES:
		if (d->driver_features_sel > 1 || (d->status & VIRTIO_CONFIG_S_FEATURES_OK))
			break;
		d->driver_features &= ~(0xffffffffull << (32 * d->driver_features_sel));
		d->driver_features |= (uint64_t)value << (32 * d->driver_features_sel);
		break;
	case VIRTIO_MMIO_QUEUE_SEL: d->queue_sel = value; break;
	case VIRTIO_MMIO_QUEUE_NOTIFY:
		/* Normally caught by the ioeventfd; here when the value matched no queue of ours, or without KVM. */
		if (value < d->ops->n_queues && d->queues[value].notify_fd >= 0) {
			uint64_t one = 1;

			if (write(d->queues[value].notify_fd, &one, sizeof(one)) < 0)
				break;
		}
		break;
	case VIRTIO_MMIO_STATUS: write_status(d, value); break;
	default: write_queue(d, reg, value); break;
	}
}

void virtio_mmio_write(struct virtio_device *d, uint64_t offset, const void *data, uint32_t n)
{
	if (offset == VIRTIO_MMIO_INTERRUPT_ACK) {
		uint32_t value = 0;

		if (n == 4)
			memcpy(&value, data, 4);
		atomic_fetch_and(&d->interrupt, ~value);
		return;
	}
	pthread_mutex_lock(&d->lock);
	if (offset >= VIRTIO_MMIO_CONFIG) {
		uint64_t at = offset - VIRTIO_MMIO_CONFIG;

		if (d->ops->config_write && at < d->config_n && n <= d->config_n - at)
			d->ops->config_write(d, (uint32_t)at, data, n);
	} else if (n == 4 && !(offset & 3)) {
		uint32_t value;

		memcpy(&value, data, 4);
		write_register(d, offset, value);
	}
	pthread_mutex_unlock(&d->lock);
}

/* --- split ring -------------------------------------------------------------------------------------------------- */

static uint16_t load16(const void *at)
{
	return __atomic_load_n((const uint16_t *)at, __ATOMIC_ACQUIRE);
}

static void store16(void *at, uint16_t v)
{
	__atomic_store_n((uint16_t *)at, v, __ATOMIC_RELEASE);
}

/* One descriptor into the chain; false breaks the device. Its parts lie in d->parts, those the device reads first (2.7.4.2). */
static bool chain_add(struct virtio_device *d, struct virtio_chain *c, const struct vring_desc *desc)
{
	bool in = desc->flags & VRING_DESC_F_WRITE;
	unsigned int *n = in ? &c->n_in : &c->n_out;
	struct iovec *next = (in ? c->in : c->out) + *n;
	uint8_t *at;

	if (!desc->len)
		return true;
	if (!in && c->n_in)
		return false;
	at = memory_at(d->memory, desc->addr, desc->len, false); /* marked when it is given back */
	if (!at)
		return false;
	*(in ? &c->in_bytes : &c->out_bytes) += desc->len;
	if (*n && (uint8_t *)next[-1].iov_base + next[-1].iov_len == at) {
		next[-1].iov_len += desc->len;
		return true;
	}
	*next = (struct iovec){ at, desc->len };
	(*n)++;
	if (!in)
		c->in++;
	return true;
}

/* The descriptors of a chain: the ring's, from its table on the driver's own. */
struct table {
	const uint8_t *at;
	uint32_t n;
	bool indirect;
};

static bool table_enter(struct virtio_device *d, const struct vring_desc *desc, struct table *t)
{
	uint32_t n = desc->len / (uint32_t)sizeof(*desc);

	if (t->indirect || !(d->driver_features & (1ull << VIRTIO_RING_F_INDIRECT_DESC)) || (desc->flags & VRING_DESC_F_NEXT) || !n ||
	    desc->len % sizeof(*desc) || n > VMM_BLK_CHAIN_MAX)
		return false;
	*t = (struct table){ memory_at(d->memory, desc->addr, desc->len, false), n, true };
	return t->at;
}

static bool chain_walk(struct virtio_device *d, const struct virtqueue *v, uint16_t head, struct virtio_chain *c)
{
	struct table t = { memory_at(d->memory, v->desc, 16ull * v->size, false), v->size, false };
	unsigned int hops = d->ops->chain_max ? d->ops->chain_max : VMM_CHAIN_MAX;
	uint16_t at = head;

	*c = (struct virtio_chain){ .head = head, .out = d->parts, .in = d->parts };
	if (!t.at)
		return false;
	while (hops) {
		struct vring_desc desc;

		if (at >= t.n)
			return false;
		memcpy(&desc, t.at + 16ull * at, sizeof(desc)); /* once; what is checked is what is used */
		if (desc.flags & VRING_DESC_F_INDIRECT) {
			if (!table_enter(d, &desc, &t))
				return false;
			at = 0;
			continue; /* once a chain */
		}
		if (!chain_add(d, c, &desc))
			return false;
		if (!(desc.flags & VRING_DESC_F_NEXT))
			return true;
		at = desc.next;
		hops--;
	}
	return false;
}

static bool event_idx(const struct virtio_device *d)
{
	return d->driver_features & (1ull << VIRTIO_RING_F_EVENT_IDX);
}

bool virtio_pop(struct virtio_device *d, unsigned int q, struct virtio_chain *ret)
{
	struct virtqueue *v = &d->queues[q];
	uint8_t *avail, *used;
	uint16_t idx, head;

	if (!virtio_live(d) || !v->ready || d->paused)
		return false;
	avail = memory_at(d->memory, v->avail, 6 + 2ull * v->size, false);
	used = memory_at(d->memory, v->used, 6 + 8ull * v->size, false);
	if (!avail || !used) {
		virtio_broken(d);
		return false;
	}
	idx = load16(avail + 2);
	if (idx == v->last_avail) {
		if (!event_idx(d))
			return false;
		/* Ask for a kick at the next one, then look again: it may have come in between. */
		store16(used + 4 + 8ull * v->size, v->last_avail);
		memory_wrote(d->memory, used + 4 + 8ull * v->size, 2);
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		idx = load16(avail + 2);
		if (idx == v->last_avail)
			return false;
	}
	if ((uint16_t)(idx - v->last_avail) > v->size) {
		virtio_broken(d);
		return false;
	}
	head = load16(avail + 4 + 2ull * (v->last_avail & (v->size - 1)));
	v->last_avail++;
	if (!chain_walk(d, v, head, ret)) {
		virtio_broken(d);
		return false;
	}
	return true;
}

void virtio_unpop(struct virtio_device *d, unsigned int q, unsigned int n)
{
	d->queues[q].last_avail = (uint16_t)(d->queues[q].last_avail - n);
}

void virtio_put(struct virtio_device *d, unsigned int q, uint16_t head, uint32_t written)
{
	struct virtqueue *v = &d->queues[q];
	uint32_t elem[2] = { head, written };
	uint8_t *at;

	if (!v->ready)
		return;
	at = memory_at(d->memory, v->used + 4 + 8ull * (v->used_idx & (v->size - 1)), sizeof(elem), false);
	if (!at)
		return;
	memcpy(at, elem, sizeof(elem));
	memory_wrote(d->memory, at, sizeof(elem));
	v->used_idx++;
}

void virtio_publish(struct virtio_device *d, unsigned int q)
{
	struct virtqueue *v = &d->queues[q];
	uint8_t *used = v->ready ? memory_at(d->memory, v->used, 4, false) : NULL;

	if (!used)
		return;
	store16(used + 2, v->used_idx);
	memory_wrote(d->memory, used + 2, 2);
}

void virtio_done(struct virtio_device *d, unsigned int q, const struct virtio_chain *chain, uint32_t written)
{
	for (unsigned int i = 0; written && i < chain->n_in; i++)
		memory_wrote(d->memory, chain->in[i].iov_base, chain->in[i].iov_len);
	virtio_put(d, q, chain->head, written);
}

void virtio_push(struct virtio_device *d, unsigned int q, const struct virtio_chain *chain, uint32_t written)
{
	virtio_done(d, q, chain, written);
	virtio_publish(d, q);
}

void virtio_flush(struct virtio_device *d, unsigned int q)
{
	struct virtqueue *v = &d->queues[q];
	const uint8_t *avail;

	if (!virtio_live(d) || !v->ready)
		return;
	avail = memory_at(d->memory, v->avail, 6 + 2ull * v->size, false);
	if (!avail)
		return;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (event_idx(d)) {
		/* The driver names the used index after which it wants to be woken (2.7.7.1, 2.7.10). */
		uint16_t event = load16(avail + 4 + 2ull * v->size), now = v->used_idx, before = v->signalled;
		bool crossed = (uint16_t)(now - event - 1) < (uint16_t)(now - before);
		bool want = crossed || !v->signalled_valid;

		v->signalled = now;
		v->signalled_valid = true;
		if (!want)
			return;
	} else if (load16(avail) & VRING_AVAIL_F_NO_INTERRUPT) {
		return;
	}
	interrupt(d, VIRTIO_MMIO_INT_VRING);
}

/* --- snapshot ---------------------------------------------------------------------------------------------------- */

void virtio_save(struct virtio_device *d, struct wire *w)
{
	wire_put_u32(w, d->ops->id);
	wire_put_u32(w, d->status);
	wire_put_u32(w, d->interrupt);
	wire_put_u32(w, d->features_sel);
	wire_put_u32(w, d->driver_features_sel);
	wire_put_u32(w, d->queue_sel);
	wire_put_u32(w, d->config_generation);
	wire_put_u64(w, d->driver_features);
	for (unsigned int q = 0; q < d->ops->n_queues; q++) {
		const struct virtqueue *v = &d->queues[q];

		wire_put_u8(w, v->ready);
		wire_put_u16(w, v->size);
		wire_put_u64(w, v->desc);
		wire_put_u64(w, v->avail);
		wire_put_u64(w, v->used);
		wire_put_u16(w, v->last_avail);
		wire_put_u16(w, v->used_idx);
	}
	if (d->ops->save)
		d->ops->save(d, w);
}

enum rc virtio_load(struct virtio_device *d, struct wire *w, struct fault *ret_f)
{
	if (wire_get_u32(w) != d->ops->id)
		return fault_set(ret_f, RC_INVALID, 0, "snapshot has another device at position %u", d->index);
	d->status = wire_get_u32(w);
	d->interrupt = wire_get_u32(w);
	d->features_sel = wire_get_u32(w);
	d->driver_features_sel = wire_get_u32(w);
	d->queue_sel = wire_get_u32(w);
	d->config_generation = wire_get_u32(w);
	d->driver_features = wire_get_u64(w);
	for (unsigned int q = 0; q < d->ops->n_queues; q++) {
		struct virtqueue *v = &d->queues[q];

		v->ready = wire_get_u8(w);
		v->size = wire_get_u16(w);
		v->desc = wire_get_u64(w);
		v->avail = wire_get_u64(w);
		v->used = wire_get_u64(w);
		v->last_avail = wire_get_u16(w);
		v->used_idx = wire_get_u16(w);
		v->signalled_valid = false; /* one interrupt too many after a restore, never one too few */
		/* A snapshot is trusted no more than the guest whose state it is. */
		if (v->ready && !areas_ok(d, v))
			return fault_set(ret_f, RC_INVALID, 0, "snapshot has a bad queue in device %u", d->index);
	}
	if (d->driver_features & ~offered(d))
		return fault_set(ret_f, RC_INVALID, 0, "snapshot has unknown features in device %u", d->index);
	if (d->ops->load)
		d->ops->load(d, w);
	if (!wire_ok(w))
		return fault_set(ret_f, RC_INVALID, 0, "snapshot ends inside device %u", d->index);
	/*
	 * KVM takes an irqfd's signal from a kernel thread, which may not have run yet when the controllers' state was saved, or may
	 * have run between a local APIC's and the IOAPIC's. What the driver has not acknowledged is signalled again, or it would
	 * wait for ever.
	 */
	if (d->interrupt)
		interrupt(d, d->interrupt);
	return RC_OK;
}

/* --- parts of a chain -------------------------------------------------------------------------------------------- */

unsigned int iov_slice(const struct iovec *in, unsigned int n, uint64_t skip, uint64_t bytes, struct iovec *out)
{
	unsigned int k = 0;

	for (unsigned int i = 0; i < n && bytes; i++) {
		size_t part;

		if (skip >= in[i].iov_len) {
			skip -= in[i].iov_len;
			continue;
		}
		part = MIN_OF(in[i].iov_len - (size_t)skip, bytes);
		out[k++] = (struct iovec){ (uint8_t *)in[i].iov_base + skip, part };
		bytes -= part;
		skip = 0;
	}
	return k;
}

static size_t iov_move(const struct iovec *iov, unsigned int n, uint64_t skip, void *to, const void *from, size_t bytes)
{
	size_t done = 0;

	for (unsigned int i = 0; i < n && done < bytes; i++) {
		uint8_t *at = iov[i].iov_base;
		size_t part;

		if (skip >= iov[i].iov_len) {
			skip -= iov[i].iov_len;
			continue;
		}
		part = MIN_OF(iov[i].iov_len - (size_t)skip, bytes - done);
		if (to)
			memcpy((uint8_t *)to + done, at + skip, part);
		else
			memcpy(at + skip, (const uint8_t *)from + done, part);
		done += part;
		skip = 0;
	}
	return done;
}

size_t iov_read(const struct iovec *iov, unsigned int n, uint64_t skip, void *to, size_t bytes)
{
	return iov_move(iov, n, skip, to, NULL, bytes);
}

size_t iov_write(const struct iovec *iov, unsigned int n, uint64_t skip, const void *from, size_t bytes)
{
	return iov_move(iov, n, skip, NULL, from, bytes);
}
