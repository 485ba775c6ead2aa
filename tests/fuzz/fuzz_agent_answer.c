/* SPDX-License-Identifier: Apache-2.0 */
/* What an agent answers: a guest's bytes. */
#include "vmm/broker/agent_link.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct json_object *o = NULL;
	char *line = malloc(size + 1);
	struct fault f;

	if (!line)
		return 0;
	for (size_t i = 0; i < size; i++)
		line[i] = (char)data[i];
	line[size] = '\0';
	if (agent_parse(line, size, &o, &f)) {
		if (o || f.rc == RC_OK)
			abort();
	} else if (!json_object_is_type(o, json_type_object)) {
		abort();
	}
	json_object_put(o);
	free(line);
	return 0;
}
