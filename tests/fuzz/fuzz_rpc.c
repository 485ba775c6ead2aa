/* SPDX-License-Identifier: Apache-2.0 */
/* Messages of a client, separated by NUL: nothing of them may stay behind when it is gone. */
#include "tests/lib/rpc_bed.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t sink[65536];
	uint64_t mark = 0;

	bed_open();
	while (size) {
		const uint8_t *end = memchr(data, 0, size);
		size_t n = end ? (size_t)(end - data) : size;

		if (!bed_send_frame(0x81, data, n))
			break;
		data += n;
		size -= n;
		if (end) {
			data++;
			size--;
		}
		/* Pings are answered, as far as that is possible without reading them. */
		if (!bed_send_frame(0x8a, &mark, sizeof(mark)))
			break;
		mark++;
		while (recv(bed.fd, sink, sizeof(sink), 0) > 0)
			bed_turn();
	}
	bed_close();
	if (bed.alive || bed.session.n_conns || bed.session.dead)
		abort();
	return 0;
}
