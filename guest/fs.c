/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory. A context is what one connection owns: where relative paths start, its open handles, and the list of calls that
 * run on worker threads now. Paths are never joined with the base: every system call is an *at() one on the base's
 * descriptor, so nothing changes the process's directory and error texts show what the client wrote. The umask is the
 * process's own, as in Deno: it is shared by all connections and inherited by what is spawned.
 *
 * Cancelling: calls may block in the kernel for ever (a FIFO, a lock). Each is on the list with its thread; cancelling sets
 * a flag and signals the threads. A thread may get the signal between its look at the flag and the system call, so the
 * canceller repeats until the list is empty.
 */
#include "guest/fs_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>

struct fs_ctx {
	int base;
	char base_path[PATH_MAX];
	struct fs_handles *handles;
	atomic_bool cancelled;
	pthread_mutex_t lock; /* guards calls; held for list operations only */
	pthread_cond_t idle;
	struct fs_call *calls;
};

static void on_wake(int sig)
{
	(void)sig;
}

static void wake_install(void)
{
	struct sigaction sa = { .sa_handler = on_wake }; /* no SA_RESTART: that is the point */

	sigaction(SIGRTMIN + 2, &sa, NULL);
}

enum rc fs_ctx_new(const char *base, struct fs_ctx **ret, struct fault *ret_f)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	struct fs_ctx *ctx = calloc(1, sizeof(*ctx));
	int sys;

	if (!ctx)
		return fault_set(ret_f, RC_NOMEM, ENOMEM, "file context");
	pthread_once(&once, wake_install);
	pthread_mutex_init(&ctx->lock, NULL);
	pthread_cond_init(&ctx->idle, NULL);
	ctx->handles = fs_handles_new();
	ctx->base = open(base, O_PATH | O_DIRECTORY | O_CLOEXEC);
	sys = !ctx->handles ? ENOMEM : ctx->base < 0 || !realpath(base, ctx->base_path) ? errno : 0;
	if (sys) {
		fs_ctx_free(ctx);
		return fault_set(ret_f, rc_from_errno(sys), sys, "open base directory '%s'", base);
	}
	*ret = ctx;
	return RC_OK;
}

size_t fs_ctx_cancel(struct fs_ctx *ctx)
{
	size_t n = 0;

	atomic_store(&ctx->cancelled, true);
	pthread_mutex_lock(&ctx->lock);
	for (struct fs_call *c = ctx->calls; c; c = c->next, n++)
		pthread_kill(c->thread, SIGRTMIN + 2);
	pthread_mutex_unlock(&ctx->lock);
	return n;
}

size_t fs_calls_running(struct fs_ctx *ctx)
{
	size_t n = 0;

	pthread_mutex_lock(&ctx->lock);
	for (const struct fs_call *c = ctx->calls; c; c = c->next)
		n++;
	pthread_mutex_unlock(&ctx->lock);
	return n;
}

void fs_ctx_free(struct fs_ctx *ctx)
{
	if (!ctx)
		return;
	while (fs_ctx_cancel(ctx)) {
		struct timespec until;

		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_nsec += 5000000;
		until.tv_sec += until.tv_nsec / 1000000000;
		until.tv_nsec %= 1000000000;
		pthread_mutex_lock(&ctx->lock);
		if (ctx->calls)
			pthread_cond_timedwait(&ctx->idle, &ctx->lock, &until);
		pthread_mutex_unlock(&ctx->lock);
	}
	fs_handles_free(ctx->handles);
	cleanup_fd(&ctx->base);
	pthread_cond_destroy(&ctx->idle);
	pthread_mutex_destroy(&ctx->lock);
	free(ctx);
}

bool fs_call_begin(struct fs_call *call, struct fs_ctx *ctx, struct fs_error *e)
{
	bool cancelled;

	*call = (struct fs_call){ .ctx = ctx, .thread = pthread_self(), .prev = &ctx->calls };
	pthread_mutex_lock(&ctx->lock);
	cancelled = atomic_load(&ctx->cancelled);
	if (!cancelled) {
		call->next = ctx->calls;
		if (call->next)
			call->next->prev = &call->next;
		ctx->calls = call;
	}
	pthread_mutex_unlock(&ctx->lock);
	if (cancelled)
		fs_error_set(e, EINTR, "Interrupted", "", "the connection was closed");
	return !cancelled;
}

void fs_call_end(struct fs_call *call)
{
	struct fs_ctx *ctx = call->ctx;

	pthread_mutex_lock(&ctx->lock);
	*call->prev = call->next;
	if (call->next)
		call->next->prev = call->prev;
	if (!ctx->calls)
		pthread_cond_broadcast(&ctx->idle);
	pthread_mutex_unlock(&ctx->lock);
}

bool fs_retry(struct fs_ctx *ctx)
{
	return errno == EINTR && !atomic_load(&ctx->cancelled);
}

int fs_base(const struct fs_ctx *ctx)
{
	return ctx->base;
}

const char *fs_base_path(const struct fs_ctx *ctx)
{
	return ctx->base_path;
}

struct fs_handles *fs_ctx_handles(struct fs_ctx *ctx)
{
	return ctx->handles;
}

static enum rc call_method(fs_method_fn *fn, struct fs_ctx *ctx, struct json_object *params,
			   struct json_object **ret_ok, struct fs_error *ret_e)
{
	struct fs_call call;
	enum rc rc;

	*ret_ok = NULL;
	memset(ret_e, 0, offsetof(struct fs_error, message) + 1);
	if (!json_object_is_type(params, json_type_object))
		return fs_param_invalid(ret_e, "params", "object");
	if (!fs_call_begin(&call, ctx, ret_e))
		return RC_CLOSED;
	rc = fn(ctx, params, ret_ok, ret_e);
	fs_call_end(&call);
	return rc;
}

#define FS_METHOD_WRAP(name)                                                                                     \
	static enum rc wrap_##name(struct fs_ctx *ctx, struct json_object *params, struct json_object **ret_ok, \
				   struct fs_error *ret_e)                                                       \
	{                                                                                                        \
		return call_method(fs_do_##name, ctx, params, ret_ok, ret_e);                                    \
	}
FS_METHODS(FS_METHOD_WRAP)

#define FS_METHOD_ROW(name) { #name, wrap_##name },
const struct fs_method fs_methods[] = { FS_METHODS(FS_METHOD_ROW) };
const size_t fs_methods_n = ARRAY_SIZE(fs_methods);

const struct fs_method *fs_method_find(const char *name)
{
	for (size_t i = 0; i < fs_methods_n; i++)
		if (!strcmp(fs_methods[i].name, name))
			return &fs_methods[i];
	return NULL;
}
