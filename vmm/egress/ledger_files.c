/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/egress/ledger_files.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "vmm/egress/limits.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define DAY_MS 86400000
#define NAMES_MAX 100000

struct org {
	struct org *next, *open_next, *open_prev;
	char name[LEDGER_ORG_MAX];
	int dir, file;        /* -1: closed */
	long long day;        /* of the file that is written, also while it is closed */
	unsigned int part;
	uint64_t bytes, lost;
};

struct ledger_files {
	int dirfd;
	uint64_t keep_days, keep_bytes, part_max;
	struct org *orgs;
	struct org *young, *old; /* those with open descriptors */
	size_t n_open;
};

void ledger_day_name(long long day, char out[16])
{
	long long z = day + 719468, era = z / 146097, doe = z - era * 146097;
	long long yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
	long long doy = doe - (365 * yoe + yoe / 4 - yoe / 100), mp = (5 * doy + 2) / 153;
	unsigned int d = (unsigned int)(doy - (153 * mp + 2) / 5 + 1), m = (unsigned int)(mp < 10 ? mp + 3 : mp - 9);

	snprintf(out, 16, "%04u-%02u-%02u", (unsigned int)(yoe + era * 400 + (m <= 2)) % 10000, m % 100, d % 100);
}

static long long today(void)
{
	return (long long)(wall_ms() / DAY_MS);
}

static void file_name(long long day, unsigned int part, char out[LEDGER_NAME_MAX])
{
	char date[16];

	ledger_day_name(day, date);
	snprintf(out, LEDGER_NAME_MAX, "%.10s-%03u" LEDGER_SUFFIX, date, part % 1000);
}

static bool name_is_ours(const char *name)
{
	static const char form[] = "dddd-dd-dd-ddd" LEDGER_SUFFIX;

	for (size_t i = 0; i < LEDGER_NAME_LEN; i++)
		if (form[i] == 'd' && i < 14 ? name[i] < '0' || name[i] > '9' : name[i] != form[i])
			return false;
	return !name[LEDGER_NAME_LEN];
}

/* --- open files: a bounded number, the longest unused is closed ---------------------------------------------------- */

static void org_close(struct ledger_files *t, struct org *o)
{
	if (o->dir < 0)
		return;
	close_fd(&o->file);
	close_fd(&o->dir);
	*(o->open_prev ? &o->open_prev->open_next : &t->young) = o->open_next;
	*(o->open_next ? &o->open_next->open_prev : &t->old) = o->open_prev;
	o->open_next = o->open_prev = NULL;
	t->n_open--;
}

static void org_touch(struct ledger_files *t, struct org *o)
{
	if (t->young == o)
		return;
	o->open_prev->open_next = o->open_next;
	*(o->open_next ? &o->open_next->open_prev : &t->old) = o->open_prev;
	o->open_prev = NULL;
	o->open_next = t->young;
	t->young->open_prev = o;
	t->young = o;
}

static int dir_of(struct ledger_files *t, const char *name)
{
	/* The directory has the set-group-id bit: its group, the API, may read what is made in it. */
	if (mkdirat(t->dirfd, name, 0750) < 0 && errno != EEXIST)
		return -1;
	return openat(t->dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

static bool org_open(struct ledger_files *t, struct org *o)
{
	if (o->dir >= 0) {
		org_touch(t, o);
		return true;
	}
	if (t->n_open >= EGRESS_LEDGER_OPEN)
		org_close(t, t->old);
	o->dir = dir_of(t, o->name);
	if (o->dir < 0)
		return false;
	o->open_prev = NULL;
	o->open_next = t->young;
	*(t->young ? &t->young->open_prev : &t->old) = o;
	t->young = o;
	t->n_open++;
	return true;
}

static struct org *org_get(struct ledger_files *t, const char *name)
{
	struct org *o = t->orgs;

	while (o && strcmp(o->name, name))
		o = o->next;
	if (o)
		return o;
	o = calloc(1, sizeof(*o));
	if (!o)
		return NULL;
	snprintf(o->name, sizeof(o->name), "%s", name);
	o->dir = o->file = -1;
	o->day = -1;
	o->next = t->orgs;
	t->orgs = o;
	return o;
}

/* --- which file ----------------------------------------------------------------------------------------------- */

static int list_filter(const struct dirent *e)
{
	return name_is_ours(e->d_name);
}

static int list(int dir, struct dirent ***ret)
{
	int n = scandirat(dir, ".", ret, list_filter, alphasort);

	return n < 0 ? 0 : MIN_OF(n, NAMES_MAX);
}

static void list_free(struct dirent **names, int n)
{
	for (int i = 0; i < n; i++)
		free(names[i]);
	free(names);
}

/* O_CREAT because that is the one way of writing that the system call filter has. */
static int file_open(struct org *o, const char *name)
{
	return openat(o->dir, name, O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0640);
}

/* A plain file takes what it is given at once: asking whether it would is a system call for nothing. */
static bool write_all(int fd, const char *at, size_t n)
{
	while (n) {
		ssize_t k = write(fd, at, n);

		if (k < 0 && errno == EINTR)
			continue;
		if (k <= 0)
			return false;
		at += k;
		n -= (size_t)k;
	}
	return true;
}

static void mark_end(struct org *o, const char *name)
{
	_cleanup_fd_ int fd = file_open(o, name);

	if (fd >= 0)
		write_all(fd, LEDGER_END "\n", 2);
}

/* The file before is ended, whoever wrote it: those who follow it go on to the next. */
static void end_previous(struct org *o, const char *next)
{
	struct dirent **names = NULL;
	int n = list(o->dir, &names), i = n;

	while (i > 0 && strcmp(names[i - 1]->d_name, next) >= 0)
		i--;
	if (i > 0)
		mark_end(o, names[i - 1]->d_name);
	list_free(names, n);
}

static void retain(struct ledger_files *t, int dir, const char *current)
{
	struct dirent **names = NULL;
	int n = list(dir, &names);
	char oldest[LEDGER_NAME_MAX] = "";
	uint64_t sum = 0;

	if (t->keep_days)
		file_name(today() - (long long)t->keep_days + 1, 0, oldest);
	for (int i = n; i-- > 0;) {
		const char *name = names[i]->d_name;
		struct stat st;

		if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
			continue;
		sum += (uint64_t)st.st_size;
		if (current && !strcmp(name, current))
			continue;
		if ((strcmp(name, oldest) < 0 || sum > t->keep_bytes) && unlinkat(dir, name, 0) == 0)
			log_info("ledger file removed name=%s", name);
	}
	list_free(names, n);
}

/* The part of today that is not full; the first time the directory says which. */
static bool org_begin(struct ledger_files *t, struct org *o)
{
	long long day = today();
	bool fresh = false;
	struct stat st;
	char name[LEDGER_NAME_MAX];

	if (o->file >= 0 && o->day == day && o->bytes < t->part_max)
		return true;
	close_fd(&o->file);
	for (o->part = o->day == day ? o->part : 0; o->part < EGRESS_LEDGER_PARTS; o->part++) {
		file_name(day, o->part, name);
		fresh = fstatat(o->dir, name, &st, AT_SYMLINK_NOFOLLOW) < 0 && errno == ENOENT;
		o->file = file_open(o, name);
		if (o->file < 0 || fstat(o->file, &st) < 0)
			return false;
		o->bytes = (uint64_t)st.st_size;
		if (o->bytes < t->part_max)
			break;
		close_fd(&o->file);
	}
	o->day = day;
	if (o->file < 0)
		return false;
	if (fresh) {
		end_previous(o, name);
		retain(t, o->dir, name);
	}
	return true;
}

/* --- writing -------------------------------------------------------------------------------------------------- */

static uint64_t lines_in(const char *p, size_t n)
{
	uint64_t lines = 0;

	for (size_t i = 0; i < n; i++)
		lines += p[i] == '\n';
	return lines;
}

static bool put(struct org *o, const void *data, size_t n)
{
	if (!write_all(o->file, data, n))
		return false;
	o->bytes += n;
	return true;
}

static bool tell_lost(struct org *o)
{
	char line[256], date[16];
	uint64_t ms = wall_ms(), of_day = ms % DAY_MS;
	int n;

	if (!o->lost)
		return true;
	ledger_day_name((long long)(ms / DAY_MS), date);
	n = snprintf(line, sizeof(line),
		     LEDGER_TIME_HEAD "%sT%02u:%02u:%02u.%03uZ\",\"org\":\"%s\",\"decision\":\"dropped\","
		     "\"reason\":\"the ledger could not be written\",\"count\":%llu}\n",
		     date, (unsigned int)(of_day / 3600000), (unsigned int)(of_day / 60000 % 60),
		     (unsigned int)(of_day / 1000 % 60), (unsigned int)(of_day % 1000), o->name, (unsigned long long)o->lost);
	if (!put(o, line, (size_t)n))
		return false;
	o->lost = 0;
	return true;
}

void ledger_files_write(struct ledger_files *t, const char *org, const void *lines, size_t n)
{
	static struct log_limit limit = LOG_LIMIT_INIT(1, 6);
	struct org *o = org_get(t, org);

	if (!o)
		return;
	if (org_open(t, o) && org_begin(t, o) && (!n || (tell_lost(o) && put(o, lines, n))))
		return;
	log_limited(&limit, LOG_LEVEL_ERROR, "cannot write the ledger of '%s' sys=%d", org, errno);
	o->lost += lines_in(lines, n);
	org_close(t, o);
}

void ledger_files_sweep(struct ledger_files *t)
{
	int fd = openat(t->dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);

	for (struct dirent *e; d && (e = readdir(d));) {
		_cleanup_fd_ int dir = e->d_name[0] == '.' ? -1 : openat(t->dirfd, e->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		struct org *o = t->orgs;
		char current[LEDGER_NAME_MAX] = "";

		while (o && strcmp(o->name, e->d_name))
			o = o->next;
		if (o && o->day >= 0)
			file_name(o->day, o->part, current);
		if (dir >= 0)
			retain(t, dir, current);
	}
	if (d)
		closedir(d);
	else if (fd >= 0)
		close(fd);
}

uint64_t ledger_files_lost(const struct ledger_files *t)
{
	uint64_t n = 0;

	for (const struct org *o = t->orgs; o; o = o->next)
		n += o->lost;
	return n;
}

enum rc ledger_files_new(int dirfd, uint64_t keep_days, uint64_t keep_bytes, struct ledger_files **ret, struct fault *ret_f)
{
	struct ledger_files *t = calloc(1, sizeof(*t));

	if (!t)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	t->dirfd = dirfd;
	t->keep_days = keep_days;
	t->keep_bytes = keep_bytes;
	/* Small enough that removing the oldest file leaves most of what is to be kept. */
	t->part_max = MAX_OF(MIN_OF(keep_bytes / 8, (uint64_t)EGRESS_LEDGER_PART), 65536u);
	*ret = t;
	return RC_OK;
}

void ledger_files_free(struct ledger_files *t)
{
	while (t && t->orgs) {
		struct org *o = t->orgs;

		t->orgs = o->next;
		org_close(t, o);
		free(o);
	}
	free(t);
}
