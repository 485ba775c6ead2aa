/* SPDX-License-Identifier: Apache-2.0 */
/* The streams of walk and expandGlob: params in, one line of JSON an entry out. */
#include "guest/fs_walk.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#define STEPS_A_CALL 2048

struct fs_walk {
	struct fs_ctx *ctx;
	struct fs_walk_options o;
	struct fs_walker walker;
	struct fs_expand *expand; /* NULL: a plain walk */
	struct json_object *pending; /* an entry that did not fit */
};

/* --- params of walk --------------------------------------------------------------------------------------------------------- */

static enum rc exts_read(struct fs_walk *w, struct json_object *params, struct fs_error *e)
{
	struct json_object *list;
	size_t n;
	enum rc rc = fs_param_opt_array(params, "exts", &list, e);

	if (rc != RC_OK || !list)
		return rc;
	n = json_object_array_length(list);
	w->o.has_exts = true;
	w->o.exts = calloc(n + 1, sizeof(*w->o.exts));
	if (n > FS_PATTERNS_MAX)
		return fs_param_invalid(e, "exts", "shorter");
	for (size_t i = 0; w->o.exts && i < n; i++) {
		struct json_object *item = json_object_array_get_idx(list, i);
		const char *s = json_object_get_string(item);
		size_t len;
		char *copy;

		if (!json_object_is_type(item, json_type_string))
			return fs_param_invalid(e, "exts", "strings");
		len = (size_t)json_object_get_string_len(item);
		copy = malloc(len + 2);
		if (!copy)
			break;
		copy[0] = '.';
		memcpy(copy + (s[0] != '.' || !len), s, len);
		w->o.exts[w->o.exts_n++] = (struct fs_str){ copy, len + (s[0] != '.' || !len) };
	}
	return w->o.exts_n == n ? RC_OK : fs_fail(e, ENOMEM, NULL, NULL);
}

static enum rc regexes_read(struct json_object *params, const char *name, struct fs_regex ***ret, size_t *ret_n,
			    bool *ret_has, struct fs_error *e)
{
	struct json_object *list;
	size_t n;
	enum rc rc = fs_param_opt_array(params, name, &list, e);

	if (rc != RC_OK || !list)
		return rc;
	n = json_object_array_length(list);
	if (n > FS_PATTERNS_MAX)
		return fs_param_invalid(e, name, "shorter");
	*ret_has = true;
	*ret = calloc(n + 1, sizeof(**ret));
	if (!*ret)
		return fs_fail(e, ENOMEM, NULL, NULL);
	for (; *ret_n < n; ++*ret_n) {
		struct json_object *item = json_object_array_get_idx(list, *ret_n);
		struct fs_text source, flags;

		if (!json_object_is_type(item, json_type_object))
			return fs_param_invalid(e, name, "regular expressions");
		rc = fs_param_text(item, "source", &source, e);
		if (rc == RC_OK)
			rc = fs_param_text(item, "flags", &flags, e);
		if (rc == RC_OK)
			rc = fs_regex_new(&source, &flags, &(*ret)[*ret_n], e);
		if (rc != RC_OK)
			return rc;
	}
	return RC_OK;
}

static enum rc walk_params(struct fs_walk *w, struct json_object *params, struct fs_text *path, struct fs_error *e)
{
	struct fs_walk_options *o = &w->o;
	bool has_skip = false;
	enum rc rc = fs_param_text(params, "path", path, e);

	*o = (struct fs_walk_options){ .max_depth = INFINITY, .include_files = true, .include_dirs = true,
		.include_symlinks = true, .canonicalize = true };
	if (rc == RC_OK)
		rc = fs_param_opt_number(params, "maxDepth", &o->max_depth, NULL, e);
	if (rc == RC_OK)
		rc = fs_param_opt_bool(params, "includeFiles", &o->include_files, e);
	if (rc == RC_OK)
		rc = fs_param_opt_bool(params, "includeDirs", &o->include_dirs, e);
	if (rc == RC_OK)
		rc = fs_param_opt_bool(params, "includeSymlinks", &o->include_symlinks, e);
	if (rc == RC_OK)
		rc = fs_param_opt_bool(params, "followSymlinks", &o->follow_symlinks, e);
	if (rc == RC_OK)
		rc = fs_param_opt_bool(params, "canonicalize", &o->canonicalize, e);
	if (rc == RC_OK)
		rc = exts_read(w, params, e);
	if (rc == RC_OK)
		rc = regexes_read(params, "match", &o->match, &o->match_n, &o->has_match, e);
	if (rc == RC_OK)
		rc = regexes_read(params, "skip", &o->skip, &o->skip_n, &has_skip, e);
	return rc;
}

/* --- the stream --------------------------------------------------------------------------------------------------------------- */

enum rc fs_walk_open(struct fs_ctx *ctx, const char *method, struct json_object *params, struct fs_walk **ret,
		     struct fs_error *ret_e)
{
	struct fs_walk *w;
	struct fs_text path;
	enum rc rc;

	if (!json_object_is_type(params, json_type_object))
		return fs_param_invalid(ret_e, "params", "object");
	w = calloc(1, sizeof(*w));
	if (!w)
		return fs_fail(ret_e, ENOMEM, NULL, NULL);
	w->ctx = ctx;
	if (!strcmp(method, "expandGlob")) {
		rc = fs_expand_new(ctx, params, &w->expand, ret_e);
	} else {
		rc = walk_params(w, params, &path, ret_e);
		if (rc == RC_OK)
			rc = fs_walker_start(&w->walker, ctx, &w->o, path.s, path.n, ret_e);
	}
	if (rc == RC_OK)
		*ret = w;
	else
		fs_walk_close(w);
	return rc;
}

void fs_walk_close(struct fs_walk *w)
{
	if (!w)
		return;
	fs_walker_stop(&w->walker);
	fs_expand_free(w->expand);
	for (size_t i = 0; i < w->o.exts_n; i++)
		fs_str_free(&w->o.exts[i]);
	free(w->o.exts);
	for (size_t i = 0; i < w->o.match_n; i++)
		fs_regex_free(w->o.match[i]);
	free(w->o.match);
	for (size_t i = 0; i < w->o.skip_n; i++)
		fs_regex_free(w->o.skip[i]);
	free(w->o.skip);
	json_object_put(w->pending);
	free(w);
}

static struct json_object *entry_json(const struct fs_entry *entry)
{
	struct json_object *o = json_object_new_object();

	if (o && fs_add(o, "path", json_object_new_string_len(entry->path.s, (int)entry->path.n)) &&
	    fs_add(o, "name", json_object_new_string_len(entry->name.s, (int)entry->name.n)) &&
	    fs_add(o, "isFile", json_object_new_boolean(entry->kind == FS_KIND_FILE)) &&
	    fs_add(o, "isDirectory", json_object_new_boolean(entry->kind == FS_KIND_DIR)) &&
	    fs_add(o, "isSymlink", json_object_new_boolean(entry->kind == FS_KIND_LINK)))
		return o;
	json_object_put(o);
	return NULL;
}

/* Writes the pending entry. False if there is no room. */
static bool pending_put(struct fs_walk *w, struct buf *out)
{
	size_t n;
	const char *text = json_object_to_json_string_length(w->pending, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE, &n);

	if (!text || buf_room(out) < n + 1 || buf_put(out, text, n) != RC_OK || buf_put(out, "\n", 1) != RC_OK)
		return false;
	json_object_put(w->pending);
	w->pending = NULL;
	return true;
}

static enum rc walk_step(struct fs_walk *w, bool *ret_done, struct fs_error *e)
{
	struct fs_entry entry = { 0 };
	bool have;
	enum rc rc;

	if (w->expand)
		rc = fs_expand_step(w->expand, &entry, &have, ret_done, e);
	else
		rc = fs_walker_step(&w->walker, &entry, &have, ret_done, e);
	if (rc != RC_OK || !have)
		return rc;
	w->pending = entry_json(&entry);
	fs_entry_free(&entry);
	return w->pending ? RC_OK : fs_fail(e, ENOMEM, NULL, NULL);
}

enum rc fs_walk_next(struct fs_walk *w, struct buf *out, size_t want, bool *ret_done, struct fs_error *ret_e)
{
	size_t before = buf_len(out);
	struct fs_call call;
	enum rc rc = RC_OK;

	*ret_done = false;
	if (!fs_call_begin(&call, w->ctx, ret_e))
		return RC_CLOSED;
	for (int i = 0; i < STEPS_A_CALL && rc == RC_OK && !*ret_done && buf_len(out) - before < want; i++) {
		if (w->pending && !pending_put(w, out)) {
			if (buf_len(out) == before)
				rc = fs_fail(ret_e, ENOMEM, NULL, NULL);
			break;
		}
		rc = walk_step(w, ret_done, ret_e);
	}
	if (rc == RC_OK && w->pending)
		pending_put(w, out);
	fs_call_end(&call);
	return rc;
}
