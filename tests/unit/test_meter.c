/* SPDX-License-Identifier: Apache-2.0 */
#include "base/cleanup.h"
#include "tests/lib/check.h"
#include "vmm/egress/limits.h"
#include "vmm/egress/meter.h"

static const struct policy_limits none;

TEST(without_limits_everything_passes)
{
	struct meter m = { 0 };

	meter_set(&m, &none, &none);
	CHECK_EQ(meter_allow(&m, 1000, 1 << 30), 1 << 30);
	meter_take(&m, 1 << 30);
	CHECK_EQ(meter_allow(&m, 1000, 1 << 30), 1 << 30);
	CHECK(!meter_over(&m));
}

TEST(the_smaller_limit_counts)
{
	struct meter m = { 0 };

	meter_set(&m, &(struct policy_limits){ 100, 0, 7 }, &(struct policy_limits){ 200, 300, 0 });
	CHECK_EQ(m.limits.bytes_per_s, 100);
	CHECK_EQ(m.limits.total_bytes, 300);
	CHECK_EQ(m.limits.conns_per_s, 7);
}

/* A greedy reader, woken as the meter says, over some seconds. */
static uint64_t moved(uint64_t rate, uint64_t from_ms, uint64_t ms)
{
	struct meter m = { 0 };
	uint64_t sum = 0;

	meter_set(&m, &none, &(struct policy_limits){ .bytes_per_s = rate });
	for (uint64_t now = from_ms; now < from_ms + ms;) {
		size_t n = meter_allow(&m, now, EGRESS_BUFFER);

		meter_take(&m, n);
		sum += n;
		if (!n)
			now = meter_next_ms(&m, now);
	}
	return sum;
}

TEST(a_rate_is_kept)
{
	static const uint64_t rates[] = { 1, 999, 10000, 100000, 12345678, 1000000000 };

	for (size_t i = 0; i < ARRAY_SIZE(rates); i++) {
		uint64_t burst = MAX_OF(rates[i] / 8, (uint64_t)EGRESS_METER_BURST_MIN), got = moved(rates[i], 5, 10000);

		CHECK(got <= rates[i] * 10 + burst);
		CHECK(got >= rates[i] * 9 / 10 * 10);
	}
	/* A day of doing nothing earns one burst. */
	{
		struct meter m = { 0 };

		meter_set(&m, &none, &(struct policy_limits){ .bytes_per_s = 1000000 });
		meter_take(&m, meter_allow(&m, 1, SIZE_MAX));
		CHECK_EQ(meter_allow(&m, EGRESS_METER_FILL_MS * 100ull, SIZE_MAX), 125000);
	}
}

TEST(who_waits_is_woken_for_something)
{
	struct meter m = { 0 };
	uint64_t at;

	meter_set(&m, &none, &(struct policy_limits){ .bytes_per_s = 1000000 });
	meter_take(&m, meter_allow(&m, 1, SIZE_MAX));
	CHECK_EQ(meter_allow(&m, 1, 1), 0);
	at = meter_next_ms(&m, 1);
	CHECK(at >= 1 + EGRESS_METER_TICK_MS && at <= 20);
	CHECK(meter_allow(&m, at, SIZE_MAX) >= EGRESS_METER_PIECE);
	/* The slowest still gets its turn once a second. */
	meter_set(&m, &none, &(struct policy_limits){ .bytes_per_s = 1 });
	meter_take(&m, meter_allow(&m, at, SIZE_MAX));
	CHECK(meter_next_ms(&m, at) <= at + 1000);
}

TEST(a_total_is_a_total)
{
	struct meter m = { 0 };

	meter_set(&m, &none, &(struct policy_limits){ .total_bytes = 1000 });
	CHECK_EQ(meter_allow(&m, 1, 4096), 1000);
	meter_take(&m, 999);
	CHECK(!meter_over(&m));
	CHECK_EQ(meter_allow(&m, 1, 4096), 1);
	meter_take(&m, 1);
	CHECK(meter_over(&m));
	CHECK_EQ(meter_allow(&m, 1, 4096), 0);
	/* A new policy does not forget what was used. */
	meter_set(&m, &none, &(struct policy_limits){ .total_bytes = 1500 });
	CHECK_EQ(meter_allow(&m, 1, 4096), 500);
}

CHECK_MAIN()
