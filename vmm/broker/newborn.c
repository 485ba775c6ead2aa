/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/broker/newborn.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "vmm/broker/agent_link.h"
#include "vmm/broker/limits.h"

#include <stdio.h>
#include <string.h>

struct newborn {
	struct machine *m;
	char hostname[64];
	uint8_t *env;
	size_t env_n;
	const char *root;
	uint64_t answer_ms;
	struct agent_call *call;
	struct source *ca_wait;
	newborn_done_fn *done;
	void *arg;
};

enum rc newborn_new(const char *hostname, const uint8_t *env, size_t env_n, newborn_done_fn *done,
		    void *arg, struct newborn **ret, struct fault *ret_f)
{
	_cleanup_free_ char *line = NULL;
	struct newborn *n;
	enum rc rc = identity_line(hostname, env, env_n, NULL, "", &line, ret_f);

	if (rc)
		return rc;
	explicit_bzero(line, strlen(line));
	n = calloc(1, sizeof(*n));
	if (!n)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	n->env = malloc(env_n + 1);
	if (!n->env) {
		free(n);
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	}
	n->env_n = env_n;
	if (env_n)
		memcpy(n->env, env, env_n);
	snprintf(n->hostname, sizeof(n->hostname), "%s", hostname);
	n->done = done;
	n->arg = arg;
	*ret = n;
	return RC_OK;
}

void newborn_stop(struct newborn *n)
{
	if (!n)
		return;
	agent_cancel(n->call);
	n->call = NULL;
	source_drop(&n->ca_wait);
	if (n->m)
		n->m->on_ca = NULL;
	n->m = NULL;
}

void newborn_free(struct newborn *n)
{
	if (!n)
		return;
	newborn_stop(n);
	explicit_bzero(n->env, n->env_n);
	free(n->env);
	free(n);
}

static void on_trusted(void *arg, enum rc rc, int fd, struct json_object *answer, const struct fault *f)
{
	struct newborn *n = arg;

	(void)fd;
	(void)answer;
	n->call = NULL;
	n->done(n->arg, rc, f);
}

/* The certificate came while the guest was being told the rest. False: it was not sent. */
static bool trust_send(struct newborn *n)
{
	_cleanup_free_ char *line = NULL;

	n->m->missed_ca = false;
	return *n->m->ca_pem && !trust_line(NULL, 0, n->m->ca_pem, &line, NULL) &&
	       !agent_call(n->m->b->loop, &n->m->net, AGENT_ASK, line, now_ms() + n->answer_ms, on_trusted, n, &n->call, NULL);
}

static void on_identity(void *arg, enum rc rc, int fd, struct json_object *answer, const struct fault *f)
{
	struct newborn *n = arg;

	(void)fd;
	(void)answer;
	n->call = NULL;
	if (rc || !n->m->missed_ca || !n->m->ca_pem || !trust_send(n))
		n->done(n->arg, rc, f);
}

static void identity_send(struct newborn *n)
{
	_cleanup_free_ char *line = NULL;
	struct fault f;
	enum rc rc;

	n->m->on_ca = NULL;
	source_drop(&n->ca_wait);
	rc = identity_line(n->hostname, n->env, n->env_n, n->m->ca_pem, n->root, &line, &f);
	if (!rc)
		rc = agent_call(n->m->b->loop, &n->m->net, AGENT_ASK, line, now_ms() + n->answer_ms, on_identity, n, &n->call, &f);
	if (line)
		explicit_bzero(line, strlen(line));
	if (rc)
		n->done(n->arg, rc, &f);
}

static void on_ca(void *arg)
{
	identity_send(arg);
}

/*
 * The proxy hangs or is slow: nobody waits for it any longer, the machine comes up without its certificate. Intercepted hosts fail there
 * until it comes; then the guest is told.
 */
static void on_ca_late(void *arg)
{
	struct newborn *n = arg;

	log_warn("no certificate from the egress proxy in time id=%s", n->m->id);
	n->m->missed_ca = true;
	identity_send(n);
}

void newborn_identify(struct newborn *n, struct machine *m, const char *root, uint64_t answer_ms)
{
	struct fault f;

	n->m = m;
	n->root = root;
	n->answer_ms = answer_ms;
	/* Asked for when the network was made, long before this: it is there, or something is wrong. */
	if (!n->m->egress_told || n->m->ca_pem) {
		identity_send(n);
		return;
	}
	n->m->on_ca = on_ca;
	n->m->on_ca_arg = n;
	if (loop_timer(n->m->b->loop, now_ms() + EGRESS_CA_MS, on_ca_late, n, &n->ca_wait, &f))
		n->done(n->arg, f.rc, &f);
}
