/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes for both sides of an HTTP/2 connection, in turns: a byte that says which side and how many follow, then those. The guest's
 * preface is given. Nothing may be held beyond the windows, whatever they say, and the end must find nothing left over.
 */
#include "tests/lib/h2_peer.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char text[] = POLICY_HEAD "\ndefault public\nrule api.test GET,POST /\n";
	static struct h2_world w;
	struct buf out[2] = { BUF_INIT(8u << 20), BUF_INIT(8u << 20) };
	bool failed = false;

	memset(&w, 0, sizeof(w));
	if (policy_parse(text, sizeof(text) - 1, &w.policy, NULL))
		abort();
	world_hooks(&w);
	if (h2_new(&w.hooks, &w.h2) || h2_in(w.h2, H2_GUEST, (const uint8_t *)NGHTTP2_CLIENT_MAGIC, NGHTTP2_CLIENT_MAGIC_LEN))
		abort();
	for (size_t at = 0; at < size && !failed;) {
		enum h2_side side = data[at] & 0x80 ? H2_UP : H2_GUEST;
		size_t n = MIN_OF((size_t)(data[at] & 0x7f), size - at - 1);

		if (h2_takes(w.h2, side))
			failed = h2_in(w.h2, side, data + at + 1, n);
		at += n + 1;
		for (int i = 0; i < 2 && !failed; i++) {
			failed = h2_out(w.h2, (enum h2_side)i, &out[i], 1u << 20);
			buf_consume(&out[i], buf_len(&out[i]));
		}
		w.now += 1;
	}
	if (size && size % 3 == 0 && !failed) {
		h2_eof(w.h2, size % 2 ? H2_UP : H2_GUEST);
		h2_out(w.h2, H2_GUEST, &out[0], 1u << 20);
	}
	h2_free(w.h2);
	policy_free(w.policy);
	buf_free(&out[0]);
	buf_free(&out[1]);
	return 0;
}
