/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory: a guest's resolver is this file. An answer is made from the sandbox's policy and its table of synthetic addresses
 * alone; no question is ever passed on, so a name carries nothing out. Over UDP a question beyond the rate is dropped (the
 * client asks again); over TCP the connection ends.
 */
#include "base/cleanup.h"
#include "base/fd.h"
#include "vmm/egress/dns.h"
#include "vmm/egress/limits.h"
#include "vmm/egress/sandbox.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define TCP_MESSAGE_MAX 4096 /* a question is 300 bytes at most; room for padding options */
#define TYPE_ANY 255

struct dns_conn {
	struct sandbox *sb;
	struct dns_conn *next, *prev;
	int fd;
	struct source *source, *timer;
	size_t have, out_at, out_n;
	uint8_t in[2 + TCP_MESSAGE_MAX], out[2 + TCP_MESSAGE_MAX];
};

static void row_refused(struct sandbox *sb, const char *name, const char *rule)
{
	struct ledger_row row = { .protocol = "dns", .name = name, .port = 53, .decision = "deny", .rule = rule };

	if (bucket_take(&sb->dns_rows, loop_now_ms(sb->eg->loop), EGRESS_DNS_ROWS_PER_S, EGRESS_DNS_ROWS_BURST))
		sandbox_row(sb, &row);
}

static bool ends_in(const char *name, const char *tail)
{
	size_t n = strlen(name), k = strlen(tail);

	return n >= k && !strcmp(name + n - k, tail) && (n == k || name[n - k - 1] == '.');
}

static void decide_reverse(struct sandbox *sb, const struct dns_question *q, struct dns_answer *a)
{
	struct name_entry *e;
	uint8_t address[4];

	a->rcode = DNS_NXDOMAIN;
	if (q->type != DNS_TYPE_PTR || !dns_reverse(q->name, address))
		return;
	e = names_find(sb->names, address);
	if (!e)
		return;
	a->rcode = DNS_NOERROR;
	a->pointer = e->name;
	a->ttl_s = EGRESS_DNS_TTL_S;
}

/* why: room for the text that a->blocked may point to. */
static void decide(struct sandbox *sb, const struct dns_question *q, struct dns_answer *a, struct verdict *why)
{
	bool wants_a = q->type == DNS_TYPE_A || q->type == TYPE_ANY;
	struct name_entry *e;

	if (!q->name[0]) {
		a->rcode = DNS_NXDOMAIN;
		row_refused(sb, NULL, "not a host name");
	} else if (ends_in(q->name, "in-addr.arpa") || ends_in(q->name, "ip6.arpa")) {
		decide_reverse(sb, q, a);
	} else if (ends_in(q->name, "localhost")) {
		a->has_address = wants_a;
		memcpy(a->address, (uint8_t[]){ 127, 0, 0, 1 }, 4);
	} else if (!policy_evaluate_name(sb->policy, q->name, 0, why)) {
		a->rcode = DNS_NXDOMAIN;
		a->blocked = why->rule;
		row_refused(sb, q->name, why->rule);
	} else if (wants_a) {
		e = names_get(sb->names, q->name);
		if (!e) {
			a->rcode = DNS_SERVFAIL;
			return;
		}
		a->has_address = true;
		a->ttl_s = EGRESS_DNS_TTL_S;
		memcpy(a->address, e->address, 4);
	}
}

static size_t answer(struct sandbox *sb, const uint8_t *msg, size_t n, uint8_t *out, size_t size)
{
	struct dns_question q;
	struct dns_answer a = { .rcode = DNS_NOERROR };
	struct verdict why;
	int rcode = dns_parse(msg, n, &q);

	if (rcode < 0)
		return 0;
	if (rcode)
		a.rcode = (enum dns_rcode)rcode;
	else
		decide(sb, &q, &a, &why);
	return dns_answer(msg, &q, &a, out, size);
}

void dnsd_udp(void *port, uint32_t events)
{
	struct port *p = port;
	struct sandbox *sb = p->sb;

	(void)events;
	for (int i = 0; i < EGRESS_DNS_BATCH; i++) {
		uint8_t msg[EGRESS_DNS_MESSAGE_MAX], out[EGRESS_DNS_MESSAGE_MAX];
		struct sockaddr_storage from;
		socklen_t from_n = sizeof(from);
		ssize_t n = recvfrom(p->fd, msg, sizeof(msg), MSG_TRUNC, (struct sockaddr *)&from, &from_n);
		size_t k;

		if (n < 0)
			return;
		if ((size_t)n > sizeof(msg) ||
		    !bucket_take(&sb->dns_rate, loop_now_ms(sb->eg->loop), EGRESS_DNS_PER_S, EGRESS_DNS_BURST))
			continue;
		k = answer(sb, msg, (size_t)n, out, sizeof(out));
		if (k)
			sendto(p->fd, out, k, MSG_NOSIGNAL, (const struct sockaddr *)&from, from_n);
	}
}

static void dns_conn_free(struct dns_conn *c)
{
	source_drop(&c->source);
	source_drop(&c->timer);
	close_fd(&c->fd);
	if (c->prev)
		c->prev->next = c->next;
	else
		c->sb->dns_conns = c->next;
	if (c->next)
		c->next->prev = c->prev;
	c->sb->n_dns_conns--;
	free(c);
}

void dnsd_close_all(struct sandbox *sb)
{
	while (sb->dns_conns)
		dns_conn_free(sb->dns_conns);
}

static void dns_conn_idle(void *arg)
{
	dns_conn_free(arg);
}

/* Answers the message that is complete, if one is. False: the connection has to end. */
static bool dns_conn_answer(struct dns_conn *c)
{
	size_t n, k;

	if (c->have < 2)
		return true;
	n = (size_t)c->in[0] << 8 | c->in[1];
	if (n > TCP_MESSAGE_MAX)
		return false;
	if (c->have < 2 + n)
		return true;
	if (!bucket_take(&c->sb->dns_rate, loop_now_ms(c->sb->eg->loop), EGRESS_DNS_PER_S, EGRESS_DNS_BURST))
		return false;
	k = answer(c->sb, c->in + 2, n, c->out + 2, TCP_MESSAGE_MAX);
	if (!k)
		return false;
	c->out[0] = (uint8_t)(k >> 8);
	c->out[1] = (uint8_t)k;
	c->out_at = 0;
	c->out_n = k + 2;
	c->have -= 2 + n;
	memmove(c->in, c->in + 2 + n, c->have);
	return true;
}

/* One answer is in flight at a time: a client that does not read gets no further ones. */
static bool dns_conn_step(struct dns_conn *c)
{
	for (;;) {
		ssize_t k;

		while (c->out_n) {
			k = send(c->fd, c->out + c->out_at, c->out_n, MSG_NOSIGNAL);
			if (k < 0)
				return errno == EAGAIN && !loop_fd_events(c->source, EPOLLOUT, NULL);
			c->out_at += (size_t)k;
			c->out_n -= (size_t)k;
		}
		if (!dns_conn_answer(c))
			return false;
		if (c->out_n)
			continue;
		k = recv(c->fd, c->in + c->have, sizeof(c->in) - c->have, 0);
		if (k < 0)
			return errno == EAGAIN && !loop_fd_events(c->source, EPOLLIN, NULL);
		if (!k)
			return false;
		c->have += (size_t)k;
		loop_timer_set(c->timer, loop_now_ms(c->sb->eg->loop) + EGRESS_DNS_IDLE_MS);
	}
}

static void dns_conn_event(void *arg, uint32_t events)
{
	struct dns_conn *c = arg;

	(void)events;
	if (!dns_conn_step(c))
		dns_conn_free(c);
}

static void dns_conn_new(struct sandbox *sb, int fd)
{
	struct dns_conn *c = sb->n_dns_conns < EGRESS_DNS_CONNS_MAX ? calloc(1, sizeof(*c)) : NULL;

	if (!c) {
		close(fd);
		return;
	}
	c->sb = sb;
	c->fd = fd;
	c->next = sb->dns_conns;
	if (c->next)
		c->next->prev = c;
	sb->dns_conns = c;
	sb->n_dns_conns++;
	if (loop_fd(sb->eg->loop, fd, EPOLLIN, dns_conn_event, c, &c->source, NULL) ||
	    loop_timer(sb->eg->loop, loop_now_ms(sb->eg->loop) + EGRESS_DNS_IDLE_MS, dns_conn_idle, c, &c->timer, NULL))
		dns_conn_free(c);
}

void dnsd_accept(void *port, uint32_t events)
{
	struct port *p = port;

	(void)events;
	for (int i = 0; i < EGRESS_ACCEPT_BATCH; i++) {
		int fd = accept4(p->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

		if (fd < 0) {
			port_accept_failed(p, errno);
			return;
		}
		dns_conn_new(p->sb, fd);
	}
}
