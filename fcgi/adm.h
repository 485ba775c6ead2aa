/* SPDX-License-Identifier: Apache-2.0 */
/* What nestboxadm's commands share. */
#ifndef NB_FCGI_ADM_H
#define NB_FCGI_ADM_H

#include "base/config.h"
#include "fcgi/db.h"
#include "fcgi/json.h"

#include <stdbool.h>

#define ADM_ORGS_MAX 16

struct adm_options {
	const char *conf, *name, *orgs[ADM_ORGS_MAX];
	size_t n_orgs;
	bool json, personal;
	const char *sandbox, *host, *decision, *since, *limit, *policy; /* of egress */
};

/* argv: what stands behind "egress". RC_INVALID: no such command, or wrong use of it. */
enum rc adm_egress(const struct config *c, struct db *db, int argc, char **argv, const struct adm_options *o, struct fault *ret_f);

#endif
