/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/b64.h"
#include "guest/fs.h"
#include "guest/fs_glob.h"
#include "guest/fs_limits.h"
#include "tests/lib/check.h"

#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static char dir[64];
static struct fs_ctx *ctx;
static struct fs_error err;

static void setup(void)
{
	struct fault f;

	strcpy(dir, "/tmp/nestbox-test-fs.XXXXXX");
	if (!mkdtemp(dir) || fs_ctx_new(dir, &ctx, &f) != RC_OK)
		abort();
}

static void teardown(void)
{
	char command[128];

	fs_ctx_free(ctx);
	ctx = NULL;
	snprintf(command, sizeof(command), "rm -rf '%s'", dir);
	if (system(command) != 0)
		abort();
}

/* Calls a method with params given as JSON text. */
static enum rc call_on(struct fs_ctx *c, const char *method, const char *params, struct json_object **ret,
		       struct fs_error *e)
{
	const struct fs_method *m = fs_method_find(method);
	struct json_object *p = json_tokener_parse(params);
	enum rc rc;

	if (!m || !p)
		abort();
	*ret = NULL;
	rc = m->fn(c, p, ret, e);
	json_object_put(p);
	return rc;
}

/* The value as JSON text, or the class of the error. */
static const char *call(const char *method, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static const char *call(const char *method, const char *fmt, ...)
{
	static char out[65536], params[65536];
	struct json_object *ok;
	va_list ap;
	enum rc rc;

	va_start(ap, fmt);
	vsnprintf(params, sizeof(params), fmt, ap);
	va_end(ap);
	rc = call_on(ctx, method, params, &ok, &err);
	snprintf(out, sizeof(out), "%s", rc == RC_OK ? json_object_to_json_string_ext(ok, JSON_C_TO_STRING_PLAIN) :
		 rc == RC_INVALID ? "invalid" : err.constructor_name);
	json_object_put(ok);
	return out;
}

/* --- base64 and UTF-8 -------------------------------------------------------------------------------------------------- */

TEST(b64_model)
{
	static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	unsigned seed = 7;

	for (int round = 0; round < 2000; round++) {
		uint8_t data[300], back[B64_ROOM(B64_LEN(300))];
		char text[B64_LEN(300)];
		size_t n = (size_t)rand_r(&seed) % sizeof(data), got, len;

		for (size_t i = 0; i < n; i++)
			data[i] = (uint8_t)rand_r(&seed);
		len = b64_encode(text, data, n);
		CHECK_EQ(len, B64_LEN(n));
		/* Bit by bit, against the definition. */
		for (size_t i = 0; i < n * 8 / 6; i++) {
			unsigned v = 0;

			for (size_t b = i * 6; b < i * 6 + 6; b++)
				v = v << 1 | (data[b / 8] >> (7 - b % 8) & 1);
			CHECK_EQ(text[i], alphabet[v]);
		}
		CHECK(b64_decode(back, &got, text, len) && got == n && !memcmp(back, data, n));
		while (len && text[len - 1] == '=')
			len--;
		CHECK(b64_decode(back, &got, text, len) && got == n);
		if (len) {
			text[(size_t)rand_r(&seed) % len] = "-_ \n\0\xff"[rand_r(&seed) % 6];
			CHECK(!b64_decode(back, &got, text, len));
		}
	}
	for (const char *const *bad = (const char *const[]){ "=", "a", "a===", "ab=c", "=abc", "abcde", "ab==ab==", NULL }; *bad; bad++) {
		uint8_t back[16];
		size_t got;

		CHECK(!b64_decode(back, &got, *bad, strlen(*bad)));
	}
}

TEST(text_is_lossy_like_the_encoding_standard)
{
	static const struct {
		const char *bytes, *json;
	} rows[] = {
		{ "a\"\\\n\x01", "\"a\\\"\\\\\\n\\u0001\"" },
		{ "\xef\xbb\xbf" "A", "\"\xef\xbb\xbf" "A\"" },
		{ "\xff\xfe", "\"\xef\xbf\xbd\xef\xbf\xbd\"" },
		{ "\xe2\x82", "\"\xef\xbf\xbd\"" },
		{ "\xed\xa0\x80", "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\"" },
		{ "\xf0\x9f\x98\x80", "\"\xf0\x9f\x98\x80\"" },
		{ "\xf0\x9f\x98" "x", "\"\xef\xbf\xbdx\"" },
		{ "\xc0\xaf\xf5\x80", "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\"" },
	};

	setup();
	for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
		char text[200];

		text[b64_encode(text, rows[i].bytes, strlen(rows[i].bytes))] = '\0';
		CHECK_STR(call("writeFile", "{\"path\":\"f\",\"content\":\"%s\"}", text), "null");
		CHECK_STR(call("readTextFile", "{\"path\":\"f\"}"), rows[i].json);
	}
	teardown();
}

/* --- params ---------------------------------------------------------------------------------------------------------------- */

TEST(wrong_params_are_invalid)
{
	setup();
	for (size_t i = 0; i < fs_methods_n; i++) {
		bool lenient = !strcmp(fs_methods[i].name, "umask") || !strncmp(fs_methods[i].name, "makeTemp", 8);

		if (!lenient)
			CHECK_STR(call(fs_methods[i].name, "{}"), "invalid");
		CHECK_STR(call(fs_methods[i].name, "[]"), "invalid");
		CHECK_STR(call(fs_methods[i].name, "{\"path\":1,\"options\":7,\"mask\":\"x\",\"fileHandleId\":\"0\",\"oldPath\":[],"
			       "\"name\":{},\"target\":true,\"fromPath\":null}"), "invalid");
	}
	CHECK_STR(call("utime", "{\"path\":\".\",\"atime\":\"2024-01-01T00:00:00Z\",\"mtime\":\"2024-13-01T00:00:00.000Z\"}"), "invalid");
	CHECK_STR(call("writeFile", "{\"path\":\"f\",\"content\":\"a*==\"}"), "invalid");
	CHECK_STR(call("stat", "{\"path\":\"f\"}"), "NotFound"); /* and it was not created */
	teardown();
}

TEST(paths)
{
	char name[5001];

	setup();
	memset(name, 'a', 5000);
	name[5000] = '\0';
	CHECK_STR(call("readFile", "{\"path\":\"%s\"}", name), "Error");
	CHECK_STR(err.code, "ENAMETOOLONG");
	CHECK_STR(call("mkdir", "{\"path\":\"%s\",\"options\":{\"recursive\":true}}", name), "Error");
	CHECK_STR(err.code, "ENAMETOOLONG");
	CHECK_STR(call("stat", "{\"path\":\"a\\u0000b\"}"), "TypeError");
	CHECK_EQ(err.message_n, strlen("file name contained an unexpected NUL byte: stat 'a.b'"));
	CHECK_STR(call("stat", "{\"path\":\"no\"}"), "NotFound");
	CHECK_STR(err.message, "No such file or directory (os error 2): stat 'no'");
	/* All of a long path at once, and away again. */
	for (int i = 0; i < 500; i++)
		name[2 * i] = 'd', name[2 * i + 1] = '/';
	name[1000] = '\0';
	CHECK_STR(call("mkdir", "{\"path\":\"%s\",\"options\":{\"recursive\":true}}", name), "null");
	CHECK_STR(call("readDir", "{\"path\":\"%s\"}", name), "[]");
	CHECK_STR(call("remove", "{\"path\":\"d\",\"options\":{\"recursive\":true}}"), "null");
	CHECK_STR(call("readDir", "{\"path\":\".\"}"), "[]");
	teardown();
}

TEST(umask_is_read_without_setting_it)
{
	mode_t before = umask(027);

	setup();
	CHECK_STR(call("umask", "{}"), "23");
	CHECK_STR(call("umask", "{\"mask\":18}"), "23");
	CHECK_STR(call("umask", "{\"mask\":null}"), "18");
	teardown();
	umask(before);
}

/* Deeper than there may be paths, and than the remove keeps directories open; with a link that leads out. */
TEST(remove_of_a_very_deep_tree)
{
	int at;

	setup();
	at = open(dir, O_RDONLY | O_DIRECTORY);
	REQUIRE(mkdirat(at, "out", 0700) == 0 && mkdirat(at, "out/kept", 0700) == 0);
	for (int i = 0; i < 2500; i++) {
		int next;

		REQUIRE(mkdirat(at, "d", 0700) == 0);
		next = openat(at, "d", O_RDONLY | O_DIRECTORY);
		close(at);
		at = next;
		if (i % 100 == 0)
			REQUIRE(symlinkat("/", at, "l") == 0 && mknodat(at, "f", S_IFREG | 0600, 0) == 0);
	}
	close(at);
	CHECK_STR(call("symlink", "{\"target\":\"%s/out\",\"path\":\"d/out\"}", dir), "null");
	CHECK_STR(call("remove", "{\"path\":\"d\"}"), "Error");
	CHECK_STR(err.code, "ENOTEMPTY");
	CHECK_STR(call("remove", "{\"path\":\"d\",\"options\":{\"recursive\":true}}"), "null");
	CHECK_STR(call("readDir", "{\"path\":\"out\"}"),
		  "[{\"name\":\"kept\",\"isFile\":false,\"isDirectory\":true,\"isSymlink\":false}]");
	CHECK_STR(call("stat", "{\"path\":\"d\"}"), "NotFound");
	teardown();
}

/* --- contents ------------------------------------------------------------------------------------------------------------------- */

TEST(files_over_the_bound_are_refused)
{
	char path[100];

	setup();
	snprintf(path, sizeof(path), "%s/f", dir);
	CHECK_STR(call("writeTextFile", "{\"path\":\"f\",\"content\":\"\"}"), "null");
	REQUIRE(truncate(path, FS_READ_FILE_MAX + 1) == 0);
	CHECK_STR(call("readFile", "{\"path\":\"f\"}"), "Error");
	CHECK_EQ(err.sys, EFBIG);
	CHECK_STR(call("readTextFile", "{\"path\":\"/dev/zero\"}"), "Error");
	CHECK_EQ(err.sys, EFBIG);
	teardown();
}

TEST(streamed_write)
{
	struct json_object *params = json_tokener_parse("{\"path\":\"f\",\"contentStreamId\":3,\"options\":{\"append\":true}}");
	struct fs_write *w = NULL;

	setup();
	for (int i = 0; i < 2; i++) {
		REQUIRE(fs_write_open(ctx, params, &w, &err) == RC_OK);
		CHECK_EQ(fs_write_chunk(w, "ab", 2, &err), RC_OK);
		CHECK_EQ(fs_write_chunk(w, "c", 1, &err), RC_OK);
		CHECK_EQ(fs_write_close(w, i, &err), RC_OK);
	}
	CHECK_STR(call("readTextFile", "{\"path\":\"f\"}"), "\"abcabc\"");
	json_object_put(params);
	params = json_tokener_parse("{\"path\":\"/dev/full\"}");
	REQUIRE(fs_write_open(ctx, params, &w, &err) == RC_OK);
	CHECK_EQ(fs_write_chunk(w, "ab", 2, &err), RC_SYS);
	CHECK_STR(err.code, "ENOSPC");
	CHECK_STR(err.message, "No space left on device (os error 28)");
	fs_write_close(w, true, &err);
	json_object_put(params);
	teardown();
}

/* --- handles -------------------------------------------------------------------------------------------------------------------- */

struct model {
	uint8_t mem[4096];
	size_t n, at;
};

static void model_write(struct model *m, const uint8_t *data, size_t n)
{
	if (!n) /* no bytes, no hole */
		return;
	if (m->at > m->n)
		memset(m->mem + m->n, 0, m->at - m->n);
	memcpy(m->mem + m->at, data, n);
	m->at += n;
	m->n = m->at > m->n ? m->at : m->n;
}

static void model_step(struct model *m, long long id, unsigned *seed)
{
	uint8_t data[64];
	char text[100], want[400];
	size_t n = (size_t)rand_r(seed) % 64, have;

	switch (rand_r(seed) % 4) {
	case 0:
		for (size_t i = 0; i < n; i++)
			data[i] = (uint8_t)rand_r(seed);
		text[b64_encode(text, data, n)] = '\0';
		model_write(m, data, n);
		snprintf(want, sizeof(want), "{\"bytesWritten\":%zu}", n);
		CHECK_STR(call("fileWrite", "{\"fileHandleId\":%lld,\"data\":\"%s\"}", id, text), want);
		break;
	case 1:
		have = m->at < m->n ? m->n - m->at : 0;
		have = have < n ? have : n;
		text[b64_encode(text, m->mem + m->at, have)] = '\0';
		m->at += have;
		snprintf(want, sizeof(want), have || !n ? "{\"data\":\"%s\"}" : "{\"data\":null}", text);
		CHECK_STR(call("fileRead", "{\"fileHandleId\":%lld,\"length\":%zu}", id, n), want);
		break;
	case 2:
		m->at = (size_t)rand_r(seed) % 2000;
		snprintf(want, sizeof(want), "{\"position\":%zu}", m->at);
		CHECK_STR(call("fileSeek", "{\"fileHandleId\":%lld,\"offset\":\"%zu\",\"whence\":0}", id, m->at), want);
		break;
	default:
		n = (size_t)rand_r(seed) % 2000;
		if (n > m->n)
			memset(m->mem + m->n, 0, n - m->n);
		m->n = n;
		CHECK_STR(call("fileTruncate", "{\"fileHandleId\":%lld,\"len\":%zu}", id, n), "null");
	}
}

TEST(handle_against_a_model)
{
	static struct model m;
	unsigned seed = 11;
	long long id;

	setup();
	REQUIRE(sscanf(call("create", "{\"path\":\"f\"}"), "{\"fileHandleId\":%lld}", &id) == 1);
	for (int i = 0; i < 20000 && !check_failed_here; i++)
		model_step(&m, id, &seed);
	CHECK_STR(call("fileClose", "{\"fileHandleId\":%lld}", id), "null");
	teardown();
}

TEST(handles_are_bounded_and_never_reused)
{
	long long first = -1, id;

	setup();
	for (int i = 0; i < FS_HANDLES_MAX; i++) {
		REQUIRE(sscanf(call("create", "{\"path\":\"f\"}"), "{\"fileHandleId\":%lld}", &id) == 1);
		first = first < 0 ? id : first;
	}
	CHECK_STR(call("create", "{\"path\":\"f\"}"), "Error");
	CHECK_STR(err.code, "EMFILE");
	CHECK_STR(call("fileClose", "{\"fileHandleId\":%lld}", first), "null");
	CHECK_STR(call("fileClose", "{\"fileHandleId\":%lld}", first), "BadResource");
	REQUIRE(sscanf(call("create", "{\"path\":\"f\"}"), "{\"fileHandleId\":%lld}", &id) == 1);
	CHECK(id != first);
	CHECK_STR(call("fileStat", "{\"fileHandleId\":%lld}", first), "BadResource");
	for (const char *const *bad = (const char *const[]){ "-1", "1.5", "1e300", "9007199254740993", NULL }; *bad; bad++)
		CHECK_STR(call("fileSync", "{\"fileHandleId\":%s}", *bad), "BadResource");
	CHECK_STR(call("fileRead", "{\"fileHandleId\":%lld,\"length\":-1}", id), "RangeError");
	teardown();
}

/* --- calls that block ----------------------------------------------------------------------------------------------------------- */

struct blocked {
	const char *method, *params;
	enum rc rc;
	struct fs_error e;
	atomic_int done;
};

static void *blocked_run(void *arg)
{
	struct blocked *b = arg;
	struct json_object *ok;

	b->rc = call_on(ctx, b->method, b->params, &ok, &b->e);
	json_object_put(ok);
	atomic_store(&b->done, 1);
	return NULL;
}

/* Waits until n calls of ctx run. */
static void wait_running(struct fs_ctx *c, int n)
{
	for (int i = 0; i < 5000 && fs_calls_running(c) != (size_t)n; i++)
		nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
}

TEST(cancel_wakes_what_blocks)
{
	static struct blocked b[] = {
		{ .method = "readFile", .params = "{\"path\":\"fifo\"}" },
		{ .method = "writeTextFile", .params = "{\"path\":\"fifo2\",\"content\":\"x\"}" },
		{ .method = "copyFile", .params = "{\"fromPath\":\"fifo\",\"toPath\":\"x\"}" },
		{ .method = "fileLock", .params = "{\"fileHandleId\":0,\"exclusive\":true}" },
	};
	const int n = sizeof(b) / sizeof(*b);
	pthread_t threads[sizeof(b) / sizeof(*b)];
	char path[100];
	int fd;

	setup();
	snprintf(path, sizeof(path), "%s/fifo", dir);
	REQUIRE(mkfifo(path, 0600) == 0);
	snprintf(path, sizeof(path), "%s/fifo2", dir);
	REQUIRE(mkfifo(path, 0600) == 0);
	CHECK_STR(call("create", "{\"path\":\"f\"}"), "{\"fileHandleId\":0}");
	snprintf(path, sizeof(path), "%s/f", dir);
	fd = open(path, O_RDWR);
	REQUIRE(flock(fd, LOCK_EX) == 0);
	for (int i = 0; i < n; i++)
		REQUIRE(pthread_create(&threads[i], NULL, blocked_run, &b[i]) == 0);
	wait_running(ctx, n);
	for (int i = 0; i < n; i++)
		CHECK(!atomic_load(&b[i].done));
	while (fs_ctx_cancel(ctx))
		nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
	for (int i = 0; i < n; i++) {
		pthread_join(threads[i], NULL);
		CHECK_EQ(b[i].rc, RC_SYS);
		CHECK_STR(b[i].e.constructor_name, "Interrupted");
	}
	CHECK_STR(call("stat", "{\"path\":\".\"}"), "Interrupted");
	close(fd);
	teardown();
}

TEST(lock_waits_for_its_turn)
{
	static struct blocked b = { .method = "fileLock", .params = "{\"fileHandleId\":0}" };
	pthread_t thread;
	char path[100];
	int fd;

	setup();
	CHECK_STR(call("create", "{\"path\":\"f\"}"), "{\"fileHandleId\":0}");
	snprintf(path, sizeof(path), "%s/f", dir);
	fd = open(path, O_RDWR);
	REQUIRE(flock(fd, LOCK_EX) == 0);
	REQUIRE(pthread_create(&thread, NULL, blocked_run, &b) == 0);
	wait_running(ctx, 1);
	CHECK(!atomic_load(&b.done));
	/* A close meanwhile doesn't take the descriptor away from the waiting call. */
	CHECK_STR(call("fileClose", "{\"fileHandleId\":0}"), "null");
	REQUIRE(flock(fd, LOCK_UN) == 0);
	pthread_join(thread, NULL);
	CHECK_EQ(b.rc, RC_OK);
	/* The call was the last user: with it the lock is gone. */
	CHECK(flock(fd, LOCK_EX | LOCK_NB) == 0);
	close(fd);
	teardown();
}

static void *hammer_run(void *arg)
{
	unsigned seed = *(unsigned *)arg;
	static _Thread_local struct fs_error e;
	int bad = 0;

	for (int i = 0; i < 500; i++) {
		static const char *const calls[][2] = {
			{ "create", "{\"path\":\"h\"}" },
			{ "fileClose", "{\"fileHandleId\":0}" },
			{ "fileStat", "{\"fileHandleId\":1}" },
			{ "fileWrite", "{\"fileHandleId\":0,\"data\":\"AAAA\"}" },
			{ "readDir", "{\"path\":\".\"}" },
			{ "writeTextFile", "{\"path\":\"w\",\"content\":\"x\"}" },
		};
		const char *const *c = calls[(size_t)rand_r(&seed) % 6];
		struct json_object *ok;
		enum rc rc = call_on(ctx, c[0], c[1], &ok, &e);

		bad += rc != RC_OK && strcmp(e.constructor_name, "BadResource") != 0 && strcmp(e.code, "EMFILE") != 0;
		json_object_put(ok);
	}
	return (void *)(intptr_t)bad;
}

TEST(many_threads_on_one_context)
{
	pthread_t threads[4];
	unsigned seeds[4] = { 1, 2, 3, 4 };

	setup();
	for (int i = 0; i < 4; i++)
		REQUIRE(pthread_create(&threads[i], NULL, hammer_run, &seeds[i]) == 0);
	for (int i = 0; i < 4; i++) {
		void *bad;

		pthread_join(threads[i], &bad);
		CHECK_EQ((intptr_t)bad, 0);
	}
	teardown();
}

/* --- walks -------------------------------------------------------------------------------------------------------------------------- */

/* The whole stream as text, with `want` and the buffer's bound as given; the error's class at the end if there was one. */
static const char *walk(const char *method, const char *params_text, size_t want, size_t bound)
{
	static char text[65536];
	struct json_object *params = json_tokener_parse(params_text);
	struct buf out = BUF_INIT(bound);
	struct fs_walk *w = NULL;
	size_t n = 0;
	bool done = false;
	enum rc rc = fs_walk_open(ctx, method, params, &w, &err);

	json_object_put(params);
	while (rc == RC_OK && !done) {
		rc = fs_walk_next(w, &out, want, &done, &err);
		if (buf_len(&out) && n + buf_len(&out) < sizeof(text) - 100) {
			memcpy(text + n, buf_data(&out), buf_len(&out));
			n += buf_len(&out);
		}
		buf_consume(&out, buf_len(&out));
	}
	fs_walk_close(w);
	buf_free(&out);
	text[n] = '\0';
	if (rc != RC_OK)
		strcat(text, rc == RC_INVALID ? "invalid" : err.constructor_name);
	return text;
}

TEST(walk_gives_one_line_an_entry)
{
	setup();
	CHECK_STR(call("mkdir", "{\"path\":\"d/e\",\"options\":{\"recursive\":true}}"), "null");
	CHECK_STR(call("writeTextFile", "{\"path\":\"d/e/\\\"x\\n\",\"content\":\"\"}"), "null");
	for (size_t bound = 200; bound < 70000; bound *= 2)
		CHECK_STR(walk("walk", "{\"path\":\"d\"}", bound / 2, bound),
			  "{\"path\":\"d\",\"name\":\"d\",\"isFile\":false,\"isDirectory\":true,\"isSymlink\":false}\n"
			  "{\"path\":\"d/e\",\"name\":\"e\",\"isFile\":false,\"isDirectory\":true,\"isSymlink\":false}\n"
			  "{\"path\":\"d/e/\\\"x\\n\",\"name\":\"\\\"x\\n\",\"isFile\":true,\"isDirectory\":false,\"isSymlink\":false}\n");
	CHECK_STR(walk("expandGlob", "{\"glob\":\"d/**/*\\n\"}", 1, 65536) + strlen(dir) + 9,
		  "/d/e/\\\"x\\n\",\"name\":\"\\\"x\\n\",\"isFile\":true,\"isDirectory\":false,\"isSymlink\":false}\n");
	CHECK_STR(walk("walk", "{\"path\":\"no\"}", 1, 65536), "NotFound");
	CHECK_STR(walk("walk", "{\"path\":3}", 1, 65536), "invalid");
	CHECK_STR(walk("walk", "{\"path\":\"d\",\"match\":[{\"source\":\"(\",\"flags\":\"\"}]}", 1, 65536), "SyntaxError");
	CHECK_STR(walk("expandGlob", "{\"glob\":\"no/*\"}", 1, 65536), "");
	teardown();
}

TEST(walk_in_a_circle_ends)
{
	const char *text;

	setup();
	CHECK_STR(call("mkdir", "{\"path\":\"d\"}"), "null");
	CHECK_STR(call("symlink", "{\"target\":\".\",\"path\":\"d/l\"}"), "null");
	text = walk("walk", "{\"path\":\"d\",\"followSymlinks\":true,\"includeDirs\":false}", 1, 65536);
	CHECK_STR(text, "FilesystemLoop");
	CHECK_STR(walk("expandGlob", "{\"glob\":\"d/**\",\"followSymlinks\":true,\"exclude\":[\"d\"]}", 1, 65536), "");
	teardown();
}

/* --- patterns ------------------------------------------------------------------------------------------------------------------------ */

/* 1, 0, or -1 for an error. */
static int matches(const char *source, const char *flags, const char *subject)
{
	const struct fs_text s = { source, strlen(source) }, f = { flags, strlen(flags) };
	struct fs_regex *re = NULL;
	struct fs_units u;
	bool hit = false;
	int result = -1;

	if (fs_regex_new(&s, &f, &re, &err) != RC_OK)
		return -1;
	if (fs_units_of(subject, strlen(subject), &u) && fs_regex_match(re, &u, &hit, &err) == RC_OK)
		result = hit;
	fs_units_free(&u);
	fs_regex_free(re);
	return result;
}

TEST(regex_means_what_javascript_means)
{
	static const struct {
		const char *source, *flags, *subject;
		int want;
	} rows[] = {
		{ "^..$", "", "\xf0\x9f\x98\x80", 1 },      { "^..$", "u", "\xf0\x9f\x98\x80", 0 },
		{ "\\ud83d", "", "\xf0\x9f\x98\x80", 1 },   { "\\ud83d", "u", "\xf0\x9f\x98\x80", 0 },
		{ ".", "", "\xe2\x80\xa8", 0 },             { ".", "s", "\xe2\x80\xa8", 1 },
		{ "\\s", "", "\xef\xbb\xbf", 1 },           { "\\d", "", "\xd9\xa1", 0 },
		{ "^b", "", "a\nb", 0 },                    { "^b", "m", "a\nb", 1 },
		{ "a$", "", "a\n", 0 },                     { "a$", "m", "a\r", 1 },
		{ "\\1(a)", "", "a", 1 },                   { "(?:(a)|b)\\1$", "", "b", 1 },
		{ "\\101", "", "A", 1 },                    { "\\8", "", "8", 1 },
		{ "[]", "", "a", 0 },                       { "[^]", "", "\n", 1 },
		{ "\\Ab", "", "Ab", 1 },                    { "\\h", "", "h", 1 },
		{ "[[:alpha:]]", "", "x", 0 },              { "[[:alpha:]]", "", ":]", 1 },
		{ "a{,2}", "", "a{,2}", 1 },                { "x{1", "", "x{1", 1 },
		{ "\\Qa\\E", "", "QaE", 1 },                { "(?#x)", "", "", -1 },
		{ "(*ACCEPT)", "", "", -1 },                { "a++", "", "", -1 },
		{ "(?>a)", "", "", -1 },                    { "(?R)", "", "", -1 },
		{ "(?P<n>a)", "", "", -1 },                 { "(?<n>a)\\k<n>", "", "aa", 1 },
		{ "\\k<n>", "", "k<n>", 1 },                { "\\p{Lu}", "u", "\xc3\x89", 1 },
		{ "\\p{Lu}", "", "p{Lu}", 1 },              { "\\p{L&}", "u", "", -1 },
		{ "\\u{61}", "u", "a", 1 },                 { "\\u{61}", "", "uuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuu", 1 },
		{ "[\\w-z]", "", "-", 1 },                  { "[\\w-z]", "u", "", -1 },
		{ "[\\W]", "i", "k", 0 },                   { "\\W", "i", "K", 0 },
		{ "(?i:a)b", "", "Ab", 1 },                 { "(?i:a)b", "", "AB", 0 },
		{ "(?-i:a)b", "i", "aB", 1 },               { "(?-i:a)b", "i", "AB", 0 },
		{ "\xc3\x9f", "i", "\xe1\xba\x9e", 1 },     { "(?<=a)b", "", "ab", 1 },
		{ "a|*", "", "", -1 },                      { "a", "gg", "", -1 },
		{ "\\b\xc3\xa9", "", "\xc3\xa9", 0 },       { "\\cJ", "", "\n", 1 },
		{ "\\c", "", "\\c", 1 },                    { "[\\c]", "", "\\", 1 },
		{ "(a){0}\\1b", "", "b", 1 },               { "x{99999}", "", "x", 0 },
	};

	for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
		int got = matches(rows[i].source, rows[i].flags, rows[i].subject);

		if (got != rows[i].want)
			printf("  /%s/%s on \"%s\": %d\n", rows[i].source, rows[i].flags, rows[i].subject, got);
		CHECK_EQ(got, rows[i].want);
	}
}

TEST(hostile_patterns_end_soon)
{
	char deep[FS_PATTERN_MAX + 2], subject[4001];
	struct timespec a, b;

	memset(subject, 'a', 4000);
	strcpy(subject + 3999, "!");
	clock_gettime(CLOCK_MONOTONIC, &a);
	CHECK_EQ(matches("^(a+)+$", "", subject), -1);
	CHECK_EQ(matches("(a|a)*$", "", subject), -1);
	CHECK_EQ(matches("((a{1,60000}){1,60000}){1,60000}", "", subject), -1);
	memset(deep, '(', FS_PATTERN_MAX);
	deep[FS_PATTERN_MAX] = '\0';
	CHECK_EQ(matches(deep, "", "a"), -1);
	memset(deep, '[', FS_PATTERN_MAX + 1);
	deep[FS_PATTERN_MAX + 1] = '\0';
	CHECK_EQ(matches(deep, "", "a"), -1);
	memset(deep, '{', FS_PATTERN_MAX);
	deep[FS_PATTERN_MAX] = '\0';
	fs_is_glob(deep, FS_PATTERN_MAX);
	clock_gettime(CLOCK_MONOTONIC, &b);
	/* The bound is steps, not time: this only sees one that is missing. */
	CHECK(b.tv_sec - a.tv_sec < 20);
}

TEST(glob_sources)
{
	static const struct {
		const char *glob, *source;
	} rows[] = {
		{ "", "(?!)" },
		{ "*.txt", "^[^/]*\\.txt/*$" },
		{ "**/x", "^(?:[^/]*(?:/|$)+)*x/*$" },
		{ "a/{b,c}", "^a/+(?:b|c)/*$" },
		{ "!(a|b)c", "^(?!a|b)[^/]*c/*$" },
		{ "[!a-c]", "^[^a-c]/*$" },
		{ "[[:digit:]x]", "^[\\dx]/*$" },
		{ "{a", "^\\{a/*$" },
		{ "a\\", "^a\\\\/*$" },
		{ "/", "^/+$" },
		{ "+(a)", "^(?:a)+/*$" },
	};
	const struct fs_glob_options o = { .extended = true, .globstar = true };

	for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
		struct fs_str s = { 0 };

		REQUIRE(fs_glob_source(rows[i].glob, strlen(rows[i].glob), &o, &s, &err) == RC_OK);
		CHECK_STR(s.s, rows[i].source);
		fs_str_free(&s);
	}
	CHECK(fs_is_glob("a*", 2) && fs_is_glob("{a}", 3) && !fs_is_glob("\\{a}", 4) && !fs_is_glob("{a", 2));
}

CHECK_MAIN()
