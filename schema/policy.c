/* SPDX-License-Identifier: Apache-2.0 */
#include "schema/policy.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <stdint.h>
#include <string.h>

#define NAME_CHARS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"
#define NAME_MAX_BYTES 253

/* "1", "0x7f": some program would take a name that ends in it for an address. */
static bool is_numeric(const char *label, size_t n)
{
	bool hex = n >= 2 && label[0] == '0' && (label[1] | 0x20) == 'x';

	for (size_t i = hex ? 2 : 0; i < n; i++)
		if (hex ? !isxdigit((unsigned char)label[i]) : !isdigit((unsigned char)label[i]))
			return false;
	return true;
}

/* Labels of letters, digits, - and _, no - at an end; at least one label. */
static bool name_ok(const char *s, size_t n)
{
	if (!n || n > NAME_MAX_BYTES)
		return false;
	for (size_t i = 0; i < n;) {
		size_t k = i;

		while (k < n && s[k] != '.') {
			if (!s[k] || !strchr(NAME_CHARS, s[k]))
				return false;
			k++;
		}
		if (k == i || k - i > 63 || s[i] == '-' || s[k - 1] == '-' || k == n - 1 || (k == n && is_numeric(s + i, k - i)))
			return false;
		i = k + 1;
	}
	return true;
}

static bool port_ok(const char *s)
{
	size_t n = strlen(s);
	unsigned long v = 0;

	if (!n || n > 5 || strspn(s, "0123456789") != n || *s == '0')
		return false;
	for (size_t i = 0; i < n; i++)
		v = v * 10 + (unsigned long)(s[i] - '0');
	return v <= 65535;
}

static bool address_ok(int family, const char *s, size_t n, uint8_t bytes[16])
{
	char text[INET6_ADDRSTRLEN];

	if (!n || n >= sizeof(text))
		return false;
	memcpy(text, s, n);
	text[n] = '\0';
	return inet_pton(family, text, bytes) == 1;
}

static bool is_mapped(const uint8_t bytes[16])
{
	static const uint8_t head[12] = { [10] = 0xff, [11] = 0xff };

	return !memcmp(bytes, head, sizeof(head));
}

/* "base/bits"; bits of the base behind the prefix would be a mistake of whoever wrote it. */
static bool cidr_ok(const char *s, const char *slash)
{
	bool v4 = !memchr(s, ':', (size_t)(slash - s));
	unsigned int max = v4 ? 32 : 128, bits = 0;
	size_t n = strlen(slash + 1);
	uint8_t base[16];

	if (!n || n > 3 || strspn(slash + 1, "0123456789") != n || (slash[1] == '0' && n > 1))
		return false;
	for (const char *p = slash + 1; *p; p++)
		bits = bits * 10 + (unsigned int)(*p - '0');
	if (bits > max || !address_ok(v4 ? AF_INET : AF_INET6, s, (size_t)(slash - s), base))
		return false;
	for (unsigned int i = bits; i < max; i++)
		if (base[i / 8] & (0x80 >> i % 8))
			return false;
	/* An IPv4-mapped one is an IPv4 prefix, and is to be written as such. */
	return v4 || !is_mapped(base);
}

bool policy_host_ok(const char *s)
{
	const char *colon = strchr(s, ':');
	size_t n = colon ? (size_t)(colon - s) : strlen(s);

	if (strlen(s) > POLICY_PATTERN_MAX || (colon && !port_ok(colon + 1)))
		return false;
	return !strncmp(s, "*.", 2) ? name_ok(s + 2, n - 2) : name_ok(s, n);
}

bool policy_pattern_ok(const char *s)
{
	const char *slash = strchr(s, '/'), *colon = strchr(s, ':'), *bracket;
	uint8_t bytes[16];

	if (strlen(s) > POLICY_PATTERN_MAX)
		return false;
	if (*s == '[') {
		bracket = strchr(s, ']');
		if (!bracket || !address_ok(AF_INET6, s + 1, (size_t)(bracket - s - 1), bytes))
			return false;
		return !bracket[1] || (bracket[1] == ':' && port_ok(bracket + 2));
	}
	if (slash)
		return cidr_ok(s, slash);
	if (address_ok(AF_INET, s, colon ? (size_t)(colon - s) : strlen(s), bytes))
		return !colon || port_ok(colon + 1);
	return policy_host_ok(s);
}

bool policy_method_ok(const char *s)
{
	size_t n = strlen(s);

	return n && n <= POLICY_METHOD_MAX && strspn(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZ-_") == n && strcmp(s, "CONNECT") != 0 &&
	       strcmp(s, "TRACE") != 0;
}

bool policy_path_ok(const char *s)
{
	char normal[POLICY_WORD_MAX + 1];
	size_t n = strlen(s);

	if (*s != '/' || n > POLICY_WORD_MAX || strpbrk(s, ",?# "))
		return false;
	for (size_t i = 0; i < n; i++)
		if (s[i] <= 0x20 || s[i] >= 0x7f)
			return false;
	return policy_path_normalize(s, n, normal, sizeof(normal)) == POLICY_PATH_OK && !strcmp(normal, s);
}

bool policy_header_ok(const char *s)
{
	size_t n = strlen(s);

	return n && n <= POLICY_WORD_MAX && strspn(s, "abcdefghijklmnopqrstuvwxyz0123456789-_") == n;
}

bool policy_query_ok(const char *s)
{
	size_t n = strlen(s);

	return n && n <= POLICY_WORD_MAX &&
	       strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~[]") == n;
}

static int hex(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c = (char)(c | 0x20);
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* One character of a path: decoded if it needs no encoding. *n_out is 1, or 3 for what stays an escape (in upper case). */
static bool path_char(const char *in, size_t n, char out[3], size_t *n_in, size_t *n_out)
{
	static const char digits[] = "0123456789ABCDEF";
	unsigned char c = (unsigned char)*in;
	int high, low;

	*n_in = *n_out = 1;
	out[0] = *in;
	if (c != '%')
		return c > 0x20 && c != 0x7f && c != '\\' && c != '#' && c != '?';
	high = n > 2 ? hex(in[1]) : -1;
	low = n > 2 ? hex(in[2]) : -1;
	if (high < 0 || low < 0)
		return false;
	c = (unsigned char)(high << 4 | low);
	*n_in = 3;
	/* A server that decodes twice, or before it splits, would see another path. */
	if (c == '/' || c == '\\' || c == '%' || c < 0x20 || c == 0x7f)
		return false;
	if (c < 0x80 && (isalnum(c) || c == '-' || c == '.' || c == '_' || c == '~')) {
		out[0] = (char)c;
		return true;
	}
	*n_out = 3;
	out[0] = '%';
	out[1] = digits[high];
	out[2] = digits[low];
	return true;
}

/* The segment out[at..k) is complete: ".", ".." and what could be taken for them. False: ambiguous. */
static bool segment_end(char *out, size_t at, size_t *k, bool last)
{
	size_t n = *k - at, dots = 0;

	while (dots < n && out[at + dots] == '.')
		dots++;
	if (!n)
		return last; /* "//" */
	if (dots && dots < n && dots <= 2 && (out[at + dots] == ';' || !strncmp(out + at + dots, "%3B", 3)))
		return false;
	if (dots != n || dots > 2)
		return true;
	*k = at;
	if (dots == 2) {
		if (at < 2)
			return false; /* above the root */
		for (*k = at - 1; *k && out[*k - 1] != '/';)
			--*k;
	}
	return true;
}

enum policy_path policy_path_normalize(const char *path, size_t n, char *out, size_t size)
{
	size_t k = 0, segment = 1, i = 1;

	if (n + 1 > size)
		return POLICY_PATH_LONG;
	if (!n || path[0] != '/')
		return POLICY_PATH_AMBIGUOUS;
	out[k++] = '/';
	while (i < n) {
		size_t n_in, n_out;
		char c[3];

		if (!path_char(path + i, n - i, c, &n_in, &n_out))
			return POLICY_PATH_AMBIGUOUS;
		i += n_in;
		if (n_out == 1 && c[0] == '/' && n_in == 1) {
			size_t before = k;

			out[k] = '\0';
			if (!segment_end(out, segment, &k, false))
				return POLICY_PATH_AMBIGUOUS;
			/* A dot segment leaves the slash before it. */
			if (k == before)
				out[k++] = '/';
			segment = k;
			continue;
		}
		memcpy(out + k, c, n_out);
		k += n_out;
	}
	out[k] = '\0';
	if (!segment_end(out, segment, &k, true))
		return POLICY_PATH_AMBIGUOUS;
	out[k] = '\0';
	return POLICY_PATH_OK;
}

bool policy_path_has(const char *prefix, const char *path)
{
	size_t n = strlen(prefix);

	if (strncmp(path, prefix, n))
		return false;
	return prefix[n - 1] == '/' || !path[n] || path[n] == '/';
}
