/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/engines/kvm/net.h"

#include "base/cleanup.h"
#include "base/fd.h"

#include <errno.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#define HEADER 12u /* struct virtio_net_hdr_v1 */
#define RX 0u
#define TX 1u
#define PLAIN_FRAME 1518u    /* the tap's MTU of 1500, a header and a VLAN tag */
#define RX_BUFFERS_MAX 128u  /* held at once: the largest frame in buffers of 600 bytes */
#define RX_PARTS_MAX 256u
#define BURST 64 /* frames in one go, so that the other devices of the worker get their turn */

enum rc net_dev_init(struct net_dev *n, int tap_fd, const char *mac, struct fault *ret_f)
{
	unsigned int m[6];
	int size = HEADER;

	memset(n, 0, sizeof(*n));
	n->tap_fd = tap_fd; /* owned even when this fails */
	if (sscanf(mac, "%2x:%2x:%2x:%2x:%2x:%2x", &m[0], &m[1], &m[2], &m[3], &m[4], &m[5]) != 6)
		return fault_set(ret_f, RC_INVALID, 0, "malformed MAC address");
	for (int i = 0; i < 6; i++)
		n->mac[i] = (uint8_t)m[i];
	if (ioctl(tap_fd, TUNSETVNETHDRSZ, &size) < 0)
		return fault_set(ret_f, RC_INVALID, errno, "tap takes no vnet header");
	return fd_nonblock(tap_fd, ret_f);
}

static void transmit(struct virtio_device *d)
{
	struct net_dev *n = d->state;
	struct virtio_chain c;
	int budget = BURST;
	bool any = false;

	for (; budget; budget--) {
		uint32_t wait_ms = rate_limited(&n->tx) ? rate_wait_ms(&n->tx, now_us()) : 0;

		d->queues[TX].wait_ms = wait_ms;
		if (wait_ms || !virtio_pop(d, TX, &c))
			break;
		if (c.out_bytes > HEADER && c.out_bytes <= HEADER + VMM_NET_FRAME_MAX &&
		    writev(n->tap_fd, c.out, (int)c.n_out) > 0) {
			n->tx_frames++;
			n->tx_bytes += c.out_bytes - HEADER;
		} else {
			n->dropped++; /* a full or refusing tap drops, as a wire does */
		}
		rate_charge(&n->tx, 1, c.out_bytes);
		virtio_push(d, TX, &c, 0);
		any = true;
	}
	if (any)
		virtio_flush(d, TX);
	if (!budget) {
		uint64_t one = 1;

		if (write(d->queues[TX].notify_fd, &one, sizeof(one)) < 0)
			return;
	}
}

/* --- receive ------------------------------------------------------------------------------------------------------- */

/* Buffers that were popped and hold no frame yet, in order; their parts one after the other. */
struct held {
	struct {
		uint16_t head;
		unsigned int parts; /* of iov */
		uint64_t bytes;
	} buffers[RX_BUFFERS_MAX];
	struct iovec iov[RX_PARTS_MAX];
	unsigned int n, n_parts;
	uint64_t bytes;
};

static bool accepted(const struct virtio_device *d, unsigned int bit)
{
	return d->driver_features & (1ull << bit);
}

/* Room for the largest frame that the tap may deliver; false: the driver has given too little. */
static bool hold(struct virtio_device *d, struct held *h)
{
	bool mergeable = accepted(d, VIRTIO_NET_F_MRG_RXBUF);
	uint64_t want = HEADER + (mergeable && (accepted(d, VIRTIO_NET_F_GUEST_TSO4) || accepted(d, VIRTIO_NET_F_GUEST_TSO6)) ?
					  VMM_NET_FRAME_MAX :
					  PLAIN_FRAME);
	struct virtio_chain c;

	/* Without mergeable buffers one buffer is what a frame gets, however large it is. */
	while (mergeable ? h->bytes < want && h->n < RX_BUFFERS_MAX : !h->n) {
		if (!virtio_pop(d, RX, &c))
			return false;
		if (c.in_bytes < HEADER) {
			virtio_broken(d);
			return false;
		}
		if (c.n_in > RX_PARTS_MAX - h->n_parts) {
			virtio_unpop(d, RX, 1);
			break;
		}
		memcpy(h->iov + h->n_parts, c.in, c.n_in * sizeof(c.in[0]));
		h->buffers[h->n].head = c.head;
		h->buffers[h->n].parts = c.n_in;
		h->buffers[h->n].bytes = c.in_bytes;
		h->n++;
		h->n_parts += c.n_in;
		h->bytes += c.in_bytes;
	}
	return true;
}

/* The frame of `bytes` in the first buffers goes to the driver, all of its buffers at once. */
static void deliver(struct virtio_device *d, struct held *h, uint64_t bytes)
{
	unsigned int k = 0, parts = 0;
	uint64_t covered = 0;
	uint16_t count;

	for (; covered < bytes; k++) {
		covered += h->buffers[k].bytes;
		parts += h->buffers[k].parts;
	}
	count = (uint16_t)k;
	iov_write(h->iov, h->n_parts, 10, &count, 2); /* num_buffers */
	for (unsigned int i = 0; i < parts; i++)
		memory_wrote(d->memory, h->iov[i].iov_base, h->iov[i].iov_len);
	for (unsigned int i = 0; i < k; i++) {
		uint64_t part = MIN_OF(bytes, h->buffers[i].bytes);

		virtio_put(d, RX, h->buffers[i].head, (uint32_t)part);
		h->bytes -= h->buffers[i].bytes;
		bytes -= part;
	}
	virtio_publish(d, RX);
	h->n -= k;
	h->n_parts -= parts;
	memmove(h->buffers, h->buffers + k, h->n * sizeof(h->buffers[0]));
	memmove(h->iov, h->iov + parts, h->n_parts * sizeof(h->iov[0]));
}

bool net_tap_ready(struct virtio_device *d, uint32_t *ret_wait_ms)
{
	struct net_dev *n = d->state;
	struct held h;
	bool any = false, more = true;

	h.n = h.n_parts = 0;
	h.bytes = 0;
	*ret_wait_ms = 0;
	pthread_mutex_lock(&d->lock);
	for (int budget = BURST; budget; budget--) {
		ssize_t got;

		*ret_wait_ms = rate_limited(&n->rx) ? rate_wait_ms(&n->rx, now_us()) : 0;
		more = !*ret_wait_ms && hold(d, &h);
		if (!more)
			break;
		got = readv(n->tap_fd, h.iov, (int)h.n_parts);
		if (got < (ssize_t)HEADER)
			break;
		deliver(d, &h, (uint64_t)got);
		rate_charge(&n->rx, 1, (uint64_t)got);
		n->rx_frames++;
		n->rx_bytes += (uint64_t)got - HEADER;
		any = true;
	}
	virtio_unpop(d, RX, h.n);
	if (any)
		virtio_flush(d, RX);
	n->rx_waits = !more;
	pthread_mutex_unlock(&d->lock);
	return more;
}

/* --- the device ---------------------------------------------------------------------------------------------------- */

static void net_kick(struct virtio_device *d, unsigned int q)
{
	if (q == TX)
		transmit(d);
	/* A kick of RX means new buffers; the worker polls the tap again because rx_waits is looked at after each kick. */
}

/* After DRIVER_OK and after a restore: what the tap may hand over follows what the driver accepted. */
static void net_activate(struct virtio_device *d)
{
	const struct net_dev *n = d->state;
	unsigned long offload = 0;

	if (d->driver_features & (1ull << VIRTIO_NET_F_GUEST_CSUM))
		offload |= TUN_F_CSUM;
	if (offload && (d->driver_features & (1ull << VIRTIO_NET_F_GUEST_TSO4)))
		offload |= TUN_F_TSO4;
	if (offload && (d->driver_features & (1ull << VIRTIO_NET_F_GUEST_TSO6)))
		offload |= TUN_F_TSO6;
	ioctl(n->tap_fd, TUNSETOFFLOAD, offload);
}

static void net_load(struct virtio_device *d, struct wire *w)
{
	(void)w;
	if (virtio_live(d))
		net_activate(d);
}

static const struct virtio_ops net_ops = {
	.id = VIRTIO_ID_NET,
	.n_queues = 2,
	.features = 1ull << VIRTIO_NET_F_MAC | 1ull << VIRTIO_NET_F_MRG_RXBUF | 1ull << VIRTIO_NET_F_CSUM | 1ull << VIRTIO_NET_F_GUEST_CSUM |
		    1ull << VIRTIO_NET_F_HOST_TSO4 | 1ull << VIRTIO_NET_F_HOST_TSO6 |
		    1ull << VIRTIO_NET_F_GUEST_TSO4 | 1ull << VIRTIO_NET_F_GUEST_TSO6,
	.kick = net_kick,
	.activate = net_activate,
	.load = net_load,
};

void net_device_init(struct virtio_device *d, struct net_dev *n, struct memory *memory, unsigned int index)
{
	virtio_init(d, &net_ops, memory, index, n);
	memcpy(d->config, n->mac, 6);
	d->config_n = 12;
}
