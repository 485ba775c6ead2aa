/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The worker's side of the broker, gateway, agent and runner. Connections are kept and made again after they broke;
 * every call has a deadline. Faults of these functions name our own parts; map them with broker_code().
 */
#ifndef NB_FCGI_PEERS_H
#define NB_FCGI_PEERS_H

#include "fcgi/request.h"

/* api->call has op, put, request, get and reply set; descriptors of the answer are the caller's. RC_CLOSED with text
 * "nobody listens" if the peer is not there at all. */
enum rc peer_call(struct api *api, struct peer *p, uint64_t timeout_ms, struct fault *ret_f);

enum rc broker_vm_start(struct api *api, const struct broker_vm_create *req, struct broker_vm_created *ret,
			int *ret_lease, struct fault *ret_f);
enum rc broker_kill(struct api *api, const char *id, const char *reason, struct fault *ret_f);
/* Stands still, or goes on; done already is fine. */
enum rc broker_pause(struct api *api, const char *id, bool pause, struct fault *ret_f);
/* Kept below that name. RC_STATE: it cannot be, with the reason. */
enum rc broker_capture(struct api *api, const char *id, const char *name, struct broker_vm_captured *ret, struct fault *ret_f);
enum rc broker_capture_remove(struct api *api, const char *name, struct fault *ret_f);
/* ret's children point into api->call. */
enum rc broker_fork(struct api *api, const struct broker_vm_fork *req, struct broker_vm_forked *ret, struct fault *ret_f);
enum rc broker_extend(struct api *api, const char *id, uint64_t stop_at_ms, uint64_t *ret_stop_at_ms,
		      struct fault *ret_f);
/* A connected agent service of the VM: `line` is sent, the answer read and judged. RC_ABSENT: no such VM; RC_GUEST:
 * the agent refused, its message in *ret_f. ret_lease may be NULL: then no lease is asked for. */
enum rc broker_service(struct api *api, const char *id, const char *line, int *ret_fd, int *ret_lease,
		       struct fault *ret_f);
/* RC_GUEST: it is in force, but the guest could not be told. */
enum rc broker_policy_set(struct api *api, const char *id, const char *policy, const char *env, size_t env_n, struct fault *ret_f);
/* *ret is freed by the caller. */
enum rc broker_policy_get(struct api *api, const char *id, char **ret, struct fault *ret_f);
enum rc broker_expose_add(struct api *api, const char *id, const char *org, const char *host, const char *line, struct fault *ret_f);
enum rc broker_expose_remove(struct api *api, const char *host, struct fault *ret_f);

/* key: SHA-256 of an SSH user name in hex. RC_LIMIT: the machine has its maximum. */
enum rc broker_login_add(struct api *api, const char *id, const char *key, struct fault *ret_f);
enum rc broker_login_clear(struct api *api, const char *id, struct fault *ret_f);

enum rc broker_volume_make(struct api *api, const char *name, uint64_t bytes, const char *from, struct fault *ret_f);
enum rc broker_volume_stat(struct api *api, const char *name, struct broker_volume *ret, struct fault *ret_f);
enum rc broker_volume_snapshot_make(struct api *api, const char *volume, const char *name, struct broker_volume *ret,
				    struct fault *ret_f);

/* Calls fn for every VM of the broker. */
typedef void broker_vm_fn(void *arg, const struct broker_vm_stat *vm);
enum rc broker_vms(struct api *api, broker_vm_fn *fn, void *arg, struct fault *ret_f);

/* What a client is told about a failure of the broker. Logs what it is not told. */
enum api_code broker_code(struct request *r, const struct fault *f, enum api_code otherwise);

/* Hands the descriptors over and sets the X-Accel-Redirect. lease may be -1. */
enum api_code ticket_ws(struct request *r, int agent_fd, int lease_fd, const char *sandbox_id);
/* Follows the file until its end line. ndjson: lines as they are instead of SSE. */
enum api_code ticket_log(struct request *r, int log_fd, uint64_t offset, bool ndjson);

/* The same, only lines that match the filter (schema/gateway.h; empty: all). */
enum api_code ticket_follow(struct request *r, int log_fd, uint64_t offset, bool ndjson, const char *filter);
/* And it goes on in the files that the guide finds after this place (egress_place.h). */
enum api_code ticket_follow_on(struct request *r, int log_fd, uint64_t offset, bool ndjson, const char *filter, const char *place);

/* Tells the runner that there is something to do; it looks by itself too, so failure does not matter. */
void runner_kick(const struct api *api);

#endif
