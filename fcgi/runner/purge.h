/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Deleted volumes and snapshots are gone for requests at once; what they take on disk goes PURGE_KEEP_MS later, so that an operator
 * can bring them back (nestboxadm volume restore) until then.
 */
#ifndef NB_RUNNER_PURGE_H
#define NB_RUNNER_PURGE_H

#include "fcgi/db.h"
#include "fcgi/runner/link.h"

/* At most one of each kind a call: removing a large file takes the broker's time. */
void purge_run(struct db *db, struct link *l);

#endif
