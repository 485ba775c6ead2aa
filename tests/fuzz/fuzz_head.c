/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/gateway/head.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const char *text = (const char *)data;
	size_t n = head_length(text, size);
	struct head h;

	if (n > size)
		abort();
	/* What the fields promise holds whatever was parsed. */
	if (n && !head_parse(text, n, &h, NULL) &&
	    (!*h.token || !memchr(h.token, '\0', sizeof(h.token)) ||
	     (*h.ws_key && strlen(h.ws_key) != HEAD_WS_KEY) || (h.ws_version != 0 && h.ws_version != 13)))
		abort();
	if (size && !head_parse(text, size, &h, NULL) && n != size)
		abort();
	return 0;
}
