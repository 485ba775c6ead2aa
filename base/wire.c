/* SPDX-License-Identifier: Apache-2.0 */
#include "base/wire.h"

#include <string.h>

void wire_init(struct wire *w, void *mem, size_t n)
{
	w->start = w->at = mem;
	w->end = w->start + n;
	w->failed = false;
}

static uint8_t *step(struct wire *w, size_t n)
{
	uint8_t *at = w->at;

	if (w->failed || (size_t)(w->end - w->at) < n) {
		w->failed = true;
		return NULL;
	}
	w->at += n;
	return at;
}

static void put_int(struct wire *w, uint64_t v, size_t n)
{
	uint8_t *p = step(w, n);

	for (size_t i = 0; p && i < n; i++)
		p[i] = (uint8_t)(v >> (8 * i));
}

static uint64_t get_int(struct wire *w, size_t n)
{
	const uint8_t *p = step(w, n);
	uint64_t v = 0;

	for (size_t i = 0; p && i < n; i++)
		v |= (uint64_t)p[i] << (8 * i);
	return v;
}

void wire_put_u8(struct wire *w, uint8_t v)
{
	put_int(w, v, 1);
}

void wire_put_u16(struct wire *w, uint16_t v)
{
	put_int(w, v, 2);
}

void wire_put_u32(struct wire *w, uint32_t v)
{
	put_int(w, v, 4);
}

void wire_put_u64(struct wire *w, uint64_t v)
{
	put_int(w, v, 8);
}

void wire_put_bytes(struct wire *w, const void *data, size_t n)
{
	uint8_t *p;

	if (n > UINT32_MAX) {
		w->failed = true;
		return;
	}
	wire_put_u32(w, (uint32_t)n);
	p = step(w, n);
	if (p && n)
		memcpy(p, data, n);
}

void wire_put_str(struct wire *w, const char *s)
{
	wire_put_bytes(w, s, strlen(s));
}

uint8_t wire_get_u8(struct wire *w)
{
	return (uint8_t)get_int(w, 1);
}

uint16_t wire_get_u16(struct wire *w)
{
	return (uint16_t)get_int(w, 2);
}

uint32_t wire_get_u32(struct wire *w)
{
	return (uint32_t)get_int(w, 4);
}

uint64_t wire_get_u64(struct wire *w)
{
	return get_int(w, 8);
}

const uint8_t *wire_get_bytes(struct wire *w, size_t *ret_n)
{
	uint32_t n = wire_get_u32(w);
	const uint8_t *p = step(w, n);

	*ret_n = p ? n : 0;
	return p;
}

void wire_get_str(struct wire *w, char *out, size_t size)
{
	size_t n;
	const uint8_t *p = wire_get_bytes(w, &n);

	out[0] = '\0';
	if (!p)
		return;
	if (n >= size || memchr(p, 0, n)) {
		w->failed = true;
		return;
	}
	memcpy(out, p, n);
	out[n] = '\0';
}
