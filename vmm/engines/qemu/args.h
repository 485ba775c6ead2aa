/* SPDX-License-Identifier: Apache-2.0 */
/* QEMU's command line and the descriptors that go with it. */
#ifndef NB_QEMU_ARGS_H
#define NB_QEMU_ARGS_H

#include "vmm/engines/engine.h"
#include "vmm/engines/qemu/limits.h"
#include "vmm/jail/jail.h"

struct args {
	char *v[QEMU_ARGS_MAX + 1];
	size_t n;
	int fds[JAIL_FDS_MAX]; /* borrowed; the i-th is JAIL_FD_FIRST + i in QEMU */
	size_t n_fds;
	int ram_fd; /* QEMU's number of the memory */
	bool failed;
};

struct args_in {
	const struct engine_spec *spec;
	bool kvm;
	uint32_t tsc_khz;
	int qmp_fd, ram_fd, log_fd;
	int state_fd; /* device state to start from; -1: cold */
};

/* QEMU's number for state_fd, in struct args of a start from a snapshot. */
#define ARGS_STATE_FD(a) ((a)->ram_fd + 1)

/* Checks the spec too: RC_INVALID says what is wrong with it. */
enum rc args_build(const struct args_in *in, struct args *ret, struct fault *ret_f);
void args_free(struct args *a);
#define _cleanup_args_ _cleanup_(args_free)

/* What must be equal for saved device state to fit: everything above but descriptors, id and cold start. */
enum rc args_shape(const struct engine_spec *spec, bool kvm, char *out, size_t size, struct fault *ret_f);

#endif
