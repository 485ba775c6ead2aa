/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/request.h"

#include "base/fd.h"
#include "base/log.h"
#include "fcgi/auth.h"
#include "fcgi/router.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static struct log_limit request_lines = LOG_LIMIT_INIT(2000, 6000);

const char *request_param(const struct request *r, const char *name)
{
	size_t n = strlen(name);

	for (char *const *p = r->params; *p; p++)
		if (!strncmp(*p, name, n) && (*p)[n] == '=')
			return *p + n + 1;
	return NULL;
}

const char *request_query(const struct request *r, const char *key)
{
	for (size_t i = 0; i < r->n_query; i++)
		if (!strcmp(r->query[i].key, key))
			return r->query[i].value;
	return NULL;
}

static enum api_code body_read(struct request *r)
{
	size_t max = r->route && r->route->flags & ROUTE_BIG_BODY ? HTTP_DEPLOY_BODY_MAX : HTTP_BODY_MAX;
	struct fault f = { 0 };
	enum rc rc;

	if (r->body)
		return API_OK;
	rc = r->read_body ? r->read_body(r->read_arg, max, &r->body, &r->body_n, &f) : RC_OK;
	if (rc == RC_LIMIT)
		return api_fail(r, API_BODY_TOO_LARGE, "the body is larger than %zu bytes", max);
	if (rc == RC_NOMEM)
		return api_fault(r, &f);
	return rc ? api_fail(r, API_INVALID_REQUEST, "the body could not be read") : API_OK;
}

enum api_code request_json(struct request *r, bool optional, struct json_object **ret)
{
	struct fault f = { 0 };
	enum api_code code = body_read(r);

	if (code)
		return code;
	if (!r->json && optional && !r->body_n)
		r->json = json_object_new_object();
	if (!r->json && json_parse_object(r->body ? r->body : "", r->body_n, JSON_DEPTH_MAX, &r->json, &f))
		return f.rc == RC_NOMEM ? api_fault(r, &f) : api_refuse(r, API_INVALID_JSON, &f);
	*ret = r->json;
	return API_OK;
}

enum api_code api_fail(struct request *r, enum api_code code, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(r->message, sizeof(r->message), fmt, ap);
	va_end(ap);
	return code;
}

enum api_code api_refuse(struct request *r, enum api_code code, const struct fault *f)
{
	return api_fail(r, code, "%s", f->text);
}

enum api_code api_fault(struct request *r, const struct fault *f)
{
	log_fault(LOG_LEVEL_ERROR, f, "request trace=%s", r->trace);
	*r->message = '\0';
	switch (f->rc) {
	case RC_AGAIN:
	case RC_NOMEM:
		return API_BUSY;
	case RC_NOSPACE:
		return API_NO_DISK_SPACE;
	default:
		return API_INTERNAL;
	}
}

void reply_header(struct request *r, const char *fmt, ...)
{
	size_t room = sizeof(r->headers) - r->headers_n;
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(r->headers + r->headers_n, room, fmt, ap);
	va_end(ap);
	if (n < 0 || (size_t)n + 3 > room) {
		r->headers[r->headers_n] = '\0'; /* left out whole rather than cut */
		return;
	}
	memcpy(r->headers + r->headers_n + n, "\r\n", 3);
	r->headers_n += (size_t)n + 2;
}

static void reply_clear(struct request *r)
{
	free(take_ptr(r->out));
	r->out_n = 0;
}

enum api_code reply_json(struct request *r, int status, struct json_object *take)
{
	_cleanup_json_ struct json_object *o = take;
	const char *text = o ? json_text(o) : NULL;
	size_t n = text ? strlen(text) : 0;

	reply_clear(r);
	if (n > HTTP_RESPONSE_MAX)
		return api_fail(r, API_INTERNAL, "the answer is larger than %u bytes", HTTP_RESPONSE_MAX);
	r->out = text ? strdup(text) : NULL;
	if (!r->out)
		return API_BUSY;
	r->out_n = n;
	r->status = status;
	r->content_type = "application/json";
	return API_OK;
}

enum api_code reply_empty(struct request *r, int status)
{
	reply_clear(r);
	r->status = status;
	r->content_type = NULL;
	return API_OK;
}

enum api_code reply_text(struct request *r, const char *content_type, char *take, size_t n)
{
	reply_clear(r);
	r->out = take;
	r->out_n = n;
	r->status = 200;
	r->content_type = content_type;
	return API_OK;
}

static void reply_error(struct request *r, enum api_code code)
{
	struct json_object *o = json_object_new_object();

	json_add_str(o, "code", api_code_name(code));
	json_add_str(o, "message", *r->message ? r->message : api_code_text(code));
	if (code == API_INVALID_TOKEN)
		reply_header(r, "WWW-Authenticate: Bearer");
	if (code == API_UPGRADE_REQUIRED)
		reply_header(r, "Upgrade: websocket");
	if (code == API_BUSY || code == API_CAPACITY_EXCEEDED || code == API_TOO_MANY_REQUESTS)
		reply_header(r, "Retry-After: 1");
	if (reply_json(r, api_code_status(code), o)) {
		reply_empty(r, api_code_status(code));
	}
}

/* Before anything is done, so that nothing has to be undone. */
static enum api_code share_check(struct request *r)
{
	if (!(r->route->flags & (ROUTE_LONG | ROUTE_END)) || !r->api->pool ||
	    pool_enter(r->api->pool, r->api->slot, r->org_id, r->route->flags & ROUTE_END ? POOL_END : POOL_LONG))
		return API_OK;
	return API_TOO_MANY_REQUESTS;
}

static enum api_code run(struct request *r)
{
	const char *uri = request_param(r, "REQUEST_URI");
	const char *method = request_param(r, "REQUEST_METHOD");
	enum api_code code;

	r->method = method ? method : "GET";
	code = request_parse_uri(r, uri ? uri : "");
	if (!code)
		code = request_route(r);
	/* Without a token nothing is told, not even which endpoints there are. */
	if (!r->route || !(r->route->flags & ROUTE_OPEN)) {
		enum api_code auth = auth_check(r);

		if (auth) {
			if (code)
				*r->message = '\0'; /* that was about the path */
			return auth;
		}
	}
	if (!code)
		code = share_check(r);
	return code ? code : r->route->fn(r);
}

void api_handle(struct request *r)
{
	enum api_code code;

	r->started_ms = now_ms();
	random_hex(r->trace, (TRACE_MAX - 1) / 2);
	reply_header(r, "x-deno-trace-id: %s", r->trace);
	reply_header(r, "Cache-Control: no-store");
	code = run(r);
	if (code)
		reply_error(r, code);
	log_limited(&request_lines, LOG_LEVEL_INFO, "request method=%.10s path=%.200s status=%d code=%s ms=%llu org=%s trace=%s",
		    r->method, request_param(r, "REQUEST_URI") ? request_param(r, "REQUEST_URI") : "", r->status,
		    api_code_name(code), (unsigned long long)(now_ms() - r->started_ms), r->org_name, r->trace);
}

void request_free(struct request *r)
{
	free(take_ptr(r->body));
	free(take_ptr(r->out));
	json_object_put(take_ptr(r->json));
}
