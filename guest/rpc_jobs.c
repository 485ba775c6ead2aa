/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory: two lists under one lock, jobs to do and jobs done. A worker takes from the first and appends to the second;
 * an eventfd wakes the loop. The lists live as long as the process, so nothing is ever torn down.
 */
#include "guest/rpc_jobs.h"

#include "guest/rpc_limits.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct job_list {
	struct job *first, **last;
};

struct jobs {
	pthread_mutex_t lock;
	pthread_cond_t more;
	struct job_list todo, done;
	unsigned int threads, idle, waiting;
	int event;
	struct source *source;
};

static void list_put(struct job_list *l, struct job *job)
{
	job->next = NULL;
	*l->last = job;
	l->last = &job->next;
}

static struct job *list_take(struct job_list *l)
{
	struct job *job = l->first;

	if (job) {
		l->first = job->next;
		if (!l->first)
			l->last = &l->first;
	}
	return job;
}

static void *worker(void *arg)
{
	struct jobs *jobs = arg;
	struct job *job;

	pthread_mutex_lock(&jobs->lock);
	for (;;) {
		while (!(job = list_take(&jobs->todo))) {
			jobs->idle++;
			pthread_cond_wait(&jobs->more, &jobs->lock);
			jobs->idle--;
		}
		jobs->waiting--;
		pthread_mutex_unlock(&jobs->lock);
		job->work(job);
		pthread_mutex_lock(&jobs->lock);
		list_put(&jobs->done, job);
		(void)!write(jobs->event, &(uint64_t){ 1 }, sizeof(uint64_t)); /* full: the loop is woken already */
	}
	return NULL;
}

static void start_worker(struct jobs *jobs)
{
	pthread_attr_t attr;
	sigset_t all, old;
	pthread_t id;

	/* Signals are the loop's, but for the one that wakes blocked file calls. */
	sigfillset(&all);
	sigdelset(&all, SIGRTMIN + 2);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, JOB_STACK);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	if (!pthread_create(&id, &attr, worker, jobs))
		jobs->threads++;
	pthread_attr_destroy(&attr);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
}

void jobs_submit(struct jobs *jobs, struct job *job)
{
	pthread_mutex_lock(&jobs->lock);
	list_put(&jobs->todo, job);
	jobs->waiting++;
	if (jobs->waiting > jobs->idle && jobs->threads < JOB_THREADS_MAX)
		start_worker(jobs);
	pthread_cond_signal(&jobs->more);
	pthread_mutex_unlock(&jobs->lock);
}

static void on_done(void *arg, uint32_t events)
{
	struct jobs *jobs = arg;
	struct job_list done = { .last = &done.first };
	uint64_t n;

	(void)events;
	(void)!read(jobs->event, &n, sizeof(n));
	pthread_mutex_lock(&jobs->lock);
	if (jobs->done.first) {
		done = jobs->done;
		jobs->done = (struct job_list){ .last = &jobs->done.first };
	}
	pthread_mutex_unlock(&jobs->lock);
	for (struct job *job = done.first, *next; job; job = next) {
		next = job->next;
		job->done(job);
	}
}

enum rc jobs_new(struct loop *loop, struct jobs **ret, struct fault *ret_f)
{
	struct jobs *jobs = calloc(1, sizeof(*jobs));
	enum rc rc;

	if (!jobs)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	pthread_mutex_init(&jobs->lock, NULL);
	pthread_cond_init(&jobs->more, NULL);
	jobs->todo.last = &jobs->todo.first;
	jobs->done.last = &jobs->done.first;
	jobs->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	rc = jobs->event < 0 ? fault_set(ret_f, RC_SYS, errno, "eventfd")
			     : loop_fd(loop, jobs->event, EPOLLIN, on_done, jobs, &jobs->source, ret_f);
	if (rc) {
		if (jobs->event >= 0)
			close(jobs->event);
		free(jobs);
		return rc;
	}
	*ret = jobs;
	return RC_OK;
}
