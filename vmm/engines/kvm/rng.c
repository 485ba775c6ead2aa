/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/engines/kvm/rng.h"

#include "base/cleanup.h"
#include "base/fd.h"

static void rng_kick(struct virtio_device *d, unsigned int q)
{
	static _Thread_local uint8_t bytes[VMM_RNG_REQUEST_MAX];
	struct virtio_chain c;
	bool any = false;

	while (virtio_pop(d, q, &c)) {
		size_t n = MIN_OF(c.in_bytes, sizeof(bytes));

		random_bytes(bytes, n);
		n = iov_write(c.in, c.n_in, 0, bytes, n);
		virtio_push(d, q, &c, (uint32_t)n);
		any = true;
	}
	if (any)
		virtio_flush(d, q);
}

static const struct virtio_ops rng_ops = { .id = VIRTIO_ID_RNG, .n_queues = 1, .kick = rng_kick };

void rng_device_init(struct virtio_device *d, struct memory *memory, unsigned int index)
{
	virtio_init(d, &rng_ops, memory, index, NULL);
}
