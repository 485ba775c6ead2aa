/* SPDX-License-Identifier: Apache-2.0 */
/*
 * engine-figures: what two engines are compared by, each in a run of its own on the same host. /guest-checker has to be in the overlay.
 * -n: how often each; -m: the memory of the small machines; -B: only cold starts.
 */
#include "tests/it/engine_rig.h"

#define SYNTHETIC "198.18.0.9" /* TCP to it ends at the namespace's own listener */

static void exec_true(struct machine *m, const char *name)
{
	uint64_t t = us();
	char out[64];

	guest_run(m, "[\"true\"]", out, sizeof(out));
	note(name, us() - t);
}

static void cold_boots(void)
{
	for (uint32_t i = 0; i < opt.runs; i++) {
		struct machine m;

		cold_boot(&m, "cold", RIG_UID);
		machine_stop(&m);
		machine_unmake(&m);
	}
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
	printf("engine-figures: %s\n", what);
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

static void disk_speed(struct machine *m)
{
	char out[64];

	step("disk, at random");
	guest_run(m, "[\"/guest-checker\",\"rand\",\"/dev/vda\",\"1500\"]", out, sizeof(out));
	note("disk: us for 1500 reads of 4 KiB", (uint64_t)atoll(out));
	step("disk, in sequence");
	guest_run(m, "[\"/guest-checker\",\"seq\",\"/dev/vda\",\"96\"]", out, sizeof(out));
	note("disk: us for 96 reads of 1 MiB", (uint64_t)atoll(out));
}

static void restores(void)
{
	char dir[300];
	struct engine_snapshot *snap;
	struct machine a, b;
	struct engine_stat st;
	uint64_t t;

	snprintf(dir, sizeof(dir), "%s/snap-template", opt.dir);
	cold_boot(&a, "template", RIG_UID);
	exec_true(&a, "exec of true, first after boot");
	save_to(&a, dir);
	machine_stop(&a);
	step("starts from a snapshot");
	snap = snap_open(dir);
	for (uint32_t i = 0; i < opt.runs * 3; i++) {
		char out[64];

		machine_make(&b, "restored", RIG_UID + 1, &a);
		t = us();
		start_from(&b, snap);
		note("restore to running", us() - t);
		guest_run(&b, "[\"echo\",\"x\"]", out, sizeof(out));
		note("restore to first command's output", us() - t);
		if (strcmp(out, "x\n"))
			die("echo says '%s'", out);
		if (!i) {
			for (int k = 0; k < 40; k++)
				exec_true(&b, "exec of true");
			engine->ops->stat(b.vm, &st);
			note("process's own private KiB", own_kib(st.pid));
		}
		if (i < opt.runs) {
			disk_speed(&b);
			net_speed(&b, true, 48);
			net_speed(&b, false, 48);
		}
		machine_stop(&b);
		machine_unmake(&b);
	}
	machine_unmake(&a);
	engine->ops->snapshot_free(snap);
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

static void fork_pauses(const char *name, uint32_t memory_mib, uint32_t touched_mib, uint32_t rate)
{
	uint32_t before = opt.memory_mib;
	struct machine parent, child;
	char line[200], answer[64];
	int fd;

	step(name);
	opt.memory_mib = memory_mib;
	cold_boot(&parent, "parent", RIG_UID);
	snprintf(line, sizeof(line), "{\"service\":\"exec\",\"user\":\"root\",\"argv\":[\"/guest-checker\",\"touch\",\"%u\",\"%u\"]}",
		 touched_mib, rate);
	fd = service(&parent, line);
	MUST(fd_wait(fd, POLLIN, now_ms() + 120000, f)); /* "touched" */
	if (read(fd, answer, sizeof(answer)) < 5 || answer[0] != 1)
		die("memory was not touched");
	for (uint32_t i = 0; i < opt.runs; i++) {
		struct machine *pair[2] = { &parent, &child };
		struct engine_vm *vm;
		void *arg = &child;

		machine_make(&child, "child", RIG_UID + 2, NULL);
		MUST(engine->ops->fork(parent.vm, 1, &child.spec, on_cut, pair, on_done, on_exit_, &arg, &vm, f));
		child.vm = vm;
		await(&child, "fork");
		note(name, engine->ops->times(parent.vm)->pause_us - cut_us);
		hello(&child);
		machine_stop(&child);
		machine_unmake(&child);
		hello(&parent);
	}
	close(fd);
	machine_stop(&parent);
	machine_unmake(&parent);
	opt.memory_mib = before;
}

int main(int argc, char **argv)
{
	rig_begin("engine-figures", argc, argv);
	cold_boots();
	if (!opt.boots) {
		restores();
		fork_pauses("fork pause: 512 of 1024 MiB touched", 1024, 512, 0);
		fork_pauses("fork pause: the same, 20 MiB/s written", 1024, 512, 20);
		if (!strcmp(opt.engine, "kvm")) {
			fork_pauses("fork pause: 256 of 3072 MiB touched", 3072, 256, 0);
			fork_pauses("fork pause: 2048 of 3072 MiB touched", 3072, 2048, 0);
		}
	}
	rig_end("engine-figures");
	return 0;
}
