/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How many bytes a sandbox's connections may move, both directions together. Theory: a token bucket that is asked before a
 * read, so that what may not pass stays in the peers' sockets and TCP holds them back; nothing is thrown away. Who gets
 * nothing waits in a queue, which a timer serves in turn: one sandbox at its limit costs a timer, and no other sandbox
 * anything. A total, once used up, ends what reads again.
 */
#ifndef NB_EGRESS_METER_H
#define NB_EGRESS_METER_H

#include "base/loop.h"
#include "schema/verdict.h"

struct conn;

struct meter {
	struct policy_limits limits; /* 0: none */
	uint64_t tokens, last_ms;
	bool started;
	uint64_t total;
	struct source *timer;
	struct conn *first, *last; /* that wait for tokens */
};

/* The smaller of the operator's and the policy's; what was counted stays. */
void meter_set(struct meter *m, const struct policy_limits *operator_s, const struct policy_limits *policy_s);
/* Of `want` bytes as many as may be read now; 0: wait (conn_wait) or over (meter_over). */
size_t meter_allow(struct meter *m, uint64_t now_ms, size_t want);
void meter_take(struct meter *m, size_t n);
bool meter_over(const struct meter *m);
/* When there will be something for the first that waits. */
uint64_t meter_next_ms(const struct meter *m, uint64_t now_ms);

#endif
