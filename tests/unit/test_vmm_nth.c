/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every allocation, mapping, descriptor, read, write and request to KVM of a machine's creation, restore, snapshot and fork fails once.
 * Whatever is asked then reports it; nothing leaks; a machine that lived before lives on. The calls are wrapped by the
 * linker (see local.mk); KVM is tests/unit/fake_kvm.c.
 */
#include "tests/lib/check.h"
#include "tests/unit/vmm_machine.h"

#include "base/cleanup.h"
#include "base/fd.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#define FORK_CALLS_MAX 60

static struct {
	unsigned long countdown; /* 0: nothing fails */
	bool happened;
	char what[32];           /* the call that failed, and for KVM its request */
	pthread_t thread;        /* only this one's calls count: what threads of the machine do at their own pace is not repeatable */
	_Atomic long allocations;
} nth;

static bool fails(const char *what)
{
	if (!nth.countdown || !pthread_equal(nth.thread, pthread_self()) || --nth.countdown)
		return false;
	nth.happened = true;
	snprintf(nth.what, sizeof(nth.what), "%s", what);
	return true;
}

static bool fake_fails(unsigned long request, int *err)
{
	char what[32];

	snprintf(what, sizeof(what), "ioctl 0x%lx", request & 0xffff);
	*err = EIO;
	return fails(what);
}

/* --- wrapped calls ------------------------------------------------------------------------------------------------- */

#include "tests/lib/wrap.h"

#define WRAP_ALLOC(name, params, args)                   \
	void *__real_##name params;                      \
	void *__wrap_##name params;                      \
	void *__wrap_##name params                       \
	{                                                \
		void *p = fails(#name) ? NULL : __real_##name args; \
		if (p)                                   \
			nth.allocations++;               \
		return p;                                \
	}

WRAP_ALLOC(malloc, (size_t n), (n))
WRAP_ALLOC(calloc, (size_t n, size_t m), (n, m))

void *__real_realloc(void *old, size_t n);
void *__wrap_realloc(void *old, size_t n);
void *__wrap_realloc(void *old, size_t n)
{
	void *p = fails("realloc") ? NULL : __real_realloc(old, n);

	if (p && !old)
		nth.allocations++;
	return p;
}

void *__real_reallocarray(void *old, size_t n, size_t m);
void *__wrap_reallocarray(void *old, size_t n, size_t m);
void *__wrap_reallocarray(void *old, size_t n, size_t m)
{
	void *p = fails("reallocarray") ? NULL : __real_reallocarray(old, n, m);

	if (p && !old)
		nth.allocations++;
	return p;
}

void __real_free(void *p);
void __wrap_free(void *p);
void __wrap_free(void *p)
{
	if (p)
		nth.allocations--;
	__real_free(p);
}

/* --- what is held -------------------------------------------------------------------------------------------------- */

struct held {
	size_t fds, threads, map_pages;
	long allocations;
};

static size_t entries(const char *dir)
{
	DIR *d = opendir(dir);
	size_t n = 0;

	while (d && readdir(d))
		n++;
	if (d)
		closedir(d);
	return n;
}

static struct held held(void)
{
	struct held h = { .fds = entries("/proc/self/fd"), .threads = entries("/proc/self/task"), .allocations = nth.allocations };
	FILE *in = fopen("/proc/self/statm", "re");

	if (!in || fscanf(in, "%zu", &h.map_pages) != 1)
		abort();
	fclose(in);
	return h;
}

/* Threads that were joined may be in /proc a moment longer: also when `before` was counted, then fewer are right from now on. */
static void check_held(struct held *before, const char *what, unsigned long n)
{
	struct held after = held();

	for (int i = 0; i < 1000 && after.threads > before->threads; i++) {
		usleep(1000);
		after = held();
	}
	before->threads = MIN_OF(before->threads, after.threads);
	if (after.fds != before->fds || after.threads != before->threads || after.allocations != before->allocations ||
	    after.map_pages > before->map_pages + 256) {
		printf("  %s, failure %lu: descriptors %zu -> %zu, threads %zu -> %zu, allocations %ld -> %ld, pages %zu -> %zu\n", what,
		       n, before->fds, after.fds, before->threads, after.threads, before->allocations, after.allocations,
		       before->map_pages, after.map_pages);
		check_failed_here++;
	}
}

/* --- kernel -------------------------------------------------------------------------------------------------------- */

/* An ELF file with a PVH note and one byte of code. */
static int kernel_new(void)
{
	static const uint8_t head[64] = { 0x7f, 'E', 'L', 'F', 2, 1, 1, [16] = 2, [18] = 62, [20] = 1, [32] = 64, [52] = 64, [54] = 56,
					  [56] = 2 };
	static const struct {
		uint32_t type, flags;
		uint64_t offset, vaddr, paddr, filesz, memsz, align;
	} segments[2] = { { 1, 7, 512, 0x1000000, 0x1000000, 1, 1, 1 }, { 4, 4, 256, 0, 0, 20, 20, 4 } };
	static const uint32_t note[5] = { 4, 4, 18, 0x006e6558, 0x1000000 };
	int fd = memfd_create("kernel", MFD_CLOEXEC);

	if (pwrite(fd, head, 64, 0) != 64 || pwrite(fd, segments, 112, 64) != 112 || pwrite(fd, note, 20, 256) != 20 ||
	    pwrite(fd, "\xf4", 1, 512) != 1)
		abort();
	return fd;
}

/* --- scenarios ----------------------------------------------------------------------------------------------------- */

struct saved {
	int memory, state, base; /* base: memory again, sealed */
	struct buf machine;
};
static struct saved saved;

static void arm(unsigned long n)
{
	fake_kvm.fail = fake_fails;
	nth.thread = pthread_self();
	nth.happened = false;
	nth.countdown = n;
}

static void disarm(void)
{
	nth.countdown = 0;
}

/* Cold boot to running, pause, end. */
static enum rc create(unsigned long n, struct fault *f)
{
	int kernel = kernel_new();
	struct vm_spec spec = { .n_cpus = 2, .n_disks = 1, .n_nics = 1, .serial_fd = -1 };
	struct memory memory;
	struct vm *vm = NULL;
	int pair[2];
	enum rc rc;

	/* What the asker made is made without failures. */
	if (socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, pair) < 0)
		abort();
	close(pair[1]);
	spec.kvm_fd = fake_kvm_open();
	spec.disks[0] = (struct vm_disk_spec){ memfd_create("disk", MFD_CLOEXEC), false, "disk" };
	spec.nics[0] = (struct vm_nic_spec){ pair[0], "02:00:00:00:00:01" };
	spec.limits = (struct vm_limits){ 10, 10, 10, 10 }; /* with timers */
	if (ftruncate(spec.disks[0].fd, 1 << 20) < 0)
		abort();
	arm(n);
	rc = memory_create(MACHINE_BYTES, -1, -1, &memory, f);
	if (rc) {
		close(spec.kvm_fd);
		close(spec.disks[0].fd);
		close(spec.nics[0].tap_fd);
	} else {
		rc = vm_create(&spec, &memory, &vm, f);
	}
	if (!rc)
		rc = vm_boot(vm, kernel, -1, "console=ttyS0", f);
	if (!rc)
		rc = vm_start_threads(vm, f);
	if (!rc)
		rc = vm_resume(vm, f);
	if (!rc)
		rc = vm_pause(vm, f);
	disarm();
	vm_free(vm);
	close(kernel);
	return rc;
}

static enum rc restore(unsigned long n, struct fault *f)
{
	int to = memfd_create("to", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	uint8_t *state = NULL;
	size_t bytes;
	enum rc rc;

	arm(n);
	rc = savefile_load(saved.memory, saved.state, -1, to, f);
	if (!rc)
		rc = savefile_state(saved.state, NULL, &state, &bytes, f);
	disarm();
	free(state);
	close(to);
	return rc;
}

static enum rc load(unsigned long n, struct fault *f)
{
	struct vm *vm;
	enum rc rc = machine_new(2, dup(saved.base), -1, &vm, f);

	if (rc)
		return rc;
	arm(n);
	rc = vm_load_state(vm, buf_data(&saved.machine), buf_len(&saved.machine), f);
	if (!rc)
		rc = vm_start_threads(vm, f);
	if (!rc)
		rc = vm_resume(vm, f);
	disarm();
	vm_free(vm);
	return rc;
}

static struct vm *running(struct fault *f)
{
	struct vm *vm;

	if (machine_new(2, dup(saved.base), -1, &vm, f) ||
	    vm_load_state(vm, buf_data(&saved.machine), buf_len(&saved.machine), f) || vm_start_threads(vm, f) || vm_resume(vm, f))
		abort();
	return vm;
}

/* The parent is the same for all: what a failed fork did to it would show in the next. */
static struct vm *parent;

static enum rc fork_machine(unsigned long n, struct fault *f)
{
	struct fork_result r = { -1, -1, 0, 0, 0 };
	uint64_t paused;
	enum rc rc;

	memset(memory_at(&parent->memory, 0x300000 + n % 256 * 4096, 4096, true), (int)n, 4096);
	arm(n);
	rc = vm_fork(parent, &r, &paused, f);
	disarm();
	if (rc) {
		CHECK_EQ(parent->state, VM_RUNNING);
		CHECK_EQ(r.delta_fd, -1);
	} else {
		CHECK_EQ(parent->state, VM_PAUSED);
		/* Nobody can write it already; what takes as long as there are pages has not been done yet. */
		CHECK_EQ(fcntl(r.delta_fd, F_GET_SEALS), F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW);
		CHECK(pwrite(r.delta_fd, "x", 1, 0x300000) < 0 && errno == EPERM);
		CHECK(ftruncate(r.delta_fd, 0) < 0 && mmap(NULL, 4096, PROT_WRITE, MAP_SHARED, r.delta_fd, 0) == MAP_FAILED);
		CHECK_EQ(vm_resume(parent, f), RC_OK);
		CHECK_EQ(memory_seal(r.delta_fd, f), RC_OK);
		CHECK(fcntl(r.delta_fd, F_GET_SEALS) & F_SEAL_WRITE);
		close(r.delta_fd);
		close(r.state_fd);
	}
	return rc;
}

static enum rc snapshot(unsigned long n, struct fault *f)
{
	int memory = memfd_create("m", MFD_CLOEXEC), state = memfd_create("s", MFD_CLOEXEC);
	enum rc rc = vm_pause(parent, f);

	if (rc)
		abort();
	arm(n);
	rc = vm_save(parent, memory, state, f);
	disarm();
	CHECK_EQ(parent->state, VM_PAUSED);
	CHECK_EQ(vm_resume(parent, f), RC_OK);
	close(memory);
	close(state);
	return rc;
}

/* What may be missing by design: a guest without kvmclock; a host that does not tell its TSC's rate, or takes no offsets. */
static bool may_be_missing(const char *call)
{
	static const unsigned long requests[] = { KVM_KVMCLOCK_CTRL, KVM_GET_TSC_KHZ, KVM_HAS_DEVICE_ATTR };
	char name[32];

	for (size_t i = 0; i < ARRAY_SIZE(requests); i++) {
		snprintf(name, sizeof(name), "ioctl 0x%lx", requests[i] & 0xffff);
		if (!strcmp(name, call))
			return true;
	}
	return false;
}

static unsigned long every(const char *what, enum rc (*scenario)(unsigned long n, struct fault *f))
{
	struct fault f = { 0 };
	struct held before;
	unsigned int tolerated = 0;
	unsigned long n;

	/* Twice without a failure: libc's own caches (thread stacks) are then as full as they get. */
	for (int i = 0; i < 2; i++)
		CHECK_EQ(scenario(0, &f), RC_OK);
	before = held();
	for (n = 1; n < 5000; n++) {
		enum rc rc;

		f = (struct fault){ 0 };
		rc = scenario(n, &f);
		if (!nth.happened) {
			CHECK_EQ(rc, RC_OK);
			break;
		}
		if (rc)
			CHECK(f.rc == rc && f.text[0]);
		else if (may_be_missing(nth.what))
			tolerated++;
		else
			printf("  %s: failure %lu (%s) passed unnoticed\n", what, n, nth.what), check_failed_here++;
		check_held(&before, what, n);
		if (check_failed_here > 10)
			break;
	}
	printf("  %s: %lu failures, %u of them tolerated\n", what, n - 1, tolerated);
	CHECK(n > 10 && n < 5000);
	return n - 1;
}

static void prepare(void)
{
	struct fault f = { 0 };
	struct vm *vm;

	if (saved.base)
		return;
	fake_kvm.tsc_khz = 2000000;
	fake_kvm.dirty_seed = 0;
	saved.machine = (struct buf)BUF_INIT(SAVEFILE_STATE_MAX * 2);
	saved.memory = memfd_create("m", MFD_CLOEXEC);
	saved.state = memfd_create("s", MFD_CLOEXEC);
	saved.base = memfd_create("b", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (machine_new(2, -1, -1, &vm, &f))
		abort();
	memset(memory_at(&vm->memory, 0x200000, 20000, true), 7, 20000);
	vm->state = VM_PAUSED;
	if (vm_save(vm, saved.memory, saved.state, &f) || vm_save_state(vm, &saved.machine, &f) ||
	    savefile_load(saved.memory, saved.state, -1, saved.base, &f))
		abort();
	vm_free(vm);
}

/* What `nestbox-vmm store` does: differences over an earlier memory. */
static enum rc store(unsigned long n, struct fault *f)
{
	int memory = memfd_create("m", MFD_CLOEXEC), state = memfd_create("s", MFD_CLOEXEC);
	struct savefile_layers from = { MACHINE_BYTES, saved.base, -1 };
	enum rc rc;

	arm(n);
	rc = savefile_store(&from, saved.memory, 1, saved.state, memory, state, f);
	disarm();
	close(memory);
	close(state);
	return rc;
}

TEST(every_failure_of_storing_a_snapshot)
{
	prepare();
	every("store", store);
}

TEST(every_failure_of_a_creation)
{
	prepare();
	every("create", create);
}

TEST(every_failure_of_reading_a_snapshot)
{
	prepare();
	every("read", restore);
}

TEST(every_failure_of_a_restore)
{
	prepare();
	every("restore", load);
}

TEST(every_failure_of_a_fork)
{
	struct fault f;

	prepare();
	parent = running(&f);
	/* Also what the parent's main thread asks of the kernel and of its heap in all, when few pages are its own: 48 with two processors. */
	CHECK(every("fork", fork_machine) <= FORK_CALLS_MAX);
	vm_free(parent);
}

TEST(every_failure_of_a_snapshot)
{
	struct fault f;

	prepare();
	parent = running(&f);
	every("snapshot", snapshot);
	vm_free(parent);
}

CHECK_MAIN()
