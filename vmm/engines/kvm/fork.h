/* SPDX-License-Identifier: Apache-2.0 */
/* Live fork and snapshot of a machine's memory: see fork.c. */
#ifndef NB_VMM_FORK_H
#define NB_VMM_FORK_H

#include "vmm/engines/kvm/vm.h"

struct fork_result {
	int delta_fd, state_fd; /* the caller's; the state is sealed, the delta frozen: memory_seal() when the machine runs again */
	uint64_t pages, pages_paused;
	uint32_t rounds;
};

/* Of a running machine, which is paused when this returns RC_OK; on failure it runs on. */
/* *ret_paused_us: CLOCK_MONOTONIC when the pause began. */
enum rc vm_fork(struct vm *vm, struct fork_result *ret, uint64_t *ret_paused_us, struct fault *ret_f);
/* Of a paused machine, into empty files. */
enum rc vm_save(struct vm *vm, int memory_fd, int state_fd, struct fault *ret_f);

#endif
