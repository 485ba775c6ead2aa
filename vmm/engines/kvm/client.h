/* SPDX-License-Identifier: Apache-2.0 */
/* Between client.c (machines) and stored.c (snapshots): the engine's side in the broker. */
#ifndef NB_KVM_CLIENT_H
#define NB_KVM_CLIENT_H

#include "vmm/engines/process.h"
#include "vmm/engines/turns.h"

struct kvm_engine {
	struct engine base;
	int exec_fd, null_fd, kvm_fd;
	struct jail_root *root;
	struct engine_vm *vms;
	struct turns turns; /* of the programs that read and write snapshots */
	struct process_grave *graves; /* of those that were not waited for */
};

#define STORED_WORDS 4
#define STORED_WORD_MAX 24
#define STORED_FDS 8

/* Memory in layers, as CONTROL_START wants them, and the machine's state. Sealed memfds, or files on disk that are open for reading. */
struct engine_snapshot {
	struct kvm_engine *e;
	int base_fd, delta_fd; /* -1: absent */
	int state_fd;          /* state without the file's head, a sealed memfd; -1: not yet */
	int file_fd;           /* the state file; -1: it was taken, not opened */
	uint64_t bytes;        /* of guest memory */
	/* What is under way beside, if anything. */
	struct process process;
	struct source *timer;
	struct turn turn; /* waited for or had: busy */
	char words[STORED_WORDS][STORED_WORD_MAX];
	int fds[STORED_FDS]; /* for the process, until it has them */
	size_t n_fds;
	enum rc (*finish)(struct engine_snapshot *s, struct fault *ret_f); /* of a process that succeeded */
	engine_done_fn *done;
	void *arg;
	int dirfd;             /* of snapshot_store() */
};

/* Takes the descriptors of an answer to FORK: base if layers is 2, delta, state. NULL: no memory, and they are closed. */
struct engine_snapshot *stored_new(struct kvm_engine *e, uint32_t layers, int fds[], uint64_t bytes);
/* CONTROL_START's layers, and the descriptors for it, borrowed: at most 3. */
uint32_t stored_layers(const struct engine_snapshot *s, int fds[3], size_t *ret_n);

enum rc kvm_snapshot_store(struct engine_snapshot *s, int dirfd, int base_dirfd, engine_done_fn *done, void *arg, struct fault *ret_f);
enum rc kvm_snapshot_open(struct engine *e, int dirfd, engine_done_fn *done, void *arg, struct engine_snapshot **ret,
			  struct fault *ret_f);
enum rc kvm_snapshot_map(struct engine *e, int dirfd, struct engine_snapshot **ret, struct fault *ret_f);
enum rc kvm_snapshot_check(struct engine_snapshot *s, engine_done_fn *done, void *arg, struct fault *ret_f);
void kvm_snapshot_free(struct engine_snapshot *s);

#define VMM_MEMORY_FILE "memory"
#define VMM_STATE_FILE "state"
#define VMM_BASE_FILE "base" /* a second name of another snapshot's memory */

#endif
