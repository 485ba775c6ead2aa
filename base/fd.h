/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Descriptors and Unix sockets. All descriptors made here are close-on-exec. Every blocking call has a deadline in
 * milliseconds of CLOCK_MONOTONIC, as now_ms() gives it.
 */
#ifndef NB_BASE_FD_H
#define NB_BASE_FD_H

#include "base/fault.h"

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define FD_PASS_MAX 16 /* descriptors in one message */

uint64_t now_ms(void);  /* CLOCK_MONOTONIC */
uint64_t now_us(void);  /* CLOCK_MONOTONIC, microseconds: for measuring */
uint64_t wall_ms(void); /* CLOCK_REALTIME */

enum rc fd_nonblock(int fd, struct fault *ret_f);

/* A filesystem socket, mode applied before it can be connected to; a stale one at that path is replaced.
 * type is SOCK_STREAM or SOCK_SEQPACKET; the descriptor is nonblocking. gid -1 leaves the group alone. */
enum rc unix_listen(const char *path, int type, mode_t mode, gid_t gid, int *ret_fd, struct fault *ret_f);
/* Blocking descriptor, connected. RC_ABSENT if nobody listens there. */
enum rc unix_connect(const char *path, int type, int *ret_fd, struct fault *ret_f);
enum rc unix_peer(int fd, pid_t *ret_pid, uid_t *ret_uid, gid_t *ret_gid, struct fault *ret_f);

/* One packet with descriptors. Never blocks: RC_AGAIN if the socket is full (MSG_DONTWAIT). */
enum rc packet_send(int fd, const void *data, size_t n, const int *fds, size_t n_fds, struct fault *ret_f);
/*
 * One packet. Received descriptors are close-on-exec and owned by the caller from here; a truncated packet or more
 * than FD_PASS_MAX descriptors is RC_PROTO and everything that arrived is closed. *ret_n == 0 means the peer closed.
 */
enum rc packet_recv(int fd, void *data, size_t size, size_t *ret_n, int fds[FD_PASS_MAX], size_t *ret_n_fds,
		    struct fault *ret_f);
void fds_close(int *fds, size_t n);

/* poll(2) for `events` until the deadline. RC_TIMEOUT when it passes. */
enum rc fd_wait(int fd, short events, uint64_t deadline_ms, struct fault *ret_f);
/* All bytes or an error; works on blocking and nonblocking descriptors. */
enum rc fd_write_all(int fd, const void *data, size_t n, uint64_t deadline_ms, struct fault *ret_f);
/* Exactly n bytes. RC_CLOSED at an early end. */
enum rc fd_read_exact(int fd, void *data, size_t n, uint64_t deadline_ms, struct fault *ret_f);
/* Up to and without '\n', NUL-terminated; reads not one byte beyond it. RC_LIMIT if longer than size - 1. */
enum rc fd_read_line(int fd, char *out, size_t size, uint64_t deadline_ms, struct fault *ret_f);

/* The whole of a small file, NUL-terminated, to be freed. RC_LIMIT if it is larger than max. */
enum rc file_read_at(int dirfd, const char *name, size_t max, char **ret, size_t *ret_n, struct fault *ret_f);
/* Written to a temporary name, fsynced, renamed, directory fsynced: there is never half a file. */
enum rc file_write_at(int dirfd, const char *name, const void *data, size_t n, mode_t mode, struct fault *ret_f);

/* getrandom(2), cannot fail after boot; aborts if the kernel says otherwise. */
void random_bytes(void *out, size_t n);
/* n random bytes as 2n hex digits and a terminator. */
void random_hex(char *out, size_t n_bytes);

#endif
