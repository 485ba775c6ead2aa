/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading an organization's egress ledger (schema/ledger.h), newest rows first.
 *
 * Theory: files are read backwards in blocks, from the place that the cursor names or that halving by time finds (a block for each
 * halving). A row costs two searches for a substring; only rows that may fit are parsed. One scan reads at most
 * EGRESS_SCAN_MAX bytes; then it says where to go on, whether it has found anything or not.
 */
#ifndef NB_FCGI_EGRESS_SCAN_H
#define NB_FCGI_EGRESS_SCAN_H

#include "fcgi/ids.h"
#include "fcgi/json.h"
#include "schema/ledger.h"

#define EGRESS_CURSOR_MAX 48

/* NULL, empty or 0: any. */
struct egress_query {
	char sandbox[ID_MAX];
	const char *host;     /* a name, an address, or *.suffix */
	const char *decision, *protocol;
	char start[ISO_MAX], end[ISO_MAX]; /* both included; times of this form compare as texts */
};

/* False ends the scan before this row. The row belongs to the scan. */
typedef bool egress_row_fn(void *arg, struct json_object *row);

/* dirfd: of all ledgers. cursor: empty to begin at the newest; on return where the next scan goes on, empty at the end.
 * RC_INVALID: no such cursor. An organization without a ledger has no rows. */
enum rc egress_scan(int dirfd, const char *org, const struct egress_query *q, char cursor[EGRESS_CURSOR_MAX],
		    egress_row_fn *fn, void *arg, struct fault *ret_f);

bool egress_row_fits(const struct egress_query *q, struct json_object *row); /* but for its times */

/* The file in which the rows after `since` begin, and where (NULL: the newest, behind its last). RC_ABSENT: nothing was ever recorded. */
enum rc egress_file_since(int dirfd, const char *org, const char *since, char ret_name[LEDGER_NAME_MAX], int *ret_fd, uint64_t *ret_offset,
			  struct fault *ret_f);
/* The file that follows this one ("": the first). Once there is one, nothing is added to those before. */
bool egress_file_after(int dirfd, const char *org, const char *name, char ret[LEDGER_NAME_MAX]);
int egress_file_open(int dirfd, const char *org, const char *name); /* -1: none */

#endif
