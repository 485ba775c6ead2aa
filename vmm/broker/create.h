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

/* The control operation "trust" of schema/agent.h. */
enum rc trust_line(const uint8_t *env, size_t env_n, const char *ca_pem, char **ret, struct fault *ret_f);
/* The control line that gives a machine its identity; to be freed. env: "NAME=value\0" repeated. root: schema/agent.h, "":
 * as it is. */
enum rc identity_line(const char *hostname, const uint8_t *env, size_t env_n, const char *ca_pem, const char *root,
		      char **ret, struct fault *ret_f);

#endif
