/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/broker/verify.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "vmm/broker/limits.h"
#include "vmm/broker/peer.h"
#include "vmm/broker/volume.h"
#include "vmm/store/task.h"
#include "vmm/store/volume.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

struct verify_wait {
	struct verify_wait *next, **at;
	verify_fn *fn;
	void *arg;
};

struct entry {
	struct entry *next;
	struct broker *b;
	char name[BROKER_NAME_MAX];
	enum { UNKNOWN, GOOD, DAMAGED } state;
	struct stat as; /* the file that this is about */
	struct task *task;
	struct verify_wait *waits;
};

struct verify_set {
	struct entry *first;
	size_t running;
};

static bool same_file(const struct stat *a, const struct stat *b)
{
	return a->st_ino == b->st_ino && a->st_dev == b->st_dev && a->st_size == b->st_size &&
	       a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec &&
	       a->st_ctim.tv_sec == b->st_ctim.tv_sec && a->st_ctim.tv_nsec == b->st_ctim.tv_nsec;
}

static void on_asked(void *arg, enum rc rc, const struct fault *f);

static void entry_free(struct entry *e)
{
	struct fault f;

	task_cancel(e->task);
	fault_set(&f, RC_AGAIN, 0, "the broker ended");
	while (e->waits) {
		struct verify_wait *w = e->waits;
		struct request *r = w->fn == on_asked ? w->arg : NULL;

		verify_cancel(w);
		if (r)
			on_asked(r, RC_AGAIN, &f);
	}
	free(e);
}

/* Those of snapshots that are no more go on the way. */
static struct entry *entry_get(struct broker *b, const char *name)
{
	struct entry *found = NULL;

	for (struct entry **at = &b->verify->first; *at;) {
		struct entry *e = *at;

		if (!strcmp(e->name, name)) {
			found = e;
		} else if (!e->task && !e->waits && faccessat(b->snapshots_dirfd, e->name, F_OK, AT_SYMLINK_NOFOLLOW) < 0) {
			*at = e->next;
			entry_free(e);
			continue;
		}
		at = &e->next;
	}
	if (found)
		return found;
	found = calloc(1, sizeof(*found));
	if (!found)
		return NULL;
	found->b = b;
	snprintf(found->name, sizeof(found->name), "%s", name);
	found->next = b->verify->first;
	b->verify->first = found;
	return found;
}

/* --- waiting ---------------------------------------------------------------------------------------------------- */

void verify_cancel(struct verify_wait *w)
{
	if (!w)
		return;
	*w->at = w->next;
	if (w->next)
		w->next->at = w->at;
	free(w);
}

static enum rc wait_add(struct entry *e, verify_fn *fn, void *arg, struct verify_wait **ret, struct fault *ret_f)
{
	struct verify_wait *w = malloc(sizeof(*w));

	if (!w)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	*w = (struct verify_wait){ .next = e->waits, .at = &e->waits, .fn = fn, .arg = arg };
	if (w->next)
		w->next->at = &w->next;
	e->waits = w;
	*ret = w;
	return fault_set(ret_f, RC_AGAIN, 0, "the snapshot is being read");
}

static void waits_tell(struct entry *e, enum rc rc, const struct fault *f)
{
	/* One by one from the head: a callback may cancel others or ask anew. */
	struct verify_wait *w = e->waits;

	e->waits = NULL;
	if (w)
		w->at = &w;
	while (w) {
		verify_fn *fn = w->fn;
		void *arg = w->arg;

		verify_cancel(w);
		fn(arg, rc, f);
	}
}

/* --- reading ---------------------------------------------------------------------------------------------------- */

static enum rc damaged(const char *name, struct fault *ret_f)
{
	return fault_set(ret_f, RC_DAMAGED, 0, "snapshot '%.60s' is damaged: its content does not match its checksum", name);
}

static void on_read(void *arg, enum rc rc, const struct fault *f)
{
	struct entry *e = arg;
	struct fault ff;

	e->task = NULL;
	e->b->verify->running--;
	if (!rc) {
		e->state = GOOD;
	} else if (rc == RC_STATE) {
		e->state = DAMAGED;
		rc = damaged(e->name, &ff);
		log_fault(LOG_LEVEL_ERROR, &ff, "verify");
		f = &ff;
	} else {
		e->state = UNKNOWN;
		ff = *f;
		fault_wrap(&ff, "snapshot '%.60s' cannot be read", e->name);
		f = &ff;
	}
	waits_tell(e, rc, f);
}

static enum rc read_begin(struct entry *e, int disk_fd, struct fault *ret_f)
{
	_cleanup_fd_ int sum_fd = -1;
	enum rc rc = volume_sum_open(e->b->snapshots_dirfd, e->name, &sum_fd, ret_f);

	if (rc)
		return rc;
	if (e->b->verify->running >= VERIFY_MAX)
		return fault_set(ret_f, RC_LIMIT, 0, "%d snapshots are being read already", VERIFY_MAX);
	rc = task_disk(e->b->loop, "check", disk_fd, -1, sum_fd, on_read, e, &e->task, ret_f);
	if (!rc)
		e->b->verify->running++;
	return rc;
}

enum rc verify_get(struct broker *b, const char *snapshot, bool anew, verify_fn *fn, void *arg, struct verify_wait **ret,
		   struct fault *ret_f)
{
	_cleanup_fd_ int fd = -1;
	struct entry *e = entry_get(b, snapshot);
	struct volume v;
	struct stat now;
	enum rc rc;

	if (!e)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	rc = volume_open(b->snapshots_dirfd, snapshot, false, &v, ret_f);
	if (rc)
		return rc;
	fd = v.fd;
	if (e->task)
		return wait_add(e, fn, arg, ret, ret_f);
	if (fstat(fd, &now) < 0)
		return fault_set(ret_f, RC_SYS, errno, "stat snapshot");
	if (!anew && e->state != UNKNOWN && same_file(&now, &e->as))
		return e->state == GOOD ? RC_OK : damaged(snapshot, ret_f);
	e->state = UNKNOWN;
	e->as = now;
	rc = read_begin(e, fd, ret_f);
	return rc ? rc : wait_add(e, fn, arg, ret, ret_f);
}

void verify_good(struct broker *b, const char *snapshot)
{
	_cleanup_fd_ int fd = -1;
	struct entry *e = entry_get(b, snapshot);
	struct volume v;

	if (!e || e->task || volume_open(b->snapshots_dirfd, snapshot, false, &v, NULL))
		return;
	fd = v.fd;
	e->state = fstat(fd, &e->as) ? UNKNOWN : GOOD;
}

/* --- VOLUME_VERIFY ---------------------------------------------------------------------------------------------- */

static void on_asked(void *arg, enum rc rc, const struct fault *f)
{
	struct request *r = arg;

	if (rc)
		request_fail(r, f);
	else
		request_reply(r, NULL, NULL, NULL, 0);
}

void verify_request(struct broker *b, struct request *r, const char *name)
{
	struct verify_wait *w;
	struct fault f;
	enum rc rc;

	if (broker_name_ok(name))
		rc = verify_get(b, name, true, on_asked, r, &w, &f);
	else
		rc = fault_set(&f, RC_INVALID, 0, "not a snapshot's name");
	if (rc != RC_AGAIN)
		on_asked(r, rc, &f);
}

enum rc verify_new(struct broker *b, struct fault *ret_f)
{
	b->verify = calloc(1, sizeof(*b->verify));
	return b->verify ? RC_OK : fault_set(ret_f, RC_NOMEM, 0, "out of memory");
}

void verify_free(struct broker *b)
{
	if (!b->verify)
		return;
	while (b->verify->first) {
		struct entry *e = b->verify->first;

		b->verify->first = e->next;
		entry_free(e);
	}
	free(b->verify);
	b->verify = NULL;
}
