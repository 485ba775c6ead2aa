/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/broker/record.h"

#include "base/buf.h"
#include "base/cleanup.h"
#include "vmm/broker/limits.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define RECORD_HEAD "nestbox-vm 1"

#define RECORD_FIELDS(S, N) \
	S(engine) S(image) S(image_tag) S(volumes) N(state) N(flags) N(memory_mib) N(vcpus) N(slot) N(own_root) N(created_ms) N(stop_at_ms)

enum rc file_replace_at(int dirfd, const char *name, const void *data, size_t n, struct fault *ret_f)
{
	_cleanup_fd_ int fd = -1;
	char tmp[64];

	snprintf(tmp, sizeof(tmp), ".%s.new", name);
	fd = openat(dirfd, tmp, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "make '%s'", tmp);
	if (write(fd, data, n) != (ssize_t)n)
		return fault_set(ret_f, RC_NOSPACE, errno, "write '%s'", tmp);
	if (renameat(dirfd, tmp, dirfd, name) < 0)
		return fault_set(ret_f, RC_SYS, errno, "rename '%s'", tmp);
	return RC_OK;
}

enum rc record_write(int dirfd, const struct record *r, struct fault *ret_f)
{
	_cleanup_buf_ struct buf b = BUF_INIT(RECORD_MAX);
	enum rc rc = buf_puts(&b, RECORD_HEAD "\n");

#define S(f) if (!rc) rc = buf_printf(&b, #f " %s\n", r->f);
#define N(f) if (!rc) rc = buf_printf(&b, #f " %" PRIu64 "\n", (uint64_t)r->f);
	RECORD_FIELDS(S, N)
#undef S
#undef N
	if (rc)
		return fault_set(ret_f, rc, 0, "record: %s", rc_text(rc));
	return file_replace_at(dirfd, "record", buf_data(&b), buf_len(&b), ret_f);
}

static bool number_parse(const char *text, uint64_t *ret)
{
	char *end;

	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	*ret = strtoull(text, &end, 10);
	return !*end && !errno;
}

static bool field_parse(struct record *r, const char *key, const char *value)
{
	uint64_t n;

#define S(f)                                                            \
	if (!strcmp(key, #f)) {                                         \
		if (strlen(value) >= sizeof(r->f))                      \
			return false;                                   \
		memcpy(r->f, value, strlen(value) + 1);                 \
		return true;                                            \
	}
#define N(f)                                                            \
	if (!strcmp(key, #f)) {                                         \
		if (!number_parse(value, &n))                           \
			return false;                                   \
		r->f = (__typeof__(r->f))n;                             \
		return (uint64_t)r->f == n;                             \
	}
	RECORD_FIELDS(S, N)
#undef S
#undef N
	return false;
}

enum rc record_parse(char *text, struct record *ret, struct fault *ret_f)
{
	struct record r = { 0 };
	char *save, *line = strtok_r(text, "\n", &save);

	if (!line || strcmp(line, RECORD_HEAD))
		return fault_set(ret_f, RC_INVALID, 0, "not a record of a machine");
	while ((line = strtok_r(NULL, "\n", &save))) {
		char *value = strchr(line, ' ');

		if (!value)
			return fault_set(ret_f, RC_INVALID, 0, "malformed record");
		*value++ = '\0';
		if (!field_parse(&r, line, value))
			return fault_set(ret_f, RC_INVALID, 0, "malformed record");
	}
	if (!r.engine[0] || !r.memory_mib || !r.created_ms)
		return fault_set(ret_f, RC_INVALID, 0, "incomplete record");
	*ret = r;
	return RC_OK;
}

enum rc record_read(int dirfd, struct record *ret, struct fault *ret_f)
{
	_cleanup_free_ char *text = NULL;
	size_t n;
	enum rc rc = file_read_at(dirfd, "record", RECORD_MAX, &text, &n, ret_f);

	return rc ? rc : record_parse(text, ret, ret_f);
}
