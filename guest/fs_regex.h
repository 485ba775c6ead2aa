/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JavaScript regular expressions on PCRE2. A pattern is parsed as JavaScript and written anew in the part of PCRE2's
 * language that means the same; nothing of the client's text reaches PCRE2 as it is. Subjects and patterns are UTF-16, as
 * in JavaScript: without the u flag a character outside the BMP is two.
 *
 * Not supported, an error: set operations and strings in classes with the v flag; lookbehind of variable length.
 */
#ifndef NB_GUEST_FS_REGEX_H
#define NB_GUEST_FS_REGEX_H

#include "guest/fs_internal.h"

struct fs_units {
	uint16_t *u;
	size_t n;
};
/* Invalid UTF-8 becomes U+FFFD. False: out of memory. */
bool fs_units_of(const char *s, size_t n, struct fs_units *ret);
void fs_units_free(struct fs_units *u);

struct fs_regex;
/* A SyntaxError with V8's text where the pattern is one. Used by one thread at a time. */
enum rc fs_regex_new(const struct fs_text *source, const struct fs_text *flags, struct fs_regex **ret,
		     struct fs_error *e);
void fs_regex_free(struct fs_regex *re);
/* !!subject.match(re). Gives up, with an error, on a pattern that needs too many steps. */
enum rc fs_regex_match(struct fs_regex *re, const struct fs_units *subject, bool *ret, struct fs_error *e);

/* --- between fs_regex.c and fs_regex_js.c ------------------------------------------------------------------------ */
enum {
	FS_REGEX_I = 1 << 0,
	FS_REGEX_M = 1 << 1,
	FS_REGEX_S = 1 << 2,
	FS_REGEX_U = 1 << 3,
	FS_REGEX_V = 1 << 4,
	FS_REGEX_G = 1 << 5,
	FS_REGEX_Y = 1 << 6,
	FS_REGEX_D = 1 << 7,
};
/* ASCII only. *ret_reason is why not: V8's words. NULL on success; out of memory says so. To be freed. */
char *fs_regex_translate(const uint32_t *source, size_t n, unsigned flags, const char **ret_reason);

#endif
