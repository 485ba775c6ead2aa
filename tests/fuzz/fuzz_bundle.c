/* SPDX-License-Identifier: Apache-2.0 */
/* A hostile tar stream: whatever bundle_from_tar() accepts reads back as a tree that a bundle may hold, and a refusal leaves nothing. */
#include "base/cleanup.h"
#include "base/fd.h"
#include "fcgi/deploy/bundle.h"

#include <archive.h>
#include <archive_entry.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MUST(cond) ((cond) ? (void)0 : abort())

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct bundle_limits limits = { .entries = 64, .bytes = 1 << 20 };

static char dir_path[] = "/dev/shm/fuzz-bundle-XXXXXX";

static void dir_remove(void)
{
	rmdir(dir_path);
}

static int dir_fd(void)
{
	static int fd = -1;

	if (fd < 0) {
		MUST(mkdtemp(dir_path) && !atexit(dir_remove));
		fd = open(dir_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		MUST(fd >= 0);
	}
	return fd;
}

static void check_tree(int tar)
{
	struct archive *a = archive_read_new();
	struct archive_entry *e;
	uint64_t entries = 0, bytes = 0;
	int rc;

	MUST(a && archive_read_support_format_tar(a) == ARCHIVE_OK);
	MUST(lseek(tar, 0, SEEK_SET) == 0 && archive_read_open_fd(a, tar, 10240) == ARCHIVE_OK);
	while ((rc = archive_read_next_header(a, &e)) == ARCHIVE_OK) {
		const char *path = archive_entry_pathname(e), *link = archive_entry_symlink(e);
		unsigned int type = archive_entry_filetype(e);

		MUST(path && *path != '/' && !bundle_check_path(path, NULL));
		MUST(type == AE_IFREG || type == AE_IFDIR || type == AE_IFLNK);
		MUST(!archive_entry_hardlink(e) && !(archive_entry_mode(e) & 07000) && archive_entry_uid(e) == 0);
		if (type == AE_IFLNK)
			MUST(link && !bundle_check_link(path, link, NULL));
		bytes += type == AE_IFREG ? (uint64_t)archive_entry_size(e) : 0;
		entries++;
	}
	MUST(rc == ARCHIVE_EOF && entries <= limits.entries && bytes <= limits.bytes);
	archive_read_free(a);
}

static int count(int dirfd)
{
	DIR *d = fdopendir(dup(dirfd));
	int n = 0;

	MUST(d);
	rewinddir(d);
	for (struct dirent *e; (e = readdir(d));)
		n += strcmp(e->d_name, ".") && strcmp(e->d_name, "..");
	closedir(d);
	return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	_cleanup_fd_ int in = memfd_create("in", MFD_CLOEXEC), out = memfd_create("out", MFD_CLOEXEC);
	int dir = dir_fd();
	char name[BUNDLE_NAME_MAX + 16];
	const struct bundle_pace pace = BUNDLE_PACE_WITHIN(10000);
	struct bundle b;

	MUST(in >= 0 && out >= 0 && write(in, data, size) == (ssize_t)size && lseek(in, 0, SEEK_SET) == 0);
	if (!bundle_from_tar(in, &limits, dir, &pace, &b, NULL)) {
		MUST(b.entries <= limits.entries);
		MUST(!bundle_write_tar(dir, b.name, out, now_ms() + 10000, NULL));
		check_tree(out);
		snprintf(name, sizeof(name), "%s.tar.zst", b.name);
		MUST(unlinkat(dir, name, 0) == 0);
	}
	MUST(count(dir) == 0);
	return 0;
}
