/* SPDX-License-Identifier: Apache-2.0 */
/* The kvm engine's snapshots on disk from the broker's side, with the real programs in the jail that read and write them; no KVM. Needs root. */
#include "base/cleanup.h"
#include "base/fd.h"
#include "tests/lib/check.h"
#include "vmm/engines/kvm/client.h"
#include "vmm/engines/kvm/savefile.h"
#include "vmm/engines/limits.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define BYTES (64ull << 20)
#define PAGES (BYTES / 4096)
#define STATE "the state of a machine"

static struct kvm_engine e;
static struct fault f;
static char dir[] = "/tmp/nestbox-stored.XXXXXX";

static bool begin(void)
{
	char path[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 32);

	if (geteuid() || e.exec_fd)
		return !geteuid();
	path[n < 0 ? 0 : n] = '\0';
	for (int i = 0; i < 3; i++)
		*strrchr(path, '/') = '\0';
	strcat(path, "/nestbox-vmm");
	e.exec_fd = open(path, O_RDONLY | O_CLOEXEC);
	e.null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (e.exec_fd < 0 || !mkdtemp(dir) || loop_new(&e.base.loop, &f) || jail_root_new(NULL, 0, false, &e.root, &f))
		abort();
	return true;
}

struct end {
	bool done;
	enum rc rc;
};

static void on_end(void *arg, enum rc rc, const struct fault *why)
{
	struct end *end = arg;

	end->done = true;
	end->rc = rc;
	if (why)
		f = *why;
}

static enum rc wait_end(enum rc rc, struct end *end)
{
	if (rc)
		printf("  %s\n", f.text);
	while (!rc && !end->done)
		if (loop_once(e.base.loop, 100, NULL))
			abort();
	if (!rc && end->rc)
		printf("  %s\n", f.text);
	return rc ? rc : end->rc;
}

static int sub(const char *name)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	(void)mkdir(path, 0700);
	return open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static void sub_remove(const char *name)
{
	char command[PATH_MAX + 16];

	snprintf(command, sizeof(command), "rm -r '%s/%s'", dir, name);
	if (system(command))
		abort();
}

/* As a fork leaves it: some pages of the model, sealed. */
static int layer(const uint8_t *model, const uint8_t *below)
{
	int fd = memfd_create("layer", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0 || ftruncate(fd, (off_t)BYTES) < 0)
		abort();
	for (uint64_t p = 0; p < PAGES; p++)
		if (memcmp(model + p * 4096, below + p * 4096, 4096) && pwrite(fd, model + p * 4096, 4096, (off_t)(p * 4096)) != 4096)
			abort();
	fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK);
	return fd;
}

static struct engine_snapshot *taken(const uint8_t *model, const uint8_t *below, int base)
{
	int fds[3], n = 0;
	uint32_t layers = base < 0 ? 3 : 2;

	if (base >= 0)
		fds[n++] = base;
	fds[n++] = layer(model, below);
	fds[n] = memfd_create("state", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (write(fds[n], STATE, sizeof(STATE)) != sizeof(STATE))
		abort();
	return stored_new(&e, layers, fds, BYTES);
}

static enum rc store(struct engine_snapshot *s, const char *name, const char *base)
{
	_cleanup_fd_ int to = sub(name), from = base ? sub(base) : -1;
	struct end end = { 0 };

	return wait_end(kvm_snapshot_store(s, to, from, on_end, &end, &f), &end);
}

static struct engine_snapshot *mapped(const char *name)
{
	_cleanup_fd_ int fd = sub(name);
	struct engine_snapshot *s = NULL;

	return kvm_snapshot_map(&e.base, fd, &s, &f) ? NULL : s;
}

static enum rc checked(const char *name)
{
	struct engine_snapshot *s = mapped(name);
	struct end end = { 0 };
	enum rc rc;

	if (!s)
		return f.rc;
	rc = wait_end(kvm_snapshot_check(s, on_end, &end, &f), &end);
	kvm_snapshot_free(s);
	return rc;
}

/* Opened it is one whole memory, whatever it was in its files. */
static bool opened_is(const char *name, const uint8_t *model)
{
	_cleanup_fd_ int fd = sub(name);
	struct engine_snapshot *s;
	struct end end = { 0 };
	int fds[3];
	char state[64];
	uint8_t *m;
	bool same;
	size_t n;

	if (wait_end(kvm_snapshot_open(&e.base, fd, on_end, &end, &s, &f), &end))
		return false;
	same = stored_layers(s, fds, &n) == 1 && n == 2 && pread(fds[1], state, sizeof(state), 0) == sizeof(STATE) && !strcmp(state, STATE);
	m = mmap(NULL, BYTES, PROT_READ, MAP_SHARED, fds[0], 0);
	same = same && m != MAP_FAILED && !memcmp(m, model, BYTES) && ftruncate(fds[0], 0) < 0;
	munmap(m, BYTES);
	kvm_snapshot_free(s);
	return same;
}

static uint64_t blocks(const char *name, const char *file)
{
	char path[PATH_MAX];
	struct stat st;

	snprintf(path, sizeof(path), "%s/%s/%s", dir, name, file);
	return stat(path, &st) ? 0 : (uint64_t)st.st_blocks;
}

static void flip(const char *name, const char *file, off_t at)
{
	_cleanup_fd_ int in = sub(name);
	_cleanup_fd_ int fd = openat(in, file, O_RDWR | O_CLOEXEC);
	uint8_t b;

	if (pread(fd, &b, 1, at) != 1)
		abort();
	b ^= 8;
	if (pwrite(fd, &b, 1, at) != 1)
		abort();
}

static uint8_t zero[BYTES], first[BYTES], second[BYTES], third[BYTES];

TEST(what_a_capture_shares_outlives_the_other)
{
	struct engine_snapshot *s;
	uint32_t layers;
	int fds[3];
	size_t n;

	if (!begin()) {
		printf("  skip: needs root\n");
		return;
	}
	for (uint64_t p = 0; p < PAGES / 4; p += 2)
		memset(first + p * 4096, (int)(p % 250) + 1, 4096);
	memcpy(second, first, BYTES);
	memset(second + 100 * 4096, 77, 5 * 4096);
	memset(second + 300 * 4096, 0, 4 * 4096); /* zeroes over what was there */
	s = taken(first, zero, -1);
	REQUIRE(s && !store(s, "one", NULL));
	kvm_snapshot_free(s);
	CHECK_EQ(blocks("one", "base"), 0);
	CHECK(opened_is("one", first));
	CHECK_EQ(checked("one"), RC_OK);
	/* A second: in layers, over the first's memory. */
	s = taken(second, first, layer(first, zero));
	REQUIRE(s && !store(s, "two", "one"));
	kvm_snapshot_free(s);
	CHECK(blocks("two", "memory") * 20 < blocks("one", "memory"));
	CHECK_EQ(blocks("two", "base"), blocks("one", "memory"));
	sub_remove("one");
	CHECK_EQ(checked("two"), RC_OK);
	CHECK(opened_is("two", second));
	s = mapped("two");
	REQUIRE(s != NULL);
	layers = stored_layers(s, fds, &n);
	CHECK(layers == 2 && n == 3);
	/* A third, of a machine that came from the second: based on the same whole memory. */
	memcpy(third, second, BYTES);
	memset(third + 1000 * 4096, 3, 4096);
	kvm_snapshot_free(s);
	s = taken(third, second, layer(second, zero));
	REQUIRE(s && !store(s, "three", "two"));
	kvm_snapshot_free(s);
	sub_remove("two");
	CHECK(opened_is("three", third));
	/* One that has little in common is whole. */
	for (uint64_t p = 0; p < PAGES; p++)
		memset(third + p * 4096, (int)(p % 199) + 1, 4096);
	s = taken(third, zero, -1);
	REQUIRE(s && !store(s, "four", "three"));
	kvm_snapshot_free(s);
	CHECK_EQ(blocks("four", "base"), 0);
	CHECK(opened_is("four", third));
	sub_remove("three");
	sub_remove("four");
}

TEST(damage_and_bases_that_are_missing_are_refused)
{
	_cleanup_fd_ int in = -1, other = -1;
	struct engine_snapshot *s;

	if (!begin())
		return;
	s = taken(first, zero, -1);
	REQUIRE(s && !store(s, "one", NULL));
	kvm_snapshot_free(s);
	s = taken(second, zero, -1);
	REQUIRE(s && !store(s, "two", "one"));
	kvm_snapshot_free(s);
	in = sub("two");
	flip("two", "memory", 101 * 4096);
	CHECK_EQ(checked("two"), RC_STATE);
	flip("two", "memory", 101 * 4096);
	flip("two", "memory", (off_t)BYTES + 60); /* which pages these are */
	CHECK_EQ(checked("two"), RC_STATE);
	flip("two", "memory", (off_t)BYTES + 60);
	flip("two", "base", 8);
	CHECK_EQ(checked("two"), RC_STATE);
	CHECK_EQ(checked("one"), RC_STATE); /* it is the same file */
	flip("two", "base", 8);
	CHECK_EQ(checked("two"), RC_OK);
	flip("two", "state", 40);
	CHECK(mapped("two") == NULL && f.rc == RC_STATE);
	flip("two", "state", 40);
	CHECK_EQ(renameat(in, "base", in, "away"), 0);
	CHECK(mapped("two") == NULL && f.rc == RC_STATE);
	CHECK(strstr(f.text, "base is missing") != NULL);
	/* Another in its place, of the same size. */
	other = openat(in, "base", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	CHECK_EQ(ftruncate(other, (off_t)BYTES), 0);
	CHECK_EQ(checked("two"), RC_STATE);
	CHECK_EQ(ftruncate(other, 4096), 0);
	CHECK(mapped("two") == NULL && f.rc == RC_STATE);
	sub_remove("one");
	sub_remove("two");
}

static int children(void)
{
	_cleanup_file_ FILE *in = fopen("/proc/thread-self/children", "re");
	int n = 0, pid;

	while (in && fscanf(in, "%d", &pid) == 1)
		n++;
	return in ? n : -1;
}

#define MANY (2 * ENGINE_STORES_MAX + 1)

/* More than may run are asked for: the others wait, and those that only read go before those that write. One that waits can be ended. */
TEST(so_many_at_once)
{
	struct engine_snapshot *s[MANY], *reader;
	struct end end[MANY] = { 0 }, read_end = { 0 };
	int to[MANY], most = 0, now, done = 0;
	bool passed = false;
	char name[16];

	if (!begin())
		return;
	s[0] = taken(first, zero, -1);
	REQUIRE(s[0] && !store(s[0], "read", NULL));
	kvm_snapshot_free(s[0]);
	reader = mapped("read");
	REQUIRE(reader != NULL);
	for (int i = 0; i < MANY; i++) {
		snprintf(name, sizeof(name), "s%d", i);
		to[i] = sub(name);
		s[i] = taken(first, zero, -1);
		REQUIRE(s[i] && !kvm_snapshot_store(s[i], to[i], -1, on_end, &end[i], &f));
		CHECK_EQ(children(), MIN_OF(i + 1, ENGINE_STORES_MAX));
	}
	REQUIRE(!kvm_snapshot_check(reader, on_end, &read_end, &f));
	CHECK_EQ(kvm_snapshot_check(reader, on_end, &read_end, NULL), RC_AGAIN);
	kvm_snapshot_free(s[MANY - 1]);
	while (done < MANY - 1 || !read_end.done) {
		REQUIRE(!loop_once(e.base.loop, 100, NULL));
		now = children();
		most = MAX_OF(most, now);
		done = 0;
		for (int i = 0; i < MANY; i++)
			done += end[i].done && !end[i].rc;
		/* The first writer that had to wait. */
		if ((s[ENGINE_STORES_MAX]->turn.running || end[ENGINE_STORES_MAX].done) && !passed) {
			passed = true;
			CHECK(reader->turn.running || read_end.done);
		}
	}
	CHECK_EQ(most, ENGINE_STORES_MAX);
	CHECK(passed && !read_end.rc);
	CHECK(!end[MANY - 1].done);
	kvm_snapshot_free(reader);
	for (int i = 0; i < MANY; i++) {
		if (i < MANY - 1)
			kvm_snapshot_free(s[i]);
		close(to[i]);
		snprintf(name, sizeof(name), "s%d", i);
		sub_remove(name);
	}
	CHECK_EQ(e.turns.running, 0);
	sub_remove("read");
}

/* Whoever frees a snapshot while a program reads or writes it hears nothing more, and the program is gone. */
TEST(what_is_under_way_can_be_ended)
{
	_cleanup_fd_ int to = -1;
	struct end end = { 0 };
	struct engine_snapshot *s;
	char children[16];

	if (!begin())
		return;
	to = sub("one");
	for (int i = 0; i < 5; i++) {
		s = taken(first, zero, -1);
		REQUIRE(s && !kvm_snapshot_store(s, to, -1, on_end, &end, &f));
		CHECK_EQ(kvm_snapshot_store(s, to, -1, on_end, &end, NULL), RC_AGAIN);
		loop_once(e.base.loop, 0, NULL);
		if (!end.done)
			kvm_snapshot_free(s);
		CHECK(!end.done);
		(void)unlinkat(to, "memory", 0);
		(void)unlinkat(to, "state", 0);
		/* Reaped when it has ended, or at the very end of the engine. */
		for (uint64_t late = now_ms() + 60000; i < 3 && e.graves && now_ms() < late;)
			loop_once(e.base.loop, 100, NULL);
		CHECK(i >= 3 || !e.graves);
	}
	process_graves_free(&e.graves);
	CHECK(!e.graves);
	_cleanup_fd_ int fd = open("/proc/thread-self/children", O_RDONLY | O_CLOEXEC);
	CHECK_EQ(read(fd, children, sizeof(children)), 0);
	sub_remove("one");
	jail_root_free(e.root);
	loop_free(e.base.loop);
	(void)rmdir(dir);
}

/* Whoever has waited and fails at once gives its turn to the next, however many they are. */
static struct turns many;
static size_t went;

static void go_and_fail(void *arg)
{
	went++;
	turn_give(arg);
}

TEST(turns_that_fail_at_once)
{
	enum { N = 2001 };
	struct turn had[ENGINE_STORES_MAX] = { 0 }, *waits = calloc(N, sizeof(*waits));

	REQUIRE(waits != NULL);
	for (size_t i = 0; i < ENGINE_STORES_MAX; i++)
		CHECK(turn_take(&many, &had[i], false, go_and_fail, &had[i]));
	for (size_t i = 0; i < N; i++)
		CHECK(!turn_take(&many, &waits[i], i % 2, go_and_fail, &waits[i]));
	CHECK_EQ(went, 0);
	/* One in the middle wants no more. */
	turn_give(&waits[500]);
	turn_give(&had[0]);
	CHECK_EQ(went, N - 1);
	CHECK_EQ(many.running, ENGINE_STORES_MAX - 1);
	for (size_t i = 1; i < ENGINE_STORES_MAX; i++)
		turn_give(&had[i]);
	CHECK(!many.running && !many.reading && !many.writing && !many.giving);
	free(waits);
}

CHECK_MAIN()
