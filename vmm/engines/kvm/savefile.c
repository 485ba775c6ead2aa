/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/engines/kvm/savefile.h"

#include "base/cleanup.h"
#include "vmm/engines/kvm/memory.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#define CHUNK_PAGES 64u /* a word of a bitmap */
#define CHUNK (CHUNK_PAGES * MEMORY_PAGE)

static bool is_zero(const uint8_t *data)
{
	static const uint8_t zero[MEMORY_PAGE];

	return !memcmp(data, zero, sizeof(zero));
}

static uint32_t sum_page(uint32_t crc, uint64_t page, const uint8_t *data)
{
	return savefile_crc(savefile_crc(crc, &page, sizeof(page)), data, MEMORY_PAGE);
}

/* --- reading by chunks --------------------------------------------------------------------------------------------- */

/* One file, read forward; knows where its next data is. */
struct reader {
	int fd; /* -1: reads as holes */
	uint64_t hole, data; /* data from there to the hole; both UINT64_MAX: none is left */
};

static enum rc reader_has(struct reader *r, uint64_t at, uint64_t n, bool *ret, struct fault *ret_f)
{
	*ret = false;
	if (r->fd < 0)
		return RC_OK;
	while (r->hole <= at) {
		off_t data = lseek(r->fd, (off_t)at, SEEK_DATA), hole = data < 0 ? -1 : lseek(r->fd, data, SEEK_HOLE);

		if (hole < 0 && (data >= 0 || errno != ENXIO))
			return fault_set(ret_f, RC_SYS, errno, "look for data in the memory file");
		r->data = data < 0 ? UINT64_MAX : (uint64_t)data;
		r->hole = data < 0 ? UINT64_MAX : (uint64_t)hole;
	}
	*ret = r->data < at + n;
	return RC_OK;
}

static enum rc read_at(int fd, uint8_t *to, uint64_t n, uint64_t at, struct fault *ret_f)
{
	while (n) {
		ssize_t got = pread(fd, to, n, (off_t)at);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return fault_set(ret_f, RC_INVALID, got < 0 ? errno : 0, "memory file cannot be read");
		to += got;
		at += (uint64_t)got;
		n -= (uint64_t)got;
	}
	return RC_OK;
}

static enum rc write_at(int fd, const uint8_t *from, uint64_t n, uint64_t at, struct fault *ret_f)
{
	while (n) {
		ssize_t put = pwrite(fd, from, n, (off_t)at);

		if (put < 0 && errno == EINTR)
			continue;
		if (put <= 0)
			return fault_set(ret_f, rc_from_errno(errno), errno, "write memory");
		from += put;
		at += (uint64_t)put;
		n -= (uint64_t)put;
	}
	return RC_OK;
}

/* Calls for each run of pages in a word: RUNS(bits, first, n) { .. } */
#define RUNS(bits, first, n)                                                                                       	for (unsigned int first = 0, n = 0; next_run(bits, &first, &n); first += n)

static bool next_run(uint64_t bits, unsigned int *first, unsigned int *n)
{
	if (*first >= CHUNK_PAGES || !(bits >> *first))
		return false;
	*first += (unsigned int)__builtin_ctzll(bits >> *first);
	bits = ~(bits >> *first);
	*n = bits ? (unsigned int)__builtin_ctzll(bits) : CHUNK_PAGES;
	*n = MIN_OF(*n, CHUNK_PAGES - *first);
	return true;
}

/* Layers as one memory. */
struct image {
	uint64_t bytes, *delta; /* delta: pages */
	struct reader base;
	int delta_fd;
	uint8_t *chunk;
};

static void image_close(struct image *im)
{
	free(im->delta);
	free(im->chunk);
}

static enum rc image_open(struct image *im, const struct savefile_layers *from, struct fault *ret_f)
{
	*im = (struct image){ .bytes = from->bytes, .delta = memory_bitmap(from->bytes), .base = { .fd = from->base_fd },
			      .delta_fd = from->delta_fd, .chunk = malloc(CHUNK) };
	if (!from->bytes || from->bytes % CHUNK)
		return fault_set(ret_f, RC_INVALID, 0, "memory of an impossible size");
	if (!im->delta || !im->chunk)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	return memory_layer_pages(from->delta_fd, from->bytes, im->delta, ret_f);
}

/* Chunk number w; false: it is all zeroes, and im->chunk is not filled. */
static enum rc image_read(struct image *im, uint64_t w, bool *ret_any, struct fault *ret_f)
{
	bool base;
	enum rc rc = reader_has(&im->base, w * CHUNK, CHUNK, &base, ret_f);

	if (rc)
		return rc;
	*ret_any = base || im->delta[w];
	if (!*ret_any)
		return RC_OK;
	if (!base)
		memset(im->chunk, 0, CHUNK);
	else if (~im->delta[w])
		rc = read_at(im->base.fd, im->chunk, CHUNK, w * CHUNK, ret_f);
	RUNS (im->delta[w], first, n)
		rc = rc ?: read_at(im->delta_fd, im->chunk + first * MEMORY_PAGE, (uint64_t)n * MEMORY_PAGE,
				   w * CHUNK + first * MEMORY_PAGE, ret_f);
	return rc;
}

/* Of the chunk: those that are not zero. */
static uint64_t chunk_pages(const uint8_t *chunk)
{
	uint64_t bits = 0;

	for (unsigned int i = 0; i < CHUNK_PAGES; i++)
		bits |= (uint64_t)!is_zero(chunk + i * MEMORY_PAGE) << i;
	return bits;
}

static uint32_t chunk_sum(uint32_t crc, uint64_t w, const uint8_t *chunk, uint64_t bits)
{
	for (unsigned int i = 0; i < CHUNK_PAGES; i++)
		if (bits >> i & 1)
			crc = sum_page(crc, w * CHUNK_PAGES + i, chunk + i * MEMORY_PAGE);
	return crc;
}

static enum rc chunk_write(int fd, uint64_t w, const uint8_t *chunk, uint64_t bits, struct fault *ret_f)
{
	enum rc rc = RC_OK;

	RUNS (bits, first, n)
		rc = rc ?: write_at(fd, chunk + first * MEMORY_PAGE, (uint64_t)n * MEMORY_PAGE, w * CHUNK + first * MEMORY_PAGE, ret_f);
	return rc;
}

/* --- whole --------------------------------------------------------------------------------------------------------- */

/* Sums, and with to >= 0 copies there what is not zero. */
static enum rc walk_whole(const struct savefile_layers *from, int to, uint32_t *ret_crc, struct fault *ret_f)
{
	_cleanup_(image_close) struct image im;
	uint32_t crc = ~0u;
	enum rc rc = image_open(&im, from, ret_f);
	bool any;

	for (uint64_t w = 0; !rc && w < from->bytes / CHUNK; w++) {
		uint64_t bits;

		rc = image_read(&im, w, &any, ret_f);
		if (rc || !any)
			continue;
		bits = chunk_pages(im.chunk);
		crc = chunk_sum(crc, w, im.chunk, bits);
		if (to >= 0)
			rc = chunk_write(to, w, im.chunk, bits, ret_f);
	}
	*ret_crc = crc;
	return rc;
}

/* --- what differs -------------------------------------------------------------------------------------------------- */

/* Pages of the layers that differ from prev; *ret_all: how many are not zero. */
static enum rc compare(const struct savefile_layers *from, int prev_fd, uint64_t *pages, uint64_t *ret_differ, uint64_t *ret_all,
		       struct fault *ret_f)
{
	_cleanup_free_ uint8_t *was = calloc(1, CHUNK);
	_cleanup_(image_close) struct image im;
	struct reader prev = { .fd = prev_fd };
	enum rc rc = image_open(&im, from, ret_f);
	uint64_t differ = 0, all = 0;

	if (!rc && !was)
		rc = fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	for (uint64_t w = 0; !rc && w < from->bytes / CHUNK; w++) {
		bool any = false, had = false;

		rc = reader_has(&prev, w * CHUNK, CHUNK, &had, ret_f) ?: image_read(&im, w, &any, ret_f);
		if (rc || (!any && !had))
			continue;
		if (!any)
			memset(im.chunk, 0, CHUNK);
		if (had)
			rc = read_at(prev_fd, was, CHUNK, w * CHUNK, ret_f);
		else
			memset(was, 0, CHUNK);
		for (unsigned int i = 0; i < CHUNK_PAGES; i++)
			if (memcmp(im.chunk + i * MEMORY_PAGE, was + i * MEMORY_PAGE, MEMORY_PAGE))
				pages[w] |= 1ull << i;
		differ += (uint64_t)__builtin_popcountll(pages[w]);
		all += (uint64_t)__builtin_popcountll(chunk_pages(im.chunk));
	}
	*ret_differ = differ;
	*ret_all = all;
	return rc;
}

/* These pages of the layers and the bits that say so; zeroes are holes all the same. */
static enum rc walk_pages(const struct savefile_layers *from, const uint64_t *pages, int to, uint32_t *ret_crc, struct fault *ret_f)
{
	_cleanup_(image_close) struct image im;
	uint32_t crc = savefile_crc(~0u, pages, MEMORY_MAP_BYTES(from->bytes));
	enum rc rc = image_open(&im, from, ret_f);
	bool any;

	for (uint64_t w = 0; !rc && w < from->bytes / CHUNK; w++) {
		if (!pages[w])
			continue;
		rc = image_read(&im, w, &any, ret_f);
		if (rc)
			break;
		if (!any)
			memset(im.chunk, 0, CHUNK);
		crc = chunk_sum(crc, w, im.chunk, pages[w]);
		if (to >= 0)
			rc = chunk_write(to, w, im.chunk, pages[w] & chunk_pages(im.chunk), ret_f);
	}
	*ret_crc = crc;
	return rc;
}

/* A file of differences against its own sum; with to >= 0 they are written there. Zeroes too: `to` has the base's pages. */
static enum rc walk_delta(int fd, uint64_t bytes, int to, uint32_t *ret_crc, struct fault *ret_f)
{
	_cleanup_free_ uint64_t *pages = memory_bitmap(bytes);
	_cleanup_free_ uint8_t *chunk = malloc(CHUNK);
	uint32_t crc;
	enum rc rc;

	if (!pages || !chunk)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	rc = memory_layer_pages(fd, bytes, pages, ret_f);
	crc = savefile_crc(~0u, pages, MEMORY_MAP_BYTES(bytes));
	for (uint64_t w = 0; !rc && w < bytes / CHUNK; w++) {
		if (!pages[w])
			continue;
		rc = read_at(fd, chunk, CHUNK, w * CHUNK, ret_f);
		crc = chunk_sum(crc, w, chunk, pages[w]);
		if (!rc && to >= 0)
			rc = chunk_write(to, w, chunk, pages[w], ret_f);
	}
	*ret_crc = crc;
	return rc;
}

/* --- both ---------------------------------------------------------------------------------------------------------- */

enum rc savefile_write(int memory_fd, int state_fd, uint64_t memory_bytes, const struct buf *state, struct fault *ret_f)
{
	struct savefile_head h = { .bytes = memory_bytes };
	enum rc rc = walk_whole(&(struct savefile_layers){ memory_bytes, memory_fd, -1 }, -1, &h.memory_crc, ret_f);

	return rc ? rc : statefile_write(state_fd, &h, buf_data(state), buf_len(state), ret_f);
}

enum rc savefile_store(const struct savefile_layers *from, int prev_fd, uint32_t prev_crc, int state_in, int memory_fd, int state_fd,
		       struct fault *ret_f)
{
	_cleanup_free_ uint64_t *pages = memory_bitmap(from->bytes);
	struct savefile_head h = { .bytes = from->bytes, .base_crc = prev_crc };
	_cleanup_free_ uint8_t *state = NULL;
	uint64_t differ = 0, all = 0;
	size_t n;
	enum rc rc = statefile_bytes(state_in, 0, &state, &n, ret_f);

	if (!rc && !pages)
		rc = fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	if (!rc && prev_fd >= 0)
		rc = compare(from, prev_fd, pages, &differ, &all, ret_f);
	h.has_base = prev_fd >= 0 && differ <= all / 2;
	if (!rc && ftruncate(memory_fd, (off_t)(from->bytes + (h.has_base ? MEMORY_MAP_BYTES(from->bytes) : 0))) < 0)
		rc = fault_set(ret_f, rc_from_errno(errno), errno, "size memory file");
	if (!rc && h.has_base) {
		memory_join(from->bytes, pages);
		rc = walk_pages(from, pages, memory_fd, &h.memory_crc, ret_f);
		rc = rc ?: write_at(memory_fd, (const uint8_t *)pages, MEMORY_MAP_BYTES(from->bytes), from->bytes, ret_f);
	} else if (!rc) {
		h.base_crc = 0;
		rc = walk_whole(from, memory_fd, &h.memory_crc, ret_f);
	}
	return rc ? rc : statefile_write(state_fd, &h, state, n, ret_f);
}

static enum rc check_size(int fd, uint64_t bytes, const char *what, struct fault *ret_f)
{
	struct stat st;

	if (fstat(fd, &st) < 0 || (uint64_t)st.st_size != bytes)
		return fault_set(ret_f, RC_STATE, 0, "%s file has another size than the state says", what);
	return RC_OK;
}

static enum rc check_sum(uint32_t have, uint32_t want, const char *what, struct fault *ret_f)
{
	return have == want ? RC_OK : fault_set(ret_f, RC_INVALID, 0, "%s file is damaged (checksum)", what);
}

enum rc savefile_load(int memory_fd, int state_fd, int base_fd, int to, struct fault *ret_f)
{
	_cleanup_free_ uint8_t *state = NULL;
	struct savefile_head h;
	uint32_t have;
	size_t n;
	enum rc rc = savefile_state(state_fd, &h, &state, &n, ret_f);

	if (rc)
		return rc;
	if (h.has_base && base_fd < 0)
		return fault_set(ret_f, RC_STATE, 0, "its base is missing");
	rc = check_size(memory_fd, h.bytes + (h.has_base ? MEMORY_MAP_BYTES(h.bytes) : 0), "memory", ret_f);
	if (!rc && h.has_base)
		rc = check_size(base_fd, h.bytes, "base's", ret_f);
	if (!rc && to >= 0 && ftruncate(to, (off_t)h.bytes) < 0)
		rc = fault_set(ret_f, RC_NOMEM, errno, "size memory object");
	if (!rc)
		rc = walk_whole(&(struct savefile_layers){ h.bytes, h.has_base ? base_fd : memory_fd, -1 }, to, &have, ret_f);
	if (!rc)
		rc = check_sum(have, h.has_base ? h.base_crc : h.memory_crc, h.has_base ? "base's" : "memory", ret_f);
	if (!rc && h.has_base) {
		rc = walk_delta(memory_fd, h.bytes, to, &have, ret_f);
		rc = rc ?: check_sum(have, h.memory_crc, "memory", ret_f);
	}
	return rc || to < 0 ? rc : memory_seal(to, ret_f);
}
