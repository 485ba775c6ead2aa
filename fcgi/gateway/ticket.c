/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/gateway/ticket.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "fcgi/gateway/limits.h"

#include <openssl/crypto.h>
#include <string.h>

struct slot {
	struct tickets *table;
	struct slot *next;
	struct ticket ticket;
	struct source *expiry;
	char token[GATEWAY_TOKEN_MAX];
};

struct tickets {
	struct loop *loop;
	struct slot *first;
	size_t n;
};

enum rc tickets_new(struct loop *loop, struct tickets **ret, struct fault *ret_f)
{
	struct tickets *t = calloc(1, sizeof(*t));

	if (!t)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	t->loop = loop;
	*ret = t;
	return RC_OK;
}

void ticket_close(struct ticket *ticket)
{
	close_fd(&ticket->fd);
	close_fd(&ticket->lease);
	free(ticket->headers);
	free(ticket->filter);
	free(ticket->place);
	ticket->headers = ticket->filter = ticket->place = NULL;
}

static void slot_unlink(struct slot *s)
{
	struct slot **at = &s->table->first;

	while (*at != s)
		at = &(*at)->next;
	*at = s->next;
	s->table->n--;
	source_drop(&s->expiry);
	OPENSSL_cleanse(s->token, sizeof(s->token));
}

static void slot_free(struct slot *s)
{
	slot_unlink(s);
	ticket_close(&s->ticket);
	free(s);
}

void tickets_free(struct tickets *t)
{
	if (!t)
		return;
	while (t->first)
		slot_free(t->first);
	free(t);
}

size_t tickets_count(const struct tickets *t)
{
	return t->n;
}

/*
 * Every slot is looked at and every byte compared, whatever matches: how long it takes says nothing about a token. With
 * at most TICKETS_MAX slots that is some microseconds.
 */
static struct slot *slot_find(struct tickets *t, const char *token)
{
	char padded[GATEWAY_TOKEN_MAX] = { 0 };
	struct slot *found = NULL;
	size_t n = strlen(token);

	if (n != GATEWAY_TOKEN_MAX - 1)
		return NULL;
	memcpy(padded, token, n);
	for (struct slot *s = t->first; s; s = s->next)
		if (!CRYPTO_memcmp(s->token, padded, sizeof(padded)))
			found = s;
	return found;
}

static void on_expiry(void *arg)
{
	slot_free(arg);
}

static enum rc token_check(struct tickets *t, const char *token, struct fault *ret_f)
{
	if (strlen(token) != GATEWAY_TOKEN_MAX - 1 || strspn(token, "0123456789abcdef") != GATEWAY_TOKEN_MAX - 1)
		return fault_set(ret_f, RC_INVALID, 0, "a token is %d hex digits", GATEWAY_TOKEN_MAX - 1);
	if (slot_find(t, token))
		return fault_set(ret_f, RC_EXISTS, 0, "token is in use");
	if (t->n >= TICKETS_MAX)
		return fault_set(ret_f, RC_LIMIT, 0, "%d tickets are waiting already", TICKETS_MAX);
	return RC_OK;
}

enum rc tickets_add(struct tickets *t, const char *token, uint32_t ttl_ms, struct ticket *ticket, struct fault *ret_f)
{
	struct slot *s = NULL;
	enum rc rc = token_check(t, token, ret_f);

	if (!rc) {
		s = calloc(1, sizeof(*s));
		if (!s)
			rc = fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	}
	if (!rc)
		rc = loop_timer(t->loop, now_ms() + MIN_OF(ttl_ms, (uint32_t)TICKET_TTL_MAX_MS), on_expiry, s,
				&s->expiry, ret_f);
	if (rc) {
		free(s);
		ticket_close(ticket);
		return rc;
	}
	s->table = t;
	s->ticket = *ticket;
	*ticket = (struct ticket){ .fd = -1, .lease = -1 };
	memcpy(s->token, token, GATEWAY_TOKEN_MAX);
	s->next = t->first;
	t->first = s;
	t->n++;
	return RC_OK;
}

enum rc tickets_redeem(struct tickets *t, const char *token, struct ticket *ret, struct fault *ret_f)
{
	struct slot *s = slot_find(t, token);

	if (!s)
		return fault_set(ret_f, RC_ABSENT, 0, "no such ticket, or it was used, or it is too old");
	*ret = s->ticket;
	slot_unlink(s);
	free(s);
	return RC_OK;
}
