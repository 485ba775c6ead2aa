/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/engines/kvm/memory.h"

#include "base/cleanup.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define HUGE_PAGE (2u << 20)
#define PAGEMAP_PRESENT (1ull << 63)
#define PAGEMAP_SWAPPED (1ull << 62)
#define PAGEMAP_CHUNK 2048u /* pages that are asked about at once */
#define LAYER_MAPS_MAX 30000 /* mappings of a delta; the kernel's default bound is 65530 for the process */

static uint64_t words_of(uint64_t bytes)
{
	return (bytes / MEMORY_PAGE + 63) / 64;
}

/* A file on disk cannot be sealed, nor one on tmpfs (whose only seal is that): then the descriptor must not be one that anybody could
 * write through. */
static enum rc check_sealed(int fd, uint64_t bytes, uint64_t map_bytes, struct fault *ret_f)
{
	int seals = fcntl(fd, F_GET_SEALS), mode = fcntl(fd, F_GETFL);
	struct stat st;

	if (((seals < 0 && errno == EINVAL) || seals == F_SEAL_SEAL) && mode >= 0 && (mode & O_ACCMODE) == O_RDONLY)
		seals = F_SEAL_WRITE | F_SEAL_SHRINK;
	if (seals < 0 || !(seals & F_SEAL_WRITE) || !(seals & F_SEAL_SHRINK))
		return fault_set(ret_f, RC_INVALID, 0, "memory object is not sealed");
	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) ||
	    ((uint64_t)st.st_size != bytes && (uint64_t)st.st_size != bytes + map_bytes))
		return fault_set(ret_f, RC_INVALID, 0, "memory object has another size");
	return RC_OK;
}

/* Next run of data at or after `at`; *ret_end is 0 when there is none. */
static enum rc next_data(int fd, uint64_t at, uint64_t bytes, uint64_t *ret_at, uint64_t *ret_end, struct fault *ret_f)
{
	off_t data = lseek(fd, (off_t)at, SEEK_DATA), hole;

	*ret_end = 0;
	if (data < 0)
		return errno == ENXIO ? RC_OK : fault_set(ret_f, RC_SYS, errno, "SEEK_DATA");
	hole = lseek(fd, data, SEEK_HOLE);
	if (hole < 0)
		return fault_set(ret_f, RC_SYS, errno, "SEEK_HOLE");
	*ret_at = (uint64_t)data & ~(uint64_t)(MEMORY_PAGE - 1);
	*ret_end = MIN_OF(((uint64_t)hole + MEMORY_PAGE - 1) & ~(uint64_t)(MEMORY_PAGE - 1), bytes);
	return RC_OK;
}

enum rc memory_layer_pages(int fd, uint64_t bytes, uint64_t *pages, struct fault *ret_f)
{
	uint64_t at = 0, end, size = MEMORY_MAP_BYTES(bytes);
	struct stat st;

	if (fd < 0)
		return RC_OK;
	if (fstat(fd, &st) < 0)
		return fault_set(ret_f, RC_SYS, errno, "stat memory layer");
	if ((uint64_t)st.st_size > bytes) {
		_cleanup_free_ uint64_t *map = memory_bitmap(bytes);

		if (!map)
			return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
		if (pread(fd, map, size, (off_t)bytes) != (ssize_t)size)
			return fault_set(ret_f, RC_INVALID, errno, "read the pages of a memory layer");
		for (uint64_t i = 0; i < words_of(bytes); i++)
			pages[i] |= map[i];
		return RC_OK;
	}
	for (;; at = end) {
		enum rc rc = next_data(fd, at, bytes, &at, &end, ret_f);

		if (rc || !end)
			return rc;
		for (uint64_t p = at / MEMORY_PAGE; p < end / MEMORY_PAGE; p++)
			pages[p / 64] |= 1ull << (p % 64);
	}
}

static bool has_page(const uint64_t *pages, uint64_t p)
{
	return pages[p / 64] >> (p % 64) & 1;
}

static uint64_t count_runs(uint64_t bytes, const uint64_t *pages)
{
	uint64_t runs = 0, before = 0;

	for (uint64_t i = 0; i < words_of(bytes); i++) {
		runs += (uint64_t)__builtin_popcountll(pages[i] & ~(pages[i] << 1 | before));
		before = pages[i] >> 63;
	}
	return runs;
}

/* Joins runs less than `gap` pages apart. */
static void join_runs(uint64_t bytes, uint64_t *pages, uint64_t gap)
{
	uint64_t last = UINT64_MAX;

	for (uint64_t p = 0; p < bytes / MEMORY_PAGE; p++) {
		if (!has_page(pages, p))
			continue;
		if (last != UINT64_MAX && p - last <= gap)
			for (uint64_t k = last + 1; k < p; k++)
				pages[k / 64] |= 1ull << (k % 64);
		last = p;
	}
}

void memory_join(uint64_t bytes, uint64_t *pages)
{
	for (uint64_t gap = 2; count_runs(bytes, pages) > MEMORY_RUNS_MAX; gap *= 2)
		join_runs(bytes, pages, gap);
}

/* Each run of the delta over the base. Whoever wrote the delta kept the number of runs within the bound. */
static enum rc map_delta(struct memory *m, struct fault *ret_f)
{
	_cleanup_free_ uint64_t *pages = memory_bitmap(m->bytes);
	enum rc rc;

	if (!pages)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	rc = memory_layer_pages(m->delta_fd, m->bytes, pages, ret_f);
	if (rc)
		return rc;
	if (count_runs(m->bytes, pages) > LAYER_MAPS_MAX)
		return fault_set(ret_f, RC_LIMIT, 0, "memory layer has more than %d runs", LAYER_MAPS_MAX);
	for (uint64_t p = 0, n = memory_pages(m); p < n;) {
		uint64_t first = p;

		while (p < n && has_page(pages, p))
			p++;
		if (p == first) {
			p++;
			continue;
		}
		if (mmap(m->base + first * MEMORY_PAGE, (p - first) * MEMORY_PAGE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, m->delta_fd, (off_t)(first * MEMORY_PAGE)) == MAP_FAILED)
			return fault_set(ret_f, RC_NOMEM, errno, "map memory layer");
	}
	return RC_OK;
}

static enum rc map_all(struct memory *m, struct fault *ret_f)
{
	int flags = MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE | (m->base_fd < 0 ? MAP_ANONYMOUS : 0);
	size_t room_bytes = m->bytes + HUGE_PAGE + 2 * MEMORY_PAGE;
	/* Guard pages on both sides, so that a bug in the device code faults instead of reading a neighbour. */
	uint8_t *room = mmap(NULL, room_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (room == MAP_FAILED)
		return fault_set(ret_f, RC_NOMEM, errno, "reserve address space for %llu bytes",
				 (unsigned long long)m->bytes);
	m->room = room;
	m->room_bytes = room_bytes;
	m->base = room + MEMORY_PAGE;
	m->base += -(uintptr_t)m->base & (HUGE_PAGE - 1);
	if (mmap(m->base, m->bytes, PROT_READ | PROT_WRITE, flags, m->base_fd, 0) == MAP_FAILED)
		return fault_set(ret_f, RC_NOMEM, errno, "map guest memory");
	/* A guest that boots touches much of its memory for the first time: a fault for each 2 MiB, not for each 4 KiB. Not to be had, it is slower. */
	if (m->base_fd < 0 && m->delta_fd < 0)
		madvise(m->base, m->bytes, MADV_HUGEPAGE);
	if (m->delta_fd >= 0) {
		enum rc rc = map_delta(m, ret_f);

		if (rc)
			return rc;
	}
	/* Guest memory never reaches a core dump. */
	madvise(m->base, m->bytes, MADV_DONTDUMP);
	return RC_OK;
}

uint64_t *memory_bitmap(uint64_t bytes)
{
	return calloc((size_t)words_of(bytes), sizeof(uint64_t));
}

enum rc memory_create(uint64_t bytes, int base_fd, int delta_fd, struct memory *ret, struct fault *ret_f)
{
	struct memory m = { .bytes = bytes, .base_fd = base_fd, .delta_fd = delta_fd };
	enum rc rc = RC_OK;

	m.low = MIN_OF(bytes, (uint64_t)MEMORY_HOLE);
	m.high = bytes - m.low;
	m.written = memory_bitmap(bytes);
	m.own = memory_bitmap(bytes);
	if (!m.written || !m.own)
		rc = fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	if (!rc && base_fd >= 0)
		rc = check_sealed(base_fd, bytes, 0, ret_f);
	if (!rc && delta_fd >= 0)
		rc = check_sealed(delta_fd, bytes, MEMORY_MAP_BYTES(bytes), ret_f);
	if (!rc)
		rc = map_all(&m, ret_f);
	if (rc) {
		memory_free(&m);
		return rc;
	}
	*ret = m;
	return RC_OK;
}

void memory_free(struct memory *m)
{
	if (m->room)
		munmap(m->room, m->room_bytes);
	m->room = m->base = NULL;
	close_fd(&m->base_fd);
	close_fd(&m->delta_fd);
	free(m->written);
	free(m->own);
	m->written = m->own = NULL;
}

static void mark(const struct memory *m, uint64_t offset, uint64_t n)
{
	for (uint64_t page = offset / MEMORY_PAGE; page <= (offset + n - 1) / MEMORY_PAGE; page++) {
		uint64_t bit = 1ull << (page % 64);

		if (!(__atomic_load_n(&m->written[page / 64], __ATOMIC_RELAXED) & bit))
			__atomic_fetch_or(&m->written[page / 64], bit, __ATOMIC_RELAXED);
	}
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
	if (write && n)
		mark(m, offset, n);
	return m->base + offset;
}

void memory_wrote(const struct memory *m, const void *at, uint64_t n)
{
	if (n)
		mark(m, (uint64_t)((const uint8_t *)at - m->base), n);
}

uint64_t memory_discard_at(struct memory *m, void *at, uint64_t n)
{
	uint64_t offset = (uint64_t)((uint8_t *)at - m->base), skip = -offset & (MEMORY_PAGE - 1), first;

	n = n > skip ? (n - skip) & ~(uint64_t)(MEMORY_PAGE - 1) : 0;
	if (!n)
		return 0;
	/* Not this machine's own any more: a fork need not carry them. Before they go, so that a page which the guest writes
	 * after all while this runs is logged and gathered again. */
	first = (offset + skip) / MEMORY_PAGE;
	for (uint64_t p = first; p < first + n / MEMORY_PAGE; p++)
		__atomic_fetch_and(&m->own[p / 64], ~(1ull << (p % 64)), __ATOMIC_RELAXED);
	return madvise(m->base + first * MEMORY_PAGE, n, MADV_DONTNEED) < 0 ? 0 : n;
}

uint64_t memory_discard(struct memory *m, uint64_t addr, uint64_t n)
{
	void *at = memory_at(m, addr, n, false);

	return at ? memory_discard_at(m, at, n) : 0;
}

uint64_t memory_gather(struct memory *m, uint64_t first, const uint64_t *kvm, uint64_t n_words, uint64_t *fresh)
{
	uint64_t count = 0, base = first / 64;

	for (uint64_t i = 0; i < n_words; i++) {
		uint64_t bits = __atomic_exchange_n(&m->written[base + i], 0, __ATOMIC_RELAXED) | (kvm ? kvm[i] : 0);

		if (!bits)
			continue;
		__atomic_fetch_or(&m->own[base + i], bits, __ATOMIC_RELAXED);
		if (fresh)
			fresh[base + i] |= bits;
		count += (uint64_t)__builtin_popcountll(bits);
	}
	return count;
}

static bool is_zero(const uint8_t *p)
{
	const uint64_t *w = (const uint64_t *)(const void *)p;

	for (unsigned int i = 0; i < MEMORY_PAGE / 8; i++)
		if (w[i])
			return false;
	return true;
}

/* One page of which nothing is known or that is there. */
static void own_if_used(struct memory *m, uint64_t p)
{
	if (!has_page(m->own, p) && !is_zero(m->base + p * MEMORY_PAGE))
		__atomic_fetch_or(&m->own[p / 64], 1ull << (p % 64), __ATOMIC_RELAXED);
}

void memory_own_used(struct memory *m, int pagemap_fd)
{
	uint64_t map[PAGEMAP_CHUNK];

	for (uint64_t p = 0, n; p < memory_pages(m); p += n) {
		off_t at = (off_t)(((uintptr_t)m->base / MEMORY_PAGE + p) * sizeof(map[0]));
		bool known;

		n = MIN_OF(memory_pages(m) - p, (uint64_t)PAGEMAP_CHUNK);
		known = pagemap_fd >= 0 && pread(pagemap_fd, map, n * sizeof(map[0]), at) == (ssize_t)(n * sizeof(map[0]));
		for (uint64_t i = 0; i < n; i++) {
			/* What is swapped out, or on its way to another place, is not fetched for this: it is copied as it is. */
			if (known && (map[i] & (PAGEMAP_PRESENT | PAGEMAP_SWAPPED)) == PAGEMAP_SWAPPED)
				__atomic_fetch_or(&m->own[(p + i) / 64], 1ull << ((p + i) % 64), __ATOMIC_RELAXED);
			else if (!known || (map[i] & PAGEMAP_PRESENT))
				own_if_used(m, p + i);
		}
	}
}

static enum rc write_run(const struct memory *m, uint64_t at, uint64_t n, int fd, struct fault *ret_f)
{
	while (n) {
		ssize_t put = pwrite(fd, m->base + at, n, (off_t)at);

		if (put < 0 && errno == EINTR)
			continue;
		if (put <= 0)
			return fault_set(ret_f, rc_from_errno(errno), errno, "write memory");
		at += (uint64_t)put;
		n -= (uint64_t)put;
	}
	return RC_OK;
}

enum rc memory_write_pages(const struct memory *m, const uint64_t *pages, int fd, bool sparse, uint64_t *ret_pages,
			   struct fault *ret_f)
{
	uint64_t n = memory_pages(m), start = 0, run = 0, count = 0;

	for (uint64_t p = 0; p <= n; p++) {
		bool take = false;
		enum rc rc;

		if (p < n && !run && !(p % 64) && !pages[p / 64]) {
			p += 63; /* a word without a page, and no run to end */
			continue;
		}
		if (p < n)
			take = (pages[p / 64] >> (p % 64) & 1) &&
			       !(sparse && is_zero(m->base + p * MEMORY_PAGE));
		if (take) {
			if (!run)
				start = p;
			run++;
			count++;
			continue;
		}
		if (!run)
			continue;
		rc = write_run(m, start * MEMORY_PAGE, run * MEMORY_PAGE, fd, ret_f);
		if (rc)
			return rc;
		run = 0;
	}
	if (ret_pages)
		*ret_pages = count;
	return RC_OK;
}

enum rc memory_object(uint64_t bytes, const char *name, int *ret_fd, struct fault *ret_f)
{
	_cleanup_fd_ int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0)
		return fault_set(ret_f, RC_NOMEM, errno, "make a memory object of %llu bytes",
				 (unsigned long long)bytes);
	*ret_fd = take_fd(&fd);
	return RC_OK;
}

enum rc memory_freeze(int fd, struct fault *ret_f)
{
	if (fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW) < 0)
		return fault_set(ret_f, RC_SYS, errno, "freeze memory object");
	return RC_OK;
}

enum rc memory_seal(int fd, struct fault *ret_f)
{
	if (fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
		return fault_set(ret_f, RC_SYS, errno, "seal memory object");
	return RC_OK;
}
