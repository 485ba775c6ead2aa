/* SPDX-License-Identifier: Apache-2.0 */
/* A policy's text. It comes from our API, but a tenant chose what is in it. */
#include "schema/verdict.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const struct reach none = { .is_local = address_is_local };
	struct address a = { .family = AF_INET, .bytes = { 10, 0, 0, 1 } };
	struct policy *p = NULL;
	struct verdict v;

	if (policy_parse(data, size, &p, NULL))
		return 0;
	policy_evaluate_name(p, "a.test", 443, &v);
	policy_has_secret_for(p, "a.test", 443);
	policy_evaluate_request(p, "a.test", 443, "GET", "/v1/x", &v);
	/* No text opens a private address. */
	if (policy_evaluate_address(p, &a, 80, &none, &v) || policy_evaluate_resolved(p, &a, 80, &none, &v))
		abort();
	policy_free(p);
	return 0;
}
