/* SPDX-License-Identifier: Apache-2.0 */
/* The API's side of fcgi/deploy: a tree becomes a bundle. RC_INVALID and RC_LIMIT speak of the tree, to the client. */
#ifndef NB_FCGI_DEPLOY_TREE_H
#define NB_FCGI_DEPLOY_TREE_H

#include "base/fault.h"
#include "fcgi/json.h"

#include <stdint.h>

struct deploy_tree {
	char sha256[65];
	uint64_t bytes;
};

/* tar_fd: an agent's tar stream. */
enum rc deploy_tree_of_tar(int bundles_fd, int tar_fd, struct deploy_tree *ret, struct fault *ret_f);
/* assets: {path: {kind, encoding, content} | {kind, target}} */
enum rc deploy_tree_of_assets(int bundles_fd, struct json_object *assets, struct deploy_tree *ret,
			      struct fault *ret_f);

#endif
