/* SPDX-License-Identifier: Apache-2.0 */
#include "base/cleanup.h"
#include "tests/lib/check.h"
#include "tests/lib/seal.h"
#include "vmm/egress/ca.h"
#include "vmm/egress/limits.h"
#include "vmm/egress/secrets.h"

#include <openssl/crypto.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <time.h>

#define ID "sbx_a"
#define PH "nbsecret_0123456789abcdef"
#define PH2 "nbsecret_fedcba9876543210"
#define VALUE "sk-\"real\"/value+42"

static const uint8_t key[EGRESS_KEY_BYTES] = "0123456789abcdef0123456789abcde";

static struct policy *policy_with(const char *id, const char *value)
{
	char a[SEAL_MAX], b[SEAL_MAX], text[3 * SEAL_MAX];
	struct policy *p = NULL;

	snprintf(text, sizeof(text), POLICY_HEAD "\ndefault public\nsecret KEY " PH " %s api.test\nsecret OTHER " PH2 " %s other.test\n",
		 seal(key, id, "KEY", value, a), seal(key, id, "OTHER", "another-value", b));
	policy_parse(text, strlen(text), &p, NULL);
	return p;
}

static struct secrets *open_set(const char *value)
{
	struct policy *p = policy_with(ID, value);
	struct secrets *s = NULL;
	size_t bad = 0;

	secrets_open(p, ID, key, &s, &bad, NULL);
	policy_free(p);
	if (!bad)
		return s;
	secrets_unref(s);
	return NULL;
}

static const char *put(struct secrets *s, const char *host, const char *value, const char **used, const char **strange)
{
	static char text[4096];
	struct buf out = BUF_INIT(sizeof(text));
	struct secret_place at = { .host = host, .port = 443, .method = "GET" };
	struct secret_report report = { 0 };

	CHECK_EQ(secrets_put_header(s, &at, "authorization", 13, true, value, strlen(value), &out, &report), RC_OK);
	*used = report.used;
	*strange = report.strange;
	snprintf(text, sizeof(text), "%.*s", (int)buf_len(&out), (const char *)buf_data(&out));
	buf_free(&out);
	return text;
}

TEST(a_sealed_secret_opens_only_where_it_belongs)
{
	struct policy *p = policy_with(ID, VALUE);
	uint8_t other[EGRESS_KEY_BYTES] = "x";
	struct secrets *s;
	size_t bad;

	REQUIRE(p);
	CHECK_EQ(secrets_open(p, ID, key, &s, &bad, NULL), RC_OK);
	CHECK_EQ(bad, 0);
	secrets_unref(s);
	CHECK_EQ(secrets_open(p, "sbx_b", key, &s, &bad, NULL), RC_OK);
	CHECK_EQ(bad, 2);
	secrets_unref(s);
	CHECK_EQ(secrets_open(p, ID, other, &s, &bad, NULL), RC_OK);
	CHECK_EQ(bad, 2);
	secrets_unref(s);
	policy_free(p);
}

/* Values lie in locked memory while there is some; the set that comes after works all the same, and what is given back is clean. */
TEST(locked_memory_is_bounded_and_running_out_of_it_hurts_nobody)
{
	static struct secrets *sets[EGRESS_SECURE_BYTES / 4000 + 8];
	const char *used, *strange;
	char value[4001];
	size_t before, n = 0, most;

	memset(value, 'v', sizeof(value) - 1);
	value[sizeof(value) - 1] = '\0';
	REQUIRE(CRYPTO_secure_malloc_initialized() || CRYPTO_secure_malloc_init(EGRESS_SECURE_BYTES, 32) == 1);
	before = CRYPTO_secure_used();
	for (most = before; n < ARRAY_SIZE(sets); most = CRYPTO_secure_used()) {
		sets[n] = open_set(value);
		REQUIRE(sets[n++]);
		if (CRYPTO_secure_used() == most)
			break;
	}
	/* Nearly all of it, and not more than there is. */
	CHECK(most > EGRESS_SECURE_BYTES / 2 && most <= EGRESS_SECURE_BYTES);
	/* A set has its values several times, in each form that is searched for. */
	CHECK(n > 16 && n < ARRAY_SIZE(sets));
	CHECK(strlen(put(sets[n - 1], "api.test", "Bearer " PH, &used, &strange)) > 1000);
	CHECK_STR(used, "KEY");
	while (n)
		secrets_unref(sets[--n]);
	CHECK_EQ(CRYPTO_secure_used(), before);
}

TEST(a_value_with_a_line_break_is_refused)
{
	CHECK(!open_set("evil\r\nX-Injected: 1"));
}

TEST(placeholders_are_replaced_for_their_host_only)
{
	struct secrets *s = open_set(VALUE);
	const char *used, *strange;

	REQUIRE(s);
	CHECK_STR(put(s, "api.test", "Bearer " PH, &used, &strange), "Bearer " VALUE);
	CHECK_STR(used, "KEY");
	CHECK(!strange);
	CHECK_STR(put(s, "api.test", PH PH ";" PH2, &used, &strange), VALUE VALUE ";" PH2);
	CHECK_STR(strange, "OTHER");
	CHECK_STR(put(s, "other.test", "Bearer " PH, &used, &strange), "Bearer " PH);
	CHECK(!used);
	CHECK_STR(strange, "KEY");
	CHECK_STR(put(s, "api.test", "nbsecret_0123456789abcde", &used, &strange), "nbsecret_0123456789abcde");
	CHECK(!used && !strange);
	secrets_unref(s);
}

static struct secrets *open_ruled(const char *rule)
{
	char a[SEAL_MAX], text[2 * SEAL_MAX];
	struct secrets *s = NULL;
	struct policy *p = NULL;
	size_t bad = 0;

	snprintf(text, sizeof(text), POLICY_HEAD "\ndefault public\nsecret KEY " PH " %s api.test\nsecret-rule KEY %s\n",
		 seal(key, ID, "KEY", "a value&+", a), rule);
	if (!policy_parse(text, strlen(text), &p, NULL))
		secrets_open(p, ID, key, &s, &bad, NULL);
	policy_free(p);
	return s;
}

/* What comes out, and in *ret whether it went in, stayed, or was not there. */
static const char *ruled(const char *rule, const char *method, const char *path, const char *header, const char *target, char *ret)
{
	static char text[1024];
	struct secrets *s = open_ruled(rule);
	struct buf out = BUF_INIT(sizeof(text));
	struct secret_place at = { .host = "api.test", .port = 443, .method = method, .path = path };
	struct secret_report r = { 0 };

	CHECK(s);
	if (header)
		CHECK_EQ(secrets_put_header(s, &at, header, strlen(header), true, PH, strlen(PH), &out, &r), RC_OK);
	else
		CHECK_EQ(secrets_put_target(s, &at, target, strlen(target), &out, &r), RC_OK);
	snprintf(text, sizeof(text), "%.*s", (int)buf_len(&out), (const char *)buf_data(&out));
	*ret = r.used && r.outside ? 'b' : r.used ? 'u' : r.outside ? 'o' : '-';
	buf_free(&out);
	secrets_unref(s);
	return text;
}

TEST(rules_of_a_secret_narrow_where_it_goes)
{
	char r;

	CHECK_STR(ruled("methods=GET,POST", "POST", NULL, "x", NULL, &r), "a value&+");
	CHECK_EQ(r, 'u');
	CHECK_STR(ruled("methods=GET,POST", "PUT", NULL, "x", NULL, &r), PH);
	CHECK_EQ(r, 'o');
	CHECK_STR(ruled("paths=/v1,/v2/", "GET", "/v1/x", "x", NULL, &r), "a value&+");
	CHECK_STR(ruled("paths=/v1,/v2/", "GET", "/v10", "x", NULL, &r), PH);
	CHECK_STR(ruled("paths=/v1,/v2/", "GET", NULL, "x", NULL, &r), PH);
	CHECK_EQ(r, 'o');
	CHECK_STR(ruled("headers=x-key", "GET", NULL, "X-Key", NULL, &r), "a value&+");
	CHECK_STR(ruled("headers=x-key", "GET", NULL, "x-key2", NULL, &r), PH);
	CHECK_EQ(r, 'o');
	/* Query parameters: only those that are named, and only as text. */
	CHECK_STR(ruled("methods=GET", "GET", NULL, NULL, "/a?k=" PH, &r), "/a?k=" PH);
	CHECK_EQ(r, 'o');
	CHECK_STR(ruled("query=k", "GET", NULL, NULL, "/a?k=" PH "&j=" PH "&k=x" PH, &r),
		  "/a?k=a%20value%26%2B&j=" PH "&k=xa%20value%26%2B");
	CHECK_EQ(r, 'b');
	CHECK_STR(ruled("query=k", "GET", NULL, NULL, "/" PH "?" PH "&K=" PH, &r), "/" PH "?" PH "&K=" PH);
	CHECK_EQ(r, 'o');
	CHECK_STR(ruled("query=k", "GET", NULL, NULL, "/a", &r), "/a");
	CHECK_EQ(r, '-');
}

TEST(a_placeholder_in_a_stream_is_seen_however_it_is_cut)
{
	static const char text[] = "some text before " PH " and some behind";
	struct secrets *s = open_set(VALUE);

	for (size_t step = 1; step < sizeof(text); step++) {
		struct secret_watch w = { .n = 0 };
		const char *found = NULL;
		unsigned int times = 0;

		for (size_t i = 0; i < sizeof(text) - 1; i += step) {
			const char *hit = secrets_watch(s, &w, (const uint8_t *)text + i, MIN_OF(step, sizeof(text) - 1 - i));

			found = hit ? hit : found;
			times += hit != NULL;
		}
		CHECK_STR(found ? found : "", "KEY");
		CHECK(times >= 1);
	}
	secrets_unref(s);
}

TEST(basic_credentials_are_opened_and_closed_again)
{
	struct secrets *s = open_set(VALUE);
	const char *used, *strange, *out;
	unsigned char mem[512], in[512] = "bASIC ";
	int n;

	REQUIRE(s);
	EVP_EncodeBlock(in + 6, (const unsigned char *)"user:" PH, (int)strlen("user:" PH));
	out = put(s, "api.test", (const char *)in, &used, &strange);
	CHECK_STR(used, "KEY");
	CHECK(!strncmp(out, "bASIC ", 6));
	n = EVP_DecodeBlock(mem, (const unsigned char *)out + 6, (int)strlen(out) - 6);
	CHECK(n >= (int)strlen("user:" VALUE) && !memcmp(mem, "user:" VALUE, strlen("user:" VALUE)));
	/* Nothing of ours in it, or no base64: passes as it is. */
	CHECK_STR(put(s, "api.test", "Basic dXNlcjpwYXNz", &used, &strange), "Basic dXNlcjpwYXNz");
	CHECK(!used);
	CHECK_STR(put(s, "api.test", "Basic !!!" PH, &used, &strange), "Basic !!!" VALUE);
	secrets_unref(s);
}

static void redact_in(struct secrets *s, const char *in, size_t step, const char *expected)
{
	struct redactor r = { 0 };
	struct buf out = BUF_INIT(1 << 20);
	size_t n = strlen(in);

	redactor_start(&r, s);
	for (size_t at = 0; at < n; at += step)
		CHECK_EQ(redactor_run(&r, in + at, MIN_OF(step, n - at), false, &out), RC_OK);
	CHECK_EQ(redactor_run(&r, "", 0, true, &out), RC_OK);
	if (buf_len(&out) != strlen(expected) || memcmp(buf_data(&out), expected, strlen(expected))) {
		printf("  step %zu: %.*s\n  expected: %s\n", step, (int)buf_len(&out), (const char *)buf_data(&out), expected);
		CHECK(!"redacted");
	}
	redactor_end(&r);
	buf_free(&out);
}

TEST(values_are_taken_out_however_they_are_cut)
{
	struct secrets *s = open_set(VALUE);

	REQUIRE(s);
	for (size_t step = 1; step < 80; step++) {
		redact_in(s, "a" VALUE "b" VALUE VALUE "c", step, "a" PH "b" PH PH "c");
		redact_in(s, "sk-sk-\"sk-\"real\"/value+41 " VALUE, step, "sk-sk-\"sk-\"real\"/value+41 " PH);
		redact_in(s, "{\"k\":\"sk-\\\"real\\\"/value+42\"}", step, "{\"k\":\"" PH "\"}");
		redact_in(s, "?k=sk-%22real%22%2Fvalue%2B42&", step, "?k=" PH "&");
		redact_in(s, "the end is " VALUE, step, "the end is " PH);
		redact_in(s, "another-value", step, PH2);
	}
	secrets_unref(s);
}

/* What redaction is, said slowly: from the left, and of the two values the longer one. */
static void expect_plain(char *out, const char *in, const char *value, const char *other)
{
	while (*in) {
		size_t n = strlen(value), k = strlen(other);
		bool a = !strncmp(in, value, n), b = !strncmp(in, other, k);

		if (a || b) {
			out = stpcpy(out, a && (!b || n > k) ? PH : PH2);
			in += a && (!b || n > k) ? n : k;
		} else {
			*out++ = *in++;
		}
	}
	*out = '\0';
}

TEST(values_that_look_like_their_own_beginnings)
{
	unsigned int seed = 11;

	for (int turn = 0; turn < 300; turn++) {
		char value[24], in[400], out[sizeof(in) * 4];
		struct secrets *s;
		size_t n = 8 + (size_t)rand_r(&seed) % 12, m = (size_t)rand_r(&seed) % (sizeof(in) - 1);

		/* Two letters, mostly one of them; the other secret's value is of the same kind. */
		for (size_t i = 0; i < n; i++)
			value[i] = rand_r(&seed) % 4 ? 'a' : 'n';
		value[n] = '\0';
		for (size_t i = 0; i < m; i++)
			in[i] = rand_r(&seed) % 4 ? 'a' : 'n';
		in[m] = '\0';
		for (int i = 0; i < 3 && m > n; i++)
			memcpy(in + (size_t)rand_r(&seed) % (m - n), value, n);
		s = open_set(value);
		REQUIRE(s);
		expect_plain(out, in, value, "another-value");
		for (size_t step = 1; step < 40; step += 1 + step / 4)
			redact_in(s, in, step, out);
		secrets_unref(s);
	}
}

static uint64_t cpu_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static uint64_t search_us(const char *value)
{
	static char bytes[16384];
	uint64_t best = UINT64_MAX;
	struct secrets *s = open_set(value);

	CHECK(s);
	memset(bytes, 'A', sizeof(bytes));
	for (int turn = 0; s && turn < 7; turn++) {
		struct redactor r = { 0 };
		struct buf out = BUF_INIT(1 << 22);
		uint64_t from = cpu_us();

		redactor_start(&r, s);
		for (int i = 0; i < 64; i++)
			CHECK_EQ(redactor_run(&r, bytes, sizeof(bytes), false, &out), RC_OK);
		best = MIN_OF(best, cpu_us() - from);
		redactor_end(&r);
		buf_free(&out);
	}
	secrets_unref(s);
	return best;
}

/* A tenant chooses the value and what its own server answers; the proxy is everybody's. */
TEST(no_value_makes_the_search_slow)
{
	static char value[8000];
	uint64_t plain, nasty;

	memset(value, 'A', sizeof(value) - 1);
	for (size_t i = 1; i < sizeof(value) - 1; i++)
		value[i] = (char)('a' + i % 26);
	plain = search_us(value);
	memset(value, 'A', sizeof(value) - 1);
	value[sizeof(value) - 2] = 'B';
	nasty = search_us(value);
	printf("  1 MiB: %llu us, of the nasty value %llu us\n", (unsigned long long)plain, (unsigned long long)nasty);
	CHECK(nasty < 2 * plain);
}

TEST(base64_is_seen_at_each_alignment)
{
	struct secrets *s = open_set(VALUE);

	REQUIRE(s);
	for (size_t before = 0; before < 7; before++)
		for (size_t after = 0; after < 4; after++) {
			unsigned char in[128], text[256];
			struct buf out = BUF_INIT(4096);
			struct redactor r = { 0 };

			memset(in, 'x', sizeof(in));
			memcpy(in + before, VALUE, strlen(VALUE));
			EVP_EncodeBlock(text, in, (int)(before + strlen(VALUE) + after));
			redactor_start(&r, s);
			CHECK_EQ(redactor_run(&r, text, strlen((char *)text), true, &out), RC_OK);
			CHECK(r.found);
			CHECK(memmem(buf_data(&out), buf_len(&out), PH, strlen(PH)) != NULL);
			redactor_end(&r);
			buf_free(&out);
		}
	secrets_unref(s);
}

TEST(what_cannot_be_a_value_is_not_held)
{
	struct secrets *s = open_set(VALUE);
	struct redactor r = { 0 };
	struct buf out = BUF_INIT(4096);

	REQUIRE(s);
	redactor_start(&r, s);
	CHECK_EQ(redactor_run(&r, "data: 1\n\n", 9, false, &out), RC_OK);
	CHECK_EQ(buf_len(&out), 9);
	CHECK_EQ(redactor_run(&r, "data: sk-", 9, false, &out), RC_OK);
	CHECK_EQ(buf_len(&out), 9 + 6);
	CHECK_EQ(redactor_run(&r, "\n\n", 2, false, &out), RC_OK);
	CHECK_EQ(buf_len(&out), 9 + 11);
	redactor_end(&r);
	buf_free(&out);
	secrets_unref(s);
}

TEST(short_values_are_used_but_not_searched_for)
{
	struct secrets *s = open_set("abc");
	const char *used, *strange;

	REQUIRE(s);
	CHECK_STR(put(s, "api.test", PH, &used, &strange), "abc");
	redact_in(s, "abcabc", 2, "abcabc");
	secrets_unref(s);
}

TEST(an_authority_is_the_same_after_a_restart)
{
	struct ca *a, *b, *c;
	BIO *in_a, *in_b, *in_c;
	X509 *x, *y, *z;

	REQUIRE(ca_new(key, ID, &a, NULL) == RC_OK && ca_new(key, ID, &b, NULL) == RC_OK && ca_new(key, "sbx_b", &c, NULL) == RC_OK);
	in_a = BIO_new_mem_buf(ca_pem(a), -1);
	in_b = BIO_new_mem_buf(ca_pem(b), -1);
	in_c = BIO_new_mem_buf(ca_pem(c), -1);
	x = PEM_read_bio_X509(in_a, NULL, NULL, NULL);
	y = PEM_read_bio_X509(in_b, NULL, NULL, NULL);
	z = PEM_read_bio_X509(in_c, NULL, NULL, NULL);
	REQUIRE(x && y && z);
	CHECK_EQ(EVP_PKEY_eq(X509_get0_pubkey(x), X509_get0_pubkey(y)), 1);
	CHECK_EQ(X509_verify(y, X509_get0_pubkey(x)), 1);
	CHECK(EVP_PKEY_eq(X509_get0_pubkey(x), X509_get0_pubkey(z)) != 1);
	CHECK_EQ(X509_check_ca(x), 1);
	X509_free(x), X509_free(y), X509_free(z);
	BIO_free(in_a), BIO_free(in_b), BIO_free(in_c);
	ca_free(a), ca_free(b), ca_free(c);
}

CHECK_MAIN()
