/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the broker may be asked, by whom, of a machine in which state. This table is the whole of it: a request that is
 * not allowed by its row is answered RC_DENIED, RC_ABSENT or RC_STATE before any handler sees it. Above each row: why granting it is
 * safe, that is, what the asker could do at worst.
 */
#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "vmm/broker/capture.h"
#include "vmm/broker/create.h"
#include "vmm/broker/dial.h"
#include "vmm/broker/expose.h"
#include "vmm/broker/fork.h"
#include "vmm/broker/limits.h"
#include "vmm/broker/login.h"
#include "vmm/broker/machine.h"
#include "vmm/broker/peer.h"
#include "vmm/broker/repolicy.h"
#include "vmm/broker/verify.h"
#include "vmm/broker/volume.h"

#include <stddef.h>
#include <string.h>

/* m: the machine, if the row has states. */
typedef void op_fn(struct broker *b, struct request *r, struct machine *m, const void *q);

struct op {
	const char *name;
	unsigned int who;
	unsigned int states;  /* bits 1 << BROKER_VM_*; 0: not about a machine */
	size_t id_at;         /* where the request has its id, if states */
	message_get_fn *get;
	op_fn *fn;
};

#define STARTING (1u << BROKER_VM_STARTING)
#define RUNNING (1u << BROKER_VM_RUNNING)
#define PAUSED (1u << BROKER_VM_PAUSED)
#define STOPPING (1u << BROKER_VM_STOPPING)

/* --- handlers --------------------------------------------------------------------------------------------------- */

#define HANDLER(name) \
	static void name(struct broker *b, struct request *r, struct machine *m, const void *msg)
#define UNUSED_BM ((void)b, (void)m)

HANDLER(op_hello)
{
	struct broker_hello h = { .version = NB_VERSION, .started_ms = b->started_ms };

	UNUSED_BM, (void)msg;
	memcpy(h.engine, b->verdict.name, sizeof(h.engine));
	memcpy(h.tier, b->verdict.tier, sizeof(h.tier));
	memcpy(h.reason, b->verdict.reason, sizeof(h.reason));
	request_reply(r, (message_put_fn *)broker_hello_put, &h, NULL, 0);
}

HANDLER(op_vm_create)
{
	(void)m;
	create_begin(b, r, msg);
}

HANDLER(op_vm_kill)
{
	const struct broker_vm_kill *q = msg;
	struct fault f;

	(void)b;
	if (machine_wait_gone(m, r, &f))
		request_fail(r, &f);
	machine_end(m, "killed: %s", *q->reason ? q->reason : "no reason given");
}

static void stat_reply(struct request *r, const struct broker_vm_stat *s)
{
	request_reply(r, (message_put_fn *)broker_vm_stat_put, s, NULL, 0);
}

HANDLER(op_vm_stat)
{
	const struct broker_vm_id *q = msg;
	const struct machine *found = machine_find(b, q->id);
	const struct gone *g;
	struct broker_vm_stat s;
	struct fault f;

	(void)m;
	if (found && !found->internal) {
		machine_stat(machine_find(b, q->id), true, &s);
		stat_reply(r, &s);
		return;
	}
	g = machine_gone_find(b, q->id);
	if (!g) {
		fault_set(&f, RC_ABSENT, 0, "no machine '%s'", q->id);
		request_fail(r, &f);
		return;
	}
	s = (struct broker_vm_stat){ .state = BROKER_VM_GONE, .flags = g->flags, .memory_mib = g->memory_mib,
				     .created_ms = g->created_ms };
	memcpy(s.id, g->id, sizeof(s.id));
	memcpy(s.reason, g->reason, sizeof(s.reason));
	stat_reply(r, &s);
}

HANDLER(op_vm_list)
{
	const struct broker_cursor *q = msg;
	static uint8_t mem[BROKER_LIST_MAX * sizeof(struct broker_vm_stat)];
	struct broker_vm_list list = { 0 };
	struct wire w;

	(void)m;
	wire_init(&w, mem, sizeof(mem));
	for (size_t i = machine_after(b, q->after); i < b->n_machines && list.n < BROKER_LIST_MAX; i++) {
		struct broker_vm_stat s;

		if (b->machines[i]->internal)
			continue;
		machine_stat(b->machines[i], false, &s);
		broker_vm_stat_put(&w, &s);
		list.n++;
	}
	list.rows = mem;
	list.rows_n = wire_len(&w);
	request_reply(r, (message_put_fn *)broker_vm_list_put, &list, NULL, 0);
}

static void done(struct request *r, enum rc rc, const struct fault *f)
{
	if (rc)
		request_fail(r, f);
	else
		request_reply(r, NULL, NULL, NULL, 0);
}

HANDLER(op_vm_extend)
{
	const struct broker_vm_extend *q = msg;
	struct fault f;
	enum rc rc = RC_OK;

	(void)b;
	if (q->stop_at_ms && q->stop_at_ms <= wall_ms())
		rc = fault_set(&f, RC_INVALID, 0, "the end of its lifetime is in the past");
	if (!rc)
		rc = machine_extend(m, q->stop_at_ms, &f);
	if (rc)
		request_fail(r, &f);
	else
		request_reply(r, (message_put_fn *)broker_vm_extend_put, q, NULL, 0);
}

HANDLER(op_vm_dial)
{
	const struct broker_vm_dial *q = msg;

	(void)b;
	dial_machine(m, r, q->want_lease != 0);
}

HANDLER(op_expose_add)
{
	struct fault f;

	(void)m;
	done(r, expose_add(b, msg, &f), &f);
}

HANDLER(op_expose_delete)
{
	const struct broker_host *q = msg;
	struct fault f;

	(void)m;
	done(r, expose_delete(b, q->host, &f), &f);
}

HANDLER(op_expose_list)
{
	static uint8_t mem[BROKER_LIST_MAX * (BROKER_HOST_MAX + BROKER_ORG_MAX + 8)];
	const struct broker_cursor *q = msg;
	const struct expose *rows[BROKER_LIST_MAX];
	struct broker_expose_list list = { 0 };
	struct wire w;
	size_t n = expose_list(b, q->after, rows);

	(void)m;
	wire_init(&w, mem, sizeof(mem));
	for (size_t i = 0; i < n; i++)
		wire_put_str(&w, rows[i]->host), wire_put_str(&w, rows[i]->org);
	list.n = (uint32_t)n;
	list.rows = mem;
	list.rows_n = wire_len(&w);
	request_reply(r, (message_put_fn *)broker_expose_list_put, &list, NULL, 0);
}

HANDLER(op_expose_dial)
{
	const struct broker_host *q = msg;
	const struct expose *x = expose_find(b, q->host);
	struct machine *behind = x && *x->id ? machine_find(b, x->id) : NULL;
	struct fault f;

	(void)m;
	if (behind && behind->state == BROKER_VM_RUNNING) {
		dial_exposed(behind, r, x->line);
		return;
	}
	if (!x)
		fault_set(&f, RC_ABSENT, 0, "no such exposed host");
	else if (behind)
		fault_set(&f, RC_STATE, 0, "the machine behind it is not running");
	else
		fault_set(&f, RC_ABSENT, 0, "no machine behind this host now");
	if (x && !behind)
		broker_event_wanted(b, q->host);
	request_fail(r, &f);
}

HANDLER(op_login_add)
{
	const struct broker_login *q = msg;
	struct fault f;

	(void)b;
	done(r, login_add(m, q->key, &f), &f);
}

HANDLER(op_login_clear)
{
	struct fault f;

	(void)b, (void)msg;
	done(r, login_clear(m, &f), &f);
}

HANDLER(op_login_dial)
{
	const struct broker_login_dial *q = msg;
	struct machine *found = login_find(b, q->key);
	struct fault f;

	(void)m;
	if (!found || found->ending)
		fault_set(&f, RC_ABSENT, 0, "no such login");
	else if (found->state != BROKER_VM_RUNNING && q->connect)
		fault_set(&f, RC_STATE, 0, "the machine behind it is not running");
	else if (!q->connect) {
		request_reply(r, NULL, NULL, NULL, 0);
		return;
	} else {
		dial_login(found, r);
		return;
	}
	request_fail(r, &f);
}

HANDLER(op_subscribe)
{
	UNUSED_BM, (void)msg;
	peer_subscribe(r);
	request_reply(r, NULL, NULL, NULL, 0);
}

HANDLER(op_vm_policy)
{
	struct fault f;

	(void)b;
	if (repolicy_begin(m, msg, r, &f))
		request_fail(r, &f);
}

HANDLER(op_vm_policy_get)
{
	struct broker_vm_policy reply = { .policy = m->policy, .policy_n = m->policy_n };

	(void)b, (void)msg;
	memcpy(reply.id, m->id, sizeof(reply.id));
	request_reply(r, (message_put_fn *)broker_vm_policy_put, &reply, NULL, 0);
}

HANDLER(op_egress_attach)
{
	struct fault f;

	UNUSED_BM, (void)msg;
	if (peer_egress_attach(r, &f))
		request_fail(r, &f);
}

HANDLER(op_egress_ca)
{
	const struct broker_egress_ca *q = msg;
	char *pem = strdup(q->pem);
	struct fault f;

	(void)b;
	if (!pem) {
		fault_set(&f, RC_NOMEM, 0, "out of memory");
		request_fail(r, &f);
		return;
	}
	repolicy_ca(m, pem);
	free(m->ca_pem);
	m->ca_pem = pem;
	if (m->on_ca)
		m->on_ca(m->on_ca_arg);
	repolicy_missed(m);
	request_reply(r, NULL, NULL, NULL, 0);
}

static void on_paused(void *arg, enum rc rc, const struct fault *f)
{
	done(arg, rc, f);
}

HANDLER(op_vm_pause)
{
	struct fault f;

	(void)b, (void)msg;
	/* Done already is done: whoever asks may have lost the first answer. Nobody can thaw a machine that is paused. */
	if (m->state == BROKER_VM_PAUSED && !m->busy)
		request_reply(r, NULL, NULL, NULL, 0);
	else if (volume_machine_busy(m)) {
		fault_set(&f, RC_AGAIN, 0, "a snapshot of a volume of machine '%s' is being made", m->id);
		request_fail(r, &f);
	} else if (machine_in_use(m)) {
		fault_set(&f, RC_AGAIN, 0, "machine '%s' is being captured or forked", m->id);
		request_fail(r, &f);
	} else if (machine_pause(m, true, on_paused, r, &f))
		request_fail(r, &f);
}

HANDLER(op_vm_resume)
{
	struct fault f;

	(void)b, (void)msg;
	if (m->state == BROKER_VM_RUNNING && !m->busy)
		request_reply(r, NULL, NULL, NULL, 0);
	else if (machine_pause(m, false, on_paused, r, &f))
		request_fail(r, &f);
}

HANDLER(op_vm_fork)
{
	fork_begin(b, r, m, msg);
}

HANDLER(op_vm_capture)
{
	const struct broker_vm_capture *q = msg;

	capture_make(b, r, m, q->name);
}

HANDLER(op_capture_delete)
{
	const struct broker_capture_name *q = msg;

	(void)m;
	capture_delete(b, r, q->name);
}

HANDLER(op_capture_list)
{
	const struct broker_cursor *q = msg;

	(void)m;
	capture_list(b, r, q->after);
}

HANDLER(op_volume_create)
{
	(void)m;
	volume_create(b, r, msg);
}

HANDLER(op_volume_delete)
{
	const struct broker_volume_name *q = msg;

	(void)m;
	volume_remove(b, r, q->name);
}

HANDLER(op_volume_verify)
{
	const struct broker_volume_name *q = msg;

	(void)m;
	verify_request(b, r, q->name);
}

HANDLER(op_volume_stat)
{
	const struct broker_volume_name *q = msg;

	(void)m;
	volume_stat(b, r, q->name);
}

HANDLER(op_volume_snapshot)
{
	(void)m;
	volume_snapshot(b, r, msg);
}

HANDLER(op_node_stat)
{
	struct broker_node n = { .vms_max = (uint32_t)b->config->vm_max, .memory_mib_used = machine_memory_used(b),
				 .memory_mib_max = b->memory_mib_max };

	(void)m, (void)msg;
	for (size_t i = 0; i < b->n_machines; i++)
		n.vms += !b->machines[i]->internal;
	machine_disk_free(b, &n.disk_free, NULL);
	templates_describe(b, n.templates, sizeof(n.templates));
	request_reply(r, (message_put_fn *)broker_node_put, &n, NULL, 0);
}

/* --- the table -------------------------------------------------------------------------------------------------- */

#define ROW(op, peers, when, request, handler)                                                                        \
	[BROKER_##op] = { .name = #op, .who = (peers), .states = (when), .get = (message_get_fn *)request##_get,      \
			  .fn = (handler) }
#define ROW_VM(op, peers, when, request, handler)                                                                     \
	[BROKER_##op] = { .name = #op, .who = (peers), .states = (when), .id_at = offsetof(struct request, id),       \
			  .get = (message_get_fn *)request##_get, .fn = (handler) }
#define API (PEER_API | PEER_ROOT)

static const struct op ops[] = {
	/* Names a version and an engine; nothing about any machine. */
	ROW(HELLO, PEER_ANY, 0, broker_none, op_hello),
	/* Costs memory, disk and a process, each bounded by check_limits(). The new machine has no access to anything that
	 * the asker does not have already: no path, no network but through the proxy, an image of the operator's. */
	ROW(VM_CREATE, API, 0, broker_vm_create, op_vm_create),
	/* The API decides who owns a machine; an attacker in it could end all of them, but not reach the host. */
	ROW_VM(VM_KILL, API, STARTING | RUNNING | PAUSED | STOPPING, broker_vm_kill, op_vm_kill),
	/* Numbers about machines that the API made. Not by state: it also tells why a machine is gone. */
	ROW(VM_STAT, API, 0, broker_vm_id, op_vm_stat),
	/* The same, in pages of BROKER_LIST_MAX. */
	ROW(VM_LIST, API, 0, broker_cursor, op_vm_list),
	/* Moves a date. At worst a machine lives until it is killed. */
	ROW_VM(VM_EXTEND, API, RUNNING | PAUSED, broker_vm_extend, op_vm_extend),
	/* A connection to one fixed port of one fixed address inside the machine's own namespace, where nothing but its agent
	 * is: no way to any other network. The API may run anything in any machine; that is what it is for. */
	ROW_VM(VM_DIAL, API, RUNNING, broker_vm_dial, op_vm_dial),
	/* Names a machine and a line for its agent. Host names are checked to be file names without a path. */
	ROW(EXPOSE_ADD, API, 0, broker_expose, op_expose_add),
	/* Takes a name away. */
	ROW(EXPOSE_DELETE, API, 0, broker_host, op_expose_delete),
	/* Names only, which the gateway needs to listen for them and which are public DNS names. */
	ROW(EXPOSE_LIST, API | PEER_GATEWAY, 0, broker_cursor, op_expose_list),
	/* The one connection the gateway may have: only what the API exposed, the line that chooses the service already sent. */
	ROW(EXPOSE_DIAL, API | PEER_GATEWAY, 0, broker_host, op_expose_dial),
	/* A name, by its hash, that opens one machine to whoever knows it; bounded a machine, gone with it. */
	ROW_VM(LOGIN_ADD, API, RUNNING | PAUSED, broker_login, op_login_add),
	/* Takes a machine's names away. */
	ROW_VM(LOGIN_CLEAR, API, RUNNING | PAUSED, broker_vm_id, op_login_clear),
	/* The one connection the SSH gateway may have: to the machine of a name that it was told by a client. There is no list of
	 * names, so an attacker in that gateway reaches the machines of those who log in while it is there, and no other. */
	ROW(LOGIN_DIAL, PEER_SSH, 0, broker_login_dial, op_login_dial),
	/* Events; which kinds depends on the peer (peer.c): the gateway hears of hosts only, SSH of logins that went. */
	ROW(SUBSCRIBE, API | PEER_GATEWAY | PEER_SSH, 0, broker_none, op_subscribe),
	/* Opaque bytes for the proxy, which treats what it does not understand as "nothing is allowed". */
	ROW_VM(VM_POLICY, API, RUNNING | PAUSED, broker_vm_policy_set, op_vm_policy),
	/* What the API itself wrote; values in it are sealed with a key that the API has. */
	ROW_VM(VM_POLICY_GET, API, STARTING | RUNNING | PAUSED, broker_vm_id, op_vm_policy_get),
	/* Hands over every machine's listening sockets and policy: only ever to the proxy, and to one at a time. */
	ROW(EGRESS_ATTACH, PEER_EGRESS, 0, broker_none, op_egress_attach),
	/* A certificate that the guest, which nobody believes, is told to trust: it can only mislead that guest. */
	ROW_VM(EGRESS_CA, PEER_EGRESS, STARTING | RUNNING | PAUSED, broker_egress_ca, op_egress_ca),
	/* Stops and continues a machine's processors. */
	ROW_VM(VM_PAUSE, API, RUNNING | PAUSED, broker_vm_id, op_vm_pause),
	ROW_VM(VM_RESUME, API, RUNNING | PAUSED, broker_vm_id, op_vm_resume),
	/* Like VM_CREATE, n times. A child has what its parent has, which is the API's, and a policy of its own. */
	ROW_VM(VM_FORK, API, RUNNING, broker_vm_fork, op_vm_fork),
	/* A sparse file below volumes/, its size bounded, its name checked to have no path in it; from an image of the operator's
	 * or a snapshot. At worst the disk fills up to DISK_RESERVE_MIB. */
	ROW(VOLUME_CREATE, API, 0, broker_volume_create, op_volume_create),
	/* Removes data that the API may change as it likes anyway; never what a machine has now. */
	ROW(VOLUME_DELETE, API, 0, broker_volume_name, op_volume_delete),
	/* Sizes and who has it. */
	ROW(VOLUME_STAT, API, 0, broker_volume_name, op_volume_stat),
	/* A copy below snapshots/; a machine that has the volume cannot write for as long as that takes. */
	ROW(VOLUME_SNAPSHOT, API, 0, broker_volume_snapshot, op_volume_snapshot),
	/* Reads; how many at once is bounded. */
	ROW(VOLUME_VERIFY, PEER_ROOT, 0, broker_volume_name, op_volume_verify),
	/* A copy of memory and disk below captures/, whose number and bytes are bounded; root's alone, as the machine's own are. */
	ROW_VM(VM_CAPTURE, API, RUNNING, broker_vm_capture, op_vm_capture),
	/* Removes what the API made. */
	ROW(CAPTURE_DELETE, API, 0, broker_capture_name, op_capture_delete),
	/* Names, sizes and dates of what the API made. */
	ROW(CAPTURE_LIST, API, 0, broker_cursor, op_capture_list),
	/* Sums. */
	ROW(NODE_STAT, API, 0, broker_none, op_node_stat),
};

union any_request {
#define X(name, number, request, reply) struct request name;
	BROKER_OPS(X)
#undef X
};

static enum rc check_machine(struct broker *b, const struct op *op, const void *q, struct machine **ret, struct fault *ret_f)
{
	const char *id = (const char *)q + op->id_at;
	struct machine *m = machine_find(b, id);

	if (!m || m->internal)
		return fault_set(ret_f, RC_ABSENT, 0, "no machine '%s'", id);
	if (!(op->states & 1u << m->state))
		return fault_set(ret_f, RC_STATE, 0, "machine '%s' is %s", id,
				 m->state == BROKER_VM_STARTING ? "starting" :
				 m->state == BROKER_VM_RUNNING	? "running" :
				 m->state == BROKER_VM_PAUSED	? "paused" : "stopping");
	*ret = m;
	return RC_OK;
}

void ops_dispatch(struct broker *b, struct request *r, struct wire *w)
{
	static union any_request q; /* one at a time: nothing here blocks, handlers copy what they keep */
	const struct op *op = r->op < ARRAY_SIZE(ops) ? &ops[r->op] : NULL;
	struct machine *m = NULL;
	struct fault f;
	enum rc rc = RC_OK;

	memset(&q, 0, sizeof(q));
	if (!op || !op->fn) {
		rc = fault_set(&f, RC_PROTO, 0, "unknown operation %u", r->op);
	} else if (!(op->who & peer_who(r->peer))) {
		rc = fault_set(&f, RC_DENIED, 0, "%s is not for this user", op->name);
	} else {
		op->get(w, &q);
		if (!wire_done(w))
			rc = fault_set(&f, RC_PROTO, 0, "malformed fields of %s", op->name);
		else if (op->states)
			rc = check_machine(b, op, &q, &m, &f);
	}
	if (rc)
		request_fail(r, &f);
	else
		op->fn(b, r, m, &q);
}
