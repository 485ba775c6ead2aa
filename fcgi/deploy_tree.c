/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/deploy_tree.h"

enum rc deploy_tree_of_tar(int bundles_fd, int tar_fd, struct json_object *config, struct deploy_tree *ret,
			   struct fault *ret_f)
{
	(void)bundles_fd;
	(void)tar_fd;
	(void)config;
	(void)ret;
	return fault_set(ret_f, RC_STATE, 0, "bundles are not built in");
}

enum rc deploy_tree_of_assets(int bundles_fd, struct json_object *assets, struct json_object *config,
			      struct deploy_tree *ret, struct fault *ret_f)
{
	(void)bundles_fd;
	(void)assets;
	(void)config;
	(void)ret;
	return fault_set(ret_f, RC_STATE, 0, "bundles are not built in");
}
