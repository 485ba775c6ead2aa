/* SPDX-License-Identifier: Apache-2.0 */
/* Bounds that all engines have. doc/limits.md names the test of each. */
#ifndef NB_ENGINES_LIMITS_H
#define NB_ENGINES_LIMITS_H

/* What a machine's process may use beyond its guest's memory: page tables, buffers, its disks' files in memory as far as it can have them. */
#define ENGINE_KVM_OVERHEAD_MIB 512
#define ENGINE_QEMU_OVERHEAD_MIB 512 /* and translated code */
#define ENGINE_STORES_MAX 4 /* programs that read or write a whole snapshot at once; others wait for their turn */

#endif
