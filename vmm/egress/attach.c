/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/egress/attach.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "vmm/egress/ca.h"
#include "vmm/egress/limits.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define PACKETS_BATCH 16

struct attach {
	struct egress *eg;
	int fd;
	struct source *source, *retry, *stale;
	uint64_t wait_ms;
	uint32_t sequence;
	bool complained;
	uint8_t mem[MESSAGE_MAX];
};

static void disconnected(struct attach *a, const struct fault *f)
{
	if (a->fd >= 0 || !a->complained)
		log_fault(LOG_LEVEL_WARN, f, "no connection to the broker, trying again");
	a->complained = true;
	source_drop(&a->source);
	close_fd(&a->fd);
	loop_timer_set(a->stale, UINT64_MAX);
	loop_timer_set(a->retry, loop_now_ms(a->eg->loop) + a->wait_ms);
	a->wait_ms = MIN_OF(a->wait_ms * 2, (uint64_t)EGRESS_RETRY_MAX_MS);
}

/* What the guest has to trust for its secret hosts; empty if it has none. The broker waits for this. */
static enum rc send_ca(struct attach *a, const struct sandbox *sb, struct fault *ret_f)
{
	struct broker_egress_ca m = { 0 };
	struct wire w;
	size_t n;
	enum rc rc;

	memcpy(m.id, sb->id, sizeof(m.id));
	if (sb->ca)
		snprintf(m.pem, sizeof(m.pem), "%s", ca_pem(sb->ca));
	message_begin(&w, a->mem, sizeof(a->mem));
	broker_egress_ca_put(&w, &m);
	rc = message_end(&w, BROKER_EGRESS_CA, ++a->sequence, 0, &n, ret_f);
	return rc ? rc : packet_send(a->fd, a->mem, n, NULL, 0, ret_f);
}

static enum rc on_vm(struct attach *a, struct wire *w, int *fds, size_t n_fds, struct fault *ret_f)
{
	struct broker_egress_vm m;
	struct sandbox *sb;
	struct fault f;

	broker_egress_vm_get(w, &m);
	if (!wire_done(w) || n_fds != 3 || !m.id[0])
		return fault_set(ret_f, RC_PROTO, 0, "malformed EGRESS_VM");
	for (size_t i = 0; i < 3; i++)
		if (fd_nonblock(fds[i], ret_f))
			return RC_SYS;
	/* One sandbox that cannot be served is no reason to leave the others. */
	if (sandbox_set(a->eg, m.id, m.policy, m.policy_n, fds, &f))
		log_fault(LOG_LEVEL_ERROR, &f, "cannot serve %s", m.id);
	sb = sandbox_find(a->eg, m.id);
	return sb ? send_ca(a, sb, ret_f) : RC_OK;
}

static enum rc on_gone(struct attach *a, struct wire *w, struct fault *ret_f)
{
	struct broker_vm_id m;

	broker_vm_id_get(w, &m);
	if (!wire_done(w))
		return fault_set(ret_f, RC_PROTO, 0, "malformed EGRESS_GONE");
	sandbox_free(sandbox_find(a->eg, m.id));
	return RC_OK;
}

static enum rc on_policy(struct attach *a, struct wire *w, struct fault *ret_f)
{
	struct broker_vm_policy m;
	struct sandbox *sb;

	broker_vm_policy_get(w, &m);
	if (!wire_done(w))
		return fault_set(ret_f, RC_PROTO, 0, "malformed EGRESS_POLICY");
	sb = sandbox_find(a->eg, m.id);
	if (sb)
		sandbox_set_policy(sb, m.policy, m.policy_n);
	return sb ? send_ca(a, sb, ret_f) : RC_OK;
}

static enum rc on_reply(struct attach *a, struct wire *w, struct fault *ret_f)
{
	enum rc rc = message_get_result(w, ret_f);

	if (rc)
		return rc;
	log_info("attached to the broker");
	a->complained = false;
	a->wait_ms = EGRESS_RETRY_MIN_MS;
	for (struct sandbox *sb = a->eg->sandboxes; sb; sb = sb->next)
		sb->stale = true;
	loop_timer_set(a->stale, loop_now_ms(a->eg->loop) + EGRESS_STALE_MS);
	return RC_OK;
}

static enum rc on_ca_reply(struct attach *a, struct wire *w)
{
	struct fault f;

	(void)a;
	/* A machine that ended meanwhile, or a broker that does not know the question: neither is ours to mend. */
	if (message_get_result(w, &f))
		log_fault(LOG_LEVEL_INFO, &f, "the broker did not take a certificate authority");
	return RC_OK;
}

static enum rc on_packet(struct attach *a, size_t n, int *fds, size_t n_fds, struct fault *ret_f)
{
	struct message_head head;
	struct wire w;
	enum rc rc = message_open(a->mem, n, n_fds, &head, &w, ret_f);

	if (rc)
		return rc;
	switch (head.op) {
	case BROKER_EGRESS_ATTACH | MESSAGE_REPLY: return on_reply(a, &w, ret_f);
	case BROKER_EGRESS_CA | MESSAGE_REPLY: return on_ca_reply(a, &w);
	case BROKER_EVENT_EGRESS_VM | MESSAGE_EVENT: return on_vm(a, &w, fds, n_fds, ret_f);
	case BROKER_EVENT_EGRESS_GONE | MESSAGE_EVENT: return on_gone(a, &w, ret_f);
	case BROKER_EVENT_EGRESS_POLICY | MESSAGE_EVENT: return on_policy(a, &w, ret_f);
	default: return fault_set(ret_f, RC_PROTO, 0, "unexpected message %u", head.op);
	}
}

static void on_readable(void *arg, uint32_t events)
{
	struct attach *a = arg;

	(void)events;
	for (int i = 0; i < PACKETS_BATCH; i++) {
		int fds[FD_PASS_MAX];
		size_t n = 0, n_fds = 0;
		struct fault f = { 0 };
		enum rc rc = packet_recv(a->fd, a->mem, sizeof(a->mem), &n, fds, &n_fds, &f);

		if (rc == RC_AGAIN)
			return;
		if (!rc && !n)
			rc = fault_set(&f, RC_CLOSED, 0, "the broker closed the connection");
		if (!rc) {
			rc = on_packet(a, n, fds, n_fds, &f);
			fds_close(fds, n_fds);
		}
		if (rc) {
			disconnected(a, &f);
			return;
		}
	}
}

static enum rc ask(struct attach *a, struct fault *ret_f)
{
	struct broker_none none = {};
	struct wire w;
	size_t n;
	enum rc rc;

	message_begin(&w, a->mem, sizeof(a->mem));
	broker_none_put(&w, &none);
	rc = message_end(&w, BROKER_EGRESS_ATTACH, ++a->sequence, 0, &n, ret_f);
	return rc ? rc : packet_send(a->fd, a->mem, n, NULL, 0, ret_f);
}

static void on_retry(void *arg)
{
	struct attach *a = arg;
	char path[PATH_MAX];
	struct fault f;
	enum rc rc = path_join(path, sizeof(path), a->eg->config.run_dir, "broker.sock", &f);

	if (!rc)
		rc = unix_connect(path, SOCK_SEQPACKET, &a->fd, &f);
	if (!rc)
		rc = fd_nonblock(a->fd, &f);
	if (!rc)
		rc = ask(a, &f);
	if (!rc)
		rc = loop_fd(a->eg->loop, a->fd, EPOLLIN, on_readable, a, &a->source, &f);
	if (rc)
		disconnected(a, &f);
}

static void on_stale(void *arg)
{
	struct attach *a = arg;
	struct sandbox *next;

	for (struct sandbox *sb = a->eg->sandboxes; sb; sb = next) {
		next = sb->next;
		if (sb->stale) {
			log_info("the broker does not know %s any more", sb->id);
			sandbox_free(sb);
		}
	}
}

enum rc attach_new(struct egress *eg, struct attach **ret, struct fault *ret_f)
{
	struct attach *a = calloc(1, sizeof(*a));
	enum rc rc;

	if (!a)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	a->eg = eg;
	a->fd = -1;
	a->wait_ms = EGRESS_RETRY_MIN_MS;
	rc = loop_timer(eg->loop, UINT64_MAX, on_stale, a, &a->stale, ret_f);
	if (!rc)
		rc = loop_timer(eg->loop, loop_now_ms(eg->loop), on_retry, a, &a->retry, ret_f);
	if (rc) {
		attach_free(a);
		return rc;
	}
	*ret = a;
	return RC_OK;
}

void attach_free(struct attach *a)
{
	if (!a)
		return;
	source_drop(&a->source);
	source_drop(&a->retry);
	source_drop(&a->stale);
	close_fd(&a->fd);
	free(a);
}
