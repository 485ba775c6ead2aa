/* SPDX-License-Identifier: Apache-2.0 */
/*
 * engine-driver: takes an engine through a machine's whole life and prints what each step took. A check that fails ends
 * it with status 1; so does a process, descriptor or file that is left over.
 *
 *   engine-driver [-e qemu-tcg|qemu-kvm|kvm] [-q qemu or nestbox-vmm] -k vmlinuz -i initrd [-I image] [-O overlay] [-m MiB] [-n runs] [-c cmdline]
 *                 [-H hello-line] [-d directory] [-B boots: cold starts only, this many]
 */
#include "tests/it/engine_parity.h"

#define FORKS 4

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

/* --- the life ---- */
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

/* Its memory stays in the file. */
static struct engine_snapshot *snap_map(const char *dir)
{
	int fd = open_at(AT_FDCWD, dir, O_RDONLY | O_DIRECTORY);
	struct engine_snapshot *snap = NULL;
	uint64_t t = us();

	MUST(engine->ops->snapshot_map(engine, fd, &snap, f));
	note("map snapshot", us() - t);
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
		if (snap_open_try(dir, &snap, &(struct fault){ 0 }) != RC_STATE)
			die("damage in %s was not noticed", names[i]);
		if (i && engine->ops->snapshot_map(engine, fd, &snap, NULL) != RC_STATE)
			die("damage in %s was not noticed by whoever maps it", names[i]);
		b ^= 4;
		if (pwrite(file, &b, 1, at) != 1)
			die("write %s", names[i]);
		close(file);
	}
	close(fd);
}

static void restore(struct machine *m, struct engine_snapshot *snap, bool listed)
{
	uint64_t t = us();
	const struct engine_times *times;
	struct engine_stat st;

	MUST(engine->ops->start(engine, &m->spec, snap, on_done, on_exit_, m, &m->vm, f));
	note("restore: start() returns", us() - t);
	if (listed)
		parity_starting(m);
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

static void adopt_anew(struct machine *m, bool paused)
{
	char text[4096];

	engine->ops->engine_free(engine);
	if (paused && ask_once(m, opt.hello, text, sizeof(text), 300))
		die("a machine that was paused went on without a broker");
	engine_make();
	m->spec.paused = paused;
	MUST(engine->ops->adopt(engine, &m->spec, on_exit_, m, &m->vm, f));
	m->spec.paused = false;
}

/* Its first operation, as soon as the engine knows how the machine is; in the other state it would be refused. */
static void adopted(struct machine *m, enum rc (*op)(struct engine_vm *, engine_done_fn *, struct fault *), const char *what)
{
	uint64_t end = now_ms() + 60000;
	struct fault why;
	enum rc rc;

	while ((rc = op(m->vm, on_done, &why))) {
		if (rc != RC_AGAIN || now_ms() > end)
			die("%s: %s", what, why.text);
		MUST(loop_once(loop, 100, f));
	}
	await(m, what);
}

static void on_cut_reached(void *arg)
{
	*(bool *)arg = true;
}

/* The broker restarts: forget and find again. */
static void adopt(struct machine *m)
{
	struct engine_snapshot *never = NULL;
	bool cut = false;
	uint64_t t;

	/* Its owner paused it: it stands still, also while nobody is there. */
	MUST(engine->ops->pause(m->vm, on_done, f));
	await(m, "pause before adoption");
	t = us();
	adopt_anew(m, true);
	adopted(m, engine->ops->resume, "resume after adoption");
	note("adopt and resume", us() - t);
	hello(m);
	/* In the middle of something: what stands still for a broker that is gone goes on. */
	MUST(engine->ops->pause(m->vm, on_done, f));
	await(m, "pause before adoption");
	adopt_anew(m, false);
	adopted(m, engine->ops->pause, "pause after adoption");
	MUST(engine->ops->resume(m->vm, on_done, f));
	await(m, "resume after adoption");
	hello(m);
	/* And in the middle of a capture. */
	MUST(engine->ops->take(m->vm, on_cut_reached, &cut, on_done, &never, f));
	until(&cut, 120000);
	adopt_anew(m, false);
	adopted(m, engine->ops->pause, "pause after adoption from a capture");
	MUST(engine->ops->resume(m->vm, on_done, f));
	await(m, "resume after adoption from a capture");
	if (never)
		die("a capture without its broker was finished");
	hello(m);
}

/* --- kept while it runs ---- */
static struct machine *taken_from, *taken_disk;
static uint64_t taken_cut_us;

static void on_taken_cut(void *arg)
{
	char command[600];
	uint64_t t = us();

	(void)arg;
	snprintf(command, sizeof(command), "cp --sparse=always '%s/overlay' '%s/overlay'", taken_from->dir, taken_disk->dir);
	if (system(command))
		die("cut");
	taken_cut_us = us() - t;
	engine->ops->fork_go(taken_from->vm, NULL);
}

static uint64_t file_kib(const char *dir, const char *name)
{
	char path[400];
	struct stat st;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	return stat(path, &st) ? 0 : (uint64_t)st.st_blocks / 2;
}

/* m, which runs on, to `dir`; disk: a machine whose writable disk is m's then. */
static void capture(struct machine *m, struct machine *disk, const char *dir, const char *base)
{
	struct engine_snapshot *snap = NULL;

	taken_from = m;
	taken_disk = disk;
	MUST(engine->ops->take(m->vm, on_taken_cut, NULL, on_done, &snap, f));
	if (engine->ops->pause(m->vm, on_done, NULL) != RC_AGAIN)
		die("a machine could be paused while it was taken");
	await(m, "take");
	note("capture: pause less cut()", engine->ops->times(m->vm)->pause_us - taken_cut_us);
	hello(m);
	snap_store(snap, dir, base);
	note(base ? "capture: KiB written for the second" : "capture: KiB written for the first", file_kib(dir, "memory"));
	engine->ops->snapshot_free(snap);
}

/* Of a running machine: kept, kept again as what differs, started from that when the first has lost its name. Its disk is another's then. */
static void captures(struct machine *m)
{
	char first[300], second[300], command[700];
	struct machine a, b;
	struct engine_snapshot *snap;
	struct fault why;
	int fd;

	snprintf(first, sizeof(first), "%s/snap-captured", opt.dir);
	snprintf(second, sizeof(second), "%s/snap-again", opt.dir);
	machine_make(&a, "captured", RIG_UID + 5, NULL);
	machine_make(&b, "again", RIG_UID + 6, NULL);
	capture(m, &a, first, NULL);
	capture(m, &b, second, first);
	if (!strcmp(opt.engine, "kvm")) {
		if (file_kib(second, "memory") * 2 > file_kib(first, "memory"))
			die("the second capture has as much as the first");
		snprintf(command, sizeof(command), "mv '%s/base' '%s/.base'", second, second);
		fd = open_at(AT_FDCWD, second, O_RDONLY | O_DIRECTORY);
		if (system(command) || engine->ops->snapshot_map(engine, fd, &snap, &why) != RC_STATE)
			die("a capture without its base was opened");
		close(fd);
		snprintf(command, sizeof(command), "mv '%s/.base' '%s/base'", second, second);
		if (system(command))
			die("rename base");
	}
	snprintf(command, sizeof(command), "rm -r '%s'", first);
	if (system(command))
		die("remove a capture");
	snap = snap_map(second);
	MUST(snap_check(snap, f));
	restore(&b, snap, false);
	/* And once more, of what came from it. */
	capture(&b, &a, first, second);
	machine_stop(&b);
	machine_unmake(&b);
	engine->ops->snapshot_free(snap);
	snap = snap_map(first);
	snprintf(command, sizeof(command), "rm -r '%s'", second);
	if (system(command))
		die("remove a capture");
	MUST(snap_check(snap, f));
	restore(&a, snap, false);
	machine_stop(&a);
	machine_unmake(&a);
	engine->ops->snapshot_free(snap);
	/* A byte of the base changes: noticed. */
	snprintf(command, sizeof(command), "f='%s/%s'; o=$(od -An -v -tx1 -w4096 \"$f\" | grep -n -m 1 -v '^\\( 00\\)*$' | cut -d: -f1); "
		 "printf '\\251' | dd of=\"$f\" bs=1 seek=$(((o - 1) * 4096 + 77)) conv=notrunc status=none",
		 first, strcmp(opt.engine, "kvm") ? "memory" : "base");
	if (system(command))
		die("damage a capture");
	snap = snap_map(first);
	if (snap_check(snap, &why) != RC_STATE)
		die("a damaged capture was not noticed");
	engine->ops->snapshot_free(snap);
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
	engine->ops->fork_go(fork_parent->vm, NULL);
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
		machine_make(&children[i], id, (uid_t)(RIG_UID + 10 + i), NULL);
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
		machine_make(&children[i], id, (uid_t)(RIG_UID + 10 + i), NULL);
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
	char snap_dir[300], second_dir[300], command[320];
	struct engine_snapshot *snap;
	struct machine a, b;

	snprintf(snap_dir, sizeof(snap_dir), "%s/snap-first", opt.dir);
	snprintf(second_dir, sizeof(second_dir), "%s/snap-second", opt.dir);
	cold_boot(&a, "cold", RIG_UID);
	pause_resume(&a);
	save(&a, snap_dir);
	MUST(engine->ops->resume(a.vm, on_done, f));
	await(&a, "resume after save");
	hello(&a);
	pause_machine(&a);
	parity_stop(&a);
	snap_damage(snap_dir);
	snap = snap_open(snap_dir);
	for (uint32_t i = 0; i < opt.runs; i++) {
		machine_make(&b, "restored", RIG_UID + 1, &a);
		restore(&b, snap, !i);
		if (!i) {
			confined(&b);
			resize(&b);
			pause_resume(&b);
			parity_life(&b);
			parity_others(snap, &b);
		}
		if (i + 1 == opt.runs) {
			adopt(&b);
			live_fork(&b);
			live_fork(&b);
			captures(&b);
			save(&b, second_dir);
		}
		machine_stop(&b);
		if (i + 1 < opt.runs)
			machine_unmake(&b);
	}
	engine->ops->snapshot_free(snap);
	/* What was itself started from a snapshot can be saved and started again; this time from the file, which loses its name. */
	snap = snap_map(second_dir);
	machine_unmake(&a);
	machine_make(&a, "second", RIG_UID + 2, &b);
	machine_unmake(&b);
	restore(&a, snap, false);
	snprintf(command, sizeof(command), "rm -r '%s'", second_dir);
	if (system(command))
		die("remove a snapshot");
	hello(&a);
	live_fork(&a);
	fork_interrupted(&a);
	machine_unmake(&a);
	engine->ops->snapshot_free(snap);
}

static void boots(void)
{
	struct machine m;

	for (uint32_t i = 0; i < opt.boots; i++) {
		cold_boot(&m, "cold", RIG_UID);
		machine_stop(&m);
		machine_unmake(&m);
	}
}

int main(int argc, char **argv)
{
	rig_begin("engine-driver", argc, argv);
	if (opt.boots)
		boots();
	else
		life();
	rig_end("engine-driver");
	return 0;
}
