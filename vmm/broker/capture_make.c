/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/broker/capture_set.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "vmm/broker/charge.h"
#include "vmm/broker/limits.h"
#include "vmm/broker/machine.h"
#include "vmm/broker/peer.h"
#include "vmm/store/copy.h"
#include "vmm/store/task.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

struct capture_op {
	struct capture_op *next, **at;
	struct broker *b;
	struct request *r;
	struct machine *m;   /* NULL: it goes on by itself, or is gone */
	char name[BROKER_CAPTURE_MAX], new_name[BROKER_CAPTURE_MAX + 1];
	char id[BROKER_ID_MAX];
	int dirfd, save_dirfd, overlay_fd;
	bool made;           /* captures/.<name>/ */
	struct engine_snapshot *snap; /* what it was in one instant, in memory */
	struct charge *charge;
	struct task *task;
	uint32_t pause_us;
	uint64_t bytes;      /* of what was kept */
	struct fault f;      /* rc set: it fails */
};

static void op_free(struct capture_op *op)
{
	*op->at = op->next;
	if (op->next)
		op->next->at = op->at;
	task_cancel(op->task);
	if (op->snap)
		op->b->engine->ops->snapshot_free(op->snap);
	charge_release(op->charge);
	close_fd(&op->dirfd);
	close_fd(&op->save_dirfd);
	close_fd(&op->overlay_fd);
	if (op->made)
		tree_remove_at(op->b->captures->dirfd, op->new_name, NULL);
	free(op);
}

static void op_fail(struct capture_op *op)
{
	log_fault(LOG_LEVEL_WARN, &op->f, "capture %s", op->name);
	request_fail(op->r, &op->f);
	op_free(op);
}

/* --- the name --------------------------------------------------------------------------------------------------------- */

static enum rc name_take(struct capture_op *op, struct fault *ret_f)
{
	int fd = op->b->captures->dirfd;

	/* An older one of that name is then what has the temporary one. */
	if (renameat2(fd, op->new_name, fd, op->name, RENAME_NOREPLACE) < 0 &&
	    (errno != EEXIST || renameat2(fd, op->new_name, fd, op->name, RENAME_EXCHANGE) < 0))
		return fault_set(ret_f, rc_from_errno(errno), errno, "name a capture");
	return RC_OK;
}

/* What it takes is known now. */
static enum rc bytes_check(struct capture_op *op, const struct capture *c, struct fault *ret_f)
{
	const struct capture *old = capture_find(op->b, op->name);
	uint64_t others = captures_bytes(op->b) - (old ? old->bytes : 0), max = op->b->config->captures_mib << 20;

	if (max && others + c->bytes > max)
		return fault_set(ret_f, RC_LIMIT, 0,
				 "captures may take %" PRIu64 " MiB on this host, others have %" PRIu64 ", this one has %" PRIu64,
				 op->b->config->captures_mib, others >> 20, c->bytes >> 20);
	return RC_OK;
}

/* The new name is on the disk. */
static void on_named(void *arg, enum rc rc, const struct fault *f)
{
	struct capture_op *op = arg;
	struct broker_vm_captured reply = { .pause_us = op->pause_us, .bytes = op->bytes };

	op->task = NULL;
	if (rc) {
		op->f = *f;
		op_fail(op);
		return;
	}
	log_info("capture made name=%s bytes=%" PRIu64 " pause_us=%u", op->name, op->bytes, op->pause_us);
	request_reply(op->r, (message_put_fn *)broker_vm_captured_put, &reply, NULL, 0);
	op_free(op);
}

static void op_finish(struct capture_op *op)
{
	struct capture *c = NULL;
	struct machine *m;
	enum rc rc = capture_load(op->b, op->new_name, &c, &op->f);

	if (!rc)
		rc = bytes_check(op, c, &op->f);
	if (!rc)
		rc = name_take(op, &op->f);
	if (rc) {
		free(c);
		op_fail(op);
		return;
	}
	memcpy(c->name, op->name, sizeof(c->name));
	c->last_used_ms = 0;
	capture_put(op->b, c);
	/* The one that had the name. */
	op->made = false;
	if (tree_remove_at(op->b->captures->dirfd, op->new_name, &op->f))
		log_fault(LOG_LEVEL_WARN, &op->f, "capture");
	captures_count(op->b);
	capture_good(op->b, c);
	m = machine_find(op->b, op->id);
	if (m)
		memcpy(m->capture, op->name, sizeof(m->capture));
	op->bytes = c->bytes;
	/* Waits for the file system's journal, which others may have filled. */
	if (task_fsync(op->b->loop, op->b->captures->dirfd, on_named, op, &op->task, &op->f))
		op_fail(op);
}

static void on_flushed(void *arg, enum rc rc, const struct fault *f)
{
	struct capture_op *op = arg;

	op->task = NULL;
	if (rc) {
		op->f = *f;
		op_fail(op);
	} else {
		op_finish(op);
	}
}

/* --- when the machine goes on already ------------------------------------------------------------------------------ */

static void on_stored(void *arg, enum rc rc, const struct fault *f)
{
	struct capture_op *op = arg;

	if (rc)
		op->f = *f;
	else
		rc = task_flush(op->b->loop, op->dirfd, on_flushed, op, &op->task, &op->f);
	if (rc)
		op_fail(op);
}

/* The capture that it differs least from, probably; -1: none. */
static int base_open(const struct capture_op *op, const struct machine *m)
{
	const struct capture *c = *m->capture ? capture_find(op->b, m->capture) : NULL;
	_cleanup_fd_ int dirfd = -1;

	if (!c || c->r.memory_mib != m->memory_mib || strcmp(c->r.engine, op->b->verdict.name))
		return -1;
	dirfd = openat(op->b->captures->dirfd, c->name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	return dirfd < 0 ? -1 : openat(dirfd, CAPTURE_MACHINE_DIR, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

/* Also when the machine ended meanwhile: then op->m is NULL and op->f has the reason. */
static void on_taken(void *arg, enum rc rc, const struct fault *f)
{
	struct capture_op *op = arg;
	struct machine *m = take_ptr(op->m);
	_cleanup_fd_ int base = -1;

	task_cancel(op->task);
	op->task = NULL;
	if (rc && !op->f.rc)
		op->f = *f;
	if (rc || !m) {
		op_fail(op);
		return;
	}
	op->pause_us = op->b->engine->ops->times(m->vm)->pause_us;
	charge_known(op->charge, op->b->engine->ops->times(m->vm)->private_bytes);
	base = base_open(op, m);
	if (op->b->engine->ops->snapshot_store(op->snap, op->save_dirfd, base, on_stored, op, &op->f))
		op_fail(op);
}

/* --- while the machine stands still ------------------------------------------------------------------------------- */

static void on_copied(void *arg, enum rc rc, const struct fault *f)
{
	struct capture_op *op = arg;

	op->task = NULL;
	if (op->m)
		machine_fork_go(op->m, rc ? f : NULL);
}

static void on_cut(void *arg)
{
	struct capture_op *op = arg;
	_cleanup_fd_ int from = -1;
	bool copied = false;
	struct fault f;
	enum rc rc;

	if (!op->m) /* it is being ended, and on_taken() hears of it */
		return;
	from = openat(op->m->dirfd, CAPTURE_OVERLAY_FILE, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	rc = from < 0 ? fault_set(&f, RC_SYS, errno, "open overlay")
		      : copy_disk_quick(from, op->overlay_fd, COPY_QUICK_BYTES, &copied, &f);
	if (!rc && !copied)
		rc = task_copy(op->b->loop, from, op->overlay_fd, on_copied, op, &op->task, &f);
	if (rc || copied)
		machine_fork_go(op->m, rc ? &f : NULL);
}

/* --- its beginning and the machine's end --------------------------------------------------------------------------- */

static enum rc make_check(struct broker *b, const struct machine *m, const char *name, struct fault *ret_f)
{
	uint64_t disk, need = (uint64_t)(m->memory_mib + DISK_RESERVE_MIB) << 20;
	enum rc rc;

	if (!capture_name_ok(name))
		return fault_set(ret_f, RC_INVALID, 0, "not a capture's name: one to 64 of a-z, 0-9, _ and -");
	if (m->has_volumes)
		return fault_set(ret_f, RC_STATE, 0, "machine '%s' has volumes, and a volume has one writer", m->id);
	if (m->own_root)
		return fault_set(ret_f, RC_STATE, 0, "machine '%s' has another root than its image", m->id);
	if (b->closing)
		return fault_set(ret_f, RC_AGAIN, 0, "the broker is ending");
	if (machine_in_use(m))
		return fault_set(ret_f, RC_AGAIN, 0, "machine '%s' is being captured or forked", m->id);
	for (const struct capture_op *op = b->captures->ops; op; op = op->next)
		if (!strcmp(op->name, name))
			return fault_set(ret_f, RC_AGAIN, 0, "capture '%s' is being made", name);
	if (b->captures->n >= b->config->captures_max && !capture_find(b, name))
		return fault_set(ret_f, RC_LIMIT, 0, "this host has its maximum of %" PRIu64 " captures",
				 b->config->captures_max);
	rc = machine_disk_free(b, &disk, ret_f);
	if (!rc && disk < need)
		rc = fault_set(ret_f, RC_NOSPACE, 0, "%" PRIu64 " MiB are left on this host's disk, a capture may need %" PRIu64,
			       disk >> 20, need >> 20);
	return rc;
}

static enum rc record_put(struct capture_op *op, struct fault *ret_f)
{
	const struct machine *m = op->m;
	const struct timespec never[2] = { { 0, UTIME_OMIT }, { 0, 0 } };
	struct record r = { .state = m->state, .memory_mib = m->memory_mib, .vcpus = (uint32_t)m->b->config->vm_vcpus,
			    .created_ms = wall_ms() };
	enum rc rc;

	snprintf(r.engine, sizeof(r.engine), "%s", m->b->verdict.name);
	memcpy(r.image, m->image, sizeof(r.image));
	memcpy(r.image_tag, m->image_tag, sizeof(r.image_tag));
	rc = record_write(op->dirfd, &r, ret_f);
	if (!rc && utimensat(op->dirfd, "record", never, AT_SYMLINK_NOFOLLOW) < 0)
		rc = fault_set(ret_f, RC_SYS, errno, "date of a capture's record");
	return rc;
}

static enum rc op_begin(struct capture_op *op, struct fault *ret_f)
{
	int fd = op->b->captures->dirfd;
	enum rc rc = tree_remove_at(fd, op->new_name, ret_f);

	if (rc)
		return rc;
	op->made = true;
	rc = dir_open_at(fd, op->new_name, 0700, &op->dirfd, ret_f);
	if (!rc)
		rc = dir_open_at(op->dirfd, CAPTURE_MACHINE_DIR, 0700, &op->save_dirfd, ret_f);
	if (!rc)
		rc = disk_make_at(op->dirfd, CAPTURE_OVERLAY_FILE, 0, &op->overlay_fd, ret_f);
	if (!rc)
		rc = record_put(op, ret_f);
	if (!rc)
		rc = charge_begin(op->m, &op->charge, ret_f);
	return rc ? rc : machine_snapshot(op->m, on_cut, op, on_taken, op, &op->snap, ret_f);
}

void capture_make(struct broker *b, struct request *r, struct machine *m, const char *name)
{
	struct capture_op *op = NULL;
	struct fault f;
	enum rc rc = make_check(b, m, name, &f);

	if (!rc && !(op = calloc(1, sizeof(*op))))
		rc = fault_set(&f, RC_NOMEM, 0, "out of memory");
	if (rc || !op) {
		request_fail(r, &f);
		return;
	}
	*op = (struct capture_op){ .b = b, .r = r, .m = m, .dirfd = -1, .save_dirfd = -1, .overlay_fd = -1,
				   .next = b->captures->ops, .at = &b->captures->ops };
	snprintf(op->name, sizeof(op->name), "%s", name);
	snprintf(op->new_name, sizeof(op->new_name), ".%s", name);
	memcpy(op->id, m->id, sizeof(op->id));
	if (op->next)
		op->next->at = &op->next;
	b->captures->ops = op;
	if (op_begin(op, &op->f))
		op_fail(op);
}

bool capture_machine_busy(const struct machine *m)
{
	for (const struct capture_op *op = m->b->captures->ops; op; op = op->next)
		if (op->m == m)
			return true;
	return false;
}

/* It is being stopped: an engine's operation under way ends with a failure first, and on_taken() finds m gone. */
void capture_machine_ends(struct machine *m)
{
	struct capture_op *op, *next;

	for (op = m->b->captures->ops; op; op = next) {
		next = op->next;
		if (op->m != m)
			continue;
		if (!op->f.rc)
			fault_set(&op->f, RC_STATE, 0, "its machine ended");
		op->m = NULL;
	}
}

void capture_ops_free(struct broker *b)
{
	struct capture_op *op;

	while ((op = b->captures->ops)) {
		fault_set(&op->f, RC_AGAIN, 0, "the broker ended");
		op_fail(op);
	}
}
