/* SPDX-License-Identifier: Apache-2.0 */
/*
 * WebSocket frames (RFC 6455, no extensions) between a guest and its upstream, after the 101. Bytes to bytes.
 *
 * Frames of the guest go on as they are once they are known to be sound; placeholders in them are reported and not replaced.
 * Messages of the upstream are framed anew with values taken out: what was one message stays one, its fragments may be others.
 */
#ifndef NB_EGRESS_WS_H
#define NB_EGRESS_WS_H

#include "base/buf.h"
#include "vmm/egress/secrets.h"

struct ws_side {
	uint64_t left;     /* bytes of the frame's payload that are to come */
	uint8_t opcode, mask[4];
	size_t mask_at;
	bool in_frame, fin, in_message, started; /* started: a frame of this message went out */
	bool closed;       /* a close frame went through: nothing may follow */
};

struct ws {
	struct secrets *set; /* the owner's */
	struct ws_side guest, up;
	struct redactor redactor;
	struct secret_watch watch;
	const char *placeholder; /* name of a secret whose placeholder the guest sent, or NULL */
	bool found;              /* a value was taken out */
};

void ws_start(struct ws *w, struct secrets *set);
void ws_end(struct ws *w);

/*
 * Moves what it can from in to out, until out has `full` bytes. *ret_why NULL: went well; else a literal that says what is wrong
 * and the connection is over.
 */
enum rc ws_from_guest(struct ws *w, struct buf *in, struct buf *out, size_t full, const char **ret_why);
enum rc ws_from_up(struct ws *w, struct buf *in, struct buf *out, size_t full, const char **ret_why);
/* A close frame for the guest; why is cut to what fits. */
enum rc ws_put_close(struct buf *out, uint16_t code, const char *why);

#endif
