/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/deploy/bundle.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/hex.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>

#define CHUNK 65536
#define ZSTD_LEVEL "3"

struct bundle_writer {
	struct bundle_limits limits;
	int dirfd, fd;
	char tmp[64];
	struct archive *tar, *zst; /* tar writes into hash and zst */
	EVP_MD_CTX *hash;
	uint64_t entries, bytes;
	bool failed;
};

/* --- what may be in a bundle --------------------------------------------------------------------------------------- */

enum rc bundle_check_path(const char *path, struct fault *ret_f)
{
	const char *at = path;

	if (!*path || *path == '/' || strlen(path) > BUNDLE_PATH_MAX)
		return fault_set(ret_f, RC_INVALID, 0, "path is empty, absolute or longer than %d bytes", BUNDLE_PATH_MAX);
	while (*at) {
		size_t n = strcspn(at, "/");

		if (n == 2 && at[0] == '.' && at[1] == '.')
			return fault_set(ret_f, RC_INVALID, 0, "path leaves the tree: '%.80s'", path);
		if (n > 255)
			return fault_set(ret_f, RC_INVALID, 0, "a name in the path is longer than 255 bytes");
		at += n;
		while (*at == '/')
			at++;
	}
	return RC_OK;
}

enum rc bundle_check_link(const char *path, const char *target, struct fault *ret_f)
{
	int depth = 0;
	const char *at;

	if (!*target || *target == '/' || strlen(target) > BUNDLE_PATH_MAX)
		return fault_set(ret_f, RC_INVALID, 0, "link '%.60s' points out of the tree", path);
	for (at = strchr(path, '/'); at; at = strchr(at + 1, '/'))
		if (at[1] && at[1] != '/')
			depth++;
	/* Going up past the link's own depth leaves the tree, wherever the rest leads. */
	for (at = target; *at;) {
		size_t n = strcspn(at, "/");

		if (n == 2 && at[0] == '.' && at[1] == '.') {
			if (--depth < 0)
				return fault_set(ret_f, RC_INVALID, 0, "link '%.60s' points out of the tree", path);
		} else if (n && !(n == 1 && at[0] == '.')) {
			depth++;
		}
		at += n;
		while (*at == '/')
			at++;
	}
	return RC_OK;
}

/* "./a//b/" as "a/b"; "" for the root itself. */
static enum rc clean_path(const char *path, char out[BUNDLE_PATH_MAX + 1], struct fault *ret_f)
{
	size_t n = 0;
	enum rc rc = bundle_check_path(path, ret_f);

	if (rc)
		return rc;
	while (*path) {
		size_t k = strcspn(path, "/");

		if (k && !(k == 1 && path[0] == '.')) {
			if (n)
				out[n++] = '/';
			memcpy(out + n, path, k);
			n += k;
		}
		path += k;
		while (*path == '/')
			path++;
	}
	out[n] = '\0';
	return RC_OK;
}

/* --- writing ------------------------------------------------------------------------------------------------------- */

static la_ssize_t on_tar_bytes(struct archive *a, void *arg, const void *data, size_t n)
{
	struct bundle_writer *w = arg;

	/* Given up: libarchive may not pad an entry to the size that its header promised. */
	if (w->failed)
		return -1;
	if (EVP_DigestUpdate(w->hash, data, n) != 1 || archive_write_data(w->zst, data, n) != (la_ssize_t)n) {
		archive_set_error(a, errno ? errno : EIO, "could not store the bundle");
		return -1;
	}
	return (la_ssize_t)n;
}

static enum rc archive_fault(struct archive *a, const char *what, struct fault *ret_f)
{
	int sys = archive_errno(a);

	if (sys == ENOSPC || sys == EDQUOT)
		return fault_set(ret_f, RC_NOSPACE, 0, "%s: no space left", what);
	return fault_set(ret_f, RC_SYS, 0, "%s: %.100s", what, archive_error_string(a) ? archive_error_string(a) : "?");
}

/* The compressed file: a "raw" archive with one entry through the zstd filter. */
static enum rc open_zst(struct bundle_writer *w, struct fault *ret_f)
{
	struct archive_entry *e;
	int ok;

	w->zst = archive_write_new();
	e = archive_entry_new();
	if (!w->zst || !e) {
		archive_entry_free(e);
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	}
	archive_entry_set_filetype(e, AE_IFREG);
	archive_entry_set_pathname(e, "tar");
	ok = archive_write_add_filter_zstd(w->zst) == ARCHIVE_OK &&
	     archive_write_set_filter_option(w->zst, "zstd", "compression-level", ZSTD_LEVEL) == ARCHIVE_OK &&
	     archive_write_set_format_raw(w->zst) == ARCHIVE_OK && archive_write_open_fd(w->zst, w->fd) == ARCHIVE_OK &&
	     archive_write_header(w->zst, e) == ARCHIVE_OK;
	archive_entry_free(e);
	return ok ? RC_OK : archive_fault(w->zst, "open bundle", ret_f);
}

enum rc bundle_begin(const struct bundle_limits *limits, int bundles_dirfd, struct bundle_writer **ret,
		     struct fault *ret_f)
{
	struct bundle_writer *w = calloc(1, sizeof(*w));
	char tail[17];
	enum rc rc;

	if (!w)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	w->limits = *limits;
	w->dirfd = bundles_dirfd;
	random_hex(tail, 8);
	snprintf(w->tmp, sizeof(w->tmp), ".new.%s", tail);
	w->fd = openat(bundles_dirfd, w->tmp, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0640);
	w->hash = EVP_MD_CTX_new();
	w->tar = archive_write_new();
	if (w->fd < 0)
		rc = fault_set(ret_f, rc_from_errno(errno), errno, "create bundle");
	else if (!w->hash || !w->tar || EVP_DigestInit_ex(w->hash, EVP_sha256(), NULL) != 1)
		rc = fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	else
		rc = open_zst(w, ret_f);
	if (!rc && (archive_write_set_format_pax_restricted(w->tar) != ARCHIVE_OK ||
		    archive_write_set_bytes_per_block(w->tar, 0) != ARCHIVE_OK ||
		    archive_write_open(w->tar, w, NULL, on_tar_bytes, NULL) != ARCHIVE_OK))
		rc = archive_fault(w->tar, "open bundle", ret_f);
	if (rc) {
		bundle_abort(w);
		return rc;
	}
	*ret = w;
	return RC_OK;
}

void bundle_abort(struct bundle_writer *w)
{
	if (!w)
		return;
	/* Closed, not failed: archive_write_fail() would leak what libarchive holds. What it still writes goes nowhere. */
	w->failed = true;
	if (w->fd >= 0)
		unlinkat(w->dirfd, w->tmp, 0);
	archive_write_free(w->tar);
	archive_write_free(w->zst);
	EVP_MD_CTX_free(w->hash);
	if (w->fd >= 0)
		close(w->fd);
	free(w);
}

/* One header, normalised: nobody's owner, no time, plain permissions. */
static enum rc put_header(struct bundle_writer *w, const char *path, unsigned int type, bool executable, uint64_t n,
			  const char *target, struct fault *ret_f)
{
	struct archive_entry *e;
	enum rc rc = RC_OK;

	if (++w->entries > w->limits.entries)
		return fault_set(ret_f, RC_LIMIT, 0, "more than %llu entries", (unsigned long long)w->limits.entries);
	if (n > w->limits.bytes - w->bytes)
		return fault_set(ret_f, RC_LIMIT, 0, "more than %llu bytes", (unsigned long long)w->limits.bytes);
	w->bytes += n;
	e = archive_entry_new();
	if (!e)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	archive_entry_set_pathname(e, path);
	archive_entry_set_filetype(e, type);
	archive_entry_set_perm(e, type == AE_IFDIR || executable ? 0755 : type == AE_IFLNK ? 0777 : 0644);
	archive_entry_set_mtime(e, 0, 0);
	if (type == AE_IFREG)
		archive_entry_set_size(e, (la_int64_t)n);
	if (target)
		archive_entry_set_symlink(e, target);
	/* A warning: the name is not UTF-8, or the locale is not, and is written as the bytes that it is. */
	if (archive_write_header(w->tar, e) < ARCHIVE_WARN)
		rc = archive_fault(w->tar, "write bundle", ret_f);
	archive_entry_free(e);
	return rc;
}

enum rc bundle_add_file(struct bundle_writer *w, const char *path, const void *data, uint64_t n, struct fault *ret_f)
{
	char clean[BUNDLE_PATH_MAX + 1];
	enum rc rc = clean_path(path, clean, ret_f);

	if (!rc && !*clean)
		rc = fault_set(ret_f, RC_INVALID, 0, "a file needs a name");
	if (!rc)
		rc = put_header(w, clean, AE_IFREG, false, n, NULL, ret_f);
	if (!rc && n && archive_write_data(w->tar, data, n) != (la_ssize_t)n)
		rc = archive_fault(w->tar, "write bundle", ret_f);
	return rc;
}

enum rc bundle_add_link(struct bundle_writer *w, const char *path, const char *target, struct fault *ret_f)
{
	char clean[BUNDLE_PATH_MAX + 1];
	enum rc rc = clean_path(path, clean, ret_f);

	if (!rc && !*clean)
		rc = fault_set(ret_f, RC_INVALID, 0, "a link needs a name");
	if (!rc)
		rc = bundle_check_link(clean, target, ret_f);
	return rc ? rc : put_header(w, clean, AE_IFLNK, false, 0, target, ret_f);
}

static enum rc publish(struct bundle_writer *w, struct bundle *ret, struct fault *ret_f)
{
	unsigned char digest[32];
	char name[BUNDLE_NAME_MAX + 16];
	struct stat st;

	if (EVP_DigestFinal_ex(w->hash, digest, NULL) != 1)
		return fault_set(ret_f, RC_SYS, 0, "SHA-256");
	hex_of(ret->name, digest, sizeof(digest));
	snprintf(name, sizeof(name), "%s.tar.zst", ret->name);
	if (fsync(w->fd) < 0 || fstat(w->fd, &st) < 0 || renameat(w->dirfd, w->tmp, w->dirfd, name) < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "store bundle");
	if (fsync(w->dirfd) < 0 && errno != EINVAL)
		return fault_set(ret_f, RC_SYS, errno, "fsync bundles");
	ret->bytes = (uint64_t)st.st_size;
	ret->entries = w->entries;
	close_fd(&w->fd);
	return RC_OK;
}

enum rc bundle_finish(struct bundle_writer *w, struct bundle *ret, struct fault *ret_f)
{
	struct bundle b = { .bytes = 0 };
	enum rc rc = RC_OK;

	if (archive_write_close(w->tar) != ARCHIVE_OK)
		rc = archive_fault(w->tar, "finish bundle", ret_f);
	if (!rc && archive_write_close(w->zst) != ARCHIVE_OK)
		rc = archive_fault(w->zst, "finish bundle", ret_f);
	if (!rc)
		rc = publish(w, &b, ret_f);
	bundle_abort(w);
	if (!rc)
		*ret = b;
	return rc;
}

/* --- from a tar stream --------------------------------------------------------------------------------------------- */

struct input {
	int fd;
	struct bundle_pace pace;
	uint64_t began_ms, bytes;
	struct fault fault;
	uint8_t chunk[CHUNK];
};

/* The moment after which the next byte is late. What was sent while the last ones were stored is not. */
static uint64_t input_deadline(const struct input *in)
{
	const struct bundle_pace *p = &in->pace;
	uint64_t won = p->bytes_per_s ? in->bytes / p->bytes_per_s * 1000 : 0;
	uint64_t whole = won > p->most_ms || p->base_ms > p->most_ms - won ? p->most_ms : p->base_ms + won;

	return MIN_OF(in->began_ms + whole, now_ms() + p->quiet_ms);
}

static la_ssize_t on_read(struct archive *a, void *arg, const void **ret)
{
	struct input *in = arg;
	uint64_t deadline_ms = input_deadline(in);
	ssize_t n;

	for (;;) {
		/* Waiting alone would never end for a sender that always has more. */
		if (now_ms() >= deadline_ms)
			fault_set(&in->fault, RC_TIMEOUT, 0, "deadline passed");
		if (in->fault.rc || fd_wait(in->fd, POLLIN, deadline_ms, &in->fault)) {
			archive_set_error(a, ETIMEDOUT, "%s", in->fault.text);
			return -1;
		}
		n = read(in->fd, in->chunk, sizeof(in->chunk));
		if (n >= 0 || (errno != EINTR && errno != EAGAIN))
			break;
	}
	if (n < 0)
		archive_set_error(a, errno, "read");
	else
		in->bytes += (uint64_t)n;
	*ret = in->chunk;
	return n;
}

static enum rc copy_data(struct archive *in, struct bundle_writer *w, uint64_t n, struct fault *ret_f)
{
	static const uint8_t zero[4096];
	uint64_t done = 0;
	const void *data;
	size_t got;
	la_int64_t at;
	int rc;

	while ((rc = archive_read_data_block(in, &data, &got, &at)) == ARCHIVE_OK) {
		/* Holes of a sparse file are written out; its apparent size was counted already. */
		while (done < (uint64_t)at) {
			size_t k = (size_t)MIN_OF((uint64_t)at - done, sizeof(zero));

			if (archive_write_data(w->tar, zero, k) != (la_ssize_t)k)
				return archive_fault(w->tar, "write bundle", ret_f);
			done += k;
		}
		if (got && archive_write_data(w->tar, data, got) != (la_ssize_t)got)
			return archive_fault(w->tar, "write bundle", ret_f);
		done += got;
		if (done > n)
			return fault_set(ret_f, RC_GUEST, 0, "entry is longer than it says");
	}
	if (rc != ARCHIVE_EOF)
		return fault_set(ret_f, RC_GUEST, 0, "tar: %.100s", archive_error_string(in) ? archive_error_string(in) : "?");
	return RC_OK;
}

static enum rc take_entry(struct archive *in, struct archive_entry *e, struct bundle_writer *w, struct fault *ret_f)
{
	const char *path = archive_entry_pathname(e);
	char clean[BUNDLE_PATH_MAX + 1];
	la_int64_t size = archive_entry_size(e);
	enum rc rc;

	if (!path)
		return fault_set(ret_f, RC_INVALID, 0, "an entry's name is no text");
	rc = clean_path(path, clean, ret_f);
	if (rc)
		return rc;
	if (archive_entry_hardlink(e))
		return fault_set(ret_f, RC_INVALID, 0, "'%.80s' is a hard link; bundles hold none", clean);
	switch (archive_entry_filetype(e)) {
	case AE_IFDIR: return *clean ? put_header(w, clean, AE_IFDIR, true, 0, NULL, ret_f) : RC_OK;
	case AE_IFLNK: {
		const char *target = archive_entry_symlink(e);

		return target ? bundle_add_link(w, clean, target, ret_f) :
				fault_set(ret_f, RC_INVALID, 0, "'%.80s' is a link to nothing", clean);
	}
	case AE_IFREG:
		if (!*clean || size < 0)
			return fault_set(ret_f, RC_INVALID, 0, "a file without a name or a size");
		rc = put_header(w, clean, AE_IFREG, archive_entry_perm(e) & 0111, (uint64_t)size, NULL, ret_f);
		return rc ? rc : copy_data(in, w, (uint64_t)size, ret_f);
	default:
		return fault_set(ret_f, RC_INVALID, 0, "'%.80s' is a device, socket or pipe; bundles hold none", clean);
	}
}

static enum rc copy_tar(struct archive *in, struct bundle_writer *w, struct fault *ret_f)
{
	struct archive_entry *e;
	uint64_t seen = 0;
	int rc;

	while ((rc = archive_read_next_header(in, &e)) == ARCHIVE_OK || rc == ARCHIVE_WARN) {
		/* The root itself is no entry of the bundle, but a stream of nothing else shall end, too. */
		enum rc taken = seen++ > w->limits.entries ? fault_set(ret_f, RC_LIMIT, 0, "more than %llu entries",
								       (unsigned long long)w->limits.entries) :
							     take_entry(in, e, w, ret_f);

		if (taken)
			return taken;
	}
	if (rc == ARCHIVE_EOF)
		return RC_OK;
	return fault_set(ret_f, RC_GUEST, 0, "tar: %.100s", archive_error_string(in) ? archive_error_string(in) : "?");
}

enum rc bundle_from_tar(int tar_fd, const struct bundle_limits *limits, int bundles_dirfd, const struct bundle_pace *pace,
			struct bundle *ret, struct fault *ret_f)
{
	_cleanup_free_ struct input *input = calloc(1, sizeof(*input));
	struct archive *in = archive_read_new();
	struct bundle_writer *w = NULL;
	enum rc rc;

	if (!input || !in) {
		archive_read_free(in);
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	}
	input->fd = tar_fd;
	input->pace = *pace;
	input->began_ms = now_ms();
	rc = bundle_begin(limits, bundles_dirfd, &w, ret_f);
	if (!rc) {
		/* tar and nothing else: no compression, no other format that libarchive would guess. */
		archive_read_support_format_tar(in);
		if (archive_read_open(in, input, NULL, on_read, NULL) != ARCHIVE_OK)
			rc = fault_set(ret_f, RC_GUEST, 0, "not a tar stream");
		else
			rc = copy_tar(in, w, ret_f);
		/* Wherever in the tree it was: nothing is wrong with what came. */
		if (rc == RC_GUEST && input->fault.rc)
			rc = fault_set(ret_f, input->fault.rc, 0, "the tree did not arrive in time; %" PRIu64 " KiB did", input->bytes / 1024);
	}
	archive_read_free(in);
	if (rc) {
		bundle_abort(w);
		return rc;
	}
	return bundle_finish(w, ret, ret_f);
}

/* --- reading back -------------------------------------------------------------------------------------------------- */

enum rc bundle_write_tar(int bundles_dirfd, const char *name, int to_fd, uint64_t deadline_ms, struct fault *ret_f)
{
	char file[BUNDLE_NAME_MAX + 16];
	_cleanup_fd_ int fd = -1;
	struct archive *a;
	struct archive_entry *e;
	const void *data;
	la_int64_t at;
	size_t n;
	enum rc rc = RC_OK;
	int got;

	if (strlen(name) != BUNDLE_NAME_MAX - 1 || strspn(name, "0123456789abcdef") != BUNDLE_NAME_MAX - 1)
		return fault_set(ret_f, RC_INVALID, 0, "malformed bundle name");
	snprintf(file, sizeof(file), "%s.tar.zst", name);
	fd = openat(bundles_dirfd, file, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "open bundle");
	a = archive_read_new();
	if (!a)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	archive_read_support_filter_zstd(a);
	archive_read_support_format_raw(a);
	if (archive_read_open_fd(a, fd, CHUNK) != ARCHIVE_OK || archive_read_next_header(a, &e) != ARCHIVE_OK)
		rc = archive_fault(a, "read bundle", ret_f);
	while (!rc && (got = archive_read_data_block(a, &data, &n, &at)) != ARCHIVE_EOF) {
		if (got != ARCHIVE_OK)
			rc = archive_fault(a, "read bundle", ret_f);
		else
			rc = fd_write_all(to_fd, data, n, deadline_ms, ret_f);
	}
	archive_read_free(a);
	return rc;
}
