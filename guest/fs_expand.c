/* SPDX-License-Identifier: Apache-2.0 */
/* expandGlob() of @std/fs 1.0; the Theory is in fs_walk.c. */
#include "guest/fs_walk.h"

#include <errno.h>
#include <math.h>
#include <string.h>

struct entries {
	struct fs_entry *v;
	size_t n, cap, bytes;
};

struct fs_expand {
	struct fs_ctx *ctx;
	struct fs_glob_options glob;
	bool include_dirs, dirs_only;
	struct fs_walk_options walk, walk_one; /* for "**", for any other segment */
	struct fs_str *segments;
	size_t segments_n, segment;
	struct fs_str fixed_root;
	bool started, emitting;
	struct entries now, next;
	size_t at; /* in now: which is advanced, or given out */
	bool walking;
	struct fs_walker walker;
	struct fs_regex *pattern; /* of the segment; NULL for "**" */
};

static void entries_free(struct entries *list)
{
	for (size_t i = 0; i < list->n; i++)
		fs_entry_free(&list->v[i]);
	free(list->v);
	*list = (struct entries){ 0 };
}

/* Takes the entry, also on failure. */
static enum rc entries_add(struct entries *list, struct fs_entry *entry, struct fs_error *e)
{
	size_t bytes = sizeof(*entry) + entry->path.n + entry->name.n + 32;

	if (list->n == list->cap) {
		size_t cap = MAX_OF(list->cap * 2, (size_t)64);
		struct fs_entry *v = reallocarray(list->v, cap, sizeof(*v));

		if (v) {
			list->v = v;
			list->cap = cap;
		}
	}
	list->bytes += bytes;
	if (list->n == list->cap || list->bytes > FS_WALK_BYTES_MAX) {
		fs_entry_free(entry);
		return fs_fail(e, ENOMEM, NULL, NULL);
	}
	list->v[list->n++] = *entry;
	return RC_OK;
}

/*
 * JavaScript compares UTF-16 units. In UTF-8 order only differs where a lead byte of 0xf0 and up (surrogates) meets one of
 * 0xee or 0xef (U+E000 to U+FFFF, above the surrogates).
 */
static int path_compare(const struct fs_str *a, const struct fs_str *b)
{
	size_t n = MIN_OF(a->n, b->n), i = 0;
	uint8_t x, y;

	while (i < n && a->s[i] == b->s[i])
		i++;
	if (i == n)
		return a->n < b->n ? -1 : a->n > b->n;
	x = (uint8_t)a->s[i];
	y = (uint8_t)b->s[i];
	if ((x >= 0xf0 && (y == 0xee || y == 0xef)) || (y >= 0xf0 && (x == 0xee || x == 0xef)))
		return x >= 0xf0 ? -1 : 1;
	return x < y ? -1 : 1;
}

static int entry_compare(const void *pa, const void *pb)
{
	const struct fs_entry *a = pa, *b = pb;

	return path_compare(&a->path, &b->path);
}

/* Sorted, each path once. */
static void entries_settle(struct entries *list)
{
	size_t o = 0;

	if (list->n)
		qsort(list->v, list->n, sizeof(*list->v), entry_compare);
	for (size_t i = 0; i < list->n; i++) {
		if (o && !path_compare(&list->v[o - 1].path, &list->v[i].path)) {
			fs_entry_free(&list->v[i]);
			continue;
		}
		list->v[o++] = list->v[i];
	}
	list->n = o;
}

/* --- params -------------------------------------------------------------------------------------------------------------- */

static enum rc exclude_read(struct fs_expand *x, struct json_object *params, const char *root, struct fs_error *e)
{
	struct json_object *list = NULL;
	enum rc rc = fs_param_opt_array(params, "exclude", &list, e);
	size_t n = list ? json_object_array_length(list) : 0;

	if (rc != RC_OK || !n)
		return rc;
	if (n > FS_PATTERNS_MAX)
		return fs_param_invalid(e, "exclude", "shorter");
	x->walk.skip = calloc(n, sizeof(*x->walk.skip));
	if (!x->walk.skip)
		return fs_fail(e, ENOMEM, NULL, NULL);
	for (; rc == RC_OK && x->walk.skip_n < n; x->walk.skip_n += rc == RC_OK) {
		_cleanup_(fs_str_free) struct fs_str path = { 0 };
		struct json_object *item = json_object_array_get_idx(list, x->walk.skip_n);

		if (!json_object_is_type(item, json_type_string))
			return fs_param_invalid(e, "exclude", "strings");
		path = fs_resolve(root, json_object_get_string(item), (size_t)json_object_get_string_len(item));
		if (!path.s)
			return fs_fail(e, ENOMEM, NULL, NULL);
		rc = fs_glob_regex(path.s, path.n, &x->glob, &x->walk.skip[x->walk.skip_n], e);
	}
	return rc;
}

/* The glob's segments: cut at slashes, none at the start or the end; at least one. */
static enum rc segments_read(struct fs_expand *x, const struct fs_text *glob, struct fs_error *e)
{
	size_t from = 0, end = glob->n, count = 1;

	while (end && glob->s[end - 1] == '/')
		end--;
	while (from < end && glob->s[from] == '/')
		from++;
	for (size_t i = from; i < end; i++)
		count += glob->s[i] == '/';
	x->segments = calloc(count, sizeof(*x->segments));
	if (!x->segments)
		return fs_fail(e, ENOMEM, NULL, NULL);
	do {
		const char *slash = memchr(glob->s + from, '/', end - from);
		size_t to = slash ? (size_t)(slash - glob->s) : end;
		struct fs_str *s = &x->segments[x->segments_n];

		*s = fs_str_of(glob->s + from, to - from);
		if (!s->s)
			return fs_fail(e, ENOMEM, NULL, NULL);
		x->segments_n++;
		for (from = to; from < end && glob->s[from] == '/';)
			from++;
	} while (from < end);
	return RC_OK;
}

static enum rc options_read(struct fs_expand *x, struct json_object *params, struct fs_error *e)
{
	enum rc rc = fs_param_opt_bool(params, "includeDirs", &x->include_dirs, e);

	if (rc == RC_OK)
		rc = fs_param_opt_bool(params, "extended", &x->glob.extended, e);
	if (rc == RC_OK)
		rc = fs_param_opt_bool(params, "globstar", &x->glob.globstar, e);
	if (rc == RC_OK)
		rc = fs_param_opt_bool(params, "caseInsensitive", &x->glob.case_insensitive, e);
	if (rc == RC_OK)
		rc = fs_param_opt_bool(params, "followSymlinks", &x->walk.follow_symlinks, e);
	if (rc == RC_OK)
		rc = fs_param_opt_bool(params, "canonicalize", &x->walk.canonicalize, e);
	return rc;
}

static enum rc fixed_root_make(struct fs_expand *x, const char *root, struct fs_error *e)
{
	x->fixed_root = fs_str_of(root, strlen(root));
	if (!x->fixed_root.s)
		return fs_fail(e, ENOMEM, NULL, NULL);
	for (; x->segment < x->segments_n; x->segment++) {
		const struct fs_str *s = &x->segments[x->segment];
		_cleanup_(fs_str_free) struct fs_str plain = { 0 };
		struct fs_str joined;
		enum rc rc;

		if (fs_is_glob(s->s, s->n))
			break;
		plain = fs_glob_unescape(s->s, s->n);
		if (!plain.s)
			return fs_fail(e, ENOMEM, NULL, NULL);
		rc = fs_join_globs(&x->fixed_root, plain.s, plain.n, x->glob.globstar, &joined, e);
		if (rc != RC_OK)
			return rc;
		fs_str_free(&x->fixed_root);
		x->fixed_root = joined;
	}
	return RC_OK;
}

static enum rc expand_init(struct fs_expand *x, struct json_object *params, struct fs_error *e)
{
	_cleanup_(fs_str_free) struct fs_str root = { 0 };
	struct fs_text glob, root_param = { "/", 1 };
	bool absolute, has_root = false;
	enum rc rc = fs_param_text(params, "glob", &glob, e);

	if (rc == RC_OK)
		rc = fs_param_opt_text(params, "root", &root_param, &has_root, e);
	if (rc == RC_OK)
		rc = options_read(x, params, e);
	if (rc != RC_OK)
		return rc;
	if (glob.n > FS_PATTERN_MAX)
		return fs_fail_plain(e, "SyntaxError", "the glob is too long");
	absolute = glob.n && glob.s[0] == '/';
	if (absolute)
		root = fs_str_of(root_param.s, root_param.n);
	else if (has_root)
		root = fs_resolve(fs_base_path(x->ctx), root_param.s, root_param.n);
	else
		root = fs_str_of(fs_base_path(x->ctx), strlen(fs_base_path(x->ctx)));
	if (!root.s)
		return fs_fail(e, ENOMEM, NULL, NULL);
	x->dirs_only = glob.n && glob.s[glob.n - 1] == '/';
	rc = exclude_read(x, params, root.s, e);
	if (rc == RC_OK)
		rc = segments_read(x, &glob, e);
	if (rc == RC_OK)
		rc = fixed_root_make(x, absolute ? "/" : root.s, e);
	x->walk_one = x->walk;
	x->walk_one.max_depth = 1;
	x->walk_one.canonicalize = true;
	if (!x->glob.globstar)
		x->walk.max_depth = 1;
	return rc;
}

enum rc fs_expand_new(struct fs_ctx *ctx, struct json_object *params, struct fs_expand **ret, struct fs_error *e)
{
	struct fs_expand *x = calloc(1, sizeof(*x));
	enum rc rc;

	if (!x)
		return fs_fail(e, ENOMEM, NULL, NULL);
	x->ctx = ctx;
	x->include_dirs = x->glob.extended = x->glob.globstar = true;
	x->walk = (struct fs_walk_options){ .max_depth = INFINITY, .include_files = true, .include_dirs = true,
		.include_symlinks = true, .canonicalize = true };
	rc = expand_init(x, params, e);
	if (rc == RC_OK)
		*ret = x;
	else
		fs_expand_free(x);
	return rc;
}

void fs_expand_free(struct fs_expand *x)
{
	if (!x)
		return;
	fs_walker_stop(&x->walker);
	entries_free(&x->now);
	entries_free(&x->next);
	for (size_t i = 0; i < x->segments_n; i++)
		fs_str_free(&x->segments[i]);
	free(x->segments);
	for (size_t i = 0; i < x->walk.skip_n; i++)
		fs_regex_free(x->walk.skip[i]);
	free(x->walk.skip);
	fs_regex_free(x->pattern);
	fs_str_free(&x->fixed_root);
	free(x);
}

/* --- steps ---------------------------------------------------------------------------------------------------------------- */

static enum rc start(struct fs_expand *x, struct fs_error *e)
{
	struct fs_entry entry;
	enum rc rc = fs_entry_of(x->ctx, x->fixed_root.s, x->fixed_root.n, &entry, e);

	x->started = true;
	if (rc != RC_OK && !strcmp(e->constructor_name, "NotFound"))
		return RC_OK;
	return rc == RC_OK ? entries_add(&x->now, &entry, e) : rc;
}

static bool segment_is(const struct fs_expand *x, const char *word)
{
	const struct fs_str *s = &x->segments[x->segment];

	return s->n == strlen(word) && !memcmp(s->s, word, s->n);
}

/* ".." after a glob segment: the parent, unless it is excluded. */
static enum rc advance_up(struct fs_expand *x, const struct fs_entry *from, struct fs_error *e)
{
	_cleanup_(fs_str_free) struct fs_str path = { 0 };
	struct fs_units u = { 0 };
	struct fs_entry entry;
	bool excluded = false;
	enum rc rc = fs_join_globs(&from->path, "..", 2, x->glob.globstar, &path, e);

	if (rc != RC_OK)
		return rc;
	if (!fs_units_of(path.s, path.n, &u))
		return fs_fail(e, ENOMEM, NULL, NULL);
	for (size_t i = 0; rc == RC_OK && !excluded && i < x->walk.skip_n; i++)
		rc = fs_regex_match(x->walk.skip[i], &u, &excluded, e);
	fs_units_free(&u);
	if (rc == RC_OK && !excluded) {
		rc = fs_entry_of(x->ctx, path.s, path.n, &entry, e);
		if (rc == RC_OK)
			rc = entries_add(&x->next, &entry, e);
	}
	return rc;
}

/* Begins to advance now.v[at]. */
static enum rc advance(struct fs_expand *x, struct fs_error *e)
{
	const struct fs_entry *from = &x->now.v[x->at];
	const struct fs_str *s = &x->segments[x->segment];
	bool all = segment_is(x, "**");
	enum rc rc = RC_OK;

	if (from->kind != FS_KIND_DIR || segment_is(x, "..")) {
		x->at++;
		return from->kind == FS_KIND_DIR ? advance_up(x, from, e) : RC_OK;
	}
	if (!all && !x->pattern)
		rc = fs_glob_regex(s->s, s->n, &x->glob, &x->pattern, e);
	if (rc == RC_OK)
		rc = fs_walker_start(&x->walker, x->ctx, all ? &x->walk : &x->walk_one, from->path.s, from->path.n, e);
	x->walking = rc == RC_OK;
	return rc;
}

/* One step of the walk that advances now.v[at]. */
static enum rc advance_step(struct fs_expand *x, struct fs_error *e)
{
	struct fs_entry entry;
	struct fs_units u = { 0 };
	bool have, done, keep = true;
	enum rc rc = fs_walker_step(&x->walker, &entry, &have, &done, e);

	if (rc != RC_OK)
		return rc;
	if (done) {
		x->walking = false;
		x->at++;
		return RC_OK;
	}
	if (!have)
		return RC_OK;
	if (x->pattern) {
		keep = path_compare(&entry.path, &x->now.v[x->at].path);
		if (keep && !fs_units_of(entry.name.s, entry.name.n, &u))
			rc = fs_fail(e, ENOMEM, NULL, NULL);
		else if (keep)
			rc = fs_regex_match(x->pattern, &u, &keep, e);
		fs_units_free(&u);
	}
	if (rc == RC_OK && keep)
		return entries_add(&x->next, &entry, e);
	fs_entry_free(&entry);
	return rc;
}

/* All of now is advanced: next is the new now. */
static void segment_end(struct fs_expand *x)
{
	entries_free(&x->now);
	entries_settle(&x->next);
	x->now = x->next;
	x->next = (struct entries){ 0 };
	x->at = 0;
	x->segment++;
	fs_regex_free(x->pattern);
	x->pattern = NULL;
}

static void give(struct fs_expand *x, struct fs_entry *ret, bool *ret_have, bool *ret_done)
{
	struct fs_entry *entry = &x->now.v[x->at];
	bool dir;

	if (x->at == x->now.n) {
		*ret_done = true;
		return;
	}
	dir = entry->kind == FS_KIND_DIR;
	x->at++;
	if ((x->dirs_only && !dir) || (!x->include_dirs && dir))
		return;
	*ret = *entry;
	*entry = (struct fs_entry){ 0 };
	*ret_have = true;
}

enum rc fs_expand_step(struct fs_expand *x, struct fs_entry *ret, bool *ret_have, bool *ret_done, struct fs_error *e)
{
	*ret_have = *ret_done = false;
	if (!x->started)
		return start(x, e);
	if (x->walking)
		return advance_step(x, e);
	if (x->segment == x->segments_n) {
		give(x, ret, ret_have, ret_done);
		return RC_OK;
	}
	if (x->at < x->now.n)
		return advance(x, e);
	segment_end(x);
	return RC_OK;
}
