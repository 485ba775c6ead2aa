/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest memory: one memfd, seen by the guest as [0, low) below the hole at 3 GiB and [4 GiB, 4 GiB + high) above it.
 * memory_at() is the one function that turns a guest address into a pointer. It only ever subtracts, so that no guest value
 * can overflow it, and refuses what does not lie wholly in one region.
 */
#ifndef NB_VMM_MEMORY_H
#define NB_VMM_MEMORY_H

#include "base/fault.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MEMORY_HOLE 0xc0000000ull
#define MEMORY_HIGH 0x100000000ull
#define MEMORY_PAGE 4096u

struct memory {
	uint8_t *base;    /* one mapping of the whole file; the high region follows the low one in it */
	uint64_t bytes;
	uint64_t low, high;
	int fd;           /* the memfd behind the mapping */
	bool is_private;  /* mapped copy-on-write over a sealed memfd */
	uint64_t *dirty;  /* a bit a page, pages that the VMM itself wrote while tracking; NULL if not tracking */
};

enum rc memory_create(uint64_t bytes, struct memory *ret, struct fault *ret_f);
/* Over a sealed memfd of exactly `bytes`; takes the descriptor. */
enum rc memory_map_sealed(int fd, uint64_t bytes, struct memory *ret, struct fault *ret_f);
void memory_free(struct memory *m);

/* NULL if [addr, addr + n) is not wholly inside one region. `write` marks the pages dirty while tracking. */
void *memory_at(const struct memory *m, uint64_t addr, uint64_t n, bool write);
/* Offset in the file of a guest address that memory_at() accepts. */
uint64_t memory_offset(const struct memory *m, const void *at);

#endif
