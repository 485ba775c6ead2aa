/* SPDX-License-Identifier: Apache-2.0 */
/* `nestbox-vmm serve`: the control socket's side of a machine (control.h) until the machine ends. */
#ifndef NB_VMM_SERVE_H
#define NB_VMM_SERVE_H

#include "base/fault.h"

enum rc serve(struct fault *ret_f);

#endif
