/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/lib/check.h"
#include "schema/verdict.h"

#define HEAD POLICY_HEAD "\n"

#define SECRET_LINE "secret N placeholder_0123456789 QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFB a.test\n"

static const struct reach no_private = { .is_local = address_is_local };

static struct policy *parse(const char *text)
{
	struct policy *p = NULL;

	policy_parse(text, strlen(text), &p, NULL);
	return p;
}

TEST(malformed_policies_are_refused)
{
	static const char *const bad[] = {
		"",
		"nestbox-policy 1",
		"nestbox-policy 2\ndefault public\n",
		HEAD,
		HEAD "allow a.test\n",
		HEAD "default\n",
		HEAD "default maybe\n",
		HEAD "default public\ndefault none\n",
		HEAD "default public",
		HEAD "default public\n\n",
		HEAD "default public\nallow \n",
		HEAD "default public\nallow a b\n",
		HEAD "default public\nallow a..b\n",
		HEAD "default public\nallow *\n",
		HEAD "default public\nallow *.\n",
		HEAD "default public\nallow a.*.b\n",
		HEAD "default public\nallow **.b.test\n",
		HEAD "default public\nallow a.test:0\n",
		HEAD "default public\nallow a.test:65536\n",
		HEAD "default public\nallow a.test:\n",
		HEAD "default public\nallow a.test:80:80\n",
		HEAD "default public\nallow 1.2.3\n",
		HEAD "default public\nallow 1.2.3.256\n",
		HEAD "default public\nallow 0x7f000001\n",
		HEAD "default public\nallow 2130706433\n",
		HEAD "default public\nallow 10.0.0.1/8\n",
		HEAD "default public\nallow 10.0.0.0/33\n",
		HEAD "default public\nallow 10.0.0.0/\n",
		HEAD "default public\nallow 10.0.0.0/08\n",
		HEAD "default public\nallow [1.2.3.4]\n",
		HEAD "default public\nallow [2001:db8::1\n",
		HEAD "default public\nallow [2001:db8::1]80\n",
		HEAD "default public\nallow [2001:db8::]/32\n",
		HEAD "default public\nallow 2001:db8::1\n",
		HEAD "default public\nforbid a.test\n",
		HEAD "default public\nallow ::ffff:1.2.3.0/120\n",
		HEAD "default public\nallow a.0xab\n",
		HEAD "default public\nallow -a.test\n",
		HEAD "default public\nrule a.test\n",
		HEAD "default public\nrule a.test GET\n",
		HEAD "default public\nrule a.test get /\n",
		HEAD "default public\nrule a.test GET, /\n",
		HEAD "default public\nrule a.test *,GET /\n",
		HEAD "default public\nrule a.test CONNECT /\n",
		HEAD "default public\nrule a.test GET x\n",
		HEAD "default public\nrule a.test GET /a/../b\n",
		HEAD "default public\nrule a.test GET /%41\n",
		HEAD "default public\nrule a.test GET / x\n",
		HEAD "default public\nrule 10.0.0.0/8 GET /\n",
		HEAD "default public\nrule 10.0.0.1 GET /\n",
		HEAD "default public\nsecret-rule N methods=GET\n",
		HEAD "default public\nlimit \n",
		HEAD "default public\nlimit bytes_per_s\n",
		HEAD "default public\nlimit bytes_per_s=0\n",
		HEAD "default public\nlimit bytes_per_s=1 bytes_per_s=2\n",
		HEAD "default public\nlimit bytes_per_s=99999999999999999\n",
		HEAD "default public\nlimit files=1\n",
		HEAD "default public\nlimit bytes_per_s=1\nlimit total_bytes=1\n",
		HEAD "default public\n" SECRET_LINE "secret-rule N\n",
		HEAD "default public\n" SECRET_LINE "secret-rule M methods=GET\n",
		HEAD "default public\n" SECRET_LINE "secret-rule N methods=\n",
		HEAD "default public\n" SECRET_LINE "secret-rule N headers=Authorization\n",
		HEAD "default public\n" SECRET_LINE "secret-rule N query=a&b\n",
		HEAD "default public\n" SECRET_LINE "secret-rule N methods=GET methods=PUT\n",
		HEAD "default public\n" SECRET_LINE "secret-rule N methods=GET\nsecret-rule N query=a\n",
		HEAD "default public\norg a b\n",
		HEAD "default public\nsecret N short AAAA a.test\n",
		HEAD "default public\nsecret N placeholder_0123456789 !!!! a.test\n",
		HEAD "default public\nsecret N placeholder_0123456789 QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFB 10.0.0.0/8\n",
		HEAD "default public\nsecret N placeholder_0123456789 QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFB\n",
	};

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct policy *p = parse(bad[i]);

		if (p) {
			printf("  accepted: %s\n", bad[i]);
			CHECK(!"refused");
		}
		policy_free(p);
	}
	CHECK_EQ(policy_parse(HEAD "default none\n\0\n", sizeof(HEAD "default none\n\0\n") - 1, &(struct policy *){ NULL }, NULL),
		 RC_INVALID);
}

struct question {
	const char *name;
	uint16_t port;
	bool allowed;
	const char *rule;
};

static void ask(const struct policy *p, const struct question *q, size_t n)
{
	for (; n--; q++) {
		struct verdict v;
		struct address a;
		bool got = address_parse(&a, q->name) ? policy_evaluate_address(p, &a, q->port, &no_private, &v)
						     : policy_evaluate_name(p, q->name, q->port, &v);

		if (got != q->allowed || got != v.allowed || strcmp(v.rule, q->rule)) {
			printf("  %s:%u: %s by \"%s\"\n", q->name, q->port, got ? "allowed" : "denied", v.rule);
			CHECK(!"as expected");
		}
	}
}
#define ASK(p, ...) ask(p, (const struct question[]){ __VA_ARGS__ }, \
			sizeof((const struct question[]){ __VA_ARGS__ }) / sizeof(struct question))

TEST(rules_decide)
{
	struct policy *p = parse(HEAD "default public\nallow exact.test\nallow *.suffix.test\nallow port.test:443\n"
				      "allow 93.184.216.34\nallow [2606:2800:220::1]:80\nallow 8.8.0.0/16\n"
				      "deny bad.suffix.test\ndeny 8.8.4.0/24\norg acme\n");

	REQUIRE(p);
	CHECK_STR(policy_org(p), "acme");
	ASK(p, { "exact.test", 1, true, "allow exact.test" }, { "www.exact.test", 1, false, "no allow rule names it" },
	    { "notexact.test", 1, false, "no allow rule names it" }, { "suffix.test", 1, false, "no allow rule names it" },
	    { "a.suffix.test", 1, true, "allow *.suffix.test" }, { "a.b.suffix.test", 1, true, "allow *.suffix.test" },
	    { "asuffix.test", 1, false, "no allow rule names it" }, { "bad.suffix.test", 1, false, "deny bad.suffix.test" },
	    { "port.test", 443, true, "allow port.test:443" }, { "port.test", 80, false, "no allow rule names it" },
	    { "port.test", 0, true, "allow port.test:443" }, { "93.184.216.34", 5, true, "allow 93.184.216.34" },
	    { "93.184.216.35", 5, false, "no allow rule names it" },
	    { "2606:2800:220::1", 80, true, "allow [2606:2800:220::1]:80" },
	    { "2606:2800:220::1", 81, false, "no allow rule names it" }, { "8.8.8.8", 1, true, "allow 8.8.0.0/16" },
	    { "8.8.4.4", 1, false, "deny 8.8.4.0/24" });
	policy_free(p);
}

TEST(public_means_the_internet)
{
	struct policy *p = parse(HEAD "default public\ndeny *.evil.test\ndeny x.test:25\n");

	REQUIRE(p);
	ASK(p, { "any.test", 1, true, "default public" }, { "a.evil.test", 1, false, "deny *.evil.test" },
	    { "x.test", 25, false, "deny x.test:25" }, { "x.test", 0, true, "default public" },
	    { "intranet", 80, false, "not a public name" }, { "1.1.1.1", 1, true, "default public" },
	    { "10.0.0.1", 1, false, "private address" }, { "172.31.255.255", 1, false, "private address" },
	    { "172.32.0.1", 1, true, "default public" }, { "192.168.0.1", 1, false, "private address" },
	    { "100.127.0.1", 1, false, "shared (CGNAT) address" }, { "127.1.2.3", 1, false, "loopback address" },
	    { "169.254.169.254", 80, false, "link-local address" }, { "198.19.255.255", 1, false, "benchmarking address" },
	    { "0.0.0.0", 1, false, "unspecified address" }, { "255.255.255.255", 1, false, "reserved address" },
	    { "239.1.1.1", 1, false, "multicast address" }, { "::1", 1, false, "loopback address" },
	    { "fe80::1", 1, false, "link-local address" }, { "fd00::1", 1, false, "private address" },
	    { "::ffff:10.0.0.1", 1, false, "private address" }, { "::ffff:1.1.1.1", 1, true, "default public" },
	    { "64:ff9b::a00:1", 1, false, "reserved address" }, { "2002:a00:1::", 1, false, "6to4 address" },
	    { "2001:0:1::", 1, false, "reserved address" }, { "2606:4700::1111", 1, true, "default public" });
	policy_free(p);
}

static bool is_ours(const struct address *a)
{
	return a->bytes[0] == 10 && a->bytes[3] == 9;
}

TEST(a_permitted_prefix_is_not_the_host_in_it)
{
	struct policy *p = parse(HEAD "default none\nallow 10.1.0.0/16\n");
	struct reach reach = { .is_local = is_ours };
	struct address other, own;
	struct verdict v;

	REQUIRE(p && prefixes_parse(&reach.private_ok, "10.1.0.0/16", NULL) == RC_OK);
	CHECK(address_parse(&other, "10.1.2.3") && address_parse(&own, "10.1.2.9"));
	CHECK(policy_evaluate_address(p, &other, 80, &reach, &v));
	CHECK(!policy_evaluate_address(p, &own, 80, &reach, &v));
	CHECK_STR(v.rule, "private address");
	CHECK(!policy_evaluate_resolved(p, &own, 80, &reach, &v));
	/* Unless the operator names it. */
	CHECK_EQ(prefixes_parse(&reach.private_ok, "10.1.0.0/16 10.1.2.9", NULL), RC_OK);
	CHECK(policy_evaluate_address(p, &own, 80, &reach, &v));
	policy_free(p);
}

TEST(an_allowed_private_address_needs_the_operator_too)
{
	struct policy *p = parse(HEAD "default none\nallow 10.1.2.3\n");
	struct reach operators = { .is_local = address_is_local };
	struct address a;
	struct verdict v;

	REQUIRE(p && prefixes_parse(&operators.private_ok, "10.1.0.0/16 192.168.7.0/24", NULL) == RC_OK);
	CHECK(address_parse(&a, "10.1.2.3"));
	CHECK(!policy_evaluate_address(p, &a, 80, &no_private, &v));
	CHECK(policy_evaluate_address(p, &a, 80, &operators, &v));
	CHECK(policy_evaluate_resolved(p, &a, 80, &operators, &v));
	CHECK(address_parse(&a, "10.1.2.4"));
	CHECK(!policy_evaluate_address(p, &a, 80, &operators, &v));
	CHECK_EQ(prefixes_parse(&operators.private_ok, "10.1.0.0/16,nonsense", NULL), RC_INVALID);
	policy_free(p);
}

TEST(no_policy_allows_nothing)
{
	struct address a;
	struct verdict v;

	CHECK(!policy_evaluate_name(NULL, "a.test", 1, &v));
	CHECK(address_parse(&a, "1.1.1.1"));
	CHECK(!policy_evaluate_address(NULL, &a, 1, &no_private, &v));
	CHECK(!policy_evaluate_resolved(NULL, &a, 1, &no_private, &v));
	CHECK(!policy_has_secret_for(NULL, "a.test", 443));
}

TEST(secrets_are_bound_to_hosts)
{
	struct policy *p = parse(HEAD "default public\nsecret KEY placeholder_0123456789 "
				      "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE= api.test,*.svc.test\n");
	const struct policy_secret *s;
	size_t n;

	REQUIRE(p);
	s = policy_secrets(p, &n);
	CHECK_EQ(n, 1);
	CHECK_STR(s->name, "KEY");
	CHECK_EQ(s->n_sealed, 32);
	CHECK_EQ(s->n_hosts, 2);
	CHECK(policy_has_secret_for(p, "api.test", 443));
	CHECK(policy_has_secret_for(p, "x.svc.test", 443));
	CHECK(!policy_has_secret_for(p, "svc.test", 443));
	CHECK(!policy_has_secret_for(p, "www.api.test", 443));
	policy_free(p);
}

TEST(names_become_normal)
{
	char out[POLICY_NAME_MAX], big[256];

	CHECK(name_normalize(out, "A.Test.", 7));
	CHECK_STR(out, "a.test");
	CHECK(name_normalize(out, "_x-1.test", 9));
	CHECK(!name_normalize(out, "", 0));
	CHECK(!name_normalize(out, ".", 1));
	CHECK(!name_normalize(out, "a..b", 4));
	CHECK(!name_normalize(out, ".a", 2));
	CHECK(!name_normalize(out, "a b", 3));
	CHECK(!name_normalize(out, "a\0b", 3));
	CHECK(!name_normalize(out, "a.0x1f", 6));
	CHECK(name_normalize(out, "a.0xy", 5));
	memset(big, 'a', sizeof(big));
	CHECK(!name_normalize(out, big, 64));
	for (size_t i = 63; i < sizeof(big); i += 64)
		big[i] = '.';
	CHECK(name_normalize(out, big, 253));
	CHECK(!name_normalize(out, big, 255));
}

TEST(a_host_with_rules_has_no_way_around_them)
{
	struct policy *p = parse(HEAD "default public\nrule a.test GET /\nrule b.test:8443 GET /\n" SECRET_LINE
				      "secret-rule N methods=GET paths=/v1 headers=x-key query=k\nlimit bytes_per_s=10 conns_per_s=3\n");
	struct address a;
	struct verdict v;

	REQUIRE(p);
	CHECK(policy_evaluate_name(p, "a.test", 443, &v) && policy_evaluate_name(p, "a.test", 0, &v));
	CHECK(!policy_evaluate_name(p, "a.test", 80, &v) && !policy_evaluate_name(p, "a.test", 8443, &v));
	CHECK(policy_evaluate_name(p, "b.test", 8443, &v) && policy_evaluate_name(p, "b.test", 80, &v));
	CHECK(policy_evaluate_name(p, "c.test", 80, &v));
	CHECK(policy_intercepts(p, "a.test", 443) && policy_intercepts(p, "b.test", 8443));
	CHECK(!policy_intercepts(p, "b.test", 443) && !policy_intercepts(p, "c.test", 443));
	CHECK(policy_needs_ca(p));
	CHECK(address_parse(&a, "93.184.216.34") && !policy_evaluate_address(p, &a, 443, &no_private, &v));
	CHECK(policy_judges_paths(p, "a.test", 443) && !policy_judges_paths(p, "c.test", 443));
	CHECK_EQ(policy_limits(p).bytes_per_s, 10);
	CHECK_EQ(policy_limits(p).conns_per_s, 3);
	CHECK_EQ(policy_limits(p).total_bytes, 0);
	CHECK(policy_evaluate_request(p, "a.test", 443, "GET", "/x", &v) && !policy_evaluate_request(p, "a.test", 443, "PUT", "/x", &v));
	CHECK(!policy_evaluate_request(p, "a.test", 443, "GET", NULL, &v));
	CHECK(policy_evaluate_request(p, "c.test", 443, "PUT", NULL, &v));
	policy_free(p);
}

CHECK_MAIN()
