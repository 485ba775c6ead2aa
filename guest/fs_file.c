/* SPDX-License-Identifier: Apache-2.0 */
/* Methods that take a path and move file contents: whole files, copies, temporary files, streamed writes. */
#include "base/fd.h"
#include "guest/fs_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/sendfile.h>
#include <unistd.h>

#define CHUNK ((size_t)1 << 20)

/* --- open -------------------------------------------------------------------------------------------------------------- */

/* What of Rust's OpenOptions goes together. The flags, or -1 with *e filled. */
static int open_flags(const struct fs_open_options *o, const struct fs_text *path, const char *op, struct fs_error *e)
{
	static const char refused[] = "creating or truncating a file requires write or append access";
	int flags = o->append ? (o->read ? O_RDWR : O_WRONLY) | O_APPEND : o->write ? o->read ? O_RDWR : O_WRONLY : O_RDONLY;

	if (!o->read && !o->write && !o->append) {
		fs_fail_input(e, "must specify at least one of read, write, or append access", op, path);
		return -1;
	}
	if ((!o->write && !o->append && (o->truncate || o->create || o->create_new)) ||
	    (o->append && o->truncate && !o->create_new)) {
		fs_fail_input(e, refused, op, path);
		return -1;
	}
	if (o->create_new)
		return flags | O_CREAT | O_EXCL;
	return flags | (o->create ? O_CREAT : 0) | (o->truncate ? O_TRUNC : 0);
}

int fs_open_file(struct fs_ctx *ctx, const struct fs_text *path, const struct fs_open_options *o, const char *op,
		 struct fs_error *e)
{
	int flags, fd;

	if (fs_text_has_nul(path)) {
		fs_fail_input(e, FS_NUL_TEXT, op, path);
		return -1;
	}
	flags = open_flags(o, path, op, e);
	if (flags < 0)
		return -1;
	do {
		fd = openat(fs_base(ctx), path->s, flags | O_CLOEXEC | (o->no_follow ? O_NOFOLLOW : 0), o->mode & 0777);
	} while (fd < 0 && fs_retry(ctx));
	if (fd < 0)
		fs_fail(e, errno, op, path);
	return fd;
}

enum rc fs_write_all(struct fs_ctx *ctx, int fd, const void *data, size_t n, int *ret_sys)
{
	const uint8_t *p = data;

	while (n) {
		ssize_t done = write(fd, p, MIN_OF(n, CHUNK));

		if (done < 0 && fs_retry(ctx))
			continue;
		if (done <= 0) {
			*ret_sys = done ? errno : EIO;
			return RC_SYS;
		}
		p += done;
		n -= (size_t)done;
	}
	return RC_OK;
}

/* --- reading ----------------------------------------------------------------------------------------------------------- */

struct content {
	uint8_t *mem;
	size_t n, cap;
};

/* Room for one more read. The size that stat gave is only a hint: /proc says 0, files grow. */
static int content_room(struct content *c, size_t hint)
{
	size_t cap = c->cap ? c->cap * 2 : hint + 1;
	uint8_t *mem;

	if (c->n < c->cap)
		return 0;
	if (c->n > FS_READ_FILE_MAX)
		return EFBIG;
	mem = realloc(c->mem, MIN_OF(cap, (size_t)FS_READ_FILE_MAX + 1));
	if (!mem)
		return ENOMEM;
	c->mem = mem;
	c->cap = MIN_OF(cap, (size_t)FS_READ_FILE_MAX + 1);
	return 0;
}

static int content_read(struct fs_ctx *ctx, int fd, struct content *c)
{
	struct stat st;
	size_t hint = 4096;

	if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size > 0) {
		if (st.st_size > (off_t)FS_READ_FILE_MAX)
			return EFBIG;
		hint = (size_t)st.st_size;
	}
	for (;;) {
		int sys = content_room(c, hint);
		ssize_t got;

		if (sys)
			return sys;
		got = read(fd, c->mem + c->n, MIN_OF(c->cap - c->n, CHUNK));
		if (got < 0 && fs_retry(ctx))
			continue;
		if (got < 0)
			return errno;
		if (!got)
			return c->n > FS_READ_FILE_MAX ? EFBIG : 0;
		c->n += (size_t)got;
	}
}

static enum rc read_file(struct fs_ctx *ctx, struct json_object *params, struct content *c, struct fs_error *e)
{
	const struct fs_open_options o = { .read = true };
	_cleanup_fd_ int fd = -1;
	struct fs_text path;
	int sys;
	enum rc rc = fs_param_text(params, "path", &path, e);

	if (rc != RC_OK)
		return rc;
	fd = fs_open_file(ctx, &path, &o, "readfile", e);
	if (fd < 0)
		return RC_SYS;
	sys = content_read(ctx, fd, c);
	if (!sys)
		return RC_OK;
	free(c->mem);
	return fs_fail(e, sys, "readfile", &path);
}

enum rc fs_do_readFile(struct fs_ctx *ctx, struct json_object *params, struct json_object **ret_ok, struct fs_error *e)
{
	struct content c = { 0 };
	enum rc rc = read_file(ctx, params, &c, e);

	if (rc != RC_OK)
		return rc;
	*ret_ok = fs_value_base64(c.mem, c.n);
	return *ret_ok ? RC_OK : fs_fail(e, ENOMEM, "readfile", NULL);
}

enum rc fs_do_readTextFile(struct fs_ctx *ctx, struct json_object *params, struct json_object **ret_ok,
			   struct fs_error *e)
{
	struct content c = { 0 };
	enum rc rc = read_file(ctx, params, &c, e);

	if (rc != RC_OK)
		return rc;
	*ret_ok = fs_value_text(c.mem, c.n);
	return *ret_ok ? RC_OK : fs_fail(e, ENOMEM, "readfile", NULL);
}

/* --- writing ----------------------------------------------------------------------------------------------------------- */

struct write_params {
	struct fs_text path;
	struct fs_open_options open;
	bool has_mode;
	uint32_t mode;
};

static enum rc write_params_read(struct json_object *params, bool stream, struct write_params *w, struct fs_error *e)
{
	struct json_object *options = NULL;
	double mode = 0666;
	enum rc rc = fs_param_text(params, "path", &w->path, e);

	w->open = (struct fs_open_options){ .write = true, .create = true };
	if (rc == RC_OK)
		rc = fs_param_opt_object(params, "options", &options, e);
	if (rc == RC_OK)
		rc = fs_param_opt_bool(options, "append", &w->open.append, e);
	if (rc == RC_OK)
		rc = fs_param_opt_bool(options, "create", &w->open.create, e);
	if (rc == RC_OK)
		rc = fs_param_opt_bool(options, "createNew", &w->open.create_new, e);
	if (rc == RC_OK)
		rc = fs_param_opt_number(options, "mode", &mode, &w->has_mode, e);
	w->open.truncate = !w->open.append;
	w->mode = fs_to_u32(mode);
	w->open.mode = stream ? fs_to_u32_clamped(mode) : w->mode;
	return rc;
}

static enum rc write_file(struct fs_ctx *ctx, const struct write_params *w, const void *data, size_t n,
			  struct fs_error *e)
{
	_cleanup_fd_ int fd = fs_open_file(ctx, &w->path, &w->open, "writefile", e);
	int sys = 0;

	if (fd < 0)
		return RC_SYS;
	/* Unlike open's: the mode is set also if the file was there, and whatever the umask. */
	if (w->has_mode && fchmod(fd, w->mode) < 0)
		return fs_fail(e, errno, "writefile", &w->path);
	if (fs_write_all(ctx, fd, data, n, &sys) != RC_OK)
		return fs_fail(e, sys, "writefile", &w->path);
	return RC_OK;
}

enum rc fs_do_writeFile(struct fs_ctx *ctx, struct json_object *params, struct json_object **ret_ok, struct fs_error *e)
{
	_cleanup_free_ uint8_t *data = NULL;
	struct write_params w;
	size_t n = 0;
	enum rc rc = write_params_read(params, false, &w, e);

	(void)ret_ok;
	if (rc == RC_OK)
		rc = fs_param_bytes(params, "content", &data, &n, e);
	return rc == RC_OK ? write_file(ctx, &w, data, n, e) : rc;
}

enum rc fs_do_writeTextFile(struct fs_ctx *ctx, struct json_object *params, struct json_object **ret_ok,
			    struct fs_error *e)
{
	struct write_params w;
	struct fs_text text;
	enum rc rc = write_params_read(params, false, &w, e);

	(void)ret_ok;
	if (rc == RC_OK)
		rc = fs_param_text(params, "content", &text, e);
	return rc == RC_OK ? write_file(ctx, &w, text.s, text.n, e) : rc;
}

struct fs_write {
	struct fs_ctx *ctx;
	int fd;
};

enum rc fs_write_open(struct fs_ctx *ctx, struct json_object *params, struct fs_write **ret, struct fs_error *ret_e)
{
	struct fs_write *w = NULL;
	struct write_params p;
	struct fs_call call;
	enum rc rc;

	if (!json_object_is_type(params, json_type_object))
		return fs_param_invalid(ret_e, "params", "object");
	rc = write_params_read(params, true, &p, ret_e);
	if (rc != RC_OK)
		return rc;
	if (!fs_call_begin(&call, ctx, ret_e))
		return RC_CLOSED;
	w = calloc(1, sizeof(*w));
	/* Deno opens the file first here, with open's own texts and rules for the mode. */
	if (w) {
		*w = (struct fs_write){ .ctx = ctx, .fd = fs_open_file(ctx, &p.path, &p.open, "open", ret_e) };
		rc = w->fd < 0 ? RC_SYS : RC_OK;
	} else {
		rc = fs_fail(ret_e, ENOMEM, NULL, NULL);
	}
	fs_call_end(&call);
	if (rc == RC_OK)
		*ret = w;
	else
		free(w);
	return rc;
}

enum rc fs_write_chunk(struct fs_write *w, const void *data, size_t n, struct fs_error *ret_e)
{
	struct fs_call call;
	int sys = 0;
	enum rc rc;

	if (!fs_call_begin(&call, w->ctx, ret_e))
		return RC_CLOSED;
	rc = fs_write_all(w->ctx, w->fd, data, n, &sys);
	fs_call_end(&call);
	return rc == RC_OK ? RC_OK : fs_fail(ret_e, sys, NULL, NULL);
}

enum rc fs_write_close(struct fs_write *w, bool aborted, struct fs_error *ret_e)
{
	(void)ret_e;
	(void)aborted;
	if (w) {
		cleanup_fd(&w->fd);
		free(w);
	}
	return RC_OK;
}

enum rc fs_do_truncate(struct fs_ctx *ctx, struct json_object *params, struct json_object **ret_ok, struct fs_error *e)
{
	/* Deno doesn't follow a link here, though it does everywhere else. */
	const struct fs_open_options o = { .write = true, .no_follow = true };
	_cleanup_fd_ int fd = -1;
	struct fs_text path;
	double length = 0;
	uint64_t n;
	enum rc rc = fs_param_text(params, "name", &path, e);

	(void)ret_ok;
	if (rc == RC_OK)
		rc = fs_param_opt_number(params, "length", &length, NULL, e);
	if (rc != RC_OK)
		return rc;
	fd = fs_open_file(ctx, &path, &o, "truncate", e);
	if (fd < 0)
		return RC_SYS;
	n = fs_to_u64(length);
	if (n > INT64_MAX)
		return fs_fail_input(e, FS_RANGE_TEXT, "truncate", &path);
	return ftruncate(fd, (off_t)n) < 0 ? fs_fail(e, errno, "truncate", &path) : RC_OK;
}

/* --- copyFile ---------------------------------------------------------------------------------------------------------- */

static bool copy_unsupported(int sys)
{
	return sys == EXDEV || sys == EINVAL || sys == ENOSYS || sys == EOPNOTSUPP || sys == EPERM || sys == EBADF ||
	       sys == EOVERFLOW;
}

static int copy_by_hand(struct fs_ctx *ctx, int from, int to)
{
	_cleanup_free_ uint8_t *mem = malloc(CHUNK);
	int sys = 0;

	if (!mem)
		return ENOMEM;
	for (;;) {
		ssize_t n = read(from, mem, CHUNK);

		if (n < 0 && fs_retry(ctx))
			continue;
		if (n <= 0)
			return n < 0 ? errno : 0;
		if (fs_write_all(ctx, to, mem, (size_t)n, &sys) != RC_OK)
			return sys;
	}
}

static int copy_content(struct fs_ctx *ctx, int from, int to)
{
	bool any = false;

	for (;;) {
		ssize_t n = copy_file_range(from, NULL, to, NULL, (size_t)1 << 30, 0);

		if (n < 0 && fs_retry(ctx))
			continue;
		if (n < 0)
			return !any && copy_unsupported(errno) ? copy_by_hand(ctx, from, to) : errno;
		/* /proc files claim to be empty. */
		if (!n)
			return any ? 0 : copy_by_hand(ctx, from, to);
		any = true;
	}
}

/* The source, and whether it may be copied: the order of the checks is Deno's. */
static enum rc copy_open_source(struct fs_ctx *ctx, const struct fs_text *from, const struct fs_text *to, int *ret_fd,
				struct stat *ret_st, struct fs_error *e)
{
	_cleanup_fd_ int fd = -1;
	struct stat there;

	if (fs_text_has_nul(from))
		return fs_fail_input_pair(e, FS_NUL_TEXT, "copy", from, to);
	do {
		fd = openat(fs_base(ctx), from->s, O_RDONLY | O_CLOEXEC);
	} while (fd < 0 && fs_retry(ctx));
	if (fd < 0 || fstat(fd, ret_st) < 0)
		return fs_fail_pair(e, errno, "copy", from, to);
	if (!fs_text_has_nul(to) && fstatat(fs_base(ctx), to->s, &there, 0) == 0 && there.st_dev == ret_st->st_dev &&
	    there.st_ino == ret_st->st_ino)
		return fs_fail_input_pair(e, "Source and destination paths refer to the same file", "copy", from, to);
	if (!S_ISREG(ret_st->st_mode))
		return fs_fail_input_pair(e, "the source path is neither a regular file nor a symlink to a regular file",
					  "copy", from, to);
	if (fs_text_has_nul(to))
		return fs_fail_input_pair(e, FS_NUL_TEXT, "copy", from, to);
	*ret_fd = take_fd(&fd);
	return RC_OK;
}

enum rc fs_do_copyFile(struct fs_ctx *ctx, struct json_object *params, struct json_object **ret_ok, struct fs_error *e)
{
	_cleanup_fd_ int in = -1, out = -1;
	struct fs_text from, to;
	struct stat st, there;
	int sys;
	enum rc rc = fs_param_text(params, "fromPath", &from, e);

	(void)ret_ok;
	if (rc == RC_OK)
		rc = fs_param_text(params, "toPath", &to, e);
	if (rc == RC_OK)
		rc = copy_open_source(ctx, &from, &to, &in, &st, e);
	if (rc != RC_OK)
		return rc;
	do {
		out = openat(fs_base(ctx), to.s, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, st.st_mode & 07777);
	} while (out < 0 && fs_retry(ctx));
	if (out < 0 || fstat(out, &there) < 0)
		return fs_fail_pair(e, errno, "copy", &from, &to);
	if (S_ISREG(there.st_mode) && fchmod(out, st.st_mode & 07777) < 0)
		return fs_fail_pair(e, errno, "copy", &from, &to);
	sys = copy_content(ctx, in, out);
	return sys ? fs_fail_pair(e, sys, "copy", &from, &to) : RC_OK;
}

/* --- makeTempDir, makeTempFile ------------------------------------------------------------------------------------------ */

/* A character as Rust's Debug quotes it. */
static void debug_char(const uint8_t *s, size_t len, char out[24])
{
	uint32_t c = len == 2 ? (uint32_t)(s[0] & 0x1f) << 6 | (s[1] & 0x3f) : s[0];

	if (c == '\n' || c == '\r' || c == '\t')
		snprintf(out, 24, "\"\\%c\"", c == '\n' ? 'n' : c == '\r' ? 'r' : 't');
	else if (!c)
		snprintf(out, 24, "\"\\0\"");
	else if (c < 0x20 || c >= 0x7f)
		snprintf(out, 24, "\"\\u{%x}\"", c);
	else
		snprintf(out, 24, c == '"' || c == '\\' ? "\"\\%c\"" : "\"%c\"", (int)c);
}

/* Deno allows no control characters and none that Windows forbids, on every system. */
static enum rc temp_part_check(const struct fs_text *t, struct fs_error *e)
{
	const uint8_t *s = (const uint8_t *)t->s;
	char quoted[24];

	for (size_t i = 0; i < t->n; i++) {
		bool c1 = s[i] == 0xc2 && i + 1 < t->n && s[i + 1] >= 0x80 && s[i + 1] < 0xa0;

		if (s[i] >= 0x20 && s[i] != 0x7f && !c1)
			continue;
		debug_char(s + i, c1 ? 2 : 1, quoted);
		fs_error_set(e, 0, "Error", "", "Invalid control character in prefix or suffix: %s", quoted);
		return RC_SYS;
	}
	for (size_t i = 0; i < t->n; i++) {
		if (!strchr("<>:\"/\\|?*", s[i]))
			continue;
		debug_char(s + i, 1, quoted);
		fs_error_set(e, 0, "Error", "", "Invalid character in prefix or suffix: %s", quoted);
		return RC_SYS;
	}
	return RC_OK;
}

struct temp {
	struct fs_text dir, prefix, suffix;
};

static enum rc temp_params(struct json_object *params, struct temp *t, struct fs_error *e)
{
	struct json_object *options = NULL;
	enum rc rc = fs_param_opt_object(params, "options", &options, e);

	*t = (struct temp){ { "/tmp", 4 }, { "", 0 }, { "", 0 } };
	if (rc == RC_OK)
		rc = fs_param_opt_text(options, "dir", &t->dir, NULL, e);
	if (rc == RC_OK)
		rc = fs_param_opt_text(options, "prefix", &t->prefix, NULL, e);
	if (rc == RC_OK)
		rc = fs_param_opt_text(options, "suffix", &t->suffix, NULL, e);
	if (rc == RC_OK)
		rc = temp_part_check(&t->prefix, e);
	if (rc == RC_OK)
		rc = temp_part_check(&t->suffix, e);
	return rc;
}

static int temp_create(struct fs_ctx *ctx, const char *path, bool dir)
{
	int fd;

	if (dir)
		return mkdirat(fs_base(ctx), path, 0700) < 0 ? errno : 0;
	fd = openat(fs_base(ctx), path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return errno;
	close(fd);
	return 0;
}

static enum rc make_temp(struct fs_ctx *ctx, struct json_object *params, bool dir, struct json_object **ret_ok,
			 struct fs_error *e)
{
	const char *op = dir ? "tmpdir" : "tmpfile";
	struct temp t;
	char path[PATH_MAX];
	int sys = 0;
	enum rc rc = temp_params(params, &t, e);

	if (rc != RC_OK)
		return rc;
	if (fs_text_has_nul(&t.dir))
		return fs_fail_input(e, FS_NUL_TEXT, op, NULL);
	for (int i = 0; i < FS_TEMP_TRIES; i++) {
		bool slash = t.dir.n && t.dir.s[t.dir.n - 1] != '/';
		uint64_t unique;

		random_bytes(&unique, sizeof(unique));
		if (t.dir.n + t.prefix.n + t.suffix.n + 20 > sizeof(path))
			return fs_fail(e, ENAMETOOLONG, op, NULL);
		snprintf(path, sizeof(path), "%s%s%s%08llx%s", t.dir.s, slash ? "/" : "", t.prefix.s,
			 (unsigned long long)unique, t.suffix.s);
		sys = temp_create(ctx, path, dir);
		if (!sys) {
			*ret_ok = json_object_new_string(path);
			return *ret_ok ? RC_OK : fs_fail(e, ENOMEM, op, NULL);
		}
		if (sys != EEXIST)
			break;
	}
	return fs_fail(e, sys, op, NULL);
}

enum rc fs_do_makeTempDir(struct fs_ctx *ctx, struct json_object *params, struct json_object **ret_ok,
			  struct fs_error *e)
{
	return make_temp(ctx, params, true, ret_ok, e);
}

enum rc fs_do_makeTempFile(struct fs_ctx *ctx, struct json_object *params, struct json_object **ret_ok,
			   struct fs_error *e)
{
	return make_temp(ctx, params, false, ret_ok, e);
}
