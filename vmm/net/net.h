/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A machine's network: one network namespace, two taps, one nftables table. Theory: the namespace has no route
 * out and no other interface, so whatever gets past the rules still goes nowhere. Inside, TCP from the traffic tap
 * is redirected to a listener of ours and DNS to two sockets of ours; all three are opened here and handed to nestbox-egress.
 * Everything else is dropped: IPv6, UDP, ICMP, spoofed sources, anything between the taps, anything from the guest to the
 * management address but replies of the agent's port. Addresses and MACs are schema/agent.h's, the same in every namespace.
 * The namespace is held by a bind mount <run_dir>/netns/<id>, so that it outlives the broker and a restarted one finds it.
 */
#ifndef NB_NET_H
#define NB_NET_H

#include "base/fault.h"

#include <stdbool.h>

struct net {
	char id[41];
	int ns_fd;
	int tap_fd, mgmt_fd;               /* for the engine; -1 after net_adopt() */
	int tcp_fd, dns_udp_fd, dns_tcp_fd; /* for egress */
};

/* Once at start: makes <run_dir>/netns a private mount point. Finds libnftables. */
enum rc net_init(const char *run_dir, struct fault *ret_f);
enum rc net_create(const char *id, struct net *ret, struct fault *ret_f);
/* Of a machine that runs already: finds the namespace, opens new egress sockets in it. */
enum rc net_adopt(const char *id, struct net *ret, struct fault *ret_f);
/* Aborts the TCP connections inside, closes, unmounts, removes. Half-built and absent ones are fine. */
void net_destroy(struct net *net);
/* Removes every namespace below run_dir/netns whose id is not kept(). At start, after adoption. */
enum rc net_sweep(bool (*kept)(void *arg, const char *id), void *arg, struct fault *ret_f);
/* A nonblocking connect(2) to the agent, begun inside the namespace; *ret_fd is writable when it is through. */
enum rc net_dial(const struct net *net, int *ret_fd, struct fault *ret_f);

#endif
