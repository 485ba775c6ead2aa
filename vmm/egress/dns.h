/* SPDX-License-Identifier: Apache-2.0 */
/*
 * DNS messages as a guest sends them, and our answers (RFC 1035, 6891, 8914). Pure functions on bytes. There is exactly one
 * question in a message and its name is never compressed, which leaves little to parse and nothing to loop in.
 */
#ifndef NB_EGRESS_DNS_H
#define NB_EGRESS_DNS_H

#include "schema/verdict.h"

#define DNS_HEAD 12
#define DNS_TYPE_A 1
#define DNS_TYPE_PTR 12
#define DNS_TYPE_AAAA 28
#define DNS_TYPE_SVCB 64
#define DNS_TYPE_HTTPS 65

enum dns_rcode { DNS_NOERROR = 0, DNS_FORMERR = 1, DNS_SERVFAIL = 2, DNS_NXDOMAIN = 3, DNS_NOTIMP = 4, DNS_REFUSED = 5 };

struct dns_question {
	char name[POLICY_NAME_MAX]; /* normal; empty if it is no host name (then the answer is NXDOMAIN) */
	uint16_t type, class;
	bool edns;
	size_t question_n;          /* bytes of the question section, repeated in the answer */
};

struct dns_answer {
	enum dns_rcode rcode;
	uint32_t ttl_s;
	bool has_address;
	uint8_t address[4];         /* an A record */
	const char *pointer;        /* or a PTR record's name */
	const char *blocked;        /* or, for a client that speaks EDNS, why it was blocked (extended error 15) */
};

/* DNS_NOERROR if it is a question for us; else the code to answer with. -1: not even a header, no answer. */
int dns_parse(const uint8_t *msg, size_t n, struct dns_question *ret);
/* Answers msg (which dns_parse() has seen) into out. 0 if it does not fit. */
size_t dns_answer(const uint8_t *msg, const struct dns_question *q, const struct dns_answer *a, uint8_t *out, size_t size);
/* "4.3.2.1.in-addr.arpa" to 1.2.3.4 */
bool dns_reverse(const char *name, uint8_t ret[4]);

#endif
