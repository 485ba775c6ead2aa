/* SPDX-License-Identifier: Apache-2.0 */
/* Frames: however the bytes are cut, the same messages and the same end come out, within the bounds. */
#include "guest/ws.h"

#include <stdlib.h>
#include <string.h>

#define MAX 4096

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint64_t hash(uint64_t h, const void *p, size_t n)
{
	for (size_t i = 0; i < n; i++)
		h = (h ^ ((const uint8_t *)p)[i]) * 0x100000001b3u;
	return h;
}

static uint64_t run(const uint8_t *data, size_t size, size_t step)
{
	uint64_t h = 0xcbf29ce484222325u;
	struct ws_message m;
	struct ws_in ws;
	enum rc rc = RC_OK;

	ws_in_init(&ws, MAX, 16);
	for (size_t at = 0; at < size && (rc == RC_OK || rc == RC_AGAIN);) {
		size_t n = size - at < step ? size - at : step, used;

		rc = ws_feed(&ws, data + at, n, &used, &m, NULL);
		at += used;
		if (used > n || (rc == RC_AGAIN && used != n))
			abort();
		if (rc)
			continue;
		if (m.n > MAX || (m.opcode == WS_TEXT && (m.data[m.n] || !utf8_valid((const uint8_t *)m.data, m.n))))
			abort();
		h = hash(hash(h, &m.opcode, sizeof(m.opcode)), m.data, m.n);
		if (m.opcode == WS_CLOSE)
			(void)ws_close_status(&m);
	}
	h = hash(h, &ws.failed, sizeof(ws.failed));
	ws_in_free(&ws);
	return h;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint64_t whole = run(data, size, SIZE_MAX);

	if (run(data, size, 1) != whole || run(data, size, 7) != whole)
		abort();
	return 0;
}
