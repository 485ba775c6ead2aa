/* SPDX-License-Identifier: Apache-2.0 */
/* Between machine.c (one machine) and list.c (all of them). */
#ifndef NB_BROKER_LIST_H
#define NB_BROKER_LIST_H

#include "vmm/broker/machine.h"
#include "vmm/broker/record.h"

enum rc machine_list_add(struct broker *b, struct machine *m, struct fault *ret_f);
void machine_list_remove(struct broker *b, struct machine *m);
/* Some machine's stop_at_ms changed. */
void machine_timers_update(struct broker *b);
/* Of a directory whose record was read. RC_OK also when it then turns out to be lost: it ends like any other. */
enum rc machine_adopt(struct broker *b, const char *id, const struct record *r, struct fault *ret_f);

#endif
