/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The header x-deno-sandbox-config: base64 of one JSON object, from a client. Unknown keys are refused, so that an option
 * nobody honours is not silently accepted. Everything is checked here; what is left to the caller is whether the
 * volumes exist.
 */
#ifndef NB_FCGI_SANDBOX_CONFIG_H
#define NB_FCGI_SANDBOX_CONFIG_H

#include "base/fault.h"
#include "fcgi/errors.h"
#include "fcgi/limits.h"
#include "fcgi/seal.h"

#include <json-c/json.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct sandbox_bounds {
	uint64_t memory_mib_min, memory_mib_max, memory_mib_default;
	uint64_t memory_mib_step; /* what is asked for is rounded up to a multiple, to the most at most */
	uint64_t now_ms;     /* wall clock */
	uint64_t stop_max_s; /* 0: any */
};

struct sandbox_mount {
	const char *volume, *path;
};

/* Strings point into json. */
struct sandbox_config {
	struct json_object *json;
	uint64_t stop_at_ms; /* 0: bound to the connection */
	uint32_t memory_mib;
	struct json_object *labels; /* NULL: none */
	const char *root;           /* NULL: the default image */
	struct sandbox_mount mounts[VOLUMES_MAX];
	size_t n_mounts;
	struct json_object *allow_net; /* NULL: open to the public internet */
	struct json_object *secrets;   /* NULL: none */
	struct json_object *egress;    /* NULL: none; see egress_config.h */
};

/* text NULL means an absent header: all defaults. The fault's text is for the client, *ret_code is its code. */
enum rc sandbox_config_parse(const char *text, const struct sandbox_bounds *bounds, struct sandbox_config *ret,
			     enum api_code *ret_code, struct fault *ret_f);
/* The part of it that may be changed while the sandbox runs: an object of allow_net, secrets and egress, of which the result
 * keeps a reference. */
enum rc sandbox_config_parse_egress(struct json_object *o, struct sandbox_config *ret, struct fault *ret_f);
void sandbox_config_free(struct sandbox_config *c);

/* For the record: the same configuration without the secrets' values. Freed by the caller (json_object_put). */
struct json_object *sandbox_config_record(const struct sandbox_config *c);

struct sandbox_policy {
	char *policy; /* text of schema/policy.h */
	char *env;    /* "NAME=placeholder\0" repeated */
	size_t env_n;
};
/* key may be NULL if there are no secrets. Placeholders are new ones each time. */
enum rc sandbox_policy_make(const struct sandbox_config *c, const char *vm_id, const char *org,
			    const struct seal_key *key, struct sandbox_policy *ret, struct fault *ret_f);
void sandbox_policy_free(struct sandbox_policy *p);

#endif
