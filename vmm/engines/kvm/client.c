/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kvm engine's side in the broker: starts nestbox-vmm in a jail with an empty root, speaks control.h with it.
 *
 * A start connects to the process's listener and sends START at once; the process reads it when it has come up. One question is
 * under way at a time, with a deadline; a machine that misses it or breaks the protocol is killed. The exit callback comes
 * when the process is reaped, always last.
 */
#include "vmm/engines/kvm/client.h"
#include "vmm/engines/kvm/control.h"
#include "vmm/engines/limits.h"

#include "base/cleanup.h"
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#define VMM_SOCKET "vmm.sock"
#define START_MS 30000
#define COMMAND_MS 10000
#define SAVE_MS 120000
#define FORK_MS 120000
#define VMM_FILES_MAX 128
#define VMM_THREADS_MAX 32
#define VMM_FILE_BYTES_MIN (64ull << 20)

enum state { STARTING, RUNNING, PAUSED, GONE };

struct fork_group;

struct engine_vm {
	struct kvm_engine *e;
	struct engine_vm *next, *prev;
	char id[41], why[160], serials[ENGINE_DISKS_MAX][21];
	size_t n_disks;
	struct process process;
	int dirfd, fd; /* fd: control connection */
	struct source *source, *timer;
	enum state state;
	bool stopped;
	uint16_t op; /* under way, 0: none */
	uint32_t sequence;
	engine_done_fn *done;
	engine_exit_fn *exit;
	void *arg;
	uint64_t spawned_us;
	struct engine_times times;
	struct fork_group *group; /* as a parent */
	enum state after;         /* state when the operation succeeded */
	bool to_be_paused;        /* adoption: how it shall be */
	uint64_t memory_bytes;
};

struct fork_group {
	size_t n;
	struct engine_vm *children[ENGINE_FORK_MAX];
	struct engine_spec specs[ENGINE_FORK_MAX];
	engine_done_fn *done;
	void (*cut)(void *arg);
	void *cut_arg;
	int fds[3];
	size_t n_fds;
	uint32_t layers;
	bool cutting; /* the parent stands still until kvm_fork_go() */
	struct engine_snapshot **taken; /* of kvm_take(), which has no children */
};

static void group_free(struct engine_vm *parent);
static void group_failed(struct engine_vm *parent, const struct fault *f);
static void group_forked(struct engine_vm *parent, struct wire *w);
static void group_resumed(struct engine_vm *parent, struct wire *w);
static void kvm_fork_go(struct engine_vm *parent, const struct fault *why);
static void adopted(struct engine_vm *vm, struct wire *w);

/* --- one question at a time ---------------------------------------------------------------------------------------- */

static void condemn(struct engine_vm *vm, const char *fmt, ...)
{
	va_list ap;

	if (!vm->why[0]) {
		va_start(ap, fmt);
		vsnprintf(vm->why, sizeof(vm->why), fmt, ap);
		va_end(ap);
	}
	process_kill(&vm->process);
}

static void op_end(struct engine_vm *vm, const struct fault *f)
{
	engine_done_fn *done = vm->done;

	vm->op = 0;
	vm->done = NULL;
	source_drop(&vm->timer);
	if (done)
		done(vm->arg, f ? f->rc : RC_OK, f);
}

static void on_deadline(void *arg)
{
	condemn(arg, "did not answer in time");
}

static enum rc op_send(struct engine_vm *vm, uint16_t op, message_put_fn *put, const void *m, const int *fds,
		       size_t n_fds, uint32_t deadline_ms, struct fault *ret_f)
{
	uint8_t mem[8192];
	struct wire w;
	size_t n;
	enum rc rc;

	message_begin(&w, mem, sizeof(mem));
	if (put)
		put(&w, m);
	rc = message_end(&w, op, ++vm->sequence, n_fds, &n, ret_f);
	if (!rc)
		rc = packet_send(vm->fd, mem, n, fds, n_fds, ret_f);
	if (!rc)
		rc = loop_timer(vm->e->base.loop, now_ms() + deadline_ms, on_deadline, vm, &vm->timer, ret_f);
	if (!rc)
		vm->op = op;
	return rc;
}

static enum rc op_begin(struct engine_vm *vm, unsigned int states, struct fault *ret_f)
{
	if ((vm->op || vm->group) && !vm->stopped)
		return fault_set(ret_f, RC_AGAIN, 0, "machine '%s' is busy", vm->id);
	if (vm->stopped || !(states & 1u << vm->state))
		return fault_set(ret_f, RC_STATE, 0, "machine '%s' is not in the right state", vm->id);
	return RC_OK;
}

static void on_answer(struct engine_vm *vm, struct wire *w, const struct fault *f)
{
	uint16_t op = vm->op;

	if (f && (op == CONTROL_START || op == CONTROL_STAT)) {
		condemn(vm, "%s", f->text); /* op_end() comes with its exit */
		return;
	}
	if (op == CONTROL_STAT) {
		op_end(vm, NULL);
		adopted(vm, w);
		return;
	}
	if (vm->group && f) {
		op_end(vm, NULL);
		group_failed(vm, f);
		return;
	}
	if (!f && op == CONTROL_START)
		vm->times.load_us = (uint32_t)(now_us() - vm->spawned_us) - vm->times.start_us;
	if (!f)
		vm->state = vm->after;
	if (vm->group && op == CONTROL_FORK) {
		op_end(vm, NULL);
		group_forked(vm, w);
	} else if (vm->group && op == CONTROL_RESUME) {
		op_end(vm, NULL);
		group_resumed(vm, w);
	} else {
		op_end(vm, f);
	}
}

static void on_control(void *arg, uint32_t events)
{
	struct engine_vm *vm = arg;
	struct message_head head;
	uint8_t mem[1024];
	int fds[FD_PASS_MAX];
	struct fault f = { 0 };
	struct wire w;
	size_t n, n_fds = 0;
	enum rc rc = packet_recv(vm->fd, mem, sizeof(mem), &n, fds, &n_fds, &f);

	(void)events;
	if (rc == RC_AGAIN)
		return;
	if (!rc && !n)
		rc = RC_CLOSED;
	if (!rc)
		rc = message_open(mem, n, n_fds, &head, &w, &f);
	if (!rc && (head.op != (vm->op | MESSAGE_REPLY) || head.sequence != vm->sequence || !vm->op))
		rc = RC_PROTO;
	if (rc) {
		fds_close(fds, n_fds);
		source_drop(&vm->source);
		close_fd(&vm->fd);
		process_kill(&vm->process); /* its own last words are the better reason */
		return;
	}
	if (vm->group && vm->op == CONTROL_FORK && n_fds <= 3) {
		memcpy(vm->group->fds, fds, n_fds * sizeof(int));
		vm->group->n_fds = n_fds;
		n_fds = 0;
	}
	fds_close(fds, n_fds);
	rc = message_get_result(&w, &f);
	/* A process that a guest may have taken over says it: for logs, answers and terminals. */
	for (char *c = f.text; *c; c++)
		if (*c < 0x20 || *c > 0x7e)
			*c = '?';
	on_answer(vm, &w, rc ? &f : NULL);
}

/* --- life ---------------------------------------------------------------------------------------------------------- */

/* A child that ended before it was born may be freed before its siblings are. */
static void group_forget(const struct engine_vm *child)
{
	for (struct engine_vm *p = child->e->vms; p; p = p->next)
		for (size_t i = 0; p->group && i < p->group->n; i++)
			if (p->group->children[i] == child)
				p->group->children[i] = NULL;
}

static void release(struct engine_vm *vm)
{
	if (!vm)
		return;
	group_forget(vm);
	group_free(vm);
	process_close(&vm->process);
	source_drop(&vm->source);
	source_drop(&vm->timer);
	close_fd(&vm->fd);
	close_fd(&vm->dirfd);
	if (vm->prev)
		vm->prev->next = vm->next;
	else if (vm->e->vms == vm)
		vm->e->vms = vm->next;
	if (vm->next)
		vm->next->prev = vm->prev;
	free(vm);
}

static void on_exit_process(void *arg, int status)
{
	struct engine_vm *vm = arg;
	struct fault f;

	if (!vm->why[0])
		process_last_words(&vm->process, status, vm->why, sizeof(vm->why));
	vm->state = GONE;
	source_drop(&vm->source);
	close_fd(&vm->fd);
	unlinkat(vm->dirfd, VMM_SOCKET, 0);
	unlinkat(vm->dirfd, PROCESS_PID_FILE, 0);
	fault_set(&f, vm->stopped ? RC_STATE : RC_CLOSED, 0, "machine '%s' ended: %s", vm->id, vm->why);
	if (vm->group)
		group_failed(vm, &f);
	op_end(vm, &f);
	vm->exit(vm->arg, vm->why);
}

static enum rc vm_new(struct kvm_engine *e, const struct engine_spec *spec, engine_exit_fn *exit, void *arg,
		      struct engine_vm **ret, struct fault *ret_f)
{
	struct engine_vm *vm = calloc(1, sizeof(*vm));

	if (!vm)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	vm->e = e;
	vm->process = (struct process)PROCESS_INIT;
	vm->process.ended = on_exit_process;
	vm->process.arg = vm;
	vm->fd = -1;
	vm->exit = exit;
	vm->arg = arg;
	vm->memory_bytes = (uint64_t)spec->memory_mib << 20;
	memcpy(vm->id, spec->id, sizeof(vm->id));
	vm->n_disks = MIN_OF(spec->n_disks, (size_t)ENGINE_DISKS_MAX);
	for (size_t i = 0; i < vm->n_disks; i++)
		memcpy(vm->serials[i], spec->disks[i].serial, sizeof(vm->serials[i]));
	vm->next = e->vms;
	if (vm->next)
		vm->next->prev = vm;
	e->vms = vm;
	vm->dirfd = fcntl(spec->vm_dirfd, F_DUPFD_CLOEXEC, 0);
	if (vm->dirfd < 0) {
		release(vm);
		return fault_set(ret_f, RC_INVALID, errno, "directory of the machine");
	}
	*ret = vm;
	return RC_OK;
}

static enum rc connect_control(struct engine_vm *vm, struct fault *ret_f)
{
	enum rc rc = process_connect(vm->dirfd, VMM_SOCKET, SOCK_SEQPACKET, &vm->fd, ret_f);

	if (!rc)
		rc = fd_nonblock(vm->fd, ret_f);
	return rc ? rc : loop_fd(vm->e->base.loop, vm->fd, EPOLLIN, on_control, vm, &vm->source, ret_f);
}

static enum rc spawn(struct engine_vm *vm, const struct engine_spec *spec, struct fault *ret_f)
{
	static char name[] = "nestbox-vmm", verb[] = "serve";
	char *const argv[] = { name, verb, NULL }, *const env[] = { NULL };
	_cleanup_fd_ int listen_fd = -1;
	struct jail_spec js = { .root = vm->e->root, .exec_fd = vm->e->exec_fd, .argv = argv, .envp = env,
				.uid = spec->uid, .null_fd = vm->e->null_fd, .fds = &listen_fd, .n_fds = 1,
				.cgroup_procs_fd = spec->cgroup_procs_fd, .max_file_bytes = process_file_bytes(spec, MAX_OF(VMM_FILE_BYTES_MIN, (uint64_t)spec->memory_mib << 20)),
				.max_locked_bytes = 64 << 10, .max_processes = VMM_THREADS_MAX,
				.max_files = VMM_FILES_MAX };
	enum rc rc = process_listen(vm->dirfd, VMM_SOCKET, SOCK_SEQPACKET, &listen_fd, ret_f);

	if (rc)
		return rc;
	vm->spawned_us = now_us();
	rc = process_start(&vm->process, vm->e->base.loop, &js, vm->dirfd, ret_f);
	if (rc)
		unlinkat(vm->dirfd, VMM_SOCKET, 0);
	return rc;
}

static enum rc words(uint8_t *mem, size_t size, size_t *n, const char *word, struct fault *ret_f)
{
	size_t len = strlen(word) + 1;

	if (len > size - *n)
		return fault_set(ret_f, RC_LIMIT, 0, "too many devices");
	memcpy(mem + *n, word, len);
	*n += len;
	return RC_OK;
}

/* layer_fds: base, delta as `layers` says, then the state; or kernel and initrd. */
static enum rc send_start(struct engine_vm *vm, const struct engine_spec *spec, uint32_t layers, const int *last_fds,
			  size_t n_last, struct fault *ret_f)
{
	uint8_t disks[CONTROL_SERIALS_MAX], nics[CONTROL_MACS_MAX];
	struct control_start m = { .cpus = spec->vcpus, .memory_mib = spec->memory_mib, .layers = layers,
				   .disk_iops = spec->disk_iops, .disk_mbps = spec->disk_mbps,
				   .net_pps = spec->net_pps, .net_mbps = spec->net_mbps,
				   .disks = disks, .nics = nics };
	int fds[FD_PASS_MAX];
	size_t n = 0;
	enum rc rc = RC_OK;

	if (2 + spec->n_disks + spec->n_nics + n_last > FD_PASS_MAX)
		return fault_set(ret_f, RC_LIMIT, 0, "too many devices");
	if (spec->cmdline && strlen(spec->cmdline) >= sizeof(m.cmdline))
		return fault_set(ret_f, RC_LIMIT, 0, "command line is too long");
	if (spec->cmdline)
		memcpy(m.cmdline, spec->cmdline, strlen(spec->cmdline) + 1);
	fds[n++] = vm->e->kvm_fd;
	fds[n++] = spec->log_fd;
	for (size_t i = 0; !rc && i < spec->n_disks; i++) {
		rc = words(disks, sizeof(disks), &m.disks_n, spec->disks[i].serial, ret_f);
		rc = rc ?: words(disks, sizeof(disks), &m.disks_n, spec->disks[i].read_only ? "ro" : "rw", ret_f);
		fds[n++] = spec->disks[i].fd;
	}
	for (size_t i = 0; !rc && i < spec->n_nics; i++) {
		rc = words(nics, sizeof(nics), &m.nics_n, spec->nics[i].mac, ret_f);
		fds[n++] = spec->nics[i].tap_fd;
	}
	for (size_t i = 0; i < n_last; i++)
		fds[n++] = last_fds[i];
	if (rc)
		return rc;
	vm->after = RUNNING;
	vm->times.start_us = (uint32_t)(now_us() - vm->spawned_us);
	return op_send(vm, CONTROL_START, (message_put_fn *)control_start_put, &m, fds, n, START_MS, ret_f);
}

/* From here on a failure is reported through the callbacks, because the process exists. */
static void start_or_condemn(struct engine_vm *vm, const struct engine_spec *spec, uint32_t layers, const int *fds,
			     size_t n_fds)
{
	struct fault f;
	enum rc rc = vm->fd < 0 ? connect_control(vm, &f) : RC_OK;

	if (!rc)
		rc = send_start(vm, spec, layers, fds, n_fds, &f);
	if (rc)
		condemn(vm, "%s", f.text);
}

static enum rc kvm_start(struct engine *base, const struct engine_spec *spec, struct engine_snapshot *snap,
			 engine_done_fn *done, engine_exit_fn *exit, void *arg, struct engine_vm **ret,
			 struct fault *ret_f)
{
	struct engine_vm *vm;
	enum rc rc;

	if (snap && snap->bytes != (uint64_t)spec->memory_mib << 20)
		return fault_set(ret_f, RC_INVALID, 0, "the snapshot is of a machine of another size");
	if (snap && snap->base_fd < 0 && snap->delta_fd < 0)
		return fault_set(ret_f, RC_STATE, 0, "the snapshot was stored: its files have it now");
	rc = vm_new((struct kvm_engine *)base, spec, exit, arg, &vm, ret_f);
	if (rc)
		return rc;
	rc = spawn(vm, spec, ret_f);
	if (rc) {
		release(vm);
		return rc;
	}
	vm->done = done;
	if (snap) {
		int fds[3];
		size_t n;
		uint32_t layers = stored_layers(snap, fds, &n);

		start_or_condemn(vm, spec, layers, fds, n);
	} else {
		start_or_condemn(vm, spec, 0, (int[]){ spec->kernel_fd, spec->initrd_fd }, 2);
	}
	*ret = vm;
	return RC_OK;
}

/* PAUSE or RESUME, of a machine in state `from`. */
static enum rc turn_over(struct engine_vm *vm, enum state from, enum control_op op, enum state after, engine_done_fn *done,
			 struct fault *ret_f)
{
	enum rc rc = op_begin(vm, 1u << from, ret_f);

	if (rc)
		return rc;
	vm->after = after;
	rc = op_send(vm, (uint16_t)op, NULL, NULL, NULL, 0, COMMAND_MS, ret_f);
	vm->done = rc ? vm->done : done;
	return rc;
}

static enum rc kvm_pause(struct engine_vm *vm, engine_done_fn *done, struct fault *ret_f)
{
	return turn_over(vm, RUNNING, CONTROL_PAUSE, PAUSED, done, ret_f);
}

static enum rc kvm_resume(struct engine_vm *vm, engine_done_fn *done, struct fault *ret_f)
{
	return turn_over(vm, PAUSED, CONTROL_RESUME, RUNNING, done, ret_f);
}

/* It stands still, or not, as whoever asked last before the broker ended wanted it; spec.paused is what its owner wants. */
static void adopted(struct engine_vm *vm, struct wire *w)
{
	struct control_stat m;
	struct fault f;
	enum rc rc = RC_OK;

	control_stat_get(w, &m);
	if (!wire_done(w) || (m.state != CONTROL_RUNNING && m.state != CONTROL_PAUSED)) {
		condemn(vm, "it has no machine");
		return;
	}
	vm->state = m.state == CONTROL_RUNNING ? RUNNING : PAUSED;
	if (vm->state == RUNNING && vm->to_be_paused)
		rc = kvm_pause(vm, NULL, &f);
	else if (vm->state == PAUSED && !vm->to_be_paused)
		rc = kvm_resume(vm, NULL, &f);
	if (rc)
		condemn(vm, "%s", f.text);
}

static enum rc kvm_adopt(struct engine *base, const struct engine_spec *spec, engine_exit_fn *exit, void *arg,
			 struct engine_vm **ret, struct fault *ret_f)
{
	struct engine_vm *vm;
	enum rc rc = vm_new((struct kvm_engine *)base, spec, exit, arg, &vm, ret_f);

	if (rc)
		return rc;
	vm->to_be_paused = spec->paused;
	rc = process_adopt(&vm->process, base->loop, vm->dirfd, vm->id, ret_f);
	if (!rc)
		rc = connect_control(vm, ret_f);
	/* It may still be copying for a fork or writing a snapshot that nobody waits for. */
	if (!rc)
		rc = op_send(vm, CONTROL_STAT, NULL, NULL, NULL, 0, MAX_OF(FORK_MS, SAVE_MS), ret_f);
	if (rc) {
		release(vm);
		return rc;
	}
	*ret = vm;
	return RC_OK;
}

static enum rc kvm_save(struct engine_vm *vm, int dirfd, engine_done_fn *done, struct fault *ret_f)
{
	_cleanup_fd_ int memory = -1, state = -1, pagemap = -1;
	enum rc rc = op_begin(vm, 1u << PAUSED, ret_f);

	if (rc)
		return rc;
	memory = openat(dirfd, VMM_MEMORY_FILE, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	state = openat(dirfd, VMM_STATE_FILE, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (memory < 0 || state < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "create snapshot files");
	pagemap = process_pagemap(&vm->process);
	vm->after = PAUSED;
	rc = op_send(vm, CONTROL_SAVE, NULL, NULL, (int[]){ memory, state, pagemap }, pagemap < 0 ? 2 : 3, SAVE_MS, ret_f);
	vm->done = rc ? vm->done : done;
	return rc;
}

static enum rc kvm_disk_resized(struct engine_vm *vm, const char *serial, engine_done_fn *done, struct fault *ret_f)
{
	struct control_resized m;
	enum rc rc = op_begin(vm, 1u << RUNNING | 1u << PAUSED, ret_f);
	size_t i = 0;

	if (rc)
		return rc;
	while (i < vm->n_disks && strcmp(vm->serials[i], serial))
		i++;
	if (i == vm->n_disks)
		return fault_set(ret_f, RC_ABSENT, 0, "the machine has no such disk");
	snprintf(m.serial, sizeof(m.serial), "%s", serial);
	vm->after = vm->state;
	rc = op_send(vm, CONTROL_RESIZED, (message_put_fn *)control_resized_put, &m, NULL, 0, COMMAND_MS, ret_f);
	vm->done = rc ? vm->done : done;
	return rc;
}

static void kvm_stop(struct engine_vm *vm)
{
	if (vm->state == GONE || vm->stopped)
		return;
	vm->stopped = true;
	source_drop(&vm->source); /* what it may still say comes too late */
	condemn(vm, "stopped");
}

static void kvm_stat(struct engine_vm *vm, struct engine_stat *ret)
{
	memset(ret, 0, sizeof(*ret));
	if (vm->state != GONE)
		process_stat(&vm->process, ret);
}

static const struct engine_times *kvm_times(struct engine_vm *vm)
{
	return &vm->times;
}

/* --- fork ---------------------------------------------------------------------------------------------------------- */

static void group_free(struct engine_vm *parent)
{
	struct fork_group *g = parent->group;

	parent->group = NULL;
	if (!g)
		return;
	fds_close(g->fds, g->n_fds);
	free(g);
}

static void group_failed(struct engine_vm *parent, const struct fault *f)
{
	struct fork_group *g = parent->group;
	engine_done_fn *done = g->taken ? g->done : NULL;

	for (size_t i = 0; i < g->n; i++)
		if (g->children[i])
			condemn(g->children[i], "%s", f->text);
	group_free(parent);
	if (done)
		done(parent->arg, f->rc, f);
}

/* The parent stands still: the disks are cut now, then it goes on. */
static void group_forked(struct engine_vm *parent, struct wire *w)
{
	struct fork_group *g = parent->group;
	struct control_forked m;
	struct fault f;
	struct stat st;
	size_t left = 0;

	control_forked_get(w, &m);
	if (!wire_done(w) || g->n_fds != (m.layers == 2 ? 3u : 2u)) {
		condemn(parent, "malformed answer to FORK");
		return;
	}
	g->layers = m.layers;
	/* What the kernel says; m.pages is a word of its process. */
	if (fstat(g->fds[g->layers == 2], &st) < 0) {
		condemn(parent, "its memory cannot be looked at");
		return;
	}
	parent->times.private_bytes = (uint64_t)st.st_blocks * 512;
	g->cutting = true;
	while (left < g->n && !g->children[left])
		left++;
	fault_set(&f, RC_STATE, 0, "no child of machine '%s' is left", parent->id);
	if (left == g->n && !g->taken)
		kvm_fork_go(parent, &f);
	else if (g->cut)
		g->cut(g->cut_arg);
	else
		kvm_fork_go(parent, NULL);
}

static void kvm_fork_go(struct engine_vm *parent, const struct fault *why)
{
	struct fault f;

	if (!parent->group || !parent->group->cutting)
		return;
	parent->group->cutting = false;
	if (why)
		group_failed(parent, why);
	parent->after = RUNNING;
	/* Its answer comes when the delta is sealed, which takes as long as that is large: the machine runs by then and must not end for it. */
	if (op_send(parent, CONTROL_RESUME, NULL, NULL, NULL, 0, FORK_MS, &f))
		condemn(parent, "%s", f.text);
}

static void group_taken(struct engine_vm *parent)
{
	struct fork_group *g = parent->group;
	engine_done_fn *done = g->done;
	struct fault f;
	enum rc rc = RC_OK;

	*g->taken = stored_new(parent->e, g->layers, g->fds, parent->memory_bytes);
	g->n_fds = 0;
	if (!*g->taken)
		rc = fault_set(&f, RC_NOMEM, 0, "out of memory");
	group_free(parent);
	done(parent->arg, rc, rc ? &f : NULL);
}

/* The parent's process may be its guest's by now, so its word is not enough. */
static bool is_sealed(int fd)
{
	int seals = fcntl(fd, F_GET_SEALS);

	return seals >= 0 && (seals & F_SEAL_WRITE) && (seals & F_SEAL_SHRINK);
}

static void group_resumed(struct engine_vm *parent, struct wire *w)
{
	struct fork_group *g = parent->group;
	struct control_resumed m;
	struct fault f;

	control_resumed_get(w, &m);
	parent->times.pause_us = m.pause_us;
	if (!is_sealed(g->fds[g->layers == 2])) {
		fault_set(&f, RC_SYS, 0, "machine '%s' could not seal the memory that it gave", parent->id);
		group_failed(parent, &f);
		return;
	}
	if (g->taken) {
		group_taken(parent);
		return;
	}
	for (size_t i = 0; i < g->n; i++) {
		struct engine_vm *child = g->children[i];

		if (!child)
			continue;
		child->times.pause_us = m.pause_us;
		child->times.private_bytes = parent->times.private_bytes;
		if (child->state == STARTING)
			start_or_condemn(child, &g->specs[i], g->layers, g->fds, g->n_fds);
	}
	group_free(parent);
}

static enum rc send_fork(struct engine_vm *parent, struct fault *ret_f)
{
	_cleanup_fd_ int pagemap = process_pagemap(&parent->process);

	return op_send(parent, CONTROL_FORK, NULL, NULL, &pagemap, pagemap < 0 ? 0 : 1, FORK_MS, ret_f);
}

static enum rc kvm_fork(struct engine_vm *parent, size_t n, const struct engine_spec specs[], void (*cut)(void *arg),
			void *cut_arg, engine_done_fn *done, engine_exit_fn *exit, void *args[],
			struct engine_vm *rets[], struct fault *ret_f)
{
	struct fork_group *g;
	struct fault f;
	enum rc rc = op_begin(parent, 1u << RUNNING, ret_f);
	size_t made;

	if (rc)
		return rc;
	if (!n || n > ENGINE_FORK_MAX)
		return fault_set(ret_f, RC_INVALID, 0, "1 to %d children", ENGINE_FORK_MAX);
	g = calloc(1, sizeof(*g));
	if (!g)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	g->cut = cut;
	g->cut_arg = cut_arg;
	/* Processes first: they come up while the parent copies. */
	for (size_t i = 0; !rc && i < n; i++) {
		rc = vm_new(parent->e, &specs[i], exit, args[i], &g->children[i], &f);
		if (!rc)
			rc = spawn(g->children[i], &specs[i], &f);
		if (rc && g->children[i])
			release(g->children[i]);
		if (rc)
			break;
		g->specs[i] = specs[i];
		g->children[i]->done = done;
		rets[i] = g->children[i];
		g->n++;
	}
	parent->group = g;
	parent->after = PAUSED;
	parent->done = NULL;
	if (!rc)
		rc = send_fork(parent, &f);
	if (!rc)
		return RC_OK;
	if (ret_f)
		*ret_f = f;
	/* Children that exist report their end through the callbacks. */
	made = g->n;
	group_failed(parent, &f);
	return made ? RC_OK : rc;
}

static enum rc kvm_take(struct engine_vm *vm, void (*cut)(void *arg), void *cut_arg, engine_done_fn *done,
			struct engine_snapshot **ret, struct fault *ret_f)
{
	struct fork_group *g;
	enum rc rc = op_begin(vm, 1u << RUNNING, ret_f);

	if (rc)
		return rc;
	g = calloc(1, sizeof(*g));
	if (!g)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	*g = (struct fork_group){ .cut = cut, .cut_arg = cut_arg, .done = done, .taken = ret };
	vm->group = g;
	vm->after = PAUSED;
	vm->done = NULL;
	rc = send_fork(vm, ret_f);
	if (rc)
		group_free(vm);
	return rc;
}

/* --- the engine ---------------------------------------------------------------------------------------------------- */

static void kvm_free(struct engine *base)
{
	struct kvm_engine *e = (struct kvm_engine *)base;

	if (!e)
		return;
	while (e->vms)
		release(e->vms);
	process_graves_free(&e->graves);
	jail_root_free(e->root);
	close_fd(&e->exec_fd);
	close_fd(&e->null_fd);
	close_fd(&e->kvm_fd);
	free(e);
}

static const struct engine_ops kvm_ops = {
	.name = "kvm",
	.overhead_mib = ENGINE_KVM_OVERHEAD_MIB,
	.copies_charged = true,
	.start = kvm_start,
	.adopt = kvm_adopt,
	.pause = kvm_pause,
	.resume = kvm_resume,
	.save = kvm_save,
	.take = kvm_take,
	.snapshot_store = kvm_snapshot_store,
	.snapshot_open = kvm_snapshot_open,
	.snapshot_check = kvm_snapshot_check,
	.snapshot_map = kvm_snapshot_map,
	.snapshot_free = kvm_snapshot_free,
	.disk_resized = kvm_disk_resized,
	.fork = kvm_fork,
	.fork_go = kvm_fork_go,
	.stop = kvm_stop,
	.stat = kvm_stat,
	.times = kvm_times,
	.vm_free = release,
	.engine_free = kvm_free,
};

enum rc engine_kvm_new(struct loop *loop, const char *vmm_path, struct engine **ret, struct fault *ret_f)
{
	struct kvm_engine *e = calloc(1, sizeof(*e));
	enum rc rc = RC_OK;

	if (!e)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	e->base.ops = &kvm_ops;
	e->base.loop = loop;
	e->exec_fd = open(vmm_path, O_RDONLY | O_CLOEXEC);
	e->null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	e->kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (e->exec_fd < 0)
		rc = fault_set(ret_f, rc_from_errno(errno), errno, "open '%s'", vmm_path);
	else if (e->null_fd < 0 || e->kvm_fd < 0)
		rc = fault_set(ret_f, rc_from_errno(errno), errno, "open /dev/kvm");
	/* Its devices, their registers and interrupts, the tables in the guest's memory, the layout of the state: all of it is in the program. */
	if (!rc)
		rc = shape_of_file(e->exec_fd, e->base.shape, ret_f);
	if (!rc)
		rc = jail_root_new(NULL, 0, false, &e->root, ret_f);
	if (rc) {
		kvm_free(&e->base);
		return fault_wrap(ret_f, "kvm engine");
	}
	*ret = &e->base;
	return RC_OK;
}
