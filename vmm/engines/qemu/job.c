/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/engines/qemu/memory.h"

#include "base/cleanup.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

struct job {
	pid_t pid;
	int result_fd;
	struct source *source;
	job_done_fn *done;
	void *arg;
};

enum { JOB_FD_RESULT = 3, JOB_FD_BASE, JOB_FD_OUT, JOB_FDS_END };

/* Whatever else the broker has open must not be held open by a copy that takes its time. */
static int job_fds(int result_fd, int base_fd, int out_fd)
{
	int from[3] = { result_fd, base_fd, out_fd };

	for (int i = 0; i < 3; i++)
		from[i] = fcntl(from[i], F_DUPFD_CLOEXEC, JOB_FDS_END + 3);
	for (int i = 0; i < 3; i++)
		if (from[i] < 0 || dup2(from[i], JOB_FD_RESULT + i) < 0)
			return -1;
	return close_range(JOB_FDS_END, ~0U, 0);
}

_Noreturn static void job_child(const struct job_spec *spec, int result_fd)
{
	struct job_spec s = *spec;
	struct job_result r = { 0 };

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (job_fds(result_fd, spec->from.base_fd, spec->out_fd) < 0)
		_exit(1);
	s.from.base_fd = JOB_FD_BASE;
	s.out_fd = JOB_FD_OUT;
	if (s.own_only)
		(void)memory_copy_own(&s.from, s.out_fd, &r.sum.private_pages, &r.fault);
	else
		(void)memory_copy(&s.from, s.out_fd, &r.sum, &r.fault);
	if (!r.fault.rc && s.sync && fsync(s.out_fd) < 0)
		fault_set(&r.fault, rc_from_errno(errno), errno, "flush memory to disk");
	/* A pipe takes this at once: it is smaller than PIPE_BUF and the pipe is empty. */
	_exit(write(JOB_FD_RESULT, &r, sizeof(r)) == (ssize_t)sizeof(r) ? 0 : 1);
}

static void on_job_end(void *arg, int wait_status)
{
	struct job *job = arg;
	struct job_result r;

	job->pid = 0;
	source_drop(&job->source);
	if (read(job->result_fd, &r, sizeof(r)) != (ssize_t)sizeof(r)) {
		memset(&r, 0, sizeof(r));
		fault_set(&r.fault, RC_SYS, 0, "a copying process ended with status %d", wait_status);
	}
	r.fault.text[sizeof(r.fault.text) - 1] = '\0';
	job->done(job->arg, &r);
}

enum rc job_start(struct loop *loop, const struct job_spec *spec, job_done_fn *done, void *arg, struct job **ret,
		  struct fault *ret_f)
{
	struct job *job = calloc(1, sizeof(*job));
	int fds[2];
	enum rc rc;

	if (!job)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	*job = (struct job){ .result_fd = -1, .done = done, .arg = arg };
	if (pipe2(fds, O_CLOEXEC | O_NONBLOCK) < 0) {
		free(job);
		return fault_set(ret_f, RC_SYS, errno, "pipe");
	}
	job->result_fd = fds[0];
	job->pid = fork();
	if (!job->pid)
		job_child(spec, fds[1]);
	close(fds[1]);
	rc = job->pid < 0 ? fault_set(ret_f, RC_SYS, errno, "fork")
			  : loop_child(loop, job->pid, on_job_end, job, &job->source, ret_f);
	if (rc) {
		job_free(job);
		return rc;
	}
	*ret = job;
	return RC_OK;
}

void job_free(struct job *job)
{
	if (!job)
		return;
	source_drop(&job->source);
	if (job->pid > 0) {
		kill(job->pid, SIGKILL);
		/* Not a wait for anything but the kernel: it has been killed. */
		while (waitpid(job->pid, NULL, 0) < 0 && errno == EINTR)
			;
	}
	close_fd(&job->result_fd);
	free(job);
}
