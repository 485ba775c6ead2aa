/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/broker/repolicy.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "vmm/broker/agent_link.h"
#include "vmm/broker/newborn.h"
#include "vmm/broker/limits.h"

#include <string.h>

struct repolicy {
	struct machine *m;
	struct request *r; /* NULL: a late certificate, which nobody waits for */
	struct source *late;
	struct agent_call *call;
	uint8_t *env;
	size_t env_n;
};

static void repolicy_free(struct repolicy *p)
{
	p->m->repolicy = NULL;
	source_drop(&p->late);
	agent_cancel(p->call);
	free(p->env);
	free(p);
}

static void finish(struct repolicy *p, const struct fault *f)
{
	struct request *r = p->r;

	if (!r && f)
		log_warn("a guest does not know its egress certificate id=%s rc=%s: %s", p->m->id, rc_name(f->rc), f->text);
	repolicy_free(p);
	if (r && f)
		request_fail(r, f);
	else if (r)
		request_reply(r, NULL, NULL, NULL, 0);
}

static void on_told(void *arg, enum rc rc, int fd, struct json_object *answer, const struct fault *f)
{
	struct repolicy *p = arg;

	(void)fd;
	(void)answer;
	p->call = NULL;
	finish(p, rc ? f : NULL);
}

static void tell_guest(struct repolicy *p, const char *pem)
{
	_cleanup_free_ char *line = NULL;
	struct machine *m = p->m;
	struct fault f;

	if (m->state != BROKER_VM_RUNNING) {
		fault_set(&f, RC_STATE, 0, "the policy is in force, but the machine is paused and its guest could not be told");
		finish(p, &f);
		return;
	}
	if (trust_line(p->env, p->env_n, pem, &line, &f) ||
	    agent_call(m->b->loop, &m->net, AGENT_ASK, line, now_ms() + AGENT_ANSWER_MS, on_told, p, &p->call, &f))
		finish(p, &f);
}

void repolicy_ca(struct machine *m, const char *pem)
{
	struct repolicy *p = m->repolicy;

	if (!p || p->call)
		return;
	source_drop(&p->late);
	if (p->env_n || (*pem && (!m->ca_pem || strcmp(m->ca_pem, pem) != 0)))
		tell_guest(p, pem);
	else
		finish(p, NULL);
}

void repolicy_missed(struct machine *m)
{
	struct repolicy *p;

	if (!m->missed_ca || !m->ca_pem || !*m->ca_pem || m->repolicy || m->state != BROKER_VM_RUNNING)
		return;
	p = calloc(1, sizeof(*p));
	if (!p)
		return;
	m->missed_ca = false;
	*p = (struct repolicy){ .m = m };
	m->repolicy = p;
	tell_guest(p, m->ca_pem);
}

static void on_late(void *arg)
{
	struct fault f;

	log_warn("the egress proxy does not take a policy id=%s", ((struct repolicy *)arg)->m->id);
	fault_set(&f, RC_TIMEOUT, 0, "the egress proxy does not answer");
	finish(arg, &f);
}

enum rc repolicy_begin(struct machine *m, const struct broker_vm_policy_set *q, struct request *r, struct fault *ret_f)
{
	struct repolicy *p;
	enum rc rc;

	if (m->repolicy)
		return fault_set(ret_f, RC_AGAIN, 0, "the policy of machine '%s' is being changed", m->id);
	p = calloc(1, sizeof(*p));
	if (!p)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	*p = (struct repolicy){ .m = m, .r = r, .env_n = q->env_n };
	m->repolicy = p;
	p->env = malloc(q->env_n + 1);
	if (p->env && q->env_n)
		memcpy(p->env, q->env, q->env_n);
	rc = p->env ? RC_OK : fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	if (!rc)
		rc = loop_timer(m->b->loop, now_ms() + EGRESS_POLICY_MS, on_late, p, &p->late, ret_f);
	if (!rc)
		rc = machine_set_policy(m, q->policy, q->policy_n, ret_f);
	if (rc) {
		repolicy_free(p);
		return rc;
	}
	/* Without a proxy nothing goes out; the next one is given this policy. */
	if (!m->egress_told)
		repolicy_ca(m, "");
	return RC_OK;
}

void repolicy_cancel(struct machine *m)
{
	struct fault f;

	if (!m->repolicy)
		return;
	fault_set(&f, RC_ABSENT, 0, "machine '%s' ends", m->id);
	finish(m->repolicy, &f);
}
