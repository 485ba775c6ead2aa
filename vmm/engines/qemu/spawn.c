/* SPDX-License-Identifier: Apache-2.0 */
/* A machine's object, its process and the connection to it. */
#include "vmm/engines/qemu/vm.h"

#include "base/cleanup.h"
#include "base/fd.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

#define FILES_MAX 256      /* descriptors in QEMU */
#define THREADS_MAX 96     /* 64 of its I/O pool, processors, RCU, main */
#define FILE_BYTES_MIN (64ull << 20)
#define LOCKED_BYTES_MAX (64ull << 10)

/* The environment of QEMU: nothing but the preloaded library and where memory is. */
static char env_preload[] = "LD_PRELOAD=/nestbox-qemu-cow.so";
static char env_modules[] = "QEMU_MODULE_DIR=/usr/lib/x86_64-linux-gnu/qemu"; /* it would look beside its program */
static char env_ram[] = "NESTBOX_RAM_FD=3";
_Static_assert(JAIL_FD_FIRST == 3, "env_ram names the first granted descriptor");

static enum rc disks_keep(struct engine_vm *vm, const struct engine_spec *spec, struct fault *ret_f)
{
	for (size_t i = 0; i < spec->n_disks; i++) {
		struct vm_disk *d = &vm->disks[vm->n_disks];

		memcpy(d->serial, spec->disks[i].serial, sizeof(d->serial));
		d->fd = spec->disks[i].fd < 0 ? -1 : fcntl(spec->disks[i].fd, F_DUPFD_CLOEXEC, 0);
		if (spec->disks[i].fd >= 0 && d->fd < 0)
			return fault_set(ret_f, RC_SYS, errno, "keep disk '%s'", d->serial);
		vm->n_disks++;
	}
	return RC_OK;
}

enum rc vm_new(struct qemu *e, const struct engine_spec *spec, engine_exit_fn *exit, void *arg, struct engine_vm **ret,
	       struct fault *ret_f)
{
	struct engine_vm *vm;
	enum rc rc;

	if (spec->n_disks > ENGINE_DISKS_MAX)
		return fault_set(ret_f, RC_INVALID, 0, "%zu disks are too many", spec->n_disks);
	vm = calloc(1, sizeof(*vm));
	if (!vm)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	vm->e = e;
	vm->ram_fd = -1;
	vm->process = (struct process)PROCESS_INIT;
	vm->process.ended = vm_on_exit;
	vm->process.arg = vm;
	vm->exit = exit;
	vm->arg = arg;
	vm->uid = spec->uid;
	vm->memory_mib = spec->memory_mib;
	memcpy(vm->id, spec->id, sizeof(vm->id));
	vm->next = e->vms;
	if (vm->next)
		vm->next->prev = vm;
	e->vms = vm;
	vm->dirfd = fcntl(spec->vm_dirfd, F_DUPFD_CLOEXEC, 0);
	rc = vm->dirfd < 0 ? fault_set(ret_f, RC_INVALID, errno, "directory of the machine") : disks_keep(vm, spec, ret_f);
	if (!rc)
		rc = args_shape(spec, e->kvm, vm->shape, sizeof(vm->shape), ret_f);
	if (rc) {
		vm_release(vm);
		return rc;
	}
	*ret = vm;
	return RC_OK;
}

void vm_release(struct engine_vm *vm)
{
	if (!vm)
		return;
	fork_forget(vm);
	save_free(vm);
	process_close(&vm->process);
	source_drop(&vm->timer);
	qmp_free(vm->qmp);
	close_fd(&vm->dirfd);
	close_fd(&vm->ram_fd);
	for (size_t i = 0; i < vm->n_disks; i++)
		close_fd(&vm->disks[i].fd);
	if (vm->prev)
		vm->prev->next = vm->next;
	else if (vm->e->vms == vm)
		vm->e->vms = vm->next;
	if (vm->next)
		vm->next->prev = vm->prev;
	free(vm);
}

enum rc vm_connect(struct engine_vm *vm, struct fault *ret_f)
{
	int fd;
	enum rc rc = process_connect(vm->dirfd, QEMU_SOCKET, SOCK_STREAM, &fd, ret_f);

	if (rc)
		return rc;
	return qmp_new(vm->e->base.loop, fd, vm_on_greeting, vm_on_event, vm_on_closed, vm, &vm->qmp, ret_f);
}

/* QEMU's own description of the log, for writing at its end only, whatever the caller's is for. */
static int log_open(int log_fd)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", log_fd);
	return open(path, O_WRONLY | O_APPEND | O_CLOEXEC | O_NOCTTY);
}

enum rc vm_spawn(struct engine_vm *vm, const struct engine_spec *spec, int ram_fd, int state_fd, struct fault *ret_f)
{
	_cleanup_fd_ int qmp_fd = -1, log_fd = log_open(spec->log_fd);
	struct args_in in = { .spec = spec, .kvm = vm->e->kvm, .tsc_khz = vm->e->tsc_khz, .ram_fd = ram_fd,
			      .state_fd = state_fd };
	_cleanup_args_ struct args a = { .n = 0 };
	char *const env[] = { env_preload, env_modules, env_ram, NULL };
	struct jail_spec js;
	enum rc rc;

	vm->ram_fd = fcntl(ram_fd, F_DUPFD_CLOEXEC, 0);
	if (vm->ram_fd < 0)
		return fault_set(ret_f, RC_SYS, errno, "keep a machine's memory");
	if (log_fd < 0)
		return fault_set(ret_f, RC_INVALID, errno, "open the console's log");
	rc = process_listen(vm->dirfd, QEMU_SOCKET, SOCK_STREAM, &qmp_fd, ret_f);
	if (rc)
		return rc;
	in.qmp_fd = qmp_fd;
	in.log_fd = log_fd;
	rc = args_build(&in, &a, ret_f);
	if (!rc) {
		js = (struct jail_spec){ .root = vm->e->root, .filter = vm->e->filter, .exec_fd = vm->e->exec_fd, .argv = a.v,
					 .envp = env, .uid = spec->uid, .null_fd = vm->e->null_fd, .fds = a.fds, .n_fds = a.n_fds,
					 .cgroup_procs_fd = spec->cgroup_procs_fd, .max_file_bytes = process_file_bytes(spec, FILE_BYTES_MIN),
					 .max_locked_bytes = LOCKED_BYTES_MAX, .max_processes = THREADS_MAX,
					 .max_files = FILES_MAX };
		vm->spawned_us = now_us();
		rc = process_start(&vm->process, vm->e->base.loop, &js, vm->dirfd, ret_f);
	}
	if (!rc)
		rc = vm_connect(vm, ret_f);
	if (rc && !vm_has_process(vm))
		unlinkat(vm->dirfd, QEMU_SOCKET, 0);
	return rc;
}
