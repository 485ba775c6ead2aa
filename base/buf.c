/* SPDX-License-Identifier: Apache-2.0 */
#include "base/buf.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define BUF_MIN_CAP 256
#define BUF_KEEP_CAP 65536 /* an empty buffer larger than this gives its memory back */

void buf_free(struct buf *b)
{
	free(b->mem);
	b->mem = NULL;
	b->head = b->tail = b->cap = 0;
}

enum rc buf_reserve(struct buf *b, size_t n, uint8_t **ret)
{
	size_t len = buf_len(b), cap;
	uint8_t *mem;

	if (n > b->max - len)
		return RC_LIMIT;
	if (b->cap - b->tail >= n && b->mem) {
		*ret = b->mem + b->tail;
		return RC_OK;
	}
	if (b->mem && b->cap - len >= n && b->head >= len) {
		memcpy(b->mem, b->mem + b->head, len);
	} else {
		cap = b->cap ? b->cap : BUF_MIN_CAP;
		while (cap - len < n) {
			if (cap > SIZE_MAX / 2)
				return RC_NOMEM;
			cap *= 2;
		}
		mem = malloc(cap);
		if (!mem)
			return RC_NOMEM;
		if (len)
			memcpy(mem, b->mem + b->head, len);
		free(b->mem);
		b->mem = mem;
		b->cap = cap;
	}
	b->head = 0;
	b->tail = len;
	*ret = b->mem + b->tail;
	return RC_OK;
}

void buf_commit(struct buf *b, size_t n)
{
	assert(n <= b->cap - b->tail);
	b->tail += n;
}

void buf_consume(struct buf *b, size_t n)
{
	assert(n <= buf_len(b));
	b->head += n;
	if (b->head != b->tail)
		return;
	b->head = b->tail = 0;
	if (b->cap > BUF_KEEP_CAP)
		buf_free(b);
}

enum rc buf_put(struct buf *b, const void *data, size_t n)
{
	uint8_t *to;
	enum rc rc;

	if (!n)
		return RC_OK;
	rc = buf_reserve(b, n, &to);
	if (rc)
		return rc;
	memcpy(to, data, n);
	buf_commit(b, n);
	return RC_OK;
}

enum rc buf_puts(struct buf *b, const char *s)
{
	return buf_put(b, s, strlen(s));
}

enum rc buf_puts_lower(struct buf *b, const char *s)
{
	enum rc rc = RC_OK;

	for (; !rc && *s; s++) {
		char c = (char)tolower((unsigned char)*s);

		rc = buf_put(b, &c, 1);
	}
	return rc;
}

enum rc buf_printf(struct buf *b, const char *fmt, ...)
{
	va_list ap;
	uint8_t *to;
	enum rc rc;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(NULL, 0, fmt, ap);
	va_end(ap);
	if (n < 0)
		return RC_INVALID;
	rc = buf_reserve(b, (size_t)n + 1, &to);
	if (rc)
		return rc;
	va_start(ap, fmt);
	vsnprintf((char *)to, (size_t)n + 1, fmt, ap);
	va_end(ap);
	buf_commit(b, (size_t)n);
	return RC_OK;
}

enum rc buf_read(struct buf *b, int fd, size_t n, size_t *ret_n, struct fault *ret_f)
{
	uint8_t *to;
	ssize_t got;
	enum rc rc = buf_reserve(b, n, &to);

	if (rc)
		return fault_set(ret_f, rc, 0, "buffer of %zu bytes is full", b->max);
	do
		got = read(fd, to, n);
	while (got < 0 && errno == EINTR);
	if (got < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "read");
	buf_commit(b, (size_t)got);
	*ret_n = (size_t)got;
	return RC_OK;
}

enum rc buf_write(struct buf *b, int fd, struct fault *ret_f)
{
	ssize_t put;

	if (!buf_len(b))
		return RC_OK;
	do {
		put = send(fd, buf_data(b), buf_len(b), MSG_NOSIGNAL);
		if (put < 0 && errno == ENOTSOCK)
			put = write(fd, buf_data(b), buf_len(b));
	} while (put < 0 && errno == EINTR);
	if (put < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "write");
	buf_consume(b, (size_t)put);
	return RC_OK;
}
