/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A world around nestbox-egress: a guest (tests/it/guestns.h) behind a real machine network, the daemon in a namespace of its
 * own, and behind that a namespace that is the internet: addresses, a resolver with a zone of the test's, and whatever servers
 * the test opens. A broker is played by the test. Nothing leaves these namespaces.
 */
#ifndef NB_TESTS_EGRESSBED_H
#define NB_TESTS_EGRESSBED_H

#include "base/fault.h"
#include "schema/broker.h"
#include "tests/it/guestns.h"
#include "vmm/net/net.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BED_WAIT_MS 5000
#define BED_WEB "93.184.216.34"      /* what web.test and others resolve to */
#define BED_OTHER "93.184.216.35"
#define BED_PROXY "93.184.216.1"     /* the daemon's own address */
#define BED_PRIVATE "10.9.0.5"       /* private, not permitted */
#define BED_PERMITTED "10.8.0.5"     /* private, named by egress_allow_private */

struct bed {
	char dir[64];
	struct net net;
	struct guestns guest;
	int proxy_ns, world_ns;
	int listener, broker;     /* the broker's socket, its connection to the daemon */
	pid_t daemon;
};

/* False: cannot be done here (no root). Exits if it should work and does not. extra: lines of the configuration;
 * prepare: puts files below the state directory, roots.pem among them. */
bool bed_up(struct bed *bed, const char *extra, void (*prepare)(const char *dir));
void bed_down(struct bed *bed);
/* The daemon attached; answers it. */
bool bed_attach(struct bed *bed);
void bed_send_vm(struct bed *bed, const struct net *net, const char *policy);
void bed_send_policy(struct bed *bed, const char *policy);
void bed_send_gone(struct bed *bed);
/* Returns when the daemon has worked off all that was sent to it before. */
void bed_settle(struct bed *bed);

/* The next certificate authority that the daemon sent for the machine; "" if it needs none. */
bool bed_ca(struct bed *bed, char pem[BROKER_CA_MAX]);

/* A socket that listens in the world. */
int bed_listen(struct bed *bed, const char *addr, uint16_t port);
int bed_accept(int listener);
/* Names below new.test resolve to BED_WEB, each new to the proxy; of names below stall.test nobody ever hears. */
/* Questions that reached the world's resolver, of this name (NULL: all). */
unsigned int bed_resolved(const char *name);

/* Asks from the guest over UDP or TCP. Returns the answer's code, -1: none came. ret_addr: of an A record, else "". */
int bed_dns(struct bed *bed, bool tcp, const char *name, uint16_t type, char ret_addr[16], uint8_t *answer, size_t *ret_n);
/* A connection to a name, as a program in the guest makes it. */
int bed_connect(struct bed *bed, const char *name, uint16_t port);
/* Whether the peer resets or ends this connection: 'R', 'E', or 'T' for neither in time. */
char bed_end_of(int fd);

/* Waits until the ledger has a line with all of these in it (NULL ends the list). */
bool bed_ledger(struct bed *bed, ...) __attribute__((sentinel));
unsigned int bed_ledger_count(struct bed *bed, const char *part);

#endif
