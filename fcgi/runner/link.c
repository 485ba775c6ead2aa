/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/runner/link.h"

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/fd.h"
#include "fcgi/runner/limits.h"
#include "schema/agent.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#define FRAME_HEAD 5u
enum { FRAME_STDOUT = 1, FRAME_STDERR = 2, FRAME_EXIT = 3 };

enum rc link_init(struct link *l, const struct config *c, struct fault *ret_f)
{
	enum rc rc = peer_init(&l->broker, c->run_dir, "broker.sock", ret_f), other = peer_init(&l->gateway, c->run_dir, "gateway.sock", ret_f);

	return rc ? rc : other;
}

void link_close(struct link *l)
{
	peer_close(&l->broker);
	peer_close(&l->gateway);
}

static enum rc call(struct link *l, struct message_call *c, struct fault *ret_f)
{
	return peer_ask(&l->broker, c, RUNNER_CALL_MS, ret_f);
}

/* struct message_call is too large for the stack of a deep call. */
static struct message_call shared;

static struct message_call *prepare(uint16_t op, message_put_fn *put, const void *request, message_get_fn *get,
				    void *reply)
{
	shared.op = op;
	shared.put = put;
	shared.request = request;
	shared.n_send_fds = 0;
	shared.get = get;
	shared.reply = reply;
	shared.n_fds = 0;
	return &shared;
}

enum rc link_vm_create(struct link *l, const struct broker_vm_create *req, struct fault *ret_f)
{
	struct broker_vm_created reply;
	enum rc rc = call(l, prepare(BROKER_VM_CREATE, (message_put_fn *)broker_vm_create_put, req,
				     (message_get_fn *)broker_vm_created_get, &reply), ret_f);

	if (!rc)
		fds_close(shared.fds, shared.n_fds);
	l->memory_mib = req->memory_mib;
	return rc;
}

enum rc link_vm_kill(struct link *l, const char *id, const char *reason, struct fault *ret_f)
{
	struct broker_vm_kill m = { .id = "" };
	enum rc rc;

	snprintf(m.id, sizeof(m.id), "%s", id);
	snprintf(m.reason, sizeof(m.reason), "%s", reason);
	rc = call(l, prepare(BROKER_VM_KILL, (message_put_fn *)broker_vm_kill_put, &m, NULL, NULL), ret_f);
	return rc == RC_ABSENT ? RC_OK : rc;
}

enum rc link_vm_stat(struct link *l, const char *id, struct broker_vm_stat *ret, struct fault *ret_f)
{
	struct broker_vm_id m = { .id = "" };

	snprintf(m.id, sizeof(m.id), "%s", id);
	return call(l, prepare(BROKER_VM_STAT, (message_put_fn *)broker_vm_id_put, &m,
			       (message_get_fn *)broker_vm_stat_get, ret), ret_f);
}

enum rc link_expose(struct link *l, const char *host, const char *id, const char *org, const char *line, struct fault *ret_f)
{
	struct broker_expose m = { .keep = 1 };

	snprintf(m.host, sizeof(m.host), "%s", host);
	snprintf(m.id, sizeof(m.id), "%s", id);
	snprintf(m.org, sizeof(m.org), "%s", org);
	snprintf(m.line, sizeof(m.line), "%s", line);
	return call(l, prepare(BROKER_EXPOSE_ADD, (message_put_fn *)broker_expose_put, &m, NULL, NULL), ret_f);
}

enum rc link_unexpose(struct link *l, const char *host, struct fault *ret_f)
{
	struct broker_host m = { .host = "" };
	enum rc rc;

	snprintf(m.host, sizeof(m.host), "%s", host);
	rc = call(l, prepare(BROKER_EXPOSE_DELETE, (message_put_fn *)broker_host_put, &m, NULL, NULL), ret_f);
	return rc == RC_ABSENT ? RC_OK : rc;
}

enum rc link_volume_delete(struct link *l, const char *name, struct fault *ret_f)
{
	struct broker_volume_name m = { .name = "" };
	enum rc rc;

	snprintf(m.name, sizeof(m.name), "%s", name);
	rc = call(l, prepare(BROKER_VOLUME_DELETE, (message_put_fn *)broker_volume_name_put, &m, NULL, NULL), ret_f);
	return rc == RC_ABSENT ? RC_OK : rc;
}

enum rc link_host_stat(struct link *l, const char *host, struct gateway_host_stat *ret, struct fault *ret_f)
{
	struct gateway_host m = { .host = "" };
	enum rc rc;

	snprintf(m.host, sizeof(m.host), "%s", host);
	prepare(GATEWAY_HOST_STAT, (message_put_fn *)gateway_host_put, &m, (message_get_fn *)gateway_host_stat_get, ret);
	rc = peer_ask(&l->gateway, &shared, RUNNER_GATEWAY_MS, ret_f);
	/* It was restarted since: once more on a fresh connection. */
	if (rc == RC_CLOSED || rc == RC_PROTO)
		rc = peer_ask(&l->gateway, &shared, RUNNER_GATEWAY_MS, ret_f);
	return rc;
}

enum rc link_hosts(struct link *l, link_host_fn *fn, void *arg, struct fault *ret_f)
{
	struct broker_cursor cursor = { .after = "" };

	for (;;) {
		struct broker_expose_list list;
		struct broker_exposed row;
		struct wire w;
		enum rc rc = call(l, prepare(BROKER_EXPOSE_LIST, (message_put_fn *)broker_cursor_put, &cursor,
					     (message_get_fn *)broker_expose_list_get, &list), ret_f);

		if (rc)
			return rc;
		wire_init(&w, (void *)(uintptr_t)list.rows, list.rows_n);
		for (uint32_t i = 0; i < list.n; i++) {
			broker_exposed_get(&w, &row);
			if (!wire_ok(&w))
				return fault_set(ret_f, RC_PROTO, 0, "malformed list of exposures");
			fn(arg, row.host);
			memcpy(cursor.after, row.host, sizeof(row.host));
		}
		if (list.n < BROKER_LIST_MAX)
			return RC_OK;
	}
}

enum rc link_capture(struct link *l, const char *id, const char *name, struct broker_vm_captured *ret,
		     struct fault *ret_f)
{
	struct broker_vm_capture m = { .id = "" };

	snprintf(m.id, sizeof(m.id), "%s", id);
	snprintf(m.name, sizeof(m.name), "%s", name);
	return call(l, prepare(BROKER_VM_CAPTURE, (message_put_fn *)broker_vm_capture_put, &m,
			       (message_get_fn *)broker_vm_captured_get, ret), ret_f);
}

enum rc link_capture_delete(struct link *l, const char *name, struct fault *ret_f)
{
	struct broker_capture_name m = { .name = "" };
	enum rc rc;

	snprintf(m.name, sizeof(m.name), "%s", name);
	rc = call(l, prepare(BROKER_CAPTURE_DELETE, (message_put_fn *)broker_capture_name_put, &m, NULL, NULL), ret_f);
	return rc == RC_ABSENT ? RC_OK : rc;
}

enum rc link_captures(struct link *l, link_capture_fn *fn, void *arg, struct fault *ret_f)
{
	struct broker_cursor cursor = { .after = "" };

	for (;;) {
		struct broker_capture_list list;
		struct broker_capture_row row;
		struct wire w;
		enum rc rc = call(l, prepare(BROKER_CAPTURE_LIST, (message_put_fn *)broker_cursor_put, &cursor,
					     (message_get_fn *)broker_capture_list_get, &list), ret_f);

		if (rc)
			return rc;
		wire_init(&w, (void *)(uintptr_t)list.rows, list.rows_n);
		for (uint32_t i = 0; i < list.n; i++) {
			broker_capture_row_get(&w, &row);
			if (!wire_ok(&w))
				return fault_set(ret_f, RC_PROTO, 0, "malformed list of captures");
			fn(arg, &row);
			snprintf(cursor.after, sizeof(cursor.after), "%s", row.name);
		}
		if (list.n < BROKER_LIST_MAX)
			return RC_OK;
	}
}

enum rc link_vms(struct link *l, link_vm_fn *fn, void *arg, struct fault *ret_f)
{
	struct broker_cursor cursor = { .after = "" };

	for (;;) {
		struct broker_vm_list list;
		struct broker_vm_stat vm;
		struct wire w;
		enum rc rc = call(l, prepare(BROKER_VM_LIST, (message_put_fn *)broker_cursor_put, &cursor,
					     (message_get_fn *)broker_vm_list_get, &list), ret_f);

		if (rc)
			return rc;
		wire_init(&w, (void *)(uintptr_t)list.rows, list.rows_n);
		for (uint32_t i = 0; i < list.n; i++) {
			broker_vm_stat_get(&w, &vm);
			if (!wire_ok(&w))
				return fault_set(ret_f, RC_PROTO, 0, "malformed list of machines");
			fn(arg, &vm);
			memcpy(cursor.after, vm.id, sizeof(vm.id));
		}
		if (list.n < BROKER_LIST_MAX)
			return RC_OK;
	}
}

/* --- the agent ----------------------------------------------------------------------------------------------------- */

struct json_object *json_strings(const char *const *items)
{
	struct json_object *a = json_object_new_array();

	for (; a && *items; items++)
		json_object_array_add(a, json_object_new_string(*items));
	return a;
}

enum rc link_service(struct link *l, const char *id, struct json_object *request, int *ret_fd,
		     struct json_object **ret_answer, struct fault *ret_f)
{
	struct broker_vm_dial m = { .want_lease = 0 };
	struct broker_vm_dialed dialed;
	struct json_object *answer = NULL;
	_cleanup_fd_ int fd = -1;
	_cleanup_free_ char *line = NULL;
	const char *text = json_object_to_json_string_ext(request, JSON_C_TO_STRING_PLAIN);
	enum rc rc;

	snprintf(m.id, sizeof(m.id), "%s", id);
	if (!text || asprintf(&line, "%s\n", text) < 0)
		line = NULL;
	rc = line ? call(l, prepare(BROKER_VM_DIAL, (message_put_fn *)broker_vm_dial_put, &m,
				    (message_get_fn *)broker_vm_dialed_get, &dialed), ret_f) :
		    fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	if (!rc && shared.n_fds != 1) {
		fds_close(shared.fds, shared.n_fds);
		rc = fault_set(ret_f, RC_PROTO, 0, "the broker gave no connection");
	}
	if (!rc) {
		fd = shared.fds[0];
		rc = agent_ask(fd, line, &answer, ret_f);
	}
	json_object_put(request);
	if (rc)
		return rc;
	if (ret_answer)
		*ret_answer = answer;
	else
		json_object_put(answer);
	*ret_fd = take_fd(&fd);
	return RC_OK;
}

/* --- exec ---------------------------------------------------------------------------------------------------------- */

struct lines {
	struct buf buf;
	bool is_error;
	link_line_fn *fn;
	void *arg;
};

static void lines_put(struct lines *s, const uint8_t *data, size_t n, bool end)
{
	while (n || (end && buf_len(&s->buf))) {
		const uint8_t *nl = n ? memchr(data, '\n', n) : NULL;
		size_t room = buf_room(&s->buf) - 1, part = nl ? (size_t)(nl - data) : n;

		part = MIN_OF(part, room);
		if (buf_put(&s->buf, data, part))
			return;
		data += part;
		n -= part;
		if (!nl && n == 0 && !end && buf_room(&s->buf) > 1)
			return;
		if (n && data == nl) {
			data++;
			n--;
		}
		if (buf_put(&s->buf, "", 1))
			return;
		s->fn(s->arg, s->is_error, (const char *)buf_data(&s->buf));
		buf_consume(&s->buf, buf_len(&s->buf));
	}
}

static enum rc exit_status(const struct link *l, const uint8_t *data, size_t n, struct fault *ret_f)
{
	char text[256];
	struct json_object *o, *code = NULL, *signal = NULL, *oom = NULL;
	enum rc rc = RC_OK;

	snprintf(text, sizeof(text), "%.*s", (int)MIN_OF(n, sizeof(text) - 1), (const char *)data);
	o = json_tokener_parse(text);
	if (json_object_is_type(o, json_type_object)) {
		json_object_object_get_ex(o, "code", &code);
		json_object_object_get_ex(o, "signal", &signal);
		json_object_object_get_ex(o, "oom", &oom);
	}
	if (json_object_get_boolean(oom)) {
		rc = fault_set(ret_f, RC_GUEST, 0, "the command ran out of memory: the machine has %" PRIu32 " MiB", l->memory_mib);
	} else if (json_object_is_type(signal, json_type_string)) {
		char name[24];

		guest_text(name, sizeof(name), json_object_get_string(signal));
		rc = fault_set(ret_f, RC_GUEST, 0, "the command was ended by %s", name);
	} else if (!json_object_is_type(code, json_type_int)) {
		rc = fault_set(ret_f, RC_GUEST, 0, "the machine's agent answered nonsense");
	} else if (json_object_get_int(code)) {
		rc = fault_set(ret_f, RC_GUEST, 0, "the command ended with exit code %d", json_object_get_int(code));
	}
	json_object_put(o);
	return rc;
}

static enum rc read_frame(int fd, uint8_t *mem, uint8_t *ret_kind, uint32_t *ret_n, uint64_t deadline_ms,
			  struct fault *ret_f)
{
	uint8_t head[FRAME_HEAD];
	enum rc rc = fd_read_exact(fd, head, sizeof(head), deadline_ms, ret_f);
	uint32_t n;

	if (rc)
		return rc;
	n = (uint32_t)head[1] | (uint32_t)head[2] << 8 | (uint32_t)head[3] << 16 | (uint32_t)head[4] << 24;
	if (n > AGENT_FRAME_MAX)
		return fault_set(ret_f, RC_GUEST, 0, "the machine's agent sent too long a frame");
	*ret_kind = head[0];
	*ret_n = n;
	return fd_read_exact(fd, mem, n, deadline_ms, ret_f);
}

enum rc link_exec(struct link *l, const char *id, struct json_object *request, uint64_t deadline_ms, link_line_fn *line,
		  link_stop_fn *stop, void *arg, struct fault *ret_f)
{
	_cleanup_free_ uint8_t *mem = malloc(AGENT_FRAME_MAX);
	struct lines out = { .buf = BUF_INIT(RUNNER_LINE_MAX), .fn = line, .arg = arg };
	struct lines err = { .buf = BUF_INIT(RUNNER_LINE_MAX), .fn = line, .arg = arg, .is_error = true };
	static const uint8_t no_input[FRAME_HEAD];
	_cleanup_fd_ int fd = -1;
	uint8_t kind = 0;
	uint32_t n = 0;
	enum rc rc = mem ? link_service(l, id, request, &fd, NULL, ret_f) : fault_set(ret_f, RC_NOMEM, 0, "out of memory");

	if (!rc)
		rc = fd_write_all(fd, no_input, sizeof(no_input), deadline_ms, ret_f);
	if (rc == RC_CLOSED && fd >= 0) /* a short command has ended; what it said is still to be read */
		rc = RC_OK;
	while (!rc) {
		rc = fd_wait(fd, POLLIN, now_ms() + 500, ret_f);
		if (stop && stop(arg))
			rc = fault_set(ret_f, RC_STATE, 0, "cancelled");
		else if ((!rc || rc == RC_TIMEOUT) && now_ms() >= deadline_ms)
			/* Also for one that never stops printing: there is always something to read then. */
			rc = fault_set(ret_f, RC_TIMEOUT, 0, "the command did not end in time");
		else if (rc == RC_TIMEOUT)
			rc = RC_OK;
		else if (!rc)
			rc = read_frame(fd, mem, &kind, &n, deadline_ms, ret_f);
		else
			continue;
		if (rc || !n)
			continue;
		if (kind == FRAME_STDOUT || kind == FRAME_STDERR)
			lines_put(kind == FRAME_STDOUT ? &out : &err, mem, n, false);
		else if (kind == FRAME_EXIT)
			break;
		n = 0;
	}
	lines_put(&out, NULL, 0, true);
	lines_put(&err, NULL, 0, true);
	buf_free(&out.buf);
	buf_free(&err.buf);
	return rc ? rc : exit_status(l, mem, n, ret_f);
}
