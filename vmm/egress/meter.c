/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/egress/meter.h"

#include "base/cleanup.h"
#include "vmm/egress/limits.h"

static uint64_t smaller(uint64_t a, uint64_t b)
{
	return !a ? b : !b ? a : MIN_OF(a, b);
}

static uint64_t burst(const struct meter *m)
{
	return MAX_OF(m->limits.bytes_per_s / 8, (uint64_t)EGRESS_METER_BURST_MIN);
}

void meter_set(struct meter *m, const struct policy_limits *a, const struct policy_limits *b)
{
	m->limits = (struct policy_limits){ .bytes_per_s = smaller(a->bytes_per_s, b->bytes_per_s),
					    .total_bytes = smaller(a->total_bytes, b->total_bytes),
					    .conns_per_s = smaller(a->conns_per_s, b->conns_per_s) };
	m->tokens = MIN_OF(m->tokens, burst(m));
}

static void refill(struct meter *m, uint64_t now)
{
	uint64_t passed = now - m->last_ms, gained;

	if (!m->started) {
		m->started = true;
		m->tokens = burst(m);
		m->last_ms = now;
		return;
	}
	/* Longer than it takes to fill is as good as that; nothing overflows then. */
	passed = MIN_OF(passed, (uint64_t)EGRESS_METER_FILL_MS);
	gained = m->limits.bytes_per_s * passed / 1000;
	if (!gained)
		return;
	m->tokens = MIN_OF(m->tokens + gained, burst(m));
	m->last_ms = now;
}

bool meter_over(const struct meter *m)
{
	return m->limits.total_bytes && m->total >= m->limits.total_bytes;
}

size_t meter_allow(struct meter *m, uint64_t now, size_t want)
{
	if (meter_over(m))
		return 0;
	if (m->limits.total_bytes)
		want = (size_t)MIN_OF((uint64_t)want, m->limits.total_bytes - m->total);
	if (!m->limits.bytes_per_s)
		return want;
	refill(m, now);
	return (size_t)MIN_OF((uint64_t)want, m->tokens);
}

void meter_take(struct meter *m, size_t n)
{
	m->total += n;
	m->tokens -= MIN_OF((uint64_t)n, m->tokens);
}

uint64_t meter_next_ms(const struct meter *m, uint64_t now)
{
	uint64_t want = MIN_OF(burst(m), (uint64_t)EGRESS_METER_PIECE);
	uint64_t need = m->tokens < want ? (want - m->tokens) * 1000 / MAX_OF(m->limits.bytes_per_s, (uint64_t)1) + 1 : 1;

	return now + MIN_OF(MAX_OF(need, (uint64_t)EGRESS_METER_TICK_MS), (uint64_t)1000);
}
