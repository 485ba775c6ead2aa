/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory: three kinds of work on threads. A plain method is one job; those on the same file handle run one after the
 * other, in the order in which they came. A walk is a chain of jobs: each collects some
 * entries, the loop sends them when there is room and starts the next. A streamed write is a chain too: each job writes
 * what has arrived meanwhile. Only one job of a chain exists at a time, and only jobs block. An aborted or lost call
 * is answered (or not) at once; its job still comes back and is then only cleaned up.
 */
#include "guest/rpc_fs.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "guest/fs.h"
#include "guest/rpc_jobs.h"

#include <stdlib.h>
#include <string.h>

#define CANCEL_RETRY_MS 5
#define WALK_BATCH 65536

struct plain;

struct rpc_fs {
	struct session *session;
	struct fs_ctx *ctx;
	struct plain *busy; /* calls at work on file handles, one a handle */
	size_t jobs; /* chains and calls that still need ctx */
	bool lost;
	struct source *timer;
};

enum rc rpc_fs_new(struct session *s, struct rpc_fs **ret, struct fault *ret_f)
{
	struct rpc_fs *fs = calloc(1, sizeof(*fs));
	enum rc rc;

	if (!fs)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	fs->session = s;
	rc = fs_ctx_new(s->home, &fs->ctx, ret_f);
	if (rc) {
		free(fs);
		return rc;
	}
	*ret = fs;
	return RC_OK;
}

static void maybe_free(struct rpc_fs *fs)
{
	if (!fs->lost || fs->jobs)
		return;
	source_drop(&fs->timer);
	fs_ctx_free(fs->ctx);
	free(fs);
}

static void on_retry(void *arg)
{
	struct rpc_fs *fs = arg;

	if (fs_ctx_cancel(fs->ctx))
		loop_timer_set(fs->timer, loop_now_ms(fs->session->loop) + CANCEL_RETRY_MS);
}

void rpc_fs_detach(struct rpc_fs *fs)
{
	if (!fs)
		return;
	fs->lost = true;
	if (fs->jobs && fs_ctx_cancel(fs->ctx))
		loop_timer(fs->session->loop, now_ms() + CANCEL_RETRY_MS, on_retry, fs, &fs->timer, NULL);
	maybe_free(fs);
}

static void job_over(struct rpc_fs *fs)
{
	fs->jobs--;
	maybe_free(fs);
}

static void call_fs_error(struct rpc_call *call, enum rc rc, const struct fs_error *e)
{
	struct json_object *error;

	if (rc == RC_INVALID) {
		struct params p = { .bad = true };

		snprintf(p.why, sizeof(p.why), "%.*s", (int)sizeof(p.why) - 1, e->message);
		rpc_call_params(call, &p);
		return;
	}
	error = rpc_error_new(e->constructor_name, e->code, "");
	/* With its length: Deno quotes the path, and that may have a NUL. */
	json_put(error, "message", json_str_lossy(e->message, e->message_n));
	rpc_call_error_json(call, error);
}

/* --- plain methods --------------------------------------------------------------------------------------------- */

struct plain {
	struct job job;
	struct rpc_fs *fs;
	const struct fs_method *method;
	struct rpc_call *call;
	struct json_object *params, *ok;
	bool ordered;
	double handle;
	struct plain *next;          /* in fs->busy */
	struct plain *first, **last; /* of the calls that wait for this one, by after */
	struct plain *after;
	enum rc rc;
	struct fs_error e;
};

/* Starts p, or lets it wait for an earlier call on its handle. */
static void plain_submit(struct plain *p)
{
	struct plain *b = p->fs->busy;

	while (b && p->ordered && b->handle != p->handle)
		b = b->next;
	if (b && p->ordered) {
		*b->last = p;
		b->last = &p->after;
		return;
	}
	if (p->ordered) {
		p->next = p->fs->busy;
		p->fs->busy = p;
	}
	jobs_submit(p->fs->session->jobs, &p->job);
}

/* p is done: the first that waits for it takes its place, and those that wait with it. */
static void plain_hand_over(struct plain *p)
{
	struct plain **at = &p->fs->busy, *heir = p->first;

	if (!p->ordered)
		return;
	while (*at != p)
		at = &(*at)->next;
	*at = p->next;
	if (!heir)
		return;
	heir->first = take_ptr(heir->after);
	heir->last = heir->first ? p->last : &heir->first;
	heir->next = p->fs->busy;
	p->fs->busy = heir;
	jobs_submit(p->fs->session->jobs, &heir->job);
}

static void plain_work(struct job *job)
{
	struct plain *p = (struct plain *)job;

	p->rc = p->method->fn(p->fs->ctx, p->params, &p->ok, &p->e);
}

static void plain_done(struct job *job)
{
	struct plain *p = (struct plain *)job;

	if (p->rc)
		call_fs_error(p->call, p->rc, &p->e);
	else
		rpc_call_ok(p->call, p->ok);
	plain_hand_over(p);
	json_object_put(p->params);
	job_over(p->fs);
	free(p);
}

static void plain_start(struct rpc_fs *fs, const struct fs_method *method, struct rpc_call *call, struct json_object *params)
{
	struct plain *p = calloc(1, sizeof(*p));
	struct json_object *handle;

	if (!p) {
		rpc_call_fault(call, -32603, "out of memory");
		return;
	}
	*p = (struct plain){ .job = { .work = plain_work, .done = plain_done }, .fs = fs, .method = method, .call = call,
			     .params = json_object_get(params) };
	p->last = &p->first;
	p->ordered = json_object_object_get_ex(params, "fileHandleId", &handle);
	p->handle = p->ordered ? json_object_get_double(handle) : 0;
	fs->jobs++;
	plain_submit(p);
}

/* --- walk, expandGlob ------------------------------------------------------------------------------------------ */

struct walk {
	struct job job;
	struct rpc_fs *fs;
	struct rpc_call *call; /* until the walk is open */
	struct rpc_out *out;
	char method[16];
	struct json_object *params;
	struct fs_walk *w;
	struct buf found;
	enum rc rc;
	bool done, gone, busy;
	struct fs_error e;
};

static void walk_work(struct job *job)
{
	struct walk *k = (struct walk *)job;

	if (!k->w)
		k->rc = fs_walk_open(k->fs->ctx, k->method, k->params, &k->w, &k->e);
	else
		k->rc = fs_walk_next(k->w, &k->found, WALK_BATCH, &k->done, &k->e);
}

static void walk_submit(struct walk *k)
{
	k->busy = true;
	jobs_submit(k->fs->session->jobs, &k->job);
}

static void walk_free(struct walk *k)
{
	if (k->w)
		fs_walk_close(k->w);
	rpc_out_free(k->out);
	json_object_put(k->params);
	buf_free(&k->found);
	job_over(k->fs);
	free(k);
}

/* Every entry is one chunk: the client parses chunk by chunk. */
static void walk_send(struct walk *k)
{
	while (buf_len(&k->found) && rpc_out_room(k->out)) {
		const uint8_t *line = buf_data(&k->found), *end = memchr(line, '\n', buf_len(&k->found));
		size_t n = end ? (size_t)(end - line) : buf_len(&k->found);

		rpc_out_send(k->out, line, n);
		buf_consume(&k->found, MIN_OF(n + 1, buf_len(&k->found)));
	}
}

static void walk_go_on(struct walk *k)
{
	if (!k->gone)
		walk_send(k);
	if (k->gone) {
		walk_free(k);
	} else if (buf_len(&k->found)) {
		rpc_out_wait(k->out);
	} else if (k->rc) {
		rpc_out_error(take_ptr(k->out), rpc_error_new(k->e.constructor_name, k->e.code, k->e.message));
		walk_free(k);
	} else if (k->done) {
		rpc_out_end(take_ptr(k->out));
		walk_free(k);
	} else {
		walk_submit(k);
	}
}

static void walk_resume(void *arg)
{
	walk_go_on(arg);
}

static void walk_gone(void *arg, bool cancelled)
{
	struct walk *k = arg;

	(void)cancelled;
	k->gone = true;
	if (!k->busy)
		walk_free(k);
}

static const struct rpc_out_ops walk_ops = { .resume = walk_resume, .gone = walk_gone };

static void walk_opened(struct walk *k)
{
	struct rpc_call *call = take_ptr(k->call);
	struct json_object *ok;

	if (k->rc) {
		call_fs_error(call, k->rc, &k->e);
		walk_free(k);
		return;
	}
	k->out = call->conn ? rpc_out_new(call->conn, &walk_ops, k) : NULL;
	if (!k->out) {
		rpc_call_fault(call, -32603, "too many streams");
		walk_free(k);
		return;
	}
	k->out->often_left = true;
	ok = json_object_new_object();
	json_put(ok, "streamId", json_object_new_int64((int64_t)k->out->id));
	rpc_call_ok(call, ok);
	walk_go_on(k);
}

static void walk_done(struct job *job)
{
	struct walk *k = (struct walk *)job;

	k->busy = false;
	if (k->call)
		walk_opened(k);
	else
		walk_go_on(k);
}

static void walk_start(struct rpc_fs *fs, const char *method, struct rpc_call *call, struct json_object *params)
{
	struct walk *k = calloc(1, sizeof(*k));

	if (!k) {
		rpc_call_fault(call, -32603, "out of memory");
		return;
	}
	*k = (struct walk){ .job = { .work = walk_work, .done = walk_done }, .fs = fs, .call = call,
			    .params = json_object_get(params), .found = BUF_INIT(WALK_BATCH * 4) };
	snprintf(k->method, sizeof(k->method), "%s", method);
	fs->jobs++;
	walk_submit(k);
}

/* --- writeFile, writeTextFile from a stream -------------------------------------------------------------------- */

struct write {
	struct job job;
	struct rpc_fs *fs;
	struct rpc_call *call;
	struct rpc_in *in;
	struct json_object *params;
	struct fs_write *w;
	struct buf chunk;
	enum rc rc;
	bool busy, gone, closing;
	struct fs_error e;
};

static void write_work(struct job *job)
{
	struct write *w = (struct write *)job;

	if (w->closing) {
		if (w->w)
			w->rc = fs_write_close(w->w, w->gone || w->rc, &w->e);
		w->w = NULL;
	} else if (!w->w) {
		w->rc = fs_write_open(w->fs->ctx, w->params, &w->w, &w->e);
	} else {
		w->rc = fs_write_chunk(w->w, buf_data(&w->chunk), buf_len(&w->chunk), &w->e);
	}
}

static void write_submit(struct write *w)
{
	w->busy = true;
	jobs_submit(w->fs->session->jobs, &w->job);
}

static void write_finish(struct write *w)
{
	if (w->rc)
		call_fs_error(w->call, w->rc, &w->e);
	else if (w->gone)
		rpc_call_drop(w->call);
	else
		rpc_call_ok(w->call, NULL);
	rpc_in_drop(w->in, w->rc ? rpc_error_new(w->e.constructor_name, w->e.code, w->e.message) : NULL);
	json_object_put(w->params);
	buf_free(&w->chunk);
	job_over(w->fs);
	free(w);
}

static void write_go_on(struct write *w)
{
	if (w->busy)
		return;
	if (!w->gone && !w->rc && w->in->failed) {
		w->gone = true; /* what was written stays; the call fails */
		fs_error_set(&w->e, 0, "Error", "", "The content stream failed");
		w->rc = RC_CLOSED;
	}
	buf_free(&w->chunk);
	if (!w->gone && !w->rc && buf_len(&w->in->data)) {
		w->chunk = w->in->data;
		w->in->data = (struct buf){ .max = w->chunk.max };
		rpc_in_used(w->in);
		write_submit(w);
	} else if (w->gone || w->rc || w->in->ended) {
		w->closing = true;
		write_submit(w);
	}
}

static void write_ready(void *arg)
{
	write_go_on(arg);
}

static const struct rpc_in_ops write_ops = { .ready = write_ready };

static void write_done(struct job *job)
{
	struct write *w = (struct write *)job;

	w->busy = false;
	if (w->closing)
		write_finish(w);
	else
		write_go_on(w);
}

/* The first failure is the answer, not what closing says after it. */
static void write_closing_work(struct job *job)
{
	struct write *w = (struct write *)job;
	struct fs_error *first = NULL;
	enum rc rc = w->rc;

	if (w->closing && rc)
		first = malloc(sizeof(*first));
	if (first)
		*first = w->e;
	write_work(job);
	if (first) {
		w->e = *first;
		w->rc = rc;
	}
	free(first);
}

static void write_gone(struct rpc_call *call, void *arg)
{
	struct write *w = arg;

	(void)call;
	w->gone = true;
	write_go_on(w);
}

static void write_start(struct rpc_fs *fs, struct rpc_conn *c, struct rpc_call *call, struct json_object *params)
{
	struct write *w = calloc(1, sizeof(*w));
	struct params p;
	int64_t id;

	params_init(&p, params);
	id = params_int(&p, "contentStreamId", 0, INT64_MAX);
	if (!w || !params_ok(&p)) {
		rpc_call_params(call, &p);
		free(w);
		return;
	}
	w->in = rpc_in_claim(c, id, &write_ops, w);
	if (!w->in) {
		params_fail(&p, "contentStreamId", "no such stream");
		rpc_call_params(call, &p);
		free(w);
		return;
	}
	w->job = (struct job){ .work = write_closing_work, .done = write_done };
	w->fs = fs;
	w->call = call;
	w->params = json_object_get(params);
	call->gone = write_gone;
	call->arg = w;
	fs->jobs++;
	write_submit(w);
}

/* --- */

bool rpc_fs_dispatch(struct rpc_conn *c, const char *method, struct rpc_call *call, struct json_object *params)
{
	struct rpc_fs *fs = rpc_conn_fs(c);
	const struct fs_method *m = fs_method_find(method);
	struct params p;

	if (!strcmp(method, "walk") || !strcmp(method, "expandGlob")) {
		walk_start(fs, method, call, params);
		return true;
	}
	if (!m)
		return false;
	params_init(&p, params);
	rpc_call_abortable(call, &p);
	if (!params_ok(&p))
		rpc_call_params(call, &p);
	else if (!strncmp(method, "write", 5) && params_has(&p, "contentStreamId"))
		write_start(fs, c, call, params);
	else
		plain_start(fs, m, call, params);
	return true;
}
