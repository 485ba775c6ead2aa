/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A byte queue with a hard bound: appended at the tail, consumed at the head. Growing past `max` is RC_LIMIT,
 * which callers turn into back-pressure or into the peer's end.
 */
#ifndef NB_BASE_BUF_H
#define NB_BASE_BUF_H

#include "base/fault.h"

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct buf {
	uint8_t *mem;
	size_t head, tail, cap, max;
};

#define BUF_INIT(max_bytes) { .max = (max_bytes) }

void buf_free(struct buf *b);        /* leaves an empty, reusable buffer; keeps max */
#define _cleanup_buf_ __attribute__((cleanup(buf_free)))

static inline size_t buf_len(const struct buf *b)
{
	return b->tail - b->head;
}

static inline uint8_t *buf_data(const struct buf *b)
{
	return b->head ? b->mem + b->head : b->mem; /* NULL + 0 is not defined */
}

static inline size_t buf_room(const struct buf *b)
{
	return b->max - buf_len(b);
}

/* Makes `n` writable bytes at the tail and returns them in *ret; buf_commit() then claims what was used. */
enum rc buf_reserve(struct buf *b, size_t n, uint8_t **ret);
void buf_commit(struct buf *b, size_t n);
void buf_consume(struct buf *b, size_t n); /* n <= buf_len(); memory goes back when a large buffer runs empty */

enum rc buf_put(struct buf *b, const void *data, size_t n);
enum rc buf_puts(struct buf *b, const char *s);
enum rc buf_puts_lower(struct buf *b, const char *s); /* A-Z as a-z */
enum rc buf_printf(struct buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* One read(2) of at most `n` bytes to the tail. *ret_n is 0 at end of file. RC_AGAIN if nothing is there now. */
enum rc buf_read(struct buf *b, int fd, size_t n, size_t *ret_n, struct fault *ret_f);
/* One write(2) from the head. RC_AGAIN if the peer takes nothing now; sockets never raise SIGPIPE. */
enum rc buf_write(struct buf *b, int fd, struct fault *ret_f);

#endif
