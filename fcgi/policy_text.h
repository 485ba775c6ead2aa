/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The text of an egress policy (schema/policy.h), changed line by line.
 *
 * Theory: processes that a fork copied have the parent's placeholders in their memory and shall go on working, while what
 * starts in the child is given new ones. So a child's policy has each secret under its new placeholder, which comes first and is
 * what the API shows, and again under each older one: an alias, a further "secret" line of the same name. That gives nobody
 * anything: a placeholder is replaced only on its own machine's connections, and that machine's policy has the secret anyway.
 */
#ifndef NB_FCGI_POLICY_TEXT_H
#define NB_FCGI_POLICY_TEXT_H

#include "base/buf.h"
#include "fcgi/seal.h"

#include <stdbool.h>

/* What follows "secret NAME " in its first line of that name, or NULL. */
const char *policy_secret_find(const char *policy, const char *name);

/* Whether `made` sends this secret to no place, and in no way, that `now` does not. False if one of them has no such secret. */
bool policy_secret_no_wider(const char *now, const char *made, const char *name);

/*
 * The policy of a child: values sealed anew for it, new placeholders, the parent's as aliases. env: "NAME=placeholder\0" for each.
 * RC_LIMIT if it does not fit.
 */
enum rc policy_text_fork(const char *policy, const char *parent, const char *child, const struct seal_key *key,
			 struct buf *ret_policy, struct buf *ret_env, struct fault *ret_f);

/*
 * Appends to text the placeholders that `from` has for secrets which text has: the first one of a name only if `first`. The newest
 * come first; what does not fit any more is left out.
 */
enum rc policy_text_alias(struct buf *text, const char *from, bool first);

/* "nbs_" and 200 bits. */
#define PLACEHOLDER_MAX 48
void placeholder_make(char out[PLACEHOLDER_MAX]);

#endif
