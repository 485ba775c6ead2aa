/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/gateway/head.h"

#include "base/cleanup.h"

#include <openssl/evp.h>
#include <stdint.h>
#include <string.h>
#include <strings.h>

#define STREAM_PREFIX "/_stream/"
#define WS_GUID "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

struct span {
	const char *at;
	size_t n;
};

size_t head_length(const char *data, size_t n)
{
	const char *end = memmem(data, n, "\r\n\r\n", 4);

	return end ? (size_t)(end - data) + 4 : 0;
}

static bool is_token_char(char c)
{
	return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
	       (c && strchr("!#$%&'*+-.^_`|~", c));
}

static bool span_is(struct span s, const char *word)
{
	return s.n == strlen(word) && !strncasecmp(s.at, word, s.n);
}

/* Up to `stop`, which is skipped; false if it does not come. */
static bool span_cut(struct span *from, char stop, struct span *ret)
{
	const char *hit = memchr(from->at, stop, from->n);

	if (!hit)
		return false;
	ret->at = from->at;
	ret->n = (size_t)(hit - from->at);
	from->n -= ret->n + 1;
	from->at = hit + 1;
	return true;
}

static void span_trim(struct span *s)
{
	while (s->n && (*s->at == ' ' || *s->at == '\t')) {
		s->at++;
		s->n--;
	}
	while (s->n && (s->at[s->n - 1] == ' ' || s->at[s->n - 1] == '\t'))
		s->n--;
}

/* One line without its CRLF; no other control byte than a tab may stand in it. */
static enum rc line_next(struct span *rest, struct span *ret, struct fault *ret_f)
{
	if (!span_cut(rest, '\n', ret) || !ret->n || ret->at[ret->n - 1] != '\r')
		return fault_set(ret_f, RC_INVALID, 0, "a line of the request does not end in CRLF");
	ret->n--;
	for (size_t i = 0; i < ret->n; i++)
		if (((unsigned char)ret->at[i] < 0x20 && ret->at[i] != '\t') || ret->at[i] == 0x7f)
			return fault_set(ret_f, RC_INVALID, 0, "control byte in the request");
	return RC_OK;
}

static enum rc parse_request_line(struct span line, struct head *h, struct fault *ret_f)
{
	const size_t n_prefix = strlen(STREAM_PREFIX);
	struct span method, path;

	if (!span_cut(&line, ' ', &method) || !span_cut(&line, ' ', &path) ||
	    (!span_is(line, "HTTP/1.1") && !span_is(line, "HTTP/1.0")))
		return fault_set(ret_f, RC_INVALID, 0, "malformed request line");
	if (!span_is(method, "GET"))
		return fault_set(ret_f, RC_INVALID, 0, "a stream is opened with GET");
	if (path.n < n_prefix || memcmp(path.at, STREAM_PREFIX, n_prefix))
		return fault_set(ret_f, RC_ABSENT, 0, "no such path");
	path.at += n_prefix;
	path.n -= n_prefix;
	/* nginx adds the client's query string to an internal redirect; the ticket ends before it. */
	for (size_t i = 0; i < path.n; i++)
		if (path.at[i] == '?')
			path.n = i;
	if (!path.n || path.n >= sizeof(h->token))
		return fault_set(ret_f, RC_ABSENT, 0, "no such path");
	memcpy(h->token, path.at, path.n);
	h->token[path.n] = '\0';
	return RC_OK;
}

static bool list_has(struct span value, const char *word)
{
	struct span item;

	while (span_cut(&value, ',', &item)) {
		span_trim(&item);
		if (span_is(item, word))
			return true;
	}
	span_trim(&value);
	return span_is(value, word);
}

static void take_key(struct head *h, struct span value)
{
	if (value.n != HEAD_WS_KEY || value.at[22] != '=' || value.at[23] != '=')
		return;
	for (size_t i = 0; i < 22; i++)
		if (!is_token_char(value.at[i]) && value.at[i] != '/')
			return;
	memcpy(h->ws_key, value.at, HEAD_WS_KEY);
	h->ws_key[HEAD_WS_KEY] = '\0';
}

struct seen {
	bool upgrade, connection;
};

static enum rc parse_header(struct span line, struct head *h, struct seen *seen, struct fault *ret_f)
{
	struct span name;

	if (!span_cut(&line, ':', &name) || !name.n)
		return fault_set(ret_f, RC_INVALID, 0, "malformed header line");
	for (size_t i = 0; i < name.n; i++)
		if (!is_token_char(name.at[i]))
			return fault_set(ret_f, RC_INVALID, 0, "malformed header name");
	span_trim(&line);
	if (span_is(name, "Upgrade"))
		seen->upgrade |= list_has(line, "websocket");
	else if (span_is(name, "Connection"))
		seen->connection |= list_has(line, "upgrade");
	else if (span_is(name, "Sec-WebSocket-Key"))
		take_key(h, line);
	else if (span_is(name, "Sec-WebSocket-Version"))
		h->ws_version = span_is(line, "13") ? 13 : 0;
	else if (span_is(name, "Transfer-Encoding") || (span_is(name, "Content-Length") && !span_is(line, "0")))
		return fault_set(ret_f, RC_INVALID, 0, "a stream's request has no body");
	return RC_OK;
}

enum rc head_parse(const char *data, size_t n, struct head *ret, struct fault *ret_f)
{
	struct span rest = { data, n }, line;
	struct seen seen = { false, false };
	struct head h = { .ws_version = 0 };
	enum rc rc;

	if (n > HEAD_MAX)
		return fault_set(ret_f, RC_LIMIT, 0, "request head is longer than %d bytes", HEAD_MAX);
	rc = line_next(&rest, &line, ret_f);
	if (!rc)
		rc = parse_request_line(line, &h, ret_f);
	for (unsigned int i = 0; !rc; i++) {
		rc = line_next(&rest, &line, ret_f);
		if (rc || !line.n)
			break;
		if (i >= HEAD_HEADERS_MAX)
			return fault_set(ret_f, RC_LIMIT, 0, "more than %d header lines", HEAD_HEADERS_MAX);
		rc = parse_header(line, &h, &seen, ret_f);
	}
	if (!rc && rest.n)
		rc = fault_set(ret_f, RC_INVALID, 0, "bytes after the head");
	if (rc)
		return rc;
	h.upgrade = seen.upgrade && seen.connection;
	*ret = h;
	return RC_OK;
}

enum rc head_ws_accept(const char *key, char out[HEAD_WS_ACCEPT + 1], struct fault *ret_f)
{
	char text[HEAD_WS_KEY + sizeof(WS_GUID)];
	unsigned char digest[EVP_MAX_MD_SIZE];
	unsigned int n = 0;

	if (strlen(key) != HEAD_WS_KEY)
		return fault_set(ret_f, RC_INVALID, 0, "malformed Sec-WebSocket-Key");
	memcpy(text, key, HEAD_WS_KEY);
	memcpy(text + HEAD_WS_KEY, WS_GUID, sizeof(WS_GUID));
	if (!EVP_Digest(text, sizeof(text) - 1, digest, &n, EVP_sha1(), NULL) || n != 20)
		return fault_set(ret_f, RC_SYS, 0, "SHA-1 is not available");
	EVP_EncodeBlock((unsigned char *)out, digest, 20);
	return RC_OK;
}
