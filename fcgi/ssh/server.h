/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon's side: accepts, starts a process for each connection, and answers what it asks on its gate (gate.h).
 *
 * Theory: a connection is STARTED (its process parses SSH, nobody is logged in, SSH_GRACE_MS), then LOGGED IN to the machine behind
 * one name, then ENDING (its gate is closed, SSH_END_MS to go by itself, then it is killed), and freed when its process is reaped.
 * One question at a time; a process that asks otherwise than gate.h says is killed. A login lives as long as the broker says so:
 * when it tells that a name is gone, or when after a restart it does not know it any more, the connections of that name end.
 */
#ifndef NB_SSH_SERVER_H
#define NB_SSH_SERVER_H

#include "base/config.h"
#include "base/loop.h"

struct server;

/* listen_fd, key_fd: taken over. key_fd: the host key's text, given to each process. conf: the file's name or NULL, kept. */
enum rc server_new(struct loop *loop, const struct config *cfg, const char *conf, int listen_fd, int key_fd, struct server **ret,
		   struct fault *ret_f);
/* Ends all connections. NULL is fine. */
void server_free(struct server *s);

#endif
