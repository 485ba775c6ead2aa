/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/ssh/rate.h"

#include "base/cleanup.h"

#include <netinet/in.h>
#include <string.h>

static enum rc addr_bytes(const struct sockaddr *addr, uint8_t out[16], struct fault *ret_f)
{
	static const uint8_t mapped[12] = { [10] = 0xff, [11] = 0xff };
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;

	memset(out, 0, 16);
	if (addr->sa_family == AF_INET) {
		memcpy(&v4, addr, sizeof(v4));
		memcpy(out, mapped, sizeof(mapped));
		memcpy(out + 12, &v4.sin_addr, 4);
	} else if (addr->sa_family == AF_INET6) {
		memcpy(&v6, addr, sizeof(v6));
		/* Whoever has one address of a /64 has all of them. */
		memcpy(out, &v6.sin6_addr, memcmp(&v6.sin6_addr, mapped, sizeof(mapped)) ? 8 : 16);
	} else {
		return fault_set(ret_f, RC_INVALID, 0, "not an internet address");
	}
	return RC_OK;
}

static bool window_over(const struct source_addr *s, uint64_t now)
{
	return !s->fails || now - s->window_ms >= SSH_FAIL_WINDOW_MS;
}

/* The one that has this address, else one that may be forgotten: the idle first, then the one whose window is oldest. */
static struct source_addr *source_find(struct rate *r, const uint8_t bytes[16], uint64_t now)
{
	struct source_addr *best = NULL;

	for (size_t i = 0; i < SSH_SOURCES; i++) {
		struct source_addr *s = &r->sources[i];

		if (s->used && !memcmp(s->bytes, bytes, 16))
			return s;
		if (s->used && s->connections)
			continue;
		if (!best || (best->used && (!s->used || (window_over(s, now) && !window_over(best, now)) ||
					     (!window_over(best, now) && s->window_ms < best->window_ms))))
			best = s;
	}
	if (best) {
		*best = (struct source_addr){ .used = true };
		memcpy(best->bytes, bytes, 16);
	}
	return best;
}

static bool bucket_take(struct rate *r, uint64_t now)
{
	uint64_t full = (uint64_t)SSH_RATE_BURST * 1000;

	if (!r->started) {
		r->started = true;
		r->tokens_milli = full;
	} else {
		r->tokens_milli = MIN_OF(full, r->tokens_milli + MIN_OF(now - r->last_ms, full) * SSH_RATE_PER_S);
	}
	r->last_ms = now;
	if (r->tokens_milli < 1000)
		return false;
	r->tokens_milli -= 1000;
	return true;
}

enum rc rate_admit(struct rate *r, const struct sockaddr *addr, uint64_t now, struct source_addr **ret, struct fault *ret_f)
{
	struct source_addr *s;
	uint8_t bytes[16];
	enum rc rc = addr_bytes(addr, bytes, ret_f);

	if (rc)
		return rc;
	s = source_find(r, bytes, now);
	if (!s)
		return fault_set(ret_f, RC_LIMIT, 0, "too many addresses are connected");
	if (s->fails && window_over(s, now))
		s->fails = 0;
	if (s->fails >= SSH_FAILS_MAX)
		return fault_set(ret_f, RC_LIMIT, 0, "too many failed logins");
	if (s->connections >= SSH_SOURCE_MAX)
		return fault_set(ret_f, RC_LIMIT, 0, "too many connections of one address");
	if (!bucket_take(r, now))
		return fault_set(ret_f, RC_LIMIT, 0, "too many new connections");
	s->connections++;
	*ret = s;
	return RC_OK;
}

void rate_leave(struct source_addr *s)
{
	if (s->connections)
		s->connections--;
}

void rate_failed(struct source_addr *s, uint64_t now)
{
	if (window_over(s, now)) {
		s->fails = 0;
		s->window_ms = now;
	}
	if (s->fails < SSH_FAILS_MAX)
		s->fails++;
}
