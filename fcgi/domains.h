/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Domains of an app's own, for the API and for nestboxadm. Theory: an organization asks for a name (custom_domains); that proves nothing, so
 * it is of no effect until an operator, who has satisfied himself that the name is theirs, approves it. Then it is a row of `domains`, of which
 * there is one a name, and the runner exposes it. Several may ask for a name, one can have it.
 */
#ifndef NB_FCGI_DOMAINS_H
#define NB_FCGI_DOMAINS_H

#include "fcgi/db.h"

#include <stdbool.h>

#define DOMAIN_MAX 102 /* bytes; the gateway's sockets are named by it */

/* A DNS name of two labels or more in lower case, not below our own domain. */
bool domain_is_valid(const char *host, const char *own_domain);
/* RC_ABSENT: nobody asked (app: id or slug; NULL if only one did); RC_EXISTS: another app has it; RC_LIMIT: several asked. */
enum rc domain_approve(struct db *db, const char *host, const char *app, struct fault *ret_f);
/*
 * The platform's own name for a timeline. most: names that an organization's apps have together, all kinds counted: each is a socket of the
 * gateway, and no organization may take all there are. RC_LIMIT; RC_EXISTS: something else has it.
 */
enum rc domain_claim(struct db *db, const char *host, const char *app_id, const char *timeline, uint64_t most, struct fault *ret_f);
/* Also takes it from whom it was approved for. RC_ABSENT. */
enum rc domain_remove(struct db *db, const char *host, const char *app_id, struct fault *ret_f);

#endif
