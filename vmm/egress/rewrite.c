/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory: heads are written anew from their parsed parts, never copied, so upstream reads what was judged here. What belongs
 * to one connection only (Connection, TE, Upgrade, ...) is ours to say; compression is not asked for, because a
 * response has to be searched. Placeholders are replaced in every header but those that servers are known to echo.
 */
#include "vmm/egress/rewrite.h"

#include "base/cleanup.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

static bool in_list(const struct http_text *name, const char *const *list)
{
	for (; *list; list++)
		if (http_is(name, *list))
			return true;
	return false;
}

static bool starts(const struct http_text *name, const char *head)
{
	return name->n >= strlen(head) && !strncasecmp(name->at, head, strlen(head));
}

static const char *const ours_in_requests[] = { "host", "content-length", "transfer-encoding", "connection",
						"proxy-connection", "keep-alive", "te", "trailer", "upgrade",
						"http2-settings", "accept-encoding", "proxy-authorization", NULL };
static const char *const ours_in_responses[] = { "content-length", "transfer-encoding", "connection", "proxy-connection",
						 "keep-alive", "trailer", "upgrade", "alt-svc", NULL };
/* Servers put these into answers, logs and error pages. */
static const char *const echoed[] = { "user-agent", "referer", "origin", "forwarded", "via", "x-request-id",
				      "x-correlation-id", "traceparent", "tracestate", "range", "expect", "date", "from", NULL };

bool rewrite_is_ours_in_requests(const struct http_text *name)
{
	return in_list(name, ours_in_requests);
}

bool rewrite_is_ours_in_responses(const struct http_text *name)
{
	return in_list(name, ours_in_responses);
}

bool rewrite_is_encoded(const struct http_text *value)
{
	return value->n && !http_is(value, "identity");
}

bool rewrite_may_carry_secrets(const struct http_text *name)
{
	return !in_list(name, echoed) && !starts(name, "x-forwarded-") && !starts(name, "accept") && !starts(name, "content-") &&
	       !starts(name, "if-") && !starts(name, "sec-") && !starts(name, "access-control-");
}

bool rewrite_is_websocket(const struct http_head *h, bool request)
{
	struct http_text connection, upgrade, other;

	if (http_find(h, "connection", &connection) != 1 || !http_list_has(&connection, "upgrade") ||
	    http_find(h, "upgrade", &upgrade) != 1 || !http_is(&upgrade, "websocket") || !h->minor)
		return false;
	if (request)
		return !strcmp(h->method, "GET") && h->framing == HTTP_NO_BODY && http_find(h, "sec-websocket-key", &other) == 1;
	return h->status == 101 && http_find(h, "sec-websocket-accept", &other) == 1 &&
	       !http_find(h, "sec-websocket-extensions", &other);
}

static enum rc put_text(struct buf *out, const struct http_text *t)
{
	return buf_put(out, t->at, t->n);
}

enum rc rewrite_request(const struct http_head *h, const struct judged *j, struct secrets *set, struct buf *out,
			struct secret_report *report)
{
	enum rc rc = buf_printf(out, "%s ", h->method);

	if (!rc)
		rc = judge_put_target(j, &h->target, set, out, report);
	if (!rc)
		rc = buf_printf(out, " HTTP/1.1\r\nHost: %s", j->place.host);
	if (!rc && j->place.port != 443)
		rc = buf_printf(out, ":%u", j->place.port);
	if (!rc)
		rc = buf_puts(out, set ? "\r\nAccept-Encoding: identity\r\n" : "\r\n");
	for (size_t i = 0; !rc && i < h->n_headers; i++) {
		const struct http_header *e = &h->headers[i];

		if (rewrite_is_ours_in_requests(&e->name) && !(!set && http_is(&e->name, "accept-encoding")))
			continue;
		/* Compressed frames could not be looked through. */
		if (http_is(&e->name, "sec-websocket-extensions"))
			continue;
		rc = put_text(out, &e->name);
		if (!rc)
			rc = buf_puts(out, ": ");
		if (!rc)
			rc = secrets_put_header(set, &j->place, e->name.at, e->name.n, rewrite_may_carry_secrets(&e->name),
						e->value.at, e->value.n, out, report);
		if (!rc)
			rc = buf_puts(out, "\r\n");
	}
	if (!rc && rewrite_is_websocket(h, true))
		rc = buf_puts(out, "Connection: Upgrade\r\nUpgrade: websocket\r\n");
	else if (!rc && h->close)
		rc = buf_puts(out, "Connection: close\r\n");
	if (!rc && h->framing == HTTP_CHUNKED)
		rc = buf_puts(out, "Transfer-Encoding: chunked\r\n");
	else if (!rc && h->has_length)
		rc = buf_printf(out, "Content-Length: %llu\r\n", (unsigned long long)h->length);
	return rc ? rc : buf_puts(out, "\r\n");
}

static enum rc put_redacted(struct secrets *set, const struct http_text *t, struct buf *out, bool *found)
{
	struct redactor r = { 0 };
	enum rc rc;

	redactor_start(&r, set);
	rc = redactor_run(&r, t->at, t->n, true, out);
	*found |= r.found;
	redactor_end(&r);
	return rc;
}

enum rc rewrite_response(const struct http_head *h, struct secrets *set, enum http_framing framing, bool close, struct buf *out,
			 bool *ret_found)
{
	enum rc rc = buf_printf(out, "HTTP/1.1 %03u ", h->status);

	if (!rc)
		rc = put_redacted(set, &h->reason, out, ret_found);
	for (size_t i = 0; !rc && i < h->n_headers; i++) {
		const struct http_header *e = &h->headers[i];

		if (rewrite_is_ours_in_responses(&e->name))
			continue;
		rc = buf_puts(out, "\r\n");
		if (!rc)
			rc = put_redacted(set, &e->name, out, ret_found);
		if (!rc)
			rc = buf_puts(out, ": ");
		if (!rc)
			rc = put_redacted(set, &e->value, out, ret_found);
	}
	if (!rc && framing == HTTP_CHUNKED)
		rc = buf_puts(out, "\r\nTransfer-Encoding: chunked");
	else if (!rc && framing != HTTP_UNTIL_CLOSE && h->has_length && h->status >= 200 && h->status != 204)
		rc = buf_printf(out, "\r\nContent-Length: %llu", (unsigned long long)h->length);
	if (!rc && h->status == 101)
		rc = buf_puts(out, "\r\nConnection: Upgrade\r\nUpgrade: websocket");
	if (!rc && h->status >= 200)
		rc = buf_puts(out, close ? "\r\nConnection: close" : "\r\nConnection: keep-alive");
	return rc ? rc : buf_puts(out, "\r\n\r\n");
}

enum rc rewrite_chunk(struct buf *out, const void *data, size_t n)
{
	enum rc rc;

	if (!n)
		return buf_puts(out, "0\r\n\r\n");
	rc = buf_printf(out, "%zx\r\n", n);
	if (!rc)
		rc = buf_put(out, data, n);
	return rc ? rc : buf_puts(out, "\r\n");
}
