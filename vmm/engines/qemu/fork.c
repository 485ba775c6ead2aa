/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/engines/qemu/vm.h"

enum rc qemu_fork(struct engine_vm *parent, size_t n, const struct engine_spec specs[], void (*cut)(void *arg),
		  void *cut_arg, engine_done_fn *done, engine_exit_fn *exit, void *args[], struct engine_vm *rets[],
		  struct fault *ret_f)
{
	(void)parent; (void)n; (void)specs; (void)cut; (void)cut_arg; (void)done; (void)exit; (void)args; (void)rets;
	return fault_set(ret_f, RC_INVALID, 0, "no live fork yet");
}
void fork_on_migration(struct engine_vm *vm, const char *status) { (void)vm; (void)status; }
void fork_parent_lost(struct engine_vm *vm) { (void)vm; }
void fork_child_lost(struct engine_vm *vm) { (void)vm; }
