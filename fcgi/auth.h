/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who asks. `Authorization: Bearer <token>`; only SHA-256 of a token is stored. A ddo_ token belongs to one organization; any
 * other also needs X-Deno-Org, which must be one it belongs to. An unknown organization and another's are the same answer.
 */
#ifndef NB_FCGI_AUTH_H
#define NB_FCGI_AUTH_H

#include "fcgi/request.h"

#define TOKEN_ORG_PREFIX "ddo_"
#define TOKEN_PERSONAL_PREFIX "ddp_"

/* Sets r's org_id, org_name and token_id. */
enum api_code auth_check(struct request *r);

/* Makes a token for these organizations (a personal one may have several). out: TOKEN_MAX bytes, shown once. */
enum rc token_create(struct db *db, bool personal, const char *const *org_names, size_t n_orgs, const char *name,
		     char out[TOKEN_MAX], char ret_id[ID_MAX], struct fault *ret_f);
/* By its id. RC_ABSENT if there is none or it is revoked already. */
enum rc token_revoke(struct db *db, const char *id, struct fault *ret_f);
enum rc org_create(struct db *db, const char *name, char ret_id[ID_MAX], struct fault *ret_f);

#endif
