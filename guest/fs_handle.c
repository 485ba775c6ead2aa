/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory. The open files of a connection. A slot counts the calls that use it; closing frees the number at once and the
 * descriptor when the last of them is done, so a descriptor is never used after it was closed. Numbers are never used
 * again: slot + FS_HANDLES_MAX * how often the slot was used before. The lock is held for table operations only.
 */
#include "guest/fs_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#define LOCK_POLL_MS 20 /* flock(2) has no deadline; a waiting lock looks this often */

struct slot {
	int fd;
	unsigned users; /* the open handle itself is one */
	bool open;
	uint64_t turns;
};

struct fs_handles {
	pthread_mutex_t lock;
	struct slot slots[FS_HANDLES_MAX];
};

struct fs_handles *fs_handles_new(void)
{
	struct fs_handles *t = calloc(1, sizeof(*t));

	if (t)
		pthread_mutex_init(&t->lock, NULL);
	return t;
}

void fs_handles_free(struct fs_handles *t)
{
	if (!t)
		return;
	for (size_t i = 0; i < FS_HANDLES_MAX; i++)
		if (t->slots[i].users)
			close(t->slots[i].fd);
	pthread_mutex_destroy(&t->lock);
	free(t);
}

enum rc fs_handle_add(struct fs_ctx *ctx, int fd, struct json_object **ret_ok, const struct fs_text *path,
		      struct fs_error *e)
{
	struct fs_handles *t = fs_ctx_handles(ctx);
	struct json_object *o = json_object_new_object();
	uint64_t id = UINT64_MAX;

	pthread_mutex_lock(&t->lock);
	for (size_t i = 0; o && i < FS_HANDLES_MAX; i++) {
		struct slot *s = &t->slots[i];

		if (s->users)
			continue;
		id = i + FS_HANDLES_MAX * s->turns;
		*s = (struct slot){ .fd = fd, .users = 1, .open = true, .turns = s->turns + 1 };
		break;
	}
	pthread_mutex_unlock(&t->lock);
	if (id == UINT64_MAX) {
		close(fd);
		json_object_put(o);
		return fs_fail(e, o ? EMFILE : ENOMEM, "open", path);
	}
	if (!fs_add(o, "fileHandleId", json_object_new_uint64(id))) {
		json_object_put(o);
		return fs_fail(e, ENOMEM, "open", path);
	}
	*ret_ok = o;
	return RC_OK;
}

/* With the table locked: the slot of an open handle. */
static struct slot *slot_find(struct fs_handles *t, double id)
{
	struct slot *s;
	uint64_t n;

	if (!(id >= 0) || id > 9007199254740992.0 || id != (double)(uint64_t)id)
		return NULL;
	n = (uint64_t)id;
	s = &t->slots[n % FS_HANDLES_MAX];
	return s->open && s->turns == n / FS_HANDLES_MAX + 1 ? s : NULL;
}

static void slot_put(struct fs_handles *t, struct slot *s)
{
	int fd = -1;

	pthread_mutex_lock(&t->lock);
	if (!--s->users)
		fd = s->fd;
	pthread_mutex_unlock(&t->lock);
	cleanup_fd(&fd);
}

/* A handle in use by a call. */
struct use {
	struct fs_ctx *ctx;
	struct slot *slot;
	int fd;
};

static void use_end(struct use *u)
{
	if (u->slot)
		slot_put(fs_ctx_handles(u->ctx), u->slot);
}

static enum rc use_begin(struct fs_ctx *ctx, struct json_object *params, struct use *u, struct fs_error *e)
{
	struct fs_handles *t = fs_ctx_handles(ctx);
	double id;
	enum rc rc = fs_param_number(params, "fileHandleId", &id, e);

	if (rc != RC_OK)
		return rc;
	pthread_mutex_lock(&t->lock);
	u->slot = slot_find(t, id);
	if (u->slot) {
		u->slot->users++;
		u->fd = u->slot->fd;
	}
	pthread_mutex_unlock(&t->lock);
	u->ctx = ctx;
	return u->slot ? RC_OK : fs_fail_plain(e, "BadResource", "Bad resource ID");
}
#define USE(u) _cleanup_(use_end) struct use u = { 0 }

/* --- open, create, close ------------------------------------------------------------------------------------------------ */

static enum rc open_options_read(struct json_object *options, struct fs_open_options *o, struct fs_error *e)
{
	double mode = 0666;
	enum rc rc = fs_param_opt_bool(options, "read", &o->read, e);

	if (rc == RC_OK)
		rc = fs_param_opt_bool(options, "write", &o->write, e);
	if (rc == RC_OK)
		rc = fs_param_opt_bool(options, "append", &o->append, e);
	if (rc == RC_OK)
		rc = fs_param_opt_bool(options, "truncate", &o->truncate, e);
	if (rc == RC_OK)
		rc = fs_param_opt_bool(options, "create", &o->create, e);
	if (rc == RC_OK)
		rc = fs_param_opt_bool(options, "createNew", &o->create_new, e);
	if (rc == RC_OK)
		rc = fs_param_opt_number(options, "mode", &mode, NULL, e);
	o->mode = fs_to_u32_clamped(mode);
	return rc;
}

static enum rc open_options_check(const struct fs_open_options *o, struct fs_error *e)
{
	if (!o->read && !o->write && !o->append && !o->truncate && !o->create && !o->create_new)
		return fs_fail_plain(e, "Error", "'options' requires at least one option to be true");
	if (o->truncate && !o->write)
		return fs_fail_plain(e, "Error", "'truncate' option requires 'write' to be true");
	if ((o->create || o->create_new) && !o->write && !o->append)
		return fs_fail_plain(e, "Error", "'create' or 'createNew' options require 'write' or 'append' to be true");
	return RC_OK;
}

static enum rc open_handle(struct fs_ctx *ctx, const struct fs_text *path, const struct fs_open_options *o,
			   struct json_object **ret_ok, struct fs_error *e)
{
	int fd = fs_open_file(ctx, path, o, "open", e);

	return fd < 0 ? RC_SYS : fs_handle_add(ctx, fd, ret_ok, path, e);
}

enum rc fs_do_open(struct fs_ctx *ctx, struct json_object *params, struct json_object **ret_ok, struct fs_error *e)
{
	struct fs_open_options o = { .mode = 0666 };
	struct json_object *options = NULL;
	struct fs_text path;
	enum rc rc = fs_param_text(params, "path", &path, e);

	if (rc == RC_OK)
		rc = fs_param_opt_object(params, "options", &options, e);
	o.read = !options;
	if (rc == RC_OK && options)
		rc = open_options_read(options, &o, e);
	if (rc == RC_OK)
		rc = open_options_check(&o, e);
	return rc == RC_OK ? open_handle(ctx, &path, &o, ret_ok, e) : rc;
}

enum rc fs_do_create(struct fs_ctx *ctx, struct json_object *params, struct json_object **ret_ok, struct fs_error *e)
{
	const struct fs_open_options o = { .read = true, .write = true, .truncate = true, .create = true, .mode = 0666 };
	struct fs_text path;
	enum rc rc = fs_param_text(params, "path", &path, e);

	return rc == RC_OK ? open_handle(ctx, &path, &o, ret_ok, e) : rc;
}

enum rc fs_do_fileClose(struct fs_ctx *ctx, struct json_object *params, struct json_object **ret_ok, struct fs_error *e)
{
	struct fs_handles *t = fs_ctx_handles(ctx);
	struct slot *s;
	double id;
	enum rc rc = fs_param_number(params, "fileHandleId", &id, e);

	(void)ret_ok;
	if (rc != RC_OK)
		return rc;
	pthread_mutex_lock(&t->lock);
	s = slot_find(t, id);
	if (s)
		s->open = false;
	pthread_mutex_unlock(&t->lock);
	if (!s)
		return fs_fail_plain(e, "BadResource", "Bad resource ID");
	slot_put(t, s);
	return RC_OK;
}

/* --- read, write, seek ---------------------------------------------------------------------------------------------------- */

static enum rc read_value(uint8_t *mem, size_t n, bool end, struct json_object **ret_ok, struct fs_error *e)
{
	struct json_object *o = json_object_new_object();
	struct json_object *data = end ? NULL : fs_value_base64(mem, n);

	if (o && end && json_object_object_add(o, "data", NULL) == 0) {
		free(mem);
		*ret_ok = o;
		return RC_OK;
	}
	if (o && !end && fs_add(o, "data", data)) {
		*ret_ok = o;
		return RC_OK;
	}
	if (end)
		free(mem);
	else if (!o)
		json_object_put(data);
	json_object_put(o);
	return fs_fail(e, ENOMEM, NULL, NULL);
}

enum rc fs_do_fileRead(struct fs_ctx *ctx, struct json_object *params, struct json_object **ret_ok, struct fs_error *e)
{
	USE(u);
	double length;
	size_t want;
	uint8_t *mem;
	ssize_t n;
	enum rc rc = fs_param_number(params, "length", &length, e);

	if (rc == RC_OK)
		rc = use_begin(ctx, params, &u, e);
	if (rc != RC_OK)
		return rc;
	if (length < 0) {
		fs_error_set(e, 0, "RangeError", "", "Invalid typed array length: %.0f", length);
		return RC_SYS;
	}
	want = length > (double)FS_READ_MAX ? FS_READ_MAX : (size_t)length;
	mem = malloc(want + 1);
	if (!mem)
		return fs_fail(e, ENOMEM, NULL, NULL);
	do {
		n = want ? read(u.fd, mem, want) : 0;
	} while (n < 0 && fs_retry(ctx));
	if (n < 0) {
		free(mem);
		return fs_fail(e, errno, NULL, NULL);
	}
	return read_value(mem, (size_t)n, want && !n, ret_ok, e);
}

enum rc fs_do_fileWrite(struct fs_ctx *ctx, struct json_object *params, struct json_object **ret_ok, struct fs_error *e)
{
	USE(u);
	_cleanup_free_ uint8_t *data = NULL;
	struct json_object *o;
	size_t n = 0;
	ssize_t done;
	enum rc rc = fs_param_bytes(params, "data", &data, &n, e);

	if (rc == RC_OK)
		rc = use_begin(ctx, params, &u, e);
	if (rc != RC_OK)
		return rc;
	do {
		done = write(u.fd, data, n);
	} while (done < 0 && fs_retry(ctx));
	if (done < 0)
		return fs_fail(e, errno, NULL, NULL);
	o = json_object_new_object();
	if (!o || !fs_add(o, "bytesWritten", json_object_new_int64(done))) {
		json_object_put(o);
		return fs_fail(e, ENOMEM, NULL, NULL);
	}
	*ret_ok = o;
	return RC_OK;
}

/* A number, or the decimal text of a bigint, of which Deno takes the low 64 bits. */
static enum rc offset_param(struct json_object *params, int64_t *ret, struct fs_error *e)
{
	struct json_object *v = NULL;
	struct fs_text t;
	double number;
	uint64_t bits = 0;
	size_t i = 0;
	enum rc rc;

	json_object_object_get_ex(params, "offset", &v);
	if (!json_object_is_type(v, json_type_string)) {
		rc = fs_param_number(params, "offset", &number, e);
		if (rc == RC_OK)
			*ret = fs_to_i64(number);
		return rc;
	}
	rc = fs_param_text(params, "offset", &t, e);
	if (rc != RC_OK)
		return rc;
	i = t.n && t.s[0] == '-';
	if (i == t.n || t.n > 400)
		return fs_param_invalid(e, "offset", "a number");
	for (; i < t.n; i++) {
		if (t.s[i] < '0' || t.s[i] > '9')
			return fs_param_invalid(e, "offset", "a number");
		bits = bits * 10 + (uint64_t)(t.s[i] - '0');
	}
	*ret = (int64_t)(t.s[0] == '-' ? 0 - bits : bits);
	return RC_OK;
}

enum rc fs_do_fileSeek(struct fs_ctx *ctx, struct json_object *params, struct json_object **ret_ok, struct fs_error *e)
{
	static const int modes[] = { SEEK_SET, SEEK_CUR, SEEK_END };
	USE(u);
	struct json_object *o;
	int64_t offset = 0;
	int32_t mode;
	double whence;
	off_t at;
	enum rc rc = offset_param(params, &offset, e);

	if (rc == RC_OK)
		rc = fs_param_number(params, "whence", &whence, e);
	if (rc == RC_OK)
		rc = use_begin(ctx, params, &u, e);
	if (rc != RC_OK)
		return rc;
	mode = (int32_t)fs_to_u32(whence);
	if (mode < 0 || mode > 2) {
		fs_error_set(e, 0, "TypeError", "", "Invalid seek mode: %d", mode);
		return RC_SYS;
	}
	at = lseek(u.fd, offset, modes[mode]);
	if (at < 0)
		return fs_fail(e, errno, NULL, NULL);
	o = json_object_new_object();
	if (!o || !fs_add(o, "position", json_object_new_int64(at))) {
		json_object_put(o);
		return fs_fail(e, ENOMEM, NULL, NULL);
	}
	*ret_ok = o;
	return RC_OK;
}

/* --- the rest -------------------------------------------------------------------------------------------------------------- */

enum rc fs_do_fileStat(struct fs_ctx *ctx, struct json_object *params, struct json_object **ret_ok, struct fs_error *e)
{
	USE(u);
	struct statx st;
	enum rc rc = use_begin(ctx, params, &u, e);

	if (rc != RC_OK)
		return rc;
	if (statx(u.fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_BTIME, &st) < 0)
		return fs_fail(e, errno, NULL, NULL);
	return fs_value_stat(&st, ret_ok, e);
}

enum rc fs_do_fileSync(struct fs_ctx *ctx, struct json_object *params, struct json_object **ret_ok, struct fs_error *e)
{
	USE(u);
	enum rc rc = use_begin(ctx, params, &u, e);

	(void)ret_ok;
	if (rc == RC_OK && fsync(u.fd) < 0)
		return fs_fail(e, errno, NULL, NULL);
	return rc;
}

enum rc fs_do_fileSyncData(struct fs_ctx *ctx, struct json_object *params, struct json_object **ret_ok,
			   struct fs_error *e)
{
	USE(u);
	enum rc rc = use_begin(ctx, params, &u, e);

	(void)ret_ok;
	if (rc == RC_OK && fdatasync(u.fd) < 0)
		return fs_fail(e, errno, NULL, NULL);
	return rc;
}

enum rc fs_do_fileTruncate(struct fs_ctx *ctx, struct json_object *params, struct json_object **ret_ok,
			   struct fs_error *e)
{
	USE(u);
	double length = 0;
	uint64_t n;
	enum rc rc = fs_param_opt_number(params, "len", &length, NULL, e);

	(void)ret_ok;
	if (rc == RC_OK)
		rc = use_begin(ctx, params, &u, e);
	if (rc != RC_OK)
		return rc;
	n = fs_to_u64(length);
	if (n > INT64_MAX)
		return fs_fail_input(e, FS_RANGE_TEXT, NULL, NULL);
	return ftruncate(u.fd, (off_t)n) < 0 ? fs_fail(e, errno, NULL, NULL) : RC_OK;
}

enum rc fs_do_fileLock(struct fs_ctx *ctx, struct json_object *params, struct json_object **ret_ok, struct fs_error *e)
{
	USE(u);
	bool exclusive = false;
	enum rc rc = fs_param_opt_bool(params, "exclusive", &exclusive, e);

	(void)ret_ok;
	if (rc == RC_OK)
		rc = use_begin(ctx, params, &u, e);
	if (rc != RC_OK)
		return rc;
	while (flock(u.fd, (exclusive ? LOCK_EX : LOCK_SH) | LOCK_NB) < 0) {
		const struct timespec pause = { .tv_nsec = LOCK_POLL_MS * 1000000 };

		if (errno != EWOULDBLOCK)
			return fs_fail(e, errno, NULL, NULL);
		nanosleep(&pause, NULL);
		errno = EINTR;
		if (!fs_retry(ctx))
			return fs_fail(e, EINTR, NULL, NULL);
	}
	return RC_OK;
}

enum rc fs_do_fileUnlock(struct fs_ctx *ctx, struct json_object *params, struct json_object **ret_ok,
			 struct fs_error *e)
{
	USE(u);
	enum rc rc = use_begin(ctx, params, &u, e);

	(void)ret_ok;
	if (rc == RC_OK && flock(u.fd, LOCK_UN) < 0)
		return fs_fail(e, errno, NULL, NULL);
	return rc;
}

enum rc fs_do_fileUtime(struct fs_ctx *ctx, struct json_object *params, struct json_object **ret_ok, struct fs_error *e)
{
	USE(u);
	struct timespec times[2];
	enum rc rc = fs_param_time(params, "atime", &times[0], e);

	(void)ret_ok;
	if (rc == RC_OK)
		rc = fs_param_time(params, "mtime", &times[1], e);
	if (rc == RC_OK)
		rc = use_begin(ctx, params, &u, e);
	if (rc == RC_OK && futimens(u.fd, times) < 0)
		return fs_fail(e, errno, NULL, NULL);
	return rc;
}
