/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The runner's side of the broker and of the agents: blocking calls with deadlines, for the processes that do one job. The
 * connection to the broker is made when needed and again after it broke.
 */
#ifndef NB_RUNNER_LINK_H
#define NB_RUNNER_LINK_H

#include "base/config.h"
#include "base/fault.h"
#include "fcgi/peer.h"
#include "schema/broker.h"
#include "schema/gateway.h"

#include <json-c/json.h>

struct link {
	struct peer broker, gateway;
	uint32_t memory_mib; /* of the machine that was made last */
};

enum rc link_init(struct link *l, const struct config *c, struct fault *ret_f);
void link_close(struct link *l);

enum rc link_vm_create(struct link *l, const struct broker_vm_create *req, struct fault *ret_f);
/* RC_OK also for a machine that is gone already. */
enum rc link_vm_kill(struct link *l, const char *id, const char *reason, struct fault *ret_f);
enum rc link_vm_stat(struct link *l, const char *id, struct broker_vm_stat *ret, struct fault *ret_f);
/* id "" : an exposure without a machine. */
enum rc link_expose(struct link *l, const char *host, const char *id, const char *org, const char *line, struct fault *ret_f);
/* RC_OK also for one that is gone already. */
enum rc link_volume_delete(struct link *l, const char *name, struct fault *ret_f);
enum rc link_unexpose(struct link *l, const char *host, struct fault *ret_f);
/* Who visits a host; from the gateway. */
enum rc link_host_stat(struct link *l, const char *host, struct gateway_host_stat *ret, struct fault *ret_f);
/* Every exposed host. */
typedef void link_host_fn(void *arg, const char *host);
enum rc link_hosts(struct link *l, link_host_fn *fn, void *arg, struct fault *ret_f);

enum rc link_capture(struct link *l, const char *id, const char *name, struct broker_vm_captured *ret,
		     struct fault *ret_f);
/* RC_OK also for one that is gone already. */
enum rc link_capture_delete(struct link *l, const char *name, struct fault *ret_f);
typedef void link_capture_fn(void *arg, const struct broker_capture_row *row);
enum rc link_captures(struct link *l, link_capture_fn *fn, void *arg, struct fault *ret_f);

typedef void link_vm_fn(void *arg, const struct broker_vm_stat *vm);
enum rc link_vms(struct link *l, link_vm_fn *fn, void *arg, struct fault *ret_f);

/* A service of the machine's agent; takes `request`. ret_answer may be NULL. RC_GUEST with the agent's message if it refused. */
enum rc link_service(struct link *l, const char *id, struct json_object *request, int *ret_fd,
		     struct json_object **ret_answer, struct fault *ret_f);

/* Runs a command to its end, every line of its output to `line`. RC_GUEST unless it exits with 0. */
typedef void link_line_fn(void *arg, bool is_error, const char *text);
typedef bool link_stop_fn(void *arg); /* asked twice a second: true ends it with RC_STATE */
enum rc link_exec(struct link *l, const char *id, struct json_object *request, uint64_t deadline_ms, link_line_fn *line,
		  link_stop_fn *stop, void *arg, struct fault *ret_f);

struct json_object *json_strings(const char *const *items); /* NULL-terminated list */

#endif
