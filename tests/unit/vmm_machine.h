/* SPDX-License-Identifier: Apache-2.0 */
/* A whole machine on the fake KVM: a disk in a memfd, a network card on a socket, 64 MiB. */
#ifndef NB_TESTS_VMM_MACHINE_H
#define NB_TESTS_VMM_MACHINE_H

#include "tests/unit/fake_kvm.h"
#include "vmm/engines/kvm/fork.h"
#include "vmm/engines/kvm/savefile.h"
#include "vmm/engines/kvm/vm.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define MACHINE_BYTES (64ull << 20)

static inline enum rc machine_new(unsigned int cpus, int base_fd, int delta_fd, struct vm **ret, struct fault *f)
{
	struct vm_spec spec = { .n_cpus = cpus, .n_disks = 1, .n_nics = 1, .serial_fd = -1 };
	struct memory memory;
	int pair[2] = { -1, -1 };
	enum rc rc = memory_create(MACHINE_BYTES, base_fd, delta_fd, &memory, f);

	if (rc)
		return rc;
	if (socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, pair) < 0)
		abort();
	close(pair[1]);
	spec.kvm_fd = fake_kvm_open();
	spec.disks[0].fd = memfd_create("disk", MFD_CLOEXEC);
	if (spec.kvm_fd < 0 || spec.disks[0].fd < 0 || ftruncate(spec.disks[0].fd, 1 << 20) < 0)
		abort();
	memcpy(spec.disks[0].serial, "disk", 5);
	spec.nics[0].tap_fd = pair[0];
	memcpy(spec.nics[0].mac, "02:00:00:00:00:01", 18);
	return vm_create(&spec, &memory, ret, f);
}

#endif
