/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/fake_vmm.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "schema/agent.h"
#include "vmm/net/net.h"
#include "vmm/store/task.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>

#define PROCESSES_MAX 32

struct engine_vm {
	struct engine_vm *next;
	char id[41];
	enum { NO_OP, START, PAUSE, RESUME, SAVE, RESIZE, FORK, TAKE } op;
	struct engine_snapshot **taken; /* of a TAKE */
	bool cut_over;
	struct fault cut_fault;
	size_t n_unborn;
	struct engine_vm *unborn[ENGINE_FORK_MAX], *born_of;
	void (*cut)(void *arg);
	void *cut_arg;
	bool cutting, paused;
	struct engine_times times;
	bool stopped, gone, bad;
	engine_done_fn *done;
	engine_exit_fn *exit;
	void *arg;
	struct source *turn; /* everything is told in a later turn of the loop, as a real engine does */
};

struct engine_snapshot {
	struct source *turn;
	engine_done_fn *done;
	void *arg;
};

struct fake fake;
bool fake_copies_charged;
const char *fake_shape = "";
static char processes[PROCESSES_MAX][41];
static struct engine_vm *vms;
static unsigned int fail_at;
static bool fail_armed;

/* --- a host ------------------------------------------------------------------------------------------------------- */

static void file_make(const char *path)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

	if (fd < 0 || write(fd, "{}\n", 3) != 3)
		abort();
	close(fd);
}

/* Of this build: this program is in tests/<kind>/ of it. */
static void disk_program_find(void)
{
	static char path[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 32);

	if (n < 0)
		abort();
	path[n] = '\0';
	for (int i = 0; i < 3; i++)
		*strrchr(path, '/') = '\0';
	strcat(path, "/nestbox-disk");
	task_disk_program = path;
}

void fake_world(struct config *ret, char *dir)
{
	static const char *const files[] = { "kernel", "initrd", "root.erofs", "image.json" };
	char path[256];

	if (!mkdtemp(dir) || chdir(dir) < 0 || mkdir("state", 0755) < 0 || mkdir("run", 0755) < 0 ||
	    mkdir("state/images", 0755) < 0 || mkdir("state/images/debian-13", 0755) < 0)
		abort();
	for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
		snprintf(path, sizeof(path), "state/images/debian-13/%s", files[i]);
		file_make(path);
	}
	file_make("empty.conf");
	if (truncate("empty.conf", 0) < 0 || config_load(ret, "empty.conf", NULL))
		abort();
	snprintf(ret->state_dir, sizeof(ret->state_dir), "%s/state", dir);
	snprintf(ret->run_dir, sizeof(ret->run_dir), "%s/run", dir);
	snprintf(ret->template_memory_mib, sizeof(ret->template_memory_mib), "1024");
	disk_program_find();
	ret->vm_disk_mib = 512;
	ret->vm_max = 4;
	ret->vm_memory_mib_host = 1000000;
	ret->lease_grace_ms = 100;
	ret->create_timeout_ms = 5000;
	ret->vm_uid_base = 4000000000; /* nobody's: there is nothing to be swept */
}

/* --- failures --------------------------------------------------------------------------------------------------- */

void fake_fail(unsigned int n)
{
	fail_at = n;
	fail_armed = n != 0;
}

bool fake_failed(void)
{
	return fail_at == 0;
}

static bool fails(void)
{
	return fail_armed && fail_at && !--fail_at;
}

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);

void *__wrap_malloc(size_t n)
{
	return fails() ? NULL : __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size)
{
	return fails() ? NULL : __real_calloc(n, size);
}

/* --- engine ----------------------------------------------------------------------------------------------------- */

static char *process_find(const char *id)
{
	for (int i = 0; i < PROCESSES_MAX; i++)
		if (!strcmp(processes[i], id))
			return processes[i];
	return NULL;
}

bool fake_runs(const char *id)
{
	return process_find(id) != NULL;
}

static void process_end(const char *id)
{
	char *p = process_find(id);

	if (p)
		*p = '\0';
}

static void unborn_forget(struct engine_vm *vm)
{
	struct engine_vm *p = vm->born_of;

	for (size_t i = 0; p && i < p->n_unborn; i++)
		if (p->unborn[i] == vm)
			p->unborn[i] = NULL;
	vm->born_of = NULL;
}

/* All start, or all end: without a process that is what their turn brings. */
static void unborn_end(struct engine_vm *parent, bool live)
{
	parent->cutting = false;
	for (size_t i = 0; i < parent->n_unborn; i++) {
		struct engine_vm *child = parent->unborn[i];
		char *free_place = process_find("");

		if (!child)
			continue;
		child->born_of = NULL;
		if (live && free_place)
			snprintf(free_place, sizeof(processes[0]), "%s", child->id);
		loop_timer_set(child->turn, now_ms());
	}
	parent->n_unborn = 0;
}

static void fake_fork_go(struct engine_vm *parent, const struct fault *f)
{
	if (!parent->cutting)
		abort();
	if (parent->op == TAKE) {
		parent->cutting = false;
		parent->cut_over = true;
		if (f)
			parent->cut_fault = *f;
		loop_timer_set(parent->turn, now_ms());
		return;
	}
	parent->op = NO_OP;
	parent->paused = false;
	fake.forks += !f;
	unborn_end(parent, !f);
}

/* True: it goes on in fake_fork_go(). */
static bool fork_turn(struct engine_vm *vm, bool died)
{
	size_t left = 0;

	for (size_t i = 0; i < vm->n_unborn; i++)
		left += vm->unborn[i] != NULL;
	if (died || !left || fails()) {
		vm->op = NO_OP;
		unborn_end(vm, false);
		return !died;
	}
	if (vm->cutting)
		return true;
	vm->cutting = vm->paused = true;
	vm->times = (struct engine_times){ .pause_us = 4321, .private_bytes = 8192 };
	vm->cut(vm->cut_arg);
	return true;
}

static struct engine_snapshot *snapshot_new(void)
{
	fake.live_snapshots++;
	return __real_calloc(1, sizeof(struct engine_snapshot));
}

static void take_turn(struct engine_vm *vm)
{
	struct fault f = vm->cut_fault;

	if (vm->cut_over && fake.slow_saves) {
		loop_timer_set(vm->turn, now_ms() + 10);
		return;
	}
	if (vm->cut_over) {
		vm->cut_over = vm->paused = false;
		vm->cut_fault = (struct fault){ 0 };
		vm->op = NO_OP;
		if (!f.rc)
			*vm->taken = snapshot_new();
		vm->done(vm->arg, f.rc, f.rc ? &f : NULL);
		return;
	}
	if (vm->paused)
		return; /* fake_fork_go() comes */
	if (fails()) {
		fault_set(&f, RC_SYS, 0, "fake take failed");
		vm->op = NO_OP;
		vm->done(vm->arg, f.rc, &f);
		return;
	}
	vm->times = (struct engine_times){ .pause_us = 4321, .private_bytes = 8192 };
	vm->cutting = vm->paused = true;
	vm->cut(vm->cut_arg);
}

static void vm_turn(void *arg)
{
	struct engine_vm *vm = arg;
	struct fault f;
	bool was_op = vm->op != NO_OP, died = vm->stopped || !fake_runs(vm->id);

	if (vm->gone)
		return;
	if (vm->op == SAVE && fake.slow_saves && !died)
		return;
	if (vm->op == TAKE && !died) {
		take_turn(vm);
		return;
	}
	if (vm->op == FORK) {
		if (fork_turn(vm, died))
			return;
		was_op = false;
	}
	unborn_forget(vm);
	if (!died && was_op && (vm->bad || fails())) {
		process_end(vm->id);
		died = true;
	}
	if (!died && (vm->op == PAUSE || vm->op == RESUME))
		vm->paused = vm->op == PAUSE;
	vm->op = NO_OP;
	vm->gone = died; /* for whoever asks something in the callback */
	if (was_op) {
		fault_set(&f, RC_STATE, 0, "the fake machine died");
		vm->done(vm->arg, died ? RC_STATE : RC_OK, died ? &f : NULL);
	}
	if (died) {
		process_end(vm->id);
		vm->exit(vm->arg, vm->stopped ? "stopped" : "it died");
	} else if (vm->stopped) {
		loop_timer_set(vm->turn, now_ms());
	}
}

static enum rc vm_new(const struct engine_spec *spec, engine_exit_fn *on_exit, void *arg, struct engine_vm **ret,
		      struct fault *ret_f)
{
	struct engine_vm *vm = __real_calloc(1, sizeof(*vm));

	snprintf(vm->id, sizeof(vm->id), "%s", spec->id);
	vm->exit = on_exit;
	vm->arg = arg;
	if (loop_timer(fake.engine.loop, UINT64_MAX, vm_turn, vm, &vm->turn, ret_f)) {
		free(vm);
		return RC_NOMEM;
	}
	vm->next = vms;
	vms = vm;
	fake.live_vms++;
	*ret = vm;
	return RC_OK;
}

/* As a VM process that was taken over: what it sets on a descriptor holds for all that share its description. */
static void disks_mark(const struct engine_spec *spec)
{
	for (int pass = 0; pass < 2; pass++)
		for (size_t i = 0; i < spec->n_disks; i++) {
			int flags = spec->disks[i].read_only ? fcntl(spec->disks[i].fd, F_GETFL) : -1;

			if (flags < 0)
				continue;
			if (!pass && flags & O_NONBLOCK)
				fake.marked++;
			else if (pass)
				fcntl(spec->disks[i].fd, F_SETFL, flags | O_NONBLOCK);
		}
}

static enum rc fake_start(struct engine *e, const struct engine_spec *spec, struct engine_snapshot *snap,
			  engine_done_fn *done, engine_exit_fn *on_exit, void *arg, struct engine_vm **ret,
			  struct fault *ret_f)
{
	struct engine_vm *vm;
	char *free_place = process_find("");

	(void)e;
	if (fails() || !free_place || fake_runs(spec->id))
		return fault_set(ret_f, RC_SYS, 0, "fake start failed");
	if (vm_new(spec, on_exit, arg, &vm, ret_f))
		return RC_NOMEM;
	if (snap)
		fake.restores++;
	else
		fake.boots++;
	vm->bad = !snap && fake.bad_boots && fake.bad_boots--;
	vm->op = START;
	vm->done = done;
	snprintf(free_place, sizeof(processes[0]), "%s", spec->id);
	for (size_t i = 0; i < spec->n_disks; i++) {
		struct stat st;

		fake.disk_mib[i] = fstat(spec->disks[i].fd, &st) ? -1 : (int)(st.st_size >> 20);
	}
	disks_mark(spec);
	if (spec->log_fd >= 0 && write(spec->log_fd, "kernel log\n", 11) < 0)
		return RC_SYS;
	loop_timer_set(vm->turn, now_ms());
	*ret = vm;
	return RC_OK;
}

static enum rc fake_adopt(struct engine *e, const struct engine_spec *spec, engine_exit_fn *on_exit, void *arg,
			  struct engine_vm **ret, struct fault *ret_f)
{
	(void)e;
	if (!fake_runs(spec->id))
		return fault_set(ret_f, RC_ABSENT, 0, "no such process");
	return vm_new(spec, on_exit, arg, ret, ret_f);
}

static enum rc vm_op(struct engine_vm *vm, int op, engine_done_fn *done, struct fault *ret_f)
{
	if (vm->op || vm->gone || fails())
		return fault_set(ret_f, RC_AGAIN, 0, "fake operation refused");
	vm->op = op;
	vm->done = done;
	loop_timer_set(vm->turn, now_ms());
	return RC_OK;
}

static enum rc fake_pause(struct engine_vm *vm, engine_done_fn *done, struct fault *ret_f)
{
	return vm_op(vm, PAUSE, done, ret_f);
}

static enum rc fake_resume(struct engine_vm *vm, engine_done_fn *done, struct fault *ret_f)
{
	return vm_op(vm, RESUME, done, ret_f);
}

static enum rc fake_save(struct engine_vm *vm, int dirfd, engine_done_fn *done, struct fault *ret_f)
{
	int fd = openat(dirfd, "state", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	if (fd < 0)
		return fault_set(ret_f, RC_SYS, errno, "fake save");
	close(fd);
	fake.saves++;
	return vm_op(vm, SAVE, done, ret_f);
}

static enum rc fake_snapshot_map(struct engine *e, int dirfd, struct engine_snapshot **ret, struct fault *ret_f)
{
	(void)e;
	if (fake.refuse_snapshots || faccessat(dirfd, "state", F_OK, 0) < 0)
		return fault_set(ret_f, RC_STATE, 0, "fake snapshot is of another host");
	*ret = snapshot_new();
	return RC_OK;
}

static void fake_snapshot_free(struct engine_snapshot *s)
{
	if (!s)
		return;
	source_drop(&s->turn);
	fake.live_snapshots--;
	free(s);
}

static void snapshot_turn(void *arg)
{
	struct engine_snapshot *s = arg;
	bool bad = fake.damaged || fails();
	struct fault f;

	source_drop(&s->turn);
	fault_set(&f, RC_STATE, 0, "fake snapshot is damaged");
	s->done(s->arg, bad ? RC_STATE : RC_OK, bad ? &f : NULL);
}

static enum rc snapshot_later(struct engine_snapshot *s, engine_done_fn *done, void *arg, struct fault *ret_f)
{
	if (fails())
		return fault_set(ret_f, RC_SYS, 0, "fake snapshot is not read");
	s->done = done;
	s->arg = arg;
	return loop_timer(fake.engine.loop, now_ms(), snapshot_turn, s, &s->turn, ret_f);
}

static enum rc fake_snapshot_check(struct engine_snapshot *s, engine_done_fn *done, void *arg, struct fault *ret_f)
{
	fake.checks++;
	return snapshot_later(s, done, arg, ret_f);
}

static enum rc fake_snapshot_open(struct engine *e, int dirfd, engine_done_fn *done, void *arg, struct engine_snapshot **ret,
				  struct fault *ret_f)
{
	enum rc rc = fake_snapshot_map(e, dirfd, ret, ret_f);

	if (!rc && (rc = snapshot_later(*ret, done, arg, ret_f)))
		fake_snapshot_free(*ret), *ret = NULL;
	return rc;
}

static enum rc fake_snapshot_store(struct engine_snapshot *s, int dirfd, int base_dirfd, engine_done_fn *done, void *arg,
				   struct fault *ret_f)
{
	_cleanup_fd_ int fd = openat(dirfd, "state", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	if (fd < 0)
		return fault_set(ret_f, RC_SYS, errno, "fake store");
	fake.stores++;
	fake.stores_based += base_dirfd >= 0;
	return snapshot_later(s, done, arg, ret_f);
}

static void fake_stop(struct engine_vm *vm)
{
	vm->stopped = true;
	process_end(vm->id);
	loop_timer_set(vm->turn, now_ms());
}

static void fake_stat(struct engine_vm *vm, struct engine_stat *ret)
{
	(void)vm;
	*ret = (struct engine_stat){ .pid = 0, .pss_bytes = 12345, .cpu_us = 678 };
}

static void vm_drop(struct engine_vm *vm)
{
	for (struct engine_vm **at = &vms; *at; at = &(*at)->next)
		if (*at == vm) {
			*at = vm->next;
			break;
		}
	unborn_forget(vm);
	for (size_t i = 0; i < vm->n_unborn; i++)
		if (vm->unborn[i])
			vm->unborn[i]->born_of = NULL;
	source_drop(&vm->turn);
	fake.live_vms--;
	free(vm);
}

static void fake_engine_free(struct engine *e)
{
	(void)e;
	while (vms)
		vm_drop(vms);
}

static enum rc fake_disk_resized(struct engine_vm *vm, const char *serial, engine_done_fn *done, struct fault *ret_f)
{
	if (strncmp(serial, "spare", 5) != 0 && strcmp(serial, AGENT_ROOT_SERIAL) != 0)
		return fault_set(ret_f, RC_ABSENT, 0, "no disk '%s'", serial);
	fake.resizes++;
	return vm_op(vm, RESIZE, done, ret_f);
}

static enum rc fake_fork(struct engine_vm *parent, size_t n, const struct engine_spec specs[], void (*cut)(void *arg),
			 void *cut_arg, engine_done_fn *done, engine_exit_fn *on_exit, void *args[], struct engine_vm *rets[],
			 struct fault *ret_f)
{
	if (parent->op || parent->gone || fails())
		return fault_set(ret_f, RC_AGAIN, 0, "fake fork refused");
	parent->cut = cut;
	parent->cut_arg = cut_arg;
	for (size_t i = 0; i < n; i++) {
		if (vm_new(&specs[i], on_exit, args[i], &rets[i], ret_f))
			break; /* the rest is the caller's to notice */
		rets[i]->op = START;
		rets[i]->done = done;
		rets[i]->born_of = parent;
		parent->unborn[parent->n_unborn++] = rets[i];
	}
	parent->op = FORK;
	loop_timer_set(parent->turn, now_ms());
	return RC_OK;
}

static enum rc fake_take(struct engine_vm *vm, void (*cut)(void *arg), void *cut_arg, engine_done_fn *done,
			 struct engine_snapshot **ret, struct fault *ret_f)
{
	enum rc rc = vm_op(vm, TAKE, done, ret_f);

	if (rc)
		return rc;
	vm->cut = cut;
	vm->cut_arg = cut_arg;
	vm->taken = ret;
	return RC_OK;
}

static const struct engine_times *fake_times(struct engine_vm *vm)
{
	return &vm->times;
}

bool fake_paused(const char *id)
{
	for (struct engine_vm *vm = vms; vm; vm = vm->next)
		if (!strcmp(vm->id, id))
			return vm->paused;
	return false;
}

static struct engine_ops fake_ops = {
	.name = "fake", .overhead_mib = FAKE_OVERHEAD_MIB, .start = fake_start, .adopt = fake_adopt, .pause = fake_pause, .resume = fake_resume,
	.save = fake_save, .disk_resized = fake_disk_resized, .snapshot_open = fake_snapshot_open,
	.snapshot_map = fake_snapshot_map, .snapshot_check = fake_snapshot_check, .snapshot_store = fake_snapshot_store,
	.take = fake_take, .fork = fake_fork, .fork_go = fake_fork_go, .times = fake_times, .snapshot_free = fake_snapshot_free, .stop = fake_stop,
	.stat = fake_stat, .vm_free = vm_drop, .engine_free = fake_engine_free,
};

void fake_die(const char *id)
{
	process_end(id);
	for (struct engine_vm *vm = vms; vm; vm = vm->next)
		if (!strcmp(vm->id, id))
			loop_timer_set(vm->turn, now_ms());
}

/* --- network ---------------------------------------------------------------------------------------------------- */

enum rc net_init(const char *run_dir, struct fault *ret_f)
{
	(void)run_dir;
	(void)ret_f;
	return RC_OK;
}

static void net_fill(const char *id, struct net *ret)
{
	*ret = (struct net){ .ns_fd = -1, .tap_fd = -1, .mgmt_fd = -1 };
	snprintf(ret->id, sizeof(ret->id), "%s", id);
	ret->tcp_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	ret->dns_udp_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	ret->dns_tcp_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	fake.live_nets++;
}

enum rc net_create(const char *id, struct net *ret, struct fault *ret_f)
{
	if (fails())
		return fault_set(ret_f, RC_SYS, 0, "fake network failed");
	net_fill(id, ret);
	return RC_OK;
}

enum rc net_adopt(const char *id, struct net *ret, struct fault *ret_f)
{
	(void)ret_f;
	net_fill(id, ret);
	return RC_OK;
}

void net_destroy(struct net *net)
{
	fake.live_nets -= net->tcp_fd >= 0;
	close_fd(&net->tcp_fd);
	close_fd(&net->dns_udp_fd);
	close_fd(&net->dns_tcp_fd);
}

enum rc net_sweep(bool (*kept)(void *arg, const char *id), void *arg, struct fault *ret_f)
{
	(void)kept;
	(void)arg;
	(void)ret_f;
	return RC_OK;
}

enum rc net_dial(const struct net *net, int *ret_fd, struct fault *ret_f)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons((uint16_t)fake.agent_port),
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = fails() ? -1 : socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	(void)net;
	if (fd < 0)
		return fault_set(ret_f, RC_SYS, 0, "fake dial failed");
	if (connect(fd, (struct sockaddr *)&to, sizeof(to)) < 0 && errno != EINPROGRESS) {
		close(fd);
		return fault_set(ret_f, RC_SYS, errno, "connect");
	}
	*ret_fd = fd;
	return RC_OK;
}

/* --- agent ------------------------------------------------------------------------------------------------------ */

static struct connection {
	struct connection *next;
	int fd;
	struct source *io;
	size_t n;
	char line[65536];
} *connections;

static void connection_end(struct connection *c)
{
	for (struct connection **at = &connections; *at; at = &(*at)->next)
		if (*at == c) {
			*at = c->next;
			break;
		}
	source_drop(&c->io);
	close(c->fd);
	free(c);
}

static void control_note(const char *line)
{
	const char *op = strstr(line, "\"op\":\"");
	size_t n = strlen(fake.control_ops);

	if (op)
		snprintf(fake.control_ops + n, sizeof(fake.control_ops) - n, "%.*s ", (int)strcspn(op + 6, "\""), op + 6);
}

static void answer(struct connection *c)
{
	static char many[200000];
	const char *text = "{\"ok\":true}\n";

	fake.lines++;
	control_note(c->line);
	memcpy(fake.last_line, c->line, c->n);
	fake.last_line[c->n] = '\0';
	if (fake.agent_mode == AGENT_SILENT)
		return;
	if (fake.agent_mode == AGENT_ERROR || fails())
		text = "{\"error\":{\"code\":\"EIO\",\"message\":\"\\u0007rm -rf\"}}\n";
	else if (fake.agent_mode == AGENT_GARBAGE)
		text = "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\n";
	else if (fake.agent_mode == AGENT_LONG)
		text = memset(many, 'x', sizeof(many) - 1);
	else if (fake.agent_mode == AGENT_CLOSES)
		text = "";
	(void)!write(c->fd, text, strlen(text));
	connection_end(c);
}

static void on_line(void *arg, uint32_t events)
{
	struct connection *c = arg;
	ssize_t n = read(c->fd, c->line + c->n, sizeof(c->line) - 1 - c->n);

	(void)events;
	if (n <= 0) {
		connection_end(c);
		return;
	}
	c->n += (size_t)n;
	if (c->line[c->n - 1] == '\n') {
		c->line[--c->n] = '\0';
		answer(c);
	}
}

static void on_connection(void *arg, uint32_t events)
{
	struct connection *c = __real_calloc(1, sizeof(*c));
	bool armed = fail_armed;

	(void)arg;
	(void)events;
	c->fd = accept4(fake.agent_fd, NULL, NULL, SOCK_CLOEXEC);
	fail_armed = false; /* the agent's own bookkeeping is not under test */
	if (c->fd < 0 || loop_fd(fake.engine.loop, c->fd, EPOLLIN, on_line, c, &c->io, NULL))
		abort();
	c->next = connections;
	connections = c;
	fail_armed = armed;
}

void fake_open(struct loop *loop)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t n = sizeof(at);

	fake_ops.copies_charged = fake_copies_charged;
	fake.engine = (struct engine){ .ops = &fake_ops, .loop = loop };
	snprintf(fake.engine.shape, sizeof(fake.engine.shape), "%s", fake_shape);
	fake.agent_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (bind(fake.agent_fd, (struct sockaddr *)&at, sizeof(at)) < 0 || listen(fake.agent_fd, 64) < 0 ||
	    getsockname(fake.agent_fd, (struct sockaddr *)&at, &n) < 0 ||
	    loop_fd(loop, fake.agent_fd, EPOLLIN, on_connection, NULL, &fake.agent_source, NULL))
		abort();
	fake.agent_port = ntohs(at.sin_port);
}

void fake_close(void)
{
	source_drop(&fake.agent_source);
	while (connections)
		connection_end(connections);
	close_fd(&fake.agent_fd);
	fake_engine_free(&fake.engine);
}

void fake_reset(void)
{
	memset(processes, 0, sizeof(processes));
	memset(&fake, 0, sizeof(fake));
	fake_fail(0);
}
