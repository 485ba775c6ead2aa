/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What one organization's sandboxes use of what all sandboxes share. Theory: each thing that is bounded for the whole proxy (connections,
 * intercepted ones, bytes held, names being resolved, bytes of the ledger's queue) is divided by base/share.h. The bounds of a single sandbox
 * hold as well.
 */
#ifndef NB_EGRESS_TENANT_H
#define NB_EGRESS_TENANT_H

#include "base/fault.h"
#include "base/share.h"
#include "schema/ledger.h"

#include <stdbool.h>
#include <stddef.h>

struct lookup_share;

/* Counters; one of an organization, one of all. */
struct usage {
	size_t conns, tls, held;
};

struct tenant {
	struct tenant *next;
	size_t n_sandboxes;
	struct usage usage;
	struct lookup_share *lookups;
	char org[LEDGER_ORG_MAX];
};

/* The organization's, made if need be; it goes with its last sandbox. org may be NULL or too long for a name: that is one for all such. */
enum rc tenant_join(struct tenant **list, const char *org, struct tenant **ret, struct fault *ret_f);
void tenant_leave(struct tenant **list, struct tenant *t);

#endif
