/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of the gateway share. */
#ifndef NB_GATEWAY_GATEWAY_H
#define NB_GATEWAY_GATEWAY_H

#include "base/config.h"
#include "base/log.h"
#include "base/loop.h"
#include "fcgi/gateway/link.h"
#include "fcgi/gateway/relay.h"
#include "fcgi/gateway/ticket.h"

struct stream;
struct follow;
struct host;
struct visit;
struct parting;
struct peer;

struct gateway {
	struct config cfg;
	struct loop *loop;
	struct relay_pool pool;
	struct tickets *tickets;
	struct link *link;
	size_t n_streams;   /* streams, followers, visits and partings: all that a client's connection holds */
	size_t n_followers;
	struct stream *streams;
	struct visit *visits;
	struct parting *partings;
	int inotify;        /* -1: logs are polled */
};

/* True and counted, if another stream may begin. */
static inline bool stream_admit(struct gateway *gw)
{
	if (gw->n_streams >= GATEWAY_STREAMS_MAX)
		return false;
	gw->n_streams++;
	return true;
}

#endif
