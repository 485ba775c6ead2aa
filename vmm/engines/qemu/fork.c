/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Live fork: children of a machine that goes on running.
 *
 * Theory. A machine's memory is a sealed base plus its own pages. Phases:
 *   COPY   while the parent runs, all of it is copied to a new file. That copy is torn and will be corrected; what counts is that
 *          the file has its pages, because getting them from the host is what takes long.
 *   STOP   the parent is stopped. Its own pages are copied again, over the torn ones, while QEMU writes its state to
 *          another file: both at once. Then cut(): the caller copies disks. Nothing changes until it says fork_go().
 *   GO     the parent continues. Both files are sealed: they are a snapshot that was never on a disk.
 *   BORN   the children start from it, all at once.
 * The pause grows with the pages that the parent has written since it started, not with its memory. A fork that fails leaves
 * the parent running; only a parent that does not answer is killed. The children exist for their owner from the start: each gets
 * its callback, whatever happens.
 */
#include "vmm/engines/qemu/vm.h"

#include "base/cleanup.h"
#include "base/fd.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum phase { PHASE_COPY, PHASE_STOP, PHASE_GO };

struct fork {
	struct engine_vm *parent;
	enum phase phase;
	struct engine_snapshot snap; /* open files until the children have started */
	struct memory_source from;
	struct job *job;
	bool memory_done, state_done, cutting; /* cutting: the owner copies disks and will say fork_go() */
	uint64_t stopped_us;
	void (*cut)(void *arg);
	void *cut_arg;
	engine_done_fn *done;
	struct engine_spec specs[ENGINE_FORK_MAX];
	struct engine_vm *children[ENGINE_FORK_MAX]; /* NULL: gone already */
	size_t n;
	struct engine_snapshot **taken; /* of qemu_take(): for the parent's owner instead of children */
};

static void fork_free(struct fork *k)
{
	job_free(k->job);
	close_fd(&k->snap.ram_fd);
	close_fd(&k->snap.state_fd);
	free(k);
}

/* A child that will not be: its callbacks, and it is nobody's any more. */
static void child_fail(struct engine_vm *child, const struct fault *f)
{
	child->born_of = NULL;
	child->state = VM_GONE;
	vm_op_end(child, f);
	child->exit(child->arg, f->text);
}

static void children_fail(struct fork *k, const struct fault *f)
{
	for (size_t i = 0; i < k->n; i++)
		if (k->children[i])
			child_fail(take_ptr(k->children[i]), f);
}

/* The parent is free again; the children get the reason. */
static void fork_fail(struct fork *k, const struct fault *why)
{
	struct engine_vm *parent = k->parent;
	struct fault f = *why;

	if (k->phase == PHASE_STOP && vm_command(parent, "cont", NULL, -1, NULL))
		parent->state = VM_RUNNING;
	parent->fork = NULL;
	vm_op_end(parent, k->taken ? &f : NULL);
	children_fail(k, &f);
	fork_free(k);
}

void fork_parent_lost(struct engine_vm *vm)
{
	struct fork *k = take_ptr(vm->fork);
	struct fault f;

	fault_set(&f, RC_CLOSED, 0, "machine '%s' ended while it was forked", vm->id);
	children_fail(k, &f);
	fork_free(k);
}

void fork_forget(struct engine_vm *vm)
{
	if (vm->fork)
		fork_free(take_ptr(vm->fork));
}

void fork_child_lost(struct engine_vm *vm)
{
	struct fork *k = vm->born_of;
	struct fault f;

	for (size_t i = 0; i < k->n; i++)
		if (k->children[i] == vm)
			k->children[i] = NULL;
	fault_set(&f, RC_STATE, 0, "machine '%s' was stopped before it was born", vm->id);
	child_fail(vm, &f);
}

bool fork_deadline(struct engine_vm *vm)
{
	struct fault f;

	if (!vm->fork || (vm->fork->phase != PHASE_COPY && !vm->fork->cutting))
		return false;
	fault_set(&f, RC_TIMEOUT, 0, "%s of machine '%s' were not copied in time", vm->fork->cutting ? "disks" : "pages", vm->id);
	fork_fail(vm->fork, &f);
	return true;
}

static void taken(struct fork *k)
{
	struct engine_vm *vm = k->parent;
	struct engine_snapshot *snap = snapshot_new(vm->e, k->snap.shape, vm->memory_mib, k->snap.ram_fd, k->snap.state_fd);
	struct fault f;

	fault_set(&f, RC_NOMEM, 0, "out of memory");
	if (snap) {
		k->snap.ram_fd = k->snap.state_fd = -1;
		*k->taken = snap;
	}
	fork_free(k);
	vm_op_end(vm, snap ? NULL : &f);
}

/* BORN */
static void fork_finish(struct fork *k)
{
	struct fault f = { 0 };

	if (memory_seal(k->snap.ram_fd, &f) || memory_seal(k->snap.state_fd, &f)) {
		fork_fail(k, &f);
		return;
	}
	k->parent->fork = NULL;
	if (k->taken) {
		taken(k);
		return;
	}
	vm_op_end(k->parent, NULL);
	for (size_t i = 0; i < k->n; i++) {
		struct engine_vm *child = take_ptr(k->children[i]);

		if (!child)
			continue;
		child->born_of = NULL;
		if (vm_begin(child, &k->specs[i], &k->snap, &f) && !vm_has_process(child))
			child_fail(child, &f);
	}
	fork_free(k);
}

static void on_continued(void *arg, struct json_object *value, const struct fault *f)
{
	struct engine_vm *vm = arg;

	(void)value;
	if (vm_refused(vm, f) || !vm->fork)
		return;
	vm->times.pause_us = (uint32_t)(now_us() - vm->fork->stopped_us);
	vm->state = VM_RUNNING;
	fork_finish(vm->fork);
}

static bool children_left(const struct fork *k)
{
	for (size_t i = 0; i < k->n; i++)
		if (k->children[i])
			return true;
	return false;
}

static void fork_proceed(struct fork *k)
{
	struct fault f;

	/* Once, however often QEMU says that it is done. */
	if (k->cutting || !k->memory_done || !k->state_done)
		return;
	k->cutting = true;
	fault_set(&f, RC_STATE, 0, "no child of machine '%s' is left", k->parent->id);
	if (!children_left(k) && !k->taken)
		qemu_fork_go(k->parent, &f);
	else if (k->cut)
		k->cut(k->cut_arg);
	else
		qemu_fork_go(k->parent, NULL);
}

void qemu_fork_go(struct engine_vm *parent, const struct fault *f)
{
	struct fork *k = parent->fork;

	if (!k || !k->cutting)
		return;
	k->cutting = false;
	if (f) {
		fork_fail(k, f);
		return;
	}
	k->phase = PHASE_GO;
	vm_command(parent, "cont", NULL, -1, on_continued);
}

static void on_own_pages(void *arg, const struct job_result *r)
{
	struct fork *k = arg;

	if (r->fault.rc) {
		fork_fail(k, &r->fault);
		return;
	}
	k->parent->times.private_bytes = r->sum.private_pages * 4096;
	k->memory_done = true;
	fork_proceed(k);
}

void fork_on_migration(struct engine_vm *vm, const char *status)
{
	struct fault f;

	if (!vm->fork || vm->fork->phase != PHASE_STOP)
		return;
	if (!strcmp(status, "failed")) {
		fault_set(&f, RC_SYS, 0, "QEMU could not write its state");
		fork_fail(vm->fork, &f);
	} else if (!strcmp(status, "completed")) {
		vm->fork->state_done = true;
		fork_proceed(vm->fork);
	}
}

static void on_ack(void *arg, struct json_object *value, const struct fault *f)
{
	struct engine_vm *vm = arg;

	(void)value;
	if (f && vm->fork)
		fork_fail(vm->fork, f);
}

/* It stands still. */
static void on_stopped(void *arg, struct json_object *value, const struct fault *f)
{
	struct engine_vm *vm = arg;
	struct fork *k = vm->fork;
	struct fault own;

	(void)value;
	if (vm_refused(vm, f) || !k)
		return;
	vm->state = VM_PAUSED;
	if (!job_go(k->job, &own))
		return;
	fork_fail(k, &own);
}

/* STOP. The state's descriptor is in QEMU already and the copying process waits for its word. */
static void on_prepared(void *arg)
{
	struct fork *k = arg;

	k->phase = PHASE_STOP;
	k->stopped_us = now_us();
	if (vm_command(k->parent, "stop", NULL, -1, on_stopped))
		vm_command(k->parent, "migrate", "{\"uri\":\"fd:state\"}", -1, on_ack);
}

static void on_state_fd(void *arg, struct json_object *value, const struct fault *f)
{
	struct engine_vm *vm = arg;
	struct job_spec job;
	struct fault own;

	(void)value;
	if (!vm->fork)
		return;
	job = (struct job_spec){ .from = vm->fork->from, .out_fd = vm->fork->snap.ram_fd, .own_only = true,
				 .prepared = on_prepared, .graves = &vm->e->graves };
	if (f)
		fork_fail(vm->fork, f);
	else if (job_start(vm->e->base.loop, &job, on_own_pages, vm->fork, &vm->fork->job, &own))
		fork_fail(vm->fork, &own);
}

static void on_copied(void *arg, const struct job_result *r)
{
	struct fork *k = arg;

	job_free(take_ptr(k->job));
	if (r->fault.rc)
		fork_fail(k, &r->fault);
	else
		vm_command(k->parent, "getfd", "{\"fdname\":\"state\"}", k->snap.state_fd, on_state_fd);
}

static void on_address(void *arg, struct json_object *value, const struct fault *f)
{
	struct engine_vm *vm = arg;
	struct fork *k = vm->fork;
	struct job_spec job;
	struct fault own;

	if (!k)
		return;
	if (f) {
		fork_fail(k, f);
		return;
	}
	if (!json_object_is_type(value, json_type_string)) {
		fault_set(&own, RC_PROTO, 0, "QEMU did not say where guest memory is");
	} else if (!gpa2hva_parse(json_object_get_string(value), &k->from.address, &own)) {
		job = (struct job_spec){ .from = k->from, .out_fd = k->snap.ram_fd, .unsummed = true, .graves = &vm->e->graves };
		if (!job_start(vm->e->base.loop, &job, on_copied, k, &k->job, &own))
			return;
	}
	fork_fail(k, &own);
}

/* The children, which have an owner from here on. On failure none is left. */
static enum rc children_make(struct fork *k, const struct engine_spec specs[], engine_exit_fn *exit, void *args[],
			     struct fault *ret_f)
{
	enum rc rc = RC_OK;

	for (size_t i = 0; !rc && i < k->n; i++) {
		k->specs[i] = specs[i];
		rc = vm_new(k->parent->e, &specs[i], exit, args[i], &k->children[i], ret_f);
		if (!rc && strcmp(k->children[i]->shape, k->parent->shape))
			rc = fault_set(ret_f, RC_INVALID, 0, "a child of machine '%s' has another shape", k->parent->id);
		if (!rc)
			rc = vm_op_begin(k->children[i], OP_START, QEMU_FORK_MS, k->done, ret_f);
		if (!rc) {
			k->children[i]->born_of = k;
			k->children[i]->restored = true;
		}
	}
	for (size_t i = 0; rc && i < k->n; i++)
		vm_release(k->children[i]);
	return rc;
}

static enum rc fork_files(struct fork *k, struct fault *ret_f)
{
	enum rc rc = memory_file("nestbox-ram", 0, &k->snap.ram_fd, ret_f);

	if (!rc)
		rc = memory_file("nestbox-state", 0, &k->snap.state_fd, ret_f);
	memcpy(k->snap.shape, k->parent->shape, sizeof(k->snap.shape));
	k->from = (struct memory_source){ .pid = k->parent->process.pid, .base_fd = k->parent->ram_fd,
					  .size = (uint64_t)k->parent->memory_mib << 20 };
	return rc;
}

static enum rc fork_begin(struct engine_vm *parent, struct fork *k, engine_done_fn *done, struct fault *ret_f)
{
	enum rc rc;

	if (!parent->op && parent->state != VM_RUNNING)
		return fault_set(ret_f, RC_STATE, 0, "machine '%s' is not running", parent->id);
	rc = vm_op_begin(parent, OP_FORK, QEMU_FORK_MS, done, ret_f);
	if (rc)
		return rc;
	rc = fork_files(k, ret_f);
	if (rc) {
		parent->done = NULL;
		vm_op_end(parent, NULL);
	}
	return rc;
}

static void fork_ask(struct fork *k)
{
	k->parent->fork = k;
	vm_command(k->parent, "human-monitor-command", "{\"command-line\":\"gpa2hva 0\"}", -1, on_address);
}

static struct fork *fork_new(struct engine_vm *parent, void (*cut)(void *arg), void *cut_arg)
{
	struct fork *k = calloc(1, sizeof(*k));

	if (k)
		*k = (struct fork){ .parent = parent, .snap = { .ram_fd = -1, .state_fd = -1 }, .cut = cut, .cut_arg = cut_arg };
	return k;
}

enum rc qemu_take(struct engine_vm *vm, void (*cut)(void *arg), void *cut_arg, engine_done_fn *done, struct engine_snapshot **ret,
		  struct fault *ret_f)
{
	struct fork *k = fork_new(vm, cut, cut_arg);
	enum rc rc;

	if (!k)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	k->taken = ret;
	rc = fork_begin(vm, k, done, ret_f);
	if (rc)
		fork_free(k);
	else
		fork_ask(k);
	return rc;
}

enum rc qemu_fork(struct engine_vm *parent, size_t n, const struct engine_spec specs[], void (*cut)(void *arg),
		  void *cut_arg, engine_done_fn *done, engine_exit_fn *exit, void *args[], struct engine_vm *rets[],
		  struct fault *ret_f)
{
	struct fork *k;
	enum rc rc = vm_idle(parent, ret_f);

	if (!rc && parent->state != VM_RUNNING)
		rc = fault_set(ret_f, RC_STATE, 0, "machine '%s' is not running", parent->id);
	if (rc)
		return rc;
	if (!n || n > ENGINE_FORK_MAX)
		return fault_set(ret_f, RC_INVALID, 0, "%zu children; 1 to %d are possible", n, ENGINE_FORK_MAX);
	k = fork_new(parent, cut, cut_arg);
	if (!k)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	k->done = done;
	k->n = n;
	rc = fork_begin(parent, k, NULL, ret_f);
	if (rc) {
		fork_free(k);
		return rc;
	}
	rc = children_make(k, specs, exit, args, ret_f);
	if (rc) {
		vm_op_end(parent, NULL);
		fork_free(k);
		return rc;
	}
	for (size_t i = 0; i < n; i++)
		rets[i] = k->children[i];
	fork_ask(k);
	return RC_OK;
}
