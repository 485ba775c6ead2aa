/* SPDX-License-Identifier: Apache-2.0 */
/* Private to vmm/jail/. */
#ifndef NB_JAIL_ROOT_H
#define NB_JAIL_ROOT_H

#include "vmm/jail/jail.h"

#include <limits.h>
#include <poll.h>

struct jail_root {
	int ns_fd; /* mount namespace */
	bool proc;
};

#endif
