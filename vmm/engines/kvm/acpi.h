/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ACPI tables (ACPI 6.4) of our machine: RSDP, XSDT, FADT (hardware-reduced), MADT, DSDT. The Debian kernel learns of
 * virtio-mmio devices and of the processors from nothing else.
 */
#ifndef NB_VMM_ACPI_H
#define NB_VMM_ACPI_H

#include "vmm/engines/kvm/memory.h"

#define ACPI_RSDP 0xe0000ull  /* where firmware would leave it, so that a kernel also finds it by scanning */
#define ACPI_TABLES_END 0x100000ull
#define ACPI_SLEEP_PORT 0x600u /* sleep control; status at +1 */
#define ACPI_SLP_TYP_S5 5u
#define ACPI_GENID 0x9f000ull  /* 16 bytes, reserved memory: the VM generation id */
#define ACPI_GED_GSI 20u       /* generic event device: the generation changed */

enum rc acpi_write(const struct memory *m, unsigned int cpus, unsigned int n_devices, struct fault *ret_f);

#endif
