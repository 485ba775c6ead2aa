/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A hostile saved machine. The first byte chooses: the machine's state into a machine (on the fake KVM), whose devices are then kicked, so that
 * what was accepted is used too; or a state file beside a small memory file, as it is and with its checksums made right.
 */
#include "tests/unit/vmm_machine.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void load_machine(const uint8_t *data, size_t n)
{
	static struct vm *vm;
	struct fault f;

	if (!vm && machine_new(1, -1, -1, &vm, &f))
		abort();
	fake_kvm_forget();
	(void)vm_load_state(vm, data, n, &f);
	for (unsigned int i = 0; i < vm->n_devices; i++) {
		struct virtio_device *d = &vm->devices[i];

		pthread_mutex_lock(&d->lock);
		d->paused = false;
		for (unsigned int q = 0; q < d->ops->n_queues; q++)
			if (virtio_live(d))
				d->ops->kick(d, q);
		pthread_mutex_unlock(&d->lock);
	}
}

#define MEMORY (512 << 10)

static int read_only(int fd)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return open(path, O_RDONLY | O_CLOEXEC);
}

static void load_file(const uint8_t *data, size_t n, bool sums)
{
	int memory = memfd_create("m", 0), state = memfd_create("s", 0), to = memfd_create("t", MFD_ALLOW_SEALING);
	int base = memfd_create("b", 0);
	struct memory m;
	uint32_t crc;
	struct fault f;

	if (memory < 0 || state < 0 || to < 0 || ftruncate(memory, MEMORY) < 0 || ftruncate(base, MEMORY) < 0 ||
	    pwrite(base, data, n < 5000 ? n : 5000, 9000) < 0 || pwrite(memory, data, n < 5000 ? n : 5000, 7000) < 0 ||
	    pwrite(state, data, n, 0) < 0)
		abort();
	if (sums && n > SAVEFILE_HEAD) {
		crc = savefile_crc(~0u, data + SAVEFILE_HEAD, n - SAVEFILE_HEAD);
		if (pwrite(state, &crc, 4, 20) < 0 || pwrite(state, "NBXM\2\0\0\0\0\0\10\0\0\0\0\0", 16, 0) < 0)
			abort();
		/* Differences: the bits are hostile too. */
		if (data[24] & 1 && (ftruncate(memory, MEMORY + MEMORY_MAP_BYTES(MEMORY)) < 0 || pwrite(memory, data, 16, MEMORY) < 0))
			abort();
	}
	(void)savefile_load(memory, state, base, to, &f);
	if (!memory_create(MEMORY, -1, read_only(memory), &m, &f))
		memory_free(&m);
	close(base);
	close(memory);
	close(state);
	close(to);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	if (!n || n > 65536)
		return 0;
	if (data[0] & 1)
		load_file(data + 1, n - 1, data[0] & 2);
	else
		load_machine(data + 1, n - 1);
	return 0;
}
