/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/egress/judge.h"

#include <stdio.h>
#include <string.h>

static bool authority_is(const struct http_text *t, const char *host, uint16_t port)
{
	char with_port[POLICY_NAME_MAX + 8];

	snprintf(with_port, sizeof(with_port), "%s:%u", host, port);
	return http_is(t, host) || http_is(t, with_port);
}

/* Where no rule is about the path it is the upstream's business, and goes out as it came. */
static int judge_path(const struct policy *p, struct judged *j, const struct http_text *target, const char **ret_why)
{
	const char *query = memchr(target->at, '?', target->n);
	size_t n = query ? (size_t)(query - target->at) : target->n;

	j->rest = (struct http_text){ target->at + n, target->n - n };
	if (!policy_judges_paths(p, j->place.host, j->place.port))
		return 0;
	if (target->n == 1 && *target->at == '*') {
		snprintf(j->path, sizeof(j->path), "*");
	} else {
		switch (policy_path_normalize(target->at, n, j->path, sizeof(j->path))) {
		case POLICY_PATH_OK: break;
		case POLICY_PATH_AMBIGUOUS: *ret_why = "servers would read this path in different ways"; return 400;
		case POLICY_PATH_LONG: *ret_why = "the path is too long"; return 414;
		}
	}
	j->normal = true;
	j->place.path = j->path;
	return 0;
}

int judge_request(const struct policy *p, const char *host, uint16_t port, const char *method, const struct http_text *authority,
		  const struct http_text *target, struct judged *ret, const char **ret_why)
{
	int status;

	ret->place = (struct secret_place){ .host = host, .port = port, .method = method };
	ret->normal = false;
	ret->verdict.rule[0] = '\0';
	if (!authority_is(authority, host, port)) {
		*ret_why = "the Host header is not the connection's host";
		return 421;
	}
	if (!strcmp(method, "CONNECT") || !strcmp(method, "TRACE")) {
		*ret_why = "method not passed on";
		return 421;
	}
	if (!target->n || (*target->at != '/' && !(target->n == 1 && *target->at == '*' && !strcmp(method, "OPTIONS")))) {
		*ret_why = "the target is not a path";
		return 421;
	}
	status = judge_path(p, ret, target, ret_why);
	if (status)
		return status;
	if (!policy_evaluate_request(p, host, port, method, ret->place.path, &ret->verdict)) {
		*ret_why = ret->verdict.rule;
		return 403;
	}
	return 0;
}

enum rc judge_put_target(const struct judged *j, const struct http_text *target, struct secrets *set, struct buf *out,
			 struct secret_report *report)
{
	enum rc rc;

	if (!j->normal)
		return secrets_put_target(set, &j->place, target->at, target->n, out, report);
	rc = buf_puts(out, j->path);
	return rc ? rc : secrets_put_target(set, &j->place, j->rest.at, j->rest.n, out, report);
}
