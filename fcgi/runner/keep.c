/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/runner/keep.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "fcgi/app_log.h"
#include "fcgi/json.h"
#include "fcgi/runner/limits.h"
#include "fcgi/runner/link.h"
#include "schema/gateway.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#define FILES_OF_A_LOG 8 /* one file is this part of what is kept */
#define LINE_WAIT_MS (24ull * 3600 * 1000)

/* The keepers of an app's instances append to one file; flock on the directory, shared to write, alone to begin the next. */
struct keep {
	const struct config *c;
	struct db *db;
	int dirfd, fd, lock_fd;
	uint64_t seq;
	uint64_t second, lines, left_out; /* of this second of the clock */
	uint64_t restarts, counted_ms;    /* not in the database yet; when it was last told */
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

static uint64_t part_max(const struct keep *k)
{
	return (k->c->log_keep_mib << 20) / FILES_OF_A_LOG;
}

/* Whole old files go, the oldest first. */
static void trim(struct keep *k)
{
	struct dirent **list;
	int n = scandirat(k->dirfd, ".", &list, is_log, by_name);
	uint64_t total = 0, max = (k->c->log_keep_mib << 20) - part_max(k); /* room for the next */
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

static bool is_full(const struct keep *k)
{
	struct stat st;

	return k->fd < 0 || fstat(k->fd, &st) < 0 || !st.st_nlink || (uint64_t)st.st_size >= part_max(k);
}

static void newest(struct keep *k, char name[APP_LOG_NAME_MAX])
{
	struct dirent **list;
	int n = scandirat(k->dirfd, ".", &list, is_log, by_name);

	*name = '\0';
	for (int i = 0; i < n; i++) {
		if (i == n - 1)
			snprintf(name, APP_LOG_NAME_MAX, "%.60s", list[i]->d_name);
		free(list[i]);
	}
	if (n >= 0)
		free(list);
}

/* Under the lock of one who is alone: another keeper may have begun the next already. */
static enum rc rotate(struct keep *k, struct fault *ret_f)
{
	char name[APP_LOG_NAME_MAX];

	close_fd(&k->fd);
	newest(k, name);
	if (*name) {
		k->fd = openat(k->dirfd, name, O_WRONLY | O_APPEND | O_CLOEXEC | O_NOFOLLOW);
		if (!is_full(k))
			return RC_OK;
		/* Whoever follows it comes again and is given the next. */
		if (k->fd >= 0 && write(k->fd, GATEWAY_LOG_END "\n", strlen(GATEWAY_LOG_END) + 1) < 0)
			errno = 0;
		close_fd(&k->fd);
	}
	trim(k);
	snprintf(name, sizeof(name), "%016" PRIu64 "-%.8s" APP_LOG_SUFFIX, wall_ms(), k->instance + strlen(k->instance) - 8);
	k->fd = openat(k->dirfd, name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0640);
	/* The directory keeps others out; the gateway, which is handed descriptors, may watch only what it may read. */
	if (k->fd < 0 || fchmod(k->fd, 0644) < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "create log file");
	return RC_OK;
}

static enum rc put(struct keep *k, const char *level, const char *text, struct fault *ret_f)
{
	_cleanup_json_ struct json_object *o = json_object_new_object();
	_cleanup_free_ char *line = NULL;
	const char *json;
	enum rc rc = RC_OK;
	int n;

	/* The guest's own clock is not believed: lines stand in the order in which they came. */
	json_add_time(o, "timestamp", (int64_t)wall_ms());
	json_add_str(o, "level", level);
	json_add_str(o, "revision_id", k->revision);
	json_add_str(o, "instance", k->instance);
	json_add_str(o, "region", k->c->region);
	json_add(o, "message", json_object_new_string_len(text, (int)strnlen(text, RUNNER_LINE_MAX)));
	json = json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE);
	n = json ? asprintf(&line, "%s\n", json) : -1;
	if (n < 0 || n >= APP_LOG_LINE_MAX) {
		if (n < 0)
			line = NULL;
		return RC_OK;
	}
	flock(k->dirfd, LOCK_SH);
	while (!rc && is_full(k)) {
		flock(k->dirfd, LOCK_EX);
		rc = rotate(k, ret_f);
		flock(k->dirfd, LOCK_SH);
	}
	/* A full disk loses lines, not the app. */
	if (!rc && write(k->fd, line, (size_t)n) < 0)
		errno = 0;
	flock(k->dirfd, LOCK_UN);
	return rc;
}

/* True: this one is kept. A program that prints without end costs its own lines. */
static bool within_rate(struct keep *k)
{
	uint64_t second = now_ms() / 1000;
	char text[80];

	if (second != k->second) {
		if (k->left_out) {
			snprintf(text, sizeof(text), "(%" PRIu64 " more lines were printed too fast and were not kept)", k->left_out);
			put(k, "warn", text, NULL);
		}
		k->second = second;
		k->lines = k->left_out = 0;
	}
	if (++k->lines <= RUNNER_LOG_RATE)
		return true;
	k->left_out++;
	return false;
}

static void count_restarts(struct keep *k)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	if (!k->restarts)
		return;
	db_start(&q, k->db, "UPDATE instances SET restarts = restarts + ? WHERE id = ?");
	db_int(&q, (int64_t)k->restarts);
	db_text(&q, k->instance);
	db_run(&q, NULL);
	k->restarts = 0;
	k->counted_ms = now_ms();
}

/* Whoever is root in the guest may say it as often as he likes: the database, which all share, hears of it now and then. */
static void note_restart(struct keep *k)
{
	k->restarts++;
	if (!k->counted_ms || now_ms() - k->counted_ms >= RUNNER_RESTARTS_MS)
		count_restarts(k);
}

static enum rc write_line(struct keep *k, struct json_object *in, struct fault *ret_f)
{
	struct json_object *v;
	const char *text = "", *stream = "", *level = "info";
	enum rc rc = RC_OK;

	if (json_object_object_get_ex(in, "line", &v) && json_object_is_type(v, json_type_string))
		text = json_object_get_string(v);
	if (json_object_object_get_ex(in, "stream", &v) && json_object_is_type(v, json_type_string))
		stream = json_object_get_string(v);
	if (!strcmp(stream, "stderr")) {
		level = "error";
	} else if (!strcmp(stream, "event")) {
		level = "warn";
		note_restart(k);
	}
	/* A jump: the guest's ring forgot what was printed faster than it could be sent. */
	if (json_object_object_get_ex(in, "seq", &v) && (uint64_t)json_object_get_int64(v) > k->seq + 1 && k->seq)
		k->left_out += (uint64_t)json_object_get_int64(v) - k->seq - 1;
	if (within_rate(k))
		rc = put(k, level, text, ret_f);
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
	count_restarts(k);
	/* The connection ends with the machine. */
	return rc == RC_CLOSED || rc == RC_TIMEOUT ? RC_OK : rc;
}

enum rc keep_run(const struct config *c, struct db *db, const char *instance, int lock_fd, struct fault *ret_f)
{
	struct keep k = { .c = c, .db = db, .dirfd = -1, .fd = -1, .lock_fd = lock_fd };
	struct json_object *o = json_object_new_object();
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	_cleanup_fd_ int fd = -1;
	struct link link;
	uint64_t kept;
	enum rc rc;

	snprintf(k.instance, sizeof(k.instance), "%s", instance);
	db_start(&q, db, "SELECT app_id, revision_id, log_seq FROM instances WHERE id = ?");
	db_text(&q, instance);
	rc = db_row(&q, ret_f);
	if (rc)
		return rc;
	snprintf(k.app, sizeof(k.app), "%s", db_col_text(&q, 0));
	snprintf(k.revision, sizeof(k.revision), "%s", db_col_text(&q, 1));
	/* What a capture has printed before it was captured, an earlier instance has logged. */
	k.seq = (uint64_t)db_col_int(&q, 2);
	db_end(&q);
	if (pread(lock_fd, &kept, sizeof(kept), 0) == (ssize_t)sizeof(kept))
		k.seq = MAX_OF(k.seq, kept);
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
