/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nestboxd's parts share this one struct. Theory: everything runs on one loop in one thread; a module owns its own
 * list and reaches the others through it. What survives a restart is on disk below state_dir (vms/<id>/record,
 * exposures/<host>, templates/<name>/) and in the kernel (namespaces, cgroups, VM processes, lease pipes).
 */
#ifndef NB_BROKER_BROKER_H
#define NB_BROKER_BROKER_H

#include "base/config.h"
#include "base/loop.h"
#include "schema/broker.h"
#include "vmm/broker/cgroup.h"
#include "vmm/engines/engine.h"

struct capture_set;
struct forking;
struct machine;
struct template;
struct volume_op;
struct verify_set;

/* A machine that is no more: what VM_STAT still answers. */
struct gone {
	char id[BROKER_ID_MAX], reason[BROKER_REASON_MAX];
	uint32_t flags, memory_mib;
	uint64_t created_ms;
};

struct broker {
	struct loop *loop;
	const struct config *config;
	struct engine *engine;
	struct engine_verdict verdict;
	uint64_t started_ms;      /* wall clock */
	uint64_t memory_mib_max;  /* sum of machines' memory */
	uint64_t copies_bytes;    /* what forks and captures made of it, and somebody has (charge.h) */
	int state_dirfd, vms_dirfd, images_dirfd, templates_dirfd, exposures_dirfd, logs_dirfd, volumes_dirfd, snapshots_dirfd;

	struct cgroup_host cgroup;
	struct machine **machines; /* by id */
	size_t n_machines, cap_machines;
	uint8_t *slots;            /* vm_max + VM_INTERNAL: uid in use */
	struct gone *gone;         /* a ring of GONE_KEPT */
	size_t n_gone;             /* ever written */
	int stop_timer_fd;         /* CLOCK_REALTIME, so that it follows clock steps */
	struct source *stop_timer, *console_timer;
	bool closing;
	bool leaving;             /* its memory goes; the machines and what they have stay */
	struct source *close_timer;
	uint64_t close_by_ms;

	struct volume_op *volume_ops;
	struct capture_set *captures;
	struct forking *forks;
	struct verify_set *verify;
	struct expose_set *expose;
	struct template_set *templates;
	struct peer_set *peers;
};

/* Opens directories, makes the module's parts. On failure broker_free() what is there. */
enum rc broker_new(struct loop *loop, const struct config *config, struct engine *engine,
		   const struct engine_verdict *verdict, struct broker **ret, struct fault *ret_f);
/* Forgets the machines without ending them. NULL is fine. */
void broker_free(struct broker *b);
/* Ends what no later broker could use (templates in the making, creates that are not answered), then stops the loop. */
void broker_close(struct broker *b);
/* The whole of startup after the engine is there: adopt, sweep, listen, begin templates. */
enum rc broker_start(struct broker *b, struct fault *ret_f);

/* Events to whoever subscribed (peer.c). */
void broker_event_vm(struct broker *b, const struct machine *m, enum broker_vm_state state, const char *reason);
void broker_event_expose(struct broker *b, const char *host, const char *org, bool present);
void broker_event_login_gone(struct broker *b, const char *key);
void broker_event_wanted(struct broker *b, const char *host);
void broker_egress_vm(struct broker *b, struct machine *m);
void broker_egress_gone(struct broker *b, struct machine *m);
void broker_egress_policy(struct broker *b, struct machine *m);

/* [a-z0-9_]{1,40}, and not one of ours, which begin with '_'. */
bool broker_id_ok(const char *id);
/* A file name made of [A-Za-z0-9._-], not beginning with '.'. */
bool broker_name_ok(const char *name);

#endif
