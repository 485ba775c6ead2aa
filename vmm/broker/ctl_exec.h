/* SPDX-License-Identifier: Apache-2.0 */
/* nestboxctl dial: one command in a machine over an agent connection. */
#ifndef NB_BROKER_CTL_EXEC_H
#define NB_BROKER_CTL_EXEC_H

#include "base/fault.h"

/* fd: a connection to an agent. Standard streams are ours until the command's end; *ret_code is its exit code. */
enum rc ctl_exec(int fd, char *const argv[], int *ret_code, struct fault *ret_f);

#endif
