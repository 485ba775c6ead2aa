/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/gateway/control.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "fcgi/gateway/acceptor.h"
#include "fcgi/gateway/expose.h"
#include "fcgi/gateway/follow.h"

#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>

struct peer {
	struct peer *next, *prev;
	int fd;
	struct source *source;
};

static struct {
	struct gateway *gw;
	struct acceptor acceptor;
	uid_t api;
	struct peer *peers;
	size_t n_peers;
	struct peer *guide; /* has asked for a question and waits for it */
	uint32_t guide_sequence;
	uint8_t in[MESSAGE_MAX], out[MESSAGE_MAX];
} control;

static void peer_free(struct peer *p)
{
	if (p->prev)
		p->prev->next = p->next;
	else if (control.peers == p)
		control.peers = p->next;
	if (p->next)
		p->next->prev = p->prev;
	if (control.guide == p)
		control.guide = NULL;
	source_drop(&p->source);
	close_fd(&p->fd);
	control.n_peers--;
	free(p);
}

/* Lines of our own workers; checked all the same, because they end up in an HTTP answer. */
static enum rc headers_check(const char *headers, struct fault *ret_f)
{
	const char *at = headers;

	while (*at) {
		size_t n = strcspn(at, "\r\n");

		if (!n || at[n] != '\r' || at[n + 1] != '\n' || !memchr(at, ':', n))
			return fault_set(ret_f, RC_INVALID, 0, "headers are not complete lines");
		at += n + 2;
	}
	return RC_OK;
}

static enum rc ticket_ws(struct wire *w, int *fds, size_t n_fds, struct fault *ret_f)
{
	struct ticket t = { .kind = GATEWAY_TICKET_WS, .fd = -1, .lease = -1 };
	struct gateway_ticket_ws m;
	enum rc rc;

	gateway_ticket_ws_get(w, &m);
	if (!wire_done(w) || n_fds < 1 || n_fds > 2)
		return fault_set(ret_f, RC_PROTO, 0, "malformed TICKET_WS");
	rc = headers_check(m.headers, ret_f);
	if (rc)
		return rc;
	t.headers = strdup(m.headers);
	if (!t.headers)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	t.fd = take_fd(&fds[0]);
	if (n_fds == 2)
		t.lease = take_fd(&fds[1]);
	return tickets_add(control.gw->tickets, m.token, m.ttl_ms, &t, ret_f);
}

static enum rc ticket_log(struct wire *w, int *fds, size_t n_fds, struct fault *ret_f)
{
	struct ticket t = { .kind = GATEWAY_TICKET_LOG, .fd = -1, .lease = -1 };
	struct gateway_ticket_log m;
	struct stat st;
	enum rc rc;

	gateway_ticket_log_get(w, &m);
	if (!wire_done(w) || n_fds != 1 || m.format > 1)
		return fault_set(ret_f, RC_PROTO, 0, "malformed TICKET_LOG");
	if (fstat(fds[0], &st) < 0 || !S_ISREG(st.st_mode) || m.offset > INT64_MAX)
		return fault_set(ret_f, RC_INVALID, 0, "a log is a regular file");
	rc = headers_check(m.headers, ret_f);
	if (rc)
		return rc;
	t.headers = strdup(m.headers);
	t.filter = *m.filter ? strdup(m.filter) : NULL;
	t.place = *m.place ? strdup(m.place) : NULL;
	if (!t.headers || (*m.filter && !t.filter) || (*m.place && !t.place)) {
		ticket_close(&t);
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	}
	t.fd = take_fd(&fds[0]);
	t.offset = m.offset;
	t.format = m.format;
	return tickets_add(control.gw->tickets, m.token, m.ttl_ms, &t, ret_f);
}

static enum rc stat_fill(struct wire *w, size_t n_fds, struct gateway_stat *ret, struct fault *ret_f)
{
	if (!wire_done(w) || n_fds)
		return fault_set(ret_f, RC_PROTO, 0, "malformed STAT");
	*ret = (struct gateway_stat){
		.tickets = (uint32_t)tickets_count(control.gw->tickets),
		.streams = (uint32_t)control.gw->n_streams,
		.exposures = (uint32_t)expose_count(),
		.bytes = control.gw->pool.bytes,
	};
	return RC_OK;
}

static enum rc host_stat_fill(struct wire *w, size_t n_fds, struct gateway_host_stat *ret, struct fault *ret_f)
{
	struct gateway_host m;

	gateway_host_get(w, &m);
	if (!wire_done(w) || n_fds)
		return fault_set(ret_f, RC_PROTO, 0, "malformed HOST_STAT");
	expose_host_stat(control.gw, m.host, ret);
	return RC_OK;
}

/* The answer to one question; the next one is answered to when there is one. Another guide takes the former's place. */
static enum rc guide_take(struct peer *p, uint32_t sequence, struct wire *w, int *fds, size_t n_fds, struct fault *ret_f)
{
	struct gateway_follow m;
	struct stat st;

	gateway_follow_get(w, &m);
	if (!wire_done(w) || n_fds > 1 || (n_fds == 1) != (*m.next != '\0') || (n_fds && (fstat(fds[0], &st) < 0 || !S_ISREG(st.st_mode))))
		return fault_set(ret_f, RC_PROTO, 0, "malformed FOLLOW");
	if (*m.place)
		follow_next(m.place, m.next, n_fds ? fds[0] : -1);
	else
		follow_guide_new();
	control.guide = p;
	control.guide_sequence = sequence;
	control_guide_ask();
	return RC_OK;
}

void control_guide_ask(void)
{
	struct peer *p = control.guide;
	struct gateway_place m = { .place = "" };
	struct wire out;
	struct fault f;
	size_t n;
	enum rc rc;

	if (!p || !follow_question(m.place))
		return;
	control.guide = NULL;
	message_begin(&out, control.out, sizeof(control.out));
	message_put_result(&out, RC_OK, "");
	gateway_place_put(&out, &m);
	rc = message_end(&out, GATEWAY_FOLLOW | MESSAGE_REPLY, control.guide_sequence, 0, &n, &f);
	if (!rc)
		rc = packet_send(p->fd, control.out, n, NULL, 0, &f);
	/* Its connection is closed where it is read; whoever comes next is asked again. */
	if (rc)
		log_fault(LOG_LEVEL_WARN, &f, "the guide could not be asked");
}

static enum rc peer_answer(struct peer *p, const struct message_head *head, struct wire *w, int *fds, size_t n_fds,
			   struct fault *ret_f)
{
	struct gateway_stat stat = { 0 };
	struct gateway_host_stat host_stat = { 0 };
	struct fault f = { .rc = RC_OK };
	struct wire out;
	size_t n;
	enum rc rc;

	if (head->op == GATEWAY_FOLLOW)
		return guide_take(p, head->sequence, w, fds, n_fds, ret_f);
	switch (head->op) {
	case GATEWAY_TICKET_WS: rc = ticket_ws(w, fds, n_fds, &f); break;
	case GATEWAY_TICKET_LOG: rc = ticket_log(w, fds, n_fds, &f); break;
	case GATEWAY_STAT: rc = stat_fill(w, n_fds, &stat, &f); break;
	case GATEWAY_HOST_STAT: rc = host_stat_fill(w, n_fds, &host_stat, &f); break;
	default: rc = fault_set(&f, RC_PROTO, 0, "unknown operation %u", head->op);
	}
	if (rc == RC_PROTO) {
		*ret_f = f;
		return rc;
	}
	message_begin(&out, control.out, sizeof(control.out));
	message_put_result(&out, rc, f.text);
	if (!rc && head->op == GATEWAY_STAT)
		gateway_stat_put(&out, &stat);
	if (!rc && head->op == GATEWAY_HOST_STAT)
		gateway_host_stat_put(&out, &host_stat);
	rc = message_end(&out, (uint16_t)(head->op | MESSAGE_REPLY), head->sequence, 0, &n, ret_f);
	return rc ? rc : packet_send(p->fd, control.out, n, NULL, 0, ret_f);
}

static void on_peer(void *arg, uint32_t events)
{
	struct peer *p = arg;
	int fds[FD_PASS_MAX];
	struct message_head head;
	struct wire w;
	struct fault f;
	size_t n, n_fds = 0;
	enum rc rc = packet_recv(p->fd, control.in, sizeof(control.in), &n, fds, &n_fds, &f);

	(void)events;
	if (rc == RC_AGAIN)
		return;
	if (!rc && !n) {
		fds_close(fds, n_fds);
		peer_free(p);
		return;
	}
	if (!rc)
		rc = message_open(control.in, n, n_fds, &head, &w, &f);
	if (!rc)
		rc = peer_answer(p, &head, &w, fds, n_fds, &f);
	fds_close(fds, n_fds);
	if (rc) {
		log_fault(LOG_LEVEL_WARN, &f, "an API worker's connection is closed");
		peer_free(p);
	}
}

static void on_accept(void *arg, int fd)
{
	struct peer *p = NULL;
	struct fault f;
	pid_t pid;
	uid_t uid;
	gid_t gid;
	enum rc rc = unix_peer(fd, &pid, &uid, &gid, &f);

	(void)arg;
	if (!rc && uid != control.api && uid != 0)
		rc = fault_set(&f, RC_DENIED, 0, "uid %u may not make tickets", uid);
	if (!rc && control.n_peers >= GATEWAY_PEERS_MAX)
		rc = fault_set(&f, RC_LIMIT, 0, "%d workers are connected", GATEWAY_PEERS_MAX);
	if (!rc) {
		p = calloc(1, sizeof(*p));
		if (!p)
			rc = fault_set(&f, RC_NOMEM, 0, "out of memory");
	}
	if (!rc)
		rc = loop_fd(control.gw->loop, fd, EPOLLIN, on_peer, p, &p->source, &f);
	if (rc) {
		log_fault(LOG_LEVEL_WARN, &f, "a connection to gateway.sock was refused");
		free(p);
		close(fd);
		return;
	}
	p->fd = fd;
	p->next = control.peers;
	if (p->next)
		p->next->prev = p;
	control.peers = p;
	control.n_peers++;
}

enum rc control_start(struct gateway *gw, int listener, uid_t api, struct fault *ret_f)
{
	control.gw = gw;
	control.api = api;
	return acceptor_start(&control.acceptor, gw->loop, listener, on_accept, NULL, ret_f);
}

void control_free(void)
{
	acceptor_stop(&control.acceptor);
	while (control.peers)
		peer_free(control.peers);
}
