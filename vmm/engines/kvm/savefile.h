/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A machine on disk: the file `memory` (raw, sparse, guest memory at its offsets) and the file `state`:
 *   u32 magic "NBXM"  u32 version  u64 memory bytes  u32 CRC32C of memory  u32 CRC32C of the rest  bytes: machine state (snapshot.c)
 * The memory's sum covers page number and content of every page that is not all zero, so that holes may come and go.
 */
#ifndef NB_VMM_SAVEFILE_H
#define NB_VMM_SAVEFILE_H

#include "base/buf.h"
#include "base/fault.h"

#define SAVEFILE_STATE_MAX (1u << 20)

enum rc savefile_write(int memory_fd, int state_fd, uint64_t memory_bytes, const struct buf *state, struct fault *ret_f);
/*
 * Checks both and copies the memory into memfd `to`, which it then seals. *ret_state is the machine state, to be freed.
 * RC_INVALID with the reason if anything does not fit.
 */
enum rc savefile_load(int memory_fd, int state_fd, int to, struct fault *ret_f);
/* The machine state out of a state file, without looking at memory. */
enum rc savefile_state(int state_fd, uint64_t memory_bytes, uint8_t **ret, size_t *ret_n, struct fault *ret_f);
uint32_t savefile_crc(uint32_t crc, const void *data, size_t n);

#endif
