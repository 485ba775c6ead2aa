/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory: rows are queued as finished lines, each with its organization, in a ring of bytes; one thread, which does nothing else,
 * moves them to the organizations' files (ledger_files.h) and removes old ones. A row that finds the ring full is refused, and its
 * sandbox counts it; so does one whose organization has as much of the ring as is left (tenant.h); a row that cannot be written is counted by the files. Both counts become rows of their own
 * ("decision":"dropped") as soon as there is room again.
 */
#include "vmm/egress/ledger.h"

#include "base/cleanup.h"
#include "base/config.h"
#include "base/fd.h"
#include "base/log.h"
#include "vmm/egress/ledger_files.h"
#include "vmm/egress/limits.h"
#include "vmm/egress/tenant.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <limits.h>
#include <pthread.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define CHUNK 65536
#define SLOTS 1024 /* organizations by a hash: two that fall together have one share */

/* Before each line in the ring. */
struct record {
	uint16_t line_n; /* 0: only makes the organization's file */
	char org[LEDGER_ORG_MAX];
};

struct ledger {
	int dirfd;
	bool running;
	pthread_t writer;
	pthread_mutex_t lock;
	pthread_cond_t more;
	bool stop;                  /* under lock */
	size_t head, used;          /* under lock */
	size_t used_of[SLOTS];      /* under lock */
	struct ledger_files *files; /* the writer's */
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

enum rc ledger_new(const struct config *config, struct ledger **ret, struct fault *ret_f)
{
	_cleanup_(ledger_cleanup) struct ledger *l = calloc(1, sizeof(*l));
	char logs[PATH_MAX], dir[PATH_MAX];
	enum rc rc;

	if (!l)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	l->dirfd = -1;
	pthread_mutex_init(&l->lock, NULL);
	pthread_cond_init(&l->more, NULL);
	rc = path_join(logs, sizeof(logs), config->state_dir, "logs", ret_f);
	if (!rc)
		rc = path_join(dir, sizeof(dir), logs, "egress", ret_f);
	if (rc)
		return rc;
	if (mkdir(logs, 0755) < 0 && errno != EEXIST)
		return fault_set(ret_f, RC_SYS, errno, "make directory '%s'", logs);
	rc = dir_open(l, dir, config->user_egress, ret_f);
	if (!rc)
		rc = ledger_files_new(l->dirfd, config->egress_keep_days, config->egress_keep_mib << 20, &l->files, ret_f);
	if (!rc)
		*ret = take_ptr(l);
	return rc;
}

/* --- the writer ------------------------------------------------------------------------------------------------ */

static void ring_get(const struct ledger *l, size_t from, void *out, size_t n)
{
	size_t at = (l->head + from) % sizeof(l->ring), first = MIN_OF(n, sizeof(l->ring) - at);

	memcpy(out, l->ring + at, first);
	memcpy((char *)out + first, l->ring, n - first);
}

static size_t *used_of(struct ledger *l, const char *org)
{
	uint32_t hash = 2166136261u;

	for (; *org; org++)
		hash = (hash ^ (unsigned char)*org) * 16777619u;
	return &l->used_of[hash % SLOTS];
}

/* The first records of one organization, as many as fit a chunk: their lines, without the records. Under lock. */
static size_t ring_take(struct ledger *l, char org[LEDGER_ORG_MAX])
{
	struct record r;
	size_t n = 0, at = 0;

	while (at < l->used) {
		ring_get(l, at, &r, sizeof(r));
		if (at && (strcmp(org, r.org) || n + r.line_n > sizeof(l->chunk)))
			break;
		memcpy(org, r.org, sizeof(r.org));
		ring_get(l, at + sizeof(r), l->chunk + n, r.line_n);
		n += r.line_n;
		at += sizeof(r) + r.line_n;
	}
	l->head = (l->head + at) % sizeof(l->ring);
	l->used -= at;
	*used_of(l, org) -= at;
	return n;
}

/* False: it is over. *ret_idle: nothing came for a while. */
static bool ring_wait(struct ledger *l, bool *ret_idle)
{
	struct timespec until;
	int err = 0;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += EGRESS_LEDGER_SWEEP_S;
	while (!l->used && !l->stop && err != ETIMEDOUT)
		err = pthread_cond_timedwait(&l->more, &l->lock, &until);
	*ret_idle = !l->used && !l->stop;
	return l->used || !l->stop;
}

static void *writer(void *arg)
{
	struct ledger *l = arg;
	uint64_t sweep_at_ms = 0;

	for (;;) {
		char org[LEDGER_ORG_MAX] = "";
		bool idle, on;
		size_t n = 0;

		pthread_mutex_lock(&l->lock);
		on = ring_wait(l, &idle);
		if (on && !idle)
			n = ring_take(l, org);
		pthread_mutex_unlock(&l->lock);
		if (!on)
			return NULL;
		if (*org)
			ledger_files_write(l->files, org, l->chunk, n);
		if (now_ms() >= sweep_at_ms) {
			ledger_files_sweep(l->files);
			sweep_at_ms = now_ms() + EGRESS_LEDGER_SWEEP_S * 1000u;
		}
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

/* --- rows ----------------------------------------------------------------------------------------------------- */

/* The name becomes a directory's. */
static bool org_is_safe(const char *org)
{
	size_t n = org ? strlen(org) : 0;

	for (size_t i = 0; i < n; i++)
		if (!isascii(org[i]) || !(isalnum((unsigned char)org[i]) || org[i] == '-'))
			return false;
	return n && n < LEDGER_ORG_MAX;
}

static void ring_put(struct ledger *l, const void *data, size_t n)
{
	size_t at = (l->head + l->used) % sizeof(l->ring), first = MIN_OF(n, sizeof(l->ring) - at);

	memcpy(l->ring + at, data, first);
	memcpy(l->ring, (const char *)data + first, n - first);
	l->used += n;
}

static bool enqueue(struct ledger *l, const char *org, const char *line, size_t n)
{
	struct record r = { .line_n = (uint16_t)n };
	size_t *mine;
	bool fits;

	snprintf(r.org, sizeof(r.org), "%s", org_is_safe(org) ? org : LEDGER_NO_ORG);
	pthread_mutex_lock(&l->lock);
	mine = used_of(l, r.org);
	fits = share_allows(*mine + sizeof(r) + n, l->used, sizeof(l->ring));
	if (fits) {
		*mine += sizeof(r) + n;
		ring_put(l, &r, sizeof(r));
		ring_put(l, line, n);
	}
	pthread_mutex_unlock(&l->lock);
	if (fits)
		pthread_cond_signal(&l->more); /* not under the lock, for which it would wake only to wait */
	return fits;
}

/* Bytes of the UTF-8 sequence at p (RFC 3629), 0: there is none. */
static size_t utf8_at(const unsigned char *p)
{
	size_t n = *p < 0x80 ? 1 : *p >= 0xc2 && *p < 0xe0 ? 2 : *p >= 0xe0 && *p < 0xf0 ? 3 : *p >= 0xf0 && *p < 0xf5 ? 4 : 0;

	for (size_t i = 1; i < n; i++)
		if ((p[i] & 0xc0) != 0x80)
			return 0;
	/* No overlong forms, no surrogates, nothing above U+10FFFF. */
	if ((*p == 0xe0 && p[1] < 0xa0) || (*p == 0xed && p[1] > 0x9f) || (*p == 0xf0 && p[1] < 0x90) || (*p == 0xf4 && p[1] > 0x8f))
		return 0;
	return n;
}

/* A path is a guest's bytes, and may be cut within a character. A row that is not UTF-8 is no JSON: nobody would ever be shown it. */
static void add_str(struct json_object *o, const char *key, const char *value)
{
	char text[LEDGER_ROW_MAX];
	size_t n = 0, k;

	if (!value || !*value)
		return;
	for (const unsigned char *p = (const unsigned char *)value; *p; p += k ? k : 1) {
		k = utf8_at(p);
		if (n + MAX_OF(k, (size_t)1) >= sizeof(text))
			break;
		memcpy(text + n, k ? (const char *)p : "?", MAX_OF(k, (size_t)1));
		n += MAX_OF(k, (size_t)1);
	}
	json_object_object_add(o, key, json_object_new_string_len(text, (int)n));
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

bool ledger_add(struct ledger *l, const struct ledger_row *row)
{
	char line[LEDGER_ROW_MAX];
	struct json_object *o = row_json(row);
	const char *text;
	bool done = false;
	int n;

	text = o ? json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE) : NULL;
	if (text) {
		n = snprintf(line, sizeof(line), "%s\n", text);
		done = n > 0 && (size_t)n < sizeof(line) && enqueue(l, row->org, line, (size_t)n);
	}
	json_object_put(o);
	return done;
}

void ledger_begin(struct ledger *l, const char *org)
{
	enqueue(l, org, "", 0);
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
	if (l->files && ledger_files_lost(l->files))
		log_warn("ledger rows were dropped count=%llu", (unsigned long long)ledger_files_lost(l->files));
	ledger_files_free(l->files);
	pthread_mutex_destroy(&l->lock);
	pthread_cond_destroy(&l->more);
	close_fd(&l->dirfd);
	free(l);
}
