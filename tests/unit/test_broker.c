/* SPDX-License-Identifier: Apache-2.0 */
/* The broker with a fake engine, network and agent: the life of a machine, its ends, and what a restart finds. */
#include "tests/unit/broker_bed.h"

/* --- templates -------------------------------------------------------------------------------------------------- */

TEST(template_is_made_checked_and_kept)
{
	setup();
	UNTIL(files_below("state/templates") == 1 && !b->n_machines);
	CHECK_EQ(fake.boots, 1);
	CHECK_EQ(fake.saves, 1);
	CHECK_EQ(fake.restores, 1);
	teardown();
	setup();
	CHECK_EQ(create("again", 0), RC_OK);
	CHECK_EQ(fake.boots, 0);
	CHECK_EQ(fake.restores, 1);
	teardown();
}

TEST(template_boot_is_retried_and_its_log_kept)
{
	struct broker_vm_create q = create_request("big", 0);
	struct broker_vm_created created;

	setup();
	q.memory_mib = 2048;
	fake.bad_boots = 2;
	CHECK_EQ(ASK(VM_CREATE, broker_vm_create, &q, broker_vm_created, &created), RC_OK);
	CHECK_EQ(fake.boots, 3);
	CHECK_EQ(files_below("state/logs/kernel"), 2);
	teardown();
}

TEST(template_that_cannot_be_made_fails_the_create_with_its_reason)
{
	struct broker_vm_create q = create_request("big", 0);
	struct broker_vm_created created;

	setup();
	q.memory_mib = 3072;
	fake.bad_boots = TEMPLATE_TRIES;
	CHECK_EQ(ASK(VM_CREATE, broker_vm_create, &q, broker_vm_created, &created), RC_STATE);
	CHECK(strstr(last.text, "the fake machine died") != NULL);
	CHECK(nothing_left());
	CHECK_EQ(ASK(VM_CREATE, broker_vm_create, &q, broker_vm_created, &created), RC_STATE);
	CHECK_EQ(fake.boots, TEMPLATE_TRIES);
	snprintf(q.image, sizeof(q.image), "no-such-image");
	CHECK_EQ(ASK(VM_CREATE, broker_vm_create, &q, broker_vm_created, &created), RC_ABSENT);
	snprintf(q.image, sizeof(q.image), "../../etc");
	CHECK_EQ(ASK(VM_CREATE, broker_vm_create, &q, broker_vm_created, &created), RC_INVALID);
	teardown();
}

TEST(template_is_made_anew_when_the_host_cannot_use_it)
{
	setup();
	UNTIL(fake.live_snapshots == 1);
	teardown();
	setup();
	/* Refused at start; its successor must open again. */
	fake.refuse_snapshots = true;
	loop_once(loop, 0, NULL);
	UNTIL(b->n_machines == 1);
	fake.refuse_snapshots = false;
	CHECK_EQ(create("a", 0), RC_OK);
	CHECK_EQ(fake.boots, 1);
	teardown();
}

TEST(template_of_an_engine_of_another_shape_is_no_template)
{
	setup();
	UNTIL(fake.live_snapshots == 1);
	teardown();
	fake_shape = "another";
	setup();
	UNTIL(fake.boots == 1 && fake.live_snapshots == 1 && !b->n_machines);
	UNTIL(files_below("state/templates") == 1);
	teardown();
	setup();
	UNTIL(fake.live_snapshots == 1);
	CHECK_EQ(fake.boots, 0);
	teardown();
	fake_shape = "";
}

/* --- one machine ------------------------------------------------------------------------------------------------ */

TEST(create_stat_list_kill)
{
	struct broker_cursor cursor = { "" };
	struct broker_vm_list list;
	struct broker_node node;
	struct broker_vm_stat s;

	setup();
	CHECK_EQ(create("one", 0), RC_OK);
	CHECK(strstr(fake.last_line, "\"op\":\"identity\"") && strstr(fake.last_line, "\"B\":\"two words\"") &&
	      strstr(fake.last_line, "\"hostname\":\"box\""));
	CHECK_EQ(create("one", 0), RC_EXISTS);
	s = vm_stat_of("one");
	CHECK_EQ(s.state, BROKER_VM_RUNNING);
	CHECK_EQ(s.memory_private, 12345);
	CHECK_EQ(create("two", 0), RC_OK);
	CHECK_EQ(ASK(VM_LIST, broker_cursor, &cursor, broker_vm_list, &list), RC_OK);
	CHECK_EQ(list.n, 2);
	snprintf(cursor.after, sizeof(cursor.after), "one");
	CHECK_EQ(ASK(VM_LIST, broker_cursor, &cursor, broker_vm_list, &list), RC_OK);
	CHECK_EQ(list.n, 1);
	CHECK_EQ(ASK(NODE_STAT, broker_none, &none, broker_node, &node), RC_OK);
	CHECK_EQ(node.vms, 2);
	CHECK_EQ(node.memory_mib_used, 2048);
	CHECK_EQ(vm_kill("one"), RC_OK);
	CHECK_EQ(vm_kill("one"), RC_ABSENT);
	s = vm_stat_of("one");
	CHECK_EQ(s.state, BROKER_VM_GONE);
	CHECK_STR(s.reason, "killed: because");
	CHECK_EQ(vm_kill("two"), RC_OK);
	CHECK(nothing_left());
	CHECK_EQ(vm_stat_of("three").state, 0);
	teardown();
}

TEST(no_machine_shares_an_open_file_with_another)
{
	setup();
	CHECK_EQ(create("sbx_one", 0), RC_OK);
	CHECK_EQ(create("sbx_two", 0), RC_OK);
	CHECK(fake.restores >= 2);
	CHECK_EQ(fake.marked, 0);
	teardown();
}

TEST(bad_creates_are_refused)
{
	static const uint8_t bad_env[] = "NOVALUE";
	struct broker_vm_created created;
	struct broker_vm_create q;

	setup();
#define REFUSED(change, why)                                                                                \
	do {                                                                                                \
		q = create_request("x", 0);                                                                 \
		change;                                                                                     \
		CHECK_EQ(ASK(VM_CREATE, broker_vm_create, &q, broker_vm_created, &created), why);           \
	} while (0)
	REFUSED(q.id[0] = '\0', RC_INVALID);
	REFUSED(strcpy(q.id, "_cold"), RC_INVALID);
	REFUSED(strcpy(q.id, "../x"), RC_INVALID);
	REFUSED(strcpy(q.id, "UP"), RC_INVALID);
	REFUSED(q.memory_mib = 1, RC_INVALID);
	REFUSED(q.memory_mib = 1u << 30, RC_INVALID);
	REFUSED(q.flags = 2, RC_INVALID);
	REFUSED(q.stop_at_ms = 1, RC_INVALID);
	REFUSED((q.env = bad_env, q.env_n = sizeof(bad_env)), RC_INVALID);
	REFUSED((q.env = bad_env, q.env_n = 3), RC_INVALID);
	REFUSED(strcpy(q.root_volume, "v"), RC_ABSENT);
	REFUSED(strcpy(q.root_volume, "../v"), RC_INVALID);
	REFUSED(strcpy(q.root_volume, "snapshot:"), RC_INVALID);
	REFUSED(strcpy(q.root_volume, "snapshot:v"), RC_ABSENT);
	REFUSED((strcpy(q.root_volume, "v"), strcpy(q.image, "debian-13")), RC_INVALID);
	REFUSED((q.mounts = bad_env, q.mounts_n = sizeof(bad_env)), RC_INVALID);
	REFUSED((q.mounts = (const uint8_t *)"v\0/", q.mounts_n = 4), RC_INVALID);
	REFUSED((q.mounts = (const uint8_t *)"v\0/x", q.mounts_n = 4), RC_INVALID);
	REFUSED((q.mounts = (const uint8_t *)"../v\0/x", q.mounts_n = 8), RC_INVALID);
	REFUSED((q.mounts = (const uint8_t *)"v\0/x", q.mounts_n = 5), RC_ABSENT);
	CHECK(!fake_runs("x"));
	teardown();
}

TEST(host_limits)
{
	char id[8];

	setup();
	for (unsigned int i = 0; i < config.vm_max; i++) {
		snprintf(id, sizeof(id), "m%u", i);
		CHECK_EQ(create(id, 0), RC_OK);
	}
	CHECK_EQ(create("more", 0), RC_LIMIT);
	CHECK(strstr(last.text, "maximum of 4") != NULL);
	CHECK_EQ(vm_kill("m0"), RC_OK);
	b->memory_mib_max = 4000;
	CHECK_EQ(create("more", 0), RC_LIMIT);
	CHECK(strstr(last.text, "no memory left") != NULL);
	b->memory_mib_max = 1000000;
	CHECK_EQ(create("more", 0), RC_OK);
	teardown();
}

/* --- volumes ---------------------------------------------------------------------------------------------------- */

static struct broker_volume volume;

static enum rc volume_make(const char *name, uint64_t mib, const char *from)
{
	struct broker_volume_create q = { .bytes = mib << 20 };

	snprintf(q.name, sizeof(q.name), "%s", name);
	snprintf(q.from, sizeof(q.from), "%s", from);
	return ASK(VOLUME_CREATE, broker_volume_create, &q, broker_volume, &volume);
}

static enum rc volume_snap(const char *name, const char *snapshot)
{
	struct broker_volume_snapshot q;

	snprintf(q.name, sizeof(q.name), "%s", name);
	snprintf(q.snapshot, sizeof(q.snapshot), "%s", snapshot);
	return ASK(VOLUME_SNAPSHOT, broker_volume_snapshot, &q, broker_volume, &volume);
}

static enum rc volume_named(uint16_t op, const char *name)
{
	struct broker_volume_name q;

	snprintf(q.name, sizeof(q.name), "%s", name);
	return ask_on(client, op, (message_put_fn *)broker_volume_name_put, &q,
		      op == BROKER_VOLUME_STAT ? (message_get_fn *)broker_volume_get : (message_get_fn *)broker_none_get, &volume);
}

static enum rc create_with(const char *id, const char *root, const char *mounts, size_t n)
{
	struct broker_vm_create q = create_request(id, 0);
	struct broker_vm_created created;

	snprintf(q.root_volume, sizeof(q.root_volume), "%s", root);
	q.mounts = (const uint8_t *)mounts;
	q.mounts_n = n;
	return ASK(VM_CREATE, broker_vm_create, &q, broker_vm_created, &created);
}
#define WITH(id, root, mounts) create_with(id, root, mounts, sizeof(mounts) - 1)

/* The operator's. */
static enum rc verify(const char *snapshot)
{
	struct broker_volume_name q;
	int root = peer_open(PEER_ROOT);
	enum rc rc;

	snprintf(q.name, sizeof(q.name), "%s", snapshot);
	rc = ask_on(root, BROKER_VOLUME_VERIFY, (message_put_fn *)broker_volume_name_put, &q,
		    (message_get_fn *)broker_none_get, &volume);
	close(root);
	return rc;
}

static void volumes_clear(void)
{
	static const char *const made[] = { "v", "w", "r", "snapshot:s", "snapshot:rs" };

	for (size_t i = 0; i < ARRAY_SIZE(made); i++)
		volume_named(BROKER_VOLUME_DELETE, made[i]);
	CHECK_EQ(files_below("state/volumes"), 0);
	CHECK_EQ(files_below("state/snapshots"), 0);
}

TEST(volume_is_made_told_of_and_deleted)
{
	setup();
	CHECK_EQ(volume_make("v", 64, ""), RC_OK);
	CHECK_EQ(volume.bytes, 64u << 20);
	CHECK(volume.used_bytes > 0 && volume.used_bytes < 16u << 20);
	CHECK_EQ(volume.bootable, 0);
	CHECK_EQ(volume_make("v", 64, ""), RC_EXISTS);
	CHECK_EQ(volume_make("../v", 64, ""), RC_INVALID);
	CHECK_EQ(volume_make(".v", 64, ""), RC_INVALID);
	CHECK_EQ(volume_make("w", 1, ""), RC_INVALID);
	CHECK_EQ(volume_make("w", 1u << 30, ""), RC_INVALID);
	CHECK_EQ(volume_make("w", 64, "image:no-such"), RC_ABSENT);
	CHECK_EQ(volume_make("w", 64, "image:../x"), RC_INVALID);
	CHECK_EQ(volume_make("w", 64, "snapshot:no-such"), RC_ABSENT);
	CHECK_EQ(volume_make("w", 64, "/etc/passwd"), RC_INVALID);
	CHECK_EQ(volume_named(BROKER_VOLUME_STAT, "v"), RC_OK);
	CHECK_EQ(volume.bytes, 64u << 20);
	CHECK_EQ(volume_named(BROKER_VOLUME_STAT, "w"), RC_ABSENT);
	CHECK_EQ(volume_named(BROKER_VOLUME_STAT, "../vms"), RC_INVALID);
	CHECK_EQ(volume_named(BROKER_VOLUME_DELETE, "../vms"), RC_INVALID);
	CHECK_EQ(volume_named(BROKER_VOLUME_DELETE, "v"), RC_OK);
	CHECK_EQ(volume_named(BROKER_VOLUME_DELETE, "v"), RC_ABSENT);
	volumes_clear();
	teardown();
}

TEST(volume_has_one_machine_at_a_time)
{
	setup();
	CHECK_EQ(volume_make("v", 64, ""), RC_OK);
	CHECK_EQ(volume_make("w", 32, ""), RC_OK);
	CHECK_EQ(WITH("a", "", "v\0/data\0w\0/more\0"), RC_OK);
	CHECK_STR(strstr(fake.control_ops, "mount"), "mount mount identity ");
	CHECK_EQ(fake.resizes, 2);
	CHECK_EQ(fake.disk_mib[2], 64);
	CHECK_EQ(fake.disk_mib[3], 32);
	CHECK_EQ(fake.disk_mib[4], 1);
	CHECK_EQ(volume_named(BROKER_VOLUME_STAT, "w"), RC_OK);
	CHECK_STR(volume.used_by, "a");
	CHECK_EQ(WITH("b", "", "w\0/data\0"), RC_STATE);
	CHECK(strstr(last.text, "attached to machine 'a'") != NULL);
	CHECK_EQ(WITH("b", "v", ""), RC_STATE);
	CHECK_EQ(volume_named(BROKER_VOLUME_DELETE, "v"), RC_STATE);
	/* A new broker still knows. */
	broker_down();
	broker_up();
	CHECK_EQ(WITH("b", "", "w\0/data\0"), RC_STATE);
	fake.control_ops[0] = '\0';
	CHECK_EQ(vm_kill("a"), RC_OK);
	CHECK(strstr(fake.control_ops, "freeze ") != NULL);
	CHECK_EQ(WITH("b", "", "w\0/data\0"), RC_OK);
	CHECK_EQ(WITH("c", "", "v\0/1\0v\0/2\0"), RC_STATE);
	CHECK_EQ(WITH("c", "", "v\0/1\0"), RC_OK);
	CHECK_EQ(vm_kill("b"), RC_OK);
	/* An agent that does not answer costs time, not the end. */
	fake.agent_mode = AGENT_CLOSES;
	CHECK_EQ(vm_kill("c"), RC_OK);
	fake.agent_mode = AGENT_OK;
	volumes_clear();
	teardown();
}

TEST(snapshots_and_what_comes_from_them)
{
	setup();
	CHECK_EQ(volume_make("v", 64, ""), RC_OK);
	CHECK_EQ(volume_snap("w", "s"), RC_ABSENT);
	CHECK_EQ(volume_snap("v", "../s"), RC_INVALID);
	CHECK_EQ(WITH("a", "", "v\0/data\0"), RC_OK);
	fake.control_ops[0] = '\0';
	CHECK_EQ(volume_snap("v", "s"), RC_OK);
	CHECK_STR(fake.control_ops, "freeze thaw ");
	CHECK_EQ(volume.bytes, 64u << 20);
	CHECK_EQ(volume_snap("v", "s"), RC_EXISTS);
	/* A guest that cannot freeze is thawed, and nothing is left. */
	fake.agent_mode = AGENT_ERROR;
	CHECK_EQ(volume_snap("v", "rs"), RC_GUEST);
	fake.agent_mode = AGENT_OK;
	CHECK(strstr(fake.control_ops, "freeze thaw freeze thaw ") == fake.control_ops);
	CHECK_EQ(files_below("state/snapshots"), 1);
	CHECK_EQ(vm_kill("a"), RC_OK);
	CHECK_EQ(volume_make("w", 32, "snapshot:s"), RC_INVALID);
	CHECK_EQ(volume_make("w", 96, "snapshot:s"), RC_OK);
	CHECK_EQ(volume.bytes, 96u << 20);
	CHECK_EQ(WITH("a", "snapshot:s", ""), RC_INVALID);
	CHECK_EQ(volume_named(BROKER_VOLUME_STAT, "snapshot:s"), RC_OK);
	volumes_clear();
	teardown();
}

/* As a machine leaves it that was killed: the incompatible feature "recover". */
static void disk_needs_recovery(const char *path)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	unsigned char c = 0;

	REQUIRE(fd >= 0 && pread(fd, &c, 1, 1024 + 0x60) == 1);
	c |= 4;
	REQUIRE(pwrite(fd, &c, 1, 1024 + 0x60) == 1);
	close(fd);
}

TEST(root_volumes_and_root_snapshots)
{
	unsigned int boots;

	setup();
	CHECK_EQ(volume_make("v", 64, ""), RC_OK);
	CHECK_EQ(WITH("a", "v", ""), RC_INVALID);
	CHECK(strstr(last.text, "not bootable") != NULL);
	CHECK_EQ(volume_make("r", 48, "image:debian-13"), RC_OK);
	CHECK_EQ(volume.bootable, 1);
	UNTIL(fake.live_snapshots == 1 && !b->n_machines);
	boots = fake.boots;
	CHECK_EQ(WITH("a", "r", "v\0/data\0"), RC_OK);
	CHECK_EQ(fake.boots, boots);
	CHECK_EQ(fake.disk_mib[DISK_ROOT], 48);
	CHECK_EQ(fake.disk_mib[DISK_SPARE], 64);
	CHECK(strstr(fake.last_line, "\"root\"") == NULL); /* the first request has it: the mount */
	CHECK_EQ(WITH("b", "r", ""), RC_STATE);
	CHECK_EQ(volume_snap("r", "rs"), RC_OK);
	CHECK_EQ(volume.bootable, 1);
	/* Shared, below a disk of the machine's own.. */
	CHECK_EQ(WITH("b", "snapshot:rs", ""), RC_OK);
	CHECK_EQ(fake.disk_mib[DISK_BASE], 48);
	CHECK(strstr(fake.last_line, "\"root\":\"snapshot\"") != NULL);
	CHECK_EQ(fake.boots, boots);
	CHECK_EQ(WITH("c", "snapshot:rs", ""), RC_OK);
	CHECK_EQ(volume_named(BROKER_VOLUME_DELETE, "snapshot:rs"), RC_OK);
	CHECK_EQ(vm_kill("a"), RC_OK);
	CHECK_EQ(vm_kill("b"), RC_OK);
	CHECK_EQ(vm_kill("c"), RC_OK);
	/* ..or copied, if its journal has to be replayed. */
	disk_needs_recovery("state/volumes/r/disk");
	CHECK_EQ(volume_snap("r", "rs"), RC_OK);
	CHECK_EQ(WITH("b", "snapshot:rs", ""), RC_OK);
	CHECK_EQ(fake.disk_mib[DISK_ROOT], 48);
	CHECK(strstr(fake.last_line, "\"root\":\"volume\"") != NULL);
	CHECK_EQ(vm_kill("b"), RC_OK);
	volumes_clear();
	teardown();
}

/* One byte in the middle: what a disk does that fails. */
static void disk_damage(const char *path)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	unsigned char c = 0;

	REQUIRE(fd >= 0 && pread(fd, &c, 1, 1024 + 0x78) == 1);
	c ^= 1;
	REQUIRE(pwrite(fd, &c, 1, 1024 + 0x78) == 1);
	close(fd);
}

TEST(a_damaged_snapshot_is_not_used)
{
	setup();
	CHECK_EQ(volume_make("r", 48, "image:debian-13"), RC_OK);
	CHECK_EQ(volume_snap("r", "rs"), RC_OK);
	CHECK_EQ(ask_on(client, BROKER_VOLUME_VERIFY, (message_put_fn *)broker_volume_name_put,
			&(struct broker_volume_name){ "rs" }, (message_get_fn *)broker_none_get, &volume), RC_DENIED);
	CHECK_EQ(verify("rs"), RC_OK);
	CHECK_EQ(verify("no-such"), RC_ABSENT);
	CHECK_EQ(verify("../rs"), RC_INVALID);
	disk_damage("state/snapshots/rs/disk");
	CHECK_EQ(WITH("a", "snapshot:rs", ""), RC_DAMAGED);
	CHECK(strstr(last.text, "does not match its checksum") != NULL);
	CHECK_EQ(volume_make("w", 48, "snapshot:rs"), RC_DAMAGED);
	CHECK_EQ(verify("rs"), RC_DAMAGED);
	CHECK_EQ(files_below("state/volumes"), 1);
	/* As it was: it is read again, since the file is not the one that was found damaged. */
	disk_damage("state/snapshots/rs/disk");
	CHECK_EQ(WITH("a", "snapshot:rs", ""), RC_OK);
	CHECK_EQ(vm_kill("a"), RC_OK);
	/* A broker that starts has seen nothing yet. */
	broker_down();
	disk_damage("state/snapshots/rs/disk");
	broker_up();
	CHECK_EQ(WITH("a", "snapshot:rs", ""), RC_DAMAGED);
	REQUIRE(unlink("state/snapshots/rs/sum") == 0);
	CHECK_EQ(volume_make("w", 48, "snapshot:rs"), RC_DAMAGED);
	REQUIRE(!system("printf 'sha256 xyz' > state/snapshots/rs/sum"));
	CHECK_EQ(verify("rs"), RC_DAMAGED);
	CHECK(nothing_left());
	volumes_clear();
	teardown();
}

TEST(unfinished_volumes_go_at_the_next_start)
{
	setup();
	CHECK_EQ(mkdir("state/volumes/.half", 0700), 0);
	CHECK_EQ(mkdir("state/snapshots/.half", 0700), 0);
	broker_down();
	broker_up();
	CHECK(access("state/volumes/.half", F_OK) < 0 && access("state/snapshots/.half", F_OK) < 0);
	teardown();
}

/* Whatever step fails: the create either succeeds or leaves nothing, and the broker goes on. */
TEST(every_step_of_a_create_may_fail)
{
	unsigned int n, failures = 0;

	setup();
	UNTIL(fake.live_snapshots == 1 && !b->n_machines);
	CHECK_EQ(volume_make("v", 64, ""), RC_OK);
	for (n = 1; n < 200; n++) {
		struct broker_vm_create q = create_request("nth", 0);
		struct broker_vm_created created;
		bool used_up;
		enum rc rc;

		q.mounts = (const uint8_t *)"v\0/data";
		q.mounts_n = sizeof("v\0/data");
		rc = ask_send(client, BROKER_VM_CREATE, (message_put_fn *)broker_vm_create_put, &q);
		REQUIRE(!rc);
		fake_fail(n);
		rc = ask_receive(client, BROKER_VM_CREATE, (message_get_fn *)broker_vm_created_get, &created);
		used_up = fake_failed();
		fake_fail(0);
		if (rc == RC_CLOSED) {
			/* Not even a reply could be made: the connection ends instead. */
			close(client);
			client = peer_open(PEER_API);
		}
		failures += rc != RC_OK;
		if (rc) {
			UNTIL(nothing_left() || fake_runs("nth"));
			if (fake_runs("nth"))
				CHECK_EQ(vm_kill("nth"), RC_OK);
		} else {
			CHECK_EQ(vm_kill("nth"), RC_OK);
		}
		CHECK(nothing_left());
		if (!used_up)
			break;
	}
	printf("  %u steps, %u of them fatal to the create\n", n - 1, failures);
	CHECK(n > 15 && n < 200 && failures > 8);
	CHECK_EQ(create("after", 0), RC_OK);
	volumes_clear();
	teardown();
}

TEST(agents_that_misbehave_end_the_create)
{
	setup();
	UNTIL(fake.live_snapshots == 1 && !b->n_machines);
	fake.agent_mode = AGENT_ERROR;
	CHECK_EQ(create("x", 0), RC_GUEST);
	CHECK_STR(last.text, "agent refused: EIO");
	fake.agent_mode = AGENT_GARBAGE;
	CHECK_EQ(create("x", 0), RC_GUEST);
	fake.agent_mode = AGENT_LONG;
	CHECK_EQ(create("x", 0), RC_GUEST);
	fake.agent_mode = AGENT_CLOSES;
	CHECK_EQ(create("x", 0), RC_GUEST);
	fake.agent_mode = AGENT_SILENT;
	config.create_timeout_ms = 100;
	CHECK_EQ(create("x", 0), RC_TIMEOUT);
	CHECK(strstr(last.text, "its agent") != NULL);
	config.create_timeout_ms = 5000;
	CHECK(nothing_left());
	teardown();
}

TEST(kill_while_it_is_made)
{
	struct broker_vm_create q = create_request("x", 0);
	int other;

	setup();
	UNTIL(fake.live_snapshots == 1 && !b->n_machines);
	fake.agent_mode = AGENT_SILENT;
	CHECK_EQ(ask_send(client, BROKER_VM_CREATE, (message_put_fn *)broker_vm_create_put, &q), RC_OK);
	UNTIL(fake.last_line[0]);
	other = client;
	client = peer_open(PEER_API);
	CHECK_EQ(vm_kill("x"), RC_OK);
	CHECK(nothing_left());
	CHECK_EQ(ask_receive(other, BROKER_VM_CREATE, NULL, NULL), RC_STATE);
	CHECK(strstr(last.text, "because") != NULL);
	close(other);
	teardown();
}

TEST(creator_that_went_away_leaves_nothing)
{
	struct broker_vm_create q = create_request("x", 0);

	setup();
	UNTIL(fake.live_snapshots == 1 && !b->n_machines);
	CHECK_EQ(ask_send(client, BROKER_VM_CREATE, (message_put_fn *)broker_vm_create_put, &q), RC_OK);
	UNTIL(b->n_machines == 1);
	close_fd(&client);
	UNTIL(nothing_left());
	teardown();
}

TEST(death_of_the_process_is_told)
{
	setup();
	CHECK_EQ(create("x", 0), RC_OK);
	CHECK_EQ(ASK(SUBSCRIBE, broker_none, &none, broker_none, &none), RC_OK);
	fake_die("x");
	UNTIL(nothing_left());
	CHECK_EQ(vm_stat_of("x").state, BROKER_VM_GONE);
	CHECK(strstr(events, "vm x 5 the virtual machine's process ended: it died\n") != NULL);
	teardown();
}

TEST(pause_and_resume)
{
	struct broker_vm_id q = { "x" };
	struct broker_vm_dial dial = { "x", 0 };

	setup();
	CHECK_EQ(create("x", 0), RC_OK);
	CHECK_EQ(ASK(VM_RESUME, broker_vm_id, &q, broker_none, &none), RC_OK);
	CHECK_EQ(ASK(VM_PAUSE, broker_vm_id, &q, broker_none, &none), RC_OK);
	CHECK(fake_paused("x"));
	CHECK_EQ(ASK(VM_PAUSE, broker_vm_id, &q, broker_none, &none), RC_OK);
	CHECK_EQ(vm_stat_of("x").state, BROKER_VM_PAUSED);
	CHECK_EQ(ASK(VM_DIAL, broker_vm_dial, &dial, broker_none, &none), RC_STATE);
	CHECK_EQ(ASK(VM_RESUME, broker_vm_id, &q, broker_none, &none), RC_OK);
	CHECK_EQ(vm_stat_of("x").state, BROKER_VM_RUNNING);
	teardown();
}

/* --- lifetimes and leases --------------------------------------------------------------------------------------- */

TEST(lifetime_ends_and_can_be_moved)
{
	struct broker_vm_create q = create_request("x", 0);
	struct broker_vm_extend e = { "x", 0 }, got;
	struct broker_vm_created created;

	setup();
	UNTIL(fake.live_snapshots == 1);
	q.stop_at_ms = wall_ms() + 3600000;
	CHECK_EQ(ASK(VM_CREATE, broker_vm_create, &q, broker_vm_created, &created), RC_OK);
	e.stop_at_ms = 1;
	CHECK_EQ(ASK(VM_EXTEND, broker_vm_extend, &e, broker_vm_extend, &got), RC_INVALID);
	e.stop_at_ms = wall_ms() + 150;
	CHECK_EQ(ASK(VM_EXTEND, broker_vm_extend, &e, broker_vm_extend, &got), RC_OK);
	CHECK_EQ(got.stop_at_ms, e.stop_at_ms);
	UNTIL(nothing_left());
	CHECK(wall_ms() >= e.stop_at_ms);
	CHECK_STR(vm_stat_of("x").reason, "its lifetime ended");
	teardown();
}

static int lease_create(const char *id)
{
	CHECK_EQ(create(id, BROKER_VM_LEASE), RC_OK);
	CHECK_EQ(got_n_fds, 1);
	return got_n_fds ? got_fds[0] : -1;
}

static int lease_dial(const char *id, bool expected)
{
	struct broker_vm_dial q = { "", 1 };
	struct broker_vm_dialed dialed = { 0 };

	snprintf(q.id, sizeof(q.id), "%s", id);
	CHECK_EQ(ASK(VM_DIAL, broker_vm_dial, &q, broker_vm_dialed, &dialed), RC_OK);
	CHECK_EQ(dialed.has_lease, expected);
	CHECK_EQ(got_n_fds, expected ? 2 : 1);
	if (got_n_fds)
		close(got_fds[0]);
	return got_n_fds == 2 ? got_fds[1] : -1;
}

TEST(lease_ends_the_machine_after_its_grace)
{
	uint64_t begun;
	int lease;

	setup();
	lease = lease_create("x");
	lease_dial("x", false);
	begun = now_ms();
	close(lease);
	UNTIL(nothing_left());
	CHECK(now_ms() - begun >= config.lease_grace_ms);
	CHECK_EQ(vm_stat_of("x").state, BROKER_VM_GONE);
	teardown();
}

TEST(lease_can_be_taken_over_in_its_grace)
{
	uint64_t at;
	int lease;

	setup();
	config.lease_grace_ms = 400;
	close(lease_create("x"));
	UNTIL(!b->machines[0]->lease);
	lease = lease_dial("x", true);
	REQUIRE(lease >= 0);
	at = now_ms() + 2 * config.lease_grace_ms;
	UNTIL(now_ms() > at);
	CHECK_EQ(vm_stat_of("x").state, BROKER_VM_RUNNING);
	/* A holder that writes into it gains nothing. */
	CHECK_EQ(write(lease, "xxxx", 4), 4);
	loop_once(loop, 20, NULL);
	CHECK_EQ(vm_stat_of("x").state, BROKER_VM_RUNNING);
	close(lease);
	UNTIL(nothing_left());
	config.lease_grace_ms = 100;
	teardown();
}

/* --- restarts --------------------------------------------------------------------------------------------------- */

TEST(restart_adopts_what_runs_and_reports_what_does_not)
{
	int lease;

	setup();
	CHECK_EQ(create("alive", 0), RC_OK);
	CHECK_EQ(create("dead", 0), RC_OK);
	lease = lease_create("leased");
	close(lease_create("unleased"));
	broker_down();
	fake_die("dead");
	mkdir("state/vms/junk", 0700);
	mkdir("state/vms/junk/more", 0700);
	broker_up();
	CHECK_EQ(vm_stat_of("alive").state, BROKER_VM_RUNNING);
	UNTIL(files_below("state/vms") == 2);
	CHECK_EQ(vm_stat_of("dead").state, BROKER_VM_GONE);
	CHECK(strstr(vm_stat_of("dead").reason, "lost while the broker was away") != NULL);
	CHECK_EQ(vm_stat_of("junk").state, BROKER_VM_GONE);
	CHECK_EQ(vm_stat_of("unleased").state, BROKER_VM_GONE);
	CHECK_EQ(vm_stat_of("leased").state, BROKER_VM_RUNNING);
	CHECK_EQ(create("alive", 0), RC_EXISTS);
	CHECK_EQ(vm_kill("alive"), RC_OK);
	close(lease);
	UNTIL(nothing_left());
	teardown();
}

TEST(restart_in_the_middle_of_a_create_ends_it)
{
	struct broker_vm_create q = create_request("x", 0);

	setup();
	UNTIL(fake.live_snapshots == 1 && !b->n_machines);
	fake.agent_mode = AGENT_SILENT;
	CHECK_EQ(ask_send(client, BROKER_VM_CREATE, (message_put_fn *)broker_vm_create_put, &q), RC_OK);
	UNTIL(fake_runs("x") && fake.last_line[0]);
	b->machines[0]->on_end(b->machines[0]->arg, "test"); /* its request, which a killed process would not free */
	b->machines[0]->on_gone(b->machines[0]->arg);
	broker_down();
	fake.agent_mode = AGENT_OK;
	broker_up();
	UNTIL(nothing_left());
	CHECK(!fake_runs("x"));
	teardown();
}

TEST(orderly_end_takes_along_what_is_half_made)
{
	struct broker_vm_create q = create_request("half", 0);

	setup();
	CHECK_EQ(create("whole", 0), RC_OK);
	fake.agent_mode = AGENT_SILENT;
	q.memory_mib = 1536; /* waits for a template that is being made */
	CHECK_EQ(ask_send(client, BROKER_VM_CREATE, (message_put_fn *)broker_vm_create_put, &q), RC_OK);
	UNTIL(fake_runs("_cold") && machine_find(b, "half"));
	broker_close(b);
	CHECK_EQ(loop_run(loop, NULL), RC_OK);
	CHECK(!fake_runs("_cold") && !machine_find(b, "half"));
	CHECK(fake_runs("whole"));
	CHECK_EQ(files_below("state/vms"), 1);
	CHECK_EQ(ask_receive(client, BROKER_VM_CREATE, NULL, NULL), RC_STATE);
	fake.agent_mode = AGENT_OK;
	teardown();
}

/* --- exposures -------------------------------------------------------------------------------------------------- */

static enum rc expose(const char *host, const char *id, bool keep)
{
	struct broker_expose q = { .line = "{\"service\":\"dial\",\"port\":8000}", .org = "acme", .keep = keep };

	snprintf(q.host, sizeof(q.host), "%s", host);
	snprintf(q.id, sizeof(q.id), "%s", id);
	return ASK(EXPOSE_ADD, broker_expose, &q, broker_none, &none);
}

static enum rc expose_dial(int fd, const char *host)
{
	struct broker_host q;
	enum rc rc;

	snprintf(q.host, sizeof(q.host), "%s", host);
	rc = ask_on(fd, BROKER_EXPOSE_DIAL, (message_put_fn *)broker_host_put, &q, (message_get_fn *)broker_none_get, &none);
	if (!rc)
		CHECK_EQ(got_n_fds, 1);
	fds_close(got_fds, got_n_fds);
	return rc;
}

TEST(exposures)
{
	struct broker_cursor cursor = { "" };
	struct broker_expose_list list;
	struct broker_host gone = { "b.nestbox.localhost" };
	struct broker_exposed row;
	struct wire rows;
	int gateway;

	setup();
	CHECK_EQ(create("x", 0), RC_OK);
	gateway = peer_open(PEER_GATEWAY);
	CHECK_EQ(ask_on(gateway, BROKER_SUBSCRIBE, NULL, NULL, NULL, NULL), RC_OK);
	CHECK_EQ(ASK(SUBSCRIBE, broker_none, &none, broker_none, &none), RC_OK);
	CHECK_EQ(expose("a.nestbox.localhost", "x", false), RC_OK);
	CHECK_EQ(expose("b.nestbox.localhost", "x", false), RC_OK);
	CHECK_EQ(expose("app.nestbox.localhost", "x", true), RC_OK);
	CHECK_EQ(expose("sleeps.nestbox.localhost", "", true), RC_OK);
	CHECK_EQ(expose("no.nestbox.localhost", "", false), RC_INVALID);
	CHECK_EQ(expose("../x", "x", false), RC_INVALID);
	CHECK_EQ(expose("A.b", "x", false), RC_INVALID);
	CHECK_EQ(expose("c.nestbox.localhost", "nobody", false), RC_ABSENT);
	CHECK_EQ(ASK(EXPOSE_LIST, broker_cursor, &cursor, broker_expose_list, &list), RC_OK);
	CHECK_EQ(list.n, 4);
	CHECK_EQ(expose_dial(gateway, "a.nestbox.localhost"), RC_OK);
	UNTIL(!strcmp(fake.last_line, "{\"service\":\"dial\",\"port\":8000}"));
	CHECK_EQ(expose_dial(gateway, "nobody.nestbox.localhost"), RC_ABSENT);
	CHECK_EQ(ASK(EXPOSE_DELETE, broker_host, &gone, broker_none, &none), RC_OK);
	CHECK_EQ(ASK(EXPOSE_DELETE, broker_host, &gone, broker_none, &none), RC_ABSENT);
	close(gateway);
	broker_down();
	broker_up();
	CHECK_EQ(ASK(SUBSCRIBE, broker_none, &none, broker_none, &none), RC_OK);
	CHECK_EQ(expose_dial(client, "a.nestbox.localhost"), RC_OK);
	CHECK_EQ(vm_kill("x"), RC_OK);
	CHECK_EQ(expose_dial(client, "a.nestbox.localhost"), RC_ABSENT);
	CHECK_EQ(expose_dial(client, "app.nestbox.localhost"), RC_ABSENT);
	CHECK_EQ(expose_dial(client, "sleeps.nestbox.localhost"), RC_ABSENT);
	CHECK_EQ(ASK(EXPOSE_LIST, broker_cursor, &cursor, broker_expose_list, &list), RC_OK);
	CHECK_EQ(list.n, 2);
	/* Whose they are, after a restart. */
	wire_init(&rows, (void *)(uintptr_t)list.rows, list.rows_n);
	broker_exposed_get(&rows, &row);
	CHECK(wire_ok(&rows) && !strcmp(row.host, "app.nestbox.localhost") && !strcmp(row.org, "acme"));
	CHECK(strstr(events, "expose a.nestbox.localhost 0\n") && strstr(events, "wanted app.nestbox.localhost\n") &&
	      strstr(events, "expose a.nestbox.localhost 1 acme\n"));
	/* A name that the gateway listens for but that is no exposure wakes nothing. */
	CHECK(!strstr(events, "wanted a.nestbox.localhost"));
	teardown();
	tree_remove_at(AT_FDCWD, "state/exposures", NULL);
}

/* --- logins ----------------------------------------------------------------------------------------------------- */

static void login_key(char out[BROKER_LOGIN_KEY_MAX], int n)
{
	snprintf(out, BROKER_LOGIN_KEY_MAX, "%064d", n);
}

static enum rc login(const char *id, int n)
{
	struct broker_login q = { { 0 } };

	snprintf(q.id, sizeof(q.id), "%s", id);
	login_key(q.key, n);
	return ASK(LOGIN_ADD, broker_login, &q, broker_none, &none);
}

static enum rc login_dial(int fd, int n, bool connect)
{
	struct broker_login_dial q = { .connect = connect };
	enum rc rc;

	login_key(q.key, n);
	rc = ask_on(fd, BROKER_LOGIN_DIAL, (message_put_fn *)broker_login_dial_put, &q, (message_get_fn *)broker_none_get, &none);
	if (!rc)
		CHECK_EQ(got_n_fds, connect ? 1 : 0);
	fds_close(got_fds, got_n_fds);
	return rc;
}

TEST(logins_live_as_long_as_their_machine)
{
	struct broker_login bad = { .id = "x", .key = "0123456789abcdef" };
	struct broker_vm_id y = { "y" }, x = { "x" };
	enum rc rc;
	struct wire w;
	int ssh, vm_dir;

	setup();
	CHECK_EQ(create("x", 0), RC_OK);
	CHECK_EQ(create("y", 0), RC_OK);
	CHECK_EQ(login("nobody", 1), RC_ABSENT);
	CHECK_EQ(ASK(LOGIN_ADD, broker_login, &bad, broker_none, &none), RC_INVALID);
	for (int i = 1; i <= LOGINS_MAX; i++)
		CHECK_EQ(login("x", i), RC_OK);
	CHECK_EQ(login("x", LOGINS_MAX + 1), RC_LIMIT);
	CHECK_EQ(login("y", 1), RC_STATE);
	CHECK_EQ(login("y", 100), RC_OK);
	broker_down();
	broker_up();
	ssh = peer_open(PEER_SSH);
	CHECK_EQ(ask_on(ssh, BROKER_SUBSCRIBE, NULL, NULL, NULL, NULL), RC_OK);
	CHECK_EQ(login_dial(ssh, 1, false), RC_OK);
	CHECK_EQ(login_dial(ssh, LOGINS_MAX, true), RC_OK);
	CHECK_EQ(login_dial(ssh, 100, true), RC_OK);
	CHECK_EQ(login_dial(ssh, 50, false), RC_ABSENT);
	CHECK_EQ(login_dial(client, 1, false), RC_DENIED);
	CHECK_EQ(ASK(VM_PAUSE, broker_vm_id, &x, broker_none, &none), RC_OK);
	CHECK_EQ(login_dial(ssh, 1, false), RC_OK);
	CHECK_EQ(login_dial(ssh, 1, true), RC_STATE);
	events[0] = '\0';
	CHECK_EQ(ASK(LOGIN_CLEAR, broker_vm_id, &y, broker_none, &none), RC_OK);
	CHECK_EQ(login_dial(ssh, 100, false), RC_ABSENT);
	CHECK_EQ(login("y", 101), RC_OK);
	CHECK_EQ(vm_kill("y"), RC_OK);
	CHECK_EQ(login_dial(ssh, 101, true), RC_ABSENT);
	while (recv(ssh, mem, 1, MSG_PEEK | MSG_DONTWAIT) > 0)
		receive(ssh, 0, &rc, &w, NULL);
	CHECK_STR(events, "login gone 0000000000000000000000000000000000000000000000000000000000000100\n"
			  "login gone 0000000000000000000000000000000000000000000000000000000000000101\n");
	/* Nothing but what the file says, and no file that says something else. */
	broker_down();
	vm_dir = open("state/vms/x", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	CHECK_EQ(file_write_at(vm_dir, "logins", "0123\n", 5, 0600, NULL), RC_OK);
	close(vm_dir);
	broker_up();
	close(ssh);
	ssh = peer_open(PEER_SSH);
	CHECK_EQ(login_dial(ssh, 1, false), RC_ABSENT);
	close(ssh);
	teardown();
}

/* --- peers ------------------------------------------------------------------------------------------------------ */

TEST(egress_hears_of_every_machine)
{
	static const uint8_t policy[] = "new";
	struct broker_vm_policy_set q = { .id = "b", .policy = policy, .policy_n = 3 };
	struct broker_egress_ca ca = { .id = "b" };
	enum rc rc;
	struct wire w;
	int egress;

	setup();
	CHECK_EQ(create("a", 0), RC_OK);
	egress = peer_open(PEER_EGRESS);
	CHECK_EQ(ask_on(egress, BROKER_EGRESS_ATTACH, NULL, NULL, NULL, NULL), RC_OK);
	CHECK_EQ(create("b", 0), RC_OK);
	/* Answered when the proxy has taken it. */
	CHECK_EQ(ask_send(client, BROKER_VM_POLICY, (message_put_fn *)broker_vm_policy_set_put, &q), RC_OK);
	UNTIL(strstr(events, "egress policy b new") || (recv(egress, mem, 1, MSG_PEEK | MSG_DONTWAIT) > 0 && receive(egress, 0, &rc, &w, NULL)));
	CHECK_EQ(ASK(VM_POLICY, broker_vm_policy_set, &q, broker_none, &none), RC_AGAIN);
	CHECK_EQ(ask_on(egress, BROKER_EGRESS_CA, (message_put_fn *)broker_egress_ca_put, &ca, NULL, NULL), RC_OK);
	CHECK_EQ(ask_receive(client, BROKER_VM_POLICY, (message_get_fn *)broker_none_get, &none), RC_OK);
	CHECK_EQ(vm_kill("a"), RC_OK);
	while (recv(egress, mem, 1, MSG_PEEK | MSG_DONTWAIT) > 0)
		receive(egress, 0, &rc, &w, NULL);
	CHECK_STR(events, "egress vm a nestbox-policy 1\n fds 3\negress vm b nestbox-policy 1\n fds 3\n"
			  "egress policy b new\negress gone a\n");
	close(egress);
	UNTIL(peers_count(b) == 1);
	events[0] = '\0';
	egress = peer_open(PEER_EGRESS);
	CHECK_EQ(ask_on(egress, BROKER_EGRESS_ATTACH, NULL, NULL, NULL, NULL), RC_OK);
	CHECK_EQ(ask_on(client, BROKER_EGRESS_ATTACH, NULL, NULL, NULL, NULL), RC_DENIED);
	while (recv(egress, mem, 1, MSG_PEEK | MSG_DONTWAIT) > 0)
		receive(egress, 0, &rc, &w, NULL);
	CHECK_STR(events, "egress vm b new fds 3\n");
	close(egress);
	teardown();
}

TEST(a_new_machine_is_told_the_proxys_certificate)
{
	struct broker_vm_create q = create_request("ca", 0);
	struct broker_egress_ca ca = { .id = "ca", .pem = "-----BEGIN SOMETHING-----" };
	struct broker_vm_created created;
	struct wire w;
	enum rc rc;
	int egress;

	setup();
	egress = peer_open(PEER_EGRESS);
	CHECK_EQ(ask_on(egress, BROKER_EGRESS_ATTACH, NULL, NULL, NULL, NULL), RC_OK);
	CHECK_EQ(ask_on(egress, BROKER_EGRESS_CA, (message_put_fn *)broker_egress_ca_put, &ca, NULL, NULL), RC_ABSENT);
	CHECK_EQ(ask_send(client, BROKER_VM_CREATE, (message_put_fn *)broker_vm_create_put, &q), RC_OK);
	UNTIL(receive(egress, 0, &rc, &w, NULL) || strstr(events, "egress vm ca "));
	CHECK_EQ(ask_on(egress, BROKER_EGRESS_CA, (message_put_fn *)broker_egress_ca_put, &ca, NULL, NULL), RC_OK);
	CHECK_EQ(ask_receive(client, BROKER_VM_CREATE, (message_get_fn *)broker_vm_created_get, &created), RC_OK);
	CHECK(strstr(fake.last_line, "\"ca_pem\":\"-----BEGIN SOMETHING-----\"") != NULL);
	close(egress);
	teardown();
}

/* EGRESS_CA_MS: a proxy that hangs holds a machine up for so long, and nobody else; what it says later still arrives. */
TEST(a_proxy_that_hangs_holds_a_machine_up_for_a_bounded_time)
{
	struct broker_vm_create q = create_request("late", 0);
	struct broker_egress_ca ca = { .id = "late", .pem = "-----BEGIN LATE-----" };
	struct broker_vm_created created;
	struct wire w;
	enum rc rc;
	uint64_t begun;
	int egress;

	setup();
	egress = peer_open(PEER_EGRESS);
	CHECK_EQ(ask_on(egress, BROKER_EGRESS_ATTACH, NULL, NULL, NULL, NULL), RC_OK);
	begun = now_ms();
	CHECK_EQ(ask_send(client, BROKER_VM_CREATE, (message_put_fn *)broker_vm_create_put, &q), RC_OK);
	UNTIL(receive(egress, 0, &rc, &w, NULL) || strstr(events, "egress vm late "));
	CHECK_EQ(ask_receive(client, BROKER_VM_CREATE, (message_get_fn *)broker_vm_created_get, &created), RC_OK);
	CHECK(now_ms() - begun >= EGRESS_CA_MS);
	CHECK(!strstr(fake.last_line, "ca_pem"));
	CHECK_EQ(ask_on(egress, BROKER_EGRESS_CA, (message_put_fn *)broker_egress_ca_put, &ca, NULL, NULL), RC_OK);
	UNTIL(strstr(fake.last_line, "\"ca_pem\":\"-----BEGIN LATE-----\"") && strstr(fake.last_line, "\"trust\""));
	close(egress);
	teardown();
}

/* Only what the table says: for each kind of peer, the operations that it is not refused. */
TEST(who_may_ask_what)
{
	static const struct { unsigned int who; const char *allowed; } peers[] = {
		{ PEER_GATEWAY, " HELLO EXPOSE_LIST EXPOSE_DIAL SUBSCRIBE" },
		{ PEER_SSH, " HELLO LOGIN_DIAL SUBSCRIBE" },
		{ PEER_EGRESS, " HELLO EGRESS_ATTACH EGRESS_CA" },
		{ PEER_API, " HELLO VM_CREATE VM_KILL VM_STAT VM_LIST VM_EXTEND VM_DIAL EXPOSE_ADD EXPOSE_DELETE EXPOSE_LIST"
			    " EXPOSE_DIAL LOGIN_ADD LOGIN_CLEAR SUBSCRIBE VM_POLICY VM_PAUSE VM_RESUME VM_FORK VOLUME_CREATE VOLUME_DELETE"
			    " VOLUME_STAT VOLUME_SNAPSHOT NODE_STAT VM_CAPTURE CAPTURE_DELETE CAPTURE_LIST VM_POLICY_GET" },
	};
	static const struct { const char *name; uint16_t op; } ops[] = {
#define X(name, number, request, reply) { #name, number },
		BROKER_OPS(X)
#undef X
	};

	setup();
	for (size_t i = 0; i < ARRAY_SIZE(peers); i++) {
		char allowed[512] = "";
		int fd = peer_open(peers[i].who);

		/* Sent without fields: a malformed request is still one that was not refused to this peer. */
		for (size_t k = 0; k < ARRAY_SIZE(ops); k++)
			if (ask_on(fd, ops[k].op, NULL, NULL, NULL, NULL) != RC_DENIED) {
				strcat(allowed, " ");
				strcat(allowed, ops[k].name);
			}
		CHECK_STR(allowed, peers[i].allowed);
		close(fd);
	}
	CHECK_EQ(ask_on(client, 99, NULL, NULL, NULL, NULL), RC_PROTO);
	CHECK_EQ(ask_on(client, 0, NULL, NULL, NULL, NULL), RC_PROTO);
	CHECK_EQ(ask_on(client, 0x3fff, NULL, NULL, NULL, NULL), RC_PROTO);
	teardown();
}

TEST(broken_packets_end_the_connection)
{
	static const char *const bad[] = { "", "x", "NBX1", "NBX1\1\0\1\0aaaabbbbccdd", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" };

	setup();
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		int fd = peer_open(PEER_API);

		CHECK(send(fd, bad[i], i == 3 ? 20 : strlen(bad[i]), 0) >= 0);
		CHECK_EQ(ask_receive(fd, 1, NULL, NULL), RC_CLOSED);
		close(fd);
	}
	CHECK_EQ(create("x", 0), RC_OK);
	teardown();
}

TEST(peer_with_too_many_requests_is_closed)
{
	struct broker_vm_dial q = { "x", 0 };
	enum rc rc = RC_OK;
	struct wire w;

	setup();
	CHECK_EQ(create("x", 0), RC_OK);
	fake.agent_port = 1; /* nobody listens there: each dial is tried until its deadline */
	for (int i = 0; i < PEER_REQUESTS_MAX + 1; i++)
		CHECK_EQ(ask_send(client, BROKER_VM_DIAL, (message_put_fn *)broker_vm_dial_put, &q), RC_OK);
	while (!rc && !receive(client, BROKER_VM_DIAL, &rc, &w, &last))
		loop_once(loop, 20, NULL);
	CHECK_EQ(rc, RC_CLOSED);
	teardown();
}

TEST(peer_that_does_not_read_is_closed)
{
	setup();
	CHECK_EQ(create("x", 0), RC_OK);
	CHECK_EQ(ASK(SUBSCRIBE, broker_none, &none, broker_none, &none), RC_OK);
	for (int i = 0; i < 200000 && peers_count(b) > 0; i++) {
		broker_event_vm(b, b->machines[0], BROKER_VM_RUNNING, "again");
		if (i % 1000 == 0)
			loop_once(loop, 0, NULL);
	}
	CHECK_EQ(peers_count(b), 0);
	teardown();
}

int main(int argc, char **argv)
{
	return bed_main("test_broker", argc, argv);
}
