/* SPDX-License-Identifier: Apache-2.0 */
/* Names, ids, times and encodings that clients see. */
#ifndef NB_FCGI_IDS_H
#define NB_FCGI_IDS_H

#include "base/fault.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ID_ALPHABET "0123456789abcdefghjkmnpqrstuvwxyz" /* what the SDK's id pattern allows */
#define ID_MAX 41
#define ID_RANDOM 20          /* random characters of an id: 100 bits */
#define REVISION_ID_CHARS 12
#define ISO_MAX 32
#define SHA256_BYTES 32

/* n characters of ID_ALPHABET, unbiased, and a terminator. */
void id_random(char *out, size_t n);
/* "<kind>_<region>_<20>" */
void id_regional(char out[ID_MAX], const char *kind, const char *region);
/* "<kind>_<20>" */
void id_plain(char out[ID_MAX], const char *kind);
bool id_is_regional(const char *s, const char *kind);
bool id_is_plain(const char *s, const char *kind);
bool id_is_revision(const char *s);

/* 2..32 of a-z 0-9 -, no - at an end, no "--" at positions 3 and 4. */
bool slug_is_valid(const char *s);
/* [A-Za-z_][A-Za-z0-9_]*, bounded. */
bool env_name_is_valid(const char *s);
/* Absolute, no empty, "." or ".." component, no control bytes, bounded by size. */
bool path_is_clean(const char *s, size_t max);

/* 2026-01-02T03:04:05.678Z */
void time_to_iso(int64_t ms, char out[ISO_MAX]);
enum rc time_from_iso(const char *s, int64_t *ret_ms, struct fault *ret_f);

void sha256(const void *data, size_t n, uint8_t out[SHA256_BYTES]);
/* Strict: standard alphabet, padded, no white space. *ret is freed by the caller and has a NUL behind its n bytes. */
enum rc base64_decode(const char *s, size_t n, uint8_t **ret, size_t *ret_n, struct fault *ret_f);
/* Freed by the caller. NULL if out of memory. */
char *base64_encode(const void *data, size_t n);

/* s, if it is short and printable ASCII, else "?": for showing a client's word back to it. */
const char *shown(const char *s);

#endif
