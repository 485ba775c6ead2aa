/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who talks to the broker: connections on <run_dir>/broker.sock, their requests and what they have not read yet.
 *
 * Theory: a peer is what SO_PEERCRED says when it connects, nothing it says itself. Each packet is one request and gets
 * exactly one reply, now or later, in any order; the struct request stands for that debt. A peer that breaks the
 * protocol, asks more than PEER_REQUESTS_MAX at once or does not read what it is sent is closed; its requests run on and
 * their replies go nowhere. Descriptors wait in the queue as duplicates of ours and are closed with it.
 */
#ifndef NB_BROKER_PEER_H
#define NB_BROKER_PEER_H

#include "vmm/broker/broker.h"

/* Who may ask: bits of struct op.who. A uid may be several (tests run everything as one user). */
#define PEER_API 1u
#define PEER_GATEWAY 2u
#define PEER_EGRESS 4u
#define PEER_ROOT 8u
#define PEER_SSH 16u
#define PEER_ANY 31u

struct peer;

struct request {
	struct peer *peer; /* NULL: it went away */
	struct request *next, **at;
	uint16_t op;
	uint32_t sequence;
};

/* Both end the request. put NULL: no fields. fds: n_fds descriptors that are given away. */
void request_reply(struct request *r, message_put_fn *put, const void *m, const int *fds, size_t n_fds);
void request_fail(struct request *r, const struct fault *f);
static inline bool request_alive(const struct request *r)
{
	return r->peer != NULL;
}
void peer_subscribe(struct request *r);
/* RC_STATE if another one is attached: there is one egress proxy. */
enum rc peer_egress_attach(struct request *r, struct fault *ret_f);
unsigned int peer_who(const struct peer *p);

/* listen_fd: -1 for none (tests), owned. */
enum rc peers_new(struct broker *b, int listen_fd, struct fault *ret_f);
void peers_free(struct broker *b);
/* Takes over a connected SOCK_SEQPACKET socket of a peer that is `who`. */
enum rc peer_add(struct broker *b, int fd, unsigned int who, struct fault *ret_f);
size_t peers_count(const struct broker *b);

/* ops.c: one decoded head; fields are still in *w. */
void ops_dispatch(struct broker *b, struct request *r, struct wire *w);

#endif
