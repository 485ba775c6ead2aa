/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A KVM that runs nothing: ioctl(2) of the program that links this keeps what is set, per descriptor, and gives it back. KVM_RUN waits
 * for a kick, as a halted guest would. Taps are sockets, whose offload requests are accepted too. Everything else goes to the kernel.
 */
#ifndef NB_TESTS_FAKE_KVM_H
#define NB_TESTS_FAKE_KVM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FAKE_XSAVE_MAX 16384
#define FAKE_MSRS 24

struct kvm_run;

struct fake_kvm {
	size_t xsave_bytes;    /* what KVM_CAP_XSAVE2 answers; 0: not there */
	int tsc_khz;
	bool tsc_scales, tsc_offset_attr;
	uint32_t cpuid_word;   /* part of the processor's features */
	uint32_t dirty_seed;   /* 0: the dirty log is empty; else pages at random */
	uint32_t logged;       /* a bit for each memory slot whose log is on */
	uint32_t refused_msr;  /* KVM lists it and gives neither value nor takes one */
	/* Requests that set something, in order. */
	unsigned long log[512];
	size_t n_log;
	/* The MSRs set, in the order they were. */
	uint32_t msr_log[256];
	size_t n_msr_log;
	/* If not NULL, asked before each request; true: fail with this errno. */
	bool (*fail)(unsigned long request, int *err);
	/* If not NULL, what happens at KVM_RUN: its result and errno; FAKE_HALTS: the guest halts. */
	int (*run)(struct kvm_run *run, int *err);
};
#define FAKE_HALTS 1
extern struct fake_kvm fake_kvm;

int fake_kvm_open(void);
/* What a descriptor holds, to be filled or compared: everything that is saved of a vCPU or a machine. */
void fake_kvm_fill(int fd, unsigned int seed);
bool fake_kvm_same(int a, int b);
void fake_kvm_forget(void);
uint64_t fake_kvm_msr(int fd, uint32_t index);
void fake_kvm_set_msr(int fd, uint32_t index, uint64_t value);
void *fake_kvm_lapic(int fd);

#endif
