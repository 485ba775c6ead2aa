/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/engines/qemu/memory.h"

#include "base/cleanup.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

struct job {
	struct process process;
	struct process_grave **graves;
	struct loop *loop;
	int result_fd, go_fd;
	struct source *go_source;
	job_prepared_fn *prepared;
	job_done_fn *done;
	void *arg;
};

enum { JOB_FD_RESULT = 3, JOB_FD_BASE, JOB_FD_OUT, JOB_FD_GO, JOB_FDS_END };
#define JOB_FDS (JOB_FDS_END - JOB_FD_RESULT)

/* Whatever else the broker has open must not be held open by a copy that takes its time. */
static int job_fds(int from[JOB_FDS])
{
	for (int i = 0; i < JOB_FDS; i++)
		from[i] = fcntl(from[i], F_DUPFD_CLOEXEC, JOB_FDS_END + JOB_FDS);
	for (int i = 0; i < JOB_FDS; i++)
		if (from[i] < 0 || dup2(from[i], JOB_FD_RESULT + i) < 0)
			return -1;
	return close_range(JOB_FDS_END, ~0U, 0);
}

static bool job_ready(void *arg)
{
	char go = 'p';

	(void)arg;
	return write(JOB_FD_GO, &go, 1) == 1 && read(JOB_FD_GO, &go, 1) == 1;
}

_Noreturn static void job_child(const struct job_spec *spec, int result_fd, int go_fd)
{
	int fds[JOB_FDS] = { result_fd, spec->from.base_fd, spec->out_fd < 0 ? spec->from.base_fd : spec->out_fd, go_fd };
	struct job_spec s = *spec;
	struct job_result r = { 0 };
	enum rc rc;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (job_fds(fds) < 0)
		_exit(1);
	s.from.base_fd = JOB_FD_BASE;
	s.out_fd = s.out_fd < 0 ? -1 : JOB_FD_OUT;
	if (s.own_only)
		rc = memory_copy_own(&s.from, s.out_fd, s.prepared ? job_ready : NULL, NULL, &r.sum.private_pages, &r.fault);
	else
		rc = memory_copy(&s.from, s.out_fd, !s.unsummed, &r.sum, &r.fault);
	if (!rc && s.sealed)
		(void)memory_seal(s.out_fd, &r.fault);
	/* A pipe takes this at once: it is smaller than PIPE_BUF and the pipe is empty. */
	_exit(write(JOB_FD_RESULT, &r, sizeof(r)) == (ssize_t)sizeof(r) ? 0 : 1);
}

static void on_job_end(void *arg, int wait_status)
{
	struct job *job = arg;
	struct job_result r;

	process_close(&job->process);
	source_drop(&job->go_source);
	if (read(job->result_fd, &r, sizeof(r)) != (ssize_t)sizeof(r)) {
		memset(&r, 0, sizeof(r));
		fault_set(&r.fault, RC_SYS, 0, "a copying process ended with status %d", wait_status);
	}
	r.fault.text[sizeof(r.fault.text) - 1] = '\0';
	job->done(job->arg, &r);
}

static void on_prepared(void *arg, uint32_t events)
{
	struct job *job = arg;
	char byte;

	(void)events;
	source_drop(&job->go_source);
	/* At its end without a word on_job_end() has the reason. */
	if (read(job->go_fd, &byte, 1) == 1)
		job->prepared(job->arg);
}

enum rc job_start(struct loop *loop, const struct job_spec *spec, job_done_fn *done, void *arg, struct job **ret,
		  struct fault *ret_f)
{
	struct job *job = calloc(1, sizeof(*job));
	int fds[2], go[2];
	enum rc rc;

	if (!job)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	*job = (struct job){ .process = PROCESS_INIT, .graves = spec->graves, .loop = loop, .result_fd = -1, .go_fd = -1,
			     .prepared = spec->prepared, .done = done, .arg = arg };
	job->process.ended = on_job_end;
	job->process.arg = job;
	if (pipe2(fds, O_CLOEXEC) < 0) {
		free(job);
		return fault_set(ret_f, RC_SYS, errno, "pipe");
	}
	job->result_fd = fds[0];
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, go) < 0) {
		close(fds[1]);
		job_free(job);
		return fault_set(ret_f, RC_SYS, errno, "socketpair");
	}
	job->go_fd = go[1];
	job->process.pid = fork();
	if (!job->process.pid)
		job_child(spec, fds[1], go[0]);
	close(fds[1]);
	close(go[0]);
	rc = job->process.pid < 0 ? fault_set(ret_f, RC_SYS, errno, "fork") : process_watch(&job->process, loop, ret_f);
	if (!rc && spec->prepared)
		rc = loop_fd(loop, job->go_fd, EPOLLIN, on_prepared, job, &job->go_source, ret_f);
	if (rc) {
		job_free(job);
		return rc;
	}
	*ret = job;
	return RC_OK;
}

enum rc job_go(struct job *job, struct fault *ret_f)
{
	return send(job->go_fd, "g", 1, MSG_NOSIGNAL) == 1 ? RC_OK : fault_set(ret_f, RC_SYS, errno, "wake a copying process");
}

void job_free(struct job *job)
{
	if (!job)
		return;
	source_drop(&job->go_source);
	/* One that runs may have much memory to give back. */
	process_bury(&job->process, job->loop, job->graves);
	close_fd(&job->result_fd);
	close_fd(&job->go_fd);
	free(job);
}
