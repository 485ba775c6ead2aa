/* SPDX-License-Identifier: Apache-2.0 */
/* Copying memory of another process over a base, against a plain array. */
#include "base/cleanup.h"
#include "base/fd.h"
#include "tests/lib/check.h"
#include "vmm/engines/qemu/memory.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define SIZE (8u << 20)
#define PAGE 4096u

static uint8_t model[SIZE];

/* A process that maps the base privately, writes the same random pages as we do in `model`, then waits. */
static pid_t writer(int base_fd, unsigned int seed, uint64_t *ret_address)
{
	uint8_t *mem = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, base_fd, 0);
	int ready[2];
	pid_t pid;
	char c;

	*ret_address = (uint64_t)(uintptr_t)mem;
	if (mem == MAP_FAILED || pipe(ready) < 0)
		return -1;
	pid = fork();
	for (int i = 0; i < 300; i++) {
		size_t at = (size_t)rand_r(&seed) % (SIZE / PAGE) * PAGE;
		int value = rand_r(&seed) % 3 ? rand_r(&seed) & 255 : 0; /* zeros over data too */

		memset((pid ? model : mem) + at, value, PAGE);
	}
	if (!pid) {
		volatile uint8_t sum = 0;

		for (size_t at = 0; at < SIZE / 2; at += PAGE)
			sum = (uint8_t)(sum + mem[at]); /* reading makes no page one's own */
		if (write(ready[1], "r", 1) == 1)
			pause();
		_exit(0);
	}
	munmap(mem, SIZE);
	if (read(ready[0], &c, 1) != 1)
		return -1;
	close(ready[0]);
	close(ready[1]);
	return pid;
}

static void base_fill(int fd)
{
	unsigned int seed = 77;

	memset(model, 0, sizeof(model));
	for (int i = 0; i < 200; i++) {
		size_t at = (size_t)rand_r(&seed) % (SIZE / PAGE) * PAGE;

		memset(model + at, 1 + i, PAGE);
		if (pwrite(fd, model + at, PAGE, (off_t)at) != (ssize_t)PAGE)
			abort();
	}
}

static bool same(int fd)
{
	static uint8_t got[SIZE];

	return pread(fd, got, SIZE, 0) == (ssize_t)SIZE && !memcmp(got, model, SIZE);
}

TEST(base_and_own_pages)
{
	_cleanup_fd_ int base = -1, copy = -1, again = -1;
	struct memory_source from = { .size = SIZE };
	struct memory_sum first, second;
	uint64_t pages;

	REQUIRE(!memory_file("base", SIZE, &base, NULL));
	base_fill(base);
	REQUIRE(!memory_seal(base, NULL));
	CHECK(pwrite(base, "x", 1, 0) < 0);
	from.base_fd = base;
	from.pid = writer(base, 5, &from.address);
	REQUIRE(from.pid > 0);
	REQUIRE(!memory_file("copy", 0, &copy, NULL));
	CHECK(!memory_copy(&from, copy, true, &first, NULL));
	CHECK(same(copy));
	CHECK(first.private_pages > 100 && first.private_pages <= 300);
	/* The checksum doesn't depend on where the pages came from. */
	REQUIRE(!memory_file("again", 0, &again, NULL));
	CHECK(!memory_copy(&(struct memory_source){ .base_fd = copy, .size = SIZE }, again, true, &second, NULL));
	CHECK(!memcmp(first.digest, second.digest, MEMORY_DIGEST) && first.pages == second.pages);
	/* Own pages alone over a copy of the base. */
	close_fd(&again);
	REQUIRE(!memory_file("again", 0, &again, NULL));
	CHECK(!memory_copy(&(struct memory_source){ .base_fd = base, .size = SIZE }, again, true, &second, NULL));
	CHECK(!same(again));
	CHECK(!memory_copy_own(&from, again, NULL, NULL, &pages, NULL));
	CHECK_EQ(pages, first.private_pages);
	CHECK(same(again));
	kill(from.pid, SIGKILL);
	waitpid(from.pid, NULL, 0);
}

TEST(one_bit_changes_the_sum)
{
	_cleanup_fd_ int a = -1, b = -1;
	struct memory_sum first, second;
	uint8_t bit = 1;

	REQUIRE(!memory_file("a", SIZE, &a, NULL));
	base_fill(a);
	REQUIRE(!memory_file("b", 0, &b, NULL));
	CHECK(!memory_copy(&(struct memory_source){ .base_fd = a, .size = SIZE }, b, true, &first, NULL));
	CHECK(pwrite(a, &bit, 1, SIZE - 1) == 1);
	close_fd(&b);
	REQUIRE(!memory_file("b", 0, &b, NULL));
	CHECK(!memory_copy(&(struct memory_source){ .base_fd = a, .size = SIZE }, b, true, &second, NULL));
	CHECK(memcmp(first.digest, second.digest, MEMORY_DIGEST));
}

/* How often anything here waited for a process to end: takes the place of libc's. */
static int waits;

int waitid(idtype_t type, id_t id, siginfo_t *info, int options)
{
	waits += !(options & WNOHANG);
	return (int)syscall(SYS_waitid, type, id, info, options, NULL);
}

pid_t waitpid(pid_t pid, int *status, int options)
{
	waits += !(options & WNOHANG);
	return (pid_t)syscall(SYS_wait4, pid, status, options, NULL);
}

static struct job_result got;
static bool ended;

static void on_job(void *arg, const struct job_result *r)
{
	(void)arg;
	got = *r;
	ended = true;
}

TEST(job_reports_and_fails)
{
	_cleanup_fd_ int a = -1, b = -1, full = open("/dev/full", O_WRONLY | O_CLOEXEC);
	struct process_grave *graves = NULL;
	struct job_spec spec = { .from = { .size = SIZE }, .graves = &graves };
	struct loop *loop;
	struct job *job;

	REQUIRE(!loop_new(&loop, NULL) && !memory_file("a", SIZE, &a, NULL) && !memory_file("b", 0, &b, NULL));
	base_fill(a);
	spec.from.base_fd = a;
	spec.out_fd = b;
	ended = false;
	REQUIRE(!job_start(loop, &spec, on_job, NULL, &job, NULL));
	for (int i = 0; i < 100 && !ended; i++)
		loop_once(loop, 100, NULL);
	CHECK(ended && !got.fault.rc);
	CHECK(same(b));
	job_free(job);
	spec.out_fd = full;
	ended = false;
	REQUIRE(!job_start(loop, &spec, on_job, NULL, &job, NULL));
	for (int i = 0; i < 100 && !ended; i++)
		loop_once(loop, 100, NULL);
	CHECK(ended && got.fault.rc);
	job_free(job);
	/* Dropped while it runs. */
	REQUIRE(!job_start(loop, &spec, on_job, NULL, &job, NULL));
	ended = false;
	waits = 0;
	job_free(job);
	CHECK_EQ(waits, 0);
	for (uint64_t late = now_ms() + 60000; graves && now_ms() < late;)
		loop_once(loop, 100, NULL);
	CHECK(!graves && !ended);
	CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);
	/* At the end of all there is nobody left who would reap it. */
	REQUIRE(!job_start(loop, &spec, on_job, NULL, &job, NULL));
	job_free(job);
	process_graves_free(&graves);
	CHECK(!graves && !ended);
	CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);
	loop_free(loop);
}

/* QEMU has the file too, and may make it longer at any moment: what is read is bounded by what was there. */
TEST(digest_of_a_file_that_grows)
{
	uint8_t one[MEMORY_DIGEST], two[MEMORY_DIGEST];
	int fd;

	REQUIRE(!memory_file("state", PAGE, &fd, NULL));
	REQUIRE(!memory_digest_file(fd, PAGE, one, NULL));
	CHECK(!ftruncate(fd, 1ll << 40));
	CHECK_EQ(memory_digest_file(fd, PAGE, two, NULL), RC_OK);
	CHECK(!memcmp(one, two, sizeof(one)));
	CHECK(!ftruncate(fd, PAGE - 1));
	CHECK_EQ(memory_digest_file(fd, PAGE, two, NULL), RC_SYS);
	close(fd);
}

CHECK_MAIN()
