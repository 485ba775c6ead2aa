/* SPDX-License-Identifier: Apache-2.0 */
/* VM_DIAL, EXPOSE_DIAL and LOGIN_DIAL: connections to an agent, passed on. Both end the request, within DIAL_MS. */
#ifndef NB_BROKER_DIAL_H
#define NB_BROKER_DIAL_H

struct machine;
struct request;

void dial_machine(struct machine *m, struct request *r, int want_lease);
/* The line is sent first, and its answer is left to whoever gets the descriptor. */
void dial_exposed(struct machine *m, struct request *r, const char *line);
/* To the agent itself: the service is chosen by whoever gets the descriptor. */
void dial_login(struct machine *m, struct request *r);
/* The machine ends: what is on its way to it fails. */
void dials_cancel(struct machine *m);

#endif
