/* SPDX-License-Identifier: Apache-2.0 */
/* What an agent answers a worker or the runner: a guest's bytes. What is shown of a refusal has no control bytes. */
#include "fcgi/peer.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct json_object *o = NULL;
	struct fault f = { 0 };
	char *line = malloc(size + 1);
	enum rc rc;

	if (!line)
		return 0;
	memcpy(line, data, size);
	line[size] = '\0';
	rc = agent_answer_parse(line, size, &o, &f);
	if ((rc == RC_OK) != (json_object_is_type(o, json_type_object) != 0))
		abort();
	for (const char *p = f.text; rc == RC_GUEST && *p; p++)
		if ((unsigned char)*p < 0x20 || *p == 0x7f)
			abort();
	json_object_put(o);
	free(line);
	return 0;
}
