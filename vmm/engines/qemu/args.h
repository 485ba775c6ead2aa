/* SPDX-License-Identifier: Apache-2.0 */
/* QEMU's command line and the descriptors that go with it. */
#ifndef NB_QEMU_ARGS_H
#define NB_QEMU_ARGS_H

#include "base/buf.h"
#include "vmm/engines/engine.h"
#include "vmm/engines/qemu/limits.h"
#include "vmm/jail/jail.h"

struct args {
	char *v[QEMU_ARGS_MAX + 1];
	size_t n;
	int fds[JAIL_FDS_MAX]; /* borrowed; the i-th is JAIL_FD_FIRST + i in QEMU */
	size_t n_fds;
	int ram_fd; /* QEMU's number of the memory */
	bool failed, described;
};

struct args_in {
	const struct engine_spec *spec;
	bool kvm;
	uint32_t tsc_khz;
	int qmp_fd, ram_fd, log_fd;
	int state_fd; /* device state to start from; -1: cold */
	bool described; /* not to be run: descriptors have no numbers */
};

/* QEMU's number for state_fd, in struct args of a start from a snapshot. */
#define ARGS_STATE_FD(a) ((a)->ram_fd + 1)

/* Checks the spec too: RC_INVALID says what is wrong with it. */
enum rc args_build(const struct args_in *in, struct args *ret, struct fault *ret_f);
void args_free(struct args *a);
#define _cleanup_args_ _cleanup_(args_free)

/*
 * What must be equal for saved device state to fit: all arguments but those of a cold start and those that only tell QEMU where
 * the host has something or how it is to be guarded.
 */
enum rc args_shape(const struct engine_spec *spec, bool kvm, char *out, size_t size, struct fault *ret_f);
/* Of the engine: its version and every argument, those of a cold start and what it adds to the kernel's command line too. */
enum rc args_engine_shape(const char *version, bool kvm, char out[SHAPE_MAX], struct fault *ret_f);
/* One text of these arguments; those of the host left out or not. */
enum rc args_text(const struct args *a, bool all, struct buf *out, struct fault *ret_f);

#endif
