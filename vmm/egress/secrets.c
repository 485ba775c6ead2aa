/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory: each value has a handful of spellings under which a server could send it back: raw, percent-encoded, inside a JSON
 * string, and in base64 at each of the three alignments (of which only the digits that no neighbour changes are
 * looked for). A response is searched for all of them; a place that could be the start of one is held until it is
 * decided, and no longer, so that a stream of events is not kept waiting.
 */
#include "vmm/egress/secrets.h"

#include "base/cleanup.h"

#include <ctype.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#define NONCE 12
#define TAG 16
#define FORMS 6
#define BASIC "basic "

struct form {
	char *text;
	size_t n;
	uint16_t *again; /* [i]: so many bytes from i on are those that it begins with */
};
_Static_assert(POLICY_SECRET_VALUE_MAX * 3 <= UINT16_MAX, "a spelling's length");

/* Where a form was last found to begin, and how far that held: bytes that are known need not be compared again. */
struct window {
	size_t start, end;
};

struct secret {
	char name[POLICY_SECRET_NAME_MAX], placeholder[POLICY_PLACEHOLDER_MAX];
	size_t placeholder_n;
	char *value;
	size_t n;
	struct policy_pattern *hosts;
	size_t n_hosts;
	char *methods, *paths, *headers, *query; /* see policy.h */
	struct form forms[FORMS];
	size_t n_forms;
};

struct secrets {
	unsigned int refs;
	size_t n, longest;
	bool first[256]; /* bytes that a form starts with */
	size_t common; /* bytes that all placeholders begin with */
	struct secret at[];
};

static char *private_alloc(size_t n)
{
	char *p = OPENSSL_secure_malloc(n);

	return p ? p : OPENSSL_malloc(n);
}

static void private_free(char *p, size_t n)
{
	if (p && CRYPTO_secure_allocated(p)) {
		OPENSSL_secure_clear_free(p, n);
	} else if (p) {
		OPENSSL_clear_free(p, n);
	}
}

static bool unseal(const struct policy_secret *in, const char *id, const uint8_t key[EGRESS_KEY_BYTES], struct secret *s)
{
	char aad[POLICY_SECRET_NAME_MAX + 64];
	int aad_n = snprintf(aad, sizeof(aad), "%s %s", id, in->name), n = 0, last = 0;
	size_t cipher_n = in->n_sealed - NONCE - TAG;
	EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
	bool ok;

	s->value = cipher_n <= POLICY_SECRET_VALUE_MAX ? private_alloc(cipher_n + 1) : NULL;
	s->n = cipher_n;
	ok = ctx && s->value && EVP_DecryptInit_ex(ctx, EVP_aes_256_gcm(), NULL, key, in->sealed) &&
	     EVP_DecryptUpdate(ctx, NULL, &n, (const unsigned char *)aad, aad_n) &&
	     EVP_DecryptUpdate(ctx, (unsigned char *)s->value, &n, in->sealed + NONCE, (int)cipher_n) &&
	     EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_GCM_SET_TAG, TAG, in->sealed + NONCE + cipher_n) &&
	     EVP_DecryptFinal_ex(ctx, (unsigned char *)s->value + n, &last) > 0;
	EVP_CIPHER_CTX_free(ctx);
	if (!ok)
		return false;
	s->value[cipher_n] = '\0';
	/* A value with a line's end would be a header of its own. */
	for (size_t i = 0; i < cipher_n; i++)
		if (((unsigned char)s->value[i] < 0x20 && s->value[i] != '\t') || s->value[i] == 0x7f)
			return false;
	return cipher_n > 0;
}

static uint16_t *again_make(const char *text, size_t n)
{
	uint16_t *z = calloc(n, sizeof(*z));

	for (size_t i = 1, start = 0, end = 0; z && i < n; i++) {
		size_t k = i < end ? MIN_OF((size_t)z[i - start], end - i) : 0;

		while (i + k < n && text[k] == text[i + k])
			k++;
		z[i] = (uint16_t)k;
		if (i + k > end) {
			start = i;
			end = i + k;
		}
	}
	return z;
}

static void form_add(struct secret *s, const char *text, size_t n)
{
	uint16_t *again;
	char *copy;

	for (size_t i = 0; i < s->n_forms; i++)
		if (s->forms[i].n == n && !memcmp(s->forms[i].text, text, n))
			return;
	copy = n >= SECRET_REDACT_MIN && s->n_forms < FORMS ? private_alloc(n) : NULL;
	again = copy ? again_make(text, n) : NULL;
	if (!again) {
		private_free(copy, n);
		return;
	}
	memcpy(copy, text, n);
	s->forms[s->n_forms++] = (struct form){ copy, n, again };
}

static size_t percent(const char *in, size_t n, char *out)
{
	size_t k = 0;

	for (size_t i = 0; i < n; i++) {
		unsigned char c = (unsigned char)in[i];

		if (isalnum(c) || strchr("-._~", c))
			out[k++] = (char)c;
		else
			k += (size_t)sprintf(out + k, "%%%02X", c);
	}
	return k;
}

static size_t json(const char *in, size_t n, char *out)
{
	size_t k = 0;

	for (size_t i = 0; i < n; i++) {
		if (in[i] == '"' || in[i] == '\\')
			out[k++] = '\\';
		out[k++] = in[i];
	}
	return k;
}

/* The digits of base64(x + value + y), |x| = shift, that do not depend on x and y. */
static void form_base64(struct secret *s, size_t shift, char *mem, char *out)
{
	size_t digits, skip = shift ? shift + 1 : 0;

	memset(mem, 0, shift);
	memcpy(mem + shift, s->value, s->n);
	EVP_EncodeBlock((unsigned char *)out, (const unsigned char *)mem, (int)(shift + s->n));
	digits = (shift + s->n) * 8 / 6;
	if (digits > skip)
		form_add(s, out + skip, digits - skip);
}

static bool forms_make(struct secret *s)
{
	size_t room = s->n * 3 + 16;
	char *mem = private_alloc(room), *out = private_alloc(room);

	if (mem && out && s->n >= SECRET_REDACT_MIN) {
		form_add(s, s->value, s->n);
		form_add(s, out, percent(s->value, s->n, out));
		form_add(s, out, json(s->value, s->n, out));
		for (size_t shift = 0; shift < 3; shift++)
			form_base64(s, shift, mem, out);
	}
	private_free(mem, room);
	private_free(out, room);
	return mem && out;
}

static void secret_clear(struct secret *s)
{
	private_free(s->value, s->n + 1);
	for (size_t i = 0; i < s->n_forms; i++) {
		private_free(s->forms[i].text, s->forms[i].n);
		free(s->forms[i].again);
	}
	free(s->hosts);
	free(s->methods);
	free(s->paths);
	free(s->headers);
	free(s->query);
}

/* Absent stays absent: NULL means "no restriction", so a copy that fails must not look like it. */
static bool copy_list(char **to, const char *from)
{
	*to = from ? strdup(from) : NULL;
	return !from || *to;
}

static bool secret_open(const struct policy_secret *in, const char *id, const uint8_t key[EGRESS_KEY_BYTES], struct secret *s)
{
	memset(s, 0, sizeof(*s));
	memcpy(s->name, in->name, sizeof(s->name));
	memcpy(s->placeholder, in->placeholder, sizeof(s->placeholder));
	s->hosts = calloc(in->n_hosts, sizeof(*s->hosts));
	if (s->hosts && copy_list(&s->methods, in->methods) && copy_list(&s->paths, in->paths) &&
	    copy_list(&s->headers, in->headers) && copy_list(&s->query, in->query) && unseal(in, id, key, s) && forms_make(s)) {
		memcpy(s->hosts, in->hosts, in->n_hosts * sizeof(*s->hosts));
		s->n_hosts = in->n_hosts;
		return true;
	}
	secret_clear(s);
	return false;
}

enum rc secrets_open(const struct policy *p, const char *id, const uint8_t key[EGRESS_KEY_BYTES], struct secrets **ret,
		     size_t *ret_bad, struct fault *ret_f)
{
	size_t n;
	const struct policy_secret *list = policy_secrets(p, &n);
	struct secrets *s = n ? calloc(1, sizeof(*s) + n * sizeof(s->at[0])) : NULL;

	*ret_bad = 0;
	*ret = NULL;
	if (!n)
		return RC_OK;
	if (!s)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	s->refs = 1;
	for (size_t i = 0; i < n; i++) {
		struct secret *one = &s->at[s->n];

		if (!secret_open(&list[i], id, key, one)) {
			++*ret_bad;
			continue;
		}
		s->n++;
		one->placeholder_n = strlen(one->placeholder);
		if (s->n == 1)
			s->common = one->placeholder_n;
		while (strncmp(one->placeholder, s->at[0].placeholder, s->common) != 0)
			s->common--;
		for (size_t k = 0; k < one->n_forms; k++) {
			s->longest = MAX_OF(s->longest, one->forms[k].n);
			s->first[(unsigned char)one->forms[k].text[0]] = true;
		}
	}
	*ret = s;
	return RC_OK;
}

struct secrets *secrets_ref(struct secrets *s)
{
	if (s)
		s->refs++;
	return s;
}

void secrets_unref(struct secrets *s)
{
	if (!s || --s->refs)
		return;
	for (size_t i = 0; i < s->n; i++)
		secret_clear(&s->at[i]);
	free(s);
}

static bool bound_to(const struct secret *s, const char *host, uint16_t port)
{
	for (size_t i = 0; i < s->n_hosts; i++)
		if (policy_pattern_matches(&s->hosts[i], host, port))
			return true;
	return false;
}

static bool path_in(const char *list, const char *path)
{
	char word[POLICY_WORD_MAX + 1];

	for (; path && *list; list += *list == ',') {
		size_t k = strcspn(list, ",");

		memcpy(word, list, k);
		word[k] = '\0';
		if (policy_path_has(word, path))
			return true;
		list += k;
	}
	return false;
}

/* One text in which placeholders are looked for. */
struct where {
	const struct secret_place *at;
	const char *name; /* of the header or query parameter */
	size_t name_n;
	bool query, usual;
	struct secret_report *report;
};

static bool may_go(const struct secret *s, const struct where *w)
{
	const char *method = w->at->method;

	if (!bound_to(s, w->at->host, w->at->port)) {
		w->report->strange = s->name;
		return false;
	}
	if ((s->methods && !(method && policy_list_has(s->methods, method, strlen(method), false))) ||
	    (s->paths && !path_in(s->paths, w->at->path)) ||
	    (w->query ? !s->query || !policy_list_has(s->query, w->name, w->name_n, false) :
	     s->headers ? !policy_list_has(s->headers, w->name, w->name_n, true) : !w->usual)) {
		w->report->outside = s->name;
		return false;
	}
	w->report->used = s->name;
	return true;
}

static struct secret *placeholder_at(struct secrets *s, const char *p, size_t n, size_t *ret_n)
{
	if (!s->n || n < s->common || memcmp(p, s->at[0].placeholder, s->common))
		return NULL;
	for (size_t j = 0; j < s->n; j++) {
		size_t k = s->at[j].placeholder_n;

		if (k <= n && !memcmp(p, s->at[j].placeholder, k)) {
			*ret_n = k;
			return &s->at[j];
		}
	}
	return NULL;
}

/* Plain replacement, left to right; what was put in is not looked at again. */
static enum rc replace(struct secrets *s, const struct where *w, const char *value, size_t n, struct buf *out)
{
	size_t start = 0, k = 0;

	for (size_t i = 0; i < n;) {
		struct secret *hit = placeholder_at(s, value + i, n - i, &k);

		if (!hit) {
			i++;
			continue;
		}
		if (may_go(hit, w)) {
			enum rc rc = buf_put(out, value + start, i - start);

			if (!rc && !w->query)
				rc = buf_put(out, hit->value, hit->n);
			if (!rc && w->query) {
				char *text = private_alloc(hit->n * 3 + 1);

				rc = text ? buf_put(out, text, percent(hit->value, hit->n, text)) : RC_NOMEM;
				private_free(text, hit->n * 3 + 1);
			}
			if (rc)
				return RC_LIMIT;
			start = i + k;
		}
		i += k;
	}
	return buf_put(out, value + start, n - start);
}

static void buf_wipe(struct buf *b)
{
	if (b->mem)
		OPENSSL_cleanse(b->mem, b->cap);
	buf_free(b);
}

/* "Basic <base64 of user:password>", either of which may be a placeholder. */
static enum rc replace_basic(struct secrets *s, const struct where *w, const char *value, size_t n, struct buf *out)
{
	size_t skip = strlen(BASIC), in_n = n - skip, pad = 0, room;
	struct buf plain = BUF_INIT(POLICY_SECRET_VALUE_MAX * 3);
	_cleanup_free_ unsigned char *raw = malloc(in_n + 3);
	const char *used = w->report->used;
	unsigned char *text = NULL;
	enum rc rc = RC_INVALID;
	int k = -1;

	w->report->used = NULL;
	while (pad < 2 && pad < in_n && value[n - 1 - pad] == '=')
		pad++;
	if (raw && in_n && in_n % 4 == 0)
		k = EVP_DecodeBlock(raw, (const unsigned char *)value + skip, (int)in_n);
	if (k > (int)pad)
		rc = replace(s, w, (const char *)raw, (size_t)k - pad, &plain);
	if (!rc && w->report->used) {
		room = buf_len(&plain) * 2 + 8;
		text = (unsigned char *)private_alloc(room);
		rc = text ? buf_put(out, value, skip) : RC_NOMEM;
		if (!rc)
			rc = buf_put(out, text, (size_t)EVP_EncodeBlock(text, buf_data(&plain), (int)buf_len(&plain)));
		private_free((char *)text, room);
	} else if (!rc) {
		rc = RC_INVALID;
	}
	if (!w->report->used)
		w->report->used = used;
	buf_wipe(&plain);
	return rc;
}

enum rc secrets_put_header(struct secrets *s, const struct secret_place *at, const char *name, size_t name_n, bool usual,
			   const char *value, size_t n, struct buf *out, struct secret_report *report)
{
	struct where w = { .at = at, .name = name, .name_n = name_n, .usual = usual, .report = report };

	if (!s)
		return buf_put(out, value, n);
	if (n > strlen(BASIC) && !strncasecmp(value, BASIC, strlen(BASIC)) && !replace_basic(s, &w, value, n, out))
		return RC_OK;
	return replace(s, &w, value, n, out);
}

enum rc secrets_put_target(struct secrets *s, const struct secret_place *at, const char *target, size_t n, struct buf *out,
			   struct secret_report *report)
{
	const char *query = memchr(target, '?', n), *end = target + n, *p = query ? query + 1 : end;
	/* In the path: nothing goes there, and what is there is reported. */
	struct where w = { .at = at, .name = "", .query = true, .report = report };
	enum rc rc = s ? replace(s, &w, target, (size_t)(p - target), out) : buf_put(out, target, n);

	while (s && !rc && p < end) {
		const char *amp = memchr(p, '&', (size_t)(end - p)), *stop = amp ? amp + 1 : end;
		const char *eq = memchr(p, '=', (size_t)(stop - p)), *value = eq ? eq + 1 : p;

		w.name = p;
		w.name_n = eq ? (size_t)(eq - p) : 0;
		rc = buf_put(out, p, (size_t)(value - p));
		if (!rc)
			rc = replace(s, &w, value, (size_t)(stop - value), out);
		p = stop;
	}
	return rc;
}

const char *secrets_watch(struct secrets *s, struct secret_watch *w, const uint8_t *data, size_t n)
{
	const char *found = NULL;
	uint8_t joint[2 * POLICY_PLACEHOLDER_MAX];
	size_t k, keep = 0, head = MIN_OF(n, sizeof(w->tail));

	if (!s || !n)
		return NULL;
	/* What began in the last bytes of before. */
	memcpy(joint, w->tail, w->n);
	memcpy(joint + w->n, data, head);
	for (size_t i = 0; i < w->n && !found; i++) {
		struct secret *hit = placeholder_at(s, (const char *)joint + i, w->n + head - i, &k);

		found = hit ? hit->name : NULL;
	}
	for (size_t i = 0; i < n && !found; i++) {
		struct secret *hit = placeholder_at(s, (const char *)data + i, n - i, &k);

		found = hit ? hit->name : NULL;
	}
	if (n >= sizeof(w->tail) - 1) {
		w->n = sizeof(w->tail) - 1;
		memcpy(w->tail, data + n - w->n, w->n);
		return found;
	}
	keep = MIN_OF(w->n, sizeof(w->tail) - 1 - n);
	memmove(w->tail, w->tail + w->n - keep, keep);
	memcpy(w->tail + keep, data, n);
	w->n = keep + n;
	return found;
}

/* --- responses ----------------------------------------------------------------------------------------------- */

void redactor_start(struct redactor *r, struct secrets *set)
{
	redactor_end(r);
	r->set = secrets_ref(set);
	r->held.max = SIZE_MAX;
}

void redactor_end(struct redactor *r)
{
	buf_wipe(&r->held);
	secrets_unref(r->set);
	r->set = NULL;
	r->found = false;
}

/*
 * How many bytes from p[i] on are those that f begins with; i only grows. Every byte is compared about once, whatever the value and
 * the bytes are: one whose value is "AAA..AB" and who sends "AAA.." would else hold up the proxy of all.
 */
static size_t common(const struct form *f, struct window *w, const uint8_t *p, size_t n, size_t i)
{
	size_t k = 0;

	if (i < w->end) {
		k = f->again[i - w->start];
		if (k < w->end - i)
			return k;
		k = w->end - i;
	}
	while (k < f->n && i + k < n && p[i + k] == (uint8_t)f->text[k])
		k++;
	*w = (struct window){ i, i + k };
	return k;
}

/* A value that starts at p[i]: the secret, and how long its spelling is. *ret_maybe: the bytes end inside one. */
static const struct secret *match(const struct secrets *set, struct window w[][FORMS], const uint8_t *p, size_t n, size_t i,
				  size_t *ret_n, bool *ret_maybe)
{
	const struct secret *best = NULL;

	*ret_maybe = false;
	if (!set->first[p[i]])
		return NULL;
	for (size_t j = 0; j < set->n; j++)
		for (size_t k = 0; k < set->at[j].n_forms; k++) {
			const struct form *f = &set->at[j].forms[k];
			size_t same = (uint8_t)*f->text == p[i] ? common(f, &w[j][k], p, n, i) : 0;

			if (same == f->n && (!best || f->n > *ret_n))
				best = &set->at[j], *ret_n = f->n;
			else if (same && same < f->n && i + same == n)
				*ret_maybe = true;
		}
	return best;
}

static enum rc redact(struct redactor *r, const uint8_t *p, size_t n, bool last, struct buf *out, size_t *ret_done)
{
	struct window w[POLICY_SECRETS_MAX][FORMS] = { { { 0, 0 } } };
	size_t start = 0, i = 0;

	while (i < n) {
		size_t k = 0;
		bool maybe;
		const struct secret *hit = match(r->set, w, p, n, i, &k, &maybe);

		/* A longer spelling may still come; the shorter one is taken only when it cannot. */
		if (maybe && !last)
			break;
		if (!hit) {
			i++;
			continue;
		}
		r->found = true;
		if (buf_put(out, p + start, i - start) || buf_puts(out, hit->placeholder))
			return RC_LIMIT;
		i += k;
		start = i;
	}
	*ret_done = i;
	return buf_put(out, p + start, i - start);
}

enum rc redactor_run(struct redactor *r, const void *data, size_t n, bool last, struct buf *out)
{
	size_t done = 0;
	enum rc rc;

	if (!r->set || !r->set->longest)
		return buf_put(out, data, n);
	if (!buf_len(&r->held)) {
		rc = redact(r, data, n, last, out, &done);
		return rc ? rc : buf_put(&r->held, (const uint8_t *)data + done, n - done);
	}
	rc = buf_put(&r->held, data, n);
	if (!rc)
		rc = redact(r, buf_data(&r->held), buf_len(&r->held), last, out, &done);
	if (!rc)
		buf_consume(&r->held, done);
	return rc;
}
