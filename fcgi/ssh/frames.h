/* SPDX-License-Identifier: Apache-2.0 */
/* What a guest says on a connection to its exec service (schema/agent.h): believed by nobody. */
#ifndef NB_SSH_FRAMES_H
#define NB_SSH_FRAMES_H

#include "base/buf.h"

#include <stdbool.h>

enum { FRAME_STDIN, FRAME_STDOUT, FRAME_STDERR, FRAME_EXIT, FRAME_SIGNAL, FRAME_RESIZE };
#define FRAME_HEAD 5

struct frame {
	uint8_t kind;
	const uint8_t *data; /* in the buffer, until it changes */
	size_t n;
};

struct frame_exit {
	int code;        /* 0..255 */
	char signal[16]; /* without SIG; "" if it exited by itself */
};

/* The frame at the head of b. RC_AGAIN: not all of it is there yet; RC_GUEST: never will be one. */
enum rc frame_get(const struct buf *b, struct frame *ret, struct fault *ret_f);
void frame_done(struct buf *b, const struct frame *f);
enum rc frame_put(struct buf *b, uint8_t kind, const void *data, size_t n);
/* The bytes of a FRAME_EXIT. */
enum rc frame_exit_parse(const struct frame *f, struct frame_exit *ret, struct fault *ret_f);
/* An agent's answer line: RC_OK, or RC_GUEST with its reason. */
enum rc frame_answer_parse(const char *line, struct fault *ret_f);

#endif
