/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/runner/keep.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "fcgi/app_log.h"
#include "fcgi/runner/limits.h"
#include "fcgi/runner/link.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#define FILES_OF_A_LOG 8 /* one file is this part of what is kept */
#define LINE_WAIT_MS (24ull * 3600 * 1000)

struct keep {
	const struct config *c;
	int dirfd, fd, lock_fd;
	uint64_t bytes; /* in the current file */
	uint64_t seq;
	char revision[64], app[64], instance[BROKER_ID_MAX];
};

static enum rc open_dir(struct keep *k, struct fault *ret_f)
{
	char path[512];

	snprintf(path, sizeof(path), "%.300s/logs/apps/%.64s", k->c->state_dir, k->app);
	if (mkdir(path, 0750) < 0 && errno != EEXIST)
		return fault_set(ret_f, rc_from_errno(errno), errno, "create log directory");
	k->dirfd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	return k->dirfd < 0 ? fault_set(ret_f, RC_SYS, errno, "open log directory") : RC_OK;
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
	return strcmp((*a)->d_name, (*b)->d_name);
}

static int is_log(const struct dirent *d)
{
	size_t n = strlen(d->d_name), k = strlen(APP_LOG_SUFFIX);

	return n > k && !strcmp(d->d_name + n - k, APP_LOG_SUFFIX);
}

/* Whole old files go, the oldest first. */
static void trim(struct keep *k)
{
	struct dirent **list;
	int n = scandirat(k->dirfd, ".", &list, is_log, by_name);
	uint64_t total = 0, max = k->c->log_keep_mib << 20;
	struct stat st;

	for (int i = n - 1; i >= 0; i--) {
		if (!fstatat(k->dirfd, list[i]->d_name, &st, AT_SYMLINK_NOFOLLOW))
			total += (uint64_t)st.st_size;
		if (total > max)
			unlinkat(k->dirfd, list[i]->d_name, 0);
		free(list[i]);
	}
	if (n >= 0)
		free(list);
}

static enum rc rotate(struct keep *k, struct fault *ret_f)
{
	char name[APP_LOG_NAME_MAX];

	close_fd(&k->fd);
	trim(k);
	snprintf(name, sizeof(name), "%016" PRIu64 "-%.8s" APP_LOG_SUFFIX, wall_ms(), k->instance + strlen(k->instance) - 8);
	k->fd = openat(k->dirfd, name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0640);
	k->bytes = 0;
	return k->fd < 0 ? fault_set(ret_f, rc_from_errno(errno), errno, "create log file") : RC_OK;
}

static struct json_object *log_line(const struct keep *k, struct json_object *in)
{
	struct json_object *o = json_object_new_object(), *v;
	bool is_error = json_object_object_get_ex(in, "stream", &v) && json_object_is_type(v, json_type_string) &&
			!strcmp(json_object_get_string(v), "stderr");
	const char *text = "";

	if (json_object_object_get_ex(in, "line", &v) && json_object_is_type(v, json_type_string))
		text = json_object_get_string(v);
	/* The guest's own clock is not believed: lines stand in the order in which they came. */
	json_object_object_add(o, "time_ms", json_object_new_int64((int64_t)wall_ms()));
	json_object_object_add(o, "level", json_object_new_string(is_error ? "error" : "info"));
	json_object_object_add(o, "message", json_object_new_string_len(text, (int)strnlen(text, RUNNER_LINE_MAX)));
	json_object_object_add(o, "revision_id", json_object_new_string(k->revision));
	json_object_object_add(o, "instance", json_object_new_string(k->instance));
	json_object_object_add(o, "region", json_object_new_string(k->c->region));
	return o;
}

static enum rc write_line(struct keep *k, struct json_object *in, struct fault *ret_f)
{
	struct json_object *o = log_line(k, in), *v;
	const char *text = json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN);
	size_t n = text ? strlen(text) : 0;
	enum rc rc = RC_OK;

	if (k->fd < 0 || k->bytes + n > (k->c->log_keep_mib << 20) / FILES_OF_A_LOG)
		rc = rotate(k, ret_f);
	if (!rc && n && n + 1 < APP_LOG_LINE_MAX) {
		char *line = malloc(n + 1);

		if (line) {
			memcpy(line, text, n);
			line[n] = '\n';
			/* A full disk loses lines, not the app. */
			if (write(k->fd, line, n + 1) > 0)
				k->bytes += n + 1;
			free(line);
		}
	}
	json_object_put(o);
	if (json_object_object_get_ex(in, "seq", &v)) {
		k->seq = (uint64_t)json_object_get_int64(v);
		if (pwrite(k->lock_fd, &k->seq, sizeof(k->seq), 0) < 0)
			errno = 0;
	}
	return rc;
}

static enum rc follow(struct keep *k, int fd, struct fault *ret_f)
{
	_cleanup_free_ char *raw = malloc(RUNNER_LINE_MAX * 8);
	enum rc rc = raw ? RC_OK : fault_set(ret_f, RC_NOMEM, 0, "out of memory");

	while (!rc) {
		struct json_object *in;

		rc = fd_read_line(fd, raw, RUNNER_LINE_MAX * 8, now_ms() + LINE_WAIT_MS, ret_f);
		if (rc)
			break;
		in = json_tokener_parse(raw);
		if (json_object_is_type(in, json_type_object))
			rc = write_line(k, in, ret_f);
		json_object_put(in);
	}
	/* The connection ends with the machine. */
	return rc == RC_CLOSED || rc == RC_TIMEOUT ? RC_OK : rc;
}

enum rc keep_run(const struct config *c, struct db *db, const char *instance, int lock_fd, struct fault *ret_f)
{
	struct keep k = { .c = c, .dirfd = -1, .fd = -1, .lock_fd = lock_fd };
	struct json_object *o = json_object_new_object();
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	_cleanup_fd_ int fd = -1;
	struct link link;
	enum rc rc;

	snprintf(k.instance, sizeof(k.instance), "%s", instance);
	db_start(&q, db, "SELECT app_id, revision_id FROM instances WHERE id = ?");
	db_text(&q, instance);
	rc = db_row(&q, ret_f);
	if (rc)
		return rc;
	snprintf(k.app, sizeof(k.app), "%s", db_col_text(&q, 0));
	snprintf(k.revision, sizeof(k.revision), "%s", db_col_text(&q, 1));
	db_end(&q);
	if (pread(lock_fd, &k.seq, sizeof(k.seq), 0) != (ssize_t)sizeof(k.seq))
		k.seq = 0;
	json_object_object_add(o, "service", json_object_new_string("unit"));
	json_object_object_add(o, "op", json_object_new_string("follow"));
	json_object_object_add(o, "name", json_object_new_string("app"));
	json_object_object_add(o, "after", json_object_new_int64((int64_t)k.seq));
	rc = link_init(&link, c, ret_f);
	if (!rc)
		rc = open_dir(&k, ret_f);
	if (!rc)
		rc = link_service(&link, instance, o, &fd, NULL, ret_f);
	link_close(&link);
	if (!rc)
		rc = follow(&k, fd, ret_f);
	close_fd(&k.fd);
	close_fd(&k.dirfd);
	return rc;
}
