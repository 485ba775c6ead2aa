/* SPDX-License-Identifier: Apache-2.0 */
/* One connection of nginx to an exposed host; the states are described in expose.h. */
#include "fcgi/gateway/expose.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "fcgi/gateway/answer.h"

#include <json-c/json.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

struct visit {
	struct gateway *gw;
	struct visit *next, *prev;
	int fd, agent;
	struct link_call *call;
	struct source *client, *answer, *timer;
	uint64_t since_ms;                   /* the dial that found a machine; the visit's beginning before */
	uint64_t wake_deadline_ms, pause_ms; /* 0: no machine was missing yet */
	bool waiting;                        /* counted in n_waiting */
	struct relay relay;
	char host[EXPOSE_NAME_MAX + 1], org[BROKER_ORG_MAX];
};

static size_t n_waiting;

static void visit_unwait(struct visit *v)
{
	if (v->waiting)
		n_waiting--;
	v->waiting = false;
}

static void visit_free(struct visit *v)
{
	if (v->prev)
		v->prev->next = v->next;
	else if (v->gw->visits == v)
		v->gw->visits = v->next;
	if (v->next)
		v->next->prev = v->prev;
	visit_unwait(v);
	link_cancel(v->call);
	relay_stop(&v->relay);
	source_drop(&v->client);
	source_drop(&v->answer);
	source_drop(&v->timer);
	close_fd(&v->agent);
	if (v->fd >= 0) {
		close_fd(&v->fd);
		v->gw->n_streams--;
	}
	expose_touch(v->host);
	free(v);
}

static bool visit_is_of(const struct visit *v, const char *host)
{
	return !strcmp(v->host, host);
}

void visits_stat(struct gateway *gw, const char *host, struct gateway_host_stat *ret)
{
	uint64_t now = now_ms();

	for (const struct visit *v = gw->visits; v; v = v->next) {
		if (!visit_is_of(v, host))
			continue;
		ret->open++;
		if (v->waiting && v->agent < 0 && !v->call)
			ret->waiting++;
		else
			ret->oldest_ms = MAX_OF(ret->oldest_ms, now - v->since_ms);
	}
}

/* One host must not take all places, nor one organization more than are left. Counted only once there are many. */
static bool host_has_room(struct gateway *gw, const struct visit *of)
{
	struct gateway_host_stat st = { 0 };
	size_t theirs = 0;

	if (n_waiting < EXPOSE_WAITING_HOST_MAX)
		return true;
	visits_stat(gw, of->host, &st);
	for (const struct visit *v = gw->visits; v; v = v->next)
		theirs += v->waiting && !strcmp(v->org, of->org);
	return st.waiting < EXPOSE_WAITING_HOST_MAX && (!*of->org || theirs < EXPOSE_WAITING_MAX - n_waiting);
}

void visits_free(struct gateway *gw)
{
	while (gw->visits)
		visit_free(gw->visits);
}

static void visit_refuse(struct visit *v, int status, const char *message)
{
	source_drop(&v->client);
	answer_end(v->gw, take_fd(&v->fd), status, NULL, message);
	visit_free(v);
}

static void on_relay_done(void *arg)
{
	visit_free(arg);
}

static void visit_relay(struct visit *v)
{
	struct fault f;
	enum rc rc;

	source_drop(&v->client);
	source_drop(&v->answer);
	source_drop(&v->timer);
	visit_unwait(v);
	rc = relay_start(&v->relay, &v->gw->pool, v->fd, v->agent, on_relay_done, v, &f);
	if (rc) {
		log_fault(LOG_LEVEL_WARN, &f, "a visit could not begin");
		visit_free(v);
	}
}

/* The agent's line is a guest's: only its shape decides, nothing of it is shown. */
static void visit_judge(struct visit *v, const char *line, size_t n)
{
	struct json_tokener *tok = json_tokener_new_ex(4);
	struct json_object *o = tok ? json_tokener_parse_ex(tok, line, (int)n) : NULL, *ok = NULL, *error = NULL, *code;
	const char *word = "";
	bool fine;

	fine = o && json_object_is_type(o, json_type_object) && json_object_object_get_ex(o, "ok", &ok) &&
	       json_object_get_boolean(ok);
	if (!fine && o && json_object_is_type(o, json_type_object) && json_object_object_get_ex(o, "error", &error) &&
	    json_object_is_type(error, json_type_object) && json_object_object_get_ex(error, "code", &code))
		word = json_object_get_string(code);
	if (fine)
		visit_relay(v);
	else if (word && !strcmp(word, "ECONNREFUSED"))
		visit_refuse(v, 502, "The machine is up, but nothing listens on the exposed port.");
	else if (word && !strcmp(word, "ENOENT"))
		visit_refuse(v, 502, "The machine is up, but the service behind this address has ended.");
	else
		visit_refuse(v, 502, "The machine did not accept the connection.");
	json_object_put(o);
	json_tokener_free(tok);
}

static void on_answer(void *arg, uint32_t events)
{
	struct visit *v = arg;
	char line[EXPOSE_ANSWER_MAX], *nl;
	ssize_t n = recv(v->agent, line, sizeof(line), MSG_PEEK);

	(void)events;
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	nl = n > 0 ? memchr(line, '\n', (size_t)n) : NULL;
	if (nl) {
		/* What follows the line is the service's. */
		n = recv(v->agent, line, (size_t)(nl - line) + 1, 0);
		source_drop(&v->answer);
		if (n == (nl - line) + 1)
			visit_judge(v, line, (size_t)n - 1);
		else
			visit_refuse(v, 502, "The machine broke off the connection.");
	} else if (n <= 0 || n == (ssize_t)sizeof(line)) {
		visit_refuse(v, 502, "The machine broke off the connection.");
	} else if (loop_fd_events(v->answer, EPOLLIN | EPOLLET, NULL)) {
		/* Edge-triggered from here on: part of a line stays in the socket until the rest arrives. */
		visit_free(v);
	}
}

static void visit_dial(struct visit *v);

static void on_timer(void *arg)
{
	struct visit *v = arg;

	if (v->waiting && v->agent < 0 && !v->call)
		visit_dial(v);
	else
		visit_refuse(v, 504, "The machine did not answer in time.");
}

static void visit_wait(struct visit *v)
{
	uint64_t now = now_ms();

	if (!expose_is_there(v->host)) {
		visit_refuse(v, 404, "This address serves nothing any more.");
		return;
	}
	if (!v->wake_deadline_ms) {
		if (n_waiting >= EXPOSE_WAITING_MAX || !host_has_room(v->gw, v)) {
			visit_refuse(v, 503, "Too many visitors are waiting for machines to wake up. Try again.");
			return;
		}
		v->waiting = true;
		n_waiting++;
		v->wake_deadline_ms = now + EXPOSE_WAKE_MS;
		v->pause_ms = EXPOSE_WAKE_FIRST_MS;
	} else {
		v->pause_ms = MIN_OF(v->pause_ms * 2, (uint64_t)EXPOSE_WAKE_STEP_MAX_MS);
	}
	if (now >= v->wake_deadline_ms)
		visit_refuse(v, 504, "No machine serves this address at the moment. Try again.");
	else
		loop_timer_set(v->timer, now + v->pause_ms);
}

static void on_dialled(void *arg, enum rc rc, const struct fault *f, struct wire *w, int *fds, size_t n_fds)
{
	struct visit *v = arg;

	v->call = NULL;
	if (rc == RC_ABSENT || rc == RC_STATE || rc == RC_CLOSED) {
		visit_wait(v);
		return;
	}
	if (!rc && (n_fds != 1 || !wire_done(w)))
		rc = RC_PROTO;
	if (rc) {
		static struct log_limit limit = LOG_LIMIT_INIT(10, 30);

		if (log_allowed(&limit))
			log_fault(LOG_LEVEL_WARN, f, "host '%s' cannot be dialled", v->host);
		visit_refuse(v, rc == RC_TIMEOUT ? 504 : 502, "The machine behind this address does not answer.");
		return;
	}
	v->agent = take_fd(&fds[0]);
	if (fd_nonblock(v->agent, NULL) ||
	    loop_fd(v->gw->loop, v->agent, EPOLLIN, on_answer, v, &v->answer, NULL)) {
		visit_refuse(v, 503, "The host is out of resources. Try again.");
		return;
	}
	loop_timer_set(v->timer, now_ms() + EXPOSE_ANSWER_MS);
}

static void visit_dial(struct visit *v)
{
	struct broker_host m = { .host = "" };
	struct fault f;
	enum rc rc;

	snprintf(m.host, sizeof(m.host), "%s", v->host);
	v->since_ms = now_ms();
	rc = link_ask(v->gw->link, v->host, v->org, BROKER_EXPOSE_DIAL, (message_put_fn *)broker_host_put, &m, on_dialled, v, &v->call,
		      &f);
	if (!rc)
		loop_timer_set(v->timer, now_ms() + EXPOSE_DIAL_MS);
	else if (rc == RC_CLOSED)
		visit_wait(v); /* the broker restarts; its machines go on */
	else
		visit_refuse(v, 503, "The host is busy. Try again.");
}

void visit_wake(struct gateway *gw, const char *host)
{
	if (!n_waiting)
		return;
	for (struct visit *v = gw->visits; v; v = v->next)
		if (v->waiting && !v->call && v->agent < 0 && visit_is_of(v, host))
			loop_timer_set(v->timer, now_ms());
}

static void on_client(void *arg, uint32_t events)
{
	struct visit *v = arg;

	/* Only HUP and ERR arrive: the visitor has gone before anything was said. */
	(void)events;
	visit_free(v);
}

void visit_accept(struct gateway *gw, const char *host, int fd)
{
	struct visit *v;
	enum rc rc;

	if (!stream_admit(gw)) {
		gw->n_streams++;
		answer_end(gw, fd, 503, NULL, "Too many connections are open. Try again.");
		return;
	}
	v = calloc(1, sizeof(*v));
	if (!v) {
		close(fd);
		gw->n_streams--;
		return;
	}
	*v = (struct visit){ .gw = gw, .fd = fd, .agent = -1, .next = gw->visits, .since_ms = now_ms() };
	snprintf(v->host, sizeof(v->host), "%s", host);
	snprintf(v->org, sizeof(v->org), "%s", expose_org(host));
	if (v->next)
		v->next->prev = v;
	gw->visits = v;
	rc = loop_fd(gw->loop, fd, 0, on_client, v, &v->client, NULL);
	if (!rc)
		rc = loop_timer(gw->loop, UINT64_MAX, on_timer, v, &v->timer, NULL);
	if (rc)
		visit_free(v);
	else
		visit_dial(v);
}
