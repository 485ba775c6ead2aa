/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a client sends to a reader that stands still, in an unnamed file instead of in memory: first in, first out.
 */
#ifndef NB_GUEST_RPC_SPILL_H
#define NB_GUEST_RPC_SPILL_H

#include "base/buf.h"

struct spill {
	int fd;             /* -1: none yet */
	uint64_t from, to;  /* what is in the file and not taken */
};

#define SPILL_INIT { .fd = -1 }

static inline uint64_t spill_len(const struct spill *s)
{
	return s->to - s->from;
}

/* Appends; the file is made when it is needed. On failure nothing was appended. */
enum rc spill_put(struct spill *s, const void *data, size_t n);
/* Moves at most `n` bytes to the tail of `to`. When the last one was taken the file goes. */
enum rc spill_take(struct spill *s, struct buf *to, size_t n);
void spill_free(struct spill *s); /* as new again */

#endif
