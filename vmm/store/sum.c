/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/store/sum.h"

#include "base/cleanup.h"
#include "base/hex.h"

#include <endian.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHUNK (1u << 20) /* a multiple of SUM_BLOCK */

static void cleanup_digest(EVP_MD_CTX **c)
{
	EVP_MD_CTX_free(*c);
}

static bool all_zero(const uint8_t *p, size_t n)
{
	return !n || (!*p && !memcmp(p, p + 1, n - 1));
}

struct walk {
	EVP_MD_CTX *digest;
	uint8_t *mem;
	int from, to; /* to: -1, or where the blocks go */
};

static enum rc block(struct walk *w, const uint8_t *p, size_t n, off_t at, struct fault *ret_f)
{
	uint64_t number = htole64((uint64_t)at / SUM_BLOCK);

	if (all_zero(p, n))
		return RC_OK;
	if (!EVP_DigestUpdate(w->digest, &number, sizeof(number)) || !EVP_DigestUpdate(w->digest, p, n))
		return fault_set(ret_f, RC_NOMEM, 0, "sha256");
	while (w->to >= 0 && n) {
		ssize_t k = pwrite(w->to, p, n, at);

		if (k < 0 && errno == EINTR)
			continue;
		if (k < 0)
			return fault_set(ret_f, rc_from_errno(errno), errno, "write disk");
		p += k;
		n -= (size_t)k;
		at += k;
	}
	return RC_OK;
}

/* A short read is one at the end. */
static ssize_t read_full(int fd, uint8_t *mem, size_t n, off_t at)
{
	size_t done = 0;

	while (done < n) {
		ssize_t k = pread(fd, mem + done, n - done, at + (off_t)done);

		if (k < 0 && errno == EINTR)
			continue;
		if (k < 0)
			return -1;
		if (!k)
			break;
		done += (size_t)k;
	}
	return (ssize_t)done;
}

static enum rc data(struct walk *w, off_t at, off_t end, struct fault *ret_f)
{
	enum rc rc = RC_OK;

	while (!rc && at < end) {
		ssize_t n = read_full(w->from, w->mem, MIN_OF((size_t)(end - at), (size_t)CHUNK), at);

		if (n < 0)
			return fault_set(ret_f, RC_SYS, errno, "read disk at %" PRId64, (int64_t)at);
		if (!n)
			return fault_set(ret_f, RC_STATE, 0, "disk became shorter while it was read");
		for (ssize_t k = 0; !rc && k < n; k += SUM_BLOCK)
			rc = block(w, w->mem + k, MIN_OF((size_t)(n - k), (size_t)SUM_BLOCK), at + k, ret_f);
		at += n;
	}
	return rc;
}

/* Extents may end within a block: what is left of it is read with it, and not again. */
static enum rc extents(struct walk *w, off_t size, struct fault *ret_f)
{
	off_t at = 0;
	enum rc rc = RC_OK;

	while (!rc && at < size) {
		off_t begin = lseek(w->from, at, SEEK_DATA), end;

		if (begin < 0 && errno == ENXIO)
			break;
		end = begin < 0 ? -1 : lseek(w->from, begin, SEEK_HOLE);
		if (end < 0)
			return fault_set(ret_f, RC_SYS, errno, "seek disk");
		begin = MAX_OF(at, begin / SUM_BLOCK * SUM_BLOCK);
		end = MIN_OF(size, (end + SUM_BLOCK - 1) / SUM_BLOCK * SUM_BLOCK);
		rc = data(w, begin, end, ret_f);
		at = end;
	}
	return rc;
}

static enum rc walk(int from, int to, struct sum *ret, struct fault *ret_f)
{
	_cleanup_(cleanup_digest) EVP_MD_CTX *digest = EVP_MD_CTX_new();
	_cleanup_free_ uint8_t *mem = malloc(CHUNK);
	struct walk w = { digest, mem, from, to };
	unsigned char hash[EVP_MAX_MD_SIZE];
	struct stat st;
	enum rc rc;

	if (!digest || !mem || !EVP_DigestInit_ex(digest, EVP_sha256(), NULL))
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	if (fstat(from, &st) < 0)
		return fault_set(ret_f, RC_SYS, errno, "stat disk");
	if (to >= 0 && (ftruncate(to, 0) < 0 || ftruncate(to, st.st_size) < 0))
		return fault_set(ret_f, rc_from_errno(errno), errno, "size of disk");
	rc = extents(&w, st.st_size, ret_f);
	if (rc)
		return rc;
	if (!EVP_DigestFinal_ex(digest, hash, NULL))
		return fault_set(ret_f, RC_NOMEM, 0, "sha256");
	ret->bytes = (uint64_t)st.st_size;
	hex_of(ret->hex, hash, 32);
	return RC_OK;
}

enum rc sum_disk(int fd, struct sum *ret, struct fault *ret_f)
{
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
	return walk(fd, -1, ret, ret_f);
}

enum rc sum_copy(int from, int to, bool *ret_shared, struct sum *ret, struct fault *ret_f)
{
	*ret_shared = ioctl(to, FICLONE, from) == 0;
	return *ret_shared ? RC_OK : walk(from, to, ret, ret_f);
}

/* --- the file --------------------------------------------------------------------------------------------------- */

enum rc sum_read(int fd, struct sum *ret, struct fault *ret_f)
{
	char line[SUM_LINE_MAX + 1], *end;
	struct sum s = { 0 };
	ssize_t n = pread(fd, line, SUM_LINE_MAX, 0);

	if (n < 0)
		return fault_set(ret_f, RC_SYS, errno, "read checksum");
	if (!n)
		return fault_set(ret_f, RC_ABSENT, 0, "there is no checksum yet");
	line[n] = '\0';
	if (n < 74 || strncmp(line, "sha256 ", 7) != 0 || strspn(line + 7, "0123456789abcdef") != 64 || line[71] != ' ')
		return fault_set(ret_f, RC_STATE, 0, "the file of its checksum is damaged");
	memcpy(s.hex, line + 7, 64);
	s.bytes = strtoull(line + 72, &end, 10);
	if (*end != '\n' || end[1] || end == line + 72)
		return fault_set(ret_f, RC_STATE, 0, "the file of its checksum is damaged");
	*ret = s;
	return RC_OK;
}

enum rc sum_write(int fd, const struct sum *s, struct fault *ret_f)
{
	char line[SUM_LINE_MAX];
	int n = snprintf(line, sizeof(line), "sha256 %s %" PRIu64 "\n", s->hex, s->bytes);

	if (ftruncate(fd, 0) < 0 || pwrite(fd, line, (size_t)n, 0) != n || fsync(fd) < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "write checksum");
	return RC_OK;
}

enum rc sum_compare(const struct sum *is, const struct sum *should, struct fault *ret_f)
{
	if (is->bytes != should->bytes)
		return fault_set(ret_f, RC_STATE, 0, "it has %" PRIu64 " bytes and should have %" PRIu64, is->bytes, should->bytes);
	if (strcmp(is->hex, should->hex) != 0)
		return fault_set(ret_f, RC_STATE, 0, "its content does not match its checksum");
	return RC_OK;
}
