/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory: a connection that the namespace redirected here is judged before anything leaves the host. Its destination is a
 * synthetic address, which means one name in this sandbox, or a literal one.
 *
 *   accept -> judge -> [FIRST: ClientHello] -> [RESOLVING] -> CONNECTING -> RELAY -> end
 *               |              |                    |              |
 *               +--------------+------ no ----------+--------------+--> REFUSING (port 80) or reset
 *
 * A name is resolved here, at this moment; the address that was checked is the address that is connected to, so what the
 * guest saw or said plays no part. On port 443 the TLS server name must be the name that was resolved.
 */
#include "vmm/egress/conn.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "vmm/egress/hello.h"
#include "vmm/egress/intercept.h"

#include <errno.h>
#include <linux/netfilter_ipv4.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define PORT_HTTP 80
#define PORT_HTTPS 443

static void connect_next(struct conn *c);

uint64_t conn_now(const struct conn *c)
{
	return loop_now_ms(c->sb->eg->loop);
}

static void set_deadline(struct conn *c, uint64_t ms)
{
	c->deadline_ms = conn_now(c) + ms;
	loop_timer_set(c->timer, c->deadline_ms);
}

static void close_side(struct side *s, bool reset)
{
	struct linger now = { .l_onoff = 1, .l_linger = 0 };

	source_drop(&s->source);
	if (s->fd >= 0 && reset)
		setsockopt(s->fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
	close_fd(&s->fd);
}

static void stop_waiting(struct conn *c)
{
	struct meter *m = &c->sb->meter;
	struct conn *before = NULL;

	if (!c->waits)
		return;
	if (m->first != c)
		for (before = m->first; before->waits_next != c;)
			before = before->waits_next;
	if (before)
		before->waits_next = c->waits_next;
	else
		m->first = c->waits_next;
	if (m->last == c)
		m->last = before;
	c->waits_next = NULL;
	c->waits = false;
}

/*
 * Theory: a guest that reads nothing makes the proxy hold what its upstreams send. Each connection has its bound; the sum has one, too,
 * so that one sandbox cannot have all of the memory. Beyond it a connection still goes on in small pieces while it holds next to nothing,
 * so those that are read from go on beside those that are not. The directions are apart, or HTTP/2 would wait for
 * a window that stands unread in the other one.
 */
static size_t room_for(struct conn *c, enum conn_way way, size_t want)
{
	struct sandbox *sb = c->sb;
	bool mine = sb->usage.held < EGRESS_HELD_MAX, ours = share_allows(sb->tenant->usage.held, sb->eg->usage.held, sb->eg->most.held);

	if (mine && ours)
		return want;
	want = MIN_OF(want, c->held[way] < EGRESS_HELD_FLOOR ? EGRESS_HELD_FLOOR - c->held[way] : 0);
	if (!want)
		c->full[way] = sb->tight = true;
	sb->eg->tight |= !want && !ours;
	return want;
}

bool conn_holds(struct conn *c, size_t out, size_t in)
{
	const size_t now[2] = { out, in };
	struct sandbox *sb = c->sb;
	bool again = false;

	for (int i = 0; i < 2; i++) {
		sandbox_count(sb, 0, 0, now[i] - c->held[i]);
		c->held[i] = now[i];
		again |= c->full[i] && now[i] < EGRESS_HELD_FLOOR;
		c->full[i] = c->full[i] && now[i] >= EGRESS_HELD_FLOOR;
	}
	/* Not at once below the bound, or each byte would wake everybody. */
	if (sb->tight && sb->usage.held < EGRESS_HELD_MAX / 4 * 3 &&
	    share_allows(sb->tenant->usage.held / 3 * 4, sb->eg->usage.held, sb->eg->most.held))
		loop_timer_set(sb->room, loop_now_ms(sb->eg->loop));
	/* Below half every organization has room (tenant.h). */
	if (sb->eg->tight && sb->eg->usage.held < sb->eg->most.held / 8 * 3)
		conn_room_all(sb->eg);
	return again;
}

void conn_room_all(struct egress *eg)
{
	eg->tight = false;
	for (struct sandbox *sb = eg->sandboxes; sb; sb = sb->next)
		if (sb->tight)
			loop_timer_set(sb->room, loop_now_ms(eg->loop));
}

void conn_room(void *sandbox)
{
	struct sandbox *sb = sandbox;
	struct conn *next;

	sb->tight = false;
	for (struct conn *c = sb->conns; c; c = next) {
		next = c->next;
		if (!c->full[WAY_OUT] && !c->full[WAY_IN])
			continue;
		c->full[WAY_OUT] = c->full[WAY_IN] = false;
		if (c->state == CONN_TLS)
			intercept_resume(c);
		else if (c->state == CONN_RELAY)
			relay_resume(c);
	}
}

size_t conn_may_read(struct conn *c, enum conn_way way, size_t want, bool *ret_over)
{
	struct meter *m = &c->sb->meter;
	size_t n;

	*ret_over = meter_over(m);
	want = room_for(c, way, want);
	if (!want)
		return 0;
	n = c->waits ? 0 : meter_allow(m, conn_now(c), want);
	if (n || *ret_over || c->waits)
		return n;
	c->waits = true;
	if (m->last)
		m->last->waits_next = c;
	else
		m->first = c;
	m->last = c;
	if (m->first == c)
		loop_timer_set(m->timer, meter_next_ms(m, conn_now(c)));
	return 0;
}

/* In turn, until the tokens are gone: who finds none again is the last. */
void conn_meter_tick(void *sandbox)
{
	struct sandbox *sb = sandbox;
	struct meter *m = &sb->meter;
	struct conn *last = m->last;
	bool more = m->first;

	while (more && m->first && (meter_over(m) || meter_allow(m, loop_now_ms(sb->eg->loop), 1))) {
		struct conn *c = m->first;

		more = c != last;
		stop_waiting(c);
		if (c->state == CONN_TLS)
			intercept_resume(c);
		else
			relay_resume(c);
	}
	if (m->first)
		loop_timer_set(m->timer, meter_next_ms(m, loop_now_ms(sb->eg->loop)));
}

void conn_drop(struct conn *c, bool reset)
{
	stop_waiting(c);
	conn_holds(c, 0, 0);
	lookup_cancel(c->lookup);
	intercept_free(c->tls);
	close_side(&c->guest, reset);
	close_side(&c->up, reset);
	source_drop(&c->timer);
	buf_free(&c->out.held);
	buf_free(&c->in.held);
	if (c->prev)
		c->prev->next = c->next;
	else
		c->sb->conns = c->next;
	if (c->next)
		c->next->prev = c->prev;
	sandbox_count(c->sb, (size_t)-1, c->state == CONN_TLS ? (size_t)-1 : 0, 0);
	free(c);
}

static void conn_row(struct conn *c, const char *decision, const char *reason)
{
	const struct address *a = c->name[0] ? (c->n_addrs ? &c->addrs[c->at_addr] : NULL) : &c->dst;
	char text[ADDRESS_TEXT_MAX] = "";
	struct ledger_row row = { .protocol = c->protocol, .name = c->name, .port = c->port, .decision = decision,
				  .rule = c->verdict.rule, .reason = reason, .bytes_out = c->out.bytes,
				  .bytes_in = c->in.bytes, .duration_ms = conn_now(c) - c->started_ms };

	row.address = a ? address_text(a, text) : NULL;
	sandbox_row(c->sb, &row);
}

void conn_end(struct conn *c, const char *decision, const char *reason, bool reset)
{
	conn_row(c, decision, reason);
	conn_drop(c, reset);
}

void conn_refuse(struct conn *c, int status, const char *decision, const char *why)
{
	/* Only a decision of ours is explained. What the network would not do fails as it would without a proxy, so that a
	 * client sees its own connection error and not an answer that no server gave. */
	if (c->port != PORT_HTTP || status != 403) {
		conn_end(c, decision, why, true);
		return;
	}
	lookup_cancel(c->lookup);
	c->lookup = NULL;
	close_side(&c->up, true);
	c->protocol = "http";
	conn_row(c, decision, why);
	c->refuse_status = status;
	c->refuse_why = why ? why : c->verdict.rule;
	c->state = CONN_REFUSING;
	set_deadline(c, EGRESS_FIRST_MS);
	refuse_start(c);
}

/* --- upstream ------------------------------------------------------------------------------------------------ */

static bool intercepted(const struct conn *c)
{
	return c->name[0] && policy_intercepts(c->sb->policy, c->name, c->port);
}

void conn_options(int fd)
{
	int on = 1, idle = EGRESS_KEEPALIVE_S;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
}

static void connected(struct conn *c)
{
	conn_options(c->up.fd);
	if (intercepted(c)) {
		if (c->sb->usage.tls >= EGRESS_TLS_CONNS_MAX) {
			conn_end(c, "deny", "limit of intercepted connections", true);
			return;
		}
		if (!share_allows(c->sb->tenant->usage.tls, c->sb->eg->usage.tls, c->sb->eg->most.tls)) {
			conn_end(c, "deny", "limit of intercepted connections of the organization", true);
			return;
		}
		c->state = CONN_TLS;
		sandbox_count(c->sb, 0, 1, 0);
		intercept_start(c);
		return;
	}
	c->state = CONN_RELAY;
	relay_start(c);
}

static const char *connect_error(int sys)
{
	switch (sys) {
	case ECONNREFUSED: return "connection refused";
	case ETIMEDOUT: return "no answer";
	case EHOSTUNREACH:
	case ENETUNREACH: return "no route";
	default: return "cannot connect";
	}
}

static void connect_failed(struct conn *c, int sys)
{
	close_side(&c->up, false);
	if (c->at_addr + 1 < c->n_addrs) {
		c->at_addr++;
		connect_next(c);
		return;
	}
	conn_refuse(c, 502, "error", connect_error(sys));
}

static void on_up(void *arg, uint32_t events)
{
	struct side *s = arg;
	struct conn *c = s->conn;
	socklen_t n = sizeof(int);
	int err = 0;

	if (c->state == CONN_TLS) {
		intercept_event(c, events);
		return;
	}
	if (c->state != CONN_CONNECTING) {
		relay_event(s, events);
		return;
	}
	if (events & (EPOLLERR | EPOLLHUP) && (getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &err, &n) < 0 || err))
		connect_failed(c, err);
	else
		connected(c);
}

static void connect_next(struct conn *c)
{
	struct sockaddr_storage sa;
	socklen_t n = address_to_sockaddr(&sa, &c->addrs[c->at_addr], c->port);

	c->state = CONN_CONNECTING;
	c->up.fd = socket(sa.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (c->up.fd < 0 || (connect(c->up.fd, (const struct sockaddr *)&sa, n) < 0 && errno != EINPROGRESS)) {
		connect_failed(c, errno);
		return;
	}
	if (loop_fd(c->sb->eg->loop, c->up.fd, EPOLLOUT, on_up, &c->up, &c->up.source, NULL)) {
		conn_end(c, "error", "out of memory", true);
		return;
	}
	loop_timer_set(c->timer, MIN_OF(c->deadline_ms, conn_now(c) + EGRESS_CONNECT_ONE_MS));
}

/* Keeps the addresses that may be reached, in order; the verdict stays the name's unless none is left. */
static bool judge_resolved(struct conn *c, const struct address *addrs, size_t n)
{
	struct verdict v;

	c->n_addrs = c->at_addr = 0;
	for (size_t i = 0; i < n && c->n_addrs < EGRESS_ADDRS_MAX; i++)
		if (policy_evaluate_resolved(c->sb->policy, &addrs[i], c->port, &c->sb->eg->reach, &v))
			c->addrs[c->n_addrs++] = addrs[i];
	if (c->n_addrs)
		return true;
	c->addrs[0] = addrs[0];
	c->n_addrs = 1; /* for the ledger: where it would have gone */
	c->verdict = v;
	return false;
}

static void go_to(struct conn *c, const struct address *addrs, size_t n)
{
	if (!judge_resolved(c, addrs, n)) {
		conn_refuse(c, 403, "deny", NULL);
		return;
	}
	set_deadline(c, EGRESS_CONNECT_MS);
	connect_next(c);
}

static void remember(struct conn *c, const struct address *addrs, size_t n, uint32_t ttl_s)
{
	struct name_entry *e = names_find_name(c->sb->names, c->name);
	struct address *copy = e ? reallocarray(e->resolved, n, sizeof(*copy)) : NULL;

	if (!copy)
		return;
	memcpy(copy, addrs, n * sizeof(*copy));
	e->resolved = copy;
	e->n_resolved = n;
	ttl_s = MIN_OF(MAX_OF(ttl_s, (uint32_t)EGRESS_CACHE_MIN_S), (uint32_t)EGRESS_CACHE_MAX_S);
	e->resolved_until_ms = conn_now(c) + ttl_s * 1000u;
}

static void on_resolved(void *arg, const struct address *addrs, size_t n, uint32_t ttl_s, const char *why)
{
	struct conn *c = arg;

	c->lookup = NULL;
	if (!n) {
		conn_refuse(c, 502, "error", why);
		return;
	}
	remember(c, addrs, n, ttl_s);
	go_to(c, addrs, n);
}

static void begin_upstream(struct conn *c)
{
	struct name_entry *e;
	struct fault f;

	if (!c->name[0]) {
		/* Judged already; once more is the price of one path for all. */
		go_to(c, &c->dst, 1);
		return;
	}
	e = names_find_name(c->sb->names, c->name);
	if (e && e->n_resolved && e->resolved_until_ms > conn_now(c)) {
		go_to(c, e->resolved, e->n_resolved);
		return;
	}
	c->state = CONN_RESOLVING;
	set_deadline(c, EGRESS_RESOLVE_MS);
	if (resolver_lookup(c->sb->eg->resolver, c->sb->lookups, c->name, on_resolved, c, &c->lookup, &f))
		conn_refuse(c, 502, "error", f.rc == RC_LIMIT ? "too many names are being resolved" : "out of memory");
}

/* --- the guest's side ---------------------------------------------------------------------------------------- */

static void on_hello(struct conn *c)
{
	uint8_t data[EGRESS_HELLO_MAX];
	ssize_t n = recv(c->guest.fd, data, sizeof(data), MSG_PEEK);
	char sni[POLICY_NAME_MAX];
	int want;

	if (n < 0 && errno == EAGAIN)
		return;
	if (n <= 0) {
		conn_end(c, "error", "closed before the ClientHello", true);
		return;
	}
	switch (hello_parse(data, (size_t)n, sni)) {
	case HELLO_MORE:
		/* Wakes up when there is more than what was seen, not again for that. */
		want = (int)n + 1;
		if (c->low_water == want) {
			conn_end(c, "error", "closed before the ClientHello", true);
			return;
		}
		c->low_water = want;
		setsockopt(c->guest.fd, SOL_SOCKET, SO_RCVLOWAT, &want, sizeof(want));
		return;
	case HELLO_NOT_TLS:
		conn_end(c, "deny", "not TLS where TLS is expected", true);
		return;
	case HELLO_BAD:
		conn_end(c, "deny", "malformed ClientHello", true);
		return;
	case HELLO_DONE: break;
	}
	if (strcmp(sni, c->name)) {
		conn_end(c, "deny", sni[0] ? "TLS server name is not the resolved name" : "no TLS server name", true);
		return;
	}
	want = 1;
	setsockopt(c->guest.fd, SOL_SOCKET, SO_RCVLOWAT, &want, sizeof(want));
	loop_fd_events(c->guest.source, 0, NULL);
	begin_upstream(c);
}

static void on_guest(void *arg, uint32_t events)
{
	struct side *s = arg;
	struct conn *c = s->conn;

	switch (c->state) {
	case CONN_FIRST: on_hello(c); break;
	case CONN_RESOLVING:
	case CONN_CONNECTING:
		/* Nothing is read before there is a way out; only the end of the guest's socket comes here. */
		conn_end(c, "error", "the guest gave up", true);
		break;
	case CONN_RELAY: relay_event(s, events); break;
	case CONN_TLS: intercept_event(c, events); break;
	case CONN_REFUSING:
	case CONN_LINGER: refuse_event(c, events); break;
	}
}

static void on_timer(void *arg)
{
	struct conn *c = arg;

	switch (c->state) {
	case CONN_FIRST: conn_end(c, "error", "no ClientHello in time", true); break;
	case CONN_RESOLVING: conn_refuse(c, 502, "error", "the resolver did not answer"); break;
	case CONN_CONNECTING:
		if (conn_now(c) >= c->deadline_ms)
			c->at_addr = c->n_addrs - 1;
		connect_failed(c, ETIMEDOUT);
		break;
	case CONN_RELAY: relay_timeout(c); break;
	case CONN_TLS: intercept_timeout(c); break;
	case CONN_REFUSING: /* has its row */
	case CONN_LINGER: conn_drop(c, true); break;
	}
}

static bool judge(struct conn *c)
{
	if (meter_over(&c->sb->meter)) {
		snprintf(c->verdict.rule, sizeof(c->verdict.rule), CONN_OVER);
		return false;
	}
	if (c->name[0])
		return policy_evaluate_name(c->sb->policy, c->name, c->port, &c->verdict);
	if (names_is_synthetic(&c->dst)) {
		snprintf(c->verdict.rule, sizeof(c->verdict.rule), "synthetic address of no name");
		return false;
	}
	return policy_evaluate_address(c->sb->policy, &c->dst, c->port, &c->sb->eg->reach, &c->verdict);
}

static void begin(struct conn *c)
{
	struct name_entry *e = names_is_synthetic(&c->dst) ? names_find(c->sb->names, c->dst.bytes) : NULL;

	if (e)
		memcpy(c->name, e->name, sizeof(c->name));
	c->protocol = c->port == PORT_HTTPS ? "tls" : c->port == PORT_HTTP ? "http" : "tcp";
	if (!judge(c)) {
		conn_refuse(c, 403, "deny", NULL);
		return;
	}
	if (e && intercepted(c) &&
	    (!c->sb->ca || (!c->sb->secrets && policy_has_secret_for(c->sb->policy, c->name, c->port)))) {
		conn_end(c, "error", policy_has_secret_for(c->sb->policy, c->name, c->port) ? "the secret of this host cannot be opened here"
									: "its TLS cannot be ended here: there is no key", true);
		return;
	}
	if (e && (c->port == PORT_HTTPS || intercepted(c))) {
		c->state = CONN_FIRST;
		set_deadline(c, EGRESS_FIRST_MS);
		loop_fd_events(c->guest.source, EPOLLIN, NULL);
		return;
	}
	begin_upstream(c);
}

static bool original_dst(int fd, struct address *ret, uint16_t *ret_port)
{
	struct sockaddr_in sa;
	socklen_t n = sizeof(sa);

	return getsockopt(fd, IPPROTO_IP, SO_ORIGINAL_DST, &sa, &n) == 0 &&
	       address_from_sockaddr(ret, ret_port, (const struct sockaddr *)&sa);
}

static void over_limit(struct sandbox *sb, int fd, const char *rule)
{
	struct conn c = { .sb = sb, .guest.fd = fd, .up.fd = -1, .protocol = "tcp" };

	c.started_ms = loop_now_ms(sb->eg->loop);
	original_dst(fd, &c.dst, &c.port);
	snprintf(c.verdict.rule, sizeof(c.verdict.rule), "%s", rule);
	conn_row(&c, "deny", NULL);
	close_side(&c.guest, true);
}

static void conn_new(struct sandbox *sb, int fd)
{
	struct conn *c = calloc(1, sizeof(*c));

	if (!c) {
		over_limit(sb, fd, "out of memory");
		return;
	}
	c->sb = sb;
	c->next = sb->conns;
	if (c->next)
		c->next->prev = c;
	sb->conns = c;
	sandbox_count(sb, 1, 0, 0);
	c->guest = (struct side){ .conn = c, .fd = fd };
	c->up = (struct side){ .conn = c, .fd = -1 };
	c->out.held.max = c->in.held.max = EGRESS_BUFFER;
	c->started_ms = c->active_ms = conn_now(c);
	if (!original_dst(fd, &c->dst, &c->port) ||
	    loop_fd(sb->eg->loop, fd, 0, on_guest, &c->guest, &c->guest.source, NULL) ||
	    loop_timer(sb->eg->loop, UINT64_MAX, on_timer, c, &c->timer, NULL)) {
		conn_end(c, "error", "no original destination, or out of memory", true);
		return;
	}
	begin(c);
}

static bool conn_rate_allows(struct sandbox *sb)
{
	uint64_t limit = sb->meter.limits.conns_per_s;
	uint32_t per_s = limit && limit < EGRESS_CONN_PER_S ? (uint32_t)limit : EGRESS_CONN_PER_S;

	return bucket_take(&sb->conn_rate, loop_now_ms(sb->eg->loop), per_s, per_s * (EGRESS_CONN_BURST / EGRESS_CONN_PER_S));
}

void conn_accept(void *port, uint32_t events)
{
	struct port *p = port;
	struct sandbox *sb = p->sb;

	(void)events;
	for (int i = 0; i < EGRESS_ACCEPT_BATCH; i++) {
		int fd = accept4(p->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

		if (fd < 0) {
			port_accept_failed(p, errno);
			return;
		}
		if (sb->usage.conns >= EGRESS_CONNS_MAX)
			over_limit(sb, fd, "limit of open connections");
		else if (!share_allows(sb->tenant->usage.conns, sb->eg->usage.conns, sb->eg->most.conns))
			over_limit(sb, fd, "limit of open connections of the organization");
		else if (!conn_rate_allows(sb))
			over_limit(sb, fd, "limit of new connections per second");
		else
			conn_new(sb, fd);
	}
}

static bool still_allowed(struct conn *c)
{
	struct verdict v;

	if (c->state == CONN_REFUSING || c->state == CONN_LINGER)
		return true;
	if (!judge(c))
		return false;
	if (c->state == CONN_RELAY && intercepted(c)) {
		snprintf(c->verdict.rule, sizeof(c->verdict.rule), "requests of this host are judged now");
		return false;
	}
	if (!c->n_addrs || policy_evaluate_resolved(c->sb->policy, &c->addrs[c->at_addr], c->port, &c->sb->eg->reach, &v))
		return true;
	c->verdict = v;
	return false;
}

void conn_recheck_all(struct sandbox *sb)
{
	struct conn *next;

	for (struct conn *c = sb->conns; c; c = next) {
		next = c->next;
		if (!still_allowed(c))
			conn_end(c, "deny", "the policy changed", true);
	}
}

void conn_close_all(struct sandbox *sb, const char *reason)
{
	while (sb->conns) {
		struct conn *c = sb->conns;

		if (c->state == CONN_REFUSING || c->state == CONN_LINGER)
			conn_drop(c, true);
		else
			conn_end(c, c->state == CONN_RELAY || c->state == CONN_TLS ? "allow" : "error", reason, true);
	}
}
