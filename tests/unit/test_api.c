/* SPDX-License-Identifier: Apache-2.0 */
/* What the workers do to text from clients: ids, JSON, the configuration header, paths and queries, cursors, sealing. */
#include "base/fd.h"
#include "fcgi/app_config.h"
#include "fcgi/page.h"
#include "fcgi/router.h"
#include "fcgi/sandbox_config.h"
#include "tests/lib/check.h"
#include "schema/verdict.h"

#define NOW 1700000000000ull

static const struct sandbox_bounds bounds = {
	.memory_mib_min = 768, .memory_mib_max = 4096, .memory_mib_default = 1280, .memory_mib_step = 256,
	.now_ms = NOW, .stop_max_s = 3600,
};

static enum api_code parse(const char *json, struct sandbox_config *ret)
{
	char *text = base64_encode(json, strlen(json));
	enum api_code code = API_OK;
	struct fault f = { 0 };

	if (sandbox_config_parse(text, &bounds, ret, &code, &f) && !*f.text)
		code = API_INTERNAL; /* a refusal must say why */
	free(text);
	return code;
}

static enum api_code refused(const char *json)
{
	struct sandbox_config c = { 0 };
	enum api_code code = parse(json, &c);

	sandbox_config_free(&c);
	return code;
}

TEST(config_complete)
{
	struct sandbox_config c = { 0 };

	REQUIRE(parse("{\"stop_at_ms\":1700000060000,\"memory_mb\":768,\"labels\":{\"a\":\"b\"},\"root\":{\"volume\":\"r\"},"
		      "\"volumes\":[{\"volume\":\"v\",\"path\":\"/data/x\"}],\"allow_net\":[\"a.com\"],"
		      "\"secrets\":{\"K\":{\"hosts\":[\"h.com\"],\"value\":\"s\"}}}",
		      &c) == API_OK);
	CHECK_EQ(c.stop_at_ms, 1700000060000);
	CHECK_EQ(c.memory_mib, 768);
	CHECK_STR(c.root, "r");
	CHECK_EQ(c.n_mounts, 1);
	CHECK_STR(c.mounts[0].path, "/data/x");
	CHECK(c.allow_net && c.secrets && c.labels);
	sandbox_config_free(&c);
}

TEST(config_absent_and_empty_are_defaults)
{
	struct sandbox_config c = { 0 };
	enum api_code code;

	CHECK_EQ(sandbox_config_parse(NULL, &bounds, &c, &code, NULL), RC_OK);
	CHECK_EQ(c.memory_mib, 1280);
	CHECK_EQ(c.stop_at_ms, 0);
	CHECK(!c.allow_net);
	sandbox_config_free(&c);
	CHECK_EQ(refused("{}"), API_OK);
	CHECK_EQ(refused("{\"labels\":null,\"root\":null,\"volumes\":[],\"secrets\":null}"), API_OK);
}

TEST(config_refusals)
{
	static const struct {
		const char *json;
		enum api_code code;
	} bad[] = {
		{ "", API_INVALID_CONFIG },
		{ "[]", API_INVALID_CONFIG },
		{ "{\"memory_mb\":1280}x", API_INVALID_CONFIG },
		{ "{\"unknown\":1}", API_INVALID_CONFIG },
		{ "{\"memory_mb\":767}", API_INVALID_MEMORY },
		{ "{\"memory_mb\":4097}", API_INVALID_MEMORY },
		{ "{\"memory_mb\":-1}", API_INVALID_MEMORY },
		{ "{\"memory_mb\":99999999999999999999}", API_INVALID_MEMORY },
		{ "{\"memory_mb\":1024.5}", API_INVALID_CONFIG },
		{ "{\"memory_mb\":\"1024\"}", API_INVALID_CONFIG },
		{ "{\"stop_at_ms\":1699999999999}", API_INVALID_STOP_AT },
		{ "{\"stop_at_ms\":0}", API_INVALID_STOP_AT },
		{ "{\"stop_at_ms\":1700003600001}", API_INVALID_STOP_AT },
		{ "{\"stop_at_ms\":\"soon\"}", API_INVALID_CONFIG },
		{ "{\"labels\":{\"1\":\"\",\"2\":\"\",\"3\":\"\",\"4\":\"\",\"5\":\"\",\"6\":\"\"}}", API_INVALID_LABELS },
		{ "{\"labels\":{\"\":\"x\"}}", API_INVALID_LABELS },
		{ "{\"labels\":{\"a\":1}}", API_INVALID_LABELS },
		{ "{\"labels\":[]}", API_INVALID_CONFIG },
		{ "{\"root\":\"x\"}", API_INVALID_CONFIG },
		{ "{\"root\":{}}", API_INVALID_CONFIG },
		{ "{\"volumes\":[{\"volume\":\"v\",\"path\":\"data\"}]}", API_INVALID_PATH },
		{ "{\"volumes\":[{\"volume\":\"v\",\"path\":\"/a/../b\"}]}", API_INVALID_PATH },
		{ "{\"volumes\":[{\"volume\":\"v\",\"path\":\"/\"}]}", API_INVALID_PATH },
		{ "{\"volumes\":[{\"volume\":\"v\",\"path\":\"/a\\u0000b\"}]}", API_INVALID_CONFIG },
		{ "{\"volumes\":[{\"path\":\"/a\"}]}", API_INVALID_CONFIG },
		{ "{\"volumes\":[{\"volume\":\"v\",\"path\":\"/a\"},{\"volume\":\"w\",\"path\":\"/a\"}]}", API_INVALID_CONFIG },
		{ "{\"volumes\":[1,2,3,4,5]}", API_INVALID_CONFIG },
		{ "{\"allow_net\":\"a.com\"}", API_INVALID_CONFIG },
		{ "{\"allow_net\":[\"http://a.com\"]}", API_INVALID_CONFIG },
		{ "{\"allow_net\":[\"a.com\\nallow b.com\"]}", API_INVALID_CONFIG },
		{ "{\"allow_net\":[\"a.com b.com\"]}", API_INVALID_CONFIG },
		{ "{\"secrets\":{\"A B\":{\"hosts\":[\"h\"],\"value\":\"s\"}}}", API_INVALID_CONFIG },
		{ "{\"secrets\":{\"A\":{\"hosts\":[],\"value\":\"s\"}}}", API_INVALID_CONFIG },
		{ "{\"secrets\":{\"A\":{\"hosts\":[\"h\"],\"value\":\"\"}}}", API_INVALID_CONFIG },
		{ "{\"secrets\":{\"A\":{\"hosts\":[\"h\"],\"value\":\"a\\r\\nb\"}}}", API_INVALID_CONFIG },
		{ "{\"secrets\":{\"A\":{\"hosts\":[\"10.0.0.1\"],\"value\":\"s\"}}}", API_INVALID_CONFIG },
		{ "{\"labels\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{}}}}}}}}}}", API_INVALID_CONFIG },
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		if (refused(bad[i].json) != bad[i].code) {
			printf("  %s: %s, not %s\n", bad[i].json, api_code_name(refused(bad[i].json)),
			       api_code_name(bad[i].code));
			check_failed_here++;
		}
}

TEST(config_header_form)
{
	struct sandbox_config c = { 0 };
	char *long_text = malloc(CONFIG_HEADER_MAX + 5);
	enum api_code code = API_OK;
	struct fault f;

	REQUIRE(long_text);
	memset(long_text, 'A', CONFIG_HEADER_MAX + 4);
	long_text[CONFIG_HEADER_MAX + 4] = '\0';
	CHECK_EQ(sandbox_config_parse(long_text, &bounds, &c, &code, &f), RC_INVALID);
	CHECK_EQ(code, API_CONFIG_TOO_LARGE);
	CHECK_EQ(sandbox_config_parse("{}", &bounds, &c, &code, &f), RC_INVALID);
	CHECK_EQ(code, API_INVALID_CONFIG);
	CHECK_EQ(sandbox_config_parse("e30", &bounds, &c, &code, &f), RC_INVALID);
	CHECK_EQ(sandbox_config_parse("e3 0=", &bounds, &c, &code, &f), RC_INVALID);
	free(long_text);
}

/* Each size costs the host a template, and there is room for 64. */
TEST(few_sizes_of_memory_are_given)
{
	uint32_t last = 0, sizes = 0;

	for (uint32_t asked = 768; asked <= 4096; asked++) {
		struct sandbox_config c = { 0 };
		struct sandbox_bounds odd = bounds;
		enum api_code code = API_OK;
		char json[64], *text;

		snprintf(json, sizeof(json), "{\"memory_mb\":%u}", asked);
		text = base64_encode(json, strlen(json));
		REQUIRE(sandbox_config_parse(text, &bounds, &c, &code, NULL) == RC_OK);
		CHECK(c.memory_mib >= asked && c.memory_mib < asked + 256 && c.memory_mib <= 4096);
		sizes += c.memory_mib != last;
		last = c.memory_mib;
		sandbox_config_free(&c);
		odd.memory_mib_max = 4100; /* no multiple */
		REQUIRE(sandbox_config_parse(text, &odd, &c, &code, NULL) == RC_OK);
		CHECK(c.memory_mib >= asked && c.memory_mib <= 4100);
		sandbox_config_free(&c);
		free(text);
	}
	CHECK_EQ(sizes, 14);
}

TEST(record_has_no_secret_values)
{
	struct sandbox_config c = { 0 };
	struct json_object *o;

	REQUIRE(parse("{\"memory_mb\":1024,\"secrets\":{\"K\":{\"hosts\":[\"h.com\"],\"value\":\"hush\"}}}", &c) == API_OK);
	o = sandbox_config_record(&c);
	CHECK(strstr(json_text(o), "h.com"));
	CHECK(strstr(json_text(o), "1024"));
	CHECK(!strstr(json_text(o), "hush"));
	json_object_put(o);
	sandbox_config_free(&c);
}

/* Whatever the API lets through, the proxy must understand: else one pattern would close the sandbox's network. */
TEST(policy_is_valid_for_the_proxy)
{
	static const char *const good[] = { "example.com",   "Example.COM:443", "*.example.com", "*.a.b:8080", "203.0.113.110",
					    "203.0.113.110:1", "[2001:db8::1]",	  "[2001:db8::1]:80", "10.0.0.0/8", "2001:db8::/32",
					    "localhost",     "a-b_c.d",		  "1password.com" };
	static const char *const bad[] = { "",	      "*",	   "*.",	"a..b",	     ".a",	  "a.",	       "-a.com",
					   "a.com:0", "a.com:65536", "a.com:",	  "a b",	  "1.2.3",	"1.2.3.4.5",
					   "0x7f.1",  "[::1",	   "[::1]x",	"10.0.0.1/8", "1.2.3.4/33", "::1",
					   "http://a", "a/b",	   "*.*.com",	"xn--\xc3\xa4.com", "256.1.1.1" };
	struct sandbox_config c = { 0 };
	struct sandbox_policy p = { 0 };
	struct policy *egress = NULL;
	struct seal_key key = { { 1 } };
	char json[1024];
	struct fault f = { 0 };

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		if (policy_pattern_ok(bad[i])) {
			printf("  taken: '%s'\n", bad[i]);
			check_failed_here++;
		}
	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		snprintf(json, sizeof(json),
			 "{\"allow_net\":[\"%s\"],\"secrets\":{\"K\":{\"hosts\":[\"A.com\",\"*.b.com\"],\"value\":\"v\"}}}", good[i]);
		if (parse(json, &c) || sandbox_policy_make(&c, "vm", "org", &key, &p, &f) ||
		    policy_parse(p.policy, strlen(p.policy), &egress, &f)) {
			printf("  refused: '%s' %s\n", good[i], f.text);
			check_failed_here++;
		} else {
			size_t n;

			CHECK(policy_secrets(egress, &n) && n == 1);
			policy_free(egress);
		}
		sandbox_policy_free(&p);
		sandbox_config_free(&c);
	}
}

TEST(egress_is_translated_to_lines_the_proxy_takes)
{
	static const char json[] =
		"{\"egress\":{\"deny\":[\"Bad.test\",\"10.0.0.0/8\"],\"rules\":[{\"host\":\"Api.test\",\"methods\":[\"GET\",\"POST\"],"
		"\"paths\":[\"/v1/\",\"/v2\"]},{\"host\":\"*.svc.test:8443\"}],\"limits\":{\"bytes_per_second\":1000,\"total_bytes\":5}},"
		"\"secrets\":{\"K\":{\"hosts\":[\"h.com\"],\"value\":\"hush\",\"methods\":[\"GET\"],\"headers\":[\"X-Key\"],\"query\":[\"key\"]}}}";
	struct sandbox_config c = { 0 };
	struct sandbox_policy p = { 0 };
	struct policy *egress = NULL;
	struct seal_key key = { { 1 } };
	struct json_object *o;
	struct fault f = { 0 };
	struct verdict v;

	REQUIRE(parse(json, &c) == API_OK);
	REQUIRE(!sandbox_policy_make(&c, "vm", "org", &key, &p, &f));
	CHECK(strstr(p.policy, "\ndeny bad.test\ndeny 10.0.0.0/8\nrule api.test GET,POST /v1/\nrule api.test GET,POST /v2\n"
			       "rule *.svc.test:8443 * /\nlimit bytes_per_s=1000 total_bytes=5\nsecret K "));
	CHECK(strstr(p.policy, "\nsecret-rule K methods=GET headers=x-key query=key\n"));
	REQUIRE(!policy_parse(p.policy, strlen(p.policy), &egress, &f));
	CHECK(!policy_evaluate_name(egress, "bad.test", 443, &v));
	CHECK(policy_evaluate_request(egress, "api.test", 443, "GET", "/v1/x", &v));
	CHECK(!policy_evaluate_request(egress, "api.test", 443, "PUT", "/v1/x", &v));
	policy_free(egress);
	o = sandbox_config_record(&c);
	CHECK(strstr(json_text(o), "\"rules\"") && strstr(json_text(o), "\"query\":[\"key\"]") && !strstr(json_text(o), "hush"));
	json_object_put(o);
	sandbox_policy_free(&p);
	sandbox_config_free(&c);
}

TEST(egress_refusals)
{
	static const char *const bad[] = {
		"{\"egress\":[]}", "{\"egress\":{\"x\":1}}", "{\"egress\":{\"deny\":\"a\"}}", "{\"egress\":{\"deny\":[\"a b\"]}}",
		"{\"egress\":{\"deny\":[\"a\\nallow b\"]}}", "{\"egress\":{\"rules\":{}}}", "{\"egress\":{\"rules\":[1]}}",
		"{\"egress\":{\"rules\":[{}]}}", "{\"egress\":{\"rules\":[{\"host\":\"1.2.3.4\"}]}}",
		"{\"egress\":{\"rules\":[{\"host\":\"a.test\",\"methods\":[]}]}}",
		"{\"egress\":{\"rules\":[{\"host\":\"a.test\",\"methods\":[\"get\"]}]}}",
		"{\"egress\":{\"rules\":[{\"host\":\"a.test\",\"paths\":[\"v1\"]}]}}",
		"{\"egress\":{\"rules\":[{\"host\":\"a.test\",\"paths\":[\"/a/../b\"]}]}}",
		"{\"egress\":{\"rules\":[{\"host\":\"a.test\",\"paths\":[\"/a b\"]}]}}",
		"{\"egress\":{\"rules\":[{\"host\":\"a.test\",\"path\":[\"/\"]}]}}",
		"{\"egress\":{\"limits\":{\"bytes_per_second\":0}}}", "{\"egress\":{\"limits\":{\"bytes_per_second\":\"1\"}}}",
		"{\"egress\":{\"limits\":{\"bytes\":1}}}",
		"{\"secrets\":{\"K\":{\"hosts\":[\"h.com\"],\"value\":\"v\",\"headers\":[\"a b\"]}}}",
		"{\"secrets\":{\"K\":{\"hosts\":[\"h.com\"],\"value\":\"v\",\"query\":\"a\"}}}",
		"{\"secrets\":{\"K\":{\"hosts\":[\"h.com:443\"],\"value\":\"v\"}}}",
		"{\"allow_net\":[\"::ffff:1.2.3.0/120\"]}", "{\"allow_net\":[\"a.0xab\"]}",
	};
	char many[16384] = "{\"egress\":{\"rules\":[";

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		if (refused(bad[i]) != API_INVALID_CONFIG) {
			printf("  taken: %s\n", bad[i]);
			check_failed_here++;
		}
	for (size_t i = 0; i < EGRESS_RULES_MAX; i++)
		strcat(many, "{\"host\":\"a.test\"},");
	strcpy(many + strlen(many) - 1, "]}}");
	CHECK_EQ(refused(many), API_OK);
	strcpy(many + strlen(many) - 3, ",{\"host\":\"a.test\"}]}}");
	CHECK_EQ(refused(many), API_INVALID_CONFIG);
}

TEST(placeholders_differ_and_open_to_the_value)
{
	struct sandbox_config c = { 0 };
	struct sandbox_policy a = { 0 }, b = { 0 };
	struct seal_key key = { { 7 } };
	struct fault f = { 0 };
	char name[64], placeholder[64], sealed[256], hosts[64];
	char *value = NULL;

	REQUIRE(parse("{\"secrets\":{\"K\":{\"hosts\":[\"h.com\"],\"value\":\"hush\"}}}", &c) == API_OK);
	REQUIRE(!sandbox_policy_make(&c, "vm1", "org", &key, &a, &f));
	REQUIRE(!sandbox_policy_make(&c, "vm1", "org", &key, &b, &f));
	CHECK(strcmp(a.env, b.env) != 0);
	CHECK(!strstr(a.policy, "hush"));
	REQUIRE(sscanf(strstr(a.policy, "secret "), "secret %63s %63s %255s %63s", name, placeholder, sealed, hosts) == 4);
	CHECK(strlen(placeholder) >= 32);
	CHECK(!strncmp(a.env, "K=", 2) && !strcmp(a.env + 2, placeholder));
	CHECK_EQ(a.env_n, strlen(a.env) + 1);
	CHECK_EQ(seal_open(&key, sealed, "vm1 K", &value, &f), RC_OK);
	CHECK_STR(value, "hush");
	free(value);
	CHECK_EQ(seal_open(&key, sealed, "vm2 K", &value, &f), RC_DENIED);
	CHECK_EQ(sandbox_policy_make(&c, "vm1", "org", NULL, &b, &f), RC_STATE);
	sandbox_policy_free(&a);
	sandbox_policy_free(&b);
	sandbox_config_free(&c);
}

TEST(ids_and_slugs)
{
	char a[ID_MAX], b[ID_MAX];

	id_regional(a, "sbx", "ord");
	id_regional(b, "sbx", "ord");
	CHECK(strcmp(a, b) != 0);
	CHECK_EQ(strlen(a), 28);
	CHECK(id_is_regional(a, "sbx"));
	CHECK(!id_is_regional(a, "vol"));
	CHECK(!id_is_regional("sbx_ord_yvacfjfu11fqq3r32pti", "sbx"));
	CHECK(!id_is_regional("sbx_ORD_yvacfjfu11fqq3r32ptz", "sbx"));
	CHECK(!id_is_regional("sbx_ord_yvacfjfu11fqq3r32ptzz", "sbx"));
	CHECK(!id_is_regional("", "sbx"));
	CHECK(slug_is_valid("ab") && slug_is_valid("a-b-c") && slug_is_valid("a--b"));
	CHECK(!slug_is_valid("a") && !slug_is_valid("-ab") && !slug_is_valid("ab-") && !slug_is_valid("ab--cd") &&
	      !slug_is_valid("Ab") && !slug_is_valid("a.b") && !slug_is_valid("a23456789012345678901234567890123"));
}

TEST(id_letters_are_unbiased)
{
	size_t seen[256] = { 0 };
	char s[10001];

	id_random(s, 10000);
	for (size_t i = 0; i < 10000; i++)
		seen[(unsigned char)s[i]]++;
	/* 303 expected; six sigma is about 103. */
	for (const char *p = ID_ALPHABET; *p; p++)
		CHECK(seen[(unsigned char)*p] > 200 && seen[(unsigned char)*p] < 406);
}

TEST(iso_times)
{
	char iso[ISO_MAX];
	int64_t ms = 0;

	time_to_iso(1700000000123, iso);
	CHECK_STR(iso, "2023-11-14T22:13:20.123Z");
	CHECK_EQ(time_from_iso(iso, &ms, NULL), RC_OK);
	CHECK_EQ(ms, 1700000000123);
	CHECK_EQ(time_from_iso("2023-11-14T23:13:20+01:00", &ms, NULL), RC_OK);
	CHECK_EQ(ms, 1700000000000);
	CHECK_EQ(time_from_iso("2023-11-14", &ms, NULL), RC_OK);
	CHECK_EQ(ms, 1699920000000);
	CHECK_EQ(time_from_iso("yesterday", &ms, NULL), RC_INVALID);
	CHECK_EQ(time_from_iso("2023-11-14T23:13:20", &ms, NULL), RC_INVALID);
	CHECK_EQ(time_from_iso("2023-11-14T23:13:20Zx", &ms, NULL), RC_INVALID);
	CHECK_EQ(time_from_iso("", &ms, NULL), RC_INVALID);
}

static enum rc json_try(const char *text, int depth)
{
	struct json_object *o = NULL;
	enum rc rc = json_parse(text, strlen(text), depth, &o, NULL);

	json_object_put(o);
	return rc;
}

TEST(json_is_strict)
{
	char *deep = malloc(200001);

	REQUIRE(deep);
	memset(deep, '[', 100000);
	memset(deep + 100000, ']', 100000);
	deep[200000] = '\0';
	CHECK_EQ(json_try("{\"a\":1}", 8), RC_OK);
	CHECK_EQ(json_try(" {\"a\":[1,2]} \n", 8), RC_OK);
	CHECK_EQ(json_try("12", 8), RC_OK);
	CHECK_EQ(json_try("\"all\"", 8), RC_OK);
	CHECK_EQ(json_try("{\"a\":1} {}", 8), RC_INVALID);
	CHECK_EQ(json_try("{\"a\":1", 8), RC_INVALID);
	CHECK_EQ(json_try("{\"a\":1,}", 8), RC_INVALID);
	CHECK_EQ(json_try("", 8), RC_INVALID);
	CHECK_EQ(json_try("\"\\u0000\"", 8), RC_INVALID);
	CHECK_EQ(json_try("\"\\\\u0000\"", 8), RC_OK);
	CHECK_EQ(json_try("\"\xff\xfe\"", 8), RC_INVALID);
	CHECK_EQ(json_try("[[[[[[[[[[]]]]]]]]]]", 8), RC_INVALID);
	CHECK_EQ(json_try(deep, JSON_DEPTH_MAX), RC_INVALID);
	free(deep);
}

/* '[', n times the part, ']' */
static enum rc json_of(const char *part, size_t n)
{
	size_t k = strlen(part);
	char *text = malloc(n * k + 3);
	enum rc rc;

	if (!text)
		return RC_NOMEM;
	text[0] = '[';
	for (size_t i = 0; i < n; i++)
		memcpy(text + 1 + i * k, part, k);
	memcpy(text + n * k, "]", 2); /* over the last comma */
	rc = json_try(text, 8);
	free(text);
	return rc;
}

TEST(json_values_are_bounded)
{
	CHECK_EQ(json_of("0,", JSON_VALUES_MAX - 1), RC_OK);
	CHECK_EQ(json_of("0,", JSON_VALUES_MAX), RC_INVALID);
	CHECK_EQ(json_of("{},", JSON_VALUES_MAX / 2 - 1), RC_OK);
	CHECK_EQ(json_of("{},", JSON_VALUES_MAX / 2 + 1), RC_INVALID);
	CHECK_EQ(json_of("[],", JSON_VALUES_MAX / 2 + 1), RC_INVALID);
	CHECK_EQ(json_of("\"a\\\",[{,\",", JSON_VALUES_MAX - 1), RC_OK);
	CHECK_EQ(json_of("\"\\\\\",", JSON_VALUES_MAX), RC_INVALID);
}

static enum api_code uri(struct request *r, const char *text)
{
	memset(r, 0, sizeof(*r));
	r->method = "GET";
	return request_parse_uri(r, text);
}

TEST(paths_and_queries)
{
	static struct request r;
	char long_path[HTTP_PATH_MAX + 10];

	CHECK_EQ(uri(&r, "/api/v2/apps/my%20app?limit=2&labels%5Ba%5D=b+c&x"), API_OK);
	CHECK_EQ(r.n_segments, 4);
	CHECK_STR(r.segments[3], "my app");
	CHECK_STR(request_query(&r, "limit"), "2");
	CHECK_STR(request_query(&r, "labels[a]"), "b c");
	CHECK_STR(request_query(&r, "x"), "");
	CHECK(!request_query(&r, "y"));
	CHECK_EQ(request_route(&r), API_OK);
	CHECK_STR(r.args[0], "my app");
	CHECK_EQ(uri(&r, "/api/v2/apps/a%2fb"), API_OK);
	CHECK_STR(r.segments[3], "a/b");
	CHECK_EQ(uri(&r, "/api/v2/apps/a%00b"), API_INVALID_PATH);
	CHECK_EQ(uri(&r, "/api/v2/apps/%zz"), API_INVALID_PATH);
	CHECK_EQ(uri(&r, "/api/v2/apps/%4"), API_INVALID_PATH);
	CHECK_EQ(uri(&r, "/api/v2/apps/x?a=%"), API_INVALID_REQUEST);
	CHECK_EQ(uri(&r, "api"), API_INVALID_REQUEST);
	memset(long_path, 'a', sizeof(long_path) - 1);
	long_path[0] = '/';
	long_path[sizeof(long_path) - 1] = '\0';
	CHECK_EQ(uri(&r, long_path), API_INVALID_PATH);
	long_path[HTTP_SEGMENT_MAX + 2] = '\0';
	CHECK_EQ(uri(&r, long_path), API_INVALID_PATH);
	CHECK_EQ(uri(&r, "/a/b/c/d/e/f/g/h/i"), API_NOT_FOUND);
	CHECK_EQ(uri(&r, "/api/v2/nothing"), API_OK);
	CHECK_EQ(request_route(&r), API_NOT_FOUND);
	CHECK_EQ(uri(&r, "/api/v3/sandboxes/create/"), API_OK);
	CHECK_EQ(request_route(&r), API_NOT_FOUND);
	CHECK_EQ(uri(&r, "/api/v3/sandboxes/create"), API_OK);
	r.method = "POST";
	CHECK_EQ(request_route(&r), API_METHOD_NOT_ALLOWED);
	CHECK(strstr(r.headers, "Allow: GET\r\n"));
}

TEST(every_route_is_reached_by_its_own_pattern)
{
	static struct request r;

	for (size_t i = 0; i < n_routes; i++) {
		CHECK_EQ(uri(&r, routes[i].pattern), API_OK);
		r.method = routes[i].method;
		CHECK_EQ(request_route(&r), API_OK);
		CHECK(r.route == &routes[i]);
	}
}

TEST(label_filters)
{
	static struct request r;
	struct json_object *o = NULL;

	CHECK_EQ(uri(&r, "/x?labels[a]=1&labels[b]=2"), API_OK);
	CHECK_EQ(request_labels(&r, &o), API_OK);
	CHECK_STR(json_text(o), "{\"a\":\"1\",\"b\":\"2\"}");
	json_object_put(o);
	o = NULL;
	CHECK_EQ(uri(&r, "/x?labels[]=1"), API_OK);
	CHECK_EQ(request_labels(&r, &o), API_INVALID_LABELS);
	CHECK_EQ(uri(&r, "/x?labels[a=1"), API_OK);
	CHECK_EQ(request_labels(&r, &o), API_INVALID_LABELS);
}

static enum api_code page_of(const char *text, struct page *p)
{
	static struct request r;
	enum api_code code = uri(&r, text);

	memset(p, 0, sizeof(*p));
	if (!code)
		code = page_start(&r, p);
	json_object_put(p->list);
	return code;
}

TEST(pages)
{
	struct page p;

	CHECK_EQ(page_of("/x", &p), API_OK);
	CHECK_EQ(p.limit, PAGE_DEFAULT);
	CHECK_EQ(page_of("/x?limit=100&cursor=1700000000000.app_0123", &p), API_OK);
	CHECK_EQ(p.limit, 100);
	CHECK_EQ(p.before_ms, 1700000000000);
	CHECK_STR(p.before_id, "app_0123");
	CHECK_EQ(page_of("/x?limit=0", &p), API_INVALID_REQUEST);
	CHECK_EQ(page_of("/x?limit=101", &p), API_INVALID_REQUEST);
	CHECK_EQ(page_of("/x?limit=-1", &p), API_INVALID_REQUEST);
	CHECK_EQ(page_of("/x?limit=1e1", &p), API_INVALID_REQUEST);
	CHECK_EQ(page_of("/x?cursor=", &p), API_INVALID_CURSOR);
	CHECK_EQ(page_of("/x?cursor=1", &p), API_INVALID_CURSOR);
	CHECK_EQ(page_of("/x?cursor=1.", &p), API_INVALID_CURSOR);
	CHECK_EQ(page_of("/x?cursor=1.%27", &p), API_INVALID_CURSOR);
	CHECK_EQ(page_of("/x?cursor=99999999999999999.a", &p), API_INVALID_CURSOR);
}

static enum rc app_config(const char *text)
{
	struct json_object *o = NULL;
	enum rc rc = json_parse_object(text, strlen(text), 8, &o, NULL);

	if (!rc)
		rc = app_config_check(o, NULL);
	json_object_put(o);
	return rc;
}

TEST(app_configs)
{
	CHECK_EQ(app_config("{}"), RC_OK);
	CHECK_EQ(app_config("{\"install\":null,\"build\":\"deno task build\",\"crons\":false}"), RC_OK);
	CHECK_EQ(app_config("{\"runtime\":{\"type\":\"dynamic\",\"entrypoint\":\"src/main.ts\",\"args\":[\"-x\"]}}"), RC_OK);
	CHECK_EQ(app_config("{\"runtime\":{\"type\":\"dynamic\",\"entrypoint\":\"../main.ts\"}}"), RC_INVALID);
	CHECK_EQ(app_config("{\"runtime\":{\"type\":\"dynamic\",\"entrypoint\":\"/etc/passwd\"}}"), RC_INVALID);
	CHECK_EQ(app_config("{\"runtime\":{\"type\":\"magic\"}}"), RC_INVALID);
	CHECK_EQ(app_config("{\"framework\":\"nextjs\",\"runtime\":{\"type\":\"static\"}}"), RC_INVALID);
	CHECK_EQ(app_config("{\"framework\":\"rails\"}"), RC_INVALID);
	CHECK_EQ(app_config("{\"args\":[]}"), RC_INVALID);
}

TEST(own_config_overrides_the_apps)
{
	struct json_object *app = json_tokener_parse("{\"install\":\"a\",\"build\":\"b\",\"framework\":\"fresh\"}");
	struct json_object *own = json_tokener_parse("{\"build\":null,\"runtime\":{\"type\":\"static\"}}");
	struct json_object *o = app_config_merge(app, own);

	CHECK_STR(json_text(o), "{\"install\":\"a\",\"build\":null,\"runtime\":{\"type\":\"static\"}}");
	json_object_put(o);
	json_object_put(app);
	json_object_put(own);
}

TEST(every_code_has_its_row)
{
	for (int c = API_OK + 1; c < API_N_CODES; c++) {
		CHECK(api_code_status(c) >= 400 && api_code_status(c) < 600);
		CHECK(strlen(api_code_text(c)) > 5);
		CHECK(strspn(api_code_name(c), "ABCDEFGHIJKLMNOPQRSTUVWXYZ_") == strlen(api_code_name(c)));
	}
	CHECK_EQ(api_code_status(API_N_CODES), 500);
}

CHECK_MAIN()
