/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/runner/link.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "fcgi/runner/keep.h"
#include "schema/agent.h"
#include "tests/lib/check.h"

#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define PATIENCE_MS 20000

static char dir[] = "/tmp/nbrunner.XXXXXX";

static const struct config *config(void)
{
	static struct config c = { .log_keep_mib = 8 };

	snprintf(c.run_dir, sizeof(c.run_dir), "%s", dir);
	snprintf(c.state_dir, sizeof(c.state_dir), "%s", dir);
	return &c;
}

static struct link link_new(int *ret_listen)
{
	struct link l;

	if (link_init(&l, config(), NULL) || unix_listen(l.broker.path, SOCK_SEQPACKET, 0600, (gid_t)-1, ret_listen, NULL))
		abort();
	return l;
}

static void put_all(int fd, const void *data, size_t n)
{
	if (fd_write_all(fd, data, n, now_ms() + PATIENCE_MS, NULL))
		_exit(0); /* whoever asked has had enough */
}

/* A broker that is asked once and gives a connection to `agent`. */
static pid_t broker_run(int listen_fd, void (*agent)(int fd))
{
	static uint8_t mem[MESSAGE_MAX];
	struct broker_vm_dialed reply = { .has_lease = 0 };
	int fds[FD_PASS_MAX], pair[2], fd;
	struct message_head head;
	size_t n, n_fds;
	struct wire w;
	pid_t pid = fork();

	if (pid)
		return pid;
	alarm(60);
	signal(SIGPIPE, SIG_IGN);
	if (fd_wait(listen_fd, POLLIN, now_ms() + PATIENCE_MS, NULL) || (fd = accept(listen_fd, NULL, NULL)) < 0 ||
	    packet_recv(fd, mem, sizeof(mem), &n, fds, &n_fds, NULL) || message_open(mem, n, n_fds, &head, &w, NULL) ||
	    socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0)
		_exit(1);
	message_begin(&w, mem, sizeof(mem));
	message_put_result(&w, RC_OK, "");
	broker_vm_dialed_put(&w, &reply);
	if (message_end(&w, (uint16_t)(head.op | MESSAGE_REPLY), head.sequence, 1, &n, NULL) ||
	    packet_send(fd, mem, n, &pair[1], 1, NULL))
		_exit(1);
	close(pair[1]);
	agent(pair[0]);
	_exit(0);
}

static void agent_says(int fd, const char *text)
{
	char line[4096];

	if (fd_read_line(fd, line, sizeof(line), now_ms() + PATIENCE_MS, NULL))
		_exit(1);
	put_all(fd, text, strlen(text));
}

/* Frames of output until the connection ends or patience does. */
static void agent_of_yes(int fd)
{
	static uint8_t frame[5 + 4096] = { 1, 0x00, 0x10 };
	uint64_t until = now_ms() + PATIENCE_MS;

	memset(frame + 5, 'y', sizeof(frame) - 5);
	agent_says(fd, "{\"ok\":true}\n");
	while (now_ms() < until)
		put_all(fd, frame, sizeof(frame));
}

static void agent_of_empty_frames(int fd)
{
	static const uint8_t frames[5 * 100];
	uint64_t until = now_ms() + PATIENCE_MS;

	agent_says(fd, "{\"ok\":true}\n");
	while (now_ms() < until)
		put_all(fd, frames, sizeof(frames));
}

/* Ends without having read that its input is closed: at the worst before that is written. */
static void agent_of_a_command(int fd)
{
	static const uint8_t out[] = "\1\3\0\0\0a\nb", exit0[] = "\3\12\0\0\0{\"code\":0}";

	agent_says(fd, "{\"ok\":true}\n");
	put_all(fd, out, sizeof(out) - 1);
	put_all(fd, exit0, sizeof(exit0) - 1);
}

static void on_line(void *arg, bool is_error, const char *text)
{
	char *seen = arg;

	(void)is_error;
	if (strlen(seen) + strlen(text) < 60)
		strcat(strcat(seen, text), "|");
}

static enum rc exec_with(void (*agent)(int fd), uint64_t ms, char seen[64], struct fault *f)
{
	int listen_fd, status;
	struct link l = link_new(&listen_fd);
	pid_t pid = broker_run(listen_fd, agent);
	struct json_object *o = json_object_new_object();
	enum rc rc;

	json_object_object_add(o, "service", json_object_new_string("exec"));
	*seen = '\0';
	rc = link_exec(&l, "vm", o, now_ms() + ms, on_line, NULL, seen, f);
	link_close(&l);
	close(listen_fd);
	unlink(l.broker.path);
	waitpid(pid, &status, 0);
	return rc;
}

TEST(a_command_runs_to_its_end)
{
	char seen[64];
	struct fault f = { 0 };

	CHECK_EQ(exec_with(agent_of_a_command, PATIENCE_MS, seen, &f), RC_OK);
	CHECK_STR(seen, "a|b|");
}

/* As `yes` does, and an agent that nobody believes: neither holds a build for longer than a build may take. */
TEST(a_command_that_never_stops_printing_is_stopped)
{
	char seen[64];
	struct fault f = { 0 };

	CHECK_EQ(exec_with(agent_of_yes, 300, seen, &f), RC_TIMEOUT);
	CHECK(strstr(f.text, "did not end in time") != NULL);
	CHECK_EQ(exec_with(agent_of_empty_frames, 300, seen, &f), RC_TIMEOUT);
}

#define RESTARTS 1000

static void agent_of_restarts(int fd)
{
	static const char line[] = "{\"stream\":\"event\",\"line\":\"again\"}\n";

	agent_says(fd, "{\"ok\":true}\n");
	for (int i = 0; i < RESTARTS; i++)
		put_all(fd, line, sizeof(line) - 1);
}

static struct db *db_with_instance(void)
{
	static const char *const rows[] = {
		"INSERT INTO organizations (id, name, created_ms) VALUES ('o', 'o', 1)",
		"INSERT INTO apps (id, org_id, slug, created_ms, updated_ms) VALUES ('app', 'o', 'app', 1, 1)",
		"INSERT INTO revisions (id, app_id, status, created_ms) VALUES ('rev', 'app', 'succeeded', 1)",
		"INSERT INTO instances (id, app_id, revision_id, node, state, created_ms) VALUES ('rev_rev_01234567', 'app', 'rev', 'n', 'running', 1)",
	};
	const char *src = getenv("srcdir");
	char path[600], schema[512];
	struct fault f = { 0 };
	struct db *db = NULL;
	enum rc rc;

	snprintf(path, sizeof(path), "%s/x.db", dir);
	snprintf(schema, sizeof(schema), "%s/schema/migrations", src ? src : ".");
	rc = db_open(&db, path, &f);
	if (!rc)
		rc = db_migrate(db, schema, &f);
	for (size_t i = 0; !rc && i < ARRAY_SIZE(rows); i++) {
		_cleanup_db_q_ struct db_q q = DB_Q_INIT;

		db_start(&q, db, rows[i]);
		rc = db_run(&q, &f);
	}
	if (rc) {
		printf("  %s\n", f.text);
		db_close(db);
		return NULL;
	}
	return db;
}

static int64_t number(struct db *db, const char *sql)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;

	db_start(&q, db, sql);
	return db_row(&q, NULL) ? -1 : db_col_int(&q, 0);
}

/* Whoever is root in a guest says what its agent says: the database that all tenants share is not written for each word. */
TEST(restarts_that_a_guest_invents_are_counted_and_not_written_one_by_one)
{
	static const char changes[] = "SELECT total_changes()";
	int listen_fd, status, claim = memfd_create("claim", MFD_CLOEXEC);
	struct link l = link_new(&listen_fd);
	struct db *db = db_with_instance();
	struct fault f = { 0 };
	int64_t before;
	char path[600];
	pid_t pid;

	REQUIRE(db);
	snprintf(path, sizeof(path), "%s/logs", dir);
	mkdir(path, 0700);
	snprintf(path, sizeof(path), "%s/logs/apps", dir);
	mkdir(path, 0700);
	before = number(db, changes);
	pid = broker_run(listen_fd, agent_of_restarts);
	CHECK_EQ(keep_run(config(), db, "rev_rev_01234567", claim, &f), RC_OK);
	CHECK_EQ(number(db, "SELECT restarts FROM instances"), RESTARTS);
	/* Two, and one more for each RUNNER_RESTARTS_MS that a slow host takes. */
	CHECK(number(db, changes) - before < RESTARTS / 10);
	db_close(db);
	close(claim);
	close(listen_fd);
	unlink(l.broker.path);
	waitpid(pid, &status, 0);
}

int main(int argc, char **argv)
{
	char cmd[64];
	int rc;

	signal(SIGPIPE, SIG_IGN);
	if (!mkdtemp(dir))
		return 1;
	rc = check_main(argc, argv);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	return system(cmd) || rc;
}
