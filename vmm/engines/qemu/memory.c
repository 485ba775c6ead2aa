/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/engines/qemu/memory.h"

#include "base/cleanup.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>

#define PAGE 4096u
#define CHUNK (2u << 20)
#define CHUNK_PAGES (CHUNK / PAGE)
#define PAGEMAP_PRESENT (1ull << 63)
#define PAGEMAP_SWAPPED (1ull << 62)
#define PAGEMAP_FILE (1ull << 61)

struct copier {
	const struct memory_source *from;
	int out_fd, pagemap_fd;
	bool own_only;
	EVP_MD_CTX *md; /* NULL: no checksum */
	uint8_t *chunk;
	uint64_t map[CHUNK_PAGES];
	struct memory_sum sum;
};

enum rc memory_file(const char *name, uint64_t size, int *ret_fd, struct fault *ret_f)
{
	_cleanup_fd_ int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0 || ftruncate(fd, (off_t)size) < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "memfd of %llu bytes", (unsigned long long)size);
	*ret_fd = take_fd(&fd);
	return RC_OK;
}

enum rc memory_seal(int fd, struct fault *ret_f)
{
	if (fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) < 0)
		return fault_set(ret_f, RC_SYS, errno, "seal memory");
	return RC_OK;
}

static bool page_zero(const uint8_t *p)
{
	return !p[0] && !memcmp(p, p + 1, PAGE - 1);
}

static bool page_own(uint64_t entry)
{
	return (entry & (PAGEMAP_PRESENT | PAGEMAP_SWAPPED)) && !(entry & PAGEMAP_FILE);
}

/* The base's part of the chunk; a hole costs nothing but a memset. */
static enum rc chunk_base(struct copier *c, uint64_t at, size_t n, bool *ret_any, struct fault *ret_f)
{
	off_t data = lseek(c->from->base_fd, (off_t)at, SEEK_DATA);

	*ret_any = data >= 0 && (uint64_t)data < at + n;
	if (!*ret_any)
		return RC_OK;
	for (size_t done = 0; done < n;) {
		ssize_t got = pread(c->from->base_fd, c->chunk + done, n - done, (off_t)(at + done));

		if (got <= 0)
			return fault_set(ret_f, RC_SYS, errno, "read base memory");
		done += (size_t)got;
	}
	return RC_OK;
}

static enum rc map_read(struct copier *c, uint64_t at, size_t pages, struct fault *ret_f)
{
	off_t where = (off_t)((c->from->address + at) / PAGE * sizeof(uint64_t));

	if (pread(c->pagemap_fd, c->map, pages * sizeof(uint64_t), where) != (ssize_t)(pages * sizeof(uint64_t)))
		return fault_set(ret_f, RC_SYS, errno, "read a machine's page map");
	return RC_OK;
}

static enum rc own_read(struct copier *c, uint64_t at, uint8_t *to, size_t n, struct fault *ret_f)
{
	while (n) {
		struct iovec local = { to, n };
		struct iovec remote = { (void *)(uintptr_t)(c->from->address + at), n };
		ssize_t got = process_vm_readv(c->from->pid, &local, 1, &remote, 1, 0);

		if (got <= 0)
			return fault_set(ret_f, RC_SYS, errno, "read a machine's memory");
		at += (uint64_t)got;
		to += got;
		n -= (size_t)got;
	}
	return RC_OK;
}

/* Own pages over the base's. c->map is left with what is own. */
static enum rc chunk_own(struct copier *c, uint64_t at, size_t n, bool *ret_any, struct fault *ret_f)
{
	size_t pages = n / PAGE, i = 0;
	enum rc rc;

	*ret_any = false;
	if (!c->from->pid)
		return RC_OK;
	rc = map_read(c, at, pages, ret_f);
	if (rc)
		return rc;
	while (i < pages) {
		size_t first;

		while (i < pages && !page_own(c->map[i]))
			i++;
		for (first = i; i < pages && page_own(c->map[i]); i++)
			c->sum.private_pages++;
		if (i == first)
			break;
		*ret_any = true;
		rc = own_read(c, at + first * PAGE, c->chunk + first * PAGE, (i - first) * PAGE, ret_f);
		if (rc)
			return rc;
	}
	return RC_OK;
}

static enum rc chunk_store(struct copier *c, uint64_t at, size_t n, struct fault *ret_f)
{
	for (size_t i = 0, pages = n / PAGE; i < pages;) {
		size_t first = i;

		if (page_zero(c->chunk + i * PAGE)) {
			i++;
			continue;
		}
		for (; i < pages && !page_zero(c->chunk + i * PAGE); i++) {
			uint64_t index = at / PAGE + i; /* little-endian: x86-64 only */

			c->sum.pages++;
			if (c->md && (!EVP_DigestUpdate(c->md, &index, sizeof(index)) ||
				      !EVP_DigestUpdate(c->md, c->chunk + i * PAGE, PAGE)))
				return fault_set(ret_f, RC_SYS, 0, "checksum");
		}
		for (size_t done = first * PAGE; c->out_fd >= 0 && done < i * PAGE;) {
			ssize_t put = pwrite(c->out_fd, c->chunk + done, i * PAGE - done, (off_t)(at + done));

			if (put <= 0)
				return fault_set(ret_f, rc_from_errno(errno), errno, "write memory");
			done += (size_t)put;
		}
	}
	return RC_OK;
}

static enum rc copier_run(struct copier *c, struct fault *ret_f)
{
	for (uint64_t at = 0; at < c->from->size; at += CHUNK) {
		size_t n = (size_t)MIN_OF((uint64_t)CHUNK, c->from->size - at);
		bool base = false, own = false;
		enum rc rc;

		memset(c->chunk, 0, CHUNK);
		rc = chunk_base(c, at, n, &base, ret_f);
		if (!rc)
			rc = chunk_own(c, at, n, &own, ret_f);
		if (!rc && (base || own))
			rc = chunk_store(c, at, n, ret_f);
		if (rc)
			return rc;
	}
	return RC_OK;
}

static enum rc copier_open(struct copier *c, struct fault *ret_f)
{
	char path[64];

	c->chunk = c->own_only ? NULL : malloc(CHUNK);
	if (!c->chunk && !c->own_only)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	if (c->from->size % PAGE || (!c->own_only && c->out_fd >= 0 && ftruncate(c->out_fd, (off_t)c->from->size) < 0))
		return fault_set(ret_f, rc_from_errno(errno), errno, "memory of %llu bytes",
				 (unsigned long long)c->from->size);
	if (!c->from->pid)
		return RC_OK;
	snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)c->from->pid);
	c->pagemap_fd = open(path, O_RDONLY | O_CLOEXEC);
	return c->pagemap_fd < 0 ? fault_set(ret_f, RC_SYS, errno, "open a machine's page map") : RC_OK;
}

enum rc memory_copy(const struct memory_source *from, int out_fd, bool summed, struct memory_sum *ret, struct fault *ret_f)
{
	struct copier c = { .from = from, .out_fd = out_fd, .pagemap_fd = -1, .md = summed ? EVP_MD_CTX_new() : NULL };
	enum rc rc = copier_open(&c, ret_f);

	if (!rc && summed && (!c.md || !EVP_DigestInit_ex(c.md, EVP_sha256(), NULL)))
		rc = fault_set(ret_f, RC_NOMEM, 0, "SHA-256");
	if (!rc)
		rc = copier_run(&c, ret_f);
	if (!rc && c.md && !EVP_DigestFinal_ex(c.md, c.sum.digest, NULL))
		rc = fault_set(ret_f, RC_SYS, 0, "SHA-256");
	EVP_MD_CTX_free(c.md);
	free(c.chunk);
	close_fd(&c.pagemap_fd);
	if (!rc)
		*ret = c.sum;
	return rc;
}

/* Calls fn for each run of own pages, a chunk at a time. */
typedef enum rc run_fn(struct copier *c, uint64_t at, size_t n, uint8_t *out, struct fault *ret_f);

static enum rc own_runs(struct copier *c, uint8_t *out, run_fn *fn, struct fault *ret_f)
{
	for (uint64_t at = 0; at < c->from->size; at += CHUNK) {
		size_t pages = (size_t)MIN_OF((uint64_t)CHUNK, c->from->size - at) / PAGE, i = 0;
		enum rc rc = map_read(c, at, pages, ret_f);

		while (!rc && i < pages) {
			size_t first = i;

			while (i < pages && page_own(c->map[i]))
				i++;
			if (i > first)
				rc = fn(c, at + first * PAGE, (i - first) * PAGE, out + at + first * PAGE, ret_f);
			else
				i++;
		}
		if (rc)
			return rc;
	}
	return RC_OK;
}

static enum rc run_copy(struct copier *c, uint64_t at, size_t n, uint8_t *out, struct fault *ret_f)
{
	c->sum.private_pages += n / PAGE;
	return own_read(c, at, out, n, ret_f);
}

/* Best effort: a page that isn't there yet is there when it is written. */
static enum rc run_prepare(struct copier *c, uint64_t at, size_t n, uint8_t *out, struct fault *ret_f)
{
	(void)c, (void)at, (void)ret_f;
	(void)madvise(out, n, MADV_POPULATE_WRITE);
	return RC_OK;
}

enum rc memory_copy_own(const struct memory_source *from, int out_fd, bool (*ready)(void *arg), void *arg,
			uint64_t *ret_pages, struct fault *ret_f)
{
	struct copier c = { .from = from, .out_fd = out_fd, .pagemap_fd = -1, .own_only = true };
	uint8_t *out = mmap(NULL, from->size, PROT_READ | PROT_WRITE, MAP_SHARED, out_fd, 0);
	enum rc rc;

	if (out == MAP_FAILED)
		return fault_set(ret_f, RC_SYS, errno, "map a copy of memory");
	rc = copier_open(&c, ret_f);
	if (!rc && ready) {
		rc = own_runs(&c, out, run_prepare, ret_f);
		if (!rc && !ready(arg))
			rc = fault_set(ret_f, RC_STATE, 0, "called off");
	}
	if (!rc)
		rc = own_runs(&c, out, run_copy, ret_f);
	close_fd(&c.pagemap_fd);
	munmap(out, from->size);
	if (!rc)
		*ret_pages = c.sum.private_pages;
	return rc;
}

enum rc memory_digest_file(int fd, uint64_t bytes, uint8_t out[MEMORY_DIGEST], struct fault *ret_f)
{
	EVP_MD_CTX *md = EVP_MD_CTX_new();
	uint8_t chunk[16384];
	uint64_t at = 0;
	ssize_t got = 0;
	bool ok = md && EVP_DigestInit_ex(md, EVP_sha256(), NULL);

	while (ok && at < bytes && (got = pread(fd, chunk, (size_t)MIN_OF(bytes - at, (uint64_t)sizeof(chunk)), (off_t)at)) > 0) {
		ok = EVP_DigestUpdate(md, chunk, (size_t)got);
		at += (uint64_t)got;
	}
	ok = ok && at == bytes && EVP_DigestFinal_ex(md, out, NULL);
	EVP_MD_CTX_free(md);
	return ok ? RC_OK : fault_set(ret_f, RC_SYS, got < 0 ? errno : 0, "SHA-256 of a file");
}
