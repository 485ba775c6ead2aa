/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/egress/http1.h"

#include <ctype.h>
#include <string.h>
#include <strings.h>

#define DIGITS_MAX 15 /* of a length: far below overflow */

static bool token_char(unsigned char c)
{
	return c < 0x80 && (isalnum(c) || (c && strchr("!#$%&'*+-.^_`|~", c)));
}

bool http_is(const struct http_text *t, const char *text)
{
	return strlen(text) == t->n && !strncasecmp(t->at, text, t->n);
}

int http_find(const struct http_head *h, const char *name, struct http_text *ret)
{
	int found = 0;

	for (size_t i = 0; i < h->n_headers; i++)
		if (http_is(&h->headers[i].name, name)) {
			if (found)
				return -1;
			found = 1;
			*ret = h->headers[i].value;
		}
	return found;
}

/* The line at *at without its CRLF. A bare LF or CR anywhere is refused by line_ok(). */
static enum http_result line_next(const char *data, size_t n, size_t *at, struct http_text *ret)
{
	const char *lf = memchr(data + *at, '\n', n - *at);

	if (!lf)
		return HTTP_MORE;
	if (lf == data + *at || lf[-1] != '\r')
		return HTTP_BAD;
	ret->at = data + *at;
	ret->n = (size_t)(lf - 1 - ret->at);
	*at = (size_t)(lf + 1 - data);
	return HTTP_OK;
}

static bool printable(const struct http_text *t, bool blanks)
{
	for (size_t i = 0; i < t->n; i++) {
		unsigned char c = (unsigned char)t->at[i];

		if (c == 0x7f || c < 0x20 ? !(blanks && c == '\t') : c == ' ' && !blanks)
			return false;
	}
	return true;
}

static bool version_ok(const char *at, unsigned int *minor)
{
	if (memcmp(at, "HTTP/1.", 7) || (at[7] != '0' && at[7] != '1'))
		return false;
	*minor = (unsigned int)(at[7] - '0');
	return true;
}

static bool request_line(const struct http_text *l, struct http_head *h)
{
	const char *sp = memchr(l->at, ' ', l->n);
	size_t method_n = sp ? (size_t)(sp - l->at) : 0;

	if (!method_n || method_n >= HTTP_METHOD_MAX || l->n < method_n + 1 + 1 + 1 + 8)
		return false;
	for (size_t i = 0; i < method_n; i++)
		if (!token_char((unsigned char)l->at[i]))
			return false;
	memcpy(h->method, l->at, method_n);
	h->method[method_n] = '\0';
	h->target = (struct http_text){ sp + 1, l->n - method_n - 1 - 9 };
	return l->at[l->n - 9] == ' ' && version_ok(l->at + l->n - 8, &h->minor) && printable(&h->target, false);
}

static bool status_line(const struct http_text *l, struct http_head *h)
{
	if (l->n < 12 || !version_ok(l->at, &h->minor) || l->at[8] != ' ' || (l->n > 12 && l->at[12] != ' '))
		return false;
	for (size_t i = 9; i < 12; i++) {
		if (!isdigit((unsigned char)l->at[i]))
			return false;
		h->status = h->status * 10 + (unsigned int)(l->at[i] - '0');
	}
	h->reason = (struct http_text){ l->at + (l->n > 12 ? 13 : 12), l->n > 12 ? l->n - 13 : 0 };
	return h->status >= 100 && h->status < 600 && printable(&h->reason, true);
}

static bool header_line(const struct http_text *l, struct http_header *h)
{
	const char *colon = memchr(l->at, ':', l->n);
	const char *end = l->at + l->n, *value;

	if (!colon || colon == l->at)
		return false;
	h->name = (struct http_text){ l->at, (size_t)(colon - l->at) };
	for (size_t i = 0; i < h->name.n; i++)
		if (!token_char((unsigned char)h->name.at[i]))
			return false; /* also what starts with a blank: a folded line */
	for (value = colon + 1; value < end && (*value == ' ' || *value == '\t');)
		value++;
	while (end > value && (end[-1] == ' ' || end[-1] == '\t'))
		end--;
	h->value = (struct http_text){ value, (size_t)(end - value) };
	return printable(&h->value, true);
}

static bool length_parse(const struct http_text *t, uint64_t *ret)
{
	uint64_t v = 0;

	if (!t->n || t->n > DIGITS_MAX)
		return false;
	for (size_t i = 0; i < t->n; i++) {
		if (!isdigit((unsigned char)t->at[i]))
			return false;
		v = v * 10 + (uint64_t)(t->at[i] - '0');
	}
	*ret = v;
	return true;
}

bool http_list_has(const struct http_text *t, const char *word)
{
	for (size_t at = 0; at < t->n;) {
		struct http_text item = { t->at + at, 0 };

		while (at + item.n < t->n && item.at[item.n] != ',')
			item.n++;
		at += item.n + 1;
		while (item.n && (*item.at == ' ' || *item.at == '\t'))
			item.at++, item.n--;
		while (item.n && (item.at[item.n - 1] == ' ' || item.at[item.n - 1] == '\t'))
			item.n--;
		if (http_is(&item, word))
			return true;
	}
	return false;
}

static const char *framing(struct http_head *h, bool request)
{
	struct http_text t;
	int length = http_find(h, "content-length", &t);

	if (length < 0 || (length && !length_parse(&t, &h->length)))
		return "Content-Length is not one number";
	h->has_length = length;
	switch (http_find(h, "transfer-encoding", &t)) {
	case 0: break;
	case 1:
		if (!http_is(&t, "chunked") || length || !h->minor)
			return "Transfer-Encoding that is not just chunked";
		h->chunked = true;
		break;
	default: return "two Transfer-Encodings";
	}
	h->close = !h->minor;
	for (size_t i = 0; i < h->n_headers; i++)
		if (http_is(&h->headers[i].name, "connection")) {
			if (http_list_has(&h->headers[i].value, "close"))
				h->close = true;
			else if (!h->minor && http_list_has(&h->headers[i].value, "keep-alive"))
				h->close = false;
		}
	if (request)
		h->framing = h->chunked ? HTTP_CHUNKED : length && h->length ? HTTP_LENGTH : HTTP_NO_BODY;
	return NULL;
}

enum http_result http_parse(const uint8_t *data, size_t n, bool request, struct http_head *ret, const char **ret_why)
{
	const char *text = (const char *)data;
	struct http_text line;
	enum http_result r;
	size_t at = 0;

	memset(ret, 0, offsetof(struct http_head, headers));
	ret->n_headers = 0;
	ret->framing = HTTP_NO_BODY;
	ret->length = 0;
	ret->has_length = ret->chunked = ret->close = false;
	*ret_why = "malformed first line";
	r = line_next(text, n, &at, &line);
	if (r != HTTP_OK)
		return r;
	if (!(request ? request_line(&line, ret) : status_line(&line, ret)))
		return HTTP_BAD;
	for (;;) {
		*ret_why = "malformed header";
		r = line_next(text, n, &at, &line);
		if (r != HTTP_OK)
			return r;
		if (!line.n)
			break;
		*ret_why = ret->n_headers == HTTP_HEADERS_MAX ? "too many headers" : "malformed header";
		if (ret->n_headers == HTTP_HEADERS_MAX || !header_line(&line, &ret->headers[ret->n_headers]))
			return HTTP_BAD;
		ret->n_headers++;
	}
	ret->n = at;
	*ret_why = framing(ret, request);
	return *ret_why ? HTTP_BAD : HTTP_OK;
}

enum http_framing http_response_framing(const struct http_head *h, bool to_head_request)
{
	if (to_head_request || h->status < 200 || h->status == 204 || h->status == 304)
		return HTTP_NO_BODY;
	if (h->chunked)
		return HTTP_CHUNKED;
	return h->has_length ? h->length ? HTTP_LENGTH : HTTP_NO_BODY : HTTP_UNTIL_CLOSE;
}

void http_body_start(struct http_body *b, enum http_framing f, uint64_t length)
{
	*b = (struct http_body){ .framing = f, .left = length, .state = CHUNK_SIZE, .done = f == HTTP_NO_BODY };
}

static enum http_result data_read(struct http_body *b, const uint8_t *in, size_t n, size_t *n_used, struct http_text *piece)
{
	if (!n)
		return HTTP_MORE;
	if (b->framing != HTTP_UNTIL_CLOSE && n > b->left)
		n = (size_t)b->left;
	*piece = (struct http_text){ (const char *)in, n };
	*n_used = n;
	if (b->framing != HTTP_UNTIL_CLOSE)
		b->left -= n;
	return HTTP_OK;
}

static int hex_digit(unsigned char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c = (unsigned char)(c | 0x20);
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* "1a[;extension]": the extension is read over. */
static bool size_parse(const struct http_text *l, uint64_t *ret)
{
	uint64_t v = 0;
	size_t i;

	for (i = 0; i < l->n && hex_digit((unsigned char)l->at[i]) >= 0; i++)
		v = v << 4 | (uint64_t)hex_digit((unsigned char)l->at[i]);
	if (!i || i > DIGITS_MAX || (i < l->n && l->at[i] != ';' && l->at[i] != ' ' && l->at[i] != '\t') || !printable(l, true))
		return false;
	*ret = v;
	return true;
}

static enum http_result chunk_line(struct http_body *b, const uint8_t *in, size_t n, size_t *n_used)
{
	struct http_text line;
	size_t at = 0;
	enum http_result r = line_next((const char *)in, n, &at, &line);

	if (r == HTTP_MORE)
		return n > HTTP_CHUNK_LINE_MAX ? HTTP_BAD : HTTP_MORE;
	if (r == HTTP_BAD || line.n > HTTP_CHUNK_LINE_MAX)
		return HTTP_BAD;
	*n_used = at;
	switch (b->state) {
	case CHUNK_SIZE:
		if (!size_parse(&line, &b->left))
			return HTTP_BAD;
		b->state = b->left ? CHUNK_DATA : CHUNK_TRAILER;
		break;
	case CHUNK_END:
		if (line.n)
			return HTTP_BAD;
		b->state = CHUNK_SIZE;
		break;
	case CHUNK_TRAILER: b->done = !line.n; break;
	case CHUNK_DATA: return HTTP_BAD;
	}
	return HTTP_OK;
}

enum http_result http_body_read(struct http_body *b, const uint8_t *in, size_t n, size_t *n_used, struct http_text *piece)
{
	enum http_result r;

	*n_used = 0;
	*piece = (struct http_text){ NULL, 0 };
	if (b->done)
		return HTTP_OK;
	if (b->framing == HTTP_CHUNKED && b->state != CHUNK_DATA)
		return chunk_line(b, in, n, n_used);
	r = data_read(b, in, n, n_used, piece);
	if (b->framing == HTTP_LENGTH && !b->left)
		b->done = true;
	if (b->framing == HTTP_CHUNKED && !b->left)
		b->state = CHUNK_END;
	return r;
}
