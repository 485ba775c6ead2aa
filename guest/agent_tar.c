/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Trees as tar streams, by the guest's own tar. Theory: tar works on the connection itself, blocking, in a process of its own, so
 * the host's speed is tar's speed and the agent copies nothing. tar-in runs as the user, refuses names that leave the
 * directory and delays links that would. A tar-out that fails in the middle resets
 * the connection, so that the host cannot take half a tree for a whole one.
 */
#include "guest/agent.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "guest/agent_limits.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

struct tar {
	struct attached attached;
	bool in, root;
	int fd;
	struct source *error_source;
	int error_fd; /* tar's */
	char error[AGENT_TAR_ERROR_MAX];
	size_t n_error;
	struct child *child;
	int status;
	const char *path;          /* during start only */
	char **exclude;
	int their_error;
};

static void tar_free(struct tar *t)
{
	agent_detach(&t->attached);
	agent_child_forget(t->child);
	source_drop(&t->error_source);
	close_fd(&t->error_fd);
	if (t->fd >= 0) {
		close(t->fd);
		agent_connection_done();
	}
	free(t);
}

static void tar_inherited(struct attached *a)
{
	struct tar *t = (struct tar *)a;

	if (t->child)
		agent_child_kill(t->child, SIGKILL);
	tar_free(t);
}

/* --- in the child ----------------------------------------------------------------------------------------------- */
static void blocking(int fd)
{
	int flags = fcntl(fd, F_GETFL);

	fcntl(fd, F_SETFL, flags & ~O_NONBLOCK);
}

static int make_path(const char *path)
{
	char copy[PATH_MAX];

	snprintf(copy, sizeof(copy), "%s", path);
	for (char *p = strchr(copy + 1, '/'); p; p = strchr(p + 1, '/')) {
		*p = '\0';
		if (mkdir(copy, 0755) < 0 && errno != EEXIST)
			return -1;
		*p = '/';
	}
	return mkdir(copy, 0755) < 0 && errno != EEXIST ? -1 : 0;
}

static int tar_child(int fd, void *arg)
{
	struct tar *t = arg;
	const char *argv[2 * AGENT_EXCLUDE_MAX + 16];
	size_t n = 0;

	blocking(fd);
	agent_become(t->root);
	if (t->in && make_path(t->path) < 0) {
		fprintf(stderr, "cannot make the directory: %s\n", strerrordesc_np(errno));
		return 2;
	}
	argv[n++] = "tar";
	argv[n++] = t->in ? "--extract" : "--create";
	argv[n++] = "--file=-";
	argv[n++] = "--directory";
	argv[n++] = t->path;
	argv[n++] = "--blocking-factor=128";
	if (t->in) {
		argv[n++] = "--no-same-owner";
	} else {
		argv[n++] = "--format=posix";
		argv[n++] = "--hard-dereference"; /* as files of their own: packages' installers make hard links, bundles hold none */
		argv[n++] = "--pax-option=delete=atime,delete=ctime";
		argv[n++] = "--warning=no-file-ignored";
		for (char **e = t->exclude; e && *e; e++) {
			argv[n++] = "--exclude";
			argv[n++] = *e;
		}
		argv[n++] = ".";
	}
	argv[n] = NULL;
	setenv("PATH", AGENT_PATH, 1);
	setenv("LC_ALL", "C.UTF-8", 1);
	execvp("tar", (char *const *)(uintptr_t)argv);
	fprintf(stderr, "cannot start tar: %s\n", strerrordesc_np(errno));
	return 2;
}

/* --- the end ---------------------------------------------------------------------------------------------------- */
static void tar_in_answer(struct tar *t)
{
	struct fault f = { 0 };

	fd_nonblock(t->fd, NULL);
	if (WIFEXITED(t->status) && WEXITSTATUS(t->status) == 0) {
		agent_answer(t->fd, "{\"ok\": true}\n");
	} else {
		for (size_t i = 0; i < t->n_error; i++)
			if ((unsigned char)t->error[i] < 32 || (unsigned char)t->error[i] > 126)
				t->error[i] = t->error[i] == '\n' ? ' ' : '?';
		fault_set(&f, RC_INVALID, 0, "tar: %.140s", t->error);
		agent_answer_fault(t->fd, &f);
	}
	agent_connection_end(take_fd(&t->fd));
	tar_free(t);
}

static void tar_out_end(struct tar *t)
{
	const struct linger reset = { .l_onoff = 1 };

	/* 1: a file changed while it was read; that is the guest's business. */
	if (!WIFEXITED(t->status) || WEXITSTATUS(t->status) > 1)
		setsockopt(t->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
	tar_free(t);
}

static void tar_check(struct tar *t)
{
	if (t->child || t->error_fd >= 0)
		return;
	if (t->in)
		tar_in_answer(t);
	else
		tar_out_end(t);
}

static void on_exited(void *arg, int status)
{
	struct tar *t = arg;

	t->child = NULL;
	t->status = status;
	tar_check(t);
}

static void on_error(void *arg, uint32_t events)
{
	struct tar *t = arg;
	char mem[1024];
	ssize_t n = read(t->error_fd, mem, sizeof(mem));

	(void)events;
	if (n > 0) {
		size_t take = MIN_OF((size_t)n, sizeof(t->error) - 1 - t->n_error);

		memcpy(t->error + t->n_error, mem, take);
		t->n_error += take;
		return;
	}
	if (n < 0 && errno == EAGAIN)
		return;
	source_drop(&t->error_source);
	close_fd(&t->error_fd);
	tar_check(t);
}

/* --- start ------------------------------------------------------------------------------------------------------ */
static enum rc tar_pipe(int *ours, int *theirs, struct fault *ret_f)
{
	int fds[2];

	if (pipe2(fds, O_CLOEXEC) < 0)
		return fault_set(ret_f, RC_SYS, errno, "pipe");
	*ours = fds[0];
	*theirs = fds[1];
	return fd_nonblock(fds[0], ret_f);
}

static enum rc tar_parse(struct tar *t, const struct agent_request *req, struct fault *ret_f)
{
	const char *user;
	struct stat st;

	if (agent_get_str(req->root, "path", PATH_MAX - 1, NULL, &t->path, ret_f) ||
	    agent_get_str(req->root, "user", 16, t->in ? "app" : "root", &user, ret_f))
		return RC_INVALID;
	if (t->path[0] != '/')
		return fault_set(ret_f, RC_INVALID, 0, "'path' is not absolute");
	t->root = !strcmp(user, "root");
	if (!t->root && strcmp(user, "app"))
		return fault_set(ret_f, RC_INVALID, 0, "'user' is neither \"app\" nor \"root\"");
	if (!t->in && stat(t->path, &st) < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "cannot open the directory: %s", strerrordesc_np(errno));
	if (!t->in && !S_ISDIR(st.st_mode))
		return fault_set(ret_f, RC_INVALID, ENOTDIR, "the path is not a directory");
	return agent_get_strv(req->root, "exclude", AGENT_EXCLUDE_MAX, &t->exclude, ret_f);
}

static enum rc tar_begin(struct tar *t, const struct agent_request *req, struct fault *ret_f)
{
	enum rc rc = tar_parse(t, req, ret_f);
	int std[3];

	if (!rc)
		rc = tar_pipe(&t->error_fd, &t->their_error, ret_f);
	if (!rc)
		rc = loop_fd(agent.loop, t->error_fd, EPOLLIN, on_error, t, &t->error_source, ret_f);
	if (!rc && !agent_answer(t->fd, "{\"ok\": true}\n"))
		rc = fault_set(ret_f, RC_CLOSED, 0, "the host is gone");
	if (rc)
		return rc;
	std[0] = t->in ? t->fd : -1;
	std[1] = t->in ? -1 : t->fd;
	std[2] = t->their_error;
	return agent_fork(tar_child, t->fd, std, t, on_exited, t, &t->child, ret_f);
}

static void tar_start(int fd, const struct agent_request *req, bool in)
{
	struct tar *t = calloc(1, sizeof(*t));
	struct fault f = { 0 };
	enum rc rc;

	if (!t) {
		close(fd);
		agent_connection_done();
		return;
	}
	t->in = in;
	t->fd = fd;
	t->error_fd = t->their_error = -1;
	agent_attach(&t->attached, tar_inherited);
	rc = tar_begin(t, req, &f);
	free(take_ptr(t->exclude));
	close_fd(&t->their_error);
	if (rc) {
		agent_answer_fault(fd, &f);
		agent_connection_end(take_fd(&t->fd));
		tar_free(t);
	}
}

void agent_tar_out_start(int fd, const struct agent_request *req)
{
	tar_start(fd, req, false);
}

void agent_tar_in_start(int fd, const struct agent_request *req)
{
	tar_start(fd, req, true);
}
