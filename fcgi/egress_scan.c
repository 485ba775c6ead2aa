/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/egress_scan.h"

#include "base/fd.h"
#include "fcgi/limits.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define BLOCK 65536
#define NEAR 16384 /* halving ends here */

struct scan {
	const struct egress_query *q;
	egress_row_fn *fn;
	void *arg;
	char sandbox_part[ID_MAX + 16], decision_part[48];
	uint64_t read;
	bool over;      /* everything older is too old, or the reader has enough */
	bool paused;    /* cursor says where to go on */
	char *cursor;
	char block[BLOCK];
};

static bool name_is_ours(const char *name)
{
	return strlen(name) == LEDGER_NAME_LEN && !strcmp(name + LEDGER_NAME_LEN - strlen(LEDGER_SUFFIX), LEDGER_SUFFIX) &&
	       strspn(name, "0123456789-") == LEDGER_NAME_LEN - strlen(LEDGER_SUFFIX);
}

static int filter(const struct dirent *e)
{
	return name_is_ours(e->d_name);
}

/* The row's time, or NULL: it is no row. */
static const char *line_time(const char *line, size_t n)
{
	size_t head = strlen(LEDGER_TIME_HEAD);

	return n > head + LEDGER_TIME_LEN && !memcmp(line, LEDGER_TIME_HEAD, head) ? line + head : NULL;
}

/* --- halving ---------------------------------------------------------------------------------------------------- */

/* The first row that begins at or after `at`: its place and time. False: there is none in reach. */
static bool line_after(int fd, uint64_t at, uint64_t *ret_at, char ret_time[LEDGER_TIME_LEN])
{
	uint64_t from = at ? at - 1 : 0;
	char mem[2 * LEDGER_ROW_MAX];
	ssize_t n = pread(fd, mem, sizeof(mem), (off_t)from);
	bool begins = !at;

	for (size_t p = 0; n > 0;) {
		const char *nl = begins ? NULL : memchr(mem + p, '\n', (size_t)n - p), *t;

		if (!begins && !nl)
			return false;
		p = nl ? (size_t)(nl - mem) + 1 : 0;
		begins = false;
		t = line_time(mem + p, (size_t)n - p);
		if (t) {
			*ret_at = from + p;
			memcpy(ret_time, t, LEDGER_TIME_LEN);
			return true;
		}
	}
	return false;
}

/* A place not far before the first row that is later than `iso`. */
static uint64_t place_of(int fd, uint64_t size, const char *iso)
{
	uint64_t lo = 0, hi = size;

	while (hi - lo > NEAR) {
		uint64_t mid = lo + (hi - lo) / 2, at;
		char t[LEDGER_TIME_LEN];

		if (!line_after(fd, mid, &at, t) || at >= hi || memcmp(t, iso, LEDGER_TIME_LEN) > 0)
			hi = mid;
		else
			lo = at;
	}
	return lo;
}

/* --- rows ------------------------------------------------------------------------------------------------------- */

static bool str_is(struct json_object *o, const char *key, const char *want)
{
	struct json_object *v = json_get(o, key);

	return json_object_is_type(v, json_type_string) && !strcmp(json_object_get_string(v), want);
}

static bool host_fits(struct json_object *row, const char *host)
{
	struct json_object *name = json_get(row, "name");
	const char *s = json_object_is_type(name, json_type_string) ? json_object_get_string(name) : "";
	size_t n = strlen(s), k = strlen(host);

	if (strncmp(host, "*.", 2))
		return !strcmp(s, host) || str_is(row, "address", host);
	return n > k - 1 && !strcmp(s + n - (k - 1), host + 1);
}

bool egress_row_fits(const struct egress_query *q, struct json_object *row)
{
	return (!*q->sandbox || str_is(row, "sandbox", q->sandbox)) && (!q->decision || str_is(row, "decision", q->decision)) &&
	       (!q->protocol || str_is(row, "protocol", q->protocol)) && (!q->host || host_fits(row, q->host));
}

static bool has(const char *line, size_t n, const char *part)
{
	return !*part || memmem(line, n, part, strlen(part));
}

/* False: stop before this line. */
static bool line_take(struct scan *s, const char *line, size_t n)
{
	_cleanup_json_ struct json_object *row = NULL;
	const char *time = line_time(line, n);

	if (!time || (*s->q->end && memcmp(time, s->q->end, LEDGER_TIME_LEN) > 0))
		return true;
	if (*s->q->start && memcmp(time, s->q->start, LEDGER_TIME_LEN) < 0) {
		s->over = true;
		return false;
	}
	if (!has(line, n, s->sandbox_part) || !has(line, n, s->decision_part) ||
	    json_parse_object(line, n, JSON_DEPTH_CONFIG, &row, NULL) || !egress_row_fits(s->q, row))
		return true;
	if (s->fn(s->arg, row))
		return true;
	s->paused = true;
	return false;
}

static void pause_at(struct scan *s, const char *name, uint64_t offset)
{
	snprintf(s->cursor, EGRESS_CURSOR_MAX, "%.14s~%llu", name, (unsigned long long)offset);
	s->paused = true;
}

/* The lines of a block that ends with a line's end, backwards. Returns where the first whole line begins, or where it stopped. */
static uint64_t block_take(struct scan *s, const char *name, uint64_t start, size_t n)
{
	size_t end = n;

	while (end) {
		const char *nl = end > 1 ? memrchr(s->block, '\n', end - 1) : NULL;
		size_t at = nl ? (size_t)(nl - s->block) + 1 : 0;

		/* What stands before the first line's end began in the block before. */
		if (!nl && start)
			break;
		if (!line_take(s, s->block + at, end - at - 1)) {
			if (s->paused)
				pause_at(s, name, start + end);
			return start + end;
		}
		end = at;
	}
	return start + end;
}

/* Everything before `end`. */
static void file_take(struct scan *s, int fd, const char *name, uint64_t end)
{
	while (end && !s->over && !s->paused) {
		size_t n = (size_t)MIN_OF(end, (uint64_t)BLOCK);
		uint64_t start = end - n, next;
		ssize_t got = pread(fd, s->block, n, (off_t)start);
		const char *last = got > 0 ? memrchr(s->block, '\n', (size_t)got) : NULL;

		if (got != (ssize_t)n || !last)
			return;
		s->read += n;
		next = block_take(s, name, start, (size_t)(last - s->block) + 1);
		if (next >= end)
			return; /* a line longer than a block: not ours */
		end = next;
		if (end && !s->over && !s->paused && s->read >= EGRESS_SCAN_MAX)
			pause_at(s, name, end);
	}
}

static void file_scan(struct scan *s, int dir, const char *name, uint64_t from)
{
	_cleanup_fd_ int fd = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	struct stat st;
	uint64_t end;

	if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
		return;
	end = MIN_OF((uint64_t)st.st_size, from);
	if (*s->q->end && from == UINT64_MAX)
		end = MIN_OF(end, place_of(fd, end, s->q->end) + NEAR + LEDGER_ROW_MAX);
	file_take(s, fd, name, end);
}

/* --- directories ------------------------------------------------------------------------------------------------- */

static int org_names(int dirfd, const char *org, int *ret_dir, struct dirent ***ret)
{
	int n;

	*ret = NULL;
	*ret_dir = slug_is_valid(org) ? openat(dirfd, org, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC) : -1;
	if (*ret_dir < 0)
		return 0;
	n = scandirat(*ret_dir, ".", ret, filter, alphasort);
	return MAX_OF(n, 0);
}

static enum rc cursor_parse(const char *cursor, char name[LEDGER_NAME_MAX], uint64_t *ret_from, struct fault *ret_f)
{
	const char *tilde = strchr(cursor, '~');

	*ret_from = UINT64_MAX;
	*name = '\0';
	if (!*cursor)
		return RC_OK;
	if (!tilde || tilde - cursor != 14 || strspn(cursor, "0123456789-") != 14 || !tilde[1] || strlen(tilde + 1) > 15 ||
	    tilde[1 + strspn(tilde + 1, "0123456789")])
		return fault_set(ret_f, RC_INVALID, 0, "invalid cursor");
	snprintf(name, LEDGER_NAME_MAX, "%.14s" LEDGER_SUFFIX, cursor);
	*ret_from = strtoull(tilde + 1, NULL, 10);
	return RC_OK;
}

enum rc egress_scan(int dirfd, const char *org, const struct egress_query *q, char cursor[EGRESS_CURSOR_MAX],
		    egress_row_fn *fn, void *arg, struct fault *ret_f)
{
	_cleanup_free_ struct scan *s = calloc(1, sizeof(*s));
	char first[LEDGER_NAME_MAX];
	_cleanup_fd_ int dir = -1;
	struct dirent **names;
	uint64_t from;
	enum rc rc = cursor_parse(cursor, first, &from, ret_f);
	int n;

	if (rc || !s)
		return rc ? rc : fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	*s = (struct scan){ .q = q, .fn = fn, .arg = arg, .cursor = cursor };
	if (*q->sandbox)
		snprintf(s->sandbox_part, sizeof(s->sandbox_part), "\"sandbox\":\"%s\"", q->sandbox);
	if (q->decision)
		snprintf(s->decision_part, sizeof(s->decision_part), "\"decision\":\"%.16s\"", q->decision);
	*cursor = '\0';
	n = org_names(dirfd, org, &dir, &names);
	for (int i = n; i-- > 0;) {
		const char *name = names[i]->d_name;
		int newer = *first ? strcmp(name, first) : -1;

		/* A day's file has rows of that day and the last of the day before, never later ones. */
		if (*q->start && memcmp(name, q->start, 10) < 0)
			s->over = true;
		if (!s->over && !s->paused && newer <= 0)
			file_scan(s, dir, name, newer ? UINT64_MAX : from);
		free(names[i]);
	}
	free(names);
	return RC_OK;
}

bool egress_file_after(int dirfd, const char *org, const char *name, char ret[LEDGER_NAME_MAX])
{
	_cleanup_fd_ int dir = -1;
	struct dirent **names;
	int n = org_names(dirfd, org, &dir, &names);
	bool found = false;

	for (int i = 0; i < n; i++) {
		if (!found && strcmp(names[i]->d_name, name) > 0) {
			snprintf(ret, LEDGER_NAME_MAX, "%.*s", LEDGER_NAME_LEN, names[i]->d_name);
			found = true;
		}
		free(names[i]);
	}
	free(names);
	return found;
}

int egress_file_open(int dirfd, const char *org, const char *name)
{
	_cleanup_fd_ int dir = slug_is_valid(org) ? openat(dirfd, org, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC) : -1;

	return dir < 0 || !name_is_ours(name) ? -1 : openat(dir, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
}

/* The newest file that has a row up to `since`, else the oldest. */
static int file_since(int dir, struct dirent **names, int n, const char *since, char ret_name[LEDGER_NAME_MAX])
{
	_cleanup_fd_ int fd = -1;

	for (int i = n; i-- > 0;) {
		int older = openat(dir, names[i]->d_name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
		char t[LEDGER_TIME_LEN];
		uint64_t at;

		/* Removed meanwhile, and with it those before. */
		if (older < 0)
			break;
		close_fd(&fd);
		fd = older;
		snprintf(ret_name, LEDGER_NAME_MAX, "%.*s", LEDGER_NAME_LEN, names[i]->d_name);
		if (!since || (line_after(fd, 0, &at, t) && memcmp(t, since, LEDGER_TIME_LEN) <= 0))
			break;
	}
	return take_fd(&fd);
}

enum rc egress_file_since(int dirfd, const char *org, const char *since, char ret_name[LEDGER_NAME_MAX], int *ret_fd, uint64_t *ret_offset,
			  struct fault *ret_f)
{
	_cleanup_fd_ int dir = -1, fd = -1;
	struct dirent **names;
	int n = org_names(dirfd, org, &dir, &names);
	struct stat st;
	uint64_t at;

	fd = file_since(dir, names, n, since, ret_name);
	for (int i = 0; i < n; i++)
		free(names[i]);
	free(names);
	if (fd < 0 || fstat(fd, &st) < 0)
		return fault_set(ret_f, RC_ABSENT, 0, "nothing was recorded yet");
	at = (uint64_t)st.st_size;
	if (since) {
		char t[LEDGER_TIME_LEN];
		uint64_t line = 0;
		bool found;

		at = place_of(fd, at, since);
		while ((found = line_after(fd, at, &line, t)) && memcmp(t, since, LEDGER_TIME_LEN) <= 0)
			at = line + 1;
		at = found ? line : (uint64_t)st.st_size;
	}
	*ret_offset = at;
	*ret_fd = take_fd(&fd);
	return RC_OK;
}
