/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/runner/progress.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "fcgi/runner/limits.h"
#include "schema/gateway.h"

#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

const char *stage_name(enum stage stage)
{
	static const char *const names[STAGES] = { "queued", "preparing", "installing", "building", "deploying" };

	return names[stage];
}

static const char *status_name(enum stage_status status)
{
	static const char *const names[] = { "pending", "skipped", "running", "succeeded", "timed_out", "cancelled",
					     "errored" };

	return names[status];
}

static struct json_object *iso(uint64_t ms)
{
	char text[40];
	time_t s = (time_t)(ms / 1000);
	struct tm tm;
	size_t n;

	gmtime_r(&s, &tm);
	n = strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", &tm);
	snprintf(text + n, sizeof(text) - n, ".%03uZ", (unsigned int)(ms % 1000));
	return json_object_new_string(text);
}

static enum rc log_file(const char *state_dir, const char *revision, const char *ext, int *ret, struct fault *ret_f)
{
	char path[512];

	snprintf(path, sizeof(path), "%s/logs/revisions/%s.%s", state_dir, revision, ext);
	*ret = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0640);
	if (*ret < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "create log of revision");
	/* The directory keeps others out; the gateway, which is handed descriptors, may watch only what it may read. */
	if (fchmod(*ret, 0644) < 0)
		return fault_set(ret_f, RC_SYS, errno, "set the mode of a revision's log");
	return RC_OK;
}

static void put_line(int fd, struct json_object *o)
{
	const char *text = json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE);
	size_t n = text ? strlen(text) : 0;
	char *line = n ? malloc(n + 1) : NULL;

	/* One write, so that a reader never sees half a line for long; a full disk loses the line, not the deployment. */
	if (line) {
		memcpy(line, text, n);
		line[n] = '\n';
		if (write(fd, line, n + 1) < 0)
			errno = 0;
	}
	free(line);
	json_object_put(o);
}

static struct json_object *stage_json(const struct progress *p, enum stage s)
{
	struct json_object *o = json_object_new_object();
	enum stage_status status = p->stages[s].status;

	json_object_object_add(o, "status", json_object_new_string(status_name(status)));
	if (status >= ST_RUNNING)
		json_object_object_add(o, "start", iso(p->stages[s].start_ms));
	if (status >= ST_SUCCEEDED)
		json_object_object_add(o, "end", iso(p->stages[s].end_ms));
	if (s == STAGE_INSTALLING || s == STAGE_BUILDING || s == STAGE_PREDEPLOY)
		json_object_object_add(o, "command", p->stages[s].command[0] ?
				       json_object_new_string(p->stages[s].command) : NULL);
	return o;
}

static struct json_object *skipped(void)
{
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "status", json_object_new_string("skipped"));
	return o;
}

static struct json_object *timeline_json(const struct progress *p, const char *slug)
{
	struct json_object *o = stage_json(p, STAGE_DEPLOYING);

	json_object_object_add(o, "slug", json_object_new_string(slug));
	json_object_object_add(o, "partition", json_object_new_object());
	json_object_object_add(o, "database", skipped());
	json_object_object_add(o, "predeploy", stage_json(p, STAGE_PREDEPLOY));
	json_object_object_add(o, "warmup", stage_json(p, STAGE_WARMUP));
	json_object_object_add(o, "routing", stage_json(p, STAGE_ROUTING));
	return o;
}

static void put_progress(struct progress *p)
{
	struct json_object *o = json_object_new_object(), *deploying, *timelines = json_object_new_array();
	char preview[96];

	for (enum stage s = STAGE_QUEUED; s < STAGE_DEPLOYING; s++)
		json_object_object_add(o, stage_name(s), stage_json(p, s));
	deploying = stage_json(p, STAGE_DEPLOYING);
	snprintf(preview, sizeof(preview), "preview/%s", p->revision);
	if (p->stages[STAGE_DEPLOYING].status != ST_PENDING && p->production)
		json_object_array_add(timelines, timeline_json(p, "production"));
	if (p->stages[STAGE_DEPLOYING].status != ST_PENDING && (p->preview || !p->production))
		json_object_array_add(timelines, timeline_json(p, preview));
	json_object_object_add(deploying, "timelines", timelines);
	json_object_object_add(o, "deploying", deploying);
	put_line(p->progress_fd, o);
}

enum rc progress_open(struct progress *p, const char *state_dir, const char *revision, uint64_t queued_ms,
		      struct fault *ret_f)
{
	enum rc rc;

	memset(p, 0, sizeof(*p));
	p->progress_fd = p->build_fd = -1;
	snprintf(p->revision, sizeof(p->revision), "%s", revision);
	p->stages[STAGE_QUEUED].start_ms = queued_ms;
	p->stages[STAGE_QUEUED].status = ST_RUNNING;
	rc = log_file(state_dir, revision, "progress", &p->progress_fd, ret_f);
	if (!rc)
		rc = log_file(state_dir, revision, "build", &p->build_fd, ret_f);
	if (!rc)
		put_progress(p);
	return rc;
}

void progress_stage(struct progress *p, enum stage stage, enum stage_status status, const char *command)
{
	if (status == ST_RUNNING)
		p->stages[stage].start_ms = wall_ms();
	if (status >= ST_SUCCEEDED)
		p->stages[stage].end_ms = wall_ms();
	if (command)
		snprintf(p->stages[stage].command, sizeof(p->stages[stage].command), "%s", command);
	p->stages[stage].status = status;
	put_progress(p);
}

void progress_log(struct progress *p, enum stage stage, bool is_error, const char *text)
{
	struct json_object *o;
	char preview[96];

	if (p->build_bytes > RUNNER_BUILD_LOG_MAX)
		return;
	p->build_bytes += strlen(text) + 100;
	if (p->build_bytes > RUNNER_BUILD_LOG_MAX)
		text = "(the build log is full; what follows is not kept)";
	o = json_object_new_object();
	json_object_object_add(o, "timestamp", iso(wall_ms()));
	json_object_object_add(o, "level", json_object_new_string(is_error ? "error" : "info"));
	json_object_object_add(o, "message", json_object_new_string(text));
	json_object_object_add(o, "step", json_object_new_string(stage_name(stage)));
	snprintf(preview, sizeof(preview), "preview/%s", p->revision);
	if (stage == STAGE_DEPLOYING)
		json_object_object_add(o, "timeline", json_object_new_string(p->production ? "production" : preview));
	put_line(p->build_fd, o);
}

void progress_end(struct progress *p, enum stage_status status)
{
	static const char end[] = GATEWAY_LOG_END "\n";

	for (enum stage s = 0; s < STAGES_ALL; s++)
		if (p->stages[s].status == ST_RUNNING) {
			p->stages[s].status = status;
			p->stages[s].end_ms = wall_ms();
		}
	put_progress(p);
	if (write(p->progress_fd, end, sizeof(end) - 1) < 0 || write(p->build_fd, end, sizeof(end) - 1) < 0)
		errno = 0;
	close_fd(&p->progress_fd);
	close_fd(&p->build_fd);
}
