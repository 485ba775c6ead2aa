/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/fs_internal.h"

#include <errno.h>

enum rc fs_walk_open(struct fs_ctx *ctx, const char *method, struct json_object *params, struct fs_walk **ret,
		     struct fs_error *ret_e)
{
	(void)ctx, (void)method, (void)params, (void)ret;
	return fs_fail(ret_e, ENOSYS, NULL, NULL);
}

enum rc fs_walk_next(struct fs_walk *w, struct buf *out, size_t want, bool *ret_done, struct fs_error *ret_e)
{
	(void)w, (void)out, (void)want, (void)ret_done;
	return fs_fail(ret_e, ENOSYS, NULL, NULL);
}

void fs_walk_close(struct fs_walk *w)
{
	(void)w;
}
