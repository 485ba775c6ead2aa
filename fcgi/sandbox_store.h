/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rows of sandboxes, for the workers and the runner.
 *
 * Theory: a row is 'starting' from before the broker is asked until the machine answers, 'running' then, 'stopped' for ever
 * after. The broker knows which machines exist; the row knows whose they are. Whoever notices that the two differ
 * makes the row say what the broker says.
 */
#ifndef NB_FCGI_SANDBOX_STORE_H
#define NB_FCGI_SANDBOX_STORE_H

#include "fcgi/db.h"
#include "fcgi/ids.h"
#include "fcgi/limits.h"

struct sandbox_row {
	const char *id, *org_id, *region, *node;
	bool lease;
	uint32_t memory_mib;
	const char *labels, *config;
	const char *forked_from; /* NULL: of nobody */
	uint64_t stop_at_ms;
	struct {
		const char *volume_id, *path;
	} volumes[VOLUMES_MAX + 1];
	size_t n_volumes;
};

/* Inserted as 'starting' unless the organization has `quota` live ones: RC_LIMIT. RC_EXISTS: a volume is attached elsewhere. RC_ABSENT: one
 * is deleted. */
enum rc sandbox_insert(struct db *db, const struct sandbox_row *row, uint64_t quota, struct fault *ret_f);
/* RC_STATE: somebody has ended it meanwhile, and its machine is to go. */
enum rc sandbox_set_running(struct db *db, const char *id, struct fault *ret_f);
/* Nothing was acknowledged: the row goes. */
enum rc sandbox_forget(struct db *db, const char *id, struct fault *ret_f);
/* Gives volumes and domains back. Does nothing if it is stopped already. reason: a sentence without secrets. */
enum rc sandbox_set_stopped(struct db *db, const char *id, const char *reason, struct fault *ret_f);

#endif
