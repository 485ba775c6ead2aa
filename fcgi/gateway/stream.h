/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What nginx passes to stream.sock: one request head, then, if its ticket is good, the bytes of that ticket. States: head (a
 * deadline, a bounded buffer), then relay or log follower (no deadline, no buffer). The end of either connection ends the
 * stream and closes whatever the ticket held. A lease is held, never looked at: its other end closes too when the broker is
 * restarted, which must end nothing.
 */
#ifndef NB_GATEWAY_STREAM_H
#define NB_GATEWAY_STREAM_H

#include "fcgi/gateway/gateway.h"

/* Takes fd. arg: the gateway. */
void stream_accept(void *arg, int fd);
void streams_free(struct gateway *gw);

#endif
