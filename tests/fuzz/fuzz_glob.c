/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Patterns of clients: the first byte are options, then a pattern, a NUL and a subject. As a glob, as a JavaScript regular
 * expression, and as a path.
 */
#include "guest/fs_glob.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void match(struct fs_regex *re, const char *s, size_t n)
{
	static struct fs_error e;
	struct fs_units u;
	bool hit;

	if (fs_units_of(s, n, &u)) {
		fs_regex_match(re, &u, &hit, &e);
		fs_regex_match(re, &u, &hit, &e);
	}
	fs_units_free(&u);
}

static void paths(const char *s, size_t n, const char *subject, size_t subject_n)
{
	static struct fs_error e;
	struct fs_str list[6] = { fs_normalize(s, n), fs_join(s, n, subject, subject_n), fs_basename(s, n),
		fs_resolve("/base", s, n), fs_glob_unescape(s, n), { 0 } };
	struct fs_str again;

	fs_is_glob(s, n);
	fs_join_globs(&list[0], subject, subject_n, true, &list[5], &e);
	/* What is normal stays as it is. */
	again = fs_normalize(list[0].s, list[0].n);
	if (again.n != list[0].n || memcmp(again.s, list[0].s, again.n))
		abort();
	fs_str_free(&again);
	for (size_t i = 0; i < 6; i++)
		fs_str_free(&list[i]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char *const flags[] = { "", "i", "m", "s", "u", "iu", "gy", "v", "y", "imsu" };
	static struct fs_error e;
	struct fs_glob_options o;
	struct fs_regex *re = NULL;
	struct fs_text source, flag;
	const char *subject;
	char *text;
	size_t n, subject_n;

	if (size < 1 || size > 2000)
		return 0;
	text = malloc(size);
	if (!text)
		return 0;
	memcpy(text, data + 1, size - 1);
	text[size - 1] = '\0';
	n = strlen(text);
	subject = n + 1 < size ? text + n + 1 : "";
	subject_n = n + 1 < size ? size - n - 2 : 0;
	o = (struct fs_glob_options){ .extended = data[0] & 1, .globstar = data[0] & 2, .case_insensitive = data[0] & 4 };
	if (fs_glob_regex(text, n, &o, &re, &e) == RC_OK)
		match(re, subject, subject_n);
	fs_regex_free(re);
	re = NULL;
	source = (struct fs_text){ text, n };
	flag.s = flags[data[0] % ARRAY_SIZE(flags)];
	flag.n = strlen(flag.s);
	if (fs_regex_new(&source, &flag, &re, &e) == RC_OK)
		match(re, subject, subject_n);
	fs_regex_free(re);
	paths(text, n, subject, subject_n);
	free(text);
	return 0;
}
