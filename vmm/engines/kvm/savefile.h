/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A machine on disk: the file `memory` (raw, sparse, guest memory at its offsets) and the file `state`:
 *   u32 magic "NBXM"  u32 version  u64 memory bytes  u32 CRC32C of memory  u32 CRC32C of the rest  u32 flags  u32 CRC32C of the base
 *   bytes: machine state (snapshot.c)
 *
 * Theory. A snapshot is whole, or it is what differs from a whole one, its *base*, which has a name beside it (`base`, a hard link: it
 * lives as long as anything that needs it). Then `memory` has only the pages that differ, and behind them a bit for each page that
 * says which these are. What differs is found by comparing, not by remembering: it does not matter how the machine came to
 * be as it is, nor whether it is the base's own.
 *
 * Of a whole memory the sum covers number and content of every page that is not all zero, so that holes may come and go; of
 * differences the bits, and number and content of every page in them.
 */
#ifndef NB_VMM_SAVEFILE_H
#define NB_VMM_SAVEFILE_H

#include "base/buf.h"
#include "base/fault.h"

#include <stdbool.h>

#define SAVEFILE_STATE_MAX (1u << 20)
#define SAVEFILE_HEAD 32u

struct savefile_head {
	uint64_t bytes;
	uint32_t memory_crc, state_crc, base_crc;
	bool has_base;
};

/* memory_fd has been written: sums it, writes the state file. */
enum rc savefile_write(int memory_fd, int state_fd, uint64_t memory_bytes, const struct buf *state, struct fault *ret_f);

/* Memory in layers as a fork leaves it: a whole base, and over it a delta; either may be -1. */
struct savefile_layers {
	uint64_t bytes;
	int base_fd, delta_fd;
};
/*
 * Writes these layers, and the machine state in state_in, to the empty files memory_fd and state_fd. prev_fd: a whole memory whose sum is
 * prev_crc, or -1: if at most half of what there is differs from it, only that is written, with it as the base.
 */
enum rc savefile_store(const struct savefile_layers *from, int prev_fd, uint32_t prev_crc, int state_in, int memory_fd, int state_fd,
		       struct fault *ret_f);
/*
 * Checks all of a snapshot. base_fd: -1 if there is none. to >= 0: copies the memory into that memfd, which it then seals.
 * RC_INVALID with the reason if anything does not fit, RC_STATE if the base is missing.
 */
enum rc savefile_load(int memory_fd, int state_fd, int base_fd, int to, struct fault *ret_f);
/* The machine state out of a state file, without looking at memory. ret_head may be NULL. */
enum rc savefile_state(int state_fd, struct savefile_head *ret_head, uint8_t **ret, size_t *ret_n, struct fault *ret_f);
uint32_t savefile_crc(uint32_t crc, const void *data, size_t n);
/* statefile.c: all of a file of `least` bytes or more, and a state file in one piece. */
enum rc statefile_bytes(int fd, uint64_t least, uint8_t **ret, size_t *ret_n, struct fault *ret_f);
enum rc statefile_write(int fd, const struct savefile_head *h, const void *state, size_t n, struct fault *ret_f);

#endif
