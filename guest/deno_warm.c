/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/deno_warm.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "guest/deno.h"
#include "guest/fs.h"
#include "guest/proc.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

struct warm {
	struct proc *proc;          /* NULL: none waits */
	char *shape;                /* of proc; NULL: none waits */
	struct json_object *wanted; /* parameters of the last REPL that was asked for */
	struct source *timer;
	bool tried;                 /* since then; one that was killed, or that nobody wanted, is not started again */
};

/* What Deno reads when it starts, in its directory and those above it. */
static const char *const configs[] = { "deno.json", "deno.jsonc", "package.json", "deno.lock", ".npmrc", "node_modules", "vendor" };
#define CONFIGS_READ 3 /* of those, the ones that can name other files, by these words */
static const char *const elsewhere[] = { "workspace", "importMap", "\"links\"", "\"patch\"" };

/* --- the shape -------------------------------------------------------------------------------------------------- */

static bool put_stat(struct buf *b, const char *name, const struct stat *st)
{
	return !buf_printf(b, "%s %ju:%ju %jd %jd.%09ld\n", name, (uintmax_t)st->st_dev, (uintmax_t)st->st_ino, (intmax_t)st->st_size,
			   (intmax_t)st->st_ctim.tv_sec, st->st_ctim.tv_nsec);
}

static bool names_others(int dir, const char *name)
{
	_cleanup_free_ char *text = NULL;
	size_t n;

	if (file_read_at(dir, name, WARM_CONFIG_MAX, &text, &n, NULL))
		return true;
	for (size_t i = 0; i < ARRAY_SIZE(elsewhere); i++)
		if (memmem(text, n, elsewhere[i], strlen(elsewhere[i])))
			return true;
	return false;
}

static bool put_dir(struct buf *b, const char *path)
{
	_cleanup_fd_ int dir = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	struct stat st;

	if (dir < 0 || buf_printf(b, "%s\n", path))
		return false;
	for (size_t i = 0; i < ARRAY_SIZE(configs); i++) {
		if (fstatat(dir, configs[i], &st, 0))
			continue;
		if (i < CONFIGS_READ && (!S_ISREG(st.st_mode) || names_others(dir, configs[i])))
			return false;
		if (!put_stat(b, configs[i], &st))
			return false;
	}
	return true;
}

static bool put_dirs(struct session *s, struct buf *b, const char *cwd)
{
	char path[PATH_MAX * 2], real[PATH_MAX];
	struct stat st;

	if (snprintf(path, sizeof(path), "%s%s%s", *cwd == '/' ? "" : s->home, *cwd == '/' ? "" : "/", cwd) >= (int)sizeof(path) ||
	    !realpath(path, real) || stat(real, &st) || buf_printf(b, "%ju:%ju\n", (uintmax_t)st.st_dev, (uintmax_t)st.st_ino))
		return false;
	for (;;) {
		char *slash = strrchr(real, '/');

		if (!put_dir(b, real))
			return false;
		if (!slash || !slash[1])
			return put_dir(b, s->home);
		slash[slash == real] = 0;
	}
}

static bool put_parameters(struct session *s, struct buf *b, struct json_object *params)
{
	struct json_object *o = json_object_new_object();
	bool ok;

	json_object_object_foreach(params, name, value) {
		bool input = !strcmp(name, "stdinStreamId");

		json_put(o, name, input ? json_object_new_boolean(value != NULL) : json_object_get(value));
	}
	ok = !buf_printf(b, "%03o\n", (unsigned)fs_umask()) && !buf_puts(b, json_object_to_json_string_ext(o, JSON_WRITE_FLAGS)) &&
	     !buf_puts(b, json_object_to_json_string_ext(s->env, JSON_WRITE_FLAGS));
	json_object_put(o);
	return ok;
}

/* NULL: what is asked for has none. */
static char *shape_make(struct session *s, struct json_object *params)
{
	_cleanup_buf_ struct buf b = BUF_INIT(WARM_SHAPE_MAX);
	_cleanup_free_ char *file = NULL;
	struct proc_spec spec;
	struct params p;
	struct stat st;

	params_init(&p, params);
	repl_spec(&spec, &p);
	file = params_ok(&p) ? proc_file(s, &spec) : NULL;
	if (!file || stat(file, &st) || !put_stat(&b, file, &st) || !put_parameters(s, &b, params) ||
	    !put_dirs(s, &b, spec.cwd ? spec.cwd : s->home) || buf_put(&b, "", 1))
		return NULL;
	return strdup((const char *)buf_data(&b));
}

/* --- the one that waits ------------------------------------------------------------------------------------------ */

static bool alive(const struct proc *p)
{
	siginfo_t info = { 0 };

	return !p->exited && !waitid(P_PID, (id_t)p->pid, &info, WEXITED | WNOHANG | WNOWAIT) && !info.si_pid;
}

bool warm_enough_memory(void)
{
	_cleanup_file_ FILE *f = fopen("/proc/meminfo", "re");
	unsigned long long kib = 0;
	char line[128];

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "MemAvailable: %llu", &kib) == 1)
			break;
	return kib / 1024 >= WARM_AVAILABLE_MIB;
}

static void forget(struct warm *w)
{
	source_drop(&w->timer);
	free(take_ptr(w->shape));
	w->proc = NULL;
}

void warm_drop(struct session *s)
{
	struct proc *p = s->warm ? s->warm->proc : NULL;

	if (!p)
		return;
	forget(s->warm);
	proc_kill_group(p, SIGKILL);
	proc_drain(p);
}

static void on_unwanted(void *arg)
{
	warm_drop(arg);
}

void warm_ended(struct session *s, const struct proc *p)
{
	struct proc *mine = s->warm ? s->warm->proc : NULL;

	if (mine && mine == p) {
		forget(s->warm);
		proc_drain(mine);
	}
}

struct proc *warm_take(struct session *s, struct json_object *params)
{
	struct warm *w = s->warm ? s->warm : (s->warm = calloc(1, sizeof(*s->warm)));
	_cleanup_free_ char *shape = NULL;
	struct proc *p;

	if (!w)
		return NULL;
	json_object_put(w->wanted);
	w->wanted = json_object_get(params);
	w->tried = false;
	if (!w->proc)
		return NULL;
	shape = shape_make(s, params);
	if (!shape || strcmp(shape, w->shape) || !alive(w->proc) || !proc_set_oom_first(w->proc, false)) {
		warm_drop(s);
		return NULL;
	}
	p = w->proc;
	forget(w);
	p->oom_at_start = proc_oom_count();
	return p;
}

void warm_refill(struct session *s)
{
	struct warm *w = s->warm;
	_cleanup_free_ char *shape = NULL;
	struct json_object *error;

	if (!w || !w->wanted || w->proc || w->tried)
		return;
	w->tried = true;
	if (s->n_running >= PROC_RUNNING_MAX / 2 || !warm_enough_memory())
		return;
	shape = shape_make(s, w->wanted);
	if (!shape || loop_timer(s->loop, now_ms() + WARM_UNWANTED_MS, on_unwanted, s, &w->timer, NULL))
		return;
	if (repl_start(s, w->wanted, true, &w->proc, &error)) {
		json_object_put(error);
		w->proc = NULL;
		source_drop(&w->timer);
		return;
	}
	w->shape = take_ptr(shape);
}
