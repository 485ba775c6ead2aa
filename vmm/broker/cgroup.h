/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Control groups of VM processes: memory, number of threads, processor time. Theory: one group a machine below one group
 * of this installation (nestbox-<hash of state_dir>), in the v2 tree where that has the controllers, else in each v1
 * hierarchy that has one. What the host lacks is left out and named by doctor; it never stops a machine from starting.
 */
#ifndef NB_BROKER_CGROUP_H
#define NB_BROKER_CGROUP_H

#include "base/fault.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

enum cgroup_controller { CGROUP_MEMORY, CGROUP_PIDS, CGROUP_CPU, CGROUP_CONTROLLERS };

struct cgroup_host {
	int version;                      /* 2, 1, or 0: none */
	int dirfd[CGROUP_CONTROLLERS];    /* our group in that hierarchy, -1: controller missing; v2: all the same */
	char name[32];
};

struct cgroup {
	bool made;
	char id[41];
	int procs_fd; /* for the engine; -1 if there is none */
};

#define CGROUP_WEIGHT 100

struct cgroup_limits {
	uint64_t memory_bytes;
	uint32_t pids, cpus;
	uint32_t weight; /* share of a busy processor; CGROUP_WEIGHT is everybody's */
};

/* tag distinguishes installations on one host. */
void cgroup_host_init(struct cgroup_host *h, const char *tag);
void cgroup_host_free(struct cgroup_host *h);
enum rc cgroup_make(const struct cgroup_host *h, const char *id, const struct cgroup_limits *limits, struct cgroup *ret,
		    struct fault *ret_f);
/* Another share of a busy processor. Absent ones are fine. */
void cgroup_reweigh(const struct cgroup_host *h, const char *id, uint32_t weight);
/*
 * Another bound on memory; and the one that there is. Absent ones are fine. A lower one than what is used now is left for the next change:
 * setting it takes as long as the kernel needs to take memory back, and the broker does not wait.
 */
void cgroup_memory_set(const struct cgroup_host *h, const char *id, uint64_t bytes);
bool cgroup_memory_get(const struct cgroup_host *h, const char *id, uint64_t *ret);
/* v1 has several hierarchies, the engine joins only the first: the rest, when the pid is known. */
void cgroup_join_rest(const struct cgroup_host *h, const struct cgroup *g, pid_t pid);
/* RC_AGAIN while processes are still in it. Absent ones are fine. */
enum rc cgroup_remove(const struct cgroup_host *h, const char *id, struct fault *ret_f);
/* Kills what is in groups that are not kept() and removes them. */
void cgroup_sweep(const struct cgroup_host *h, bool (*kept)(void *arg, const char *id), void *arg);

#endif
