/* SPDX-License-Identifier: Apache-2.0 */
/* Which disk a client means. */
#ifndef NB_FCGI_VOLUMES_H
#define NB_FCGI_VOLUMES_H

#include "fcgi/request.h"

struct volume_use {
	char id[ID_MAX];
	bool snapshot;
};

/* By id or slug. as_root: it must be bootable, and a snapshot will do. */
enum api_code volume_resolve(struct request *r, const char *id_or_slug, bool as_root, struct volume_use *ret);
/* Appends "volume\0path\0". */
enum api_code volume_pack_mount(struct request *r, const struct volume_use *use, const char *path, char **blob,
				size_t *n);

#endif
