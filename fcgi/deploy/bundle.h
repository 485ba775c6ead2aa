/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bundles: a source tree as <bundles>/<sha256>.tar.zst, named by the SHA-256 of the normalised tar inside, so that the same tree
 * is stored once. What comes in is a guest's or a client's and checked entry by entry: relative paths without "..", only
 * directories, regular files, and symbolic links that stay inside; no set-id bits, owners or times of others; bounded count,
 * path length and bytes (apparent size: a sparse file counts as long as it is). A bundle appears by rename, or not at all.
 */
#ifndef NB_DEPLOY_BUNDLE_H
#define NB_DEPLOY_BUNDLE_H

#include "base/fault.h"

#include <stdint.h>

#define BUNDLE_NAME_MAX 65 /* hex digest and terminator */
#define BUNDLE_PATH_MAX 1024

struct bundle_limits {
	uint64_t entries, bytes;
};
#define BUNDLE_LIMITS_DEFAULT { .entries = 100000, .bytes = 2ull << 30 }

/*
 * How long a stream may take: no longer than `quiet_ms` without a byte, and `base_ms` and a second for each `bytes_per_s` that came, but never
 * more than `most_ms`. A large tree has its time, one that trickles in has not.
 */
struct bundle_pace {
	uint64_t quiet_ms, base_ms, most_ms;
	uint64_t bytes_per_s; /* 0: bytes win no time */
};
/* So long and no longer, however it comes. */
#define BUNDLE_PACE_WITHIN(ms) { .quiet_ms = (ms), .base_ms = (ms), .most_ms = (ms) }

struct bundle {
	char name[BUNDLE_NAME_MAX];
	uint64_t bytes;   /* of the compressed file */
	uint64_t entries;
};

/*
 * Reads a tar stream to its end. RC_INVALID with the entry and the reason for what a bundle must not hold, RC_LIMIT over a
 * bound, RC_GUEST for what is no tar, RC_TIMEOUT for what is slower than `pace`.
 */
enum rc bundle_from_tar(int tar_fd, const struct bundle_limits *limits, int bundles_dirfd, const struct bundle_pace *pace,
			struct bundle *ret, struct fault *ret_f);

/* A bundle made of files in memory: begin, add in any order, finish. */
struct bundle_writer;
enum rc bundle_begin(const struct bundle_limits *limits, int bundles_dirfd, struct bundle_writer **ret,
		     struct fault *ret_f);
enum rc bundle_add_file(struct bundle_writer *w, const char *path, const void *data, uint64_t n, struct fault *ret_f);
enum rc bundle_add_link(struct bundle_writer *w, const char *path, const char *target, struct fault *ret_f);
enum rc bundle_finish(struct bundle_writer *w, struct bundle *ret, struct fault *ret_f); /* frees w in any case */
void bundle_abort(struct bundle_writer *w);

/* The tar inside, decompressed into a descriptor (a socket, a pipe, a file). RC_ABSENT if there is no such bundle. */
enum rc bundle_write_tar(int bundles_dirfd, const char *name, int to_fd, uint64_t deadline_ms, struct fault *ret_f);

/* Whether `path` may be a bundle's entry; for the fuzz target and for other front ends of trees. */
enum rc bundle_check_path(const char *path, struct fault *ret_f);
/* Whether a symbolic link at `path` to `target` stays inside the tree. */
enum rc bundle_check_link(const char *path, const char *target, struct fault *ret_f);

#endif
