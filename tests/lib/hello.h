/* SPDX-License-Identifier: Apache-2.0 */
/* Makes TLS ClientHellos for tests: with a name or without, in one record or cut into several. */
#ifndef NB_TESTS_HELLO_H
#define NB_TESTS_HELLO_H

#include <stdint.h>
#include <string.h>

#define HELLO_TEST_MAX 8192

static inline size_t hello_put16(uint8_t *at, size_t v)
{
	at[0] = (uint8_t)(v >> 8);
	at[1] = (uint8_t)v;
	return 2;
}

/* The handshake message. padding: bytes of an extension before the name, as key shares are. */
static inline size_t hello_message(uint8_t *out, const char *sni, size_t padding)
{
	size_t n = 4, name_n = sni ? strlen(sni) : 0, ext_at;

	n += hello_put16(out + n, 0x0303);
	memset(out + n, 7, 32);
	n += 32;
	out[n++] = 0;
	n += hello_put16(out + n, 2);
	n += hello_put16(out + n, 0x1301);
	out[n++] = 1;
	out[n++] = 0;
	ext_at = n;
	n += 2;
	if (padding) {
		n += hello_put16(out + n, 0x0033);
		n += hello_put16(out + n, padding);
		memset(out + n, 0, padding);
		n += padding;
	}
	if (sni) {
		n += hello_put16(out + n, 0);
		n += hello_put16(out + n, name_n + 5);
		n += hello_put16(out + n, name_n + 3);
		out[n++] = 0;
		n += hello_put16(out + n, name_n);
		memcpy(out + n, sni, name_n);
		n += name_n;
	}
	hello_put16(out + ext_at, n - ext_at - 2);
	out[0] = 1;
	out[1] = 0;
	hello_put16(out + 2, n - 4);
	return n;
}

/* In records of at most `cut` bytes of the message. */
static inline size_t hello_make(uint8_t out[HELLO_TEST_MAX], const char *sni, size_t padding, size_t cut)
{
	uint8_t message[HELLO_TEST_MAX];
	size_t n = hello_message(message, sni, padding), used = 0;

	for (size_t at = 0; at < n;) {
		size_t k = n - at < cut ? n - at : cut;

		out[used++] = 22;
		out[used++] = 3;
		out[used++] = 1;
		used += hello_put16(out + used, k);
		memcpy(out + used, message + at, k);
		used += k;
		at += k;
	}
	return used;
}

#endif
