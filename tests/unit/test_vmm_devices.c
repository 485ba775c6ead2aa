/* SPDX-License-Identifier: Apache-2.0 */
/* Network card, balloon, rate limits, interrupt suppression and dirty tracking against a driver in fake guest memory. */
#include "tests/lib/check.h"
#include "tests/unit/virtio_guest.h"

#include "base/cleanup.h"
#include "base/fd.h"

#include <fcntl.h>

#include <linux/virtio_blk.h>
#include <linux/virtio_net.h>

#define RX 0u
#define TX 1u
#define MERGEABLE (1ull << VIRTIO_NET_F_MRG_RXBUF)
#define VNET_HEADER 12u
#define HEADER_AND_FRAME (VNET_HEADER + VMM_NET_FRAME_MAX)
#define TSO (1ull << VIRTIO_NET_F_GUEST_CSUM | 1ull << VIRTIO_NET_F_GUEST_TSO4)

/* --- rates --------------------------------------------------------------------------------------------------------- */

TEST(a_rate_is_exact_in_the_long_run)
{
	uint64_t now = 1000000, passed = 0, start = now;
	struct rate r;

	rate_init(&r, 100, 0, now);
	srandom(3);
	for (int i = 0; i < 20000; i++) {
		uint32_t wait = rate_wait_ms(&r, now);

		if (!wait) {
			rate_charge(&r, 1, 1 << 20);
			passed++;
		}
		now += wait ? wait * 1000ull : (uint64_t)random() % 3000;
	}
	/* A second's worth at the start, and the one that begins at a level of zero. */
	CHECK(passed <= (now - start) / 10000 + 101);
	CHECK(passed >= (now - start) / 10000 + 90);
}

TEST(what_is_larger_than_the_bucket_passes_once_and_is_paid_for)
{
	uint64_t now = 5;
	struct rate r;

	rate_init(&r, 0, 1000, now);
	CHECK_EQ(rate_wait_ms(&r, now), 0);
	rate_charge(&r, 1, 11000);
	CHECK_EQ(rate_wait_ms(&r, now), 10001);
	CHECK(rate_wait_ms(&r, now + 9990000) > 0);
	CHECK_EQ(rate_wait_ms(&r, now + 10000000), 0);
	/* However long it rests, it is only as full as it was. */
	CHECK_EQ(rate_wait_ms(&r, UINT64_MAX / 2), 0);
	rate_charge(&r, 1, 1500);
	CHECK(rate_wait_ms(&r, UINT64_MAX / 2) > 0);
	/* A clock that stands still or goes back gives nothing. */
	CHECK(rate_wait_ms(&r, 7) > 0);
}

TEST(a_disk_over_its_rate_keeps_its_requests)
{
	struct guest g;

	REQUIRE(guest_new(&g));
	rate_init(&g.blk.rate, 5, 0, now_us());
	*(struct virtio_blk_outhdr *)guest_at(&g, GUEST_DATA) = (struct virtio_blk_outhdr){ .type = VIRTIO_BLK_T_IN };
	guest_desc(&g, 0, 0, GUEST_DATA, 16, VRING_DESC_F_NEXT, 1);
	guest_desc(&g, 0, 1, GUEST_DATA + 0x1000, 513, VRING_DESC_F_WRITE, 0);
	for (int i = 0; i < 12; i++)
		guest_put(&g, 0, 0);
	guest_kick(&g, 0);
	CHECK(guest_used(&g, 0) >= 5 && guest_used(&g, 0) < 12);
	CHECK(g.d.queues[0].wait_ms > 0 && g.d.queues[0].wait_ms <= 1001);
	rate_init(&g.blk.rate, 0, 0, now_us());
	guest_kick(&g, 0);
	CHECK_EQ(guest_used(&g, 0), 12);
	CHECK_EQ(g.d.queues[0].wait_ms, 0);
	guest_free(&g);
}

/* --- interrupts ---------------------------------------------------------------------------------------------------- */

TEST(the_driver_is_interrupted_where_it_asked)
{
	struct guest g;
	uint16_t *event;

	REQUIRE(guest_new(&g));
	g.features = GUEST_EVENT_IDX;
	guest_driver(&g);
	guest_interrupts(&g);
	event = (uint16_t *)guest_at(&g, GUEST_AVAIL(0)) + 2 + GUEST_QUEUE;
	*(struct virtio_blk_outhdr *)guest_at(&g, GUEST_DATA) = (struct virtio_blk_outhdr){ .type = VIRTIO_BLK_T_IN };
	guest_desc(&g, 0, 0, GUEST_DATA, 16, VRING_DESC_F_NEXT, 1);
	guest_desc(&g, 0, 1, GUEST_DATA + 0x1000, 513, VRING_DESC_F_WRITE, 0);
	*event = 100; /* the first goes out all the same: nothing is known of a queue that was just made */
	guest_offer(&g, 0, 0);
	CHECK_EQ(guest_interrupts(&g), 1);
	guest_offer(&g, 0, 0);
	CHECK_EQ(guest_interrupts(&g), 0);
	*event = 2;
	guest_offer(&g, 0, 0);
	CHECK_EQ(guest_interrupts(&g), 1);
	guest_offer(&g, 0, 0);
	CHECK_EQ(guest_interrupts(&g), 0);
	/* Around the end of the index, too. */
	*event = 65535;
	for (int i = 4; i < 65535; i++)
		guest_offer(&g, 0, 0);
	CHECK_EQ(guest_interrupts(&g), 0);
	guest_offer(&g, 0, 0);
	CHECK_EQ(guest_interrupts(&g), 1);
	CHECK_EQ(guest_used(&g, 0), 0);
	guest_offer(&g, 0, 0);
	CHECK_EQ(guest_interrupts(&g), 0);
	/* The status is there until it is acknowledged. */
	CHECK_EQ(guest_get(&g, 0x60), 1);
	guest_set(&g, 0x64, 1);
	CHECK_EQ(guest_get(&g, 0x60), 0);
	guest_free(&g);
}

/* --- batches of a disk --------------------------------------------------------------------------------------------- */

#define LONG_QUEUE 256u
#define LONG_AVAIL 0x102000u
#define LONG_USED 0x104000u

uint64_t __real_now_us(void);
uint64_t __wrap_now_us(void);

static struct {
	struct guest *g; /* NULL: the clock of the host */
	uint64_t now, step; /* what each look at the clock adds */
	uint64_t published; /* a bit for each length of the used ring, in batches' worth, that was seen while requests were served */
	unsigned int between; /* seen lengths that are no whole batch */
	unsigned int batch;
} clock_of_test;

static uint16_t long_used(struct guest *g)
{
	return *(const uint16_t *)guest_at(g, LONG_USED + 2);
}

/* Looked at when the first of a batch was taken, and after each request that did not fill it. */
uint64_t __wrap_now_us(void)
{
	if (!clock_of_test.g)
		return __real_now_us();
	clock_of_test.between += long_used(clock_of_test.g) % clock_of_test.batch != 0;
	clock_of_test.published |= 1ull << (long_used(clock_of_test.g) / clock_of_test.batch);
	return clock_of_test.now += clock_of_test.step;
}

/* Offers n reads at once; returns the interrupts. */
static uint64_t batches(unsigned int n, uint64_t step, unsigned int batch)
{
	struct guest g;
	uint64_t got;
	uint16_t *avail;

	if (!guest_new(&g))
		return 0;
	guest_set(&g, 0x70, 0);
	guest_set(&g, 0x70, 3);
	guest_set(&g, 0x24, 1);
	guest_set(&g, 0x20, 1);
	guest_set(&g, 0x70, 11);
	guest_set(&g, 0x38, LONG_QUEUE);
	guest_set(&g, 0x80, 0x100000);
	guest_set(&g, 0x90, LONG_AVAIL);
	guest_set(&g, 0xa0, LONG_USED);
	guest_set(&g, 0x44, 1);
	guest_set(&g, 0x70, 15);
	*(struct virtio_blk_outhdr *)guest_at(&g, GUEST_DATA) = (struct virtio_blk_outhdr){ .type = VIRTIO_BLK_T_IN };
	((struct vring_desc *)guest_at(&g, 0x100000))[0] = (struct vring_desc){ GUEST_DATA, 16, VRING_DESC_F_NEXT, 1 };
	((struct vring_desc *)guest_at(&g, 0x100000))[1] = (struct vring_desc){ GUEST_DATA + 0x1000, 513, VRING_DESC_F_WRITE, 0 };
	avail = guest_at(&g, LONG_AVAIL); /* all of them the same request: its head is 0 */
	avail[1] = (uint16_t)n;
	guest_interrupts(&g);
	memset(&clock_of_test, 0, sizeof(clock_of_test));
	clock_of_test.g = &g;
	clock_of_test.now = 1000;
	clock_of_test.step = step;
	clock_of_test.batch = batch;
	guest_kick(&g, 0);
	clock_of_test.g = NULL;
	got = guest_interrupts(&g);
	CHECK_EQ(long_used(&g), n);
	CHECK_EQ(clock_of_test.between, 0);
	guest_free(&g);
	return got;
}

/* What is served at once is told of at once: one interrupt for so many requests, none of them visible before the last is done. */
TEST(a_batch_of_requests_is_one_interrupt)
{
	const unsigned int most = VMM_BLK_BATCH_MAX;

	for (unsigned int n = 1; n <= LONG_QUEUE; n = n < 70 ? n + 1 : n * 2) {
		uint64_t want = (n + most - 1) / most;

		CHECK_EQ(batches(n, 0, most), want);
		CHECK_EQ(clock_of_test.published, (1ull << want) - 1);
	}
	CHECK_EQ(batches(LONG_QUEUE, 0, most), LONG_QUEUE / most);
}

/* Nor does the first of them wait longer than so long for the others, but for the one at hand. */
TEST(a_batch_that_takes_its_time_ends_early)
{
	for (unsigned int k = 1; k < VMM_BLK_BATCH_MAX; k++) {
		/* So that the k-th request of a batch comes to the end of its time, and no earlier. */
		uint64_t step = (VMM_BLK_BATCH_US + k - 1) / k;
		unsigned int batch = (unsigned int)((VMM_BLK_BATCH_US + step - 1) / step);

		CHECK_EQ(batches(100, step, batch), (100 + batch - 1) / batch);
	}
	/* One that takes longer than all of it is told of when it is done. */
	CHECK_EQ(batches(10, VMM_BLK_BATCH_US, 1), 10);
	CHECK_EQ(batches(10, 50 * VMM_BLK_BATCH_US, 1), 10);
	/* The time is since the first of a batch was taken: what came before it does not count. */
	CHECK_EQ(batches(64, (VMM_BLK_BATCH_US - 1) / VMM_BLK_BATCH_MAX, VMM_BLK_BATCH_MAX), 2);
}

/* --- dirty tracking ------------------------------------------------------------------------------------------------ */

static bool gathered(struct guest *g, uint64_t addr)
{
	_Static_assert(GUEST_BYTES / MEMORY_PAGE / 64 == 256, "words");
	uint64_t fresh[256] = { 0 }, page = addr / MEMORY_PAGE;

	memory_gather(&g->memory, 0, NULL, 256, fresh);
	return fresh[page / 64] >> (page % 64) & 1;
}

/* A page that a fork copies while a request is under way is copied again after it. */
TEST(a_page_written_after_it_was_gathered_is_gathered_again)
{
	struct virtio_chain c;
	struct guest g;

	REQUIRE(guest_new(&g));
	guest_desc(&g, 0, 0, GUEST_DATA, 16, VRING_DESC_F_NEXT, 1);
	guest_desc(&g, 0, 1, GUEST_DATA + 0x1000, 513, VRING_DESC_F_WRITE, 0);
	guest_put(&g, 0, 0);
	REQUIRE(virtio_pop(&g.d, 0, &c));
	gathered(&g, 0);
	iov_write(c.in, c.n_in, 0, "data", 4);
	virtio_push(&g.d, 0, &c, 5);
	CHECK(gathered(&g, GUEST_DATA + 0x1000));
	guest_put(&g, 0, 0);
	REQUIRE(virtio_pop(&g.d, 0, &c));
	virtio_push(&g.d, 0, &c, 5);
	CHECK(gathered(&g, GUEST_USED(0)));
	CHECK(!gathered(&g, GUEST_USED(0)));
	guest_free(&g);
}

/* --- the first look at memory -------------------------------------------------------------------------------------- */

#define LOOK_BYTES (32ull << 20)

/* A bit for each page of [at, at + n) that there is anything mapped for; returns how many. */
static unsigned int mapped(int pagemap, const void *at, uint64_t n, uint64_t *bits)
{
	unsigned int count = 0;

	for (uint64_t p = 0; p < n / MEMORY_PAGE; p++) {
		uint64_t entry = 0;

		CHECK_EQ(pread(pagemap, &entry, 8, (off_t)(((uintptr_t)at / MEMORY_PAGE + p) * 8)), 8);
		if (!(entry >> 62)) /* neither there nor swapped out */
			continue;
		count++;
		bits[p / 64] |= 1ull << (p % 64);
	}
	return count;
}

/* What a machine that booted cold has written is its own; what it never touched stays as if nobody had looked. */
static void look(int pagemap, bool known, bool huge)
{
	_Static_assert(LOOK_BYTES / MEMORY_PAGE / 64 == 128, "words");
	static uint64_t wanted[128], before[128], after[128];
	_cleanup_fd_ int own_map = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	unsigned int n_before, n_after;
	volatile uint8_t read_only;
	struct memory m;

	memset(wanted, 0, sizeof(wanted));
	memset(before, 0, sizeof(before));
	memset(after, 0, sizeof(after));
	REQUIRE(own_map >= 0 && !memory_create(LOOK_BYTES, -1, -1, &m, NULL));
	if (!huge)
		CHECK(!madvise(m.base, m.bytes, MADV_NOHUGEPAGE));
	srandom(17);
	for (int i = 0; i < 400; i++) {
		/* Some are touched and hold zeroes, some are only read. All in the first half. */
		uint64_t p = (uint64_t)random() % (LOOK_BYTES / MEMORY_PAGE / 2);
		uint8_t *at = m.base + p * MEMORY_PAGE + random() % MEMORY_PAGE;

		if (i % 4 == 3) {
			read_only = *at;
			(void)read_only;
		} else {
			*at = i % 4 == 2 ? 0 : (uint8_t)(i | 1);
		}
	}
	for (uint64_t p = 0; p < LOOK_BYTES / MEMORY_PAGE / 2; p++)
		for (unsigned int k = 0; k < MEMORY_PAGE; k++)
			if (m.base[p * MEMORY_PAGE + k]) {
				wanted[p / 64] |= 1ull << (p % 64);
				break;
			}
	n_before = mapped(own_map, m.base, m.bytes, before);
	memory_own_used(&m, pagemap);
	n_after = mapped(own_map, m.base, m.bytes, after);
	CHECK(!memcmp(m.own, wanted, sizeof(wanted)));
	if (known)
		CHECK(n_before == n_after && !memcmp(before, after, sizeof(before)));
	else
		CHECK(n_after > n_before); /* or what is above could not fail */
	memory_free(&m);
}

TEST(the_first_look_leaves_alone_what_is_not_there)
{
	_cleanup_fd_ int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC), none = open("/dev/null", O_RDONLY | O_CLOEXEC);

	REQUIRE(pagemap >= 0);
	look(pagemap, true, false);
	look(pagemap, true, true);
	look(-1, false, false);
	/* One that says nothing is none. */
	REQUIRE(none >= 0);
	look(none, false, false);
}

/* --- network ------------------------------------------------------------------------------------------------------- */

static uint8_t frame[HEADER_AND_FRAME];

static size_t frame_make(size_t bytes)
{
	memset(frame, 0, VNET_HEADER);
	for (size_t i = VNET_HEADER; i < bytes; i++)
		frame[i] = (uint8_t)random();
	return bytes;
}

/* Buffers of `bytes` each, one descriptor a buffer. */
static void give(struct guest *g, unsigned int n, uint32_t bytes)
{
	for (unsigned int i = 0; i < n; i++) {
		guest_desc(g, RX, i, GUEST_DATA + 0x10000ull * i, bytes, VRING_DESC_F_WRITE, 0);
		guest_put(g, RX, (uint16_t)i);
	}
}

/* Is the frame in the buffers of used elements [at, at + n)? */
static bool frame_in(struct guest *g, uint16_t at, unsigned int n, size_t bytes)
{
	size_t done = 0;

	for (unsigned int i = 0; i < n; i++) {
		uint32_t head, got;
		const uint8_t *data;

		guest_used_at(g, RX, (uint16_t)(at + i), &head, &got);
		data = guest_at(g, GUEST_DATA + 0x10000ull * head);
		if (!i && memcmp(data, frame, 10))
			return false;
		if (!i && *(const uint16_t *)(const void *)(data + 10) != n)
			return false;
		if (done + got > bytes || memcmp(data + (i ? 0 : 12), frame + done + (i ? 0 : 12), got - (i ? 0 : 12)))
			return false;
		done += got;
	}
	return done == bytes;
}

TEST(frames_are_spread_over_mergeable_buffers)
{
	struct guest g;
	uint32_t wait;

	srandom(5);
	REQUIRE(guest_new_net(&g, MERGEABLE | TSO));
	give(&g, 16, 6000);
	CHECK_EQ(send(g.peer, frame, frame_make(60000), 0), 60000);
	CHECK(!net_tap_ready(&g.d, &wait)); /* 36000 bytes are left: not enough for another that large */
	CHECK_EQ(wait, 0);
	CHECK(g.net.rx_waits);
	CHECK_EQ(guest_used(&g, RX), 10);
	CHECK(frame_in(&g, 0, 10, 60000));
	/* Buffers that were held back come first when there are more. */
	CHECK_EQ(send(g.peer, frame, frame_make(100), 0), 100);
	CHECK(!net_tap_ready(&g.d, &wait));
	for (uint16_t i = 0; i < 10; i++)
		guest_put(&g, RX, i);
	CHECK(net_tap_ready(&g.d, &wait));
	CHECK_EQ(guest_used(&g, RX), 11);
	CHECK(frame_in(&g, 10, 1, 100));
	guest_free(&g);
}

TEST(random_frames_and_buffers)
{
	struct guest g;
	uint32_t wait;
	uint16_t seen = 0;

	srandom(11);
	REQUIRE(guest_new_net(&g, MERGEABLE | TSO));
	give(&g, 16, 9000);
	for (int i = 0; i < 3000; i++) {
		size_t bytes = frame_make(12 + 14 + (size_t)random() % (random() % 8 ? 1600 : 62000));
		unsigned int n;

		CHECK_EQ(send(g.peer, frame, bytes, 0), (ssize_t)bytes);
		net_tap_ready(&g.d, &wait);
		n = (uint16_t)(guest_used(&g, RX) - seen);
		CHECK_EQ(n, (bytes + 8999) / 9000);
		CHECK(frame_in(&g, seen, n, bytes));
		for (; n; n--, seen++) {
			uint32_t head, got;

			guest_used_at(&g, RX, seen, &head, &got);
			guest_put(&g, RX, (uint16_t)head);
		}
		if (check_failed_here > 5)
			break;
	}
	CHECK_EQ(g.net.rx_frames, 3000);
	guest_free(&g);
}

TEST(without_mergeable_buffers_a_frame_has_one)
{
	struct guest g;
	uint32_t wait;

	REQUIRE(guest_new_net(&g, 0));
	guest_desc(&g, RX, 0, GUEST_DATA, 12, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, 1);
	guest_desc(&g, RX, 1, GUEST_DATA + 12, 1000, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, 2);
	guest_desc(&g, RX, 2, GUEST_DATA + 1012, 1000, VRING_DESC_F_WRITE, 0);
	guest_put(&g, RX, 0);
	CHECK_EQ(send(g.peer, frame, frame_make(1526), 0), 1526);
	CHECK(!net_tap_ready(&g.d, &wait)); /* taken, then no buffer for the next */
	CHECK_EQ(guest_used(&g, RX), 1);
	CHECK(frame_in(&g, 0, 1, 1526));
	CHECK(!net_tap_ready(&g.d, &wait));
	CHECK_EQ(guest_used(&g, RX), 1);
	guest_free(&g);
}

TEST(a_buffer_without_room_for_the_header_stops_the_card)
{
	struct guest g;
	uint32_t wait;

	REQUIRE(guest_new_net(&g, MERGEABLE));
	give(&g, 1, 11);
	CHECK_EQ(send(g.peer, frame, frame_make(100), 0), 100);
	CHECK(!net_tap_ready(&g.d, &wait));
	CHECK(guest_get(&g, 0x70) & GUEST_NEEDS_RESET);
	CHECK(!net_tap_ready(&g.d, &wait));
	guest_free(&g);
}

TEST(frames_to_the_tap_are_bounded_and_whole)
{
	static uint8_t got[HEADER_AND_FRAME + 10];
	struct guest g;

	REQUIRE(guest_new_net(&g, 0));
	memcpy(guest_at(&g, GUEST_DATA), frame, frame_make(1500));
	guest_desc(&g, TX, 0, GUEST_DATA, 7, VRING_DESC_F_NEXT, 1); /* parts wherever they are cut */
	guest_desc(&g, TX, 1, GUEST_DATA + 7, 1493, 0, 0);
	guest_offer(&g, TX, 0);
	CHECK_EQ(recv(g.peer, got, sizeof(got), 0), 1500);
	CHECK(!memcmp(got, frame, 1500));
	/* Too short and too long ones are dropped, and given back. */
	guest_desc(&g, TX, 0, GUEST_DATA, 12, 0, 0);
	guest_offer(&g, TX, 0);
	guest_desc(&g, TX, 0, GUEST_DATA, VNET_HEADER + VMM_NET_FRAME_MAX + 1, 0, 0);
	guest_offer(&g, TX, 0);
	CHECK_EQ(recv(g.peer, got, sizeof(got), 0), -1);
	CHECK_EQ(g.net.dropped, 2);
	CHECK_EQ(guest_used(&g, TX), 3);
	guest_free(&g);
}

TEST(a_card_over_its_rate_waits_in_both_directions)
{
	struct guest g;
	uint32_t wait;

	REQUIRE(guest_new_net(&g, MERGEABLE));
	rate_init(&g.net.rx, 3, 0, now_us());
	rate_init(&g.net.tx, 3, 0, now_us());
	give(&g, 16, 2000);
	for (int i = 0; i < 8; i++)
		CHECK_EQ(send(g.peer, frame, frame_make(100), 0), 100);
	CHECK(!net_tap_ready(&g.d, &wait));
	CHECK(wait > 0 && wait <= 1001);
	CHECK(guest_used(&g, RX) >= 3 && guest_used(&g, RX) < 8);
	guest_desc(&g, TX, 0, GUEST_DATA, 100, 0, 0);
	for (int i = 0; i < 8; i++)
		guest_put(&g, TX, 0);
	guest_kick(&g, TX);
	CHECK(guest_used(&g, TX) >= 3 && guest_used(&g, TX) < 8);
	CHECK(g.d.queues[TX].wait_ms > 0);
	guest_free(&g);
}

/* --- balloon ------------------------------------------------------------------------------------------------------- */

#define INFLATE 0u
#define REPORT 2u

static bool own(struct guest *g, uint64_t addr)
{
	return g->memory.own[addr / MEMORY_PAGE / 64] >> (addr / MEMORY_PAGE % 64) & 1;
}

static void scribble(struct guest *g, uint64_t addr, uint64_t bytes)
{
	for (uint64_t at = addr; at < addr + bytes; at += MEMORY_PAGE) {
		memset(guest_at(g, at), 0x77, MEMORY_PAGE);
		memory_wrote(&g->memory, guest_at(g, at), MEMORY_PAGE);
	}
	gathered(g, 0);
}

TEST(inflated_pages_go_back)
{
	static const uint32_t pfns[] = { 0x300, 0x301, 0x302, 0x310, 0x30f, 0xffffffff, 0x4000, 0x305 };
	struct guest g;

	REQUIRE(guest_new_balloon(&g));
	scribble(&g, 0x300000, 0x20000);
	memcpy(guest_at(&g, GUEST_DATA), pfns, sizeof(pfns));
	guest_desc(&g, INFLATE, 0, GUEST_DATA, sizeof(pfns), 0, 0);
	guest_offer(&g, INFLATE, 0);
	CHECK_EQ(guest_used(&g, INFLATE), 1);
	CHECK_EQ(g.balloon.inflated, 6 * MEMORY_PAGE);
	for (uint32_t p = 0x300; p < 0x320; p++) {
		bool gone = p < 0x303 || p == 0x305 || p == 0x30f || p == 0x310;

		CHECK_EQ(*(uint8_t *)guest_at(&g, p * 4096ull), gone ? 0 : 0x77);
		CHECK_EQ(own(&g, p * 4096ull), !gone);
	}
	/* Taking pages back asks nothing of the host. */
	guest_desc(&g, 1, 0, GUEST_DATA, sizeof(pfns), 0, 0);
	guest_offer(&g, 1, 0);
	CHECK_EQ(guest_used(&g, 1), 1);
	guest_free(&g);
}

TEST(reported_ranges_go_back_in_whole_pages)
{
	struct guest g;

	REQUIRE(guest_new_balloon(&g));
	scribble(&g, 0x400000, 0x10000);
	guest_desc(&g, REPORT, 0, 0x400001, 0x3000, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, 1);
	guest_desc(&g, REPORT, 1, 0x408000, 0x2000, VRING_DESC_F_WRITE, 0);
	guest_offer(&g, REPORT, 0);
	CHECK_EQ(g.balloon.reported, 4 * MEMORY_PAGE);
	for (uint64_t p = 0x400; p < 0x410; p++) {
		bool gone = p == 0x401 || p == 0x402 || p == 0x408 || p == 0x409;

		CHECK_EQ(*(uint8_t *)guest_at(&g, p * 4096), gone ? 0 : 0x77);
		CHECK_EQ(own(&g, p * 4096), !gone);
	}
	/* What was only reported is not taken for written. */
	CHECK(!gathered(&g, 0x408000));
	guest_desc(&g, REPORT, 0, GUEST_BYTES - 0x1000, 0x2000, VRING_DESC_F_WRITE, 0);
	guest_offer(&g, REPORT, 0);
	CHECK(guest_get(&g, 0x70) & GUEST_NEEDS_RESET);
	guest_free(&g);
}

/* Over a template a page that goes back is the template's again, and no longer this machine's own. */
TEST(a_page_over_a_template_goes_back_to_it)
{
	int base = memfd_create("base", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	struct memory m;

	REQUIRE(base >= 0 && ftruncate(base, 1 << 20) == 0);
	CHECK_EQ(pwrite(base, "template", 8, 0x5000), 8);
	REQUIRE(!memory_seal(base, NULL) && !memory_create(1 << 20, base, -1, &m, NULL));
	memcpy(memory_at(&m, 0x5000, 8, true), "tenant's", 8);
	memory_gather(&m, 0, NULL, 4, NULL);
	CHECK_EQ(m.own[0], 1 << 5);
	CHECK_EQ(memory_discard(&m, 0x4000, 0x3000), 0x3000);
	CHECK(!memcmp(memory_at(&m, 0x5000, 8, false), "template", 8));
	CHECK_EQ(m.own[0], 0);
	CHECK_EQ(memory_discard(&m, 1 << 20, 0x1000), 0);
	CHECK_EQ(memory_discard(&m, 0, 4095), 0);
	memory_free(&m);
}

TEST(only_the_actual_size_is_the_drivers)
{
	struct guest g;
	uint32_t v = 7;

	REQUIRE(guest_new_balloon(&g));
	balloon_target(&g.d, 256);
	CHECK_EQ(guest_interrupts(&g), 1);
	CHECK_EQ(guest_get(&g, 0x60), 2);
	CHECK_EQ(guest_get(&g, 0x100), 256);
	guest_set(&g, 0x104, 100);
	guest_set(&g, 0x100, 1);
	virtio_mmio_write(&g.d, 0x102, &v, 4);
	virtio_mmio_write(&g.d, 0x104, &v, 8);
	CHECK_EQ(guest_get(&g, 0x100), 256);
	CHECK_EQ(guest_get(&g, 0x104), 100);
	CHECK_EQ(g.balloon.actual, 100);
	guest_free(&g);
}

CHECK_MAIN()
