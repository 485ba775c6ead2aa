/* SPDX-License-Identifier: Apache-2.0 */
/* Machines on disk (save.c has the layout), opened, checked, and written from what a machine was in one instant. */
#include "vmm/engines/qemu/vm.h"

#include "base/cleanup.h"
#include "base/fd.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>

/* --- its manifest ---------------------------------------------------------------------------------------------- */

struct manifest {
	struct json_object *root;
	const char *engine, *qemu, *shape, *memory_sum, *state_sum;
	uint64_t format, memory_mib, tsc_khz, state_bytes;
};

static enum rc get_str(struct manifest *m, const char *name, const char **ret, struct fault *ret_f)
{
	struct json_object *v;

	if (!json_object_object_get_ex(m->root, name, &v) || !json_object_is_type(v, json_type_string))
		return fault_set(ret_f, RC_STATE, 0, "snapshot's manifest has no text '%s'", name);
	*ret = json_object_get_string(v);
	return RC_OK;
}

static enum rc get_int(struct manifest *m, const char *name, uint64_t *ret, struct fault *ret_f)
{
	struct json_object *v;

	if (!json_object_object_get_ex(m->root, name, &v) || !json_object_is_type(v, json_type_int) ||
	    json_object_get_int64(v) < 0)
		return fault_set(ret_f, RC_STATE, 0, "snapshot's manifest has no number '%s'", name);
	*ret = (uint64_t)json_object_get_int64(v);
	return RC_OK;
}

static void manifest_free(struct manifest *m)
{
	json_object_put(m->root);
}

static enum rc manifest_read(int dirfd, struct manifest *m, struct fault *ret_f)
{
	_cleanup_free_ char *text = NULL;
	enum rc rc = file_read_at(dirfd, QEMU_MANIFEST_FILE, QEMU_MANIFEST_MAX, &text, NULL, ret_f);

	if (rc)
		return rc;
	m->root = json_tokener_parse(text);
	if (!json_object_is_type(m->root, json_type_object))
		return fault_set(ret_f, RC_STATE, 0, "snapshot's manifest is damaged");
	if ((rc = get_int(m, "format", &m->format, ret_f)) || (rc = get_str(m, "engine", &m->engine, ret_f)) ||
	    (rc = get_str(m, "qemu", &m->qemu, ret_f)) || (rc = get_str(m, "shape", &m->shape, ret_f)) ||
	    (rc = get_int(m, "memory_mib", &m->memory_mib, ret_f)) || (rc = get_int(m, "tsc_khz", &m->tsc_khz, ret_f)) ||
	    (rc = get_int(m, "state_bytes", &m->state_bytes, ret_f)) ||
	    (rc = get_str(m, "memory_sha256", &m->memory_sum, ret_f)) ||
	    (rc = get_str(m, "state_sha256", &m->state_sum, ret_f)))
		return rc;
	return RC_OK;
}

static enum rc manifest_check(const struct manifest *m, const struct qemu *e, struct fault *ret_f)
{
	uint64_t delta = m->tsc_khz > e->tsc_khz ? m->tsc_khz - e->tsc_khz : e->tsc_khz - m->tsc_khz;

	if (m->format != QEMU_MANIFEST_FORMAT)
		return fault_set(ret_f, RC_STATE, 0, "snapshot has format %" PRIu64 ", not %d", m->format, QEMU_MANIFEST_FORMAT);
	if (strcmp(m->engine, e->base.ops->name))
		return fault_set(ret_f, RC_STATE, 0, "snapshot is of engine '%.16s'", m->engine);
	if (strcmp(m->qemu, e->version))
		return fault_set(ret_f, RC_STATE, 0, "snapshot is of another QEMU: '%.80s'", m->qemu);
	if (delta * 1000000 > (uint64_t)e->tsc_khz * QEMU_TSC_PPM_MAX)
		return fault_set(ret_f, RC_STATE, 0, "snapshot's clock is %" PRIu64 " kHz, this host's %u", m->tsc_khz,
				 e->tsc_khz);
	if (!m->memory_mib || m->memory_mib > QEMU_MEMORY_MIB_MAX || !m->state_bytes || m->state_bytes > QEMU_STATE_MAX ||
	    strlen(m->shape) >= QEMU_SHAPE_MAX)
		return fault_set(ret_f, RC_STATE, 0, "snapshot's manifest has impossible sizes");
	return RC_OK;
}

static enum rc sum_check(const char *what, const uint8_t digest[MEMORY_DIGEST], const char *wanted, struct fault *ret_f)
{
	char text[2 * MEMORY_DIGEST + 1];

	digest_hex(text, digest);
	return strcmp(text, wanted) ? fault_set(ret_f, RC_STATE, 0, "snapshot is damaged: checksum of its %s", what) : RC_OK;
}

static enum rc state_load(int dirfd, const struct manifest *m, struct engine_snapshot *snap, struct fault *ret_f)
{
	_cleanup_fd_ int fd = openat(dirfd, QEMU_STATE_FILE, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	uint8_t digest[MEMORY_DIGEST];
	struct stat st;
	enum rc rc;

	if (fd < 0 || fstat(fd, &st) < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "open a snapshot's state");
	if ((uint64_t)st.st_size != m->state_bytes)
		return fault_set(ret_f, RC_STATE, 0, "snapshot is damaged: length of its state");
	rc = memory_file("nestbox-state", 0, &snap->state_fd, ret_f);
	for (uint64_t left = m->state_bytes; !rc && left;) {
		ssize_t n = sendfile(snap->state_fd, fd, NULL, left);

		if (n <= 0)
			rc = fault_set(ret_f, RC_SYS, errno, "read a snapshot's state");
		else
			left -= (uint64_t)n;
	}
	if (!rc)
		rc = memory_digest_file(snap->state_fd, m->state_bytes, digest, ret_f);
	if (!rc)
		rc = sum_check("state", digest, m->state_sum, ret_f);
	return rc ? rc : memory_seal(snap->state_fd, ret_f);
}

/* The file itself: a page is read when a machine touches it. */
static enum rc memory_map(int dirfd, const struct manifest *m, struct engine_snapshot *snap, struct fault *ret_f)
{
	struct stat st;

	snap->ram_fd = openat(dirfd, QEMU_MEMORY_FILE, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (snap->ram_fd < 0 || fstat(snap->ram_fd, &st) < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "open a snapshot's memory");
	/* Shorter than it says would be SIGBUS in QEMU. */
	if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size != m->memory_mib << 20)
		return fault_set(ret_f, RC_STATE, 0, "snapshot is damaged: length of its memory");
	return RC_OK;
}

void qemu_snapshot_free(struct engine_snapshot *snap)
{
	if (!snap)
		return;
	job_free(snap->job);
	close_fd(&snap->out_fd);
	close_fd(&snap->ram_fd);
	close_fd(&snap->state_fd);
	close_fd(&snap->to_fd);
	close_fd(&snap->dirfd);
	turn_give(&snap->turn);
	free(snap);
}

struct engine_snapshot *snapshot_new(struct qemu *e, const char *shape, uint32_t memory_mib, int ram_fd, int state_fd)
{
	struct engine_snapshot *snap = calloc(1, sizeof(*snap));

	if (!snap)
		return NULL;
	*snap = (struct engine_snapshot){ .e = e, .ram_fd = ram_fd, .state_fd = state_fd, .out_fd = -1, .to_fd = -1, .dirfd = -1,
					  .memory_mib = memory_mib };
	snprintf(snap->shape, sizeof(snap->shape), "%s", shape);
	return snap;
}

enum rc qemu_snapshot_map(struct engine *base, int dirfd, struct engine_snapshot **ret, struct fault *ret_f)
{
	struct qemu *e = (struct qemu *)base;
	_cleanup_(manifest_free) struct manifest m = { 0 };
	struct engine_snapshot *snap = snapshot_new(e, "", 0, -1, -1);
	enum rc rc;

	if (!snap)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	rc = manifest_read(dirfd, &m, ret_f);
	if (!rc)
		rc = manifest_check(&m, e, ret_f);
	if (!rc)
		rc = state_load(dirfd, &m, snap, ret_f);
	if (!rc)
		rc = memory_map(dirfd, &m, snap, ret_f);
	if (rc) {
		qemu_snapshot_free(snap);
		return rc;
	}
	snap->memory_mib = (uint32_t)m.memory_mib;
	snprintf(snap->shape, sizeof(snap->shape), "%s", m.shape);
	snprintf(snap->sum, sizeof(snap->sum), "%s", m.memory_sum);
	*ret = snap;
	return RC_OK;
}

/* --- by a process beside ------------------------------------------------------------------------------------------ */

static void on_checked(void *arg, const struct job_result *r);
static void on_stored(void *arg, const struct job_result *r);

static void job_end(struct engine_snapshot *snap, enum rc rc, const struct fault *f)
{
	engine_done_fn *done = snap->done;
	void *arg = snap->arg;

	job_free(take_ptr(snap->job));
	close_fd(&snap->dirfd);
	turn_give(&snap->turn);
	done(arg, rc, rc ? f : NULL); /* may free it */
}

static enum rc copy_begin(struct engine_snapshot *snap, struct fault *ret_f)
{
	struct job_spec job = { .from = { .base_fd = snap->ram_fd, .size = (uint64_t)snap->memory_mib << 20 }, .out_fd = snap->out_fd,
				.sealed = snap->to_fd >= 0, .graves = &snap->e->graves };
	enum rc rc = job_start(snap->e->base.loop, &job, snap->ended, snap, &snap->job, ret_f);

	close_fd(&snap->out_fd);
	/* The job has what is stored; the last one to close it takes the time to free its pages, and that shall not be the broker. */
	if (!rc && snap->ended == on_stored)
		close_fd(&snap->ram_fd);
	return rc;
}

static void on_turn(void *arg)
{
	struct engine_snapshot *snap = arg;
	struct fault f;
	enum rc rc = copy_begin(snap, &f);

	if (rc)
		job_end(snap, rc, &f);
}

/* out_fd is borrowed; -1: to nowhere. */
static enum rc copy(struct engine_snapshot *snap, int out_fd, job_done_fn *ended, engine_done_fn *done, void *arg, struct fault *ret_f)
{
	enum rc rc = RC_OK;

	if (snap->turn.of)
		return fault_set(ret_f, RC_AGAIN, 0, "the snapshot is being read or written");
	snap->ended = ended;
	snap->done = done;
	snap->arg = arg;
	snap->out_fd = out_fd < 0 ? -1 : fcntl(out_fd, F_DUPFD_CLOEXEC, 0);
	if (out_fd >= 0 && snap->out_fd < 0)
		return fault_set(ret_f, RC_SYS, errno, "duplicate descriptor");
	if (turn_take(&snap->e->turns, &snap->turn, ended == on_checked, on_turn, snap))
		rc = copy_begin(snap, ret_f);
	if (rc)
		turn_give(&snap->turn);
	return rc;
}

static void on_checked(void *arg, const struct job_result *r)
{
	struct engine_snapshot *snap = arg;
	struct fault f = r->fault;
	enum rc rc = f.rc ?: sum_check("memory", r->sum.digest, snap->sum, &f);

	/* What was copied is what machines map from now on. */
	if (!rc && snap->to_fd >= 0) {
		close_fd(&snap->ram_fd);
		snap->ram_fd = take_fd(&snap->to_fd);
	}
	job_end(snap, rc, &f);
}

enum rc qemu_snapshot_check(struct engine_snapshot *snap, engine_done_fn *done, void *arg, struct fault *ret_f)
{
	return copy(snap, -1, on_checked, done, arg, ret_f);
}

enum rc qemu_snapshot_open(struct engine *base, int dirfd, engine_done_fn *done, void *arg, struct engine_snapshot **ret,
			   struct fault *ret_f)
{
	struct engine_snapshot *snap;
	enum rc rc = qemu_snapshot_map(base, dirfd, &snap, ret_f);

	if (rc)
		return rc;
	rc = memory_file("nestbox-ram", 0, &snap->to_fd, ret_f);
	if (!rc)
		rc = copy(snap, snap->to_fd, on_checked, done, arg, ret_f);
	if (rc)
		qemu_snapshot_free(snap);
	else
		*ret = snap;
	return rc;
}

static enum rc state_store(struct engine_snapshot *snap, struct fault *ret_f)
{
	_cleanup_fd_ int fd = openat(snap->dirfd, QEMU_STATE_FILE, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	struct stat st;
	off_t at = 0;

	if (fd < 0 || fstat(snap->state_fd, &st) < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "create a snapshot's files");
	while (at < st.st_size)
		if (sendfile(fd, snap->state_fd, &at, (size_t)(st.st_size - at)) <= 0)
			return fault_set(ret_f, rc_from_errno(errno), errno, "write a snapshot's state");
	return RC_OK;
}

static void on_stored(void *arg, const struct job_result *r)
{
	struct engine_snapshot *snap = arg;
	struct fault f = r->fault;
	enum rc rc = f.rc ?: state_store(snap, &f);

	if (!rc)
		rc = manifest_write(snap->e, snap->dirfd, snap->shape, snap->memory_mib, snap->state_fd, &r->sum, &f);
	job_end(snap, rc, &f);
}

/* Always all of it: what differs from another is not looked for. */
enum rc qemu_snapshot_store(struct engine_snapshot *snap, int dirfd, int base_dirfd, engine_done_fn *done, void *arg,
			    struct fault *ret_f)
{
	_cleanup_fd_ int memory = openat(dirfd, QEMU_MEMORY_FILE, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	enum rc rc;

	(void)base_dirfd;
	if (memory < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "create a snapshot's files");
	if (snap->turn.of)
		return fault_set(ret_f, RC_AGAIN, 0, "the snapshot is being read or written");
	close_fd(&snap->dirfd);
	snap->dirfd = fcntl(dirfd, F_DUPFD_CLOEXEC, 0);
	if (snap->dirfd < 0)
		return fault_set(ret_f, RC_SYS, errno, "directory");
	rc = copy(snap, memory, on_stored, done, arg, ret_f);
	if (rc)
		close_fd(&snap->dirfd);
	return rc;
}
