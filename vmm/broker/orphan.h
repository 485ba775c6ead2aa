/* SPDX-License-Identifier: Apache-2.0 */
/* VM processes that no record leads to: a broker may be killed between starting one and writing down who it is. */
#ifndef NB_BROKER_ORPHAN_H
#define NB_BROKER_ORPHAN_H

#include "vmm/broker/broker.h"

/*
 * Kills every process that runs as one of our machine uids and has a file below <state_dir>/vms/<id>/ open; with id NULL,
 * of any machine that is not in the list. Both conditions: neither another installation's processes nor any other
 * process of the host is ever meant.
 */
void orphans_kill(struct broker *b, const char *id);

#endif
