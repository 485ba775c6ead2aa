/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tickets: bytes that are already open, waiting for the one request that may have them. A ticket leaves the table when
 * it is redeemed, when its time is over or when the table is freed; in the last two cases its descriptors are closed.
 */
#ifndef NB_GATEWAY_TICKET_H
#define NB_GATEWAY_TICKET_H

#include "base/loop.h"
#include "schema/gateway.h"

#include <stddef.h>

struct ticket {
	enum gateway_op kind; /* GATEWAY_TICKET_WS or GATEWAY_TICKET_LOG */
	int fd;               /* agent connection, or log file */
	int lease;            /* -1: none */
	uint64_t offset;      /* of a log */
	uint32_t format;
	char *headers;        /* complete lines; freed with the ticket */
	char *filter, *place; /* of a log, NULL: none; likewise */
};

struct tickets;

enum rc tickets_new(struct loop *loop, struct tickets **ret, struct fault *ret_f);
void tickets_free(struct tickets *t);
size_t tickets_count(const struct tickets *t);

/* Takes the ticket's descriptors and headers, also when it fails. RC_LIMIT: table full. RC_EXISTS: token in use. */
enum rc tickets_add(struct tickets *t, const char *token, uint32_t ttl_ms, struct ticket *ticket, struct fault *ret_f);
/* Hands the ticket over and forgets it. RC_ABSENT for a token that is unknown, used or too old. */
enum rc tickets_redeem(struct tickets *t, const char *token, struct ticket *ret, struct fault *ret_f);
void ticket_close(struct ticket *ticket);

#endif
