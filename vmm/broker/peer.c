/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/broker/peer.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "vmm/broker/limits.h"
#include "vmm/broker/machine.h"

#include <fcntl.h>
#include <pwd.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

struct packet {
	struct packet *next;
	size_t n, n_fds;
	int fds[FD_PASS_MAX];
	uint8_t data[];
};

struct peer {
	struct broker *b;
	struct peer *next;
	int fd;
	struct source *io;
	unsigned int who;
	bool subscribed, egress, closing;
	struct request *requests;
	size_t n_requests;
	struct packet *queue, **queue_end;
	size_t n_queue, queue_bytes;
};

struct peer_set {
	struct peer *first;
	size_t n;
	int listen_fd;
	struct source *listen, *reap;
	uid_t api, gateway, egress, ssh;
	uint8_t in[MESSAGE_MAX], out[MESSAGE_MAX];
};

static struct log_limit refused_limit = LOG_LIMIT_INIT(10, 10);

unsigned int peer_who(const struct peer *p)
{
	return p->who;
}

size_t peers_count(const struct broker *b)
{
	return b->peers->n;
}

static void packet_free(struct packet *p)
{
	fds_close(p->fds, p->n_fds);
	free(p);
}

/* Freed by a timer in the next turn: whoever called may still look at it. */
static void peer_close(struct peer *p)
{
	if (p->closing)
		return;
	p->closing = true;
	p->subscribed = p->egress = false;
	source_drop(&p->io);
	close_fd(&p->fd);
	for (struct request *r = p->requests; r; r = r->next)
		r->peer = NULL;
	p->requests = NULL;
	while (p->queue) {
		struct packet *k = p->queue;

		p->queue = k->next;
		packet_free(k);
	}
	loop_timer_set(p->b->peers->reap, now_ms());
}

static void on_reap(void *arg)
{
	struct broker *b = arg;
	struct peer **at = &b->peers->first;

	while (*at) {
		struct peer *p = *at;

		if (!p->closing) {
			at = &p->next;
			continue;
		}
		*at = p->next;
		b->peers->n--;
		free(p);
	}
}

/* --- sending ---------------------------------------------------------------------------------------------------- */

static enum rc peer_queue(struct peer *p, size_t n, const int *fds, size_t n_fds, struct fault *ret_f)
{
	struct packet *k;

	if (p->n_queue >= PEER_QUEUE_MAX || p->queue_bytes + n > PEER_QUEUE_BYTES)
		return fault_set(ret_f, RC_LIMIT, 0, "peer does not read");
	k = calloc(1, sizeof(*k) + n);
	if (!k)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	k->n = n;
	memcpy(k->data, p->b->peers->out, n);
	for (size_t i = 0; i < n_fds; i++) {
		k->fds[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, 3);
		if (k->fds[i] < 0) {
			packet_free(k);
			return fault_set(ret_f, RC_SYS, errno, "duplicate descriptor");
		}
		k->n_fds++;
	}
	*p->queue_end = k;
	p->queue_end = &k->next;
	p->n_queue++;
	p->queue_bytes += n;
	return loop_fd_events(p->io, EPOLLIN | EPOLLOUT, ret_f);
}

/* What is in peers->out. The descriptors stay the caller's. */
static void peer_send(struct peer *p, size_t n, const int *fds, size_t n_fds)
{
	struct fault f;
	enum rc rc = RC_AGAIN;

	if (p->closing)
		return;
	if (!p->queue)
		rc = packet_send(p->fd, p->b->peers->out, n, fds, n_fds, &f);
	if (rc == RC_AGAIN)
		rc = peer_queue(p, n, fds, n_fds, &f);
	if (!rc)
		return;
	log_limited(&refused_limit, LOG_LEVEL_WARN, "peer closed: %s", f.text);
	peer_close(p);
}

static void egress_pump(struct peer *p);

static void peer_flush(struct peer *p)
{
	struct fault f;

	while (p->queue) {
		struct packet *k = p->queue;
		enum rc rc = packet_send(p->fd, k->data, k->n, k->fds, k->n_fds, &f);

		if (rc == RC_AGAIN)
			return;
		if (rc) {
			peer_close(p);
			return;
		}
		p->queue = k->next;
		if (!p->queue)
			p->queue_end = &p->queue;
		p->n_queue--;
		p->queue_bytes -= k->n;
		packet_free(k);
	}
	if (loop_fd_events(p->io, EPOLLIN, &f))
		peer_close(p);
	else if (p->egress)
		egress_pump(p);
}

static void event_send(struct peer *p, uint16_t event, message_put_fn *put, const void *m, const int *fds, size_t n_fds)
{
	struct peer_set *s = p->b->peers;
	struct wire w;
	struct fault f;
	size_t n;

	message_begin(&w, s->out, sizeof(s->out));
	put(&w, m);
	if (message_end(&w, event | MESSAGE_EVENT, 0, n_fds, &n, &f))
		log_fault(LOG_LEVEL_ERROR, &f, "event");
	else
		peer_send(p, n, fds, n_fds);
}

static void request_free(struct request *r)
{
	if (r->peer) {
		r->peer->n_requests--;
		*r->at = r->next;
		if (r->next)
			r->next->at = r->at;
	}
	free(r);
}

void request_reply(struct request *r, message_put_fn *put, const void *m, const int *fds, size_t n_fds)
{
	struct peer *p = r->peer;
	struct fault f;
	struct wire w;
	size_t n;

	if (p) {
		message_begin(&w, p->b->peers->out, MESSAGE_MAX);
		message_put_result(&w, RC_OK, "");
		if (put)
			put(&w, m);
		if (message_end(&w, r->op | MESSAGE_REPLY, r->sequence, n_fds, &n, &f)) {
			request_fail(r, &f);
			r = NULL;
		} else {
			peer_send(p, n, fds, n_fds);
		}
	}
	for (size_t i = 0; i < n_fds; i++)
		close(fds[i]);
	if (r)
		request_free(r);
}

void request_fail(struct request *r, const struct fault *f)
{
	struct peer *p = r->peer;
	struct wire w;
	size_t n;

	if (p) {
		message_begin(&w, p->b->peers->out, MESSAGE_MAX);
		message_put_result(&w, f->rc, f->text);
		if (!message_end(&w, r->op | MESSAGE_REPLY, r->sequence, 0, &n, NULL))
			peer_send(p, n, NULL, 0);
	}
	request_free(r);
}

/* --- events ----------------------------------------------------------------------------------------------------- */

void peer_subscribe(struct request *r)
{
	if (r->peer)
		r->peer->subscribed = true;
}

static void event_all(struct broker *b, unsigned int who, uint16_t event, message_put_fn *put, const void *m)
{
	if (!b->peers)
		return;
	for (struct peer *p = b->peers->first; p; p = p->next)
		if (p->subscribed && p->who & who)
			event_send(p, event, put, m, NULL, 0);
}

void broker_event_vm(struct broker *b, const struct machine *m, enum broker_vm_state state, const char *reason)
{
	struct broker_vm_event e = { .state = state };

	if (m->internal)
		return;
	memcpy(e.id, m->id, sizeof(e.id));
	strncpy(e.reason, reason, sizeof(e.reason) - 1);
	event_all(b, PEER_API | PEER_ROOT, BROKER_EVENT_VM, (message_put_fn *)broker_vm_event_put, &e);
}

void broker_event_expose(struct broker *b, const char *host, const char *org, bool present)
{
	struct broker_expose_event e = { .present = present };

	strncpy(e.host, host, sizeof(e.host) - 1);
	strncpy(e.org, org, sizeof(e.org) - 1);
	event_all(b, PEER_API | PEER_GATEWAY | PEER_ROOT, BROKER_EVENT_EXPOSE,
		  (message_put_fn *)broker_expose_event_put, &e);
}

void broker_event_login_gone(struct broker *b, const char *key)
{
	struct broker_login_key e = { { 0 } };

	strncpy(e.key, key, sizeof(e.key) - 1);
	event_all(b, PEER_SSH, BROKER_EVENT_LOGIN_GONE, (message_put_fn *)broker_login_key_put, &e);
}

void broker_event_wanted(struct broker *b, const char *host)
{
	struct broker_host e = { { 0 } };

	strncpy(e.host, host, sizeof(e.host) - 1);
	event_all(b, PEER_API | PEER_ROOT, BROKER_EVENT_WANTED, (message_put_fn *)broker_host_put, &e);
}

static struct peer *egress_peer(struct broker *b)
{
	for (struct peer *p = b->peers ? b->peers->first : NULL; p; p = p->next)
		if (p->egress)
			return p;
	return NULL;
}

/* One at a time as the proxy takes them: with many machines the descriptors in a queue would be many, too. */
static void egress_pump(struct peer *p)
{
	struct broker *b = p->b;

	for (size_t i = 0; i < b->n_machines && p->egress && !p->queue; i++) {
		struct machine *m = b->machines[i];
		int fds[3] = { m->net.tcp_fd, m->net.dns_udp_fd, m->net.dns_tcp_fd };
		struct broker_egress_vm e = { .policy = m->policy, .policy_n = m->policy_n };

		if (m->egress_told || !m->has_net || m->internal || m->ending)
			continue;
		memcpy(e.id, m->id, sizeof(e.id));
		m->egress_told = true;
		event_send(p, BROKER_EVENT_EGRESS_VM, (message_put_fn *)broker_egress_vm_put, &e, fds, 3);
	}
}

void broker_egress_vm(struct broker *b, struct machine *m)
{
	struct peer *p = egress_peer(b);

	(void)m;
	if (p)
		egress_pump(p);
}

void broker_egress_gone(struct broker *b, struct machine *m)
{
	struct peer *p = egress_peer(b);
	struct broker_vm_id e;

	if (!p || !m->egress_told)
		return;
	m->egress_told = false;
	memcpy(e.id, m->id, sizeof(e.id));
	event_send(p, BROKER_EVENT_EGRESS_GONE, (message_put_fn *)broker_vm_id_put, &e, NULL, 0);
}

void broker_egress_policy(struct broker *b, struct machine *m)
{
	struct peer *p = egress_peer(b);
	struct broker_vm_policy e = { .policy = m->policy, .policy_n = m->policy_n };

	if (!p || !m->egress_told)
		return;
	memcpy(e.id, m->id, sizeof(e.id));
	event_send(p, BROKER_EVENT_EGRESS_POLICY, (message_put_fn *)broker_vm_policy_put, &e, NULL, 0);
}

enum rc peer_egress_attach(struct request *r, struct fault *ret_f)
{
	struct peer *p = r->peer;
	struct broker *b;

	if (!p)
		return fault_set(ret_f, RC_CLOSED, 0, "peer is gone");
	b = p->b;
	if (egress_peer(b))
		return fault_set(ret_f, RC_STATE, 0, "an egress proxy is attached already");
	for (size_t i = 0; i < b->n_machines; i++)
		b->machines[i]->egress_told = false;
	request_reply(r, NULL, NULL, NULL, 0);
	p->egress = !p->closing;
	if (p->egress)
		egress_pump(p);
	return RC_OK;
}

/* --- receiving -------------------------------------------------------------------------------------------------- */

static enum rc peer_request(struct peer *p, size_t n, size_t n_fds, struct fault *ret_f)
{
	struct message_head head;
	struct request *r;
	struct wire w;
	enum rc rc;

	if (n_fds)
		return fault_set(ret_f, RC_PROTO, 0, "descriptors in a request");
	rc = message_open(p->b->peers->in, n, 0, &head, &w, ret_f);
	if (rc)
		return rc;
	if (head.op & (MESSAGE_REPLY | MESSAGE_EVENT))
		return fault_set(ret_f, RC_PROTO, 0, "not a request");
	if (p->n_requests >= PEER_REQUESTS_MAX)
		return fault_set(ret_f, RC_PROTO, 0, "more than %d requests at once", PEER_REQUESTS_MAX);
	r = calloc(1, sizeof(*r));
	if (!r)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	*r = (struct request){ .peer = p, .op = head.op, .sequence = head.sequence, .next = p->requests, .at = &p->requests };
	if (r->next)
		r->next->at = &r->next;
	p->requests = r;
	p->n_requests++;
	ops_dispatch(p->b, r, &w);
	return RC_OK;
}

static void on_peer(void *arg, uint32_t events)
{
	struct peer *p = arg;
	struct peer_set *s = p->b->peers;
	int fds[FD_PASS_MAX];
	size_t n, n_fds;
	struct fault f;
	enum rc rc;

	if (events & EPOLLOUT)
		peer_flush(p);
	/* One request a turn, so that no peer holds up the others. */
	if (p->closing || !(events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
		return;
	rc = packet_recv(p->fd, s->in, sizeof(s->in), &n, fds, &n_fds, &f);
	if (rc == RC_AGAIN)
		return;
	if (!rc && !n) {
		fds_close(fds, n_fds);
		peer_close(p);
		return;
	}
	if (!rc) {
		fds_close(fds, n_fds);
		rc = peer_request(p, n, n_fds, &f);
	}
	if (rc) {
		log_limited(&refused_limit, LOG_LEVEL_WARN, "peer closed: %s", f.text);
		peer_close(p);
	}
}

enum rc peer_add(struct broker *b, int fd, unsigned int who, struct fault *ret_f)
{
	struct peer *p = b->peers->n < PEERS_MAX ? calloc(1, sizeof(*p)) : NULL;
	enum rc rc;

	if (!p) {
		close(fd);
		return fault_set(ret_f, RC_LIMIT, 0, "too many connections");
	}
	*p = (struct peer){ .b = b, .fd = fd, .who = who };
	p->queue_end = &p->queue;
	rc = fd_nonblock(fd, ret_f);
	if (!rc)
		rc = loop_fd(b->loop, fd, EPOLLIN, on_peer, p, &p->io, ret_f);
	if (rc) {
		close(fd);
		free(p);
		return rc;
	}
	p->next = b->peers->first;
	b->peers->first = p;
	b->peers->n++;
	return RC_OK;
}

static unsigned int uid_who(const struct peer_set *s, uid_t uid)
{
	return (uid == 0 ? PEER_ROOT : 0) | (uid == s->api ? PEER_API : 0) | (uid == s->gateway ? PEER_GATEWAY : 0) |
	       (uid == s->egress ? PEER_EGRESS : 0) | (uid == s->ssh ? PEER_SSH : 0);
}

static void on_listen(void *arg, uint32_t events)
{
	struct broker *b = arg;
	int fd = accept4(b->peers->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	unsigned int who;
	struct fault f;
	pid_t pid;
	uid_t uid;
	gid_t gid;

	(void)events;
	if (fd < 0)
		return;
	if (unix_peer(fd, &pid, &uid, &gid, &f)) {
		close(fd);
		return;
	}
	who = uid_who(b->peers, uid);
	if (!who) {
		close(fd);
		log_limited(&refused_limit, LOG_LEVEL_WARN, "peer refused uid=%u pid=%d", uid, (int)pid);
		return;
	}
	if (peer_add(b, fd, who, &f))
		log_limited(&refused_limit, LOG_LEVEL_WARN, "peer refused uid=%u: %s", uid, f.text);
}

static uid_t user_uid(const char *user)
{
	const struct passwd *pw = getpwnam(user);

	if (!pw)
		log_warn("no such user, nobody can connect as it user=%s", user);
	return pw ? pw->pw_uid : (uid_t)-1;
}

enum rc peers_new(struct broker *b, int listen_fd, struct fault *ret_f)
{
	struct peer_set *s = calloc(1, sizeof(*s));
	enum rc rc;

	if (!s) {
		close_fd(&listen_fd);
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	}
	b->peers = s;
	s->listen_fd = listen_fd;
	rc = loop_timer(b->loop, UINT64_MAX, on_reap, b, &s->reap, ret_f);
	if (rc || listen_fd < 0)
		return rc;
	s->api = user_uid(b->config->user_api);
	s->gateway = user_uid(b->config->user_gateway);
	s->egress = user_uid(b->config->user_egress);
	s->ssh = user_uid(b->config->user_ssh);
	return loop_fd(b->loop, listen_fd, EPOLLIN, on_listen, b, &s->listen, ret_f);
}

void peers_free(struct broker *b)
{
	struct peer_set *s = b->peers;

	if (!s)
		return;
	for (struct peer *p = s->first; p; p = p->next)
		peer_close(p);
	on_reap(b);
	source_drop(&s->reap);
	source_drop(&s->listen);
	close_fd(&s->listen_fd);
	free(s);
	b->peers = NULL;
}
