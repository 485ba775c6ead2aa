/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a VM engine does. Theory: the broker prepares everything a machine needs as descriptors (disks, taps, kernel,
 * log, cgroup) in a struct engine_spec; the engine starts one jailed process for it and talks to that process over
 * a control socket whose path is in the machine's directory, so that a restarted broker can adopt it. Nothing here
 * blocks: whatever takes longer than a system call reports through a callback on the loop. The machine shape, by which
 * the guest recognises its devices, is in schema/agent.h and is the same for every engine.
 *
 * States: STARTING -> RUNNING <-> PAUSED -> GONE. An operation in the wrong state is RC_STATE. One operation at a time
 * per machine; a second is RC_AGAIN. stop() is allowed always, at most once, and ends a running operation with RC_STATE.
 */
#ifndef NB_ENGINE_H
#define NB_ENGINE_H

#include "base/fault.h"
#include "base/loop.h"
#include "vmm/engines/shape.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define ENGINE_DISKS_MAX 8
#define ENGINE_NICS_MAX 2
#define ENGINE_FORK_MAX 16

struct engine_disk {
	char serial[21]; /* virtio-blk id: "image", "overlay", "spare0".. */
	int fd;          /* raw file, opened by the broker */
	bool read_only;
};

struct engine_nic {
	char mac[18];
	int tap_fd; /* IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, header of 12 bytes */
};

/* Descriptors are borrowed until the operation's callback; the engine duplicates or passes on what the VM needs. */
struct engine_spec {
	char id[41];
	uint32_t memory_mib, vcpus;
	uid_t uid;          /* the VM process's own uid and gid */
	int vm_dirfd;       /* vms/<id>/: the engine keeps its control socket and pid file here, nothing else */
	int cgroup_procs_fd; /* write "0" to join before exec; -1: no cgroup */
	int netns_fd;       /* -1 for an empty one; taps already exist, so the process itself needs no network */
	int kernel_fd, initrd_fd; /* cold start only, else -1 */
	const char *cmdline;      /* cold start only */
	int log_fd;               /* the guest's serial console goes here, append; bounded by the broker */
	struct engine_disk disks[ENGINE_DISKS_MAX];
	size_t n_disks;
	struct engine_nic nics[ENGINE_NICS_MAX];
	size_t n_nics;
	/* 0: none. Of each disk; of the first network card in each direction. mbps: 10^6 bytes a second. */
	uint32_t disk_iops, disk_mbps, net_pps, net_mbps;
	bool paused; /* adopt only: how it shall be. One that stands still for an operation nobody finished goes on. */
};

struct engine;          /* one per host */
struct engine_vm;       /* one per machine; owned by the broker, freed by vm_free() */
struct engine_snapshot; /* a saved machine, opened: sealed memory and device state, shared by all that start from it */

typedef void engine_done_fn(void *arg, enum rc rc, const struct fault *f);
/* The VM process is gone and reaped; comes once, after the callback of a running operation. */
typedef void engine_exit_fn(void *arg, const char *reason);

struct engine_times {
	uint32_t start_us;  /* process start to accepting control */
	uint32_t load_us;   /* state loaded, memory mapped */
	uint32_t pause_us;  /* fork: how long the parent stood still */
	uint64_t private_bytes; /* fork, take: what the copy of the guest's memory takes */
};

struct engine_stat {
	pid_t pid;
	uint64_t pss_bytes, cpu_us;
};

struct engine_ops {
	const char *name; /* "qemu-tcg", "qemu-kvm", "kvm" */
	uint32_t overhead_mib; /* what a machine's process may use beyond its guest's memory */
	/* fork() and take() have the machine's own process copy what its guest changed: its control group pays for it, until nobody
	 * has the copy. Else the copy is made by a process of the broker. */
	bool copies_charged;

	/* Starts a machine: cold when snap is NULL, else from the snapshot. It runs when done(RC_OK) comes. If done
	 * reports a failure, exit has been or will be called too unless *ret was never set. */
	enum rc (*start)(struct engine *e, const struct engine_spec *spec, struct engine_snapshot *snap,
			 engine_done_fn *done, engine_exit_fn *exit, void *arg, struct engine_vm **ret,
			 struct fault *ret_f);
	/* After a broker restart: the process of spec->id still runs (pid checked against its start time by the engine). */
	enum rc (*adopt)(struct engine *e, const struct engine_spec *spec, engine_exit_fn *exit, void *arg,
			 struct engine_vm **ret, struct fault *ret_f);
	enum rc (*pause)(struct engine_vm *vm, engine_done_fn *done, struct fault *ret_f);
	enum rc (*resume)(struct engine_vm *vm, engine_done_fn *done, struct fault *ret_f);
	/* Of a PAUSED machine: writes memory, state and manifest below dirfd (empty directory); the machine stays paused. Flushes
	 * nothing: that is for whoever gives the directory its name. */
	enum rc (*save)(struct engine_vm *vm, int dirfd, engine_done_fn *done, struct fault *ret_f);
	/*
	 * Of a RUNNING machine, by the fork's means: *ret is the machine in the instant in which cut() is called, in memory. It goes on
	 * when the caller says fork_go(). *ret is set before done(RC_OK) and is the caller's.
	 */
	enum rc (*take)(struct engine_vm *vm, void (*cut)(void *arg), void *cut_arg, engine_done_fn *done,
			struct engine_snapshot **ret, struct fault *ret_f);

	/*
	 * Snapshots. What takes long is done by a process beside: snapshot_free() ends it, and done() does not come then. One thing at a
	 * time per snapshot; of all, ENGINE_STORES_MAX at a time, the others wait.
	 */
	/* What take() gave, to an empty directory, as save() would write it. base_dirfd: a snapshot of the same engine, or -1; where only
	 * little differs from it, only that is written, and what it is based on gets a second name in dirfd. Flushes nothing. From then on
	 * it can only be freed: its memory is the program's that writes it. */
	enum rc (*snapshot_store)(struct engine_snapshot *snap, int dirfd, int base_dirfd, engine_done_fn *done, void *arg,
				  struct fault *ret_f);
	/* Opens what was written: checks version, host compatibility and checksums (RC_STATE with the reason if it cannot be used
	 * here), loads memory into a sealed memfd. *ret is there at once, to be used after done(RC_OK). */
	enum rc (*snapshot_open)(struct engine *e, int dirfd, engine_done_fn *done, void *arg, struct engine_snapshot **ret,
				 struct fault *ret_f);
	/* The same for a snapshot that is used seldom: reads and checks all but the memory, which stays in its file and is mapped
	 * from there; fast. The file must not change from now on, but may lose its name. */
	enum rc (*snapshot_map)(struct engine *e, int dirfd, struct engine_snapshot **ret, struct fault *ret_f);
	/* Reads all of a mapped one and compares it with its checksums: RC_STATE if they differ. */
	enum rc (*snapshot_check)(struct engine_snapshot *snap, engine_done_fn *done, void *arg, struct fault *ret_f);
	void (*snapshot_free)(struct engine_snapshot *snap);
	/* Tells the guest that the disk with this serial has another size now (after a start from a snapshot). */
	enum rc (*disk_resized)(struct engine_vm *vm, const char *serial, engine_done_fn *done, struct fault *ret_f);
	/* n children of a RUNNING machine, each with its own spec. cut() is called when the parent stands still, to copy disks;
	 * the parent goes on and the children start when the caller then says fork_go(), at once or later. cut NULL: there is
	 * nothing to copy; it is not called when no child is left. Callback per child through its own arg, for those that were put into rets (set to NULL before). */
	enum rc (*fork)(struct engine_vm *parent, size_t n, const struct engine_spec specs[], void (*cut)(void *arg),
			void *cut_arg, engine_done_fn *done, engine_exit_fn *exit, void *args[],
			struct engine_vm *rets[], struct fault *ret_f);
	/* After cut() of a fork() or take(), once. f: it fails for that reason; the parent goes on all the same. */
	void (*fork_go)(struct engine_vm *parent, const struct fault *f);
	/* SIGKILL now; exit comes when it is reaped. Never fails, never blocks. */
	void (*stop)(struct engine_vm *vm);
	void (*stat)(struct engine_vm *vm, struct engine_stat *ret);
	const struct engine_times *(*times)(struct engine_vm *vm);
	/* Only after exit was called. */
	void (*vm_free)(struct engine_vm *vm);
	/* Forgets all machines without stopping them (broker shutdown). */
	void (*engine_free)(struct engine *e);
};

struct engine {
	const struct engine_ops *ops;
	struct loop *loop;
	char shape[SHAPE_MAX]; /* another one: the templates that there are do not fit */
};

struct engine_verdict {
	char name[16];    /* what was chosen: "kvm", "qemu-kvm", "qemu-tcg" */
	char tier[32];    /* "hardware" or "emulated" */
	char reason[160]; /* "/dev/kvm opens but emulates each instruction (probe stopped after 500 ms)" */
	bool kvm_usable;
};

/* Runs the KVM probe (vmm/engines/probe.c) once, within deadline_ms, and picks; `forced` is the config's engine. */
enum rc engine_choose(const char *forced, const char *qemu_path, const char *vmm_path, uint32_t deadline_ms,
		      struct engine_verdict *ret, struct fault *ret_f);
/* Each engine's constructor: vmm/engines/qemu/qemu.c, vmm/engines/kvm/client.c */
enum rc engine_qemu_new(struct loop *loop, const char *qemu_path, bool kvm, struct engine **ret, struct fault *ret_f);
enum rc engine_kvm_new(struct loop *loop, const char *vmm_path, struct engine **ret, struct fault *ret_f);

#endif
