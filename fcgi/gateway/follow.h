/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A log file, sent as it grows. Theory: what was written is read in whole lines, framed, and written to the client; while
 * the client takes no more, nothing is read. At the end of the file the follower waits for inotify (one watch per file, however many
 * follow it) and holds no buffer. The line GATEWAY_LOG_END ends the stream; so does the client. A comment every
 * FOLLOW_KEEPALIVE_MS keeps proxies from giving up and finds clients that have gone.
 *
 * A follower with a place goes on in further files instead. The gateway may open none, so it asks the guide (schema/gateway.h) what
 * follows: at the end line, and at each comment, for a file whose writer died has no end line. Who has the next file reads the one before
 * to its end first. Nobody is asked about twice at once; followers of one place share the answer.
 */
#ifndef NB_GATEWAY_FOLLOW_H
#define NB_GATEWAY_FOLLOW_H

#include "fcgi/gateway/gateway.h"

enum rc follow_init(struct gateway *gw, struct fault *ret_f); /* opens inotify, before the filter is on */
void follow_free(struct gateway *gw);
/* Takes fd, counted by stream_admit(), and the ticket's descriptor. */
void follow_start(struct gateway *gw, int fd, struct ticket *ticket);
/* A place that a follower wants to know the next file of, and that the guide was not asked about. */
bool follow_question(char ret[GATEWAY_PLACE_MAX]);
/* The guide's answer; fd stays the caller's, -1: there is none so far. */
void follow_next(const char *place, const char *next, int fd);
/* What the one before was asked is open, and files may have ended while there was none: everybody asks. */
void follow_guide_new(void);
/* schema/gateway.h says what a filter is; NULL matches. */
bool follow_matches(const char *line, size_t n, const char *filter);

#endif
