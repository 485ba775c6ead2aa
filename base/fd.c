/* SPDX-License-Identifier: Apache-2.0 */
#include "base/fd.h"

#include "base/cleanup.h"
#include "base/hex.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>

static uint64_t clock_ms(clockid_t id)
{
	struct timespec t;

	clock_gettime(id, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

uint64_t now_ms(void)
{
	return clock_ms(CLOCK_MONOTONIC);
}

uint64_t now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

uint64_t wall_ms(void)
{
	return clock_ms(CLOCK_REALTIME);
}

enum rc fd_nonblock(int fd, struct fault *ret_f)
{
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
		return fault_set(ret_f, RC_SYS, errno, "set O_NONBLOCK");
	return RC_OK;
}

static enum rc unix_addr(const char *path, struct sockaddr_un *addr, struct fault *ret_f)
{
	memset(addr, 0, sizeof(*addr));
	addr->sun_family = AF_UNIX;
	if (strlen(path) >= sizeof(addr->sun_path))
		return fault_set(ret_f, RC_INVALID, 0, "socket path is longer than %zu bytes",
				 sizeof(addr->sun_path) - 1);
	memcpy(addr->sun_path, path, strlen(path) + 1);
	return RC_OK;
}

enum rc unix_listen(const char *path, int type, mode_t mode, gid_t gid, int *ret_fd, struct fault *ret_f)
{
	_cleanup_fd_ int fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct sockaddr_un addr;
	mode_t old;
	int bound;

	if (fd < 0)
		return fault_set(ret_f, RC_SYS, errno, "socket");
	if (unix_addr(path, &addr, ret_f))
		return RC_INVALID;
	if (unlink(path) < 0 && errno != ENOENT)
		return fault_set(ret_f, RC_SYS, errno, "remove stale socket '%s'", path);
	old = umask(0777); /* nobody can connect before the mode is set below */
	bound = bind(fd, (struct sockaddr *)&addr, sizeof(addr));
	umask(old);
	if (bound < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "bind '%s'", path);
	if (listen(fd, 1024) < 0)
		return fault_set(ret_f, RC_SYS, errno, "listen '%s'", path);
	if (gid != (gid_t)-1 && chown(path, (uid_t)-1, gid) < 0)
		return fault_set(ret_f, RC_SYS, errno, "chown '%s'", path);
	if (chmod(path, mode) < 0)
		return fault_set(ret_f, RC_SYS, errno, "chmod '%s'", path);
	*ret_fd = take_fd(&fd);
	return RC_OK;
}

enum rc unix_connect(const char *path, int type, int *ret_fd, struct fault *ret_f)
{
	_cleanup_fd_ int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
	struct sockaddr_un addr;

	if (fd < 0)
		return fault_set(ret_f, RC_SYS, errno, "socket");
	if (unix_addr(path, &addr, ret_f))
		return RC_INVALID;
	if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
		enum rc rc = errno == ECONNREFUSED ? RC_ABSENT : rc_from_errno(errno);

		return fault_set(ret_f, rc, errno, "connect '%s'", path);
	}
	*ret_fd = take_fd(&fd);
	return RC_OK;
}

enum rc unix_peer(int fd, pid_t *ret_pid, uid_t *ret_uid, gid_t *ret_gid, struct fault *ret_f)
{
	struct ucred cred;
	socklen_t n = sizeof(cred);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &n) < 0)
		return fault_set(ret_f, RC_SYS, errno, "SO_PEERCRED");
	*ret_pid = cred.pid;
	*ret_uid = cred.uid;
	*ret_gid = cred.gid;
	return RC_OK;
}

enum rc packet_send(int fd, const void *data, size_t n, const int *fds, size_t n_fds, struct fault *ret_f)
{
	union {
		char mem[CMSG_SPACE(sizeof(int) * FD_PASS_MAX)];
		struct cmsghdr align;
	} control = { 0 };
	struct iovec iov = { .iov_base = (void *)(uintptr_t)data, .iov_len = n };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	ssize_t put;

	if (n_fds > FD_PASS_MAX)
		return fault_set(ret_f, RC_INVALID, 0, "more than %d descriptors in one message", FD_PASS_MAX);
	if (n_fds) {
		struct cmsghdr *c;

		msg.msg_control = control.mem;
		msg.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
		memcpy(CMSG_DATA(c), fds, sizeof(int) * n_fds);
	}
	do
		put = sendmsg(fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
	while (put < 0 && errno == EINTR);
	if (put < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "send packet");
	return RC_OK;
}

void fds_close(int *fds, size_t n)
{
	for (size_t i = 0; i < n; i++)
		close_fd(&fds[i]);
}

enum rc packet_recv(int fd, void *data, size_t size, size_t *ret_n, int fds[FD_PASS_MAX], size_t *ret_n_fds,
		    struct fault *ret_f)
{
	union {
		char mem[CMSG_SPACE(sizeof(int) * FD_PASS_MAX)];
		struct cmsghdr align;
	} control = { 0 };
	struct iovec iov = { .iov_base = data, .iov_len = size };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.mem,
			      .msg_controllen = sizeof(control.mem) };
	size_t n_fds = 0;
	ssize_t got;

	do
		got = recvmsg(fd, &msg, MSG_CMSG_CLOEXEC);
	while (got < 0 && errno == EINTR);
	if (got < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "receive packet");
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
		size_t k;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		k = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		k = MIN_OF(k, FD_PASS_MAX - n_fds);
		memcpy(fds + n_fds, CMSG_DATA(c), k * sizeof(int));
		n_fds += k;
	}
	if (msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) {
		fds_close(fds, n_fds);
		return fault_set(ret_f, RC_PROTO, 0, "packet was truncated");
	}
	*ret_n = (size_t)got;
	*ret_n_fds = n_fds;
	return RC_OK;
}

enum rc fd_wait(int fd, short events, uint64_t deadline_ms, struct fault *ret_f)
{
	for (;;) {
		struct pollfd p = { .fd = fd, .events = events };
		uint64_t now = now_ms();
		int left = now >= deadline_ms ? 0 : (int)MIN_OF(deadline_ms - now, (uint64_t)3600000);
		int n = poll(&p, 1, left);

		if (n > 0)
			return RC_OK;
		if (n < 0 && errno != EINTR)
			return fault_set(ret_f, RC_SYS, errno, "poll");
		if (now_ms() >= deadline_ms)
			return fault_set(ret_f, RC_TIMEOUT, 0, "deadline passed");
	}
}

enum rc fd_write_all(int fd, const void *data, size_t n, uint64_t deadline_ms, struct fault *ret_f)
{
	const char *at = data;
	bool is_socket = true;

	while (n) {
		ssize_t put;
		enum rc rc = fd_wait(fd, POLLOUT, deadline_ms, ret_f);

		if (rc)
			return rc;
		put = is_socket ? send(fd, at, n, MSG_NOSIGNAL | MSG_DONTWAIT) : write(fd, at, n);
		if (put < 0 && errno == ENOTSOCK && is_socket) {
			is_socket = false;
			continue;
		}
		if (put < 0 && (errno == EAGAIN || errno == EINTR))
			continue;
		if (put < 0)
			return fault_set(ret_f, rc_from_errno(errno), errno, "write");
		at += put;
		n -= (size_t)put;
	}
	return RC_OK;
}

static enum rc read_some(int fd, char *at, size_t n, uint64_t deadline_ms, size_t *ret_got, struct fault *ret_f)
{
	for (;;) {
		ssize_t got;
		enum rc rc = fd_wait(fd, POLLIN, deadline_ms, ret_f);

		if (rc)
			return rc;
		got = read(fd, at, n);
		if (got < 0 && (errno == EAGAIN || errno == EINTR))
			continue;
		if (got < 0)
			return fault_set(ret_f, rc_from_errno(errno), errno, "read");
		if (!got)
			return fault_set(ret_f, RC_CLOSED, 0, "peer closed the connection");
		*ret_got = (size_t)got;
		return RC_OK;
	}
}

enum rc fd_read_exact(int fd, void *data, size_t n, uint64_t deadline_ms, struct fault *ret_f)
{
	char *at = data;

	while (n) {
		size_t got;
		enum rc rc = read_some(fd, at, n, deadline_ms, &got, ret_f);

		if (rc)
			return rc;
		at += got;
		n -= got;
	}
	return RC_OK;
}

enum rc fd_read_line(int fd, char *out, size_t size, uint64_t deadline_ms, struct fault *ret_f)
{
	size_t len = 0;

	/* Byte by byte, because what follows the line belongs to somebody else and the descriptor may be handed on. */
	for (;;) {
		size_t got;
		enum rc rc = read_some(fd, out + len, 1, deadline_ms, &got, ret_f);

		if (rc)
			return rc;
		if (out[len] == '\n') {
			out[len] = '\0';
			return RC_OK;
		}
		if (++len >= size)
			return fault_set(ret_f, RC_LIMIT, 0, "line is longer than %zu bytes", size - 1);
	}
}

enum rc file_read_at(int dirfd, const char *name, size_t max, char **ret, size_t *ret_n, struct fault *ret_f)
{
	_cleanup_fd_ int fd = openat(dirfd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	_cleanup_free_ char *mem = NULL;
	struct stat st;
	size_t n = 0;

	if (fd < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "open '%s'", name);
	if (fstat(fd, &st) < 0)
		return fault_set(ret_f, RC_SYS, errno, "stat '%s'", name);
	if (st.st_size < 0 || (uint64_t)st.st_size > max)
		return fault_set(ret_f, RC_LIMIT, 0, "'%s' is larger than %zu bytes", name, max);
	mem = malloc((size_t)st.st_size + 1);
	if (!mem)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	while (n < (size_t)st.st_size) {
		ssize_t got = read(fd, mem + n, (size_t)st.st_size - n);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return fault_set(ret_f, RC_SYS, errno, "read '%s'", name);
		if (!got)
			break;
		n += (size_t)got;
	}
	mem[n] = '\0';
	*ret = take_ptr(mem);
	if (ret_n)
		*ret_n = n;
	return RC_OK;
}

enum rc file_write_at(int dirfd, const char *name, const void *data, size_t n, mode_t mode, struct fault *ret_f)
{
	char tmp[300], tail[17];
	_cleanup_fd_ int fd = -1;
	enum rc rc;

	random_hex(tail, 8);
	if ((size_t)snprintf(tmp, sizeof(tmp), ".%s.%s", name, tail) >= sizeof(tmp))
		return fault_set(ret_f, RC_INVALID, 0, "file name is too long");
	fd = openat(dirfd, tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode);
	if (fd < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "create '%s'", tmp);
	rc = fd_write_all(fd, data, n, UINT64_MAX, ret_f);
	if (!rc && fchmod(fd, mode) < 0)
		rc = fault_set(ret_f, RC_SYS, errno, "chmod '%s'", name);
	if (!rc && fsync(fd) < 0)
		rc = fault_set(ret_f, rc_from_errno(errno), errno, "fsync '%s'", name);
	if (!rc && renameat(dirfd, tmp, dirfd, name) < 0)
		rc = fault_set(ret_f, rc_from_errno(errno), errno, "rename to '%s'", name);
	if (rc) {
		unlinkat(dirfd, tmp, 0);
		return rc;
	}
	if (dirfd >= 0 && fsync(dirfd) < 0)
		return fault_set(ret_f, RC_SYS, errno, "fsync directory of '%s'", name);
	return RC_OK;
}

void random_bytes(void *out, size_t n)
{
	char *at = out;

	while (n) {
		ssize_t got = getrandom(at, MIN_OF(n, (size_t)256), 0);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			abort();
		at += got;
		n -= (size_t)got;
	}
}

void random_hex(char *out, size_t n_bytes)
{
	uint8_t raw[64];

	*out = '\0';
	for (size_t n; n_bytes; out += 2 * n, n_bytes -= n) {
		n = MIN_OF(n_bytes, sizeof(raw));
		random_bytes(raw, n);
		hex_of(out, raw, n);
	}
}
