/* SPDX-License-Identifier: Apache-2.0 */
/* What the handlers of sandboxes share. */
#ifndef NB_FCGI_SANDBOXES_H
#define NB_FCGI_SANDBOXES_H

#include "fcgi/request.h"

#include <json-c/json.h>

struct sandbox_found {
	char id[ID_MAX];
	bool lease, live, paused;
};

/* The organization's sandbox of that id. API_SANDBOX_NOT_FOUND for none, another's and a malformed id alike. */
enum api_code sandbox_find(struct request *r, const char *id, struct sandbox_found *ret);
/* As above, and it has not stopped. */
enum api_code sandbox_find_live(struct request *r, const char *id, struct sandbox_found *ret);
/* As above, and it is not paused. */
enum api_code sandbox_find_running(struct request *r, const char *id, struct sandbox_found *ret);
/* As a client sees it; NULL if there is none or *ret_f says why. */
struct json_object *sandbox_shown(struct request *r, const char *id, struct fault *ret_f);
/* The broker says that there is no such machine: makes the row say so. Always API_SANDBOX_STOPPED. */
enum api_code sandbox_is_gone(struct request *r, const char *id);
/* Compares all live rows of this node with the broker's list and marks those that ended. RC_CLOSED without a broker. */
enum rc sandboxes_reconcile(struct api *api, struct fault *ret_f);

#endif
