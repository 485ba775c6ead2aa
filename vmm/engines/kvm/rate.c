/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/engines/kvm/rate.h"

#include "base/cleanup.h"
#include "vmm/engines/kvm/limits.h"

#define TOKEN 1000000 /* a token in units of a level: what comes in in a microsecond is a whole number of them */

static int64_t full(const struct rate_bucket *b)
{
	return (int64_t)(b->per_s * (VMM_RATE_BURST_MS * (TOKEN / 1000)));
}

static void bucket_init(struct rate_bucket *b, uint64_t per_s, uint64_t now_us)
{
	b->per_s = MIN_OF(per_s, (uint64_t)VMM_RATE_MAX);
	b->level = full(b);
	b->last_us = now_us;
}

void rate_init(struct rate *r, uint64_t ops_per_s, uint64_t bytes_per_s, uint64_t now_us)
{
	bucket_init(&r->ops, ops_per_s, now_us);
	bucket_init(&r->bytes, bytes_per_s, now_us);
}

/* Milliseconds until the bucket is out of debt. */
static uint32_t bucket_wait(struct rate_bucket *b, uint64_t now_us)
{
	uint64_t passed = now_us > b->last_us ? now_us - b->last_us : 0, debt;

	if (!b->per_s)
		return 0;
	/* After a long rest it is full, whatever the product would be. */
	passed = MIN_OF(passed, (uint64_t)3600 * 1000000);
	b->last_us = now_us;
	b->level = MIN_OF(b->level + (int64_t)(passed * b->per_s), full(b));
	if (b->level >= 0)
		return 0;
	debt = (uint64_t)-b->level / b->per_s; /* microseconds */
	return (uint32_t)MIN_OF(debt / 1000 + 1, (uint64_t)60000);
}

uint32_t rate_wait_ms(struct rate *r, uint64_t now_us)
{
	uint32_t ops = bucket_wait(&r->ops, now_us), bytes = bucket_wait(&r->bytes, now_us);

	return MAX_OF(ops, bytes);
}

void rate_charge(struct rate *r, uint64_t ops, uint64_t bytes)
{
	if (r->ops.per_s)
		r->ops.level -= (int64_t)(ops * TOKEN);
	if (r->bytes.per_s)
		r->bytes.level -= (int64_t)(bytes * TOKEN);
}
