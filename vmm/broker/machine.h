/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One machine: everything on the host that belongs to one VM, from its uid to its directory, and the one way it ends.
 *
 * Theory: a machine is built up in order (machine_new, machine_prepare, machine_launch) and may end at any point of that;
 * machine_end() is the only way down and does not care how far it came. It stops the process, and when that is reaped a
 * turn of the loop later everything is released and machine_gone() told. So nobody frees a machine from within its own
 * callbacks, and an answer to VM_KILL means that nothing is left.
 *
 * States are the protocol's: STARTING -> RUNNING <-> PAUSED -> STOPPING -> freed. Internal machines (templates being made)
 * have ids that begin with '_' and never show in lists or events.
 *
 * The lease is a named pipe in the machine's directory. Whoever holds the writing end keeps the machine alive; the
 * kernel tells the broker when the last one is closed, and a restarted broker can still see whether one is open.
 */
#ifndef NB_BROKER_MACHINE_H
#define NB_BROKER_MACHINE_H

#include "schema/agent.h"
#include "vmm/broker/agent_link.h"
#include "vmm/broker/broker.h"
#include "vmm/broker/limits.h"

#define MACHINE_WAITERS_MAX 16
#define MACHINE_VOLUMES (1 + AGENT_SPARE_DISKS)
#define MACHINE_TAG_MAX 64

enum machine_disk { DISK_IMAGE, DISK_OVERLAY, DISK_SPARE, DISK_ROOT = DISK_SPARE + AGENT_SPARE_DISKS, DISK_BASE, MACHINE_DISKS };

struct dial;
struct repolicy;
struct request;

struct machine {
	struct broker *b;
	char id[BROKER_ID_MAX];
	enum broker_vm_state state;
	bool internal, background, ending;
	uint32_t flags, memory_mib, slot;
	uint64_t created_ms, stop_at_ms;
	char image[BROKER_NAME_MAX], reason[BROKER_REASON_MAX];
	char image_tag[MACHINE_TAG_MAX]; /* which file of that name: image_tag() */
	uint8_t *policy;
	size_t policy_n;
	char volumes[MACHINE_VOLUMES][BROKER_NAME_MAX]; /* attach.h; "": none in this slot */
	bool has_volumes, own_root;  /* own_root: its root is a volume, a snapshot or a snapshot's copy */
	struct repolicy *repolicy;   /* its egress policy is being changed */
	struct agent_call *settle;   /* its agent flushes or thaws the volumes */

	int dirfd;
	bool has_dir;
	int disks[ENGINE_DISKS_MAX], log_fd; /* only until the engine has them */
	struct net net;
	bool has_net, egress_told;
	char *ca_pem;                /* the proxy's answer: what the guest has to trust; NULL: none yet, "": nothing */
	bool missed_ca;              /* its guest was told who it is before that answer came, and has to be told it when it comes */
	void (*on_ca)(void *arg);    /* whoever is building it and waits for that answer */
	void *on_ca_arg;
	struct cgroup cgroup;
	struct charge *charges;      /* charge.h: copies of its memory that its group pays for */
	uint64_t charged_bytes;
	struct charge *came_from;    /* the copy that it maps, as a child of a fork */
	struct engine_vm *vm;
	bool exited, busy;           /* process reaped; an engine operation is running */
	char capture[BROKER_CAPTURE_MAX]; /* what it was started from, or last kept as; "": nothing */

	int lease_fd;                /* reading end, -1: no lease */
	struct source *lease, *grace;
	struct source *finish;       /* the turn of the loop in which it is freed */
	unsigned int cgroup_tries;

	/* Of whoever is building it; called once when the machine ends before built is set to NULL. */
	void (*on_end)(void *arg, const char *reason);
	/* Internal machines: called when nothing is left. */
	void (*on_gone)(void *arg);
	engine_done_fn *on_engine;
	void *arg, *on_engine_arg;
	struct machine_pausing {
		bool pause;
		engine_done_fn *done;
		void *arg;
	} pausing;                   /* while the engine does it */
	char logins[LOGINS_MAX][BROKER_LOGIN_KEY_MAX]; /* login.h */
	size_t n_logins;
	struct dial *dials;          /* connections on their way */
	struct request *waiters[MACHINE_WAITERS_MAX]; /* VM_KILLs to be answered when it is gone */
	size_t n_waiters;
};

struct machine_spec {
	const char *id;
	uint32_t memory_mib, flags;
	uint64_t stop_at_ms;
	bool background; /* yields the processor to all others */
	const char *image;
	const uint8_t *policy;
	size_t policy_n;
};

/* Takes a uid and a place in the list after checking the host's limits. */
enum rc machine_new(struct broker *b, const struct machine_spec *spec, struct machine **ret, struct fault *ret_f);
/* Directory, record, disks, network, cgroup. overlay_fd: copied; -1: an empty file of the configured size. Disks that m has
 * already (attach.h) stay. */
enum rc machine_prepare(struct machine *m, int image_fd, int overlay_fd, struct fault *ret_f);
struct machine_boot {
	int kernel_fd, initrd_fd;
	const char *cmdline;
};
/* boot: cold; else from snap. done comes when it runs; its failure has already begun machine_end(). */
enum rc machine_launch(struct machine *m, const struct machine_boot *boot, struct engine_snapshot *snap,
		       engine_done_fn *done, void *arg, struct fault *ret_f);
/* STARTING -> RUNNING: written down, announced. */
void machine_running(struct machine *m);
enum rc machine_pause(struct machine *m, bool pause, engine_done_fn *done, void *arg, struct fault *ret_f);
/* The disk with this serial has another size than the snapshot knows. */
enum rc machine_disk_resized(struct machine *m, const char *serial, engine_done_fn *done, void *arg, struct fault *ret_f);
enum rc machine_save(struct machine *m, int dirfd, engine_done_fn *done, void *arg, struct fault *ret_f);
/* What it is in the instant of cut(), which ends with machine_fork_go(): engine.h, take(). */
enum rc machine_snapshot(struct machine *m, void (*cut)(void *arg), void *cut_arg, engine_done_fn *done, void *arg,
			 struct engine_snapshot **ret, struct fault *ret_f);
/*
 * Children, prepared, of a running parent, which is busy until the first done. cut() as in engine.h, then machine_fork_go().
 * done comes for each child whose `vm` is set afterwards; its failure has already begun machine_end().
 */
enum rc machine_fork(struct machine *parent, size_t n, struct machine *children[], void (*cut)(void *arg), void *cut_arg,
		     engine_done_fn *done, void *args[], struct fault *ret_f);
void machine_fork_go(struct machine *parent, const struct fault *f);

/* Begins the end; the first reason stays. */
void machine_end(struct machine *m, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* The broker ends: memory and descriptors go, the machine stays. */
void machine_forget(struct machine *m);
/* r is answered when nothing is left. */
enum rc machine_wait_gone(struct machine *m, struct request *r, struct fault *ret_f);

/* Another fork or capture of it is under way. */
bool machine_in_use(const struct machine *m);

struct machine *machine_find(struct broker *b, const char *id);
/* Index of the first machine whose id sorts after `after`. */
size_t machine_after(struct broker *b, const char *after);
const struct gone *machine_gone_find(struct broker *b, const char *id);
void machine_gone_note(struct broker *b, const struct gone *g);
void machine_stat(struct machine *m, bool costly, struct broker_vm_stat *ret);
uint64_t machine_memory_used(const struct broker *b);
enum rc machine_disk_free(const struct broker *b, uint64_t *ret_bytes, struct fault *ret_f);

enum rc machine_extend(struct machine *m, uint64_t stop_at_ms, struct fault *ret_f);
enum rc machine_set_policy(struct machine *m, const uint8_t *policy, size_t n, struct fault *ret_f);

/* The writing end of the lease pipe, and grace is over. RC_STATE: not a leased machine, or somebody has it already. */
enum rc machine_lease_take(struct machine *m, int *ret_fd, struct fault *ret_f);

/* Timers that concern all machines. */
enum rc machines_init(struct broker *b, struct fault *ret_f);
void machines_free(struct broker *b);
/* At start: vms/<id>/ of an earlier broker. Adopts what runs, removes what does not. */
enum rc machines_adopt(struct broker *b, struct fault *ret_f);
bool machine_kept(void *broker, const char *id);

#endif
