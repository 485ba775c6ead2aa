/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A hostile driver. Input: a byte that chooses the device and what is negotiated, then commands of 12 bytes: what, where, value.
 * State is saved and loaded back now and then: whatever a device's state became, it must load again or be refused.
 */
#include "tests/unit/virtio_guest.h"

#include <linux/virtio_net.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

enum { BLK, NET, RNG, BALLOON, DEVICES };

static bool make(struct guest *g, int kind)
{
	switch (kind) {
	case BLK: return guest_new(g);
	case NET: return guest_new_net(g, 0);
	case RNG: return guest_new_rng(g);
	default: return guest_new_balloon(g);
	}
}

static void reload(struct guest *g)
{
	static uint8_t mem[4096];
	struct wire w;
	size_t n;

	wire_init(&w, mem, sizeof(mem));
	virtio_save(&g->d, &w);
	n = wire_len(&w);
	wire_init(&w, mem, n);
	if (virtio_load(&g->d, &w, NULL))
		guest_driver(g);
}

/* The other end of the tap: a frame in, frames out. */
static void network(struct guest *g, uint32_t where)
{
	static uint8_t frame[65536];
	uint32_t wait;

	if (g->peer < 0)
		return;
	while (recv(g->peer, frame, sizeof(frame), 0) >= 0)
		;
	if (send(g->peer, frame, 12 + where % 60000, 0) > 0)
		net_tap_ready(&g->d, &wait);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	static struct guest guests[DEVICES];
	static bool ready[DEVICES];
	struct guest *g;
	int kind;

	if (!n)
		return 0;
	kind = data[0] % DEVICES;
	g = &guests[kind];
	if (!ready[kind] && !make(g, kind))
		abort();
	ready[kind] = true;
	memset(guest_at(g, 0), 0, 0x11000);
	g->features = data[0] & 0x80 ? g->d.ops->features | GUEST_EVENT_IDX : 0;
	guest_driver(g);
	for (size_t i = 1; i + 12 <= n && i < 12 * 512; i += 12) {
		uint32_t where;
		uint64_t value;

		memcpy(&value, data + i + 4, 8);
		where = (uint32_t)(data[i + 1] | data[i + 2] << 8);
		switch (data[i] % 8) {
		case 0:
		case 1:
		case 2: memcpy(guest_at(g, 0x1000 + where % (GUEST_RINGS_END - 0x1000)), &value, 8); break;
		case 3: virtio_mmio_write(&g->d, where % 0x200, &value, 1u << data[i + 3] % 4); break;
		case 4: virtio_mmio_read(&g->d, where % 0x200, &value, 1u << data[i + 3] % 4); break;
		case 5: reload(g); break;
		case 6: network(g, where); break;
		default: guest_kick(g, where % g->d.ops->n_queues); break;
		}
	}
	for (unsigned int q = 0; q < g->d.ops->n_queues; q++)
		guest_kick(g, q);
	return 0;
}
