/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/broker/fork.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "vmm/broker/charge.h"
#include "vmm/broker/image.h"
#include "vmm/broker/limits.h"
#include "vmm/broker/machine.h"
#include "vmm/broker/newborn.h"
#include "vmm/broker/peer.h"
#include "vmm/store/copy.h"
#include "vmm/store/task.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

_Static_assert(BROKER_FORK_MAX == ENGINE_FORK_MAX, "a fork's children");

struct child {
	struct forking *k;
	struct broker_fork_child q; /* blobs are in k->rows */
	struct machine *m;          /* NULL: not yet, or nothing is left of it */
	struct newborn *newborn;
	struct task *task;          /* copies its disk */
	uint64_t ready_us;          /* clock; 0: not yet */
};

struct forking {
	struct forking *next, **at;
	struct broker *b;
	struct request *r;
	struct machine *parent;     /* NULL: it ended */
	uint8_t *rows;
	struct child children[ENGINE_FORK_MAX];
	size_t n, n_made, n_alive, n_ready;
	int image_fd, overlay_fd;
	struct source *step, *deadline;
	struct charge *charge;      /* the copy of the parent's memory */
	bool forked, cutting, failing;
	size_t n_tasks;
	uint64_t begun_us, private_bytes;
	uint32_t pause_us;
	struct fault f;
};

static uint64_t clock_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void forking_free(struct forking *k)
{
	*k->at = k->next;
	if (k->next)
		k->next->at = k->at;
	for (size_t i = 0; i < k->n; i++) {
		newborn_free(k->children[i].newborn);
		task_cancel(k->children[i].task);
	}
	source_drop(&k->step);
	source_drop(&k->deadline);
	close_fd(&k->image_fd);
	close_fd(&k->overlay_fd);
	charge_release(k->charge);
	free(k->rows);
	free(k);
}

static void cut_end(struct forking *k, const struct fault *f)
{
	if (!k->cutting)
		return;
	k->cutting = false;
	for (size_t i = 0; i < k->n; i++) {
		task_cancel(k->children[i].task);
		k->children[i].task = NULL;
	}
	if (k->parent)
		machine_fork_go(k->parent, f);
}

static void forking_fail(struct forking *k, const struct fault *f)
{
	if (k->failing)
		return;
	k->failing = true;
	k->f = *f;
	log_fault(LOG_LEVEL_WARN, f, "fork of machine %s", k->parent ? k->parent->id : "that ended");
	source_drop(&k->step);
	source_drop(&k->deadline);
	cut_end(k, &k->f);
	for (size_t i = 0; i < k->n; i++)
		if (k->children[i].m)
			machine_end(k->children[i].m, "its fork failed: %s", k->f.text);
	if (!k->n_alive) {
		request_fail(k->r, &k->f);
		forking_free(k);
	}
}

static void on_child_gone(void *arg)
{
	struct child *c = arg;
	struct forking *k = c->k;

	c->m = NULL;
	if (--k->n_alive)
		return;
	request_fail(k->r, &k->f);
	forking_free(k);
}

static void on_child_end(void *arg, const char *reason)
{
	struct child *c = arg;
	struct fault f;

	newborn_stop(c->newborn);
	c->m->on_gone = on_child_gone;
	fault_set(&f, RC_STATE, 0, "child '%s': %s", c->q.id, reason);
	forking_fail(c->k, &f);
}

static void on_deadline(void *arg)
{
	struct forking *k = arg;
	struct fault f;

	fault_set(&f, RC_TIMEOUT, 0, "the children were not ready in %u ms (waiting for %s)",
		  (unsigned int)k->b->config->create_timeout_ms,
		  k->cutting ? "copies of the disk" : k->pause_us ? "their agents" : "their processes");
	forking_fail(k, &f);
}

/* --- children that run ------------------------------------------------------------------------------------------------- */

static void forking_answer(struct forking *k)
{
	uint8_t rows[4096];
	struct broker_vm_forked reply = { .pause_us = k->pause_us, .private_bytes = k->private_bytes, .n = (uint32_t)k->n,
					  .children = rows };
	struct wire w;
	struct fault f;

	if (!request_alive(k->r)) {
		fault_set(&f, RC_CLOSED, 0, "whoever asked for it went away");
		forking_fail(k, &f);
		return;
	}
	wire_init(&w, rows, sizeof(rows));
	for (size_t i = 0; i < k->n; i++) {
		struct child *c = &k->children[i];
		struct broker_fork_row row = { .state = BROKER_VM_RUNNING, .ready_us = (uint32_t)(c->ready_us - k->begun_us) };

		c->m->on_end = NULL;
		c->m->arg = NULL;
		machine_running(c->m);
		memcpy(row.id, c->q.id, sizeof(row.id));
		broker_fork_row_put(&w, &row);
	}
	reply.children_n = wire_len(&w);
	log_info("machine forked id=%s children=%zu pause_us=%u private_kib=%u total_us=%u", k->parent ? k->parent->id : "-", k->n,
		 k->pause_us, (unsigned int)(k->private_bytes >> 10), (unsigned int)(clock_us() - k->begun_us));
	request_reply(k->r, (message_put_fn *)broker_vm_forked_put, &reply, NULL, 0);
	forking_free(k);
}

static void on_identity(void *arg, enum rc rc, const struct fault *f)
{
	struct child *c = arg;
	struct forking *k = c->k;
	struct fault ff;

	if (rc) {
		fault_set(&ff, rc, f->sys, "child '%s': %s", c->q.id, f->text);
		forking_fail(k, &ff);
		return;
	}
	c->ready_us = clock_us();
	if (++k->n_ready == k->n)
		forking_answer(k);
}

/* The first to come says that the engine is done with the parent. */
static void parent_done(struct forking *k)
{
	const struct engine_times *t;

	if (!k->forked || !k->parent)
		return;
	k->forked = false;
	k->parent->busy = false;
	t = k->b->engine->ops->times(k->parent->vm);
	k->pause_us = t->pause_us;
	k->private_bytes = t->private_bytes;
	charge_known(k->charge, k->private_bytes);
}

static void on_child_started(void *arg, enum rc rc, const struct fault *f)
{
	struct child *c = arg;

	(void)f;
	parent_done(c->k);
	/* A start that failed has ended the machine, and so the fork, before it comes here. */
	if (!rc && !c->m->ending)
		/* Many wake at once and share what processors there are: the deadline of all is the one that counts. */
		newborn_identify(c->newborn, c->m, "", c->k->b->config->create_timeout_ms);
}

/* --- the instant ------------------------------------------------------------------------------------------------------ */

static void on_copied(void *arg, enum rc rc, const struct fault *f)
{
	struct child *c = arg;
	struct forking *k = c->k;

	c->task = NULL;
	k->n_tasks--;
	if (rc)
		forking_fail(k, f);
	else if (!k->n_tasks)
		cut_end(k, NULL);
}

/* The parent stands still. */
static void on_cut(void *arg)
{
	struct forking *k = arg;
	struct fault f;
	enum rc rc = RC_OK;

	k->cutting = true;
	for (size_t i = 0; !rc && i < k->n; i++) {
		struct child *c = &k->children[i];
		bool copied;

		rc = copy_disk_quick(k->overlay_fd, c->m->disks[DISK_OVERLAY], COPY_QUICK_BYTES / k->n, &copied, &f);
		if (!rc && !copied) {
			rc = task_copy(k->b->loop, k->overlay_fd, c->m->disks[DISK_OVERLAY], on_copied, c, &c->task, &f);
			k->n_tasks += !rc;
		}
	}
	if (rc)
		forking_fail(k, &f);
	else if (!k->n_tasks)
		cut_end(k, NULL);
}

static void forking_fork(struct forking *k)
{
	struct machine *machines[ENGINE_FORK_MAX];
	void *args[ENGINE_FORK_MAX];
	struct fault f;
	enum rc rc;

	for (size_t i = 0; i < k->n; i++) {
		machines[i] = k->children[i].m;
		args[i] = &k->children[i];
	}
	rc = charge_begin(k->parent, &k->charge, &f);
	for (size_t i = 0; !rc && i < k->n; i++)
		machines[i]->came_from = charge_hold(k->charge);
	if (!rc)
		rc = machine_fork(k->parent, k->n, machines, on_cut, k, on_child_started, args, &f);
	k->forked = !rc;
	for (size_t i = 0; !rc && i < k->n; i++)
		if (!machines[i]->vm)
			rc = fault_set(&f, RC_SYS, 0, "the process of child '%s' could not be started", k->children[i].q.id);
	if (rc)
		forking_fail(k, &f);
}

/* --- the children's places ---------------------------------------------------------------------------------------------- */

static enum rc child_prepare(struct forking *k, struct child *c, struct fault *ret_f)
{
	struct machine_spec spec = { .id = c->q.id, .memory_mib = k->parent->memory_mib, .stop_at_ms = c->q.stop_at_ms,
				     .image = k->parent->image, .policy = c->q.policy, .policy_n = c->q.policy_n };
	struct stat st;
	enum rc rc = newborn_new(c->q.hostname, c->q.env, c->q.env_n, on_identity, c, &c->newborn, ret_f);

	if (!rc)
		rc = machine_new(k->b, &spec, &c->m, ret_f);
	if (rc)
		return rc;
	k->n_alive++;
	c->m->on_end = on_child_end;
	c->m->arg = c;
	rc = machine_prepare(c->m, k->image_fd, -1, ret_f);
	/* The disk's size is the parent's, whatever this host gives to new ones now: engines ask for it before the copy. */
	if (!rc && (fstat(k->overlay_fd, &st) < 0 || ftruncate(c->m->disks[DISK_OVERLAY], st.st_size) < 0))
		rc = fault_set(ret_f, rc_from_errno(errno), errno, "size of a child's disk");
	return rc;
}

static void on_step(void *arg)
{
	struct forking *k = arg;
	struct fault f;

	if (k->n_made == k->n) {
		forking_fork(k);
		return;
	}
	if (child_prepare(k, &k->children[k->n_made], &f)) {
		forking_fail(k, &f);
		return;
	}
	k->n_made++;
	loop_timer_set(k->step, now_ms());
}

static enum rc rows_check(struct forking *k, size_t i, struct fault *ret_f)
{
	const struct broker_fork_child *q = &k->children[i].q;

	if (!broker_id_ok(q->id))
		return fault_set(ret_f, RC_INVALID, 0, "not a machine's id: one to 40 of a-z, 0-9 and _");
	if (q->stop_at_ms && q->stop_at_ms <= wall_ms())
		return fault_set(ret_f, RC_INVALID, 0, "the end of its lifetime is in the past");
	if (machine_find(k->b, q->id))
		return fault_set(ret_f, RC_EXISTS, 0, "machine '%s' exists already", q->id);
	for (size_t o = 0; o < i; o++)
		if (!strcmp(k->children[o].q.id, q->id))
			return fault_set(ret_f, RC_INVALID, 0, "two children with one id '%s'", q->id);
	return RC_OK;
}

static enum rc rows_read(struct forking *k, const struct broker_vm_fork *q, struct fault *ret_f)
{
	struct wire w;
	enum rc rc = RC_OK;

	if (!q->n || q->n > ENGINE_FORK_MAX)
		return fault_set(ret_f, RC_INVALID, 0, "1 to %d children", ENGINE_FORK_MAX);
	k->rows = malloc(q->children_n + 1);
	if (!k->rows)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	if (q->children_n)
		memcpy(k->rows, q->children, q->children_n);
	wire_init(&w, k->rows, q->children_n);
	for (k->n = 0; k->n < q->n; k->n++) {
		k->children[k->n].k = k;
		broker_fork_child_get(&w, &k->children[k->n].q);
	}
	if (!wire_done(&w))
		return fault_set(ret_f, RC_PROTO, 0, "malformed rows of children");
	for (size_t i = 0; !rc && i < k->n; i++)
		rc = rows_check(k, i, ret_f);
	return rc;
}

/* The disks it has now: the image may have been replaced by another one of its name since it started. */
static enum rc parent_open(struct forking *k, struct fault *ret_f)
{
	const struct machine *m = k->parent;
	char tag[MACHINE_TAG_MAX];
	enum rc rc = image_open(k->b, m->image, NULL, &k->image_fd, ret_f);

	if (!rc)
		rc = image_tag(k->image_fd, tag, ret_f);
	if (!rc && strcmp(tag, m->image_tag))
		rc = fault_set(ret_f, RC_STATE, 0, "machine '%s' runs an older image '%.60s'", m->id, m->image);
	if (rc)
		return rc;
	k->overlay_fd = openat(m->dirfd, "overlay", O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	return k->overlay_fd < 0 ? fault_set(ret_f, RC_SYS, errno, "open overlay") : RC_OK;
}

static enum rc fork_check(struct broker *b, const struct machine *m, struct fault *ret_f)
{
	if (m->has_volumes)
		return fault_set(ret_f, RC_STATE, 0, "machine '%s' has volumes, and a volume has one writer", m->id);
	if (m->own_root)
		return fault_set(ret_f, RC_STATE, 0, "machine '%s' has another root than its image", m->id);
	if (b->closing)
		return fault_set(ret_f, RC_AGAIN, 0, "the broker is ending");
	if (machine_in_use(m))
		return fault_set(ret_f, RC_AGAIN, 0, "machine '%s' is being captured or forked", m->id);
	return RC_OK;
}

void fork_begin(struct broker *b, struct request *r, struct machine *parent, const struct broker_vm_fork *q)
{
	struct forking *k = NULL;
	struct fault f;
	enum rc rc = fork_check(b, parent, &f);

	if (!rc && !(k = calloc(1, sizeof(*k))))
		rc = fault_set(&f, RC_NOMEM, 0, "out of memory");
	if (rc || !k) {
		request_fail(r, &f);
		return;
	}
	*k = (struct forking){ .b = b, .r = r, .parent = parent, .image_fd = -1, .overlay_fd = -1, .begun_us = clock_us(),
			       .next = b->forks, .at = &b->forks };
	if (k->next)
		k->next->at = &k->next;
	b->forks = k;
	rc = rows_read(k, q, &f);
	if (!rc)
		rc = parent_open(k, &f);
	if (!rc)
		rc = loop_timer(b->loop, now_ms() + b->config->create_timeout_ms, on_deadline, k, &k->deadline, &f);
	if (!rc)
		rc = loop_timer(b->loop, now_ms(), on_step, k, &k->step, &f);
	if (rc)
		forking_fail(k, &f);
}

bool fork_machine_busy(const struct machine *m)
{
	for (const struct forking *k = m->b->forks; k; k = k->next)
		if (k->parent == m)
			return true;
	return false;
}

void fork_machine_ends(struct machine *m)
{
	struct forking *k, *next;
	struct fault f;

	for (k = m->b->forks; k; k = next) {
		next = k->next;
		if (k->parent != m)
			continue;
		k->parent = NULL;
		fault_set(&f, RC_STATE, 0, "machine '%s' ended while it was forked", m->id);
		forking_fail(k, &f);
	}
}

void forks_free(struct broker *b)
{
	struct fault f;

	fault_set(&f, RC_AGAIN, 0, "the broker ended");
	while (b->forks) {
		request_fail(b->forks->r, &f);
		forking_free(b->forks);
	}
}
