/* SPDX-License-Identifier: Apache-2.0 */
/* What is done with the calling thread inside a machine's namespace; private to net.c. */
#ifndef NB_NET_INSIDE_H
#define NB_NET_INSIDE_H

#include "base/fault.h"

struct net;

/* Once at start, while descriptors are few. */
enum rc inside_init(struct fault *ret_f);
/* Switches of the namespace's own network stack, before there is an interface. */
enum rc inside_tune(struct fault *ret_f);
/* Both taps, with addresses, the guest's neighbours and up; fills net->tap_fd and net->mgmt_fd. */
enum rc inside_taps(struct net *net, struct fault *ret_f);
/* The one nftables table, in one transaction. */
enum rc inside_rules(struct fault *ret_f);
/* The three sockets for egress; fills net->tcp_fd, dns_udp_fd, dns_tcp_fd. */
enum rc inside_sockets(struct net *net, struct fault *ret_f);
/* The nonblocking connection to the agent. */
enum rc inside_dial(int *ret_fd, struct fault *ret_f);
/* Aborts every TCP connection in the namespace. */
enum rc inside_cut(struct fault *ret_f);

#endif
