/* SPDX-License-Identifier: Apache-2.0 */
/*
 * First byte: request or response, and how the rest is cut. What was understood is written anew and must be understood again
 * as the same; a body must come out the same however it is cut.
 */
#include "base/cleanup.h"
#include "vmm/egress/rewrite.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void body(const uint8_t *in, size_t n, size_t step, enum http_framing framing, uint64_t length, struct buf *out)
{
	struct http_body b;
	size_t at = 0, have = 0;

	http_body_start(&b, framing, length);
	while (!b.done) {
		struct http_text piece;
		size_t used;
		enum http_result r = http_body_read(&b, in + at, have - at, &used, &piece);

		if (used > have - at || piece.n > used)
			abort();
		if (r == HTTP_BAD) {
			buf_puts(out, "<bad>");
			return;
		}
		if (r == HTTP_MORE) {
			if (have == n)
				return;
			have = MIN_OF(have + step, n);
		}
		buf_put(out, piece.at, piece.n);
		at += used;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct buf out = BUF_INIT(1 << 24), whole = BUF_INIT(1 << 24), cut = BUF_INIT(1 << 24);
	struct http_head h, again;
	const char *why;
	struct judged j = { .place = { .host = "api.test", .port = 443 }, .verdict.rule = "" };
	struct secret_report report = { 0 };
	bool request, found = false;
	enum http_framing framing;

	if (!size)
		return 0;
	request = data[0] & 1;
	if (http_parse(data + 1, size - 1, request, &h, &why) != HTTP_OK)
		return 0;
	framing = request ? h.framing : http_response_framing(&h, data[0] & 2);
	if (request ? rewrite_request(&h, &j, NULL, &out, &report)
		    : rewrite_response(&h, NULL, framing, h.close, &out, &found))
		abort();
	/* Ours are two headers more at most. */
	if (h.n_headers + 3 <= HTTP_HEADERS_MAX) {
		if (http_parse(buf_data(&out), buf_len(&out), request, &again, &why) != HTTP_OK || again.n != buf_len(&out))
			abort();
		if (request && (again.framing != h.framing || again.length != h.length || again.target.n != h.target.n))
			abort();
	}
	body(data + 1 + h.n, size - 1 - h.n, SIZE_MAX / 2, framing, h.length, &whole);
	body(data + 1 + h.n, size - 1 - h.n, 1 + (data[0] >> 2), framing, h.length, &cut);
	/* A chunk's line may be found too long sooner or later, depending on what was there; the bytes are the same. */
	if (buf_len(&whole) != buf_len(&cut) || (buf_len(&cut) && memcmp(buf_data(&whole), buf_data(&cut), buf_len(&cut))))
		abort();
	buf_free(&out);
	buf_free(&whole);
	buf_free(&cut);
	return 0;
}
