/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/store/task.h"

#include "base/cleanup.h"
#include "base/fd.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

#define TASK_FD 3 /* where the child finds its file, and a second one behind it */
#define TASK_PATH "/proc/self/fd/3"
#define TASK_PATH_TO "/proc/self/fd/4"

struct task {
	const char *name;
	pid_t pid;
	struct source *child, *timer;
	task_done_fn *done;
	void *arg;
	bool timed_out;
	uint64_t timeout_ms;
};

static void task_exited(void *arg, int status)
{
	struct task *t = arg;
	struct fault f;
	enum rc rc = RC_OK;

	source_drop(&t->child);
	source_drop(&t->timer);
	if (t->timed_out)
		rc = fault_set(&f, RC_TIMEOUT, 0, "%s took longer than %u ms", t->name, (unsigned int)t->timeout_ms);
	else if (!WIFEXITED(status) || WEXITSTATUS(status))
		rc = fault_set(&f, RC_SYS, 0, "%s failed (wait status 0x%x)", t->name, (unsigned int)status);
	if (t->done)
		t->done(t->arg, rc, rc ? &f : NULL);
	free(t);
}

static void task_late(void *arg)
{
	struct task *t = arg;

	t->timed_out = true;
	kill(t->pid, SIGKILL);
}

static enum rc task_spawn(const char *const argv[], int fd, int to_fd, pid_t *ret_pid, struct fault *ret_f)
{
	static char *const env[] = { NULL };
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attr;
	sigset_t none;
	int err;

	sigemptyset(&none);
	posix_spawn_file_actions_init(&actions);
	posix_spawnattr_init(&attr);
	posix_spawnattr_setsigmask(&attr, &none);
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK);
	posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
	posix_spawn_file_actions_adddup2(&actions, fd, TASK_FD);
	if (to_fd >= 0)
		posix_spawn_file_actions_adddup2(&actions, to_fd, TASK_FD + 1);
	err = posix_spawn(ret_pid, argv[0], &actions, &attr, (char *const *)(uintptr_t)argv, env);
	posix_spawn_file_actions_destroy(&actions);
	posix_spawnattr_destroy(&attr);
	return err ? fault_set(ret_f, RC_SYS, err, "start %s", argv[0]) : RC_OK;
}

/* to_fd: -1 if the program has one file only. */
static enum rc task_start(struct loop *loop, const char *const argv[], int fd, int to_fd, uint64_t timeout_ms,
			  task_done_fn *done, void *arg, struct task **ret, struct fault *ret_f)
{
	struct task *t = calloc(1, sizeof(*t));
	_cleanup_fd_ int file = -1, to = -1;
	enum rc rc;

	if (!t)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	*t = (struct task){ .name = argv[0], .done = done, .arg = arg, .timeout_ms = timeout_ms };
	/* Away from the child's numbers: a duplicate onto itself would keep close-on-exec. */
	file = fcntl(fd, F_DUPFD_CLOEXEC, TASK_FD + 2);
	to = to_fd < 0 ? -1 : fcntl(to_fd, F_DUPFD_CLOEXEC, TASK_FD + 2);
	rc = file < 0 || (to_fd >= 0 && to < 0) ? fault_set(ret_f, RC_SYS, errno, "duplicate descriptor") : RC_OK;
	if (!rc)
		rc = loop_timer(loop, now_ms() + timeout_ms, task_late, t, &t->timer, ret_f);
	if (!rc)
		rc = task_spawn(argv, file, to, &t->pid, ret_f);
	if (!rc) {
		rc = loop_child(loop, t->pid, task_exited, t, &t->child, ret_f);
		if (rc) {
			kill(t->pid, SIGKILL);
			waitpid(t->pid, NULL, 0);
		}
	}
	if (rc) {
		source_drop(&t->timer);
		free(t);
		return rc;
	}
	*ret = t;
	return RC_OK;
}

/*
 * An overlay disk is copied for every sandbox, so what mkfs writes is paid each time: a bounded journal, no reserved
 * blocks, and inode tables that are neither written now nor later by the guest's kernel (assume_storage_prezeroed
 * marks them as zeroed, which a file of holes is). A 10 GiB disk then has 0.3 MiB of data and takes 10 ms.
 */
enum rc task_mkfs(struct loop *loop, int fd, task_done_fn *done, void *arg, struct task **ret, struct fault *ret_f)
{
	static const char *const argv[] = {
		"/sbin/mkfs.ext4", "-F", "-q", "-m", "0", "-J", "size=32", "-O", "^resize_inode", "-E",
		"lazy_itable_init=0,lazy_journal_init=1,assume_storage_prezeroed=1,nodiscard", TASK_PATH, NULL
	};

	return task_start(loop, argv, fd, -1, TASK_TIMEOUT_MS, done, arg, ret, ret_f);
}

enum rc task_flush(struct loop *loop, int fd, task_done_fn *done, void *arg, struct task **ret, struct fault *ret_f)
{
	static const char *const argv[] = { "/bin/sync", "-f", TASK_PATH, NULL };

	return task_start(loop, argv, fd, -1, TASK_TIMEOUT_MS, done, arg, ret, ret_f);
}

enum rc task_mkfs_volume(struct loop *loop, int fd, task_done_fn *done, void *arg, struct task **ret, struct fault *ret_f)
{
	static const char *const argv[] = {
		"/sbin/mkfs.ext4", "-F", "-q", "-m", "0", "-E",
		"lazy_itable_init=0,lazy_journal_init=1,assume_storage_prezeroed=1,nodiscard", TASK_PATH, NULL
	};

	return task_start(loop, argv, fd, -1, TASK_TIMEOUT_MS, done, arg, ret, ret_f);
}

enum rc task_fsync(struct loop *loop, int fd, task_done_fn *done, void *arg, struct task **ret, struct fault *ret_f)
{
	static const char *const argv[] = { "/bin/sync", TASK_PATH, NULL };

	return task_start(loop, argv, fd, -1, TASK_COPY_MS, done, arg, ret, ret_f);
}

/* Shares extents where the file system can, else copies what is data and leaves holes. */
enum rc task_copy(struct loop *loop, int from, int to, task_done_fn *done, void *arg, struct task **ret,
		  struct fault *ret_f)
{
	static const char *const argv[] = { "/bin/cp", "--reflink=auto", "--sparse=auto", TASK_PATH, TASK_PATH_TO, NULL };

	return task_start(loop, argv, from, to, TASK_COPY_MS, done, arg, ret, ret_f);
}

void task_cancel(struct task *t)
{
	if (!t)
		return;
	t->done = NULL;
	kill(t->pid, SIGKILL);
}
