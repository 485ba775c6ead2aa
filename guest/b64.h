/* SPDX-License-Identifier: Apache-2.0 */
/* Base64 (RFC 4648 section 4), as fast as plain C goes. */
#ifndef NB_GUEST_B64_H
#define NB_GUEST_B64_H

#include <stdbool.h>
#include <stddef.h>

/* Characters for n bytes, without a terminator. */
#define B64_LEN(n) (((n) + 2) / 3 * 4)
/* Upper bound of the bytes that n characters decode to. */
#define B64_ROOM(n) (((n) + 3) / 4 * 3)

/* Writes exactly B64_LEN(n) characters with padding and no terminator; returns that number. */
size_t b64_encode(char *out, const void *data, size_t n);
/*
 * Decodes n characters; `out` has B64_ROOM(n) bytes and may be where `text` is. Padding is optional, other characters are
 * refused (false).
 */
bool b64_decode(void *out, size_t *ret_n, const char *text, size_t n);

#endif
