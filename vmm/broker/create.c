/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/broker/create.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "vmm/broker/attach.h"
#include "vmm/broker/capture.h"
#include "vmm/broker/limits.h"
#include "vmm/broker/machine.h"
#include "vmm/broker/newborn.h"
#include "vmm/broker/peer.h"
#include "vmm/broker/template.h"
#include "vmm/broker/verify.h"
#include "vmm/broker/volume.h"
#include "vmm/store/copy.h"
#include "vmm/store/task.h"
#include "vmm/store/volume.h"

#include <string.h>
#include <time.h>

struct create {
	struct broker *b;
	struct machine *m;
	struct request *r;
	struct template_wait *wait;
	struct agent_call *call;
	struct newborn *newborn;
	struct source *deadline;
	uint8_t *mounts;             /* the request's */
	struct attach_list list;     /* in mounts */
	size_t n_mounted;
	enum { ROOT_DEFAULT, ROOT_VOLUME, ROOT_SNAPSHOT, ROOT_COPY } root;
	int copy_fd;                 /* ROOT_COPY: the snapshot */
	struct verify_wait *verify;  /* it is being read */
	struct task *task;           /* copies it, or the capture's disk */
	struct capture_wait *check;  /* the capture is being read */
	struct capture_use *capture; /* what it starts from, or NULL */
	struct engine_snapshot *snap; /* the template's or the capture's */
	uint64_t begun_us, prepared_us, started_us, restored_us;
	struct fault f; /* why it fails; text empty: because the machine ended */
};

static uint64_t clock_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void create_free(struct create *c)
{
	template_cancel(c->wait);
	verify_cancel(c->verify);
	capture_cancel(c->check);
	agent_cancel(c->call);
	source_drop(&c->deadline);
	newborn_free(c->newborn);
	task_cancel(c->task);
	capture_release(c->capture);
	close_fd(&c->copy_fd);
	free(c->mounts);
	free(c);
}

static void on_machine_gone(void *arg)
{
	struct create *c = arg;

	request_fail(c->r, &c->f);
	create_free(c);
}

/* Comes first when the machine ends, whether by us or for another reason; the answer waits until it is gone. */
static void on_machine_end(void *arg, const char *reason)
{
	struct create *c = arg;

	template_cancel(c->wait);
	verify_cancel(c->verify);
	capture_cancel(c->check);
	agent_cancel(c->call);
	task_cancel(c->task);
	c->wait = NULL;
	c->verify = NULL;
	c->check = NULL;
	c->call = NULL;
	c->task = NULL;
	source_drop(&c->deadline);
	newborn_stop(c->newborn);
	if (!c->f.rc)
		fault_set(&c->f, RC_STATE, 0, "%s", reason);
	c->m->on_gone = on_machine_gone;
}

static void create_fail(struct create *c, const struct fault *f)
{
	if (!c->f.rc)
		c->f = *f;
	machine_end(c->m, "it could not be made: %s", f->text);
}

static void on_deadline(void *arg)
{
	struct create *c = arg;
	struct fault f;

	fault_set(&f, RC_TIMEOUT, 0, "the machine was not ready in %u ms (waiting for %s)",
		  (unsigned int)c->b->config->create_timeout_ms,
		  c->wait ? "its template" : c->check ? "its capture" : c->task || c->verify ? "its disk" : c->restored_us ? "its agent" : "its process");
	create_fail(c, &f);
}

static void create_answer(struct create *c)
{
	struct machine *m = c->m;
	struct broker_vm_created reply;
	uint64_t now = clock_us();
	struct fault f;
	int fds[1];
	size_t n = 0;

	if (!request_alive(c->r)) {
		fault_set(&f, RC_CLOSED, 0, "whoever asked for it went away");
		create_fail(c, &f);
		return;
	}
	if (m->flags & BROKER_VM_LEASE) {
		if (machine_lease_take(m, &fds[0], &f)) {
			create_fail(c, &f);
			return;
		}
		n = 1;
	}
	reply = (struct broker_vm_created){ .restore_us = (uint32_t)(c->restored_us - c->started_us),
					    .agent_us = (uint32_t)(now - c->restored_us),
					    .total_us = (uint32_t)(now - c->begun_us) };
	m->on_end = NULL;
	m->arg = NULL;
	machine_running(m);
	log_info("machine created id=%s memory_mib=%u template_us=%u prepare_us=%u restore_us=%u agent_us=%u total_us=%u",
		 m->id, m->memory_mib, (unsigned int)(c->prepared_us - c->begun_us),
		 (unsigned int)(c->started_us - c->prepared_us), reply.restore_us, reply.agent_us, reply.total_us);
	request_reply(c->r, (message_put_fn *)broker_vm_created_put, &reply, fds, n);
	create_free(c);
}

static const char *root_take(struct create *c);

static void on_identity(void *arg, enum rc rc, const struct fault *f)
{
	struct create *c = arg;

	if (rc)
		create_fail(c, f);
	else
		create_answer(c);
}

/* --- volumes ---------------------------------------------------------------------------------------------------- */

static void mounts_next(struct create *c);

static void on_mounted(void *arg, enum rc rc, int fd, struct json_object *answer, const struct fault *f)
{
	struct create *c = arg;
	struct fault ff;

	(void)fd;
	(void)answer;
	c->call = NULL;
	if (!rc) {
		c->n_mounted++;
		mounts_next(c);
		return;
	}
	ff = *f;
	fault_wrap(&ff, "volume '%.60s'", c->list.mounts[c->n_mounted].volume);
	create_fail(c, &ff);
}

static void mount_send(struct create *c)
{
	struct json_object *o = json_object_new_object();
	struct fault f;

	json_object_object_add(o, "service", json_object_new_string("control"));
	json_object_object_add(o, "op", json_object_new_string("mount"));
	json_object_object_add(o, "device", json_object_new_int((int)c->n_mounted));
	json_object_object_add(o, "path", json_object_new_string(c->list.mounts[c->n_mounted].path));
	json_object_object_add(o, "root", json_object_new_string(root_take(c)));
	if (agent_call(c->b->loop, &c->m->net, AGENT_ASK, json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN),
		       now_ms() + AGENT_ANSWER_MS, on_mounted, c, &c->call, &f))
		create_fail(c, &f);
	json_object_put(o);
}

/* A disk has its size now. */
static void resized(struct create *c, enum rc rc, const struct fault *f, void (*next)(struct create *c))
{
	if (c->m->ending)
		return;
	if (rc)
		create_fail(c, f);
	else
		next(c);
}

static void on_resized(void *arg, enum rc rc, const struct fault *f)
{
	resized(arg, rc, f, mount_send);
}

/* A template has placeholders where the volumes are now, and has to hear of their size. */
static void mounts_next(struct create *c)
{
	struct fault f;
	char serial[16];

	if (c->n_mounted == c->list.n) {
		newborn_identify(c->newborn, c->m, root_take(c), AGENT_ANSWER_MS);
	} else {
		snprintf(serial, sizeof(serial), "spare%zu", c->n_mounted);
		if (machine_disk_resized(c->m, serial, on_resized, c, &f))
			create_fail(c, &f);
	}
}

/* --- another root --------------------------------------------------------------------------------------------------- */

/* What the first request tells the agent; later ones: "". */
static const char *root_take(struct create *c)
{
	const char *root = c->root == ROOT_DEFAULT ? "" : c->root == ROOT_SNAPSHOT ? "snapshot" : "volume";

	c->root = ROOT_DEFAULT;
	return root;
}

static void on_root_resized(void *arg, enum rc rc, const struct fault *f)
{
	resized(arg, rc, f, mounts_next);
}

static void root_begin(struct create *c)
{
	struct fault f;

	/* A snapshot's disk is read-only and has had its size all the time. */
	if (c->root == ROOT_DEFAULT || c->root == ROOT_SNAPSHOT)
		mounts_next(c);
	else if (machine_disk_resized(c->m, AGENT_ROOT_SERIAL, on_root_resized, c, &f))
		create_fail(c, &f);
}

/* --- starting ----------------------------------------------------------------------------------------------------- */

static void on_restored(void *arg, enum rc rc, const struct fault *f)
{
	struct create *c = arg;

	/* A start that failed has ended the machine before it comes here. */
	if (c->m->ending) {
		/* What a capture was made on is first known to fit when a processor takes it: one that does not start is unusable. */
		if (f && f->rc != RC_STATE && c->f.rc == RC_STATE && !c->capture)
			c->f = *f;
		return;
	}
	(void)rc;
	c->restored_us = clock_us();
	root_begin(c);
}

static void create_launch(struct create *c)
{
	struct fault f;

	c->started_us = clock_us();
	if (machine_launch(c->m, NULL, c->snap, on_restored, c, &f))
		create_fail(c, &f);
}

static void on_copied(void *arg, enum rc rc, const struct fault *f)
{
	struct create *c = arg;

	c->task = NULL;
	if (rc)
		create_fail(c, f);
	else
		create_launch(c);
}

static void create_start(struct create *c, const struct template_use *use)
{
	struct fault f;
	enum rc rc;

	c->prepared_us = clock_us();
	c->snap = use->snap;
	rc = machine_prepare(c->m, use->image_fd, use->overlay_fd, &f);
	if (!rc && c->root == ROOT_COPY)
		rc = task_copy(c->b->loop, c->copy_fd, c->m->disks[DISK_ROOT], on_copied, c, &c->task, &f);
	if (rc)
		create_fail(c, &f);
	else if (c->root != ROOT_COPY)
		create_launch(c);
}

static void create_captured(struct create *c)
{
	const struct template_use *use = capture_use(c->capture);
	bool copied = false;
	struct fault f;
	enum rc rc;

	c->prepared_us = clock_us();
	c->snap = use->snap;
	rc = machine_prepare(c->m, use->image_fd, -1, &f);
	if (!rc)
		rc = copy_disk_quick(use->overlay_fd, c->m->disks[DISK_OVERLAY], COPY_QUICK_BYTES, &copied, &f);
	if (!rc && !copied)
		rc = task_copy(c->b->loop, use->overlay_fd, c->m->disks[DISK_OVERLAY], on_copied, c, &c->task, &f);
	if (rc)
		create_fail(c, &f);
	else if (copied)
		create_launch(c);
}

static void on_capture(void *arg, struct capture_use *use, const struct fault *f)
{
	struct create *c = arg;

	c->check = NULL;
	c->capture = use;
	if (use)
		create_captured(c);
	else
		create_fail(c, f);
}

/* The image it was made with is in c->m->image before anything else asks for it. */
static void create_from_capture(struct create *c, const char *name)
{
	struct fault f;
	enum rc rc = capture_get(c->b, name, c->m->memory_mib, on_capture, c, &c->capture, c->m->image, &c->check, &f);

	snprintf(c->m->capture, sizeof(c->m->capture), "%s", name);
	if (!rc)
		create_captured(c);
	else if (rc != RC_AGAIN)
		create_fail(c, &f);
}

static void on_template(void *arg, const struct template_use *use, const struct fault *f)
{
	struct create *c = arg;

	c->wait = NULL;
	if (!use)
		create_fail(c, f);
	else
		create_start(c, use);
}

/*
 * A snapshot is a layer below the machine's own disk, read-only and shared by all that start from it. One that was taken
 * of a volume whose machine died has a journal to be replayed first, for which it has to be copied.
 */
static enum rc create_snapshot(struct create *c, const char *root, struct fault *ret_f)
{
	struct volume v;
	enum rc rc = volume_snapshot_root(c->b, root, &v, ret_f);

	if (rc)
		return rc;
	snprintf(c->m->image, sizeof(c->m->image), "%s", v.image);
	c->root = v.clean ? ROOT_SNAPSHOT : ROOT_COPY;
	*(v.clean ? &c->m->disks[DISK_BASE] : &c->copy_fd) = v.fd;
	return RC_OK;
}

static enum rc create_attach(struct create *c, const struct broker_vm_create *q, struct fault *ret_f)
{
	bool is_snapshot = !strncmp(q->root_volume, VOLUME_SNAPSHOT_PREFIX, strlen(VOLUME_SNAPSHOT_PREFIX));
	enum rc rc;

	if (q->mounts_n) {
		c->mounts = malloc(q->mounts_n);
		if (!c->mounts)
			return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
		memcpy(c->mounts, q->mounts, q->mounts_n);
	}
	rc = attach_parse(c->mounts, q->mounts_n, &c->list, ret_f);
	if (!rc && is_snapshot)
		rc = create_snapshot(c, q->root_volume, ret_f);
	else if (!rc && *q->root_volume)
		c->root = ROOT_VOLUME;
	c->m->own_root = c->root != ROOT_DEFAULT;
	return rc ? rc : attach_volumes(c->m, is_snapshot ? "" : q->root_volume, &c->list, ret_f);
}

static enum rc create_check(struct broker *b, const struct broker_vm_create *q, struct fault *ret_f)
{
	const struct config *cf = b->config;

	if (!broker_id_ok(q->id))
		return fault_set(ret_f, RC_INVALID, 0, "not a machine's id: one to 40 of a-z, 0-9 and _");
	if (q->memory_mib < cf->vm_memory_mib_min || q->memory_mib > cf->vm_memory_mib_max)
		return fault_set(ret_f, RC_INVALID, 0, "memory must be %u to %u MiB", (unsigned int)cf->vm_memory_mib_min,
				 (unsigned int)cf->vm_memory_mib_max);
	if (q->flags & ~BROKER_VM_LEASE)
		return fault_set(ret_f, RC_INVALID, 0, "unknown flags");
	if (q->stop_at_ms && q->stop_at_ms <= wall_ms())
		return fault_set(ret_f, RC_INVALID, 0, "the end of its lifetime is in the past");
	if (*q->image && !broker_name_ok(q->image))
		return fault_set(ret_f, RC_INVALID, 0, "not an image's name");
	if (*q->root_volume && *q->image)
		return fault_set(ret_f, RC_INVALID, 0, "a root volume knows its image");
	if (*q->capture && (*q->image || *q->root_volume || q->mounts_n))
		return fault_set(ret_f, RC_INVALID, 0, "a capture has its image and its disk, and no volumes");
	if (b->closing)
		return fault_set(ret_f, RC_AGAIN, 0, "the broker is ending");
	return RC_OK;
}

static enum rc create_new(struct broker *b, const struct broker_vm_create *q, struct create **ret, struct fault *ret_f)
{
	struct machine_spec spec = { .id = q->id, .memory_mib = q->memory_mib, .flags = q->flags,
				     .stop_at_ms = q->stop_at_ms, .image = *q->image ? q->image : b->config->image,
				     .policy = q->policy, .policy_n = q->policy_n };
	struct create *c = calloc(1, sizeof(*c));
	enum rc rc;

	if (!c)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	c->b = b;
	c->copy_fd = -1;
	c->begun_us = clock_us();
	rc = loop_timer(b->loop, now_ms() + b->config->create_timeout_ms, on_deadline, c, &c->deadline, ret_f);
	if (!rc)
		rc = newborn_new(q->hostname, q->env, q->env_n, on_identity, c, &c->newborn, ret_f);
	if (!rc)
		rc = machine_new(b, &spec, &c->m, ret_f);
	if (rc) {
		create_free(c);
		return rc;
	}
	*ret = c;
	return RC_OK;
}

static void create_template(struct create *c)
{
	struct template_use use;
	struct fault f;
	enum rc rc = template_get(c->b, c->m->image, c->m->memory_mib, on_template, c, &use, &c->wait, &f);

	if (rc == RC_OK)
		create_start(c, &use);
	else if (rc != RC_AGAIN)
		create_fail(c, &f);
}

static void on_verified(void *arg, enum rc rc, const struct fault *f)
{
	struct create *c = arg;

	c->verify = NULL;
	if (rc)
		create_fail(c, f);
	else
		create_template(c);
}

void create_begin(struct broker *b, struct request *r, const struct broker_vm_create *q)
{
	struct create *c = NULL;
	struct fault f;
	enum rc rc = create_check(b, q, &f);

	if (!rc)
		rc = create_new(b, q, &c, &f);
	if (rc || !c) {
		request_fail(r, &f);
		return;
	}
	c->r = r;
	c->m->on_end = on_machine_end;
	c->m->arg = c;
	if (create_attach(c, q, &f)) {
		create_fail(c, &f);
		return;
	}
	if (*q->capture) {
		create_from_capture(c, q->capture);
		return;
	}
	rc = RC_OK;
	if (!strncmp(q->root_volume, VOLUME_SNAPSHOT_PREFIX, strlen(VOLUME_SNAPSHOT_PREFIX)))
		rc = verify_get(b, q->root_volume + strlen(VOLUME_SNAPSHOT_PREFIX), false, on_verified, c, &c->verify, &f);
	if (!rc)
		create_template(c);
	else if (rc != RC_AGAIN)
		create_fail(c, &f);
}
