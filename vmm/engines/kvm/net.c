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
#define BURST 64 /* frames in one go, so that the other devices of the worker get their turn */

enum rc net_dev_init(struct net_dev *n, int tap_fd, const char *mac, struct fault *ret_f)
{
	unsigned int m[6];
	int size = HEADER;

	memset(n, 0, sizeof(*n));
	if (sscanf(mac, "%2x:%2x:%2x:%2x:%2x:%2x", &m[0], &m[1], &m[2], &m[3], &m[4], &m[5]) != 6)
		return fault_set(ret_f, RC_INVALID, 0, "malformed MAC address");
	for (int i = 0; i < 6; i++)
		n->mac[i] = (uint8_t)m[i];
	if (ioctl(tap_fd, TUNSETVNETHDRSZ, &size) < 0)
		return fault_set(ret_f, RC_INVALID, errno, "tap takes no vnet header");
	n->tap_fd = tap_fd;
	return fd_nonblock(tap_fd, ret_f);
}

static void transmit(struct virtio_device *d)
{
	struct net_dev *n = d->state;
	struct virtio_chain c;
	int budget = BURST;
	bool any = false;

	while (virtio_pop(d, TX, &c)) {
		if (c.out_bytes > HEADER && c.out_bytes <= HEADER + VMM_NET_FRAME_MAX &&
		    writev(n->tap_fd, c.out, (int)c.n_out) > 0) {
			n->tx_frames++;
			n->tx_bytes += c.out_bytes - HEADER;
		} else {
			n->dropped++; /* a full or refusing tap drops, as a wire does */
		}
		virtio_push(d, TX, &c, 0);
		any = true;
		if (!--budget)
			break;
	}
	if (any)
		virtio_flush(d, TX);
	if (!budget) {
		uint64_t one = 1;

		if (write(d->queues[TX].notify_fd, &one, sizeof(one)) < 0)
			return;
	}
}

bool net_tap_ready(struct virtio_device *d)
{
	struct net_dev *n = d->state;
	struct virtio_chain c;
	bool any = false, room = true;

	pthread_mutex_lock(&d->lock);
	for (int budget = BURST; budget; budget--) {
		ssize_t got;

		if (!virtio_pop(d, RX, &c)) {
			room = false;
			break;
		}
		if (c.in_bytes < HEADER) {
			virtio_broken(d);
			room = false;
			break;
		}
		got = readv(n->tap_fd, c.in, (int)c.n_in);
		if (got < (ssize_t)HEADER) {
			virtio_unpop(d, RX);
			break;
		}
		/* num_buffers (offset 10) is 1 whenever VERSION_1 is in force (5.1.6.4.1). */
		iov_write(c.in, c.n_in, 10, "\1\0", 2);
		virtio_push(d, RX, &c, (uint32_t)got);
		n->rx_frames++;
		n->rx_bytes += (uint64_t)got - HEADER;
		any = true;
	}
	if (any)
		virtio_flush(d, RX);
	n->rx_waits = !room;
	pthread_mutex_unlock(&d->lock);
	return room;
}

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
	.features = 1ull << VIRTIO_NET_F_MAC | 1ull << VIRTIO_NET_F_CSUM | 1ull << VIRTIO_NET_F_GUEST_CSUM |
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
