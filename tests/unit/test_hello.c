/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/lib/check.h"
#include "tests/lib/hello.h"
#include "vmm/egress/hello.h"
#include "vmm/egress/limits.h"

#include <openssl/ssl.h>

TEST(the_name_is_found_however_it_is_cut)
{
	static const size_t paddings[] = { 0, 1, 500, 2000, 7000 }, cuts[] = { 1, 3, 4, 5, 100, 1500, 16384 };
	uint8_t in[1 << 17], out[HELLO_TEST_MAX];
	char sni[POLICY_NAME_MAX];

	for (size_t p = 0; p < sizeof(paddings) / sizeof(paddings[0]); p++)
		for (size_t c = 0; c < sizeof(cuts) / sizeof(cuts[0]); c++) {
			size_t n;

			/* One record a byte makes the whole six times as long: over the bound is refused, not misread. */
			if (cuts[c] < 100 && paddings[p] > 500)
				continue;
			n = hello_make(out, "Web.Test", paddings[p], cuts[c]);
			memcpy(in, out, n);
			CHECK_EQ(hello_parse(in, n, sni), HELLO_DONE);
			CHECK_STR(sni, "web.test");
			for (size_t k = 0; k < n; k++) {
				enum hello h = hello_parse(in, k, sni);

				if (h != HELLO_MORE) {
					printf("  padding %zu, cut %zu, %zu of %zu bytes: %d\n", paddings[p], cuts[c], k, n, h);
					CHECK(!"more is wanted");
					break;
				}
			}
		}
}

TEST(a_real_clients_hello_is_understood)
{
	SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
	SSL *ssl = SSL_new(ctx);
	BIO *out = BIO_new(BIO_s_mem()), *in = BIO_new(BIO_s_mem());
	char sni[POLICY_NAME_MAX];
	uint8_t data[16384];
	int n;

	SSL_set_bio(ssl, in, out);
	SSL_set_tlsext_host_name(ssl, "api.example.com");
	SSL_connect(ssl);
	n = BIO_read(out, data, sizeof(data));
	REQUIRE(n > 100);
	CHECK_EQ(hello_parse(data, (size_t)n, sni), HELLO_DONE);
	CHECK_STR(sni, "api.example.com");
	SSL_free(ssl);
	SSL_CTX_free(ctx);
}

TEST(no_name_and_bad_names)
{
	uint8_t in[HELLO_TEST_MAX];
	char sni[POLICY_NAME_MAX];

	CHECK_EQ(hello_parse(in, hello_make(in, NULL, 0, 16384), sni), HELLO_DONE);
	CHECK_STR(sni, "");
	CHECK_EQ(hello_parse(in, hello_make(in, "", 0, 16384), sni), HELLO_BAD);
	CHECK_EQ(hello_parse(in, hello_make(in, "a b", 0, 16384), sni), HELLO_BAD);
	CHECK_EQ(hello_parse(in, hello_make(in, "10.0.0.1", 0, 16384), sni), HELLO_BAD);
	CHECK_EQ(hello_parse(in, hello_make(in, "a..b", 0, 16384), sni), HELLO_BAD);
}

TEST(two_names_are_refused)
{
	uint8_t m[512], in[600] = { 22, 3, 1 };
	char sni[POLICY_NAME_MAX];
	size_t n = hello_message(m, "a.test", 0), ext = 4 + 2 + 32 + 1 + 4 + 2, len = n - ext - 2;

	/* The server_name extension once more behind the first. */
	memcpy(m + n, m + ext + 2, len);
	hello_put16(m + ext, 2 * len);
	hello_put16(m + 2, n + len - 4);
	hello_put16(in + 3, n + len);
	memcpy(in + 5, m, n + len);
	CHECK_EQ(hello_parse(in, 5 + n + len, sni), HELLO_BAD);
}

TEST(what_is_not_tls)
{
	static uint8_t big[EGRESS_HELLO_MAX + 100];
	char sni[POLICY_NAME_MAX];

	CHECK_EQ(hello_parse((const uint8_t *)"GET / HTTP/1.1", 14, sni), HELLO_NOT_TLS);
	CHECK_EQ(hello_parse((const uint8_t *)"SSH-2.0-x", 9, sni), HELLO_NOT_TLS);
	CHECK_EQ(hello_parse((const uint8_t *)"\x16\x02\x00", 3, sni), HELLO_NOT_TLS);
	CHECK_EQ(hello_parse((const uint8_t *)"", 0, sni), HELLO_MORE);
	CHECK_EQ(hello_parse((const uint8_t *)"\x16\x03\x01\x00\x00", 5, sni), HELLO_BAD);
	CHECK_EQ(hello_parse((const uint8_t *)"\x16\x03\x01\x00\x04\x02\x00\x00\x00", 9, sni), HELLO_BAD);
	CHECK_EQ(hello_parse((const uint8_t *)"\x16\x03\x01\x00\x04\x01\xff\xff\xff", 9, sni), HELLO_BAD);
	/* A message that never ends stops at the bound. */
	memcpy(big, "\x16\x03\x01\x40\x00\x01\x00\x3f\xfc", 9);
	CHECK_EQ(hello_parse(big, EGRESS_HELLO_MAX - 1, sni), HELLO_MORE);
	CHECK_EQ(hello_parse(big, EGRESS_HELLO_MAX, sni), HELLO_BAD);
}

CHECK_MAIN()
