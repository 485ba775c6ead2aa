/* SPDX-License-Identifier: Apache-2.0 */
/* What a server says to a fetch: its head, and the Location in it. */
#include "guest/http.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	size_t n = http_head_length(data, size);
	struct http_head h = { 0 };
	char out[256], origin[128];

	if (n > size)
		abort();
	if (http_head_parse(&h, (const char *)data, n ? n : size) && h.location &&
	    http_resolve("http://host/path?q", h.location, out, sizeof(out))) {
		if (strlen(out) >= sizeof(out))
			abort();
		if (http_origin(out, origin, sizeof(origin)) && strncmp(origin, "http", 4))
			abort();
	}
	http_head_done(&h);
	return 0;
}
