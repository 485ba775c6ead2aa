/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/gateway/link.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/share.h"
#include "fcgi/gateway/limits.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>

/* What is known of a group. */
enum standing { NEW, QUICK, SLOW, N_STANDINGS };

struct link_call {
	struct link *link;
	struct link_call *next;
	uint32_t sequence;
	uint64_t group, owner; /* 0: of none */
	enum standing standing; /* when it was sent */
	bool sent;
	uint64_t sent_ms;
	link_reply_fn *fn; /* NULL: cancelled, but the answer is still to come */
	void *arg;
	size_t n;
	uint8_t packet[];
};

#define KNOWN_SLOTS 4096

struct link {
	struct loop *loop;
	struct sockaddr_un addr;
	struct link_client client;
	int fd;
	struct source *source, *retry;
	uint64_t pause_ms;
	struct link_call *calls, **last; /* in the order asked */
	size_t n_calls, n_flight;
	size_t n_standing[N_STANDINGS]; /* of those in flight, without the ones of no group */
	struct { uint64_t group; unsigned int n; } flights[LINK_FLIGHT_MAX];
	struct owner {
		uint64_t owner;
		size_t n, n_standing[N_STANDINGS];
	} owners[LINK_FLIGHT_MAX]; /* who has any in flight */
	struct { uint64_t group; bool slow; } known[KNOWN_SLOTS]; /* by their lowest bits; who is pushed out is new again */
	uint64_t seed; /* nobody can choose a name that falls together with another's */
	uint32_t sequence;
	bool told_down;
	uint8_t mem[MESSAGE_MAX]; /* what arrives; a reply's BLOBs point in here while it is handled */
	uint8_t out[MESSAGE_MAX];
};

static void link_flush(struct link *l);

/* The group's row, or a free one: there are as many as there are places. */
static unsigned int *flights_of(struct link *l, uint64_t group)
{
	unsigned int *free_row = NULL;

	for (size_t i = 0; i < LINK_FLIGHT_MAX; i++) {
		if (l->flights[i].n && l->flights[i].group == group)
			return &l->flights[i].n;
		if (!l->flights[i].n && !free_row) {
			free_row = &l->flights[i].n;
			l->flights[i].group = group;
		}
	}
	return free_row;
}

static enum standing standing_of(const struct link *l, uint64_t group)
{
	size_t at = group % KNOWN_SLOTS;

	return l->known[at].group != group ? NEW : l->known[at].slow ? SLOW : QUICK;
}

/* The same for owners. */
static struct owner *owner_of(struct link *l, uint64_t owner)
{
	struct owner *free_row = NULL;

	for (size_t i = 0; i < LINK_FLIGHT_MAX; i++) {
		if (l->owners[i].n && l->owners[i].owner == owner)
			return &l->owners[i];
		if (!l->owners[i].n && !free_row)
			free_row = &l->owners[i];
	}
	free_row->owner = owner;
	return free_row;
}

static bool owner_may_fly(struct link *l, uint64_t owner, enum standing s)
{
	const struct owner *o = owner_of(l, owner);

	if (s == SLOW && !share_allows(o->n_standing[SLOW], l->n_standing[SLOW], LINK_SLOW_FLIGHT_MAX))
		return false;
	if (s != QUICK && !share_allows(o->n_standing[SLOW] + o->n_standing[NEW], l->n_standing[SLOW] + l->n_standing[NEW],
					LINK_DOUBT_FLIGHT_MAX))
		return false;
	return share_allows(o->n, l->n_flight, LINK_FLIGHT_MAX);
}

static bool group_may_fly(struct link *l, uint64_t group, uint64_t owner)
{
	static const unsigned int max[N_STANDINGS] = { [NEW] = LINK_GROUP_NEW_MAX, [QUICK] = LINK_GROUP_FLIGHT_MAX, [SLOW] = 1 };
	enum standing s = standing_of(l, group);

	if (!group)
		return true;
	return *flights_of(l, group) < max[s] && owner_may_fly(l, owner, s);
}

static void call_sent(struct link_call *c)
{
	struct owner *o;

	c->sent = true;
	c->sent_ms = now_ms();
	c->link->n_flight++;
	if (!c->group)
		return;
	++*flights_of(c->link, c->group);
	c->standing = standing_of(c->link, c->group);
	c->link->n_standing[c->standing]++;
	o = owner_of(c->link, c->owner);
	o->n++;
	o->n_standing[c->standing]++;
}

static void call_landed(struct link_call *c)
{
	size_t at = c->group % KNOWN_SLOTS;
	struct owner *o;

	c->link->n_flight--;
	if (!c->group)
		return;
	--*flights_of(c->link, c->group);
	c->link->n_standing[c->standing]--;
	o = owner_of(c->link, c->owner);
	o->n--;
	o->n_standing[c->standing]--;
	c->link->known[at].group = c->group;
	c->link->known[at].slow = now_ms() - c->sent_ms >= LINK_SLOW_MS;
}

static void call_unlink(struct link_call *c)
{
	struct link *l = c->link;
	struct link_call **at = &l->calls;

	while (*at != c)
		at = &(*at)->next;
	*at = c->next;
	if (l->last == &c->next)
		l->last = at;
	l->n_calls--;
	if (c->sent)
		call_landed(c);
}

static void link_drop(struct link *l, const struct fault *why)
{
	struct fault f;

	if (l->fd < 0)
		return;
	source_drop(&l->source);
	close_fd(&l->fd);
	log_fault(LOG_LEVEL_WARN, why, "the broker's connection ended");
	l->client.state(l->client.arg, false);
	fault_set(&f, RC_CLOSED, 0, "the connection to the broker broke");
	while (l->calls) {
		struct link_call *c = l->calls;

		call_unlink(c);
		if (c->fn)
			c->fn(c->arg, RC_CLOSED, &f, NULL, NULL, 0);
		free(c);
	}
	l->told_down = true;
	l->pause_ms = LINK_RETRY_FIRST_MS;
	loop_timer_set(l->retry, now_ms() + l->pause_ms);
}

static enum rc link_reply(struct link *l, const struct message_head *head, struct wire *w, int *fds, size_t n_fds,
			  struct fault *ret_f)
{
	struct link_call *c = l->calls;
	struct fault f = { .rc = RC_OK };
	enum rc rc;

	while (c && !(c->sent && c->sequence == head->sequence))
		c = c->next;
	if (!c)
		return fault_set(ret_f, RC_PROTO, 0, "answer to a question that was not asked");
	call_unlink(c);
	rc = message_get_result(w, &f);
	if (c->fn)
		c->fn(c->arg, rc, &f, w, fds, n_fds);
	free(c);
	return RC_OK;
}

/* False when the connection has ended or nothing more is there. */
static bool link_receive(struct link *l)
{
	int fds[FD_PASS_MAX];
	struct message_head head;
	struct fault f;
	struct wire w;
	size_t n, n_fds = 0;
	enum rc rc = packet_recv(l->fd, l->mem, sizeof(l->mem), &n, fds, &n_fds, &f);

	if (rc == RC_AGAIN)
		return false;
	if (!rc && !n)
		rc = fault_set(&f, RC_CLOSED, 0, "the broker closed it");
	if (!rc)
		rc = message_open(l->mem, n, n_fds, &head, &w, &f);
	if (!rc && (head.op & MESSAGE_EVENT))
		l->client.event(l->client.arg, (uint16_t)(head.op & ~MESSAGE_EVENT), &w);
	else if (!rc && (head.op & MESSAGE_REPLY))
		rc = link_reply(l, &head, &w, fds, n_fds, &f);
	else if (!rc)
		rc = fault_set(&f, RC_PROTO, 0, "the broker asked a question");
	fds_close(fds, n_fds);
	if (rc)
		link_drop(l, &f);
	return !rc && l->fd >= 0;
}

static void on_link(void *arg, uint32_t events)
{
	struct link *l = arg;

	/* A bounded batch, so that a flood of events leaves time for the others. */
	for (int i = 0; i < 32 && (events & (EPOLLIN | EPOLLHUP | EPOLLERR)); i++)
		if (!link_receive(l))
			break;
	if (l->fd >= 0)
		link_flush(l);
}

static void link_flush(struct link *l)
{
	uint32_t events = EPOLLIN;
	struct fault f;

	for (struct link_call *c = l->calls; c && l->n_flight < LINK_FLIGHT_MAX; c = c->next) {
		enum rc rc;

		if (c->sent || !group_may_fly(l, c->group, c->owner))
			continue;
		rc = packet_send(l->fd, c->packet, c->n, NULL, 0, &f);
		if (rc == RC_AGAIN) {
			events |= EPOLLOUT;
			break;
		}
		if (rc) {
			/* The receiving side reports the end; it also knows what else arrived before. */
			break;
		}
		call_sent(c);
	}
	if (loop_fd_events(l->source, events, &f))
		link_drop(l, &f);
}

static enum rc link_connect(struct link *l, struct fault *ret_f)
{
	_cleanup_fd_ int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	enum rc rc;

	if (fd < 0)
		return fault_set(ret_f, RC_SYS, errno, "socket");
	if (connect(fd, (struct sockaddr *)&l->addr, sizeof(l->addr)) < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "connect '%s'", l->addr.sun_path);
	rc = loop_fd(l->loop, fd, EPOLLIN, on_link, l, &l->source, ret_f);
	if (rc)
		return rc;
	l->fd = take_fd(&fd);
	return RC_OK;
}

static void on_retry(void *arg)
{
	struct link *l = arg;
	struct fault f;

	if (link_connect(l, &f)) {
		if (!l->told_down)
			log_fault(LOG_LEVEL_WARN, &f, "no connection to the broker yet");
		l->told_down = true;
		l->pause_ms = MIN_OF(l->pause_ms * 2, (uint64_t)LINK_RETRY_MAX_MS);
		loop_timer_set(l->retry, now_ms() + l->pause_ms);
		return;
	}
	l->pause_ms = LINK_RETRY_FIRST_MS;
	l->told_down = false;
	l->client.state(l->client.arg, true);
}

enum rc link_new(struct loop *loop, const char *path, const struct link_client *client, struct link **ret,
		 struct fault *ret_f)
{
	struct link *l;
	enum rc rc;

	if (strlen(path) >= sizeof(l->addr.sun_path))
		return fault_set(ret_f, RC_INVALID, 0, "socket path is too long");
	l = calloc(1, sizeof(*l));
	if (!l)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	l->loop = loop;
	l->client = *client;
	l->fd = -1;
	random_bytes(&l->seed, sizeof(l->seed));
	l->last = &l->calls;
	l->pause_ms = LINK_RETRY_FIRST_MS;
	l->addr.sun_family = AF_UNIX;
	snprintf(l->addr.sun_path, sizeof(l->addr.sun_path), "%s", path);
	rc = loop_timer(loop, now_ms(), on_retry, l, &l->retry, ret_f);
	if (rc) {
		free(l);
		return rc;
	}
	*ret = l;
	return RC_OK;
}

void link_free(struct link *l)
{
	if (!l)
		return;
	while (l->calls) {
		struct link_call *c = l->calls;

		call_unlink(c);
		free(c);
	}
	source_drop(&l->source);
	source_drop(&l->retry);
	close_fd(&l->fd);
	free(l);
}

bool link_is_up(const struct link *l)
{
	return l->fd >= 0;
}

static enum rc call_new(struct link *l, uint16_t op, message_put_fn *put, const void *request, struct link_call **ret,
			struct fault *ret_f)
{
	struct link_call *c;
	struct wire w;
	size_t n;
	enum rc rc;

	message_begin(&w, l->out, sizeof(l->out));
	if (put)
		put(&w, request);
	rc = message_end(&w, op, ++l->sequence, 0, &n, ret_f);
	if (rc)
		return rc;
	c = calloc(1, sizeof(*c) + n);
	if (!c)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	c->link = l;
	c->sequence = l->sequence;
	c->n = n;
	memcpy(c->packet, l->out, n);
	*ret = c;
	return RC_OK;
}

static uint64_t group_hash(const struct link *l, const char *s)
{
	uint64_t hash = l->seed;

	for (; *s; s++)
		hash = (hash ^ (unsigned char)*s) * 1099511628211u;
	hash ^= hash >> 32;
	return hash ? hash : 1;
}

static bool group_has_room(const struct link *l, uint64_t group, uint64_t owner)
{
	size_t n = 0, of_owner = 0;

	for (const struct link_call *c = l->calls; c; c = c->next) {
		n += c->group == group;
		of_owner += c->owner == owner;
	}
	return n < LINK_GROUP_CALLS_MAX && share_allows(of_owner, l->n_calls, LINK_CALLS_MAX);
}

enum rc link_ask(struct link *l, const char *group, const char *owner, uint16_t op, message_put_fn *put, const void *request, link_reply_fn *fn,
		 void *arg, struct link_call **ret, struct fault *ret_f)
{
	uint64_t hash = group ? group_hash(l, group) : 0, of = hash && owner && *owner ? group_hash(l, owner) : hash;
	struct link_call *c;
	enum rc rc;

	if (l->fd < 0)
		return fault_set(ret_f, RC_CLOSED, 0, "no connection to the broker");
	if (l->n_calls >= LINK_CALLS_MAX)
		return fault_set(ret_f, RC_LIMIT, 0, "%d questions wait for the broker", LINK_CALLS_MAX);
	if (hash && l->n_calls >= LINK_GROUP_CALLS_MAX && !group_has_room(l, hash, of))
		return fault_set(ret_f, RC_LIMIT, 0, "too many questions about one host or of one owner wait for the broker");
	rc = call_new(l, op, put, request, &c, ret_f);
	if (rc)
		return rc;
	c->group = hash;
	c->owner = of;
	c->fn = fn;
	c->arg = arg;
	*l->last = c;
	l->last = &c->next;
	l->n_calls++;
	if (ret)
		*ret = c;
	/* Sent from the loop, so that a broken connection is never reported from inside a question. */
	if (l->n_flight < LINK_FLIGHT_MAX && loop_fd_events(l->source, EPOLLIN | EPOLLOUT, ret_f))
		log_warn("the broker's socket cannot be watched");
	return RC_OK;
}

void link_cancel(struct link_call *c)
{
	if (!c)
		return;
	c->fn = NULL;
	if (!c->sent) {
		call_unlink(c);
		free(c);
	}
}
