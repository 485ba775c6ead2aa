/* SPDX-License-Identifier: Apache-2.0 */
/* What the table of endpoints points to. doc/api.md says what each takes and answers. */
#ifndef NB_FCGI_HANDLERS_H
#define NB_FCGI_HANDLERS_H

#include "fcgi/request.h"

/* sandboxes.c */
enum api_code sandbox_create(struct request *r);
enum api_code sandbox_connect(struct request *r);
enum api_code sandbox_kill(struct request *r);
enum api_code sandbox_extend(struct request *r);
/* expose.c */
enum api_code sandbox_expose_http(struct request *r);
enum api_code sandbox_expose_ssh(struct request *r);
enum api_code sandbox_revoke_ssh(struct request *r);
enum api_code sandbox_expose_vscode(struct request *r);
/* sandbox_fork.c */
enum api_code sandbox_fork(struct request *r);
enum api_code sandbox_pause(struct request *r);
enum api_code sandbox_resume(struct request *r);
/* sandbox_capture.c */
enum api_code sandbox_capture(struct request *r);
enum api_code sandbox_capture_list(struct request *r);
enum api_code capture_list(struct request *r);
enum api_code capture_get(struct request *r);
enum api_code capture_delete(struct request *r);
/* sandbox_list.c */
enum api_code sandbox_list(struct request *r);
enum api_code sandbox_get(struct request *r);
/* egress.c */
enum api_code egress_list(struct request *r);
enum api_code egress_tail(struct request *r);
enum api_code egress_learn(struct request *r);
enum api_code egress_sandbox_list(struct request *r);
enum api_code egress_sandbox_tail(struct request *r);
enum api_code egress_sandbox_learn(struct request *r);
/* egress_evaluate.c */
enum api_code egress_evaluate(struct request *r);
/* egress_policy.c */
enum api_code egress_policy_get(struct request *r);
enum api_code egress_policy_put(struct request *r);
enum api_code egress_policy_patch(struct request *r);
/* volumes.c */
enum api_code volume_list(struct request *r);
enum api_code volume_get(struct request *r);
enum api_code volume_create(struct request *r);
enum api_code volume_delete(struct request *r);
enum api_code volume_snapshot(struct request *r);
enum api_code snapshot_list(struct request *r);
enum api_code snapshot_get(struct request *r);
enum api_code snapshot_delete(struct request *r);
/* apps.c */
enum api_code app_list(struct request *r);
enum api_code app_get(struct request *r);
enum api_code app_create(struct request *r);
enum api_code app_update(struct request *r);
enum api_code app_delete(struct request *r);
/* app_logs.c */
enum api_code app_logs(struct request *r);
enum api_code app_logs_stream(struct request *r);
/* app_domains.c */
enum api_code app_domain_list(struct request *r);
enum api_code app_domain_add(struct request *r);
enum api_code app_domain_delete(struct request *r);
enum api_code app_instance_list(struct request *r);
/* deploy.c */
enum api_code sandbox_deploy(struct request *r);
enum api_code app_deploy(struct request *r);
/* layers.c */
enum api_code layer_list(struct request *r);
enum api_code layer_get(struct request *r);
enum api_code layer_create(struct request *r);
enum api_code layer_update(struct request *r);
enum api_code layer_delete(struct request *r);
enum api_code layer_apps(struct request *r);
/* revisions.c */
enum api_code revision_list(struct request *r);
enum api_code revision_get(struct request *r);
enum api_code revision_delete(struct request *r);
enum api_code revision_cancel_handler(struct request *r);
enum api_code revision_promote(struct request *r);
enum api_code revision_progress(struct request *r);
enum api_code revision_build_logs(struct request *r);
enum api_code revision_timelines(struct request *r);
enum api_code timeline_list(struct request *r);

#endif
