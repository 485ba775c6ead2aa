/* SPDX-License-Identifier: Apache-2.0 */
#include "base/cleanup.h"
#include "tests/lib/check.h"
#include "tests/lib/seal.h"
#include "vmm/egress/ws.h"

#define PH "nbsecret_0123456789abcdef"
#define VALUE "sk-real-value-0042"

static const uint8_t key[EGRESS_KEY_BYTES] = "0123456789abcdef0123456789abcde";

static struct secrets *open_set(void)
{
	char a[SEAL_MAX], text[2 * SEAL_MAX];
	struct secrets *s = NULL;
	struct policy *p = NULL;
	size_t bad;

	snprintf(text, sizeof(text), POLICY_HEAD "\ndefault public\nsecret KEY " PH " %s api.test\n", seal(key, "sbx", "KEY", VALUE, a));
	if (!policy_parse(text, strlen(text), &p, NULL))
		secrets_open(p, "sbx", key, &s, &bad, NULL);
	policy_free(p);
	return s;
}

static size_t frame(uint8_t *out, uint8_t first, bool masked, const char *data, size_t n)
{
	static const uint8_t mask[4] = { 1, 0x80, 0xff, 7 };
	size_t k = 2;

	out[0] = first;
	out[1] = (uint8_t)((masked ? 0x80 : 0) | (n < 126 ? n : 126));
	if (n >= 126) {
		out[k++] = (uint8_t)(n >> 8);
		out[k++] = (uint8_t)n;
	}
	if (masked)
		memcpy(out + k, mask, 4), k += 4;
	for (size_t i = 0; i < n; i++)
		out[k + i] = (uint8_t)data[i] ^ (masked ? mask[i & 3] : 0);
	return k + n;
}

/* Reads frames: "opcode[+]payload|" each, + for FIN. */
static void show(const uint8_t *p, size_t n, char *out)
{
	*out = '\0';
	while (n) {
		size_t len = p[1] & 0x7f, k = 2;

		if (len == 126)
			len = (size_t)p[2] << 8 | p[3], k = 4;
		CHECK(k + len <= n);
		out += sprintf(out, "%d%s%.*s|", p[0] & 15, p[0] & 0x80 ? "+" : "", (int)len, p + k);
		p += k + len;
		n -= k + len;
	}
}

/* The upstream's bytes in steps; what the guest gets, or why not. */
static const char *from_up(const uint8_t *data, size_t n, size_t step, bool *found, char *text)
{
	struct secrets *set = open_set();
	struct buf in = BUF_INIT(1 << 20), out = BUF_INIT(1 << 20);
	const char *why = NULL;
	struct ws w;

	ws_start(&w, set);
	for (size_t at = 0; at < n && !why; at += step) {
		buf_put(&in, data + at, MIN_OF(step, n - at));
		CHECK_EQ(ws_from_up(&w, &in, &out, 1 << 19, &why), RC_OK);
	}
	show(buf_data(&out), buf_len(&out), text);
	*found = w.found;
	ws_end(&w);
	buf_free(&in);
	buf_free(&out);
	secrets_unref(set);
	return why;
}

/* Joins the fragments of what show() wrote. */
static void join(char *text)
{
	char *to = text;

	for (char *p = text; *p;) {
		char *end = strchr(p, '|');
		bool more = *p == '0';
		size_t skip = (size_t)(p[1] == '+') + 1;

		/* "1abc|0+def|" becomes "1abcdef|" */
		if (more && to > text)
			to--;
		else
			*to++ = *p;
		memmove(to, p + skip, (size_t)(end + 1 - p) - skip);
		to += (size_t)(end + 1 - p) - skip;
		p = end + 1;
	}
	*to = '\0';
}

TEST(values_are_taken_out_of_messages_however_they_are_cut)
{
	uint8_t mem[512];
	char text[1024];
	bool found;
	size_t n = 0;

	n += frame(mem + n, 0x81, false, "hello", 5);
	n += frame(mem + n, 0x01, false, "<sk-re", 6);
	n += frame(mem + n, 0x00, false, "al-va", 5);
	n += frame(mem + n, 0x80, false, "lue-0042>", 9);
	n += frame(mem + n, 0x82, false, VALUE, strlen(VALUE));
	n += frame(mem + n, 0x89, false, "ping", 4);
	n += frame(mem + n, 0x8a, false, VALUE, strlen(VALUE));
	n += frame(mem + n, 0x82, false, "sk-real-", 8);
	n += frame(mem + n, 0x81, false, "", 0);
	n += frame(mem + n, 0x88, false, "\x03\xe8" "bye", 5);
	for (size_t step = 1; step <= n; step++) {
		CHECK(!from_up(mem, n, step, &found, text));
		CHECK(found);
		join(text);
		CHECK(!strstr(text, "sk-real-value"));
		CHECK(!strncmp(text, "1hello|1<" PH ">|2" PH "|9ping|", strlen("1hello|1<" PH ">|2" PH "|9ping|")));
		CHECK(strstr(text, "|2sk-real-|1|8\x03\xe8" "bye|"));
	}
}

TEST(a_ping_between_fragments_stays_between_them)
{
	uint8_t mem[128];
	char text[256];
	size_t n = frame(mem, 0x01, false, "ab", 2);
	bool found;

	n += frame(mem + n, 0x89, false, "p", 1);
	n += frame(mem + n, 0x80, false, "cd", 2);
	CHECK(!from_up(mem, n, n, &found, text));
	CHECK_STR(text, "1ab|9+p|0+cd|");
	CHECK(!found);
}

TEST(malformed_frames_end_the_connection)
{
	static const struct {
		const char *bytes;
		size_t n;
		const char *why;
	} bad[] = {
		{ "\xc1\x00", 2, "extension" },   { "\x81\x80\0\0\0\0", 6, "masked" },     { "\x83\x00", 2, "unknown" },
		{ "\x8b\x00", 2, "unknown" },     { "\x09\x00", 2, "control" },            { "\x89\x7e\x00\x80", 4, "control" },
		{ "\x80\x00", 2, "mixed" },       { "\x01\x00\x01\x00", 4, "mixed" },      { "\x82\x7e\x00\x10", 4, "length" },
		{ "\x82\x7f\0\0\0\0\0\0\x10\0", 10, "length" },
		{ "\x82\x7f\xff\0\0\0\0\0\x10\0", 10, "length" },
		{ "\x88\x00\x89\x00", 4, "after the close" },
	};
	char text[256];
	bool found;

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		for (size_t step = 1; step <= bad[i].n; step++) {
			const char *why = from_up((const uint8_t *)bad[i].bytes, bad[i].n, step, &found, text);

			if (!why || !strstr(why, bad[i].why)) {
				printf("  %zu: %s\n", i, why ? why : "taken");
				check_failed_here++;
			}
		}
}

TEST(a_control_frame_that_a_placeholder_makes_too_long_is_refused)
{
	uint8_t mem[256];
	char text[512], payload[125];
	size_t n;
	bool found;

	memset(payload, 'x', sizeof(payload));
	memcpy(payload, VALUE, strlen(VALUE));
	n = frame(mem, 0x89, false, payload, sizeof(payload));
	CHECK(from_up(mem, n, n, &found, text));
	CHECK_STR(text, "");
}

TEST(frames_of_the_guest_pass_unchanged_and_are_looked_through)
{
	struct secrets *set = open_set();
	uint8_t mem[512];
	size_t n = frame(mem, 0x01, true, "key " "nbsecret_01234", 18);

	n += frame(mem + n, 0x89, true, "x", 1);
	n += frame(mem + n, 0x80, true, "56789abcdef", 11);
	for (size_t step = 1; step <= n; step++) {
		struct buf in = BUF_INIT(1024), out = BUF_INIT(1024);
		const char *why = NULL;
		struct ws w;

		ws_start(&w, set);
		for (size_t at = 0; at < n; at += step) {
			buf_put(&in, mem + at, MIN_OF(step, n - at));
			CHECK_EQ(ws_from_guest(&w, &in, &out, 1024, &why), RC_OK);
			CHECK(!why);
		}
		CHECK(buf_len(&out) == n && !memcmp(buf_data(&out), mem, n));
		ws_end(&w);
		buf_free(&in);
		buf_free(&out);
	}
	{
		struct buf in = BUF_INIT(1024), out = BUF_INIT(1024);
		const char *why = NULL;
		struct ws w;

		ws_start(&w, set);
		n = frame(mem, 0x81, true, PH, strlen(PH));
		buf_put(&in, mem, n);
		ws_from_guest(&w, &in, &out, 1024, &why);
		CHECK_STR(w.placeholder, "KEY");
		n = frame(mem, 0x81, false, "x", 1);
		buf_put(&in, mem, n);
		ws_from_guest(&w, &in, &out, 1024, &why);
		CHECK(why && strstr(why, "not masked"));
		ws_end(&w);
		buf_free(&in);
		buf_free(&out);
	}
	secrets_unref(set);
}

CHECK_MAIN()
