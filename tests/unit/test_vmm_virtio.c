/* SPDX-License-Identifier: Apache-2.0 */
/* The block device and its queue against a driver in fake guest memory: a model, and what a hostile driver may try. The other
 * devices are in test_vmm_devices.c. */
#include "base/cleanup.h"
#include "tests/lib/check.h"
#include "tests/unit/virtio_guest.h"
#include "vmm/store/copy.h"

#include <linux/virtio_blk.h>
#include <linux/virtio_mmio.h>

#define TABLE 0x80000u
#define INDIRECT (1ull << VIRTIO_RING_F_INDIRECT_DESC)

/* Bytes as one to three descriptors from *n on, empty ones and neighbours among them. */
static void cut(struct vring_desc *t, unsigned int *n, uint64_t addr, uint32_t len, uint16_t flags)
{
	uint32_t at = 0;

	for (int i = 0; i < 2 && random() % 3 == 0; i++) {
		uint32_t part = len > at ? (uint32_t)random() % (len - at) : 0;

		t[(*n)++] = (struct vring_desc){ addr + at, part, flags, 0 };
		at += part;
	}
	t[(*n)++] = (struct vring_desc){ addr + at, len - at, flags, 0 };
}

/*
 * One request; the device's status byte, 0xee if it did not answer. Where `cuts`, header, data and status are cut at random, and if the driver
 * took indirect descriptors the last ones are in a table more often than not.
 */
static bool cuts;

static uint8_t request(struct guest *g, uint32_t type, uint64_t sector, uint64_t data, uint32_t bytes)
{
	struct virtio_blk_outhdr *h = memory_at(&g->memory, GUEST_DATA, sizeof(*h), true);
	uint8_t *status = memory_at(&g->memory, GUEST_DATA + 64, 1, true);
	uint16_t before = guest_used(g, 0);
	uint16_t in = VRING_DESC_F_WRITE, way = type == VIRTIO_BLK_T_IN || type > VIRTIO_BLK_T_WRITE_ZEROES ? in : 0;
	struct vring_desc all[9], *table = guest_at(g, TABLE);
	unsigned int n = 0, direct;

	*h = (struct virtio_blk_outhdr){ .type = type, .sector = sector };
	*status = 0xee;
	if (cuts) {
		cut(all, &n, GUEST_DATA, sizeof(*h), 0);
		cut(all, &n, data, bytes, way);
		cut(all, &n, GUEST_DATA + 64, 1, in);
	} else {
		all[n++] = (struct vring_desc){ GUEST_DATA, sizeof(*h), 0, 0 };
		all[n++] = (struct vring_desc){ data, bytes, way, 0 };
		all[n++] = (struct vring_desc){ GUEST_DATA + 64, 1, in, 0 };
	}
	direct = cuts && (g->features & INDIRECT) ? (unsigned int)random() % (n + 1) : n;
	for (unsigned int i = 0; i < n; i++) {
		uint16_t more = i + 1 < n ? VRING_DESC_F_NEXT : 0;

		if (i < direct)
			guest_desc(g, 0, i, all[i].addr, all[i].len, all[i].flags | more, (uint16_t)(i + 1));
		else
			table[i - direct] = (struct vring_desc){ all[i].addr, all[i].len, all[i].flags | more, (uint16_t)(i + 1 - direct) };
	}
	if (direct < n)
		guest_desc(g, 0, direct, TABLE, (uint32_t)((n - direct) * sizeof(*table)), VRING_DESC_F_INDIRECT, 0);
	guest_offer(g, 0, 0);
	return guest_used(g, 0) == (uint16_t)(before + 1) ? *status : 0xee;
}

/* A discard or write-zeroes of one segment. */
static uint8_t trim(struct guest *g, bool zero, uint64_t sector, uint32_t sectors, uint32_t flags)
{
	struct virtio_blk_discard_write_zeroes *seg = guest_at(g, 0x20000);

	*seg = (struct virtio_blk_discard_write_zeroes){ .sector = sector, .num_sectors = sectors, .flags = flags };
	return request(g, zero ? VIRTIO_BLK_T_WRITE_ZEROES : VIRTIO_BLK_T_DISCARD, sector, 0x20000, sizeof(*seg));
}

/* A machine with its disk: the device's state goes through a snapshot, its memory and its disk are copied. */
static bool fork_guest(struct guest *from, struct guest *to)
{
	static uint8_t mem[4096];
	int disk = memfd_create("disk", MFD_CLOEXEC);
	struct wire w;
	size_t n;

	if (disk < 0 || copy_disk(from->disk, disk, NULL, NULL) || !guest_new_on(to, disk))
		return false;
	wire_init(&w, mem, sizeof(mem));
	virtio_save(&from->d, &w);
	n = wire_len(&w);
	memcpy(to->memory.base, from->memory.base, 1 << 20);
	wire_init(&w, mem, n);
	to->avail[0] = from->avail[0];
	return !virtio_load(&to->d, &w, NULL) && wire_done(&w);
}

#define MODEL_BYTES (GUEST_SECTORS * 512)
#define FAMILY 4

/*
 * Machines that read, write, discard and zero at random and are forked at random, each against what its disk should hold. What a
 * discard leaves is undefined by the standard; this device's leaves zeroes, which the model holds it to.
 */
TEST(disks_of_a_forking_family_follow_their_models)
{
	static uint8_t model[FAMILY][MODEL_BYTES];
	static struct guest g[FAMILY];
	unsigned int n = 1;

	REQUIRE(guest_new(&g[0]));
	memset(model, 0, sizeof(model));
	srandom(7);
	cuts = true;
	g[0].features = INDIRECT;
	guest_driver(&g[0]);
	for (int i = 0; i < 20000; i++) {
		unsigned int who = (unsigned int)random() % n;
		uint64_t sector = (uint64_t)random() % (GUEST_SECTORS + 4);
		uint32_t bytes = (uint32_t)(random() % 8 + 1) * 512;
		bool fits = sector * 512 + bytes <= MODEL_BYTES;
		uint8_t *data = guest_at(&g[who], 0x20000), want = fits ? VIRTIO_BLK_S_OK : VIRTIO_BLK_S_IOERR;
		int what = (int)(random() % 100);

		if (what < 40) {
			for (uint32_t k = 0; k < bytes; k++)
				data[k] = (uint8_t)random();
			CHECK_EQ(request(&g[who], VIRTIO_BLK_T_OUT, sector, 0x20000, bytes), want);
			if (fits)
				memcpy(model[who] + sector * 512, data, bytes);
		} else if (what < 80) {
			CHECK_EQ(request(&g[who], VIRTIO_BLK_T_IN, sector, 0x20000, bytes), want);
			if (fits)
				CHECK(!memcmp(model[who] + sector * 512, data, bytes));
		} else if (what < 98) {
			CHECK_EQ(trim(&g[who], what < 90, sector, bytes / 512, what < 85), want);
			if (fits)
				memset(model[who] + sector * 512, 0, bytes);
		} else {
			/* A new one in the place of another, or beside them. */
			unsigned int child = n < FAMILY ? n : (unsigned int)random() % n;

			if (child == who)
				continue;
			if (child < n)
				guest_free(&g[child]);
			REQUIRE(fork_guest(&g[who], &g[child]));
			g[child].features = INDIRECT;
			memcpy(model[child], model[who], MODEL_BYTES);
			n = child == n ? n + 1 : n;
		}
		if (check_failed_here > 10)
			break;
	}
	cuts = false;
	CHECK_EQ(n, FAMILY);
	for (unsigned int i = 0; i < n; i++) {
		uint8_t disk[MODEL_BYTES];

		CHECK_EQ(pread(g[i].disk, disk, sizeof(disk), 0), (ssize_t)sizeof(disk));
		CHECK(!memcmp(disk, model[i], sizeof(disk)));
		guest_free(&g[i]);
	}
}

/* KVM may have had the interrupt, but not yet in the state that was saved; who has acknowledged it gets no other one. */
TEST(an_interrupt_that_was_under_way_is_signalled_again_after_a_restore)
{
	struct guest a, b;
	uint32_t seen = VIRTIO_MMIO_INT_VRING;

	REQUIRE(guest_new(&a));
	CHECK_EQ(request(&a, VIRTIO_BLK_T_IN, 0, 0x20000, 512), VIRTIO_BLK_S_OK);
	REQUIRE(fork_guest(&a, &b));
	CHECK_EQ(guest_interrupts(&b), 1);
	guest_free(&b);
	virtio_mmio_write(&a.d, VIRTIO_MMIO_INTERRUPT_ACK, &seen, 4);
	REQUIRE(fork_guest(&a, &b));
	CHECK_EQ(guest_interrupts(&b), 0);
	guest_free(&b);
	guest_free(&a);
}

TEST(trims_have_bounds)
{
	struct guest g;

	REQUIRE(guest_new(&g));
	CHECK_EQ(trim(&g, false, 0, 1u << 23, 0), VIRTIO_BLK_S_UNSUPP);
	CHECK_EQ(trim(&g, true, 0, 8, 2), VIRTIO_BLK_S_UNSUPP);
	CHECK_EQ(trim(&g, false, 0, 8, 1), VIRTIO_BLK_S_UNSUPP); /* discards have no flags */
	CHECK_EQ(trim(&g, true, UINT64_MAX, 8, 0), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(trim(&g, false, GUEST_SECTORS, 1, 0), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(trim(&g, false, GUEST_SECTORS - 1, 1, 0), VIRTIO_BLK_S_OK);
	CHECK_EQ(request(&g, VIRTIO_BLK_T_DISCARD, 0, 0x20000, 17 * 16), VIRTIO_BLK_S_UNSUPP);
	CHECK_EQ(request(&g, VIRTIO_BLK_T_DISCARD, 0, 0x20000, 15), VIRTIO_BLK_S_UNSUPP);
	guest_free(&g);
}

TEST(odd_sizes_and_sectors_are_refused)
{
	struct guest g;

	REQUIRE(guest_new(&g));
	CHECK_EQ(request(&g, VIRTIO_BLK_T_IN, UINT64_MAX, 0x20000, 512), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(request(&g, VIRTIO_BLK_T_OUT, UINT64_MAX / 512, 0x20000, 1024), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(request(&g, VIRTIO_BLK_T_IN, 0, 0x20000, 511), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(request(&g, 77, 0, 0x20000, 512), VIRTIO_BLK_S_UNSUPP);
	CHECK_EQ(request(&g, VIRTIO_BLK_T_IN, 0, 0x20000, 512), VIRTIO_BLK_S_OK);
	guest_free(&g);
}

static void stops(struct guest *g, uint64_t addr, uint32_t len)
{
	CHECK_EQ(request(g, VIRTIO_BLK_T_IN, 0, addr, len), 0xee);
	CHECK(guest_get(g, 0x70) & GUEST_NEEDS_RESET);
	guest_driver(g); /* the driver may begin anew */
	memset(memory_at(&g->memory, GUEST_USED(0), 4, true), 0, 4);
	CHECK_EQ(request(g, VIRTIO_BLK_T_IN, 0, 0x20000, 512), VIRTIO_BLK_S_OK);
}

TEST(addresses_outside_memory_stop_the_device)
{
	struct guest g;

	REQUIRE(guest_new(&g));
	stops(&g, GUEST_BYTES, 512);
	stops(&g, GUEST_BYTES - 1, 512);
	stops(&g, UINT64_MAX, 512);
	stops(&g, UINT64_MAX - 511, 512);
	stops(&g, 0x20000, UINT32_MAX);
	guest_free(&g);
}

TEST(a_loop_of_descriptors_ends)
{
	struct guest g;

	REQUIRE(guest_new(&g));
	guest_desc(&g, 0, 0, GUEST_DATA, 16, VRING_DESC_F_NEXT, 0);
	guest_offer(&g, 0, 0);
	CHECK(guest_get(&g, 0x70) & GUEST_NEEDS_RESET);
	CHECK_EQ(guest_used(&g, 0), 0);
	guest_free(&g);
}

static void table_stops(struct guest *g, uint64_t addr, uint32_t len, uint16_t flags)
{
	uint16_t before;

	guest_driver(g);
	before = guest_used(g, 0);
	guest_desc(g, 0, 0, addr, len, VRING_DESC_F_INDIRECT | flags, 0);
	guest_offer(g, 0, 0);
	CHECK(guest_get(g, 0x70) & GUEST_NEEDS_RESET);
	CHECK_EQ(guest_used(g, 0), before);
}

TEST(a_table_of_descriptors_that_is_none_stops_the_device)
{
	struct guest g;
	struct vring_desc *table;

	REQUIRE(guest_new(&g));
	table = guest_at(&g, TABLE);
	table[0] = (struct vring_desc){ GUEST_DATA, 16, VRING_DESC_F_NEXT, 1 };
	table[1] = (struct vring_desc){ GUEST_DATA + 64, 1, VRING_DESC_F_WRITE, 0 };
	table_stops(&g, TABLE, 32, 0); /* not negotiated */
	g.features = INDIRECT;
	table_stops(&g, TABLE, 0, 0);
	table_stops(&g, TABLE, 31, 0);
	table_stops(&g, TABLE, 33, 0);
	table_stops(&g, TABLE, 32, VRING_DESC_F_NEXT);
	table_stops(&g, TABLE, (VMM_BLK_CHAIN_MAX + 1) * 16, 0);
	table_stops(&g, TABLE, UINT32_MAX & ~15u, 0);
	table_stops(&g, GUEST_BYTES - 16, 32, 0);
	table_stops(&g, UINT64_MAX - 15, 32, 0);
	table_stops(&g, TABLE, 16, 0); /* its second is outside */
	table[0].next = 0;
	table_stops(&g, TABLE, 32, 0); /* a loop */
	table[0].flags = VRING_DESC_F_INDIRECT;
	table[0].addr = TABLE;
	table[0].len = 32;
	table_stops(&g, TABLE, 32, 0); /* a table in a table */
	/* The whole of it at memory's end, and as a table is allowed to be marked. */
	guest_driver(&g);
	table = guest_at(&g, GUEST_BYTES - 32);
	table[0] = (struct vring_desc){ GUEST_DATA, 16, VRING_DESC_F_NEXT, 1 };
	table[1] = (struct vring_desc){ GUEST_DATA + 64, 1, VRING_DESC_F_WRITE, 0 };
	*(struct virtio_blk_outhdr *)guest_at(&g, GUEST_DATA) = (struct virtio_blk_outhdr){ .type = VIRTIO_BLK_T_FLUSH };
	*(uint8_t *)guest_at(&g, GUEST_DATA + 64) = 0xee;
	guest_desc(&g, 0, 0, GUEST_BYTES - 32, 32, VRING_DESC_F_INDIRECT | VRING_DESC_F_WRITE, 0);
	guest_offer(&g, 0, 0);
	CHECK_EQ(*(uint8_t *)guest_at(&g, GUEST_DATA + 64), VIRTIO_BLK_S_OK);
	guest_free(&g);
}

#define LARGE_PAGES 256u

/* As a reader without large pages has them: none beside the next. */
TEST(a_mebibyte_in_scattered_pages_is_one_request)
{
	struct virtio_blk_config config;
	struct vring_desc *table;
	uint32_t head, bytes;
	struct guest g;
	int disk = memfd_create("disk", MFD_CLOEXEC);
	unsigned int n = 0;

	REQUIRE(disk >= 0 && ftruncate(disk, LARGE_PAGES * 4096) == 0 && guest_new_on(&g, disk));
	for (unsigned int i = 0; i < LARGE_PAGES; i++)
		CHECK_EQ(pwrite(disk, &i, sizeof(i), i * 4096), (ssize_t)sizeof(i));
	g.features = INDIRECT;
	guest_driver(&g);
	memcpy(&config, g.d.config, MIN_OF(sizeof(config), sizeof(g.d.config)));
	CHECK(config.seg_max >= LARGE_PAGES && config.seg_max + 2 <= guest_get(&g, 0x34));
	*(struct virtio_blk_outhdr *)guest_at(&g, GUEST_DATA) = (struct virtio_blk_outhdr){ .type = VIRTIO_BLK_T_IN };
	table = guest_at(&g, TABLE);
	table[n++] = (struct vring_desc){ GUEST_DATA, 16, VRING_DESC_F_NEXT, 1 };
	for (; n <= LARGE_PAGES; n++)
		table[n] = (struct vring_desc){ 0x1000000 - n * 4096, 4096, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, (uint16_t)(n + 1) };
	table[n++] = (struct vring_desc){ GUEST_DATA + 64, 1, VRING_DESC_F_WRITE, 0 };
	guest_desc(&g, 0, 0, TABLE, n * 16, VRING_DESC_F_INDIRECT, 0);
	guest_offer(&g, 0, 0);
	guest_used_at(&g, 0, 0, &head, &bytes);
	CHECK_EQ(guest_used(&g, 0), 1);
	CHECK_EQ(bytes, LARGE_PAGES * 4096 + 1);
	CHECK_EQ(*(uint8_t *)guest_at(&g, GUEST_DATA + 64), VIRTIO_BLK_S_OK);
	for (unsigned int i = 0; i < LARGE_PAGES; i++)
		CHECK_EQ(*(unsigned int *)guest_at(&g, 0x1000000 - (i + 1) * 4096), i);
	guest_free(&g);
}

/* What was offered together: each answered, one interrupt where the driver wants to know of the last, no kick asked for in between. */
TEST(requests_offered_together_are_one_interrupt)
{
	struct guest g;

	REQUIRE(guest_new(&g));
	g.features = GUEST_EVENT_IDX;
	guest_driver(&g);
	*(struct virtio_blk_outhdr *)guest_at(&g, GUEST_DATA) = (struct virtio_blk_outhdr){ .type = VIRTIO_BLK_T_IN };
	CHECK_EQ(request(&g, VIRTIO_BLK_T_IN, 0, 0x20000, 512), VIRTIO_BLK_S_OK); /* the first is always signalled */
	guest_interrupts(&g);
	for (unsigned int round = 0; round < 4; round++) {
		uint16_t *wanted = guest_at(&g, GUEST_AVAIL(0) + 4 + 2 * GUEST_QUEUE), *asked = guest_at(&g, GUEST_USED(0) + 4 + 8 * GUEST_QUEUE);

		*wanted = (uint16_t)(guest_used(&g, 0) + 11);
		for (unsigned int i = 0; i < 12; i++)
			guest_put(&g, 0, 0);
		CHECK(*asked != g.avail[0]);
		guest_kick(&g, 0);
		CHECK_EQ(guest_used(&g, 0), g.avail[0]);
		CHECK_EQ(*asked, g.avail[0]);
		CHECK_EQ(guest_interrupts(&g), 1);
	}
	guest_free(&g);
}

TEST(heads_and_indices_outside_the_queue_stop_the_device)
{
	struct guest g;

	REQUIRE(guest_new(&g));
	guest_offer(&g, 0, GUEST_QUEUE);
	CHECK(guest_get(&g, 0x70) & GUEST_NEEDS_RESET);
	guest_driver(&g);
	g.avail[0] = GUEST_QUEUE + 5; /* more than the ring has */
	guest_offer(&g, 0, 0);
	CHECK(guest_get(&g, 0x70) & GUEST_NEEDS_RESET);
	guest_free(&g);
}

CHECK_MAIN()
