/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory. walk() and expandGlob() of @std/fs as state machines, so that a stream can stop and go on. A walk is a stack of
 * directories, each read at once (as Deno does) and gone through entry by entry. A glob goes segment by segment: the
 * matches so far are each advanced by a walk of their own, what they give is sorted, without doubles, and is the next set of
 * matches. Both do a bounded number of steps a call. What they hold is bounded in bytes and depth: links may form circles,
 * patterns come from the client, directories from the guest.
 */
#include "guest/fs_walk.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <string.h>

/* --- entries ------------------------------------------------------------------------------------------------------------- */

void fs_entry_free(struct fs_entry *entry)
{
	fs_str_free(&entry->path);
	fs_str_free(&entry->name);
}

/* createWalkEntry(): the path normalized, what it is after links. */
enum rc fs_entry_of(struct fs_ctx *ctx, const char *path, size_t n, struct fs_entry *ret, struct fs_error *e)
{
	struct fs_entry entry = { .path = fs_normalize(path, n) };
	struct fs_text text;
	struct stat st;
	enum rc rc = RC_OK;

	if (!entry.path.s)
		return fs_fail(e, ENOMEM, NULL, NULL);
	text = (struct fs_text){ entry.path.s, entry.path.n };
	entry.name = fs_basename(text.s, text.n);
	if (!entry.name.s)
		rc = fs_fail(e, ENOMEM, NULL, NULL);
	else if (fs_text_has_nul(&text))
		rc = fs_fail_input(e, FS_NUL_TEXT, "stat", &text);
	else if (fstatat(fs_base(ctx), text.s, &st, 0) < 0)
		rc = fs_fail(e, errno, "stat", &text);
	if (rc == RC_OK) {
		entry.kind = fs_kind_of_mode(st.st_mode);
		*ret = entry;
	} else {
		fs_entry_free(&entry);
	}
	return rc;
}

/* --- patterns ------------------------------------------------------------------------------------------------------------ */

static enum rc any_matches(struct fs_regex *const *list, size_t n, const struct fs_units *u, bool *ret,
			   struct fs_error *e)
{
	enum rc rc = RC_OK;

	*ret = false;
	for (size_t i = 0; rc == RC_OK && !*ret && i < n; i++)
		rc = fs_regex_match(list[i], u, ret, e);
	return rc;
}

static bool ends_with_any(const struct fs_walk_options *o, const struct fs_str *path)
{
	for (size_t i = 0; i < o->exts_n; i++) {
		const struct fs_str *ext = &o->exts[i];

		if (ext->n <= path->n && !memcmp(path->s + path->n - ext->n, ext->s, ext->n))
			return true;
	}
	return false;
}

/* include() of @std/fs; `all` is false where only skip counts. */
static enum rc included(const struct fs_walk_options *o, const struct fs_str *path, bool all, bool *ret,
			struct fs_error *e)
{
	struct fs_units u = { 0 };
	bool hit = true;
	enum rc rc = RC_OK;

	*ret = !(all && o->has_exts) || ends_with_any(o, path);
	if (!*ret || (!(all && o->has_match) && !o->skip_n))
		return RC_OK;
	if (!fs_units_of(path->s, path->n, &u))
		return fs_fail(e, ENOMEM, NULL, NULL);
	if (all && o->has_match)
		rc = any_matches(o->match, o->match_n, &u, &hit, e);
	*ret = hit;
	if (rc == RC_OK && hit) {
		rc = any_matches(o->skip, o->skip_n, &u, &hit, e);
		*ret = !hit;
	}
	fs_units_free(&u);
	return rc;
}

/* --- a walk -------------------------------------------------------------------------------------------------------------- */

enum stage { STAGE_SELF, STAGE_READ, STAGE_ENTRIES };

struct level {
	struct level *up;
	struct fs_str root;
	double depth_left;
	bool canonicalize;
	enum stage stage;
	struct fs_dir dir;
	size_t at;
};

static enum rc level_push(struct fs_walker *w, struct fs_str *root, double depth_left, bool canonicalize,
			  struct fs_error *e)
{
	struct level *l;

	if (w->depth == FS_WALK_DEPTH_MAX)
		return fs_fail(e, ELOOP, "readdir", &(struct fs_text){ root->s, root->n });
	l = calloc(1, sizeof(*l));
	if (!l)
		return fs_fail(e, ENOMEM, NULL, NULL);
	*l = (struct level){ .up = w->top, .root = *root, .depth_left = depth_left, .canonicalize = canonicalize };
	*root = (struct fs_str){ 0 };
	w->top = l;
	w->depth++;
	return RC_OK;
}

static void level_pop(struct fs_walker *w)
{
	struct level *l = w->top;

	w->top = l->up;
	w->depth--;
	w->bytes -= l->dir.cap;
	fs_dir_free(&l->dir);
	fs_str_free(&l->root);
	free(l);
}

enum rc fs_walker_start(struct fs_walker *w, struct fs_ctx *ctx, const struct fs_walk_options *o, const char *root,
			size_t n, struct fs_error *e)
{
	struct fs_str copy = fs_str_of(root, n);
	enum rc rc;

	*w = (struct fs_walker){ .ctx = ctx, .o = o };
	if (!copy.s)
		return fs_fail(e, ENOMEM, NULL, NULL);
	rc = level_push(w, &copy, o->max_depth, o->canonicalize, e);
	fs_str_free(&copy);
	return rc;
}

void fs_walker_stop(struct fs_walker *w)
{
	while (w->top)
		level_pop(w);
}

static enum rc step_self(struct fs_walker *w, struct fs_entry *ret, bool *ret_have, struct fs_error *e)
{
	struct level *l = w->top;
	bool wanted = false;
	enum rc rc = RC_OK;

	if (l->depth_left < 0) {
		level_pop(w);
		return RC_OK;
	}
	l->stage = STAGE_READ;
	if (w->o->include_dirs)
		rc = included(w->o, &l->root, true, &wanted, e);
	if (rc == RC_OK && wanted) {
		rc = fs_entry_of(w->ctx, l->root.s, l->root.n, ret, e);
		*ret_have = rc == RC_OK;
	}
	return rc;
}

static enum rc step_read(struct fs_walker *w, struct fs_error *e)
{
	struct level *l = w->top;
	const struct fs_text root = { l->root.s, l->root.n };
	bool wanted = false;
	enum rc rc = RC_OK;

	if (l->depth_left >= 1)
		rc = included(w->o, &l->root, false, &wanted, e);
	if (rc != RC_OK)
		return rc;
	if (!wanted) {
		level_pop(w);
		return RC_OK;
	}
	rc = fs_dir_read(w->ctx, &root, &l->dir, e);
	if (rc != RC_OK)
		return rc;
	w->bytes += l->dir.cap;
	l->stage = STAGE_ENTRIES;
	return w->bytes > FS_WALK_BYTES_MAX ? fs_fail(e, ENOMEM, "readdir", &root) : RC_OK;
}

/* The name as JavaScript has it: invalid UTF-8 replaced. */
static struct fs_str name_of(const char *raw)
{
	size_t n = strlen(raw), bad;
	struct fs_str out = { malloc(n * 3 + 1), 0 };

	for (size_t i = 0; out.s && i < n;) {
		size_t len = fs_utf8_next((const uint8_t *)raw + i, n - i, &bad);

		memcpy(out.s + out.n, len ? raw + i : "\xef\xbf\xbd", len ? len : 3);
		out.n += len ? len : 3;
		i += len ? len : bad;
	}
	if (out.s)
		out.s[out.n] = '\0';
	return out;
}

/* Follows a link: what it leads to, and the path of that if it is to replace the link's. */
static enum rc follow(struct fs_walker *w, struct fs_str *path, int *ret_kind, struct fs_error *e)
{
	const struct fs_text link = { path->s, path->n };
	char real[4096];
	struct stat st;
	size_t n, bad, len;
	int sys = fs_real_path(w->ctx, path->s, real);

	if (sys)
		return fs_fail(e, sys, "realpath", &link);
	n = strlen(real);
	for (size_t i = 0; i < n; i += len) {
		len = fs_utf8_next((const uint8_t *)real + i, n - i, &bad);
		if (!len) {
			fs_error_set(e, 0, "InvalidData", "", "File name or path \"%s\" is not valid UTF-8", link.s);
			return RC_SYS;
		}
	}
	if (fstatat(fs_base(w->ctx), real, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return fs_fail(e, errno, "lstat", &(struct fs_text){ real, n });
	*ret_kind = fs_kind_of_mode(st.st_mode);
	if (w->top->canonicalize) {
		fs_str_free(path);
		*path = fs_str_of(real, n);
		if (!path->s)
			return fs_fail(e, ENOMEM, NULL, NULL);
	}
	return RC_OK;
}

/* One entry of the top directory. Takes path and name on success. */
static enum rc entry_visit(struct fs_walker *w, int kind, struct fs_str *path, struct fs_str *name,
			   struct fs_entry *ret, bool *ret_have, struct fs_error *e)
{
	const struct fs_walk_options *o = w->o;
	int leads_to = kind;
	bool wanted = false;
	enum rc rc = RC_OK;

	if (kind == FS_KIND_LINK && !o->follow_symlinks) {
		if (o->include_symlinks)
			rc = included(o, path, true, &wanted, e);
	} else {
		if (kind == FS_KIND_LINK)
			rc = follow(w, path, &leads_to, e);
		/* Below the first level the option has its default again: @std/fs doesn't hand it on. */
		if (rc == RC_OK && (leads_to == FS_KIND_DIR || leads_to == FS_KIND_LINK))
			return level_push(w, path, w->top->depth_left - 1, true, e);
		if (rc == RC_OK && o->include_files)
			rc = included(o, path, true, &wanted, e);
	}
	if (rc != RC_OK || !wanted)
		return rc;
	*ret = (struct fs_entry){ .path = *path, .name = *name, .kind = kind };
	*path = *name = (struct fs_str){ 0 };
	*ret_have = true;
	return RC_OK;
}

static enum rc step_entry(struct fs_walker *w, struct fs_entry *ret, bool *ret_have, struct fs_error *e)
{
	_cleanup_(fs_str_free) struct fs_str name = { 0 }, path = { 0 };
	struct level *l = w->top;
	const char *raw = l->dir.mem + l->at + 1;
	int kind;

	if (l->at >= l->dir.n) {
		level_pop(w);
		return RC_OK;
	}
	kind = l->dir.mem[l->at];
	l->at += strlen(raw) + 2;
	name = name_of(raw);
	if (name.s)
		path = fs_join(l->root.s, l->root.n, name.s, name.n);
	if (!path.s)
		return fs_fail(e, ENOMEM, NULL, NULL);
	return entry_visit(w, kind, &path, &name, ret, ret_have, e);
}

enum rc fs_walker_step(struct fs_walker *w, struct fs_entry *ret, bool *ret_have, bool *ret_done, struct fs_error *e)
{
	*ret_have = *ret_done = false;
	if (!w->top) {
		*ret_done = true;
		return RC_OK;
	}
	errno = EINTR;
	if (!fs_retry(w->ctx))
		return fs_fail(e, EINTR, NULL, NULL);
	switch (w->top->stage) {
	case STAGE_SELF:
		return step_self(w, ret, ret_have, e);
	case STAGE_READ:
		return step_read(w, e);
	default:
		return step_entry(w, ret, ret_have, e);
	}
}
