/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory: two lists of patterns, looked at in full for each question (at most POLICY_LINES_MAX comparisons, no state). A deny
 * pattern that fits decides; else an allow pattern that fits; else the default. Names are judged as names and addresses as
 * addresses: what a name resolves to is then only checked for being public and not denied.
 */
#include "schema/verdict.h"

#include "base/cleanup.h"

#include <ctype.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

struct rules {
	struct policy_pattern *at;
	size_t n;
};

/* What may be asked of a host. */
struct request_rule {
	struct policy_pattern host;
	char *methods, *path;
};

struct policy {
	bool public, has_default, has_limits;
	struct policy_limits limits;
	struct request_rule *requests;
	size_t n_requests;
	char org[POLICY_ORG_MAX];
	struct rules allow, deny;
	struct policy_secret *secrets;
	size_t n_secrets;
};

/* "10.0.0.1" or "0x7f000001": some program would take it for an address, so it is no name. */
static bool looks_numeric(const char *label)
{
	if (label[0] == '0' && label[1] == 'x' && !label[2 + strspn(label + 2, "0123456789abcdef")])
		return true;
	return !label[strspn(label, "0123456789")];
}

bool name_normalize(char out[POLICY_NAME_MAX], const char *in, size_t n)
{
	size_t label = 0;

	if (n && in[n - 1] == '.')
		n--;
	if (!n || n >= POLICY_NAME_MAX)
		return false;
	for (size_t i = 0; i < n; i++) {
		unsigned char c = (unsigned char)in[i];

		if (c == '.') {
			if (!label)
				return false;
			label = 0;
		} else {
			if (!(c < 0x80 && (isalnum(c) || c == '-' || c == '_')) || ++label > 63)
				return false;
		}
		out[i] = (char)(c < 0x80 ? tolower(c) : c);
	}
	if (!label)
		return false;
	out[n] = '\0';
	return !looks_numeric(out + n - label);
}

static bool port_parse(uint16_t *ret, const char *text)
{
	unsigned int v = 0;

	if (!*text || strlen(text) > 5)
		return false;
	for (; *text; text++) {
		if (!isdigit((unsigned char)*text))
			return false;
		v = v * 10 + (unsigned int)(*text - '0');
	}
	if (!v || v > 65535)
		return false;
	*ret = (uint16_t)v;
	return true;
}

/* "[2001:db8::1]" or "[2001:db8::1]:80" */
static bool bracket_parse(struct policy_pattern *q, char *text)
{
	char *close = strchr(text, ']');

	if (!close || strchr(text, '/'))
		return false;
	*close = '\0';
	q->kind = PATTERN_NET;
	if (!strchr(text, ':') || !prefix_parse(&q->net, text + 1))
		return false;
	return !close[1] || (close[1] == ':' && port_parse(&q->port, close + 2));
}

static bool pattern_parse(struct policy_pattern *ret, const char *in)
{
	struct policy_pattern q = { 0 };
	char text[POLICY_PATTERN_MAX + 1];
	char *colon, *host = text;

	if (!policy_pattern_ok(in))
		return false;
	memcpy(text, in, strlen(in) + 1);
	if (*text == '[') {
		*ret = q;
		return bracket_parse(ret, text);
	}
	if (strchr(text, '/')) {
		q.kind = PATTERN_NET;
		*ret = q;
		return prefix_parse(&ret->net, text);
	}
	colon = strchr(text, ':');
	if (colon) {
		*colon = '\0';
		if (!port_parse(&q.port, colon + 1))
			return false;
	}
	if (prefix_parse(&q.net, host)) {
		q.kind = PATTERN_NET;
	} else {
		q.kind = !strncmp(host, "*.", 2) ? PATTERN_SUFFIX : PATTERN_HOST;
		if (q.kind == PATTERN_SUFFIX)
			host += 2;
		if (!name_normalize(q.name, host, strlen(host)))
			return false;
	}
	*ret = q;
	return true;
}

static bool rules_add(struct rules *r, const char *text)
{
	struct policy_pattern *more = reallocarray(r->at, r->n + 1, sizeof(*more));

	if (!more)
		return false;
	r->at = more;
	if (!pattern_parse(&more[r->n], text))
		return false;
	r->n++;
	return true;
}

static bool token_ok(const char *s, size_t max)
{
	size_t n = strlen(s);

	if (!n || n >= max)
		return false;
	for (size_t i = 0; i < n; i++)
		if (!isgraph((unsigned char)s[i]))
			return false;
	return true;
}

/* Strict base64: whole groups, padding only at the end. */
static bool sealed_parse(struct policy_secret *s, const char *text)
{
	size_t n = strlen(text), pad = 0;
	int got;

	if (!n || n % 4 || n > POLICY_SECRET_VALUE_MAX * 2)
		return false;
	while (pad < 2 && text[n - 1 - pad] == '=')
		pad++;
	s->sealed = malloc(n / 4 * 3);
	if (!s->sealed)
		return false;
	got = EVP_DecodeBlock(s->sealed, (const unsigned char *)text, (int)n);
	if (got < 0 || (size_t)got <= pad)
		return false;
	s->n_sealed = (size_t)got - pad;
	return s->n_sealed > 12 + 16;
}

static bool secret_hosts(struct policy_secret *s, char *text)
{
	struct rules hosts = { 0 };
	char *save = NULL;
	bool ok = true;

	for (char *h = strtok_r(text, ",", &save); h && ok; h = strtok_r(NULL, ",", &save))
		ok = hosts.n < POLICY_SECRET_HOSTS_MAX && policy_host_ok(h) && rules_add(&hosts, h) &&
		     hosts.at[hosts.n - 1].kind != PATTERN_NET;
	s->hosts = hosts.at;
	s->n_hosts = hosts.n;
	return ok && hosts.n;
}

static bool secret_parse(struct policy *p, char *text)
{
	struct policy_secret *more, *s;
	char *save = NULL;
	char *name = strtok_r(text, " ", &save), *placeholder = strtok_r(NULL, " ", &save);
	char *sealed = strtok_r(NULL, " ", &save), *hosts = strtok_r(NULL, " ", &save);

	if (!hosts || strtok_r(NULL, " ", &save) || p->n_secrets == POLICY_SECRETS_MAX)
		return false;
	more = reallocarray(p->secrets, p->n_secrets + 1, sizeof(*more));
	if (!more)
		return false;
	p->secrets = more;
	s = &more[p->n_secrets++];
	memset(s, 0, sizeof(*s));
	/* A short placeholder would be found in innocent text. */
	if (!token_ok(name, sizeof(s->name)) || !token_ok(placeholder, sizeof(s->placeholder)) || strlen(placeholder) < 16)
		return false;
	memcpy(s->name, name, strlen(name) + 1);
	memcpy(s->placeholder, placeholder, strlen(placeholder) + 1);
	return sealed_parse(s, sealed) && secret_hosts(s, hosts);
}

static bool words_ok(const char *list, bool (*ok)(const char *))
{
	size_t count = 0, n;

	for (;; list += n + 1) {
		char word[POLICY_WORD_MAX + 1];

		n = strcspn(list, ",");
		if (n > POLICY_WORD_MAX || ++count > POLICY_WORDS_MAX)
			return false;
		memcpy(word, list, n);
		word[n] = '\0';
		if (!ok(word))
			return false;
		if (!list[n])
			return true;
	}
}

/* "rule HOST METHODS PREFIX" */
static bool rule_parse(struct policy *p, char *text)
{
	struct request_rule *more, *r;
	char *save = NULL;
	char *host = strtok_r(text, " ", &save), *methods = strtok_r(NULL, " ", &save), *path = strtok_r(NULL, " ", &save);

	if (!path || strtok_r(NULL, " ", &save) || !policy_host_ok(host) || !policy_path_ok(path) ||
	    (strcmp(methods, "*") != 0 && !words_ok(methods, policy_method_ok)))
		return false;
	more = reallocarray(p->requests, p->n_requests + 1, sizeof(*more));
	if (!more)
		return false;
	p->requests = more;
	r = &more[p->n_requests++];
	memset(r, 0, sizeof(*r));
	r->path = strdup(path);
	r->methods = strdup(methods);
	return r->path && r->methods && pattern_parse(&r->host, host) && r->host.kind != PATTERN_NET;
}

static bool secret_word(struct policy_secret *s, const char *word)
{
	const struct {
		const char *key;
		char **to;
		bool (*ok)(const char *);
	} keys[] = { { "methods=", &s->methods, policy_method_ok },
		     { "paths=", &s->paths, policy_path_ok },
		     { "headers=", &s->headers, policy_header_ok },
		     { "query=", &s->query, policy_query_ok } };

	for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
		size_t n = strlen(keys[i].key);

		if (strncmp(word, keys[i].key, n) != 0)
			continue;
		if (*keys[i].to || !words_ok(word + n, keys[i].ok))
			return false;
		*keys[i].to = strdup(word + n);
		return *keys[i].to != NULL;
	}
	return false;
}

/* "secret-rule NAME [methods=..] [paths=..] [headers=..] [query=..]" */
static bool secret_rule_parse(struct policy *p, char *text)
{
	char *save = NULL, *name = strtok_r(text, " ", &save);
	struct policy_secret *s = NULL;

	for (size_t i = 0; name && i < p->n_secrets; i++)
		if (!strcmp(p->secrets[i].name, name))
			s = &p->secrets[i];
	if (!s || s->methods || s->paths || s->headers || s->query)
		return false;
	for (char *word; (word = strtok_r(NULL, " ", &save));)
		if (!secret_word(s, word))
			return false;
	return s->methods || s->paths || s->headers || s->query;
}

static bool limit_parse(struct policy *p, char *text)
{
	char *save = NULL;

	if (p->has_limits)
		return false;
	for (char *word = strtok_r(text, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
		char *value = strchr(word, '=');
		uint64_t *to, v = 0;

		if (!value || !value[1] || strlen(value + 1) > 16 || value[1] == '0')
			return false;
		*value++ = '\0';
		to = !strcmp(word, "bytes_per_s") ? &p->limits.bytes_per_s :
		     !strcmp(word, "total_bytes") ? &p->limits.total_bytes :
		     !strcmp(word, "conns_per_s") ? &p->limits.conns_per_s : NULL;
		for (; *value; value++) {
			if (!isdigit((unsigned char)*value))
				return false;
			v = v * 10 + (uint64_t)(*value - '0');
		}
		if (!to || *to || v > POLICY_NUMBER_MAX)
			return false;
		*to = v;
		p->has_limits = true;
	}
	return p->has_limits;
}

static bool line_parse(struct policy *p, char *line)
{
	char *rest = strchr(line, ' ');

	if (!rest)
		return false;
	*rest++ = '\0';
	if (!strcmp(line, "default")) {
		if (p->has_default)
			return false;
		p->has_default = true;
		p->public = !strcmp(rest, "public");
		return p->public || !strcmp(rest, "none");
	}
	if (!strcmp(line, "allow"))
		return rules_add(&p->allow, rest);
	if (!strcmp(line, "deny"))
		return rules_add(&p->deny, rest);
	if (!strcmp(line, "rule"))
		return rule_parse(p, rest);
	if (!strcmp(line, "limit"))
		return limit_parse(p, rest);
	if (!strcmp(line, "secret"))
		return secret_parse(p, rest);
	if (!strcmp(line, "secret-rule"))
		return secret_rule_parse(p, rest);
	if (!strcmp(line, "org") && token_ok(rest, sizeof(p->org)) && !*p->org) {
		memcpy(p->org, rest, strlen(rest) + 1);
		return true;
	}
	return false;
}

static void policy_cleanup(struct policy **p)
{
	policy_free(*p);
}

enum rc policy_parse(const void *text, size_t n, struct policy **ret, struct fault *ret_f)
{
	_cleanup_(policy_cleanup) struct policy *p = calloc(1, sizeof(*p));
	_cleanup_free_ char *copy = malloc(n + 1);
	unsigned int number = 0;
	char *next = copy;

	if (!p || !copy)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	memcpy(copy, text, n);
	copy[n] = '\0';
	if (!n || copy[n - 1] != '\n' || strlen(copy) != n)
		return fault_set(ret_f, RC_INVALID, 0, "policy does not end in a line's end, or has a NUL");
	while (*next) {
		char *line = next;

		next = strchr(line, '\n');
		*next++ = '\0';
		if (++number > POLICY_LINES_MAX + 1)
			return fault_set(ret_f, RC_LIMIT, 0, "policy has more than %d lines", POLICY_LINES_MAX);
		if (number == 1 ? strcmp(line, POLICY_HEAD) != 0 : !line_parse(p, line))
			return fault_set(ret_f, RC_INVALID, 0, "policy line %u is malformed", number);
	}
	if (!p->has_default)
		return fault_set(ret_f, RC_INVALID, 0, "policy has no default line");
	*ret = take_ptr(p);
	return RC_OK;
}

void policy_free(struct policy *p)
{
	if (!p)
		return;
	for (size_t i = 0; i < p->n_secrets; i++) {
		free(p->secrets[i].sealed);
		free(p->secrets[i].hosts);
		free(p->secrets[i].methods);
		free(p->secrets[i].paths);
		free(p->secrets[i].headers);
		free(p->secrets[i].query);
	}
	for (size_t i = 0; i < p->n_requests; i++) {
		free(p->requests[i].methods);
		free(p->requests[i].path);
	}
	free(p->requests);
	free(p->secrets);
	free(p->allow.at);
	free(p->deny.at);
	free(p);
}

const char *policy_org(const struct policy *p)
{
	return p ? p->org : "";
}

const struct policy_secret *policy_secrets(const struct policy *p, size_t *ret_n)
{
	*ret_n = p ? p->n_secrets : 0;
	return p ? p->secrets : NULL;
}

bool policy_pattern_matches(const struct policy_pattern *q, const char *name, uint16_t port)
{
	size_t n, k;

	if (q->port && port && q->port != port)
		return false;
	if (q->kind == PATTERN_HOST)
		return !strcmp(q->name, name);
	if (q->kind != PATTERN_SUFFIX)
		return false;
	n = strlen(name);
	k = strlen(q->name);
	return n > k + 1 && name[n - k - 1] == '.' && !strcmp(name + n - k, q->name);
}

bool policy_has_secret_for(const struct policy *p, const char *name, uint16_t port)
{
	for (size_t i = 0; p && i < p->n_secrets; i++)
		for (size_t k = 0; k < p->secrets[i].n_hosts; k++) {
			const struct policy_pattern *q = &p->secrets[i].hosts[k];

			/* Without a port in the pattern only 443: on others the server may be the one that speaks first. */
			if ((q->port || port == 443) && policy_pattern_matches(q, name, port))
				return true;
		}
	return false;
}

struct policy_limits policy_limits(const struct policy *p)
{
	return p ? p->limits : (struct policy_limits){ 0 };
}

bool policy_list_has(const char *list, const char *word, size_t n, bool any_case)
{
	for (; *list; list += *list == ',') {
		size_t k = strcspn(list, ",");

		if (k == n && !(any_case ? strncasecmp(list, word, n) : memcmp(list, word, n)))
			return true;
		list += k;
	}
	return false;
}

/* As with secrets, a rule without a port is about 443; other ports of its host are closed (policy_evaluate_name). */
static bool rule_is_for(const struct request_rule *r, const char *name, uint16_t port)
{
	return (r->host.port || port == 443) && policy_pattern_matches(&r->host, name, port);
}

static bool has_rules_for(const struct policy *p, const char *name, uint16_t port)
{
	for (size_t i = 0; p && i < p->n_requests; i++)
		if (rule_is_for(&p->requests[i], name, port))
			return true;
	return false;
}

bool policy_intercepts(const struct policy *p, const char *name, uint16_t port)
{
	return has_rules_for(p, name, port) || policy_has_secret_for(p, name, port);
}

bool policy_needs_ca(const struct policy *p)
{
	return p && (p->n_secrets || p->n_requests);
}

bool policy_judges_paths(const struct policy *p, const char *name, uint16_t port)
{
	if (has_rules_for(p, name, port))
		return true;
	for (size_t i = 0; p && i < p->n_secrets; i++)
		for (size_t k = 0; p->secrets[i].paths && k < p->secrets[i].n_hosts; k++)
			if (policy_pattern_matches(&p->secrets[i].hosts[k], name, port))
				return true;
	return false;
}

static const struct policy_pattern *find_name(const struct rules *r, const char *name, uint16_t port)
{
	for (size_t i = 0; i < r->n; i++)
		if (policy_pattern_matches(&r->at[i], name, port))
			return &r->at[i];
	return NULL;
}

static const struct policy_pattern *find_address(const struct rules *r, const struct address *a, uint16_t port)
{
	for (size_t i = 0; i < r->n; i++) {
		const struct policy_pattern *q = &r->at[i];

		if (q->kind == PATTERN_NET && (!q->port || !port || q->port == port) && prefix_has(&q->net, a))
			return q;
	}
	return NULL;
}

static bool decide(struct verdict *v, bool allowed, const char *rule)
{
	v->allowed = allowed;
	snprintf(v->rule, sizeof(v->rule), "%s", rule);
	return allowed;
}

static bool decide_pattern(struct verdict *v, bool allowed, const struct policy_pattern *q)
{
	char text[ADDRESS_TEXT_MAX], port[8] = "", bits[8] = "";
	const char *word = allowed ? "allow" : "deny";

	v->allowed = allowed;
	if (q->port)
		snprintf(port, sizeof(port), ":%u", q->port);
	if (q->kind != PATTERN_NET) {
		snprintf(v->rule, sizeof(v->rule), "%s %s%s%s", word, q->kind == PATTERN_SUFFIX ? "*." : "", q->name, port);
		return allowed;
	}
	if (q->net.bits != (q->net.base.family == AF_INET ? 32 : 128))
		snprintf(bits, sizeof(bits), "/%u", q->net.bits);
	address_text(&q->net.base, text);
	snprintf(v->rule, sizeof(v->rule), q->net.base.family == AF_INET6 && !*bits ? "%s [%s]%s%s" : "%s %s%s%s", word, text,
		 bits, port);
	return allowed;
}

/* A host whose requests are judged has no port on which they could not be. */
static bool closed_port(const struct policy *p, const char *name, uint16_t port)
{
	bool closed = false;

	if (!port || port == 443)
		return false;
	for (size_t i = 0; i < p->n_requests; i++) {
		if (rule_is_for(&p->requests[i], name, port))
			return false;
		closed |= !p->requests[i].host.port && policy_pattern_matches(&p->requests[i].host, name, port);
	}
	return closed;
}

bool policy_evaluate_request(const struct policy *p, const char *name, uint16_t port, const char *method, const char *path,
			     struct verdict *ret)
{
	const struct request_rule *named = NULL;

	if (!p)
		return decide(ret, false, "no valid policy");
	for (size_t i = 0; i < p->n_requests; i++) {
		const struct request_rule *r = &p->requests[i];

		if (!rule_is_for(r, name, port))
			continue;
		named = r;
		if ((!strcmp(r->methods, "*") || policy_list_has(r->methods, method, strlen(method), false)) &&
		    path && policy_path_has(r->path, path)) {
			snprintf(ret->rule, sizeof(ret->rule), "rule %.40s %.40s", r->methods, r->path);
			return ret->allowed = true;
		}
	}
	return named ? decide(ret, false, "no rule of this host allows the method and path") : (ret->allowed = true);
}

static bool decide_default(const struct policy *p, struct verdict *v)
{
	if (p->public && !p->allow.n)
		return decide(v, true, "default public");
	return decide(v, false, p->allow.n ? "no allow rule names it" : "default none");
}

bool policy_evaluate_name(const struct policy *p, const char *name, uint16_t port, struct verdict *ret)
{
	const struct policy_pattern *q;

	if (!p)
		return decide(ret, false, "no valid policy");
	q = find_name(&p->deny, name, port);
	/* Asked for any port, a rule that denies one port does not deny the name. */
	if (q && (port || !q->port))
		return decide_pattern(ret, false, q);
	if (closed_port(p, name, port))
		return decide(ret, false, "rules about its requests leave this host only port 443");
	q = find_name(&p->allow, name, port);
	if (q)
		return decide_pattern(ret, true, q);
	/* The public internet has no names of one label: those are the operator's network. */
	if (p->public && !p->allow.n && !strchr(name, '.'))
		return decide(ret, false, "not a public name");
	return decide_default(p, ret);
}

static bool public_or_permitted(const struct address *a, const struct reach *reach, struct verdict *v)
{
	const char *special = address_special(a);
	char text[64];

	/* A prefix of the operator's network is not meant for this host in it; only its very address is. */
	if (prefixes_have(&reach->private_ok, a) &&
	    (prefixes_name(&reach->private_ok, a) || !reach->is_local || !reach->is_local(a)))
		return true;
	if (special) {
		snprintf(text, sizeof(text), "%s address", special);
		return decide(v, false, text);
	}
	if (reach->is_local && reach->is_local(a))
		return decide(v, false, "the host's own address");
	return true;
}

bool policy_evaluate_address(const struct policy *p, const struct address *a, uint16_t port,
			     const struct reach *reach, struct verdict *ret)
{
	const struct policy_pattern *q;

	if (!p)
		return decide(ret, false, "no valid policy");
	q = find_address(&p->deny, a, port);
	if (q)
		return decide_pattern(ret, false, q);
	if (!public_or_permitted(a, reach, ret))
		return false;
	q = find_address(&p->allow, a, port);
	/* A host with rules would be asked under its address instead. */
	if (!q && p->n_requests)
		return decide(ret, false, "with rules about requests, an address needs an allow rule");
	return q ? decide_pattern(ret, true, q) : decide_default(p, ret);
}

bool policy_evaluate_resolved(const struct policy *p, const struct address *a, uint16_t port,
			      const struct reach *reach, struct verdict *ret)
{
	const struct policy_pattern *q;

	if (!p)
		return decide(ret, false, "no valid policy");
	q = find_address(&p->deny, a, port);
	if (q)
		return decide_pattern(ret, false, q);
	return public_or_permitted(a, reach, ret);
}
