/* SPDX-License-Identifier: Apache-2.0 */
/*
 * engine-driver: takes an engine through a machine's whole life and prints what each step took. A check that fails ends
 * it with status 1; so does a process, descriptor or file that is left over.
 *
 *   engine-driver [-e qemu-tcg|qemu-kvm|kvm] [-q qemu or nestbox-vmm] -k vmlinuz -i initrd [-I image] [-O overlay] [-m MiB] [-n runs] [-c cmdline]
 *                 [-H hello-line] [-d directory] [-B boots: cold starts only, this many]
 */
#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/loop.h"
#include "schema/agent.h"
#include "vmm/engines/engine.h"
#include "vmm/net/net.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#define UID 790000
#define RUNS_MAX 200
#define FORKS 4

static struct {
	const char *engine, *qemu, *kernel, *initrd, *image, *overlay, *cmdline, *hello, *dir;
	uint32_t memory_mib, runs, boots;
} opt = { .engine = "qemu-tcg", .qemu = "/usr/bin/qemu-system-x86_64", .memory_mib = 512, .runs = 20,
	  .cmdline = "console=ttyS0 quiet panic=-1 reboot=t nestbox.root=image",
	  .hello = "{\"service\":\"control\",\"op\":\"hello\"}", .dir = "/tmp/nestbox-engine" };

static struct loop *loop;
static struct engine *engine;

struct machine {
	struct engine_vm *vm;
	struct net net;
	struct engine_spec spec;
	int dirfd;
	char dir[200];
	bool done, gone;
	enum rc rc;
	struct fault fault;
	char why[200];
};

/* Machines outlive their engine on purpose; a failed test's shall not. */
static void kill_children(void)
{
	char path[64];
	int pid;

	snprintf(path, sizeof(path), "/proc/self/task/%d/children", (int)getpid());
	_cleanup_file_ FILE *in = fopen(path, "re");
	while (in && fscanf(in, "%d", &pid) == 1)
		kill(pid, SIGKILL);
}

_Noreturn __attribute__((format(printf, 1, 2))) static void die(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	fprintf(stderr, "engine-driver: ");
	vfprintf(stderr, fmt, ap);
	fprintf(stderr, "\n");
	va_end(ap);
	kill_children();
	exit(1);
}

#define MUST(call)                                                          \
	do {                                                                \
		struct fault f_ = { 0 };                                    \
		struct fault *f = &f_;                                      \
		if (call)                                                   \
			die("%s:%d %s: %s", __FILE__, __LINE__, #call, f_.text); \
	} while (0)

static uint64_t us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

/* --- figures ---- */
struct series {
	const char *name;
	uint64_t v[RUNS_MAX];
	size_t n;
};
static struct series table[32];

static void note(const char *name, uint64_t value)
{
	struct series *s = table;

	while (s->name && strcmp(s->name, name))
		s++;
	s->name = name;
	if (s->n < RUNS_MAX)
		s->v[s->n++] = value;
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static void figures(void)
{
	printf("%-34s %5s %10s %10s %10s\n", "us", "n", "least", "median", "most");
	for (struct series *s = table; s->name; s++) {
		qsort(s->v, s->n, sizeof(s->v[0]), by_value);
		printf("%-34s %5zu %10llu %10llu %10llu\n", s->name, s->n, (unsigned long long)s->v[0],
		       (unsigned long long)s->v[s->n / 2], (unsigned long long)s->v[s->n - 1]);
	}
}

/* --- machines ---- */
static void on_done(void *arg, enum rc rc, const struct fault *f)
{
	struct machine *m = arg;

	m->done = true;
	m->rc = rc;
	if (f)
		m->fault = *f;
}

static void on_exit_(void *arg, const char *reason)
{
	struct machine *m = arg;

	m->gone = true;
	snprintf(m->why, sizeof(m->why), "%s", reason);
}

static void until(bool *flag, uint64_t ms)
{
	uint64_t end = now_ms() + ms;

	while (!*flag) {
		if (now_ms() > end)
			die("nothing happened for %llu ms", (unsigned long long)ms);
		MUST(loop_once(loop, 100, f));
	}
}

static void await(struct machine *m, const char *what)
{
	until(&m->done, 120000);
	m->done = false;
	if (m->rc)
		die("%s: %s", what, m->fault.text);
}

static int open_at(int dirfd, const char *name, int flags)
{
	int fd = openat(dirfd, name, flags | O_CLOEXEC, 0600);

	if (fd < 0)
		die("open %s: %s", name, strerror(errno));
	return fd;
}

static void disk_add(struct machine *m, const char *serial, const char *from, uint64_t bytes, bool read_only)
{
	struct engine_disk *d = &m->spec.disks[m->spec.n_disks++];
	char command[512];

	snprintf(d->serial, sizeof(d->serial), "%s", serial);
	d->read_only = read_only;
	if (read_only) {
		d->fd = open_at(AT_FDCWD, from, O_RDONLY);
		return;
	}
	if (from) {
		snprintf(command, sizeof(command), "cp --sparse=always '%s' '%s/%s'", from, m->dir, serial);
		if (system(command))
			die("copy %s", from);
	}
	d->fd = open_at(m->dirfd, serial, O_RDWR | O_CREAT);
	if (!from && ftruncate(d->fd, (off_t)bytes) < 0)
		die("size of %s", serial);
}

/* `disk_from`: the machine whose writable disks are copied (a restore or fork needs them as they were). */
static void machine_make(struct machine *m, const char *id, uid_t uid, const struct machine *disk_from)
{
	char serial[16], path[400];

	memset(m, 0, sizeof(*m));
	snprintf(m->spec.id, sizeof(m->spec.id), "%s", id);
	snprintf(m->dir, sizeof(m->dir), "%s/%s", opt.dir, id);
	if (mkdir(m->dir, 0700) < 0)
		die("mkdir %s: %s", m->dir, strerror(errno));
	m->dirfd = open_at(AT_FDCWD, m->dir, O_RDONLY | O_DIRECTORY);
	MUST(net_create(id, &m->net, f));
	m->spec.memory_mib = opt.memory_mib;
	m->spec.vcpus = 2;
	m->spec.uid = uid;
	m->spec.vm_dirfd = m->dirfd;
	m->spec.cgroup_procs_fd = -1;
	m->spec.netns_fd = -1;
	m->spec.kernel_fd = open_at(AT_FDCWD, opt.kernel, O_RDONLY);
	m->spec.initrd_fd = open_at(AT_FDCWD, opt.initrd, O_RDONLY);
	m->spec.cmdline = opt.cmdline;
	m->spec.log_fd = open_at(m->dirfd, "log", O_RDWR | O_CREAT | O_APPEND);
	if (opt.image)
		disk_add(m, "image", opt.image, 0, true);
	snprintf(path, sizeof(path), "%s/overlay", disk_from ? disk_from->dir : "");
	disk_add(m, "overlay", disk_from ? path : opt.overlay, 64 << 20, false);
	for (int i = 0; i < AGENT_SPARE_DISKS; i++) {
		snprintf(serial, sizeof(serial), "spare%d", i);
		disk_add(m, serial, NULL, 1 << 20, false);
	}
	m->spec.n_nics = 2;
	snprintf(m->spec.nics[0].mac, sizeof(m->spec.nics[0].mac), AGENT_NET_MAC);
	snprintf(m->spec.nics[1].mac, sizeof(m->spec.nics[1].mac), AGENT_MGMT_MAC);
	m->spec.nics[0].tap_fd = m->net.tap_fd;
	m->spec.nics[1].tap_fd = m->net.mgmt_fd;
}

static void machine_unmake(struct machine *m)
{
	char command[300];

	close(m->dirfd);
	close(m->spec.kernel_fd);
	close(m->spec.initrd_fd);
	close(m->spec.log_fd);
	for (size_t i = 0; i < m->spec.n_disks; i++)
		close(m->spec.disks[i].fd);
	net_destroy(&m->net);
	snprintf(command, sizeof(command), "rm -r '%s'", m->dir);
	if (system(command))
		die("remove %s", m->dir);
}

static void machine_stop(struct machine *m)
{
	uint64_t t = us();
	char path[300];

	engine->ops->stop(m->vm);
	until(&m->gone, 10000);
	note("stop", us() - t);
	engine->ops->vm_free(m->vm);
	for (size_t i = 0; i < 2; i++) {
		snprintf(path, sizeof(path), "%s/%s", m->dir, i ? "vmm.sock" : "qmp.sock");
		if (access(path, F_OK) == 0)
			die("control socket is left over");
	}
}

/* One line to the agent's port, one line back. False: not yet there. */
static bool ask_once(struct machine *m, const char *line, char *out, size_t size, uint64_t ms)
{
	_cleanup_fd_ int fd = -1;
	struct fault f;
	int err = 0;
	socklen_t n = sizeof(err);
	uint64_t end = now_ms() + ms;

	if (net_dial(&m->net, &fd, &f) || fd_wait(fd, POLLOUT, now_ms() + MIN_OF(ms, (uint64_t)2000), &f) ||
	    getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &n) < 0 || err)
		return false;
	if (fd_write_all(fd, line, strlen(line), end, &f) || fd_write_all(fd, "\n", 1, end, &f))
		return false;
	return !fd_read_line(fd, out, size, end, &f);
}

static void ask(struct machine *m, const char *line, char *out, size_t size)
{
	struct timespec pause = { 0, 20000000 };
	uint64_t end = now_ms() + 90000;

	/* The agent may not listen yet, which only trying tells. */
	while (!ask_once(m, line, out, size, 30000)) {
		MUST(loop_once(loop, 0, f));
		if (m->gone)
			die("machine ended: %s", m->why);
		if (now_ms() > end)
			die("no answer to %s", line);
		nanosleep(&pause, NULL);
	}
}

static void hello(struct machine *m)
{
	char text[4096];

	ask(m, opt.hello, text, sizeof(text));
	if (!strstr(text, "ok"))
		die("agent says: %s", text);
}

static size_t count(const char *dir)
{
	DIR *d = opendir(dir);
	size_t n = 0;

	while (d && readdir(d))
		n++;
	if (d)
		closedir(d);
	return n;
}

/* The jail of a live machine, from outside: every thread, and what is open. */
static void confined(struct machine *m)
{
	static const char *const wanted[] = { "\nNoNewPrivs:\t1\n", "\nSeccomp:\t2\n", "\nCapEff:\t0000000000000000\n",
					      "\nCapPrm:\t0000000000000000\n", "\nCapBnd:\t0000000000000000\n",
					      "\nGroups:\t \n" };
	char path[600], text[8192], uid[64];
	struct engine_stat st;
	size_t threads = 0;
	DIR *d;

	engine->ops->stat(m->vm, &st);
	snprintf(uid, sizeof(uid), "\nUid:\t%u\t%u\t%u\t%u\n", m->spec.uid, m->spec.uid, m->spec.uid, m->spec.uid);
	snprintf(path, sizeof(path), "/proc/%d/task", (int)st.pid);
	d = opendir(path);
	for (struct dirent *e; d && (e = readdir(d));) {
		if (e->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/proc/%d/task/%s/status", (int)st.pid, e->d_name);
		_cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC);
		ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof(text) - 1);

		text[n < 0 ? 0 : n] = '\0';
		if (!n)
			continue; /* a thread that has ended */
		threads++;
		for (size_t i = 0; i < ARRAY_SIZE(wanted); i++)
			if (!strstr(text, wanted[i]))
				die("thread %s is not confined: no%s", e->d_name, wanted[i]);
		if (!strstr(text, uid))
			die("thread %s has another uid", e->d_name);
	}
	if (d)
		closedir(d);
	if (threads < 3)
		die("only %zu threads", threads);
	snprintf(path, sizeof(path), "/proc/%d/root/etc", (int)st.pid);
	if (access(path, F_OK) == 0)
		die("the machine's process sees an /etc");
	note("confined: open descriptors", count((snprintf(path, sizeof(path), "/proc/%d/fd", (int)st.pid), path)) - 2);
}

static void engine_make(void)
{
	if (!strcmp(opt.engine, "kvm"))
		MUST(engine_kvm_new(loop, opt.qemu, &engine, f));
	else
		MUST(engine_qemu_new(loop, opt.qemu, !strcmp(opt.engine, "qemu-kvm"), &engine, f));
}

/* --- the life ---- */
static void cold(struct machine *m)
{
	uint64_t t = us();

	MUST(engine->ops->start(engine, &m->spec, NULL, on_done, on_exit_, m, &m->vm, f));
	await(m, "cold start");
	note("cold: process to control", engine->ops->times(m->vm)->start_us);
	note("cold: to running", us() - t);
	hello(m);
	note("cold: to first agent answer", us() - t);
}

static void pause_resume(struct machine *m)
{
	uint64_t t = us();
	char text[4096];

	MUST(engine->ops->pause(m->vm, on_done, f));
	if (engine->ops->resume(m->vm, on_done, NULL) != RC_AGAIN)
		die("two operations at once were allowed");
	await(m, "pause");
	note("pause", us() - t);
	if (ask_once(m, opt.hello, text, sizeof(text), 300))
		die("a paused machine answered");
	t = us();
	MUST(engine->ops->resume(m->vm, on_done, f));
	await(m, "resume");
	note("resume", us() - t);
	hello(m);
}

static void save(struct machine *m, const char *dir)
{
	uint64_t t = us();
	int fd;

	if (mkdir(dir, 0700) < 0)
		die("mkdir %s", dir);
	fd = open_at(AT_FDCWD, dir, O_RDONLY | O_DIRECTORY);
	if (engine->ops->save(m->vm, fd, on_done, NULL) != RC_STATE)
		die("a running machine could be saved");
	MUST(engine->ops->pause(m->vm, on_done, f));
	await(m, "pause");
	MUST(engine->ops->save(m->vm, fd, on_done, f));
	await(m, "save");
	note("save (with pause)", us() - t);
	close(fd);
}

static struct engine_snapshot *snap_open(const char *dir)
{
	int fd = open_at(AT_FDCWD, dir, O_RDONLY | O_DIRECTORY);
	struct engine_snapshot *snap = NULL;
	uint64_t t = us();

	MUST(engine->ops->snapshot_open(engine, fd, &snap, f));
	note("open snapshot", us() - t);
	close(fd);
	return snap;
}

/* A flipped bit in either file is noticed. */
static void snap_damage(const char *dir)
{
	static const char *const names[] = { "memory", "state" };
	int fd = open_at(AT_FDCWD, dir, O_RDONLY | O_DIRECTORY);

	for (size_t i = 0; i < 2; i++) {
		int file = open_at(fd, names[i], O_RDWR);
		off_t at = i ? 1000 : lseek(file, 0, SEEK_DATA) + 100;
		struct engine_snapshot *snap;
		uint8_t b;

		if (pread(file, &b, 1, at) != 1)
			die("read %s", names[i]);
		b ^= 4;
		if (pwrite(file, &b, 1, at) != 1)
			die("write %s", names[i]);
		if (engine->ops->snapshot_open(engine, fd, &snap, NULL) != RC_STATE)
			die("damage in %s was not noticed", names[i]);
		b ^= 4;
		if (pwrite(file, &b, 1, at) != 1)
			die("write %s", names[i]);
		close(file);
	}
	close(fd);
}

static void restore(struct machine *m, struct engine_snapshot *snap)
{
	uint64_t t = us();
	const struct engine_times *times;
	struct engine_stat st;

	MUST(engine->ops->start(engine, &m->spec, snap, on_done, on_exit_, m, &m->vm, f));
	note("restore: start() returns", us() - t);
	await(m, "start from snapshot");
	note("restore: to running", us() - t);
	hello(m);
	note("restore: to first agent answer", us() - t);
	times = engine->ops->times(m->vm);
	note("restore: process to control", times->start_us);
	note("restore: load and continue", times->load_us);
	t = us();
	hello(m);
	note("restored: second answer", us() - t);
	engine->ops->stat(m->vm, &st);
	note("restored: PSS in KiB", st.pss_bytes >> 10);
}

static void resize(struct machine *m)
{
	uint64_t t;
	size_t i;

	for (i = 0; strcmp(m->spec.disks[i].serial, "spare1"); i++)
		;
	if (ftruncate(m->spec.disks[i].fd, 100 << 20) < 0)
		die("grow spare1");
	t = us();
	MUST(engine->ops->disk_resized(m->vm, "spare1", on_done, f));
	await(m, "resize");
	note("disk resize", us() - t);
	if (engine->ops->disk_resized(m->vm, "nothing", on_done, NULL) != RC_ABSENT)
		die("a disk that doesn't exist could be resized");
}

/* The broker restarts: forget and find again. */
static void adopt(struct machine *m)
{
	uint64_t t;

	engine->ops->engine_free(engine);
	engine_make();
	t = us();
	MUST(engine->ops->adopt(engine, &m->spec, on_exit_, m, &m->vm, f));
	for (;;) {
		struct fault why;
		enum rc rc = engine->ops->pause(m->vm, on_done, &why);

		if (!rc)
			break;
		if (rc != RC_AGAIN || now_ms() * 1000 > t + 10000000)
			die("adopt: %s", why.text);
		MUST(loop_once(loop, 100, f));
	}
	await(m, "pause after adoption");
	note("adopt and pause", us() - t);
	MUST(engine->ops->resume(m->vm, on_done, f));
	await(m, "resume after adoption");
	hello(m);
}

/* --- live fork ---- */
static struct machine children[FORKS], *fork_parent;
static uint64_t cut_us;

static void on_cut(void *arg)
{
	char command[600];
	uint64_t t = us();

	(void)arg;
	for (size_t i = 0; i < FORKS; i++) {
		snprintf(command, sizeof(command), "cp --sparse=always '%s/overlay' '%s/overlay'", fork_parent->dir,
			 children[i].dir);
		if (system(command))
			die("cut");
	}
	cut_us = us() - t;
}

static bool shell_guest(void)
{
	return !strcmp(opt.hello, "hello"); /* the test guest, that takes commands */
}

static void must_answer(struct machine *m, const char *line, const char *wanted)
{
	char text[4096];

	ask(m, line, text, sizeof(text));
	if (strcmp(text, wanted))
		die("%s: '%s' is answered '%s', not '%s'", m->spec.id, line, text, wanted);
}

static void live_fork(struct machine *parent)
{
	struct engine_spec specs[FORKS];
	struct engine_vm *vms[FORKS];
	void *args[FORKS];
	char id[32], sum[4096] = "";
	uint64_t t;

	fork_parent = parent;
	for (size_t i = 0; i < FORKS; i++) {
		snprintf(id, sizeof(id), "child%zu", i);
		machine_make(&children[i], id, (uid_t)(UID + 10 + i), NULL);
		specs[i] = children[i].spec;
		args[i] = &children[i];
	}
	if (shell_guest()) {
		ask(parent, "fill 32", sum, sizeof(sum));
		must_answer(parent, "put before", "ok");
	}
	t = us();
	MUST(engine->ops->fork(parent->vm, FORKS, specs, on_cut, NULL, on_done, on_exit_, args, vms, f));
	if (engine->ops->pause(parent->vm, on_done, NULL) != RC_AGAIN)
		die("a machine could be paused while it was forked");
	for (size_t i = 0; i < FORKS; i++) {
		children[i].vm = vms[i];
		await(&children[i], "fork");
		note("fork: to running child", us() - t);
	}
	note("fork: parent's pause", engine->ops->times(parent->vm)->pause_us);
	note("fork: parent's pause less cut()", engine->ops->times(parent->vm)->pause_us - cut_us);
	note("fork: KiB of own pages", engine->ops->times(parent->vm)->private_bytes >> 10);
	hello(parent);
	if (shell_guest())
		must_answer(parent, "put parent", "ok");
	for (size_t i = 0; i < FORKS; i++) {
		hello(&children[i]);
		if (!shell_guest())
			continue;
		must_answer(&children[i], "get", "ok before");
		must_answer(&children[i], "sum", sum);
		snprintf(id, sizeof(id), "put child%zu", i);
		must_answer(&children[i], id, "ok");
	}
	if (shell_guest()) {
		must_answer(parent, "get", "ok parent");
		must_answer(parent, "sum", sum);
		must_answer(&children[0], "get", "ok child0");
	}
	for (size_t i = 0; i < FORKS; i++)
		machine_stop(&children[i]);
	for (size_t i = 0; i < FORKS; i++)
		machine_unmake(&children[i]);
}

/* A child is stopped before it is born, and the parent while it is forked: everybody gets both callbacks. */
static void fork_interrupted(struct machine *parent)
{
	struct engine_spec specs[FORKS];
	struct engine_vm *vms[FORKS];
	void *args[FORKS];
	char id[32];

	fork_parent = parent;
	for (size_t i = 0; i < FORKS; i++) {
		snprintf(id, sizeof(id), "child%zu", i);
		machine_make(&children[i], id, (uid_t)(UID + 10 + i), NULL);
		specs[i] = children[i].spec;
		args[i] = &children[i];
	}
	MUST(engine->ops->fork(parent->vm, FORKS, specs, on_cut, NULL, on_done, on_exit_, args, vms, f));
	for (size_t i = 0; i < FORKS; i++)
		children[i].vm = vms[i];
	engine->ops->stop(vms[0]);
	until(&children[0].gone, 10000);
	if (!children[0].done || !children[0].rc)
		die("a child that was stopped before its birth has no failed start");
	engine->ops->stop(parent->vm);
	until(&parent->gone, 10000);
	for (size_t i = 1; i < FORKS; i++) {
		until(&children[i].gone, 10000);
		if (!children[i].done || !children[i].rc)
			die("a child of a lost parent has no failed start");
	}
	for (size_t i = 0; i < FORKS; i++) {
		engine->ops->vm_free(vms[i]);
		machine_unmake(&children[i]);
	}
	engine->ops->vm_free(parent->vm);
}

static void life(void)
{
	char snap_dir[300], second_dir[300];
	struct engine_snapshot *snap;
	struct machine a, b;

	snprintf(snap_dir, sizeof(snap_dir), "%s/snap-first", opt.dir);
	snprintf(second_dir, sizeof(second_dir), "%s/snap-second", opt.dir);
	machine_make(&a, "cold", UID, NULL);
	cold(&a);
	pause_resume(&a);
	save(&a, snap_dir);
	MUST(engine->ops->resume(a.vm, on_done, f));
	await(&a, "resume after save");
	hello(&a);
	MUST(engine->ops->pause(a.vm, on_done, f));
	await(&a, "pause");
	machine_stop(&a);
	snap_damage(snap_dir);
	snap = snap_open(snap_dir);
	for (uint32_t i = 0; i < opt.runs; i++) {
		machine_make(&b, "restored", UID + 1, &a);
		restore(&b, snap);
		if (!i) {
			confined(&b);
			resize(&b);
			pause_resume(&b);
		}
		if (i + 1 == opt.runs) {
			adopt(&b);
			live_fork(&b);
			live_fork(&b);
			save(&b, second_dir);
		}
		machine_stop(&b);
		if (i + 1 < opt.runs)
			machine_unmake(&b);
	}
	engine->ops->snapshot_free(snap);
	/* What was itself started from a snapshot can be saved and started again. */
	snap = snap_open(second_dir);
	machine_unmake(&a);
	machine_make(&a, "second", UID + 2, &b);
	machine_unmake(&b);
	restore(&a, snap);
	fork_interrupted(&a);
	machine_unmake(&a);
	engine->ops->snapshot_free(snap);
}

static void boots(void)
{
	struct machine m;

	for (uint32_t i = 0; i < opt.boots; i++) {
		machine_make(&m, "cold", UID, NULL);
		cold(&m);
		machine_stop(&m);
		machine_unmake(&m);
	}
}

static void options(int argc, char **argv)
{
	for (int o; (o = getopt(argc, argv, "e:q:k:i:I:O:m:n:c:H:d:B:")) != -1;)
		switch (o) {
		case 'e': opt.engine = optarg; break;
		case 'q': opt.qemu = optarg; break;
		case 'k': opt.kernel = optarg; break;
		case 'i': opt.initrd = optarg; break;
		case 'I': opt.image = optarg; break;
		case 'O': opt.overlay = optarg; break;
		case 'm': opt.memory_mib = (uint32_t)atoi(optarg); break;
		case 'n': opt.runs = (uint32_t)MIN_OF(atoi(optarg), RUNS_MAX); break;
		case 'B': opt.boots = (uint32_t)MIN_OF(atoi(optarg), RUNS_MAX); break;
		case 'c': opt.cmdline = optarg; break;
		case 'H': opt.hello = optarg; break;
		case 'd': opt.dir = optarg; break;
		default: die("unknown option");
		}
	if (!opt.kernel || !opt.initrd || !opt.runs)
		die("-k and -i are needed");
}

int main(int argc, char **argv)
{
	char command[1024], run_dir[256];
	int status = 0;
	size_t fds;
	pid_t pid;

	options(argc, argv);
	log_init("engine-driver");
	snprintf(command, sizeof(command), "for m in $(grep -o '%s/[^ ]*' /proc/mounts | tac); do umount $m; done;"
		 "rm -rf '%s' && mkdir -p '%s/run'", opt.dir, opt.dir, opt.dir);
	snprintf(run_dir, sizeof(run_dir), "%s/run", opt.dir);
	if (system(command))
		die("directory %s", opt.dir);
	MUST(net_init(run_dir, f));
	fds = count("/proc/self/fd");
	MUST(loop_new(&loop, f));
	engine_make();
	if (opt.boots)
		boots();
	else
		life();
	engine->ops->engine_free(engine);
	loop_free(loop);
	figures();
	if (count("/proc/self/fd") != fds)
		die("%zu descriptors at the start, %zu at the end", fds, count("/proc/self/fd"));
	pid = waitpid(-1, &status, WNOHANG);
	if (pid != -1 || errno != ECHILD)
		die("child process %d is left over, status %d", (int)pid, status);
	snprintf(command, sizeof(command), "umount '%s/netns' 2>/dev/null; rm -rf '%s'", run_dir, opt.dir);
	if (system(command))
		die("clean up");
	printf("engine-driver: all checks passed\n");
	return 0;
}
