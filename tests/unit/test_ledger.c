/* SPDX-License-Identifier: Apache-2.0 */
/* The ledger's two sides: what the proxy writes is what the API finds, against a model that is a plain list. */
#include "base/cleanup.h"
#include "base/fd.h"
#include "fcgi/egress_place.h"
#include "fcgi/egress_scan.h"
#include "fcgi/limits.h"
#include "tests/lib/check.h"
#include "vmm/egress/ledger.h"
#include "vmm/egress/ledger_files.h"
#include "vmm/egress/limits.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <time.h>

static char dir_path[] = "/tmp/nb-ledger-XXXXXX";

static int fresh_dir(void)
{
	static unsigned int number;
	char path[64];

	if (!number && !mkdtemp(dir_path))
		exit(1);
	snprintf(path, sizeof(path), "%s/%u", dir_path, number++);
	mkdir(path, 0755);
	return open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static size_t files_of(int dirfd, const char *org, char first[32], char last[32])
{
	_cleanup_fd_ int fd = openat(dirfd, org, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct dirent **names = NULL;
	int n = fd < 0 ? 0 : scandirat(fd, ".", &names, NULL, alphasort);
	size_t found = 0;

	for (int i = 0; i < n; i++) {
		if (names[i]->d_name[0] != '.') {
			snprintf(found++ ? last : first, 32, "%.31s", names[i]->d_name);
			if (found == 1)
				snprintf(last, 32, "%.31s", names[i]->d_name);
		}
		free(names[i]);
	}
	free(names);
	return found;
}

/* --- writing -------------------------------------------------------------------------------------------------- */

TEST(days_have_their_names)
{
	char text[16];

	ledger_day_name(0, text);
	CHECK_STR(text, "1970-01-01");
	ledger_day_name(11016, text);
	CHECK_STR(text, "2000-02-29");
	for (long long day = 10000; day < 60000; day += 37) {
		time_t s = (time_t)day * 86400;
		struct tm tm;
		char want[16];

		gmtime_r(&s, &tm);
		strftime(want, sizeof(want), "%Y-%m-%d", &tm);
		ledger_day_name(day, text);
		CHECK_STR(text, want);
	}
}

TEST(files_go_by_size)
{
	_cleanup_fd_ int dir = fresh_dir();
	struct ledger_files *t = NULL;
	static char line[1024];
	char first[32] = "", last[32] = "", end[3] = "";

	memset(line, 'x', sizeof(line));
	line[sizeof(line) - 1] = '\n';
	CHECK_EQ(ledger_files_new(dir, 0, 1 << 20, &t, NULL), RC_OK);
	/* Parts of 128 KiB; 3 MiB are written and one is kept. */
	for (int i = 0; i < 3072; i++)
		ledger_files_write(t, "acme", line, sizeof(line));
	CHECK(files_of(dir, "acme", first, last) >= 7);
	CHECK(files_of(dir, "acme", first, last) <= 9);
	CHECK_STR(last + 10, "-023.jsonl");
	/* Who follows an ended file is told. */
	{
		_cleanup_fd_ int org = openat(dir, "acme", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		_cleanup_fd_ int fd = openat(org, first, O_RDONLY | O_CLOEXEC);
		struct stat st;

		CHECK_EQ(fstat(fd, &st), 0);
		CHECK_EQ(pread(fd, end, 2, st.st_size - 2), 2);
		CHECK_STR(end, LEDGER_END "\n");
	}
	CHECK_EQ(ledger_files_lost(t), 0);
	ledger_files_free(t);
}

TEST(files_go_by_age)
{
	_cleanup_fd_ int dir = fresh_dir();
	struct ledger_files *t = NULL;
	char first[32] = "", last[32] = "", name[64], day[16];
	long long now = (long long)(wall_ms() / 86400000);

	mkdirat(dir, "gone", 0755);
	mkdirat(dir, "acme", 0755);
	for (int i = 0; i < 10; i++) {
		static const char *const orgs[] = { "gone", "acme" };

		ledger_day_name(now - 10 + i, day);
		for (int k = 0; k < 2; k++) {
			snprintf(name, sizeof(name), "%s/%s-000.jsonl", orgs[k], day);
			close(openat(dir, name, O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
		}
	}
	close(openat(dir, "gone/not-ours", O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
	CHECK_EQ(ledger_files_new(dir, 3, 1 << 20, &t, NULL), RC_OK);
	ledger_files_write(t, "acme", "{}\n", 3);
	/* Today and the two days before; of an organization that writes nothing, when it is looked for. */
	CHECK_EQ(files_of(dir, "acme", first, last), 3);
	CHECK_EQ(files_of(dir, "gone", first, last), 11);
	ledger_files_sweep(t);
	CHECK_EQ(files_of(dir, "gone", first, last), 3);
	CHECK_STR(last, "not-ours");
	ledger_files_free(t);
}

TEST(more_organizations_than_open_files)
{
	_cleanup_fd_ int dir = fresh_dir();
	struct ledger_files *t = NULL;
	char org[16], first[32], last[32];

	CHECK_EQ(ledger_files_new(dir, 0, 1 << 20, &t, NULL), RC_OK);
	for (int round = 0; round < 3; round++)
		for (int i = 0; i < EGRESS_LEDGER_OPEN * 2; i++) {
			snprintf(org, sizeof(org), "org%d", i);
			ledger_files_write(t, org, "{}\n", 3);
		}
	for (int i = 0; i < EGRESS_LEDGER_OPEN * 2; i++) {
		_cleanup_free_ char *text = NULL;
		char path[64];

		snprintf(org, sizeof(org), "org%d", i);
		CHECK_EQ(files_of(dir, org, first, last), 1);
		snprintf(path, sizeof(path), "%s/%s", org, first);
		CHECK_EQ(file_read_at(dir, path, 1000, &text, NULL, NULL), RC_OK);
		CHECK_STR(text, "{}\n{}\n{}\n");
	}
	CHECK_EQ(ledger_files_lost(t), 0);
	ledger_files_free(t);
}

TEST(a_day_has_so_many_files)
{
	_cleanup_fd_ int dir = fresh_dir();
	struct ledger_files *t = NULL;
	char first[32] = "", last[32] = "", path[64], day[16];
	static char line[65536];
	long long today;
	int org;

	CHECK_EQ(mkdirat(dir, "acme", 0755), 0);
	org = openat(dir, "acme", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	do { /* not over midnight */
		today = (long long)(wall_ms() / 86400000);
		ledger_day_name(today, day);
		for (int i = 0; i < EGRESS_LEDGER_PARTS - 1; i++) {
			int fd;

			snprintf(path, sizeof(path), "%.10s-%03d.jsonl", day, i);
			fd = openat(org, path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
			CHECK_EQ(ftruncate(fd, 1 << 20), 0);
			close(fd);
		}
		ledger_files_free(t);
		CHECK_EQ(ledger_files_new(dir, 0, 8 << 20, &t, NULL), RC_OK);
	} while (today != (long long)(wall_ms() / 86400000));
	memset(line, 'x', sizeof(line));
	line[sizeof(line) - 1] = '\n';
	/* The last one takes its mebibyte; then rows are counted, and no file is overwritten. */
	for (int i = 0; i < 16; i++)
		ledger_files_write(t, "acme", line, sizeof(line));
	CHECK_EQ(ledger_files_lost(t), 0);
	ledger_files_write(t, "acme", line, sizeof(line));
	CHECK_EQ(ledger_files_lost(t), 1);
	files_of(dir, "acme", first, last);
	CHECK_STR(last + 10, "-999.jsonl");
	ledger_files_free(t);
	close(org);
}

TEST(what_cannot_be_written_is_counted_and_told)
{
	_cleanup_fd_ int dir = fresh_dir();
	_cleanup_free_ char *text = NULL;
	struct ledger_files *t = NULL;
	char first[32], last[32], path[64];

	CHECK_EQ(ledger_files_new(dir, 0, 1 << 20, &t, NULL), RC_OK);
	/* A file where the directory should be. */
	close(openat(dir, "acme", O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
	ledger_files_write(t, "acme", "{}\n{}\n", 6);
	ledger_files_write(t, "acme", "{}\n", 3);
	CHECK_EQ(ledger_files_lost(t), 3);
	unlinkat(dir, "acme", 0);
	ledger_files_write(t, "acme", "{}\n", 3);
	CHECK_EQ(ledger_files_lost(t), 0);
	CHECK_EQ(files_of(dir, "acme", first, last), 1);
	snprintf(path, sizeof(path), "acme/%s", first);
	CHECK_EQ(file_read_at(dir, path, 1000, &text, NULL, NULL), RC_OK);
	CHECK(text && !strncmp(text, LEDGER_TIME_HEAD, strlen(LEDGER_TIME_HEAD)));
	CHECK(text && strstr(text, "\"decision\":\"dropped\",\"reason\":\"the ledger could not be written\",\"count\":3}\n{}\n"));
	ledger_files_free(t);
}

/* --- reading -------------------------------------------------------------------------------------------------- */

#define ROWS 3000
#define T0 1800000000000 /* in files of days that the names say, whatever today is */

static struct model {
	int64_t ms;
	unsigned int sandbox, decision, host;
} model[ROWS];

static const char *const decisions[] = { "allow", "deny", "error" };
static const char *const hosts[] = { "a.test", "x.b.test", "y.b.test", "b.test" };

static void model_write(int dir, uint64_t seed)
{
	int fd = -1;
	char have[32] = "";

	srandom((unsigned int)seed);
	mkdirat(dir, "acme", 0755);
	for (int i = 0; i < ROWS; i++) {
		struct model *m = &model[i];
		char name[64], iso[ISO_MAX], line[600];
		int n;

		m->ms = (i ? model[i - 1].ms : T0) + random() % 200000;
		m->sandbox = (unsigned int)random() % 5;
		m->decision = (unsigned int)random() % 3;
		m->host = (unsigned int)random() % 4;
		time_to_iso(m->ms, iso);
		snprintf(name, sizeof(name), "acme/%.10s-000.jsonl", iso);
		if (strcmp(name + 5, have) != 0) {
			snprintf(have, sizeof(have), "%.31s", name + 5);
			if (fd >= 0) {
				CHECK_EQ(write(fd, LEDGER_END "\n", 2), 2);
				close(fd);
			}
			fd = openat(dir, name, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
		}
		/* A path that would like to be another sandbox's. */
		n = snprintf(line, sizeof(line),
			     LEDGER_TIME_HEAD "%s\",\"sandbox\":\"sbx_%u\",\"name\":\"%s\",\"decision\":\"%s\","
			     "\"path\":\"/\\\"sandbox\\\":\\\"sbx_1\\\"/%0*d\",\"row\":%d}\n",
			     iso, m->sandbox, hosts[m->host], decisions[m->decision], 1 + (int)(random() % 400), 0, i);
		CHECK_EQ(write(fd, line, (size_t)n), n);
	}
	CHECK_EQ(write(fd, "{\"time\":\"20", 11), 11); /* is being written */
	close(fd);
}

struct found {
	int at[ROWS];
	int n, limit;
};

static bool on_found(void *arg, struct json_object *row)
{
	struct found *f = arg;

	if (f->n >= f->limit)
		return false;
	f->at[f->n++] = json_object_get_int(json_get(row, "row"));
	return true;
}

static bool host_fits(const char *name, const char *want)
{
	size_t n = strlen(name), k = strlen(want);

	return !strncmp(want, "*.", 2) ? n >= k && !strcmp(name + n - k + 1, want + 1) : !strcmp(name, want);
}

TEST(what_was_written_is_found)
{
	static const char *const wants[] = { NULL, "a.test", "*.b.test", "nowhere.test" };
	_cleanup_fd_ int dir = fresh_dir();

	model_write(dir, 1);
	for (int round = 0; round < 300; round++) {
		struct egress_query q = { 0 };
		static struct found got;
		char cursor[EGRESS_CURSOR_MAX] = "";
		int64_t from = 0, to = INT64_MAX;
		unsigned int sandbox = (unsigned int)random() % 8, decision = (unsigned int)random() % 6;
		int i = ROWS - 1, pages = 0;

		if (sandbox < 5)
			snprintf(q.sandbox, sizeof(q.sandbox), "sbx_%u", sandbox);
		q.decision = decision < 3 ? decisions[decision] : NULL;
		q.host = wants[random() % 4];
		if (random() % 2)
			time_to_iso(from = model[random() % ROWS].ms + random() % 3 - 1, q.start);
		if (random() % 2)
			time_to_iso(to = model[random() % ROWS].ms + random() % 3 - 1, q.end);
		got.n = 0;
		got.limit = 0;
		do {
			got.limit += 1 + (int)(random() % 700);
			CHECK_EQ(egress_scan(dir, "acme", &q, cursor, on_found, &got, NULL), RC_OK);
		} while (*cursor && ++pages < ROWS);
		for (int k = 0; k < got.n; k++, i--) {
			while (i >= 0 && !(model[i].ms >= from && model[i].ms <= to && (sandbox >= 5 || model[i].sandbox == sandbox) &&
					   (decision >= 3 || model[i].decision == decision) &&
					   (!q.host || host_fits(hosts[model[i].host], q.host))))
				i--;
			CHECK_EQ(got.at[k], i);
		}
		while (i >= 0 && !(model[i].ms >= from && model[i].ms <= to && (sandbox >= 5 || model[i].sandbox == sandbox) &&
				   (decision >= 3 || model[i].decision == decision) && (!q.host || host_fits(hosts[model[i].host], q.host))))
			i--;
		CHECK_EQ(i, -1);
	}
}

TEST(a_tail_begins_where_it_is_told)
{
	_cleanup_fd_ int dir = fresh_dir();
	int first = ROWS - 1;
	char day[ISO_MAX], last_day[ISO_MAX];

	model_write(dir, 2);
	time_to_iso(model[ROWS - 1].ms, last_day);
	for (;;) {
		time_to_iso(model[first].ms, day);
		if (strncmp(day, last_day, 10) != 0)
			break;
		first--;
	}
	for (int i = first + 1; i < ROWS; i++) {
		_cleanup_fd_ int fd = -1;
		char since[ISO_MAX], line[64] = "", want[ISO_MAX], name[LEDGER_NAME_MAX], next[LEDGER_NAME_MAX];
		uint64_t offset = 0;

		time_to_iso(model[i].ms, since);
		CHECK_EQ(egress_file_since(dir, "acme", since, name, &fd, &offset, NULL), RC_OK);
		CHECK(!egress_file_after(dir, "acme", name, next)); /* the newest */
		if (i + 1 == ROWS)
			break;
		CHECK(pread(fd, line, 63, (off_t)offset) > 0);
		for (int k = i + 1; k < ROWS; k++)
			if (model[k].ms > model[i].ms) {
				time_to_iso(model[k].ms, want);
				CHECK(!strncmp(line + strlen(LEDGER_TIME_HEAD), want, LEDGER_TIME_LEN));
				break;
			}
	}
}

/* From the first row to the last, over all files, as a tail goes. */
TEST(a_tail_goes_on_from_file_to_file)
{
	static const struct seal_key key = { "a key of thirty-two bytes, or so" }, other = { "another" };
	_cleanup_fd_ int dir = fresh_dir();
	char place[GATEWAY_PLACE_MAX], next[GATEWAY_PLACE_MAX], since[ISO_MAX], name[LEDGER_NAME_MAX], bad[GATEWAY_PLACE_MAX];
	int first = -1, files = 1, fd = -1, row = 100;
	struct fault f;
	uint64_t offset;

	model_write(dir, 3);
	time_to_iso(model[row].ms, since);
	while (model[row].ms == model[100].ms)
		row++;
	REQUIRE(!egress_file_since(dir, "acme", since, name, &first, &offset, &f));
	CHECK_EQ(egress_place(&key, "acme", name, place, &f), RC_OK);
	fd = first;
	for (;;) {
		_cleanup_free_ char *text = calloc(1, 4 << 20);
		enum rc rc;

		REQUIRE(text && pread(fd, text, (4 << 20) - 1, (off_t)offset) > 0);
		for (char *at = text, *nl; (nl = strchr(at, '\n')); at = nl + 1) {
			const char *number;

			*nl = '\0';
			number = strstr(at, "\"row\":");
			if (!number)
				continue;
			CHECK_EQ(atoi(number + 6), row);
			row++;
		}
		close_fd(&fd);
		offset = 0;
		rc = egress_place_next(&key, dir, place, next, &fd, &f);
		if (rc) {
			CHECK_EQ(rc, RC_ABSENT);
			break;
		}
		files++;
		snprintf(place, sizeof(place), "%s", next);
	}
	CHECK_EQ(row, ROWS);
	CHECK(files > 2);
	/* Whoever changes a place, or makes one, gets nothing. */
	CHECK_EQ(egress_place(&other, "acme", name, bad, &f), RC_OK);
	CHECK_EQ(egress_place_next(&key, dir, bad, next, &fd, &f), RC_DENIED);
	mkdirat(dir, "beta", 0755);
	CHECK_EQ(egress_place(&key, "acme", name, bad, &f), RC_OK);
	memcpy(bad, "beta", 4);
	CHECK_EQ(egress_place_next(&key, dir, bad, next, &fd, &f), RC_DENIED);
	bad[strlen(bad) - 1] = '\0';
	CHECK_EQ(egress_place_next(&key, dir, bad, next, &fd, &f), RC_DENIED);
	CHECK_EQ(egress_place_next(&key, dir, "", next, &fd, &f), RC_DENIED);
	CHECK_EQ(egress_place_next(&key, dir, "../../x", next, &fd, &f), RC_DENIED);
}

TEST(strange_cursors_and_organizations)
{
	static const char *const bad[] = { "x", "2026-01-01-000", "2026-01-01-000~", "2026-01-01-000~1x", "../../../../et~1", "~",
					   "2026-01-01-000~9999999999999999" };
	_cleanup_fd_ int dir = fresh_dir();
	struct egress_query q = { 0 };
	static struct found got;
	struct fault f;

	got.limit = 10;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		char cursor[EGRESS_CURSOR_MAX];

		snprintf(cursor, sizeof(cursor), "%s", bad[i]);
		CHECK_EQ(egress_scan(dir, "acme", &q, cursor, on_found, &got, &f), RC_INVALID);
	}
	for (int i = 0; i < 3; i++) {
		char cursor[EGRESS_CURSOR_MAX] = "";

		CHECK_EQ(egress_scan(dir, i == 0 ? "nobody" : i == 1 ? ".." : "a/b", &q, cursor, on_found, &got, &f), RC_OK);
		CHECK_STR(cursor, "");
	}
	CHECK_EQ(got.n, 0);
}

/* --- the queue --------------------------------------------------------------------------------------------------- */

/* A ledger as the daemon makes it, with its state below a directory of this name. */
static struct ledger *ledger_below(struct config *c, const char *name, struct fault *f)
{
	_cleanup_fd_ int made = fresh_dir();
	struct ledger *l = NULL;

	*c = (struct config){ .egress_keep_mib = 100, .egress_keep_days = 1 };
	snprintf(c->state_dir, sizeof(c->state_dir), "%s/%s", dir_path, name);
	snprintf(c->user_egress, sizeof(c->user_egress), "root");
	return made >= 0 && !mkdir(c->state_dir, 0755) && !ledger_new(c, &l, f) ? l : NULL;
}

static int ledger_written(const struct config *c)
{
	char path[sizeof(c->state_dir) + 16];

	snprintf(path, sizeof(path), "%s/logs/egress", c->state_dir);
	return open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static bool on_count(void *arg, struct json_object *row)
{
	(void)row;
	++*(size_t *)arg;
	return true;
}

TEST(the_queue_is_bounded_and_what_it_took_is_written)
{
	static struct config c;
	char cursor[EGRESS_CURSOR_MAX] = "", long_path[1024];
	_cleanup_fd_ int dir = -1;
	struct egress_query q = { 0 };
	struct ledger_row row = { .sandbox = "s", .org = "acme", .decision = "allow", .path = long_path };
	size_t taken = 0, found = 0;
	struct fault f;
	struct ledger *l = ledger_below(&c, "queue", &f);

	REQUIRE(l);
	memset(long_path, 'p', sizeof(long_path) - 1);
	long_path[sizeof(long_path) - 1] = '\0';
	/* A disk that takes nothing: the writer has not begun. */
	while (taken < EGRESS_LEDGER_QUEUE && ledger_add(l, &row))
		taken++;
	/* One organization has half, and has left as much to the next; a fourth finds a share, too. */
	CHECK(taken * (sizeof(long_path) + 2048) > EGRESS_LEDGER_QUEUE / 2);
	CHECK(taken * sizeof(long_path) < EGRESS_LEDGER_QUEUE / 2);
	CHECK(!ledger_add(l, &row));
	for (size_t i = 0; i < 3; i++) {
		struct ledger_row theirs = row;
		size_t n = 0;

		theirs.org = (const char *[]){ "bolt", "cask", "dune" }[i];
		while (n < taken && ledger_add(l, &theirs))
			n++;
		CHECK(n >= taken >> (i + 1) && n <= taken);
	}
	REQUIRE(!ledger_start(l, &f));
	ledger_free(l);
	dir = ledger_written(&c);
	do
		CHECK_EQ(egress_scan(dir, "acme", &q, cursor, on_count, &found, &f), RC_OK);
	while (*cursor);
	CHECK_EQ(found, taken);
}

/* The writer's own hours: what it waits for, and what time it is, are the test's. */
static _Atomic uint64_t later_ms;
static _Atomic bool time_flies;
static _Atomic unsigned int waits;
static _Atomic long long asked_s;

uint64_t __real_now_ms(void);
uint64_t __wrap_now_ms(void);
uint64_t __wrap_now_ms(void)
{
	return __real_now_ms() + later_ms;
}

int __real_pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *lock, const struct timespec *until);
int __wrap_pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *lock, const struct timespec *until);
int __wrap_pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *lock, const struct timespec *until)
{
	struct timespec soon;

	asked_s = until->tv_sec - time(NULL);
	waits++;
	clock_gettime(CLOCK_REALTIME, &soon);
	soon.tv_nsec += 1000000;
	soon.tv_sec += soon.tv_nsec / 1000000000;
	soon.tv_nsec %= 1000000000;
	return time_flies ? __real_pthread_cond_timedwait(cond, lock, &soon) : __real_pthread_cond_timedwait(cond, lock, until);
}

static void waits_pass(unsigned int n)
{
	unsigned int until = waits + n;

	while (waits < until)
		usleep(1000);
}

TEST(old_files_are_looked_for_every_hour_also_when_nothing_is_written)
{
	static struct config c = { .egress_keep_mib = 100, .egress_keep_days = 1 };
	_cleanup_fd_ int made = fresh_dir();
	char path[sizeof(c.state_dir) + 64];
	struct ledger *l = NULL;
	struct fault f;

	REQUIRE(made >= 0);
	snprintf(c.state_dir, sizeof(c.state_dir), "%s/sweep", dir_path);
	snprintf(c.user_egress, sizeof(c.user_egress), "root");
	mkdir(c.state_dir, 0755);
	REQUIRE(!ledger_new(&c, &l, &f));
	time_flies = true;
	REQUIRE(!ledger_start(l, &f));
	/* One sweep at its start; then an old file of an organization that writes no more. */
	waits_pass(3);
	CHECK(asked_s >= EGRESS_LEDGER_SWEEP_S - 1 && asked_s <= EGRESS_LEDGER_SWEEP_S + 1);
	snprintf(path, sizeof(path), "%s/logs/egress/acme", c.state_dir);
	mkdir(path, 0755);
	strcat(path, "/2001-01-01-000.jsonl");
	close(open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
	later_ms = (EGRESS_LEDGER_SWEEP_S - 60) * 1000u;
	waits_pass(3);
	CHECK_EQ(access(path, F_OK), 0);
	later_ms = EGRESS_LEDGER_SWEEP_S * 1000u;
	waits_pass(3);
	CHECK(access(path, F_OK) < 0);
	ledger_free(l);
	later_ms = 0;
	time_flies = false;
}

/* --- what a guest has a say in ------------------------------------------------------------------------------------ */

struct paths {
	size_t n;
	char text[8][64];
};

static bool on_path(void *arg, struct json_object *row)
{
	struct paths *p = arg;
	struct json_object *path = json_get(row, "path");

	if (p->n < ARRAY_SIZE(p->text))
		snprintf(p->text[p->n], sizeof(p->text[0]), "%s", path ? json_object_get_string(path) : "");
	p->n++;
	return true;
}

/* Or a guest could keep a request of its own out of what its owner is shown. */
TEST(a_row_is_found_whatever_bytes_its_path_has)
{
	static const char *const in[] = { "/plain", "/\xff", "/\xc3\xa4", "/cut\xc3", "/\xed\xa0\x80", "/\xf0\x80\x80\x80", "/\xc0\xaf" };
	static const char *const out[] = { "/plain", "/?", "/\xc3\xa4", "/cut?", "/???", "/????", "/??" };
	static struct config c;
	char cursor[EGRESS_CURSOR_MAX] = "";
	_cleanup_fd_ int dir = -1;
	struct egress_query q = { 0 };
	struct paths got = { 0 };
	struct fault f;
	struct ledger *l = ledger_below(&c, "state", &f);

	REQUIRE(l && !ledger_start(l, &f));
	for (size_t i = 0; i < ARRAY_SIZE(in); i++)
		CHECK(ledger_add(l, &(struct ledger_row){ .sandbox = "s", .org = "acme", .protocol = "https", .name = "example.com",
							  .decision = "allow", .method = "GET", .path = in[i] }));
	ledger_free(l);
	dir = ledger_written(&c);
	CHECK_EQ(egress_scan(dir, "acme", &q, cursor, on_path, &got, &f), RC_OK);
	CHECK_EQ(got.n, ARRAY_SIZE(in));
	/* The newest is the first. */
	for (size_t i = 0; i < ARRAY_SIZE(in) && got.n == ARRAY_SIZE(in); i++)
		CHECK_STR(got.text[got.n - 1 - i], out[i]);
}

CHECK_MAIN()
