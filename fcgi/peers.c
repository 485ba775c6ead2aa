/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/peers.h"

#include "base/fd.h"
#include "base/log.h"
#include "schema/agent.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

enum rc peer_call(struct api *api, struct peer *p, uint64_t timeout_ms, struct fault *ret_f)
{
	return peer_ask(p, &api->call, timeout_ms, ret_f);
}

#define CALL(api_, name_, request_, tag_, reply_, reply_tag_)                                         \
	do {                                                                                          \
		struct message_call *c_ = &(api_)->call;                                              \
		c_->op = BROKER_##name_;                                                              \
		c_->request = (request_);                                                             \
		c_->put = put_##tag_;                                                                 \
		c_->reply = (reply_);                                                                 \
		c_->get = get_##reply_tag_;                                                           \
		c_->send_fds = NULL;                                                                  \
		c_->n_send_fds = 0;                                                                   \
	} while (0)

/* The tables want one signature for all messages. */
#define PUT(tag)                                              \
	static void put_##tag(struct wire *w, const void *m)  \
	{                                                     \
		tag##_put(w, m);                              \
	}
#define GET(tag)                                        \
	static void get_##tag(struct wire *w, void *m)  \
	{                                               \
		tag##_get(w, m);                        \
	}
PUT(broker_vm_create)
GET(broker_vm_created)
PUT(broker_vm_kill)
GET(broker_none)
PUT(broker_vm_fork)
PUT(broker_vm_capture)
GET(broker_vm_captured)
PUT(broker_capture_name)
GET(broker_vm_forked)
PUT(broker_vm_extend)
GET(broker_vm_extend)
PUT(broker_vm_dial)
PUT(broker_vm_policy_set)
GET(broker_vm_policy)
GET(broker_vm_dialed)
PUT(broker_expose)
PUT(broker_host)
PUT(broker_cursor)
GET(broker_vm_list)
PUT(broker_login)
PUT(broker_vm_id)
PUT(broker_volume_create)
PUT(broker_volume_name)
PUT(broker_volume_snapshot)
GET(broker_volume)
PUT(gateway_ticket_ws)
PUT(gateway_ticket_log)
GET(gateway_none)

static enum rc wrong_fds(struct api *api, struct fault *ret_f)
{
	fds_close(api->call.fds, api->call.n_fds);
	api->call.n_fds = 0;
	return fault_set(ret_f, RC_PROTO, 0, "unexpected descriptors in an answer");
}

enum rc broker_vm_start(struct api *api, const struct broker_vm_create *req, struct broker_vm_created *ret,
			int *ret_lease, struct fault *ret_f)
{
	size_t want = req->flags & BROKER_VM_LEASE ? 1 : 0;
	enum rc rc;

	CALL(api, VM_CREATE, req, broker_vm_create, ret, broker_vm_created);
	rc = peer_call(api, &api->broker, api->config.create_timeout_ms + 2000, ret_f);
	if (rc)
		return rc;
	if (api->call.n_fds != want)
		return wrong_fds(api, ret_f);
	*ret_lease = want ? api->call.fds[0] : -1;
	return RC_OK;
}

static enum rc call_none(struct api *api, uint64_t timeout_ms, struct fault *ret_f)
{
	enum rc rc = peer_call(api, &api->broker, timeout_ms, ret_f);

	return !rc && api->call.n_fds ? wrong_fds(api, ret_f) : rc;
}

enum rc broker_kill(struct api *api, const char *id, const char *reason, struct fault *ret_f)
{
	struct broker_vm_kill req = { 0 };
	struct broker_none none;

	snprintf(req.id, sizeof(req.id), "%s", id);
	snprintf(req.reason, sizeof(req.reason), "%s", reason);
	CALL(api, VM_KILL, &req, broker_vm_kill, &none, broker_none);
	return call_none(api, BROKER_KILL_MS, ret_f);
}

enum rc broker_pause(struct api *api, const char *id, bool pause, struct fault *ret_f)
{
	struct broker_vm_id req = { 0 };
	struct broker_none none;

	snprintf(req.id, sizeof(req.id), "%s", id);
	if (pause)
		CALL(api, VM_PAUSE, &req, broker_vm_id, &none, broker_none);
	else
		CALL(api, VM_RESUME, &req, broker_vm_id, &none, broker_none);
	return call_none(api, BROKER_CALL_MS, ret_f);
}

enum rc broker_fork(struct api *api, const struct broker_vm_fork *req, struct broker_vm_forked *ret, struct fault *ret_f)
{
	CALL(api, VM_FORK, req, broker_vm_fork, ret, broker_vm_forked);
	return call_none(api, api->config.create_timeout_ms + 2000, ret_f);
}

enum rc broker_capture(struct api *api, const char *id, const char *name, struct broker_vm_captured *ret, struct fault *ret_f)
{
	struct broker_vm_capture req = { 0 };

	snprintf(req.id, sizeof(req.id), "%s", id);
	snprintf(req.name, sizeof(req.name), "%s", name);
	CALL(api, VM_CAPTURE, &req, broker_vm_capture, ret, broker_vm_captured);
	return call_none(api, VOLUME_CALL_MS, ret_f);
}

enum rc broker_capture_remove(struct api *api, const char *name, struct fault *ret_f)
{
	struct broker_capture_name req = { 0 };
	struct broker_none none;

	snprintf(req.name, sizeof(req.name), "%s", name);
	CALL(api, CAPTURE_DELETE, &req, broker_capture_name, &none, broker_none);
	return call_none(api, VOLUME_CALL_MS, ret_f);
}

enum rc broker_extend(struct api *api, const char *id, uint64_t stop_at_ms, uint64_t *ret_stop_at_ms,
		      struct fault *ret_f)
{
	struct broker_vm_extend req = { .stop_at_ms = stop_at_ms }, reply = { 0 };
	enum rc rc;

	snprintf(req.id, sizeof(req.id), "%s", id);
	CALL(api, VM_EXTEND, &req, broker_vm_extend, &reply, broker_vm_extend);
	rc = call_none(api, BROKER_CALL_MS, ret_f);
	if (!rc)
		*ret_stop_at_ms = reply.stop_at_ms;
	return rc;
}

enum rc broker_service(struct api *api, const char *id, const char *line, int *ret_fd, int *ret_lease,
		       struct fault *ret_f)
{
	struct broker_vm_dial req = { .want_lease = ret_lease ? 1 : 0 };
	_cleanup_fd_ int fd = -1, lease = -1;
	struct broker_vm_dialed reply = { 0 };
	enum rc rc;

	snprintf(req.id, sizeof(req.id), "%s", id);
	CALL(api, VM_DIAL, &req, broker_vm_dial, &reply, broker_vm_dialed);
	rc = peer_call(api, &api->broker, BROKER_CALL_MS, ret_f);
	if (rc)
		return rc;
	if (api->call.n_fds != (reply.has_lease ? 2u : 1u) || (reply.has_lease && !ret_lease))
		return wrong_fds(api, ret_f);
	fd = api->call.fds[0];
	if (reply.has_lease)
		lease = api->call.fds[1];
	rc = agent_ask(fd, line, NULL, ret_f);
	if (rc)
		return rc;
	*ret_fd = take_fd(&fd);
	if (ret_lease)
		*ret_lease = take_fd(&lease);
	return RC_OK;
}

enum rc broker_policy_set(struct api *api, const char *id, const char *policy, const char *env, size_t env_n, struct fault *ret_f)
{
	struct broker_vm_policy_set req = { .policy = (const uint8_t *)policy, .policy_n = strlen(policy),
					    .env = (const uint8_t *)env, .env_n = env_n };
	struct broker_none none;

	snprintf(req.id, sizeof(req.id), "%s", id);
	CALL(api, VM_POLICY, &req, broker_vm_policy_set, &none, broker_none);
	return call_none(api, POLICY_CALL_MS, ret_f);
}

enum rc broker_policy_get(struct api *api, const char *id, char **ret, struct fault *ret_f)
{
	struct broker_vm_id req = { 0 };
	struct broker_vm_policy reply = { 0 };
	enum rc rc;

	snprintf(req.id, sizeof(req.id), "%s", id);
	CALL(api, VM_POLICY_GET, &req, broker_vm_id, &reply, broker_vm_policy);
	rc = call_none(api, BROKER_CALL_MS, ret_f);
	if (rc)
		return rc;
	*ret = strndup(reply.policy_n ? (const char *)reply.policy : "", reply.policy_n);
	return *ret ? RC_OK : fault_set(ret_f, RC_NOMEM, 0, "out of memory");
}

enum rc broker_expose_add(struct api *api, const char *id, const char *org, const char *host, const char *line, struct fault *ret_f)
{
	struct broker_expose req = { 0 };
	struct broker_none none;

	snprintf(req.host, sizeof(req.host), "%s", host);
	snprintf(req.id, sizeof(req.id), "%s", id);
	snprintf(req.org, sizeof(req.org), "%s", org);
	snprintf(req.line, sizeof(req.line), "%s", line);
	CALL(api, EXPOSE_ADD, &req, broker_expose, &none, broker_none);
	return call_none(api, BROKER_CALL_MS, ret_f);
}

enum rc broker_expose_remove(struct api *api, const char *host, struct fault *ret_f)
{
	struct broker_host req = { 0 };
	struct broker_none none;

	snprintf(req.host, sizeof(req.host), "%s", host);
	CALL(api, EXPOSE_DELETE, &req, broker_host, &none, broker_none);
	return call_none(api, BROKER_CALL_MS, ret_f);
}

enum rc broker_login_add(struct api *api, const char *id, const char *key, struct fault *ret_f)
{
	struct broker_login req = { 0 };
	struct broker_none none;

	snprintf(req.id, sizeof(req.id), "%s", id);
	snprintf(req.key, sizeof(req.key), "%s", key);
	CALL(api, LOGIN_ADD, &req, broker_login, &none, broker_none);
	return call_none(api, BROKER_CALL_MS, ret_f);
}

enum rc broker_login_clear(struct api *api, const char *id, struct fault *ret_f)
{
	struct broker_vm_id req = { 0 };
	struct broker_none none;

	snprintf(req.id, sizeof(req.id), "%s", id);
	CALL(api, LOGIN_CLEAR, &req, broker_vm_id, &none, broker_none);
	return call_none(api, BROKER_CALL_MS, ret_f);
}

enum rc broker_volume_make(struct api *api, const char *name, uint64_t bytes, const char *from, struct fault *ret_f)
{
	struct broker_volume_create req = { .bytes = bytes };
	struct broker_volume made;

	snprintf(req.name, sizeof(req.name), "%s", name);
	snprintf(req.from, sizeof(req.from), "%s", from);
	CALL(api, VOLUME_CREATE, &req, broker_volume_create, &made, broker_volume);
	return call_none(api, VOLUME_CALL_MS, ret_f);
}

enum rc broker_volume_stat(struct api *api, const char *name, struct broker_volume *ret, struct fault *ret_f)
{
	struct broker_volume_name req = { 0 };

	snprintf(req.name, sizeof(req.name), "%s", name);
	CALL(api, VOLUME_STAT, &req, broker_volume_name, ret, broker_volume);
	return call_none(api, BROKER_CALL_MS, ret_f);
}

enum rc broker_volume_snapshot_make(struct api *api, const char *volume, const char *name, struct broker_volume *ret,
				    struct fault *ret_f)
{
	struct broker_volume_snapshot req = { 0 };

	snprintf(req.name, sizeof(req.name), "%s", volume);
	snprintf(req.snapshot, sizeof(req.snapshot), "%s", name);
	CALL(api, VOLUME_SNAPSHOT, &req, broker_volume_snapshot, ret, broker_volume);
	return call_none(api, VOLUME_CALL_MS, ret_f);
}

enum rc broker_vms(struct api *api, broker_vm_fn *fn, void *arg, struct fault *ret_f)
{
	struct broker_cursor cursor = { 0 };

	for (;;) {
		struct broker_vm_list list = { 0 };
		struct broker_vm_stat vm;
		struct wire w;
		enum rc rc;

		CALL(api, VM_LIST, &cursor, broker_cursor, &list, broker_vm_list);
		rc = call_none(api, BROKER_CALL_MS, ret_f);
		if (rc)
			return rc;
		/* wire reads only; the packet stays in api->call until the next call. */
		wire_init(&w, api->call.mem + (list.rows - api->call.mem), list.rows_n);
		for (uint32_t i = 0; i < list.n; i++) {
			broker_vm_stat_get(&w, &vm);
			if (!wire_ok(&w))
				return fault_set(ret_f, RC_PROTO, 0, "malformed list of machines");
			fn(arg, &vm);
			snprintf(cursor.after, sizeof(cursor.after), "%s", vm.id);
		}
		if (list.n < BROKER_LIST_MAX)
			return RC_OK;
	}
}

enum api_code broker_code(struct request *r, const struct fault *f, enum api_code otherwise)
{
	if (f->rc != RC_ABSENT && f->rc != RC_GUEST)
		log_fault(LOG_LEVEL_WARN, f, "broker trace=%s", r->trace);
	switch (f->rc) {
	case RC_LIMIT:
		return API_CAPACITY_EXCEEDED;
	case RC_NOSPACE:
		return API_NO_DISK_SPACE;
	case RC_DAMAGED:
		return API_SNAPSHOT_DAMAGED;
	case RC_CLOSED:
	case RC_DENIED:
		return API_NODE_UNAVAILABLE;
	case RC_TIMEOUT:
		return otherwise == API_SANDBOX_START_FAILED ? API_SANDBOX_START_TIMEOUT : otherwise;
	case RC_AGAIN:
	case RC_NOMEM:
		return API_BUSY;
	default:
		return otherwise;
	}
}

static enum api_code ticket_done(struct request *r, const char *token, enum rc rc, const struct fault *f)
{
	if (rc) {
		log_fault(LOG_LEVEL_WARN, f, "gateway trace=%s", r->trace);
		return rc == RC_LIMIT ? API_BUSY : API_GATEWAY_UNAVAILABLE;
	}
	reply_header(r, "X-Accel-Redirect: /_stream/%s", token);
	return reply_empty(r, 200);
}

static enum rc ticket_call(struct api *api, uint16_t op, message_put_fn *put, const void *req, const int *fds,
			   size_t n, struct fault *ret_f)
{
	struct gateway_none none;
	enum rc rc;

	api->call.op = op;
	api->call.put = put;
	api->call.request = req;
	api->call.get = get_gateway_none;
	api->call.reply = &none;
	api->call.send_fds = fds;
	api->call.n_send_fds = n;
	rc = peer_call(api, &api->gateway, BROKER_CALL_MS, ret_f);
	api->call.send_fds = NULL;
	api->call.n_send_fds = 0;
	return !rc && api->call.n_fds ? wrong_fds(api, ret_f) : rc;
}

enum api_code ticket_ws(struct request *r, int agent_fd, int lease_fd, const char *sandbox_id)
{
	struct gateway_ticket_ws req = { .ttl_ms = TICKET_TTL_MS };
	int fds[2] = { agent_fd, lease_fd };
	struct fault f = { 0 };
	enum rc rc;

	random_hex(req.token, GATEWAY_TOKEN_BYTES);
	snprintf(req.headers, sizeof(req.headers), "x-deno-sandbox-id: %s\r\nx-deno-trace-id: %s\r\n", sandbox_id,
		 r->trace);
	rc = ticket_call(r->api, GATEWAY_TICKET_WS, put_gateway_ticket_ws, &req, fds, lease_fd >= 0 ? 2 : 1, &f);
	return ticket_done(r, req.token, rc, &f);
}

enum api_code ticket_log(struct request *r, int log_fd, uint64_t offset, bool ndjson)
{
	return ticket_follow(r, log_fd, offset, ndjson, "");
}

enum api_code ticket_follow(struct request *r, int log_fd, uint64_t offset, bool ndjson, const char *filter)
{
	return ticket_follow_on(r, log_fd, offset, ndjson, filter, "");
}

enum api_code ticket_follow_on(struct request *r, int log_fd, uint64_t offset, bool ndjson, const char *filter, const char *place)
{
	struct gateway_ticket_log req = { .ttl_ms = TICKET_TTL_MS, .offset = offset, .format = ndjson ? 1 : 0 };
	struct fault f = { 0 };
	enum rc rc;

	random_hex(req.token, GATEWAY_TOKEN_BYTES);
	snprintf(req.filter, sizeof(req.filter), "%s", filter);
	snprintf(req.place, sizeof(req.place), "%s", place);
	snprintf(req.headers, sizeof(req.headers), "x-deno-trace-id: %s\r\n", r->trace);
	rc = ticket_call(r->api, GATEWAY_TICKET_LOG, put_gateway_ticket_log, &req, &log_fd, 1, &f);
	return ticket_done(r, req.token, rc, &f);
}

void runner_kick(const struct api *api)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	_cleanup_fd_ int fd = -1;

	if (path_join(to.sun_path, sizeof(to.sun_path), api->config.run_dir, "runner.sock", NULL))
		return;
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd >= 0 && sendto(fd, "k", 1, MSG_NOSIGNAL, (const struct sockaddr *)&to, sizeof(to)) < 0)
		log_debug("runner not told: %s", strerror(errno));
}
