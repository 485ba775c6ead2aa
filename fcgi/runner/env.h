/* SPDX-License-Identifier: Apache-2.0 */
/* The environment of an app's processes: layers in order, then the app's variables, then the revision's own; later ones win. */
#ifndef NB_RUNNER_ENV_H
#define NB_RUNNER_ENV_H

#include "base/config.h"
#include "fcgi/db.h"

#include <json-c/json.h>

/* An object of name -> value for the context "production" or "preview", with what every app gets (PORT, DENO_..). */
enum rc env_load(struct db *db, const struct config *c, const char *app_id, const char *revision, bool production,
		 struct json_object **ret, struct fault *ret_f);

#endif
