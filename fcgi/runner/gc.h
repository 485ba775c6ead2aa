/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What apps leave behind: machines, names and files of deleted apps and revisions, revisions beyond revisions_keep, ended instances, captures
 * (fcgi/runner/capture.h), bundles that no revision has for bundle_keep_s.
 */
#ifndef NB_RUNNER_GC_H
#define NB_RUNNER_GC_H

#include "base/config.h"
#include "fcgi/db.h"
#include "fcgi/runner/link.h"

/* Deleted apps and revisions; cheap when there are none. */
void gc_deleted(const struct config *c, struct db *db, struct link *l);
/* The rest, a bounded part of it a call. */
void gc_old(const struct config *c, struct db *db, struct link *l);

#endif
