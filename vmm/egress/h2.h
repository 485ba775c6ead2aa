/* SPDX-License-Identifier: Apache-2.0 */
/*
 * HTTP/2 between a guest and its upstream: bytes in, bytes out, without sockets or TLS, so that it can be fed by tests. Used
 * only when both sides negotiated h2; nothing is translated to or from HTTP/1.
 */
#ifndef NB_EGRESS_H2_H
#define NB_EGRESS_H2_H

#include "base/buf.h"
#include "vmm/egress/judge.h"

struct h2;

enum h2_side { H2_GUEST, H2_UP };

/* One request that is over. Strings may be NULL or empty. */
struct h2_row {
	const char *method, *path, *rule, *secret, *decision, *reason;
	unsigned int status;
	uint64_t bytes_out, bytes_in, started_ms;
};

/* What the connection's owner knows and does. Pointers outlive the h2. */
struct h2_hooks {
	void *arg;
	const char *host;
	uint16_t port;
	const char *up_failed; /* there is no upstream: each request is answered with this. NULL: there is one */
	const struct policy *(*policy)(void *arg);
	struct secrets *(*secrets)(void *arg);
	uint64_t (*now)(void *arg);
	void (*row)(void *arg, const struct h2_row *row);
};

enum rc h2_new(const struct h2_hooks *hooks, struct h2 **ret);
/* Writes the rows of what was under way. */
void h2_free(struct h2 *h);

/* Whether bytes of this side may be read now: false while what they have caused waits to be written. */
bool h2_takes(const struct h2 *h, enum h2_side side);
/* Bytes of a side. A failure ends the connection; errors of the peer are answered with GOAWAY first (h2_out). */
enum rc h2_in(struct h2 *h, enum h2_side side, const uint8_t *data, size_t n);
/* Appends what is to be written to a side, until out has `full` bytes. */
enum rc h2_out(struct h2 *h, enum h2_side side, struct buf *out, size_t full);
/* Memory of what came from a side and waits to go to the other. */
size_t h2_held(const struct h2 *h, enum h2_side from);
/* A side will send nothing more. */
void h2_eof(struct h2 *h, enum h2_side side);
/* Nothing is to come for the guest; what h2_out() gave is all. */
bool h2_done(const struct h2 *h);

#endif
