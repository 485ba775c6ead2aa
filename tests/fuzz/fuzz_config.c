/* SPDX-License-Identifier: Apache-2.0 */
/* The header x-deno-sandbox-config, as text and (so that mutations get past the base64) as the JSON inside it. */
#include "base/cleanup.h"
#include "fcgi/ids.h"
#include "fcgi/sandbox_config.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void feed(const char *text)
{
	const struct sandbox_bounds bounds = { 768, 4096, 1280, 1700000000000, 3600 };
	const struct seal_key key = { { 1 } };
	struct sandbox_config c = { 0 };
	struct sandbox_policy p = { 0 };
	enum api_code code = API_OK;
	struct fault f = { 0 };

	if (sandbox_config_parse(text, &bounds, &c, &code, &f)) {
		if (code == API_OK || !*f.text)
			abort(); /* a refusal without a reason */
		return;
	}
	if (c.memory_mib < 768 || c.memory_mib > 4096 || c.n_mounts > VOLUMES_MAX)
		abort();
	json_object_put(sandbox_config_record(&c));
	if (!sandbox_policy_make(&c, "vm", "org", &key, &p, &f))
		sandbox_policy_free(&p);
	sandbox_config_free(&c);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	_cleanup_free_ char *raw = malloc(n + 1), *encoded = base64_encode(data, n);

	if (!raw || !encoded)
		return 0;
	memcpy(raw, data, n);
	raw[n] = '\0';
	feed(raw);
	feed(encoded);
	return 0;
}
