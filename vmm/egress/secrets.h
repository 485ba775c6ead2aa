/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opened secrets of one sandbox: put into a request in place of their placeholders, and taken out of responses again. A set
 * is counted, so that a rotation does not pull it away under a request. Values live in locked memory where there is room.
 */
#ifndef NB_EGRESS_SECRETS_H
#define NB_EGRESS_SECRETS_H

#include "base/buf.h"
#include "vmm/egress/policy.h"

#define EGRESS_KEY_BYTES 32
#define SECRET_REDACT_MIN 8 /* shorter values would be found in innocent text; they are not taken out */

struct secrets;

/* NULL if the policy has none; a secret that does not open is left out and counted in *ret_bad. */
enum rc secrets_open(const struct policy *p, const char *id, const uint8_t key[EGRESS_KEY_BYTES], struct secrets **ret,
		     size_t *ret_bad, struct fault *ret_f);
struct secrets *secrets_ref(struct secrets *s);
void secrets_unref(struct secrets *s);

/*
 * A header's value with the placeholders of secrets that are bound to this host replaced, also inside "Basic" credentials;
 * written to out. *ret_used: the name of a secret that was put in, else NULL; *ret_strange: of one that is bound to
 * other hosts and was left as it is.
 */
enum rc secrets_substitute(struct secrets *s, const char *host, uint16_t port, const char *value, size_t n, struct buf *out,
			   const char **ret_used, const char **ret_strange);

/* Takes values (as they are, percent- or JSON-encoded, or in base64) out of a stream. */
struct redactor {
	struct secrets *set; /* owned reference; NULL: passes everything */
	struct buf held;     /* the start of what may be a value */
	bool found;
};

void redactor_start(struct redactor *r, struct secrets *set);
/* With `last` nothing is held back. */
enum rc redactor_run(struct redactor *r, const void *data, size_t n, bool last, struct buf *out);
void redactor_end(struct redactor *r);

#endif
