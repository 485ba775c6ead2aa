/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cage of a VM process. Theory: a VM process is expected to be taken over by its guest one day, so what it can
 * reach is decided here and not by what it usually does. It keeps exactly the descriptors that it was granted; its root
 * is read-only and shows the named files only; it is alone in its PID, IPC, UTS and network namespaces; its uid
 * is its own; its capability sets and bounding set are empty and nothing can be regained; and a system call filter is loaded
 * before it runs its first instruction.
 *
 * A root is built once (struct jail_root, a mount namespace without a process) and every jailed process gets a private
 * copy of that namespace: a few mounts, instead of the host's whole table, and no path of the host is looked up later.
 *
 * jail_spawn() does not block. A stage that fails in the child writes "jail: <stage>: <reason>" to err_fd and exits with
 * JAIL_EXIT; the caller sees it as the end of the process and reads the reason there.
 */
#ifndef NB_JAIL_H
#define NB_JAIL_H

#include "base/fault.h"
#include "vmm/jail/limits.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define JAIL_FD_FIRST 3 /* 0 and 1 are /dev/null, 2 is err_fd, then the granted ones in order */
#define JAIL_EXIT 126

struct jail_root;   /* one for each kind of process */
struct jail_filter; /* a system call filter, compiled */

/* Read-only, nosuid, nodev. Directories above the target are made. A device becomes a node that everybody in the jail
 * may open: name only those that are meant for it. */
struct jail_mount {
	const char *source; /* on the host: a regular file, directory or character device; symbolic links are followed */
	const char *target; /* absolute, in the jail */
};

/* With proc, the jail has a /proc that shows its own processes only. No mounts and no proc: an empty root. */
enum rc jail_root_new(const struct jail_mount *mounts, size_t n, bool proc, struct jail_root **ret,
		      struct fault *ret_f);
void jail_root_free(struct jail_root *root);

struct jail_spec {
	const struct jail_root *root;     /* borrowed */
	const struct jail_filter *filter; /* borrowed; NULL: none (tests only) */
	int exec_fd;                      /* the program; close-on-exec, so it is not left open */
	char *const *argv, *const *envp;
	uid_t uid;                        /* and gid; not 0 */
	int null_fd;                      /* /dev/null */
	int err_fd;                       /* standard error */
	const int *fds;
	size_t n_fds;
	int cgroup_procs_fd;              /* "0" is written to it; -1: none */
	uint64_t max_file_bytes, max_locked_bytes, max_processes, max_files;
};

/* *ret_pidfd is close-on-exec; the caller reaps. */
enum rc jail_spawn(const struct jail_spec *spec, pid_t *ret_pid, int *ret_pidfd, struct fault *ret_f);

/*
 * vmm/jail/filter.c. A deny-list would have to name everything that is dangerous; these are allow-lists, by default
 * KILL_PROCESS. Each call is named with its reason. Calls in `refused` fail with EPERM or ENOSYS instead of killing, where
 * a library probes for them.
 */
struct jail_call {
	int nr;
	const char *reason;
	unsigned int n_args; /* allowed only if every (arg & mask) == value */
	struct {
		unsigned int index;
		uint64_t mask, value;
	} args[2];
};

struct jail_refusal {
	int nr, sys; /* errno it fails with */
};

struct jail_list {
	const struct jail_call *calls;
	size_t n_calls;
	const struct jail_refusal *refused;
	size_t n_refused;
};

/* NESTBOX_SECCOMP=log turns KILL into LOG, for finding a missing entry. */
enum rc jail_filter_new(const struct jail_list *list, struct jail_filter **ret, struct fault *ret_f);
void jail_filter_free(struct jail_filter *filter);
/* In the child, after no_new_privs. 0 or -1 with errno; async-signal-safe. */
int jail_filter_load(const struct jail_filter *filter);

#endif
