/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A stand-in for a guest: a network namespace with the guest's addresses and MACs on two taps of its own, and a child process
 * that carries frames between those and the machine's taps, as a VM process would.
 */
#ifndef NB_TESTS_GUESTNS_H
#define NB_TESTS_GUESTNS_H

#include "base/fault.h"

#include <stdint.h>
#include <sys/types.h>

struct guestns {
	int ns_fd;
	pid_t pump;
};

enum rc guestns_start(struct guestns *g, int tap_fd, int mgmt_fd, struct fault *ret_f);
void guestns_stop(struct guestns *g);
/* A socket made inside the guest. */
int guestns_socket(const struct guestns *g, int type);
/* Connected, or -1 with errno; waits at most timeout_ms. */
int guestns_connect(const struct guestns *g, const char *addr, uint16_t port, int timeout_ms);

/* For tests that make namespaces of their own. */
int testns_own(void);
int testns_new(void); /* the thread is inside it afterwards; 0 or -1 */
void testns_enter(int ns_fd);
/* An interface's address and flags, by ioctl, in the current namespace. */
int testns_address(const char *ifname, const char *addr, unsigned int prefix);

#endif
