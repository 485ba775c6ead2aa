/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A machine's process as every engine sees it: started in the jail, named in a pid file, found again after a restart of the
 * broker, watched until its end. The pid file holds pid, start time and boot id, so that a recycled pid is never taken for a machine.
 */
#ifndef NB_ENGINE_PROCESS_H
#define NB_ENGINE_PROCESS_H

#include "base/loop.h"
#include "vmm/engines/engine.h"
#include "vmm/jail/jail.h"

#define PROCESS_PID_FILE "vm.pid"

struct process {
	pid_t pid;
	int pidfd;      /* -1: none */
	int err_fd;     /* read end of its standard error, nonblocking; -1 for an adopted one */
	struct source *source;
	void (*ended)(void *arg, int wait_status); /* -1: an adopted one, of which nothing more is known */
	void *arg;
};

#define PROCESS_INIT { .pidfd = -1, .err_fd = -1 }

/* Starts, watches. js->err_fd is set here. On failure nothing is left. */
enum rc process_spawn(struct process *p, struct loop *loop, struct jail_spec *js, struct fault *ret_f);
/* Of a child that somebody else has forked: p->pid, p->ended and p->arg are set. On failure it is killed and reaped. */
enum rc process_watch(struct process *p, struct loop *loop, struct fault *ret_f);
/* Starts, writes the pid file below dirfd, watches. js->err_fd is set here. On failure nothing is left. */
enum rc process_start(struct process *p, struct loop *loop, struct jail_spec *js, int dirfd, struct fault *ret_f);
/* The process that the pid file names, if it is still that one; RC_ABSENT otherwise. */
enum rc process_adopt(struct process *p, struct loop *loop, int dirfd, const char *id, struct fault *ret_f);
/* The control socket `name` below the machine's directory: made before the process, which inherits it; connected to by us. */
enum rc process_listen(int dirfd, const char *name, int type, int *ret_fd, struct fault *ret_f);
enum rc process_connect(int dirfd, const char *name, int type, int *ret_fd, struct fault *ret_f);
/* How long a file it may make or grow: what its largest writable disk has, `least` at least. */
uint64_t process_file_bytes(const struct engine_spec *spec, uint64_t least);
void process_kill(struct process *p);
void process_abort(struct process *p); /* of one that was started: kills, reaps and closes; also one that is closed already */
/*
 * The same without a wait, which may be long for one that gives much memory back: it is reaped on the loop, when it has ended. Where memory
 * is short it is waited for.
 */
struct process_grave;
void process_bury(struct process *p, struct loop *loop, struct process_grave **graves);
void process_graves_free(struct process_grave **graves); /* waits for those that have not ended yet */
/* Last line of its standard error with control bytes removed, or how it ended. */
void process_last_words(struct process *p, int wait_status, char *out, size_t size);
void process_stat(const struct process *p, struct engine_stat *ret);
/*
 * /proc/<pid>/pagemap, for the process itself, which has no /proc: which of its pages are there or swapped out, and not at which
 * physical addresses. The caller's; -1: not to be had.
 */
int process_pagemap(const struct process *p);
void process_close(struct process *p); /* forgets it, whatever it does */

#endif
