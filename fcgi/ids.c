/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/ids.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "fcgi/limits.h"

#include <ctype.h>
#include <openssl/evp.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define SHOWN_MAX 64

void id_random(char *out, size_t n)
{
	static const char alphabet[] = ID_ALPHABET;
	const unsigned int letters = sizeof(alphabet) - 1;
	uint8_t pool[64];
	size_t left = 0;

	for (size_t i = 0; i < n;) {
		if (!left) {
			random_bytes(pool, sizeof(pool));
			left = sizeof(pool);
		}
		left--;
		/* Values past the last whole multiple would favour the first letters. */
		if (pool[left] < 256 / letters * letters)
			out[i++] = alphabet[pool[left] % letters];
	}
	out[n] = '\0';
}

void id_regional(char out[ID_MAX], const char *kind, const char *region)
{
	char r[ID_RANDOM + 1];

	id_random(r, ID_RANDOM);
	snprintf(out, ID_MAX, "%.8s_%.3s_%s", kind, region, r);
}

void id_plain(char out[ID_MAX], const char *kind)
{
	char r[ID_RANDOM + 1];

	id_random(r, ID_RANDOM);
	snprintf(out, ID_MAX, "%.8s_%s", kind, r);
}

static bool random_part(const char *s, size_t n)
{
	return strlen(s) == n && strspn(s, ID_ALPHABET) == n;
}

static const char *after_kind(const char *s, const char *kind)
{
	size_t n = strlen(kind);

	return !strncmp(s, kind, n) && s[n] == '_' ? s + n + 1 : NULL;
}

bool id_is_plain(const char *s, const char *kind)
{
	const char *rest = after_kind(s, kind);

	return rest && random_part(rest, ID_RANDOM);
}

bool id_is_regional(const char *s, const char *kind)
{
	const char *rest = after_kind(s, kind);

	return rest && strspn(rest, "abcdefghijklmnopqrstuvwxyz") == 3 && rest[3] == '_' &&
	       random_part(rest + 4, ID_RANDOM);
}

bool id_is_revision(const char *s)
{
	return random_part(s, REVISION_ID_CHARS);
}

bool slug_is_valid(const char *s)
{
	size_t n = strlen(s);

	return n >= SLUG_MIN && n <= SLUG_MAX && strspn(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == n &&
	       s[0] != '-' && s[n - 1] != '-' && (n < 4 || s[2] != '-' || s[3] != '-');
}

bool env_name_is_valid(const char *s)
{
	size_t n = strlen(s);

	if (!n || n > ENV_NAME_MAX || isdigit((unsigned char)*s))
		return false;
	for (size_t i = 0; i < n; i++)
		if (!(isascii(s[i]) && (isalnum((unsigned char)s[i]) || s[i] == '_')))
			return false;
	return true;
}

bool path_is_clean(const char *s, size_t max)
{
	if (*s != '/' || strlen(s) > max)
		return false;
	for (const char *p = s; *p; p++)
		if ((unsigned char)*p < 0x20 || *p == 0x7f)
			return false;
	for (const char *p = s + 1; *p;) {
		size_t n = strcspn(p, "/");

		if (!n || (n == 1 && p[0] == '.') || (n == 2 && p[0] == '.' && p[1] == '.'))
			return false;
		p += n;
		if (*p == '/' && !*++p)
			return false;
	}
	return true;
}

void time_to_iso(int64_t ms, char out[ISO_MAX])
{
	time_t s = (time_t)(ms / 1000);
	struct tm tm = { 0 };

	gmtime_r(&s, &tm);
	snprintf(out, ISO_MAX, "%04u-%02u-%02uT%02u:%02u:%02u.%03uZ", (unsigned int)(tm.tm_year + 1900) % 10000u,
		 (unsigned int)(tm.tm_mon + 1) % 100u, (unsigned int)tm.tm_mday % 100u,
		 (unsigned int)tm.tm_hour % 100u, (unsigned int)tm.tm_min % 100u, (unsigned int)tm.tm_sec % 100u,
		 (unsigned int)(ms % 1000));
}

/* Digits of a fraction as milliseconds; leaves *s behind them. */
static int64_t fraction(const char **s)
{
	int64_t ms = 0, scale = 100;

	for (; isdigit((unsigned char)**s); (*s)++, scale /= 10)
		ms += (**s - '0') * scale;
	return ms;
}

enum rc time_from_iso(const char *s, int64_t *ret_ms, struct fault *ret_f)
{
	struct tm tm = { 0 };
	const char *p = strlen(s) < 40 ? strptime(s, "%Y-%m-%dT%H:%M:%S", &tm) : NULL;
	int64_t ms = 0;
	long offset = 0;
	int h, m, used = 0;
	char sign;

	if (!p && strlen(s) == 10) {
		memset(&tm, 0, sizeof(tm));
		p = strptime(s, "%Y-%m-%d", &tm);
		if (p && !*p)
			p = "Z";
	}
	if (p && *p == '.' && isdigit((unsigned char)p[1])) {
		p++;
		ms = fraction(&p);
	}
	if (p && sscanf(p, "%c%2d:%2d%n", &sign, &h, &m, &used) == 3 && !p[used] && (sign == '+' || sign == '-') &&
	    h >= 0 && h < 24 && m >= 0 && m < 60) {
		offset = (h * 60L + m) * 60 * (sign == '+' ? 1 : -1);
		p = "Z";
	}
	if (!p || strcmp(p, "Z") != 0 || tm.tm_year < 70 || tm.tm_year > 8099)
		return fault_set(ret_f, RC_INVALID, 0, "not an ISO 8601 time");
	*ret_ms = ((int64_t)timegm(&tm) - offset) * 1000 + ms;
	return RC_OK;
}

void sha256(const void *data, size_t n, uint8_t out[SHA256_BYTES])
{
	SHA256(data, n, out);
}

enum rc base64_decode(const char *s, size_t n, uint8_t **ret, size_t *ret_n, struct fault *ret_f)
{
	static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	_cleanup_free_ uint8_t *out = NULL;
	size_t pad = 0;

	while (pad < 2 && pad < n && s[n - 1 - pad] == '=')
		pad++;
	if (n % 4 || n > INT32_MAX)
		return fault_set(ret_f, RC_INVALID, 0, "not base64: the length is no multiple of four");
	for (size_t i = 0; i < n - pad; i++)
		if (!s[i] || !strchr(alphabet, s[i]))
			return fault_set(ret_f, RC_INVALID, 0, "not base64: unexpected character at %zu", i);
	out = malloc(n / 4 * 3 + 1);
	if (!out)
		return fault_set(ret_f, RC_NOMEM, 0, "base64");
	if (n && EVP_DecodeBlock(out, (const unsigned char *)s, (int)n) < 0)
		return fault_set(ret_f, RC_INVALID, 0, "not base64");
	*ret_n = n / 4 * 3 - pad;
	out[*ret_n] = '\0';
	*ret = take_ptr(out);
	return RC_OK;
}

char *base64_encode(const void *data, size_t n)
{
	char *out = n < INT32_MAX / 2 ? malloc((n + 2) / 3 * 4 + 1) : NULL;

	if (out)
		EVP_EncodeBlock((unsigned char *)out, data, (int)n);
	return out;
}

const char *shown(const char *s)
{
	size_t n = strlen(s);

	if (n > SHOWN_MAX)
		return "?";
	for (size_t i = 0; i < n; i++)
		if (s[i] < 0x20 || s[i] > 0x7e || s[i] == '"' || s[i] == '\\')
			return "?";
	return s;
}
