/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Units: named processes that outlive connections. Theory: a unit's output is cut into lines, each with a number and a
 * time, kept in a ring of AGENT_UNIT_RING bytes; a follower is a cursor into it. A follower that is too slow misses what
 * the ring forgot (its numbers jump), it never holds the unit up. A stopped or finished unit stays with its ring until
 * another of that name is started; it is gone with the machine. With "restart" a program that ends is started
 * again after a pause that doubles from 1 s to a minute and starts over after it ran for that long; a line of the kind "event"
 * in its output says so.
 */
#include "guest/agent.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "guest/agent_limits.h"
#include "schema/agent.h"

#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/wait.h>

enum row_kind { ROW_OUT, ROW_ERR, ROW_EVENT };

struct row {
	struct row *next;
	uint64_t seq, time_ms;
	enum row_kind kind;
	size_t n;
	char text[];
};

struct lines {
	struct unit *u;
	int fd;
	struct source *source;
	bool err;
	struct buf partial;
};

struct unit {
	struct unit *next;
	char name[AGENT_NAME_MAX + 1];
	struct agent_spec spec;
	struct json_object *root; /* spec's strings */
	bool restart, stopping;
	struct child *child;
	pid_t pid;
	int status, error_fd;
	bool has_status;
	uint64_t starts, started_ms, backoff_ms;
	struct source *timer, *error;
	struct lines out, err;
	struct row *first, **last;
	struct row *fresh; /* first row that followers were not shown yet */
	size_t bytes;
	uint64_t seq;
	struct follower *followers;
	int waiting_fd;           /* of the "start" or "stop" that is answered later; -1 */
};

struct follower {
	struct attached attached;
	struct follower *next;
	struct unit *u;
	int fd;
	struct source *source;
	uint64_t after;
	struct buf out;
};

static struct unit *units;
static size_t n_units;

static enum rc unit_spawn(struct unit *u, struct fault *ret_f);

/* --- followers -------------------------------------------------------------------------------------------------- */
static void follower_free(struct follower *f)
{
	struct follower **at = &f->u->followers;

	while (*at != f)
		at = &(*at)->next;
	*at = f->next;
	agent_detach(&f->attached);
	source_drop(&f->source);
	buf_free(&f->out);
	close(f->fd);
	agent_connection_done();
	free(f);
}

static void follower_inherited(struct attached *a)
{
	follower_free((struct follower *)a);
}

/* Bytes that are not UTF-8 become U+FFFD: JSON has no other way. */
static struct json_object *json_text(const char *s, size_t n)
{
	struct buf b = BUF_INIT(4 * AGENT_UNIT_LINE_MAX);
	struct json_object *o;
	size_t i = 0;

	while (i < n) {
		unsigned char c = (unsigned char)s[i];
		size_t len = c < 0x80 ? 1 : c >= 0xc2 && c < 0xe0 ? 2 : c >= 0xe0 && c < 0xf0 ? 3 : c >= 0xf0 && c < 0xf5 ? 4 : 0;
		bool ok = len && i + len <= n;

		for (size_t k = 1; ok && k < len; k++)
			ok = ((unsigned char)s[i + k] & 0xc0) == 0x80;
		if (ok && ((c == 0xe0 && (unsigned char)s[i + 1] < 0xa0) || (c == 0xed && (unsigned char)s[i + 1] > 0x9f) ||
			   (c == 0xf0 && (unsigned char)s[i + 1] < 0x90) || (c == 0xf4 && (unsigned char)s[i + 1] > 0x8f)))
			ok = false;
		if (ok ? buf_put(&b, s + i, len) : buf_put(&b, "\xef\xbf\xbd", 3))
			break;
		i += ok ? len : 1;
	}
	o = buf_len(&b) ? json_object_new_string_len((const char *)buf_data(&b), (int)buf_len(&b)) : json_object_new_string("");
	buf_free(&b);
	return o;
}

static bool row_put(struct buf *b, const struct row *r)
{
	static const char *const names[] = { "stdout", "stderr", "event" };
	struct json_object *o = json_object_new_object();
	bool ok;

	json_object_object_add(o, "seq", json_object_new_uint64(r->seq));
	json_object_object_add(o, "time_ms", json_object_new_uint64(r->time_ms));
	json_object_object_add(o, "stream", json_object_new_string(names[r->kind]));
	json_object_object_add(o, "line", json_text(r->text, r->n));
	ok = !buf_printf(b, "%s\n", json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN));
	json_object_put(o);
	return ok;
}

/* Fills and writes as far as both sides allow. False: gone. */
static bool follower_pump(struct follower *f)
{
	for (;;) {
		const struct row *fresh = f->u->fresh, *r = fresh && f->after + 1 >= fresh->seq ? fresh : f->u->first;
		enum rc rc;

		if (f->after == f->u->seq)
			r = NULL;
		while (r && r->seq <= f->after)
			r = r->next;
		for (; r && buf_len(&f->out) < AGENT_OUT_MAX / 2; r = r->next) {
			if (!row_put(&f->out, r))
				return false;
			f->after = r->seq;
		}
		if (!buf_len(&f->out))
			break;
		rc = buf_write(&f->out, f->fd, NULL);
		if (rc == RC_AGAIN)
			break;
		if (rc)
			return false;
	}
	return !loop_fd_events(f->source, EPOLLRDHUP | (buf_len(&f->out) ? (uint32_t)EPOLLOUT : 0), NULL);
}

static void on_follower(void *arg, uint32_t events)
{
	struct follower *f = arg;

	if ((events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) || !follower_pump(f))
		follower_free(f);
}

static void followers_pump(struct unit *u)
{
	struct follower *next;

	for (struct follower *f = u->followers; f; f = next) {
		next = f->next;
		/* One that already waits for its peer is woken by epoll. */
		if (!buf_len(&f->out) && !follower_pump(f))
			follower_free(f);
	}
	u->fresh = NULL;
}

/* --- output ----------------------------------------------------------------------------------------------------- */
static void ring_add(struct unit *u, enum row_kind kind, const void *text, size_t n)
{
	struct row *r = malloc(sizeof(*r) + n);

	if (!r)
		return;
	*r = (struct row){ .seq = ++u->seq, .time_ms = wall_ms(), .kind = kind, .n = n };
	memcpy(r->text, text, n);
	if (!u->fresh)
		u->fresh = r;
	*u->last = r;
	u->last = &r->next;
	u->bytes += sizeof(*r) + n;
	while (u->bytes > AGENT_UNIT_RING && u->first != r) {
		struct row *old = u->first;

		u->first = old->next;
		if (u->fresh == old)
			u->fresh = old->next;
		u->bytes -= sizeof(*old) + old->n;
		free(old);
	}
}

static void lines_cut(struct lines *l, bool end)
{
	while (buf_len(&l->partial)) {
		const uint8_t *p = buf_data(&l->partial), *nl = memchr(p, '\n', buf_len(&l->partial));
		size_t n = nl ? (size_t)(nl - p) : buf_len(&l->partial);

		if (!nl && n < AGENT_UNIT_LINE_MAX && !end)
			return;
		if (n > AGENT_UNIT_LINE_MAX)
			n = AGENT_UNIT_LINE_MAX;
		ring_add(l->u, l->err ? ROW_ERR : ROW_OUT, p, n);
		buf_consume(&l->partial, n + (nl && n == (size_t)(nl - p) ? 1 : 0));
	}
}

static void lines_close(struct lines *l)
{
	lines_cut(l, true);
	source_drop(&l->source);
	close_fd(&l->fd);
	buf_free(&l->partial);
}

static void on_lines(void *arg, uint32_t events)
{
	struct lines *l = arg;
	size_t n = 0;
	enum rc rc = buf_read(&l->partial, l->fd, buf_room(&l->partial), &n, NULL);

	(void)events;
	if (rc == RC_AGAIN)
		return;
	if (rc || n == 0)
		lines_close(l);
	else
		lines_cut(l, false);
	followers_pump(l->u);
}

/* --- life ------------------------------------------------------------------------------------------------------- */
static void answer_waiting(struct unit *u, const struct fault *f)
{
	char line[64];

	if (u->waiting_fd < 0)
		return;
	snprintf(line, sizeof(line), "{\"ok\": true, \"pid\": %d}\n", (int)u->pid);
	if (f)
		agent_answer_fault(u->waiting_fd, f);
	else
		agent_answer(u->waiting_fd, line);
	close_fd(&u->waiting_fd);
	agent_connection_done();
}

static void on_unit_timer(void *arg)
{
	struct unit *u = arg;

	if (u->child) { /* stopping took too long */
		agent_child_kill(u->child, SIGKILL);
		return;
	}
	if (!u->stopping && unit_spawn(u, NULL))
		loop_timer_set(u->timer, loop_now_ms(agent.loop) + AGENT_UNIT_BACKOFF_MAX_MS);
}

/* After what it still had to say, so that its last words stand before the news of its end. */
static void note_end(struct unit *u)
{
	char how[64], text[160];

	if (WIFSIGNALED(u->status))
		snprintf(how, sizeof(how), "was ended by SIG%s", sigabbrev_np(WTERMSIG(u->status)) ?: "?");
	else
		snprintf(how, sizeof(how), "ended with exit code %d", WEXITSTATUS(u->status));
	for (struct lines *l = &u->out;; l = &u->err) {
		size_t n = 0;

		while (l->source && !buf_read(&l->partial, l->fd, buf_room(&l->partial), &n, NULL) && n)
			lines_cut(l, false);
		if (l == &u->err)
			break;
	}
	snprintf(text, sizeof(text), "(the program %s; it is started again in %llu s)", how,
		 (unsigned long long)u->backoff_ms / 1000);
	ring_add(u, ROW_EVENT, text, strlen(text));
	followers_pump(u);
}

static void on_unit_exited(void *arg, int status)
{
	struct unit *u = arg;
	uint64_t now = loop_now_ms(agent.loop);

	u->child = NULL;
	u->status = status;
	u->has_status = true;
	kill(-u->pid, SIGKILL); /* what it left behind in its group would hold its ports */
	if (u->stopping) {
		loop_timer_set(u->timer, UINT64_MAX);
		answer_waiting(u, NULL);
	} else if (u->restart) {
		if (now - u->started_ms >= AGENT_UNIT_BACKOFF_MAX_MS)
			u->backoff_ms = AGENT_UNIT_BACKOFF_MIN_MS;
		note_end(u);
		loop_timer_set(u->timer, now + u->backoff_ms);
		u->backoff_ms = MIN_OF(u->backoff_ms * 2, (uint64_t)AGENT_UNIT_BACKOFF_MAX_MS);
	}
}

static void on_unit_error(void *arg, uint32_t events)
{
	struct unit *u = arg;
	struct fault f = { 0 };
	enum rc rc = agent_spawn_result(u->error_fd, u->spec.argv[0], &f);

	(void)events;
	source_drop(&u->error);
	close_fd(&u->error_fd);
	if (rc) {
		ring_add(u, ROW_ERR, f.text, strlen(f.text));
		followers_pump(u);
	}
	if (rc && u->starts == 1) { /* it never ran: the asker is told, nothing is tried again */
		u->restart = false;
		loop_timer_set(u->timer, UINT64_MAX);
		agent_child_forget(u->child);
		u->child = NULL;
	}
	answer_waiting(u, rc ? &f : NULL);
}

static enum rc lines_open(struct lines *l, int *ret_theirs, struct fault *ret_f)
{
	int fds[2];

	if (l->source) /* of the last run; something it left behind still writes */
		lines_close(l);
	if (pipe2(fds, O_CLOEXEC) < 0)
		return fault_set(ret_f, RC_SYS, errno, "pipe");
	*ret_theirs = fds[1];
	l->fd = fds[0];
	if (fd_nonblock(l->fd, ret_f))
		return RC_SYS;
	return loop_fd(agent.loop, l->fd, EPOLLIN, on_lines, l, &l->source, ret_f);
}

static enum rc unit_spawn(struct unit *u, struct fault *ret_f)
{
	_cleanup_fd_ int in = open("/dev/null", O_RDONLY | O_CLOEXEC), out = -1, err = -1;
	struct spawn s = { .spec = &u->spec };
	enum rc rc = in < 0 ? fault_set(ret_f, RC_SYS, errno, "open /dev/null") : RC_OK;

	if (!rc)
		rc = lines_open(&u->out, &out, ret_f);
	if (!rc)
		rc = lines_open(&u->err, &err, ret_f);
	s.in = in;
	s.out = out;
	s.err = err;
	if (!rc)
		rc = agent_spawn(&s, on_unit_exited, u, &u->child, &u->error_fd, ret_f);
	if (rc)
		return rc;
	u->pid = agent_child_pid(u->child);
	u->starts++;
	u->started_ms = loop_now_ms(agent.loop);
	return loop_fd(agent.loop, u->error_fd, EPOLLIN, on_unit_error, u, &u->error, ret_f);
}

static void unit_free(struct unit *u)
{
	while (u->followers)
		follower_free(u->followers);
	answer_waiting(u, NULL);
	if (u->child)
		agent_child_kill(u->child, SIGKILL);
	agent_child_forget(u->child);
	source_drop(&u->timer);
	source_drop(&u->error);
	close_fd(&u->error_fd);
	lines_close(&u->out);
	lines_close(&u->err);
	while (u->first) {
		struct row *r = u->first;

		u->first = r->next;
		free(r);
	}
	agent_spec_free(&u->spec);
	json_object_put(u->root);
	free(u);
	n_units--;
}

static struct unit **unit_find(const char *name)
{
	struct unit **at = &units;

	while (*at && strcmp((*at)->name, name))
		at = &(*at)->next;
	return at;
}

static enum rc unit_new(const struct agent_request *req, const char *name, struct unit **ret, struct fault *ret_f)
{
	struct unit *u = calloc(1, sizeof(*u));
	enum rc rc;

	if (!u)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	n_units++;
	snprintf(u->name, sizeof(u->name), "%s", name);
	u->error_fd = u->waiting_fd = -1;
	u->last = &u->first;
	u->backoff_ms = AGENT_UNIT_BACKOFF_MIN_MS;
	u->out = (struct lines){ .u = u, .fd = -1, .partial = BUF_INIT(2 * AGENT_UNIT_LINE_MAX) };
	u->err = (struct lines){ .u = u, .fd = -1, .err = true, .partial = BUF_INIT(2 * AGENT_UNIT_LINE_MAX) };
	u->root = json_object_get(req->root);
	rc = agent_spec_parse(u->root, &u->spec, ret_f);
	u->spec.tty = false;
	if (!rc)
		rc = agent_get_bool(u->root, "restart", false, &u->restart, ret_f);
	if (!rc)
		rc = loop_timer(agent.loop, UINT64_MAX, on_unit_timer, u, &u->timer, ret_f);
	if (!rc)
		rc = unit_spawn(u, ret_f);
	if (rc)
		unit_free(u);
	else
		*ret = u;
	return rc;
}

/* --- operations: each answers or keeps fd ------------------------------------------------------------------------- */
static enum rc op_start(int *fd, const struct agent_request *req, const char *name, struct fault *ret_f)
{
	struct unit **at = unit_find(name), *old = *at, *u;
	enum rc rc;

	if (old && (old->child || (old->restart && !old->stopping)))
		return fault_set(ret_f, RC_EXISTS, 0, "a unit of this name runs");
	if (!old && n_units >= AGENT_UNITS_MAX)
		return fault_set(ret_f, RC_LIMIT, 0, "there are %d units", AGENT_UNITS_MAX);
	rc = unit_new(req, name, &u, ret_f);
	if (rc)
		return rc;
	if (old) {
		*at = old->next;
		unit_free(old);
	}
	u->next = units;
	units = u;
	u->waiting_fd = take_fd(fd);
	return RC_OK;
}

static enum rc op_stop(int *fd, struct unit *u, struct fault *ret_f)
{
	if (u->waiting_fd >= 0)
		return fault_set(ret_f, RC_AGAIN, 0, "the unit is being started or stopped");
	u->stopping = true;
	u->waiting_fd = take_fd(fd);
	if (!u->child) {
		loop_timer_set(u->timer, UINT64_MAX);
		answer_waiting(u, NULL);
		return RC_OK;
	}
	agent_child_kill(u->child, SIGTERM);
	loop_timer_set(u->timer, loop_now_ms(agent.loop) + AGENT_HANGUP_MS);
	return RC_OK;
}

static enum rc op_stat(int fd, const struct unit *u)
{
	char code[16] = "null", sig[32] = "null", line[256];

	if (u->has_status && WIFEXITED(u->status))
		snprintf(code, sizeof(code), "%d", WEXITSTATUS(u->status));
	if (u->has_status && WIFSIGNALED(u->status))
		snprintf(sig, sizeof(sig), "\"SIG%s\"", sigabbrev_np(WTERMSIG(u->status)) ?: "?");
	snprintf(line, sizeof(line),
		 "{\"ok\": true, \"running\": %s, \"pid\": %d, \"starts\": %llu, \"code\": %s, \"signal\": %s, \"seq\": %llu}\n",
		 u->child ? "true" : "false", (int)u->pid, (unsigned long long)u->starts, code, sig, (unsigned long long)u->seq);
	agent_answer(fd, line);
	return RC_OK;
}

static enum rc op_follow(int *fd, struct unit *u, const struct agent_request *req, struct fault *ret_f)
{
	struct follower *f = calloc(1, sizeof(*f));
	int64_t after = 0;
	enum rc rc;

	if (!f)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	rc = agent_get_int(req->root, "after", 0, INT64_MAX, 0, &after, ret_f);
	if (!rc)
		rc = loop_fd(agent.loop, *fd, EPOLLRDHUP, on_follower, f, &f->source, ret_f);
	if (rc) {
		free(f);
		return rc;
	}
	f->u = u;
	f->after = (uint64_t)after;
	f->out = (struct buf)BUF_INIT(AGENT_OUT_MAX);
	f->next = u->followers;
	u->followers = f;
	agent_attach(&f->attached, follower_inherited);
	f->fd = take_fd(fd);
	if (!agent_answer(f->fd, "{\"ok\": true}\n") || !follower_pump(f))
		follower_free(f);
	return RC_OK;
}

static bool name_ok(const char *name)
{
	return *name && name[strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")] == '\0';
}

static enum rc unit_op(int *fd, const struct agent_request *req, struct fault *ret_f)
{
	const char *name;
	struct unit *u;

	if (agent_get_str(req->root, "name", AGENT_NAME_MAX, NULL, &name, ret_f))
		return RC_INVALID;
	if (!name_ok(name))
		return fault_set(ret_f, RC_INVALID, 0, "a unit's name is [a-zA-Z0-9._-]{1,%d}", AGENT_NAME_MAX);
	if (!strcmp(req->op, "start"))
		return op_start(fd, req, name, ret_f);
	u = *unit_find(name);
	if (!u)
		return fault_set(ret_f, RC_ABSENT, ENOENT, "there is no unit of this name");
	if (!strcmp(req->op, "stop"))
		return op_stop(fd, u, ret_f);
	if (!strcmp(req->op, "stat"))
		return op_stat(*fd, u);
	if (!strcmp(req->op, "follow"))
		return op_follow(fd, u, req, ret_f);
	return fault_set(ret_f, RC_INVALID, 0, "there is no such operation on a unit");
}

void agent_unit_start(int fd, const struct agent_request *req)
{
	struct fault f = { 0 };

	if (unit_op(&fd, req, &f))
		agent_answer_fault(fd, &f);
	if (fd >= 0) {
		close(fd);
		agent_connection_done();
	}
}
