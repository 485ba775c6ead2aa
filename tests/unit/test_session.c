/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The session process as PID 1 starts it: real and saved uid 0, effective uid 1000, packets on a SOCK_SEQPACKET. Needs root;
 * the user need not exist. This program plays PID 1 and a client with blocking sockets and deadlines.
 */
#include "base/cleanup.h"
#include "base/fd.h"
#include "guest/b64.h"
#include "guest/rpc_json.h"
#include "guest/session.h"
#include "guest/ws.h"
#include "tests/lib/check.h"

#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define APP 1000
#define DEADLINE_MS 20000

static struct {
	pid_t pid;
	int control, rpc;
	char home[32];
} s = { .control = -1, .rpc = -1 };

static void child(int fd)
{
	const gid_t gid = APP;

	if (setgroups(1, &gid) < 0 || setresgid(0, APP, 0) < 0 || setresuid(0, APP, 0) < 0 || setenv("HOME", s.home, 1) < 0)
		_exit(9);
	_exit(session_main(fd));
}

static bool start(void)
{
	int fds[2];

	snprintf(s.home, sizeof(s.home), "/tmp/nb-session-XXXXXX");
	if (!mkdtemp(s.home) || chown(s.home, APP, APP) < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0)
		return false;
	fflush(stdout);
	s.pid = fork();
	if (!s.pid) {
		close(fds[0]);
		child(fds[1]);
	}
	close(fds[1]);
	s.control = fds[0];
	return s.pid > 0;
}

static bool control(const char *packet, int fd)
{
	return !packet_send(s.control, packet, strlen(packet), &fd, fd >= 0 ? 1 : 0, NULL);
}

/* The client's end of a new connection that the session got with `packet`. */
static int connection(const char *packet)
{
	int fds[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)
		return -1;
	if (!control(packet, fds[1]))
		close_fd(&fds[0]);
	close(fds[1]);
	return fds[0];
}

static bool send_frame(uint8_t first, const void *data, size_t n)
{
	uint8_t head[14] = { 0 };
	size_t at = ws_head(head, WS_TEXT, n);

	head[0] = first;
	head[1] |= 0x80; /* the mask is four zeros */
	return !fd_write_all(s.rpc, head, at + 4, now_ms() + DEADLINE_MS, NULL) &&
	       !fd_write_all(s.rpc, data, n, now_ms() + DEADLINE_MS, NULL);
}

/* The next frame but pings, which are answered; its first byte, 0 at the end. *ret is NUL-terminated, to be freed. */
static uint8_t recv_frame(char **ret)
{
	uint64_t deadline = now_ms() + DEADLINE_MS;
	uint8_t h[10];
	size_t n, more;
	char *data;

	if (fd_read_exact(s.rpc, h, 2, deadline, NULL))
		return 0;
	n = h[1];
	more = n == 126 ? 2 : n == 127 ? 8 : 0;
	if (fd_read_exact(s.rpc, h + 2, more, deadline, NULL))
		return 0;
	for (size_t i = 0; i < more; i++)
		n = (i ? n : 0) << 8 | h[2 + i];
	data = calloc(1, n + 1);
	if (!data || fd_read_exact(s.rpc, data, n, deadline, NULL)) {
		free(data);
		return 0;
	}
	if (h[0] == 0x89) {
		send_frame(0x8a, data, n);
		free(data);
		return recv_frame(ret);
	}
	*ret = data;
	return h[0];
}

/* The call's result, to be put; notifications before it are dropped. */
static struct json_object *call(const char *method, const char *params)
{
	static int id;
	char text[4096];

	snprintf(text, sizeof(text), "{\"jsonrpc\":\"2.0\",\"id\":%d,\"method\":\"%s\",\"params\":%s}", ++id, method, params);
	if (!send_frame(0x81, text, strlen(text)))
		return NULL;
	for (;;) {
		_cleanup_free_ char *got = NULL;
		struct json_object *m, *v, *result = NULL;

		if (recv_frame(&got) != 0x81)
			return NULL;
		m = json_parse(got, strlen(got));
		if (json_object_object_get_ex(m, "id", &v) && json_object_get_int(v) == id)
			result = json_object_get(json_object_object_get(m, "result"));
		json_object_put(m);
		if (result)
			return result;
	}
}

static int64_t ok_int(struct json_object *result, const char *key)
{
	struct json_object *ok = NULL, *v = NULL;
	int64_t n = -1;

	if (json_object_object_get_ex(result, "ok", &ok) && json_object_object_get_ex(ok, key, &v))
		n = json_object_get_int64(v);
	json_object_put(result);
	return n;
}

/* What a shell command prints. */
static void shell(const char *command, char *out, size_t size)
{
	char params[2048];
	size_t at = 0;
	int64_t pid;

	snprintf(params, sizeof(params), "{\"command\":\"sh\",\"args\":[\"-c\",\"%s\"],\"stdout\":\"piped\",\"stderr\":\"null\"}", command);
	pid = ok_int(call("spawn", params), "pid");
	*out = 0;
	while (pid > 0) {
		_cleanup_free_ char *got = NULL;
		const char *data;
		size_t n = 0;

		if (recv_frame(&got) != 0x81 || strstr(got, "stream.end"))
			return;
		data = strstr(got, "\"data\":\"");
		if (!data)
			continue;
		data += 8;
		if (B64_ROOM(strcspn(data, "\"")) + at < size && b64_decode(out + at, &n, data, strcspn(data, "\"")))
			out[at += n] = 0;
	}
}

TEST(starts)
{
	if (geteuid())
		SKIP("needs root");
	REQUIRE(start());
	CHECK(control("e{\"PATH\":\"/usr/bin:/bin\",\"NB_FROM_PID1\":\"yes\"}", -1));
	s.rpc = connection("r");
	REQUIRE(s.rpc >= 0);
}

TEST(children_are_the_user_for_good)
{
	char out[1024];

	if (s.rpc < 0)
		SKIP("needs root");
	shell("id -u; id -g; id -G; grep -E '^(Uid|CapPrm)' /proc/self/status; cat /proc/self/oom_score_adj; pwd; echo $NB_FROM_PID1", out,
	      sizeof(out));
	char wanted[256];
	snprintf(wanted, sizeof(wanted), "1000\n1000\n1000\nUid:\t1000\t1000\t1000\t1000\nCapPrm:\t0000000000000000\n0\n%s\nyes\n", s.home);
	CHECK_STR(out, wanted);
}

TEST(children_cannot_touch_the_session)
{
	char command[200], out[100];

	if (s.rpc < 0)
		SKIP("needs root");
	snprintf(command, sizeof(command), "kill -0 %d && echo signal; cat /proc/%d/environ && echo read; echo done", (int)s.pid, (int)s.pid);
	shell(command, out, sizeof(out));
	CHECK_STR(out, "done\n");
}

TEST(files_are_the_users)
{
	char path[64], params[200];
	struct stat st;

	if (s.rpc < 0)
		SKIP("needs root");
	snprintf(path, sizeof(path), "%s/f", s.home);
	snprintf(params, sizeof(params), "{\"path\":\"f\",\"content\":\"aGk=\"}");
	json_object_put(call("writeFile", params));
	REQUIRE(stat(path, &st) == 0);
	CHECK_EQ(st.st_uid, APP);
	CHECK_EQ(st.st_gid, APP);
	snprintf(params, sizeof(params), "{\"path\":\"/etc/nb-not-allowed\",\"content\":\"aGk=\"}");
	struct json_object *r = call("writeFile", params);
	CHECK(r && strstr(json_object_to_json_string_ext(r, JSON_WRITE_FLAGS), "\"PermissionDenied\"") != NULL);
	json_object_put(r);
}

TEST(the_user_s_programs_can_be_killed)
{
	char params[100];
	int64_t pid;

	if (s.rpc < 0)
		SKIP("needs root");
	pid = ok_int(call("spawn", "{\"command\":\"sleep\",\"args\":[\"60\"],\"stdout\":\"null\",\"stderr\":\"null\"}"), "pid");
	REQUIRE(pid > 0);
	snprintf(params, sizeof(params), "{\"pid\":%d}", (int)pid);
	json_object_put(call("processKill", params));
	CHECK_EQ(ok_int(call("processWait", params), "code"), 143);
}

TEST(exposed_services)
{
	struct sockaddr_storage a = { .ss_family = AF_INET };
	_cleanup_fd_ int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), conn = -1, at = -1;
	socklen_t n = sizeof(a);
	char params[100], line[200];

	if (s.rpc < 0)
		SKIP("needs root");
	conn = connection("hnobody.test");
	CHECK(!fd_read_line(conn, line, sizeof(line), now_ms() + DEADLINE_MS, NULL));
	CHECK(strstr(line, "\"ENOENT\"") != NULL);
	REQUIRE(listen(listener, 1) == 0 && getsockname(listener, (struct sockaddr *)&a, &n) == 0);
	snprintf(params, sizeof(params), "{\"domain\":\"a.test\",\"port\":%d}",
		 (((uint8_t *)&a)[2] << 8) | ((uint8_t *)&a)[3]); /* sin_port */
	json_object_put(call("exposeHttp", params));
	close_fd(&conn);
	conn = connection("hA.test");
	CHECK(!fd_read_line(conn, line, sizeof(line), now_ms() + DEADLINE_MS, NULL));
	CHECK_STR(line, "{\"ok\":true}");
	at = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	REQUIRE(at >= 0);
	CHECK(!fd_write_all(conn, "to\n", 3, now_ms() + DEADLINE_MS, NULL));
	CHECK(!fd_read_line(at, line, sizeof(line), now_ms() + DEADLINE_MS, NULL));
	CHECK_STR(line, "to");
	shutdown(conn, SHUT_WR); /* half-closed: the other direction still works */
	CHECK_EQ(read(at, line, 1), 0);
	CHECK(!fd_write_all(at, "fro\n", 4, now_ms() + DEADLINE_MS, NULL));
	close_fd(&at);
	CHECK(!fd_read_line(conn, line, sizeof(line), now_ms() + DEADLINE_MS, NULL));
	CHECK_STR(line, "fro");
	CHECK_EQ(read(conn, line, 1), 0);
	close_fd(&conn);
	close_fd(&listener);
	conn = connection("ha.test");
	CHECK(!fd_read_line(conn, line, sizeof(line), now_ms() + DEADLINE_MS, NULL));
	CHECK(strstr(line, "\"ECONNREFUSED\"") != NULL);
}

TEST(a_clone_drops_connections_and_keeps_programs)
{
	_cleanup_free_ char *got = NULL;
	char params[100];
	int64_t pid;

	if (s.rpc < 0)
		SKIP("needs root");
	json_object_put(call("envSet", "{\"key\":\"NB_OWN\",\"value\":\"kept\"}"));
	pid = ok_int(call("spawn", "{\"command\":\"sleep\",\"args\":[\"60\"],\"stdout\":\"null\",\"stderr\":\"null\"}"), "pid");
	CHECK(control("e{\"PATH\":\"/usr/bin:/bin\",\"NB_NEW\":\"1\"}", -1));
	CHECK(control("i{\"generation\":2}", -1));
	REQUIRE(recv_frame(&got) == 0x88);
	CHECK_EQ((uint8_t)got[0] << 8 | (uint8_t)got[1], WS_GOING_AWAY);
	close_fd(&s.rpc);
	s.rpc = connection("r");
	char out[100];
	shell("echo $NB_OWN $NB_NEW ${NB_FROM_PID1:-gone}", out, sizeof(out));
	CHECK_STR(out, "kept 1 gone\n");
	snprintf(params, sizeof(params), "{\"pid\":%d,\"signal\":\"SIGKILL\"}", (int)pid);
	json_object_put(call("processKill", params));
	snprintf(params, sizeof(params), "{\"pid\":%d}", (int)pid);
	CHECK_EQ(ok_int(call("processWait", params), "code"), 137);
}

/* The pid of the n-th Deno that was started, once there is one; 0: none came. */
static int64_t deno_pid(int n)
{
	uint64_t deadline = now_ms() + DEADLINE_MS;
	char path[64];

	snprintf(path, sizeof(path), "%s/pids", s.home);
	while (now_ms() < deadline) {
		_cleanup_file_ FILE *f = fopen(path, "re");
		long long pid = 0;
		int lines = 0;

		while (f && lines < n && fscanf(f, "%lld\n", &pid) == 1)
			lines++;
		if (lines == n)
			return pid;
		usleep(10000);
	}
	return 0;
}

static bool is_gone(int64_t pid)
{
	uint64_t deadline = now_ms() + DEADLINE_MS;

	while (!kill((pid_t)pid, 0) && now_ms() < deadline)
		usleep(10000);
	return kill((pid_t)pid, 0) < 0;
}

static int64_t oom_of(int64_t pid)
{
	char path[64];
	long long v = -1;

	snprintf(path, sizeof(path), "/proc/%d/oom_score_adj", (int)pid);
	_cleanup_file_ FILE *f = fopen(path, "re");
	if (f && fscanf(f, "%lld", &v) != 1)
		v = -1;
	return v;
}

/* A REPL in the home directory that has answered once; its pid. */
static int64_t used_repl(void)
{
	char params[200];
	int64_t pid;

	snprintf(params, sizeof(params), "{\"stdout\":\"null\",\"stderr\":\"null\",\"env\":{\"PATH\":\"%s:/usr/bin:/bin\"}}", s.home);
	pid = ok_int(call("spawnDenoRepl", params), "pid");
	snprintf(params, sizeof(params), "{\"pid\":%d,\"code\":\"1\"}", (int)pid);
	json_object_put(call("denoReplEval", params));
	return pid;
}

TEST(a_repl_waits_for_its_like_and_not_in_a_clone)
{
	_cleanup_free_ char *got = NULL;
	char path[64], text[300];
	int64_t second, third;
	int fd;

	if (s.rpc < 0)
		SKIP("needs root");
	/* As far as the session sees of Deno: it answers one request, and ends with its input. */
	snprintf(path, sizeof(path), "%s/deno", s.home);
	snprintf(text, sizeof(text), "#!/bin/sh\necho $$ >>%s/pids\nread line <&3\necho '1 ok 2' >&4\nread line <&3\n", s.home);
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0755);
	REQUIRE(fd >= 0 && !fd_write_all(fd, text, strlen(text), UINT64_MAX, NULL));
	close(fd);

	CHECK_EQ(used_repl(), deno_pid(1));
	second = deno_pid(2);
	REQUIRE(second > 0);
	CHECK_EQ(oom_of(second), 1000);
	CHECK_EQ(used_repl(), second);
	CHECK_EQ(oom_of(second), 0);

	third = deno_pid(3);
	REQUIRE(third > 0);
	json_object_put(call("envSet", "{\"key\":\"NB_OTHER\",\"value\":\"1\"}"));
	CHECK_EQ(used_repl(), deno_pid(4));
	CHECK(is_gone(third));

	snprintf(path, sizeof(path), "%s/deno.json", s.home);
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
	REQUIRE(fd >= 0);
	close(fd);
	third = deno_pid(5);
	CHECK_EQ(used_repl(), deno_pid(6));
	CHECK(is_gone(third));

	third = deno_pid(7);
	REQUIRE(third > 0);
	CHECK(control("i{\"generation\":3}", -1));
	CHECK(recv_frame(&got) == 0x88);
	CHECK(is_gone(third));
	close_fd(&s.rpc);
	s.rpc = connection("r");
}

TEST(odd_packets_do_no_harm)
{
	char out[100];

	if (s.rpc < 0)
		SKIP("needs root");
	CHECK(control("e[1,2]", -1) && control("e{", -1) && control("i", -1) && control("r", -1) && control("hx", -1) && control("?", -1));
	close_fd(&s.rpc); /* 'i' has closed it */
	s.rpc = connection("r");
	shell("echo alive", out, sizeof(out));
	CHECK_STR(out, "alive\n");
}

TEST(ends_with_its_control)
{
	char path[64];
	int status = -1;

	if (s.control < 0)
		SKIP("needs root");
	close_fd(&s.control);
	REQUIRE(waitpid(s.pid, &status, 0) == s.pid);
	CHECK_EQ(status, 0);
	for (int i = 0; i < 4; i++) {
		static const char *const left[] = { "f", "deno", "pids", "deno.json" };

		snprintf(path, sizeof(path), "%s/%s", s.home, left[i]);
		unlink(path);
	}
	CHECK_EQ(rmdir(s.home), 0);
}

CHECK_MAIN()
