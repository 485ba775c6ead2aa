/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Preloaded into QEMU: guest memory as a private view of a sealed file.
 *
 * Theory: QEMU leaves guest memory out of its device state only if that memory is "shared" (x-ignore-shared). But a clone must
 * not share: it starts from a sealed base and keeps its own pages. So QEMU is told share=on and this library, which sees
 * only open(2) and mmap(2), maps the file whose descriptor is NESTBOX_RAM_FD privately. QEMU would open that file again for
 * writing, which one on disk, root's and read-only, does not allow: it gets the descriptor that is there already. A machine that was itself started from a
 * snapshot can then be saved and forked as cheaply as the first one: QEMU writes its devices, the engine its own pages.
 *
 * Free memory that the guest reports is given back by QEMU in two steps: a hole in the file, then the mapping's pages. The file is
 * not this machine's to change (it is sealed), and the private pages are all there is to give back: the hole is left out.
 *
 * Where the base has no data the memory is anonymous. A private mapping of a hole would first give the base a page
 * of zeros and then copy it: two pages and no huge pages for each page of free guest memory that is touched.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* A mapping each; holes smaller than the gap are mapped with their neighbours. vm.max_map_count is 65530. */
#define EXTENTS_MAX 2048
#define GAP_FIRST ((off_t)256 << 10)
#define GAP_LAST ((off_t)1 << 40)

#define EXPORT __attribute__((visibility("default")))

EXPORT int open64(const char *path, int flags, ...);
EXPORT int __open64_2(const char *path, int flags);
EXPORT void *mmap(void *addr, size_t n, int prot, int flags, int fd, off_t at);
EXPORT void *mmap64(void *addr, size_t n, int prot, int flags, int fd, off_t at);
EXPORT int fallocate(int fd, int mode, off_t at, off_t n);
EXPORT int fallocate64(int fd, int mode, off_t at, off_t n);

static void *map(void *addr, size_t n, int prot, int flags, int fd, off_t at)
{
	long r = syscall(SYS_mmap, addr, n, prot, flags, fd, at);

	return r == -1 ? MAP_FAILED : (void *)(uintptr_t)r;
}

static bool is_ram(int fd)
{
	const char *text = getenv("NESTBOX_RAM_FD");
	struct stat ram, st;

	return text && fd >= 0 && fstat(atoi(text), &ram) == 0 && fstat(fd, &st) == 0 && ram.st_dev == st.st_dev &&
	       ram.st_ino == st.st_ino;
}

/* The next run of data at or after *at, below end, small holes included. False: none. */
static bool extent_next(int fd, off_t *at, off_t end, off_t gap, off_t *ret_end)
{
	off_t data = lseek(fd, *at, SEEK_DATA), hole, next;

	if (data < 0 || data >= end)
		return false;
	*at = data;
	for (hole = lseek(fd, data, SEEK_HOLE); hole >= 0 && hole < end; hole = lseek(fd, next, SEEK_HOLE)) {
		next = lseek(fd, hole, SEEK_DATA);
		if (next < 0 || next - hole >= gap || next >= end)
			break;
	}
	*ret_end = hole < 0 || hole > end ? end : hole;
	return true;
}

static size_t extents_count(int fd, off_t end, off_t gap)
{
	size_t n = 0;

	for (off_t at = 0, to; n <= EXTENTS_MAX && extent_next(fd, &at, end, gap, &to); at = to)
		n++;
	return n;
}

static void *map_ram(void *addr, size_t n, int prot, int flags, int fd)
{
	off_t end = (off_t)n, gap = GAP_FIRST;
	char *base = map(addr, n, prot, (flags & MAP_FIXED) | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (base == MAP_FAILED)
		return base;
	while (gap < GAP_LAST && extents_count(fd, end, gap) > EXTENTS_MAX)
		gap *= 2;
	for (off_t at = 0, to; extent_next(fd, &at, end, gap, &to); at = to)
		if (map(base + at, (size_t)(to - at), prot, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, fd, at) == MAP_FAILED)
			return MAP_FAILED;
	return base;
}

void *mmap64(void *addr, size_t n, int prot, int flags, int fd, off_t at)
{
	if ((flags & MAP_TYPE) != MAP_PRIVATE && at == 0 && is_ram(fd))
		return map_ram(addr, n, prot, flags, fd);
	return map(addr, n, prot, flags, fd, at);
}

void *mmap(void *addr, size_t n, int prot, int flags, int fd, off_t at)
{
	return mmap64(addr, n, prot, flags, fd, at);
}

int fallocate64(int fd, int mode, off_t at, off_t n)
{
	if ((mode & FALLOC_FL_PUNCH_HOLE) && is_ram(fd))
		return 0;
	return (int)syscall(SYS_fallocate, fd, mode, at, n);
}

int fallocate(int fd, int mode, off_t at, off_t n)
{
	return fallocate64(fd, mode, at, n);
}

static int open_ram(const char *path, int flags, unsigned int mode)
{
	static const char dir[] = "/proc/self/fd/";
	const char *ram = getenv("NESTBOX_RAM_FD");

	if (ram && !strncmp(path, dir, sizeof(dir) - 1) && !strcmp(path + sizeof(dir) - 1, ram))
		return fcntl(atoi(ram), F_DUPFD_CLOEXEC, 0);
	return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
	unsigned int mode = 0;
	va_list ap;

	if (flags & (O_CREAT | O_TMPFILE)) {
		va_start(ap, flags);
		mode = va_arg(ap, unsigned int);
		va_end(ap);
	}
	return open_ram(path, flags, mode);
}

/* What a fortified open64() without a mode is. */
int __open64_2(const char *path, int flags)
{
	return open_ram(path, flags, 0);
}
