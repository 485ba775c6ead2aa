/* SPDX-License-Identifier: Apache-2.0 */
/* Captures and forks: the broker with a fake engine, network and agent. */
#include "tests/unit/broker_bed.h"
#include "vmm/broker/charge.h"

static struct broker_vm_captured captured;
static struct broker_vm_forked forked;

static enum rc capture_send(const char *id, const char *name)
{
	struct broker_vm_capture q;

	snprintf(q.id, sizeof(q.id), "%s", id);
	snprintf(q.name, sizeof(q.name), "%s", name);
	return ask_send(client, BROKER_VM_CAPTURE, (message_put_fn *)broker_vm_capture_put, &q);
}

static enum rc capture_answer(void)
{
	return ask_receive(client, BROKER_VM_CAPTURE, (message_get_fn *)broker_vm_captured_get, &captured);
}

static enum rc capture(const char *id, const char *name)
{
	enum rc rc = capture_send(id, name);

	return rc ? rc : capture_answer();
}

static enum rc uncapture(const char *name)
{
	struct broker_capture_name q;

	snprintf(q.name, sizeof(q.name), "%s", name);
	return ASK(CAPTURE_DELETE, broker_capture_name, &q, broker_none, &none);
}

static enum rc create_from(const char *id, const char *name)
{
	struct broker_vm_create q = create_request(id, 0);
	struct broker_vm_created created;

	snprintf(q.capture, sizeof(q.capture), "%s", name);
	return ASK(VM_CREATE, broker_vm_create, &q, broker_vm_created, &created);
}

static enum rc fork_send(const char *id, size_t n, const char *const names[])
{
	static const uint8_t policy[] = "nestbox-policy 1\n", env[] = "A=1\0B=2";
	static uint8_t rows[BROKER_CHILDREN_MAX];
	struct broker_vm_fork q = { .n = (uint32_t)n, .children = rows };
	struct wire w;

	snprintf(q.id, sizeof(q.id), "%s", id);
	wire_init(&w, rows, sizeof(rows));
	for (size_t i = 0; i < n; i++) {
		struct broker_fork_child child = { .hostname = "child", .policy = policy, .policy_n = sizeof(policy) - 1,
						   .env = env, .env_n = sizeof(env) };

		snprintf(child.id, sizeof(child.id), "%s", names[i]);
		broker_fork_child_put(&w, &child);
	}
	q.children_n = wire_len(&w);
	return ask_send(client, BROKER_VM_FORK, (message_put_fn *)broker_vm_fork_put, &q);
}

static enum rc fork_answer(void)
{
	return ask_receive(client, BROKER_VM_FORK, (message_get_fn *)broker_vm_forked_get, &forked);
}

#define FORK(id, ...)                                                            \
	({                                                                       \
		const char *const names_[] = { __VA_ARGS__ };                    \
		enum rc rc_ = fork_send(id, ARRAY_SIZE(names_), names_);         \
		rc_ ? rc_ : fork_answer();                                       \
	})

static enum rc pause_op(uint16_t op, const char *id)
{
	struct broker_vm_id q;

	snprintf(q.id, sizeof(q.id), "%s", id);
	return ask_on(client, op, (message_put_fn *)broker_vm_id_put, &q, NULL, NULL);
}

static void ready(void)
{
	setup();
	UNTIL(fake.live_snapshots == 1 && !b->n_machines);
}

/* A file of the machine's or the capture's disk, made to be told from others. */
static void disk_mark(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	CHECK(fd >= 0 && pwrite(fd, text, strlen(text), 1 << 20) == (ssize_t)strlen(text));
	close(fd);
}

static bool disk_marked(const char *path, const char *text)
{
	char got[32] = "";
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : pread(fd, got, strlen(text), 1 << 20);

	close_fd(&fd);
	return n == (ssize_t)strlen(text) && !strcmp(got, text);
}

static void captures_clear(void)
{
	struct broker_cursor q = { "" };
	struct broker_capture_list list;
	struct broker_capture_row row;
	struct wire w;

	for (;;) {
		CHECK_EQ(ASK(CAPTURE_LIST, broker_cursor, &q, broker_capture_list, &list), RC_OK);
		if (!list.n)
			return;
		wire_init(&w, (void *)(uintptr_t)list.rows, list.rows_n);
		broker_capture_row_get(&w, &row);
		REQUIRE(uncapture(row.name) == RC_OK);
	}
}

TEST(capture_is_made_and_started_from)
{
	struct broker_cursor cursor = { "" };
	struct broker_capture_list list;
	struct broker_capture_row row;
	unsigned int restores;
	struct wire w;

	ready();
	CHECK_EQ(create("p", 0), RC_OK);
	disk_mark("state/vms/p/overlay", "of the parent");
	CHECK_EQ(capture("p", "c-1"), RC_OK);
	CHECK(!fake_paused("p"));
	CHECK_EQ(vm_stat_of("p").state, BROKER_VM_RUNNING);
	CHECK_EQ(vm_kill("p"), RC_OK);
	restores = fake.restores;
	CHECK_EQ(create_from("x", "c-1"), RC_OK);
	CHECK_EQ(fake.restores, restores + 1);
	CHECK(strstr(fake.last_line, "\"op\":\"identity\"") != NULL);
	CHECK(disk_marked("state/vms/x/overlay", "of the parent"));
	CHECK_EQ(ASK(CAPTURE_LIST, broker_cursor, &cursor, broker_capture_list, &list), RC_OK);
	CHECK_EQ(list.n, 1);
	wire_init(&w, (void *)(uintptr_t)list.rows, list.rows_n);
	broker_capture_row_get(&w, &row);
	CHECK(wire_done(&w));
	CHECK_STR(row.name, "c-1");
	CHECK(row.bytes && row.bytes == captured.bytes && row.memory_mib == 1024 && row.created_ms && row.last_used_ms);
	captures_clear();
	CHECK_EQ(create_from("y", "c-1"), RC_ABSENT);
	teardown();
}

/* One that was kept, or came from what was kept, is stored as what differs; each capture's memory is read once before its first use. */
TEST(capture_has_a_base_and_is_checked)
{
	unsigned int before;

	ready();
	CHECK_EQ(create("p", 0), RC_OK);
	before = fake.stores_based;
	CHECK_EQ(capture("p", "c-1"), RC_OK);
	CHECK_EQ(fake.stores_based, before);
	CHECK_EQ(capture("p", "c-1"), RC_OK);
	CHECK_EQ(fake.stores_based, before + 1);
	before = fake.checks;
	CHECK_EQ(create_from("x", "c-1"), RC_OK);
	CHECK_EQ(fake.checks, before); /* it was written a moment ago */
	CHECK_EQ(capture("x", "c-2"), RC_OK);
	CHECK_EQ(fake.stores_based, 2);
	broker_down();
	broker_up();
	CHECK_EQ(create_from("y", "c-1"), RC_OK);
	CHECK_EQ(fake.checks, before + 1);
	CHECK_EQ(vm_kill("y"), RC_OK);
	CHECK_EQ(create_from("y", "c-1"), RC_OK);
	CHECK_EQ(fake.checks, before + 1);
	fake.damaged = true;
	CHECK_EQ(create_from("w", "c-2"), RC_STATE);
	CHECK_EQ(fake.checks, before + 2);
	fake.damaged = false;
	/* Another file of that name: looked at again. */
	REQUIRE(!system("echo other > state/captures/c-1/machine/state"));
	CHECK_EQ(create_from("w", "c-1"), RC_OK);
	CHECK_EQ(fake.checks, before + 3);
	captures_clear();
	teardown();
}

TEST(capture_with_a_name_that_is_taken_replaces_it)
{
	ready();
	CHECK_EQ(create("p", 0), RC_OK);
	disk_mark("state/vms/p/overlay", "first");
	CHECK_EQ(capture("p", "c"), RC_OK);
	CHECK_EQ(create_from("x", "c"), RC_OK);
	disk_mark("state/vms/p/overlay", "other");
	CHECK_EQ(capture("p", "c"), RC_OK);
	CHECK_EQ(files_below("state/captures"), 1);
	CHECK(access("state/captures/.c", F_OK) < 0);
	CHECK_EQ(create_from("y", "c"), RC_OK);
	CHECK(disk_marked("state/vms/x/overlay", "first"));
	CHECK(disk_marked("state/vms/y/overlay", "other"));
	captures_clear();
	teardown();
}

TEST(captures_that_are_refused)
{
	struct broker_vm_create q = create_request("x", 0);
	struct broker_vm_created created;

	ready();
	CHECK_EQ(create("p", 0), RC_OK);
	CHECK_EQ(capture("nobody", "c"), RC_ABSENT);
	CHECK_EQ(capture("p", ""), RC_INVALID);
	CHECK_EQ(capture("p", "../c"), RC_INVALID);
	CHECK_EQ(capture("p", "C"), RC_INVALID);
	CHECK_EQ(capture("p", "c"), RC_OK);
	config.captures_max = 1;
	CHECK_EQ(capture("p", "d"), RC_LIMIT);
	CHECK_EQ(capture("p", "c"), RC_OK);
	config.captures_max = 256;
	disk_mark("state/vms/p/overlay", "much");
	CHECK_EQ(truncate("state/vms/p/overlay", 0), 0);
	config.captures_mib = 1;
	CHECK_EQ(truncate("state/vms/p/overlay", 512 << 20), 0);
	for (off_t at = 0; at < 2 << 20; at += 4) /* more than fits */
		if (at % 4096 == 0) {
			int fd = open("state/vms/p/overlay", O_WRONLY | O_CLOEXEC);

			CHECK_EQ(pwrite(fd, "x", 1, at), 1);
			close(fd);
		}
	CHECK_EQ(capture("p", "d"), RC_LIMIT);
	CHECK(strstr(last.text, "captures may take 1 MiB") != NULL);
	config.captures_mib = 65536;
	CHECK_EQ(files_below("state/captures"), 1);
	/* What it is started with has to fit. */
	snprintf(q.capture, sizeof(q.capture), "c");
	q.memory_mib = 2048;
	CHECK_EQ(ASK(VM_CREATE, broker_vm_create, &q, broker_vm_created, &created), RC_INVALID);
	q.memory_mib = 1024;
	snprintf(q.image, sizeof(q.image), "debian-13");
	CHECK_EQ(ASK(VM_CREATE, broker_vm_create, &q, broker_vm_created, &created), RC_INVALID);
	CHECK_EQ(create_from("x", "../vms/p"), RC_ABSENT);
	config.vm_vcpus++;
	CHECK_EQ(create_from("x", "c"), RC_STATE);
	config.vm_vcpus--;
	fake.refuse_snapshots = true;
	CHECK_EQ(create_from("x", "c"), RC_STATE);
	CHECK_STR(last.text, "fake snapshot is of another host");
	fake.refuse_snapshots = false;
	CHECK_EQ(uncapture("nothing"), RC_ABSENT);
	CHECK_EQ(uncapture("../vms"), RC_ABSENT);
	captures_clear();
	teardown();
}

TEST(capture_of_another_image_is_refused)
{
	int fd;

	ready();
	CHECK_EQ(create("p", 0), RC_OK);
	CHECK_EQ(capture("p", "c"), RC_OK);
	fd = open("state/images/debian-13/root.erofs", O_WRONLY | O_APPEND | O_CLOEXEC);
	CHECK_EQ(write(fd, "x", 1), 1);
	CHECK_EQ(create_from("x", "c"), RC_STATE);
	CHECK(strstr(last.text, "older image") != NULL);
	CHECK_EQ(FORK("p", "k"), RC_STATE);
	CHECK_EQ(ftruncate(fd, 3), 0);
	close(fd);
	captures_clear();
	teardown();
}

TEST(capture_whose_machine_ends)
{
	struct broker_vm_kill kill_p = { .id = "p" };
	int killer;

	ready();
	CHECK_EQ(create("p", 0), RC_OK);
	fake.slow_saves = true;
	CHECK_EQ(capture_send("p", "c"), RC_OK);
	UNTIL(fake_paused("p"));
	CHECK_EQ(vm_stat_of("p").state, BROKER_VM_RUNNING);
	fake_die("p");
	CHECK_EQ(capture_answer(), RC_STATE);
	UNTIL(nothing_left());
	CHECK_EQ(files_below("state/captures"), 0);
	CHECK_EQ(create("p", 0), RC_OK);
	CHECK_EQ(capture_send("p", "c"), RC_OK);
	UNTIL(fake_paused("p"));
	CHECK_EQ(ask_on(killer = peer_open(PEER_API), BROKER_VM_KILL, (message_put_fn *)broker_vm_kill_put, &kill_p, NULL, NULL),
		 RC_OK);
	close(killer);
	CHECK_EQ(capture_answer(), RC_STATE);
	fake.slow_saves = false;
	CHECK(access("state/captures/.c", F_OK) < 0);
	CHECK_EQ(create("p", 0), RC_OK);
	CHECK_EQ(capture("p", "c"), RC_OK);
	captures_clear();
	teardown();
}

TEST(machine_that_is_captured_does_nothing_else)
{
	ready();
	CHECK_EQ(create("p", 0), RC_OK);
	for (int i = 0; i < 3; i++) {
		int second = peer_open(PEER_API), first = client;

		fake.slow_saves = true;
		CHECK_EQ(capture_send("p", "c"), RC_OK);
		UNTIL(fake_paused("p"));
		client = second;
		CHECK_EQ(i == 0 ? pause_op(BROKER_VM_PAUSE, "p") : i == 1 ? capture("p", "d") : FORK("p", "k"), RC_AGAIN);
		client = first;
		fake.slow_saves = false;
		CHECK_EQ(capture_answer(), RC_OK);
		close(second);
	}
	CHECK_EQ(uncapture("c"), RC_OK);
	fake.slow_saves = true;
	CHECK_EQ(capture_send("p", "c"), RC_OK);
	UNTIL(fake_paused("p"));
	fake.slow_saves = false;
	close(client);
	client = peer_open(PEER_API);
	/* Whoever asked is gone; it is made all the same. */
	UNTIL(files_below("state/captures") == 1);
	CHECK(!fake_paused("p"));
	captures_clear();
	teardown();
}

TEST(captures_survive_a_broker_that_is_killed)
{
	ready();
	CHECK_EQ(create("p", 0), RC_OK);
	CHECK_EQ(capture("p", "whole"), RC_OK);
	fake.slow_saves = true;
	CHECK_EQ(capture_send("p", "half"), RC_OK);
	UNTIL(fake_paused("p"));
	broker_down();
	fake.slow_saves = false;
	broker_up();
	CHECK(access("state/captures/.half", F_OK) < 0);
	CHECK_EQ(files_below("state/captures"), 1);
	CHECK_EQ(create_from("x", "whole"), RC_OK);
	CHECK_EQ(vm_stat_of("p").state, BROKER_VM_RUNNING);
	captures_clear();
	teardown();
}

TEST(captures_are_kept_open_for_a_while_and_not_too_many)
{
	unsigned int before;
	char name[16];

	ready();
	before = fake.live_snapshots;
	CHECK_EQ(create("p", 0), RC_OK);
	for (int i = 0; i < CAPTURES_OPEN_MAX + 2; i++) {
		snprintf(name, sizeof(name), "c%02d", i);
		REQUIRE(capture("p", name) == RC_OK);
		REQUIRE(create_from("x", name) == RC_OK);
		CHECK_EQ(vm_kill("x"), RC_OK);
	}
	CHECK_EQ(fake.live_snapshots, before + CAPTURES_OPEN_MAX);
	captures_clear();
	CHECK_EQ(fake.live_snapshots, before);
	teardown();
}

TEST(fork_makes_children)
{
	struct broker_fork_row row;
	struct wire w;

	ready();
	CHECK_EQ(create("p", 0), RC_OK);
	CHECK_EQ(ASK(SUBSCRIBE, broker_none, &none, broker_none, &none), RC_OK);
	disk_mark("state/vms/p/overlay", "of the parent");
	CHECK_EQ(FORK("p", "k1", "k2"), RC_OK);
	CHECK_EQ(forked.n, 2);
	CHECK_EQ(forked.pause_us, 4321);
	CHECK_EQ(forked.private_bytes, 8192);
	wire_init(&w, (void *)(uintptr_t)forked.children, forked.children_n);
	for (int i = 1; i <= 2; i++) {
		broker_fork_row_get(&w, &row);
		CHECK(row.id[0] == 'k' && row.id[1] == '0' + i && row.state == BROKER_VM_RUNNING && row.ready_us);
	}
	CHECK(wire_done(&w));
	CHECK(!fake_paused("p"));
	CHECK(disk_marked("state/vms/k1/overlay", "of the parent") && disk_marked("state/vms/k2/overlay", "of the parent"));
	CHECK(strstr(events, "vm k1 2") && strstr(events, "vm k2 2"));
	CHECK(strstr(fake.last_line, "\"hostname\":\"child\"") != NULL);
	CHECK_EQ(vm_stat_of("k1").memory_mib, 1024);
	/* Children have children, and outlive their parent. */
	CHECK_EQ(vm_kill("p"), RC_OK);
	CHECK_EQ(FORK("k1", "kk"), RC_OK);
	CHECK_EQ(vm_kill("k1"), RC_OK);
	CHECK_EQ(vm_stat_of("kk").state, BROKER_VM_RUNNING);
	teardown();
}

/* Of p, less what any machine has: what its copies take. -1: the group's bound is another. */
static long long copies_of(const char *id)
{
	const struct machine *m = machine_find(b, id);
	uint64_t bound = charge_bound(m), is = 0;

	if (b->cgroup.dirfd[CGROUP_MEMORY] >= 0 && (!cgroup_memory_get(&b->cgroup, id, &is) || is != bound)) {
		printf("  the group of %s has %llu, not %llu\n", id, (unsigned long long)is, (unsigned long long)bound);
		return -1;
	}
	return (long long)(bound - ((1024ull + FAKE_OVERHEAD_MIB) << 20));
}

/* The copy that a fork makes is its parent's to pay for until the last child is gone; that of a capture until it is stored. */
TEST(copies_are_paid_for_as_long_as_somebody_has_them)
{
	fake_copies_charged = true;
	ready();
	CHECK_EQ(create("p", 0), RC_OK);
	CHECK_EQ(copies_of("p"), 0);
	CHECK_EQ(FORK("p", "k1", "k2"), RC_OK);
	CHECK_EQ(copies_of("p"), 8192);
	CHECK_EQ(copies_of("k1"), 0);
	CHECK_EQ(FORK("p", "k3"), RC_OK);
	CHECK_EQ(copies_of("p"), 16384);
	CHECK_EQ(b->copies_bytes, 16384);
	CHECK_EQ(vm_kill("k1"), RC_OK);
	CHECK_EQ(copies_of("p"), 16384);
	CHECK_EQ(vm_kill("k2"), RC_OK);
	CHECK_EQ(copies_of("p"), 8192);
	/* While one is made it may take as much as there is memory. */
	fake.slow_saves = true;
	CHECK_EQ(capture_send("p", "c"), RC_OK);
	UNTIL(fake_paused("p"));
	CHECK_EQ(copies_of("p"), 8192 + (1024 << 20));
	CHECK_EQ(b->copies_bytes, 8192);
	fake.slow_saves = false;
	CHECK_EQ(capture_answer(), RC_OK);
	UNTIL(copies_of("p") == 8192);
	/* A broker that goes changes nothing of that; the next one leaves it what it had. */
	broker_down();
	broker_up();
	CHECK_EQ(copies_of("p"), b->cgroup.dirfd[CGROUP_MEMORY] < 0 ? 0 : 8192);
	CHECK_EQ(vm_kill("k3"), RC_OK);
	CHECK_EQ(FORK("p", "k4"), RC_OK);
	CHECK_EQ(vm_kill("p"), RC_OK);
	CHECK_EQ(b->copies_bytes, 8192);
	CHECK_EQ(vm_kill("k4"), RC_OK);
	CHECK_EQ(b->copies_bytes, 0);
	captures_clear();
	teardown();
	fake_copies_charged = false;
}

TEST(forks_that_are_refused)
{
	char many[BROKER_FORK_MAX + 1][8];
	const char *names[BROKER_FORK_MAX + 1];

	ready();
	CHECK_EQ(create("p", 0), RC_OK);
	CHECK_EQ(FORK("nobody", "k"), RC_ABSENT);
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		snprintf(many[i], sizeof(many[i]), "k%zu", i);
		names[i] = many[i];
	}
	CHECK_EQ(fork_send("p", 0, names), RC_OK);
	CHECK_EQ(fork_answer(), RC_INVALID);
	CHECK_EQ(fork_send("p", ARRAY_SIZE(names), names), RC_OK);
	CHECK_EQ(fork_answer(), RC_INVALID);
	CHECK_EQ(FORK("p", "k", "k"), RC_INVALID);
	CHECK_EQ(FORK("p", "_k"), RC_INVALID);
	CHECK_EQ(FORK("p", "k", "p"), RC_EXISTS);
	/* One too many for this host: none is left of the others. */
	CHECK_EQ(FORK("p", "a", "b", "c", "d", "e", "f", "g", "h"), RC_LIMIT);
	CHECK_EQ(files_below("state/vms"), 1);
	CHECK_EQ(pause_op(BROKER_VM_PAUSE, "p"), RC_OK);
	CHECK_EQ(FORK("p", "k"), RC_STATE);
	CHECK_EQ(pause_op(BROKER_VM_RESUME, "p"), RC_OK);
	CHECK_EQ(FORK("p", "k"), RC_OK);
	teardown();
}

TEST(fork_whose_children_do_not_answer_leaves_none)
{
	ready();
	CHECK_EQ(create("p", 0), RC_OK);
	fake.agent_mode = AGENT_ERROR;
	CHECK_EQ(FORK("p", "a", "b"), RC_GUEST);
	CHECK_EQ(files_below("state/vms"), 1);
	fake.agent_mode = AGENT_SILENT;
	config.create_timeout_ms = 100;
	CHECK_EQ(FORK("p", "a", "b"), RC_TIMEOUT);
	config.create_timeout_ms = 5000;
	fake.agent_mode = AGENT_OK;
	CHECK_EQ(files_below("state/vms"), 1);
	CHECK(!fake_paused("p"));
	CHECK_EQ(FORK("p", "a", "b"), RC_OK);
	teardown();
}

TEST(fork_whose_parent_or_child_ends)
{
	struct broker_vm_kill kill_a = { .id = "a" };
	int killer;

	ready();
	CHECK_EQ(create("p", 0), RC_OK);
	fake.agent_mode = AGENT_SILENT;
	for (int who = 0; who < 2; who++) {
		const char *const names[] = { "a", "b" };

		CHECK_EQ(fork_send("p", 2, names), RC_OK);
		UNTIL(fake_runs("a") && fake_runs("b"));
		fake_die(who ? "p" : "b");
		CHECK_EQ(fork_answer(), RC_STATE);
		CHECK_EQ(files_below("state/vms"), who ? 0 : 1);
	}
	UNTIL(nothing_left());
	fake.agent_mode = AGENT_OK;
	CHECK_EQ(create("p", 0), RC_OK);
	/* Before the engine has begun. */
	CHECK_EQ(fork_send("p", 2, (const char *const[]){ "a", "b" }), RC_OK);
	UNTIL(machine_find(b, "a"));
	killer = peer_open(PEER_API);
	CHECK_EQ(ask_send(killer, BROKER_VM_KILL, (message_put_fn *)broker_vm_kill_put, &kill_a), RC_OK);
	CHECK_EQ(fork_answer(), RC_STATE);
	close(killer);
	teardown();
}

TEST(broker_killed_in_a_fork_leaves_no_child)
{
	ready();
	CHECK_EQ(create("p", 0), RC_OK);
	fake.agent_mode = AGENT_SILENT;
	CHECK_EQ(fork_send("p", 2, (const char *const[]){ "a", "b" }), RC_OK);
	UNTIL(fake_runs("a") && fake_runs("b"));
	broker_down();
	fake.agent_mode = AGENT_OK;
	broker_up();
	UNTIL(files_below("state/vms") == 1 && b->n_machines == 1);
	CHECK_EQ(vm_stat_of("p").state, BROKER_VM_RUNNING);
	CHECK_EQ(FORK("p", "a", "b"), RC_OK);
	teardown();
}

static bool only_parent(void)
{
	return fake_runs("p") && b->n_machines == 1 && files_below("state/vms") == 1 && fake.live_vms == 1 && fake.live_nets == 1;
}

/* The n-th step fails, for every n: what is asked is done or leaves nothing, and the parent goes on unless it was what died. */
static void every_step(void (*send)(void), uint16_t op, void (*undo)(void))
{
	unsigned int n, failures = 0;

	for (n = 1; n < 300; n++) {
		bool used_up;
		enum rc rc;

		if (!b->n_machines)
			CHECK_EQ(create("p", 0), RC_OK);
		REQUIRE(only_parent());
		send();
		fake_fail(n);
		rc = ask_receive(client, op, NULL, NULL);
		used_up = fake_failed();
		fake_fail(0);
		if (rc == RC_CLOSED) {
			/* Not even a reply could be made: the connection ends instead. */
			close(client);
			client = peer_open(PEER_API);
		}
		failures += rc != RC_OK;
		undo();
		UNTIL(only_parent() || nothing_left());
		CHECK(!fake_paused("p"));
		if (!used_up)
			break;
	}
	printf("  %u steps, %u of them fatal\n", n - 1, failures);
	CHECK(n > 10 && n < 300 && failures > 5);
}

static void capture_step(void)
{
	REQUIRE(capture_send("p", "c") == RC_OK);
}

static void capture_undo(void)
{
	UNTIL(access("state/captures/.c", F_OK) < 0);
	if (files_below("state/captures"))
		CHECK_EQ(uncapture("c"), RC_OK);
}

TEST(every_step_of_a_capture_may_fail)
{
	ready();
	every_step(capture_step, BROKER_VM_CAPTURE, capture_undo);
	teardown();
}

static void fork_step(void)
{
	REQUIRE(fork_send("p", 2, (const char *const[]){ "a", "b" }) == RC_OK);
}

static void fork_undo(void)
{
	/* Answered or not: both or none. */
	for (int i = 0; i < 2; i++)
		if (machine_find(b, i ? "b" : "a"))
			(void)vm_kill(i ? "b" : "a");
}

TEST(every_step_of_a_fork_may_fail)
{
	ready();
	every_step(fork_step, BROKER_VM_FORK, fork_undo);
	teardown();
}

int main(int argc, char **argv)
{
	return bed_main("test_fork", argc, argv);
}
