/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A guest's DNS, as its sockets take it: dnsd.c with a real policy and table of names. The first byte says how: a datagram, or a stream
 * of TCP messages (several in it, and cut anywhere). Each answer is read by the C library's own parser: it repeats the number and the question, has at most one
 * record, of the kind that was asked for, and an address stands for the name that was asked for.
 */
#include "base/fd.h"
#include "vmm/egress/dns.h"
#include "vmm/egress/limits.h"
#include "vmm/egress/sandbox.h"

#include <arpa/nameser.h>
#include <resolv.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define MESSAGE_MOST 4096 /* over TCP */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char policy[] = POLICY_HEAD "\ndefault none\norg acme\nallow *.test\nallow web.example:443\nallow a-long-label.with-many.parts.example\ndeny no.test\n";
static struct egress eg;
static struct sandbox sb = { .eg = &eg, .id = "sbx_fuzz" };
static int accepted = -1;
static size_t rows;

/* What dnsd.c calls and needs no more of the proxy for. */
bool bucket_take(struct bucket *b, uint64_t now, uint32_t per_s, uint32_t burst)
{
	(void)b, (void)now, (void)per_s, (void)burst;
	return true;
}

void port_accept_failed(struct port *p, int sys)
{
	(void)p, (void)sys;
}

void sandbox_row(struct sandbox *s, struct ledger_row *row)
{
	if (s != &sb || !row->rule || strcmp(row->decision, "deny") || (row->name ? !*row->name : strcmp(row->rule, "not a host name") != 0))
		abort();
	rows++;
}

int __wrap_accept4(int fd, struct sockaddr *sa, socklen_t *n, int flags);
int __wrap_accept4(int fd, struct sockaddr *sa, socklen_t *n, int flags)
{
	int got = accepted;

	(void)fd, (void)sa, (void)n, (void)flags;
	accepted = -1;
	return got;
}

static void check(const uint8_t *answer, size_t n)
{
	char name[NS_MAXDNAME], text[POLICY_NAME_MAX];
	struct name_entry *e;
	ns_msg m;
	ns_rr q, r;
	ns_type type;

	if (n < DNS_HEAD || ns_initparse(answer, (int)n, &m))
		abort();
	if (!ns_msg_getflag(m, ns_f_qr) || ns_msg_getflag(m, ns_f_tc) || ns_msg_count(m, ns_s_qd) > 1 || ns_msg_count(m, ns_s_an) > 1 ||
	    ns_msg_count(m, ns_s_ns) || ns_msg_count(m, ns_s_ar) > 1)
		abort();
	if (!ns_msg_count(m, ns_s_qd)) {
		if (ns_msg_count(m, ns_s_an) || !ns_msg_getflag(m, ns_f_rcode))
			abort();
		return;
	}
	/* A name that the library cannot show is longer than it takes, or of bytes that it escapes. */
	if (ns_parserr(&m, ns_s_qd, 0, &q) || !ns_msg_count(m, ns_s_an))
		return;
	if (ns_parserr(&m, ns_s_an, 0, &r) || ns_msg_getflag(m, ns_f_rcode) || ns_rr_ttl(r) > EGRESS_DNS_TTL_S)
		abort();
	type = ns_rr_type(r);
	if ((type != ns_t_a && type != ns_t_ptr) || (ns_rr_type(q) != type && ns_rr_type(q) != ns_t_any) || strcasecmp(ns_rr_name(q), ns_rr_name(r)))
		abort();
	if (type == ns_t_ptr) {
		if (dn_expand(answer, answer + n, ns_rr_rdata(r), name, sizeof(name)) <= 0 || !names_find_name(sb.names, name))
			abort();
		return;
	}
	if (ns_rr_rdlen(r) != 4 || !name_normalize(text, ns_rr_name(q), strlen(ns_rr_name(q))))
		abort();
	if (ns_rr_rdata(r)[0] == 127)
		return;
	e = names_find(sb.names, ns_rr_rdata(r));
	if (!e || strcmp(e->name, text))
		abort();
}

static void datagram(const uint8_t *data, size_t n)
{
	uint8_t answer[EGRESS_DNS_MESSAGE_MAX];
	ssize_t k;
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair))
		abort();
	sb.dns_udp = (struct port){ .sb = &sb, .fd = pair[1] };
	if (send(pair[0], data, n, 0) == (ssize_t)n) {
		dnsd_udp(&sb.dns_udp, EPOLLIN);
		k = recv(pair[0], answer, sizeof(answer), MSG_TRUNC);
		if (k > (ssize_t)sizeof(answer))
			abort();
		if (k >= 0) {
			if (n < DNS_HEAD || memcmp(answer, data, 2))
				abort();
			check(answer, (size_t)k);
		}
	}
	close(pair[0]);
	close(pair[1]);
}

/* Pieces of as many bytes as the stream's own first byte says. */
static void stream(const uint8_t *data, size_t n)
{
	static uint8_t got[1 << 20];
	size_t piece = n ? 1 + data[0] : 1, have = 0, at = 0;
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair))
		abort();
	accepted = pair[1];
	sb.dns_tcp = (struct port){ .sb = &sb, .fd = -1 };
	dnsd_accept(&sb.dns_tcp, EPOLLIN);
	for (size_t i = 1; i < n && sb.n_dns_conns; i += piece) {
		ssize_t k;

		if (send(pair[0], data + i, piece < n - i ? piece : n - i, MSG_NOSIGNAL) < 0)
			break;
		loop_once(eg.loop, 0, NULL);
		k = recv(pair[0], got + have, sizeof(got) - have, 0);
		have += k > 0 ? (size_t)k : 0;
	}
	while (at + 2 <= have) {
		size_t len = (size_t)got[at] << 8 | got[at + 1];

		if (len > MESSAGE_MOST || at + 2 + len > have)
			break; /* the connection ended in it */
		check(got + at + 2, len);
		at += 2 + len;
	}
	dnsd_close_all(&sb);
	loop_once(eg.loop, 0, NULL);
	close(pair[0]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fault f;

	if (!eg.loop && (loop_new(&eg.loop, &f) || policy_parse(policy, sizeof(policy) - 1, &sb.policy, &f)))
		abort();
	if (!size || size > 65536 || names_new(&sb.names, &f))
		return 0;
	/* A name that is known, so that a reverse question has an answer. */
	if (!names_get(sb.names, "known.test"))
		abort();
	if (data[0] & 1)
		stream(data + 1, size - 1);
	else
		datagram(data + 1, size - 1);
	names_free(sb.names);
	sb.names = NULL;
	return 0;
}
