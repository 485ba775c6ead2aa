/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/engines/qemu/qmp.h"

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/fd.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>

struct qmp {
	int fd;
	struct source *source;
	struct buf in;
	size_t scanned; /* bytes of `in` known to hold no end of line */
	bool greeted, *freed;
	uint64_t sent, answered; /* commands; the difference is what is pending */
	qmp_reply_fn *pending[QMP_PENDING_MAX];
	qmp_reply_fn *ready;
	qmp_event_fn *event;
	qmp_closed_fn *closed;
	void *arg;
};

/* Text of QEMU's goes to logs and API errors: printable ASCII only. */
static void text_copy(char out[QMP_ERROR_MAX], struct json_object *from)
{
	const char *s = from && json_object_is_type(from, json_type_string) ? json_object_get_string(from) : "";
	size_t n = strnlen(s, QMP_ERROR_MAX - 1);

	for (size_t i = 0; i < n; i++)
		out[i] = s[i] >= 0x20 && s[i] < 0x7f ? s[i] : '?';
	out[n] = '\0';
}

static struct json_object *field(struct json_object *o, const char *name)
{
	struct json_object *v = NULL;

	return json_object_is_type(o, json_type_object) && json_object_object_get_ex(o, name, &v) ? v : NULL;
}

static enum rc message_classify(struct qmp_message *m, struct fault *ret_f)
{
	struct json_object *o = m->root, *id = field(o, "id"), *error = field(o, "error"), *event = field(o, "event");

	if (field(o, "QMP")) {
		m->kind = QMP_GREETING;
		m->body = field(o, "QMP");
		return RC_OK;
	}
	if (event) {
		m->kind = QMP_EVENT;
		m->body = field(o, "data");
		text_copy(m->text, event);
		return RC_OK;
	}
	if (!id || !json_object_is_type(id, json_type_int) || json_object_get_int64(id) < 0)
		return fault_set(ret_f, RC_PROTO, 0, "QEMU sent an answer without a number");
	m->id = (uint64_t)json_object_get_int64(id);
	if (error) {
		m->kind = QMP_ERROR;
		text_copy(m->text, field(error, "desc"));
		return RC_OK;
	}
	if (!json_object_object_get_ex(o, "return", &m->body))
		return fault_set(ret_f, RC_PROTO, 0, "QEMU sent an answer without a value");
	m->kind = QMP_RETURN;
	return RC_OK;
}

enum rc qmp_parse(const char *line, size_t n, struct qmp_message *ret, struct fault *ret_f)
{
	struct json_tokener *t;
	enum rc rc;

	memset(ret, 0, sizeof(*ret));
	if (n > QMP_LINE_MAX)
		return fault_set(ret_f, RC_LIMIT, 0, "QEMU sent a message longer than %d bytes", QMP_LINE_MAX);
	t = json_tokener_new_ex(QMP_DEPTH_MAX);
	if (!t)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	json_tokener_set_flags(t, JSON_TOKENER_STRICT | JSON_TOKENER_ALLOW_TRAILING_CHARS);
	ret->root = json_tokener_parse_ex(t, line, (int)n);
	rc = json_tokener_get_error(t) == json_tokener_success ? RC_OK : RC_PROTO;
	/* Only QEMU's "\r" may follow. */
	for (size_t i = json_tokener_get_parse_end(t); !rc && i < n; i++)
		if (line[i] != '\r' && line[i] != ' ')
			rc = RC_PROTO;
	json_tokener_free(t);
	if (rc || !json_object_is_type(ret->root, json_type_object))
		rc = fault_set(ret_f, RC_PROTO, 0, "QEMU sent something that is no message");
	if (!rc)
		rc = message_classify(ret, ret_f);
	if (rc)
		qmp_message_free(ret);
	return rc;
}

void qmp_message_free(struct qmp_message *m)
{
	json_object_put(m->root);
	memset(m, 0, sizeof(*m));
}

static enum rc message_answer(struct qmp *q, const struct qmp_message *m, struct fault *ret_f)
{
	qmp_reply_fn *fn;
	struct fault f;

	if (q->answered == q->sent || m->id != q->answered)
		return fault_set(ret_f, RC_PROTO, 0, "QEMU answered a command that was not asked");
	fn = q->pending[q->answered++ % QMP_PENDING_MAX];
	if (!fn)
		return RC_OK;
	if (m->kind == QMP_ERROR)
		fault_set(&f, RC_STATE, 0, "QEMU: %s", m->text);
	fn(q->arg, m->body, m->kind == QMP_ERROR ? &f : NULL);
	return RC_OK;
}

void qmp_forget(struct qmp *q)
{
	for (uint64_t i = q->answered; i < q->sent; i++)
		q->pending[i % QMP_PENDING_MAX] = NULL;
}

static enum rc message_handle(struct qmp *q, const struct qmp_message *m, struct fault *ret_f)
{
	switch (m->kind) {
	case QMP_GREETING:
		if (q->greeted)
			return fault_set(ret_f, RC_PROTO, 0, "QEMU greeted twice");
		q->greeted = true;
		q->ready(q->arg, m->body, NULL);
		return RC_OK;
	case QMP_EVENT: q->event(q->arg, m->text, m->body); return RC_OK;
	default: return message_answer(q, m, ret_f);
	}
}

/* Any callback may free the client. */
static void input_handle(struct qmp *q, bool *freed, struct fault *f)
{
	while (!*freed) {
		char *start = (char *)buf_data(&q->in);
		char *end = buf_len(&q->in) > q->scanned
				    ? memchr(start + q->scanned, '\n', buf_len(&q->in) - q->scanned)
				    : NULL;
		struct qmp_message m;
		enum rc rc;

		if (!end) {
			q->scanned = buf_len(&q->in);
			return;
		}
		rc = qmp_parse(start, (size_t)(end - start), &m, f);
		buf_consume(&q->in, (size_t)(end - start) + 1);
		q->scanned = 0;
		if (rc)
			return;
		(void)message_handle(q, &m, f);
		qmp_message_free(&m);
		if (f->rc)
			return;
	}
}

static void on_readable(void *arg, uint32_t events)
{
	struct qmp *q = arg;
	struct fault f = { 0 };
	bool freed = false;
	size_t n = 1;
	enum rc rc;

	(void)events;
	q->freed = &freed;
	rc = buf_read(&q->in, q->fd, 16384, &n, &f);
	if (rc == RC_AGAIN) {
		q->freed = NULL;
		return;
	}
	if (!rc && !n)
		fault_set(&f, RC_CLOSED, 0, "QEMU closed its control socket");
	else if (!rc)
		input_handle(q, &freed, &f);
	if (freed)
		return;
	q->freed = NULL;
	if (f.rc) {
		source_drop(&q->source);
		q->closed(q->arg, &f);
	}
}

enum rc qmp_new(struct loop *loop, int fd, qmp_reply_fn *ready, qmp_event_fn *event, qmp_closed_fn *closed, void *arg,
		struct qmp **ret, struct fault *ret_f)
{
	struct qmp *q = calloc(1, sizeof(*q));
	enum rc rc;

	if (!q) {
		close(fd);
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	}
	*q = (struct qmp){ .fd = fd, .in = BUF_INIT(QMP_LINE_MAX), .ready = ready, .event = event, .closed = closed, .arg = arg };
	rc = fd_nonblock(fd, ret_f);
	if (!rc)
		rc = loop_fd(loop, fd, EPOLLIN, on_readable, q, &q->source, ret_f);
	if (!rc)
		rc = qmp_send(q, "qmp_capabilities", NULL, -1, NULL, ret_f);
	if (rc) {
		qmp_free(q);
		return rc;
	}
	*ret = q;
	return RC_OK;
}

void qmp_free(struct qmp *q)
{
	if (!q)
		return;
	if (q->freed)
		*q->freed = true;
	source_drop(&q->source);
	close_fd(&q->fd);
	buf_free(&q->in);
	free(q);
}

enum rc qmp_send(struct qmp *q, const char *command, const char *args, int pass_fd, qmp_reply_fn *fn,
		 struct fault *ret_f)
{
	char line[QMP_COMMAND_MAX];
	enum rc rc;
	int n;

	if (q->sent - q->answered >= QMP_PENDING_MAX)
		return fault_set(ret_f, RC_AGAIN, 0, "%d commands without an answer", QMP_PENDING_MAX);
	n = snprintf(line, sizeof(line), "{\"execute\":\"%s\",\"id\":%" PRIu64 "%s%s}\n", command, q->sent,
		     args ? ",\"arguments\":" : "", args ? args : "");
	if (n < 0 || (size_t)n >= sizeof(line))
		return fault_set(ret_f, RC_LIMIT, 0, "command '%s' is too long", command);
	/* A socket that takes not even this has a peer that doesn't read: the same as one that is gone. */
	rc = packet_send(q->fd, line, (size_t)n, &pass_fd, pass_fd >= 0 ? 1 : 0, ret_f);
	if (rc)
		return fault_wrap(ret_f, "send '%s' to QEMU", command);
	q->pending[q->sent++ % QMP_PENDING_MAX] = fn;
	return RC_OK;
}
