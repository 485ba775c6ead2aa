/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/errors.h"

#include "base/cleanup.h"

static const struct {
	const char *name;
	int status;
	const char *text;
} codes[API_N_CODES] = {
	[API_OK] = { "OK", 200, "success" },
#define X(name, status, text) [API_##name] = { #name, status, text },
	API_ERRORS(X)
#undef X
};

static enum api_code known(enum api_code code)
{
	return (unsigned int)code < API_N_CODES ? code : API_INTERNAL;
}

int api_code_status(enum api_code code)
{
	return codes[known(code)].status;
}

const char *api_code_name(enum api_code code)
{
	return codes[known(code)].name;
}

const char *api_code_text(enum api_code code)
{
	return codes[known(code)].text;
}
