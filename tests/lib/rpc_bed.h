/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An RPC connection without a sandbox: real frames, dispatch and streams over a socket pair, with the methods below in
 * place of those that start programs and touch files.
 *   echo {v}          answers v                         fail          answers an error
 *   hang {abortId?}   never answers                     sink {id, take}  reads the client's stream, drops it after `take` bytes
 *   pour {n, late}    answers {streamId}, then a stream of n bytes; late: it ends when `end` is called
 */
#ifndef NB_TESTS_RPC_BED_H
#define NB_TESTS_RPC_BED_H

#include "base/cleanup.h"
#include "base/fd.h"
#include "guest/proc.h"
#include "guest/rpc.h"
#include "guest/rpc_fs.h"
#include "guest/ws.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

struct bed {
	struct session session;
	int fd; /* the client's end */
	size_t alive; /* objects of the methods here */
};

static struct bed bed;

/* --- what rpc_conn.c and rpc_call.c ask of others --------------------------------------------------------------- */

enum rc rpc_fs_new(struct session *s, struct rpc_fs **ret, struct fault *ret_f)
{
	(void)s;
	(void)ret_f;
	*ret = NULL;
	return RC_OK;
}

void rpc_fs_detach(struct rpc_fs *fs)
{
	(void)fs;
}

bool rpc_fs_dispatch(struct rpc_conn *c, const char *method, struct rpc_call *call, struct json_object *params)
{
	(void)c;
	(void)method;
	(void)call;
	(void)params;
	return false;
}

void proc_conn_lost(struct session *s, struct rpc_conn *c)
{
	(void)s;
	(void)c;
}

/* --- methods ---------------------------------------------------------------------------------------------------- */

static void bed_echo(struct rpc_conn *c, struct rpc_call *call, struct json_object *params)
{
	struct json_object *v = NULL;

	(void)c;
	json_object_object_get_ex(params, "v", &v);
	rpc_call_ok(call, json_object_get(v));
}

static void bed_fail(struct rpc_conn *c, struct rpc_call *call, struct json_object *params)
{
	(void)c;
	(void)params;
	rpc_call_error(call, "NotFound", "ENOENT", "no \"such\" thing \xff");
}

static void hang_gone(struct rpc_call *call, void *arg)
{
	(void)arg;
	bed.alive--;
	rpc_call_drop(call);
}

static void bed_hang(struct rpc_conn *c, struct rpc_call *call, struct json_object *params)
{
	struct params p;

	(void)c;
	params_init(&p, params);
	rpc_call_abortable(call, &p);
	if (!params_ok(&p)) {
		rpc_call_params(call, &p);
		return;
	}
	bed.alive++;
	call->gone = hang_gone;
}

static void bed_abort(struct rpc_conn *c, struct rpc_call *call, struct json_object *params)
{
	struct params p;
	int64_t id;

	params_init(&p, params);
	id = params_int(&p, "abortId", 0, INT64_MAX);
	if (params_ok(&p)) {
		rpc_aborts_fire(c, id);
		rpc_call_ok(call, NULL);
	} else {
		rpc_call_params(call, &p);
	}
}

struct pour {
	struct rpc_out *out;
	size_t left;
	bool late;
};

static struct pour *late;

static void pour_go_on(void *arg)
{
	static const uint8_t zeros[RPC_CHUNK];
	struct pour *pour = arg;

	while (pour->left && rpc_out_room(pour->out)) {
		size_t n = MIN_OF(pour->left, sizeof(zeros));

		pour->left -= n;
		rpc_out_send(pour->out, zeros, n);
	}
	if (pour->left) {
		rpc_out_wait(pour->out);
		return;
	}
	if (pour->late) {
		late = pour;
		return;
	}
	rpc_out_end(pour->out);
	bed.alive--;
	free(pour);
}

static void pour_gone(void *arg, bool cancelled)
{
	struct pour *pour = arg;

	(void)cancelled;
	rpc_out_free(take_ptr(pour->out));
	bed.alive--;
	if (late == pour)
		late = NULL;
	free(pour);
}

static const struct rpc_out_ops pour_ops = { .resume = pour_go_on, .gone = pour_gone };

static void bed_pour(struct rpc_conn *c, struct rpc_call *call, struct json_object *params)
{
	struct json_object *ok = json_object_new_object();
	struct pour *pour = calloc(1, sizeof(*pour));
	struct params p;

	params_init(&p, params);
	pour->left = (size_t)params_int(&p, "n", 0, 1 << 24);
	pour->late = params_bool_opt(&p, "late", false);
	pour->out = params_ok(&p) ? rpc_out_new(c, &pour_ops, pour) : NULL;
	if (!pour->out) {
		free(pour);
		json_object_put(ok);
		rpc_call_params(call, &p);
		return;
	}
	bed.alive++;
	json_put(ok, "streamId", json_object_new_int64((int64_t)pour->out->id));
	rpc_call_ok(call, ok);
	rpc_out_wait(pour->out);
}

static void bed_end(struct rpc_conn *c, struct rpc_call *call, struct json_object *params)
{
	struct pour *pour = take_ptr(late);

	(void)c;
	(void)params;
	if (pour) {
		pour->late = false;
		pour_go_on(pour);
	}
	rpc_call_ok(call, NULL);
}

struct sink {
	struct rpc_call *call;
	struct rpc_in *in;
	size_t take, taken;
};

static void sink_ready(void *arg)
{
	struct sink *s = arg;
	struct json_object *ok;

	s->taken += buf_len(&s->in->data);
	buf_consume(&s->in->data, buf_len(&s->in->data));
	rpc_in_used(s->in);
	if (s->taken < s->take && !s->in->ended)
		return;
	ok = json_object_new_object();
	json_put(ok, "taken", json_object_new_int64((int64_t)s->taken));
	json_put(ok, "failed", json_object_new_boolean(s->in->failed));
	rpc_in_drop(s->in, rpc_error_new("Error", NULL, "enough"));
	bed.alive--;
	rpc_call_ok(s->call, ok);
	free(s);
}

static const struct rpc_in_ops sink_ops = { .ready = sink_ready };

static void bed_sink(struct rpc_conn *c, struct rpc_call *call, struct json_object *params)
{
	struct sink *s = calloc(1, sizeof(*s));
	struct params p;

	params_init(&p, params);
	s->take = (size_t)params_int_opt(&p, "take", 0, INT32_MAX, INT32_MAX);
	s->in = rpc_in_claim(c, params_int(&p, "id", 0, INT64_MAX), &sink_ops, s);
	s->call = call;
	if (!s->in) {
		free(s);
		rpc_call_fault(call, -32602, "no such stream");
		return;
	}
	bed.alive++;
	sink_ready(s);
}

rpc_method_fn *rpc_method_find(const char *name)
{
	static const struct {
		const char *name;
		rpc_method_fn *fn;
	} methods[] = { { "echo", bed_echo }, { "fail", bed_fail }, { "hang", bed_hang },
			{ "abort", bed_abort }, { "pour", bed_pour }, { "end", bed_end }, { "sink", bed_sink } };

	for (size_t i = 0; i < ARRAY_SIZE(methods); i++)
		if (!strcmp(methods[i].name, name))
			return methods[i].fn;
	return NULL;
}

/* --- the client's side ------------------------------------------------------------------------------------------ */

static void bed_open(void)
{
	int fds[2];

	if (!bed.session.loop && loop_new(&bed.session.loop, NULL))
		abort();
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) < 0 ||
	    rpc_conn_new(&bed.session, fds[0], NULL))
		abort();
	bed.fd = fds[1];
}

/* Turns of the loop until nothing happens any more. */
static void bed_turn(void)
{
	for (int i = 0; i < 8; i++) {
		if (loop_once(bed.session.loop, 0, NULL))
			abort();
		rpc_conns_flush(&bed.session);
	}
}

static void bed_close(void)
{
	close_fd(&bed.fd);
	bed_turn();
}

/* Masked, as the client must. False if the server takes no more. */
static bool bed_send_frame(uint8_t first, const void *data, size_t n)
{
	static const uint8_t mask[4] = { 0x11, 0xa2, 0x33, 0xc4 };
	_cleanup_free_ uint8_t *frame = malloc(n + 14);
	size_t at = ws_head(frame, WS_TEXT, n);

	frame[0] = first;
	frame[1] |= 0x80;
	memcpy(frame + at, mask, 4);
	at += 4;
	for (size_t i = 0; i < n; i++)
		frame[at + i] = ((const uint8_t *)data)[i] ^ mask[i & 3];
	for (size_t done = 0, stuck = 0; done < at + n && stuck < 100;) {
		ssize_t k = send(bed.fd, frame + done, at + n - done, MSG_NOSIGNAL);

		if (k < 0 && errno != EAGAIN)
			return false;
		stuck = k > 0 ? 0 : stuck + 1;
		done += k > 0 ? (size_t)k : 0;
		bed_turn();
		if (stuck == 100)
			return false;
	}
	return true;
}

__attribute__((unused)) static bool bed_send(const char *text)
{
	return bed_send_frame(0x81, text, strlen(text));
}

static char *bed_recv_any(uint8_t *ret_first, size_t *ret_n)
{
	uint8_t head[10];
	size_t n, more;
	char *data;

	for (int i = 0; i < 4; i++)
		bed_turn();
	if (recv(bed.fd, head, 2, MSG_WAITALL) != 2)
		return NULL;
	n = head[1] & 0x7f;
	more = n == 126 ? 2 : n == 127 ? 8 : 0;
	if (more) {
		if (recv(bed.fd, head + 2, more, MSG_WAITALL) != (ssize_t)more)
			return NULL;
		n = 0;
		for (size_t i = 0; i < more; i++)
			n = n << 8 | head[2 + i];
	}
	data = calloc(1, n + 1);
	for (size_t got = 0, stuck = 0; data && got < n && stuck < 100;) {
		ssize_t k = recv(bed.fd, data + got, n - got, 0);

		bed_turn();
		stuck = k > 0 ? 0 : stuck + 1;
		got += k > 0 ? (size_t)k : 0;
	}
	*ret_first = head[0];
	*ret_n = n;
	return data;
}

/*
 * The next frame from the server, pings answered; its payload, NUL-terminated, to be freed. NULL if there is none (any
 * more). Time passes here as far as streams need it to end.
 */
__attribute__((unused)) static char *bed_recv(uint8_t *ret_first, size_t *ret_n)
{
	uint64_t deadline = now_ms() + 10 * RPC_END_GRACE_MS;
	char *data;

	for (;;) {
		data = bed_recv_any(ret_first, ret_n);
		if (data && *ret_first == 0x89) {
			bed_send_frame(0x8a, data, *ret_n);
			free(data);
		} else if (data || now_ms() > deadline) {
			return data;
		} else if (bed.session.n_conns) {
			loop_once(bed.session.loop, RPC_END_GRACE_MS, NULL);
			rpc_conns_flush(&bed.session);
		} else {
			return NULL;
		}
	}
}

#endif
