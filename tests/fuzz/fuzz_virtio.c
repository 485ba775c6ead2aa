/* SPDX-License-Identifier: Apache-2.0 */
/* A hostile driver of the block device. Input: commands of 12 bytes: what, where, value. */
#include "tests/unit/virtio_guest.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	static struct guest g;
	static bool ready;

	if (!ready && !guest_new(&g))
		abort();
	ready = true;
	memset(memory_at(&g.memory, 0, 0x11000, true), 0, 0x11000);
	guest_driver(&g);
	for (size_t i = 0; i + 12 <= n && i < 12 * 512; i += 12) {
		uint32_t where;
		uint64_t value;
		void *to;

		memcpy(&value, data + i + 4, 8);
		where = (uint32_t)(data[i + 1] | data[i + 2] << 8);
		switch (data[i] % 4) {
		case 0:
		case 1:
			to = memory_at(&g.memory, 0x1000 + where % 0x3000, 8, true);
			memcpy(to, &value, 8);
			break;
		case 2: virtio_mmio_write(&g.d, where % 0x200, &value, 1u << data[i + 3] % 4); break;
		default: guest_kick(&g); break;
		}
	}
	guest_kick(&g);
	return 0;
}
