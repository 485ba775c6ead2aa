/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The egress ledger: one JSON line per connection, refused name or intercepted request, in the files of schema/ledger.h. Adding a
 * row never waits for the disk.
 */
#ifndef NB_EGRESS_LEDGER_H
#define NB_EGRESS_LEDGER_H

#include "base/config.h"
#include "base/fault.h"
#include "schema/ledger.h"

#include <stdbool.h>
#include <stdint.h>

struct ledger;

/* Strings may be NULL or empty: the key is then left out. Host names and rules are ours; a path is the guest's, and
 * what is no UTF-8 in it is written as '?'. */
struct ledger_row {
	const char *sandbox, *org;
	const char *protocol; /* "tcp", "tls", "http", "https" (intercepted), "dns" */
	const char *name, *address;
	uint16_t port;
	const char *decision; /* "allow", "deny", "error" (allowed, but it did not come about) */
	const char *rule;     /* what decided */
	const char *reason;   /* how it ended, where that was not the peers' own end */
	const char *method, *path, *secret;
	uint32_t status;
	uint64_t bytes_out, bytes_in, duration_ms, count;
};

/* Opens <state_dir>/logs/egress, made if need be; as root gives it to user_egress. */
enum rc ledger_new(const struct config *config, struct ledger **ret, struct fault *ret_f);
/* Starts the writer: after the privileges are gone, before the system call filter. */
enum rc ledger_start(struct ledger *l, struct fault *ret_f);
/* False: there was no room, the row is lost. */
bool ledger_add(struct ledger *l, const struct ledger_row *row);
/* There is a file of that organization from now on, so that it can be followed. */
void ledger_begin(struct ledger *l, const char *org);
/* Writes what is queued, ends the writer. */
void ledger_free(struct ledger *l);

#endif
