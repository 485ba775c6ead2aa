/* SPDX-License-Identifier: Apache-2.0 */
#define PCRE2_CODE_UNIT_WIDTH 16
#include "guest/fs_regex.h"

#include <errno.h>
#include <pcre2.h>
#include <string.h>

struct fs_regex {
	unsigned flags;
	pcre2_code *code;
	pcre2_match_data *data;
	pcre2_match_context *limits;
	size_t last_index; /* of a sticky expression */
};

static uint32_t decode(const uint8_t *s, size_t len)
{
	switch (len) {
	case 1:
		return s[0];
	case 2:
		return (uint32_t)(s[0] & 0x1f) << 6 | (s[1] & 0x3f);
	case 3:
		return (uint32_t)(s[0] & 0x0f) << 12 | (uint32_t)(s[1] & 0x3f) << 6 | (s[2] & 0x3f);
	default:
		return (uint32_t)(s[0] & 0x07) << 18 | (uint32_t)(s[1] & 0x3f) << 12 | (uint32_t)(s[2] & 0x3f) << 6 |
		       (s[3] & 0x3f);
	}
}

/* UTF-8 to code points, at most n of them. */
static uint32_t *code_points(const char *s, size_t n, size_t *ret_n)
{
	uint32_t *out = calloc(n + 1, sizeof(*out));
	size_t o = 0, bad;

	for (size_t i = 0; out && i < n;) {
		size_t len = fs_utf8_next((const uint8_t *)s + i, n - i, &bad);

		out[o++] = len ? decode((const uint8_t *)s + i, len) : 0xfffd;
		i += len ? len : bad;
	}
	*ret_n = o;
	return out;
}

bool fs_units_of(const char *s, size_t n, struct fs_units *ret)
{
	size_t o = 0, bad;

	ret->u = calloc(n + 1, sizeof(*ret->u));
	for (size_t i = 0; ret->u && i < n;) {
		size_t len = fs_utf8_next((const uint8_t *)s + i, n - i, &bad);
		uint32_t c = len ? decode((const uint8_t *)s + i, len) : 0xfffd;

		if (c >= 0x10000) {
			ret->u[o++] = (uint16_t)(0xd800 + ((c - 0x10000) >> 10));
			ret->u[o++] = (uint16_t)(0xdc00 + ((c - 0x10000) & 0x3ff));
		} else {
			ret->u[o++] = (uint16_t)c;
		}
		i += len ? len : bad;
	}
	ret->n = o;
	return ret->u;
}

void fs_units_free(struct fs_units *u)
{
	free(u->u);
	*u = (struct fs_units){ 0 };
}

static bool flags_parse(const struct fs_text *text, unsigned *ret)
{
	static const char letters[] = "imsuvgyd";
	unsigned flags = 0;

	for (size_t i = 0; i < text->n; i++) {
		const char *at = text->s[i] ? strchr(letters, text->s[i]) : NULL;
		unsigned bit = at ? 1u << (at - letters) : 0;

		if (!bit || flags & bit)
			return false;
		flags |= bit;
	}
	*ret = flags;
	return (flags & (FS_REGEX_U | FS_REGEX_V)) != (FS_REGEX_U | FS_REGEX_V);
}

static enum rc syntax_error(struct fs_error *e, const struct fs_text *source, const struct fs_text *flags,
			    const char *reason)
{
	fs_error_set(e, 0, "SyntaxError", "", "Invalid regular expression: /%s/%s: %s", source->s, flags->s, reason);
	return RC_SYS;
}

/* What the translator works on: code points with u or v, else UTF-16 units. */
static uint32_t *source_units(const struct fs_text *source, bool unicode, size_t *ret_n)
{
	struct fs_units u = { 0 };
	uint32_t *out;

	if (unicode)
		return code_points(source->s, source->n, ret_n);
	if (!fs_units_of(source->s, source->n, &u))
		return NULL;
	out = calloc(u.n + 1, sizeof(*out));
	for (size_t i = 0; out && i < u.n; i++)
		out[i] = u.u[i];
	*ret_n = u.n;
	fs_units_free(&u);
	return out;
}

static pcre2_code *compile(const char *pattern, unsigned flags, int *ret_why)
{
	pcre2_compile_context *context = pcre2_compile_context_create(NULL);
	uint32_t options = PCRE2_MATCH_UNSET_BACKREF | PCRE2_DOLLAR_ENDONLY | PCRE2_NEVER_BACKSLASH_C;
	struct fs_units u = { 0 };
	pcre2_code *code = NULL;
	PCRE2_SIZE at;

	*ret_why = PCRE2_ERROR_NOMEMORY;
	options |= flags & (FS_REGEX_U | FS_REGEX_V) ? PCRE2_UTF : PCRE2_NEVER_UTF;
	options |= flags & FS_REGEX_I ? PCRE2_CASELESS | PCRE2_UCP : 0;
	if (context && fs_units_of(pattern, strlen(pattern), &u)) {
		pcre2_set_parens_nest_limit(context, 4 * FS_REGEX_DEPTH_MAX);
		code = pcre2_compile(u.u, u.n, options, ret_why, &at, context);
	}
	fs_units_free(&u);
	pcre2_compile_context_free(context);
	return code;
}

static enum rc regex_compile(struct fs_regex *re, const struct fs_text *source, const struct fs_text *flags,
			     struct fs_error *e)
{
	_cleanup_free_ uint32_t *units = NULL;
	_cleanup_free_ char *pattern = NULL;
	const char *reason = NULL;
	size_t n = 0;
	int why;

	units = source_units(source, re->flags & (FS_REGEX_U | FS_REGEX_V), &n);
	if (!units)
		return fs_fail(e, ENOMEM, NULL, NULL);
	if (n > FS_PATTERN_MAX)
		return syntax_error(e, source, flags, "Regular expression too large");
	pattern = fs_regex_translate(units, n, re->flags, &reason);
	if (!pattern)
		return syntax_error(e, source, flags, reason);
	re->code = compile(pattern, re->flags, &why);
	if (!re->code && why == PCRE2_ERROR_NOMEMORY)
		return fs_fail(e, ENOMEM, NULL, NULL);
	if (!re->code) {
		uint16_t text[128];
		char plain[128];
		size_t i = 0;

		pcre2_get_error_message(why, text, ARRAY_SIZE(text));
		for (; i < 127 && text[i]; i++)
			plain[i] = (char)text[i];
		plain[i] = '\0';
		return syntax_error(e, source, flags, plain);
	}
	re->data = pcre2_match_data_create(1, NULL);
	re->limits = pcre2_match_context_create(NULL);
	if (!re->data || !re->limits)
		return fs_fail(e, ENOMEM, NULL, NULL);
	pcre2_set_match_limit(re->limits, FS_REGEX_MATCH_LIMIT);
	pcre2_set_depth_limit(re->limits, FS_REGEX_DEPTH_LIMIT);
	pcre2_set_heap_limit(re->limits, FS_REGEX_HEAP_KIB);
	return RC_OK;
}

enum rc fs_regex_new(const struct fs_text *source, const struct fs_text *flags, struct fs_regex **ret,
		     struct fs_error *e)
{
	struct fs_regex *re;
	unsigned bits;
	enum rc rc;

	if (!flags_parse(flags, &bits)) {
		fs_error_set(e, 0, "SyntaxError", "", "Invalid flags supplied to RegExp constructor '%s'", flags->s);
		return RC_SYS;
	}
	re = calloc(1, sizeof(*re));
	if (!re)
		return fs_fail(e, ENOMEM, NULL, NULL);
	re->flags = bits;
	rc = regex_compile(re, source, flags, e);
	if (rc == RC_OK)
		*ret = re;
	else
		fs_regex_free(re);
	return rc;
}

void fs_regex_free(struct fs_regex *re)
{
	if (!re)
		return;
	pcre2_code_free(re->code);
	pcre2_match_data_free(re->data);
	pcre2_match_context_free(re->limits);
	free(re);
}

enum rc fs_regex_match(struct fs_regex *re, const struct fs_units *subject, bool *ret, struct fs_error *e)
{
	bool sticky = re->flags & FS_REGEX_Y;
	/* A sticky expression goes on where it ended the last time, unless it is global: that one starts over. */
	size_t start = sticky && !(re->flags & FS_REGEX_G) ? re->last_index : 0;
	int n = -1;

	if (start <= subject->n)
		n = pcre2_match(re->code, subject->u, subject->n, start,
				(sticky ? PCRE2_ANCHORED : 0) | PCRE2_NO_UTF_CHECK, re->data, re->limits);
	else
		n = PCRE2_ERROR_NOMATCH;
	if (n < 0 && n != PCRE2_ERROR_NOMATCH) {
		if (n == PCRE2_ERROR_NOMEMORY)
			return fs_fail(e, ENOMEM, NULL, NULL);
		return fs_fail_plain(e, "Error", "the regular expression takes too many steps");
	}
	*ret = n >= 0;
	re->last_index = *ret ? pcre2_get_ovector_pointer(re->data)[1] : 0;
	return RC_OK;
}
