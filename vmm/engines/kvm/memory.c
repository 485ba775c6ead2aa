/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/engines/kvm/memory.h"

#include "base/cleanup.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

static enum rc map(struct memory *m, int flags, struct fault *ret_f)
{
	/* Guard pages on both sides, so that a bug in the device code faults instead of reading a neighbour. */
	uint8_t *at = mmap(NULL, m->bytes + 2 * MEMORY_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (at == MAP_FAILED)
		return fault_set(ret_f, RC_NOMEM, errno, "reserve address space for %llu bytes",
				 (unsigned long long)m->bytes);
	m->base = at + MEMORY_PAGE;
	if (mmap(m->base, m->bytes, PROT_READ | PROT_WRITE, flags | MAP_FIXED | MAP_NORESERVE, m->fd, 0) ==
	    MAP_FAILED) {
		int sys = errno;

		munmap(at, m->bytes + 2 * MEMORY_PAGE);
		m->base = NULL;
		return fault_set(ret_f, RC_NOMEM, sys, "map guest memory");
	}
	/* Guest memory never reaches a core dump. */
	madvise(m->base, m->bytes, MADV_DONTDUMP);
	m->low = MIN_OF(m->bytes, (uint64_t)MEMORY_HOLE);
	m->high = m->bytes - m->low;
	return RC_OK;
}

enum rc memory_create(uint64_t bytes, struct memory *ret, struct fault *ret_f)
{
	_cleanup_fd_ int fd = memfd_create("guest", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	struct memory m = { .bytes = bytes, .fd = -1 };
	enum rc rc;

	if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0)
		return fault_set(ret_f, RC_NOMEM, errno, "make a memfd of %llu bytes", (unsigned long long)bytes);
	m.fd = fd;
	rc = map(&m, MAP_SHARED, ret_f);
	if (rc)
		return rc;
	take_fd(&fd);
	*ret = m;
	return RC_OK;
}

enum rc memory_map_sealed(int fd_in, uint64_t bytes, struct memory *ret, struct fault *ret_f)
{
	_cleanup_fd_ int fd = fd_in;
	struct memory m = { .bytes = bytes, .fd = fd, .is_private = true };
	struct stat st;
	int seals = fcntl(fd, F_GET_SEALS);
	enum rc rc;

	if (seals < 0 || !(seals & F_SEAL_WRITE) || !(seals & F_SEAL_SHRINK))
		return fault_set(ret_f, RC_INVALID, 0, "memory object is not sealed");
	if (fstat(fd, &st) < 0 || (uint64_t)st.st_size != bytes)
		return fault_set(ret_f, RC_INVALID, 0, "memory object has another size");
	rc = map(&m, MAP_PRIVATE, ret_f);
	if (rc)
		return rc;
	take_fd(&fd);
	*ret = m;
	return RC_OK;
}

void memory_free(struct memory *m)
{
	if (m->base)
		munmap(m->base - MEMORY_PAGE, m->bytes + 2 * MEMORY_PAGE);
	m->base = NULL;
	close_fd(&m->fd);
	free(m->dirty);
	m->dirty = NULL;
}

static void mark(const struct memory *m, uint64_t offset, uint64_t n)
{
	for (uint64_t page = offset / MEMORY_PAGE; page <= (offset + n - 1) / MEMORY_PAGE; page++)
		__atomic_fetch_or(&m->dirty[page / 64], 1ull << (page % 64), __ATOMIC_RELAXED);
}

void *memory_at(const struct memory *m, uint64_t addr, uint64_t n, bool write)
{
	uint64_t offset;

	if (addr < m->low) {
		if (n > m->low - addr)
			return NULL;
		offset = addr;
	} else {
		if (addr < MEMORY_HIGH || addr - MEMORY_HIGH >= m->high || n > m->high - (addr - MEMORY_HIGH))
			return NULL;
		offset = m->low + (addr - MEMORY_HIGH);
	}
	if (write && n && m->dirty)
		mark(m, offset, n);
	return m->base + offset;
}

uint64_t memory_offset(const struct memory *m, const void *at)
{
	return (uint64_t)((const uint8_t *)at - m->base);
}
