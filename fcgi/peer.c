/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/peer.h"

#include "base/cleanup.h"
#include "base/config.h"
#include "base/fd.h"
#include "fcgi/ids.h"
#include "fcgi/limits.h"
#include "schema/agent.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum rc peer_init(struct peer *p, const char *run_dir, const char *name, struct fault *ret_f)
{
	p->fd = -1;
	return path_join(p->path, sizeof(p->path), run_dir, name, ret_f);
}

void peer_close(struct peer *p)
{
	close_fd(&p->fd);
}

/* Anything readable before a question was asked is an end, or an answer that came too late to be matched. */
static bool stale(int fd)
{
	struct pollfd pfd = { .fd = fd, .events = POLLIN };

	return poll(&pfd, 1, 0) != 0;
}

enum rc peer_ask(struct peer *p, struct message_call *call, uint64_t timeout_ms, struct fault *ret_f)
{
	enum rc rc;

	if (p->fd >= 0 && stale(p->fd))
		peer_close(p);
	if (p->fd < 0) {
		rc = unix_connect(p->path, SOCK_SEQPACKET, &p->fd, ret_f);
		if (rc) {
			p->fd = -1;
			return fault_set(ret_f, RC_CLOSED, rc == RC_SYS ? errno : 0, "nobody listens at %s", p->path);
		}
	}
	rc = message_call(p->fd, call, now_ms() + timeout_ms, ret_f);
	if (rc == RC_PROTO || rc == RC_TIMEOUT || rc == RC_CLOSED || rc == RC_SYS)
		peer_close(p);
	return rc;
}

void guest_text(char *out, size_t size, const char *text)
{
	size_t n = 0;

	for (; *text && n + 1 < size; text++)
		out[n++] = (unsigned char)*text < 0x20 || *text == 0x7f ? ' ' : *text;
	out[n] = '\0';
}

enum rc agent_answer_parse(const char *line, size_t n, struct json_object **ret, struct fault *ret_f)
{
	_cleanup_json_ struct json_object *o = NULL;
	const char *code = "error", *message = "no reason given";
	struct json_object *e;
	char text[120];
	bool ok = false;
	enum rc rc = json_parse_object(line, n, JSON_DEPTH_CONFIG, &o, ret_f);

	if (rc == RC_NOMEM)
		return rc;
	if (rc || json_get_bool(o, "ok", &ok, ret_f))
		return fault_set(ret_f, RC_PROTO, 0, "agent answered something else");
	if (ok) {
		if (ret)
			*ret = take_ptr(o);
		return RC_OK;
	}
	e = json_get(o, "error");
	if (!json_object_is_type(e, json_type_object) || json_get_str(e, "code", 40, &code, NULL) ||
	    json_get_str(e, "message", sizeof(text) - 1, &message, NULL))
		return fault_set(ret_f, RC_PROTO, 0, "agent answered something else");
	guest_text(text, sizeof(text), message);
	return fault_set(ret_f, RC_GUEST, 0, "%s: %s", shown(code), text);
}

/* RC_CLOSED is a daemon's. */
static enum rc closed_is_broken(enum rc rc, struct fault *ret_f)
{
	return rc == RC_CLOSED ? fault_set(ret_f, RC_PROTO, 0, "agent closed the connection") : rc;
}

enum rc agent_answer(int fd, uint64_t deadline_ms, struct json_object **ret, struct fault *ret_f)
{
	_cleanup_free_ char *line = malloc(AGENT_LINE_MAX);
	enum rc rc;

	if (!line)
		return fault_set(ret_f, RC_NOMEM, 0, "agent answer");
	rc = closed_is_broken(fd_read_line(fd, line, AGENT_LINE_MAX, deadline_ms, ret_f), ret_f);
	return rc ? rc : agent_answer_parse(line, strlen(line), ret, ret_f);
}

enum rc agent_ask(int fd, const char *line, struct json_object **ret, struct fault *ret_f)
{
	uint64_t deadline_ms = now_ms() + AGENT_ANSWER_MS;
	enum rc rc = closed_is_broken(fd_write_all(fd, line, strlen(line), deadline_ms, ret_f), ret_f);

	return rc ? rc : agent_answer(fd, deadline_ms, ret, ret_f);
}
