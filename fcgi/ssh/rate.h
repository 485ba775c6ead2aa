/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who may connect now. A name has 128 bits and is not to be guessed; this bounds what guessing and mere connecting costs the host.
 * Per address (IPv6: per /64): connections at once, and failed logins in a window, after which it is turned away until the window is
 * over. For all: a token bucket of new connections. An address that neither is connected nor has failed lately is forgotten.
 */
#ifndef NB_SSH_RATE_H
#define NB_SSH_RATE_H

#include "base/fault.h"
#include "fcgi/ssh/limits.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

struct source_addr {
	uint8_t bytes[16];
	uint32_t connections, fails;
	uint64_t window_ms; /* when its first failure of this window was */
	bool used;
};

struct rate {
	struct source_addr sources[SSH_SOURCES];
	uint64_t tokens_milli, last_ms;
	bool started;
};

/* Counts the connection. RC_LIMIT: it may not be; RC_INVALID: not an internet address. */
enum rc rate_admit(struct rate *r, const struct sockaddr *addr, uint64_t now_ms, struct source_addr **ret, struct fault *ret_f);
void rate_leave(struct source_addr *s);
void rate_failed(struct source_addr *s, uint64_t now_ms);

#endif
