/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/engines/process.h"

#include "base/cleanup.h"
#include "base/fd.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/capability.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PID_FILE_MAX 256
#define STAT_MAX 1024

/* Text of a small proc file. */
static bool proc_text(pid_t pid, const char *name, char *out, size_t size)
{
	char path[64];
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, name);
	_cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, out, size - 1);
	out[n < 0 ? 0 : n] = '\0';
	return n > 0;
}

/* Field 3 and on of /proc/PID/stat: the name before them may hold anything. */
static const char *stat_fields(pid_t pid, char text[STAT_MAX])
{
	const char *at;

	if (!proc_text(pid, "stat", text, STAT_MAX))
		return NULL;
	at = strrchr(text, ')');
	return at ? at + 1 : NULL;
}

static enum rc start_time(pid_t pid, uint64_t *ret, struct fault *ret_f)
{
	char text[STAT_MAX];
	const char *at = stat_fields(pid, text);

	for (int field = 2; at && field < 22; field++)
		at = strchr(at + (field > 2), ' ');
	if (!at || sscanf(at, " %" SCNu64, ret) != 1)
		return fault_set(ret_f, RC_ABSENT, 0, "no process %d", (int)pid);
	return RC_OK;
}

static void boot_id(char out[64])
{
	_cleanup_fd_ int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, out, 63);

	out[n < 0 ? 0 : n] = '\0';
	out[strcspn(out, "\n")] = '\0';
}

/* Not flushed to disk: after a loss of power there is no process that it could name. */
static enum rc pid_write(const struct process *p, int dirfd, struct fault *ret_f)
{
	char text[PID_FILE_MAX], boot[64];
	uint64_t since;
	enum rc rc = start_time(p->pid, &since, ret_f);
	int n;

	if (rc)
		return rc;
	boot_id(boot);
	n = snprintf(text, sizeof(text), "%d %" PRIu64 " %s\n", (int)p->pid, since, boot);
	_cleanup_fd_ int fd = openat(dirfd, PROCESS_PID_FILE, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0 || write(fd, text, (size_t)n) != n)
		return fault_set(ret_f, rc_from_errno(errno), errno, "write '" PROCESS_PID_FILE "'");
	return RC_OK;
}

/* An adopted process is init's child by then: its descriptor says that it ended, but not how. */
static void on_pidfd(void *arg, uint32_t events)
{
	struct process *p = arg;
	siginfo_t info = { 0 };
	int status = -1;

	(void)events;
	if (waitid(P_PIDFD, (id_t)p->pidfd, &info, WEXITED | WNOHANG) == 0) {
		if (!info.si_pid)
			return;
		status = info.si_code == CLD_EXITED ? W_EXITCODE(info.si_status, 0) : W_EXITCODE(0, info.si_status);
	}
	source_drop(&p->source);
	p->ended(p->arg, status);
}

enum rc process_spawn(struct process *p, struct loop *loop, struct jail_spec *js, struct fault *ret_f)
{
	_cleanup_fd_ int err_fd = -1;
	int pipe_fds[2];
	enum rc rc;

	/* Never blocks the process: what nobody has read when the pipe is full is lost. */
	if (pipe2(pipe_fds, O_CLOEXEC | O_NONBLOCK) < 0)
		return fault_set(ret_f, RC_SYS, errno, "pipe");
	p->err_fd = pipe_fds[0];
	err_fd = pipe_fds[1];
	js->err_fd = err_fd;
	rc = jail_spawn(js, &p->pid, &p->pidfd, ret_f);
	if (!rc)
		rc = loop_fd(loop, p->pidfd, EPOLLIN, on_pidfd, p, &p->source, ret_f);
	if (rc)
		process_abort(p);
	return rc;
}

enum rc process_watch(struct process *p, struct loop *loop, struct fault *ret_f)
{
	enum rc rc;

	p->pidfd = pidfd_open(p->pid, 0);
	if (p->pidfd < 0) {
		rc = fault_set(ret_f, RC_SYS, errno, "pidfd_open");
		kill(p->pid, SIGKILL);
		while (waitpid(p->pid, NULL, 0) < 0 && errno == EINTR)
			;
		return rc;
	}
	rc = loop_fd(loop, p->pidfd, EPOLLIN, on_pidfd, p, &p->source, ret_f);
	if (rc)
		process_abort(p);
	return rc;
}

enum rc process_start(struct process *p, struct loop *loop, struct jail_spec *js, int dirfd, struct fault *ret_f)
{
	enum rc rc = process_spawn(p, loop, js, ret_f);

	if (!rc)
		rc = pid_write(p, dirfd, ret_f);
	if (!rc)
		return RC_OK;
	unlinkat(dirfd, PROCESS_PID_FILE, 0);
	process_abort(p);
	return rc;
}

void process_abort(struct process *p)
{
	if (p->pidfd >= 0) {
		process_kill(p);
		/* Not a wait for anything but the kernel: it has been killed. */
		while (waitid(P_PIDFD, (id_t)p->pidfd, &(siginfo_t){ 0 }, WEXITED) < 0 && errno == EINTR)
			;
	}
	process_close(p);
}

struct process_grave {
	struct process_grave **list, *next;
	struct process process;
};

static void grave_free(struct process_grave *g)
{
	struct process_grave **at = g->list;

	while (*at != g)
		at = &(*at)->next;
	*at = g->next;
	process_close(&g->process);
	free(g);
}

static void on_buried(void *arg, int status)
{
	(void)status;
	grave_free(arg);
}

void process_bury(struct process *p, struct loop *loop, struct process_grave **graves)
{
	struct process_grave *g = p->pidfd >= 0 ? calloc(1, sizeof(*g)) : NULL;

	if (!g) {
		process_abort(p);
		return;
	}
	process_kill(p);
	*g = (struct process_grave){ .list = graves, .next = *graves,
				     .process = { .pid = p->pid, .pidfd = take_fd(&p->pidfd), .err_fd = -1, .ended = on_buried, .arg = g } };
	*graves = g;
	process_close(p);
	if (loop_fd(loop, g->process.pidfd, EPOLLIN, on_pidfd, &g->process, &g->process.source, NULL)) {
		process_abort(&g->process);
		grave_free(g);
	}
}

void process_graves_free(struct process_grave **graves)
{
	while (*graves) {
		process_abort(&(*graves)->process);
		grave_free(*graves);
	}
}

enum rc process_adopt(struct process *p, struct loop *loop, int dirfd, const char *id, struct fault *ret_f)
{
	_cleanup_free_ char *text = NULL;
	char boot[64], was[64];
	uint64_t since, now;
	int pid;
	enum rc rc = file_read_at(dirfd, PROCESS_PID_FILE, PID_FILE_MAX, &text, NULL, ret_f);

	if (rc)
		return rc;
	if (sscanf(text, "%d %" SCNu64 " %63s", &pid, &since, was) != 3 || pid <= 1)
		return fault_set(ret_f, RC_ABSENT, 0, "pid file of machine '%s' is damaged", id);
	boot_id(boot);
	if (strcmp(boot, was))
		return fault_set(ret_f, RC_ABSENT, 0, "machine '%s' ran before the host's last boot", id);
	/* The descriptor first: from then on the pid cannot mean another process without start_time() telling. */
	p->pidfd = pidfd_open(pid, 0);
	if (p->pidfd < 0)
		return fault_set(ret_f, RC_ABSENT, errno, "machine '%s' has no process", id);
	p->pid = pid;
	rc = start_time(pid, &now, ret_f);
	if (!rc && now != since)
		rc = fault_set(ret_f, RC_ABSENT, 0, "machine '%s' has no process: its pid is another one's now", id);
	if (!rc)
		rc = loop_fd(loop, p->pidfd, EPOLLIN, on_pidfd, p, &p->source, ret_f);
	if (rc)
		process_close(p);
	return rc;
}

/* Not the path: it may be longer than sockaddr_un holds. */
static void socket_path(int dirfd, const char *name, char out[96])
{
	snprintf(out, 96, "/proc/self/fd/%d/%.40s", dirfd, name);
}

enum rc process_listen(int dirfd, const char *name, int type, int *ret_fd, struct fault *ret_f)
{
	char path[96];

	socket_path(dirfd, name, path);
	return unix_listen(path, type, 0600, (gid_t)-1, ret_fd, ret_f);
}

enum rc process_connect(int dirfd, const char *name, int type, int *ret_fd, struct fault *ret_f)
{
	char path[96];

	socket_path(dirfd, name, path);
	/* A process that takes no connections any more must not hold up whoever asks: RC_AGAIN. */
	return unix_connect(path, type | SOCK_NONBLOCK, ret_fd, ret_f);
}

uint64_t process_file_bytes(const struct engine_spec *spec, uint64_t least)
{
	uint64_t max = least;
	struct stat st;

	for (size_t i = 0; i < spec->n_disks; i++)
		if (!spec->disks[i].read_only && fstat(spec->disks[i].fd, &st) == 0)
			max = MAX_OF(max, (uint64_t)st.st_size);
	return max;
}

void process_kill(struct process *p)
{
	if (p->pidfd >= 0)
		pidfd_send_signal(p->pidfd, SIGKILL, NULL, 0);
}

void process_last_words(struct process *p, int status, char *out, size_t size)
{
	char text[1024], *line;
	ssize_t n = p->err_fd < 0 ? -1 : read(p->err_fd, text, sizeof(text) - 1);

	while (n > 0 && (text[n - 1] == '\n' || text[n - 1] == '\r'))
		n--;
	if (n > 0) {
		text[n] = '\0';
		/* It ends up in logs, answers and on terminals, some of which take bytes from 0x80 for control characters. */
		for (ssize_t i = 0; i < n; i++)
			if ((text[i] < 0x20 || text[i] > 0x7e) && text[i] != '\n')
				text[i] = '?';
		line = strrchr(text, '\n');
		snprintf(out, size, "%.150s", line ? line + 1 : text);
	} else if (status >= 0 && WIFSIGNALED(status)) {
		snprintf(out, size, "its process was killed by signal %d (%s)", WTERMSIG(status),
			 strsignal(WTERMSIG(status)));
	} else {
		snprintf(out, size, "its process ended%s", status < 0 ? "" : " by itself");
	}
}

void process_stat(const struct process *p, struct engine_stat *ret)
{
	char text[STAT_MAX * 2];
	const char *at = stat_fields(p->pid, text);
	unsigned long user = 0, system = 0;
	unsigned long long pss;

	*ret = (struct engine_stat){ .pid = p->pid };
	if (at && sscanf(at, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system) == 2)
		ret->cpu_us = (uint64_t)(user + system) * 1000000 / (uint64_t)sysconf(_SC_CLK_TCK);
	at = proc_text(p->pid, "smaps_rollup", text, sizeof(text)) ? strstr(text, "\nPss:") : NULL;
	if (at && sscanf(at, "\nPss: %llu", &pss) == 1)
		ret->pss_bytes = (uint64_t)pss * 1024;
}

int process_pagemap(const struct process *p)
{
	struct __user_cap_header_struct who = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct had[_LINUX_CAPABILITY_U32S_3], less[_LINUX_CAPABILITY_U32S_3];
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)p->pid);
	/* The kernel shows physical addresses to whoever had CAP_SYS_ADMIN when he opened it, not to whom he gives it. */
	if (p->pidfd < 0 || syscall(SYS_capget, &who, had) < 0)
		return -1;
	memcpy(less, had, sizeof(less));
	less[CAP_TO_INDEX(CAP_SYS_ADMIN)].effective &= ~CAP_TO_MASK(CAP_SYS_ADMIN);
	if (syscall(SYS_capset, &who, less) < 0)
		return -1;
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (syscall(SYS_capset, &who, had) < 0)
		abort(); /* it was ours a moment ago; half of what the broker does would fail from now on */
	/* An adopted process may have ended, and its pid be another one's. */
	if (fd >= 0 && pidfd_send_signal(p->pidfd, 0, NULL, 0) < 0)
		close_fd(&fd);
	return fd;
}

void process_close(struct process *p)
{
	source_drop(&p->source);
	close_fd(&p->pidfd);
	close_fd(&p->err_fd);
}
