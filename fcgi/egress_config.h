/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a sandbox's configuration may say about its network beyond allow_net, an extension of ours:
 *
 *   "egress": { "deny": ["pattern"],
 *               "rules": [{ "host": "api.example.com", "methods": ["GET"], "paths": ["/v1/"] }],
 *               "limits": { "bytes_per_second": n, "total_bytes": n, "connections_per_second": n } }
 *   "secrets": { "NAME": { ..., "methods": [], "paths": [], "headers": [], "query": [] } }
 *
 * Checked with the functions of schema/policy.h, so that the proxy takes each line that is made of it.
 */
#ifndef NB_FCGI_EGRESS_CONFIG_H
#define NB_FCGI_EGRESS_CONFIG_H

#include "base/buf.h"
#include "base/fault.h"

#include <json-c/json.h>

/* egress: an object. Faults of RC_INVALID carry the sentence for the client. */
enum rc egress_config_check(struct json_object *egress, struct fault *ret_f);
/* methods, paths, headers and query of one secret. */
enum rc egress_secret_check(const char *name, struct json_object *secret, struct fault *ret_f);

/* The lines of a checked configuration. */
enum rc egress_config_put(struct json_object *egress, struct buf *policy);
enum rc egress_secret_put(const char *name, struct json_object *secret, struct buf *policy);

#endif
