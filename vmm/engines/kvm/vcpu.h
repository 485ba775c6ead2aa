/* SPDX-License-Identifier: Apache-2.0 */
/* A vCPU: its creation, its thread, and its registers in a snapshot. */
#ifndef NB_VMM_VCPU_H
#define NB_VMM_VCPU_H

#include "vmm/engines/kvm/vm.h"

/* What the guest may see: what KVM supports here less virtualization and performance counters, with its own APIC id. */
enum rc cpuid_make(int kvm_fd, struct kvm_cpuid2 **ret, struct fault *ret_f);
enum rc vcpu_create(struct vm *vm, unsigned int index, struct fault *ret_f);
void vcpu_free(struct vcpu *c);
enum rc vcpu_thread_start(struct vcpu *c, struct fault *ret_f);
void vcpu_kick(struct vcpu *c);

enum rc vcpu_save(struct vcpu *c, struct wire *w, struct fault *ret_f);
enum rc vcpu_load(struct vcpu *c, struct wire *w, struct fault *ret_f);

#endif
