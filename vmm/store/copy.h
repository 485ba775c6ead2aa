/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Copies of disks and removal of machine directories. Files are given as descriptors; nothing here follows a symbolic
 * link or leaves the directory it was given.
 */
#ifndef NB_STORE_COPY_H
#define NB_STORE_COPY_H

#include "base/fault.h"

#include <stdbool.h>
#include <stdint.h>

/*
 * Makes `to` (an empty regular file) the same as `from`: shared extents where the file system can (FICLONE), else only
 * what is data (SEEK_DATA), so that a sparse disk stays sparse. *ret_shared (may be NULL): whether extents are shared.
 */
enum rc copy_disk(int from, int to, bool *ret_shared, struct fault *ret_f);

/* The same where it takes no time worth mentioning: shared extents, or at most max_bytes of data. *ret_done: whether it did. */
enum rc copy_disk_quick(int from, int to, uint64_t max_bytes, bool *ret_done, struct fault *ret_f);

/* A new regular file of `bytes` without blocks, mode 0600. RC_EXISTS if the name is taken. */
enum rc disk_make_at(int dirfd, const char *name, uint64_t bytes, int *ret_fd, struct fault *ret_f);

/* Removes name and what is below it, at most TREE_DEPTH_MAX directories deep; an absent one is fine. */
#define TREE_DEPTH_MAX 8
enum rc tree_remove_at(int dirfd, const char *name, struct fault *ret_f);

/* mkdirat() and open of a directory; made with this mode if absent. */
enum rc dir_open_at(int dirfd, const char *name, unsigned int mode, int *ret_fd, struct fault *ret_f);

#endif
