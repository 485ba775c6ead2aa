/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio-balloon (virtio 1.2, 5.5): the guest gives memory back. By itself, free page reporting: blocks of at least 2 MiB that
 * stay free a while; and asked to, inflation. What a page holds when the guest takes it again is not promised (no PAGE_POISON: a
 * guest that counts on zeroed free pages does not report then); see memory_discard() for what it may be.
 */
#ifndef NB_VMM_BALLOON_H
#define NB_VMM_BALLOON_H

#include "vmm/engines/kvm/virtio.h"

struct balloon {
	uint32_t target, actual; /* pages of 4 KiB: asked for, what the guest says */
	uint64_t reported, inflated; /* bytes that went back to the host, in all */
};

void balloon_device_init(struct virtio_device *d, struct balloon *b, struct memory *memory, unsigned int index);
/* Asks the guest to give up so many pages in all. Lock not held. */
void balloon_target(struct virtio_device *d, uint32_t pages);

#endif
