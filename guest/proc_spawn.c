/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory: children are made with vfork(): the parent waits until the exec, so nothing of a large session is copied and a
 * failed exec is known at once through memory that both share. Between the two only system calls happen in the child,
 * made directly, since the C library's setresuid() would talk to the parent's threads. All signals are blocked
 * meanwhile, so no handler of the parent runs in its memory.
 *
 * The session has real and saved uid 0 and the effective uid of `app`, so that `app` cannot signal it. A child first
 * takes the capabilities back (effective uid 0), then gives all ids away for good.
 *
 * What a command's name means is Deno's rule: one with a slash starts at the child's directory, any other is looked for in the PATH
 * of the child's own environment (or of the session's, if it has none), before anything is started; the path that was found is argv[0]. A file that the kernel
 * does not know how to run is a script of /bin/sh.
 */
#include "guest/proc.h"

#include "base/cleanup.h"
#include "guest/fs.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

struct child {
	const char *path;
	char *const *argv, *const *envp;
	char **script; /* argv of a shell that runs the file */
	const char *cwd;
	int fds[5];
	uid_t uid;
	gid_t gid;
	bool change_ids, oom_first;
	sigset_t mask;
	uint64_t signals; /* to be reset */
	struct sigaction dfl;
	/* Written by the child, read by the parent after the child has ended. */
	volatile int error;
	volatile bool bad_cwd;
};

/* Those that this process does not leave at their default; no program of ours changes any after its start. */
static uint64_t signals_changed(void)
{
	static uint64_t changed;
	static bool known;
	struct sigaction old;

	for (int i = 1; i < NSIG && !known; i++)
		if (!sigaction(i, NULL, &old) && old.sa_handler != SIG_DFL)
			changed |= UINT64_C(1) << (i - 1);
	known = true;
	return changed;
}

static void child_signals(const struct child *k)
{
	for (int i = 1; i < NSIG; i++)
		if (k->signals >> (i - 1) & 1)
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

/*
 * Needs the capabilities: the files below /proc/self are root's until the exec. What is written with them is also the least that may be
 * written later, so to be killed first is written without.
 */
static int child_ids(const struct child *k)
{
	int oom;

	if (k->change_ids && syscall(SYS_setresuid, -1, 0, -1) < 0)
		return errno;
	oom = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	(void)!write(oom, "0", 1);
	if (k->change_ids && (syscall(SYS_setresgid, k->gid, k->gid, k->gid) < 0 ||
			      syscall(SYS_setresuid, k->uid, k->uid, k->uid) < 0))
		return errno;
	if (k->oom_first)
		(void)!write(oom, "1000", 4);
	close(oom);
	return 0;
}

bool proc_set_oom_first(const struct proc *p, bool first)
{
	const char *score = first ? "1000" : "0";
	char path[64];
	_cleanup_fd_ int fd = -1;

	snprintf(path, sizeof(path), "/proc/%d/oom_score_adj", (int)p->pid);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	return fd >= 0 && write(fd, score, strlen(score)) == (ssize_t)strlen(score);
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
		execve(k->path, k->argv, k->envp);
		if (errno == ENOEXEC)
			execve(k->script[0], k->script, k->envp);
		error = errno;
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

static bool runnable(const char *path)
{
	struct stat st;

	return !stat(path, &st) && S_ISREG(st.st_mode) && !faccessat(AT_FDCWD, path, X_OK, AT_EACCESS);
}

/* dir/name, from the directory `cwd` if dir is relative. */
static char *join(const char *cwd, const char *dir, size_t n_dir, const char *name)
{
	char *path = NULL;
	bool absolute = n_dir && *dir == '/';

	if (asprintf(&path, "%s%s%.*s%s%s", absolute ? "" : cwd, absolute ? "" : "/", (int)n_dir, dir, n_dir ? "/" : "", name) < 0)
		return NULL;
	return path;
}

/* Takes "." and "name/.." out of an absolute path, in place, without a look at links. */
static void tidy(char *path)
{
	char *to = path;

	for (char *at = path; *at;) {
		size_t n = strcspn(++at, "/"); /* a component; what is before it is a slash */

		if (n == 2 && !strncmp(at, "..", 2)) {
			while (to > path && *--to != '/')
				;
		} else if (n && !(n == 1 && *at == '.')) {
			*to++ = '/';
			memmove(to, at, n);
			to += n;
		}
		at += n;
	}
	if (to == path)
		*to++ = '/';
	*to = 0;
}

/* The file that `command` means. NULL: none; *ret_sys says why if it is not that nothing was found. */
static char *resolve(struct session *s, const char *command, char *const envp[], const char *cwd, int *ret_sys)
{
	const char *path = env_get(envp, "PATH");
	struct json_object *own;
	char *found;

	if (!path && json_object_object_get_ex(s->env, "PATH", &own))
		path = json_object_get_string(own);

	*ret_sys = 0;
	if (strchr(command, '/')) {
		found = *command == '/' ? strdup(command) : join(cwd, "", 0, command);
		if (found)
			tidy(found);
		else
			*ret_sys = ENOMEM;
		return found;
	}
	for (const char *at = path; at && *command; at++) {
		size_t n = strcspn(at, ":");

		found = join(cwd, at, n, command);
		if (!found) {
			*ret_sys = ENOMEM;
			return NULL;
		}
		if (runnable(found))
			return found;
		free(found);
		at += n;
		if (!*at)
			break;
	}
	return NULL;
}

/* A function of its own: after vfork() the parent may rely on nothing but what the child cannot have changed. */
static __attribute__((noinline)) pid_t fork_child(struct child *k)
{
	pid_t pid = vfork();

	if (!pid)
		child_run(k);
	return pid < 0 ? -errno : pid;
}

/* argv[0] is the file. */
static pid_t run(struct session *s, const struct proc_spec *spec, char *argv[], size_t n_argv, char *const envp[], const char *cwd,
		 const int fds[5], bool *ret_cwd)
{
	_cleanup_free_ char **script = calloc(n_argv + 2, sizeof(*script));
	static char shell[] = "/bin/sh";
	struct child k = { .path = argv[0], .argv = argv, .envp = envp, .cwd = cwd, .script = script, .uid = s->uid, .gid = s->gid,
			   .change_ids = s->change_ids, .oom_first = spec->oom_first };
	sigset_t all, old;
	pid_t pid;

	if (!script)
		return -ENOMEM;
	script[0] = shell;
	memcpy(script + 1, argv, n_argv * sizeof(*argv));
	memcpy(k.fds, fds, sizeof(k.fds));
	k.dfl.sa_handler = SIG_DFL;
	k.signals = signals_changed();
	sigemptyset(&k.mask);
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

static char **make_argv(const struct proc_spec *spec, const char *file, size_t *ret_n)
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
	argv.in[at++] = file;
	for (size_t i = 0; at < n; i++)
		argv.in[at++] = spec->argv_head[i];
	for (size_t i = 0; i < n_args; i++)
		argv.in[at++] = json_object_get_string(json_object_array_get_idx(spec->args, i));
	*ret_n = at;
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

/* How far a start came that failed. */
struct failure {
	char *cwd;   /* owned, absolute */
	char *file;  /* owned; NULL: nothing was found */
	bool bad_cwd;
	int sys;
};

static void failure_done(struct failure *f)
{
	free(f->file);
	free(f->cwd);
}

static struct json_object *spawn_error(const struct proc_spec *spec, const char *home, const struct failure *f)
{
	const char *file = f->file ? f->file : spec->command;
	char message[PATH_MAX + 256];
	struct fs_error e;

	fs_error_errno(&e, f->sys);
	if (f->bad_cwd && (f->sys == ENOENT || f->sys == ENOTDIR)) {
		struct stat st;

		/* Which of the two is Deno's test, too: whether something is there. */
		snprintf(message, sizeof(message), "Failed to spawn '%.2000s': %s '%.2000s'", file,
			 stat(f->cwd, &st) ? "No such cwd" : "cwd is not a directory", spec->cwd ? spec->cwd : home);
		return rpc_error_new("NotFound", "ENOENT", message);
	}
	if (!f->file && f->sys == ENOENT)
		snprintf(message, sizeof(message), "Failed to spawn '%.4000s': entity not found", file);
	else
		snprintf(message, sizeof(message), "Failed to spawn '%.4000s': %s (os error %d)", file, strerror(f->sys), f->sys);
	return rpc_error_new(e.constructor_name, *e.code ? e.code : NULL, message);
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

static int start(struct session *s, const struct proc_spec *spec, struct ends *e, struct failure *f)
{
	const char *cwd = spec->cwd ? spec->cwd : s->home;
	_cleanup_(free_env) char **env = make_env(s, spec);
	_cleanup_free_ char **argv = NULL;
	size_t n = 0;
	int sys;

	f->cwd = *cwd == '/' ? strdup(cwd) : join(s->home, "", 0, cwd);
	if (!env || !f->cwd)
		return -ENOMEM;
	f->file = resolve(s, spec->command, env, f->cwd, &sys);
	if (!f->file)
		return sys ? -sys : -ENOENT;
	argv = make_argv(spec, f->file, &n);
	if (!argv)
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
	return run(s, spec, argv, n, env, f->cwd, e->its, &f->bad_cwd);
}

char *proc_file(struct session *s, const struct proc_spec *spec)
{
	_cleanup_(free_env) char **env = make_env(s, spec);
	const char *given = spec->cwd ? spec->cwd : s->home;
	_cleanup_free_ char *cwd = *given == '/' ? strdup(given) : join(s->home, "", 0, given);
	int sys;

	return env && cwd ? resolve(s, spec->command, env, cwd, &sys) : NULL;
}

enum rc proc_start(struct session *s, const struct proc_spec *spec, struct proc **ret, struct json_object **ret_error)
{
	_cleanup_(ends_close) struct ends e = { .mine = { -1, -1, -1 }, .its = { -1, -1, -1, -1, -1 } };
	_cleanup_(failure_done) struct failure f = { 0 };
	struct proc *p;
	int pid;

	p = s->n_running < PROC_RUNNING_MAX ? calloc(1, sizeof(*p)) : NULL;
	pid = p ? start(s, spec, &e, &f) : -EAGAIN;
	if (pid > 0 && loop_child(s->loop, pid, proc_on_child, p, &p->child, NULL)) {
		kill(-pid, SIGKILL);
		waitpid(pid, NULL, 0);
		pid = -EAGAIN;
	}
	if (pid < 0) {
		f.sys = -pid;
		*ret_error = spawn_error(spec, s->home, &f);
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
