/* SPDX-License-Identifier: Apache-2.0 */
#include "schema/message.h"

#include "base/cleanup.h"

#include <poll.h>
#include <string.h>

#define RESULT_TEXT_MAX sizeof(((struct fault *)0)->text)

void message_begin(struct wire *w, void *mem, size_t size)
{
	wire_init(w, mem, size);
	if (size < MESSAGE_HEAD)
		w->failed = true;
	else
		w->at += MESSAGE_HEAD;
}

enum rc message_end(struct wire *w, uint16_t op, uint32_t sequence, size_t n_fds, size_t *ret_n,
		    struct fault *ret_f)
{
	size_t n = wire_len(w);
	struct wire head;

	if (!wire_ok(w) || n_fds > FD_PASS_MAX)
		return fault_set(ret_f, RC_LIMIT, 0, "message for op %u does not fit", op);
	wire_init(&head, w->start, MESSAGE_HEAD);
	wire_put_u32(&head, MESSAGE_MAGIC);
	wire_put_u16(&head, MESSAGE_VERSION);
	wire_put_u16(&head, op);
	wire_put_u32(&head, sequence);
	wire_put_u32(&head, (uint32_t)(n - MESSAGE_HEAD));
	wire_put_u16(&head, (uint16_t)n_fds);
	wire_put_u16(&head, 0);
	*ret_n = n;
	return RC_OK;
}

enum rc message_open(void *mem, size_t n, size_t n_fds, struct message_head *ret_head, struct wire *ret_w,
		     struct fault *ret_f)
{
	struct message_head head;
	struct wire w;
	uint32_t magic;
	uint16_t version, zero;

	wire_init(&w, mem, n);
	magic = wire_get_u32(&w);
	version = wire_get_u16(&w);
	head.op = wire_get_u16(&w);
	head.sequence = wire_get_u32(&w);
	head.length = wire_get_u32(&w);
	head.n_fds = wire_get_u16(&w);
	zero = wire_get_u16(&w);
	if (!wire_ok(&w) || magic != MESSAGE_MAGIC || version != MESSAGE_VERSION || zero ||
	    head.length != n - MESSAGE_HEAD || head.n_fds != n_fds)
		return fault_set(ret_f, RC_PROTO, 0, "malformed message head");
	*ret_head = head;
	*ret_w = w;
	return RC_OK;
}

void message_put_result(struct wire *w, enum rc rc, const char *text)
{
	wire_put_u32(w, (uint32_t)(int32_t)rc);
	wire_put_str(w, rc ? text : "");
}

enum rc message_get_result(struct wire *w, struct fault *ret_f)
{
	char text[RESULT_TEXT_MAX];
	enum rc rc = rc_from_wire((int32_t)wire_get_u32(w));

	wire_get_str(w, text, sizeof(text));
	if (!wire_ok(w))
		return fault_set(ret_f, RC_PROTO, 0, "malformed reply");
	return rc ? fault_set(ret_f, rc, 0, "%s", text) : RC_OK;
}

static enum rc call_receive(int fd, struct message_call *call, uint32_t sequence, uint64_t deadline_ms,
			    struct fault *ret_f)
{
	struct message_head head;
	struct wire w;
	size_t n;
	enum rc rc = fd_wait(fd, POLLIN, deadline_ms, ret_f);

	if (rc)
		return rc;
	rc = packet_recv(fd, call->mem, sizeof(call->mem), &n, call->fds, &call->n_fds, ret_f);
	if (rc)
		return rc;
	if (!n)
		return fault_set(ret_f, RC_CLOSED, 0, "peer closed the connection");
	rc = message_open(call->mem, n, call->n_fds, &head, &w, ret_f);
	if (rc)
		return rc;
	if (head.op != (call->op | MESSAGE_REPLY) || head.sequence != sequence)
		return fault_set(ret_f, RC_PROTO, 0, "reply to something else");
	rc = message_get_result(&w, ret_f);
	if (rc)
		return rc;
	if (call->get)
		call->get(&w, call->reply);
	return wire_done(&w) ? RC_OK : fault_set(ret_f, RC_PROTO, 0, "malformed reply fields");
}

enum rc message_call(int fd, struct message_call *call, uint64_t deadline_ms, struct fault *ret_f)
{
	static uint32_t last_sequence;
	uint32_t sequence = ++last_sequence;
	struct wire w;
	size_t n;
	enum rc rc;

	call->n_fds = 0;
	message_begin(&w, call->mem, sizeof(call->mem));
	if (call->put)
		call->put(&w, call->request);
	rc = message_end(&w, call->op, sequence, call->n_send_fds, &n, ret_f);
	if (rc)
		return rc;
	do {
		rc = fd_wait(fd, POLLOUT, deadline_ms, ret_f);
		if (!rc)
			rc = packet_send(fd, call->mem, n, call->send_fds, call->n_send_fds, ret_f);
	} while (rc == RC_AGAIN);
	if (rc)
		return rc;
	rc = call_receive(fd, call, sequence, deadline_ms, ret_f);
	if (rc) {
		fds_close(call->fds, call->n_fds);
		call->n_fds = 0;
	}
	return rc;
}
