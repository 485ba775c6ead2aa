/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Processes. Theory: PID 1 inherits every orphan of the guest, so children are reaped by one waitpid(-1) loop that looks the
 * pid up among ours; a pid is registered before the loop can run again, so no exit is missed and no reused pid is mistaken.
 * A started program is its own session (with a terminal) or process group, in the users' cgroup, without the agent's
 * protection from the memory killer.
 */
#include "guest/agent.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "guest/agent_limits.h"
#include "guest/proc.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

struct child {
	struct child *next;
	pid_t pid;
	agent_exit_fn *exited;
	void *arg;
};

static struct child *children;

static void on_sigchld(void *arg, int sig)
{
	int status;
	pid_t pid;

	(void)arg;
	(void)sig;
	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		struct child **at = &children;

		while (*at && (*at)->pid != pid)
			at = &(*at)->next;
		if (*at) {
			struct child *c = *at;

			*at = c->next;
			if (c->exited)
				c->exited(c->arg, status);
			free(c);
		}
	}
}

enum rc agent_child_init(struct fault *ret_f)
{
	static struct source *source;

	return loop_signal(agent.loop, SIGCHLD, on_sigchld, NULL, &source, ret_f);
}

void agent_child_forget(struct child *c)
{
	if (c)
		c->exited = NULL;
}

pid_t agent_child_pid(const struct child *c)
{
	return c->pid;
}

void agent_child_kill(struct child *c, int sig)
{
	/* Registered means not reaped, so the pid cannot be another's. */
	if (c && kill(-c->pid, sig) < 0 && errno == ESRCH)
		kill(c->pid, sig);
}

static void signals_default(void)
{
	sigset_t none;

	for (int s = 1; s < NSIG; s++)
		signal(s, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

static void put_self(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd >= 0) {
		if (write(fd, text, strlen(text)) < 0)
			errno = 0; /* a refused adjustment is no reason not to run */
		close(fd);
	}
}

void agent_become(bool root)
{
	const gid_t gid = AGENT_GID;

	/* What the host starts as root stays outside the users' limits: it is the way in while a fork bomb fills them. */
	if (!root && agent.cgroup_fd >= 0 && write(agent.cgroup_fd, "0", 1) < 0)
		log_warn("cannot join the users' cgroup");
	if (agent.guest) {
		put_self("/proc/self/oom_score_adj", "0");
		setrlimit(RLIMIT_CORE, &(struct rlimit){ 0, RLIM_INFINITY });
	}
	umask(022);
	if (root || geteuid() != 0)
		return;
	if (setgroups(1, &gid) < 0 || setresgid(gid, gid, gid) < 0 || setresuid(AGENT_UID, AGENT_UID, AGENT_UID) < 0)
		_exit(126);
}

static _Noreturn void spawn_child(const struct spawn *s, char **env, int error_fd)
{
	int sys, fds[3] = { s->in, s->out, s->err };

	signals_default();
	if (s->tty)
		setsid();
	else
		setpgid(0, 0);
	/* The three may be 0, 1 or 2 themselves: move them out of the way first. */
	for (int i = 0; i < 3; i++)
		fds[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, 10);
	error_fd = fcntl(error_fd, F_DUPFD_CLOEXEC, 10);
	for (int i = 0; i < 3; i++)
		if (fds[i] < 0 || dup2(fds[i], i) < 0)
			goto failed;
	if (s->tty && ioctl(0, TIOCSCTTY, 0) < 0)
		goto failed;
	agent_become(s->spec->root);
	if (chdir(s->spec->cwd) < 0)
		goto failed;
	environ = env;
	execvpe(s->spec->argv[0], s->spec->argv, env);
failed:
	sys = errno;
	if (write(error_fd, &sys, sizeof(sys)) < 0)
		_exit(126);
	_exit(127);
}

static void child_register(pid_t pid, agent_exit_fn *exited, void *arg, struct child *c)
{
	c->pid = pid;
	c->exited = exited;
	c->arg = arg;
	c->next = children;
	children = c;
}

enum rc agent_spawn(const struct spawn *s, agent_exit_fn *exited, void *arg, struct child **ret, int *ret_error_fd,
		    struct fault *ret_f)
{
	_cleanup_fd_ int error_in = -1, error_out = -1;
	_cleanup_free_ struct child *c = calloc(1, sizeof(*c));
	char **env = NULL;
	int fds[2];
	enum rc rc;
	pid_t pid;

	if (!c)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	rc = agent_env_make(s->spec, &env, ret_f);
	if (rc)
		return rc;
	if (pipe2(fds, O_CLOEXEC) < 0) {
		agent_env_free(env);
		return fault_set(ret_f, RC_SYS, errno, "pipe");
	}
	error_in = fds[0];
	error_out = fds[1];
	pid = fork();
	if (pid == 0)
		spawn_child(s, env, error_out);
	agent_env_free(env);
	if (pid < 0)
		return fault_set(ret_f, RC_SYS, errno, "fork");
	if (!s->tty)
		setpgid(pid, pid); /* so that a signal sent at once finds the group */
	child_register(pid, exited, arg, c);
	*ret = take_ptr(c);
	*ret_error_fd = take_fd(&error_in);
	return RC_OK;
}

enum rc agent_spawn_result(int error_fd, const char *program, struct fault *ret_f)
{
	int sys = 0;
	ssize_t n = read(error_fd, &sys, sizeof(sys));

	if (n == 0)
		return RC_OK;
	if (n != (ssize_t)sizeof(sys))
		return fault_set(ret_f, RC_SYS, EIO, "start of a program: no word from it");
	return fault_set(ret_f, rc_from_errno(sys), sys, "cannot start '%.64s': %s", program, strerrordesc_np(sys));
}

/* A connection closed by the agent must not live on because some child has it too. */
static void close_all_but(const int keep[3])
{
	int low = 3;

	for (;;) {
		int next = INT_MAX;

		for (int i = 0; i < 3; i++)
			if (keep[i] >= low && keep[i] < next)
				next = keep[i];
		if (next > low)
			close_range((unsigned int)low, (unsigned int)next - 1, 0);
		if (next == INT_MAX)
			return;
		low = next + 1;
	}
}

static void child_descriptors(int fd, const int std[3])
{
	const int keep[3] = { fd, agent.upper_fd, agent.cgroup_fd };

	for (int i = 0; std && i < 3; i++)
		if (std[i] >= 0)
			dup2(std[i], i);
	close_all_but(keep);
}

enum rc agent_fork(int (*fn)(int fd, void *arg), int fd, const int std[3], void *arg, agent_exit_fn *exited,
		   void *exit_arg, struct child **ret, struct fault *ret_f)
{
	struct child *c = calloc(1, sizeof(*c));
	pid_t pid;

	if (!c)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	pid = fork();
	if (pid == 0) {
		signals_default();
		setpgid(0, 0);
		child_descriptors(fd, std);
		_exit(fn(fd, arg));
	}
	if (pid < 0) {
		free(c);
		return fault_set(ret_f, RC_SYS, errno, "fork");
	}
	setpgid(pid, pid);
	child_register(pid, exited, exit_arg, c);
	if (ret)
		*ret = c;
	return RC_OK;
}

/* How many processes the kernel has killed for memory: users', as the agent and the session are never chosen; also those of groups that
 * users made themselves. */
uint64_t agent_oom_kills(void)
{
	return proc_oom_count();
}
