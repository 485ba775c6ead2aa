/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/egress/sandbox.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "vmm/egress/ca.h"
#include "vmm/egress/limits.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>

bool bucket_take(struct bucket *b, uint64_t now, uint32_t per_s, uint32_t burst)
{
	uint64_t full = (uint64_t)burst * 1000;

	if (!b->started) {
		b->started = true;
		b->milli = full;
	} else {
		uint64_t gained = (now - b->last_ms) * per_s;

		/* The burst may have become smaller. */
		b->milli = b->milli >= full || gained > full - b->milli ? full : b->milli + gained;
	}
	b->last_ms = now;
	if (b->milli < 1000)
		return false;
	b->milli -= 1000;
	return true;
}

struct sandbox *sandbox_find(struct egress *eg, const char *id)
{
	struct sandbox *sb = eg->sandboxes;

	while (sb && strcmp(sb->id, id))
		sb = sb->next;
	return sb;
}

static void port_resume(void *arg)
{
	struct port *p = arg;

	loop_fd_events(p->source, EPOLLIN, NULL);
}

void port_accept_failed(struct port *p, int sys)
{
	static struct log_limit limit = LOG_LIMIT_INIT(1, 6);

	if (sys != EMFILE && sys != ENFILE && sys != ENOMEM && sys != ENOBUFS)
		return;
	log_limited(&limit, LOG_LEVEL_ERROR, "cannot accept connections sys=%d", sys);
	loop_fd_events(p->source, 0, NULL);
	loop_timer_set(p->pause, loop_now_ms(p->sb->eg->loop) + EGRESS_ACCEPT_PAUSE_MS);
}

static void port_close(struct port *p)
{
	source_drop(&p->source);
	source_drop(&p->pause);
	close_fd(&p->fd);
}

static enum rc port_open(struct sandbox *sb, struct port *p, int *fd, loop_fd_fn *fn, struct fault *ret_f)
{
	enum rc rc;

	port_close(p);
	p->sb = sb;
	p->fd = take_fd(fd);
	if (p == &sb->tcp)
		conn_options(p->fd);
	rc = loop_timer(sb->eg->loop, UINT64_MAX, port_resume, p, &p->pause, ret_f);
	return rc ? rc : loop_fd(sb->eg->loop, p->fd, EPOLLIN, fn, p, &p->source, ret_f);
}

static void usage_add(struct usage *u, const struct usage *more)
{
	u->conns += more->conns;
	u->tls += more->tls;
	u->held += more->held;
}

static void usage_take(struct usage *u, const struct usage *less)
{
	u->conns -= less->conns;
	u->tls -= less->tls;
	u->held -= less->held;
}

void sandbox_count(struct sandbox *sb, size_t conns, size_t tls, size_t held)
{
	const struct usage more = { .conns = conns, .tls = tls, .held = held };

	usage_add(&sb->usage, &more);
	usage_add(&sb->tenant->usage, &more);
	usage_add(&sb->eg->usage, &more);
}

/* Of whom it is, is in its policy. It does not change in a machine's life but for one whose policy could not be read before. */
static void tenant_renew(struct sandbox *sb)
{
	struct tenant *t;
	struct fault f;

	if (tenant_join(&sb->eg->tenants, policy_org(sb->policy), &t, &f)) {
		log_fault(LOG_LEVEL_ERROR, &f, "organization of %s", sb->id);
		return;
	}
	usage_take(&sb->tenant->usage, &sb->usage);
	usage_add(&t->usage, &sb->usage);
	lookup_share_move(sb->lookups, t->lookups);
	tenant_leave(&sb->eg->tenants, sb->tenant);
	sb->tenant = t;
}

static enum rc sandbox_new(struct egress *eg, const char *id, struct sandbox **ret, struct fault *ret_f)
{
	struct sandbox *sb;
	enum rc rc;

	if (eg->n_sandboxes >= EGRESS_SANDBOXES_MAX)
		return fault_set(ret_f, RC_LIMIT, 0, "more than %d sandboxes", EGRESS_SANDBOXES_MAX);
	sb = calloc(1, sizeof(*sb));
	if (!sb)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	sb->eg = eg;
	memcpy(sb->id, id, strlen(id) + 1);
	sb->tcp.fd = sb->dns_udp.fd = sb->dns_tcp.fd = -1;
	rc = names_new(&sb->names, ret_f);
	if (!rc)
		rc = tenant_join(&eg->tenants, NULL, &sb->tenant, ret_f);
	if (!rc)
		rc = lookup_share_new(sb->tenant->lookups, &sb->lookups, ret_f);
	if (!rc)
		rc = loop_timer(eg->loop, UINT64_MAX, conn_meter_tick, sb, &sb->meter.timer, ret_f);
	if (!rc)
		rc = loop_timer(eg->loop, UINT64_MAX, conn_room, sb, &sb->room, ret_f);
	if (rc) {
		source_drop(&sb->meter.timer);
		names_free(sb->names);
		lookup_share_free(sb->lookups);
		tenant_leave(&eg->tenants, sb->tenant);
		free(sb);
		return rc;
	}
	sb->next = eg->sandboxes;
	eg->sandboxes = sb;
	eg->n_sandboxes++;
	*ret = sb;
	return RC_OK;
}

enum rc sandbox_set(struct egress *eg, const char *id, const void *policy, size_t policy_n, int fds[3],
		    struct fault *ret_f)
{
	struct sandbox *sb = sandbox_find(eg, id);
	enum rc rc = sb ? RC_OK : sandbox_new(eg, id, &sb, ret_f);

	if (!rc)
		rc = port_open(sb, &sb->tcp, &fds[0], conn_accept, ret_f);
	if (!rc)
		rc = port_open(sb, &sb->dns_udp, &fds[1], dnsd_udp, ret_f);
	if (!rc)
		rc = port_open(sb, &sb->dns_tcp, &fds[2], dnsd_accept, ret_f);
	fds_close(fds, 3);
	if (rc) {
		/* Half a sandbox would hang its guest; none resets it. */
		sandbox_free(sb);
		return rc;
	}
	sb->stale = false;
	sandbox_set_policy(sb, policy, policy_n);
	return RC_OK;
}

static void secrets_renew(struct sandbox *sb)
{
	struct secrets *set = NULL;
	size_t n, bad = 0;
	struct fault f;

	policy_secrets(sb->policy, &n);
	if (n && !sb->eg->has_key)
		log_warn("the secrets of %s cannot be opened: there is no key", sb->id);
	else if (secrets_open(sb->policy, sb->id, sb->eg->key, &set, &bad, &f))
		log_fault(LOG_LEVEL_ERROR, &f, "secrets of %s", sb->id);
	if (bad)
		log_warn("%zu secrets of %s do not open with this key", bad, sb->id);
	secrets_unref(sb->secrets);
	sb->secrets = set;
	if (sb->eg->has_key && policy_needs_ca(sb->policy) && !sb->ca && ca_new(sb->eg->key, sb->id, &sb->ca, &f))
		log_fault(LOG_LEVEL_ERROR, &f, "certificate authority of %s", sb->id);
}

static void meter_renew(struct sandbox *sb)
{
	const struct config *c = &sb->eg->config;
	const struct policy_limits operator_s = { .bytes_per_s = c->egress_bytes_per_s, .total_bytes = c->egress_total_bytes,
						  .conns_per_s = c->egress_conns_per_s };
	const struct policy_limits own = policy_limits(sb->policy);

	meter_set(&sb->meter, &operator_s, &own);
	/* Who waited for the old rate tries the new one. */
	if (sb->meter.first)
		loop_timer_set(sb->meter.timer, loop_now_ms(sb->eg->loop));
}

void sandbox_set_policy(struct sandbox *sb, const void *policy, size_t policy_n)
{
	struct policy *p = NULL;
	struct fault f;

	if (policy_parse(policy, policy_n, &p, &f))
		log_fault(LOG_LEVEL_WARN, &f, "policy of %s is invalid and allows nothing", sb->id);
	policy_free(sb->policy);
	sb->policy = p;
	tenant_renew(sb);
	meter_renew(sb);
	ledger_begin(sb->eg->ledger, policy_org(p));
	secrets_renew(sb);
	conn_recheck_all(sb);
}

void sandbox_free(struct sandbox *sb)
{
	struct sandbox **p;

	if (!sb)
		return;
	conn_close_all(sb, "the sandbox ended");
	if (sb->rows_suppressed)
		ledger_add(sb->eg->ledger, &(struct ledger_row){ .sandbox = sb->id, .org = policy_org(sb->policy), .decision = "dropped",
								 .reason = "more rows than are written of one sandbox",
								 .count = sb->rows_suppressed });
	dnsd_close_all(sb);
	port_close(&sb->tcp);
	port_close(&sb->dns_udp);
	port_close(&sb->dns_tcp);
	for (p = &sb->eg->sandboxes; *p != sb;)
		p = &(*p)->next;
	*p = sb->next;
	sb->eg->n_sandboxes--;
	source_drop(&sb->meter.timer);
	source_drop(&sb->room);
	names_free(sb->names);
	lookup_share_free(sb->lookups);
	tenant_leave(&sb->eg->tenants, sb->tenant);
	secrets_unref(sb->secrets);
	ca_free(sb->ca);
	policy_free(sb->policy);
	free(sb);
}

void sandbox_row(struct sandbox *sb, struct ledger_row *row)
{
	uint64_t now = loop_now_ms(sb->eg->loop);
	struct ledger_row gap = { .sandbox = sb->id, .org = policy_org(sb->policy), .decision = "dropped",
				  .reason = "more rows than are written of one sandbox", .count = sb->rows_suppressed };

	if (!bucket_take(&sb->rows, now, EGRESS_ROWS_PER_S, EGRESS_ROWS_BURST)) {
		sb->rows_suppressed++;
		return;
	}
	row->sandbox = sb->id;
	row->org = gap.org;
	if (gap.count && ledger_add(sb->eg->ledger, &gap))
		sb->rows_suppressed = 0;
	if (!ledger_add(sb->eg->ledger, row))
		sb->rows_suppressed++;
}
