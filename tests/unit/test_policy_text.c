/* SPDX-License-Identifier: Apache-2.0 */
/* What a fork makes of its parent's egress policy, as the proxy reads it. */
#include "base/cleanup.h"
#include "fcgi/ids.h"
#include "fcgi/policy_text.h"
#include "schema/broker.h"
#include "schema/verdict.h"
#include "tests/lib/check.h"

static const struct seal_key key = { { 7, 7, 7 } };

#define P1 "nbs_1111111111111111111111111111111111111111"
#define P2 "nbs_2222222222222222222222222222222222222222"

static char *sealed_for(const char *vm, const char *name, const char *value)
{
	char ad[200], *ret = NULL;

	snprintf(ad, sizeof(ad), "%s %s", vm, name);
	if (seal(&key, value, ad, &ret, NULL))
		abort();
	return ret;
}

/* A parent's policy: two secrets, the first of which has a rule. */
static char *parent_policy(void)
{
	_cleanup_free_ char *one = sealed_for("parent", "ONE", "value of one"), *two = sealed_for("parent", "TWO", "value of two");
	char *text;

	if (asprintf(&text,
		     "nestbox-policy 1\norg acme\ndefault none\nallow *.example.com\n"
		     "secret ONE " P1 " %s a.example.com,b.example.com\nsecret-rule ONE methods=GET paths=/v1\n"
		     "secret TWO " P2 " %s c.example.com\n",
		     one, two) < 0)
		abort();
	return text;
}

static char *fork_of(const char *policy, const char *parent, const char *child, char *env, size_t env_size)
{
	_cleanup_buf_ struct buf p = BUF_INIT(BROKER_POLICY_MAX), e = BUF_INIT(BROKER_ENV_MAX);
	struct fault f;

	if (policy_text_fork(policy, parent, child, &key, &p, &e, &f)) {
		printf("  %s\n", f.text);
		return NULL;
	}
	snprintf(env, env_size, "%.*s", (int)buf_len(&e), buf_data(&e));
	return strndup((const char *)buf_data(&p), buf_len(&p));
}

static bool opens(const struct policy_secret *s, const char *vm, const char *value)
{
	_cleanup_free_ char *sealed = NULL, *got = NULL;
	char ad[300];

	snprintf(ad, sizeof(ad), "%s %s", vm, s->name);
	sealed = base64_encode(s->sealed, s->n_sealed);
	return sealed && !seal_open(&key, sealed, ad, &got, NULL) && !strcmp(got, value);
}

TEST(child_has_new_placeholders_and_the_old_ones)
{
	_cleanup_free_ char *parent = parent_policy(), *child = NULL, *grandchild = NULL;
	const struct policy_secret *s;
	struct policy *p = NULL;
	struct fault f;
	char env[200];
	size_t n;

	child = fork_of(parent, "parent", "child", env, sizeof(env));
	REQUIRE(child && !policy_parse(child, strlen(child), &p, &f));
	CHECK_STR(policy_org(p), "acme");
	s = policy_secrets(p, &n);
	REQUIRE(n == 4);
	/* New ones first, then the parent's, each with the bounds of its secret, all for the child alone. */
	CHECK(!strcmp(s[0].name, "ONE") && strncmp(s[0].placeholder, "nbs_", 4) == 0 && strcmp(s[0].placeholder, P1) != 0);
	CHECK(!strcmp(s[1].name, "TWO") && strcmp(s[1].placeholder, P2) != 0);
	CHECK(!strcmp(s[2].name, "ONE") && !strcmp(s[2].placeholder, P1));
	CHECK(!strcmp(s[3].name, "TWO") && !strcmp(s[3].placeholder, P2));
	for (size_t i = 0; i < n; i++) {
		bool one = !strcmp(s[i].name, "ONE");

		CHECK(opens(&s[i], "child", one ? "value of one" : "value of two"));
		CHECK(!opens(&s[i], "parent", one ? "value of one" : "value of two"));
		CHECK_EQ(s[i].n_hosts, one ? 2 : 1);
		CHECK(one ? s[i].methods && !strcmp(s[i].methods, "GET") && !strcmp(s[i].paths, "/v1") : !s[i].methods);
	}
	/* Its environment has the new one. */
	CHECK(!strncmp(env, "ONE=", 4) && !strcmp(env + 4, s[0].placeholder));
	CHECK(policy_secret_find(child, "ONE") && !strncmp(policy_secret_find(child, "ONE"), s[0].placeholder, 44));
	policy_free(p);
	p = NULL;
	grandchild = fork_of(child, "child", "grandchild", env, sizeof(env));
	REQUIRE(grandchild && !policy_parse(grandchild, strlen(grandchild), &p, &f));
	s = policy_secrets(p, &n);
	CHECK_EQ(n, 6);
	CHECK(n == 6 && !strcmp(s[4].placeholder, P1) && !strcmp(s[5].placeholder, P2) && opens(&s[4], "grandchild", "value of one"));
	policy_free(p);
}

TEST(generations_without_end_keep_the_newest)
{
	char *now = parent_policy(), from[16] = "parent", to[16], env[200];

	for (int i = 0; i < 40; i++) {
		struct policy *p = NULL;
		char *next;
		size_t n;

		snprintf(to, sizeof(to), "vm%d", i);
		next = fork_of(now, from, to, env, sizeof(env));
		free(now);
		now = next;
		REQUIRE(now && !policy_parse(now, strlen(now), &p, NULL));
		CHECK(policy_secrets(p, &n) && n <= POLICY_SECRETS_MAX && n == (size_t)MIN_OF(2 * (i + 2), POLICY_SECRETS_MAX));
		CHECK(opens(&policy_secrets(p, &n)[n - 1], to, !strcmp(policy_secrets(p, &n)[n - 1].name, "ONE") ? "value of one" : "value of two"));
		policy_free(p);
		memcpy(from, to, sizeof(from));
	}
	CHECK(!strstr(now, P1));
	free(now);
}

TEST(what_does_not_open_or_fit_is_no_policy)
{
	_cleanup_buf_ struct buf p = BUF_INIT(BROKER_POLICY_MAX), e = BUF_INIT(BROKER_ENV_MAX), small = BUF_INIT(100);
	_cleanup_free_ char *parent = parent_policy();
	struct fault f;

	CHECK_EQ(policy_text_fork(parent, "another", "child", &key, &p, &e, &f), RC_DENIED);
	CHECK_EQ(policy_text_fork(parent, "parent", "child", NULL, &p, &e, &f), RC_STATE);
	CHECK_EQ(policy_text_fork(parent, "parent", "child", &key, &small, &e, &f), RC_LIMIT);
	CHECK(policy_secret_find(parent, "ON") == NULL && policy_secret_find(parent, "THREE") == NULL);
}

TEST(without_secrets_it_is_the_same)
{
	static const char text[] = "nestbox-policy 1\norg acme\ndefault public\ndeny 10.0.0.0/8\n";
	char env[10];
	_cleanup_free_ char *child = fork_of(text, "parent", "child", env, sizeof(env));

	CHECK_STR(child, text);
	CHECK_STR(env, "");
}

TEST(no_wider_is_judged_by_places_and_rules)
{
#define HAD "nestbox-policy 1\nsecret A p s1 a.example,b.example\nsecret-rule A methods=GET\nsecret B p s2 c.example\n"
	CHECK(policy_secret_no_wider(HAD, HAD, "A"));
	CHECK(policy_secret_no_wider(HAD, "secret A q kept b.example\nsecret-rule A methods=GET\n", "A"));
	CHECK(!policy_secret_no_wider(HAD, "secret A q kept b.example\n", "A"));
	CHECK(!policy_secret_no_wider(HAD, "secret A q kept b.example\nsecret-rule A methods=GET,POST\n", "A"));
	CHECK(!policy_secret_no_wider(HAD, "secret A q kept b.example,c.example\nsecret-rule A methods=GET\n", "A"));
	CHECK(!policy_secret_no_wider(HAD, "secret A q kept .example\nsecret-rule A methods=GET\n", "A"));
	CHECK(!policy_secret_no_wider(HAD, "secret B q kept a.example\n", "B"));
	CHECK(!policy_secret_no_wider(HAD, "secret B q kept c.example\nsecret-rule B methods=GET\n", "B"));
	CHECK(!policy_secret_no_wider(HAD, "secret C q kept c.example\n", "C"));
	CHECK(!policy_secret_no_wider(HAD, HAD, "C"));
}

CHECK_MAIN()
