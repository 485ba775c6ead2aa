/* SPDX-License-Identifier: Apache-2.0 */
/*
 * engine-figures: what two engines are compared by, each in a run of its own on the same host. /guest-checker has to be in the overlay.
 * -n: how often each; -m: the machines' memory; -B: how many cold starts; 1: nothing but the rows of disk and network, of the machine that
 * booted then. A cold start takes QEMU most of a minute in the
 * bed, so the first one's machine is kept for the forks and the last one's is the template of all others. The forks' parent is one that
 * booted because its memory is quicker to touch than a restored one's. What cannot be had is left out of the table, with the reason above it.
 */
#include "tests/it/engine_rig.h"

#include <linux/perf_event.h>
#include <sys/syscall.h>

#define SYNTHETIC "198.18.0.9" /* TCP to it ends at the namespace's own listener */
#define NET_MIB 16u

static void exec_true(struct machine *m, const char *name)
{
	uint64_t t = us();
	char out[64];

	guest_run(m, "[\"true\"]", out, sizeof(out));
	note(name, us() - t);
}

/* What the process has for itself: private pages of every mapping that is not the guest's memory. */
static uint64_t own_kib(pid_t pid)
{
	char path[64], line[512];
	uint64_t kib = 0;
	bool guest = false;

	snprintf(path, sizeof(path), "/proc/%d/smaps", (int)pid);
	_cleanup_file_ FILE *in = fopen(path, "re");
	while (in && fgets(line, sizeof(line), in)) {
		unsigned long long a, b;

		if (sscanf(line, "%llx-%llx ", &a, &b) == 2 && strchr(line, '-') < strchr(line, ' '))
			guest = strstr(line, "memfd:") || b - a >= (uint64_t)opt.memory_mib << 19;
		else if (!guest && (sscanf(line, "Private_Clean: %llu", &a) == 1 || sscanf(line, "Private_Dirty: %llu", &a) == 1))
			kib += a;
	}
	return kib;
}

static void step(const char *what)
{
	static uint64_t began;

	began = began ? began : us();
	printf("engine-figures: %4llu s: %s\n", (unsigned long long)((us() - began) / 1000000), what);
}

static void net_speed(struct machine *m, bool to_guest, size_t mib)
{
	char argv[200], out[128];
	unsigned long long bytes, took;
	int status;
	pid_t pid;

	step(to_guest ? "network, to the guest" : "network, from the guest");
	pid = fork();
	if (pid < 0)
		die("fork");
	if (!pid) {
		static uint8_t b[262144];
		int s = -1;

		while (s < 0 && fd_wait(m->net.tcp_fd, POLLIN, now_ms() + 60000, NULL) == RC_OK)
			s = accept4(m->net.tcp_fd, NULL, NULL, SOCK_CLOEXEC);
		for (size_t total = 0; to_guest && total < mib << 20;) {
			ssize_t n = write(s, b, sizeof(b));

			if (n <= 0)
				_exit(1);
			total += (size_t)n;
		}
		if (to_guest)
			shutdown(s, SHUT_WR);
		while (read(s, b, sizeof(b)) > 0)
			;
		_exit(0);
	}
	if (to_guest)
		snprintf(argv, sizeof(argv), "[\"/guest-checker\",\"sink\",\"%s\",\"80\"]", SYNTHETIC);
	else
		snprintf(argv, sizeof(argv), "[\"/guest-checker\",\"source\",\"%s\",\"80\",\"%zu\"]", SYNTHETIC, mib);
	guest_run(m, argv, out, sizeof(out));
	if (sscanf(out, "%llu %llu", &bytes, &took) != 2 || bytes != mib << 20)
		die("network: %s of %zu MiB", out, mib);
	if (waitpid(pid, &status, 0) != pid || status)
		die("network: the host's side failed");
	note(to_guest ? "net: us a MiB to the guest" : "net: us a MiB from the guest", took / mib);
}

/* --- system calls ---- */
#define THREADS_MAX 64

/* Counters of what the threads of a process ask of the kernel from now on; fds[0] is its main thread's. 0: this kernel has none. */
static size_t calls_watch(pid_t pid, bool threads_to_come, int fds[THREADS_MAX])
{
	struct perf_event_attr attr = { .type = PERF_TYPE_TRACEPOINT, .size = sizeof(attr), .inherit = threads_to_come };
	_cleanup_file_ FILE *id = fopen("/sys/kernel/tracing/events/raw_syscalls/sys_enter/id", "re");
	unsigned long long config;
	char path[64];
	size_t n = 0;
	DIR *d;

	if (!id || fscanf(id, "%llu", &config) != 1)
		return 0;
	attr.config = config;
	fds[n++] = (int)syscall(SYS_perf_event_open, &attr, pid, -1, -1, PERF_FLAG_FD_CLOEXEC);
	if (fds[0] < 0)
		return 0;
	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	d = opendir(path);
	for (struct dirent *e; d && (e = readdir(d));) {
		pid_t tid = atoi(e->d_name);

		if (tid <= 0 || tid == pid || n == THREADS_MAX)
			continue;
		fds[n] = (int)syscall(SYS_perf_event_open, &attr, tid, -1, -1, PERF_FLAG_FD_CLOEXEC);
		n += fds[n] >= 0;
	}
	if (d)
		closedir(d);
	return n;
}

static uint64_t calls_sum(int fds[], size_t n)
{
	uint64_t sum = 0, v;

	for (size_t i = 0; i < n; i++) {
		if (read(fds[i], &v, sizeof(v)) == sizeof(v))
			sum += v;
		close(fds[i]);
	}
	return sum;
}

static void disk_speed(struct machine *m)
{
	char out[64];

	step("disk, at random");
	guest_run(m, "[\"/guest-checker\",\"rand\",\"image\",\"600\"]", out, sizeof(out));
	note("disk: us for 600 reads of 4 KiB", (uint64_t)atoll(out));
	step("disk, in sequence");
	guest_run(m, "[\"/guest-checker\",\"seq\",\"image\",\"32\"]", out, sizeof(out));
	note("disk: us for 32 reads of 1 MiB", (uint64_t)atoll(out));
}

/* Of all machines of this host; -1: it does not say. */
static int64_t exits_so_far(void)
{
	_cleanup_file_ FILE *in = fopen("/sys/kernel/debug/kvm/exits", "re");
	long long n;

	return in && fscanf(in, "%lld", &n) == 1 ? n : -1;
}

/* What reads of 1 MiB cost besides time: exits of the guest's processors, system calls of the process. */
static void disk_counts(struct machine *m)
{
	int fds[THREADS_MAX];
	struct engine_stat st;
	int64_t exits = exits_so_far();
	char out[64];
	size_t n;

	step("disk, in sequence, counted");
	engine->ops->stat(m->vm, &st);
	n = calls_watch(st.pid, false, fds);
	guest_run(m, "[\"/guest-checker\",\"seq\",\"image\",\"32\"]", out, sizeof(out));
	if (n)
		note("disk: system calls for 32 reads of 1 MiB", calls_sum(fds, n));
	if (exits >= 0)
		note("disk: exits for 32 reads of 1 MiB", (uint64_t)(exits_so_far() - exits));
}

static void devices_speed(struct machine *m)
{
	/* An odd number, so that of a few the median is not the worst. */
	for (uint32_t k = 0; k < (opt.runs | 1); k++) {
		disk_speed(m);
		net_speed(m, true, NET_MIB);
		net_speed(m, false, NET_MIB);
	}
	disk_counts(m);
}

/* The template that everything else starts from; its machine stays, paused, for its disk. As the broker does with one, it runs commands before it is saved,
 * so that nobody's first one has to be read from the disk. */
static struct engine_snapshot *template_make(struct machine *m, const char *name)
{
	char dir[300], out[64];

	snprintf(dir, sizeof(dir), "%s/snap-%s", opt.dir, name);
	cold_boot(m, name, RIG_UID);
	guest_run(m, "[\"echo\",\"x\"]", out, sizeof(out));
	save_to(m, dir);
	machine_stop(m);
	return snap_open(dir);
}

static struct engine_snapshot *cold_boots(struct machine *first, struct machine *template)
{
	step("cold start");
	cold_boot(first, "first", RIG_UID + 3);
	pause_machine(first);
	for (uint32_t i = 0; i + 2 < opt.boots; i++) {
		struct machine m;

		step("cold start");
		cold_boot(&m, "cold", RIG_UID);
		machine_stop(&m);
		machine_unmake(&m);
	}
	step("cold start of the template");
	return template_make(template, "template");
}

static void restores(const struct machine *template, struct engine_snapshot *snap)
{
	struct machine m;
	struct engine_stat st;
	uint64_t t;

	step("starts from a snapshot");
	for (uint32_t i = 0; i < opt.runs * 2; i++) {
		char out[64];

		machine_make(&m, "restored", RIG_UID + 1, template);
		t = us();
		start_from(&m, snap);
		note("restore to running", us() - t);
		guest_run(&m, "[\"echo\",\"x\"]", out, sizeof(out));
		note("restore to first command's output", us() - t);
		if (strcmp(out, "x\n"))
			die("echo says '%s'", out);
		if (!i) {
			for (int k = 0; k < 20; k++)
				exec_true(&m, "exec of true");
			engine->ops->stat(m.vm, &st);
			note("process's own private KiB", own_kib(st.pid));
			devices_speed(&m);
		}
		machine_stop(&m);
		machine_unmake(&m);
	}
}

/* --- pause of a fork ---- */
static uint64_t cut_us;

static void on_cut(void *arg)
{
	struct machine **m = arg;
	char command[600];
	uint64_t t = us();

	snprintf(command, sizeof(command), "cp --sparse=always '%s/overlay' '%s/overlay'", m[0]->dir, m[1]->dir);
	if (system(command))
		die("cut");
	cut_us = us() - t;
	engine->ops->fork_go(m[0]->vm, NULL);
}

static void fork_one(struct machine *parent, const char *name, bool counted)
{
	int in_parent[THREADS_MAX], in_child[THREADS_MAX];
	size_t n_parent = 0, n_child = 0;
	struct machine child, *pair[2] = { parent, &child };
	struct engine_stat st;
	struct engine_vm *vm;
	void *arg = &child;

	machine_make(&child, "child", RIG_UID + 2, NULL);
	engine->ops->stat(parent->vm, &st);
	if (counted)
		n_parent = calls_watch(st.pid, false, in_parent);
	MUST(engine->ops->fork(parent->vm, 1, &child.spec, on_cut, pair, on_done, on_exit_, &arg, &vm, f));
	child.vm = vm;
	engine->ops->stat(vm, &st);
	if (counted && st.pid)
		n_child = calls_watch(st.pid, true, in_child);
	await(&child, "fork");
	if (n_parent) {
		note("fork: system calls of the parent's main thread", calls_sum(in_parent, 1));
		calls_sum(in_parent + 1, n_parent - 1);
	}
	if (n_child)
		note("fork: system calls of the child until it runs", calls_sum(in_child, n_child));
	note(name, engine->ops->times(parent->vm)->pause_us - cut_us);
	hello(&child);
	machine_stop(&child);
	machine_unmake(&child);
	hello(parent);
}

/* --- memory that was touched ---- */
#define TOUCH_MS 150000 /* for 256 MiB: the figures of both engines have to be had in twelve minutes */

/* What it writes to its standard output, a frame at a time; false: nothing came until then. */
static bool words_read(int fd, char *out, size_t size, uint64_t end)
{
	uint8_t head[5];
	struct fault f;
	size_t n;

	for (size_t at = 0; at < sizeof(head);) {
		ssize_t got = read(fd, head + at, sizeof(head) - at);

		if (got > 0)
			at += (size_t)got;
		else if (!got || fd_wait(fd, POLLIN, end, &f))
			return false;
	}
	n = (size_t)head[1] | (size_t)head[2] << 8;
	if (head[0] != 1 || n >= size)
		return false;
	for (size_t at = 0; at < n;) {
		ssize_t got = read(fd, out + at, n - at);

		if (got > 0)
			at += (size_t)got;
		else if (!got || fd_wait(fd, POLLIN, end, &f))
			return false;
	}
	out[n] = '\0';
	return true;
}

/* Where its processors are, for whoever has to find out why. */
static void standing_still(struct machine *m)
{
	char command[600];
	struct engine_stat st;

	engine->ops->stat(m->vm, &st);
	printf("engine-figures: cpu %llu ms, PSS %llu KiB\n", (unsigned long long)(st.cpu_us / 1000), (unsigned long long)(st.pss_bytes >> 10));
	snprintf(command, sizeof(command), "for t in /proc/%d/task/*; do echo $(cut -d' ' -f2,3,10,12,14,15 $t/stat) $(cat $t/wchan); done; tail -n 5 '%s/log'", (int)st.pid,
		 m->dir);
	if (system(command))
		printf("engine-figures: nothing to be seen\n");
}

/* *ret_fd: as long as it is open the memory stays; -1: it could not be had, which is said and noted nowhere. */
static int memory_touch(struct machine *m, uint32_t mib, uint32_t rate, int *ret_fd)
{
	char line[200], text[512] = "", *at;
	uint64_t t = us(), end = now_ms() + TOUCH_MS * (mib / 256);
	int fd;

	snprintf(line, sizeof(line), "{\"service\":\"exec\",\"user\":\"root\",\"argv\":[\"/guest-checker\",\"touch\",\"%u\",\"%u\"]}", mib, rate);
	fd = service(m, line);
	do {
		if (!words_read(fd, text, sizeof(text), end)) {
			printf("engine-figures: memory was not touched, after %llu s the last word was: %s\n",
			       (unsigned long long)((us() - t) / 1000000), text);
			standing_still(m);
			close(fd);
			return -1;
		}
	} while (!(at = strstr(text, "touched ")));
	note("us a MiB that is touched", (us() - t) / mib);
	*ret_fd = fd;
	return atoi(at + 8);
}

static void forks(struct machine *parent, const char *name, bool counted)
{
	step(name);
	/* An odd number, so that of a few the median is not the worst. */
	for (uint32_t i = 0; i < (opt.runs | 1); i++)
		fork_one(parent, name, counted && !i);
}

/* Two rows, so that an engine under which memory is slow to touch has one at least. Only ours is measured while memory is written, too. */
static void pauses(struct machine *parent)
{
	char command[64], out[64];
	int first, second, pid;

	step("a machine that touches 256 MiB");
	resume_machine(parent);
	if (memory_touch(parent, 256, 20, &first) < 0)
		return;
	forks(parent, "fork pause: 256 of 1024 MiB touched", true);
	step("it touches 256 MiB more");
	pid = memory_touch(parent, 256, 20, &second);
	if (pid > 0) {
		forks(parent, "fork pause: 512 of 1024 MiB touched", false);
		if (!strcmp(opt.engine, "kvm")) {
			snprintf(command, sizeof(command), "[\"sh\",\"-c\",\"kill -USR1 %d\"]", pid);
			guest_run(parent, command, out, sizeof(out));
			forks(parent, "fork pause: the same, 20 MiB/s written", false);
		}
		close(second);
	}
	close(first);
}

/* Of a machine that is booted for it, whose memory is quicker to touch. */
static void pauses_by_size(void)
{
	struct machine parent;
	int first, second;

	opt.memory_mib = 3072;
	step("a machine of 3072 MiB");
	cold_boot(&parent, "large", RIG_UID);
	if (memory_touch(&parent, 256, 0, &first) > 0) {
		forks(&parent, "fork pause: 256 of 3072 MiB touched", false);
		step("it touches 1792 MiB more");
		if (memory_touch(&parent, 2048 - 256, 0, &second) > 0) {
			forks(&parent, "fork pause: 2048 of 3072 MiB touched", false);
			close(second);
		}
		close(first);
	}
	machine_stop(&parent);
	machine_unmake(&parent);
}

/* Of a machine that booted, in a minute or two. */
static void only_devices(void)
{
	struct machine m;

	step("cold start");
	cold_boot(&m, "devices", RIG_UID);
	devices_speed(&m);
	machine_stop(&m);
	machine_unmake(&m);
}

static void all(void)
{
	struct engine_snapshot *snap;
	struct machine first, template;

	snap = cold_boots(&first, &template);
	restores(&template, snap);
	engine->ops->snapshot_free(snap);
	machine_unmake(&template);
	pauses(&first);
	machine_stop(&first);
	machine_unmake(&first);
	if (!strcmp(opt.engine, "kvm"))
		pauses_by_size();
}

int main(int argc, char **argv)
{
	rig_begin("engine-figures", argc, argv);
	if (opt.boots == 1)
		only_devices();
	else
		all();
	step("done");
	rig_end("engine-figures");
	return 0;
}
