/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/engines/kvm/savefile.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/wire.h"
#include "vmm/engines/kvm/memory.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define MAGIC 0x4d58424eu
#define VERSION 1u
#define HEAD 24u

/* CRC32C, one table: memory is summed once a snapshot, at some GB/s less than the disk costs. */
uint32_t savefile_crc(uint32_t crc, const void *data, size_t n)
{
	static uint32_t table[256];
	const uint8_t *p = data;

	if (__builtin_cpu_supports("sse4.2")) {
		uint64_t c = crc;

		for (; n >= 8; n -= 8, p += 8) {
			uint64_t v;

			memcpy(&v, p, 8);
			__asm__("crc32q %1, %0" : "+r"(c) : "rm"(v));
		}
		crc = (uint32_t)c;
	}
	if (!table[1])
		for (uint32_t i = 0; i < 256; i++) {
			uint32_t v = i;

			for (int k = 0; k < 8; k++)
				v = v & 1 ? v >> 1 ^ 0x82f63b78 : v >> 1;
			table[i] = v;
		}
	while (n--)
		crc = table[(crc ^ *p++) & 0xff] ^ crc >> 8;
	return crc;
}

static uint32_t sum_page(uint32_t crc, uint64_t page, const uint8_t *data)
{
	static const uint8_t zero[MEMORY_PAGE];

	if (!memcmp(data, zero, sizeof(zero)))
		return crc;
	crc = savefile_crc(crc, &page, sizeof(page));
	return savefile_crc(crc, data, MEMORY_PAGE);
}

/* Sums a file's data and, with to >= 0, copies it there. */
static enum rc walk(int fd, uint64_t bytes, int to, uint32_t *ret_crc, struct fault *ret_f)
{
	_cleanup_free_ uint8_t *chunk = malloc(64 * MEMORY_PAGE);
	uint32_t crc = ~0u;
	off_t at = 0;

	if (!chunk)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	while ((at = lseek(fd, at, SEEK_DATA)) >= 0 && (uint64_t)at < bytes) {
		size_t n = 64 * MEMORY_PAGE;
		ssize_t got;

		at &= ~(off_t)(MEMORY_PAGE - 1);
		n = (size_t)MIN_OF(n, bytes - (uint64_t)at);
		got = pread(fd, chunk, n, at);
		if (got <= 0 || got % MEMORY_PAGE)
			return fault_set(ret_f, RC_INVALID, got < 0 ? errno : 0, "memory file cannot be read");
		for (ssize_t k = 0; k < got; k += MEMORY_PAGE)
			crc = sum_page(crc, (uint64_t)(at + k) / MEMORY_PAGE, chunk + k);
		if (to >= 0 && pwrite(to, chunk, (size_t)got, at) != got)
			return fault_set(ret_f, RC_NOMEM, errno, "fill memory object");
		at += got;
	}
	if (at < 0 && errno != ENXIO)
		return fault_set(ret_f, RC_SYS, errno, "look for data in the memory file");
	*ret_crc = crc;
	return RC_OK;
}

enum rc savefile_write(int memory_fd, int state_fd, uint64_t memory_bytes, const struct buf *state, struct fault *ret_f)
{
	uint8_t head[HEAD];
	uint32_t crc;
	struct wire w;
	enum rc rc = walk(memory_fd, memory_bytes, -1, &crc, ret_f);

	if (rc)
		return rc;
	wire_init(&w, head, sizeof(head));
	wire_put_u32(&w, MAGIC);
	wire_put_u32(&w, VERSION);
	wire_put_u64(&w, memory_bytes);
	wire_put_u32(&w, crc);
	wire_put_u32(&w, savefile_crc(~0u, buf_data(state), buf_len(state)));
	rc = fd_write_all(state_fd, head, sizeof(head), UINT64_MAX, ret_f);
	if (!rc)
		rc = fd_write_all(state_fd, buf_data(state), buf_len(state), UINT64_MAX, ret_f);
	return rc;
}

static enum rc read_state(int fd, uint64_t memory_bytes, uint32_t *ret_crc, uint8_t **ret, size_t *ret_n,
			  struct fault *ret_f)
{
	_cleanup_free_ uint8_t *mem = NULL;
	struct stat st;
	struct wire w;
	size_t n;

	if (fstat(fd, &st) < 0 || st.st_size < (off_t)HEAD || st.st_size > (off_t)(HEAD + SAVEFILE_STATE_MAX))
		return fault_set(ret_f, RC_INVALID, 0, "state file has an impossible size");
	n = (size_t)st.st_size;
	mem = malloc(n);
	if (!mem)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	if (pread(fd, mem, n, 0) != (ssize_t)n)
		return fault_set(ret_f, RC_INVALID, 0, "state file cannot be read");
	wire_init(&w, mem, n);
	if (wire_get_u32(&w) != MAGIC || wire_get_u32(&w) != VERSION)
		return fault_set(ret_f, RC_STATE, 0, "state file is of another version");
	if (wire_get_u64(&w) != memory_bytes)
		return fault_set(ret_f, RC_STATE, 0, "state file is of another memory size");
	*ret_crc = wire_get_u32(&w);
	if (wire_get_u32(&w) != savefile_crc(~0u, mem + HEAD, n - HEAD))
		return fault_set(ret_f, RC_INVALID, 0, "state file is damaged (checksum)");
	memmove(mem, mem + HEAD, n - HEAD);
	*ret_n = n - HEAD;
	*ret = take_ptr(mem);
	return RC_OK;
}

enum rc savefile_state(int state_fd, uint64_t memory_bytes, uint8_t **ret, size_t *ret_n, struct fault *ret_f)
{
	uint32_t crc;

	return read_state(state_fd, memory_bytes, &crc, ret, ret_n, ret_f);
}

enum rc savefile_load(int memory_fd, int state_fd, int to, struct fault *ret_f)
{
	_cleanup_free_ uint8_t *state = NULL;
	uint32_t want, have;
	struct stat st;
	size_t n;
	enum rc rc;

	if (fstat(memory_fd, &st) < 0)
		return fault_set(ret_f, RC_SYS, errno, "stat memory file");
	rc = read_state(state_fd, (uint64_t)st.st_size, &want, &state, &n, ret_f);
	if (!rc && ftruncate(to, st.st_size) < 0)
		rc = fault_set(ret_f, RC_NOMEM, errno, "size memory object");
	if (!rc)
		rc = walk(memory_fd, (uint64_t)st.st_size, to, &have, ret_f);
	if (!rc && want != have)
		rc = fault_set(ret_f, RC_INVALID, 0, "memory file is damaged (checksum)");
	return rc ? rc : memory_seal(to, ret_f);
}
