/* SPDX-License-Identifier: Apache-2.0 */
/* What can be learnt from a ledger: the smallest allow_net that would have allowed what was allowed. */
#ifndef NB_FCGI_EGRESS_LEARN_H
#define NB_FCGI_EGRESS_LEARN_H

#include "fcgi/egress_scan.h"

/* {allow_net, uses, complete}; of q's decisions only "allow" counts. */
enum rc egress_learn_from(int dirfd, const char *org, struct egress_query *q, struct json_object **ret, struct fault *ret_f);

#endif
