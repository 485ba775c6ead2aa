/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nestboxadm egress: the ledger, what can be learnt from it, and what a policy would decide. Theory: the ledger's files are read
 * where they are, of one organization or of all, with the functions that the API uses. `tail` polls: at a file's end it looks for a
 * newer one, so that it goes on over days and full files. Rows hold text that guests chose, so nothing but printable ASCII is printed.
 */
#include "base/cleanup.h"
#include "base/fd.h"
#include "fcgi/adm.h"
#include "fcgi/egress_judge.h"
#include "fcgi/egress_learn.h"
#include "fcgi/egress_scan.h"
#include "fcgi/limits.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define POLL_MS 300
#define TAIL_CHUNK 65536
#define LIST_DEFAULT 100

struct org {
	char name[LEDGER_ORG_MAX];
	/* of tail: what is read, and how far */
	char file[LEDGER_NAME_MAX];
	int fd;
	uint64_t offset;
};

struct look {
	const struct adm_options *o;
	struct egress_query q;
	int64_t limit;
	int dir;
	struct org *orgs;
	size_t n;
	struct json_object *rows;
	int64_t taken; /* of this organization */
};

static void look_free(struct look *l)
{
	for (size_t i = 0; i < l->n; i++)
		close_fd(&l->orgs[i].fd);
	free(l->orgs);
	json_object_put(l->rows);
	close_fd(&l->dir);
}

static enum rc org_add(struct look *l, const char *name, struct fault *ret_f)
{
	struct org *more = reallocarray(l->orgs, l->n + 1, sizeof(*more));

	if (!more)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	l->orgs = more;
	more[l->n] = (struct org){ .fd = -1 };
	snprintf(more[l->n++].name, sizeof(more->name), "%s", name);
	return RC_OK;
}

/* Those that were named, or all that have a ledger. */
static enum rc orgs_find(struct look *l, struct fault *ret_f)
{
	enum rc rc = RC_OK;
	struct dirent *e;
	int fd;
	DIR *d;

	for (size_t i = 0; !rc && i < l->o->n_orgs; i++)
		rc = slug_is_valid(l->o->orgs[i]) ? org_add(l, l->o->orgs[i], ret_f) :
						    fault_set(ret_f, RC_INVALID, 0, "'%s' is no organization", shown(l->o->orgs[i]));
	if (rc || l->o->n_orgs)
		return rc;
	fd = fcntl(l->dir, F_DUPFD_CLOEXEC, 0);
	d = fd < 0 ? NULL : fdopendir(fd);
	if (!d) {
		close_fd(&fd);
		return fault_set(ret_f, RC_SYS, errno, "list the ledgers");
	}
	rewinddir(d);
	while (!rc && (e = readdir(d)))
		if (slug_is_valid(e->d_name) && strlen(e->d_name) < LEDGER_ORG_MAX)
			rc = org_add(l, e->d_name, ret_f);
	closedir(d);
	return rc;
}

static enum rc look_begin(struct look *l, const struct config *c, const struct adm_options *o, struct fault *ret_f)
{
	static const char *const decisions[] = { "allow", "deny", "error", "dropped" };
	char path[PATH_MAX];
	bool known = !o->decision;
	int64_t ms;

	*l = (struct look){ .o = o, .limit = LIST_DEFAULT, .dir = -1, .q = { .host = o->host, .decision = o->decision } };
	for (size_t i = 0; i < ARRAY_SIZE(decisions); i++)
		known |= o->decision && !strcmp(o->decision, decisions[i]);
	if (!known)
		return fault_set(ret_f, RC_INVALID, 0, "--decision is allow, deny, error or dropped");
	if (o->sandbox && (strlen(o->sandbox) >= sizeof(l->q.sandbox) || strspn(o->sandbox, ID_ALPHABET "_ilo") != strlen(o->sandbox)))
		return fault_set(ret_f, RC_INVALID, 0, "'%s' is no sandbox", shown(o->sandbox));
	snprintf(l->q.sandbox, sizeof(l->q.sandbox), "%s", o->sandbox ? o->sandbox : "");
	if (o->since && (time_from_iso(o->since, &ms, NULL) || ms < 0))
		return fault_set(ret_f, RC_INVALID, 0, "--since is an ISO 8601 time");
	if (o->since)
		time_to_iso(ms, l->q.start);
	if (o->limit) {
		char *end;

		errno = 0;
		l->limit = strtoll(o->limit, &end, 10);
		if (errno || *end || l->limit < 1 || l->limit > EGRESS_EXPORT_MAX)
			return fault_set(ret_f, RC_INVALID, 0, "--limit is 1 to %d", EGRESS_EXPORT_MAX);
	}
	if (path_join(path, sizeof(path), c->state_dir, LEDGER_DIR, NULL))
		return fault_set(ret_f, RC_INVALID, 0, "the state directory's name is too long");
	l->dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (l->dir < 0)
		return fault_set(ret_f, RC_SYS, errno, "open the ledger in %s", path);
	return orgs_find(l, ret_f);
}

/* --- a row for people ------------------------------------------------------------------------------------------- */

static const char *member(struct json_object *row, const char *key)
{
	struct json_object *v = json_get(row, key);

	return v ? json_object_get_string(v) : "";
}

static void print_clean(const char *s, int width)
{
	for (; *s; s++, width--)
		putchar(*s >= 0x20 && *s < 0x7f ? *s : '?');
	while (width-- > 0)
		putchar(' ');
}

static void print_head(void)
{
	printf("%-25s%-9s%-7s%-44s%s\n", "time", "decision", "over", "to", "what");
}

static void print_row(struct json_object *row)
{
	char to[340], what[3 * LEDGER_ROW_MAX];
	const char *name = member(row, "name"), *secret = member(row, "secret"), *rule = member(row, "rule"), *reason = member(row, "reason");

	snprintf(to, sizeof(to), "%s%s%s", *name ? name : member(row, "address"), *member(row, "port") ? ":" : "", member(row, "port"));
	snprintf(what, sizeof(what), "%s%s%s%s%s%s%s%s%s%s%s%s%s%s", member(row, "method"), *member(row, "method") ? " " : "", member(row, "path"),
		 *member(row, "path") ? " " : "", member(row, "status"), *member(row, "status") ? " " : "", *secret ? "with " : "", secret,
		 *secret ? " " : "", *rule ? "(" : "", rule, *rule ? ")" : "", *reason ? " " : "", reason);
	print_clean(member(row, "time"), 25);
	print_clean(member(row, "decision"), 9);
	print_clean(member(row, "protocol"), 7);
	print_clean(to, 43);
	putchar(' ');
	print_clean(what, 0);
	if (json_get(row, "count"))
		printf(" (%s rows)", member(row, "count"));
	putchar('\n');
}

/* --- list and learn --------------------------------------------------------------------------------------------- */

static bool on_row(void *arg, struct json_object *row)
{
	struct look *l = arg;

	if (l->taken >= l->limit)
		return false;
	l->taken++;
	return !json_object_array_add(l->rows, json_object_get(row));
}

static int by_time(const void *a, const void *b)
{
	return strcmp(member(*(struct json_object *const *)a, "time"), member(*(struct json_object *const *)b, "time"));
}

/* The newest of each, and of these the newest; printed with the newest last. */
static enum rc list(struct look *l, struct fault *ret_f)
{
	size_t n, first;

	l->rows = json_object_new_array();
	if (!l->rows)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	for (size_t i = 0; i < l->n; i++) {
		char cursor[EGRESS_CURSOR_MAX] = "";

		l->taken = 0;
		do {
			enum rc rc = egress_scan(l->dir, l->orgs[i].name, &l->q, cursor, on_row, l, ret_f);

			if (rc)
				return rc;
		} while (*cursor && l->taken < l->limit);
	}
	json_object_array_sort(l->rows, by_time);
	n = json_object_array_length(l->rows);
	first = n > (size_t)l->limit ? n - (size_t)l->limit : 0;
	if (l->o->json && first)
		json_object_array_del_idx(l->rows, 0, first);
	if (l->o->json) {
		puts(json_text(l->rows));
		return RC_OK;
	}
	print_head();
	for (size_t i = first; i < n; i++)
		print_row(json_object_array_get_idx(l->rows, i));
	return RC_OK;
}

static enum rc learn(struct look *l, struct fault *ret_f)
{
	_cleanup_json_ struct json_object *o = NULL;
	struct json_object *allow;
	enum rc rc;

	if (l->n != 1)
		return fault_set(ret_f, RC_INVALID, 0, "learn needs --org: a policy is one organization's");
	rc = egress_learn_from(l->dir, l->orgs[0].name, &l->q, &o, ret_f);
	if (rc)
		return rc;
	if (l->o->json) {
		puts(json_text(o));
		return RC_OK;
	}
	allow = json_get(o, "allow_net");
	printf("%-60s%s\n", "allow_net", "uses");
	for (size_t i = 0; i < json_object_array_length(allow); i++) {
		const char *pattern = json_object_get_string(json_object_array_get_idx(allow, i));

		print_clean(pattern, 59);
		printf(" %s\n", member(json_get(o, "uses"), pattern));
	}
	if (!json_object_get_boolean(json_get(o, "complete")))
		fputs("nestboxadm: there is more in the ledger than was read\n", stderr);
	return RC_OK;
}

/* --- tail ------------------------------------------------------------------------------------------------------- */

static bool row_wanted(const struct look *l, const char *line, size_t n, struct json_object **ret)
{
	return n && *line == '{' && !json_parse_object(line, n, JSON_DEPTH_CONFIG, ret, NULL) && egress_row_fits(&l->q, *ret);
}

/* Whole lines from where it stands. True: there was something. */
static bool tail_read(const struct look *l, struct org *g)
{
	static char mem[TAIL_CHUNK];
	ssize_t n = pread(g->fd, mem, sizeof(mem), (off_t)g->offset);
	char *at = mem, *nl;

	while (n > 0 && (nl = memchr(at, '\n', (size_t)(mem + n - at)))) {
		_cleanup_json_ struct json_object *row = NULL;

		if (row_wanted(l, at, (size_t)(nl - at), &row)) {
			if (l->o->json)
				printf("%.*s\n", (int)(nl - at), at);
			else
				print_row(row);
		}
		at = nl + 1;
	}
	g->offset += (uint64_t)(at - mem);
	return at > mem;
}

/* Everything up to its end, and what newer files have. */
static void tail_org(const struct look *l, struct org *g)
{
	for (;;) {
		char next[LEDGER_NAME_MAX];
		bool newer = egress_file_after(l->dir, g->name, g->file, next);
		int fd;

		/* Looked for before reading: once there is a newer file, nothing is added to this one. */
		while (g->fd >= 0 && tail_read(l, g))
			;
		if (!newer)
			return;
		fd = egress_file_open(l->dir, g->name, next);
		close_fd(&g->fd);
		g->fd = fd;
		g->offset = 0;
		snprintf(g->file, sizeof(g->file), "%s", next);
	}
}

static enum rc tail(struct look *l, struct fault *ret_f)
{
	static const struct timespec pause = { .tv_nsec = POLL_MS * 1000000L };

	for (size_t i = 0; i < l->n; i++) {
		struct org *g = &l->orgs[i];

		/* Nothing yet: whatever comes is new. */
		if (egress_file_since(l->dir, g->name, *l->q.start ? l->q.start : NULL, g->file, &g->fd, &g->offset, NULL))
			*g->file = '\0';
	}
	*l->q.start = '\0';
	if (!l->o->json)
		print_head();
	for (;;) {
		for (size_t i = 0; i < l->n; i++)
			tail_org(l, &l->orgs[i]);
		if (fflush(stdout) || ferror(stdout))
			return fault_set(ret_f, RC_SYS, errno, "write");
		nanosleep(&pause, NULL);
	}
}

/* --- evaluate --------------------------------------------------------------------------------------------------- */

static enum rc policy_file(const char *path, struct json_object **ret, struct fault *ret_f)
{
	_cleanup_fd_ int fd = strcmp(path, "-") ? open(path, O_RDONLY | O_CLOEXEC) : dup(STDIN_FILENO);
	_cleanup_free_ char *mem = malloc(CONFIG_HEADER_MAX);
	size_t n = 0;
	ssize_t got = 1;

	if (fd < 0 || !mem)
		return fault_set(ret_f, RC_SYS, errno, "open '%.80s'", path);
	while (got > 0 && n < CONFIG_HEADER_MAX) {
		got = read(fd, mem + n, CONFIG_HEADER_MAX - n);
		if (got > 0)
			n += (size_t)got;
	}
	if (got < 0 || n == CONFIG_HEADER_MAX)
		return fault_set(ret_f, RC_INVALID, got < 0 ? errno : 0, "cannot read '%.80s', or it is too long", path);
	return json_parse_object(mem, n, JSON_DEPTH_CONFIG, ret, ret_f);
}

/* What the sandbox was given, or has been since. */
static enum rc policy_of(struct db *db, const char *sandbox, struct json_object **ret, struct fault *ret_f)
{
	static const char *const parts[] = { "allow_net", "secrets", "egress" };
	_cleanup_json_ struct json_object *record = NULL;
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum rc rc;

	db_start(&q, db, "SELECT config FROM sandboxes WHERE id = ?");
	db_text(&q, sandbox);
	rc = db_row(&q, ret_f);
	if (rc)
		return rc == RC_ABSENT ? fault_set(ret_f, RC_ABSENT, 0, "no sandbox '%s'", shown(sandbox)) : rc;
	record = json_stored(db_col_text(&q, 0));
	*ret = json_object_new_object();
	for (size_t i = 0; i < ARRAY_SIZE(parts); i++)
		if (json_get(record, parts[i]))
			json_add(*ret, parts[i], json_object_get(json_get(record, parts[i])));
	return RC_OK;
}

static enum rc evaluate(const struct config *c, struct db *db, int argc, char **argv, const struct adm_options *o, struct fault *ret_f)
{
	static const char *const keys[] = { "decision", "rule", "intercepted", "why" };
	_cleanup_json_ struct json_object *ask = json_object_new_object(), *policy = NULL, *said = NULL;
	struct egress_question q;
	char *end = NULL;
	enum rc rc = o->policy ? policy_file(o->policy, &policy, ret_f) : policy_of(db, o->sandbox, &policy, ret_f);

	if (rc)
		return rc;
	json_add(ask, "policy", json_object_get(policy));
	json_add_str(ask, "host", argv[0]);
	if (argc > 1)
		json_add_int(ask, "port", strtoll(argv[1], &end, 10));
	if (end && *end)
		return fault_set(ret_f, RC_INVALID, 0, "a port is a number");
	if (argc > 2)
		json_add_str(ask, "method", argv[2]);
	if (argc > 3)
		json_add_str(ask, "path", argv[3]);
	rc = egress_question_parse(ask, &q, ret_f);
	if (!rc)
		rc = egress_judge(&q, "none", c->egress_allow_private, &said, ret_f);
	if (rc)
		return rc;
	if (o->json) {
		puts(json_text(said));
		return RC_OK;
	}
	for (size_t i = 0; i < ARRAY_SIZE(keys); i++)
		printf("%-13s%s\n", keys[i], member(said, keys[i]));
	return RC_OK;
}

enum rc adm_egress(const struct config *c, struct db *db, int argc, char **argv, const struct adm_options *o, struct fault *ret_f)
{
	_cleanup_(look_free) struct look l = { .dir = -1 };
	const char *verb = argc > 0 ? argv[0] : "";
	enum rc rc;

	if (!strcmp(verb, "evaluate") && argc >= 2 && argc <= 5 && !o->policy != !o->sandbox)
		return evaluate(c, db, argc - 1, argv + 1, o, ret_f);
	if (argc != 1 || (strcmp(verb, "list") && strcmp(verb, "tail") && strcmp(verb, "learn")))
		return fault_set(ret_f, RC_INVALID, 0, "no such command; nestboxadm --help lists them");
	rc = look_begin(&l, c, o, ret_f);
	if (rc)
		return rc;
	return *verb == 'l' && verb[1] == 'i' ? list(&l, ret_f) : *verb == 'l' ? learn(&l, ret_f) : tail(&l, ret_f);
}
