/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the file methods share; not for others. */
#ifndef NB_GUEST_FS_INTERNAL_H
#define NB_GUEST_FS_INTERNAL_H

#include "base/cleanup.h"
#include "guest/fs.h"
#include "guest/fs_limits.h"

#include <dirent.h>
#include <json-c/json.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

/* A call that runs: known to the context so that fs_ctx_cancel() can wake its thread. Lives on that thread's stack. */
struct fs_call {
	struct fs_ctx *ctx;
	struct fs_call *next, **prev;
	pthread_t thread;
};
/* False, with *e filled, if the context was cancelled. */
bool fs_call_begin(struct fs_call *call, struct fs_ctx *ctx, struct fs_error *e);
void fs_call_end(struct fs_call *call);
size_t fs_calls_running(struct fs_ctx *ctx);
/* After EINTR: try again? */
bool fs_retry(struct fs_ctx *ctx);

int fs_base(const struct fs_ctx *ctx);          /* O_PATH descriptor of the base directory */
const char *fs_base_path(const struct fs_ctx *ctx);

/* A string as it came from the client: UTF-8 with perhaps NULs inside. Borrowed from the params. */
struct fs_text {
	const char *s;
	size_t n;
};
static inline bool fs_text_has_nul(const struct fs_text *t)
{
	return strlen(t->s) != t->n;
}

/* --- errors: all return RC_SYS, so that a method can return them ------------------------------------------------ */
/* "No such file or directory (os error 2): stat 'x'"; without the path if it is NULL, without both if op is. */
enum rc fs_fail(struct fs_error *e, int sys, const char *op, const struct fs_text *path);
enum rc fs_fail_pair(struct fs_error *e, int sys, const char *op, const struct fs_text *from, const struct fs_text *to);
/* An error that the kernel knows nothing of: a TypeError EINVAL with this text instead of strerror's. */
enum rc fs_fail_input(struct fs_error *e, const char *text, const char *op, const struct fs_text *path);
enum rc fs_fail_input_pair(struct fs_error *e, const char *text, const char *op, const struct fs_text *from,
			   const struct fs_text *to);
enum rc fs_fail_plain(struct fs_error *e, const char *constructor_name, const char *text);
#define FS_NUL_TEXT "file name contained an unexpected NUL byte"
#define FS_RANGE_TEXT "out of range integral type conversion attempted"

/* --- params: RC_INVALID with a text when a field is missing or has the wrong type ------------------------------- */
enum rc fs_param_text(struct json_object *params, const char *name, struct fs_text *ret, struct fs_error *e);
enum rc fs_param_number(struct json_object *params, const char *name, double *ret, struct fs_error *e);
/* The optional ones: null or absent leave *ret alone and *ret_set (may be NULL) false. */
enum rc fs_param_opt_text(struct json_object *params, const char *name, struct fs_text *ret, bool *ret_set,
			  struct fs_error *e);
enum rc fs_param_opt_number(struct json_object *params, const char *name, double *ret, bool *ret_set,
			    struct fs_error *e);
enum rc fs_param_opt_bool(struct json_object *params, const char *name, bool *ret, struct fs_error *e);
/* *ret is NULL if absent or null. */
enum rc fs_param_opt_object(struct json_object *params, const char *name, struct json_object **ret, struct fs_error *e);
enum rc fs_param_opt_array(struct json_object *params, const char *name, struct json_object **ret, struct fs_error *e);
enum rc fs_param_time(struct json_object *params, const char *name, struct timespec *ret, struct fs_error *e);
enum rc fs_param_bytes(struct json_object *params, const char *name, uint8_t **ret, size_t *ret_n, struct fs_error *e);
enum rc fs_param_invalid(struct fs_error *e, const char *name, const char *want);
/* How V8 and Deno make integers of a JavaScript number. */
uint32_t fs_to_u32(double v);         /* the low bits; -1 is all ones */
uint32_t fs_to_u32_clamped(double v); /* only open's mode */
uint64_t fs_to_u64(double v);
int64_t fs_to_i64(double v);

/* --- values ------------------------------------------------------------------------------------------------------ */
/* A string value that encodes itself when serialised: base64, or JSON text with U+FFFD for invalid UTF-8. Takes mem. */
struct json_object *fs_value_base64(uint8_t *mem, size_t n);
struct json_object *fs_value_text(uint8_t *mem, size_t n);
/* A string value, invalid UTF-8 replaced. */
struct json_object *fs_value_name(const char *s, size_t n);
enum rc fs_value_stat(const struct statx *st, struct json_object **ret, struct fs_error *e);
/* Adds obj to parent under key, also when out of memory (then the whole fails). Takes obj. */
bool fs_add(struct json_object *parent, const char *key, struct json_object *obj);
/* One step of decoding: the length of the valid sequence at s, or 0 with *ret_bad bytes to replace by one U+FFFD. */
size_t fs_utf8_next(const uint8_t *s, size_t n, size_t *ret_bad);

/* --- used by several files ---------------------------------------------------------------------------------------- */
struct fs_open_options {
	bool read, write, append, truncate, create, create_new, no_follow;
	uint32_t mode;
};
/* The rules of what goes together, and open(2). The descriptor or -1 with *e filled. */
int fs_open_file(struct fs_ctx *ctx, const struct fs_text *path, const struct fs_open_options *o, const char *op,
		 struct fs_error *e);
enum rc fs_write_all(struct fs_ctx *ctx, int fd, const void *data, size_t n, int *ret_sys);
/* Puts fd into the handle table; it is the table's then, also on failure. */
enum rc fs_handle_add(struct fs_ctx *ctx, int fd, struct json_object **ret_ok, const struct fs_text *path,
		      struct fs_error *e);

/* A directory read at once. Entries are {u8 FS_KIND_*, name, NUL}, names as the kernel has them. */
enum { FS_KIND_OTHER, FS_KIND_FILE, FS_KIND_DIR, FS_KIND_LINK };
struct fs_dir {
	char *mem;
	size_t n, cap;
};
enum rc fs_dir_read(struct fs_ctx *ctx, const struct fs_text *path, struct fs_dir *ret, struct fs_error *e);
void fs_dir_free(struct fs_dir *d);
int fs_kind_of_mode(mode_t mode);

/* realpath(3) into out[PATH_MAX]; 0 or an errno. */
int fs_real_path(const struct fs_ctx *ctx, const char *path, char out[4096]);

/* The methods, as fs.c wraps them. */
#define FS_METHODS(X) \
	X(readFile) X(readTextFile) X(writeFile) X(writeTextFile) X(readDir) X(remove) X(mkdir) X(rename) X(stat) \
	X(lstat) X(chmod) X(chown) X(copyFile) X(link) X(symlink) X(readLink) X(realPath) X(makeTempDir) \
	X(makeTempFile) X(truncate) X(umask) X(utime) X(open) X(create) X(fileClose) X(fileRead) X(fileWrite) \
	X(fileSeek) X(fileStat) X(fileSync) X(fileSyncData) X(fileTruncate) X(fileLock) X(fileUnlock) X(fileUtime)
#define FS_METHOD_DECLARE(name) fs_method_fn fs_do_##name;
FS_METHODS(FS_METHOD_DECLARE)

/* The handle table's life, for the context. */
struct fs_handles;
struct fs_handles *fs_handles_new(void);
void fs_handles_free(struct fs_handles *t);
struct fs_handles *fs_ctx_handles(struct fs_ctx *ctx);

#endif
