/* SPDX-License-Identifier: Apache-2.0 */
/* The state file, for the machine's process and for the broker. */
#include "vmm/engines/kvm/savefile.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/wire.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#define MAGIC 0x4d58424eu
#define VERSION 2u
#define HAS_BASE 1u

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

enum rc statefile_write(int fd, const struct savefile_head *h, const void *state, size_t n, struct fault *ret_f)
{
	uint8_t head[SAVEFILE_HEAD];
	struct wire w;
	enum rc rc;

	wire_init(&w, head, sizeof(head));
	wire_put_u32(&w, MAGIC);
	wire_put_u32(&w, VERSION);
	wire_put_u64(&w, h->bytes);
	wire_put_u32(&w, h->memory_crc);
	wire_put_u32(&w, savefile_crc(~0u, state, n));
	wire_put_u32(&w, h->has_base ? HAS_BASE : 0);
	wire_put_u32(&w, h->base_crc);
	rc = fd_write_all(fd, head, sizeof(head), UINT64_MAX, ret_f);
	return rc ? rc : fd_write_all(fd, state, n, UINT64_MAX, ret_f);
}

enum rc statefile_bytes(int fd, uint64_t least, uint8_t **ret, size_t *ret_n, struct fault *ret_f)
{
	_cleanup_free_ uint8_t *mem = NULL;
	struct stat st;
	size_t n;

	if (fstat(fd, &st) < 0 || st.st_size < (off_t)least || st.st_size > (off_t)(SAVEFILE_HEAD + SAVEFILE_STATE_MAX))
		return fault_set(ret_f, RC_INVALID, 0, "state file has an impossible size");
	n = (size_t)st.st_size;
	mem = malloc(n + 1);
	if (!mem)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	if (pread(fd, mem, n, 0) != (ssize_t)n)
		return fault_set(ret_f, RC_INVALID, 0, "state file cannot be read");
	*ret_n = n;
	*ret = take_ptr(mem);
	return RC_OK;
}

enum rc savefile_state(int state_fd, struct savefile_head *ret_head, uint8_t **ret, size_t *ret_n, struct fault *ret_f)
{
	_cleanup_free_ uint8_t *mem = NULL;
	struct savefile_head h;
	uint32_t flags;
	struct wire w;
	size_t n;
	enum rc rc = statefile_bytes(state_fd, SAVEFILE_HEAD, &mem, &n, ret_f);

	if (rc)
		return rc;
	wire_init(&w, mem, n);
	if (wire_get_u32(&w) != MAGIC || wire_get_u32(&w) != VERSION)
		return fault_set(ret_f, RC_STATE, 0, "state file is of another version");
	h.bytes = wire_get_u64(&w);
	h.memory_crc = wire_get_u32(&w);
	h.state_crc = wire_get_u32(&w);
	flags = wire_get_u32(&w);
	h.base_crc = wire_get_u32(&w);
	h.has_base = flags & HAS_BASE;
	if (flags & ~HAS_BASE || (!h.has_base && h.base_crc))
		return fault_set(ret_f, RC_STATE, 0, "state file is of another version");
	n -= SAVEFILE_HEAD;
	memmove(mem, mem + SAVEFILE_HEAD, n);
	if (h.state_crc != savefile_crc(~0u, mem, n))
		return fault_set(ret_f, RC_INVALID, 0, "state file is damaged (checksum)");
	if (ret_head)
		*ret_head = h;
	*ret_n = n;
	*ret = take_ptr(mem);
	return RC_OK;
}
