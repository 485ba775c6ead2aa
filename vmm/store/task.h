/* SPDX-License-Identifier: Apache-2.0 */
/* What takes long and exists as a program already, in a process of its own, without blocking the loop. */
#ifndef NB_STORE_TASK_H
#define NB_STORE_TASK_H

#include "base/fault.h"
#include "base/loop.h"

#include <stdint.h>

#define TASK_TIMEOUT_MS 60000
#define TASK_COPY_MS 600000 /* of a volume of the largest size to a slow disk */

struct task;

/* Comes once, unless cancelled. */
typedef void task_done_fn(void *arg, enum rc rc, const struct fault *f);

/* An ext4 in the regular file fd, which has its final size and no data. */
enum rc task_mkfs(struct loop *loop, int fd, task_done_fn *done, void *arg, struct task **ret, struct fault *ret_f);
/* Everything of the file system that fd is on to stable storage. */
enum rc task_flush(struct loop *loop, int fd, task_done_fn *done, void *arg, struct task **ret, struct fault *ret_f);
/* The same for a volume, whose size its owner chose: the journal is as large as that deserves. */
enum rc task_mkfs_volume(struct loop *loop, int fd, task_done_fn *done, void *arg, struct task **ret,
			 struct fault *ret_f);
/* This file alone to stable storage. */
enum rc task_fsync(struct loop *loop, int fd, task_done_fn *done, void *arg, struct task **ret, struct fault *ret_f);
/* copy_disk() of files that may be large: what `to` had before is gone. */
enum rc task_copy(struct loop *loop, int from, int to, task_done_fn *done, void *arg, struct task **ret,
		  struct fault *ret_f);
/* nestbox-disk (disk_main.c), with these descriptors; -1 for one that the verb does not need. RC_STATE: a sum differs. */
#define DISK_EXIT_DAMAGED 3
#define DISK_EXIT_FULL 4
extern const char *task_disk_program; /* where it is; tests have another */
enum rc task_disk(struct loop *loop, const char *verb, int from, int to, int sum_fd, task_done_fn *done, void *arg,
		  struct task **ret, struct fault *ret_f);
/* Kills, and reaps in the background; done is not called. NULL is fine. */
void task_cancel(struct task *t);

#endif
