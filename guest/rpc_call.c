/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory: a call is waiting until exactly one of the answering functions is called, which frees it. An abort or the loss
 * of the connection cuts it off its connection (conn NULL) and tells the holder; the answer that the holder still owes
 * then goes nowhere. So no holder ever sees a call vanish under it.
 */
#include "guest/rpc.h"

#include "guest/fs.h"
#include "guest/rpc_fs.h"
#include "guest/ws.h" /* utf8_valid() */

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void rpc_abort_add(struct rpc_conn *c, struct rpc_abort *a)
{
	struct rpc_lists *l = rpc_conn_lists(c);

	if (a->id < 0)
		return;
	a->next = l->aborts;
	a->at = &l->aborts;
	if (a->next)
		a->next->at = &a->next;
	l->aborts = a;
}

void rpc_abort_remove(struct rpc_abort *a)
{
	if (!a->at)
		return;
	*a->at = a->next;
	if (a->next)
		a->next->at = a->at;
	a->at = NULL;
}

void rpc_aborts_fire(struct rpc_conn *c, int64_t id)
{
	for (struct rpc_abort *a = rpc_conn_lists(c)->aborts; a; a = a->next) {
		if (a->id == id) {
			rpc_abort_remove(a);
			a->fn(a->arg);
			return;
		}
	}
}

static void call_detach(struct rpc_call *call)
{
	if (!call->conn)
		return;
	rpc_abort_remove(&call->abort);
	rpc_conn_lists(call->conn)->n_calls--;
	call->conn = NULL;
	*call->at = call->next;
	if (call->next)
		call->next->at = call->at;
}

struct rpc_call *rpc_call_new(struct rpc_conn *c, struct json_object *id)
{
	struct rpc_lists *l = rpc_conn_lists(c);
	struct rpc_call *call = calloc(1, sizeof(*call));

	if (!call)
		return NULL;
	call->conn = c;
	call->id = json_object_get(id);
	call->abort.id = -1;
	call->next = l->calls;
	call->at = &l->calls;
	if (call->next)
		call->next->at = &call->next;
	l->calls = call;
	l->n_calls++;
	return call;
}

void rpc_calls_detach(struct rpc_conn *c)
{
	struct rpc_lists *l = rpc_conn_lists(c);

	while (l->calls) {
		struct rpc_call *call = l->calls;

		call_detach(call);
		if (call->gone)
			call->gone(call, call->arg);
	}
	while (l->aborts)
		rpc_abort_remove(l->aborts);
}

void rpc_call_drop(struct rpc_call *call)
{
	if (!call)
		return;
	call_detach(call);
	json_object_put(call->id);
	free(call);
}

/* {"jsonrpc":"2.0","id":ID,KEY:VALUE}; owns value. False: it is too long for the client to take. */
static bool send_answer(struct rpc_conn *c, struct json_object *id, const char *key, struct json_object *value)
{
	struct json_object *m = json_object_new_object();
	const char *text;
	size_t n;
	bool fits;

	json_put(m, "jsonrpc", json_str("2.0"));
	json_put(m, "id", json_object_get(id));
	json_put(m, key, value);
	text = json_object_to_json_string_length(m, JSON_WRITE_FLAGS, &n);
	fits = text && n <= RPC_REPLY_MAX;
	if (fits)
		rpc_conn_text(c, text, n, NULL, 0, "", 0);
	json_object_put(m);
	return fits;
}

static void answer(struct rpc_call *call, struct json_object *result)
{
	struct rpc_conn *c = call->conn;

	call_detach(call);
	if (!c) {
		json_object_put(result);
	} else if (!send_answer(c, call->id, "result", result)) {
		struct json_object *r = json_object_new_object();

		json_put(r, "error", rpc_error_new("RangeError", NULL, "The result is too large for one message"));
		send_answer(c, call->id, "result", r);
	}
	rpc_call_drop(call);
}

void rpc_call_ok(struct rpc_call *call, struct json_object *ok)
{
	struct json_object *r = json_object_new_object();

	json_put(r, "ok", ok);
	answer(call, r);
}

struct json_object *json_str_lossy(const char *s, size_t n)
{
	struct json_object *v;
	char *out;
	size_t at = 0, i = 0;

	if (utf8_valid((const uint8_t *)s, n))
		return json_object_new_string_len(s, (int)n);
	out = malloc(n * 3 + 1);
	if (!out)
		return json_object_new_string("");
	while (i < n) {
		size_t len = 1;

		while (len < 4 && i + len <= n && !utf8_valid((const uint8_t *)s + i, len))
			len++;
		if (len < 4 && i + len > n)
			len = 4;
		if (len == 4 && (i + 4 > n || !utf8_valid((const uint8_t *)s + i, 4))) {
			memcpy(out + at, "\xef\xbf\xbd", 3);
			at += 3;
			i++;
			continue;
		}
		memcpy(out + at, s + i, len);
		at += len;
		i += len;
	}
	v = json_object_new_string_len(out, (int)at);
	free(out);
	return v;
}

struct json_object *rpc_error_new(const char *class_name, const char *code, const char *message)
{
	static const char *const rest[] = { "stack", "cause", "errors", "suppressed", "error" };
	struct json_object *e = json_object_new_object();

	json_put(e, "constructorName", json_str(class_name));
	json_put(e, "message", json_str_lossy(message, strlen(message)));
	json_put(e, "code", json_str(code && *code ? code : NULL));
	json_put(e, "name", json_str(class_name));
	for (size_t i = 0; i < sizeof(rest) / sizeof(rest[0]); i++)
		json_put(e, rest[i], NULL);
	return e;
}

struct json_object *rpc_error_abort(void)
{
	struct json_object *e = rpc_error_new("DOMException", NULL, "The signal has been aborted");

	json_put(e, "name", json_str("AbortError"));
	return e;
}

void rpc_call_error_json(struct rpc_call *call, struct json_object *error)
{
	struct json_object *r = json_object_new_object();

	json_put(r, "error", error);
	answer(call, r);
}

void rpc_call_error(struct rpc_call *call, const char *class_name, const char *code, const char *fmt, ...)
{
	char text[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	rpc_call_error_json(call, rpc_error_new(class_name, code, text));
}

void rpc_call_errno(struct rpc_call *call, int sys, const char *context)
{
	struct fs_error *e = calloc(1, sizeof(*e));

	if (!e) {
		rpc_call_fault(call, -32603, "out of memory");
		return;
	}
	fs_error_errno(e, sys);
	rpc_call_error(call, e->constructor_name, e->code, "%s: %s", e->message, context);
	free(e);
}

void rpc_call_fault(struct rpc_call *call, int code, const char *message)
{
	struct rpc_conn *c = call->conn;
	struct json_object *e;

	call_detach(call);
	if (c) {
		e = json_object_new_object();
		json_put(e, "code", json_object_new_int(code));
		json_put(e, "message", json_str(message));
		send_answer(c, call->id, "error", e);
	}
	rpc_call_drop(call);
}

void rpc_call_params(struct rpc_call *call, const struct params *p)
{
	char text[160];

	snprintf(text, sizeof(text), "Invalid params: %s", p->why);
	rpc_call_fault(call, -32602, text);
}

static void on_abort(void *arg)
{
	struct rpc_call *call = arg;
	struct rpc_conn *c = call->conn;
	struct json_object *r = json_object_new_object();

	json_put(r, "error", rpc_error_abort());
	call_detach(call);
	send_answer(c, call->id, "result", r);
	if (call->gone)
		call->gone(call, call->arg);
}

void rpc_call_abortable(struct rpc_call *call, struct params *p)
{
	call->abort.id = params_int_opt(p, "abortId", 0, INT64_MAX, -1);
	call->abort.fn = on_abort;
	call->abort.arg = call;
	if (call->conn)
		rpc_abort_add(call->conn, &call->abort);
}

void rpc_dispatch(struct rpc_conn *c, const char *method, struct json_object *id, struct json_object *params)
{
	rpc_method_fn *fn = rpc_method_find(method);
	struct rpc_call *call = rpc_call_new(c, id);

	if (!call) {
		rpc_conn_close(c, WS_INTERNAL, "out of memory");
		return;
	}
	if (fn)
		fn(c, call, params);
	else if (!rpc_fs_dispatch(c, method, call, params))
		rpc_call_fault(call, -32601, "Method not found");
}
