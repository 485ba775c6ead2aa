/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory. A recursive-descent parser of ECMAScript patterns (with Annex B where there is no u flag) that writes PCRE2 as it
 * goes. Characters are written as \x{hex}, sets as explicit ranges, anchors as \A, \z and lookarounds, groups without
 * their names: so no PCRE2 feature can be reached that JavaScript doesn't have, and none means something else. The depth of
 * nesting is bounded; the output grows by a constant factor of the input.
 *
 * Known differences: captures keep their value over iterations of a quantifier; a class that is case-insensitive without
 * the u flag folds as Unicode does, where JavaScript leaves out U+017F and U+212A.
 */
#include "guest/fs_regex.h"

#include <stdarg.h>
#include <string.h>

#define NAMES_MAX 64
#define QUANTIFIER_MAX 65535
#define LINE_ENDS "\\n\\r\\x{2028}\\x{2029}"

struct range {
	uint32_t from, to;
};
static const struct range digit_set[] = { { '0', '9' } };
static const struct range word_set[] = { { '0', '9' }, { 'A', 'Z' }, { '_', '_' }, { 'a', 'z' } };
static const struct range space_set[] = { { 9, 13 }, { 32, 32 }, { 0xa0, 0xa0 }, { 0x1680, 0x1680 },
	{ 0x2000, 0x200a }, { 0x2028, 0x2029 }, { 0x202f, 0x202f }, { 0x205f, 0x205f }, { 0x3000, 0x3000 },
	{ 0xfeff, 0xfeff } };

struct group_name {
	size_t at, n; /* in the source */
	size_t number;
};

struct translation {
	const uint32_t *s;
	size_t n, i;
	unsigned flags;
	bool unicode;
	char *out;
	size_t out_n, out_cap;
	size_t groups, depth;
	struct group_name names[NAMES_MAX];
	size_t names_n;
	const char *reason;
};

/* --- output --------------------------------------------------------------------------------------------------------- */

static bool fail(struct translation *t, const char *reason)
{
	if (!t->reason)
		t->reason = reason;
	return false;
}

__attribute__((format(printf, 2, 3))) static bool emit(struct translation *t, const char *fmt, ...)
{
	char text[256];
	va_list ap;
	size_t n;

	va_start(ap, fmt);
	n = (size_t)vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (t->out_n + n + 1 > t->out_cap) {
		size_t cap = MAX_OF(t->out_cap * 2, t->out_n + n + 256);
		char *mem = realloc(t->out, cap);

		if (!mem)
			return fail(t, "out of memory");
		t->out = mem;
		t->out_cap = cap;
	}
	memcpy(t->out + t->out_n, text, n + 1);
	t->out_n += n;
	return true;
}

static bool is_surrogate(uint32_t c)
{
	return c >= 0xd800 && c <= 0xdfff;
}

static bool emit_char(struct translation *t, uint32_t c)
{
	/* No subject has one in Unicode mode, and PCRE2 refuses it. */
	if (t->unicode && is_surrogate(c))
		return emit(t, "(?!)");
	if ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'))
		return emit(t, "%c", (char)c);
	return emit(t, "\\x{%x}", c);
}

static uint32_t last_char(const struct translation *t)
{
	return t->unicode ? 0x10ffff : 0xffff;
}

/* A range inside a class. */
static bool emit_range(struct translation *t, uint32_t from, uint32_t to)
{
	if (t->unicode && is_surrogate(from))
		from = 0xe000;
	if (t->unicode && is_surrogate(to))
		to = 0xd7ff;
	if (from > to)
		return true;
	return from == to ? emit(t, "\\x{%x}", from) : emit(t, "\\x{%x}-\\x{%x}", from, to);
}

/* \d \D \w \W \s \S inside a class. */
static bool emit_set(struct translation *t, char letter)
{
	const struct range *set = letter == 'd' || letter == 'D' ? digit_set : letter == 'w' || letter == 'W' ? word_set : space_set;
	size_t n = set == digit_set ? ARRAY_SIZE(digit_set) : set == word_set ? ARRAY_SIZE(word_set) : ARRAY_SIZE(space_set);
	bool ok = true, folds = letter == 'W' && t->flags & FS_REGEX_I;
	uint32_t from = 0;

	if (letter >= 'a') {
		for (size_t i = 0; ok && i < n; i++)
			ok = emit_range(t, set[i].from, set[i].to);
		return ok;
	}
	for (size_t i = 0; ok && i < n; i++) {
		if (set[i].from > from)
			ok = emit_range(t, from, set[i].from - 1);
		from = set[i].to + 1;
	}
	/* These two fold to s and k, which are word characters. */
	if (folds)
		return ok && emit_range(t, from, 0x17e) && emit_range(t, 0x180, 0x2129) && emit_range(t, 0x212b, last_char(t));
	return ok && emit_range(t, from, last_char(t));
}

/* --- input ---------------------------------------------------------------------------------------------------------- */

static bool at_end(const struct translation *t)
{
	return t->i >= t->n;
}

static uint32_t peek(const struct translation *t, size_t ahead)
{
	return t->i + ahead < t->n ? t->s[t->i + ahead] : UINT32_MAX;
}

static bool accept(struct translation *t, const char *word)
{
	size_t n = strlen(word);

	for (size_t k = 0; k < n; k++)
		if (peek(t, k) != (uint8_t)word[k])
			return false;
	t->i += n;
	return true;
}

static bool is_digit(uint32_t c)
{
	return c >= '0' && c <= '9';
}

static int hex_value(uint32_t c)
{
	return is_digit(c) ? (int)(c - '0') : c >= 'a' && c <= 'f' ? (int)(c - 'a' + 10) : c >= 'A' && c <= 'F' ? (int)(c - 'A' + 10) : -1;
}

/* n hex digits, or none taken. */
static bool hex(struct translation *t, size_t n, uint32_t *ret)
{
	uint32_t v = 0;

	for (size_t k = 0; k < n; k++) {
		int d = hex_value(peek(t, k));

		if (d < 0)
			return false;
		v = v << 4 | (uint32_t)d;
	}
	t->i += n;
	*ret = v;
	return true;
}

/* A decimal number, cut at a large one. False if there is none. */
static bool decimal(struct translation *t, uint32_t *ret)
{
	uint32_t v = 0;

	if (!is_digit(peek(t, 0)))
		return false;
	for (; is_digit(peek(t, 0)); t->i++)
		v = v > 100000000 ? v : v * 10 + (peek(t, 0) - '0');
	*ret = v;
	return true;
}

/* --- names ----------------------------------------------------------------------------------------------------------- */

static bool name_char(uint32_t c)
{
	return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c == '$' ||
	       (c >= 0x80 && c != UINT32_MAX);
}

/* After "<": the name and its ">". */
static bool name_read(struct translation *t, size_t *ret_at, size_t *ret_n)
{
	*ret_at = t->i;
	if (is_digit(peek(t, 0)))
		return false;
	while (name_char(peek(t, 0)))
		t->i++;
	*ret_n = t->i - *ret_at;
	return *ret_n && accept(t, ">");
}

/* Counts the groups and collects their names before anything is written: references may come first. */
static bool scan_groups(struct translation *t)
{
	bool in_class = false;

	for (t->i = 0; t->i < t->n; t->i++) {
		uint32_t c = t->s[t->i];
		struct group_name *g = &t->names[t->names_n];

		if (c == '\\')
			t->i++;
		else if (c == '[')
			in_class = true;
		else if (c == ']')
			in_class = false;
		if (c != '(' || in_class)
			continue;
		if (peek(t, 1) != '?') {
			t->groups++;
		} else if (peek(t, 2) == '<' && peek(t, 3) != '=' && peek(t, 3) != '!') {
			t->i += 3;
			if (t->names_n == NAMES_MAX || !name_read(t, &g->at, &g->n))
				return fail(t, "Invalid capture group name");
			t->i--;
			g->number = ++t->groups;
			t->names_n++;
		}
	}
	t->i = 0;
	return true;
}

/* \k<name>: of groups with the same name at most one took part, the others match nothing. */
static bool named_reference(struct translation *t)
{
	size_t at, n;
	bool found = false;

	if (!accept(t, "<") || !name_read(t, &at, &n))
		return fail(t, "Invalid named reference");
	for (size_t k = 0; k < t->names_n; k++) {
		const struct group_name *g = &t->names[k];

		if (g->n != n || memcmp(t->s + g->at, t->s + at, n * sizeof(*t->s)))
			continue;
		if (!emit(t, "%s\\g{%zu}", found ? "" : "(?:", g->number))
			return false;
		found = true;
	}
	return found ? emit(t, ")") : fail(t, "Invalid named capture referenced");
}

/* --- escapes ---------------------------------------------------------------------------------------------------------- */

static const struct {
	const char *name, *category;
} categories[] = {
	{ "Letter", "L" }, { "Cased_Letter", "L&" }, { "LC", "L&" }, { "Uppercase_Letter", "Lu" },
	{ "Lowercase_Letter", "Ll" }, { "Titlecase_Letter", "Lt" }, { "Modifier_Letter", "Lm" }, { "Other_Letter", "Lo" },
	{ "Mark", "M" }, { "Combining_Mark", "M" }, { "Nonspacing_Mark", "Mn" }, { "Spacing_Mark", "Mc" },
	{ "Enclosing_Mark", "Me" }, { "Number", "N" }, { "Decimal_Number", "Nd" }, { "digit", "Nd" },
	{ "Letter_Number", "Nl" }, { "Other_Number", "No" }, { "Punctuation", "P" }, { "punct", "P" },
	{ "Connector_Punctuation", "Pc" }, { "Dash_Punctuation", "Pd" }, { "Open_Punctuation", "Ps" },
	{ "Close_Punctuation", "Pe" }, { "Initial_Punctuation", "Pi" }, { "Final_Punctuation", "Pf" },
	{ "Other_Punctuation", "Po" }, { "Symbol", "S" }, { "Math_Symbol", "Sm" }, { "Currency_Symbol", "Sc" },
	{ "Modifier_Symbol", "Sk" }, { "Other_Symbol", "So" }, { "Separator", "Z" }, { "Space_Separator", "Zs" },
	{ "Line_Separator", "Zl" }, { "Paragraph_Separator", "Zp" }, { "Other", "C" }, { "Control", "Cc" },
	{ "cntrl", "Cc" }, { "Format", "Cf" }, { "Surrogate", "Cs" }, { "Private_Use", "Co" }, { "Unassigned", "Cn" },
};

static bool property_word(struct translation *t, char out[48])
{
	size_t n = 0;

	for (; n < 47 && (name_char(peek(t, 0)) && peek(t, 0) < 0x80 && peek(t, 0) != '$'); t->i++)
		out[n++] = (char)peek(t, 0);
	out[n] = '\0';
	return n;
}

/* After \p or \P: {Name} or {Key=Value}. */
static bool property(struct translation *t, bool negated)
{
	char word[48], value[48];
	const char *prefix = "", *name = word;

	if (!accept(t, "{") || !property_word(t, word))
		return fail(t, "Invalid property name");
	if (accept(t, "=")) {
		if (!property_word(t, value))
			return fail(t, "Invalid property name");
		name = value;
		if (!strcmp(word, "Script") || !strcmp(word, "sc"))
			prefix = "sc:";
		else if (!strcmp(word, "Script_Extensions") || !strcmp(word, "scx"))
			prefix = "scx:";
		else if (strcmp(word, "General_Category") && strcmp(word, "gc"))
			return fail(t, "Invalid property name");
	}
	if (!accept(t, "}"))
		return fail(t, "Invalid property name");
	for (size_t k = 0; !*prefix && k < ARRAY_SIZE(categories); k++)
		if (!strcmp(name, categories[k].name))
			name = categories[k].category;
	if (!strcmp(name, "Assigned"))
		negated = !negated, name = "Cn";
	return emit(t, "\\%c{%s%s}", negated ? 'P' : 'p', prefix, name);
}

/* After \u. */
static bool unicode_escape(struct translation *t, uint32_t *ret)
{
	uint32_t low;

	if (t->unicode && accept(t, "{")) {
		uint32_t v = 0;
		size_t digits = 0;

		for (; hex_value(peek(t, 0)) >= 0; t->i++, digits++) {
			v = v << 4 | (uint32_t)hex_value(peek(t, 0));
			if (v > 0x10ffff)
				return fail(t, "Invalid Unicode escape");
		}
		*ret = v;
		return (digits && accept(t, "}")) || fail(t, "Invalid Unicode escape");
	}
	if (!hex(t, 4, ret)) {
		*ret = 'u';
		return !t->unicode || fail(t, "Invalid Unicode escape");
	}
	if (t->unicode && *ret >= 0xd800 && *ret <= 0xdbff && peek(t, 0) == '\\' && peek(t, 1) == 'u') {
		size_t back = t->i;

		t->i += 2;
		if (hex(t, 4, &low) && low >= 0xdc00 && low <= 0xdfff)
			*ret = 0x10000 + ((*ret - 0xd800) << 10) + (low - 0xdc00);
		else
			t->i = back;
	}
	return true;
}

static bool octal_escape(struct translation *t, uint32_t *ret)
{
	uint32_t v = 0;

	for (int k = 0; k < 3 && peek(t, 0) >= '0' && peek(t, 0) <= '7' && v * 8 + (peek(t, 0) - '0') <= 0377; k++)
		v = v * 8 + (t->s[t->i++] - '0');
	*ret = v;
	return true;
}

static bool control_escape(struct translation *t, bool in_class, uint32_t *ret)
{
	uint32_t c = peek(t, 0);
	bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');

	if (letter || (in_class && !t->unicode && (is_digit(c) || c == '_'))) {
		t->i++;
		*ret = c & 31;
		return true;
	}
	if (t->unicode)
		return fail(t, "Invalid Unicode escape");
	t->i--; /* the backslash stands for itself, the c comes next */
	*ret = '\\';
	return true;
}

/* After the backslash: an escape that is one character. */
static bool char_escape(struct translation *t, bool in_class, uint32_t *ret)
{
	uint32_t c = t->s[t->i++];

	switch (c) {
	case 'f':
		return *ret = 12, true;
	case 'n':
		return *ret = 10, true;
	case 'r':
		return *ret = 13, true;
	case 't':
		return *ret = 9, true;
	case 'v':
		return *ret = 11, true;
	case 'c':
		return control_escape(t, in_class, ret);
	case 'u':
		return unicode_escape(t, ret);
	case 'x':
		if (hex(t, 2, ret))
			return true;
		*ret = c;
		return !t->unicode || fail(t, "Invalid escape");
	default:
		break;
	}
	if (is_digit(c)) {
		if (c == '0' && !is_digit(peek(t, 0)))
			return *ret = 0, true;
		if (t->unicode)
			return fail(t, in_class ? "Invalid class escape" : "Invalid escape");
		if (c >= '8')
			return *ret = c, true;
		t->i--;
		return octal_escape(t, ret);
	}
	*ret = c;
	if (t->unicode && !(c < 0x80 && strchr("^$\\.*+?()[]{}|/", (int)c)) && !(in_class && c == '-'))
		return fail(t, "Invalid escape");
	return true;
}

static bool is_set_letter(uint32_t c)
{
	return c == 'd' || c == 'D' || c == 'w' || c == 'W' || c == 's' || c == 'S';
}

static bool back_reference(struct translation *t, bool *ret_done)
{
	size_t back = t->i;
	uint32_t v;

	*ret_done = false;
	if (peek(t, 0) == '0' || !decimal(t, &v))
		return true;
	if (v <= t->groups) {
		*ret_done = true;
		return emit(t, "\\g{%u}", v);
	}
	t->i = back;
	return !t->unicode || fail(t, "Invalid escape");
}

static bool emit_word_boundary(struct translation *t, bool negated)
{
	static const char w[] = "[0-9A-Za-z_]";

	if (negated)
		return emit(t, "(?-i:(?:(?<=%s)(?=%s)|(?<!%s)(?!%s)))", w, w, w, w);
	return emit(t, "(?-i:(?:(?<=%s)(?!%s)|(?<!%s)(?=%s)))", w, w, w, w);
}

/* After the backslash, outside a class. *ret_quantifiable: not after \b. */
static bool atom_escape(struct translation *t, bool *ret_quantifiable)
{
	uint32_t c = peek(t, 0);
	bool done;

	if (at_end(t))
		return fail(t, "\\ at end of pattern");
	if (c == 'b' || c == 'B') {
		t->i++;
		*ret_quantifiable = false;
		return emit_word_boundary(t, c == 'B');
	}
	if (is_set_letter(c)) {
		t->i++;
		return emit(t, t->unicode ? "[" : "(?-i:[") && emit_set(t, (char)c) && emit(t, t->unicode ? "]" : "])");
	}
	if ((c == 'p' || c == 'P') && t->unicode) {
		t->i++;
		return property(t, c == 'P');
	}
	if (c == 'k' && (t->unicode || t->names_n)) {
		t->i++;
		return named_reference(t);
	}
	if (!back_reference(t, &done) || done)
		return done;
	return char_escape(t, false, &c) && emit_char(t, c);
}

/* --- classes ------------------------------------------------------------------------------------------------------------ */

/* One member. A set is written at once and *ret_set true; a character is left in *ret. */
static bool class_atom(struct translation *t, uint32_t *ret, bool *ret_set)
{
	uint32_t c;

	*ret_set = false;
	if (at_end(t))
		return fail(t, "Unterminated character class");
	c = t->s[t->i++];
	if (c != '\\') {
		if (t->flags & FS_REGEX_V && (c == '[' || (c < 0x80 && c == peek(t, 0) && strchr("&-!#$%*+,.:;<=>?@^`~", (int)c))))
			return fail(t, "set operations are not supported here");
		*ret = c;
		return true;
	}
	if (at_end(t))
		return fail(t, "\\ at end of pattern");
	c = peek(t, 0);
	if (is_set_letter(c)) {
		t->i++;
		*ret_set = true;
		return emit_set(t, (char)c);
	}
	if ((c == 'p' || c == 'P') && t->unicode) {
		t->i++;
		*ret_set = true;
		return property(t, c == 'P');
	}
	if (c == 'b') {
		t->i++;
		*ret = 8;
		return true;
	}
	if (t->flags & FS_REGEX_V && c < 0x80 && c != 'q' && strchr("&-!#%,:;<=>@`~", (int)c)) {
		t->i++;
		*ret = c;
		return true;
	}
	return char_escape(t, true, ret);
}

static bool class_member(struct translation *t)
{
	uint32_t from, to;
	bool from_set, to_set;

	if (!class_atom(t, &from, &from_set))
		return false;
	if (peek(t, 0) != '-' || peek(t, 1) == ']' || peek(t, 1) == UINT32_MAX)
		return from_set || emit_range(t, from, from);
	t->i++;
	if (!class_atom(t, &to, &to_set))
		return false;
	if (from_set || to_set) {
		if (t->unicode)
			return fail(t, "Invalid character class");
		return (from_set || emit_range(t, from, from)) && emit_range(t, '-', '-') && (to_set || emit_range(t, to, to));
	}
	return from <= to ? emit_range(t, from, to) : fail(t, "Range out of order in character class");
}

/* After "[". */
static bool class(struct translation *t)
{
	bool negated = accept(t, "^"), empty;
	size_t start;

	if (!emit(t, negated ? "[^" : "["))
		return false;
	start = t->out_n;
	while (!at_end(t) && peek(t, 0) != ']')
		if (!class_member(t))
			return false;
	if (!accept(t, "]"))
		return fail(t, "Unterminated character class");
	/* Nothing in it, or only lone surrogates in Unicode mode. */
	empty = t->out_n == start;
	if (!empty)
		return emit(t, "]");
	t->out_n = start - (negated ? 2 : 1);
	return emit(t, negated ? "(?s:.)" : "(?!)");
}

/* --- terms -------------------------------------------------------------------------------------------------------------- */

static bool disjunction(struct translation *t);

/* Flags of "(?ims-ims:"; up to and with the colon. */
static bool modifiers(struct translation *t)
{
	static const struct {
		char letter;
		unsigned bit;
	} known[] = { { 'i', FS_REGEX_I }, { 'm', FS_REGEX_M }, { 's', FS_REGEX_S } };
	unsigned on = 0, off = 0;
	bool minus = false;

	for (; peek(t, 0) != ':'; t->i++) {
		unsigned bit = 0;

		for (size_t k = 0; k < ARRAY_SIZE(known); k++)
			bit |= peek(t, 0) == (uint8_t)known[k].letter ? known[k].bit : 0;
		if (peek(t, 0) == '-' && !minus) {
			minus = true;
			continue;
		}
		if (!bit)
			return fail(t, "Invalid group");
		if ((on | off) & bit)
			return fail(t, "Repeated flag in flag group");
		*(minus ? &off : &on) |= bit;
	}
	t->i++;
	if (!(on | off))
		return minus ? fail(t, "Invalid flag group") : emit(t, "(?:");
	t->flags = (t->flags | on) & ~off;
	if (on & FS_REGEX_I)
		return emit(t, "(?i:");
	return emit(t, off & FS_REGEX_I ? "(?-i:" : "(?:");
}

/* After "(". */
static bool group(struct translation *t, bool *ret_quantifiable)
{
	unsigned flags = t->flags;
	size_t at, n;
	bool ok;

	if (accept(t, "?=") || accept(t, "?!")) {
		*ret_quantifiable = !t->unicode;
		ok = emit(t, t->s[t->i - 1] == '=' ? "(?=" : "(?!");
	} else if (accept(t, "?<=") || accept(t, "?<!")) {
		*ret_quantifiable = false;
		ok = emit(t, t->s[t->i - 1] == '=' ? "(?<=" : "(?<!");
	} else if (accept(t, "?<")) {
		ok = (name_read(t, &at, &n) || fail(t, "Invalid capture group name")) && emit(t, "(");
	} else if (accept(t, "?")) {
		ok = modifiers(t);
	} else {
		ok = emit(t, "(");
	}
	ok = ok && disjunction(t);
	t->flags = flags;
	return ok && (accept(t, ")") ? emit(t, ")") : fail(t, "Unterminated group"));
}

/* *, +, ?, {n}, {n,}, {n,m} and a "?" after it. *ret_any says if there was one. */
static bool quantifier_read(struct translation *t, char text[40], bool *ret_any)
{
	size_t back = t->i;
	uint32_t from = 0, to = 0;

	*ret_any = true;
	if (accept(t, "*") || accept(t, "+") || accept(t, "?")) {
		snprintf(text, 40, "%c", (char)t->s[t->i - 1]);
	} else if (accept(t, "{")) {
		bool open = false;
		bool ok = decimal(t, &from);

		to = from;
		if (ok && accept(t, ","))
			open = !decimal(t, &to);
		if (!ok || !accept(t, "}")) {
			t->i = back;
			*ret_any = false;
			return true;
		}
		if (!open && from > to)
			return fail(t, "numbers out of order in {} quantifier");
		if (open || to > QUANTIFIER_MAX)
			snprintf(text, 40, "{%u,}", MIN_OF(from, (uint32_t)QUANTIFIER_MAX));
		else
			snprintf(text, 40, "{%u,%u}", from, to);
	} else {
		*ret_any = false;
		return true;
	}
	if (accept(t, "?"))
		strcat(text, "?");
	return true;
}

static bool quantifier(struct translation *t, bool quantifiable)
{
	char text[40];
	bool any;

	if (!quantifier_read(t, text, &any))
		return false;
	if (!any)
		return true;
	return quantifiable ? emit(t, "%s", text) : fail(t, "Nothing to repeat");
}

/* An atom or assertion that starts with c, which was taken. */
static bool term_body(struct translation *t, uint32_t c, bool *ret_quantifiable)
{
	switch (c) {
	case '^':
		*ret_quantifiable = false;
		return emit(t, "%s", t->flags & FS_REGEX_M ? "(?:\\A|(?<=[" LINE_ENDS "]))" : "\\A");
	case '$':
		*ret_quantifiable = false;
		return emit(t, "%s", t->flags & FS_REGEX_M ? "(?:\\z|(?=[" LINE_ENDS "]))" : "\\z");
	case '.':
		return emit(t, "%s", t->flags & FS_REGEX_S ? "(?s:.)" : "[^" LINE_ENDS "]");
	case '(':
		return group(t, ret_quantifiable);
	case '[':
		return class(t);
	case '\\':
		return atom_escape(t, ret_quantifiable);
	case '*':
	case '+':
	case '?':
		return fail(t, "Nothing to repeat");
	case '{':
	case '}':
	case ']':
		return t->unicode ? fail(t, c == '{' ? "Nothing to repeat" : "Lone quantifier brackets") : emit_char(t, c);
	default:
		return emit_char(t, c);
	}
}

static bool term(struct translation *t)
{
	bool quantifiable = true, any;
	char text[40];

	/* Annex B: a brace that is no quantifier is a brace. */
	if (peek(t, 0) == '{' && !t->unicode) {
		if (!quantifier_read(t, text, &any))
			return false;
		if (any)
			return fail(t, "Nothing to repeat");
	}
	if (!term_body(t, t->s[t->i++], &quantifiable))
		return false;
	if (t->unicode && peek(t, 0) == '{') {
		if (!quantifier_read(t, text, &any) || !any)
			return fail(t, "Incomplete quantifier");
		return quantifiable ? emit(t, "%s", text) : fail(t, "Nothing to repeat");
	}
	return quantifier(t, quantifiable);
}

/* Alternatives, up to ")" or the end. */
static bool disjunction(struct translation *t)
{
	bool ok = true;

	if (++t->depth > FS_REGEX_DEPTH_MAX)
		return fail(t, "Regular expression too large");
	while (ok && !at_end(t) && peek(t, 0) != ')')
		ok = accept(t, "|") ? emit(t, "|") : term(t);
	t->depth--;
	return ok;
}

char *fs_regex_translate(const uint32_t *source, size_t n, unsigned flags, const char **ret_reason)
{
	struct translation t = {
		.s = source, .n = n, .flags = flags, .unicode = flags & (FS_REGEX_U | FS_REGEX_V),
	};

	if (emit(&t, "%s", "") && scan_groups(&t) && disjunction(&t) && !at_end(&t))
		fail(&t, "Unmatched ')'");
	if (!t.reason)
		return t.out;
	free(t.out);
	*ret_reason = t.reason;
	return NULL;
}
