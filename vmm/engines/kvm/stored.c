/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Snapshots, as the broker sees them. Guest memory is read, summed and written by a nestbox-vmm in the jail that has the descriptors
 * and nothing else; here only names, heads and the small state are looked at.
 */
#include "vmm/engines/kvm/client.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "vmm/engines/kvm/savefile.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define STORED_MS 600000 /* for reading or writing all of a memory; what it reads came from a machine's process, which may be nobody's friend */

static struct engine_snapshot *snapshot_new(struct kvm_engine *e)
{
	struct engine_snapshot *s = calloc(1, sizeof(*s));

	if (s)
		*s = (struct engine_snapshot){ .e = e, .base_fd = -1, .delta_fd = -1, .state_fd = -1, .file_fd = -1,
					       .process = PROCESS_INIT, .dirfd = -1 };
	return s;
}

void kvm_snapshot_free(struct engine_snapshot *s)
{
	if (!s)
		return;
	source_drop(&s->timer);
	process_bury(&s->process, s->e->base.loop, &s->e->graves);
	fds_close(s->fds, s->n_fds);
	close_fd(&s->base_fd);
	close_fd(&s->delta_fd);
	close_fd(&s->state_fd);
	close_fd(&s->file_fd);
	close_fd(&s->dirfd);
	turn_give(&s->turn);
	free(s);
}

struct engine_snapshot *stored_new(struct kvm_engine *e, uint32_t layers, int fds[], uint64_t bytes)
{
	struct engine_snapshot *s = snapshot_new(e);
	size_t n = 0;

	if (!s) {
		fds_close(fds, layers == 2 ? 3 : 2);
		return NULL;
	}
	if (layers == 2)
		s->base_fd = fds[n++];
	s->delta_fd = fds[n++];
	s->state_fd = fds[n];
	s->bytes = bytes;
	return s;
}

uint32_t stored_layers(const struct engine_snapshot *s, int fds[3], size_t *ret_n)
{
	size_t n = 0;

	if (s->base_fd >= 0)
		fds[n++] = s->base_fd;
	if (s->delta_fd >= 0)
		fds[n++] = s->delta_fd;
	fds[n++] = s->state_fd;
	*ret_n = n;
	return s->base_fd < 0 ? 3 : s->delta_fd < 0 ? 1 : 2;
}

/* --- the process beside ------------------------------------------------------------------------------------------- */

static enum rc stored(struct engine_snapshot *s, struct fault *ret_f);

static void ended(struct engine_snapshot *s, enum rc rc, const struct fault *f)
{
	engine_done_fn *done = s->done;
	void *arg = s->arg;

	fds_close(s->fds, s->n_fds);
	s->n_fds = 0;
	turn_give(&s->turn);
	done(arg, rc, rc ? f : NULL); /* may free it */
}

static void on_ended(void *arg, int status)
{
	struct engine_snapshot *s = arg;
	struct fault f = { 0 };
	enum rc rc = RC_OK;

	if (status) {
		char why[160];

		process_last_words(&s->process, status, why, sizeof(why));
		rc = fault_set(&f, RC_STATE, 0, "snapshot cannot be used: %.120s", why);
	}
	process_close(&s->process);
	source_drop(&s->timer);
	if (!rc && s->finish)
		rc = s->finish(s, &f);
	ended(s, rc, &f);
}

static void on_late(void *arg)
{
	process_kill(&((struct engine_snapshot *)arg)->process);
}

static enum rc spawn(struct engine_snapshot *s, struct fault *ret_f)
{
	static char name[] = "nestbox-vmm";
	char *argv[STORED_WORDS + 2] = { name }, *const env[] = { NULL };
	struct jail_spec js = { .root = s->e->root, .exec_fd = s->e->exec_fd, .argv = argv, .envp = env, .uid = 65534,
				.null_fd = s->e->null_fd, .fds = s->fds, .n_fds = s->n_fds, .cgroup_procs_fd = -1,
				.max_file_bytes = 1ull << 42, .max_locked_bytes = 64 << 10, .max_processes = 64,
				.max_files = 64 };
	enum rc rc;

	for (size_t i = 0; i < STORED_WORDS && s->words[i][0]; i++)
		argv[i + 1] = s->words[i];
	rc = loop_timer(s->e->base.loop, now_ms() + STORED_MS, on_late, s, &s->timer, ret_f);
	if (!rc)
		rc = process_spawn(&s->process, s->e->base.loop, &js, ret_f);
	if (rc) {
		source_drop(&s->timer);
		return rc;
	}
	fds_close(s->fds, s->n_fds);
	s->n_fds = 0;
	return RC_OK;
}

static void on_turn(void *arg)
{
	struct engine_snapshot *s = arg;
	struct fault f;
	enum rc rc = spawn(s, &f);

	if (rc)
		ended(s, rc, &f);
}

static enum rc busy(const struct engine_snapshot *s, struct fault *ret_f)
{
	return s->turn.of ? fault_set(ret_f, RC_AGAIN, 0, "the snapshot is being read or written") : RC_OK;
}

/* Of one that is not busy. The descriptors are borrowed. */
static enum rc run(struct engine_snapshot *s, const char *const words[STORED_WORDS], const int fds[], size_t n_fds,
		   enum rc (*finish)(struct engine_snapshot *s, struct fault *ret_f), engine_done_fn *done, void *arg,
		   struct fault *ret_f)
{
	enum rc rc = RC_OK;

	s->process.ended = on_ended;
	s->process.arg = s;
	s->finish = finish;
	s->done = done;
	s->arg = arg;
	for (size_t i = 0; i < STORED_WORDS; i++)
		snprintf(s->words[i], sizeof(s->words[i]), "%s", words[i] ? words[i] : "");
	for (s->n_fds = 0; !rc && s->n_fds < n_fds; s->n_fds++) {
		s->fds[s->n_fds] = fcntl(fds[s->n_fds], F_DUPFD_CLOEXEC, 0);
		if (s->fds[s->n_fds] < 0)
			rc = fault_set(ret_f, RC_SYS, errno, "duplicate descriptor");
	}
	if (!rc && turn_take(&s->e->turns, &s->turn, finish != stored, on_turn, s))
		rc = spawn(s, ret_f);
	if (!rc)
		return RC_OK;
	fds_close(s->fds, s->n_fds);
	s->n_fds = 0;
	turn_give(&s->turn);
	return rc;
}

/* --- opening ------------------------------------------------------------------------------------------------------- */

static enum rc state_object(struct engine_snapshot *s, const void *state, size_t n, struct fault *ret_f)
{
	_cleanup_fd_ int fd = memfd_create("state", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0)
		return fault_set(ret_f, RC_SYS, errno, "state object");
	if (fd_write_all(fd, state, n, UINT64_MAX, ret_f))
		return RC_SYS;
	if (fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
		return fault_set(ret_f, RC_SYS, errno, "seal state");
	s->state_fd = take_fd(&fd);
	return RC_OK;
}

static int open_file(int dirfd, const char *name)
{
	return openat(dirfd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
}

static enum rc check_file(int fd, uint64_t bytes, const char *what, struct fault *ret_f)
{
	struct stat st;

	/* Shorter than it says would be SIGBUS in the machine. */
	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || (uint64_t)st.st_size != bytes)
		return fault_set(ret_f, RC_STATE, 0, "%s has another size than it says", what);
	return RC_OK;
}

/* Descriptors, head, state, sizes. */
static enum rc open_files(struct engine_snapshot *s, int dirfd, struct fault *ret_f)
{
	_cleanup_fd_ int memory = open_file(dirfd, VMM_MEMORY_FILE);
	_cleanup_free_ uint8_t *state = NULL;
	struct savefile_head h;
	size_t n;
	enum rc rc;

	s->file_fd = open_file(dirfd, VMM_STATE_FILE);
	if (memory < 0 || s->file_fd < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "open snapshot");
	rc = savefile_state(s->file_fd, &h, &state, &n, ret_f);
	if (!rc && h.has_base && (s->base_fd = open_file(dirfd, VMM_BASE_FILE)) < 0)
		rc = fault_set(ret_f, RC_STATE, errno, "its base is missing");
	if (!rc && h.has_base)
		rc = check_file(s->base_fd, h.bytes, "its base", ret_f);
	if (!rc)
		rc = check_file(memory, h.bytes + (h.has_base ? h.bytes / 4096 / 8 : 0), "its memory", ret_f);
	if (!rc)
		rc = state_object(s, state, n, ret_f);
	if (rc) {
		fault_wrap(ret_f, "snapshot cannot be used");
		if (ret_f)
			ret_f->rc = RC_STATE;
		return RC_STATE;
	}
	s->bytes = h.bytes;
	*(h.has_base ? &s->delta_fd : &s->base_fd) = take_fd(&memory);
	return RC_OK;
}

enum rc kvm_snapshot_map(struct engine *base, int dirfd, struct engine_snapshot **ret, struct fault *ret_f)
{
	struct engine_snapshot *s = snapshot_new((struct kvm_engine *)base);
	enum rc rc;

	if (!s)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	rc = open_files(s, dirfd, ret_f);
	if (rc)
		kvm_snapshot_free(s);
	else
		*ret = s;
	return rc;
}

/* check, or load into `to`. */
static enum rc read_all(struct engine_snapshot *s, int to, enum rc (*finish)(struct engine_snapshot *s, struct fault *ret_f),
			engine_done_fn *done, void *arg, struct fault *ret_f)
{
	bool delta = s->delta_fd >= 0;
	const char *const words[STORED_WORDS] = { to < 0 ? "check" : "load", delta ? "base" : NULL };
	int fds[4] = { delta ? s->delta_fd : s->base_fd, s->file_fd };
	size_t n = 2;

	if (delta)
		fds[n++] = s->base_fd;
	if (to >= 0)
		fds[n++] = to;
	return run(s, words, fds, n, finish, done, arg, ret_f);
}

enum rc kvm_snapshot_check(struct engine_snapshot *s, engine_done_fn *done, void *arg, struct fault *ret_f)
{
	if (s->file_fd < 0)
		return fault_set(ret_f, RC_STATE, 0, "this snapshot is in no file");
	if (busy(s, ret_f))
		return RC_AGAIN;
	return read_all(s, -1, NULL, done, arg, ret_f);
}

/* The memfd that was filled is what machines map from now on; s->dirfd kept it. */
static enum rc loaded(struct engine_snapshot *s, struct fault *ret_f)
{
	(void)ret_f;
	close_fd(&s->base_fd);
	close_fd(&s->delta_fd);
	s->base_fd = take_fd(&s->dirfd);
	return RC_OK;
}

enum rc kvm_snapshot_open(struct engine *base, int dirfd, engine_done_fn *done, void *arg, struct engine_snapshot **ret,
			  struct fault *ret_f)
{
	struct engine_snapshot *s;
	enum rc rc = kvm_snapshot_map(base, dirfd, &s, ret_f);

	if (rc)
		return rc;
	s->dirfd = memfd_create("base", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	rc = s->dirfd < 0 ? fault_set(ret_f, RC_SYS, errno, "memory object") : read_all(s, s->dirfd, loaded, done, arg, ret_f);
	if (rc)
		kvm_snapshot_free(s);
	else
		*ret = s;
	return rc;
}

/* --- writing ------------------------------------------------------------------------------------------------------- */

/* The whole memory that a snapshot in base_dirfd has or is based on gets a name below dirfd. *ret_fd -1: there is none that would do. */
static void base_take(const struct engine_snapshot *s, int dirfd, int base_dirfd, int *ret_fd, uint32_t *ret_crc)
{
	_cleanup_fd_ int file = base_dirfd < 0 ? -1 : open_file(base_dirfd, VMM_STATE_FILE), memory = -1;
	_cleanup_free_ uint8_t *state = NULL;
	struct savefile_head h;
	const char *name;
	size_t n;

	*ret_fd = -1;
	if (file < 0 || savefile_state(file, &h, &state, &n, NULL) || h.bytes != s->bytes)
		return;
	name = h.has_base ? VMM_BASE_FILE : VMM_MEMORY_FILE;
	if (linkat(base_dirfd, name, dirfd, VMM_BASE_FILE, 0) < 0)
		return;
	/* What got the name, whatever became of the other meanwhile. */
	memory = open_file(dirfd, VMM_BASE_FILE);
	if (memory < 0 || check_file(memory, h.bytes, "base", NULL)) {
		unlinkat(dirfd, VMM_BASE_FILE, 0);
		return;
	}
	*ret_crc = h.has_base ? h.base_crc : h.memory_crc;
	*ret_fd = take_fd(&memory);
}

/* One that was written whole after all needs no base. */
static enum rc stored(struct engine_snapshot *s, struct fault *ret_f)
{
	_cleanup_fd_ int file = open_file(s->dirfd, VMM_STATE_FILE);
	_cleanup_free_ uint8_t *state = NULL;
	struct savefile_head h;
	size_t n;
	enum rc rc = file < 0 ? fault_set(ret_f, RC_SYS, errno, "open state file") : savefile_state(file, &h, &state, &n, ret_f);

	if (!rc && !h.has_base && unlinkat(s->dirfd, VMM_BASE_FILE, 0) < 0 && errno != ENOENT)
		rc = fault_set(ret_f, RC_SYS, errno, "unlink base");
	close_fd(&s->dirfd);
	return rc;
}

static enum rc store_begin(struct engine_snapshot *s, int base_dirfd, engine_done_fn *done, void *arg, struct fault *ret_f)
{
	_cleanup_fd_ int memory = openat(s->dirfd, VMM_MEMORY_FILE, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	_cleanup_fd_ int state = openat(s->dirfd, VMM_STATE_FILE, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600), prev = -1;
	char layers[4] = "", mib[STORED_WORD_MAX], crc[STORED_WORD_MAX];
	const char *const words[STORED_WORDS] = { "store", layers, mib, crc };
	int fds[STORED_FDS] = { memory, state, s->state_fd };
	uint32_t prev_crc = 0;
	size_t n = 3;
	enum rc rc;

	if (memory < 0 || state < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "create snapshot files");
	base_take(s, s->dirfd, base_dirfd, &prev, &prev_crc);
	for (size_t i = 0; i < 3; i++) {
		int fd = i == 0 ? s->base_fd : i == 1 ? s->delta_fd : prev;

		if (fd < 0)
			continue;
		layers[n - 3] = "bdp"[i];
		fds[n++] = fd;
	}
	snprintf(mib, sizeof(mib), "%llu", (unsigned long long)(s->bytes >> 20));
	snprintf(crc, sizeof(crc), "%u", prev_crc);
	rc = run(s, words, fds, n, stored, done, arg, ret_f);
	/* The program has it, or who waits for it; the last one to close it takes the time to free its pages, and that shall not be the broker. */
	if (!rc) {
		close_fd(&s->base_fd);
		close_fd(&s->delta_fd);
	}
	return rc;
}

enum rc kvm_snapshot_store(struct engine_snapshot *s, int dirfd, int base_dirfd, engine_done_fn *done, void *arg, struct fault *ret_f)
{
	enum rc rc;

	if (busy(s, ret_f))
		return RC_AGAIN;
	close_fd(&s->dirfd);
	s->dirfd = fcntl(dirfd, F_DUPFD_CLOEXEC, 0);
	rc = s->dirfd < 0 ? fault_set(ret_f, RC_SYS, errno, "directory") : store_begin(s, base_dirfd, done, arg, ret_f);
	if (rc)
		close_fd(&s->dirfd);
	return rc;
}
