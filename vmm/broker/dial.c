/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/broker/dial.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "vmm/broker/agent_link.h"
#include "vmm/broker/limits.h"
#include "vmm/broker/machine.h"
#include "vmm/broker/peer.h"

struct dial {
	struct dial *next, **at;
	struct request *r;
	struct agent_call *call;
	int lease_fd;
	int plain; /* EXPOSE_DIAL, LOGIN_DIAL: no fields in the answer */
};

static void dial_free(struct dial *d)
{
	*d->at = d->next;
	if (d->next)
		d->next->at = d->at;
	agent_cancel(d->call);
	close_fd(&d->lease_fd);
	free(d);
}

static void on_dialed(void *arg, enum rc rc, int fd, struct json_object *answer, const struct fault *f)
{
	struct dial *d = arg;
	struct broker_vm_dialed reply = { .has_lease = d->lease_fd >= 0 };
	int fds[2] = { fd, -1 };

	(void)answer;
	d->call = NULL;
	if (rc) {
		request_fail(d->r, f);
	} else {
		fds[1] = take_fd(&d->lease_fd);
		request_reply(d->r, d->plain ? NULL : (message_put_fn *)broker_vm_dialed_put, &reply, fds,
			      fds[1] >= 0 ? 2 : 1);
	}
	dial_free(d);
}

static void dial_begin(struct machine *m, struct request *r, enum agent_mode mode, const char *line, int want_lease)
{
	struct dial *d = calloc(1, sizeof(*d));
	struct fault f;

	if (!d) {
		fault_set(&f, RC_NOMEM, 0, "out of memory");
		request_fail(r, &f);
		return;
	}
	*d = (struct dial){ .next = m->dials, .at = &m->dials, .r = r, .lease_fd = -1, .plain = r->op != BROKER_VM_DIAL };
	if (d->next)
		d->next->at = &d->next;
	m->dials = d;
	/* Taken before the connection is there, so that the grace does not end meanwhile; given back with it if it fails. */
	if (want_lease)
		machine_lease_take(m, &d->lease_fd, NULL);
	if (agent_call(m->b->loop, &m->net, mode, line, now_ms() + DIAL_MS, on_dialed, d, &d->call, &f)) {
		request_fail(r, &f);
		dial_free(d);
	}
}

void dial_machine(struct machine *m, struct request *r, int want_lease)
{
	dial_begin(m, r, AGENT_CONNECT, NULL, want_lease);
}

void dial_exposed(struct machine *m, struct request *r, const char *line)
{
	dial_begin(m, r, AGENT_SEND, line, 0);
}

void dial_login(struct machine *m, struct request *r)
{
	dial_begin(m, r, AGENT_CONNECT, NULL, 0);
}

void dials_cancel(struct machine *m)
{
	struct fault f;

	fault_set(&f, RC_STATE, 0, "machine '%s' is ending", m->id);
	while (m->dials) {
		request_fail(m->dials->r, &f);
		dial_free(m->dials);
	}
}
