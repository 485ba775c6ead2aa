/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/it/engine_rig.h"
#include "vmm/broker/limits.h"

struct rig_options opt = { .engine = "qemu-tcg", .qemu = "/usr/bin/qemu-system-x86_64", .memory_mib = 512, .runs = 20,
			   .cmdline = "console=ttyS0 quiet panic=-1 reboot=t cryptomgr.notests nestbox.root=image",
			   .hello = "{\"service\":\"control\",\"op\":\"hello\"}", .dir = "/tmp/nestbox-engine" };
struct loop *loop;
struct engine *engine;
static const char *program;

static void figures(void);

/* Emulated processors now and then run a kernel wrongly that patches its own text while it boots; a restored one never does. */
#define COLD_RETRIES 2
#define COLD_MS 240000 /* QEMU in the bed on a busy host: most of a minute and more */

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

void die(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	fprintf(stderr, "%s: ", program);
	vfprintf(stderr, fmt, ap);
	fprintf(stderr, "\n");
	va_end(ap);
	figures(); /* what was had until here */
	kill_children();
	exit(1);
}

uint64_t us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

/* --- figures ---- */
struct series {
	const char *name;
	uint64_t v[RIG_RUNS_MAX];
	size_t n;
};
static struct series table[32];

void note(const char *name, uint64_t value)
{
	struct series *s = table;

	while (s->name && strcmp(s->name, name))
		s++;
	s->name = name;
	if (s->n < RIG_RUNS_MAX)
		s->v[s->n++] = value;
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

uint64_t median(const char *name)
{
	for (struct series *s = table; s->name; s++)
		if (!strcmp(s->name, name)) {
			qsort(s->v, s->n, sizeof(s->v[0]), by_value);
			return s->v[s->n / 2];
		}
	return 0;
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
void on_done(void *arg, enum rc rc, const struct fault *f)
{
	struct machine *m = arg;

	m->done = true;
	m->rc = rc;
	if (f)
		m->fault = *f;
}

void on_exit_(void *arg, const char *reason)
{
	struct machine *m = arg;

	m->gone = true;
	snprintf(m->why, sizeof(m->why), "%s", reason);
}

void until(bool *flag, uint64_t ms)
{
	uint64_t end = now_ms() + ms;

	while (!*flag) {
		if (now_ms() > end)
			die("nothing happened for %llu ms", (unsigned long long)ms);
		MUST(loop_once(loop, 100, f));
	}
}

void await(struct machine *m, const char *what)
{
	until(&m->done, 120000);
	m->done = false;
	if (m->rc)
		die("%s: %s", what, m->fault.text);
}

int open_at(int dirfd, const char *name, int flags)
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

void machine_make(struct machine *m, const char *id, uid_t uid, const struct machine *disk_from)
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

void machine_unmake(struct machine *m)
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

void machine_stop(struct machine *m)
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

bool ask_once(struct machine *m, const char *line, char *out, size_t size, uint64_t ms)
{
	_cleanup_fd_ int fd = -1;
	struct fault f;
	int err = 0;
	socklen_t n = sizeof(err);
	uint64_t end = now_ms() + ms;

	if (net_dial(&m->net, &fd, &f) || fd_wait(fd, POLLOUT, now_ms() + MIN_OF(ms, DIAL_ATTEMPT_MS), &f) ||
	    getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &n) < 0 || err)
		return false;
	if (fd_write_all(fd, line, strlen(line), end, &f) || fd_write_all(fd, "\n", 1, end, &f))
		return false;
	return !fd_read_line(fd, out, size, end, &f);
}

void ask(struct machine *m, const char *line, char *out, size_t size)
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

void hello(struct machine *m)
{
	char text[4096];

	ask(m, opt.hello, text, sizeof(text));
	if (!strstr(text, "ok"))
		die("agent says: %s", text);
}

/* --- operations ---- */
/* False: the machine ended before its agent answered. */
static bool boot_once(struct machine *m)
{
	struct timespec pause = { 0, 20000000 };
	uint64_t t = us(), end = now_ms() + COLD_MS;
	char text[4096];

	MUST(engine->ops->start(engine, &m->spec, NULL, on_done, on_exit_, m, &m->vm, f));
	await(m, "cold start");
	note("cold: process to control", engine->ops->times(m->vm)->start_us);
	note("cold: to running", us() - t);
	while (!ask_once(m, opt.hello, text, sizeof(text), 30000)) {
		MUST(loop_once(loop, 0, f));
		if (m->gone)
			return false;
		if (now_ms() > end)
			die("no answer from %s", m->spec.id);
		nanosleep(&pause, NULL);
	}
	note("cold: to first agent answer", us() - t);
	return true;
}

void cold_boot(struct machine *m, const char *id, uid_t uid)
{
	for (int i = 0;; i++) {
		char command[300];

		machine_make(m, id, uid, NULL);
		if (boot_once(m))
			return;
		note("cold boots that ended in a guest's panic", 1);
		fprintf(stderr, "%s: %s ended while it booted: %s\n", program, id, m->why);
		snprintf(command, sizeof(command), "grep -aE -m 3 'panic|Oops|BUG' '%s/log' >&2", m->dir);
		if (system(command) || i == COLD_RETRIES)
			die("it was not a panic, or one too many");
		engine->ops->vm_free(m->vm);
		machine_unmake(m);
	}
}

void pause_machine(struct machine *m)
{
	MUST(engine->ops->pause(m->vm, on_done, f));
	await(m, "pause");
}

void resume_machine(struct machine *m)
{
	MUST(engine->ops->resume(m->vm, on_done, f));
	await(m, "resume");
}

void save_to(struct machine *m, const char *dir)
{
	int fd;

	if (mkdir(dir, 0700) < 0)
		die("mkdir %s", dir);
	fd = open_at(AT_FDCWD, dir, O_RDONLY | O_DIRECTORY);
	pause_machine(m);
	MUST(engine->ops->save(m->vm, fd, on_done, f));
	await(m, "save");
	close(fd);
}

struct answer {
	bool done;
	enum rc rc;
	struct fault f;
};

static void on_answer(void *arg, enum rc rc, const struct fault *f)
{
	struct answer *a = arg;

	a->done = true;
	a->rc = rc;
	if (f)
		a->f = *f;
}

static enum rc answer_wait(enum rc rc, struct answer *a)
{
	if (rc)
		return rc;
	until(&a->done, 300000);
	return a->rc;
}

enum rc snap_open_try(const char *dir, struct engine_snapshot **ret, struct fault *f)
{
	int fd = open_at(AT_FDCWD, dir, O_RDONLY | O_DIRECTORY);
	struct answer a = { 0 };
	struct engine_snapshot *snap = NULL;
	uint64_t t = us();
	enum rc rc = engine->ops->snapshot_open(engine, fd, on_answer, &a, &snap, f);

	note("open snapshot: the loop stands still for", us() - t);
	close(fd);
	if (rc)
		return rc;
	rc = answer_wait(rc, &a);
	if (!rc)
		note("open snapshot", us() - t);
	if (rc) {
		*f = a.f;
		engine->ops->snapshot_free(snap);
	} else {
		*ret = snap;
	}
	return rc;
}

struct engine_snapshot *snap_open(const char *dir)
{
	struct engine_snapshot *snap = NULL;

	MUST(snap_open_try(dir, &snap, f));
	return snap;
}

enum rc snap_check(struct engine_snapshot *snap, struct fault *f)
{
	struct answer a = { 0 };
	uint64_t t = us();
	enum rc rc = answer_wait(engine->ops->snapshot_check(snap, on_answer, &a, f), &a);

	if (rc)
		*f = a.f;
	else
		note("check snapshot", us() - t);
	return rc;
}

void snap_store(struct engine_snapshot *snap, const char *dir, const char *base)
{
	int fd, base_fd = base ? open_at(AT_FDCWD, base, O_RDONLY | O_DIRECTORY) : -1;
	struct answer a = { 0 };
	uint64_t t = us();

	if (mkdir(dir, 0700) < 0)
		die("mkdir %s", dir);
	fd = open_at(AT_FDCWD, dir, O_RDONLY | O_DIRECTORY);
	MUST(answer_wait(engine->ops->snapshot_store(snap, fd, base_fd, on_answer, &a, f), &a));
	note(base ? "store what differs" : "store a snapshot", us() - t);
	close(fd);
	if (base)
		close(base_fd);
}

void start_from(struct machine *m, struct engine_snapshot *snap)
{
	MUST(engine->ops->start(engine, &m->spec, snap, on_done, on_exit_, m, &m->vm, f));
	await(m, "start from snapshot");
}

/* --- services of the agent ---- */
int service_try(struct machine *m, const char *line, char *answer, size_t size)
{
	uint64_t end = now_ms() + 60000;
	_cleanup_fd_ int fd = -1;
	struct fault f;

	if (net_dial(&m->net, &fd, &f) || fd_wait(fd, POLLOUT, end, &f) || fd_write_all(fd, line, strlen(line), end, &f) ||
	    fd_write_all(fd, "\n", 1, end, &f) || fd_read_line(fd, answer, size, end, &f)) {
		snprintf(answer, size, "%s", f.text);
		return -1;
	}
	return strstr(answer, "\"ok\"") ? take_fd(&fd) : -1;
}

int service(struct machine *m, const char *line)
{
	char answer[4096];
	int fd = service_try(m, line, answer, sizeof(answer));

	if (fd < 0)
		die("%s: '%s' is answered '%s'", m->spec.id, line, answer);
	return fd;
}

static void read_bytes(int fd, void *out, size_t n, uint64_t end)
{
	for (size_t at = 0; at < n;) {
		ssize_t got = read(fd, (uint8_t *)out + at, n - at);

		if (got > 0)
			at += (size_t)got;
		else if (!got || (errno != EAGAIN && errno != EINTR))
			die("the agent closed its connection");
		else
			MUST(fd_wait(fd, POLLIN, end, f));
	}
}

void guest_run(struct machine *m, const char *argv_json, char *out, size_t size)
{
	char line[2048], bytes[AGENT_FRAME_MAX];
	uint64_t end = now_ms() + 300000;
	uint8_t head[5];
	size_t at = 0;
	int fd;

	snprintf(line, sizeof(line), "{\"service\":\"exec\",\"user\":\"root\",\"argv\":%s}", argv_json);
	fd = service(m, line);
	for (;;) {
		size_t n;

		read_bytes(fd, head, sizeof(head), end);
		n = (size_t)head[1] | (size_t)head[2] << 8 | (size_t)head[3] << 16;
		if (n >= sizeof(bytes) || head[4])
			die("%s: a frame of %zu bytes", m->spec.id, n);
		read_bytes(fd, bytes, n, end);
		bytes[n] = '\0';
		if (head[0] == 3)
			break;
		if (head[0] == 2)
			fprintf(stderr, "%s: %s", m->spec.id, bytes);
		else if (n < size - at)
			memcpy(out + at, bytes, n), at += n;
	}
	out[at] = '\0';
	close(fd);
	if (!strstr(bytes, "\"code\":0") && !strstr(bytes, "\"code\": 0"))
		die("%s: %s ended with %s", m->spec.id, argv_json, bytes);
}

size_t count(const char *dir)
{
	DIR *d = opendir(dir);
	size_t n = 0;

	while (d && readdir(d))
		n++;
	if (d)
		closedir(d);
	return n;
}

void engine_make(void)
{
	if (!strcmp(opt.engine, "kvm"))
		MUST(engine_kvm_new(loop, opt.qemu, &engine, f));
	else
		MUST(engine_qemu_new(loop, opt.qemu, !strcmp(opt.engine, "qemu-kvm"), &engine, f));
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
		case 'n': opt.runs = (uint32_t)MIN_OF(atoi(optarg), RIG_RUNS_MAX); break;
		case 'B': opt.boots = (uint32_t)MIN_OF(atoi(optarg), RIG_RUNS_MAX); break;
		case 'c': opt.cmdline = optarg; break;
		case 'H': opt.hello = optarg; break;
		case 'd': opt.dir = optarg; break;
		default: die("unknown option");
		}
	if (!opt.kernel || !opt.initrd || !opt.runs)
		die("-k and -i are needed");
}


static size_t fds_before;

void rig_begin(const char *name, int argc, char **argv)
{
	char command[1024], run_dir[256];

	program = name;
	options(argc, argv);
	log_init(name);
	setvbuf(stdout, NULL, _IOLBF, 0);
	snprintf(command, sizeof(command), "for m in $(grep -o '%s/[^ ]*' /proc/mounts | tac); do umount $m; done;"
		 "rm -rf '%s' && mkdir -p '%s/run'", opt.dir, opt.dir, opt.dir);
	snprintf(run_dir, sizeof(run_dir), "%s/run", opt.dir);
	if (system(command))
		die("directory %s", opt.dir);
	MUST(net_init(run_dir, f));
	fds_before = count("/proc/self/fd");
	MUST(loop_new(&loop, f));
	engine_make();
}

void rig_end(const char *name)
{
	char command[1024];
	int status = 0;
	pid_t pid;

	engine->ops->engine_free(engine);
	loop_free(loop);
	figures();
	if (count("/proc/self/fd") != fds_before)
		die("%zu descriptors at the start, %zu at the end", fds_before, count("/proc/self/fd"));
	pid = waitpid(-1, &status, WNOHANG);
	if (pid != -1 || errno != ECHILD)
		die("child process %d is left over, status %d", (int)pid, status);
	snprintf(command, sizeof(command), "umount '%s/run/netns' 2>/dev/null; rm -rf '%s'", opt.dir, opt.dir);
	if (system(command))
		die("clean up");
	printf("%s: all checks passed\n", name);
}
