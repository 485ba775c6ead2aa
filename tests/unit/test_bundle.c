/* SPDX-License-Identifier: Apache-2.0 */
#include "base/cleanup.h"
#include "base/fd.h"
#include "fcgi/deploy/bundle.h"
#include "tests/lib/check.h"

#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

static int bundles_dir(void)
{
	static char dir[] = "/tmp/nbbundle.XXXXXX";
	static int fd = -1;

	if (fd < 0) {
		if (!mkdtemp(dir))
			abort();
		fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	}
	return fd;
}

struct item {
	const char *path;
	unsigned int type;
	const char *text; /* content or target */
	long long size;   /* 0: that of text */
	const char *hardlink;
};

static const struct bundle_pace minute = BUNDLE_PACE_WITHIN(60000), moment = BUNDLE_PACE_WITHIN(300);

/* A tar of these items through a pipe into bundle_from_tar(). */
static enum rc feed(const struct item *items, size_t n, const struct bundle_limits *limits, struct bundle *b,
		    struct fault *f)
{
	struct bundle_limits def = BUNDLE_LIMITS_DEFAULT;
	int p[2];
	pid_t pid;
	enum rc rc;

	if (pipe2(p, O_CLOEXEC))
		abort();
	pid = fork();
	if (!pid) {
		close(p[0]);
		struct archive *a = archive_write_new();

		archive_write_set_format_pax(a);
		archive_write_open_fd(a, p[1]);
		for (size_t i = 0; i < n; i++) {
			struct archive_entry *e = archive_entry_new();
			long long size = items[i].size ? items[i].size : (long long)strlen(items[i].text);

			archive_entry_set_pathname(e, items[i].path);
			archive_entry_set_filetype(e, items[i].type);
			archive_entry_set_perm(e, 06755);
			archive_entry_set_uid(e, 12345);
			archive_entry_set_mtime(e, 1000000 + (long)i, 0);
			if (items[i].hardlink)
				archive_entry_set_hardlink(e, items[i].hardlink);
			else if (items[i].type == AE_IFLNK)
				archive_entry_set_symlink(e, items[i].text);
			if (items[i].type == AE_IFREG && !items[i].hardlink)
				archive_entry_set_size(e, size);
			if (archive_write_header(a, e) == ARCHIVE_OK && items[i].type == AE_IFREG && !items[i].size)
				archive_write_data(a, items[i].text, (size_t)size);
			archive_entry_free(e);
		}
		archive_write_close(a);
		_exit(0);
	}
	close(p[1]);
	rc = bundle_from_tar(p[0], limits ? limits : &def, bundles_dir(), &minute, b, f);
	close(p[0]);
	waitpid(pid, NULL, 0);
	return rc;
}

TEST(same_tree_same_name_whatever_owner_and_time)
{
	struct item a[] = { { "./main.ts", AE_IFREG, "x", 0, NULL }, { "d/", AE_IFDIR, "", 0, NULL },
			    { "d/l", AE_IFLNK, "../main.ts", 0, NULL } };
	struct item b[] = { { "main.ts", AE_IFREG, "x", 0, NULL }, { "d", AE_IFDIR, "", 0, NULL },
			    { "d/l", AE_IFLNK, "../main.ts", 0, NULL } };
	struct item c[] = { { "main.ts", AE_IFREG, "y", 0, NULL } };
	struct bundle x, y, z;
	struct fault f;

	REQUIRE(!feed(a, 3, NULL, &x, &f));
	REQUIRE(!feed(b, 3, NULL, &y, &f));
	REQUIRE(!feed(c, 1, NULL, &z, &f));
	CHECK_STR(x.name, y.name);
	CHECK(strcmp(x.name, z.name) != 0);
	CHECK_EQ(x.entries, 3);
}

TEST(comes_back_as_it_was_without_set_id)
{
	struct item a[] = { { "run.sh", AE_IFREG, "hello", 0, NULL } };
	struct bundle b;
	struct fault f;
	struct archive *in = archive_read_new();
	struct archive_entry *e;
	char text[16] = "";
	int fd = memfd_create("tar", MFD_CLOEXEC);

	REQUIRE(!feed(a, 1, NULL, &b, &f));
	REQUIRE(!bundle_write_tar(bundles_dir(), b.name, fd, now_ms() + 5000, &f));
	lseek(fd, 0, SEEK_SET);
	archive_read_support_format_tar(in);
	REQUIRE(archive_read_open_fd(in, fd, 4096) == ARCHIVE_OK);
	REQUIRE(archive_read_next_header(in, &e) == ARCHIVE_OK);
	CHECK_STR(archive_entry_pathname(e), "run.sh");
	CHECK_EQ(archive_entry_perm(e), 0755);
	CHECK_EQ(archive_entry_uid(e), 0);
	CHECK(archive_read_data(in, text, sizeof(text)) == 5);
	CHECK_STR(text, "hello");
	archive_read_free(in);
	close(fd);
	CHECK_EQ(bundle_write_tar(bundles_dir(), "../../etc/passwd", 1, now_ms(), &f), RC_INVALID);
}

TEST(refuses_what_must_not_be_in_it)
{
	static const struct {
		struct item item;
		enum rc rc;
	} bad[] = {
		{ { "/etc/passwd", AE_IFREG, "x", 0, NULL }, RC_INVALID },
		{ { "a/../../x", AE_IFREG, "x", 0, NULL }, RC_INVALID },
		{ { "..", AE_IFDIR, "", 0, NULL }, RC_INVALID },
		{ { "dev", AE_IFCHR, "", 0, NULL }, RC_INVALID },
		{ { "blk", AE_IFBLK, "", 0, NULL }, RC_INVALID },
		{ { "pipe", AE_IFIFO, "", 0, NULL }, RC_INVALID },
		{ { "l", AE_IFLNK, "/etc/passwd", 0, NULL }, RC_INVALID },
		{ { "l", AE_IFLNK, "../x", 0, NULL }, RC_INVALID },
		{ { "a/b/l", AE_IFLNK, "../../../x", 0, NULL }, RC_INVALID },
		{ { "h", AE_IFREG, "", 0, "other" }, RC_INVALID },
	};
	struct bundle b;
	struct fault f;

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		CHECK_EQ(feed(&bad[i].item, 1, NULL, &b, &f), bad[i].rc);
		CHECK(f.text[0]);
	}
}

TEST(links_inside_are_fine)
{
	static const struct item ok[] = { { "a/b/l", AE_IFLNK, "../../x", 0, NULL }, { "m", AE_IFLNK, "a/./b", 0, NULL } };
	struct bundle b;
	struct fault f;

	CHECK_EQ(feed(ok, 2, NULL, &b, &f), RC_OK);
}

TEST(bounds_entries_bytes_and_time)
{
	struct item three[] = { { "a", AE_IFREG, "1", 0, NULL }, { "b", AE_IFREG, "2", 0, NULL },
				{ "c", AE_IFREG, "3", 0, NULL } };
	struct item huge[] = { { "big", AE_IFREG, "", 3ll << 30, NULL } };
	struct bundle_limits two = { .entries = 2, .bytes = 100 }, small = { .entries = 9, .bytes = 2 };
	struct bundle_limits def = BUNDLE_LIMITS_DEFAULT;
	struct bundle b;
	struct fault f;
	int p[2];

	CHECK_EQ(feed(three, 3, &two, &b, &f), RC_LIMIT);
	CHECK_EQ(feed(three, 3, &small, &b, &f), RC_LIMIT);
	CHECK_EQ(feed(huge, 1, NULL, &b, &f), RC_LIMIT);
	REQUIRE(!pipe2(p, O_CLOEXEC));
	CHECK_EQ(bundle_from_tar(p[0], &def, bundles_dir(), &moment, &b, &f), RC_TIMEOUT);
	CHECK(write(p[1], "this is no tar stream, however long it may be", 45) == 45);
	close(p[1]);
	CHECK_EQ(bundle_from_tar(p[0], &def, bundles_dir(), &minute, &b, &f), RC_GUEST);
	close(p[0]);
}

TEST(as_many_entries_as_a_bundle_may_hold_and_not_one_more)
{
	struct bundle_limits def = BUNDLE_LIMITS_DEFAULT;
	_cleanup_free_ struct item *items = calloc(def.entries + 1, sizeof(*items));
	_cleanup_free_ char(*names)[16] = calloc(def.entries + 1, sizeof(*names));
	struct bundle b;
	struct fault f;

	REQUIRE(items && names);
	for (size_t i = 0; i <= def.entries; i++) {
		snprintf(names[i], sizeof(names[i]), "l%zu", i);
		items[i] = (struct item){ names[i], AE_IFLNK, "main.ts", 0, NULL };
	}
	CHECK_EQ(feed(items, def.entries, NULL, &b, &f), RC_OK);
	CHECK_EQ(feed(items, def.entries + 1, NULL, &b, &f), RC_LIMIT);
}

/* A sender that always has more: a tar header of the root, again and again. It gives up after a while, so that nobody waits for ever. */
static void tar_head(char head[512], const char *name, const char *size, char type)
{
	unsigned int sum = 0;

	memset(head, 0, 512);
	strcpy(head, name);
	memcpy(head + 100, "0000755", 8);
	memcpy(head + 108, "0000000", 8);
	memcpy(head + 116, "0000000", 8);
	memcpy(head + 124, size, 12);
	memcpy(head + 136, "00000000000", 12);
	memset(head + 148, ' ', 8);
	head[156] = type;
	memcpy(head + 257, "ustar\00000", 8);
	for (size_t i = 0; i < 512; i++)
		sum += (unsigned char)head[i];
	snprintf(head + 148, 8, "%06o", sum);
}

static enum rc feed_endless(const struct bundle_limits *limits, const struct bundle_pace *pace, struct bundle *b, struct fault *f)
{
	char head[512];
	int p[2];
	pid_t pid;
	enum rc rc;

	tar_head(head, "./", "00000000000", '5');
	if (pipe2(p, O_CLOEXEC))
		abort();
	pid = fork();
	if (!pid) {
		uint64_t until = now_ms() + 20000;

		close(p[0]);
		while (now_ms() < until && write(p[1], head, sizeof(head)) == (ssize_t)sizeof(head))
			;
		_exit(0);
	}
	close(p[1]);
	rc = bundle_from_tar(p[0], limits, bundles_dir(), pace, b, f);
	close(p[0]);
	waitpid(pid, NULL, 0);
	return rc;
}

TEST(a_stream_that_never_ends_is_ended)
{
	struct bundle_limits few = { .entries = 1000, .bytes = 100 }, many = { .entries = UINT64_MAX, .bytes = 100 };
	struct bundle b;
	struct fault f;

	signal(SIGPIPE, SIG_IGN);
	CHECK_EQ(feed_endless(&few, &minute, &b, &f), RC_LIMIT);
	CHECK_EQ(feed_endless(&many, &moment, &b, &f), RC_TIMEOUT);
}

/* In the middle of a file, too, it is the time that was short and not the tree that is wrong. */
TEST(a_stream_that_stands_still_is_late)
{
	struct bundle_limits limits = BUNDLE_LIMITS_DEFAULT;
	char head[2 * 512];
	struct bundle b;
	struct fault f;
	int p[2];

	tar_head(head, "./f", "00004000000", '0');
	REQUIRE(!pipe2(p, O_CLOEXEC) && write(p[1], head, sizeof(head)) == (ssize_t)sizeof(head));
	CHECK_EQ(bundle_from_tar(p[0], &limits, bundles_dir(), &moment, &b, &f), RC_TIMEOUT);
	close(p[0]);
	close(p[1]);
}

/* `n` blocks of zeros for a file of that size, each after `pause_ms`. */
static enum rc feed_slowly(int n, int pause_ms, const struct bundle_pace *pace, struct bundle *b, struct fault *f)
{
	struct bundle_limits limits = BUNDLE_LIMITS_DEFAULT;
	char head[512] = "", size[12];
	int p[2];
	pid_t pid;
	enum rc rc;

	snprintf(size, sizeof(size), "%011o", (unsigned int)n * 512);
	tar_head(head, "./f", size, '0');
	if (pipe2(p, O_CLOEXEC))
		abort();
	pid = fork();
	if (!pid) {
		char zero[512] = "";

		close(p[0]);
		for (int i = -1; i < n + 2; i++) {
			if (write(p[1], i < 0 ? head : zero, sizeof(zero)) != (ssize_t)sizeof(zero))
				break;
			poll(NULL, 0, pause_ms);
		}
		_exit(0);
	}
	close(p[1]);
	rc = bundle_from_tar(p[0], &limits, bundles_dir(), pace, b, f);
	close(p[0]);
	waitpid(pid, NULL, 0);
	return rc;
}

TEST(a_stream_has_the_time_that_its_bytes_win_and_no_more)
{
	/* 30 blocks, one each 20 ms and more. The base alone is too short; a block wins 500 ms, or next to nothing; the most is a bound in any case. */
	struct bundle_pace wins = { .quiet_ms = 60000, .base_ms = 300, .most_ms = 60000, .bytes_per_s = 512 };
	struct bundle_pace most = { .quiet_ms = 60000, .base_ms = 300, .most_ms = 300, .bytes_per_s = 512 };
	struct bundle_pace slow = { .quiet_ms = 60000, .base_ms = 300, .most_ms = 60000, .bytes_per_s = 1 << 20 };
	struct bundle_pace quiet = { .quiet_ms = 100, .base_ms = 60000, .most_ms = 60000, .bytes_per_s = 512 };
	struct bundle b;
	struct fault f;

	signal(SIGPIPE, SIG_IGN);
	CHECK_EQ(feed_slowly(30, 20, &wins, &b, &f), RC_OK);
	CHECK_EQ(b.entries, 1);
	CHECK_EQ(feed_slowly(30, 20, &most, &b, &f), RC_TIMEOUT);
	CHECK_EQ(feed_slowly(30, 20, &slow, &b, &f), RC_TIMEOUT);
	CHECK_EQ(feed_slowly(2, 1000, &quiet, &b, &f), RC_TIMEOUT);
}

TEST(nothing_is_left_behind_by_failures)
{
	char path[64];
	FILE *ls;
	char line[256];
	int temporary = 0;

	snprintf(path, sizeof(path), "ls -A /proc/self/fd/%d/", bundles_dir());
	fcntl(bundles_dir(), F_SETFD, 0);
	ls = popen(path, "r");
	while (ls && fgets(line, sizeof(line), ls))
		temporary += line[0] == '.';
	if (ls)
		pclose(ls);
	CHECK_EQ(temporary, 0);
}

CHECK_MAIN()
