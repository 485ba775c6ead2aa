/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Work that may block, on threads that are started when all others are busy (at most JOB_THREADS_MAX) and kept. work()
 * runs on such a thread and touches nothing of the loop's; done() then runs on the loop's thread and frees the job.
 */
#ifndef NB_GUEST_RPC_JOBS_H
#define NB_GUEST_RPC_JOBS_H

#include "base/loop.h"

struct job {
	void (*work)(struct job *job);
	void (*done)(struct job *job);
	struct job *next;
};

struct jobs;

enum rc jobs_new(struct loop *loop, struct jobs **ret, struct fault *ret_f);
/* Embedded in the caller's own struct; runs in order of submission as threads become free. */
void jobs_submit(struct jobs *jobs, struct job *job);

#endif
