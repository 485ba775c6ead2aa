/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/deploy_tree.h"

#include "base/fd.h"
#include "fcgi/deploy/bundle.h"
#include "fcgi/ids.h"
#include "fcgi/limits.h"

#include <stdio.h>
#include <string.h>

static const struct bundle_limits limits = BUNDLE_LIMITS_DEFAULT;
static const struct bundle_pace pace = { TREE_QUIET_MS, TREE_BASE_MS, TREE_MOST_MS, TREE_BYTES_PER_S };

static void tree_set(struct deploy_tree *ret, const struct bundle *b)
{
	snprintf(ret->sha256, sizeof(ret->sha256), "%s", b->name);
	ret->bytes = b->bytes;
}

enum rc deploy_tree_of_tar(int bundles_fd, int tar_fd, struct deploy_tree *ret, struct fault *ret_f)
{
	struct bundle b;
	enum rc rc = bundle_from_tar(tar_fd, &limits, bundles_fd, &pace, &b, ret_f);

	if (!rc && !b.entries)
		rc = fault_set(ret_f, RC_INVALID, 0, "the directory is empty");
	if (!rc)
		tree_set(ret, &b);
	return rc;
}

static enum rc add_link(struct bundle_writer *w, const char *path, struct json_object *asset, struct fault *ret_f)
{
	static const char *const keys[] = { "kind", "target", NULL };
	const char *target = NULL;
	enum rc rc = json_only_keys(asset, keys, ret_f);

	if (!rc)
		rc = json_get_str(asset, "target", PATH_IN_GUEST_MAX, &target, ret_f);
	if (!rc && (!target || !*target))
		rc = fault_set(ret_f, RC_INVALID, 0, "a link needs a target");
	return rc ? rc : bundle_add_link(w, path, target, ret_f);
}

static enum rc add_file(struct bundle_writer *w, const char *path, struct json_object *asset, struct fault *ret_f)
{
	static const char *const keys[] = { "kind", "encoding", "content", NULL };
	struct json_object *content = json_get(asset, "content");
	const char *encoding = "utf-8";
	_cleanup_free_ uint8_t *bytes = NULL;
	size_t n = 0;
	enum rc rc = json_only_keys(asset, keys, ret_f);

	if (!rc)
		rc = json_get_str(asset, "encoding", 16, &encoding, ret_f);
	if (rc)
		return rc;
	if (!json_object_is_type(content, json_type_string))
		return fault_set(ret_f, RC_INVALID, 0, "a file needs content");
	if (!strcmp(encoding, "utf-8"))
		return bundle_add_file(w, path, json_object_get_string(content),
				       (uint64_t)json_object_get_string_len(content), ret_f);
	if (strcmp(encoding, "base64") != 0)
		return fault_set(ret_f, RC_INVALID, 0, "encoding must be utf-8 or base64");
	rc = base64_decode(json_object_get_string(content), (size_t)json_object_get_string_len(content), &bytes, &n, ret_f);
	return rc ? rc : bundle_add_file(w, path, bytes, n, ret_f);
}

static enum rc add_asset(struct bundle_writer *w, const char *path, struct json_object *asset, struct fault *ret_f)
{
	const char *kind = "file";
	enum rc rc;

	if (!json_object_is_type(asset, json_type_object))
		return fault_set(ret_f, RC_INVALID, 0, "an asset must be an object");
	rc = json_get_str(asset, "kind", 16, &kind, ret_f);
	if (rc)
		return rc;
	if (!strcmp(kind, "symlink"))
		return add_link(w, path, asset, ret_f);
	if (strcmp(kind, "file") != 0)
		return fault_set(ret_f, RC_INVALID, 0, "kind must be file or symlink");
	return add_file(w, path, asset, ret_f);
}

static int by_name(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Sorted, so that the same files make the same bundle whatever their order in the request. */
static enum rc add_sorted(struct bundle_writer *w, struct json_object *assets, struct fault *ret_f)
{
	size_t n = (size_t)json_object_object_length(assets), i = 0;
	_cleanup_free_ const char **names = calloc(n, sizeof(*names));
	enum rc rc = names ? RC_OK : fault_set(ret_f, RC_NOMEM, 0, "assets");

	json_object_object_foreach(assets, path, asset)
	{
		(void)asset;
		if (names)
			names[i++] = path;
	}
	if (names)
		qsort(names, i, sizeof(*names), by_name);
	for (size_t k = 0; !rc && k < i; k++) {
		rc = add_asset(w, names[k], json_get(assets, names[k]), ret_f);
		if (rc == RC_INVALID)
			fault_wrap(ret_f, "asset '%s'", shown(names[k]));
	}
	return rc;
}

enum rc deploy_tree_of_assets(int bundles_fd, struct json_object *assets, struct deploy_tree *ret,
			      struct fault *ret_f)
{
	struct bundle_writer *w = NULL;
	struct bundle b;
	enum rc rc = bundle_begin(&limits, bundles_fd, &w, ret_f);

	if (rc)
		return rc;
	rc = add_sorted(w, assets, ret_f);
	if (rc) {
		bundle_abort(w);
		return rc;
	}
	rc = bundle_finish(w, &b, ret_f);
	if (!rc)
		tree_set(ret, &b);
	return rc;
}
