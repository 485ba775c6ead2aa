/* SPDX-License-Identifier: Apache-2.0 */
/* Between the walker (fs_walk.c), the glob (fs_expand.c) and the stream of both (fs_stream.c). */
#ifndef NB_GUEST_FS_WALK_H
#define NB_GUEST_FS_WALK_H

#include "guest/fs_glob.h"

struct fs_entry {
	struct fs_str path, name;
	int kind; /* FS_KIND_* */
};
void fs_entry_free(struct fs_entry *entry);
enum rc fs_entry_of(struct fs_ctx *ctx, const char *path, size_t n, struct fs_entry *ret, struct fs_error *e);

struct fs_walk_options {
	double max_depth;
	bool include_files, include_dirs, include_symlinks, follow_symlinks, canonicalize;
	bool has_exts, has_match;
	struct fs_str *exts;
	struct fs_regex **match, **skip;
	size_t exts_n, match_n, skip_n;
};

struct level;
struct fs_walker {
	struct fs_ctx *ctx;
	const struct fs_walk_options *o; /* borrowed */
	struct level *top;
	size_t depth, bytes;
};
enum rc fs_walker_start(struct fs_walker *w, struct fs_ctx *ctx, const struct fs_walk_options *o, const char *root,
			size_t n, struct fs_error *e);
/* One step. *ret_have: *ret is an entry, the caller's now. *ret_done: there are no more. Neither: call again. */
enum rc fs_walker_step(struct fs_walker *w, struct fs_entry *ret, bool *ret_have, bool *ret_done, struct fs_error *e);
void fs_walker_stop(struct fs_walker *w); /* also of one that was never started, if zeroed */

struct fs_expand;
enum rc fs_expand_new(struct fs_ctx *ctx, struct json_object *params, struct fs_expand **ret, struct fs_error *e);
enum rc fs_expand_step(struct fs_expand *x, struct fs_entry *ret, bool *ret_have, bool *ret_done, struct fs_error *e);
void fs_expand_free(struct fs_expand *x);

#endif
