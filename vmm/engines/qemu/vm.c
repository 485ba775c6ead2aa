/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory: a machine is a process and its control socket. An operation is a short list of commands whose answers or
 * events end it; it has a deadline, and a machine that misses one, or whose socket closes or talks nonsense, is
 * killed ("condemned"): there is no state in between. Whatever happens, the end of the process is what finally ends the
 * machine: first the running operation's callback, then exit.
 */
#include "vmm/engines/qemu/vm.h"

#include "base/cleanup.h"
#include "base/fd.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static void on_deadline(void *arg)
{
	struct engine_vm *vm = arg;

	if (vm->born_of)
		fork_child_lost(vm);
	else if (!fork_deadline(vm))
		vm_condemn(vm, "an operation passed its deadline");
}

enum rc vm_idle(const struct engine_vm *vm, struct fault *ret_f)
{
	if (vm->state == VM_GONE || vm->stopped)
		return fault_set(ret_f, RC_STATE, 0, "machine '%s' is gone", vm->id);
	return vm->op ? fault_set(ret_f, RC_AGAIN, 0, "machine '%s' is busy", vm->id) : RC_OK;
}

enum rc vm_op_begin(struct engine_vm *vm, enum vm_op op, uint32_t deadline_ms, engine_done_fn *done, struct fault *ret_f)
{
	uint64_t at = now_ms() + deadline_ms;
	enum rc rc = vm_idle(vm, ret_f);

	if (rc)
		return rc;
	if (vm->timer)
		loop_timer_set(vm->timer, at);
	else if (loop_timer(vm->e->base.loop, at, on_deadline, vm, &vm->timer, ret_f))
		return RC_NOMEM;
	vm->op = op;
	vm->done = done;
	vm->asks = 0;
	return RC_OK;
}

void vm_op_end(struct engine_vm *vm, const struct fault *f)
{
	engine_done_fn *done = vm->done;

	if (!vm->op)
		return;
	loop_timer_set(vm->timer, UINT64_MAX);
	/* An answer that was held back must not be taken for one to the next operation. */
	if (vm->qmp)
		qmp_forget(vm->qmp);
	vm->op = OP_NONE;
	vm->done = NULL;
	if (done)
		done(vm->arg, f ? f->rc : RC_OK, f);
}

void vm_condemn(struct engine_vm *vm, const char *fmt, ...)
{
	va_list ap;

	if (!vm->why[0]) {
		va_start(ap, fmt);
		vsnprintf(vm->why, sizeof(vm->why), fmt, ap);
		va_end(ap);
	}
	process_kill(&vm->process);
}

bool vm_command(struct engine_vm *vm, const char *command, const char *args, int pass_fd, qmp_reply_fn *fn)
{
	struct fault f;

	if (vm->qmp && !qmp_send(vm->qmp, command, args, pass_fd, fn, &f))
		return true;
	vm_condemn(vm, "its control socket is gone");
	return false;
}

/* An answer that an operation can't go on without. */
bool vm_refused(struct engine_vm *vm, const struct fault *f)
{
	if (f)
		vm_condemn(vm, "%s", f->text);
	return f != NULL;
}

static void started(struct engine_vm *vm)
{
	vm->times.load_us = (uint32_t)(now_us() - vm->greeted_us);
	vm->state = VM_RUNNING;
	vm_op_end(vm, NULL);
}

static void on_started(void *arg, struct json_object *value, const struct fault *f)
{
	(void)value;
	if (!vm_refused(arg, f))
		started(arg);
}

static void on_loading(void *arg, struct json_object *value, const struct fault *f)
{
	(void)value;
	(void)vm_refused(arg, f);
}

void vm_on_greeting(void *arg, struct json_object *value, const struct fault *f)
{
	struct engine_vm *vm = arg;

	(void)value;
	(void)f;
	vm->greeted_us = now_us();
	if (vm->op == OP_START)
		vm->times.start_us = (uint32_t)(vm->greeted_us - vm->spawned_us);
}

static void start_on_migration(struct engine_vm *vm, const char *status)
{
	if (!strcmp(status, "completed"))
		vm_command(vm, "cont", NULL, -1, on_started);
	else if (!strcmp(status, "failed"))
		vm_condemn(vm, "QEMU could not load the saved state");
}

/*
 * A moment passes between QEMU's word that the state is complete and its readiness to go on; a "cont" in between is refused ("Migration is not
 * finalized yet"). Nothing tells when it is over, so it is asked, a round trip after the other.
 */
static void on_status(void *arg, struct json_object *value, const struct fault *f)
{
	struct engine_vm *vm = arg;
	struct json_object *v = NULL;

	if (vm_refused(vm, f))
		return;
	if (json_object_is_type(value, json_type_object) && json_object_object_get_ex(value, "status", &v) &&
	    json_object_is_type(v, json_type_string) && !strcmp(json_object_get_string(v), "finish-migrate")) {
		if (++vm->asks > QEMU_ASKS_MAX)
			vm_condemn(vm, "QEMU does not finish its state");
		else
			vm_command(vm, "query-status", NULL, -1, on_status);
	} else if (vm->op == OP_SAVE) {
		save_on_migration(vm, "completed");
	} else if (vm->op == OP_FORK) {
		fork_on_migration(vm, "completed");
	}
}

static void on_migration(struct engine_vm *vm, struct json_object *data)
{
	struct json_object *v = NULL;
	const char *status;

	if (!json_object_is_type(data, json_type_object) || !json_object_object_get_ex(data, "status", &v) ||
	    !json_object_is_type(v, json_type_string))
		return;
	status = json_object_get_string(v);
	if (vm->op == OP_START && vm->restored)
		start_on_migration(vm, status);
	else if ((vm->op == OP_SAVE || vm->op == OP_FORK) && !strcmp(status, "completed"))
		vm_command(vm, "query-status", NULL, -1, on_status);
	else if (vm->op == OP_SAVE)
		save_on_migration(vm, status);
	else if (vm->op == OP_FORK)
		fork_on_migration(vm, status);
}

void vm_on_event(void *arg, const char *name, struct json_object *data)
{
	struct engine_vm *vm = arg;

	if (!strcmp(name, "MIGRATION"))
		on_migration(vm, data);
	else if (!strcmp(name, "SHUTDOWN") && !vm->why[0])
		snprintf(vm->why, sizeof(vm->why), "the guest switched itself off");
}

void vm_on_closed(void *arg, const struct fault *f)
{
	struct engine_vm *vm = arg;

	qmp_free(vm->qmp);
	vm->qmp = NULL;
	/* QEMU closes it when it ends by itself: then what it says on standard error is the better reason. */
	if (f->rc == RC_CLOSED)
		process_kill(&vm->process);
	else
		vm_condemn(vm, "%s", f->text);
}

/* The limits of each disk; the network has none here (nestbox.conf(5)). */
static enum rc limit_disks(struct engine_vm *vm, const struct engine_spec *spec, struct fault *ret_f)
{
	enum rc rc = RC_OK;

	for (size_t i = 0; !rc && i < spec->n_disks && (spec->disk_iops || spec->disk_mbps); i++) {
		char args[QMP_COMMAND_MAX / 2];

		snprintf(args, sizeof(args),
			 "{\"id\":\"blk-%s\",\"bps\":%llu,\"bps_rd\":0,\"bps_wr\":0,\"iops\":%u,\"iops_rd\":0,\"iops_wr\":0}",
			 spec->disks[i].serial, spec->disk_mbps * 1000000ull, spec->disk_iops);
		rc = qmp_send(vm->qmp, "block_set_io_throttle", args, -1, on_loading, ret_f);
	}
	return rc;
}

/* Sent without waiting for anything: QEMU reads them when it has started. */
static enum rc start_commands(struct engine_vm *vm, const struct engine_spec *spec, struct fault *ret_f)
{
	static const char caps[] = "{\"capabilities\":[{\"capability\":\"events\",\"state\":true},"
				   "{\"capability\":\"x-ignore-shared\",\"state\":true}]}";
	char uri[64];
	enum rc rc = qmp_send(vm->qmp, "migrate-set-capabilities", caps, -1, on_loading, ret_f);

	if (!rc)
		rc = limit_disks(vm, spec, ret_f);
	if (rc)
		return rc;
	if (!vm->restored)
		return qmp_send(vm->qmp, "query-status", NULL, -1, on_started, ret_f);
	snprintf(uri, sizeof(uri), "{\"uri\":\"fd:%d\"}", JAIL_FD_FIRST + 1);
	return qmp_send(vm->qmp, "migrate-incoming", uri, -1, on_loading, ret_f);
}

static enum rc start_memory(const struct engine_spec *spec, const struct engine_snapshot *snap, int *ret_ram,
			    int *ret_state, struct fault *ret_f)
{
	char path[64];
	enum rc rc;

	if (!snap) {
		rc = memory_file("nestbox-ram", (uint64_t)spec->memory_mib << 20, ret_ram, ret_f);
		return rc ? rc : memory_seal(*ret_ram, ret_f);
	}
	*ret_ram = fcntl(snap->ram_fd, F_DUPFD_CLOEXEC, 0);
	/* A description of its own: the read position is shared otherwise. */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", snap->state_fd);
	*ret_state = open(path, O_RDONLY | O_CLOEXEC);
	return *ret_ram < 0 || *ret_state < 0 ? fault_set(ret_f, RC_SYS, errno, "open the snapshot again") : RC_OK;
}

enum rc vm_begin(struct engine_vm *vm, const struct engine_spec *spec, const struct engine_snapshot *snap,
		 struct fault *ret_f)
{
	_cleanup_fd_ int ram_fd = -1, state_fd = -1;
	enum rc rc = start_memory(spec, snap, &ram_fd, &state_fd, ret_f);

	if (!rc)
		rc = vm_spawn(vm, spec, ram_fd, state_fd, ret_f);
	if (!rc)
		rc = start_commands(vm, spec, ret_f);
	if (rc && vm_has_process(vm))
		vm_condemn(vm, "%s", ret_f->text);
	return rc;
}

enum rc qemu_start(struct engine *base, const struct engine_spec *spec, struct engine_snapshot *snap,
		   engine_done_fn *done, engine_exit_fn *exit, void *arg, struct engine_vm **ret, struct fault *ret_f)
{
	struct engine_vm *vm = NULL;
	struct fault f = { 0 };
	enum rc rc = vm_new((struct qemu *)base, spec, exit, arg, &vm, ret_f);

	if (rc)
		return rc;
	if (snap && strcmp(snap->shape, vm->shape)) {
		vm_release(vm);
		return fault_set(ret_f, RC_INVALID, 0, "the snapshot is of a machine of another shape");
	}
	vm->restored = snap != NULL;
	rc = vm_op_begin(vm, OP_START, QEMU_START_MS, done, &f);
	if (!rc)
		rc = vm_begin(vm, spec, snap, &f);
	/* With a process the reason comes with its end; without one nothing was started. */
	if (rc && !vm_has_process(vm)) {
		vm_release(vm);
		if (ret_f)
			*ret_f = f;
		return rc;
	}
	*ret = vm;
	return RC_OK;
}

static void on_paused(void *arg, struct json_object *value, const struct fault *f)
{
	struct engine_vm *vm = arg;

	(void)value;
	if (vm_refused(vm, f))
		return;
	vm->state = VM_PAUSED;
	vm_op_end(vm, NULL);
}

static void on_resumed(void *arg, struct json_object *value, const struct fault *f)
{
	struct engine_vm *vm = arg;

	(void)value;
	if (vm_refused(vm, f))
		return;
	vm->state = VM_RUNNING;
	vm_op_end(vm, NULL);
}

static void on_adopted(void *arg, struct json_object *value, const struct fault *f)
{
	struct engine_vm *vm = arg;
	struct json_object *running = NULL;

	if (vm_refused(vm, f))
		return;
	if (!json_object_is_type(value, json_type_object) || !json_object_object_get_ex(value, "running", &running)) {
		vm_condemn(vm, "QEMU did not say whether it runs");
		return;
	}
	vm->state = json_object_get_boolean(running) ? VM_RUNNING : VM_PAUSED;
	if (vm->state == VM_RUNNING && vm->to_be_paused)
		vm_command(vm, "stop", NULL, -1, on_paused);
	else if (vm->state == VM_PAUSED && !vm->to_be_paused)
		vm_command(vm, "cont", NULL, -1, on_resumed);
	else
		vm_op_end(vm, NULL);
}

static enum rc adopt(struct engine_vm *vm, struct fault *ret_f)
{
	char path[64];
	enum rc rc = process_adopt(&vm->process, vm->e->base.loop, vm->dirfd, vm->id, ret_f);

	if (rc)
		return rc;
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)vm->process.pid, JAIL_FD_FIRST);
	vm->ram_fd = open(path, O_RDONLY | O_CLOEXEC);
	if (vm->ram_fd < 0)
		return fault_set(ret_f, RC_ABSENT, errno, "memory of machine '%s'", vm->id);
	rc = vm_op_begin(vm, OP_ADOPT, QEMU_COMMAND_MS, NULL, ret_f);
	if (!rc)
		rc = vm_connect(vm, ret_f);
	if (!rc)
		rc = qmp_send(vm->qmp, "query-status", NULL, -1, on_adopted, ret_f);
	return rc;
}

enum rc qemu_adopt(struct engine *base, const struct engine_spec *spec, engine_exit_fn *exit, void *arg,
		   struct engine_vm **ret, struct fault *ret_f)
{
	struct engine_vm *vm = NULL;
	enum rc rc = vm_new((struct qemu *)base, spec, exit, arg, &vm, ret_f);

	if (rc)
		return rc;
	vm->to_be_paused = spec->paused;
	rc = adopt(vm, ret_f);
	if (rc) {
		vm_release(vm);
		return rc;
	}
	*ret = vm;
	return RC_OK;
}

static enum rc simple_op(struct engine_vm *vm, enum vm_state from, enum vm_op op, const char *command,
			 qmp_reply_fn *fn, engine_done_fn *done, struct fault *ret_f)
{
	enum rc rc;

	if (!vm->op && vm->state != from)
		return fault_set(ret_f, RC_STATE, 0, "machine '%s' is not %s", vm->id,
				 from == VM_RUNNING ? "running" : "paused");
	rc = vm_op_begin(vm, op, QEMU_COMMAND_MS, done, ret_f);
	if (!rc)
		vm_command(vm, command, NULL, -1, fn);
	return rc;
}

enum rc qemu_pause(struct engine_vm *vm, engine_done_fn *done, struct fault *ret_f)
{
	return simple_op(vm, VM_RUNNING, OP_PAUSE, "stop", on_paused, done, ret_f);
}

enum rc qemu_resume(struct engine_vm *vm, engine_done_fn *done, struct fault *ret_f)
{
	return simple_op(vm, VM_PAUSED, OP_RESUME, "cont", on_resumed, done, ret_f);
}

/* A refused resize is the caller's problem and not the machine's end. */
static void on_resized(void *arg, struct json_object *value, const struct fault *f)
{
	(void)value;
	vm_op_end(arg, f);
}

enum rc qemu_disk_resized(struct engine_vm *vm, const char *serial, engine_done_fn *done, struct fault *ret_f)
{
	struct vm_disk *d = NULL;
	char args[128];
	struct stat st;
	enum rc rc = vm_idle(vm, ret_f);

	if (rc)
		return rc;
	for (size_t i = 0; i < vm->n_disks; i++)
		if (!strcmp(vm->disks[i].serial, serial))
			d = &vm->disks[i];
	if (!d || d->fd < 0)
		return fault_set(ret_f, RC_ABSENT, 0, "machine '%s' has no disk '%s'", vm->id, serial);
	if (fstat(d->fd, &st) < 0)
		return fault_set(ret_f, RC_SYS, errno, "size of disk '%s'", serial);
	rc = vm_op_begin(vm, OP_RESIZE, QEMU_COMMAND_MS, done, ret_f);
	if (rc)
		return rc;
	snprintf(args, sizeof(args), "{\"node-name\":\"%s\",\"size\":%lld}", d->serial, (long long)st.st_size);
	vm_command(vm, "block_resize", args, -1, on_resized);
	return RC_OK;
}

void qemu_stop(struct engine_vm *vm)
{
	if (vm->state == VM_GONE || vm->stopped)
		return;
	vm->stopped = true;
	vm_condemn(vm, "stopped");
	/* Without a process nothing will be reaped: its end comes from the loop all the same. */
	if (vm->born_of)
		loop_timer_set(vm->timer, 0);
}

void vm_on_exit(void *arg, int status)
{
	struct engine_vm *vm = arg;
	struct fault f;

	if (!vm->why[0])
		process_last_words(&vm->process, status, vm->why, sizeof(vm->why));
	vm->state = VM_GONE;
	qmp_free(vm->qmp);
	vm->qmp = NULL;
	save_free(vm);
	unlinkat(vm->dirfd, QEMU_SOCKET, 0);
	unlinkat(vm->dirfd, PROCESS_PID_FILE, 0);
	if (vm->fork)
		fork_parent_lost(vm);
	fault_set(&f, vm->stopped ? RC_STATE : RC_CLOSED, 0, "machine '%s' ended: %s", vm->id, vm->why);
	vm_op_end(vm, &f);
	vm->exit(vm->arg, vm->why);
}

void qemu_vm_free(struct engine_vm *vm)
{
	vm_release(vm);
}

const struct engine_times *qemu_times(struct engine_vm *vm)
{
	return &vm->times;
}

void qemu_stat(struct engine_vm *vm, struct engine_stat *ret)
{
	*ret = (struct engine_stat){ .pid = vm->process.pid };
	if (vm_has_process(vm))
		process_stat(&vm->process, ret);
}
