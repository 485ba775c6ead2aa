/* SPDX-License-Identifier: Apache-2.0 */
/*
 * VM_CREATE: from a request to an answer. Theory: one struct create walks through
 *   template ready -> machine prepared -> engine restored it -> agent took its identity -> answered
 * with one deadline over all. Whatever fails, the machine is ended and the request is answered when nothing is left of it,
 * so that a failed create can be repeated with the same id.
 */
#ifndef NB_BROKER_CREATE_H
#define NB_BROKER_CREATE_H

#include "vmm/broker/broker.h"

struct request;

/* Ends the request, now or later. */
void create_begin(struct broker *b, struct request *r, const struct broker_vm_create *q);

#endif
