/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A machine's egress policy: parsed from schema/policy.h's text, asked for every name and connection. A NULL policy (none
 * arrived, or an invalid one) allows nothing.
 */
#ifndef NB_SCHEMA_VERDICT_H
#define NB_SCHEMA_VERDICT_H

#include "base/fault.h"
#include "schema/policy.h"
#include "base/address.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define POLICY_NAME_MAX 254 /* a DNS name in text, without the last dot, and a terminator */
#define POLICY_ORG_MAX 64
#define POLICY_RULE_MAX (POLICY_PATTERN_MAX + 64)
#define POLICY_SECRET_NAME_MAX 128
#define POLICY_PLACEHOLDER_MAX 128
#define POLICY_SECRET_HOSTS_MAX 32

struct policy;

struct verdict {
	bool allowed;
	char rule[POLICY_RULE_MAX]; /* "allow *.example.com", "deny 10.0.0.0/8", "default public", ... */
};

struct policy_pattern {
	enum { PATTERN_HOST, PATTERN_SUFFIX, PATTERN_NET } kind;
	char name[POLICY_NAME_MAX]; /* SUFFIX: without "*." */
	struct prefix net;
	uint16_t port; /* 0: any */
};

struct policy_secret {
	char name[POLICY_SECRET_NAME_MAX];
	char placeholder[POLICY_PLACEHOLDER_MAX];
	uint8_t *sealed;
	size_t n_sealed;
	struct policy_pattern *hosts;
	size_t n_hosts;
	/* Lists with commas; NULL: any method, any path, the default headers, no query parameter. */
	char *methods, *paths, *headers, *query;
};

/* 0: none. */
struct policy_limits {
	uint64_t bytes_per_s, total_bytes, conns_per_s;
};

enum rc policy_parse(const void *text, size_t n, struct policy **ret, struct fault *ret_f);
void policy_free(struct policy *p);
const char *policy_org(const struct policy *p);
const struct policy_secret *policy_secrets(const struct policy *p, size_t *ret_n);
struct policy_limits policy_limits(const struct policy *p);
/* Whether connections to this name carry one of the secrets, so that its TLS is ours to end. */
bool policy_has_secret_for(const struct policy *p, const char *name, uint16_t port);
/* The same, or because there are rules about its requests. */
bool policy_intercepts(const struct policy *p, const char *name, uint16_t port);
/* There is something in it for which TLS of some host has to be ended. */
bool policy_needs_ca(const struct policy *p);
/* Whether what is allowed of this name depends on the path, so that only paths which all servers read alike may pass. */
bool policy_judges_paths(const struct policy *p, const char *name, uint16_t port);
/* path: in its normal form; NULL if policy_judges_paths() is false. */
bool policy_evaluate_request(const struct policy *p, const char *name, uint16_t port, const char *method, const char *path,
			     struct verdict *ret);
bool policy_list_has(const char *list, const char *word, size_t n, bool any_case);
bool policy_pattern_matches(const struct policy_pattern *q, const char *name, uint16_t port);

/* port 0: whether any port of it may be reached (what DNS asks). The name is normal, see name_normalize(). */
bool policy_evaluate_name(const struct policy *p, const char *name, uint16_t port, struct verdict *ret);
/* A literal address, from the guest. */
bool policy_evaluate_address(const struct policy *p, const struct address *a, uint16_t port,
			     const struct reach *reach, struct verdict *ret);
/* An address that an allowed name resolved to: may still be denied, or not the public internet. */
bool policy_evaluate_resolved(const struct policy *p, const struct address *a, uint16_t port,
			      const struct reach *reach, struct verdict *ret);

/* Lower case, one last dot removed; letters, digits, '-' and '_' in labels of 1..63. False if it is no such name. */
bool name_normalize(char out[POLICY_NAME_MAX], const char *in, size_t n);

#endif
