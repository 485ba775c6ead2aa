/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/broker/volume.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "vmm/broker/attach.h"
#include "vmm/broker/image.h"
#include "vmm/broker/limits.h"
#include "vmm/broker/peer.h"
#include "vmm/broker/verify.h"
#include "vmm/store/copy.h"
#include "vmm/store/sum.h"
#include "vmm/store/task.h"
#include "vmm/store/volume.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define FREEZE "{\"service\":\"control\",\"op\":\"freeze\"}"
#define THAW "{\"service\":\"control\",\"op\":\"thaw\"}"

struct volume_op {
	struct volume_op *next, **at;
	struct broker *b;
	struct request *r;
	char from[BROKER_NAME_MAX], target[BROKER_NAME_MAX]; /* the volume that is read, or ""; what is made */
	int storefd;              /* where target goes */
	int from_fd, fd;
	int sum_fd;               /* -1, or of what was read: a snapshot's own; a volume's is compared with its snapshot's and forgotten */
	char snapshot[BROKER_NAME_MAX]; /* that a volume is made from */
	struct verify_wait *verify;
	uint64_t bytes;           /* wanted size; 0: the same as what is copied */
	struct machine *m;        /* has `from`; NULL: nobody has */
	enum { OP_FREEZE, OP_FILL, OP_THAW, OP_FLUSH } step;
	unsigned int thaws;
	struct task *task;
	struct agent_call *call;
	struct fault f;           /* rc set: it fails, as soon as the machine is thawed */
};

static void op_flush(struct volume_op *op);

/* --- the list of those under way ------------------------------------------------------------------------------------ */

bool volume_busy(struct broker *b, const char *name)
{
	for (const struct volume_op *op = b->volume_ops; op; op = op->next)
		if (!strcmp(op->from, name))
			return true;
	return false;
}

bool volume_machine_busy(const struct machine *m)
{
	for (const struct volume_op *op = m->b->volume_ops; op; op = op->next)
		if (op->m == m)
			return true;
	return false;
}

static enum rc op_new(struct broker *b, struct request *r, struct volume_op **ret, struct fault *ret_f)
{
	struct volume_op *op;
	size_t n = 0;

	if (b->closing)
		return fault_set(ret_f, RC_AGAIN, 0, "the broker is ending");
	for (op = b->volume_ops; op; op = op->next)
		n++;
	if (n >= VOLUME_OPS_MAX)
		return fault_set(ret_f, RC_AGAIN, 0, "%d operations on volumes run already", VOLUME_OPS_MAX);
	op = calloc(1, sizeof(*op));
	if (!op)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	*op = (struct volume_op){ .b = b, .r = r, .from_fd = -1, .fd = -1, .sum_fd = -1, .storefd = -1, .step = OP_FILL,
				  .next = b->volume_ops, .at = &b->volume_ops };
	if (op->next)
		op->next->at = &op->next;
	b->volume_ops = op;
	*ret = op;
	return RC_OK;
}

static void op_free(struct volume_op *op)
{
	*op->at = op->next;
	if (op->next)
		op->next->at = op->at;
	agent_cancel(op->call);
	task_cancel(op->task);
	verify_cancel(op->verify);
	close_fd(&op->sum_fd);
	close_fd(&op->from_fd);
	close_fd(&op->fd);
	free(op);
}

static void volume_reply(struct broker *b, struct request *r, int storefd, const char *name)
{
	_cleanup_fd_ int fd = -1;
	struct broker_volume answer = { 0 };
	const struct machine *m = storefd == b->volumes_dirfd ? attach_find(b, name) : NULL;
	struct volume v;
	struct fault f;

	if (volume_open(storefd, name, false, &v, &f)) {
		request_fail(r, &f);
		return;
	}
	fd = v.fd;
	answer.bytes = v.bytes;
	answer.used_bytes = v.used_bytes;
	answer.own_bytes = volume_own_bytes(&v);
	answer.bootable = *v.image != '\0';
	if (m)
		memcpy(answer.used_by, m->id, sizeof(answer.used_by));
	request_reply(r, (message_put_fn *)broker_volume_put, &answer, NULL, 0);
}

static void op_fail(struct volume_op *op, const struct fault *f)
{
	if (op->fd >= 0)
		volume_abort(op->storefd, op->target);
	request_fail(op->r, f);
	op_free(op);
}

/* --- the steps -------------------------------------------------------------------------------------------------- */

static void thaw_send(struct volume_op *op);

static void on_thawed(void *arg, enum rc rc, int fd, struct json_object *answer, const struct fault *f)
{
	struct volume_op *op = arg;

	(void)fd;
	(void)answer;
	op->call = NULL;
	if (rc && op->thaws < THAW_TRIES) {
		thaw_send(op);
		return;
	}
	if (rc)
		log_fault(LOG_LEVEL_ERROR, f, "thaw of machine %s", op->m->id);
	op->m = NULL;
	op_flush(op);
}

static void thaw_send(struct volume_op *op)
{
	struct fault f;

	op->step = OP_THAW;
	op->thaws++;
	if (agent_call(op->b->loop, &op->m->net, AGENT_ASK, THAW, now_ms() + AGENT_ANSWER_MS, on_thawed, op, &op->call, &f)) {
		log_fault(LOG_LEVEL_ERROR, &f, "thaw of machine %s", op->m->id);
		op->m = NULL;
		op_flush(op);
	}
}

static void on_flushed(void *arg, enum rc rc, const struct fault *f)
{
	struct volume_op *op = arg;
	struct fault ff;

	op->task = NULL;
	if (!rc) {
		rc = volume_commit(op->storefd, op->target, &ff);
		f = &ff;
	} else if (rc == RC_STATE) {
		rc = fault_set(&ff, RC_DAMAGED, 0, "what was written to the disk is not what is read from it");
		f = &ff;
	}
	if (rc) {
		op_fail(op, f);
		return;
	}
	if (op->storefd == op->b->snapshots_dirfd)
		verify_good(op->b, op->target);
	log_info("volume made name=%s from=\"%s\"", op->target, op->from);
	volume_reply(op->b, op->r, op->storefd, op->target);
	op_free(op);
}

/* Also where a failed one ends, once its machine is thawed. */
static void op_flush(struct volume_op *op)
{
	struct loop *loop = op->b->loop;
	enum rc rc = op->f.rc;

	op->step = OP_FLUSH;
	/* What a snapshot has is read back from the disk. */
	if (!rc && op->storefd == op->b->snapshots_dirfd)
		rc = task_disk(loop, "seal", -1, op->fd, op->sum_fd, on_flushed, op, &op->task, &op->f);
	else if (!rc)
		rc = task_fsync(loop, op->fd, on_flushed, op, &op->task, &op->f);
	if (rc)
		op_fail(op, &op->f);
}

/* What was copied was what the snapshot is, as far as something was read: shared extents are not. */
static enum rc sum_check(struct volume_op *op, struct fault *ret_f)
{
	_cleanup_fd_ int fd = -1;
	struct sum is, should;
	enum rc rc = sum_read(op->sum_fd, &is, ret_f);

	if (rc)
		return rc == RC_ABSENT ? RC_OK : rc;
	rc = volume_sum_open(op->b->snapshots_dirfd, op->snapshot, &fd, ret_f);
	if (!rc)
		rc = sum_read(fd, &should, ret_f);
	if (!rc)
		rc = sum_compare(&is, &should, ret_f);
	return rc ? fault_set(ret_f, RC_DAMAGED, 0, "snapshot '%.60s' is damaged: its content does not match its checksum",
			      op->snapshot) : RC_OK;
}

static enum rc copy_check(struct volume_op *op, struct fault *ret_f)
{
	struct stat from, to;

	if (fstat(op->from_fd, &from) < 0 || fstat(op->fd, &to) < 0)
		return fault_set(ret_f, RC_SYS, errno, "stat copy");
	if (from.st_size != to.st_size)
		return fault_set(ret_f, RC_STATE, 0, "the copy has another size");
	if (*op->snapshot && sum_check(op, ret_f))
		return ret_f->rc;
	if (op->bytes > (uint64_t)to.st_size && ftruncate(op->fd, (off_t)op->bytes) < 0)
		return fault_set(ret_f, RC_SYS, errno, "size of disk");
	return RC_OK;
}

static void on_filled(void *arg, enum rc rc, const struct fault *f)
{
	struct volume_op *op = arg;

	op->task = NULL;
	if (rc)
		op->f = *f;
	else if (op->from_fd >= 0)
		copy_check(op, &op->f);
	if (op->m)
		thaw_send(op);
	else
		op_flush(op);
}

static void op_fill(struct volume_op *op)
{
	struct fault f;
	enum rc rc;

	op->step = OP_FILL;
	if (op->from_fd >= 0)
		rc = task_disk(op->b->loop, "copy", op->from_fd, op->fd, op->sum_fd, on_filled, op, &op->task, &f);
	else
		rc = task_mkfs_volume(op->b->loop, op->fd, on_filled, op, &op->task, &f);
	if (rc)
		on_filled(op, rc, &f);
}

static void on_frozen(void *arg, enum rc rc, int fd, struct json_object *answer, const struct fault *f)
{
	struct volume_op *op = arg;

	(void)fd;
	(void)answer;
	op->call = NULL;
	if (!rc) {
		op_fill(op);
		return;
	}
	/* A late answer is no answer: it may be frozen all the same. */
	op->f = *f;
	fault_wrap(&op->f, "machine '%s' could not be frozen", op->m->id);
	thaw_send(op);
}

void volume_machine_ends(struct machine *m)
{
	struct volume_op *op, *next;

	for (op = m->b->volume_ops; op; op = next) {
		next = op->next;
		if (op->m != m)
			continue;
		agent_cancel(op->call);
		op->call = NULL;
		op->m = NULL;
		/* A copy under way stays right: who wrote is frozen now and dead soon. */
		if (op->step == OP_FREEZE)
			fault_set(&op->f, RC_STATE, 0, "its machine ended");
		if (op->step != OP_FILL)
			op_flush(op);
	}
}

/* --- requests --------------------------------------------------------------------------------------------------- */

static enum rc create_check(struct broker *b, const struct broker_volume_create *q, struct fault *ret_f)
{
	uint64_t disk = 0;
	enum rc rc;

	if (!broker_name_ok(q->name))
		return fault_set(ret_f, RC_INVALID, 0, "not a volume's name");
	if (q->bytes < VOLUME_BYTES_MIN || q->bytes > VOLUME_BYTES_MAX)
		return fault_set(ret_f, RC_INVALID, 0, "a volume has %llu to %llu bytes", (unsigned long long)VOLUME_BYTES_MIN,
				 (unsigned long long)VOLUME_BYTES_MAX);
	rc = machine_disk_free(b, &disk, ret_f);
	if (!rc && disk < (uint64_t)DISK_RESERVE_MIB << 20)
		rc = fault_set(ret_f, RC_NOSPACE, 0, "no disk space left on this host: %" PRIu64 " MiB, %d are kept free",
			       disk >> 20, DISK_RESERVE_MIB);
	return rc;
}

/* What q->from means: an image's name to start with, a disk to copy, or neither. */
static enum rc create_source(struct volume_op *op, const char *from, char image[VOLUME_IMAGE_MAX], struct fault *ret_f)
{
	_cleanup_fd_ int root = -1;
	struct volume v;
	enum rc rc;

	image[0] = '\0';
	if (!*from)
		return RC_OK;
	if (!strncmp(from, VOLUME_IMAGE_PREFIX, strlen(VOLUME_IMAGE_PREFIX))) {
		from += strlen(VOLUME_IMAGE_PREFIX);
		if (!broker_name_ok(from))
			return fault_set(ret_f, RC_INVALID, 0, "not an image's name");
		snprintf(image, VOLUME_IMAGE_MAX, "%s", from);
		return image_open(op->b, from, NULL, &root, ret_f);
	}
	if (strncmp(from, VOLUME_SNAPSHOT_PREFIX, strlen(VOLUME_SNAPSHOT_PREFIX)) != 0)
		return fault_set(ret_f, RC_INVALID, 0, "a volume comes from image:<name>, snapshot:<name> or nothing");
	from += strlen(VOLUME_SNAPSHOT_PREFIX);
	if (!broker_name_ok(from))
		return fault_set(ret_f, RC_INVALID, 0, "not a snapshot's name");
	rc = volume_open(op->b->snapshots_dirfd, from, false, &v, ret_f);
	if (rc)
		return rc;
	op->from_fd = v.fd;
	op->sum_fd = memfd_create("sum", MFD_CLOEXEC);
	if (op->sum_fd < 0)
		return fault_set(ret_f, RC_SYS, errno, "memory file");
	snprintf(op->snapshot, sizeof(op->snapshot), "%s", from);
	memcpy(image, v.image, VOLUME_IMAGE_MAX);
	if (op->bytes < v.bytes)
		return fault_set(ret_f, RC_INVALID, 0, "the snapshot has %" PRIu64 " bytes, the volume shall have %" PRIu64,
				 v.bytes, op->bytes);
	return RC_OK;
}

static void on_verified(void *arg, enum rc rc, const struct fault *f)
{
	struct volume_op *op = arg;

	op->verify = NULL;
	if (rc)
		op_fail(op, f);
	else
		op_fill(op);
}

void volume_create(struct broker *b, struct request *r, const struct broker_volume_create *q)
{
	char image[VOLUME_IMAGE_MAX];
	struct volume_op *op;
	struct fault f;
	enum rc rc = create_check(b, q, &f);

	if (!rc)
		rc = op_new(b, r, &op, &f);
	if (rc) {
		request_fail(r, &f);
		return;
	}
	op->storefd = b->volumes_dirfd;
	/* Whole blocks, for engines and file systems alike. */
	op->bytes = (q->bytes + SUM_BLOCK - 1) / SUM_BLOCK * SUM_BLOCK;
	memcpy(op->target, q->name, sizeof(op->target));
	rc = create_source(op, q->from, image, &f);
	if (!rc)
		rc = volume_begin(op->storefd, op->target, op->from_fd >= 0 ? 0 : op->bytes, image, &op->fd, &f);
	if (!rc && *op->snapshot)
		rc = verify_get(b, op->snapshot, false, on_verified, op, &op->verify, &f);
	if (rc && rc != RC_AGAIN)
		op_fail(op, &f);
	else if (!rc)
		op_fill(op);
}

static enum rc snapshot_begin(struct volume_op *op, struct fault *ret_f)
{
	struct broker *b = op->b;
	struct machine *m = attach_find(b, op->from);
	struct volume v;
	enum rc rc;

	if (m && m->state != BROKER_VM_RUNNING)
		return fault_set(ret_f, m->state == BROKER_VM_PAUSED ? RC_STATE : RC_AGAIN, 0,
				 "machine '%s', which has the volume, is not running", m->id);
	if (m && volume_machine_busy(m))
		return fault_set(ret_f, RC_AGAIN, 0, "another snapshot of a volume of machine '%s' is being made", m->id);
	rc = volume_open(b->volumes_dirfd, op->from, false, &v, ret_f);
	if (rc)
		return rc;
	op->from_fd = v.fd;
	rc = volume_begin(op->storefd, op->target, 0, v.image, &op->fd, ret_f);
	if (!rc)
		rc = volume_sum_make(op->storefd, op->target, &op->sum_fd, ret_f);
	if (rc || !m)
		return rc;
	op->m = m;
	op->step = OP_FREEZE;
	return agent_call(b->loop, &m->net, AGENT_ASK, FREEZE, now_ms() + AGENT_ANSWER_MS, on_frozen, op, &op->call, ret_f);
}

void volume_snapshot(struct broker *b, struct request *r, const struct broker_volume_snapshot *q)
{
	struct volume_op *op = NULL;
	struct fault f;
	enum rc rc = RC_OK;

	if (!broker_name_ok(q->name) || !broker_name_ok(q->snapshot))
		rc = fault_set(&f, RC_INVALID, 0, "not a name of a volume and a name of a snapshot");
	else if (volume_busy(b, q->name))
		rc = fault_set(&f, RC_AGAIN, 0, "volume '%.60s' is being copied already", q->name);
	if (!rc)
		rc = op_new(b, r, &op, &f);
	if (rc || !op) {
		request_fail(r, &f);
		return;
	}
	op->storefd = b->snapshots_dirfd;
	memcpy(op->from, q->name, sizeof(op->from));
	memcpy(op->target, q->snapshot, sizeof(op->target));
	rc = snapshot_begin(op, &f);
	if (rc) {
		op->m = NULL;
		op_fail(op, &f);
	} else if (!op->m) {
		op_fill(op);
	}
}

/* Both kinds by one name: snapshots have their prefix. */
static int store_of(struct broker *b, const char **name)
{
	if (strncmp(*name, VOLUME_SNAPSHOT_PREFIX, strlen(VOLUME_SNAPSHOT_PREFIX)) != 0)
		return b->volumes_dirfd;
	*name += strlen(VOLUME_SNAPSHOT_PREFIX);
	return b->snapshots_dirfd;
}

void volume_remove(struct broker *b, struct request *r, const char *name)
{
	int storefd = store_of(b, &name);
	const struct machine *m = storefd == b->volumes_dirfd ? attach_find(b, name) : NULL;
	struct fault f;
	enum rc rc;

	if (!broker_name_ok(name))
		rc = fault_set(&f, RC_INVALID, 0, "not a volume's name");
	else if (m)
		rc = fault_set(&f, RC_STATE, 0, "volume '%.60s' is attached to machine '%s'", name, m->id);
	else if (storefd == b->volumes_dirfd && volume_busy(b, name))
		rc = fault_set(&f, RC_AGAIN, 0, "volume '%.60s' is being copied", name);
	else
		rc = volume_delete(storefd, name, &f);
	if (rc)
		request_fail(r, &f);
	else
		request_reply(r, NULL, NULL, NULL, 0);
}

void volume_stat(struct broker *b, struct request *r, const char *name)
{
	int storefd = store_of(b, &name);
	struct fault f;

	if (broker_name_ok(name)) {
		volume_reply(b, r, storefd, name);
		return;
	}
	fault_set(&f, RC_INVALID, 0, "not a volume's name");
	request_fail(r, &f);
}

enum rc volume_snapshot_root(struct broker *b, const char *name, struct volume *ret, struct fault *ret_f)
{
	struct volume v;
	enum rc rc;

	name += strlen(VOLUME_SNAPSHOT_PREFIX);
	if (!broker_name_ok(name))
		return fault_set(ret_f, RC_INVALID, 0, "not a snapshot's name");
	rc = volume_open(b->snapshots_dirfd, name, false, &v, ret_f);
	if (rc)
		return rc;
	if (!*v.image) {
		close_fd(&v.fd);
		return fault_set(ret_f, RC_INVALID, 0, "snapshot '%.60s' is not bootable", name);
	}
	*ret = v;
	return RC_OK;
}

enum rc volumes_init(struct broker *b, struct fault *ret_f)
{
	enum rc rc = dir_open_at(b->state_dirfd, "volumes", 0700, &b->volumes_dirfd, ret_f);

	if (!rc)
		rc = dir_open_at(b->state_dirfd, "snapshots", 0700, &b->snapshots_dirfd, ret_f);
	if (rc)
		return rc;
	volume_sweep(b->volumes_dirfd);
	volume_sweep(b->snapshots_dirfd);
	return RC_OK;
}

void volumes_free(struct broker *b)
{
	struct fault f;

	/* A machine that is frozen now is thawed by the broker that adopts it. */
	fault_set(&f, RC_AGAIN, 0, "the broker ended");
	while (b->volume_ops)
		op_fail(b->volume_ops, &f);
	close_fd(&b->volumes_dirfd);
	close_fd(&b->snapshots_dirfd);
}
