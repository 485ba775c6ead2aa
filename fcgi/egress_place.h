/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Places in a ledger, as the gateway keeps them for a live tail (schema/gateway.h): "<organization>/<file>/<seal>".
 *
 * Theory: the gateway may open no file, so a process of the API's (guide.c) opens the next one for it. The gateway holds bytes of all
 * tenants; were its word enough, whoever took it over could have every organization's ledger. The seal is a MAC over the
 * organization with a key that the gateway has not, so it leads on in the ledgers that it was given a ticket for, and in no other.
 */
#ifndef NB_FCGI_EGRESS_PLACE_H
#define NB_FCGI_EGRESS_PLACE_H

#include "fcgi/seal.h"
#include "schema/gateway.h"
#include "schema/ledger.h"

enum rc egress_place(const struct seal_key *key, const char *org, const char *name, char ret[GATEWAY_PLACE_MAX], struct fault *ret_f);
/* The file after that place, opened, and its place. RC_DENIED: not a place of ours. RC_ABSENT: there is none so far. */
enum rc egress_place_next(const struct seal_key *key, int dirfd, const char *place, char ret[GATEWAY_PLACE_MAX], int *ret_fd,
			  struct fault *ret_f);

#endif
