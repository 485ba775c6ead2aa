/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One field of a policy, which the API checks and the proxy parses: both must say the same. And one path: its normal form is
 * its own normal form, and has none of what servers disagree about.
 */
#include "schema/verdict.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool taken(const char *before, const char *field, const char *after)
{
	char text[2048];
	struct policy *p = NULL;
	int n = snprintf(text, sizeof(text), "%s%s%s\n", before, field, after);
	bool ok = !policy_parse(text, (size_t)n, &p, NULL);

	policy_free(p);
	return ok;
}

static void agree(bool api, bool proxy)
{
	if (api != proxy)
		abort();
}

static void path(const char *in, size_t n)
{
	char out[512], again[512];

	if (policy_path_normalize(in, n, out, sizeof(out)) != POLICY_PATH_OK)
		return;
	if (strlen(out) > n || *out != '/' || strstr(out, "//") || strstr(out, "/../") || strstr(out, "/./") || strchr(out, '\\') ||
	    strstr(out, "%2F") || strstr(out, "%5C") || strstr(out, "%00"))
		abort();
	if (policy_path_normalize(out, strlen(out), again, sizeof(again)) != POLICY_PATH_OK || strcmp(out, again) != 0)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
#define HEAD POLICY_HEAD "\ndefault public\n"
#define SECRET "secret N placeholder_0123456789 QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFB a.test\n"
	char field[500];

	path((const char *)data, size < 400 ? size : 400);
	if (!size || size >= sizeof(field) || memchr(data, '\n', size) || memchr(data, '\0', size))
		return 0;
	memcpy(field, data, size);
	field[size] = '\0';
	agree(policy_pattern_ok(field), taken(HEAD "allow ", field, ""));
	/* A blank or a comma ends a field or begins another one. */
	if (strpbrk(field, " ,"))
		return 0;
	agree(policy_host_ok(field), taken(HEAD "rule ", field, " GET /"));
	agree(policy_method_ok(field) || !strcmp(field, "*"), taken(HEAD "rule a.test ", field, " /"));
	agree(policy_path_ok(field), taken(HEAD "rule a.test * ", field, ""));
	agree(policy_header_ok(field), taken(HEAD SECRET "secret-rule N headers=", field, ""));
	agree(policy_query_ok(field), taken(HEAD SECRET "secret-rule N query=", field, ""));
	return 0;
}
