/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory: children are made with vfork(): the parent waits until the exec, so nothing of a large session is copied and a
 * failed exec is known at once through memory that both share. Between the two only system calls happen in the child,
 * made directly, since the C library's setresuid() would talk to the parent's threads. All signals are blocked
 * meanwhile, so no handler of the parent runs in its memory.
 *
 * The session has real and saved uid 0 and the effective uid of `app`, so that `app` cannot signal it. A child first
 * takes the capabilities back (effective uid 0), then gives all ids away for good.
 */
#include "guest/proc.h"

#include "base/cleanup.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define CANDIDATES_MAX 64

struct child {
	const char *paths[CANDIDATES_MAX + 1];
	char *const *argv, *const *envp;
	const char *cwd;
	int fds[5];
	uid_t uid;
	gid_t gid;
	bool change_ids;
	sigset_t mask;
	struct sigaction dfl;
	/* Written by the child, read by the parent after the child has ended. */
	volatile int error;
	volatile bool bad_cwd;
};

static void child_signals(const struct child *k)
{
	for (int i = 1; i < NSIG; i++)
		sigaction(i, &k->dfl, NULL);
}

static int child_fds(const struct child *k)
{
	int high[5], n = 5;

	/* First above what they become, so that none is overwritten before its turn; that also clears close-on-exec. */
	for (int i = 0; i < n; i++) {
		high[i] = k->fds[i] < 0 ? -1 : fcntl(k->fds[i], F_DUPFD_CLOEXEC, 5);
		if (k->fds[i] >= 0 && high[i] < 0)
			return errno;
	}
	for (int i = 0; i < n; i++)
		if (high[i] >= 0 && dup2(high[i], i) < 0)
			return errno;
	return 0;
}

static void child_oom(void)
{
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

	if (fd >= 0) {
		(void)!write(fd, "0", 1);
		close(fd);
	}
}

/* Needs the capabilities: the files below /proc/self are root's until the exec. */
static int child_ids(const struct child *k)
{
	if (k->change_ids && syscall(SYS_setresuid, -1, 0, -1) < 0)
		return errno;
	child_oom();
	if (k->change_ids && (syscall(SYS_setresgid, k->gid, k->gid, k->gid) < 0 ||
			      syscall(SYS_setresuid, k->uid, k->uid, k->uid) < 0))
		return errno;
	return 0;
}

static __attribute__((noreturn)) void child_run(struct child *k)
{
	int error;

	setsid();
	child_signals(k);
	error = child_fds(k);
	if (!error)
		error = child_ids(k);
	if (!error && chdir(k->cwd) < 0) {
		error = errno;
		k->bad_cwd = true;
	}
	if (!error) {
		syscall(SYS_rt_sigprocmask, SIG_SETMASK, &k->mask, NULL, 8);
		error = ENOENT;
		for (size_t i = 0; k->paths[i]; i++) {
			execve(k->paths[i], k->argv, k->envp);
			if (errno != ENOENT && errno != ENOTDIR) {
				error = errno;
				if (errno != EACCES)
					break;
			}
		}
	}
	k->error = error;
	_exit(127);
}

static const char *env_get(char *const envp[], const char *name)
{
	size_t n = strlen(name);

	for (size_t i = 0; envp[i]; i++)
		if (!strncmp(envp[i], name, n) && envp[i][n] == '=')
			return envp[i] + n + 1;
	return NULL;
}

/* Every place where PATH says that the command may be; the strings are in *mem. */
static bool candidates(struct child *k, const char *command, char **mem)
{
	const char *path = env_get(k->envp, "PATH"), *at;
	size_t n = 0, used = 0, size;

	if (strchr(command, '/') || !*command) {
		k->paths[0] = command;
		return true;
	}
	if (!path || !*path)
		path = "/usr/local/bin:/usr/bin:/bin";
	size = strlen(path) + 2 + CANDIDATES_MAX * (strlen(command) + 3);
	*mem = malloc(size);
	if (!*mem)
		return false;
	for (at = path; n < CANDIDATES_MAX; at++) {
		size_t len = strcspn(at, ":");

		k->paths[n++] = *mem + used;
		used += (size_t)snprintf(*mem + used, size - used, "%.*s%s%s", (int)len, at, len ? "/" : "./", command) + 1;
		at += len;
		if (!*at)
			break;
	}
	return true;
}

/* A function of its own: after vfork() the parent may rely on nothing but what the child cannot have changed. */
static __attribute__((noinline)) pid_t fork_child(struct child *k)
{
	pid_t pid = vfork();

	if (!pid)
		child_run(k);
	return pid < 0 ? -errno : pid;
}

pid_t proc_exec(struct session *s, const char *command, char *const argv[], char *const envp[], const char *cwd,
		const int fds[5], bool *ret_cwd)
{
	_cleanup_free_ char *mem = NULL;
	struct child k = { .argv = argv, .envp = envp, .cwd = cwd, .uid = s->uid, .gid = s->gid,
			   .change_ids = s->change_ids };
	sigset_t all, old;
	pid_t pid;

	memcpy(k.fds, fds, sizeof(k.fds));
	k.dfl.sa_handler = SIG_DFL;
	sigemptyset(&k.mask);
	if (!candidates(&k, command, &mem))
		return -ENOMEM;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	pid = fork_child(&k);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (pid < 0 || !k.error)
		return pid;
	while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
	*ret_cwd = k.bad_cwd;
	return -k.error;
}

/* --- argv and environment from JSON ---------------------------------------------------------------------------- */

static char **make_argv(const struct proc_spec *spec)
{
	size_t n = 1, at = 0, n_args = spec->args ? json_object_array_length(spec->args) : 0;
	union {
		const char **in;
		char **out;
	} argv;

	for (size_t i = 0; spec->argv_head && spec->argv_head[i]; i++)
		n++;
	argv.in = calloc(n + n_args + 1, sizeof(*argv.in));
	if (!argv.in)
		return NULL;
	argv.in[at++] = spec->command;
	for (size_t i = 0; at < n; i++)
		argv.in[at++] = spec->argv_head[i];
	for (size_t i = 0; i < n_args; i++)
		argv.in[at++] = json_object_get_string(json_object_array_get_idx(spec->args, i));
	return argv.out;
}

static void free_env(char ***env)
{
	for (size_t i = 0; *env && (*env)[i]; i++)
		free((*env)[i]);
	free(*env);
}

static bool add_env(char **env, size_t *at, const char *name, const char *value)
{
	size_t n = strlen(name) + strlen(value) + 2;

	env[*at] = malloc(n);
	if (!env[*at])
		return false;
	snprintf(env[(*at)++], n, "%s=%s", name, value);
	return true;
}

static char **make_env(struct session *s, const struct proc_spec *spec)
{
	size_t n = (size_t)json_object_object_length(s->env) + 1, at = 0;
	char **env;

	if (spec->env)
		n += (size_t)json_object_object_length(spec->env);
	env = calloc(n, sizeof(*env));
	if (!env)
		return NULL;
	if (!spec->clear_env) {
		json_object_object_foreach(s->env, name, value) {
			if (spec->env && json_object_object_get_ex(spec->env, name, NULL))
				continue;
			if (!add_env(env, &at, name, json_object_get_string(value)))
				goto fail;
		}
	}
	if (spec->env) {
		json_object_object_foreach(spec->env, name, value) {
			if (!add_env(env, &at, name, json_object_get_string(value)))
				goto fail;
		}
	}
	return env;
fail:
	free_env(&env);
	return NULL;
}

/* --- pipes ----------------------------------------------------------------------------------------------------- */

/* mine and its are the ends of a pipe; or its is /dev/null. */
static int make_end(bool piped, bool reads, int *mine, int *its)
{
	int p[2];

	*mine = -1;
	if (!piped) {
		*its = open("/dev/null", (reads ? O_RDONLY : O_WRONLY) | O_CLOEXEC);
		return *its < 0 ? errno : 0;
	}
	if (pipe2(p, O_CLOEXEC) < 0)
		return errno;
	*its = reads ? p[0] : p[1];
	*mine = reads ? p[1] : p[0];
	fcntl(p[0], F_SETPIPE_SZ, PROC_PIPE_SIZE); /* smaller is fine */
	return fcntl(*mine, F_SETFL, O_NONBLOCK) < 0 ? errno : 0;
}

static struct json_object *spawn_error(const struct proc_spec *spec, const char *home, int sys, bool bad_cwd)
{
	static const struct {
		int sys;
		const char *class_name, *code, *text;
	} known[] = {
		{ ENOENT, "NotFound", "ENOENT", "No such file or directory" },
		{ EACCES, "PermissionDenied", "EACCES", "Permission denied" },
		{ ENOTDIR, "NotADirectory", "ENOTDIR", "Not a directory" },
		{ EISDIR, "IsADirectory", "EISDIR", "Is a directory" },
		{ E2BIG, "Error", "E2BIG", "Argument list too long" },
		{ EAGAIN, "WouldBlock", "EAGAIN", "Resource temporarily unavailable" },
		{ ENOMEM, "Error", "ENOMEM", "Cannot allocate memory" },
	};
	const char *class_name = "Error", *code = NULL, *text = strerror(sys);
	char message[PATH_MAX + 256];

	for (size_t i = 0; i < ARRAY_SIZE(known); i++) {
		if (known[i].sys == sys) {
			class_name = known[i].class_name;
			code = known[i].code;
			text = known[i].text;
		}
	}
	if (bad_cwd)
		snprintf(message, sizeof(message), "Failed to spawn '%.2000s': No such cwd '%.2000s': %s (os error %d)",
			 spec->command, spec->cwd ? spec->cwd : home, text, sys);
	else
		snprintf(message, sizeof(message), "Failed to spawn '%.4000s': %s (os error %d)", spec->command, text, sys);
	return rpc_error_new(class_name, code, message);
}

struct ends {
	int mine[3], its[5];
};

static void ends_close(struct ends *e)
{
	for (int i = 0; i < 3; i++) {
		close_fd(&e->mine[i]);
		close_fd(&e->its[i]);
	}
}

static int start(struct session *s, const struct proc_spec *spec, struct ends *e, bool *bad_cwd)
{
	_cleanup_free_ char **argv = make_argv(spec);
	_cleanup_(free_env) char **env = make_env(s, spec);
	int sys;

	if (!argv || !env)
		return -ENOMEM;
	sys = make_end(spec->pipe_in, true, &e->mine[0], &e->its[0]);
	if (!sys)
		sys = make_end(spec->pipe_out, false, &e->mine[1], &e->its[1]);
	if (!sys)
		sys = make_end(spec->pipe_err, false, &e->mine[2], &e->its[2]);
	if (sys)
		return -sys;
	e->its[3] = spec->pass_fds[0];
	e->its[4] = spec->pass_fds[1];
	return proc_exec(s, spec->command, argv, env, spec->cwd ? spec->cwd : s->home, e->its, bad_cwd);
}

enum rc proc_start(struct session *s, const struct proc_spec *spec, struct proc **ret, struct json_object **ret_error)
{
	_cleanup_(ends_close) struct ends e = { .mine = { -1, -1, -1 }, .its = { -1, -1, -1, -1, -1 } };
	bool bad_cwd = false;
	struct proc *p;
	int pid;

	p = s->n_running < PROC_RUNNING_MAX ? calloc(1, sizeof(*p)) : NULL;
	if (!p) {
		*ret_error = spawn_error(spec, s->home, EAGAIN, false);
		return RC_LIMIT;
	}
	pid = start(s, spec, &e, &bad_cwd);
	if (pid > 0 && loop_child(s->loop, pid, proc_on_child, p, &p->child, NULL)) {
		kill(-pid, SIGKILL);
		waitpid(pid, NULL, 0);
		pid = -EAGAIN;
	}
	if (pid < 0) {
		*ret_error = spawn_error(spec, s->home, -pid, bad_cwd);
		free(p);
		return rc_from_errno(-pid);
	}
	p->session = s;
	p->oom_at_start = proc_oom_count();
	p->pid = pid;
	p->running = true;
	p->stdin_fd = take_fd(&e.mine[0]);
	for (int i = 0; i < 2; i++)
		p->pipe[i] = (struct proc_pipe){ .proc = p, .fd = take_fd(&e.mine[i + 1]) };
	p->next = s->running;
	p->at = &s->running;
	if (p->next)
		p->next->at = &p->next;
	s->running = p;
	s->n_running++;
	*ret = p;
	return RC_OK;
}
