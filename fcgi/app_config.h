/* SPDX-License-Identifier: Apache-2.0 */
/* How an app is built and run: AppConfig and RevisionConfig of the client's types, and where they come from. */
#ifndef NB_FCGI_APP_CONFIG_H
#define NB_FCGI_APP_CONFIG_H

#include "fcgi/json.h"

/* RC_INVALID with a text for the client. */
enum rc app_config_check(struct json_object *config, struct fault *ret_f);
/* An entrypoint or a directory inside the tree: relative, no "..", bounded. */
enum rc app_path_check(const char *what, const char *path, struct fault *ret_f);
/* The body of POST /api/v2/sandboxes/{id}/deploy as a RevisionConfig. */
enum rc app_config_of_sandbox_deploy(struct json_object *body, struct json_object **ret, struct fault *ret_f);
/* Complete for a revision: absent members filled from the app's. own may be NULL. */
struct json_object *app_config_merge(struct json_object *app, struct json_object *own);

#endif
