/* SPDX-License-Identifier: Apache-2.0 */
/* Bounds of a machine's network; doc/egress.md lists each with its test. */
#ifndef NB_NET_LIMITS_H
#define NB_NET_LIMITS_H

/* Packets that the namespace lets in before the proxy sees anything: they bound conntrack and the listeners' queues. */
#define NET_SYN_PER_S 400
#define NET_SYN_BURST 800
/* Of connections that the namespace does not know: what a clone has left of its parent's is answered with a reset. */
#define NET_STALE_PER_S 100
#define NET_STALE_BURST 1024
#define NET_DNS_PER_S 500
#define NET_DNS_BURST 1000
/* Answers to datagrams that are refused. */
#define NET_REJECT_PER_S 50

#define NET_LISTEN_BACKLOG 256
#define NET_TCP_PORT 15001 /* where TCP is redirected to, inside the namespace */
#define NET_DNS_PORT 53
#define NET_DIAL_SYN_RETRIES 3

#define NET_CUT_ROUNDS 64             /* of 256 connections each, when a machine goes */

#endif
