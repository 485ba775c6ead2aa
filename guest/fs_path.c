/* SPDX-License-Identifier: Apache-2.0 */
/* Methods that take paths and move no file contents. */
#include "guest/fs_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

/* --- stat, lstat, realPath, readLink, readDir ----------------------------------------------------------------------- */

static enum rc stat_at(struct fs_ctx *ctx, struct json_object *params, int flags, const char *op,
		       struct json_object **ret_ok, struct fs_error *e)
{
	struct fs_text path;
	struct statx st;
	enum rc rc = fs_param_text(params, "path", &path, e);

	if (rc != RC_OK)
		return rc;
	if (fs_text_has_nul(&path))
		return fs_fail_input(e, FS_NUL_TEXT, op, &path);
	if (statx(fs_base(ctx), path.s, flags, STATX_BASIC_STATS | STATX_BTIME, &st) < 0)
		return fs_fail(e, errno, op, &path);
	return fs_value_stat(&st, ret_ok, e);
}

enum rc fs_do_stat(struct fs_ctx *ctx, struct json_object *params, struct json_object **ret_ok, struct fs_error *e)
{
	return stat_at(ctx, params, 0, "stat", ret_ok, e);
}

enum rc fs_do_lstat(struct fs_ctx *ctx, struct json_object *params, struct json_object **ret_ok, struct fs_error *e)
{
	return stat_at(ctx, params, AT_SYMLINK_NOFOLLOW, "lstat", ret_ok, e);
}

/* Rust's Debug of a string, as far as names need it. */
static void debug_name(const char *s, size_t n, char *out, size_t size)
{
	size_t o = 0, bad;

	for (size_t i = 0; i < n && o + 12 < size;) {
		uint8_t c = (uint8_t)s[i];
		size_t len = fs_utf8_next((const uint8_t *)s + i, n - i, &bad);

		if (!len)
			o += (size_t)snprintf(out + o, size - o, "\\x%02X", c), len = 1;
		else if (c == '\n' || c == '\r' || c == '\t')
			o += (size_t)snprintf(out + o, size - o, "\\%c", c == '\n' ? 'n' : c == '\r' ? 'r' : 't');
		else if (c == '"' || c == '\\')
			o += (size_t)snprintf(out + o, size - o, "\\%c", c);
		else if (c < 0x20 || c == 0x7f)
			o += (size_t)snprintf(out + o, size - o, "\\u{%x}", c);
		else
			memcpy(out + o, s + i, len), o += len;
		i += len;
	}
	out[o] = '\0';
}

/* A path as a result: Deno refuses the ones that are not UTF-8. */
static enum rc path_result(const char *s, size_t n, struct json_object **ret_ok, struct fs_error *e)
{
	size_t bad, len;
	char name[4 * PATH_MAX + 16];

	for (size_t i = 0; i < n; i += len) {
		len = fs_utf8_next((const uint8_t *)s + i, n - i, &bad);
		if (len)
			continue;
		debug_name(s, n, name, sizeof(name) - 64);
		fs_error_set(e, 0, "InvalidData", "", "File name or path \"%s\" is not valid UTF-8", name);
		return RC_SYS;
	}
	*ret_ok = json_object_new_string_len(s, (int)n);
	return *ret_ok ? RC_OK : fs_fail(e, ENOMEM, NULL, NULL);
}

/* Not the kernel's word (O_PATH and /proc), which needs search permission where realpath(3), so Deno, doesn't: "d/../x". */
int fs_real_path(const struct fs_ctx *ctx, const char *path, char out[4096])
{
	char whole[PATH_MAX];
	int n = snprintf(whole, sizeof(whole), "%s/%s", *path == '/' ? "" : fs_base_path(ctx), path);

	if (!*path)
		return ENOENT;
	if (n < 0 || (size_t)n >= sizeof(whole))
		return ENAMETOOLONG;
	return realpath(*path == '/' ? path : whole, out) ? 0 : errno;
}

enum rc fs_do_realPath(struct fs_ctx *ctx, struct json_object *params, struct json_object **ret_ok, struct fs_error *e)
{
	struct fs_text path;
	char real[PATH_MAX];
	int sys;
	enum rc rc = fs_param_text(params, "path", &path, e);

	if (rc != RC_OK)
		return rc;
	if (fs_text_has_nul(&path))
		return fs_fail_input(e, FS_NUL_TEXT, "realpath", &path);
	sys = fs_real_path(ctx, path.s, real);
	if (sys)
		return fs_fail(e, sys, "realpath", &path);
	return path_result(real, strlen(real), ret_ok, e);
}

enum rc fs_do_readLink(struct fs_ctx *ctx, struct json_object *params, struct json_object **ret_ok, struct fs_error *e)
{
	struct fs_text path;
	char target[PATH_MAX];
	ssize_t n;
	enum rc rc = fs_param_text(params, "path", &path, e);

	if (rc != RC_OK)
		return rc;
	if (fs_text_has_nul(&path))
		return fs_fail_input(e, FS_NUL_TEXT, "readlink", &path);
	n = readlinkat(fs_base(ctx), path.s, target, sizeof(target));
	/* readlinkat() alone would read an O_PATH base for "". */
	if (n < 0 || !path.n)
		return fs_fail(e, path.n ? errno : ENOENT, "readlink", &path);
	return path_result(target, (size_t)n, ret_ok, e);
}

static struct json_object *entry_value(int kind, const char *name)
{
	struct json_object *o = json_object_new_object();

	if (o && fs_add(o, "name", fs_value_name(name, strlen(name))) &&
	    fs_add(o, "isFile", json_object_new_boolean(kind == FS_KIND_FILE)) &&
	    fs_add(o, "isDirectory", json_object_new_boolean(kind == FS_KIND_DIR)) &&
	    fs_add(o, "isSymlink", json_object_new_boolean(kind == FS_KIND_LINK)))
		return o;
	json_object_put(o);
	return NULL;
}

enum rc fs_do_readDir(struct fs_ctx *ctx, struct json_object *params, struct json_object **ret_ok, struct fs_error *e)
{
	struct fs_text path;
	struct fs_dir dir = { 0 };
	struct json_object *list;
	enum rc rc = fs_param_text(params, "path", &path, e);

	if (rc == RC_OK)
		rc = fs_dir_read(ctx, &path, &dir, e);
	if (rc != RC_OK)
		return rc;
	list = json_object_new_array();
	for (size_t i = 0; list && i < dir.n; i += strlen(dir.mem + i + 1) + 2) {
		struct json_object *entry = entry_value(dir.mem[i], dir.mem + i + 1);

		if (!entry || json_object_array_add(list, entry) < 0) {
			json_object_put(entry);
			json_object_put(list);
			list = NULL;
		}
	}
	fs_dir_free(&dir);
	*ret_ok = list;
	return list ? RC_OK : fs_fail(e, ENOMEM, "readdir", &path);
}

/* --- mkdir ------------------------------------------------------------------------------------------------------------ */

/*
 * The parent as Rust's Path has it: without the last component, where "." counts for nothing except at the start.
 * False for "/" and "". Writes a NUL into path.
 */
static bool path_parent(char *path)
{
	size_t n = strlen(path);

	while (n > 1 && (path[n - 1] == '/' || (path[n - 1] == '.' && path[n - 2] == '/')))
		n--;
	if (!n || (n == 1 && path[0] == '/'))
		return false;
	while (n && path[n - 1] != '/')
		n--;
	while (n > 1 && (path[n - 1] == '/' || (n > 2 && path[n - 1] == '.' && path[n - 2] == '/')))
		n--;
	path[n] = '\0';
	return true;
}

static bool is_dir(int base, const char *path)
{
	struct stat st;

	return fstatat(base, path, &st, 0) == 0 && S_ISDIR(st.st_mode);
}

/* 0 or an errno. An existing directory is fine. */
static int mkdir_one(int base, const char *path, mode_t mode)
{
	int sys;

	if (mkdirat(base, path, mode) == 0)
		return 0;
	sys = errno;
	return sys == EEXIST && is_dir(base, path) ? 0 : sys;
}

/* Like Rust's create_dir_all: up until something is there, then down again. */
static int mkdir_all(int base, const char *path, mode_t mode)
{
	char at[PATH_MAX];
	uint16_t lengths[PATH_MAX / 2 + 1]; /* of the ancestors that are missing: each is a prefix of path */
	size_t missing = 0;
	int sys;

	if (strlen(path) >= sizeof(at))
		return ENAMETOOLONG;
	for (strcpy(at, path); missing < ARRAY_SIZE(lengths); missing++) {
		size_t n = strlen(at);

		if (!path_parent(at))
			break;
		lengths[missing] = (uint16_t)n;
		memcpy(at, path, n);
		at[n] = '\0';
		sys = mkdir_one(base, at, mode);
		if (!sys)
			break;
		if (sys != ENOENT)
			return sys;
		path_parent(at);
	}
	while (missing--) {
		memcpy(at, path, lengths[missing]);
		at[lengths[missing]] = '\0';
		sys = mkdir_one(base, at, mode);
		if (sys)
			return sys;
	}
	return 0;
}

enum rc fs_do_mkdir(struct fs_ctx *ctx, struct json_object *params, struct json_object **ret_ok, struct fs_error *e)
{
	struct fs_text path;
	struct json_object *options = NULL;
	bool recursive = false;
	double mode = 0777;
	mode_t bits;
	int sys;
	enum rc rc = fs_param_text(params, "path", &path, e);

	(void)ret_ok;
	if (rc == RC_OK)
		rc = fs_param_opt_object(params, "options", &options, e);
	if (rc == RC_OK)
		rc = fs_param_opt_bool(options, "recursive", &recursive, e);
	if (rc == RC_OK)
		rc = fs_param_opt_number(options, "mode", &mode, NULL, e);
	if (rc != RC_OK)
		return rc;
	if (fs_text_has_nul(&path))
		return fs_fail_input(e, FS_NUL_TEXT, "mkdir", &path);
	bits = fs_to_u32(mode) & 0777;
	if (recursive)
		sys = mkdir_all(fs_base(ctx), path.s, bits);
	else
		sys = mkdirat(fs_base(ctx), path.s, bits) < 0 ? errno : 0;
	return sys ? fs_fail(e, sys, "mkdir", &path) : RC_OK;
}

/* --- two paths -------------------------------------------------------------------------------------------------------- */

static enum rc pair_params(struct json_object *params, const char *from_name, const char *to_name, const char *op,
			   struct fs_text *from, struct fs_text *to, struct fs_error *e)
{
	enum rc rc = fs_param_text(params, from_name, from, e);

	if (rc == RC_OK)
		rc = fs_param_text(params, to_name, to, e);
	if (rc == RC_OK && (fs_text_has_nul(from) || fs_text_has_nul(to)))
		rc = fs_fail_input_pair(e, FS_NUL_TEXT, op, from, to);
	return rc;
}

enum rc fs_do_rename(struct fs_ctx *ctx, struct json_object *params, struct json_object **ret_ok, struct fs_error *e)
{
	struct fs_text from, to;
	enum rc rc = pair_params(params, "oldPath", "newPath", "rename", &from, &to, e);

	(void)ret_ok;
	if (rc == RC_OK && renameat(fs_base(ctx), from.s, fs_base(ctx), to.s) < 0)
		return fs_fail_pair(e, errno, "rename", &from, &to);
	return rc;
}

enum rc fs_do_link(struct fs_ctx *ctx, struct json_object *params, struct json_object **ret_ok, struct fs_error *e)
{
	struct fs_text target, path;
	enum rc rc = pair_params(params, "target", "path", "link", &target, &path, e);

	(void)ret_ok;
	if (rc == RC_OK && linkat(fs_base(ctx), target.s, fs_base(ctx), path.s, 0) < 0)
		return fs_fail_pair(e, errno, "link", &target, &path);
	return rc;
}

enum rc fs_do_symlink(struct fs_ctx *ctx, struct json_object *params, struct json_object **ret_ok, struct fs_error *e)
{
	struct fs_text target, path;
	enum rc rc = pair_params(params, "target", "path", "symlink", &target, &path, e);

	(void)ret_ok;
	if (rc == RC_OK && symlinkat(target.s, fs_base(ctx), path.s) < 0)
		return fs_fail_pair(e, errno, "symlink", &target, &path);
	return rc;
}

/* --- chmod, chown, utime, umask ---------------------------------------------------------------------------------------- */

enum rc fs_do_chmod(struct fs_ctx *ctx, struct json_object *params, struct json_object **ret_ok, struct fs_error *e)
{
	struct fs_text path;
	double mode;
	enum rc rc = fs_param_text(params, "path", &path, e);

	(void)ret_ok;
	if (rc == RC_OK)
		rc = fs_param_number(params, "mode", &mode, e);
	if (rc != RC_OK)
		return rc;
	if (fs_text_has_nul(&path))
		return fs_fail_input(e, FS_NUL_TEXT, "chmod", &path);
	if (fchmodat(fs_base(ctx), path.s, fs_to_u32(mode), 0) < 0)
		return fs_fail(e, errno, "chmod", &path);
	return RC_OK;
}

enum rc fs_do_chown(struct fs_ctx *ctx, struct json_object *params, struct json_object **ret_ok, struct fs_error *e)
{
	struct fs_text path;
	double uid = -1, gid = -1; /* (uid_t)-1 leaves it as it is */
	enum rc rc = fs_param_text(params, "path", &path, e);

	(void)ret_ok;
	if (rc == RC_OK)
		rc = fs_param_opt_number(params, "uid", &uid, NULL, e);
	if (rc == RC_OK)
		rc = fs_param_opt_number(params, "gid", &gid, NULL, e);
	if (rc != RC_OK)
		return rc;
	/* The one method whose text for a NUL is the kernel's. */
	if (fs_text_has_nul(&path))
		return fs_fail(e, EINVAL, "chown", &path);
	if (fchownat(fs_base(ctx), path.s, fs_to_u32(uid), fs_to_u32(gid), 0) < 0)
		return fs_fail(e, errno, "chown", &path);
	return RC_OK;
}

enum rc fs_do_utime(struct fs_ctx *ctx, struct json_object *params, struct json_object **ret_ok, struct fs_error *e)
{
	struct fs_text path;
	struct timespec times[2];
	enum rc rc = fs_param_text(params, "path", &path, e);

	(void)ret_ok;
	if (rc == RC_OK)
		rc = fs_param_time(params, "atime", &times[0], e);
	if (rc == RC_OK)
		rc = fs_param_time(params, "mtime", &times[1], e);
	if (rc != RC_OK)
		return rc;
	if (fs_text_has_nul(&path))
		return fs_fail_input(e, "data provided contains a nul byte", "utime", &path);
	if (utimensat(fs_base(ctx), path.s, times, 0) < 0)
		return fs_fail(e, errno, "utime", &path);
	return RC_OK;
}

/* Without setting it, which would be seen by other threads. */
int fs_umask(void)
{
	_cleanup_file_ FILE *f = fopen("/proc/self/status", "re");
	char line[256];
	unsigned v;

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "Umask: %o", &v) == 1)
			return (int)v;
	return -1;
}

enum rc fs_do_umask(struct fs_ctx *ctx, struct json_object *params, struct json_object **ret_ok, struct fs_error *e)
{
	double mask = 0;
	bool given = false;
	int now;
	enum rc rc = fs_param_opt_number(params, "mask", &mask, &given, e);

	(void)ctx;
	if (rc != RC_OK)
		return rc;
	now = given ? (int)umask(fs_to_u32(mask) & 0777) : fs_umask();
	if (now < 0)
		return fs_fail(e, ENOSYS, NULL, NULL);
	*ret_ok = json_object_new_int(now);
	return *ret_ok ? RC_OK : fs_fail(e, ENOMEM, NULL, NULL);
}
