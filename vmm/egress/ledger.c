/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory: rows are queued as finished lines in a ring of bytes; one thread, which does nothing else and allocates nothing, moves
 * them to the day's file. A full ring, a full disk or a file at its bound drops rows, counts them, and the count
 * becomes a row of its own ("decision":"dropped") as soon as there is room again.
 */
#include "vmm/egress/ledger.h"

#include "base/cleanup.h"
#include "base/config.h"
#include "base/fd.h"
#include "base/log.h"
#include "vmm/egress/limits.h"

#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <limits.h>
#include <pthread.h>
#include <pwd.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define CHUNK 65536

struct ledger {
	int dirfd;
	bool running;
	pthread_t writer;
	pthread_mutex_t lock;
	pthread_cond_t more;
	bool stop;                /* under lock */
	size_t head, used;        /* under lock */
	uint64_t dropped;         /* main thread: rows that found the ring full */
	atomic_ullong lost;       /* rows that the writer could not write */
	int file;                 /* the writer's, with the next three */
	long long day;
	uint64_t file_bytes;
	char chunk[CHUNK];
	char ring[EGRESS_LEDGER_QUEUE];
};

static void ledger_cleanup(struct ledger **l)
{
	ledger_free(*l);
}

static enum rc dir_open(struct ledger *l, const char *path, const char *user, struct fault *ret_f)
{
	struct passwd *pw = getuid() == 0 ? getpwnam(user) : NULL;
	bool made = mkdir(path, 0750) == 0;

	if (!made && errno != EEXIST)
		return fault_set(ret_f, RC_SYS, errno, "make directory '%s'", path);
	l->dirfd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (l->dirfd < 0)
		return fault_set(ret_f, RC_SYS, errno, "open '%s'", path);
	if (made && pw && fchown(l->dirfd, pw->pw_uid, (gid_t)-1) < 0)
		return fault_set(ret_f, RC_SYS, errno, "give '%s' to '%s'", path, user);
	/* Set-group-id: what is written here may be read by the directory's group, the API. */
	if (getuid() == 0 && fchmod(l->dirfd, 02750) < 0)
		return fault_set(ret_f, RC_SYS, errno, "set the mode of '%s'", path);
	return RC_OK;
}

enum rc ledger_new(const char *state_dir, const char *user, struct ledger **ret, struct fault *ret_f)
{
	_cleanup_(ledger_cleanup) struct ledger *l = calloc(1, sizeof(*l));
	char logs[PATH_MAX], dir[PATH_MAX];
	enum rc rc;

	if (!l)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	l->dirfd = l->file = -1;
	pthread_mutex_init(&l->lock, NULL);
	pthread_cond_init(&l->more, NULL);
	rc = path_join(logs, sizeof(logs), state_dir, "logs", ret_f);
	if (!rc)
		rc = path_join(dir, sizeof(dir), logs, "egress", ret_f);
	if (rc)
		return rc;
	if (mkdir(logs, 0755) < 0 && errno != EEXIST)
		return fault_set(ret_f, RC_SYS, errno, "make directory '%s'", logs);
	rc = dir_open(l, dir, user, ret_f);
	if (!rc)
		*ret = take_ptr(l);
	return rc;
}

/* Days since 1970 to a date of the Gregorian calendar; gmtime_r may want the time zone's file. */
static void day_name(long long day, char out[64])
{
	long long z = day + 719468, era = z / 146097, doe = z - era * 146097;
	long long yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
	long long doy = doe - (365 * yoe + yoe / 4 - yoe / 100), mp = (5 * doy + 2) / 153;
	long long d = doy - (153 * mp + 2) / 5 + 1, m = mp < 10 ? mp + 3 : mp - 9;

	snprintf(out, 64, "%04lld-%02lld-%02lld.jsonl", yoe + era * 400 + (m <= 2), m, d);
}

static bool file_ready(struct ledger *l)
{
	long long today = (long long)(wall_ms() / 86400000);
	struct stat st;
	char name[64];

	if (l->file >= 0 && l->day == today)
		return l->file_bytes < EGRESS_LEDGER_DAY_MAX;
	close_fd(&l->file);
	day_name(today, name);
	l->file = openat(l->dirfd, name, O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0640);
	if (l->file < 0 || fstat(l->file, &st) < 0)
		return false;
	l->day = today;
	l->file_bytes = (uint64_t)st.st_size;
	return l->file_bytes < EGRESS_LEDGER_DAY_MAX;
}

static uint64_t lines_in(const char *p, size_t n)
{
	uint64_t lines = 0;

	for (size_t i = 0; i < n; i++)
		lines += p[i] == '\n';
	return lines;
}

static void chunk_write(struct ledger *l, size_t n)
{
	if (file_ready(l) && fd_write_all(l->file, l->chunk, n, UINT64_MAX, NULL) == RC_OK) {
		l->file_bytes += n;
		return;
	}
	atomic_fetch_add(&l->lost, lines_in(l->chunk, n));
	close_fd(&l->file);
}

static void *writer(void *arg)
{
	struct ledger *l = arg;

	for (;;) {
		size_t n, first;

		pthread_mutex_lock(&l->lock);
		while (!l->used && !l->stop)
			pthread_cond_wait(&l->more, &l->lock);
		n = MIN_OF(l->used, sizeof(l->chunk));
		first = MIN_OF(n, sizeof(l->ring) - l->head);
		memcpy(l->chunk, l->ring + l->head, first);
		memcpy(l->chunk + first, l->ring, n - first);
		l->head = (l->head + n) % sizeof(l->ring);
		l->used -= n;
		pthread_mutex_unlock(&l->lock);
		if (!n)
			return NULL;
		chunk_write(l, n);
	}
}

enum rc ledger_start(struct ledger *l, struct fault *ret_f)
{
	sigset_t all, old;
	int err;

	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &old);
	err = pthread_create(&l->writer, NULL, writer, l);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (err)
		return fault_set(ret_f, RC_SYS, err, "start the ledger's writer");
	l->running = true;
	return RC_OK;
}

static bool enqueue(struct ledger *l, const char *line, size_t n)
{
	size_t at, first;
	bool fits;

	pthread_mutex_lock(&l->lock);
	fits = n <= sizeof(l->ring) - l->used;
	if (fits) {
		at = (l->head + l->used) % sizeof(l->ring);
		first = MIN_OF(n, sizeof(l->ring) - at);
		memcpy(l->ring + at, line, first);
		memcpy(l->ring, line + first, n - first);
		l->used += n;
		pthread_cond_signal(&l->more);
	}
	pthread_mutex_unlock(&l->lock);
	return fits;
}

static void add_str(struct json_object *o, const char *key, const char *value)
{
	if (value && *value)
		json_object_object_add(o, key, json_object_new_string(value));
}

static void add_num(struct json_object *o, const char *key, uint64_t value)
{
	json_object_object_add(o, key, json_object_new_uint64(value));
}

static void add_time(struct json_object *o)
{
	uint64_t ms = wall_ms();
	time_t s = (time_t)(ms / 1000);
	char text[64];
	struct tm tm;

	gmtime_r(&s, &tm);
	snprintf(text, sizeof(text), "%04d-%02d-%02dT%02d:%02d:%02d.%03uZ", tm.tm_year + 1900, tm.tm_mon + 1, tm.tm_mday,
		 tm.tm_hour, tm.tm_min, tm.tm_sec, (unsigned int)(ms % 1000));
	json_object_object_add(o, "time", json_object_new_string(text));
}

static struct json_object *row_json(const struct ledger_row *r)
{
	struct json_object *o = json_object_new_object();

	if (!o)
		return NULL;
	add_time(o);
	add_str(o, "sandbox", r->sandbox);
	add_str(o, "org", r->org);
	add_str(o, "protocol", r->protocol);
	add_str(o, "name", r->name);
	add_str(o, "address", r->address);
	if (r->port)
		add_num(o, "port", r->port);
	add_str(o, "decision", r->decision);
	add_str(o, "rule", r->rule);
	add_str(o, "reason", r->reason);
	add_str(o, "method", r->method);
	add_str(o, "path", r->path);
	add_str(o, "secret", r->secret);
	if (r->status)
		add_num(o, "status", r->status);
	if (r->count)
		add_num(o, "count", r->count);
	if (r->bytes_out || r->bytes_in || r->duration_ms) {
		add_num(o, "bytes_out", r->bytes_out);
		add_num(o, "bytes_in", r->bytes_in);
		add_num(o, "duration_ms", r->duration_ms);
	}
	return o;
}

static bool row_put(struct ledger *l, const struct ledger_row *row)
{
	char line[EGRESS_LEDGER_ROW_MAX];
	struct json_object *o = row_json(row);
	const char *text;
	bool done = false;
	int n;

	text = o ? json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE) : NULL;
	if (text) {
		n = snprintf(line, sizeof(line), "%s\n", text);
		done = n > 0 && (size_t)n < sizeof(line) && enqueue(l, line, (size_t)n);
	}
	json_object_put(o);
	return done;
}

void ledger_add(struct ledger *l, const struct ledger_row *row)
{
	uint64_t lost = atomic_exchange(&l->lost, 0) + l->dropped;

	l->dropped = 0;
	if (lost && !row_put(l, &(struct ledger_row){ .decision = "dropped", .count = lost }))
		l->dropped = lost;
	if (!row_put(l, row))
		l->dropped++;
}

void ledger_free(struct ledger *l)
{
	if (!l)
		return;
	if (l->running) {
		pthread_mutex_lock(&l->lock);
		l->stop = true;
		pthread_cond_signal(&l->more);
		pthread_mutex_unlock(&l->lock);
		pthread_join(l->writer, NULL);
	}
	if (l->dropped || atomic_load(&l->lost))
		log_warn("ledger rows were dropped count=%llu",
			 (unsigned long long)(l->dropped + atomic_load(&l->lost)));
	pthread_mutex_destroy(&l->lock);
	pthread_cond_destroy(&l->more);
	close_fd(&l->file);
	close_fd(&l->dirfd);
	free(l);
}
