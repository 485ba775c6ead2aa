/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ledger's files (schema/ledger.h), of all organizations. Theory: one file of each organization is the one that is written;
 * a new day or a full one ends it with LEDGER_END and begins the next. What cannot be written is counted, and the count is
 * the first row once writing works again. Old files go by age and by the sum of an organization's sizes, never the one that is written.
 * Used by the ledger's thread alone.
 */
#ifndef NB_EGRESS_LEDGER_FILES_H
#define NB_EGRESS_LEDGER_FILES_H

#include "base/fault.h"
#include "schema/ledger.h"

#include <stddef.h>
#include <stdint.h>

struct ledger_files;

/* dirfd stays the caller's. keep_days 0: for ever. */
enum rc ledger_files_new(int dirfd, uint64_t keep_days, uint64_t keep_bytes, struct ledger_files **ret, struct fault *ret_f);
void ledger_files_free(struct ledger_files *t);
/* Whole lines. n 0: only makes sure that there is a file, so that it can be followed. */
void ledger_files_write(struct ledger_files *t, const char *org, const void *lines, size_t n);
/* Removes what is too old or too much, of organizations that write nothing any more, too. */
void ledger_files_sweep(struct ledger_files *t);
/* Rows that are lost and not yet told of in any file. */
uint64_t ledger_files_lost(const struct ledger_files *t);

/* Days since 1970 to "2026-01-02"; gmtime_r may want the time zone's file. */
void ledger_day_name(long long day, char out[16]);

#endif
