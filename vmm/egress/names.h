/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The synthetic addresses of one sandbox: each name that its guest asked for and may reach has an address in
 * AGENT_SYNTHETIC_NET, which means that name here and nothing anywhere else.
 */
#ifndef NB_EGRESS_NAMES_H
#define NB_EGRESS_NAMES_H

#include "schema/verdict.h"

struct names;

struct name_entry {
	char name[POLICY_NAME_MAX];
	uint8_t address[4];
	/* What the name resolved to last, until then (CLOCK_MONOTONIC). Checked against the policy anew at each use. */
	uint64_t resolved_until_ms;
	struct address *resolved;
	size_t n_resolved;
	struct name_entry *lru_next, *lru_prev, *name_next, *address_next; /* names.c's */
};

enum rc names_new(struct names **ret, struct fault *ret_f);
void names_free(struct names *t);
/* The name's entry, made if need be; moves to the young end. NULL: out of memory. */
struct name_entry *names_get(struct names *t, const char *name);
/* Valid until the next names_get(). NULL if that address means nothing in this sandbox. */
struct name_entry *names_find(struct names *t, const uint8_t address[4]);
struct name_entry *names_find_name(struct names *t, const char *name);
size_t names_count(const struct names *t);

bool names_is_synthetic(const struct address *a);

#endif
