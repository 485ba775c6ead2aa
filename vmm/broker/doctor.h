/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What this host can and cannot do for nestbox, and what that means for its users. Each check tries the thing itself
 * where that is possible: a device that opens or a kernel that has an option proves little.
 */
#ifndef NB_BROKER_DOCTOR_H
#define NB_BROKER_DOCTOR_H

#include "base/config.h"

#include <stdbool.h>
#include <stdio.h>

/* Needs root. Number of checks that failed, so that 0 means: this host can run nestbox. */
int doctor_run(const struct config *config, bool json, FILE *out);

#endif
