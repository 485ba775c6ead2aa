/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The file methods of the @deno/sandbox RPC. What they do, return and say when they fail is what Deno 2 does.
 *
 * Threads: methods of one context may run on several threads at once; a walker or writer belongs to one thread at a
 * time. Calls with the same fileHandleId should be started in the order in which they came, one after the other: so does
 * Deno, and un-awaited writes rely on it. Any call may block for as long as the kernel does (a FIFO without a peer, a lock that another holds): run them
 * on workers. fs_ctx_cancel() makes blocked calls come back.
 */
#ifndef NB_GUEST_FS_H
#define NB_GUEST_FS_H

#include "base/buf.h"
#include "base/fault.h"

#include <stdbool.h>
#include <stddef.h>

struct json_object;

#define FS_MESSAGE_MAX 16640 /* two paths of PATH_MAX, lossy, and the words around them */

struct fs_error {
	int sys;                       /* errno, 0 if none */
	char constructor_name[32];     /* Deno's class: NotFound, AlreadyExists, TypeError, Error, ... */
	char code[24];                 /* "ENOENT"; empty: null on the wire */
	char message[FS_MESSAGE_MAX];  /* UTF-8; "No such file or directory (os error 2): stat 'x'" */
	size_t message_n;              /* its length: a path that the client sent may have NULs inside */
};

/* Fills *e with what Deno makes of an errno: class, code and "text (os error n)". */
void fs_error_errno(struct fs_error *e, int sys);
void fs_error_set(struct fs_error *e, int sys, const char *constructor_name, const char *code, const char *fmt, ...)
	__attribute__((format(printf, 5, 6)));

/* One per connection: the open file handles and the directory that relative paths start from. */
struct fs_ctx;

enum rc fs_ctx_new(const char *base, struct fs_ctx **ret, struct fault *ret_f);
/*
 * From now on every call fails with Interrupted; calls that block in the kernel are woken by a signal (SIGRTMIN + 2, for
 * which fs_ctx_new() installs an empty handler). Returns how many calls still run: repeat it, some milliseconds later,
 * until it is 0. Handles close with the context.
 */
size_t fs_ctx_cancel(struct fs_ctx *ctx);
/* NULL is fine. Cancels, waits until no call runs, closes all handles. Walkers and writers must be closed before. */
void fs_ctx_free(struct fs_ctx *ctx);

/*
 * RC_OK       *ret_ok is the value, owned by the caller; NULL is JSON null. It is only good for serialising: large values
 *             (readFile) encode themselves then.
 * RC_INVALID  the params are not what the schema says: JSON-RPC error -32602. ret_e->message says what is wrong.
 * other       the call failed: {error} from *ret_e.
 */
typedef enum rc fs_method_fn(struct fs_ctx *ctx, struct json_object *params, struct json_object **ret_ok,
			     struct fs_error *ret_e);

/*
 * Not in the table: `walk` and `expandGlob` (fs_walk_*), and `writeFile`/`writeTextFile` with contentStreamId
 * (fs_write_*; without it they are in the table).
 */
int fs_umask(void); /* this process's; -1 if it cannot be read */

struct fs_method {
	const char *name;
	fs_method_fn *fn;
};
extern const struct fs_method fs_methods[];
extern const size_t fs_methods_n;
const struct fs_method *fs_method_find(const char *name); /* NULL if there is none */

/*
 * `walk` and `expandGlob`. Every entry is one JSON text, and must be one chunk of the stream: the client parses chunk by
 * chunk. fs_walk_next() appends entries to *out, each followed by one '\n' that is not part of it, until at least `want`
 * bytes were added, the end (*ret_done) or an error, before which complete entries may have been added: send them, then
 * end the stream with the error. It also comes back after a bounded number of steps, having added little or nothing: call it
 * again, or close. *out needs room for 64 KiB at the start. After *ret_done or an error only fs_walk_close() is allowed.
 */
struct fs_walk;
enum rc fs_walk_open(struct fs_ctx *ctx, const char *method, struct json_object *params, struct fs_walk **ret,
		     struct fs_error *ret_e);
enum rc fs_walk_next(struct fs_walk *w, struct buf *out, size_t want, bool *ret_done, struct fs_error *ret_e);
void fs_walk_close(struct fs_walk *w);

/*
 * `writeFile` and `writeTextFile` with contentStreamId: the file is opened (created, truncated) by fs_write_open(), every
 * chunk is written when it comes. fs_write_close() always frees; `aborted` says that the stream ended in an error or was
 * aborted: what was written stays, as with Deno. Its result answers the call.
 */
struct fs_write;
enum rc fs_write_open(struct fs_ctx *ctx, struct json_object *params, struct fs_write **ret, struct fs_error *ret_e);
enum rc fs_write_chunk(struct fs_write *w, const void *data, size_t n, struct fs_error *ret_e);
enum rc fs_write_close(struct fs_write *w, bool aborted, struct fs_error *ret_e);

#endif
