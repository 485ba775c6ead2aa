/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loading a 64-bit Linux kernel and saying in which state the first vCPU starts. An ELF vmlinux with a PVH note starts in
 * 32-bit protected mode with a hvm_start_info; a bzImage at its 64-bit entry point with a boot_params (Documentation/arch/
 * x86/boot.rst, protocol >= 2.12). Kernel and initrd are the operator's files, checked all the same.
 */
#ifndef NB_VMM_BOOT_H
#define NB_VMM_BOOT_H

#include "vmm/engines/kvm/memory.h"

#include <linux/kvm.h>

struct boot_entry {
	bool long_mode;
	uint64_t rip, rsi, rbx;
};

/* initrd_fd may be -1. */
enum rc boot_load(const struct memory *m, int kernel_fd, int initrd_fd, const char *cmdline, struct boot_entry *ret,
		  struct fault *ret_f);
/* Registers of the first vCPU; the others wait for a SIPI. Also writes the page tables and GDT that long mode needs. */
enum rc boot_registers(const struct memory *m, const struct boot_entry *e, struct kvm_regs *regs,
		       struct kvm_sregs *sregs, struct fault *ret_f);

#endif
