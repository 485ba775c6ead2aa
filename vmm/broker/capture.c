/* SPDX-License-Identifier: Apache-2.0 */
/* The captures that there are, and starting from them. Making them: capture_make.c */
#include "vmm/broker/capture_set.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "vmm/broker/image.h"
#include "vmm/broker/limits.h"
#include "vmm/broker/peer.h"
#include "vmm/store/copy.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct capture_use {
	struct broker *b;
	unsigned int refs;
	struct template_use use;
};

bool capture_name_ok(const char *name)
{
	size_t n = strlen(name);

	for (const char *p = name; *p; p++)
		if (!((*p >= 'a' && *p <= 'z') || (*p >= '0' && *p <= '9') || *p == '_' || *p == '-'))
			return false;
	return n && n < BROKER_CAPTURE_MAX;
}

/* --- what is open ------------------------------------------------------------------------------------------------- */

const struct template_use *capture_use(const struct capture_use *u)
{
	return &u->use;
}

void capture_release(struct capture_use *u)
{
	if (!u || --u->refs)
		return;
	if (u->use.snap)
		u->b->engine->ops->snapshot_free(u->use.snap);
	close_fd(&u->use.overlay_fd);
	close_fd(&u->use.image_fd);
	free(u);
}

static void cached_drop(struct capture *c)
{
	capture_release(c->use);
	c->use = NULL;
}

/* What nobody started from for a while is closed. */
static void on_idle(void *arg)
{
	struct capture_set *s = arg;
	uint64_t now = now_ms(), next = UINT64_MAX;

	for (struct capture *c = s->first; c; c = c->next) {
		if (c->use && !c->checking && c->idle_ms <= now)
			cached_drop(c);
		if (c->use)
			next = MIN_OF(next, c->idle_ms);
	}
	loop_timer_set(s->idle, next);
}

/* Room for one more: the one that was not wanted for the longest time goes. */
static void cache_bound(struct capture_set *s)
{
	struct capture *oldest = NULL;
	size_t n = 0;

	for (struct capture *c = s->first; c; c = c->next) {
		if (!c->use)
			continue;
		n++;
		if (c->checking)
			continue;
		if (!oldest || c->idle_ms < oldest->idle_ms)
			oldest = c;
	}
	if (oldest && n >= CAPTURES_OPEN_MAX)
		cached_drop(oldest);
}

static enum rc use_fill(struct broker *b, const struct capture *c, struct template_use *u, struct fault *ret_f)
{
	_cleanup_fd_ int dirfd = openat(b->captures->dirfd, c->name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	_cleanup_fd_ int save = -1;
	char tag[MACHINE_TAG_MAX];
	enum rc rc;

	if (dirfd < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "open capture '%s'", c->name);
	save = openat(dirfd, CAPTURE_MACHINE_DIR, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	u->overlay_fd = openat(dirfd, CAPTURE_OVERLAY_FILE, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	if (save < 0 || u->overlay_fd < 0)
		return fault_set(ret_f, RC_STATE, errno, "capture '%s' is not complete", c->name);
	rc = image_open(b, c->r.image, NULL, &u->image_fd, ret_f);
	if (rc)
		return fault_set(ret_f, RC_STATE, 0, "capture '%s' needs image '%.60s', which is gone", c->name, c->r.image);
	rc = image_tag(u->image_fd, tag, ret_f);
	if (!rc && strcmp(tag, c->r.image_tag))
		rc = fault_set(ret_f, RC_STATE, 0, "capture '%s' was made with an older image '%.60s'", c->name, c->r.image);
	if (!rc)
		rc = b->engine->ops->snapshot_map(b->engine, save, &u->snap, ret_f);
	return rc;
}

static enum rc use_open(struct broker *b, const struct capture *c, struct capture_use **ret, struct fault *ret_f)
{
	struct capture_use *u = calloc(1, sizeof(*u));
	enum rc rc;

	if (!u)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	*u = (struct capture_use){ .b = b, .refs = 1, .use = { NULL, -1, -1 } };
	rc = use_fill(b, c, &u->use, ret_f);
	if (rc)
		capture_release(u);
	else
		*ret = u;
	return rc;
}

/* --- is it what it was? --------------------------------------------------------------------------------------------- */

struct capture_wait {
	struct capture_wait *next, **at;
	capture_fn *fn;
	void *arg;
};

void capture_cancel(struct capture_wait *w)
{
	if (!w)
		return;
	*w->at = w->next;
	if (w->next)
		w->next->at = w->at;
	free(w);
}

/* f NULL: it is good, and each gets a use of its own. */
static void waits_tell(struct capture *c, const struct fault *f)
{
	struct capture_wait *w = c->waits;
	struct capture_use *u = f ? NULL : c->use;

	/* One by one from the head: a callback may cancel others or ask anew. */
	c->waits = NULL;
	if (w)
		w->at = &w;
	if (u)
		u->refs++;
	while (w) {
		capture_fn *fn = w->fn;
		void *arg = w->arg;

		capture_cancel(w);
		if (u)
			u->refs++;
		fn(arg, u, f);
	}
	capture_release(u);
}

static bool files_now(const struct broker *b, const struct capture *c, struct capture_file files[CAPTURE_FILES])
{
	static const char *const names[CAPTURE_FILES] = { "memory", "state", "base" };
	_cleanup_fd_ int dirfd = openat(b->captures->dirfd, c->name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	_cleanup_fd_ int fd = dirfd < 0 ? -1 : openat(dirfd, CAPTURE_MACHINE_DIR, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	struct stat st;

	memset(files, 0, CAPTURE_FILES * sizeof(files[0]));
	for (size_t i = 0; fd >= 0 && i < CAPTURE_FILES; i++)
		if (!fstatat(fd, names[i], &st, AT_SYMLINK_NOFOLLOW))
			files[i] = (struct capture_file){ st.st_ino, (uint64_t)st.st_size,
							  (uint64_t)st.st_mtim.tv_sec * 1000000000 + (uint64_t)st.st_mtim.tv_nsec };
	return fd >= 0;
}

void capture_good(struct broker *b, struct capture *c)
{
	c->good = files_now(b, c, c->files);
}

static bool still_good(struct broker *b, const struct capture *c)
{
	struct capture_file now[CAPTURE_FILES];

	return c->good && files_now(b, c, now) && !memcmp(now, c->files, sizeof(now));
}

static void on_checked(void *arg, enum rc rc, const struct fault *f)
{
	struct capture *c = arg;
	struct broker *b = c->use->b;
	struct fault ff;

	c->checking = false;
	c->idle_ms = now_ms() + CAPTURE_IDLE_MS;
	if (!rc) {
		capture_good(b, c);
		log_info("capture checked name=%s", c->name);
		waits_tell(c, NULL);
		return;
	}
	fault_set(&ff, rc, f->sys, "capture '%s': %.100s", c->name, f->text);
	log_fault(LOG_LEVEL_ERROR, &ff, "capture");
	cached_drop(c);
	waits_tell(c, &ff);
}

static enum rc check_wait(struct broker *b, struct capture *c, capture_fn *fn, void *arg, struct capture_wait **ret,
			  struct fault *ret_f)
{
	struct capture_wait *w = malloc(sizeof(*w));
	enum rc rc = RC_OK;

	if (!w)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	if (!c->checking)
		rc = b->engine->ops->snapshot_check(c->use->use.snap, on_checked, c, ret_f);
	if (rc) {
		free(w);
		return rc;
	}
	c->checking = true;
	*w = (struct capture_wait){ .next = c->waits, .at = &c->waits, .fn = fn, .arg = arg };
	if (w->next)
		w->next->at = &w->next;
	c->waits = w;
	*ret = w;
	return fault_set(ret_f, RC_AGAIN, 0, "the capture is being checked");
}

/* --- the set -------------------------------------------------------------------------------------------------------- */

struct capture *capture_find(struct broker *b, const char *name)
{
	for (struct capture *c = b->captures->first; c; c = c->next)
		if (!strcmp(c->name, name))
			return c;
	return NULL;
}

uint64_t captures_bytes(const struct broker *b)
{
	uint64_t sum = 0;

	for (const struct capture *c = b->captures->first; c; c = c->next)
		sum += c->bytes;
	return sum;
}

static void capture_forget(struct broker *b, struct capture *c)
{
	struct capture **at = &b->captures->first;
	struct fault f;

	while (*at != c)
		at = &(*at)->next;
	*at = c->next;
	b->captures->n--;
	cached_drop(c);
	fault_set(&f, RC_ABSENT, 0, "capture '%s' was removed or replaced", c->name);
	waits_tell(c, &f);
	free(c);
}

/* Of a file with two names each counts half. */
static uint64_t bytes_below(int dirfd, const char *name)
{
	int fd = openat(dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;
	uint64_t sum = 0;
	struct stat st;

	if (!dir)
		close_fd(&fd);
	while (dir && (e = readdir(dir)))
		if (!fstatat(fd, e->d_name, &st, AT_SYMLINK_NOFOLLOW) && S_ISREG(st.st_mode))
			sum += (uint64_t)st.st_blocks * 512 / st.st_nlink;
	if (dir)
		closedir(dir);
	return sum;
}

void captures_count(struct broker *b)
{
	for (struct capture *c = b->captures->first; c; c = c->next) {
		_cleanup_fd_ int fd = openat(b->captures->dirfd, c->name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

		if (fd >= 0)
			c->bytes = bytes_below(fd, ".") + bytes_below(fd, CAPTURE_MACHINE_DIR);
	}
}

enum rc capture_load(struct broker *b, const char *name, struct capture **ret, struct fault *ret_f)
{
	_cleanup_fd_ int fd = openat(b->captures->dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	struct capture *c;
	struct stat st;
	enum rc rc;

	if (fd < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "open capture");
	c = calloc(1, sizeof(*c));
	if (!c)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	rc = record_read(fd, &c->r, ret_f);
	if (!rc && fstatat(fd, "record", &st, AT_SYMLINK_NOFOLLOW) < 0)
		rc = fault_set(ret_f, RC_SYS, errno, "stat record");
	if (rc) {
		free(c);
		return rc;
	}
	snprintf(c->name, sizeof(c->name), "%s", name);
	c->bytes = bytes_below(fd, ".") + bytes_below(fd, CAPTURE_MACHINE_DIR);
	c->last_used_ms = (uint64_t)st.st_mtim.tv_sec * 1000 + (uint64_t)st.st_mtim.tv_nsec / 1000000;
	*ret = c;
	return RC_OK;
}

void capture_put(struct broker *b, struct capture *c)
{
	struct capture *old = capture_find(b, c->name), **at = &b->captures->first;

	if (old)
		capture_forget(b, old);
	/* By name, as lists go through them. */
	while (*at && strcmp((*at)->name, c->name) < 0)
		at = &(*at)->next;
	c->next = *at;
	*at = c;
	b->captures->n++;
}

/* When it was last used is the date of its record: one call, and it is there after a restart. */
static void used_now(struct broker *b, struct capture *c)
{
	char path[BROKER_CAPTURE_MAX + 8];

	c->last_used_ms = wall_ms();
	snprintf(path, sizeof(path), "%s/record", c->name);
	if (utimensat(b->captures->dirfd, path, NULL, AT_SYMLINK_NOFOLLOW) < 0)
		log_warn("date of a capture's last use could not be kept name=%s", c->name);
}

enum rc capture_get(struct broker *b, const char *name, uint32_t memory_mib, capture_fn *fn, void *arg, struct capture_use **ret,
		    char ret_image[BROKER_NAME_MAX], struct capture_wait **ret_wait, struct fault *ret_f)
{
	struct capture *c = capture_name_ok(name) ? capture_find(b, name) : NULL;
	enum rc rc;

	if (!c)
		return fault_set(ret_f, RC_ABSENT, 0, "no capture '%.64s'", name);
	if (c->r.memory_mib != memory_mib)
		return fault_set(ret_f, RC_INVALID, 0, "capture '%s' is of a machine of %u MiB", name, c->r.memory_mib);
	if (strcmp(c->r.engine, b->verdict.name))
		return fault_set(ret_f, RC_STATE, 0, "capture '%s' is of engine %s, this host uses %s", name, c->r.engine,
				 b->verdict.name);
	if (c->r.vcpus != b->config->vm_vcpus)
		return fault_set(ret_f, RC_STATE, 0, "capture '%s' is of a machine with %u processors", name, c->r.vcpus);
	/* Another description, so that what reads it below is nobody's but ours to end. */
	if (c->use && !c->checking && !still_good(b, c))
		cached_drop(c);
	if (!c->use) {
		cache_bound(b->captures);
		rc = use_open(b, c, &c->use, ret_f);
		if (rc)
			return rc;
	}
	c->idle_ms = now_ms() + CAPTURE_IDLE_MS;
	loop_timer_set(b->captures->idle, now_ms() + CAPTURE_IDLE_MS);
	used_now(b, c);
	memcpy(ret_image, c->r.image, BROKER_NAME_MAX);
	if (c->checking || !still_good(b, c))
		return check_wait(b, c, fn, arg, ret_wait, ret_f);
	c->use->refs++;
	*ret = c->use;
	return RC_OK;
}

void capture_delete(struct broker *b, struct request *r, const char *name)
{
	struct capture *c = capture_name_ok(name) ? capture_find(b, name) : NULL;
	struct fault f;
	enum rc rc = RC_OK;

	if (!c)
		rc = fault_set(&f, RC_ABSENT, 0, "no capture '%.64s'", name);
	if (!rc)
		rc = tree_remove_at(b->captures->dirfd, name, &f);
	if (rc) {
		request_fail(r, &f);
		return;
	}
	capture_forget(b, c);
	captures_count(b);
	log_info("capture deleted name=%s", name);
	request_reply(r, NULL, NULL, NULL, 0);
}

void capture_list(struct broker *b, struct request *r, const char *after)
{
	static uint8_t mem[BROKER_LIST_MAX * (sizeof(struct broker_capture_row) + 4)];
	struct broker_capture_list list = { 0 };
	struct wire w;

	wire_init(&w, mem, sizeof(mem));
	for (const struct capture *c = b->captures->first; c && list.n < BROKER_LIST_MAX; c = c->next) {
		struct broker_capture_row row = { .bytes = c->bytes, .created_ms = c->r.created_ms,
						  .last_used_ms = c->last_used_ms, .memory_mib = c->r.memory_mib };

		if (strcmp(c->name, after) <= 0)
			continue;
		memcpy(row.name, c->name, sizeof(row.name));
		broker_capture_row_put(&w, &row);
		list.n++;
	}
	list.rows = mem;
	list.rows_n = wire_len(&w);
	request_reply(r, (message_put_fn *)broker_capture_list_put, &list, NULL, 0);
}

/* --- start and end ---------------------------------------------------------------------------------------------------- */

static void found(struct broker *b, const char *name)
{
	struct capture *c;
	struct fault f;

	if (name[0] == '.') {
		log_info("capture removed that was not finished name=%s", name + 1);
		if (tree_remove_at(b->captures->dirfd, name, &f))
			log_fault(LOG_LEVEL_WARN, &f, "capture");
	} else if (!capture_name_ok(name) || capture_load(b, name, &c, &f)) {
		log_warn("not a capture of this version, left alone: captures/%s", name);
	} else {
		capture_put(b, c);
	}
}

enum rc captures_init(struct broker *b, struct fault *ret_f)
{
	struct dirent *e;
	DIR *dir;
	int fd;
	enum rc rc;

	b->captures = calloc(1, sizeof(*b->captures));
	if (!b->captures)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	b->captures->dirfd = -1;
	rc = dir_open_at(b->state_dirfd, "captures", 0700, &b->captures->dirfd, ret_f);
	if (!rc)
		rc = loop_timer(b->loop, UINT64_MAX, on_idle, b->captures, &b->captures->idle, ret_f);
	if (rc)
		return rc;
	fd = openat(b->captures->dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	dir = fd < 0 ? NULL : fdopendir(fd);
	if (!dir) {
		close_fd(&fd);
		return fault_set(ret_f, RC_SYS, errno, "read directory of captures");
	}
	while ((e = readdir(dir)))
		if (strcmp(e->d_name, ".") && strcmp(e->d_name, ".."))
			found(b, e->d_name);
	closedir(dir);
	return RC_OK;
}

void captures_free(struct broker *b)
{
	struct capture_set *s = b->captures;

	if (!s)
		return;
	capture_ops_free(b);
	while (s->first)
		capture_forget(b, s->first);
	source_drop(&s->idle);
	close_fd(&s->dirfd);
	free(s);
	b->captures = NULL;
}
