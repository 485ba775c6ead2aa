/* SPDX-License-Identifier: Apache-2.0 */
/* A guest's first TLS bytes. What was understood must stay so with more bytes behind it, and be a normal name. */
#include "vmm/egress/hello.h"
#include "vmm/egress/limits.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char sni[POLICY_NAME_MAX], half[POLICY_NAME_MAX], again[POLICY_NAME_MAX];
	enum hello whole, part;

	if (size > EGRESS_HELLO_MAX)
		size = EGRESS_HELLO_MAX;
	whole = hello_parse(data, size, sni);
	if (sni[0] && whole == HELLO_DONE && (!name_normalize(again, sni, strlen(sni)) || strcmp(again, sni)))
		abort();
	part = hello_parse(data, size / 2, half);
	if (part == HELLO_DONE && (whole != HELLO_DONE || strcmp(half, sni)))
		abort();
	return 0;
}
