/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A device's rate limits: two token buckets, one of operations, one of bytes. A request passes while neither is in debt and is then
 * charged whole, so that a request larger than a bucket still passes, once, and its debt delays what comes after it. The
 * average is exact and nobody has to know a request's size before it is begun.
 */
#ifndef NB_VMM_RATE_H
#define NB_VMM_RATE_H

#include <stdint.h>

struct rate_bucket {
	uint64_t per_s; /* 0: no limit */
	int64_t level;  /* tokens, in millionths; negative: debt */
	uint64_t last_us;
};

struct rate {
	struct rate_bucket ops, bytes;
};

/* Starts full: a bucket holds what it gets in RATE_BURST_MS. */
void rate_init(struct rate *r, uint64_t ops_per_s, uint64_t bytes_per_s, uint64_t now_us);
/* 0: a request may pass now. Else: ask again after so many milliseconds. */
uint32_t rate_wait_ms(struct rate *r, uint64_t now_us);
void rate_charge(struct rate *r, uint64_t ops, uint64_t bytes);

static inline int rate_limited(const struct rate *r)
{
	return r->ops.per_s || r->bytes.per_s;
}

#endif
