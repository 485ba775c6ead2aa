/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A log file, sent as it grows. Theory: what was written is read in whole lines, framed, and written to the client; while
 * the client takes no more, nothing is read. At the end of the file the follower waits for inotify (one watch per file, however many
 * follow it) and holds no buffer. The line GATEWAY_LOG_END ends the stream; so does the client. A comment every
 * FOLLOW_KEEPALIVE_MS keeps proxies from giving up and finds clients that have gone.
 */
#ifndef NB_GATEWAY_FOLLOW_H
#define NB_GATEWAY_FOLLOW_H

#include "fcgi/gateway/gateway.h"

enum rc follow_init(struct gateway *gw, struct fault *ret_f); /* opens inotify, before the filter is on */
void follow_free(struct gateway *gw);
/* Takes fd, counted by stream_admit(), and the ticket's descriptor. */
void follow_start(struct gateway *gw, int fd, struct ticket *ticket);
/* schema/gateway.h says what a filter is; NULL matches. */
bool follow_matches(const char *line, size_t n, const char *filter);

#endif
