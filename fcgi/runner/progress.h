/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the clients of a revision follow: <state_dir>/logs/revisions/<id>.progress, one RevisionProgress object a line, and
 * <id>.build, one BuildLog object a line (shapes: the SDK's types). Both end with GATEWAY_LOG_END.
 */
#ifndef NB_RUNNER_PROGRESS_H
#define NB_RUNNER_PROGRESS_H

#include "base/fault.h"

#include <stdbool.h>
#include <stdint.h>

enum stage { STAGE_QUEUED, STAGE_PREPARING, STAGE_INSTALLING, STAGE_BUILDING, STAGE_DEPLOYING, STAGES,
	     /* within the deployment of each timeline */
	     STAGE_PREDEPLOY = STAGES, STAGE_WARMUP, STAGE_ROUTING, STAGES_ALL };
enum stage_status { ST_PENDING, ST_SKIPPED, ST_RUNNING, ST_SUCCEEDED, ST_TIMED_OUT, ST_CANCELLED, ST_ERRORED };

struct progress {
	int progress_fd, build_fd;
	struct {
		enum stage_status status;
		uint64_t start_ms, end_ms;
		char command[256];
	} stages[STAGES_ALL];
	bool production, preview; /* neither: a preview all the same */
	uint64_t build_bytes;
	char revision[64];
};

/* Appends: the API has begun both, and somebody may follow them already. queued_ms: when the revision was asked for. */
enum rc progress_open(struct progress *p, const char *state_dir, const char *revision, uint64_t queued_ms,
		      struct fault *ret_f);
void progress_stage(struct progress *p, enum stage stage, enum stage_status status, const char *command);
void progress_log(struct progress *p, enum stage stage, bool is_error, const char *text);
/* Whatever runs ends with `status`, what is pending stays so; then both files end. */
void progress_end(struct progress *p, enum stage_status status);
const char *stage_name(enum stage stage);

#endif
