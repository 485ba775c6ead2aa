/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest memory from outside. Theory: a machine's memory is a sealed base file plus the pages that it has written since
 * it started, which are private to its process. /proc/<pid>/pagemap says which these are. Pages of zeros are never
 * stored. The checksum covers index and content of every page that isn't zero, so it does not depend on where a file
 * system puts holes.
 */
#ifndef NB_QEMU_MEMORY_H
#define NB_QEMU_MEMORY_H

#include "base/fault.h"
#include "base/loop.h"
#include "vmm/engines/process.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define MEMORY_DIGEST 32

struct memory_sum {
	uint8_t digest[MEMORY_DIGEST]; /* SHA-256 */
	uint64_t pages;                /* stored */
	uint64_t private_pages;        /* of these, the machine's own */
};

struct memory_source {
	pid_t pid;        /* 0: base alone */
	uint64_t address; /* of guest memory in that process */
	int base_fd;
	uint64_t size;
};

/* An anonymous file of `size` bytes. */
enum rc memory_file(const char *name, uint64_t size, int *ret_fd, struct fault *ret_f);
/* No writing, growing, shrinking from now on. */
enum rc memory_seal(int fd, struct fault *ret_f);

/* Base and own pages to out_fd, which is empty; -1: only sums them. Blocks: run it in a job. */
enum rc memory_copy(const struct memory_source *from, int out_fd, bool summed, struct memory_sum *ret, struct fault *ret_f);
/*
 * Only the own pages, over what out_fd has, which is as large. No checksum. With ready(): what can be done beforehand is done, then
 * ready() waits until the machine stands still; false calls it off.
 */
enum rc memory_copy_own(const struct memory_source *from, int out_fd, bool (*ready)(void *arg), void *arg,
			uint64_t *ret_pages, struct fault *ret_f);
/* Of the first `bytes`, which it must have, whatever it grows to meanwhile: QEMU has a state file open as well. */
enum rc memory_digest_file(int fd, uint64_t bytes, uint8_t out[MEMORY_DIGEST], struct fault *ret_f);

/*
 * A job is a child process that does one blocking thing and reports. It is forked without exec: it runs our own code
 * on descriptors only, and keeps none but those named in struct job_spec.
 */
struct job;
struct job_result {
	struct fault fault;
	struct memory_sum sum;
};
typedef void job_prepared_fn(void *arg);
struct job_spec {
	struct memory_source from;
	int out_fd; /* -1: to nowhere, for the sum */
	bool own_only;
	bool unsummed; /* no checksum */
	bool sealed;   /* out_fd is sealed behind it, which takes as long as it has pages */
	/* With own_only: called when all is prepared; the copy begins with job_go(). */
	job_prepared_fn *prepared;
	struct process_grave **graves; /* where one that is freed while it runs waits for its end */
};
typedef void job_done_fn(void *arg, const struct job_result *r);
enum rc job_start(struct loop *loop, const struct job_spec *spec, job_done_fn *done, void *arg, struct job **ret,
		  struct fault *ret_f);
enum rc job_go(struct job *job, struct fault *ret_f);
void job_free(struct job *job); /* kills it if it runs, and waits for nothing; NULL is fine */

#endif
