/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checksums of disks. Theory: a sum is of what a disk says, not of how its file is laid out: SHA-256 over the number (64 bits, little
 * endian) and the bytes of every block of SUM_BLOCK that is not all zero. So a hole and written zeroes are the same, and a copy
 * with other holes has the same sum. What is sparse is not read. A snapshot's sum is a file beside its disk: one line,
 * "sha256 <64 hex> <size>\n"; an empty one is a sum not yet made.
 */
#ifndef NB_STORE_SUM_H
#define NB_STORE_SUM_H

#include "base/fault.h"

#include <stdbool.h>
#include <stdint.h>

#define SUM_BLOCK 4096
#define SUM_LINE_MAX 128

struct sum {
	char hex[65];
	uint64_t bytes;
};

/* Of the whole file, read from the disk and not from memory as far as the kernel lets go of that. */
enum rc sum_disk(int fd, struct sum *ret, struct fault *ret_f);
/* copy_disk(), and the sum of what was read. *ret_shared: extents are shared, nothing was read, ret is untouched. */
enum rc sum_copy(int from, int to, bool *ret_shared, struct sum *ret, struct fault *ret_f);

/* RC_ABSENT: empty. RC_STATE: no such line. */
enum rc sum_read(int fd, struct sum *ret, struct fault *ret_f);
enum rc sum_write(int fd, const struct sum *s, struct fault *ret_f);
/* RC_STATE if they differ. */
enum rc sum_compare(const struct sum *is, const struct sum *should, struct fault *ret_f);

#endif
