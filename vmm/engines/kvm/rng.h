/* SPDX-License-Identifier: Apache-2.0 */
/* virtio-rng (virtio 1.2, 5.4): the host's getrandom(2), at most VMM_RNG_REQUEST_MAX bytes a request. */
#ifndef NB_VMM_RNG_H
#define NB_VMM_RNG_H

#include "vmm/engines/kvm/virtio.h"

void rng_device_init(struct virtio_device *d, struct memory *memory, unsigned int index);

#endif
