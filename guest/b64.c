/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/b64.h"

#include <pthread.h>
#include <stdint.h>
#include <string.h>

static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
static char pair[4096][2];      /* two characters for 12 bits: halves the work per byte */
static uint8_t value[256];      /* 0..63, or BAD */
#define BAD 0xff

static void tables_make(void)
{
	for (size_t i = 0; i < 4096; i++) {
		pair[i][0] = alphabet[i >> 6];
		pair[i][1] = alphabet[i & 63];
	}
	memset(value, BAD, sizeof(value));
	for (uint8_t i = 0; i < 64; i++)
		value[(uint8_t)alphabet[i]] = i;
}

static void tables_need(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, tables_make);
}

size_t b64_encode(char *out, const void *data, size_t n)
{
	const uint8_t *in = data;
	size_t left = n;

	tables_need();
	for (; left >= 3; left -= 3, in += 3, out += 4) {
		uint32_t v = (uint32_t)in[0] << 16 | (uint32_t)in[1] << 8 | in[2];

		memcpy(out, pair[v >> 12], 2);
		memcpy(out + 2, pair[v & 4095], 2);
	}
	if (left) {
		uint32_t v = (uint32_t)in[0] << 16 | (left == 2 ? (uint32_t)in[1] << 8 : 0);

		memcpy(out, pair[v >> 12], 2);
		out[2] = left == 2 ? alphabet[v >> 6 & 63] : '=';
		out[3] = '=';
	}
	return B64_LEN(n);
}

static bool decode_tail(uint8_t *out, const uint8_t *in, size_t left)
{
	uint32_t v;

	if (left == 1)
		return false;
	if (value[in[0]] == BAD || value[in[1]] == BAD || (left == 3 && value[in[2]] == BAD))
		return false;
	v = (uint32_t)value[in[0]] << 18 | (uint32_t)value[in[1]] << 12;
	if (left == 3)
		v |= (uint32_t)value[in[2]] << 6;
	out[0] = (uint8_t)(v >> 16);
	if (left == 3)
		out[1] = (uint8_t)(v >> 8);
	return true;
}

bool b64_decode(void *out, size_t *ret_n, const char *text, size_t n)
{
	const uint8_t *in = (const uint8_t *)text;
	uint8_t *o = out;

	tables_need();
	if (n && n % 4 == 0 && in[n - 1] == '=')
		n -= in[n - 2] == '=' ? 2 : 1;
	for (; n >= 4; n -= 4, in += 4, o += 3) {
		uint8_t a = value[in[0]], b = value[in[1]], c = value[in[2]], d = value[in[3]];
		uint32_t v = (uint32_t)a << 18 | (uint32_t)b << 12 | (uint32_t)c << 6 | d;

		if ((a | b | c | d) & 0xc0)
			return false;
		o[0] = (uint8_t)(v >> 16);
		o[1] = (uint8_t)(v >> 8);
		o[2] = (uint8_t)v;
	}
	if (n) {
		if (!decode_tail(o, in, n))
			return false;
		o += n - 1;
	}
	*ret_n = (size_t)(o - (uint8_t *)out);
	return true;
}
