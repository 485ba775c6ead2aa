/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/it/engine_parity.h"

static void say(const char *state, const char *operation, const char *answer)
{
	printf("parity %s %s: %s\n", state, operation, answer);
}

/* --- the operations ---- */
static enum rc try_pause(struct machine *m)
{
	return engine->ops->pause(m->vm, on_done, NULL);
}

static enum rc try_resume(struct machine *m)
{
	return engine->ops->resume(m->vm, on_done, NULL);
}

/* Into a directory that has a snapshot's file already. */
static enum rc try_save(struct machine *m)
{
	char dir[300], file[320];
	enum rc rc;
	int fd;

	snprintf(dir, sizeof(dir), "%s/parity", opt.dir);
	snprintf(file, sizeof(file), "%s/memory", dir);
	(void)mkdir(dir, 0700);
	close(open_at(AT_FDCWD, file, O_RDWR | O_CREAT));
	fd = open_at(AT_FDCWD, dir, O_RDONLY | O_DIRECTORY);
	rc = engine->ops->save(m->vm, fd, on_done, NULL);
	close(fd);
	(void)unlink(file);
	snprintf(file, sizeof(file), "%s/state", dir);
	(void)unlink(file);
	if (rmdir(dir))
		die("a save that was refused left something");
	return rc;
}

static enum rc try_take(struct machine *m)
{
	static struct engine_snapshot *snap;

	return engine->ops->take(m->vm, NULL, NULL, on_done, &snap, NULL);
}

static enum rc fork_of(struct machine *m, size_t n)
{
	static struct engine_spec specs[ENGINE_FORK_MAX + 1];
	struct engine_vm *vms[ENGINE_FORK_MAX + 1] = { NULL };
	void *args[ENGINE_FORK_MAX + 1] = { NULL };

	return engine->ops->fork(m->vm, n, specs, NULL, NULL, on_done, on_exit_, args, vms, NULL);
}

static enum rc try_fork(struct machine *m)
{
	return fork_of(m, 1);
}

static enum rc try_fork_none(struct machine *m)
{
	return fork_of(m, 0);
}

static enum rc try_fork_many(struct machine *m)
{
	return fork_of(m, ENGINE_FORK_MAX + 1);
}

static enum rc try_resized(struct machine *m)
{
	return engine->ops->disk_resized(m->vm, "spare0", on_done, NULL);
}

static enum rc try_resized_unknown(struct machine *m)
{
	return engine->ops->disk_resized(m->vm, "nothing", on_done, NULL);
}

enum state { STARTING, RUNNING, BUSY, PAUSED, STOPPING, GONE };
static const char *const states[] = { "starting", "running", "busy", "paused", "stopping", "gone" };

/* `begins`: the states in which it would not be refused. Of those only `ends` are tried, to their end; what undoes it comes then. */
static const struct operation {
	const char *name;
	enum rc (*call)(struct machine *m);
	unsigned int begins, ends;
	enum rc (*undo)(struct machine *m);
} operations[] = {
	{ "pause", try_pause, 1 << RUNNING, 1 << RUNNING, try_resume },
	{ "resume", try_resume, 1 << PAUSED, 1 << PAUSED, try_pause },
	{ "save over another", try_save, 0, 0, NULL },
	{ "take", try_take, 1 << RUNNING, 0, NULL },
	{ "fork", try_fork, 1 << RUNNING, 0, NULL },
	{ "fork of no child", try_fork_none, 0, 0, NULL },
	{ "fork of too many", try_fork_many, 0, 0, NULL },
	{ "disk_resized", try_resized, 1 << RUNNING | 1 << PAUSED, 1 << RUNNING | 1 << PAUSED, NULL },
	{ "disk_resized of no disk", try_resized_unknown, 0, 0, NULL },
};

static void list(struct machine *m, enum state state)
{
	for (size_t i = 0; i < ARRAY_SIZE(operations); i++) {
		const struct operation *o = &operations[i];
		char answer[64];
		enum rc rc;

		if ((o->begins & ~o->ends) >> state & 1)
			continue;
		rc = o->call(m);
		snprintf(answer, sizeof(answer), "%s", rc_name(rc));
		if (!rc && !(o->begins >> state & 1))
			die("%s of a machine that is %s was begun", o->name, states[state]);
		if (!rc) {
			until(&m->done, 120000);
			m->done = false;
			snprintf(answer, sizeof(answer), "OK, then %s", rc_name(m->rc));
		}
		say(states[state], o->name, answer);
		if (!rc && o->undo) {
			if (o->undo(m))
				die("%s cannot be undone", o->name);
			await(m, "undo");
		}
	}
}

void parity_starting(struct machine *m)
{
	list(m, STARTING);
}

void parity_life(struct machine *m)
{
	list(m, RUNNING);
	MUST(engine->ops->pause(m->vm, on_done, f));
	list(m, BUSY);
	await(m, "pause");
	list(m, PAUSED);
	resume_machine(m);
}

void parity_stop(struct machine *m)
{
	MUST(engine->ops->resume(m->vm, on_done, f));
	engine->ops->stop(m->vm);
	list(m, STOPPING);
	until(&m->gone, 60000);
	say(states[GONE], "resume that was under way", m->done ? rc_name(m->rc) : "nothing");
	say(states[GONE], "reason", m->why);
	m->done = false;
	list(m, GONE);
	engine->ops->vm_free(m->vm);
}

/* One that was begun, to its end. */
static enum rc opened(struct engine_snapshot *snap, enum rc rc, struct machine *m)
{
	if (!rc) {
		until(&m->done, 120000);
		m->done = false;
		rc = m->rc;
	}
	if (snap)
		engine->ops->snapshot_free(snap);
	return rc;
}

void parity_others(struct engine_snapshot *snap, const struct machine *like)
{
	struct machine m = { 0 };
	struct engine_snapshot *other = NULL;
	struct engine_spec spec = like->spec;
	char dir[300];
	enum rc rc;
	int fd;

	snprintf(dir, sizeof(dir), "%s/parity", opt.dir);
	if (mkdir(dir, 0700))
		die("mkdir %s", dir);
	fd = open_at(AT_FDCWD, dir, O_RDONLY | O_DIRECTORY);
	rc = engine->ops->snapshot_open(engine, fd, on_done, &m, &other, NULL);
	say("no", "snapshot_open of an empty directory", rc_name(opened(other, rc, &m)));
	other = NULL;
	rc = engine->ops->snapshot_map(engine, fd, &other, NULL);
	say("no", "snapshot_map of an empty directory", rc_name(rc));
	spec.vm_dirfd = fd;
	say("no", "adopt of none", rc_name(engine->ops->adopt(engine, &spec, on_exit_, &m, &m.vm, NULL)));
	spec.memory_mib *= 2;
	say("no", "start from a snapshot of another size", rc_name(engine->ops->start(engine, &spec, snap, on_done, on_exit_, &m, &m.vm, NULL)));
	close(fd);
	if (m.vm || rmdir(dir))
		die("something is left of what was refused");
}
