/* SPDX-License-Identifier: Apache-2.0 */
/* What takes long and exists as a program already, in a process of its own, without blocking the loop. */
#ifndef NB_STORE_TASK_H
#define NB_STORE_TASK_H

#include "base/fault.h"
#include "base/loop.h"

#include <stdint.h>

#define TASK_TIMEOUT_MS 60000

struct task;

/* Comes once, unless cancelled. */
typedef void task_done_fn(void *arg, enum rc rc, const struct fault *f);

/* An ext4 in the regular file fd, which has its final size and no data. */
enum rc task_mkfs(struct loop *loop, int fd, task_done_fn *done, void *arg, struct task **ret, struct fault *ret_f);
/* Everything of the file system that fd is on to stable storage. */
enum rc task_flush(struct loop *loop, int fd, task_done_fn *done, void *arg, struct task **ret, struct fault *ret_f);
/* Kills, and reaps in the background; done is not called. NULL is fine. */
void task_cancel(struct task *t);

#endif
