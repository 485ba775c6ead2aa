/* SPDX-License-Identifier: Apache-2.0 */
/* What the broker gives up before it listens: capabilities (a table with reasons) and system calls. */
#ifndef NB_BROKER_PRIVILEGE_H
#define NB_BROKER_PRIVILEGE_H

#include "base/fault.h"

enum rc privilege_drop(struct fault *ret_f);

#endif
