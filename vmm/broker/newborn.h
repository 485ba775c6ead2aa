/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The last step of whatever makes a machine: it runs, and its agent is told who it is (doc/fork-safety.md). Theory: what the guest
 * has to trust comes from the egress proxy, which was asked when the machine's network was made; it is waited for, but not long.
 */
#ifndef NB_BROKER_NEWBORN_H
#define NB_BROKER_NEWBORN_H

#include "vmm/broker/machine.h"

struct newborn;
/* Once, unless it was stopped or freed. */
typedef void newborn_done_fn(void *arg, enum rc rc, const struct fault *f);

/* Copies all that it is given. RC_INVALID: what it shall be told cannot be said. env: "NAME=value\0" repeated. */
enum rc newborn_new(const char *hostname, const uint8_t *env, size_t env_n, newborn_done_fn *done,
		    void *arg, struct newborn **ret, struct fault *ret_f);
/* m runs. root: as in identity_line(). answer_ms: how long its agent may take. May call done at once, if it fails. */
void newborn_identify(struct newborn *n, struct machine *m, const char *root, uint64_t answer_ms);
/* The machine ends: nothing will be called any more. NULL is fine. */
void newborn_stop(struct newborn *n);
/* Before the machine is freed, or after newborn_stop(). NULL is fine. */
void newborn_free(struct newborn *n);

/* The control operation "trust" of schema/agent.h. */
enum rc trust_line(const uint8_t *env, size_t env_n, const char *ca_pem, char **ret, struct fault *ret_f);
/* The control line that gives a machine its identity; to be freed. root: schema/agent.h, "": as it is. */
enum rc identity_line(const char *hostname, const uint8_t *env, size_t env_n, const char *ca_pem, const char *root,
		      char **ret, struct fault *ret_f);

#endif
