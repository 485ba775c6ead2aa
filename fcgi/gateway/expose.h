/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Exposures: one listening socket <run_dir>/expose/<host>.sock for each host the broker names. Theory: the broker's list is
 * read and its events are followed over the same connection; after a broken connection the list is read again, and hosts that are not on
 * it any more lose their socket. Until then the sockets stay, so that a restart of the broker refuses nobody.
 *
 * A visit (one connection of nginx) goes: dial (the broker answers with a connection to the agent, the service line already
 * sent) -> answer (the agent's line is read, not a byte beyond it) -> relay. Where no machine stands behind the host (the
 * broker says so, and tells the runner that one is wanted), the dial is repeated until EXPOSE_WAKE_MS have passed. The runner asks whether a host
 * is visited before it puts a machine to sleep; a visit that begins while it does finds no machine, and waits.
 */
#ifndef NB_GATEWAY_EXPOSE_H
#define NB_GATEWAY_EXPOSE_H

#include "fcgi/gateway/gateway.h"

/* The working directory must be <run_dir>/expose; sockets of an earlier life are removed from it. */
enum rc expose_init(struct gateway *gw, struct fault *ret_f);
void expose_link_state(struct gateway *gw, bool up);
void expose_link_event(struct gateway *gw, uint16_t event, struct wire *w);
size_t expose_count(void);
void expose_free(struct gateway *gw);

/* What may be a file name and a DNS name: labels of a-z, 0-9 and -, bounded. */
bool expose_host_is_valid(const char *host);

/* Takes fd. A connection of nginx for this host. */
void visit_accept(struct gateway *gw, const char *host, int fd);
void visit_wake(struct gateway *gw, const char *host); /* something changed behind the host */
void visits_free(struct gateway *gw);

/* What GATEWAY_HOST_STAT answers. */
void expose_host_stat(struct gateway *gw, const char *host, struct gateway_host_stat *ret);
void visits_stat(struct gateway *gw, const char *host, struct gateway_host_stat *ret); /* open, waiting, oldest_ms */
void expose_touch(const char *host); /* a visit has ended */
bool expose_is_there(const char *host);
/* Whose host it is; empty if nobody said so. Until the next event. */
const char *expose_org(const char *host);

#endif
