/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Little-endian encoding with a sticky error: once a read or write fails, every later one fails too, reads give
 * zero or empty, and one check of wire_done() at the end decides. Strings are a u32 length and the bytes, no NUL
 * inside, copied out with a terminator into the caller's array.
 */
#ifndef NB_BASE_WIRE_H
#define NB_BASE_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct wire {
	uint8_t *at, *end, *start;
	bool failed;
};

void wire_init(struct wire *w, void *mem, size_t n);

void wire_put_u8(struct wire *w, uint8_t v);
void wire_put_u16(struct wire *w, uint16_t v);
void wire_put_u32(struct wire *w, uint32_t v);
void wire_put_u64(struct wire *w, uint64_t v);
void wire_put_bytes(struct wire *w, const void *data, size_t n);
void wire_put_str(struct wire *w, const char *s);

uint8_t wire_get_u8(struct wire *w);
uint16_t wire_get_u16(struct wire *w);
uint32_t wire_get_u32(struct wire *w);
uint64_t wire_get_u64(struct wire *w);
/* Points into the message; valid as long as the message is. */
const uint8_t *wire_get_bytes(struct wire *w, size_t *ret_n);
/* Fails if the string with its terminator is longer than `size` or has a NUL inside. */
void wire_get_str(struct wire *w, char *out, size_t size);

static inline size_t wire_len(const struct wire *w)
{
	return (size_t)(w->at - w->start);
}

/* Reading: nothing failed and nothing is left over. Writing: nothing failed. */
static inline bool wire_done(const struct wire *w)
{
	return !w->failed && w->at == w->end;
}

static inline bool wire_ok(const struct wire *w)
{
	return !w->failed;
}

#endif
