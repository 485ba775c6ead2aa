/* SPDX-License-Identifier: Apache-2.0 */
/* What a guest says to the SSH gateway: an answer line, then frames. */
#include "base/cleanup.h"
#include "fcgi/ssh/frames.h"
#include "schema/agent.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	_cleanup_buf_ struct buf b = BUF_INIT(1u << 20);
	_cleanup_free_ char *line = malloc(size + 1);
	const uint8_t *end = memchr(data, '\n', size);
	size_t n = end ? (size_t)(end - data) : size;
	struct frame_exit e;
	struct frame f;

	if (!line || size > 1u << 19)
		return 0;
	memcpy(line, data, n);
	line[n] = '\0';
	frame_answer_parse(line, NULL);
	if (!end || buf_put(&b, end + 1, size - n - 1))
		return 0;
	while (!frame_get(&b, &f, NULL)) {
		size_t before = buf_len(&b);

		if (f.n > AGENT_FRAME_MAX || f.data < buf_data(&b) || f.data + f.n > buf_data(&b) + before)
			abort();
		if (f.kind == FRAME_EXIT && !frame_exit_parse(&f, &e, NULL) &&
		    (e.code < 0 || e.code > 255 || strlen(e.signal) > 15 || strspn(e.signal, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") != strlen(e.signal)))
			abort();
		frame_done(&b, &f);
		if (buf_len(&b) >= before)
			abort();
	}
	return 0;
}
