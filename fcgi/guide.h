/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guide: one more child of nestbox-api, which opens for the gateway the file that a live tail of the egress ledger goes on in.
 *
 * Theory: it asks the gateway for a question (FOLLOW of schema/gateway.h), is answered when there is one, and puts the answer into the
 * next FOLLOW; nothing else. It reads no client's byte, and of the gateway's only a place, whose seal it checks
 * (egress_place.h). It has the workers' uid, no database, and a filter of its own: Unix sockets and opening for reading.
 */
#ifndef NB_FCGI_GUIDE_H
#define NB_FCGI_GUIDE_H

#include "base/config.h"

#define GUIDE_NAME "nestbox-guide" /* of the process: the others are workers */

/* Returns an exit status. */
int guide_main(const struct config *config);

#endif
