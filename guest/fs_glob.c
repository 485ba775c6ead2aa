/* SPDX-License-Identifier: Apache-2.0 */
/* Paths as strings, and how globs become regular expressions. Nothing here looks at the file system. */
#include "guest/fs_glob.h"

#include <errno.h>
#include <string.h>

struct fs_str fs_str_of(const char *s, size_t n)
{
	struct fs_str out = { malloc(n + 1), n };

	if (out.s) {
		memcpy(out.s, s, n);
		out.s[n] = '\0';
	}
	return out;
}

void fs_str_free(struct fs_str *s)
{
	free(s->s);
	*s = (struct fs_str){ 0 };
}

/* --- paths -------------------------------------------------------------------------------------------------------------- */

/* Drops the last segment of out, or adds ".." if there is none to drop and going above the start is allowed. */
static size_t segment_up(char *out, size_t root, size_t n, bool above)
{
	size_t last = n;

	while (last > root && out[last - 1] != '/')
		last--;
	if (n > root && !(n - last == 2 && out[last] == '.' && out[last + 1] == '.'))
		return last > root ? last - 1 : root;
	if (!above)
		return n;
	if (n > root)
		out[n++] = '/';
	out[n] = out[n + 1] = '.';
	return n + 2;
}

/* Segments without "." and "" and with ".." resolved; no "/" at the end. out has room for n + 2. */
static size_t normalize_into(char *out, size_t root, const char *s, size_t n, bool above)
{
	size_t o = root;

	for (size_t i = 0; i < n;) {
		const char *end = memchr(s + i, '/', n - i);
		size_t len = end ? (size_t)(end - (s + i)) : n - i;

		if (len == 2 && s[i] == '.' && s[i + 1] == '.') {
			o = segment_up(out, root, o, above);
		} else if (len && !(len == 1 && s[i] == '.')) {
			if (o > root)
				out[o++] = '/';
			memcpy(out + o, s + i, len);
			o += len;
		}
		i += len + 1;
	}
	return o;
}

struct fs_str fs_normalize(const char *s, size_t n)
{
	bool absolute = n && s[0] == '/', slash = n && s[n - 1] == '/';
	struct fs_str out = { malloc(n + 4), 0 };

	if (!out.s)
		return out;
	if (absolute)
		out.s[0] = '/';
	out.n = normalize_into(out.s, absolute, s, n, !absolute);
	if (!out.n)
		out.s[out.n++] = '.';
	if (slash && out.n > absolute)
		out.s[out.n++] = '/';
	out.s[out.n] = '\0';
	return out;
}

static struct fs_str concat(const char *a, size_t a_n, const char *b, size_t b_n)
{
	bool slash = a_n && b_n;
	struct fs_str out = { malloc(a_n + b_n + 2), a_n + b_n + slash };

	if (!out.s)
		return out;
	memcpy(out.s, a, a_n);
	if (slash)
		out.s[a_n] = '/';
	memcpy(out.s + a_n + slash, b, b_n);
	out.s[out.n] = '\0';
	return out;
}

struct fs_str fs_join(const char *a, size_t a_n, const char *b, size_t b_n)
{
	struct fs_str both = concat(a, a_n, b, b_n), out = both;

	if (both.s) {
		out = fs_normalize(both.s, both.n);
		fs_str_free(&both);
	}
	return out;
}

struct fs_str fs_basename(const char *s, size_t n)
{
	size_t start, end = n;

	while (end > 1 && s[end - 1] == '/')
		end--;
	start = end;
	while (start && s[start - 1] != '/')
		start--;
	/* Only slashes: one of them. */
	if (end == 1 && s[0] == '/')
		start = 0;
	return fs_str_of(s + start, end - start);
}

struct fs_str fs_resolve(const char *cwd, const char *path, size_t n)
{
	bool absolute = n && path[0] == '/';
	struct fs_str out = concat(cwd, absolute ? 0 : strlen(cwd), path, n), all = out;

	if (!all.s)
		return all;
	out = (struct fs_str){ malloc(all.n + 4), 0 };
	if (out.s) {
		out.s[0] = '/';
		out.n = normalize_into(out.s, 1, all.s, all.n, false);
		out.s[out.n] = '\0';
	}
	fs_str_free(&all);
	return out;
}

/* The dots of a ".." that follows a "**" segment, which normalizing must not resolve: marked by NULs. */
static void mark_parents(struct fs_str *p)
{
	for (size_t i = 0; i + 1 < p->n; i++) {
		size_t k = i;

		if (p->s[i] != '.' || p->s[i + 1] != '.' || (i + 2 < p->n && p->s[i + 2] != '/'))
			continue;
		while (k && p->s[k - 1] == '/')
			k--;
		if (k == i || k < 2 || p->s[k - 1] != '*' || p->s[k - 2] != '*' || (k > 2 && p->s[k - 3] != '/'))
			continue;
		p->s[i] = p->s[i + 1] = '\0';
	}
}

enum rc fs_join_globs(const struct fs_str *a, const char *b, size_t b_n, bool globstar, struct fs_str *ret,
		      struct fs_error *e)
{
	struct fs_str both, out;

	if (!globstar) {
		*ret = fs_join(a->s, a->n, b, b_n);
		return ret->s ? RC_OK : fs_fail(e, ENOMEM, NULL, NULL);
	}
	both = concat(a->s, a->n, b, b_n);
	if (!both.s)
		return fs_fail(e, ENOMEM, NULL, NULL);
	if (memchr(both.s, '\0', both.n)) {
		fs_error_set(e, 0, "Error", "", "Glob contains invalid characters: \"%s\"", both.s);
		fs_str_free(&both);
		return RC_SYS;
	}
	mark_parents(&both);
	out = fs_normalize(both.s, both.n);
	fs_str_free(&both);
	if (!out.s)
		return fs_fail(e, ENOMEM, NULL, NULL);
	for (size_t i = 0; i < out.n; i++)
		if (!out.s[i])
			out.s[i] = '.';
	*ret = out;
	return RC_OK;
}

/* --- is it a glob --------------------------------------------------------------------------------------------------------- */

/* From s[i]: at least one character of none of `stops`, then `end`, which is one of them. The place after it, or 0. */
static size_t run_then(const char *s, size_t n, size_t i, const char *stops, char end)
{
	size_t from = i;

	while (i < n && (!s[i] || !strchr(stops, s[i])))
		i++;
	return i > from && i < n && s[i] == end ? i + 1 : 0;
}

static bool glob_starts(const char *s, size_t n, size_t i, bool first)
{
	size_t bar;

	switch (s[i]) {
	case '!':
		return first;
	case '*':
	case '?':
		return true;
	case '[':
		return run_then(s, n, i + 1, "[\\]", ']');
	case '{':
		return run_then(s, n, i + 1, "\\}", '}');
	case '(':
		bar = run_then(s, n, i + 1, "(|", '|');
		return bar && run_then(s, n, bar, "\\)", ')');
	case '@':
		return i + 1 < n && s[i + 1] == '(' && run_then(s, n, i + 2, ")", ')');
	default:
		return false;
	}
}

/* After an escaped bracket everything up to the closing one is skipped. */
static size_t skip_escaped(const char *s, size_t n, size_t i)
{
	static const char open[] = "{([", close[] = "})]";
	const char *which = s[i] ? strchr(open, s[i]) : NULL, *end;

	for (i++; i < n && ((uint8_t)s[i] & 0xc0) == 0x80;)
		i++;
	if (!which)
		return i;
	end = memchr(s + i, close[which - open], n - i);
	return end ? (size_t)(end - s) + 1 : i;
}

bool fs_is_glob(const char *s, size_t n)
{
	size_t start = 0; /* "!" counts at the start, and after everything that was skipped */

	for (size_t i = 0; i < n;) {
		bool line_end = i + 1 < n && (s[i + 1] == '\n' || s[i + 1] == '\r');

		if (s[i] == '\\' && i + 1 < n && !line_end) {
			start = i = skip_escaped(s, n, i + 1);
			continue;
		}
		if (glob_starts(s, n, i, i == start))
			return true;
		i++;
	}
	return false;
}

struct fs_str fs_glob_unescape(const char *s, size_t n)
{
	struct fs_str out = { malloc(n + 1), 0 };

	for (size_t i = 0; out.s && i < n; i++) {
		if (s[i] == '\\' && i + 1 < n && s[i + 1] && strchr("*?{}[]()|+@!", s[i + 1]))
			i++;
		out.s[out.n++] = s[i];
	}
	if (out.s)
		out.s[out.n] = '\0';
	return out;
}

/* --- glob to regular expression ------------------------------------------------------------------------------------------- */

#define WILDCARD "[^/]*"
#define GLOBSTAR "(?:[^/]*(?:/|$)+)*"

struct glob {
	const char *s;
	size_t n, i;
	const struct fs_glob_options *o;
	char stack[FS_REGEX_DEPTH_MAX]; /* what the open groups are: "{" or the character before "(" */
	size_t depth;
	bool in_range, in_escape, too_deep;
	bool ends_with_sep;
	struct buf out;
};

static void put(struct glob *g, const char *s)
{
	/* What does not fit shows in the length, which is checked at the end. */
	if (buf_puts(&g->out, s) != RC_OK)
		g->too_deep = true;
}

static void put_char(struct glob *g, char c)
{
	if (buf_put(&g->out, &c, 1) != RC_OK)
		g->too_deep = true;
}

static char at(const struct glob *g, size_t i)
{
	return i < g->n ? g->s[i] : '\0';
}

static bool is_one_of(const char *set, char c)
{
	return c && strchr(set, c);
}

#define SPECIAL "!$()*+.=?[\\^{|"

static void put_literal(struct glob *g, char c, const char *special)
{
	if (is_one_of(special, c))
		put_char(g, '\\');
	put_char(g, c);
}

/* "[:name:]" inside a range, g->i at its "[". False if it is none. */
static bool put_named_class(struct glob *g)
{
	static const struct {
		const char *name, *set;
	} classes[] = {
		{ "alnum", "\\dA-Za-z" }, { "alpha", "A-Za-z" }, { "ascii", "\\x00-\x7f" }, { "blank", "\t " },
		{ "cntrl", "\\x00-\x1f\x7f" }, { "digit", "\\d" }, { "graph", "\x21-\x7e" }, { "lower", "a-z" },
		{ "print", "\x20-\x7e" }, { "punct", "!\"#$%&'()*+,\\-./:;<=>?@[\\\\\\]^_\xe2\x80\x98{|}~" },
		{ "space", "\\s\v" }, { "upper", "A-Z" }, { "word", "\\w" }, { "xdigit", "\\dA-Fa-f" },
	};
	size_t from = g->i + 2, to = from;

	while (to < g->n && g->s[to] != ':')
		to++;
	if (at(g, to) != ':' || at(g, to + 1) != ']')
		return false;
	for (size_t k = 0; k < ARRAY_SIZE(classes); k++)
		if (strlen(classes[k].name) == to - from && !memcmp(classes[k].name, g->s + from, to - from))
			put(g, classes[k].set);
	g->i = to + 1;
	return true;
}

static void group_open(struct glob *g, char kind, const char *text)
{
	if (g->depth == sizeof(g->stack)) {
		g->too_deep = true;
		return;
	}
	g->stack[g->depth++] = kind;
	put(g, text);
}

static void group_close(struct glob *g)
{
	char kind = g->stack[--g->depth];

	put(g, ")");
	if (kind == '!')
		put(g, WILDCARD);
	else if (kind != '@' && kind != '{')
		put_char(g, kind);
}

static void put_stars(struct glob *g)
{
	char before = g->i ? g->s[g->i - 1] : '/', after;
	size_t stars = 1;

	for (; at(g, g->i + 1) == '*'; g->i++)
		stars++;
	after = g->i + 1 < g->n ? g->s[g->i + 1] : '/';
	if (g->o->globstar && stars == 2 && before == '/' && after == '/') {
		put(g, GLOBSTAR);
		g->ends_with_sep = true;
	} else {
		put(g, WILDCARD);
	}
}

/* Inside "[...]". False if c has no meaning there. */
static bool range_char(struct glob *g, char c)
{
	if (c == '[' && at(g, g->i + 1) == ':' && put_named_class(g))
		return true;
	if (c == ']')
		g->in_range = false;
	put_char(g, c);
	return true;
}

static void range_open(struct glob *g)
{
	g->in_range = true;
	put(g, "[");
	if (at(g, g->i + 1) == '!')
		g->i++, put(g, "^");
	else if (at(g, g->i + 1) == '^')
		g->i++, put(g, "\\^");
}

/* Groups: their opening, closing and separators. */
static bool group_char(struct glob *g, char c)
{
	char top = g->depth ? g->stack[g->depth - 1] : '\0';

	if ((c == ')' && top && top != '{') || (c == '}' && top == '{')) {
		group_close(g);
	} else if ((c == '|' && top && top != '{') || (c == ',' && top == '{')) {
		put(g, "|");
	} else if (c == '{') {
		group_open(g, c, "(?:");
	} else if (is_one_of("+@?!*", c) && g->o->extended && at(g, g->i + 1) == '(') {
		g->i++;
		group_open(g, c, c == '!' ? "(?!" : "(?:");
	} else {
		return false;
	}
	return true;
}

static void glob_char(struct glob *g, char c)
{
	if (g->in_escape) {
		g->in_escape = false;
		put_literal(g, c, g->in_range ? "-\\]" : SPECIAL);
	} else if (c == '\\') {
		g->in_escape = true;
	} else if (g->in_range) {
		range_char(g, c);
	} else if (c == '[') {
		range_open(g);
	} else if (group_char(g, c)) {
		return;
	} else if (c == '?') {
		put(g, ".");
	} else if (c == '*') {
		put_stars(g);
	} else {
		put_literal(g, c, SPECIAL);
	}
}

/* One segment, and the separator after it. */
static void glob_segment(struct glob *g)
{
	size_t from = g->i, out = buf_len(&g->out);

	g->depth = 0;
	g->in_range = g->in_escape = g->ends_with_sep = false;
	for (; g->i < g->n && !(g->s[g->i] == '/' && !g->depth) && !g->too_deep; g->i++)
		glob_char(g, g->s[g->i]);
	if (g->depth || g->in_range || g->in_escape) {
		/* Something was not closed: the segment means itself. */
		g->out.tail = g->out.head + out;
		g->ends_with_sep = false;
		for (size_t k = from; k < g->i; k++)
			put_literal(g, g->s[k], SPECIAL);
	}
	if (!g->ends_with_sep)
		put(g, g->i < g->n ? "/+" : "/*");
	while (at(g, g->i) == '/')
		g->i++;
}

enum rc fs_glob_source(const char *glob, size_t n, const struct fs_glob_options *o, struct fs_str *ret,
		       struct fs_error *e)
{
	struct glob g = { .s = glob, .n = n, .o = o, .out = BUF_INIT(8 * FS_PATTERN_MAX) };

	if (n > FS_PATTERN_MAX)
		return fs_fail_plain(e, "SyntaxError", "the glob is too long");
	while (g.n > 1 && glob[g.n - 1] == '/')
		g.n--;
	put(&g, n ? "^" : "(?!)");
	while (g.i < g.n && !g.too_deep)
		glob_segment(&g);
	put(&g, n ? "$" : "");
	if (g.too_deep) {
		buf_free(&g.out);
		return fs_fail_plain(e, "SyntaxError", "the glob is nested too deeply or too long");
	}
	*ret = fs_str_of((char *)buf_data(&g.out), buf_len(&g.out));
	buf_free(&g.out);
	return ret->s ? RC_OK : fs_fail(e, ENOMEM, NULL, NULL);
}

enum rc fs_glob_regex(const char *glob, size_t n, const struct fs_glob_options *o, struct fs_regex **ret,
		      struct fs_error *e)
{
	const struct fs_text flags = { o->case_insensitive ? "i" : "", o->case_insensitive };
	_cleanup_(fs_str_free) struct fs_str source = { 0 };
	enum rc rc = fs_glob_source(glob, n, o, &source, e);

	if (rc != RC_OK)
		return rc;
	return fs_regex_new(&(struct fs_text){ source.s, source.n }, &flags, ret, e);
}
