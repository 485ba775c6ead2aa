/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Globs and POSIX paths as the JavaScript libraries have them that the clients' globs are written for (@std/path 1.1,
 * @std/fs 1.0). Strings have lengths: paths of the client may have NULs until a system call refuses them. Results are
 * allocated, NUL-terminated and freed by fs_str_free(); .s is NULL when out of memory.
 */
#ifndef NB_GUEST_FS_GLOB_H
#define NB_GUEST_FS_GLOB_H

#include "guest/fs_regex.h"

struct fs_str {
	char *s;
	size_t n;
};
struct fs_str fs_str_of(const char *s, size_t n);
void fs_str_free(struct fs_str *s);

struct fs_str fs_normalize(const char *s, size_t n);
/* Joined by "/", empty ones left out, normalized. */
struct fs_str fs_join(const char *a, size_t a_n, const char *b, size_t b_n);
struct fs_str fs_basename(const char *s, size_t n);
/* `path` from `cwd`, which is absolute. */
struct fs_str fs_resolve(const char *cwd, const char *path, size_t n);
/* Like fs_join(), but with globstar the ".." after "**" stays. RC_SYS for a NUL in a glob. */
enum rc fs_join_globs(const struct fs_str *a, const char *b, size_t b_n, bool globstar, struct fs_str *ret,
		      struct fs_error *e);

struct fs_glob_options {
	bool extended, globstar, case_insensitive;
};
bool fs_is_glob(const char *s, size_t n);
struct fs_str fs_glob_unescape(const char *s, size_t n);
/* The source of the regular expression that globToRegExp() makes. */
enum rc fs_glob_source(const char *glob, size_t n, const struct fs_glob_options *o, struct fs_str *ret,
		       struct fs_error *e);
enum rc fs_glob_regex(const char *glob, size_t n, const struct fs_glob_options *o, struct fs_regex **ret,
		      struct fs_error *e);

#endif
