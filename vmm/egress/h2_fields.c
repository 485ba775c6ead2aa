/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/egress/h2_fields.h"

#include "vmm/egress/rewrite.h"

#include <openssl/crypto.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

void block_init(struct block *b)
{
	memset(b, 0, sizeof(*b));
	b->text.max = 2 * EGRESS_HEAD_MAX; /* values may be longer than their placeholders */
}

void block_clear(struct block *b)
{
	if (b->text.mem)
		OPENSSL_cleanse(b->text.mem, b->text.cap);
	buf_free(&b->text);
	b->n = 0;
	b->over = false;
}

void block_free(struct block *b)
{
	block_clear(b);
}

bool block_add(struct block *b, const void *name, size_t name_n, const void *value, size_t value_n)
{
	size_t at = buf_len(&b->text);

	if (b->over || b->n == HTTP_HEADERS_MAX || at + name_n + value_n > EGRESS_HEAD_MAX || buf_put(&b->text, name, name_n) ||
	    buf_put(&b->text, value, value_n)) {
		b->over = true;
		return false;
	}
	b->at[b->n++] = (struct field){ .name = at, .name_n = name_n, .value = at + name_n, .value_n = value_n };
	return true;
}

struct http_text block_name(const struct block *b, size_t i)
{
	return (struct http_text){ (const char *)buf_data(&b->text) + b->at[i].name, b->at[i].name_n };
}

struct http_text block_value(const struct block *b, size_t i)
{
	return (struct http_text){ (const char *)buf_data(&b->text) + b->at[i].value, b->at[i].value_n };
}

int block_find(const struct block *b, const char *name, struct http_text *ret)
{
	int found = 0;

	for (size_t i = 0; i < b->n; i++) {
		struct http_text t = block_name(b, i);

		if (!http_is(&t, name))
			continue;
		if (found)
			return -1;
		found = 1;
		*ret = block_value(b, i);
	}
	return found;
}

size_t block_nv(const struct block *b, nghttp2_nv nv[HTTP_HEADERS_MAX])
{
	for (size_t i = 0; i < b->n; i++)
		nv[i] = (nghttp2_nv){ .name = buf_data(&b->text) + b->at[i].name, .namelen = b->at[i].name_n,
				      .value = buf_data(&b->text) + b->at[i].value, .valuelen = b->at[i].value_n,
				      .flags = b->at[i].secret ? NGHTTP2_NV_FLAG_NO_INDEX : NGHTTP2_NV_FLAG_NONE };
	return b->n;
}

/* A field whose value is written to the text by the caller, between begin and end. */
static enum rc field_begin(struct block *b, const char *name, size_t name_n)
{
	if (b->n == HTTP_HEADERS_MAX)
		return RC_LIMIT;
	b->at[b->n] = (struct field){ .name = buf_len(&b->text), .name_n = name_n, .value = buf_len(&b->text) + name_n };
	return buf_put(&b->text, name, name_n);
}

static void field_end(struct block *b)
{
	b->at[b->n].value_n = buf_len(&b->text) - b->at[b->n].value;
	b->n++;
}

static enum rc put_plain(struct block *b, const char *name, const char *value, size_t n)
{
	return block_add(b, name, strlen(name), value, n) ? RC_OK : RC_LIMIT;
}

/* With what a secret's value made of it: that field is not to be kept in a compression table. */
static enum rc put_with_secrets(struct block *out, const struct http_text *name, const struct http_text *value,
				struct secrets *set, const struct secret_place *at, struct secret_report *report)
{
	struct secret_report mine = { 0 };
	enum rc rc = field_begin(out, name->at, name->n);

	if (!rc)
		rc = secrets_put_header(set, at, name->at, name->n, rewrite_may_carry_secrets(name), value->at, value->n,
					&out->text, &mine);
	if (rc)
		return rc;
	out->at[out->n].secret = mine.used;
	field_end(out);
	report->used = mine.used ? mine.used : report->used;
	report->strange = mine.strange ? mine.strange : report->strange;
	report->outside = mine.outside ? mine.outside : report->outside;
	return RC_OK;
}

static enum rc put_redacted(struct block *out, const struct http_text *name, const struct http_text *value, struct secrets *set,
			    bool *found)
{
	struct redactor r = { 0 };
	size_t from = buf_len(&out->text);
	enum rc rc = out->n == HTTP_HEADERS_MAX ? RC_LIMIT : RC_OK;
	struct field f = { .name = from };

	redactor_start(&r, set);
	if (!rc)
		rc = redactor_run(&r, name->at, name->n, true, &out->text);
	f.name_n = buf_len(&out->text) - from;
	f.value = buf_len(&out->text);
	if (!rc)
		rc = redactor_run(&r, value->at, value->n, true, &out->text);
	f.value_n = buf_len(&out->text) - f.value;
	*found |= r.found;
	redactor_end(&r);
	if (!rc)
		out->at[out->n++] = f;
	return rc;
}

static enum rc put_target(struct block *out, const struct judged *j, const struct http_text *target, struct secrets *set,
			  struct secret_report *report)
{
	struct secret_report mine = { 0 };
	enum rc rc = field_begin(out, ":path", 5);

	if (!rc)
		rc = judge_put_target(j, target, set, &out->text, &mine);
	if (rc)
		return rc;
	out->at[out->n].secret = mine.used;
	field_end(out);
	*report = mine;
	return RC_OK;
}

/* "identity", where an answer has to be searched. */
static bool asks_for_coding(const struct http_text *name)
{
	return http_is(name, "accept-encoding") || http_is(name, "grpc-accept-encoding");
}

enum rc fields_request(const struct block *in, const struct judged *j, const struct http_text *target, struct secrets *set,
		       struct block *out, struct secret_report *report)
{
	char authority[POLICY_NAME_MAX + 8];
	int n = snprintf(authority, sizeof(authority), j->place.port == 443 ? "%s" : "%s:%u", j->place.host, j->place.port);
	enum rc rc = put_plain(out, ":method", j->place.method, strlen(j->place.method));

	if (!rc)
		rc = put_plain(out, ":scheme", "https", 5);
	if (!rc)
		rc = put_plain(out, ":authority", authority, (size_t)n);
	if (!rc)
		rc = put_target(out, j, target, set, report);
	if (!rc && set)
		rc = put_plain(out, "accept-encoding", "identity", 8);
	for (size_t i = 0; !rc && i < in->n; i++) {
		struct http_text name = block_name(in, i), value = block_value(in, i);

		if (name.n && *name.at == ':')
			continue;
		/* nghttp2 has refused what belongs to a connection; what is left of ours is said in frames or above. */
		if (rewrite_is_ours_in_requests(&name) && !(http_is(&name, "te") && http_is(&value, "trailers")) &&
		    !http_is(&name, "content-length") && !http_is(&name, "trailer") &&
		    !(!set && http_is(&name, "accept-encoding")))
			continue;
		if (set && asks_for_coding(&name))
			rc = put_plain(out, "grpc-accept-encoding", "identity", 8);
		else
			rc = put_with_secrets(out, &name, &value, set, &j->place, report);
	}
	return rc;
}

enum rc fields_response(const struct block *in, struct secrets *set, bool no_body, struct block *out, bool *ret_found)
{
	enum rc rc = RC_OK;

	for (size_t i = 0; !rc && i < in->n; i++) {
		struct http_text name = block_name(in, i), value = block_value(in, i);
		bool length = http_is(&name, "content-length");

		/* A body with a placeholder put back has another length. */
		if (rewrite_is_ours_in_responses(&name) && !(length && (no_body || !set)) && !http_is(&name, "trailer"))
			continue;
		rc = put_redacted(out, &name, &value, set, ret_found);
	}
	return rc;
}

enum rc fields_trailers(const struct block *in, struct secrets *set, const struct secret_place *at, struct block *out,
			struct secret_report *report, bool *ret_found)
{
	enum rc rc = RC_OK;

	for (size_t i = 0; !rc && i < in->n; i++) {
		struct http_text name = block_name(in, i), value = block_value(in, i);

		/* Framing, routing and authority are no business of a trailer (RFC 9110 6.5.1). */
		if (at ? rewrite_is_ours_in_requests(&name) : rewrite_is_ours_in_responses(&name))
			continue;
		rc = at ? put_with_secrets(out, &name, &value, set, at, report) : put_redacted(out, &name, &value, set, ret_found);
	}
	return rc;
}

const char *fields_unsearchable(const struct block *in)
{
	for (size_t i = 0; i < in->n; i++) {
		struct http_text name = block_name(in, i), value = block_value(in, i);

		if ((http_is(&name, "content-encoding") || http_is(&name, "grpc-encoding")) && rewrite_is_encoded(&value))
			return "the upstream's answer is compressed and cannot be searched";
	}
	return NULL;
}
