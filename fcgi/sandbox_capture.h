/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Captures: a running sandbox, its memory and disk, kept on disk. Others start from it: its id as `root` of their configuration.
 *
 * Theory: the row is first, so that the quota holds when several are taken at once, with `bytes` 0 until the broker has it under the
 * row's id as its name. A worker that dies in between leaves such a row; the runner removes those, and what the broker has without a row.
 * Deleting goes the other way round. A capture belongs to an organization and outlives the sandbox it was made of.
 */
#ifndef NB_FCGI_SANDBOX_CAPTURE_H
#define NB_FCGI_SANDBOX_CAPTURE_H

#include "fcgi/request.h"

struct capture_use {
	char id[ID_MAX]; /* "": not a capture */
	uint32_t memory_mib;
};

/* What `root` names, if that is a capture's id. API_CAPTURE_NOT_FOUND if it is and there is none; API_OK and an empty id if it is not. */
enum api_code capture_resolve(struct request *r, const char *root, struct capture_use *ret);

#endif
