/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/egress/dns.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

#define FLAG_QR 0x80
#define FLAG_AA 0x04
#define FLAG_TC 0x02
#define FLAG_RD 0x01
#define FLAG_RA 0x80
#define CLASS_IN 1
#define TYPE_OPT 41
#define OPT_FIXED 11 /* root name, type, class, TTL, length */
#define EDE_OPTION 15
#define EDE_BLOCKED 15
#define UDP_PAYLOAD 1232
#define NAME_WIRE_MAX 255

static uint16_t get16(const uint8_t *p)
{
	return (uint16_t)(p[0] << 8 | p[1]);
}

/* The wire name at msg[at], as text with dots. Returns the offset behind it, 0 if malformed. */
static size_t name_read(const uint8_t *msg, size_t n, size_t at, char text[NAME_WIRE_MAX + 1], size_t *ret_n)
{
	size_t used = 0, start = at;

	for (;;) {
		size_t label;

		if (at >= n)
			return 0;
		label = msg[at++];
		if (!label)
			break;
		if (label > 63 || label > n - at || at + label - start >= NAME_WIRE_MAX)
			return 0;
		if (used)
			text[used++] = '.';
		/* A dot inside a label would read as two labels; as NUL it is no host name. */
		for (size_t i = 0; i < label; i++)
			text[used++] = msg[at + i] == '.' ? '\0' : (char)msg[at + i];
		at += label;
	}
	*ret_n = used;
	return at;
}

/* The additional section may hold one OPT record, nothing else, and it is the end. */
static int opt_read(const uint8_t *msg, size_t n, size_t at, struct dns_question *q)
{
	if (n - at < OPT_FIXED || msg[at] || get16(msg + at + 1) != TYPE_OPT)
		return DNS_FORMERR;
	if (n - at - OPT_FIXED != get16(msg + at + 9))
		return DNS_FORMERR;
	q->edns = true;
	return DNS_NOERROR;
}

int dns_parse(const uint8_t *msg, size_t n, struct dns_question *ret)
{
	char text[NAME_WIRE_MAX + 1];
	struct dns_question q = { 0 };
	size_t at, name_n = 0;

	*ret = q;
	if (n < DNS_HEAD || (msg[2] & FLAG_QR))
		return -1;
	if (msg[2] & 0x78)
		return DNS_NOTIMP;
	if (get16(msg + 4) != 1 || get16(msg + 6) || get16(msg + 8) || get16(msg + 10) > 1)
		return DNS_FORMERR;
	at = name_read(msg, n, DNS_HEAD, text, &name_n);
	if (!at || n - at < 4)
		return DNS_FORMERR;
	q.type = get16(msg + at);
	q.class = get16(msg + at + 2);
	at += 4;
	q.question_n = at - DNS_HEAD;
	if (!name_normalize(q.name, text, name_n))
		q.name[0] = '\0';
	if (get16(msg + 10)) {
		int rcode = opt_read(msg, n, at, &q);

		if (rcode)
			return rcode;
	} else if (at != n) {
		return DNS_FORMERR;
	}
	*ret = q;
	return q.class == CLASS_IN ? DNS_NOERROR : DNS_REFUSED;
}

struct out {
	uint8_t *mem;
	size_t n, size;
	bool full;
};

static void put(struct out *o, const void *data, size_t n)
{
	if (o->full || n > o->size - o->n) {
		o->full = true;
		return;
	}
	memcpy(o->mem + o->n, data, n);
	o->n += n;
}

static void put16(struct out *o, size_t v)
{
	put(o, (uint8_t[]){ (uint8_t)(v >> 8), (uint8_t)v }, 2);
}

static void put32(struct out *o, uint32_t v)
{
	put16(o, v >> 16);
	put16(o, v & 0xffff);
}

static void put_name(struct out *o, const char *name)
{
	while (*name) {
		size_t n = strcspn(name, ".");

		put(o, (uint8_t[]){ (uint8_t)n }, 1);
		put(o, name, n);
		name += n + (name[n] == '.');
	}
	put(o, "", 1);
}

static void put_record(struct out *o, uint16_t type, uint32_t ttl)
{
	put16(o, 0xc000 | DNS_HEAD); /* the question's name */
	put16(o, type);
	put16(o, CLASS_IN);
	put32(o, ttl);
}

static void put_opt(struct out *o, const char *blocked)
{
	size_t n = blocked ? strlen(blocked) : 0;

	put(o, "", 1);
	put16(o, TYPE_OPT);
	put16(o, UDP_PAYLOAD);
	put32(o, 0);
	put16(o, blocked ? 6 + n : 0);
	if (!blocked)
		return;
	put16(o, EDE_OPTION);
	put16(o, 2 + n);
	put16(o, EDE_BLOCKED);
	put(o, blocked, n);
}

size_t dns_answer(const uint8_t *msg, const struct dns_question *q, const struct dns_answer *a, uint8_t *out, size_t size)
{
	struct out o = { .mem = out, .size = size };
	bool record = a->has_address || a->pointer;

	put(&o, msg, 2);
	put(&o, (uint8_t[]){ (uint8_t)(FLAG_QR | (msg[2] & (0x78 | FLAG_RD))), (uint8_t)(FLAG_RA | a->rcode) }, 2);
	put16(&o, q->question_n ? 1 : 0);
	put16(&o, record);
	put16(&o, 0);
	put16(&o, q->edns);
	put(&o, msg + DNS_HEAD, q->question_n);
	if (a->has_address) {
		put_record(&o, DNS_TYPE_A, a->ttl_s);
		put16(&o, 4);
		put(&o, a->address, 4);
	} else if (a->pointer) {
		put_record(&o, DNS_TYPE_PTR, a->ttl_s);
		put16(&o, strlen(a->pointer) + 2);
		put_name(&o, a->pointer);
	}
	if (q->edns)
		put_opt(&o, a->blocked);
	return o.full ? 0 : o.n;
}

bool dns_reverse(const char *name, uint8_t ret[4])
{
	unsigned int v[4];
	char canonical[64];
	int n = 0;

	if (sscanf(name, "%3u.%3u.%3u.%3u.in-addr.arpa%n", &v[3], &v[2], &v[1], &v[0], &n) != 4 || !n || name[n])
		return false;
	snprintf(canonical, sizeof(canonical), "%u.%u.%u.%u.in-addr.arpa", v[3], v[2], v[1], v[0]);
	if (strcmp(canonical, name))
		return false;
	for (int i = 0; i < 4; i++) {
		if (v[i] > 255)
			return false;
		ret[i] = (uint8_t)v[i];
	}
	return true;
}
