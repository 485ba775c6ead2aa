/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What every daemon does to itself before the first hostile byte. Stages, in this order:
 *   harden_ids()   leaves root: groups, uid, capability sets (libcap-ng), no_new_privs; proves nothing can be regained.
 *   harden_final() non-dumpable, no core, seccomp filter (libseccomp) with default KILL_PROCESS.
 * A role's system calls are a table with a reason a line. Sanitizer builds add to the list (HARDEN_SANITIZER),
 * they never switch the filter off. NESTBOX_SECCOMP=log turns KILL into LOG for finding a missing entry in a test.
 */
#ifndef NB_BASE_HARDEN_H
#define NB_BASE_HARDEN_H

#include "base/fault.h"

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* One allowed call. With n_args: allowed only if every (arg & mask) == value. Several rows of one call are alternatives. */
struct harden_call {
	int nr;             /* SCMP_SYS(read) */
	const char *reason;
	unsigned int n_args;
	struct {
		unsigned int index;
		uint64_t mask, value;
	} args[3];
};

/* The calls that every one of our daemons needs: memory, epoll, read/write, clocks, exit, signals. */
extern const struct harden_call harden_common[];
extern const size_t harden_n_common;

/* user: name; NULL keeps the uid (the broker). keep_caps: CAP_* numbers kept in all sets, may be NULL. */
enum rc harden_ids(const char *user, const int *keep_caps, size_t n_keep, struct fault *ret_f);
enum rc harden_final(const struct harden_call *calls, size_t n_calls, struct fault *ret_f);

#endif
