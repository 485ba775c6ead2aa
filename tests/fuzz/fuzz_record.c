/* SPDX-License-Identifier: Apache-2.0 */
/* The broker's own files, as a crash may have left them: a machine's record, an exposure, logins. */
#include "vmm/broker/expose.h"
#include "vmm/broker/limits.h"
#include "vmm/broker/login.h"
#include "vmm/broker/record.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *text = malloc(size + 1), *copy = malloc(size + 1), *third = malloc(size + 1);
	char keys[LOGINS_MAX][BROKER_LOGIN_KEY_MAX];
	struct expose *x = NULL;
	struct record r;
	struct fault f;

	if (text && copy && third) {
		memcpy(text, data, size);
		text[size] = '\0';
		memcpy(copy, text, size + 1);
		memcpy(third, text, size + 1);
		if (login_parse(third, keys) > LOGINS_MAX)
			abort();
		if (!record_parse(text, &r, &f) && (!r.engine[0] || !r.memory_mib))
			abort();
		if (!expose_parse("a.example", copy, &x, &f) && strchr(x->line, '\n'))
			abort();
	}
	free(x);
	free(text);
	free(copy);
	free(third);
	return 0;
}
