/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/broker/expose.h"

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "vmm/broker/limits.h"
#include "vmm/broker/machine.h"

#include <dirent.h>
#include <fcntl.h>
#include <string.h>

#define EXPOSE_HEAD "nestbox-expose 2"
#define EXPOSE_HEAD_1 "nestbox-expose 1" /* without the organization */

struct expose_set {
	struct expose **all; /* by host */
	size_t n, cap;
};

bool expose_host_ok(const char *host)
{
	size_t n = strlen(host);

	if (!n || n > 253 || host[0] == '.' || host[0] == '-' || strstr(host, ".."))
		return false;
	for (const char *p = host; *p; p++)
		if (!((*p >= 'a' && *p <= 'z') || (*p >= '0' && *p <= '9') || *p == '-' || *p == '.'))
			return false;
	return true;
}

static size_t set_after(const struct expose_set *s, const char *after)
{
	size_t low = 0, high = s->n;

	while (low < high) {
		size_t mid = (low + high) / 2;

		if (strcmp(s->all[mid]->host, after) <= 0)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

static struct expose **set_find(struct expose_set *s, const char *host)
{
	size_t at = set_after(s, host);

	return at && !strcmp(s->all[at - 1]->host, host) ? &s->all[at - 1] : NULL;
}

static enum rc set_room(struct expose_set *s, struct fault *ret_f)
{
	struct expose **mem;
	size_t cap = s->cap ? 2 * s->cap : 64;

	if (s->n >= EXPOSE_MAX)
		return fault_set(ret_f, RC_LIMIT, 0, "this host has its maximum of %d exposed names", EXPOSE_MAX);
	if (s->n < s->cap)
		return RC_OK;
	mem = reallocarray(s->all, cap, sizeof(struct expose *));
	if (!mem)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	s->all = mem;
	s->cap = cap;
	return RC_OK;
}

static void set_insert(struct expose_set *s, struct expose *x)
{
	size_t at = set_after(s, x->host);

	memmove(s->all + at + 1, s->all + at, (s->n - at) * sizeof(struct expose *));
	s->all[at] = x;
	s->n++;
}

static void set_remove(struct expose_set *s, struct expose **at)
{
	free(*at);
	memmove(at, at + 1, (size_t)(s->all + s->n - at - 1) * sizeof(struct expose *));
	s->n--;
}

static enum rc expose_make(const char *host, const char *id, const char *org, bool keep, const char *line, struct expose **ret,
			   struct fault *ret_f)
{
	size_t n = strlen(line) + 1;
	struct expose *x = calloc(1, sizeof(*x) + n);

	if (!x)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	snprintf(x->host, sizeof(x->host), "%s", host);
	snprintf(x->id, sizeof(x->id), "%s", id);
	snprintf(x->org, sizeof(x->org), "%s", org);
	x->keep = keep;
	memcpy(x->line, line, n);
	*ret = x;
	return RC_OK;
}

/* --- files ------------------------------------------------------------------------------------------------------ */

static enum rc file_put(struct broker *b, const struct expose *x, struct fault *ret_f)
{
	_cleanup_buf_ struct buf text = BUF_INIT(RECORD_MAX);

	if (buf_printf(&text, "%s\n%s\n%d\n%s\n%s\n", EXPOSE_HEAD, x->id, x->keep, x->line, x->org))
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	return file_write_at(b->exposures_dirfd, x->host, buf_data(&text), buf_len(&text), 0600, ret_f);
}

enum rc expose_parse(const char *host, char *text, struct expose **ret, struct fault *ret_f)
{
	bool old = !strncmp(text, EXPOSE_HEAD_1 "\n", sizeof(EXPOSE_HEAD_1));
	char none[] = "", *part[5] = { [4] = none };

	for (int i = 0; i < (old ? 4 : 5); i++) {
		char *end = strchr(text, '\n');

		if (!end)
			return fault_set(ret_f, RC_INVALID, 0, "malformed exposure");
		*end = '\0';
		part[i] = text;
		text = end + 1;
	}
	if (*text || (!old && strcmp(part[0], EXPOSE_HEAD)) || strlen(part[1]) >= BROKER_ID_MAX || !expose_host_ok(host) ||
	    (strcmp(part[2], "0") && strcmp(part[2], "1")) || strlen(part[3]) >= BROKER_LINE_MAX || strlen(part[4]) >= BROKER_ORG_MAX)
		return fault_set(ret_f, RC_INVALID, 0, "malformed exposure");
	return expose_make(host, part[1], part[4], part[2][0] == '1', part[3], ret, ret_f);
}

static void file_load(struct broker *b, const char *host)
{
	_cleanup_free_ char *text = NULL;
	struct expose *x = NULL;
	struct fault f;
	size_t n;
	enum rc rc = file_read_at(b->exposures_dirfd, host, RECORD_MAX, &text, &n, &f);

	if (!rc)
		rc = expose_parse(host, text, &x, &f);
	if (!rc)
		rc = set_room(b->expose, &f);
	if (rc) {
		log_fault(LOG_LEVEL_WARN, &f, "exposure dropped");
		unlinkat(b->exposures_dirfd, host, 0);
		free(x);
		return;
	}
	set_insert(b->expose, x);
}

enum rc expose_load(struct broker *b, struct fault *ret_f)
{
	int fd = openat(b->exposures_dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;

	b->expose = calloc(1, sizeof(*b->expose));
	if (!dir || !b->expose) {
		close_fd(&fd);
		return fault_set(ret_f, RC_NOMEM, errno, "read exposures");
	}
	while ((e = readdir(dir)))
		if (e->d_name[0] != '.')
			file_load(b, e->d_name);
	closedir(dir);
	for (size_t i = b->expose->n; i--;) {
		const struct expose *x = b->expose->all[i];
		const struct machine *m = *x->id ? machine_find(b, x->id) : NULL;

		if (*x->id && (!m || m->ending)) {
			char id[BROKER_ID_MAX];

			memcpy(id, x->id, sizeof(id));
			expose_machine_gone(b, id);
			i = MIN_OF(i, b->expose->n);
		}
	}
	return RC_OK;
}

void expose_free(struct broker *b)
{
	if (!b->expose)
		return;
	while (b->expose->n)
		free(b->expose->all[--b->expose->n]);
	free(b->expose->all);
	free(b->expose);
	b->expose = NULL;
}

/* --- operations ------------------------------------------------------------------------------------------------- */

const struct expose *expose_find(struct broker *b, const char *host)
{
	struct expose **at = set_find(b->expose, host);

	return at ? *at : NULL;
}

enum rc expose_add(struct broker *b, const struct broker_expose *q, struct fault *ret_f)
{
	const struct machine *m = *q->id ? machine_find(b, q->id) : NULL;
	struct expose *x = NULL, **old;
	enum rc rc;

	if (!expose_host_ok(q->host))
		return fault_set(ret_f, RC_INVALID, 0, "not a host name");
	if (strpbrk(q->line, "\n\r") || strpbrk(q->org, "\n\r"))
		return fault_set(ret_f, RC_INVALID, 0, "a text is more than one line");
	if (*q->id && (!m || m->ending || m->internal))
		return fault_set(ret_f, RC_ABSENT, 0, "no machine '%s'", q->id);
	if (!*q->id && !q->keep)
		return fault_set(ret_f, RC_INVALID, 0, "an exposure without a machine must be kept");
	rc = expose_make(q->host, q->id, q->org, q->keep != 0, q->line, &x, ret_f);
	old = set_find(b->expose, q->host);
	if (!rc && !old)
		rc = set_room(b->expose, ret_f);
	if (!rc)
		rc = file_put(b, x, ret_f);
	if (rc) {
		free(x);
		return rc;
	}
	if (old) {
		bool filled = !*(*old)->id && *x->id;

		free(*old);
		*old = x;
		/* Whoever waits for a machine behind this host learns that there is one. */
		if (filled)
			broker_event_expose(b, x->host, x->org, true);
	} else {
		set_insert(b->expose, x);
		broker_event_expose(b, x->host, x->org, true);
	}
	return RC_OK;
}

enum rc expose_delete(struct broker *b, const char *host, struct fault *ret_f)
{
	struct expose **at = set_find(b->expose, host);
	char name[BROKER_HOST_MAX];

	if (!at)
		return fault_set(ret_f, RC_ABSENT, 0, "no such exposed host");
	memcpy(name, (*at)->host, sizeof(name));
	if (unlinkat(b->exposures_dirfd, name, 0) < 0 && errno != ENOENT)
		return fault_set(ret_f, RC_SYS, errno, "remove exposure");
	set_remove(b->expose, at);
	broker_event_expose(b, name, "", false);
	return RC_OK;
}

size_t expose_list(struct broker *b, const char *after, const struct expose *ret[BROKER_LIST_MAX])
{
	size_t n = 0;

	for (size_t i = set_after(b->expose, after); i < b->expose->n && n < BROKER_LIST_MAX; i++)
		ret[n++] = b->expose->all[i];
	return n;
}

void expose_machine_gone(struct broker *b, const char *id)
{
	struct fault f;

	for (size_t i = b->expose ? b->expose->n : 0; i--;) {
		struct expose *x = b->expose->all[i];
		char host[BROKER_HOST_MAX];

		if (strcmp(x->id, id))
			continue;
		memcpy(host, x->host, sizeof(host));
		if (x->keep) {
			x->id[0] = '\0';
			if (file_put(b, x, &f))
				log_fault(LOG_LEVEL_ERROR, &f, "exposure");
		} else if (expose_delete(b, host, &f)) {
			log_fault(LOG_LEVEL_ERROR, &f, "exposure");
		}
	}
}
