/* SPDX-License-Identifier: Apache-2.0 */
/* A machine's state out of KVM and back, on a KVM that keeps what is set: completeness, order, and what is refused. */
#include "tests/lib/check.h"
#include "tests/unit/vmm_machine.h"

#include "base/cleanup.h"
#include "base/fd.h"

#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <sys/stat.h>

#define MSR_TSC 0x10
#define MSR_DEADLINE 0x6e0

static void fake_reset(size_t xsave)
{
	fake_kvm = (struct fake_kvm){ .xsave_bytes = xsave, .tsc_khz = 2000000, .tsc_offset_attr = true };
}

static void fill(struct vm *vm, unsigned int seed)
{
	for (unsigned int i = 0; i < vm->n_cpus; i++) {
		uint32_t lvt = 2u << 17;

		fake_kvm_fill(vm->cpus[i].fd, seed + i);
		memcpy((uint8_t *)fake_kvm_lapic(vm->cpus[i].fd) + 0x320, &lvt, 4);
	}
	fake_kvm_fill(vm->vm_fd, seed + 100);
}

static bool save(struct vm *vm, struct buf *out)
{
	struct fault f = { 0 };

	vm->state = VM_PAUSED;
	if (!vm_save_state(vm, out, &f))
		return true;
	printf("  %s\n", f.text);
	return false;
}

static size_t at(unsigned long request, size_t from)
{
	for (size_t i = from; i < fake_kvm.n_log; i++)
		if (fake_kvm.log[i] == request)
			return i;
	return SIZE_MAX;
}

static size_t msr_at(uint32_t index, size_t from)
{
	for (size_t i = from; i < fake_kvm.n_msr_log; i++)
		if (fake_kvm.msr_log[i] == index)
			return i;
	return SIZE_MAX;
}

static void there_and_back(size_t xsave, bool attr)
{
	_cleanup_buf_ struct buf state = BUF_INIT(SAVEFILE_STATE_MAX * 2);
	struct vm *a, *b;
	struct fault f = { 0 };

	fake_reset(xsave);
	fake_kvm.tsc_offset_attr = attr;
	REQUIRE(!machine_new(3, -1, -1, &a, &f) && !machine_new(3, -1, -1, &b, &f));
	fill(a, 5);
	REQUIRE(save(a, &state));
	fake_kvm_forget();
	CHECK_EQ(vm_load_state(b, buf_data(&state), buf_len(&state), &f), RC_OK);
	for (unsigned int i = 0; i < 3; i++)
		CHECK(fake_kvm_same(a->cpus[i].fd, b->cpus[i].fd));
	CHECK(fake_kvm_same(a->vm_fd, b->vm_fd));
	vm_free(a);
	vm_free(b);
}

TEST(everything_comes_back_without_xsave) { there_and_back(0, true); }
TEST(everything_comes_back_with_xsave) { there_and_back(4096, true); }
TEST(everything_comes_back_with_a_large_xsave) { there_and_back(11008, true); } /* AMX: 8 KiB of tiles */
TEST(everything_comes_back_without_tsc_offsets) { there_and_back(4096, false); }

TEST(the_order_that_kvm_needs)
{
	_cleanup_buf_ struct buf state = BUF_INIT(SAVEFILE_STATE_MAX * 2);
	struct vm *a, *b;
	struct fault f;

	fake_reset(4096);
	fake_kvm.tsc_offset_attr = false; /* so that the TSC itself is in the log of MSRs */
	REQUIRE(!machine_new(1, -1, -1, &a, &f) && !machine_new(1, -1, -1, &b, &f));
	fill(a, 9);
	REQUIRE(save(a, &state));
	fake_kvm_forget();
	REQUIRE(!vm_load_state(b, buf_data(&state), buf_len(&state), &f));
	CHECK(at(KVM_SET_SREGS, 0) < at(KVM_SET_LAPIC, 0));
	CHECK(at(KVM_SET_REGS, 0) < at(KVM_SET_VCPU_EVENTS, 0));
	CHECK(at(KVM_SET_XSAVE, 0) < at(KVM_SET_XCRS, 0));
	CHECK(at(KVM_SET_LAPIC, 0) < at(KVM_SET_MSRS, 0)); /* the deadline is among them */
	CHECK(at(KVM_SET_VCPU_EVENTS, 0) > at(KVM_SET_MSRS, 0));
	CHECK(at(KVM_SET_CLOCK, 0) != SIZE_MAX && at(KVM_RUN, 0) == SIZE_MAX);
	CHECK(msr_at(MSR_TSC, 0) < msr_at(MSR_DEADLINE, 0));
	CHECK_EQ(msr_at(MSR_DEADLINE, 0), fake_kvm.n_msr_log - 1);
	vm_free(a);
	vm_free(b);
}

/* A deadline whose interrupt was on its way reads as 0; unless the timer is off or in another mode. */
TEST(a_deadline_that_had_fired_fires_again)
{
	static const struct {
		uint32_t lvt;
		bool repaired;
	} cases[] = { { 2u << 17, true }, { 2u << 17 | 1u << 16, false }, { 1u << 17, false }, { 0, false } };
	struct vm *a, *b;
	struct fault f;

	fake_reset(0);
	fake_kvm.tsc_offset_attr = false;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		_cleanup_buf_ struct buf state = BUF_INIT(SAVEFILE_STATE_MAX * 2);

		REQUIRE(!machine_new(1, -1, -1, &a, &f) && !machine_new(1, -1, -1, &b, &f));
		fill(a, 3);
		memcpy((uint8_t *)fake_kvm_lapic(a->cpus[0].fd) + 0x320, &cases[i].lvt, 4);
		fake_kvm_set_msr(a->cpus[0].fd, MSR_TSC, 123456789);
		fake_kvm_set_msr(a->cpus[0].fd, MSR_DEADLINE, 0);
		REQUIRE(save(a, &state) && !vm_load_state(b, buf_data(&state), buf_len(&state), &f));
		CHECK_EQ(fake_kvm_msr(b->cpus[0].fd, MSR_DEADLINE), cases[i].repaired ? 123456789 : 0);
		vm_free(a);
		vm_free(b);
	}
}

TEST(an_msr_that_kvm_lists_but_does_not_give_is_left_out)
{
	_cleanup_buf_ struct buf state = BUF_INIT(SAVEFILE_STATE_MAX * 2);
	struct vm *a, *b;
	struct fault f;

	fake_reset(0);
	fake_kvm.refused_msr = 0x277;
	REQUIRE(!machine_new(1, -1, -1, &a, &f) && !machine_new(1, -1, -1, &b, &f));
	fill(a, 3);
	REQUIRE(save(a, &state));
	CHECK_EQ(vm_load_state(b, buf_data(&state), buf_len(&state), &f), RC_OK);
	CHECK(fake_kvm_same(a->cpus[0].fd, b->cpus[0].fd));
	/* One that is in the state and is refused by this host is a reason not to go on. */
	fake_kvm.refused_msr = 0xc0000081;
	CHECK_EQ(vm_load_state(b, buf_data(&state), buf_len(&state), &f), RC_STATE);
	CHECK(strstr(f.text, "0xc0000081") != NULL);
	vm_free(a);
	vm_free(b);
}

static enum rc load_into(unsigned int cpus, const struct buf *state, struct fault *f)
{
	struct vm *b;
	enum rc rc = machine_new(cpus, -1, -1, &b, f);

	if (rc)
		return rc;
	rc = vm_load_state(b, buf_data(state), buf_len(state), f);
	vm_free(b);
	return rc;
}

TEST(what_does_not_fit_is_refused_with_a_reason)
{
	_cleanup_buf_ struct buf state = BUF_INIT(SAVEFILE_STATE_MAX * 2);
	struct fault f = { 0 };
	struct vm *a;

	fake_reset(4096);
	REQUIRE(!machine_new(2, -1, -1, &a, &f));
	fill(a, 1);
	REQUIRE(save(a, &state));
	CHECK_EQ(load_into(2, &state, &f), RC_OK);
	CHECK_EQ(load_into(1, &state, &f), RC_STATE);
	CHECK(strstr(f.text, "shape") != NULL);
	fake_kvm.cpuid_word = 1;
	CHECK_EQ(load_into(2, &state, &f), RC_STATE);
	CHECK(strstr(f.text, "processor") != NULL);
	fake_reset(8192);
	CHECK_EQ(load_into(2, &state, &f), RC_INVALID);
	fake_reset(4096);
	fake_kvm.tsc_khz = 2000400; /* 200 ppm */
	CHECK_EQ(load_into(2, &state, &f), RC_OK);
	fake_kvm.tsc_khz = 2001000;
	CHECK_EQ(load_into(2, &state, &f), RC_STATE);
	CHECK(strstr(f.text, "TSC") != NULL);
	/* An offset is to the scaled counter then, so the TSC itself is given. */
	fake_kvm.tsc_scales = true;
	fake_kvm_forget();
	CHECK_EQ(load_into(2, &state, &f), RC_OK);
	CHECK_EQ(at(KVM_SET_DEVICE_ATTR, 0), SIZE_MAX);
	CHECK(msr_at(MSR_TSC, msr_at(MSR_TSC, 0) + 1) != SIZE_MAX); /* of both */
	fake_kvm.tsc_khz = 2000000;
	fake_kvm_forget();
	CHECK_EQ(load_into(2, &state, &f), RC_OK);
	CHECK(at(KVM_SET_DEVICE_ATTR, 0) != SIZE_MAX);
	fake_reset(4096);
	buf_data(&state)[4]++; /* version */
	CHECK_EQ(load_into(2, &state, &f), RC_STATE);
	CHECK(strstr(f.text, "version") != NULL);
	vm_free(a);
}

TEST(every_shorter_state_is_refused)
{
	_cleanup_buf_ struct buf state = BUF_INIT(SAVEFILE_STATE_MAX * 2);
	struct fault f = { 0 };
	struct vm *a, *b;

	fake_reset(0);
	REQUIRE(!machine_new(1, -1, -1, &a, &f) && !machine_new(1, -1, -1, &b, &f));
	fill(a, 1);
	REQUIRE(save(a, &state));
	for (size_t n = 0; n < buf_len(&state); n += n < 200 || n + 400 > buf_len(&state) ? 1 : 13)
		CHECK(vm_load_state(b, buf_data(&state), n, &f) != RC_OK);
	CHECK_EQ(vm_load_state(b, buf_data(&state), buf_len(&state), &f), RC_OK);
	vm_free(a);
	vm_free(b);
}

/* --- files --------------------------------------------------------------------------------------------------------- */

struct files {
	int memory, state, to;
};

static bool files_make(struct files *out, uint32_t dirty)
{
	struct fault f = { 0 };
	struct vm *a;
	bool ok;

	fake_reset(0);
	*out = (struct files){ memfd_create("m", 0), memfd_create("s", 0), memfd_create("t", MFD_ALLOW_SEALING) };
	if (machine_new(1, -1, -1, &a, &f))
		return false;
	fill(a, 4);
	srandom(dirty);
	for (int i = 0; i < 50; i++)
		memset(memory_at(&a->memory, (uint64_t)random() % (MACHINE_BYTES - 100), 100, true), i + 1, 100);
	a->state = VM_PAUSED;
	ok = !vm_save(a, out->memory, out->state, &f);
	vm_free(a);
	return ok;
}

static void files_close(struct files *x)
{
	close(x->memory);
	close(x->state);
	close(x->to);
}

TEST(a_flipped_bit_anywhere_in_the_files_is_noticed)
{
	struct files x;
	struct fault f = { 0 };
	off_t n;

	REQUIRE(files_make(&x, 7));
	n = lseek(x.state, 0, SEEK_END);
	srandom(1);
	for (int i = 0; i < 90; i++) {
		bool in_state = i % 3 || i < 32;
		int fd = in_state ? x.state : x.memory;
		off_t where = in_state ? (i < 32 ? i : random() % n) : lseek(fd, random() % (off_t)MACHINE_BYTES, SEEK_DATA);
		uint8_t was, now;

		if (where < 0)
			continue;
		REQUIRE(pread(fd, &was, 1, where) == 1);
		now = (uint8_t)(was ^ 1u << random() % 8);
		REQUIRE(pwrite(fd, &now, 1, where) == 1);
		CHECK(savefile_load(x.memory, x.state, -1, x.to, &f) != RC_OK);
		REQUIRE(pwrite(fd, &was, 1, where) == 1);
	}
	CHECK_EQ(savefile_load(x.memory, x.state, -1, -1, &f), RC_OK);
	CHECK_EQ(savefile_load(x.memory, x.state, -1, x.to, &f), RC_OK);
	CHECK_EQ(ftruncate(x.to, 0), -1); /* sealed */
	files_close(&x);
}

TEST(files_of_other_sizes_are_refused)
{
	struct files x;
	struct fault f = { 0 };
	off_t n;

	REQUIRE(files_make(&x, 8));
	n = lseek(x.state, 0, SEEK_END);
	CHECK_EQ(ftruncate(x.memory, (off_t)MACHINE_BYTES - 4096), 0);
	CHECK(savefile_load(x.memory, x.state, -1, x.to, &f) != RC_OK);
	CHECK_EQ(ftruncate(x.memory, (off_t)MACHINE_BYTES), 0);
	for (off_t cut = 0; cut < 40; cut++) {
		CHECK_EQ(ftruncate(x.state, cut < 32 ? cut : n - (cut - 31)), 0);
		CHECK(savefile_load(x.memory, x.state, -1, x.to, &f) != RC_OK);
	}
	CHECK_EQ(ftruncate(x.state, 1ll << 40), 0);
	CHECK(savefile_load(x.memory, x.state, -1, x.to, &f) != RC_OK);
	files_close(&x);
}

/* A machine that was restored and saved again is the sum of what it came from and what it wrote. */
TEST(a_second_generation_has_all_memory)
{
	static uint8_t model[MACHINE_BYTES];
	int base = -1;
	struct fault f = { 0 };

	fake_reset(0);
	memset(model, 0, sizeof(model));
	srandom(2);
	for (int generation = 0; generation < 4; generation++) {
		struct files x = { memfd_create("m", 0), memfd_create("s", 0), memfd_create("t", MFD_ALLOW_SEALING) };
		struct vm *vm;

		REQUIRE(!machine_new(1, base, -1, &vm, &f));
		CHECK(!memcmp(vm->memory.base, model, sizeof(model)));
		for (int i = 0; i < 200; i++) {
			uint64_t where = (uint64_t)random() % (MACHINE_BYTES - 5000), n = (uint64_t)random() % 5000;

			if (random() % 4) {
				memset(memory_at(&vm->memory, where, n, true), (int)random(), n);
			} else {
				/* Given back: whatever it reads as now is what must be saved. */
				memory_discard(&vm->memory, where, n * 8 < MACHINE_BYTES - where ? n * 8 : 0);
			}
		}
		memcpy(model, vm->memory.base, sizeof(model));
		vm->state = VM_PAUSED;
		CHECK_EQ(vm_save(vm, x.memory, x.state, &f), RC_OK);
		CHECK_EQ(savefile_load(x.memory, x.state, -1, x.to, &f), RC_OK);
		vm_free(vm);
		base = dup(x.to);
		files_close(&x);
	}
	close(base);
}

/* --- what differs --------------------------------------------------------------------------------------------------- */

/* The page's first byte, in the delta of a fork; -1: it has none. */
static int forked_page(struct vm *vm, uint64_t page)
{
	struct fork_result r = { -1, -1, 0, 0, 0 };
	uint64_t paused;
	struct fault f = { 0 };
	uint8_t byte = 0;
	int found = -1;

	if (vm_fork(vm, &r, &paused, &f) || vm_resume(vm, &f))
		return -2;
	if (lseek(r.delta_fd, (off_t)page * 4096, SEEK_DATA) == (off_t)page * 4096 && pread(r.delta_fd, &byte, 1, (off_t)page * 4096) == 1)
		found = byte;
	close(r.delta_fd);
	close(r.state_fd);
	return found;
}

/* What processors wrote before is nobody's log: it is found by its content. */
TEST(the_log_of_a_machine_that_booted_begins_with_its_first_fork)
{
	struct fault f = { 0 };
	struct vm *vm;

	fake_kvm = (struct fake_kvm){ .tsc_khz = 2000000, .tsc_offset_attr = true };
	REQUIRE(!machine_new(1, -1, -1, &vm, &f) && !vm_start_threads(vm, &f) && !vm_resume(vm, &f));
	CHECK_EQ((uintptr_t)vm->memory.base % (2 << 20), 0);
	CHECK_EQ(fake_kvm.logged, 0);
	vm->memory.base[0x1000 * 700 + 4095] = 1;
	vm->memory.base[0x1000 * 9000] = 7;
	CHECK_EQ(forked_page(vm, 700), 0);
	CHECK_EQ(fake_kvm.logged, 1);
	CHECK_EQ(forked_page(vm, 9000), 7);
	CHECK_EQ(forked_page(vm, 701), -1);
	/* Later, what neither the log nor a device tells of is not looked for. */
	vm->memory.base[0x1000 * 702] = 1;
	CHECK_EQ(forked_page(vm, 702), -1);
	memory_at(&vm->memory, 0x1000 * 702, 1, true);
	CHECK_EQ(forked_page(vm, 702), 1);
	vm_free(vm);
}

TEST(the_log_of_a_machine_from_a_snapshot_is_on_from_the_start)
{
	struct fault f = { 0 };
	struct vm *vm;
	int fd = memfd_create("base", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	fake_kvm = (struct fake_kvm){ .tsc_khz = 2000000, .tsc_offset_attr = true };
	REQUIRE(!ftruncate(fd, (off_t)MACHINE_BYTES) && !memory_seal(fd, &f) && !machine_new(1, fd, -1, &vm, &f));
	CHECK_EQ(fake_kvm.logged, 1);
	vm_free(vm);
}

static int file_of(const uint8_t *model)
{
	int fd = memfd_create("model", MFD_ALLOW_SEALING);

	/* Zeroes as holes, as a writer leaves them. */
	if (fd < 0 || ftruncate(fd, (off_t)MACHINE_BYTES) < 0)
		abort();
	for (uint64_t at = 0; at < MACHINE_BYTES; at += 4096)
		if (model[at] | model[at + 4095] && pwrite(fd, model + at, 4096, (off_t)at) != 4096)
			abort();
	return fd;
}

/* Whole runs of pages; both ends of a page that is not zero are not. */
static void scribble(uint8_t *model, int runs)
{
	for (int i = 0; i < runs; i++) {
		uint64_t at = (uint64_t)random() % (MACHINE_BYTES / 4096 - 70) * 4096, n = (uint64_t)(1 + random() % 70) * 4096;

		memset(model + at, random() % 3 ? 1 + (int)random() % 255 : 0, n);
	}
}

static uint64_t pages_of(int fd)
{
	struct stat st;

	return fstat(fd, &st) ? 0 : (uint64_t)st.st_blocks / 8;
}

static bool memory_is(int base, int delta, const uint8_t *model)
{
	struct memory m;
	bool same;

	if (memory_create(MACHINE_BYTES, base < 0 ? -1 : dup(base), delta < 0 ? -1 : dup(delta), &m, NULL))
		return false;
	same = !memcmp(m.base, model, MACHINE_BYTES);
	memory_free(&m);
	return same;
}

static int read_only(int fd)
{
	char path[64];

	/* As a file on disk is: not sealed, and nobody has it open for writing through this. */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK);
	return open(path, O_RDONLY | O_CLOEXEC);
}

/* Random memories in layers are stored over a random earlier one: what comes back is the memory, and little is written for little. */
TEST(what_differs_is_stored_and_comes_back)
{
	static uint8_t was[MACHINE_BYTES], is[MACHINE_BYTES], base_model[MACHINE_BYTES];
	int based = 0, whole = 0;

	srandom(20);
	for (int round = 0; round < 24; round++) {
		_cleanup_fd_ int prev = -1, base = -1, delta = -1, state_in = memfd_create("s", 0);
		int prev_memory = memfd_create("pm", MFD_ALLOW_SEALING), prev_state = memfd_create("ps", 0);
		int memory = memfd_create("m", MFD_ALLOW_SEALING), state = memfd_create("st", 0), to = memfd_create("t", MFD_ALLOW_SEALING);
		struct savefile_layers from = { MACHINE_BYTES, -1, -1 };
		struct savefile_head h;
		_cleanup_free_ uint8_t *text = NULL, *again = NULL;
		struct fault f = { 0 };
		size_t n;

		memset(was, 0, sizeof(was));
		scribble(was, 200);
		prev = file_of(was);
		REQUIRE(write(state_in, "state", 5) == 5);
		REQUIRE(!savefile_store(&(struct savefile_layers){ MACHINE_BYTES, prev, -1 }, -1, 0, state_in, prev_memory, prev_state, &f));
		REQUIRE(!savefile_state(prev_state, &h, &text, &n, &f));
		CHECK(!h.has_base && n == 5);
		/* Now in layers: a base of its own, and a delta over it as a fork leaves it. */
		memcpy(base_model, was, sizeof(was));
		scribble(base_model, round % 3 * 10);
		memcpy(is, base_model, sizeof(is));
		scribble(is, round % 4 == 3 ? 400 : 8);
		if (round % 5) {
			base = file_of(base_model);
			from.base_fd = base;
		} else {
			memset(base_model, 0, sizeof(base_model));
		}
		delta = memfd_create("d", 0);
		REQUIRE(!ftruncate(delta, (off_t)MACHINE_BYTES));
		for (uint64_t at = 0; at < MACHINE_BYTES; at += 4096)
			if (memcmp(is + at, base_model + at, 4096))
				REQUIRE(pwrite(delta, is + at, 4096, (off_t)at) == 4096);
		from.delta_fd = delta;
		REQUIRE(!savefile_store(&from, prev_memory, h.memory_crc, state_in, memory, state, &f));
		REQUIRE(!savefile_state(state, &h, &again, &n, &f));
		if (h.has_base) {
			_cleanup_fd_ int ro = read_only(memory), ro_prev = read_only(prev_memory);
			uint64_t differ = 0;

			based++;
			for (uint64_t at = 0; at < MACHINE_BYTES; at += 4096)
				differ += memcmp(is + at, was + at, 4096) != 0;
			/* The bits take a page here; zeroes none. */
			CHECK(pages_of(memory) <= differ + 2);
			CHECK(memory_is(ro_prev, ro, is));
			CHECK_EQ(savefile_load(memory, state, prev_memory, -1, &f), RC_OK);
			CHECK_EQ(savefile_load(memory, state, -1, -1, &f), RC_STATE);
			CHECK_EQ(savefile_load(memory, state, prev, to, &f), RC_OK);
			CHECK(memory_is(to, -1, is));
		} else {
			_cleanup_fd_ int ro = read_only(memory);

			whole++;
			CHECK(memory_is(ro, -1, is));
			CHECK_EQ(savefile_load(memory, state, -1, to, &f), RC_OK);
			CHECK(memory_is(to, -1, is));
		}
		close(prev_memory);
		close(prev_state);
		close(memory);
		close(state);
		close(to);
	}
	CHECK(based > 5 && whole > 2);
}

/* Another base, or one in which a bit is wrong, is not that base; nor are other differences those. */
TEST(a_base_that_is_another_is_refused)
{
	static uint8_t was[MACHINE_BYTES], is[MACHINE_BYTES];
	int memory = memfd_create("m", 0), state = memfd_create("s", 0), state_in = memfd_create("i", 0), other;
	int prev_memory = memfd_create("pm", 0), prev_state = memfd_create("ps", 0);
	_cleanup_free_ uint8_t *text = NULL;
	struct savefile_layers from = { MACHINE_BYTES, -1, -1 };
	struct savefile_head h;
	struct fault f = { 0 };
	size_t n;

	srandom(21);
	scribble(was, 100);
	memcpy(is, was, sizeof(is));
	scribble(is, 5);
	from.base_fd = file_of(was);
	REQUIRE(!savefile_store(&from, -1, 0, state_in, prev_memory, prev_state, &f));
	REQUIRE(!savefile_state(prev_state, &h, &text, &n, &f));
	close(from.base_fd);
	from.base_fd = file_of(is);
	REQUIRE(!savefile_store(&from, prev_memory, h.memory_crc, state_in, memory, state, &f));
	REQUIRE(savefile_load(memory, state, prev_memory, -1, &f) == RC_OK);
	other = file_of(is);
	CHECK_EQ(savefile_load(memory, state, other, -1, &f), RC_INVALID);
	CHECK_EQ(ftruncate(other, 4096), 0);
	CHECK_EQ(savefile_load(memory, state, other, -1, &f), RC_STATE);
	for (int i = 0; i < 20; i++) {
		int fd = i % 2 ? memory : prev_memory;
		off_t at = i < 4 && i % 2 ? (off_t)MACHINE_BYTES + i * 100 : lseek(fd, random() % (off_t)MACHINE_BYTES, SEEK_DATA);
		uint8_t byte, wrong;

		if (at < 0)
			continue;
		REQUIRE(pread(fd, &byte, 1, at) == 1);
		wrong = (uint8_t)(byte ^ 1u << random() % 8);
		REQUIRE(pwrite(fd, &wrong, 1, at) == 1);
		CHECK_EQ(savefile_load(memory, state, prev_memory, -1, &f), RC_INVALID);
		REQUIRE(pwrite(fd, &byte, 1, at) == 1);
		REQUIRE(savefile_load(memory, state, prev_memory, -1, &f) == RC_OK);
	}
	close(from.base_fd);
	close(memory);
	close(state);
	close(state_in);
	close(other);
	close(prev_memory);
	close(prev_state);
}

CHECK_MAIN()
