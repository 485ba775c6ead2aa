/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/store/copy.h"

#include "base/cleanup.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#define COPY_CHUNK (256u * 1024)

static enum rc copy_by_hand(int from, int to, off_t at, off_t end, struct fault *ret_f)
{
	_cleanup_free_ char *mem = malloc(COPY_CHUNK);

	if (!mem)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	while (at < end) {
		ssize_t n = pread(from, mem, MIN_OF((size_t)(end - at), (size_t)COPY_CHUNK), at);

		if (n < 0)
			return fault_set(ret_f, RC_SYS, errno, "read disk");
		if (!n)
			return fault_set(ret_f, RC_STATE, 0, "disk became shorter while it was copied");
		for (ssize_t done = 0; done < n;) {
			ssize_t w = pwrite(to, mem + done, (size_t)(n - done), at + done);

			if (w < 0)
				return fault_set(ret_f, rc_from_errno(errno), errno, "write disk");
			done += w;
		}
		at += n;
	}
	return RC_OK;
}

static enum rc copy_range(int from, int to, off_t at, off_t end, struct fault *ret_f)
{
	while (at < end) {
		off_t in = at, out = at;
		ssize_t n = copy_file_range(from, &in, to, &out, (size_t)(end - at), 0);

		if (n > 0) {
			at += n;
			continue;
		}
		/* Not every pair of file systems has it; what is left goes through memory. */
		if (!n || errno == EXDEV || errno == EINVAL || errno == ENOSYS || errno == EOPNOTSUPP)
			return copy_by_hand(from, to, at, end, ret_f);
		return fault_set(ret_f, rc_from_errno(errno), errno, "copy disk");
	}
	return RC_OK;
}

/* At most `max` bytes of data: *ret_over, if there are more, and then the copy is of no use. */
static enum rc copy_data(int from, int to, off_t size, uint64_t max, bool *ret_over, struct fault *ret_f)
{
	off_t at = 0;

	*ret_over = false;
	if (ftruncate(to, size) < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "size of disk");
	while (at < size) {
		off_t data = lseek(from, at, SEEK_DATA), hole;
		enum rc rc;

		if (data < 0 && errno == ENXIO)
			break;
		if (data < 0)
			return fault_set(ret_f, RC_SYS, errno, "seek disk");
		hole = lseek(from, data, SEEK_HOLE);
		if (hole < 0)
			return fault_set(ret_f, RC_SYS, errno, "seek disk");
		if ((uint64_t)(hole - data) > max) {
			*ret_over = true;
			return RC_OK;
		}
		max -= (uint64_t)(hole - data);
		rc = copy_range(from, to, data, hole, ret_f);
		if (rc)
			return rc;
		at = hole;
	}
	return RC_OK;
}

enum rc copy_disk(int from, int to, bool *ret_shared, struct fault *ret_f)
{
	struct stat st;
	bool over;

	if (fstat(from, &st) < 0)
		return fault_set(ret_f, RC_SYS, errno, "stat disk");
	if (ret_shared)
		*ret_shared = false;
	if (ioctl(to, FICLONE, from) == 0) {
		if (ret_shared)
			*ret_shared = true;
		return RC_OK;
	}
	return copy_data(from, to, st.st_size, UINT64_MAX, &over, ret_f);
}

enum rc copy_disk_quick(int from, int to, uint64_t max_bytes, bool *ret_done, struct fault *ret_f)
{
	struct stat st;
	bool over;
	enum rc rc;

	*ret_done = false;
	if (fstat(from, &st) < 0)
		return fault_set(ret_f, RC_SYS, errno, "stat disk");
	if (ioctl(to, FICLONE, from) == 0) {
		*ret_done = true;
		return RC_OK;
	}
	if ((uint64_t)st.st_blocks * 512 > max_bytes)
		return RC_OK;
	/* Counted as well: a process that was to stand still and does not may write on. */
	rc = copy_data(from, to, st.st_size, max_bytes, &over, ret_f);
	*ret_done = !rc && !over;
	return rc;
}

enum rc disk_make_at(int dirfd, const char *name, uint64_t bytes, int *ret_fd, struct fault *ret_f)
{
	_cleanup_fd_ int fd = openat(dirfd, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);

	if (fd < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "make disk '%s'", name);
	if (ftruncate(fd, (off_t)bytes) < 0) {
		int sys = errno;

		unlinkat(dirfd, name, 0);
		return fault_set(ret_f, rc_from_errno(sys), sys, "size of disk '%s'", name);
	}
	*ret_fd = take_fd(&fd);
	return RC_OK;
}

static enum rc tree_remove_depth(int dirfd, const char *name, int depth, struct fault *ret_f);

static enum rc tree_empty(int fd, int depth, struct fault *ret_f)
{
	DIR *dir = fdopendir(fd);
	struct dirent *e;
	enum rc rc = RC_OK;

	if (!dir) {
		close(fd);
		return fault_set(ret_f, RC_NOMEM, errno, "read directory");
	}
	while (!rc && (e = readdir(dir))) {
		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
			continue;
		rc = tree_remove_depth(dirfd(dir), e->d_name, depth + 1, ret_f);
	}
	closedir(dir);
	return rc;
}

static enum rc tree_remove_depth(int dirfd, const char *name, int depth, struct fault *ret_f)
{
	enum rc rc;
	int fd;

	if (!unlinkat(dirfd, name, 0) || errno == ENOENT)
		return RC_OK;
	if (errno != EISDIR && errno != EPERM)
		return fault_set(ret_f, RC_SYS, errno, "remove '%s'", name);
	if (depth >= TREE_DEPTH_MAX)
		return fault_set(ret_f, RC_LIMIT, 0, "directory '%s' is too deep to be removed", name);
	fd = openat(dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return fault_set(ret_f, RC_SYS, errno, "open directory '%s'", name);
	rc = tree_empty(fd, depth, ret_f);
	if (!rc && unlinkat(dirfd, name, AT_REMOVEDIR) < 0 && errno != ENOENT)
		rc = fault_set(ret_f, RC_SYS, errno, "remove directory '%s'", name);
	return rc;
}

enum rc tree_remove_at(int dirfd, const char *name, struct fault *ret_f)
{
	return tree_remove_depth(dirfd, name, 0, ret_f);
}

enum rc dir_open_at(int dirfd, const char *name, unsigned int mode, int *ret_fd, struct fault *ret_f)
{
	int fd;

	if (mkdirat(dirfd, name, mode) < 0 && errno != EEXIST)
		return fault_set(ret_f, rc_from_errno(errno), errno, "make directory '%s'", name);
	fd = openat(dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return fault_set(ret_f, RC_SYS, errno, "open directory '%s'", name);
	*ret_fd = fd;
	return RC_OK;
}
