/* SPDX-License-Identifier: Apache-2.0 */
/* virtio-blk (virtio 1.2, 5.2) on a raw file: read, write, flush, discard, write-zeroes, get-id. */
#ifndef NB_VMM_BLK_H
#define NB_VMM_BLK_H

#include "vmm/engines/kvm/rate.h"
#include "vmm/engines/kvm/virtio.h"

struct blk {
	int fd; /* owned */
	bool read_only;
	uint64_t sectors;
	struct rate rate;
	char serial[20]; /* not terminated when full, as the standard has it */
};

/* fd: regular file or block device, size a multiple of 512. */
enum rc blk_init(struct blk *b, int fd, bool read_only, const char *serial, struct fault *ret_f);
/* Reads the file's size again and tells the driver. Lock not held. */
enum rc blk_resized(struct virtio_device *d, struct fault *ret_f);
void blk_device_init(struct virtio_device *d, struct blk *b, struct memory *memory, unsigned int index);

#endif
