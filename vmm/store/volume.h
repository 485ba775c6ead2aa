/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Volumes and snapshots on disk. Theory: a store is a directory; each entry is a directory <name>/ with `disk`, a sparse
 * raw file, and, if a machine can start from it, `image`, the name of the image that it is the writable layer of; a snapshot has the
 * checksum of its disk in `sum`, too. An entry is made
 * as .<name>/ and gets its name only when its content is on stable storage: what has its name is whole.
 */
#ifndef NB_STORE_VOLUME_H
#define NB_STORE_VOLUME_H

#include "base/fault.h"

#include <stdbool.h>
#include <stdint.h>

#define VOLUME_IMAGE_MAX 128

struct volume {
	int fd;
	uint64_t bytes, used_bytes; /* capacity; what the host gives for it now, shared or not */
	char image[VOLUME_IMAGE_MAX]; /* "": cannot be started from */
	bool clean;                   /* its ext4 needs no recovery, as far as its superblock is to be believed */
};

/* .<name>/ with an empty disk of this size. RC_EXISTS if the name is taken. */
enum rc volume_begin(int storefd, const char *name, uint64_t bytes, const char *image, int *ret_fd, struct fault *ret_f);
/* Beside the disk of .<name>/, empty; sum.h. */
enum rc volume_sum_make(int storefd, const char *name, int *ret_fd, struct fault *ret_f);
/* For reading. RC_DAMAGED if there is none. */
enum rc volume_sum_open(int storefd, const char *name, int *ret_fd, struct fault *ret_f);
/* The disk was flushed by the caller: the name becomes its own, durably. */
enum rc volume_commit(int storefd, const char *name, struct fault *ret_f);
void volume_abort(int storefd, const char *name);

/* RC_ABSENT if there is none. */
enum rc volume_open(int storefd, const char *name, bool writable, struct volume *ret, struct fault *ret_f);
/* Of used_bytes, what no other file has as well; all of it where the file system does not tell. */
uint64_t volume_own_bytes(const struct volume *v);
enum rc volume_delete(int storefd, const char *name, struct fault *ret_f);
/* What was begun and never committed. */
void volume_sweep(int storefd);

#endif
