/* SPDX-License-Identifier: Apache-2.0 */
/* First byte: which side, and how the rest is cut. What comes out must be sound frames that come out again as themselves. */
#include "base/cleanup.h"
#include "vmm/egress/ws.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *run(bool guest, const uint8_t *data, size_t n, size_t step, struct buf *out)
{
	struct buf in = BUF_INIT(1u << 24);
	const char *why = NULL;
	struct ws w;

	ws_start(&w, NULL);
	for (size_t at = 0; at < n && !why; at += step) {
		buf_put(&in, data + at, MIN_OF(step, n - at));
		if (guest ? ws_from_guest(&w, &in, out, 1u << 23, &why) : ws_from_up(&w, &in, out, 1u << 23, &why))
			abort();
	}
	ws_end(&w);
	buf_free(&in);
	return why;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct buf a = BUF_INIT(1u << 24), b = BUF_INIT(1u << 24);
	bool guest;

	if (!size)
		return 0;
	guest = data[0] & 1;
	run(guest, data + 1, size - 1, 1 + (data[0] >> 1), &a);
	if (run(guest, buf_data(&a), buf_len(&a), SIZE_MAX / 2, &b) || buf_len(&a) < buf_len(&b))
		abort();
	buf_free(&a);
	buf_free(&b);
	return 0;
}
