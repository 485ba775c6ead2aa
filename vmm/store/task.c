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
#define TASK_FDS 3

const char *task_disk_program = NB_LIBEXECDIR "/nestbox-disk";

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
	else if (WIFEXITED(status) && WEXITSTATUS(status) == DISK_EXIT_DAMAGED)
		rc = fault_set(&f, RC_STATE, 0, "what is on the disk does not match its checksum");
	else if (WIFEXITED(status) && WEXITSTATUS(status) == DISK_EXIT_FULL)
		rc = fault_set(&f, RC_NOSPACE, 0, "no disk space left on this host");
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

static enum rc task_spawn(const char *const argv[], const int fds[TASK_FDS], pid_t *ret_pid, struct fault *ret_f)
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
	for (int i = 0; i < TASK_FDS; i++)
		if (fds[i] >= 0)
			posix_spawn_file_actions_adddup2(&actions, fds[i], TASK_FD + i);
	err = posix_spawn(ret_pid, argv[0], &actions, &attr, (char *const *)(uintptr_t)argv, env);
	posix_spawn_file_actions_destroy(&actions);
	posix_spawnattr_destroy(&attr);
	return err ? fault_set(ret_f, RC_SYS, err, "start %s", argv[0]) : RC_OK;
}

/* fds: -1 for what the program does not need. */
static enum rc task_run(struct loop *loop, const char *const argv[], const int fds[TASK_FDS], uint64_t timeout_ms,
			task_done_fn *done, void *arg, struct task **ret, struct fault *ret_f)
{
	struct task *t = calloc(1, sizeof(*t));
	int own[TASK_FDS] = { -1, -1, -1 };
	enum rc rc = RC_OK;

	if (!t)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	*t = (struct task){ .name = argv[0], .done = done, .arg = arg, .timeout_ms = timeout_ms };
	/* Away from the child's numbers: a duplicate onto itself would keep close-on-exec. */
	for (int i = 0; !rc && i < TASK_FDS; i++)
		if (fds[i] >= 0 && (own[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, TASK_FD + TASK_FDS)) < 0)
			rc = fault_set(ret_f, RC_SYS, errno, "duplicate descriptor");
	if (!rc)
		rc = loop_timer(loop, now_ms() + timeout_ms, task_late, t, &t->timer, ret_f);
	if (!rc)
		rc = task_spawn(argv, own, &t->pid, ret_f);
	if (!rc) {
		rc = loop_child(loop, t->pid, task_exited, t, &t->child, ret_f);
		if (rc) {
			kill(t->pid, SIGKILL);
			waitpid(t->pid, NULL, 0);
		}
	}
	for (int i = 0; i < TASK_FDS; i++)
		close_fd(&own[i]);
	if (rc) {
		source_drop(&t->timer);
		free(t);
		return rc;
	}
	*ret = t;
	return RC_OK;
}

static enum rc task_start(struct loop *loop, const char *const argv[], int fd, int to_fd, uint64_t timeout_ms,
			  task_done_fn *done, void *arg, struct task **ret, struct fault *ret_f)
{
	return task_run(loop, argv, (int[TASK_FDS]){ fd, to_fd, -1 }, timeout_ms, done, arg, ret, ret_f);
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

enum rc task_disk(struct loop *loop, const char *verb, int from, int to, int sum_fd, task_done_fn *done, void *arg,
		  struct task **ret, struct fault *ret_f)
{
	const char *const argv[] = { task_disk_program, verb, NULL };

	return task_run(loop, argv, (int[TASK_FDS]){ from, to, sum_fd }, TASK_COPY_MS, done, arg, ret, ret_f);
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
