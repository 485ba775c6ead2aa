/* SPDX-License-Identifier: Apache-2.0 */
/* The system calls that nestbox-vmm may make once a machine is about to run, and of these, a vCPU thread. */
#ifndef NB_VMM_FILTER_H
#define NB_VMM_FILTER_H

#include "base/fault.h"

enum rc filter_main(struct fault *ret_f);  /* whole process, inherited by every thread */
enum rc filter_vcpu(struct fault *ret_f);  /* this thread, on top of it */

#endif
