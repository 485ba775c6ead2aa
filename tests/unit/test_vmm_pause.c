/* SPDX-License-Identifier: Apache-2.0 */
/* Pausing and resuming a machine on a KVM whose guest does what the test says: nothing that is under way is lost. */
#include "tests/lib/check.h"
#include "tests/unit/vmm_machine.h"

#include <errno.h>
#include <linux/kvm.h>
#include <semaphore.h>
#include <stdatomic.h>

#define CPUS 2

static struct {
	struct vm *vm;
	sem_t entered, go;
	_Atomic unsigned int entries, ran;
	_Atomic bool armed;
	unsigned int part, parts; /* of the instruction that is under way */
} bed;

static struct vm *begin(unsigned int cpus, int (*run)(struct kvm_run *run, int *err))
{
	struct fault f = { 0 };

	fake_kvm = (struct fake_kvm){ .tsc_khz = 2000000, .tsc_offset_attr = true, .run = run };
	memset(&bed, 0, sizeof(bed));
	sem_init(&bed.entered, 0, 0);
	sem_init(&bed.go, 0, 0);
	if (machine_new(cpus, -1, -1, &bed.vm, &f))
		abort();
	return bed.vm;
}

static int interrupted(int *err)
{
	*err = EINTR;
	return -1;
}

/* Each processor's first entry is the one of its parking: held until the machine was resumed meanwhile. */
static int run_held(struct kvm_run *run, int *err)
{
	if (bed.entries++ < CPUS) {
		sem_post(&bed.entered);
		sem_wait(&bed.go);
		bed.ran += !run->immediate_exit;
		sem_post(&bed.entered);
		return interrupted(err);
	}
	return FAKE_HALTS;
}

/* In a guest that runs there the exits are not looked at, and the thread is not confined yet. */
TEST(a_resume_while_threads_still_park_runs_no_guest_in_the_parking)
{
	struct vm *vm = begin(CPUS, run_held);
	struct fault f;

	REQUIRE(!vm_start_threads(vm, &f));
	for (int i = 0; i < CPUS; i++)
		sem_wait(&bed.entered);
	CHECK_EQ(vm_resume(vm, &f), RC_OK);
	for (int i = 0; i < CPUS; i++)
		sem_post(&bed.go);
	for (int i = 0; i < CPUS; i++)
		sem_wait(&bed.entered);
	CHECK_EQ(vm_pause(vm, &f), RC_OK);
	CHECK_EQ(bed.ran, 0);
	CHECK(bed.entries >= CPUS);
	vm_free(vm);
}

/* One instruction that writes bed.parts bytes to the serial port's scratch register, a byte an exit. */
static int run_parts(struct kvm_run *run, int *err)
{
	if (run->immediate_exit ? !bed.part : !bed.armed)
		return run->immediate_exit ? interrupted(err) : FAKE_HALTS;
	bed.armed = false;
	if (!bed.part) {
		sem_post(&bed.entered);
		/* It comes out when somebody wants the machine to stop. */
		while (!bed.vm->stop)
			usleep(100);
	}
	if (bed.part == bed.parts) {
		bed.part = 0;
		return interrupted(err);
	}
	run->exit_reason = KVM_EXIT_IO;
	run->io.direction = KVM_EXIT_IO_OUT;
	run->io.port = 0x3f8 + 7;
	run->io.size = 1;
	run->io.count = 1;
	run->io.data_offset = 4096;
	((uint8_t *)run)[4096] = (uint8_t)++bed.part;
	return 0;
}

TEST(an_instruction_of_several_exits_is_complete_before_the_state_is_taken)
{
	for (unsigned int parts = 1; parts < 6; parts++) {
		struct vm *vm = begin(1, run_parts);
		struct fault f;

		bed.parts = parts;
		bed.armed = true;
		REQUIRE(!vm_start_threads(vm, &f) && !vm_resume(vm, &f));
		sem_wait(&bed.entered);
		CHECK_EQ(vm_pause(vm, &f), RC_OK);
		CHECK_EQ(vm->serial.scratch, parts);
		CHECK_EQ(bed.part, 0);
		vm_free(vm);
	}
}

/* The last part is the guest's end: the machine ends, and can still be paused and resumed by whoever has not heard of it. */
static int run_end(struct kvm_run *run, int *err)
{
	if (run->immediate_exit) {
		if (bed.part++)
			return interrupted(err);
		run->exit_reason = KVM_EXIT_SHUTDOWN;
		return 0;
	}
	bed.ran++;
	return FAKE_HALTS;
}

TEST(an_end_that_is_found_while_parking_ends_the_machine)
{
	struct vm *vm = begin(1, run_end);
	struct fault f;
	uint64_t n;

	REQUIRE(!vm_start_threads(vm, &f));
	while (!vm->parked)
		usleep(100);
	CHECK_EQ(read(vm->end_fd, &n, sizeof(n)), 8);
	CHECK(vm->end_reason && strstr(vm->end_reason, "triple fault"));
	CHECK_EQ(vm_resume(vm, &f), RC_OK);
	CHECK_EQ(vm_pause(vm, &f), RC_OK);
	CHECK_EQ(bed.ran, 0);
	vm_free(vm);
}

/* A guest that exits or halts, as it comes. */
static int run_busy(struct kvm_run *run, int *err)
{
	if (run->immediate_exit)
		return interrupted(err);
	if (bed.entries++ % 3 == 0)
		return FAKE_HALTS;
	run->exit_reason = KVM_EXIT_MMIO;
	run->mmio.phys_addr = 0xfee00000;
	run->mmio.is_write = 0;
	run->mmio.len = 4;
	return 0;
}

TEST(no_kick_is_lost)
{
	struct vm *vm = begin(4, run_busy);
	struct fault f;

	alarm(300); /* a lost one waits for ever */
	REQUIRE(!vm_start_threads(vm, &f));
	for (int i = 0; i < 2000; i++) {
		CHECK_EQ(vm_resume(vm, &f), RC_OK);
		if (i % 4 == 0)
			usleep((useconds_t)(i % 97));
		CHECK_EQ(vm_pause(vm, &f), RC_OK);
	}
	alarm(0);
	vm_free(vm);
}

CHECK_MAIN()
