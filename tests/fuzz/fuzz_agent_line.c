/* SPDX-License-Identifier: Apache-2.0 */
/* The service line of the agent, and what exec, unit, identity and tar read from it. */
#include "guest/agent_line.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What execve() will be given: strings of the length they say, in a terminated vector. */
static void walk(char **v)
{
	for (size_t i = 0; v && v[i]; i++)
		if (strlen(v[i]) > 131072)
			abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fault f = { 0 };
	struct agent_request r;
	struct agent_spec s;
	struct buf b = BUF_INIT(4096);
	const char *text;
	char **v;
	int64_t n;

	if (agent_request_parse((const char *)data, size, &r, &f)) {
		if (!f.rc || agent_put_error(&b, &f))
			abort();
		buf_free(&b);
		return 0;
	}
	if (!agent_spec_parse(r.root, &s, &f)) {
		if (!s.argv[0] || !*s.argv[0] || !s.cwd || (s.tty && (!s.cols || !s.rows || !s.term)))
			abort();
		walk(s.argv);
		walk(s.env);
		agent_spec_free(&s);
	}
	if (!agent_get_int(r.root, "port", 1, 65535, 0, &n, &f) && (n < 1 || n > 65535))
		abort();
	if (!agent_get_str(r.root, "path", 100, NULL, &text, &f) && strlen(text) > 100)
		abort();
	if (!agent_get_strv(r.root, "exclude", 64, &v, &f)) {
		walk(v);
		free(v);
	}
	agent_request_free(&r);
	return 0;
}
