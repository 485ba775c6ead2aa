/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/broker/build.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "vmm/broker/agent_link.h"
#include "vmm/broker/image.h"
#include "vmm/broker/limits.h"
#include "vmm/broker/machine.h"
#include "vmm/store/copy.h"
#include "vmm/store/task.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#define SNAPSHOT_DIR "machine" /* the engine's own, below the template's */
#define OVERLAY_FILE "overlay"
#define HELLO "{\"service\":\"control\",\"op\":\"hello\"}"

struct build {
	struct broker *b;
	char image[BROKER_NAME_MAX], name[TEMPLATE_NAME_MAX], new_name[TEMPLATE_NAME_MAX + 1];
	uint32_t memory_mib;
	unsigned int attempt, asked;
	int image_dirfd, image_fd, dirfd, save_dirfd;
	struct machine *m;
	struct task *task;
	struct agent_call *call;
	struct template_use use; /* of the check */
	bool failed, background;
	struct fault f;
	void (*next)(struct build *d); /* when m is gone */
	build_done_fn *done;
	void *arg;
	uint64_t begun_ms, booted_ms;
};

static void build_close(struct build *d)
{
	if (d->use.snap)
		d->b->engine->ops->snapshot_free(d->use.snap);
	d->use.snap = NULL;
	close_fd(&d->use.overlay_fd);
	close_fd(&d->use.image_fd);
	close_fd(&d->image_dirfd);
	close_fd(&d->image_fd);
	close_fd(&d->save_dirfd);
	close_fd(&d->dirfd);
}

void build_free(struct build *d)
{
	if (!d)
		return;
	if (d->m)
		d->m->on_end = NULL, d->m->on_gone = NULL;
	agent_cancel(d->call);
	task_cancel(d->task);
	build_close(d);
	free(d);
}

void build_hurry(struct build *d)
{
	d->background = false; /* for the machine that checks it, too */
	if (d->m)
		cgroup_reweigh(&d->b->cgroup, d->m->id, CGROUP_WEIGHT);
}

static void build_finish(struct build *d)
{
	build_done_fn *done = d->done;
	void *arg = d->arg;
	struct template_use use = d->use;
	struct fault f = d->f;
	enum rc rc = d->failed ? f.rc : RC_OK;

	if (rc)
		tree_remove_at(d->b->templates_dirfd, d->new_name, NULL);
	else
		log_info("template made name=%s boot_ms=%u total_ms=%u", d->name, (unsigned int)(d->booted_ms - d->begun_ms),
			 (unsigned int)(now_ms() - d->begun_ms));
	if (!rc)
		d->use = (struct template_use){ NULL, -1, -1 };
	build_free(d);
	done(arg, rc, rc ? NULL : &use, rc ? &f : NULL);
}

/* --- machines --------------------------------------------------------------------------------------------------- */

static void log_keep(struct build *d)
{
	_cleanup_fd_ int from = -1, to = -1;
	char name[TEMPLATE_NAME_MAX + 32];

	if (d->m->dirfd < 0)
		return;
	from = openat(d->m->dirfd, "console.log", O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	snprintf(name, sizeof(name), "%s-%u.log", d->name, d->attempt % KERNEL_LOGS_KEPT);
	to = openat(d->b->logs_dirfd, name, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (from >= 0 && to >= 0 && !copy_disk(from, to, NULL, NULL))
		log_warn("kernel log kept file=logs/kernel/%s", name);
}

static void on_end(void *arg, const char *reason)
{
	struct build *d = arg;

	/* Nobody but this file ends these on purpose, and it says so first: anything else is a failure. */
	if (!d->next && !d->failed) {
		d->failed = true;
		fault_set(&d->f, RC_STATE, 0, "%s", reason);
	}
	if (d->failed)
		log_keep(d);
	agent_cancel(d->call);
	task_cancel(d->task);
	d->call = NULL;
	d->task = NULL;
}

static void on_gone(void *arg)
{
	struct build *d = arg;

	d->m = NULL;
	if (d->failed)
		build_finish(d);
	else
		d->next(d);
}

static void build_fail(struct build *d, const struct fault *f)
{
	if (!d->failed)
		d->f = *f;
	d->failed = true;
	if (d->m)
		machine_end(d->m, "%s", f->text);
	else
		build_finish(d);
}

static void machine_leave(struct build *d, void (*next)(struct build *d))
{
	d->next = next;
	machine_end(d->m, "done");
}

static enum rc machine_take(struct build *d, const char *id, int overlay_fd, struct fault *ret_f)
{
	struct machine_spec spec = { .id = id, .memory_mib = d->memory_mib, .image = d->image,
				     .background = d->background };
	enum rc rc = machine_new(d->b, &spec, &d->m, ret_f);

	if (rc)
		return rc;
	d->next = NULL;
	d->m->on_end = on_end;
	d->m->on_gone = on_gone;
	d->m->arg = d;
	return machine_prepare(d->m, d->image_fd, overlay_fd, ret_f);
}

static void ask(struct build *d, const char *line, uint64_t ms, agent_done_fn *fn)
{
	struct fault f;

	if (agent_call(d->b->loop, &d->m->net, AGENT_ASK, line, now_ms() + ms, fn, d, &d->call, &f))
		build_fail(d, &f);
}

/* --- the last steps: from saved to good ------------------------------------------------------------------------- */

static void step_rename(void *arg, enum rc rc, const struct fault *f)
{
	struct build *d = arg;
	struct fault ff;

	d->task = NULL;
	if (!rc && renameat(d->b->templates_dirfd, d->new_name, d->b->templates_dirfd, d->name) < 0) {
		rc = fault_set(&ff, RC_SYS, errno, "rename template");
		f = &ff;
	}
	if (rc)
		build_fail(d, f);
	else
		build_finish(d);
}

static void step_flush(struct build *d)
{
	struct fault f;

	if (task_flush(d->b->loop, d->dirfd, step_rename, d, &d->task, &f))
		build_fail(d, &f);
}

static void on_checked(void *arg, enum rc rc, int fd, struct json_object *answer, const struct fault *f)
{
	struct build *d = arg;

	(void)fd;
	(void)answer;
	d->call = NULL;
	if (rc)
		build_fail(d, f);
	else
		machine_leave(d, step_flush);
}

static void on_restored(void *arg, enum rc rc, const struct fault *f)
{
	struct build *d = arg;

	(void)f;
	if (!rc && !d->m->ending)
		ask(d, HELLO, AGENT_ANSWER_MS, on_checked);
}

static void on_opened(void *arg, enum rc rc, const struct fault *f)
{
	struct build *d = arg;
	struct fault ff;

	if (!rc) {
		f = &ff;
		rc = machine_take(d, BUILD_CHECK_ID, d->use.overlay_fd, &ff);
	}
	if (!rc)
		rc = machine_launch(d->m, NULL, d->use.snap, on_restored, d, &ff);
	if (rc)
		build_fail(d, f);
}

static void step_check(struct build *d)
{
	struct fault f;

	if (build_open(d->b, d->image, d->new_name, &d->use, on_opened, d, &f))
		build_fail(d, &f);
}

/* --- the first steps: from nothing to saved --------------------------------------------------------------------- */

static enum rc overlay_save(struct build *d, struct fault *ret_f)
{
	_cleanup_fd_ int from = openat(d->m->dirfd, OVERLAY_FILE, O_RDONLY | O_NOFOLLOW | O_CLOEXEC), to = -1;
	enum rc rc;

	if (from < 0)
		return fault_set(ret_f, RC_SYS, errno, "open overlay");
	rc = disk_make_at(d->dirfd, OVERLAY_FILE, 0, &to, ret_f);
	return rc ? rc : copy_disk(from, to, NULL, ret_f);
}

static void on_saved(void *arg, enum rc rc, const struct fault *f)
{
	struct build *d = arg;
	struct fault ff;

	/* The machine stays paused, so its disk is as its memory remembers it. */
	if (!rc && !d->m->ending) {
		rc = overlay_save(d, &ff);
		f = &ff;
	}
	if (d->m->ending)
		return;
	if (rc)
		build_fail(d, f);
	else
		machine_leave(d, step_check);
}

static void on_paused(void *arg, enum rc rc, const struct fault *f)
{
	struct build *d = arg;
	struct fault ff;

	if (d->m->ending)
		return;
	if (!rc) {
		rc = machine_save(d->m, d->save_dirfd, on_saved, d, &ff);
		f = &ff;
	}
	if (rc)
		build_fail(d, f);
}

static void on_asked(void *arg, enum rc rc, int fd, struct json_object *answer, const struct fault *f)
{
	static const char *const lines[] = { "{\"service\":\"control\",\"op\":\"sync\"}",
					     "{\"service\":\"control\",\"op\":\"drop_caches\"}" };
	struct build *d = arg;
	struct fault ff;

	(void)fd;
	(void)answer;
	d->call = NULL;
	if (!d->booted_ms)
		d->booted_ms = now_ms();
	if (rc) {
		build_fail(d, f);
	} else if (d->asked < ARRAY_SIZE(lines)) {
		ask(d, lines[d->asked++], TEMPLATE_STEP_MS, on_asked);
	} else {
		rc = machine_pause(d->m, true, on_paused, d, &ff);
		if (rc)
			build_fail(d, &ff);
	}
}

static void on_booting(void *arg, enum rc rc, const struct fault *f)
{
	struct build *d = arg;

	(void)f;
	if (!rc && !d->m->ending)
		ask(d, HELLO, TEMPLATE_BOOT_MS, on_asked);
}

static void step_boot(void *arg, enum rc rc, const struct fault *f)
{
	struct build *d = arg;
	_cleanup_(image_boot_close) struct image_boot boot = { -1, -1, NULL };
	struct fault ff;

	d->task = NULL;
	if (rc) {
		build_fail(d, f);
		return;
	}
	rc = image_boot_open(d->image_dirfd, d->image, &boot, &ff);
	if (!rc)
		rc = machine_launch(d->m, &(struct machine_boot){ boot.kernel_fd, boot.initrd_fd, boot.cmdline }, NULL,
				    on_booting, d, &ff);
	if (rc)
		build_fail(d, &ff);
}

static enum rc dirs_make(struct build *d, struct fault *ret_f)
{
	enum rc rc = tree_remove_at(d->b->templates_dirfd, d->new_name, ret_f);

	if (!rc)
		rc = dir_open_at(d->b->templates_dirfd, d->new_name, 0700, &d->dirfd, ret_f);
	return rc ? rc : dir_open_at(d->dirfd, SNAPSHOT_DIR, 0700, &d->save_dirfd, ret_f);
}

enum rc build_start(struct broker *b, const char *image, const char *name, uint32_t memory_mib, unsigned int attempt,
		    bool background, build_done_fn *done, void *arg, struct build **ret, struct fault *ret_f)
{
	struct build *d = calloc(1, sizeof(*d));
	struct fault f;
	enum rc rc;

	if (!d)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	*d = (struct build){ .b = b, .memory_mib = memory_mib, .attempt = attempt, .background = background,
			     .image_dirfd = -1, .image_fd = -1, .dirfd = -1, .save_dirfd = -1, .use = { NULL, -1, -1 }, .done = done, .arg = arg,
			     .begun_ms = now_ms() };
	snprintf(d->image, sizeof(d->image), "%s", image);
	snprintf(d->name, sizeof(d->name), "%s", name);
	snprintf(d->new_name, sizeof(d->new_name), ".%s", name);
	rc = image_open(b, image, &d->image_dirfd, &d->image_fd, ret_f);
	if (!rc)
		rc = dirs_make(d, ret_f);
	if (rc) {
		build_free(d);
		return rc;
	}
	*ret = d;
	/* From here a failure is told through done, since a machine has to go first. */
	rc = machine_take(d, BUILD_COLD_ID, -1, &f);
	if (!rc)
		rc = task_mkfs(b->loop, d->m->disks[1], step_boot, d, &d->task, &f);
	if (rc && !d->m) {
		*ret = NULL;
		build_free(d);
		return fault_set(ret_f, f.rc, f.sys, "%s", f.text);
	}
	if (rc)
		build_fail(d, &f);
	return RC_OK;
}

enum rc build_open(struct broker *b, const char *image, const char *name, struct template_use *ret, engine_done_fn *done, void *arg,
		   struct fault *ret_f)
{
	_cleanup_fd_ int dirfd = openat(b->templates_dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	_cleanup_fd_ int save = -1;
	enum rc rc;

	if (dirfd < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "template '%.60s'", name);
	save = openat(dirfd, SNAPSHOT_DIR, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	ret->overlay_fd = openat(dirfd, OVERLAY_FILE, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	if (save < 0 || ret->overlay_fd < 0)
		return fault_set(ret_f, RC_STATE, errno, "template '%.60s' is not complete", name);
	rc = image_open(b, image, NULL, &ret->image_fd, ret_f);
	return rc ? rc : b->engine->ops->snapshot_open(b->engine, save, done, arg, &ret->snap, ret_f);
}
