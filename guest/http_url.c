/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/http.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

/* Length of "http://" or "https://" at the start, 0 if it is neither. */
static size_t scheme_len(const char *url)
{
	if (!strncasecmp(url, "http://", 7))
		return 7;
	if (!strncasecmp(url, "https://", 8))
		return 8;
	return 0;
}

static bool put(char *out, size_t size, const char *a, size_t n_a, const char *b)
{
	int n = snprintf(out, size, "%.*s%s", (int)n_a, a, b);

	return n > 0 && (size_t)n < size;
}

/* "word:" as a scheme begins; then the whole is absolute, http or not. */
static bool has_scheme(const char *s)
{
	size_t n = 0;

	while (isalnum((unsigned char)s[n]) || (n && strchr("+-.", s[n]) && s[n]))
		n++;
	return n && isalpha((unsigned char)s[0]) && s[n] == ':';
}

bool http_resolve(const char *base, const char *location, char *out, size_t size)
{
	size_t scheme = scheme_len(base), authority, path, last;

	if (!scheme)
		return false;
	if (has_scheme(location))
		return scheme_len(location) && put(out, size, location, strcspn(location, "#"), "");
	authority = scheme + strcspn(base + scheme, "/?#");
	path = authority + strcspn(base + authority, "?#");
	if (location[0] == '/' && location[1] == '/')
		return put(out, size, base, scheme - 2, location);
	if (location[0] == '/')
		return put(out, size, base, authority, location);
	if (location[0] == '?')
		return put(out, size, base, path, location);
	if (!location[0] || location[0] == '#')
		return put(out, size, base, strcspn(base, "#"), "");
	last = path;
	while (last > authority && base[last - 1] != '/')
		last--;
	if (last == authority)
		return authority + 2 < size && put(out, size, base, authority, "/") &&
		       put(out + authority + 1, size - authority - 1, "", 0, location);
	return put(out, size, base, last, location);
}

bool http_origin(const char *url, char *out, size_t size)
{
	size_t scheme = scheme_len(url), n;
	const char *host, *at;

	if (!scheme)
		return false;
	host = url + scheme;
	n = strcspn(host, "/?#");
	while ((at = memchr(host, '@', n))) {
		n -= (size_t)(at - host) + 1;
		host = at + 1;
	}
	if (!n || !put(out, size, url, scheme, "") || scheme + n + 1 > size)
		return false;
	memcpy(out + scheme, host, n);
	out[scheme + n] = 0;
	for (char *p = out; *p; p++)
		*p = (char)tolower((unsigned char)*p);
	return true;
}
