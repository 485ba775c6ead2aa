/* SPDX-License-Identifier: Apache-2.0 */
/* Private to vmm/engines/qemu/. */
#ifndef NB_QEMU_VM_H
#define NB_QEMU_VM_H

#include "base/fd.h"
#include "vmm/engines/engine.h"
#include "vmm/engines/process.h"
#include "vmm/engines/qemu/args.h"
#include "vmm/engines/qemu/memory.h"
#include "vmm/engines/qemu/qmp.h"
#include "vmm/engines/turns.h"
#include "vmm/jail/jail.h"

#define QEMU_SHAPE_MAX 512
#define QEMU_VERSION_MAX 128

/* Names in a machine's and in a snapshot's directory. */
#define QEMU_SOCKET "qmp.sock"
#define QEMU_MEMORY_FILE "memory"
#define QEMU_STATE_FILE "state"
#define QEMU_MANIFEST_FILE "manifest.json"
#define QEMU_MANIFEST_FORMAT 1

struct qemu {
	struct engine base;
	bool kvm;
	char version[QEMU_VERSION_MAX];
	uint32_t tsc_khz; /* the host's */
	int exec_fd, null_fd;
	struct jail_root *root;
	struct jail_filter *filter;
	struct engine_vm *vms;
	struct turns turns; /* of the jobs that read and write snapshots */
	struct process_grave *graves; /* of jobs that were not waited for */
};

struct engine_snapshot {
	int ram_fd;   /* a sealed memfd, or a file on disk, open for reading */
	int state_fd; /* a sealed memfd */
	char shape[QEMU_SHAPE_MAX];
	struct qemu *e;
	uint32_t memory_mib;
	char sum[2 * MEMORY_DIGEST + 1]; /* of memory, as the manifest says */
	/* What is under way beside, if anything. */
	struct turn turn; /* waited for or had: busy */
	struct job *job;
	job_done_fn *ended;
	int out_fd; /* for the job, until it begins */
	engine_done_fn *done;
	void *arg;
	int to_fd, dirfd; /* where memory is loaded to; of snapshot_store() */
};

enum vm_state { VM_STARTING, VM_RUNNING, VM_PAUSED, VM_GONE };
enum vm_op { OP_NONE, OP_START, OP_ADOPT, OP_PAUSE, OP_RESUME, OP_SAVE, OP_RESIZE, OP_FORK };

struct vm_disk {
	char serial[21];
	int fd;
};

struct save; /* save.c */
struct fork; /* stored.c */
/* Takes the descriptors unless it fails: NULL, no memory. */
struct engine_snapshot *snapshot_new(struct qemu *e, const char *shape, uint32_t memory_mib, int ram_fd, int state_fd);
enum rc qemu_snapshot_store(struct engine_snapshot *snap, int dirfd, int base_dirfd, engine_done_fn *done, void *arg,
			    struct fault *ret_f);
enum rc qemu_snapshot_open(struct engine *e, int dirfd, engine_done_fn *done, void *arg, struct engine_snapshot **ret,
			   struct fault *ret_f);
enum rc qemu_snapshot_map(struct engine *e, int dirfd, struct engine_snapshot **ret, struct fault *ret_f);
enum rc qemu_snapshot_check(struct engine_snapshot *snap, engine_done_fn *done, void *arg, struct fault *ret_f);
void qemu_snapshot_free(struct engine_snapshot *snap);

/* fork.c */
enum rc qemu_take(struct engine_vm *vm, void (*cut)(void *arg), void *cut_arg, engine_done_fn *done, struct engine_snapshot **ret,
		  struct fault *ret_f);

struct engine_vm {
	struct qemu *e;
	struct engine_vm *next, *prev;
	char id[41], shape[QEMU_SHAPE_MAX];
	uint32_t memory_mib;
	uid_t uid;
	int dirfd, ram_fd;
	struct vm_disk disks[ENGINE_DISKS_MAX];
	size_t n_disks;

	struct process process;
	struct source *timer;
	struct qmp *qmp;
	char why[160]; /* of its end, as far as known */

	enum vm_state state;
	enum vm_op op;
	uint32_t asks;
	bool stopped, restored, to_be_paused; /* the last: adopted */
	uint64_t spawned_us, greeted_us;
	struct engine_times times;
	engine_done_fn *done;
	engine_exit_fn *exit;
	void *arg;
	struct save *save;
	struct fork *fork;        /* as parent */
	struct fork *born_of;     /* as a child that does not run yet */
};

/* vm.c: one operation at a time. begin: RC_STATE, RC_AGAIN. end: disarms the deadline and calls done. */
/* Neither gone nor busy; every operation looks at this before its arguments. */
enum rc vm_idle(const struct engine_vm *vm, struct fault *ret_f);
enum rc vm_op_begin(struct engine_vm *vm, enum vm_op op, uint32_t deadline_ms, engine_done_fn *done, struct fault *ret_f);
void vm_op_end(struct engine_vm *vm, const struct fault *f); /* f NULL: done */
/* A machine that broke the contract or its deadline: kills; the exit callback follows. Keeps the first reason. */
void vm_condemn(struct engine_vm *vm, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* qmp_send(), and the machine is condemned if it fails. */
bool vm_command(struct engine_vm *vm, const char *command, const char *args, int pass_fd, qmp_reply_fn *fn);

/* An answer that an operation can't go on without: true condemns the machine. */
bool vm_refused(struct engine_vm *vm, const struct fault *f);
/* After vm_new() and vm_op_begin(). A failure with a process condemns it, one without leaves nothing. ret_f is not NULL. */
enum rc vm_begin(struct engine_vm *vm, const struct engine_spec *spec, const struct engine_snapshot *snap,
		 struct fault *ret_f);

/* vm.c: the engine's operations */
enum rc qemu_start(struct engine *e, const struct engine_spec *spec, struct engine_snapshot *snap, engine_done_fn *done,
		   engine_exit_fn *exit, void *arg, struct engine_vm **ret, struct fault *ret_f);
enum rc qemu_adopt(struct engine *e, const struct engine_spec *spec, engine_exit_fn *exit, void *arg,
		   struct engine_vm **ret, struct fault *ret_f);
enum rc qemu_pause(struct engine_vm *vm, engine_done_fn *done, struct fault *ret_f);
enum rc qemu_resume(struct engine_vm *vm, engine_done_fn *done, struct fault *ret_f);
enum rc qemu_disk_resized(struct engine_vm *vm, const char *serial, engine_done_fn *done, struct fault *ret_f);
void qemu_stop(struct engine_vm *vm);
void qemu_stat(struct engine_vm *vm, struct engine_stat *ret);
const struct engine_times *qemu_times(struct engine_vm *vm);
void qemu_vm_free(struct engine_vm *vm);

/* spawn.c */
enum rc vm_new(struct qemu *e, const struct engine_spec *spec, engine_exit_fn *exit, void *arg, struct engine_vm **ret,
	       struct fault *ret_f);
void vm_release(struct engine_vm *vm); /* forgets it, whatever its process does */
/* state_fd -1: cold. Process started, its end watched, control socket connected. */
enum rc vm_spawn(struct engine_vm *vm, const struct engine_spec *spec, int ram_fd, int state_fd, struct fault *ret_f);
enum rc vm_connect(struct engine_vm *vm, struct fault *ret_f); /* its control socket */
static inline bool vm_has_process(const struct engine_vm *vm)
{
	return vm->process.source != NULL;
}

/* vm.c: what spawn.c watches ends here */
void vm_on_exit(void *vm, int wait_status);
qmp_reply_fn vm_on_greeting;
qmp_event_fn vm_on_event;
qmp_closed_fn vm_on_closed;

/* save.c */
enum rc qemu_save(struct engine_vm *vm, int dirfd, engine_done_fn *done, struct fault *ret_f);
enum rc manifest_write(const struct qemu *e, int dirfd, const char *shape, uint32_t memory_mib, int state_fd,
		       const struct memory_sum *sum, struct fault *ret_f);
void digest_hex(char out[2 * MEMORY_DIGEST + 1], const uint8_t in[MEMORY_DIGEST]);
void save_on_migration(struct engine_vm *vm, const char *status);
void save_free(struct engine_vm *vm);
/* "Host virtual address for 0x0 (ram) is 0x7f..": where guest memory is in QEMU. */
enum rc gpa2hva_parse(const char *text, uint64_t *ret, struct fault *ret_f);

/* fork.c */
enum rc qemu_fork(struct engine_vm *parent, size_t n, const struct engine_spec specs[], void (*cut)(void *arg),
		  void *cut_arg, engine_done_fn *done, engine_exit_fn *exit, void *args[], struct engine_vm *rets[],
		  struct fault *ret_f);
void qemu_fork_go(struct engine_vm *parent, const struct fault *f);
void fork_on_migration(struct engine_vm *vm, const char *status);
void fork_forget(struct engine_vm *vm); /* as a parent, without a word to anybody */
void fork_parent_lost(struct engine_vm *vm);
void fork_child_lost(struct engine_vm *vm);
/* True: it was a fork's and the parent goes on. */
bool fork_deadline(struct engine_vm *vm);

/* host.c: what is asked of the host once, at start */
enum rc host_version(const char *qemu_path, char out[QEMU_VERSION_MAX], struct fault *ret_f);
enum rc host_root(const char *qemu_path, bool kvm, struct jail_root **ret, struct fault *ret_f);
uint32_t host_tsc_khz(void);

/* calls.c */
extern const struct jail_list qemu_calls;

#endif
