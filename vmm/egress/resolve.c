/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory: c-ares owns its sockets and tells us which to watch; a table by descriptor holds their sources. A lookup that was
 * cancelled stays with c-ares until it ends there, without an owner. c-ares may answer inside the call that asks, so such
 * answers wait in a list for the timer, which keeps callers free of surprises.
 */
#include "vmm/egress/resolve.h"

#include "base/cleanup.h"
#include "vmm/egress/limits.h"
#include "vmm/egress/tenant.h"

#include <ares.h>
#include <netdb.h>
#include <string.h>
#include <sys/epoll.h>

#define WATCHES_MAX 128
#define QUERY_MS 2000
#define QUERY_TRIES 3

struct watch {
	struct resolver *r;
	int fd;
	struct source *source;
};

struct lookup_share {
	struct lookup_share *above; /* counts them too */
	size_t n;     /* under way */
	size_t below; /* shares that it is above of */
	bool orphan;  /* the last of these frees it */
};

struct lookup {
	struct resolver *r;
	struct lookup_share *share;
	struct lookup *next_early;
	resolved_fn *fn; /* NULL: cancelled */
	void *arg;
	bool asking, early;
	struct address addrs[EGRESS_ADDRS_MAX];
	size_t n;
	uint32_t ttl_s;
	const char *why;
};

struct resolver {
	struct loop *loop;
	ares_channel channel;
	bool open;
	size_t n; /* lookups under way */
	struct source *timer;
	uint64_t at_ms; /* what it is set to */
	struct lookup *early;
	struct watch watches[WATCHES_MAX];
};

enum rc lookup_share_new(struct lookup_share *above, struct lookup_share **ret, struct fault *ret_f)
{
	*ret = calloc(1, sizeof(**ret));
	if (!*ret)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	(*ret)->above = above;
	if (above)
		above->below++;
	return RC_OK;
}

static void share_done(struct lookup_share *s)
{
	struct lookup_share *above = s->above;

	if (s->n || s->below || !s->orphan)
		return;
	free(s);
	if (above) {
		above->below--;
		share_done(above);
	}
}

void lookup_share_move(struct lookup_share *s, struct lookup_share *above)
{
	struct lookup_share *before = s->above;

	above->below++;
	above->n += s->n;
	s->above = above;
	if (!before)
		return;
	before->below--;
	before->n -= s->n;
	share_done(before);
}

void lookup_share_free(struct lookup_share *s)
{
	if (!s)
		return;
	s->orphan = true;
	share_done(s);
}

static void lookup_free(struct lookup *l)
{
	struct lookup_share *s = l->share;

	l->r->n--;
	s->n--;
	if (s->above)
		s->above->n--;
	share_done(s);
	free(l);
}

static void lookup_deliver(struct lookup *l)
{
	if (l->fn)
		l->fn(l->arg, l->addrs, l->n, l->ttl_s, l->why);
	lookup_free(l);
}

static void arm_at(struct resolver *r, uint64_t at_ms)
{
	r->at_ms = at_ms;
	loop_timer_set(r->timer, at_ms);
}

/* c-ares looks at every question that is open. */
static void arm(struct resolver *r)
{
	struct timeval tv;
	struct timeval *t = ares_timeout(r->channel, NULL, &tv);
	uint64_t at = UINT64_MAX;

	if (r->early)
		at = loop_now_ms(r->loop);
	else if (t)
		at = loop_now_ms(r->loop) + (uint64_t)t->tv_sec * 1000 + (uint64_t)t->tv_usec / 1000 + 1;
	arm_at(r, at);
}

static void on_timer(void *arg)
{
	struct resolver *r = arg;

	while (r->early) {
		struct lookup *l = r->early;

		r->early = l->next_early;
		lookup_deliver(l);
	}
	ares_process_fd(r->channel, ARES_SOCKET_BAD, ARES_SOCKET_BAD);
	arm(r);
}

static void on_socket(void *arg, uint32_t events)
{
	struct watch *w = arg;
	struct resolver *r = w->r;
	int fd = w->fd;

	ares_process_fd(r->channel, events & (EPOLLIN | EPOLLHUP | EPOLLERR) ? fd : ARES_SOCKET_BAD,
			events & EPOLLOUT ? fd : ARES_SOCKET_BAD);
	arm(r);
}

static void on_state(void *arg, ares_socket_t fd, int readable, int writable)
{
	struct resolver *r = arg;
	struct watch *w = NULL, *spare = NULL;
	uint32_t events = (readable ? EPOLLIN : 0u) | (writable ? EPOLLOUT : 0u);

	for (size_t i = 0; i < WATCHES_MAX; i++) {
		if (r->watches[i].source && r->watches[i].fd == fd)
			w = &r->watches[i];
		else if (!r->watches[i].source)
			spare = &r->watches[i];
	}
	if (w && !events) {
		source_drop(&w->source);
		return;
	}
	if (w) {
		loop_fd_events(w->source, events, NULL);
		return;
	}
	/* Without a free place the query runs into its timeout: an error of one connection. */
	if (!events || !spare)
		return;
	*spare = (struct watch){ .r = r, .fd = fd };
	loop_fd(r->loop, fd, events, on_socket, spare, &spare->source, NULL);
}

static void take_family(struct lookup *l, const struct ares_addrinfo *info, int family)
{
	for (const struct ares_addrinfo_node *n = info->nodes; n && l->n < EGRESS_ADDRS_MAX; n = n->ai_next) {
		uint32_t ttl = n->ai_ttl > 0 ? (uint32_t)n->ai_ttl : 0;
		uint16_t port;

		if (n->ai_family != family || !address_from_sockaddr(&l->addrs[l->n], &port, n->ai_addr))
			continue;
		if (!l->n || ttl < l->ttl_s)
			l->ttl_s = ttl;
		l->n++;
	}
}

static const char *why_not(int status)
{
	switch (status) {
	case ARES_ENOTFOUND:
	case ARES_ENODATA: return "the name does not exist or has no address";
	case ARES_ETIMEOUT: return "the resolver did not answer";
	case ARES_ECONNREFUSED: return "the resolver refused the connection";
	default: return "the name could not be resolved";
	}
}

static void on_answer(void *arg, int status, int timeouts, struct ares_addrinfo *info)
{
	struct lookup *l = arg;

	(void)timeouts;
	if (status == ARES_SUCCESS && info) {
		take_family(l, info, AF_INET);
		take_family(l, info, AF_INET6);
	}
	if (info)
		ares_freeaddrinfo(info);
	l->why = l->n ? NULL : why_not(status == ARES_SUCCESS ? ARES_ENODATA : status);
	if (!l->asking) {
		lookup_deliver(l);
		return;
	}
	l->early = true;
	l->next_early = l->r->early;
	l->r->early = l;
}

enum rc resolver_lookup(struct resolver *r, struct lookup_share *share, const char *name, resolved_fn *fn, void *arg,
			struct lookup **ret, struct fault *ret_f)
{
	struct ares_addrinfo_hints hints = { .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM,
					     .ai_flags = ARES_AI_NOSORT };
	struct lookup *l;

	/* c-ares looks for a number that no question has, for as long as it takes. */
	if (r->n >= EGRESS_LOOKUPS_MAX || share->n >= EGRESS_LOOKUPS_SANDBOX_MAX ||
	    (share->above && !share_allows(share->above->n, r->n, EGRESS_LOOKUPS_MAX)))
		return fault_set(ret_f, RC_LIMIT, 0, "too many names are being resolved");
	l = calloc(1, sizeof(*l));
	if (!l)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	l->r = r;
	l->share = share;
	share->n++;
	if (share->above)
		share->above->n++;
	r->n++;
	l->fn = fn;
	l->arg = arg;
	l->asking = true;
	*ret = l;
	ares_getaddrinfo(r->channel, name, NULL, &hints, on_answer, l);
	l->asking = false;
	/* The first try of a new question ends after QUERY_MS, whatever the others are waiting for. */
	arm_at(r, r->early ? loop_now_ms(r->loop) : MIN_OF(r->at_ms, loop_now_ms(r->loop) + QUERY_MS + 1));
	return RC_OK;
}

void lookup_cancel(struct lookup *l)
{
	if (l)
		l->fn = NULL;
}

enum rc resolver_new(struct loop *loop, const char *server, struct resolver **ret, struct fault *ret_f)
{
	char lookups[] = "b";
	struct ares_options o = { .flags = ARES_FLAG_NOSEARCH | ARES_FLAG_NOALIASES, .timeout = QUERY_MS,
				  .tries = QUERY_TRIES, .lookups = lookups, .sock_state_cb = on_state };
	struct resolver *r = calloc(1, sizeof(*r));
	enum rc rc;

	if (!r)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	r->loop = loop;
	r->at_ms = UINT64_MAX;
	o.sock_state_cb_data = r;
	if (ares_library_init(ARES_LIB_INIT_ALL) ||
	    ares_init_options(&r->channel, &o, ARES_OPT_FLAGS | ARES_OPT_TIMEOUTMS | ARES_OPT_TRIES | ARES_OPT_LOOKUPS |
						       ARES_OPT_SOCK_STATE_CB)) {
		free(r);
		return fault_set(ret_f, RC_SYS, 0, "c-ares did not start");
	}
	r->open = true;
	if (*server && ares_set_servers_ports_csv(r->channel, server)) {
		resolver_free(r);
		return fault_set(ret_f, RC_INVALID, 0, "egress_resolver '%.60s' is not an address", server);
	}
	rc = loop_timer(loop, UINT64_MAX, on_timer, r, &r->timer, ret_f);
	if (rc) {
		resolver_free(r);
		return rc;
	}
	*ret = r;
	return RC_OK;
}

void resolver_free(struct resolver *r)
{
	if (!r)
		return;
	if (r->open)
		ares_destroy(r->channel);
	while (r->early) {
		struct lookup *l = r->early;

		r->early = l->next_early;
		lookup_free(l);
	}
	source_drop(&r->timer);
	ares_library_cleanup();
	free(r);
}
