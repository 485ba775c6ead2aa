/* SPDX-License-Identifier: Apache-2.0 */
#include "base/fault.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const struct {
	enum rc rc;
	int http;
	const char *name;
	const char *text;
} rc_table[] = {
#define X(name, value, http, text) { RC_##name, http, #name, text },
	RC_TABLE(X)
#undef X
};

enum rc fault_set(struct fault *f, enum rc rc, int sys, const char *fmt, ...)
{
	va_list ap;

	if (!f)
		return rc;
	f->rc = rc;
	f->sys = sys;
	va_start(ap, fmt);
	vsnprintf(f->text, sizeof(f->text), fmt, ap);
	va_end(ap);
	if (sys) {
		size_t n = strlen(f->text);

		snprintf(f->text + n, sizeof(f->text) - n, ": %s", strerrordesc_np(sys) ?: "unknown error");
	}
	return rc;
}

enum rc fault_wrap(struct fault *f, const char *fmt, ...)
{
	char old[sizeof(f->text)];
	va_list ap;
	size_t n;

	if (!f)
		return RC_SYS;
	memcpy(old, f->text, sizeof(old));
	va_start(ap, fmt);
	vsnprintf(f->text, sizeof(f->text), fmt, ap);
	va_end(ap);
	n = strlen(f->text);
	snprintf(f->text + n, sizeof(f->text) - n, ": %s", old);
	return f->rc;
}

static size_t rc_index(enum rc rc)
{
	size_t i = (size_t)-(int)rc;

	return i < sizeof(rc_table) / sizeof(rc_table[0]) ? i : (size_t)-1;
}

const char *rc_name(enum rc rc)
{
	size_t i = rc_index(rc);

	return i == (size_t)-1 ? "UNKNOWN" : rc_table[i].name;
}

const char *rc_text(enum rc rc)
{
	size_t i = rc_index(rc);

	return i == (size_t)-1 ? "unknown error" : rc_table[i].text;
}

int rc_http(enum rc rc)
{
	size_t i = rc_index(rc);

	return i == (size_t)-1 ? 500 : rc_table[i].http;
}

enum rc rc_from_wire(int value)
{
	return rc_index((enum rc)value) == (size_t)-1 ? RC_PROTO : (enum rc)value;
}

enum rc rc_from_errno(int sys)
{
	switch (sys) {
	case 0: return RC_OK;
	case ENOENT: return RC_ABSENT;
	case EEXIST: return RC_EXISTS;
	case EACCES:
	case EPERM: return RC_DENIED;
	case ENOMEM: return RC_NOMEM;
	case ENOSPC:
	case EDQUOT: return RC_NOSPACE;
	case EMFILE:
	case ENFILE: return RC_LIMIT;
	case ETIMEDOUT: return RC_TIMEOUT;
	case EAGAIN: return RC_AGAIN;
	case EPIPE:
	case ECONNABORTED: /* the machine behind the connection is gone */
	case ECONNRESET: return RC_CLOSED;
	default: return RC_SYS;
	}
}
