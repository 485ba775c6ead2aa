/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/rpc_spill.h"

#include "base/cleanup.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

/* The disk of the sandbox is meant, not a tmpfs. */
static int open_unnamed(void)
{
	static const char *const dirs[] = { "/var/tmp", "/tmp" };
	int fd = -1;

	for (size_t i = 0; i < ARRAY_SIZE(dirs) && fd < 0; i++)
		fd = open(dirs[i], O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	return fd;
}

enum rc spill_put(struct spill *s, const void *data, size_t n)
{
	uint64_t at = s->to;

	if (s->fd < 0)
		s->fd = open_unnamed();
	if (s->fd < 0)
		return rc_from_errno(errno);
	while (n) {
		ssize_t did = pwrite(s->fd, data, n, (off_t)at);

		if (did < 0 && errno == EINTR)
			continue;
		if (did <= 0)
			return rc_from_errno(did ? errno : ENOSPC);
		data = (const uint8_t *)data + did;
		at += (uint64_t)did;
		n -= (size_t)did;
	}
	s->to = at;
	return RC_OK;
}

enum rc spill_take(struct spill *s, struct buf *to, size_t n)
{
	size_t want = MIN_OF((uint64_t)n, spill_len(s));
	uint8_t *at;
	ssize_t did;
	enum rc rc = buf_reserve(to, want, &at);

	if (rc)
		return rc;
	do
		did = pread(s->fd, at, want, (off_t)s->from);
	while (did < 0 && errno == EINTR);
	if (did <= 0)
		return rc_from_errno(did ? errno : EIO);
	buf_commit(to, (size_t)did);
	s->from += (uint64_t)did;
	if (!spill_len(s))
		spill_free(s);
	return RC_OK;
}

void spill_free(struct spill *s)
{
	close_fd(&s->fd);
	*s = (struct spill)SPILL_INIT;
}
