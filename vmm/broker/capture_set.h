/* SPDX-License-Identifier: Apache-2.0 */
/* Between capture.c (those that there are) and capture_make.c (those in the making). */
#ifndef NB_BROKER_CAPTURE_SET_H
#define NB_BROKER_CAPTURE_SET_H

#include "vmm/broker/capture.h"
#include "vmm/broker/record.h"

#define CAPTURE_MACHINE_DIR "machine" /* the engine's own */
#define CAPTURE_OVERLAY_FILE "overlay"

struct capture_op;

/* Which file it is and since when it is as it is. */
struct capture_file {
	uint64_t inode, size, mtime_ns;
};
#define CAPTURE_FILES 3

struct capture {
	struct capture *next;
	char name[BROKER_CAPTURE_MAX];
	struct record r;             /* of the machine; created_ms is the capture's */
	uint64_t bytes, last_used_ms;
	struct capture_use *use;     /* open, or NULL */
	uint64_t idle_ms;            /* when it is closed */
	bool good, checking;         /* good: its files had their checksums when they were these */
	struct capture_file files[CAPTURE_FILES];
	struct capture_wait *waits;
};

struct capture_set {
	int dirfd;
	struct capture *first; /* by name */
	size_t n;
	struct source *idle;
	struct capture_op *ops;
};

bool capture_name_ok(const char *name);
struct capture *capture_find(struct broker *b, const char *name);
uint64_t captures_bytes(const struct broker *b);
/* captures/<name>/ as an entry that is in no list yet. name may be the temporary one. */
enum rc capture_load(struct broker *b, const char *name, struct capture **ret, struct fault *ret_f);
/* In the place of one of that name. */
void capture_put(struct broker *b, struct capture *c);
void capture_ops_free(struct broker *b);
/* Its files are right now what their checksums say. */
void capture_good(struct broker *b, struct capture *c);
/* After one went: files that it shared are the others' alone. */
void captures_count(struct broker *b);

#endif
