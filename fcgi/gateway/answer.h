/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An HTTP answer of the gateway's own, and the end of the connection. What the peer still sends is read and dropped for a moment:
 * closing a socket with unread bytes in it would take the answer away from the peer.
 */
#ifndef NB_GATEWAY_ANSWER_H
#define NB_GATEWAY_ANSWER_H

#include "fcgi/gateway/gateway.h"

/* Takes fd, which was counted by stream_admit(). `code` NULL: text/plain for people, else {"code", "message"} as JSON. */
void answer_end(struct gateway *gw, int fd, int status, const char *code, const char *message);
void partings_free(struct gateway *gw);

#endif
