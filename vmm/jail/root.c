/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory: a child unshares its mount namespace, assembles the root on a tmpfs, makes it the root with
 * pivot_root, detaches everything else and makes it read-only. The parent takes the namespace's descriptor while the child still
 * lives; after that the namespace exists through the descriptor alone. Sources are opened before anything is mounted.
 */
#include "vmm/jail/root.h"

#include "base/cleanup.h"
#include "base/fd.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* What the child says through the pipe; a byte of 0 means built. */
static int root_fail(int pipe_fd, const char *what, const char *name)
{
	char text[JAIL_ERROR_MAX];
	int n = snprintf(text, sizeof(text), "%s '%s': %s", what, name, strerror(errno));

	if (n > 0 && write(pipe_fd, text, MIN_OF((size_t)n, sizeof(text) - 1)) < 0)
		return -1;
	return -1;
}

/* Makes what `target` names below the current directory: all directories, and the last part as file or directory. */
static int point_make(const char *target, bool is_dir)
{
	_cleanup_fd_ int fd = -1;
	char path[PATH_MAX];
	size_t n = strlen(target);

	if (n < 2 || n >= sizeof(path) || target[0] != '/') {
		errno = EINVAL;
		return -1;
	}
	memcpy(path, target, n + 1);
	for (char *at = path + 1; *at; at++) {
		if (*at != '/')
			continue;
		*at = '\0';
		if (mkdir(path + 1, 0755) < 0 && errno != EEXIST)
			return -1;
		*at = '/';
	}
	if (is_dir)
		return mkdir(path + 1, 0755) < 0 && errno != EEXIST ? -1 : 0;
	fd = open(path + 1, O_CREAT | O_WRONLY | O_CLOEXEC | O_NOFOLLOW, 0444);
	return fd < 0 ? -1 : 0;
}

static int mount_attach(int tree, const char *target)
{
	struct stat st;

	if (fstat(tree, &st) < 0)
		return -1;
	/* A node of our own and not the host's, so that its owner and mode there don't matter. */
	if (S_ISCHR(st.st_mode)) {
		if (point_make(target, false) < 0 || unlink(target + 1) < 0 ||
		    mknod(target + 1, S_IFCHR | 0666, st.st_rdev) < 0)
			return -1;
		return chmod(target + 1, 0666);
	}
	if (!S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode)) {
		errno = EINVAL;
		return -1;
	}
	if (point_make(target, S_ISDIR(st.st_mode)) < 0)
		return -1;
	return move_mount(tree, "", AT_FDCWD, target + 1, MOVE_MOUNT_F_EMPTY_PATH);
}

static int mount_open(const char *source)
{
	struct mount_attr attr = { .attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV,
				   .propagation = MS_PRIVATE };
	int fd = open_tree(AT_FDCWD, source, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);

	if (fd >= 0 && mount_setattr(fd, "", AT_EMPTY_PATH, &attr, sizeof(attr)) < 0)
		close_fd(&fd);
	return fd;
}

/* "/usr" is only the place where the new root hangs until pivot_root; it exists on every host. */
#define ROOT_POINT "/usr"

static int root_build(const struct jail_mount *mounts, size_t n, bool proc, int pipe_fd)
{
	int trees[JAIL_MOUNTS_MAX];

	if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		return root_fail(pipe_fd, "unshare", "mount namespace");
	for (size_t i = 0; i < n; i++) {
		trees[i] = mount_open(mounts[i].source);
		if (trees[i] < 0)
			return root_fail(pipe_fd, "open", mounts[i].source);
	}
	umask(0022);
	if (mount("nestbox", ROOT_POINT, "tmpfs", MS_NOSUID | MS_NOEXEC, "size=64k,nr_inodes=512,mode=0755") < 0 ||
	    chdir(ROOT_POINT) < 0)
		return root_fail(pipe_fd, "mount", "root");
	for (size_t i = 0; i < n; i++)
		if (mount_attach(trees[i], mounts[i].target) < 0)
			return root_fail(pipe_fd, "attach", mounts[i].target);
	if (proc && mkdir("proc", 0555) < 0)
		return root_fail(pipe_fd, "mkdir", "proc");
	/* Both arguments ".": the old root ends up on top of the new one and is detached from there. */
	if (syscall(SYS_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
		return root_fail(pipe_fd, "pivot_root", "/");
	if (mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NOEXEC, NULL) < 0)
		return root_fail(pipe_fd, "remount read-only", "/");
	return 0;
}

_Noreturn static void root_child(const struct jail_mount *mounts, size_t n, bool proc, int pipe_fd)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (root_build(mounts, n, proc, pipe_fd) < 0 || write(pipe_fd, "", 1) != 1)
		_exit(1);
	for (;;)
		pause(); /* until the parent has taken the namespace and kills us */
}

static enum rc root_take(pid_t pid, int pipe_fd, int *ret_fd, struct fault *ret_f)
{
	char text[JAIL_ERROR_MAX], path[64];
	ssize_t n;

	if (fd_wait(pipe_fd, POLLIN, now_ms() + JAIL_ROOT_MS, ret_f))
		return fault_wrap(ret_f, "build a jail root");
	n = read(pipe_fd, text, sizeof(text) - 1);
	if (n <= 0)
		return fault_set(ret_f, RC_SYS, 0, "build a jail root: its process died");
	text[n] = '\0';
	if (text[0])
		return fault_set(ret_f, RC_SYS, 0, "build a jail root: %s", text);
	snprintf(path, sizeof(path), "/proc/%d/ns/mnt", (int)pid);
	*ret_fd = open(path, O_RDONLY | O_CLOEXEC);
	return *ret_fd < 0 ? fault_set(ret_f, RC_SYS, errno, "open '%s'", path) : RC_OK;
}

enum rc jail_root_new(const struct jail_mount *mounts, size_t n, bool proc, struct jail_root **ret,
		      struct fault *ret_f)
{
	struct jail_root *root;
	int pipe_fds[2];
	pid_t pid;
	enum rc rc;

	if (n > JAIL_MOUNTS_MAX)
		return fault_set(ret_f, RC_LIMIT, 0, "more than %d mounts in a jail root", JAIL_MOUNTS_MAX);
	root = calloc(1, sizeof(*root));
	if (!root)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	root->ns_fd = -1;
	root->proc = proc;
	if (pipe2(pipe_fds, O_CLOEXEC) < 0) {
		free(root);
		return fault_set(ret_f, RC_SYS, errno, "pipe");
	}
	pid = fork();
	if (!pid)
		root_child(mounts, n, proc, pipe_fds[1]);
	close(pipe_fds[1]);
	rc = pid < 0 ? fault_set(ret_f, RC_SYS, errno, "fork") : root_take(pid, pipe_fds[0], &root->ns_fd, ret_f);
	close(pipe_fds[0]);
	if (pid > 0) {
		kill(pid, SIGKILL);
		while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
			;
	}
	if (rc) {
		jail_root_free(root);
		return rc;
	}
	*ret = root;
	return RC_OK;
}

void jail_root_free(struct jail_root *root)
{
	if (!root)
		return;
	close_fd(&root->ns_fd);
	free(root);
}
