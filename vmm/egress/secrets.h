/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opened secrets of one sandbox: put into a request in place of their placeholders, and taken out of responses again. A set
 * is counted, so that a rotation does not pull it away under a request. Values live in locked memory where there is room.
 */
#ifndef NB_EGRESS_SECRETS_H
#define NB_EGRESS_SECRETS_H

#include "base/buf.h"
#include "schema/verdict.h"

#define EGRESS_KEY_BYTES 32
#define SECRET_REDACT_MIN 8 /* shorter values would be found in innocent text; they are not taken out */

struct secrets;

/* NULL if the policy has none; a secret that does not open is left out and counted in *ret_bad. */
enum rc secrets_open(const struct policy *p, const char *id, const uint8_t key[EGRESS_KEY_BYTES], struct secrets **ret,
		     size_t *ret_bad, struct fault *ret_f);
struct secrets *secrets_ref(struct secrets *s);
void secrets_unref(struct secrets *s);

/* Where a placeholder was found: what a secret's hosts and rules are compared with. */
struct secret_place {
	const char *host;
	uint16_t port;
	const char *method;
	const char *path; /* in its normal form; NULL: not known, which fits no rule about paths */
};

/* Names of secrets, or NULL. */
struct secret_report {
	const char *used;    /* put in */
	const char *strange; /* left as it is: bound to other hosts */
	const char *outside; /* left as it is: its rules, or the header, do not allow it here */
};

/*
 * A header's value with the placeholders of secrets that may go there replaced, also inside "Basic" credentials; written to
 * out. usual: the header is one that may carry a secret which has no list of headers. The report is added to.
 */
enum rc secrets_put_header(struct secrets *s, const struct secret_place *at, const char *name, size_t name_n, bool usual,
			   const char *value, size_t n, struct buf *out, struct secret_report *report);
/* A request target, with the values percent-encoded in the query parameters that their secrets name. */
enum rc secrets_put_target(struct secrets *s, const struct secret_place *at, const char *target, size_t n, struct buf *out,
			   struct secret_report *report);
/* Looks for placeholders in what is passed on as it is: a body, WebSocket messages. Cuts do not matter. */
struct secret_watch {
	uint8_t tail[POLICY_PLACEHOLDER_MAX];
	size_t n;
};
/* The name of a secret whose placeholder ends in these bytes, or NULL. */
const char *secrets_watch(struct secrets *s, struct secret_watch *w, const uint8_t *data, size_t n);

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
