/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/store/volume.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "vmm/store/copy.h"

#include <dirent.h>
#include <endian.h>
#include <fcntl.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define DISK_FILE "disk"
#define IMAGE_FILE "image"
#define SUM_FILE "sum"
#define EXTENTS 512u
#define VOLUME_EXTENTS_MAX 65536u

static void hidden(char out[NAME_MAX + 1], const char *name)
{
	snprintf(out, NAME_MAX + 1, ".%.200s", name);
}

static enum rc image_put(int dirfd, const char *image, struct fault *ret_f)
{
	_cleanup_fd_ int fd = openat(dirfd, IMAGE_FILE, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	size_t n = strlen(image);

	if (fd < 0 || write(fd, image, n) != (ssize_t)n || fsync(fd) < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "write the volume's image");
	return RC_OK;
}

enum rc volume_begin(int storefd, const char *name, uint64_t bytes, const char *image, int *ret_fd, struct fault *ret_f)
{
	_cleanup_fd_ int dirfd = -1;
	char new_name[NAME_MAX + 1];
	enum rc rc;

	hidden(new_name, name);
	if (faccessat(storefd, name, F_OK, AT_SYMLINK_NOFOLLOW) == 0)
		return fault_set(ret_f, RC_EXISTS, 0, "'%.60s' exists already", name);
	if (mkdirat(storefd, new_name, 0700) < 0)
		return errno == EEXIST ? fault_set(ret_f, RC_EXISTS, 0, "'%.60s' is being made already", name) :
					 fault_set(ret_f, rc_from_errno(errno), errno, "make '%.60s'", name);
	rc = dir_open_at(storefd, new_name, 0700, &dirfd, ret_f);
	if (!rc && *image)
		rc = image_put(dirfd, image, ret_f);
	if (!rc)
		rc = disk_make_at(dirfd, DISK_FILE, bytes, ret_fd, ret_f);
	if (rc)
		volume_abort(storefd, name);
	return rc;
}

enum rc volume_sum_make(int storefd, const char *name, int *ret_fd, struct fault *ret_f)
{
	char path[NAME_MAX + 8];
	int fd;

	snprintf(path, sizeof(path), ".%.200s/" SUM_FILE, name);
	fd = openat(storefd, path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "make checksum of '%.60s'", name);
	*ret_fd = fd;
	return RC_OK;
}

enum rc volume_sum_open(int storefd, const char *name, int *ret_fd, struct fault *ret_f)
{
	char path[NAME_MAX + 8];
	int fd;

	snprintf(path, sizeof(path), "%.200s/" SUM_FILE, name);
	fd = openat(storefd, path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return fault_set(ret_f, errno == ENOENT ? RC_DAMAGED : rc_from_errno(errno), errno,
				 "snapshot '%.60s' is damaged: there is no checksum of it", name);
	*ret_fd = fd;
	return RC_OK;
}

enum rc volume_commit(int storefd, const char *name, struct fault *ret_f)
{
	_cleanup_fd_ int dirfd = -1;
	char new_name[NAME_MAX + 1];

	hidden(new_name, name);
	dirfd = openat(storefd, new_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (dirfd < 0 || fsync(dirfd) < 0)
		return fault_set(ret_f, RC_SYS, errno, "flush '%.60s'", name);
	if (renameat2(storefd, new_name, storefd, name, RENAME_NOREPLACE) < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "name '%.60s'", name);
	return fsync(storefd) < 0 ? fault_set(ret_f, RC_SYS, errno, "flush the volumes' directory") : RC_OK;
}

void volume_abort(int storefd, const char *name)
{
	char new_name[NAME_MAX + 1];
	struct fault f;

	hidden(new_name, name);
	if (tree_remove_at(storefd, new_name, &f))
		log_fault(LOG_LEVEL_WARN, &f, "volume");
}

static enum rc image_get(int dirfd, char out[VOLUME_IMAGE_MAX], struct fault *ret_f)
{
	_cleanup_free_ char *text = NULL;
	size_t n;
	enum rc rc = file_read_at(dirfd, IMAGE_FILE, VOLUME_IMAGE_MAX - 1, &text, &n, ret_f);

	if (rc && rc != RC_ABSENT)
		return rc;
	snprintf(out, VOLUME_IMAGE_MAX, "%s", rc ? "" : text);
	return RC_OK;
}

/*
 * A guest's bytes: what they say decides only whether that guest's own disk is used as it is or copied first. Offsets:
 * Documentation/filesystems/ext4/super.rst.
 */
static bool ext4_clean(int fd)
{
	uint8_t super[128];
	uint32_t incompat;

	if (pread(fd, super, sizeof(super), 1024) != (ssize_t)sizeof(super) || super[0x38] != 0x53 || super[0x39] != 0xef)
		return false;
	memcpy(&incompat, super + 0x60, sizeof(incompat));
	return !(le32toh(incompat) & 4);
}

enum rc volume_open(int storefd, const char *name, bool writable, struct volume *ret, struct fault *ret_f)
{
	_cleanup_fd_ int dirfd = openat(storefd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), fd = -1;
	struct volume v;
	struct stat st;
	enum rc rc;

	if (dirfd < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "no volume or snapshot '%.60s'", name);
	fd = openat(dirfd, DISK_FILE, (writable ? O_RDWR : O_RDONLY) | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
		return fault_set(ret_f, RC_SYS, errno, "disk of '%.60s'", name);
	rc = image_get(dirfd, v.image, ret_f);
	if (rc)
		return rc;
	v.bytes = (uint64_t)st.st_size;
	v.used_bytes = (uint64_t)st.st_blocks * 512;
	v.clean = ext4_clean(fd);
	v.fd = take_fd(&fd);
	*ret = v;
	return RC_OK;
}

uint64_t volume_own_bytes(const struct volume *v)
{
	/* The kernel fills in as many as fit; the rest of a file in more pieces than VOLUME_EXTENTS_MAX counts as its own. */
	_cleanup_free_ struct fiemap *map = calloc(1, sizeof(*map) + EXTENTS * sizeof(struct fiemap_extent));
	uint64_t shared = 0, at = 0;

	for (unsigned int turn = 0; map && turn < VOLUME_EXTENTS_MAX / EXTENTS; turn++) {
		bool last = true;

		memset(map, 0, sizeof(*map));
		map->fm_start = at;
		map->fm_length = FIEMAP_MAX_OFFSET - at;
		map->fm_extent_count = EXTENTS;
		if (ioctl(v->fd, FS_IOC_FIEMAP, map) < 0)
			break;
		for (uint32_t i = 0; i < map->fm_mapped_extents && i < EXTENTS; i++) {
			const struct fiemap_extent *e = &map->fm_extents[i];

			shared += e->fe_flags & FIEMAP_EXTENT_SHARED ? e->fe_length : 0;
			at = e->fe_logical + e->fe_length;
			last = e->fe_flags & FIEMAP_EXTENT_LAST;
		}
		if (!map->fm_mapped_extents || last)
			break;
	}
	return v->used_bytes - MIN_OF(shared, v->used_bytes);
}

enum rc volume_delete(int storefd, const char *name, struct fault *ret_f)
{
	char old_name[NAME_MAX + 1];

	/* Hidden first: half of a volume must never be seen. */
	hidden(old_name, name);
	if (renameat2(storefd, name, storefd, old_name, RENAME_NOREPLACE) < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "no volume or snapshot '%.60s'", name);
	return tree_remove_at(storefd, old_name, ret_f);
}

void volume_sweep(int storefd)
{
	int fd = openat(storefd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;
	struct fault f;

	if (!dir)
		close_fd(&fd);
	while (dir && (e = readdir(dir))) {
		if (e->d_name[0] != '.' || !strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
			continue;
		log_warn("unfinished volume removed name=%s", e->d_name + 1);
		if (tree_remove_at(storefd, e->d_name, &f))
			log_fault(LOG_LEVEL_WARN, &f, "volume");
	}
	if (dir)
		closedir(dir);
}
