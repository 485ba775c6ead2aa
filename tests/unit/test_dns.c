/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/lib/check.h"
#include "vmm/egress/dns.h"
#include "vmm/egress/limits.h"
#include "vmm/egress/names.h"

static size_t query(uint8_t *q, const char *wire, size_t wire_n, uint16_t type, bool edns)
{
	static const uint8_t opt[11] = { 0, 0, 41, 4, 208 };
	size_t n = DNS_HEAD;

	memset(q, 0, DNS_HEAD);
	q[0] = 0xab;
	q[1] = 0xcd;
	q[2] = 1;
	q[5] = 1;
	q[11] = edns;
	memcpy(q + n, wire, wire_n);
	n += wire_n;
	memcpy(q + n, (uint8_t[]){ (uint8_t)(type >> 8), (uint8_t)type, 0, 1 }, 4);
	n += 4;
	if (edns)
		memcpy(q + n, opt, sizeof(opt));
	return n + (edns ? sizeof(opt) : 0);
}
#define QUERY(q, wire, type, edns) query(q, wire, sizeof(wire), type, edns)

TEST(a_question_is_read)
{
	struct dns_question d;
	uint8_t q[512];
	size_t n = QUERY(q, "\3Web\4test", DNS_TYPE_A, true);

	CHECK_EQ(dns_parse(q, n, &d), DNS_NOERROR);
	CHECK_STR(d.name, "web.test");
	CHECK_EQ(d.type, DNS_TYPE_A);
	CHECK(d.edns);
	/* Every shorter message is no question. */
	for (size_t k = 0; k < n; k++)
		CHECK(dns_parse(q, k, &d) != DNS_NOERROR);
	q[n] = 0;
	CHECK_EQ(dns_parse(q, n + 1, &d), DNS_FORMERR);
}

TEST(what_is_no_question_is_refused)
{
	struct dns_question d;
	uint8_t q[512];
	size_t n = QUERY(q, "\3web\4test", DNS_TYPE_A, false);

	q[2] = 0x81;
	CHECK_EQ(dns_parse(q, n, &d), -1); /* an answer is not answered */
	q[2] = 0x29;
	CHECK_EQ(dns_parse(q, n, &d), DNS_NOTIMP);
	q[2] = 1;
	q[5] = 2;
	CHECK_EQ(dns_parse(q, n, &d), DNS_FORMERR);
	q[5] = 1;
	q[7] = 1;
	CHECK_EQ(dns_parse(q, n, &d), DNS_FORMERR);
	q[7] = 0;
	q[n - 1] = 3;
	CHECK_EQ(dns_parse(q, n, &d), DNS_REFUSED);
	n = query(q, "\xc0\x0c", 2, DNS_TYPE_A, false);
	CHECK_EQ(dns_parse(q, n, &d), DNS_FORMERR);
	n = query(q, "\x40" "aaaa\0", 6, DNS_TYPE_A, false);
	CHECK_EQ(dns_parse(q, n, &d), DNS_FORMERR);
}

TEST(a_dot_in_a_label_makes_no_other_name)
{
	struct dns_question d;
	uint8_t q[512];
	size_t n = QUERY(q, "\10web.test", DNS_TYPE_A, false);

	CHECK_EQ(dns_parse(q, n, &d), DNS_NOERROR);
	CHECK_STR(d.name, "");
	n = QUERY(q, "\4a\0.b\4test", DNS_TYPE_A, false);
	CHECK_EQ(dns_parse(q, n, &d), DNS_NOERROR);
	CHECK_STR(d.name, "");
}

TEST(answers_are_well_formed)
{
	struct dns_answer a = { .has_address = true, .ttl_s = 60, .address = { 198, 18, 0, 1 } };
	struct dns_question d;
	uint8_t q[512], r[512];
	size_t n = QUERY(q, "\3web\4test", DNS_TYPE_A, false), k;

	CHECK_EQ(dns_parse(q, n, &d), DNS_NOERROR);
	k = dns_answer(q, &d, &a, r, sizeof(r));
	CHECK_EQ(k, n + 16);
	CHECK(!memcmp(r, "\xab\xcd\x81\x80\0\1\0\1\0\0\0\0", 12));
	CHECK(!memcmp(r + 12, q + 12, n - 12));
	CHECK(!memcmp(r + n, "\xc0\x0c\0\1\0\1\0\0\0\74\0\4\306\22\0\1", 16));
	CHECK_EQ(dns_answer(q, &d, &a, r, k - 1), 0);
}

TEST(a_refusal_says_why_to_who_can_read_it)
{
	struct dns_answer a = { .rcode = DNS_NXDOMAIN, .blocked = "deny x" };
	struct dns_question d;
	uint8_t q[512], r[512];
	size_t n = QUERY(q, "\1x\4test", DNS_TYPE_A, true), k;

	CHECK_EQ(dns_parse(q, n, &d), DNS_NOERROR);
	k = dns_answer(q, &d, &a, r, sizeof(r));
	CHECK_EQ(r[3] & 15, DNS_NXDOMAIN);
	CHECK_EQ(r[11], 1);
	CHECK(!memcmp(r + k - 12, "\0\17\0\10\0\17deny x", 12));
	n = QUERY(q, "\1x\4test", DNS_TYPE_A, false);
	CHECK_EQ(dns_parse(q, n, &d), DNS_NOERROR);
	CHECK_EQ(dns_answer(q, &d, &a, r, sizeof(r)), n);
}

TEST(reverse_names)
{
	uint8_t a[4];

	CHECK(dns_reverse("4.3.2.1.in-addr.arpa", a));
	CHECK(!memcmp(a, "\1\2\3\4", 4));
	CHECK(!dns_reverse("04.3.2.1.in-addr.arpa", a));
	CHECK(!dns_reverse("256.3.2.1.in-addr.arpa", a));
	CHECK(!dns_reverse("3.2.1.in-addr.arpa", a));
	CHECK(!dns_reverse("4.3.2.1.in-addr.arpa.x", a));
	CHECK(!dns_reverse("+4.3.2.1.in-addr.arpa", a));
}

TEST(synthetic_addresses_are_stable_and_bounded)
{
	struct names *t;
	struct name_entry *e;
	struct address a = { .family = AF_INET };
	uint8_t first[4];
	char name[32];

	REQUIRE(names_new(&t, NULL) == RC_OK);
	e = names_get(t, "first.test");
	REQUIRE(e);
	memcpy(first, e->address, 4);
	memcpy(a.bytes, first, 4);
	CHECK(names_is_synthetic(&a));
	CHECK(names_find(t, first) == e);
	CHECK(names_get(t, "first.test") == e);
	for (int i = 0; i < EGRESS_NAMES_MAX + 10; i++) {
		snprintf(name, sizeof(name), "n%d.test", i);
		e = names_get(t, name);
		REQUIRE(e);
		CHECK(names_find(t, e->address) == e);
		CHECK(memcmp(e->address, first, 4));
		CHECK(e->address[3] != 0 && e->address[3] != 255);
	}
	CHECK_EQ(names_count(t), EGRESS_NAMES_MAX);
	/* The oldest are gone, and their addresses mean nothing rather than another name. */
	CHECK(!names_find(t, first));
	CHECK(!names_find_name(t, "first.test"));
	CHECK(!names_find_name(t, "n9.test"));
	CHECK(names_find_name(t, "n10.test") != NULL);
	names_free(t);
}

CHECK_MAIN()
