/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio-net (virtio 1.2, 5.1) on a tap whose frames carry a 12-byte virtio_net_hdr, as virtio 1 has it, so that headers pass
 * through untouched. Offloads: the guest may send partial checksums and TSO; the tap delivers the same when the driver
 * takes it (GUEST_CSUM, GUEST_TSO4/6). With mergeable buffers a frame is read straight into as many of the driver's buffers as it
 * needs. Nothing is copied in either direction.
 */
#ifndef NB_VMM_NET_H
#define NB_VMM_NET_H

#include "vmm/engines/kvm/rate.h"
#include "vmm/engines/kvm/virtio.h"

struct net_dev {
	int tap_fd; /* owned, nonblocking */
	uint8_t mac[6];
	uint64_t rx_frames, rx_bytes, tx_frames, tx_bytes, dropped;
	struct rate rx, tx;
	bool rx_waits; /* frames may wait in the tap but the driver had no buffer, or its rate is used up */
};

enum rc net_dev_init(struct net_dev *n, int tap_fd, const char *mac, struct fault *ret_f);
void net_device_init(struct virtio_device *d, struct net_dev *n, struct memory *memory, unsigned int index);
/* On the worker, lock not held: the tap has frames. False if none can be taken now: the tap need not be watched until the driver
 * gives buffers or, with *ret_wait_ms set, so much time has passed. */
bool net_tap_ready(struct virtio_device *d, uint32_t *ret_wait_ms);

#endif
