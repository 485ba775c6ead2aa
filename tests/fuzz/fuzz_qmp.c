/* SPDX-License-Identifier: Apache-2.0 */
/* What QEMU says: messages as the client parses them, and the one line of text that is parsed further. */
#include "vmm/engines/qemu/vm.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct qmp_message m;
	struct fault f;
	uint64_t address;
	char *text;

	if (!qmp_parse((const char *)data, size, &m, &f)) {
		if (m.kind > QMP_EVENT || !m.root || !memchr(m.text, 0, sizeof(m.text)))
			abort();
		qmp_message_free(&m);
	} else if (m.root || !f.text[0]) {
		abort();
	}
	text = strndup((const char *)data, size);
	if (text && !gpa2hva_parse(text, &address, &f) && (!address || address % 4096 || address >> 47))
		abort();
	free(text);
	return 0;
}
