/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A machine's process: started in the jail, found again after a restart of the broker, watched until its end. The pid
 * file holds pid, start time and boot id, so that a recycled pid is never taken for a machine.
 */
#include "vmm/engines/qemu/vm.h"

#include "base/cleanup.h"
#include "base/fd.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define PID_FILE_MAX 256
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
	vm->ram_fd = vm->err_fd = vm->pidfd = -1;
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
	save_free(vm);
	source_drop(&vm->exit_source);
	source_drop(&vm->timer);
	qmp_free(vm->qmp);
	close_fd(&vm->dirfd);
	close_fd(&vm->ram_fd);
	close_fd(&vm->err_fd);
	close_fd(&vm->pidfd);
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

static enum rc start_time(pid_t pid, uint64_t *ret, struct fault *ret_f)
{
	_cleanup_free_ char *text = NULL;
	char path[64], *at;
	enum rc rc;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	/* proc files say they are empty */
	text = calloc(1, 4096);
	if (!text)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	_cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	rc = fd < 0 || read(fd, text, 4095) <= 0 ? fault_set(ret_f, RC_ABSENT, errno, "no process %d", (int)pid) : RC_OK;
	if (rc)
		return rc;
	at = strrchr(text, ')'); /* the name before it may hold anything */
	for (int field = 2; at && field < 22; field++)
		at = strchr(at + 1, ' ');
	if (!at || sscanf(at, " %" SCNu64, ret) != 1)
		return fault_set(ret_f, RC_SYS, 0, "start time of process %d", (int)pid);
	return RC_OK;
}

static void boot_id(char out[64])
{
	_cleanup_fd_ int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, out, 63);

	out[n < 0 ? 0 : n] = '\0';
	out[strcspn(out, "\n")] = '\0';
}

/* Not flushed to disk: after a loss of power there is no process that it could name. */
static enum rc pid_write(struct engine_vm *vm, struct fault *ret_f)
{
	char text[PID_FILE_MAX], boot[64];
	uint64_t since;
	enum rc rc = start_time(vm->pid, &since, ret_f);
	int n, fd;

	if (rc)
		return rc;
	boot_id(boot);
	n = snprintf(text, sizeof(text), "%d %" PRIu64 " %s\n", (int)vm->pid, since, boot);
	fd = openat(vm->dirfd, QEMU_PID_FILE, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "create '" QEMU_PID_FILE "'");
	if (write(fd, text, (size_t)n) != n)
		rc = fault_set(ret_f, RC_SYS, errno, "write '" QEMU_PID_FILE "'");
	close(fd);
	return rc;
}

enum rc vm_find(struct engine_vm *vm, struct fault *ret_f)
{
	_cleanup_free_ char *text = NULL;
	char boot[64], was[64];
	uint64_t since, now;
	int pid;
	enum rc rc = file_read_at(vm->dirfd, QEMU_PID_FILE, PID_FILE_MAX, &text, NULL, ret_f);

	if (rc)
		return rc;
	if (sscanf(text, "%d %" SCNu64 " %63s", &pid, &since, was) != 3 || pid <= 1)
		return fault_set(ret_f, RC_ABSENT, 0, "pid file of machine '%s' is damaged", vm->id);
	boot_id(boot);
	if (strcmp(boot, was))
		return fault_set(ret_f, RC_ABSENT, 0, "machine '%s' ran before the host's last boot", vm->id);
	/* The descriptor first: from then on the pid cannot mean another process without start_time() telling. */
	vm->pidfd = pidfd_open(pid, 0);
	if (vm->pidfd < 0)
		return fault_set(ret_f, RC_ABSENT, errno, "machine '%s' has no process", vm->id);
	rc = start_time(pid, &now, ret_f);
	if (rc)
		return rc;
	if (now != since)
		return fault_set(ret_f, RC_ABSENT, 0, "machine '%s' has no process: its pid is another one's now", vm->id);
	vm->pid = pid;
	return RC_OK;
}

/* An adopted process is init's child by then: its descriptor says that it ended, but not how. */
static void on_pidfd(void *arg, uint32_t events)
{
	struct engine_vm *vm = arg;
	siginfo_t info = { 0 };
	int status = -1;

	(void)events;
	if (waitid(P_PIDFD, (id_t)vm->pidfd, &info, WEXITED | WNOHANG) == 0) {
		if (!info.si_pid)
			return;
		status = info.si_code == CLD_EXITED ? W_EXITCODE(info.si_status, 0) : W_EXITCODE(0, info.si_status);
	}
	vm_on_exit(vm, status);
}

enum rc vm_watch(struct engine_vm *vm, struct fault *ret_f)
{
	return loop_fd(vm->e->base.loop, vm->pidfd, EPOLLIN, on_pidfd, vm, &vm->exit_source, ret_f);
}

static void socket_path(const struct engine_vm *vm, char out[64])
{
	snprintf(out, 64, "/proc/self/fd/%d/" QEMU_SOCKET, vm->dirfd);
}

enum rc vm_connect(struct engine_vm *vm, struct fault *ret_f)
{
	char path[64];
	int fd;
	enum rc rc;

	socket_path(vm, path);
	rc = unix_connect(path, SOCK_STREAM, &fd, ret_f);
	if (rc)
		return rc;
	return qmp_new(vm->e->base.loop, fd, vm_on_greeting, vm_on_event, vm_on_closed, vm, &vm->qmp, ret_f);
}

static uint64_t file_bytes_max(const struct engine_spec *spec)
{
	uint64_t max = FILE_BYTES_MIN;
	struct stat st;

	for (size_t i = 0; i < spec->n_disks; i++)
		if (!spec->disks[i].read_only && fstat(spec->disks[i].fd, &st) == 0)
			max = MAX_OF(max, (uint64_t)st.st_size);
	return max;
}

static enum rc process_start(struct engine_vm *vm, const struct engine_spec *spec, const struct args *a, int err_fd,
			     struct fault *ret_f)
{
	char *const env[] = { env_preload, env_modules, env_ram, NULL };
	struct jail_spec js = {
		.root = vm->e->root,
		.filter = vm->e->filter,
		.exec_fd = vm->e->exec_fd,
		.argv = a->v,
		.envp = env,
		.uid = spec->uid,
		.null_fd = vm->e->null_fd,
		.err_fd = err_fd,
		.fds = a->fds,
		.n_fds = a->n_fds,
		.cgroup_procs_fd = spec->cgroup_procs_fd,
		.max_file_bytes = file_bytes_max(spec),
		.max_locked_bytes = LOCKED_BYTES_MAX,
		.max_processes = THREADS_MAX,
		.max_files = FILES_MAX,
	};
	enum rc rc;

	vm->spawned_us = now_us();
	rc = jail_spawn(&js, &vm->pid, &vm->pidfd, ret_f);
	if (rc)
		return rc;
	vm->is_child = true;
	return vm_watch(vm, ret_f);
}

enum rc vm_spawn(struct engine_vm *vm, const struct engine_spec *spec, int ram_fd, int state_fd, struct fault *ret_f)
{
	_cleanup_fd_ int qmp_fd = -1, err_fd = -1;
	struct args_in in = { .spec = spec, .kvm = vm->e->kvm, .tsc_khz = vm->e->tsc_khz, .ram_fd = ram_fd,
			      .state_fd = state_fd };
	_cleanup_args_ struct args a = { .n = 0 };
	char path[64];
	int pipe_fds[2];
	enum rc rc;

	vm->ram_fd = fcntl(ram_fd, F_DUPFD_CLOEXEC, 0);
	/* Never blocks QEMU: what nobody has read when the pipe is full is lost. */
	if (vm->ram_fd < 0 || pipe2(pipe_fds, O_CLOEXEC | O_NONBLOCK) < 0)
		return fault_set(ret_f, RC_SYS, errno, "descriptors of a machine");
	vm->err_fd = pipe_fds[0];
	err_fd = pipe_fds[1];
	socket_path(vm, path);
	rc = unix_listen(path, SOCK_STREAM, 0600, (gid_t)-1, &qmp_fd, ret_f);
	if (rc)
		return rc;
	in.qmp_fd = qmp_fd;
	rc = args_build(&in, &a, ret_f);
	if (!rc)
		rc = process_start(vm, spec, &a, err_fd, ret_f);
	if (!rc)
		rc = pid_write(vm, ret_f);
	if (!rc)
		rc = vm_connect(vm, ret_f);
	return rc;
}
