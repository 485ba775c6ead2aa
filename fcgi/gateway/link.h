/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A lasting connection to the broker for a program with a loop. Theory: questions are queued, at most LINK_FLIGHT_MAX of
 * them are at the broker at a time, answers are matched by sequence. When the connection breaks, every open question is
 * answered RC_CLOSED and a new connection is tried with growing pauses; when it is up (again), up() is called, which is
 * the place to subscribe and to compare lists.
 * Questions of one group (what is asked about one host) have LINK_GROUP_FLIGHT_MAX of the places at the broker, and one after the
 * broker took LINK_SLOW_MS to answer such: a machine that lets its dials hang is the concern of its own visitors. Somebody may have
 * many such hosts, and make more of them. So slow ones have LINK_SLOW_FLIGHT_MAX places together, and with those of which nothing
 * is known yet LINK_DOUBT_FLIGHT_MAX: hosts that answer have the others for themselves, however many there are that do not.
 * Of each of these, and of all places, an owner (an organization) may take one more while it has less than what is left: one alone
 * has half, and the next always finds a place, however many hosts the first one has and makes.
 */
#ifndef NB_GATEWAY_LINK_H
#define NB_GATEWAY_LINK_H

#include "base/loop.h"
#include "schema/broker.h"

#include <stdbool.h>

struct link;
struct link_call;

/* w stands at the first field of the reply (rc 0 only). Descriptors left in fds after the call are closed. */
typedef void link_reply_fn(void *arg, enum rc rc, const struct fault *f, struct wire *w, int *fds, size_t n_fds);
typedef void link_event_fn(void *arg, uint16_t event, struct wire *w);
typedef void link_state_fn(void *arg, bool up);

struct link_client {
	link_event_fn *event;
	link_state_fn *state;
	void *arg;
};

/* Tries to connect at once; state() is called from the loop. path is copied. */
enum rc link_new(struct loop *loop, const char *path, const struct link_client *client, struct link **ret,
		 struct fault *ret_f);
void link_free(struct link *l); /* open questions get no answer */
bool link_is_up(const struct link *l);

/* group: NULL: of none. owner: whose group that is; NULL or empty: its own. *ret lives until fn was called or it was cancelled. RC_CLOSED when there is no connection, RC_LIMIT when too
 * many wait, in all or of the group. */
enum rc link_ask(struct link *l, const char *group, const char *owner, uint16_t op, message_put_fn *put, const void *request, link_reply_fn *fn,
		 void *arg, struct link_call **ret, struct fault *ret_f);
/* fn will not be called; descriptors of a late answer are closed. NULL is fine. */
void link_cancel(struct link_call *call);

#endif
