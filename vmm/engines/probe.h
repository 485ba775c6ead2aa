/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Is /dev/kvm any good? Theory: that it opens and creates processors proves nothing: on some hosts (nested, paravirtual) it
 * then emulates each instruction, or lacks the ones a stock kernel needs. So a throw-away machine runs a known program in long
 * mode (page tables, SSE, cmpxchg16b, some million instructions) in a child process against a deadline, and the result is
 * compared. The child is killed when the deadline passes, whatever KVM is doing.
 */
#ifndef NB_PROBE_H
#define NB_PROBE_H

#include "base/fault.h"

#include <stdbool.h>
#include <stdint.h>

#define PROBE_REASON_MAX 160

struct probe {
	bool usable;
	uint32_t took_ms;
	char reason[PROBE_REASON_MAX]; /* of either answer */
};

/* device: "/dev/kvm". Blocks for at most deadline_ms and the time a kill takes. */
void probe_kvm(const char *device, uint32_t deadline_ms, struct probe *ret);

#endif
