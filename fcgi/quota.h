/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What one organization may have. A check belongs into the transaction that adds, so that it holds when several add at once.
 *
 * Storage is what could be on the disk: the capacity of volumes, the data of snapshots, of captures what they took, of those being made what
 * they may take. Deployed trees are summed apart, by the same bound: there may be many of them, too many to count with the database locked.
 */
#ifndef NB_FCGI_QUOTA_H
#define NB_FCGI_QUOTA_H

#include "fcgi/db.h"

/* sql: one number, of the organization ?1. RC_LIMIT if it would be more than max with `more` of them; what: "apps", for the text. */
enum rc quota_room(struct db *db, const char *sql, const char *org_id, uint64_t more, uint64_t max, const char *what, struct fault *ret_f);
/* RC_DENIED: beyond tenant_storage_gib with so many bytes more. gib 0: no bound. */
enum rc quota_storage(struct db *db, const char *org_id, uint64_t more, uint64_t gib, struct fault *ret_f);
/* The same, of deployed trees; not for a transaction. */
enum rc quota_trees(struct db *db, const char *org_id, uint64_t gib, struct fault *ret_f);

#endif
