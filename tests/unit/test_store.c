/* SPDX-License-Identifier: Apache-2.0 */
/* Copies of disks and their checksums; on a file system that shares extents, too, where one can be made and mounted. */
#include "base/cleanup.h"
#include "base/fd.h"
#include "tests/lib/check.h"
#include "vmm/store/copy.h"
#include "vmm/store/sum.h"
#include "vmm/store/volume.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define SIZE (8u << 20)

static int disk(const char *path, const char *how)
{
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	char block[5000], zero[SUM_BLOCK] = { 0 };

	CHECK(fd >= 0 && ftruncate(fd, SIZE) == 0);
	memset(block, 'x', sizeof(block));
	CHECK(pwrite(fd, block, sizeof(block), 100) == sizeof(block));
	CHECK(pwrite(fd, block, 10, SIZE - 10) == 10);
	CHECK(pwrite(fd, block, sizeof(block), 3 << 20) == sizeof(block));
	if (!strcmp(how, "zeroes"))
		for (int i = 0; i < 100; i++)
			CHECK(pwrite(fd, zero, sizeof(zero), (1 << 20) + i * SUM_BLOCK) == sizeof(zero));
	if (!strcmp(how, "other"))
		CHECK(pwrite(fd, "y", 1, 3 << 20) == 1);
	if (!strcmp(how, "moved"))
		CHECK(pwrite(fd, block, sizeof(block), 5 << 20) == sizeof(block) &&
			pwrite(fd, zero, sizeof(zero), 3 << 20) == sizeof(zero) &&
			pwrite(fd, zero, sizeof(zero), (3 << 20) + SUM_BLOCK) == sizeof(zero));
	return fd;
}

static struct sum sum_of(int fd)
{
	struct sum s = { 0 };
	struct fault f;

	CHECK_EQ(sum_disk(fd, &s, &f), RC_OK);
	return s;
}

TEST(a_sum_is_of_what_a_disk_says)
{
	_cleanup_fd_ int a = disk("a", ""), b = disk("b", "zeroes"), c = disk("c", "other"), d = disk("d", "moved");
	struct sum s = sum_of(a), t = sum_of(b), u = sum_of(c), v = sum_of(d);
	struct fault f;

	CHECK_EQ(strlen(s.hex), 64);
	CHECK_EQ(s.bytes, SIZE);
	CHECK_EQ(sum_compare(&s, &t, &f), RC_OK);
	CHECK_EQ(sum_compare(&s, &u, &f), RC_STATE);
	CHECK_EQ(sum_compare(&s, &v, &f), RC_STATE);
	REQUIRE(ftruncate(b, SIZE + SUM_BLOCK) == 0);
	t = sum_of(b);
	CHECK_EQ(sum_compare(&s, &t, &f), RC_STATE);
}

TEST(the_line_of_a_sum)
{
	static const char *const bad[] = { "x", "sha256 0123\n", "sha256 \n",
		"sha256 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef 12",
		"sha256 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdeg 12\n",
		"sha256 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef \n",
		"sha256 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef 12\n\n",
		"md5sum 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef 12\n" };
	_cleanup_fd_ int a = disk("a", ""), fd = open("sum", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	struct sum s = sum_of(a), t;
	struct fault f;

	CHECK_EQ(sum_read(fd, &t, &f), RC_ABSENT);
	CHECK_EQ(sum_write(fd, &s, &f), RC_OK);
	CHECK_EQ(sum_read(fd, &t, &f), RC_OK);
	CHECK_EQ(sum_compare(&s, &t, &f), RC_OK);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		REQUIRE(ftruncate(fd, 0) == 0 && pwrite(fd, bad[i], strlen(bad[i]), 0) == (ssize_t)strlen(bad[i]));
		CHECK_EQ(sum_read(fd, &t, &f), RC_STATE);
	}
}

static void copies_are_equal(const char *from, const char *to, bool want_shared)
{
	_cleanup_fd_ int a = disk(from, "zeroes"), b = open(to, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	struct sum s = sum_of(a), t = { 0 }, u;
	struct fault f;
	struct stat st;
	bool shared;

	REQUIRE(b >= 0 && pwrite(b, "old", 3, 50) == 3);
	CHECK_EQ(sum_copy(a, b, &shared, &t, &f), RC_OK);
	CHECK_EQ(shared, want_shared);
	if (!shared)
		CHECK_EQ(sum_compare(&t, &s, &f), RC_OK);
	u = sum_of(b);
	CHECK_EQ(sum_compare(&u, &s, &f), RC_OK);
	REQUIRE(fstat(b, &st) == 0);
	CHECK(st.st_blocks * 512 < 1 << 20); /* what was written zeroes is a hole at most */
}

TEST(copies_where_nothing_is_shared)
{
	copies_are_equal("a", "b", false);
}

/* What is shared is told apart from what is a volume's own. */
TEST(copies_where_extents_are_shared)
{
	struct volume v;
	struct fault f;
	int store, fd;

	if (system("truncate -s 320M xfs.img && mkfs.xfs -q xfs.img 2>/dev/null && mkdir -p xfs && mount -o loop xfs.img xfs 2>/dev/null")) {
		SKIP("no XFS can be made and mounted here");
	}
	copies_are_equal("xfs/a", "xfs/b", true);
	store = open("xfs", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	CHECK_EQ(volume_begin(store, "v", SIZE, "", &fd, &f), RC_OK);
	REQUIRE(fsync(fd) == 0);
	{
		_cleanup_fd_ int a = open("xfs/a", O_RDONLY | O_CLOEXEC);

		CHECK_EQ(copy_disk(a, fd, NULL, &f), RC_OK);
	}
	close(fd);
	CHECK_EQ(volume_commit(store, "v", &f), RC_OK);
	CHECK_EQ(volume_open(store, "v", true, &v, &f), RC_OK);
	CHECK(v.used_bytes >= 8192);
	CHECK_EQ(volume_own_bytes(&v), 0);
	{
		char more[1 << 16];

		memset(more, 'm', sizeof(more));
		REQUIRE(pwrite(v.fd, more, sizeof(more), 6 << 20) == sizeof(more) && fsync(v.fd) == 0);
	}
	close(v.fd);
	CHECK_EQ(volume_open(store, "v", true, &v, &f), RC_OK);
	CHECK(volume_own_bytes(&v) >= 1 << 16 && volume_own_bytes(&v) < v.used_bytes);
	close(v.fd);
	close(store);
	CHECK_EQ(system("umount xfs"), 0);
}

/* A file that says it has no blocks and has data all the same: as a disk that is written while it is copied. */
TEST(a_quick_copy_is_bounded_by_what_it_reads)
{
	_cleanup_fd_ int from = open("/sys/kernel/uevent_seqnum", O_RDONLY | O_CLOEXEC), to = memfd_create("to", MFD_CLOEXEC);
	struct stat st;
	struct fault f;
	bool done = true;

	if (from < 0 || fstat(from, &st) < 0 || st.st_blocks || st.st_size < 4096)
		SKIP("sysfs has no such file");
	CHECK_EQ(copy_disk_quick(from, to, 100, &done, &f), RC_OK);
	CHECK(!done);
}

TEST(a_quick_copy_of_little_is_one)
{
	_cleanup_fd_ int a = disk("a", ""), b = open("quick", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	struct sum x, y;
	struct fault f;
	bool done = false;

	CHECK_EQ(copy_disk_quick(a, b, SIZE, &done, &f), RC_OK);
	CHECK(done);
	x = sum_of(a);
	y = sum_of(b);
	CHECK_EQ(sum_compare(&x, &y, &f), RC_OK);
}

int main(int argc, char **argv)
{
	char dir[] = "/tmp/nb-store-XXXXXX", command[64];
	int status;

	if (!mkdtemp(dir) || chdir(dir) < 0)
		return 1;
	status = check_main(argc, argv);
	snprintf(command, sizeof(command), "umount xfs 2>/dev/null; rm -rf %s", dir);
	return system(command) ? 1 : status;
}
