/* SPDX-License-Identifier: Apache-2.0 */
/* The block device and its queue against a driver in fake guest memory: a model, and what a hostile driver may try. */
#include "tests/lib/check.h"
#include "tests/unit/virtio_guest.h"

#include <linux/virtio_blk.h>

#define NEEDS_RESET 64u

/* One request in three descriptors; the device's status byte, 0xee if it did not answer. */
static uint8_t request(struct guest *g, uint32_t type, uint64_t sector, uint64_t data, uint32_t bytes)
{
	struct virtio_blk_outhdr *h = memory_at(&g->memory, GUEST_DATA, sizeof(*h), true);
	uint8_t *status = memory_at(&g->memory, GUEST_DATA + 64, 1, true);
	uint16_t before = guest_used(g);

	*h = (struct virtio_blk_outhdr){ .type = type, .sector = sector };
	*status = 0xee;
	guest_desc(g, 0, GUEST_DATA, sizeof(*h), VRING_DESC_F_NEXT, 1);
	guest_desc(g, 1, data, bytes, (uint16_t)(VRING_DESC_F_NEXT | (type == VIRTIO_BLK_T_OUT ? 0 : VRING_DESC_F_WRITE)), 2);
	guest_desc(g, 2, GUEST_DATA + 64, 1, VRING_DESC_F_WRITE, 0);
	guest_offer(g, 0);
	return guest_used(g) == (uint16_t)(before + 1) ? *status : 0xee;
}

TEST(reads_and_writes_follow_a_model)
{
	static uint8_t model[GUEST_SECTORS * 512];
	struct guest g;
	uint8_t *data;

	REQUIRE(guest_new(&g));
	data = memory_at(&g.memory, 0x20000, sizeof(model), true);
	memset(model, 0, sizeof(model));
	srandom(7);
	for (int i = 0; i < 3000; i++) {
		uint64_t sector = (uint64_t)random() % (GUEST_SECTORS + 4);
		uint32_t bytes = (uint32_t)(random() % 8 + 1) * 512;
		bool fits = sector * 512 + bytes <= sizeof(model), out = random() % 2;

		for (uint32_t k = 0; out && k < bytes; k++)
			data[k] = (uint8_t)random();
		CHECK_EQ(request(&g, out ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN, sector, 0x20000, bytes),
			 fits ? VIRTIO_BLK_S_OK : VIRTIO_BLK_S_IOERR);
		if (fits && out)
			memcpy(model + sector * 512, data, bytes);
		if (fits && !out)
			CHECK(!memcmp(model + sector * 512, data, bytes));
	}
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
	CHECK(guest_get(g, 0x70) & NEEDS_RESET);
	guest_driver(g); /* the driver may begin anew */
	memset(memory_at(&g->memory, GUEST_USED, 4, true), 0, 4);
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
	guest_desc(&g, 0, GUEST_DATA, 16, VRING_DESC_F_NEXT, 0);
	guest_offer(&g, 0);
	CHECK(guest_get(&g, 0x70) & NEEDS_RESET);
	CHECK_EQ(guest_used(&g), 0);
	guest_free(&g);
}

TEST(heads_and_indices_outside_the_queue_stop_the_device)
{
	struct guest g;

	REQUIRE(guest_new(&g));
	guest_offer(&g, GUEST_QUEUE);
	CHECK(guest_get(&g, 0x70) & NEEDS_RESET);
	guest_driver(&g);
	g.avail = GUEST_QUEUE + 5; /* more than the ring has */
	guest_offer(&g, 0);
	CHECK(guest_get(&g, 0x70) & NEEDS_RESET);
	guest_free(&g);
}

CHECK_MAIN()
