/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The server side of a WebSocket (RFC 6455) after the handshake, without extensions. Bytes in, messages out; no
 * descriptor is touched here.
 */
#ifndef NB_GUEST_WS_H
#define NB_GUEST_WS_H

#include "base/buf.h"
#include "base/fault.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WS_HEAD_MAX 14    /* RFC 6455 5.2: 2 bytes, 8 of length, 4 of mask */
#define WS_CONTROL_MAX 125 /* RFC 6455 5.5 */

enum ws_opcode { WS_CONT = 0, WS_TEXT = 1, WS_BINARY = 2, WS_CLOSE = 8, WS_PING = 9, WS_PONG = 10 };

enum ws_status {
	WS_NORMAL = 1000,
	WS_GOING_AWAY = 1001,
	WS_PROTOCOL = 1002,
	WS_UNSUPPORTED = 1003,
	WS_NOT_UTF8 = 1007,
	WS_POLICY = 1008,
	WS_TOO_BIG = 1009,
	WS_INTERNAL = 1011,
	WS_INVALID_JSON = 4000,
	WS_INVALID_RPC = 4001,
};

struct ws_in {
	size_t max;             /* bytes of one message */
	unsigned int max_frames;
	struct buf message;
	uint8_t head[WS_HEAD_MAX];
	size_t n_head;
	uint8_t control[WS_CONTROL_MAX];
	size_t n_control;
	uint8_t mask[4];
	uint64_t left, at;      /* payload bytes of this frame to come, and seen */
	unsigned int frames;    /* of the message that is being put together */
	bool in_payload, fin, delivered;
	enum ws_opcode opcode;  /* of this frame */
	enum ws_opcode kind;    /* of the message; WS_CONT: none is open */
	int failed;             /* status code to close with; after it nothing is taken */
};

/* A text message, or a control frame. Data are valid until the next ws_feed(); one NUL follows a text's bytes. */
struct ws_message {
	enum ws_opcode opcode;
	char *data;
	size_t n;
};

void ws_in_init(struct ws_in *ws, size_t max, unsigned int max_frames);
void ws_in_free(struct ws_in *ws);

/*
 * Takes bytes until a message is complete or the bytes are used up. RC_OK: *ret is a message; RC_AGAIN: all was taken,
 * more is needed; else the connection must be closed with status ws->failed. *ret_used is how many bytes were taken.
 */
enum rc ws_feed(struct ws_in *ws, const uint8_t *data, size_t n, size_t *ret_used, struct ws_message *ret,
		struct fault *ret_f);

/* The head of an unmasked, final frame of n bytes; returns its length, at most 10. */
size_t ws_head(uint8_t out[10], enum ws_opcode opcode, uint64_t n);

/* The status in a close frame: 1005 if there is none, WS_PROTOCOL if it is not one that may be sent. */
int ws_close_status(const struct ws_message *m);

/* RFC 3629: no overlong forms, no surrogates, nothing past U+10FFFF. */
bool utf8_valid(const uint8_t *s, size_t n);

#endif
