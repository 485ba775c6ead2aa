/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory. Reading a directory and removing a tree. A remove may meet a tree deeper than there are descriptors, and a
 * process in the guest that moves directories about meanwhile. So it holds only the last FS_REMOVE_OPEN_MAX levels open,
 * comes back to a closed one by "..", and goes on only if that is the directory it had come from. Directories are opened
 * without following links, entries removed relative to their directory: it never leaves the tree.
 */
#include "guest/fs_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

int fs_kind_of_mode(mode_t mode)
{
	return S_ISREG(mode) ? FS_KIND_FILE : S_ISDIR(mode) ? FS_KIND_DIR : S_ISLNK(mode) ? FS_KIND_LINK : FS_KIND_OTHER;
}

static int kind_of_entry(int dir, const struct dirent *d)
{
	struct stat st;

	switch (d->d_type) {
	case DT_REG:
		return FS_KIND_FILE;
	case DT_DIR:
		return FS_KIND_DIR;
	case DT_LNK:
		return FS_KIND_LINK;
	case DT_UNKNOWN:
		return fstatat(dir, d->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 ? FS_KIND_OTHER : fs_kind_of_mode(st.st_mode);
	default:
		return FS_KIND_OTHER;
	}
}

static bool is_dots(const char *name)
{
	return !strcmp(name, ".") || !strcmp(name, "..");
}

static int dir_add(struct fs_dir *dir, int kind, const char *name)
{
	size_t need = strlen(name) + 2;

	if (dir->n + need > dir->cap) {
		size_t cap = MAX_OF(dir->cap * 2, (size_t)4096);
		char *mem = cap > FS_DIR_BYTES_MAX ? NULL : realloc(dir->mem, cap);

		if (!mem)
			return ENOMEM;
		dir->mem = mem;
		dir->cap = cap;
	}
	dir->mem[dir->n] = (char)kind;
	memcpy(dir->mem + dir->n + 1, name, need - 1);
	dir->n += need;
	return 0;
}

void fs_dir_free(struct fs_dir *d)
{
	free(d->mem);
	*d = (struct fs_dir){ 0 };
}

enum rc fs_dir_read(struct fs_ctx *ctx, const struct fs_text *path, struct fs_dir *ret, struct fs_error *e)
{
	struct fs_dir dir = { 0 };
	struct dirent *d;
	DIR *stream;
	int fd, sys = 0;

	if (fs_text_has_nul(path))
		return fs_fail_input(e, FS_NUL_TEXT, "readdir", path);
	fd = openat(fs_base(ctx), path->s, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	stream = fd < 0 ? NULL : fdopendir(fd);
	if (!stream) {
		sys = errno;
		if (fd >= 0)
			close(fd);
		return fs_fail(e, sys, "readdir", path);
	}
	while (!sys && (d = readdir(stream)))
		if (!is_dots(d->d_name))
			sys = dir_add(&dir, kind_of_entry(fd, d), d->d_name);
	closedir(stream);
	if (sys) {
		fs_dir_free(&dir);
		return fs_fail(e, sys, "readdir", path);
	}
	*ret = dir;
	return RC_OK;
}

/* --- remove ----------------------------------------------------------------------------------------------------------- */

struct level {
	struct level *up;
	DIR *stream; /* NULL while closed because of FS_REMOVE_OPEN_MAX */
	dev_t dev;
	ino_t ino;
	char name[NAME_MAX + 1]; /* in the level above */
};

struct removal {
	struct fs_ctx *ctx;
	struct level *top;
	size_t depth;
};

/* Goes down into `name`. 0 or an errno; ENOTDIR or ELOOP if it is no directory. */
static int level_enter(struct removal *r, int dir, const char *name, bool is_root)
{
	struct level *l = calloc(1, sizeof(*l)), *far = r->top;
	_cleanup_fd_ int fd = -1;
	struct stat st;

	if (!l)
		return ENOMEM;
	fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) < 0 || !(l->stream = fdopendir(fd))) {
		free(l);
		return errno;
	}
	take_fd(&fd);
	l->dev = st.st_dev;
	l->ino = st.st_ino;
	if (!is_root)
		strcpy(l->name, name);
	l->up = r->top;
	r->top = l;
	if (++r->depth <= FS_REMOVE_OPEN_MAX)
		return 0;
	for (int i = 1; far && i < FS_REMOVE_OPEN_MAX; i++)
		far = far->up;
	if (far && far->stream) {
		closedir(far->stream);
		far->stream = NULL;
	}
	return 0;
}

/* Opens the level above the top again, if it was closed. */
static int level_reopen(struct level *l)
{
	_cleanup_fd_ int fd = -1;
	struct stat st;

	if (!l->up || l->up->stream)
		return 0;
	fd = openat(dirfd(l->stream), "..", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) < 0)
		return errno;
	if (st.st_dev != l->up->dev || st.st_ino != l->up->ino)
		return ENOENT;
	l->up->stream = fdopendir(fd);
	if (!l->up->stream)
		return errno;
	take_fd(&fd);
	return 0;
}

static void level_drop(struct removal *r)
{
	struct level *l = r->top;

	r->top = l->up;
	r->depth--;
	if (l->stream)
		closedir(l->stream);
	free(l);
}

/* The top level is empty: up, and remove it. */
static int level_leave(struct removal *r)
{
	char name[NAME_MAX + 1];
	int sys = level_reopen(r->top);

	if (sys)
		return sys;
	strcpy(name, r->top->name);
	level_drop(r);
	if (!r->top)
		return 0;
	return unlinkat(dirfd(r->top->stream), name, AT_REMOVEDIR) < 0 && errno != ENOENT ? errno : 0;
}

static int remove_entry(struct removal *r, const struct dirent *d)
{
	int dir = dirfd(r->top->stream), sys;

	if (d->d_type == DT_DIR || d->d_type == DT_UNKNOWN) {
		sys = level_enter(r, dir, d->d_name, false);
		if (!sys || sys == ENOENT)
			return 0;
		if (sys != ENOTDIR && sys != ELOOP)
			return sys;
	}
	return unlinkat(dir, d->d_name, 0) < 0 && errno != ENOENT ? errno : 0;
}

static int remove_below(struct fs_ctx *ctx, const char *path)
{
	struct removal r = { .ctx = ctx };
	int sys = level_enter(&r, fs_base(ctx), path, true);

	while (!sys && r.top) {
		struct dirent *d;

		errno = 0;
		d = readdir(r.top->stream);
		if (d)
			sys = is_dots(d->d_name) ? 0 : remove_entry(&r, d);
		else
			sys = errno ? errno : level_leave(&r);
		errno = EINTR;
		if (!sys && !fs_retry(ctx))
			sys = EINTR;
	}
	while (r.top)
		level_drop(&r);
	return sys;
}

enum rc fs_do_remove(struct fs_ctx *ctx, struct json_object *params, struct json_object **ret_ok, struct fs_error *e)
{
	struct fs_text path;
	struct json_object *options = NULL;
	bool recursive = false;
	struct stat st;
	int sys = 0, flags;
	enum rc rc = fs_param_text(params, "path", &path, e);

	(void)ret_ok;
	if (rc == RC_OK)
		rc = fs_param_opt_object(params, "options", &options, e);
	if (rc == RC_OK)
		rc = fs_param_opt_bool(options, "recursive", &recursive, e);
	if (rc != RC_OK)
		return rc;
	if (fs_text_has_nul(&path))
		return fs_fail_input(e, FS_NUL_TEXT, "remove", &path);
	if (fstatat(fs_base(ctx), path.s, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return fs_fail(e, errno, "remove", &path);
	flags = S_ISDIR(st.st_mode) ? AT_REMOVEDIR : 0;
	if (flags && recursive)
		sys = remove_below(ctx, path.s);
	/* With "x/.." the path led through what is gone now. */
	if (!sys && unlinkat(fs_base(ctx), path.s, flags) < 0 && !(flags && recursive && errno == ENOENT))
		sys = errno;
	return sys ? fs_fail(e, sys, "remove", &path) : RC_OK;
}
