/* SPDX-License-Identifier: Apache-2.0 */
/* Errors as Deno words them: the class of an errno, its code (not every errno has one), "text (os error n): op 'path'". */
#include "guest/fs_internal.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>

struct errno_row {
	int sys;
	const char *code, *class;
};

/* All that Deno 2.9 gives a code or a class of their own; the others are Error without a code. */
static const struct errno_row errno_table[] = {
	{ EPERM, "EPERM", "PermissionDenied" },
	{ ENOENT, "ENOENT", "NotFound" },
	{ EINTR, "", "Interrupted" },
	{ EIO, "EIO", NULL },
	{ E2BIG, "E2BIG", NULL },
	{ EBADF, "EBADF", NULL },
	{ EAGAIN, "EAGAIN", "WouldBlock" },
	{ ENOMEM, "ENOMEM", NULL },
	{ EACCES, "EACCES", "PermissionDenied" },
	{ EFAULT, "EFAULT", NULL },
	{ EBUSY, "EBUSY", NULL },
	{ EEXIST, "EEXIST", "AlreadyExists" },
	{ EXDEV, "EXDEV", NULL },
	{ ENOTDIR, "ENOTDIR", "NotADirectory" },
	{ EISDIR, "EISDIR", "IsADirectory" },
	{ EINVAL, "EINVAL", "TypeError" },
	{ EMFILE, "EMFILE", NULL },
	{ ENOSPC, "ENOSPC", NULL },
	{ EROFS, "EROFS", NULL },
	{ EPIPE, "EPIPE", "BrokenPipe" },
	{ ENAMETOOLONG, "ENAMETOOLONG", NULL },
	{ ENOTEMPTY, "ENOTEMPTY", NULL },
	{ ELOOP, "ELOOP", "FilesystemLoop" },
	{ ENOTSUP, "ENOTSUP", NULL },
	{ ETIMEDOUT, "ETIMEDOUT", "TimedOut" },
	{ ECANCELED, "ECANCELED", NULL },
};

static const struct errno_row *errno_find(int sys)
{
	static const struct errno_row other = { 0, "", NULL };

	for (size_t i = 0; i < ARRAY_SIZE(errno_table); i++)
		if (errno_table[i].sys == sys)
			return &errno_table[i];
	return &other;
}

static void put(char *out, size_t size, const char *s)
{
	size_t n = strnlen(s, size - 1);

	memcpy(out, s, n);
	out[n] = '\0';
}

static void error_class(struct fs_error *e, int sys)
{
	const struct errno_row *row = errno_find(sys);

	e->sys = sys;
	put(e->constructor_name, sizeof(e->constructor_name), row->class ? row->class : "Error");
	put(e->code, sizeof(e->code), row->code);
}

/* Where the message stands while it is put together. Cutting it keeps whole UTF-8 sequences. */
struct message {
	struct fs_error *e;
	size_t n;
};

static void message_add(struct message *m, const char *s, size_t n)
{
	size_t room = FS_MESSAGE_MAX - 1 - m->n;

	if (n > room) {
		n = room;
		while (n && ((uint8_t)s[n] & 0xc0) == 0x80)
			n--;
	}
	memcpy(m->e->message + m->n, s, n);
	m->n += n;
	m->e->message[m->n] = '\0';
	m->e->message_n = m->n;
}

static void message_puts(struct message *m, const char *s)
{
	message_add(m, s, strlen(s));
}

static void message_errno(struct message *m, int sys)
{
	char text[128], out[160];

	/* The GNU variant: it may return a constant instead of filling the buffer. */
	snprintf(out, sizeof(out), "%s (os error %d)", strerror_r(sys, text, sizeof(text)), sys);
	message_puts(m, out);
}

static void message_path(struct message *m, const struct fs_text *path)
{
	message_puts(m, "'");
	message_add(m, path->s, path->n);
	message_puts(m, "'");
}

static void message_op(struct message *m, const char *op, const struct fs_text *from, const struct fs_text *to)
{
	if (!op)
		return;
	message_puts(m, ": ");
	message_puts(m, op);
	if (from) {
		message_puts(m, " ");
		message_path(m, from);
	}
	if (to) {
		message_puts(m, " -> ");
		message_path(m, to);
	}
}

void fs_error_errno(struct fs_error *e, int sys)
{
	struct message m = { .e = e };

	error_class(e, sys);
	message_errno(&m, sys);
}

void fs_error_set(struct fs_error *e, int sys, const char *constructor_name, const char *code, const char *fmt, ...)
{
	va_list ap;
	int n;

	e->sys = sys;
	put(e->constructor_name, sizeof(e->constructor_name), constructor_name);
	put(e->code, sizeof(e->code), code);
	va_start(ap, fmt);
	n = vsnprintf(e->message, sizeof(e->message), fmt, ap);
	va_end(ap);
	if (n < 0)
		e->message[0] = '\0';
	e->message_n = strlen(e->message);
}

enum rc fs_fail_pair(struct fs_error *e, int sys, const char *op, const struct fs_text *from, const struct fs_text *to)
{
	struct message m = { .e = e };

	error_class(e, sys);
	message_errno(&m, sys);
	message_op(&m, op, from, to);
	return RC_SYS;
}

enum rc fs_fail(struct fs_error *e, int sys, const char *op, const struct fs_text *path)
{
	return fs_fail_pair(e, sys, op, path, NULL);
}

enum rc fs_fail_input_pair(struct fs_error *e, const char *text, const char *op, const struct fs_text *from,
			   const struct fs_text *to)
{
	struct message m = { .e = e };

	error_class(e, EINVAL);
	message_puts(&m, text);
	message_op(&m, op, from, to);
	return RC_SYS;
}

enum rc fs_fail_input(struct fs_error *e, const char *text, const char *op, const struct fs_text *path)
{
	return fs_fail_input_pair(e, text, op, path, NULL);
}

enum rc fs_fail_plain(struct fs_error *e, const char *constructor_name, const char *text)
{
	struct message m = { .e = e };

	e->sys = 0;
	put(e->constructor_name, sizeof(e->constructor_name), constructor_name);
	e->code[0] = '\0';
	message_puts(&m, text);
	return RC_SYS;
}
