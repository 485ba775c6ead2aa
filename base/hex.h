/* SPDX-License-Identifier: Apache-2.0 */
/* Bytes as lower-case hexadecimal digits: of digests, for names and records. */
#ifndef NB_BASE_HEX_H
#define NB_BASE_HEX_H

#include <stddef.h>

/* n bytes as 2n digits and a terminator. */
void hex_of(char *out, const void *data, size_t n);

#endif
