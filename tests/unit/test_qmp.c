/* SPDX-License-Identifier: Apache-2.0 */
#include "base/cleanup.h"
#include "base/fd.h"
#include "tests/lib/check.h"
#include "vmm/engines/qemu/vm.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

static enum rc parse(const char *line, struct qmp_message *m)
{
	struct fault f;

	return qmp_parse(line, strlen(line), m, &f);
}

TEST(messages)
{
	struct qmp_message m;

	REQUIRE(!parse("{\"return\": {\"running\": true}, \"id\": 7}\r", &m));
	CHECK(m.kind == QMP_RETURN && m.id == 7 && m.body);
	qmp_message_free(&m);
	REQUIRE(!parse("{\"error\": {\"desc\": \"a\\u001bb\"}, \"id\": 1}", &m));
	CHECK(m.kind == QMP_ERROR);
	CHECK_STR(m.text, "a?b");
	qmp_message_free(&m);
	REQUIRE(!parse("{\"event\": \"STOP\"}", &m));
	CHECK_STR(m.text, "STOP");
	qmp_message_free(&m);
	CHECK_EQ(parse("{\"return\": {}}", &m), RC_PROTO);
	CHECK_EQ(parse("{\"return\": {}, \"id\": -1}", &m), RC_PROTO);
	CHECK_EQ(parse("{\"return\": {}, \"id\": \"1\"}", &m), RC_PROTO);
	CHECK_EQ(parse("{\"id\": 1}", &m), RC_PROTO);
	CHECK_EQ(parse("[]", &m), RC_PROTO);
	CHECK_EQ(parse("", &m), RC_PROTO);
	CHECK_EQ(parse("{\"id\": 1, \"return\": 1} x", &m), RC_PROTO);
	CHECK_EQ(parse("{\"id\":1,\"return\":[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]}", &m), RC_PROTO);
}

TEST(long_message)
{
	static char line[QMP_LINE_MAX + 10];
	struct qmp_message m;
	struct fault f;

	memset(line, ' ', sizeof(line));
	CHECK_EQ(qmp_parse(line, sizeof(line), &m, &f), RC_LIMIT);
}

TEST(address)
{
	struct fault f;
	uint64_t v = 0;

	CHECK(!gpa2hva_parse("Host virtual address for 0x0 (ram) is 0x7f1200000000\r\n", &v, &f));
	CHECK(v == 0x7f1200000000);
	CHECK_EQ(gpa2hva_parse("Host virtual address for 0x0 (ram) is 0x7f1200000001\r\n", &v, &f), RC_PROTO);
	CHECK_EQ(gpa2hva_parse("Host virtual address for 0x0 (ram) is 0xffff120000000000\r\n", &v, &f), RC_PROTO);
	CHECK_EQ(gpa2hva_parse("Host virtual address for 0x0 (ram) is 0x", &v, &f), RC_PROTO);
	CHECK_EQ(gpa2hva_parse("Memory at 0x0 is not RAM\r\n", &v, &f), RC_PROTO);
}

/* --- the client against a QEMU that says what it wants ---- */
static struct {
	int ready, events, replies, failures, closed;
	struct fault fault;
} seen;

static void on_ready(void *arg, struct json_object *value, const struct fault *f)
{
	(void)arg, (void)value, (void)f;
	seen.ready++;
}

static void on_reply(void *arg, struct json_object *value, const struct fault *f)
{
	(void)arg, (void)value;
	seen.replies++;
	seen.failures += f != NULL;
}

static void on_event(void *arg, const char *name, struct json_object *data)
{
	(void)arg, (void)name, (void)data;
	seen.events++;
}

static void on_closed(void *arg, const struct fault *f)
{
	(void)arg;
	seen.closed++;
	seen.fault = *f;
}

struct talk {
	struct loop *loop;
	struct qmp *q;
	int peer;
};

static bool talk_start(struct talk *t)
{
	int fds[2];
	struct fault f;

	memset(&seen, 0, sizeof(seen));
	return !socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) && (t->peer = fds[1]) >= 0 && !loop_new(&t->loop, &f) &&
	       !qmp_new(t->loop, fds[0], on_ready, on_event, on_closed, t, &t->q, &f);
}

static void talk_say(struct talk *t, const char *text)
{
	CHECK(write(t->peer, text, strlen(text)) == (ssize_t)strlen(text));
	loop_once(t->loop, 0, NULL);
}

static void talk_end(struct talk *t)
{
	qmp_free(t->q);
	loop_free(t->loop);
	close(t->peer);
}

TEST(client_order)
{
	struct talk t;
	struct fault f;
	char line[256];

	REQUIRE(talk_start(&t));
	REQUIRE(!fd_read_line(t.peer, line, sizeof(line), now_ms() + 1000, &f));
	CHECK_STR(line, "{\"execute\":\"qmp_capabilities\",\"id\":0}");
	CHECK(!qmp_send(t.q, "stop", NULL, -1, on_reply, &f));
	CHECK(!qmp_send(t.q, "migrate", "{\"uri\":\"fd:x\"}", -1, on_reply, &f));
	talk_say(&t, "{\"QMP\":{}}\n{\"return\":{},\"id\":0}\n{\"event\":\"STOP\"}\n{\"retu");
	CHECK_EQ(seen.ready, 1);
	CHECK_EQ(seen.events, 1);
	CHECK_EQ(seen.replies, 0);
	talk_say(&t, "rn\":{},\"id\":1}\r\n{\"error\":{\"desc\":\"no\"},\"id\":2}\n");
	CHECK_EQ(seen.replies, 2);
	CHECK_EQ(seen.failures, 1);
	CHECK_EQ(seen.closed, 0);
	talk_end(&t);
}

/* Each of these ends the connection, once. */
TEST(client_breaches)
{
	static const char *const breaches[] = {
		"nonsense\n", "{\"QMP\":{}}\n{\"QMP\":{}}\n", "{\"return\":{},\"id\":1}\n", "{\"return\":{},\"id\":0}\n{\"return\":{},\"id\":0}\n",
		"{\"return\":{}}\n",
	};

	for (size_t i = 0; i < ARRAY_SIZE(breaches); i++) {
		struct talk t;

		REQUIRE(talk_start(&t));
		talk_say(&t, breaches[i]);
		talk_say(&t, "x\n");
		CHECK_EQ(seen.closed, 1);
		CHECK_EQ(seen.fault.rc, RC_PROTO);
		talk_end(&t);
	}
}

TEST(client_bounds)
{
	static char flood[65536];
	struct talk t;
	struct fault f;

	REQUIRE(talk_start(&t));
	for (int i = 1; i < QMP_PENDING_MAX; i++)
		CHECK(!qmp_send(t.q, "stop", NULL, -1, on_reply, &f));
	CHECK_EQ(qmp_send(t.q, "stop", NULL, -1, on_reply, &f), RC_AGAIN);
	/* a line without end */
	memset(flood, 'a', sizeof(flood) - 1);
	for (int i = 0; i < 40 && !seen.closed; i++) {
		(void)!send(t.peer, flood, sizeof(flood) - 1, MSG_DONTWAIT);
		for (int k = 0; k < 8; k++)
			loop_once(t.loop, 0, &f);
	}
	CHECK_EQ(seen.closed, 1);
	CHECK_EQ(seen.fault.rc, RC_LIMIT);
	talk_end(&t);
}

TEST(client_end)
{
	struct talk t;

	REQUIRE(talk_start(&t));
	CHECK_EQ(shutdown(t.peer, SHUT_RDWR), 0);
	loop_once(t.loop, 100, NULL);
	CHECK_EQ(seen.closed, 1);
	CHECK_EQ(seen.fault.rc, RC_CLOSED);
	talk_end(&t);
}

/* --- what a saved machine fits to --------------------------------------------------------------------------------- */

static const struct engine_spec shaped = { .id = "s", .memory_mib = 512, .vcpus = 2, .cmdline = "quiet", .kernel_fd = 9, .initrd_fd = 10,
					   .disks = { { .serial = "image", .read_only = true }, { .serial = "overlay" } }, .n_disks = 2,
					   .nics = { { .mac = "02:00:00:00:00:01" }, { .mac = "02:00:00:00:00:02" } }, .n_nics = 2 };

static bool alike(const struct args *a, const struct args *b, bool all)
{
	_cleanup_buf_ struct buf x = BUF_INIT(65536), y = BUF_INIT(65536);

	CHECK(!args_text(a, all, &x, NULL) && !args_text(b, all, &y, NULL));
	return buf_len(&x) == buf_len(&y) && !memcmp(buf_data(&x), buf_data(&y), buf_len(&x));
}

/* Whatever of QEMU's arguments somebody changes, the templates are other ones; captures only where it concerns the machine. */
TEST(another_argument_is_another_shape)
{
	static const char *const host[] = { "-display", "-L", "-sandbox", "-chardev", "-mon", "-add-fd" };
	struct args_in in = { .spec = &shaped, .state_fd = -1, .described = true };
	_cleanup_args_ struct args a = { .n = 0 }, b = { .n = 0 };
	unsigned int machine = 0;

	REQUIRE(!args_build(&in, &a, NULL) && !args_build(&in, &b, NULL));
	CHECK(alike(&a, &b, true) && alike(&a, &b, false));
	for (size_t i = 0; i < a.n; i++) {
		char *kept = b.v[i], other[] = "other";
		bool of_host = false;

		for (size_t k = 0; k < ARRAY_SIZE(host); k++)
			of_host = of_host || !strcmp(kept, host[k]) || (i && !strcmp(b.v[i - 1], host[k]));
		b.v[i] = other;
		CHECK(!alike(&a, &b, true));
		if (!of_host)
			CHECK(!alike(&a, &b, false));
		else if (i && strcmp(kept, a.v[i]) == 0 && a.v[i][0] != '-')
			CHECK(alike(&a, &b, false));
		machine += !of_host;
		b.v[i] = kept;
	}
	CHECK(machine > 30);
	/* One more at the end. */
	b.n--;
	CHECK(!alike(&a, &b, true) && !alike(&a, &b, false));
	b.n++;
}

TEST(a_shape_is_of_the_machine_and_the_engine)
{
	char one[QEMU_SHAPE_MAX], two[QEMU_SHAPE_MAX], engine[SHAPE_MAX], other[SHAPE_MAX];
	struct engine_spec s = shaped;

	REQUIRE(!args_shape(&s, false, one, sizeof(one), NULL));
	/* Where it runs does not matter, nor how its kernel was started. */
	snprintf(s.id, sizeof(s.id), "another");
	s.uid = 77;
	s.kernel_fd = s.initrd_fd = -1;
	s.cmdline = NULL;
	s.disks[0].fd = 40;
	s.nics[1].tap_fd = 50;
	REQUIRE(!args_shape(&s, false, two, sizeof(two), NULL));
	CHECK(!strcmp(one, two));
#define OTHER(change)                                                                  \
	do {                                                                           \
		s = shaped;                                                            \
		change;                                                                \
		CHECK(!args_shape(&s, false, two, sizeof(two), NULL) && strcmp(one, two)); \
	} while (0)
	OTHER(s.memory_mib++);
	OTHER(s.vcpus++);
	OTHER(s.n_disks--);
	OTHER(s.disks[1].read_only = true);
	OTHER(s.disks[1].serial[0] = 'x');
	OTHER(s.n_nics--);
	OTHER(s.nics[0].mac[1] = '6');
	s = shaped;
	CHECK(!args_shape(&s, true, two, sizeof(two), NULL) && strcmp(one, two));
	CHECK_EQ(args_shape(&s, true, two, 40, NULL), RC_LIMIT);
	REQUIRE(!args_engine_shape("QEMU 1", false, engine, NULL));
	CHECK(!args_engine_shape("QEMU 1", false, other, NULL) && !strcmp(engine, other));
	CHECK(!args_engine_shape("QEMU 2", false, other, NULL) && strcmp(engine, other));
	CHECK(!args_engine_shape("QEMU 1", true, other, NULL) && strcmp(engine, other));
}

TEST(another_program_is_another_shape)
{
	char one[SHAPE_MAX], two[SHAPE_MAX];
	int fd;

	REQUIRE(!memory_file("program", 0, &fd, NULL));
	CHECK_EQ(shape_of_file(fd, one, NULL), RC_INVALID);
	CHECK_EQ(write(fd, "program", 7), 7);
	CHECK(!shape_of_file(fd, one, NULL) && strlen(one) == SHAPE_MAX - 1);
	CHECK(!shape_of("program", 7, two, NULL) && !strcmp(one, two));
	CHECK_EQ(pwrite(fd, "P", 1, 0), 1);
	CHECK(!shape_of_file(fd, two, NULL) && strcmp(one, two));
	close(fd);
}

static char commands[4096]; /* since machine_start() */

static const char *seen_commands(struct talk *t)
{
	size_t n = strlen(commands);
	ssize_t k = recv(t->peer, commands + n, sizeof(commands) - 1 - n, MSG_DONTWAIT);

	commands[n + (k > 0 ? (size_t)k : 0)] = '\0';
	return commands;
}

/* --- a machine whose QEMU was taken over: what it says, and when, is its own idea ---- */

#define MIB 64

static struct {
	int done, cuts, exits;
	enum rc rc;
} told;

static void on_done(void *arg, enum rc rc, const struct fault *f)
{
	(void)arg, (void)f;
	told.done++;
	told.rc = rc;
}

static void on_cut(void *arg)
{
	(void)arg;
	told.cuts++;
}

static void on_exit_of_child(void *arg, const char *reason)
{
	(void)arg, (void)reason;
	told.exits++;
}

struct machine {
	struct engine_ops ops;
	struct qemu e;
	struct engine_vm vm;
	struct talk t;
	uint8_t *mem;
	char address[20];
	int dirfd;
	char dir[40];
};

/* Its "process" is this one, its memory some of ours. */
static bool machine_start(struct machine *m)
{
	int fds[2];

	memset(m, 0, sizeof(*m));
	memset(&told, 0, sizeof(told));
	commands[0] = '\0';
	strcpy(m->dir, "/tmp/nbqemu.XXXXXX");
	m->dirfd = mkdtemp(m->dir) ? open(m->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
	m->mem = mmap(NULL, MIB << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (m->dirfd < 0 || m->mem == MAP_FAILED || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0 ||
	    loop_new(&m->t.loop, NULL))
		return false;
	memset(m->mem, 7, MIB << 20);
	snprintf(m->address, sizeof(m->address), "0x%llx", (unsigned long long)(uintptr_t)m->mem);
	m->t.peer = fds[1];
	m->ops.name = "qemu-tcg";
	m->e = (struct qemu){ .base = { .ops = &m->ops, .loop = m->t.loop }, .version = "x" };
	m->vm = (struct engine_vm){ .e = &m->e, .memory_mib = MIB, .dirfd = -1, .process = PROCESS_INIT, .id = "m" };
	m->vm.process.pid = getpid();
	m->e.vms = &m->vm;
	return !memory_file("ram", MIB << 20, &m->vm.ram_fd, NULL) && !memory_seal(m->vm.ram_fd, NULL) &&
	       !qmp_new(m->t.loop, fds[0], vm_on_greeting, vm_on_event, vm_on_closed, &m->vm, &m->vm.qmp, NULL);
}

static void machine_end(struct machine *m)
{
	char cmd[80];

	save_free(&m->vm);
	source_drop(&m->vm.timer);
	qmp_free(m->vm.qmp);
	close(m->vm.ram_fd);
	loop_free(m->t.loop);
	close(m->t.peer);
	close(m->dirfd);
	munmap(m->mem, MIB << 20);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", m->dir);
	CHECK(!system(cmd));
}

static void turns(struct machine *m, uint64_t ms, const int *until, int is)
{
	for (uint64_t end = now_ms() + ms; now_ms() < end && !(until && *until >= is);)
		loop_once(m->t.loop, 10, NULL);
}

static int snapshot_dir(const struct machine *m, const char *name)
{
	return mkdirat(m->dirfd, name, 0700) ? -1 : openat(m->dirfd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static void say_address(struct machine *m, int id, const char *address)
{
	char line[200];

	snprintf(line, sizeof(line), "{\"return\":\"Host virtual address for 0x0 (ram) is %s\\r\\n\",\"id\":%d}\n", address, id);
	talk_say(&m->t, line);
}

/* Once it has asked. */
static void answer_status(struct machine *m, int id, const char *status)
{
	char asked[64], line[96];

	snprintf(asked, sizeof(asked), "\"query-status\",\"id\":%d}", id);
	for (uint64_t end = now_ms() + 20000; now_ms() < end && !strstr(seen_commands(&m->t), asked);)
		loop_once(m->t.loop, 10, NULL);
	CHECK(strstr(seen_commands(&m->t), asked));
	snprintf(line, sizeof(line), "{\"return\":{\"status\":\"%s\"},\"id\":%d}\n", status, id);
	talk_say(&m->t, line);
}

/* The answers to a save that failed come when the next one is under way: each would begin a copy, of which only the last is known. */
TEST(answers_that_were_held_back_begin_nothing)
{
	struct machine m;
	struct fault f;
	struct stat st;
	int first, second;

	REQUIRE(machine_start(&m));
	first = snapshot_dir(&m, "first");
	second = snapshot_dir(&m, "second");
	m.vm.state = VM_PAUSED;
	talk_say(&m.t, "{\"QMP\":{}}\n{\"return\":{},\"id\":0}\n");
	REQUIRE(!qemu_save(&m.vm, first, on_done, &f));
	talk_say(&m.t, "{\"event\":\"MIGRATION\",\"data\":{\"status\":\"failed\"}}\n");
	CHECK_EQ(told.done, 1);
	CHECK_EQ(told.rc, RC_SYS);
	REQUIRE(!qemu_save(&m.vm, second, on_done, &f));
	say_address(&m, 1, m.address);
	talk_say(&m.t, "{\"return\":{},\"id\":2}\n");
	turns(&m, 300, NULL, 0);
	CHECK(!fstatat(second, QEMU_MEMORY_FILE, &st, 0) && !st.st_size);
	say_address(&m, 3, "0x10000");
	talk_say(&m.t, "{\"return\":{},\"id\":4}\n{\"event\":\"MIGRATION\",\"data\":{\"status\":\"completed\"}}\n");
	talk_say(&m.t, "{\"return\":{},\"id\":5}\n");
	answer_status(&m, 6, "postmigrate");
	turns(&m, 20000, &told.done, 2);
	CHECK_EQ(told.done, 2);
	CHECK_EQ(told.rc, RC_GUEST); /* it has written no state */
	CHECK(!m.vm.save);
	/* A second copy would end now, and whatever belongs to it is gone. */
	turns(&m, 1500, NULL, 0);
	CHECK_EQ(told.done, 2);
	close(first);
	close(second);
	machine_end(&m);
}

/* Whoever cuts the disks starts programs for it, each of which has one place. */
TEST(disks_are_cut_once_however_often_the_state_is_complete)
{
	static const char completed[] = "{\"event\":\"MIGRATION\",\"data\":{\"status\":\"completed\"}}\n";
	struct engine_spec spec = { .id = "child", .memory_mib = MIB, .vcpus = 1, .kernel_fd = -1, .initrd_fd = -1, .log_fd = -1 };
	struct engine_vm *child = NULL;
	void *args[1] = { NULL };
	struct machine m;
	struct fault f;

	REQUIRE(machine_start(&m));
	spec.vm_dirfd = m.dirfd;
	REQUIRE(!args_shape(&spec, false, m.vm.shape, sizeof(m.vm.shape), &f));
	m.vm.state = VM_RUNNING;
	talk_say(&m.t, "{\"QMP\":{}}\n{\"return\":{},\"id\":0}\n");
	REQUIRE(!qemu_fork(&m.vm, 1, &spec, on_cut, NULL, on_done, on_exit_of_child, args, &child, &f));
	say_address(&m, 1, m.address);
	/* getfd, stop, migrate; answered before they are asked they would end the connection. */
	for (int id = 2; id <= 4; id++) {
		char line[64];

		snprintf(line, sizeof(line), "{\"return\":{},\"id\":%d}\n", id);
		for (uint64_t end = now_ms() + 20000; now_ms() < end && !strstr(seen_commands(&m.t), id == 2 ? "getfd" : "migrate\"");)
			loop_once(m.t.loop, 10, NULL);
		talk_say(&m.t, line);
	}
	talk_say(&m.t, completed);
	answer_status(&m, 5, "finish-migrate"); /* it could not go on yet */
	turns(&m, 300, NULL, 0);
	CHECK_EQ(told.cuts, 0);
	answer_status(&m, 6, "postmigrate");
	turns(&m, 20000, &told.cuts, 1);
	CHECK_EQ(told.cuts, 1);
	talk_say(&m.t, completed);
	talk_say(&m.t, completed);
	answer_status(&m, 7, "postmigrate");
	answer_status(&m, 8, "postmigrate");
	turns(&m, 300, NULL, 0);
	CHECK_EQ(told.cuts, 1);
	fault_set(&f, RC_STATE, 0, "enough");
	qemu_fork_go(&m.vm, &f);
	CHECK_EQ(told.exits, 1);
	qemu_vm_free(child);
	machine_end(&m);
}

/* Of a listener that its process has made short: the broker does not wait for a place. */
TEST(a_process_that_takes_no_connections_holds_nobody_up)
{
	char path[] = "/tmp/nbqemu.XXXXXX";
	int dirfd = mkdtemp(path) ? open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1, listener, fds[8], n = 0;
	enum rc rc = RC_OK;
	struct fault f;

	REQUIRE(dirfd >= 0 && !process_listen(dirfd, QEMU_SOCKET, SOCK_STREAM, &listener, &f));
	CHECK(!listen(listener, 0));
	alarm(30);
	while (!rc && n < 8)
		if (!(rc = process_connect(dirfd, QEMU_SOCKET, SOCK_STREAM, &fds[n], &f)))
			n++;
	alarm(0);
	CHECK_EQ(rc, RC_AGAIN);
	fds_close(fds, (size_t)n);
	close(listener);
	unlinkat(dirfd, QEMU_SOCKET, 0);
	close(dirfd);
	rmdir(path);
}

TEST(last_words_are_plain)
{
	struct process p = PROCESS_INIT;
	char why[160];
	int fds[2];

	REQUIRE(!pipe(fds));
	CHECK(write(fds[1], "first\na\x1b[2J\xc2\x9b" "b\n", 15) == 15);
	p.err_fd = fds[0];
	process_last_words(&p, 0, why, sizeof(why));
	CHECK_STR(why, "a?[2J??b");
	close(fds[0]);
	close(fds[1]);
}

/* A process is told which of its pages there are, but not where they are, whoever asks for it. */
TEST(a_page_map_has_no_addresses)
{
	static uint8_t page[8192] __attribute__((aligned(4096)));
	off_t at = (off_t)((uintptr_t)page / 4096 * 8);
	struct process p = PROCESS_INIT;
	uint64_t entry = 0, plain = 0;
	int fd, direct;
	char c;
	int fds[2];

	page[0] = 1;
	REQUIRE(!pipe(fds));
	p.pid = fork();
	if (!p.pid) {
		close(fds[1]);
		page[0] = 2; /* its own now */
		_exit(read(fds[0], &c, 1) != 0);
	}
	p.pidfd = pidfd_open(p.pid, 0);
	REQUIRE(p.pid > 0 && p.pidfd >= 0);
	fd = process_pagemap(&p);
	REQUIRE(fd >= 0);
	CHECK_EQ(pread(fd, &entry, 8, at), 8);
	CHECK(entry >> 63 && !(entry & ((1ull << 55) - 1)));
	close(fd);
	/* As this program sees it otherwise: without the right to addresses nothing was shown above. */
	direct = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	CHECK_EQ(pread(direct, &plain, 8, at), 8);
	if (!(plain & ((1ull << 55) - 1)))
		puts("  this program is shown no addresses in any case");
	close(direct);
	close(fds[1]);
	CHECK_EQ(waitpid(p.pid, NULL, 0), p.pid);
	/* Its pid may be another process's by now. */
	CHECK_EQ(process_pagemap(&p), -1);
	p.pid = getpid();
	CHECK_EQ(process_pagemap(&p), -1);
	close(p.pidfd);
	p.pidfd = -1;
	CHECK_EQ(process_pagemap(&p), -1);
}

CHECK_MAIN()
