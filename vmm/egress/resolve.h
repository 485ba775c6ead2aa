/* SPDX-License-Identifier: Apache-2.0 */
/* Upstream addresses of names, through c-ares on our loop. Search domains and the hosts file are not used. */
#ifndef NB_EGRESS_RESOLVE_H
#define NB_EGRESS_RESOLVE_H

#include "base/loop.h"
#include "base/address.h"

struct resolver;
struct lookup;
/* Whoever asks, as far as it is counted: one for a sandbox, and one for its organization, above it. Lookups under way outlive both. */
struct lookup_share;

/* addrs: IPv4 first, at most EGRESS_ADDRS_MAX; n 0: it does not resolve, `why` says how. The lookup is gone afterwards. */
typedef void resolved_fn(void *arg, const struct address *addrs, size_t n, uint32_t ttl_s, const char *why);

/* server: "ADDRESS[:PORT]", or empty for the host's resolv.conf. */
enum rc resolver_new(struct loop *loop, const char *server, struct resolver **ret, struct fault *ret_f);
void resolver_free(struct resolver *r);
/* above: NULL, or what it counts for as well (tenant.h has the rule by which those divide what there is). */
enum rc lookup_share_new(struct lookup_share *above, struct lookup_share **ret, struct fault *ret_f);
void lookup_share_move(struct lookup_share *s, struct lookup_share *above);
void lookup_share_free(struct lookup_share *s);
/* The callback never comes before this returns. RC_LIMIT: too many are under way, of this share, of what is above it, or of all. One that was cancelled is
 * under way until it is answered or given up: a resolver that says nothing takes 14 s. */
enum rc resolver_lookup(struct resolver *r, struct lookup_share *share, const char *name, resolved_fn *fn, void *arg, struct lookup **ret,
			struct fault *ret_f);
/* The callback will not come. */
void lookup_cancel(struct lookup *l);

#endif
