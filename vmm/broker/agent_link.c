/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/broker/agent_link.h"

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/fd.h"
#include "schema/agent.h"
#include "vmm/broker/limits.h"

#include <ctype.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

enum step { STEP_CONNECT, STEP_WRITE, STEP_READ };

struct agent_call {
	struct loop *loop;
	const struct net *net;
	enum agent_mode mode;
	enum step step;
	uint64_t deadline_ms;
	struct buf out, in;
	int fd;
	struct source *io, *timer;
	agent_done_fn *done;
	void *arg;
	struct fault last; /* why the last attempt failed */
};

static void call_disconnect(struct agent_call *c)
{
	source_drop(&c->io);
	close_fd(&c->fd);
}

void agent_cancel(struct agent_call *c)
{
	if (!c)
		return;
	call_disconnect(c);
	source_drop(&c->timer);
	buf_free(&c->out);
	buf_free(&c->in);
	free(c);
}

/* The call is gone before the callback runs, so the callback may do what it likes. */
static void call_done(struct agent_call *c, enum rc rc, int fd, struct json_object *answer, const struct fault *f)
{
	agent_done_fn *done = c->done;
	void *arg = c->arg;

	agent_cancel(c);
	done(arg, rc, fd, answer, f);
	json_object_put(answer);
}

static void call_fail(struct agent_call *c, const struct fault *f)
{
	struct fault copy = *f;

	call_done(c, copy.rc, -1, NULL, &copy);
}

/* Of what a guest calls its error only a short upper-case word is repeated. */
static void error_code(struct json_object *root, char out[24])
{
	struct json_object *error, *code;
	const char *text = "";
	size_t n = 0;

	if (json_object_object_get_ex(root, "error", &error) && json_object_is_type(error, json_type_object) &&
	    json_object_object_get_ex(error, "code", &code) && json_object_is_type(code, json_type_string))
		text = json_object_get_string(code);
	while (n < 23 && isupper((unsigned char)text[n])) {
		out[n] = text[n];
		n++;
	}
	out[n] = '\0';
}

enum rc agent_parse(const char *line, size_t n, struct json_object **ret, struct fault *ret_f)
{
	struct json_tokener *tok = json_tokener_new_ex(AGENT_JSON_DEPTH);
	struct json_object *root, *ok;
	enum rc rc = RC_OK;

	if (!tok)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	json_tokener_set_flags(tok, JSON_TOKENER_STRICT);
	/* With the terminator, so that a bare number or a cut-off text is seen as such. */
	root = memchr(line, 0, n) ? NULL : json_tokener_parse_ex(tok, line, (int)n + 1);
	if (!root || json_tokener_get_error(tok) != json_tokener_success ||
	    !json_object_is_type(root, json_type_object)) {
		rc = fault_set(ret_f, RC_GUEST, 0, "agent answered something that is not a JSON object");
	} else if (!json_object_object_get_ex(root, "ok", &ok) || !json_object_is_type(ok, json_type_boolean) ||
		   !json_object_get_boolean(ok)) {
		char code[24];

		error_code(root, code);
		rc = fault_set(ret_f, RC_GUEST, 0, "agent refused%s%s", *code ? ": " : "", code);
	}
	json_tokener_free(tok);
	if (rc) {
		json_object_put(root);
		return rc;
	}
	*ret = root;
	return RC_OK;
}

static void call_try(struct agent_call *c);

static void call_retry(struct agent_call *c)
{
	call_disconnect(c);
	loop_timer_set(c->timer, MIN_OF(now_ms() + DIAL_RETRY_MS, c->deadline_ms));
}

static void call_timer(void *arg)
{
	struct agent_call *c = arg;
	uint64_t now = now_ms();

	if (now >= c->deadline_ms) {
		struct fault f;

		fault_set(&f, RC_TIMEOUT, c->last.sys, "agent did not %s in time%s%s",
			  c->step == STEP_READ ? "answer" : "accept a connection", c->last.rc ? ": " : "",
			  c->last.rc ? c->last.text : "");
		call_fail(c, &f);
		return;
	}
	call_disconnect(c);
	call_try(c);
}

static void call_read(struct agent_call *c)
{
	struct json_object *answer = NULL;
	struct fault f;
	char *end;
	size_t n;
	enum rc rc = buf_read(&c->in, c->fd, MIN_OF(buf_room(&c->in), (size_t)16384), &n, &f);

	if (rc == RC_AGAIN)
		return;
	if (!rc && !n)
		rc = fault_set(&f, RC_GUEST, 0, "agent closed the connection without an answer");
	if (rc) {
		call_fail(c, &f);
		return;
	}
	end = memchr(buf_data(&c->in), '\n', buf_len(&c->in));
	if (!end) {
		if (!buf_room(&c->in)) {
			fault_set(&f, RC_GUEST, 0, "agent's answer is too long");
			call_fail(c, &f);
		}
		return;
	}
	*end = '\0';
	rc = agent_parse((char *)buf_data(&c->in), (size_t)(end - (char *)buf_data(&c->in)), &answer, &f);
	call_done(c, rc, -1, answer, rc ? &f : NULL);
}

static void call_write(struct agent_call *c)
{
	struct fault f;

	while (buf_len(&c->out)) {
		enum rc rc = buf_write(&c->out, c->fd, &f);

		if (rc == RC_AGAIN)
			return;
		if (rc) {
			call_fail(c, &f);
			return;
		}
	}
	if (c->mode != AGENT_ASK) {
		source_drop(&c->io);
		call_done(c, RC_OK, take_fd(&c->fd), NULL, NULL);
		return;
	}
	c->step = STEP_READ;
	if (loop_fd_events(c->io, EPOLLIN, &f))
		call_fail(c, &f);
}

static void call_io(void *arg, uint32_t events)
{
	struct agent_call *c = arg;

	(void)events;
	if (c->step == STEP_CONNECT) {
		int err = 0;
		socklen_t n = sizeof(err);

		if (getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &err, &n) < 0)
			err = errno;
		if (err) {
			fault_set(&c->last, RC_CLOSED, err, "connect");
			call_retry(c);
			return;
		}
		c->step = STEP_WRITE;
		/* From here an attempt is not repeated: the agent may have acted on it. */
		loop_timer_set(c->timer, c->deadline_ms);
	}
	if (c->step == STEP_WRITE)
		call_write(c);
	else
		call_read(c);
}

static void call_try(struct agent_call *c)
{
	enum rc rc;

	c->step = STEP_CONNECT;
	rc = net_dial(c->net, &c->fd, &c->last);
	if (!rc)
		rc = loop_fd(c->loop, c->fd, EPOLLOUT, call_io, c, &c->io, &c->last);
	if (rc)
		call_retry(c);
	else
		loop_timer_set(c->timer, MIN_OF(now_ms() + DIAL_ATTEMPT_MS, c->deadline_ms));
}

enum rc agent_call(struct loop *loop, const struct net *net, enum agent_mode mode, const char *line,
		   uint64_t deadline_ms, agent_done_fn *done, void *arg, struct agent_call **ret,
		   struct fault *ret_f)
{
	struct agent_call *c = calloc(1, sizeof(*c));
	enum rc rc;

	if (!c)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	*c = (struct agent_call){ .loop = loop, .net = net, .mode = mode, .deadline_ms = deadline_ms, .fd = -1,
				  .out = BUF_INIT(AGENT_LINE_MAX + 1), .in = BUF_INIT(AGENT_LINE_MAX),
				  .done = done, .arg = arg };
	rc = loop_timer(loop, UINT64_MAX, call_timer, c, &c->timer, ret_f);
	if (!rc && line && strlen(line) >= AGENT_LINE_MAX)
		rc = fault_set(ret_f, RC_INVALID, 0, "line for the agent is longer than %d bytes", AGENT_LINE_MAX);
	if (!rc && line && (buf_puts(&c->out, line) || buf_puts(&c->out, "\n")))
		rc = fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	if (rc) {
		agent_cancel(c);
		return rc;
	}
	call_try(c);
	*ret = c;
	return RC_OK;
}
