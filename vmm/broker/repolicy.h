/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A running machine gets another egress policy. Theory: written down, sent to the proxy, and answered when the proxy has
 * said (by its certificate authority for the machine, which it sends after it took the policy) that it is in force; if the guest has to
 * trust an authority that it does not know yet, or to give its processes new variables, its agent is told before the answer.
 * One at a time for each machine.
 */
#ifndef NB_BROKER_REPOLICY_H
#define NB_BROKER_REPOLICY_H

#include "vmm/broker/machine.h"
#include "vmm/broker/peer.h"

/* On success the request is answered later: RC_TIMEOUT if the proxy hangs (the policy is kept and sent again when it attaches),
 * RC_GUEST if the agent refused (it is in force). RC_AGAIN: another change is under way. */
enum rc repolicy_begin(struct machine *m, const struct broker_vm_policy_set *q, struct request *r, struct fault *ret_f);
/* The proxy has sent the machine's authority; m->ca_pem is the one before. */
void repolicy_ca(struct machine *m, const char *pem);
/* If the machine runs, and its proxy's answer came only after its guest was told who it is: the guest is told of it. */
void repolicy_missed(struct machine *m);
/* The machine ends. */
void repolicy_cancel(struct machine *m);

#endif
