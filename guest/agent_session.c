/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The session process: the @deno/sandbox RPC speaks there, not in PID 1. It is started again when it dies, after a pause;
 * packets to it that find no room are refused, so a session that hangs blocks nobody.
 */
#include "guest/agent.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "guest/agent_limits.h"
#include "guest/agent_session.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <json-c/json.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

static struct {
	int fd;
	struct child *child;
	struct source *timer;
} session = { .fd = -1 };

static enum rc session_start(struct fault *ret_f);

static int session_exec(int fd, void *arg)
{
	const char *const argv[] = { "nestbox-session", "session", NULL };

	(void)arg;
	/* Its children are users' processes and belong there; they inherit it. It keeps the agent's oom_score_adj. */
	if (agent.cgroup_fd >= 0 && write(agent.cgroup_fd, "0", 1) < 0)
		log_warn("session: cannot join the users' cgroup");
	if (dup2(fd, AGENT_SESSION_FD) < 0)
		return 126;
	if (fd == AGENT_SESSION_FD)
		fcntl(fd, F_SETFD, 0);
	setenv("PATH", AGENT_PATH, 1);
	execv("/proc/self/exe", (char *const *)(uintptr_t)argv);
	return 127;
}

static void on_session_exit(void *arg, int status)
{
	(void)arg;
	log_warn("session process ended status=%#x", (unsigned int)status);
	session.child = NULL;
	close_fd(&session.fd);
	loop_timer_set(session.timer, loop_now_ms(agent.loop) + AGENT_SESSION_BACKOFF_MS);
}

static void on_session_timer(void *arg)
{
	struct fault f = { 0 };

	(void)arg;
	if (session_start(&f)) {
		log_fault(LOG_LEVEL_WARN, &f, "session process");
		loop_timer_set(session.timer, loop_now_ms(agent.loop) + 10 * AGENT_SESSION_BACKOFF_MS);
	}
}

static enum rc session_start(struct fault *ret_f)
{
	const int size = 1 << 20;
	int fds[2];
	enum rc rc;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0)
		return fault_set(ret_f, RC_SYS, errno, "socketpair");
	setsockopt(fds[0], SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size));
	rc = agent_fork(session_exec, fds[1], NULL, NULL, on_session_exit, NULL, &session.child, ret_f);
	close(fds[1]);
	if (rc) {
		close(fds[0]);
		return rc;
	}
	session.fd = fds[0];
	agent_session_identity();
	return RC_OK;
}

enum rc agent_session_init(struct fault *ret_f)
{
	enum rc rc = loop_timer(agent.loop, UINT64_MAX, on_session_timer, NULL, &session.timer, ret_f);

	return rc ? rc : session_start(ret_f);
}

enum rc agent_session_send(char kind, int fd, const char *rest, struct fault *ret_f)
{
	_cleanup_buf_ struct buf b = BUF_INIT(AGENT_SESSION_PACKET_MAX);

	if (session.fd < 0)
		return fault_set(ret_f, RC_AGAIN, 0, "the session process is being started");
	if (buf_put(&b, &kind, 1) || buf_puts(&b, rest))
		return fault_set(ret_f, RC_LIMIT, 0, "too much for the session process");
	return packet_send(session.fd, buf_data(&b), buf_len(&b), &fd, fd >= 0 ? 1 : 0, ret_f);
}

/* As a JSON object. */
void agent_session_environment(void)
{
	struct json_object *env = json_object_new_object();
	struct agent_spec spec = { 0 };
	struct fault f = { 0 };
	char **all = NULL;

	if (!agent_env_make(&spec, &all, NULL))
		for (char **e = all; *e; e++) {
			char *eq = strchr(*e, '=');

			*eq = '\0';
			json_object_object_add(env, *e, json_object_new_string(eq + 1));
		}
	agent_env_free(all);
	if (agent_session_send('e', -1, json_object_to_json_string_ext(env, JSON_C_TO_STRING_PLAIN), &f))
		log_fault(LOG_LEVEL_WARN, &f, "session environment");
	json_object_put(env);
}

void agent_session_identity(void)
{
	struct fault f = { 0 };
	char generation[48];

	agent_session_environment();
	snprintf(generation, sizeof(generation), "{\"generation\":%llu}", (unsigned long long)agent.generation);
	if (agent_session_send('i', -1, generation, &f))
		log_fault(LOG_LEVEL_WARN, &f, "session generation");
}

int agent_session_enter(void)
{
	const gid_t gid = AGENT_GID;

	prctl(PR_SET_NAME, "nestbox-session");
	/* Files are made as the user, signals and ptrace of the user don't reach us: the real and saved uid stay 0. */
	if (geteuid() == 0 &&
	    (setgroups(1, &gid) < 0 || setresgid(0, gid, 0) < 0 || setresuid(0, AGENT_UID, 0) < 0 || chdir("/") < 0)) {
		log_error("session: cannot become the user errno=%d", errno);
		return 1;
	}
	return session_main(AGENT_SESSION_FD);
}
