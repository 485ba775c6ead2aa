/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory: a state machine over bytes. Either a frame's head is being collected (n_head bytes of it are there) or its
 * payload is (left bytes to come). Data frames add to `message`, which is bounded before memory is asked for: the
 * announced length counts, not the bytes that arrived. Control frames may stand between fragments and have a buffer of
 * their own. Everything here is hostile: an unmasked frame, a reserved bit, a fragmented control frame, a
 * continuation of nothing, fragments without end are errors with the status of RFC 6455 7.4.
 */
#include "guest/ws.h"

#include <string.h>

void ws_in_init(struct ws_in *ws, size_t max, unsigned int max_frames)
{
	*ws = (struct ws_in){ .max = max, .max_frames = max_frames, .message = BUF_INIT(max + 1) };
}

void ws_in_free(struct ws_in *ws)
{
	buf_free(&ws->message);
}

static enum rc ws_fail(struct ws_in *ws, int status, const char *why, struct fault *ret_f)
{
	ws->failed = status;
	buf_free(&ws->message);
	return fault_set(ret_f, status == WS_TOO_BIG ? RC_LIMIT : RC_PROTO, 0, "%s", why);
}

static bool is_control(enum ws_opcode opcode)
{
	return (opcode & 8) != 0;
}

/* Bytes that the head has, known once its first two are there. */
static size_t head_len(const uint8_t *head)
{
	size_t n = 2 + 4;

	if ((head[1] & 0x7f) == 126)
		n += 2;
	else if ((head[1] & 0x7f) == 127)
		n += 8;
	return n;
}

static enum rc check_control(struct ws_in *ws, struct fault *ret_f)
{
	if (!ws->fin)
		return ws_fail(ws, WS_PROTOCOL, "fragmented control frame", ret_f);
	if (ws->left > WS_CONTROL_MAX)
		return ws_fail(ws, WS_PROTOCOL, "control frame too long", ret_f);
	ws->n_control = 0;
	return RC_OK;
}

static enum rc check_data(struct ws_in *ws, struct fault *ret_f)
{
	if (ws->opcode == WS_BINARY)
		return ws_fail(ws, WS_UNSUPPORTED, "binary frame", ret_f);
	if ((ws->opcode == WS_CONT) != (ws->kind != WS_CONT))
		return ws_fail(ws, WS_PROTOCOL, "fragment out of order", ret_f);
	if (ws->opcode != WS_CONT) {
		ws->kind = ws->opcode;
		ws->frames = 0;
	}
	if (++ws->frames > ws->max_frames)
		return ws_fail(ws, WS_POLICY, "too many fragments", ret_f);
	if (ws->left > ws->max - buf_len(&ws->message))
		return ws_fail(ws, WS_TOO_BIG, "message too big", ret_f);
	return RC_OK;
}

static enum rc parse_head(struct ws_in *ws, struct fault *ret_f)
{
	const uint8_t *h = ws->head;
	size_t at = 2;

	ws->fin = (h[0] & 0x80) != 0;
	ws->opcode = (enum ws_opcode)(h[0] & 0x0f);
	ws->left = h[1] & 0x7f;
	if (ws->left == 126 || ws->left == 127) {
		size_t n = ws->left == 126 ? 2 : 8;

		ws->left = 0;
		while (n--)
			ws->left = ws->left << 8 | h[at++];
	}
	memcpy(ws->mask, h + at, sizeof(ws->mask));
	ws->at = 0;
	ws->in_payload = true;
	switch (ws->opcode) {
	case WS_CONT:
	case WS_TEXT:
	case WS_BINARY:
		return check_data(ws, ret_f);
	case WS_CLOSE:
	case WS_PING:
	case WS_PONG:
		return check_control(ws, ret_f);
	}
	return ws_fail(ws, WS_PROTOCOL, "reserved opcode", ret_f);
}

static enum rc take_head(struct ws_in *ws, const uint8_t *data, size_t n, size_t *used, struct fault *ret_f)
{
	while (*used < n) {
		ws->head[ws->n_head++] = data[(*used)++];
		if (ws->n_head == 1 && (ws->head[0] & 0x70))
			return ws_fail(ws, WS_PROTOCOL, "reserved bit", ret_f);
		if (ws->n_head == 2 && !(ws->head[1] & 0x80))
			return ws_fail(ws, WS_PROTOCOL, "unmasked frame", ret_f);
		if (ws->n_head >= 2 && ws->n_head == head_len(ws->head)) {
			ws->n_head = 0;
			return parse_head(ws, ret_f);
		}
	}
	return RC_AGAIN;
}

/* out = in ^ mask, the mask starting at payload offset `at`. */
static void unmask(uint8_t *out, const uint8_t *in, size_t n, const uint8_t mask[4], uint64_t at)
{
	uint8_t m[8];
	uint64_t wide;
	size_t i = 0;

	for (size_t k = 0; k < 8; k++)
		m[k] = mask[(at + k) & 3];
	memcpy(&wide, m, sizeof(wide));
	for (; i + 8 <= n; i += 8) {
		uint64_t v;

		memcpy(&v, in + i, sizeof(v));
		v ^= wide;
		memcpy(out + i, &v, sizeof(v));
	}
	for (; i < n; i++)
		out[i] = in[i] ^ m[i & 7];
}

static enum rc take_payload(struct ws_in *ws, const uint8_t *data, size_t n, size_t *used, struct fault *ret_f)
{
	size_t take = n - *used;
	uint8_t *to;

	if (take > ws->left)
		take = (size_t)ws->left;
	if (!take)
		return ws->left ? RC_AGAIN : RC_OK;
	if (is_control(ws->opcode)) {
		to = ws->control + ws->n_control;
		ws->n_control += take;
	} else {
		if (buf_reserve(&ws->message, take, &to))
			return ws_fail(ws, WS_TOO_BIG, "out of memory", ret_f);
		buf_commit(&ws->message, take);
	}
	unmask(to, data + *used, take, ws->mask, ws->at);
	*used += take;
	ws->at += take;
	ws->left -= take;
	return ws->left ? RC_AGAIN : RC_OK;
}

static enum rc finish_message(struct ws_in *ws, struct ws_message *ret, struct fault *ret_f)
{
	uint8_t *end;

	if (buf_reserve(&ws->message, 1, &end))
		return ws_fail(ws, WS_TOO_BIG, "out of memory", ret_f);
	*end = 0;
	if (!utf8_valid(buf_data(&ws->message), buf_len(&ws->message)))
		return ws_fail(ws, WS_NOT_UTF8, "text is not UTF-8", ret_f);
	ws->kind = WS_CONT;
	ws->delivered = true;
	*ret = (struct ws_message){ .opcode = WS_TEXT, .data = (char *)buf_data(&ws->message), .n = buf_len(&ws->message) };
	return RC_OK;
}

enum rc ws_feed(struct ws_in *ws, const uint8_t *data, size_t n, size_t *ret_used, struct ws_message *ret,
		struct fault *ret_f)
{
	enum rc rc = RC_OK;

	*ret_used = 0;
	if (ws->delivered) {
		ws->delivered = false;
		buf_consume(&ws->message, buf_len(&ws->message));
	}
	while (!ws->failed) {
		if (!ws->in_payload) {
			rc = take_head(ws, data, n, ret_used, ret_f);
			if (rc)
				return rc;
		}
		rc = take_payload(ws, data, n, ret_used, ret_f);
		if (rc)
			return rc;
		ws->in_payload = false;
		if (is_control(ws->opcode)) {
			*ret = (struct ws_message){ .opcode = ws->opcode, .data = (char *)ws->control,
						    .n = ws->n_control };
			return RC_OK;
		}
		if (ws->fin)
			return finish_message(ws, ret, ret_f);
	}
	return fault_set(ret_f, RC_PROTO, 0, "connection failed before");
}

size_t ws_head(uint8_t out[10], enum ws_opcode opcode, uint64_t n)
{
	size_t bytes = 0, at = 2;

	out[0] = (uint8_t)(0x80 | opcode);
	if (n < 126) {
		out[1] = (uint8_t)n;
	} else if (n < 65536) {
		out[1] = 126;
		bytes = 2;
	} else {
		out[1] = 127;
		bytes = 8;
	}
	while (bytes--)
		out[at++] = (uint8_t)(n >> (8 * bytes));
	return at;
}

int ws_close_status(const struct ws_message *m)
{
	int status;

	if (!m->n)
		return 1005;
	if (m->n == 1)
		return WS_PROTOCOL;
	status = (uint8_t)m->data[0] << 8 | (uint8_t)m->data[1];
	if (!utf8_valid((const uint8_t *)m->data + 2, m->n - 2))
		return WS_PROTOCOL;
	if (status >= 3000 && status < 5000)
		return status;
	if ((status >= 1000 && status <= 1003) || (status >= 1007 && status <= 1014))
		return status;
	return WS_PROTOCOL;
}

static bool utf8_tail(const uint8_t *s, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if ((s[i] & 0xc0) != 0x80)
			return false;
	return true;
}

/* Length of the sequence at s, which does not start with ASCII; 0 if it is none. */
static size_t utf8_sequence(const uint8_t *s, size_t n)
{
	size_t len = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;

	if (s[0] < 0xc2 || s[0] > 0xf4 || len > n || !utf8_tail(s + 1, len - 1))
		return 0;
	if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) || (s[0] == 0xf0 && s[1] < 0x90) ||
	    (s[0] == 0xf4 && s[1] > 0x8f))
		return 0;
	return len;
}

bool utf8_valid(const uint8_t *s, size_t n)
{
	size_t i = 0;

	while (i < n) {
		uint64_t v;
		size_t len;

		if (n - i >= sizeof(v)) {
			memcpy(&v, s + i, sizeof(v));
			if (!(v & 0x8080808080808080u)) {
				i += sizeof(v);
				continue;
			}
		}
		if (s[i] < 0x80) {
			i++;
			continue;
		}
		len = utf8_sequence(s + i, n - i);
		if (!len)
			return false;
		i += len;
	}
	return true;
}
