/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a policy would decide, asked of the code that decides (schema/verdict.h). Nothing is resolved and nothing is sent: of a
 * name only the name is judged, and what it may resolve to is said to be judged later.
 */
#ifndef NB_FCGI_EGRESS_JUDGE_H
#define NB_FCGI_EGRESS_JUDGE_H

#include "base/fault.h"
#include "schema/verdict.h"

#include <json-c/json.h>

/* Strings point into the JSON they came from. */
struct egress_question {
	const char *host, *method, *path;
	int64_t port;
	char name[POLICY_NAME_MAX]; /* empty: address */
	struct address address;
	struct json_object *policy; /* of allow_net, secrets, egress; NULL: none was given */
};

/* {host, port, method, path, policy}. RC_INVALID: a sentence for whoever asked. */
enum rc egress_question_parse(struct json_object *o, struct egress_question *ret, struct fault *ret_f);
/*
 * {decision, rule, why, resolves, intercepted}. Values of secrets may be missing from the policy, to which they are added.
 * allow_private: as in the configuration. RC_INVALID: no such policy.
 */
enum rc egress_judge(const struct egress_question *q, const char *org, const char *allow_private, struct json_object **ret,
		     struct fault *ret_f);

#endif
