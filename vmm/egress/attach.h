/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The connection to the broker: says which machines exist and brings their sockets and policies. When it breaks,
 * everything goes on as it was; it is made again, and machines that the broker no longer names are then dropped.
 */
#ifndef NB_EGRESS_ATTACH_H
#define NB_EGRESS_ATTACH_H

#include "vmm/egress/sandbox.h"

struct attach;

enum rc attach_new(struct egress *eg, struct attach **ret, struct fault *ret_f);
void attach_free(struct attach *a);

#endif
