/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/egress/ws.h"

#include "base/cleanup.h"

#include <openssl/crypto.h>
#include <string.h>

#define PIECE 16384
#define CONTROL_MAX 125 /* payload of close, ping and pong (RFC 6455 5.5) */
#define OP_CONTINUATION 0
#define OP_CLOSE 8
#define OP_PONG 10

struct head {
	uint8_t opcode, mask[4];
	bool fin;
	uint64_t length;
	size_t n; /* bytes of the head itself; 0: more are needed */
};

void ws_start(struct ws *w, struct secrets *set)
{
	memset(w, 0, sizeof(*w));
	w->set = set;
	redactor_start(&w->redactor, set);
}

void ws_end(struct ws *w)
{
	redactor_end(&w->redactor);
}

static bool is_control(uint8_t opcode)
{
	return opcode & 8;
}

/* One way to write each length (5.2: "the minimal number of bytes MUST be used"). */
static const char *head_length(const uint8_t *p, size_t n, struct head *h, size_t *at)
{
	uint8_t first = p[1] & 0x7f;
	size_t bytes = first == 126 ? 2 : first == 127 ? 8 : 0;

	h->length = first;
	if (!bytes)
		return NULL;
	if (n < 2 + bytes)
		return NULL;
	h->length = 0;
	for (size_t i = 0; i < bytes; i++)
		h->length = h->length << 8 | p[2 + i];
	*at += bytes;
	return h->length < (bytes == 2 ? 126u : 65536u) || h->length >> 62 ? "a frame's length is malformed" : NULL;
}

/* A head, and whether it may come now. */
static const char *head_read(const struct ws_side *s, const uint8_t *p, size_t n, bool masked, struct head *h)
{
	size_t at = 2, want;
	const char *why;

	h->n = 0;
	if (n < 2)
		return NULL;
	h->fin = p[0] & 0x80;
	h->opcode = p[0] & 0x0f;
	if (p[0] & 0x70)
		return "a frame of an extension that was not agreed upon";
	if (!(p[1] & 0x80) == masked)
		return masked ? "a frame of the guest is not masked" : "a frame of the upstream is masked";
	if ((h->opcode > 2 && h->opcode < OP_CLOSE) || h->opcode > OP_PONG)
		return "a frame of unknown kind";
	if (is_control(h->opcode) && (!h->fin || (p[1] & 0x7f) > CONTROL_MAX))
		return "a control frame that is fragmented or too long";
	if (!is_control(h->opcode) && (h->opcode == OP_CONTINUATION) != s->in_message)
		return "fragments of messages are mixed up";
	if (s->closed)
		return "a frame after the close";
	want = 2 + ((p[1] & 0x7f) == 126 ? 2u : (p[1] & 0x7f) == 127 ? 8u : 0u) + (masked ? 4 : 0);
	if (n < want)
		return NULL;
	why = head_length(p, n, h, &at);
	if (why)
		return why;
	if (masked)
		memcpy(h->mask, p + at, 4);
	h->n = want;
	return NULL;
}

static void frame_begin(struct ws_side *s, const struct head *h)
{
	s->in_frame = true;
	s->opcode = h->opcode;
	s->fin = h->fin;
	s->left = h->length;
	s->mask_at = 0;
	memcpy(s->mask, h->mask, 4);
	if (h->opcode == OP_CLOSE)
		s->closed = true;
	if (!is_control(h->opcode)) {
		if (h->opcode != OP_CONTINUATION)
			s->started = false;
		s->in_message = !h->fin;
	}
}

/* --- guest to upstream --------------------------------------------------------------------------------------- */

static enum rc guest_piece(struct ws *w, struct buf *in, struct buf *out)
{
	struct ws_side *s = &w->guest;
	size_t n = (size_t)MIN_OF((uint64_t)MIN_OF(buf_len(in), (size_t)PIECE), s->left);
	const uint8_t *p = buf_data(in);
	uint8_t plain[PIECE];
	const char *hit;
	enum rc rc;

	for (size_t i = 0; i < n; i++)
		plain[i] = p[i] ^ s->mask[(s->mask_at + i) & 3];
	hit = secrets_watch(w->set, &w->watch, plain, n);
	w->placeholder = hit ? hit : w->placeholder;
	rc = buf_put(out, p, n);
	if (rc)
		return rc;
	s->mask_at += n;
	s->left -= n;
	buf_consume(in, n);
	return RC_OK;
}

enum rc ws_from_guest(struct ws *w, struct buf *in, struct buf *out, size_t full, const char **ret_why)
{
	struct ws_side *s = &w->guest;
	enum rc rc = RC_OK;

	*ret_why = NULL;
	while (!rc && buf_len(in) && buf_len(out) < full) {
		struct head h = { 0 };

		if (s->in_frame) {
			rc = guest_piece(w, in, out);
		} else {
			*ret_why = head_read(s, buf_data(in), buf_len(in), true, &h);
			if (*ret_why || !h.n)
				break;
			rc = buf_put(out, buf_data(in), h.n);
			buf_consume(in, h.n);
			frame_begin(s, &h);
			/* Messages are looked through one by one; a control frame stands between fragments of one. */
			if (h.opcode && !is_control(h.opcode))
				w->watch.n = 0;
		}
		if (!s->left)
			s->in_frame = false;
	}
	return rc;
}

/* --- upstream to guest --------------------------------------------------------------------------------------- */

static enum rc put_frame(struct buf *out, uint8_t opcode, bool fin, const void *data, size_t n)
{
	uint8_t head[10] = { (uint8_t)((fin ? 0x80 : 0) | opcode) };
	size_t k = 2;
	enum rc rc;

	if (n < 126) {
		head[1] = (uint8_t)n;
	} else {
		size_t bytes = n < 65536 ? 2 : 8;

		head[1] = bytes == 2 ? 126 : 127;
		for (size_t i = 0; i < bytes; i++)
			head[2 + i] = (uint8_t)((uint64_t)n >> 8 * (bytes - 1 - i));
		k += bytes;
	}
	rc = buf_put(out, head, k);
	return rc ? rc : buf_put(out, data, n);
}

enum rc ws_put_close(struct buf *out, uint16_t code, const char *why)
{
	uint8_t payload[CONTROL_MAX] = { (uint8_t)(code >> 8), (uint8_t)code };
	size_t n = MIN_OF(strlen(why), sizeof(payload) - 2);

	memcpy(payload + 2, why, n);
	return put_frame(out, OP_CLOSE, true, payload, n + 2);
}

static void wipe(struct buf *b)
{
	if (b->mem)
		OPENSSL_cleanse(b->mem, b->cap);
	buf_free(b);
}

/* Whole, because it is short; what the value's placeholder makes too long is refused. */
static enum rc up_control(struct ws *w, struct buf *in, struct buf *out, const char **ret_why)
{
	struct ws_side *s = &w->up;
	struct buf clean = BUF_INIT(CONTROL_MAX);
	struct redactor r = { 0 };
	enum rc rc;

	if (buf_len(in) < s->left)
		return RC_AGAIN;
	redactor_start(&r, w->set);
	rc = redactor_run(&r, buf_data(in), (size_t)s->left, true, &clean);
	w->found |= r.found;
	redactor_end(&r);
	if (rc == RC_LIMIT)
		*ret_why = "a control frame of the upstream holds a secret";
	else if (!rc)
		rc = put_frame(out, s->opcode, true, buf_data(&clean), buf_len(&clean));
	wipe(&clean);
	buf_consume(in, (size_t)s->left);
	s->left = 0;
	return *ret_why ? RC_OK : rc;
}

static enum rc up_piece(struct ws *w, struct buf *in, struct buf *out)
{
	struct ws_side *s = &w->up;
	size_t n = (size_t)MIN_OF((uint64_t)MIN_OF(buf_len(in), (size_t)PIECE), s->left);
	struct buf clean = BUF_INIT(out->max);
	bool last = n == s->left && s->fin;
	/* An opcode only once: the rest of the message continues it. */
	uint8_t opcode = s->started ? OP_CONTINUATION : s->opcode;
	enum rc rc = redactor_run(&w->redactor, buf_data(in), n, last, &clean);

	if (!rc && (buf_len(&clean) || last)) {
		rc = put_frame(out, opcode, last, buf_data(&clean), buf_len(&clean));
		s->started = true;
	} else if (!rc && opcode != OP_CONTINUATION) {
		/* All of it is held back: the message is announced, so that what comes later continues it. */
		rc = put_frame(out, opcode, false, NULL, 0);
		s->started = true;
	}
	wipe(&clean);
	s->left -= n;
	buf_consume(in, n);
	w->found |= w->redactor.found;
	/* The next message begins with nothing held. */
	if (last)
		redactor_start(&w->redactor, w->set);
	return rc;
}

enum rc ws_from_up(struct ws *w, struct buf *in, struct buf *out, size_t full, const char **ret_why)
{
	struct ws_side *s = &w->up;
	enum rc rc = RC_OK;

	*ret_why = NULL;
	while (!rc && !*ret_why && (buf_len(in) || (s->in_frame && !s->left)) && buf_len(out) < full) {
		struct head h = { 0 };

		if (!s->in_frame) {
			*ret_why = head_read(s, buf_data(in), buf_len(in), false, &h);
			if (*ret_why || !h.n)
				break;
			buf_consume(in, h.n);
			frame_begin(s, &h);
			continue;
		}
		rc = is_control(s->opcode) ? up_control(w, in, out, ret_why) : up_piece(w, in, out);
		if (rc == RC_AGAIN)
			return RC_OK;
		if (!s->left)
			s->in_frame = false;
	}
	return rc;
}
