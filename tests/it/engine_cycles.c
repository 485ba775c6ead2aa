/* SPDX-License-Identifier: Apache-2.0 */
/*
 * engine-cycles: a guest that checks its memory, disk, clocks and timers without a pause (guest_checker.c, to be in the overlay as
 * /guest-checker) is forked and saved and restored again and again; -n forks of FORKS children each, then as many saves. After each
 * every machine must have gone on and must have found nothing wrong; the parent answers on the connection it had before. Every third
 * round a child becomes the parent, so there are children of children; each restored machine is the next one's original.
 */
#include "tests/it/engine_rig.h"

#define FORKS 4
#define PORT 7001
#define ANSWER_MS 240000 /* ten busy processors share two emulated ones, which the host may use for other work too */

struct counts {
	unsigned long mem, disk, clock, timer, once, errors[5], late;
};

struct checked {
	struct machine m;
	int fd; /* to its checker */
	struct counts last;
};

static void counts_read(struct checked *c, struct counts *ret)
{
	uint64_t end = now_ms() + ANSWER_MS;
	char text[512];

	MUST(fd_write_all(c->fd, "stat\n", 5, end, f));
	MUST(fd_read_line(c->fd, text, sizeof(text), end, f));
	if (sscanf(text, "mem %lu disk %lu clock %lu timer %lu once %lu errors %lu %lu %lu %lu %lu late %lu", &ret->mem, &ret->disk,
		   &ret->clock, &ret->timer, &ret->once, &ret->errors[0], &ret->errors[1], &ret->errors[2], &ret->errors[3],
		   &ret->errors[4], &ret->late) != 11)
		die("%s: the checker says '%s'", c->m.spec.id, text);
	for (size_t i = 0; i < ARRAY_SIZE(ret->errors); i++)
		if (ret->errors[i])
			die("%s: %s", c->m.spec.id, text);
}

/* The agent gives a connection in its machine 5 s, which it may not keep there. */
static void checker_dial(struct checked *c)
{
	uint64_t end = now_ms() + ANSWER_MS;
	char line[64], answer[512];

	snprintf(line, sizeof(line), "{\"service\":\"dial\",\"port\":%d}", PORT);
	while ((c->fd = service_try(&c->m, line, answer, sizeof(answer))) < 0) {
		struct timespec pause = { 0, 100000000 };

		MUST(loop_once(loop, 0, f));
		if (c->m.gone)
			die("%s ended: %s", c->m.spec.id, c->m.why);
		if (now_ms() > end)
			die("%s: the checker cannot be reached: %s", c->m.spec.id, answer);
		nanosleep(&pause, NULL);
	}
}

/* It has checked something of each kind since it was last asked, and all was right. */
static void must_go_on(struct checked *c)
{
	struct timespec pause = { 0, 50000000 };
	uint64_t end = now_ms() + ANSWER_MS;
	struct counts n;

	for (;;) {
		counts_read(c, &n);
		if (n.mem > c->last.mem && n.disk > c->last.disk && n.clock > c->last.clock && n.timer > c->last.timer &&
		    n.once > c->last.once)
			break;
		if (now_ms() > end)
			die("%s: a checker stands still: memory %lu, disk %lu, clock %lu, ticks %lu, timers %lu", c->m.spec.id, n.mem,
			    n.disk, n.clock, n.timer, n.once);
		MUST(loop_once(loop, 0, f));
		if (c->m.gone)
			die("%s ended: %s", c->m.spec.id, c->m.why);
		nanosleep(&pause, NULL);
	}
	c->last = n;
}

static struct checked *checked_new(const char *id, uid_t uid, const struct checked *disk_from)
{
	struct checked *c = calloc(1, sizeof(*c));

	if (!c)
		die("out of memory");
	machine_make(&c->m, id, uid, disk_from ? &disk_from->m : NULL);
	c->fd = -1;
	return c;
}

static void checked_end(struct checked *c)
{
	close_fd(&c->fd);
	machine_stop(&c->m);
	machine_unmake(&c->m);
	free(c);
}

static void resources(struct checked *c)
{
	char path[64];
	struct engine_stat st;

	engine->ops->stat(c->m.vm, &st);
	snprintf(path, sizeof(path), "/proc/%d/fd", (int)st.pid);
	note("the machine process's descriptors", count(path) - 2);
	note("its PSS in KiB", st.pss_bytes >> 10);
}

/* --- forks ---- */
struct cut {
	struct checked *parent, *children[FORKS];
};

static void on_cut(void *arg)
{
	struct cut *k = arg;
	char command[600];

	for (size_t i = 0; i < FORKS; i++) {
		snprintf(command, sizeof(command), "cp --sparse=always '%s/overlay' '%s/overlay'", k->parent->m.dir,
			 k->children[i]->m.dir);
		if (system(command))
			die("cut");
	}
	engine->ops->fork_go(k->parent->m.vm, NULL);
}

/* Whoever is the parent of the next round. */
static struct checked *fork_round(struct checked *parent, uint32_t round)
{
	struct cut k = { .parent = parent };
	struct engine_spec specs[FORKS];
	struct engine_vm *vms[FORKS];
	void *args[FORKS];
	char id[40];
	uint64_t t;

	MUST(loop_once(loop, 0, f));
	if (parent->m.gone)
		die("%s ended: %s", parent->m.spec.id, parent->m.why);
	for (size_t i = 0; i < FORKS; i++) {
		snprintf(id, sizeof(id), "fork%u_%zu", round, i);
		k.children[i] = checked_new(id, (uid_t)(RIG_UID + 10 + round % 50 * FORKS + i), NULL);
		k.children[i]->last = parent->last;
		specs[i] = k.children[i]->m.spec;
		args[i] = &k.children[i]->m;
	}
	t = us();
	MUST(engine->ops->fork(parent->m.vm, FORKS, specs, on_cut, &k, on_done, on_exit_, args, vms, f));
	for (size_t i = 0; i < FORKS; i++) {
		k.children[i]->m.vm = vms[i];
		await(&k.children[i]->m, "fork");
	}
	note("fork: until all children run", us() - t);
	note("fork: parent's pause, disks too", engine->ops->times(parent->m.vm)->pause_us);
	must_go_on(parent);
	for (size_t i = 0; i < FORKS; i++) {
		checker_dial(k.children[i]);
		must_go_on(k.children[i]);
	}
	resources(parent);
	for (size_t i = 1; i < FORKS; i++)
		checked_end(k.children[i]);
	if (round % 3 == 2) {
		checked_end(parent);
		return k.children[0];
	}
	checked_end(k.children[0]);
	return parent;
}

/* --- saves ---- */
static struct checked *save_round(struct checked *c, uint32_t round)
{
	char dir[300], command[400], id[40];
	struct engine_snapshot *snap;
	struct checked *next;
	uint64_t t;

	snprintf(dir, sizeof(dir), "%s/saved", opt.dir);
	close_fd(&c->fd);
	t = us();
	save_to(&c->m, dir);
	note("save, with pause", us() - t);
	snprintf(id, sizeof(id), "saved%u", round);
	next = checked_new(id, (uid_t)(RIG_UID + 300 + round % 50), c);
	next->last = c->last;
	checked_end(c);
	snap = snap_open(dir);
	t = us();
	start_from(&next->m, snap);
	note("restore: to running", us() - t);
	engine->ops->snapshot_free(snap);
	checker_dial(next);
	must_go_on(next);
	resources(next);
	snprintf(command, sizeof(command), "rm -r '%s'", dir);
	if (system(command))
		die("remove %s", dir);
	return next;
}

static struct checked *begin(void)
{
	struct checked *c = calloc(1, sizeof(*c));
	char out[256], line[200];

	if (!c)
		die("out of memory");
	cold_boot(&c->m, "first", RIG_UID);
	/* It goes on when the connection that started it is gone. */
	snprintf(line, sizeof(line), "[\"sh\",\"-c\",\"setsid /guest-checker run %d 48 /checked </dev/null >/dev/ttyS0 2>&1 & sleep 0.1\"]", PORT);
	guest_run(&c->m, line, out, sizeof(out));
	checker_dial(c);
	must_go_on(c);
	return c;
}

/* Of a long run. */
static void progress(const char *what, uint32_t n)
{
	static uint64_t began;

	began = began ? began : us();
	if (!(n % 20))
		printf("engine-cycles: %u %s, %llu s\n", n, what, (unsigned long long)((us() - began) / 1000000));
}

int main(int argc, char **argv)
{
	struct checked *c;

	rig_begin("engine-cycles", argc, argv);
	c = begin();
	for (uint32_t i = 0; i < opt.runs; i++) {
		c = fork_round(c, i);
		progress("forks", (i + 1) * FORKS);
	}
	printf("engine-cycles: %u forks of %d children\n", opt.runs, FORKS);
	for (uint32_t i = 0; i < opt.runs * FORKS; i++) {
		c = save_round(c, i);
		progress("saves", i + 1);
	}
	printf("engine-cycles: %u saves and restores\n", opt.runs * FORKS);
	printf("engine-cycles: %lu pages, %lu blocks, %lu clock readings, %lu ticks, %lu timers by the last machine, its latest timer by %lu ms\n",
	       c->last.mem, c->last.disk, c->last.clock, c->last.timer, c->last.once, c->last.late);
	checked_end(c);
	rig_end("engine-cycles");
	return 0;
}
