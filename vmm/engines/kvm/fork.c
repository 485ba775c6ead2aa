/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Live fork. Theory: children need the parent's memory as it was in one instant, and the parent must not stand still for as long
 * as copying it takes. So the parent's own pages (not the base: children map that too) are copied into a delta while it runs;
 * what it writes meanwhile is copied again, in rounds, until little is left; only then it is paused, the rest is copied and the
 * processors' and devices' state saved. The pause grows with how fast the guest writes, not with how much memory it has or
 * has touched. Children map base and delta copy-on-write; the parent keeps its mappings and never faults for having forked.
 *
 * Nobody may change the delta from then on. A write seal has the kernel look at each of its pages, and wait for those that are still
 * on their way into its lists: for 2 GiB longer than for all else in the pause. So the pause only freezes it, which takes the
 * same time for any size: nobody can write it or map it for writing any more. We have no such mapping; that nobody has one is what
 * the seal proves, when the machine runs again and before anybody maps the delta.
 */
#include "vmm/engines/kvm/fork.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "vmm/engines/kvm/savefile.h"

#include <string.h>

#define ROUNDS_MAX 8
#define PAUSE_PAGES 256 /* 1 MiB: copied in well under a millisecond */

static size_t bitmap_bytes(const struct memory *m)
{
	return (size_t)((memory_pages(m) + 63) / 64) * 8;
}

static enum rc all_own_pages(struct vm *vm, uint64_t *pages, struct fault *ret_f)
{
	uint64_t n;
	enum rc rc = vm_gather(vm, NULL, &n, ret_f);

	if (rc)
		return rc;
	memcpy(pages, vm->memory.own, bitmap_bytes(&vm->memory));
	return memory_layer_pages(vm->memory.delta_fd, vm->memory.bytes, pages, ret_f);
}

/* Rounds while the machine runs. */
static enum rc copy_running(struct vm *vm, int fd, uint64_t *pages, uint64_t *fresh, struct fork_result *r, struct fault *ret_f)
{
	const struct memory *m = &vm->memory;
	uint64_t n;
	enum rc rc = all_own_pages(vm, pages, ret_f);

	if (!rc) {
		memory_join(m->bytes, pages);
		rc = memory_write_pages(m, pages, fd, false, &r->pages, ret_f);
	}
	for (r->rounds = 1; !rc && r->rounds < ROUNDS_MAX; r->rounds++) {
		memset(fresh, 0, bitmap_bytes(m));
		rc = vm_gather(vm, fresh, &n, ret_f);
		if (!rc)
			rc = memory_write_pages(m, fresh, fd, false, NULL, ret_f);
		if (n <= PAUSE_PAGES)
			break;
	}
	return rc;
}

static enum rc copy_paused(struct vm *vm, int fd, uint64_t *fresh, struct fork_result *r, struct fault *ret_f)
{
	enum rc rc;

	memset(fresh, 0, bitmap_bytes(&vm->memory));
	rc = vm_gather(vm, fresh, &r->pages_paused, ret_f);
	return rc ? rc : memory_write_pages(&vm->memory, fresh, fd, false, NULL, ret_f);
}

static enum rc state_object(struct vm *vm, int *ret_fd, struct fault *ret_f)
{
	_cleanup_buf_ struct buf state = BUF_INIT(SAVEFILE_STATE_MAX * 2);
	_cleanup_fd_ int fd = -1;
	enum rc rc = vm_save_state(vm, &state, ret_f);

	if (!rc)
		rc = memory_object(0, "state", &fd, ret_f);
	if (!rc)
		rc = fd_write_all(fd, buf_data(&state), buf_len(&state), UINT64_MAX, ret_f);
	if (!rc)
		rc = memory_seal(fd, ret_f);
	if (rc)
		return rc;
	*ret_fd = take_fd(&fd);
	return RC_OK;
}

enum rc vm_fork(struct vm *vm, struct fork_result *ret, uint64_t *ret_paused_us, struct fault *ret_f)
{
	/* Both have been used when the pause begins: in it nothing of that size is allocated. */
	_cleanup_free_ uint64_t *pages = memory_bitmap(vm->memory.bytes), *fresh = memory_bitmap(vm->memory.bytes);
	_cleanup_fd_ int delta = -1, state = -1;
	struct fork_result r = { 0 };
	enum rc rc;

	if (vm->state != VM_RUNNING)
		return fault_set(ret_f, RC_STATE, 0, "machine does not run");
	if (!pages || !fresh)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	rc = memory_object(vm->memory.bytes, "delta", &delta, ret_f);
	if (!rc)
		rc = copy_running(vm, delta, pages, fresh, &r, ret_f);
	if (rc)
		return rc;
	*ret_paused_us = now_us();
	rc = vm_pause(vm, ret_f);
	if (rc)
		return rc;
	rc = state_object(vm, &state, ret_f);
	/* After the state: saving it may still write guest memory (KVM delivers what was pending). */
	if (!rc)
		rc = copy_paused(vm, delta, fresh, &r, ret_f);
	if (!rc)
		rc = memory_freeze(delta, ret_f);
	if (rc) {
		vm_resume(vm, NULL);
		return rc;
	}
	*ret = r;
	ret->delta_fd = take_fd(&delta);
	ret->state_fd = take_fd(&state);
	return RC_OK;
}

enum rc vm_save(struct vm *vm, int memory_fd, int state_fd, struct fault *ret_f)
{
	_cleanup_buf_ struct buf state = BUF_INIT(SAVEFILE_STATE_MAX * 2);
	_cleanup_free_ uint64_t *pages = memory_bitmap(vm->memory.bytes);
	enum rc rc;

	if (!pages)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	rc = vm_save_state(vm, &state, ret_f);
	if (!rc)
		rc = all_own_pages(vm, pages, ret_f);
	if (!rc)
		rc = memory_layer_pages(vm->memory.base_fd, vm->memory.bytes, pages, ret_f);
	if (!rc && ftruncate(memory_fd, (off_t)vm->memory.bytes) < 0)
		rc = fault_set(ret_f, rc_from_errno(errno), errno, "size memory file");
	if (!rc)
		rc = memory_write_pages(&vm->memory, pages, memory_fd, true, NULL, ret_f);
	return rc ? rc : savefile_write(memory_fd, state_fd, vm->memory.bytes, &state, ret_f);
}
