/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A machine on disk: "memory" (sparse), "state" (QEMU's devices and processors), "manifest.json" (what both need to be
 * used again, and their checksums). Theory: the machine stands still. QEMU writes its state to a descriptor that it is
 * given, while a job copies memory from outside; when both are on disk the manifest is written, and only a directory with a
 * manifest is a snapshot. The caller gives an empty directory and renames it when it is told that all is done.
 */
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

#define MANIFEST_FORMAT 1

struct save {
	int dirfd, state_fd, memory_fd;
	struct job *job;
	struct memory_sum sum;
	bool memory_done, state_done;
};

void save_free(struct engine_vm *vm)
{
	struct save *s = vm->save;

	if (!s)
		return;
	vm->save = NULL;
	job_free(s->job);
	close_fd(&s->dirfd);
	close_fd(&s->state_fd);
	close_fd(&s->memory_fd);
	free(s);
}

static void save_end(struct engine_vm *vm, const struct fault *f)
{
	save_free(vm);
	vm_op_end(vm, f);
}

static void hex(char out[2 * MEMORY_DIGEST + 1], const uint8_t in[MEMORY_DIGEST])
{
	for (size_t i = 0; i < MEMORY_DIGEST; i++)
		snprintf(out + 2 * i, 3, "%02x", in[i]);
}

static void put_int(struct json_object *o, const char *name, uint64_t v)
{
	json_object_object_add(o, name, json_object_new_int64((int64_t)v));
}

static void put_str(struct json_object *o, const char *name, const char *v)
{
	json_object_object_add(o, name, json_object_new_string(v));
}

static enum rc manifest_put(int dirfd, const char *text, struct fault *ret_f)
{
	_cleanup_fd_ int fd = openat(dirfd, QEMU_MANIFEST_FILE, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);

	if (fd < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "create a snapshot's manifest");
	return fd_write_all(fd, text, strlen(text), UINT64_MAX, ret_f);
}

static enum rc manifest_write(struct engine_vm *vm, struct fault *ret_f)
{
	char memory_sum[2 * MEMORY_DIGEST + 1], state_sum[2 * MEMORY_DIGEST + 1];
	uint8_t digest[MEMORY_DIGEST];
	struct save *s = vm->save;
	struct json_object *o;
	const char *text;
	struct stat st;
	enum rc rc;

	if (fstat(s->state_fd, &st) < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "size of the device state");
	if (st.st_size <= 0 || st.st_size > QEMU_STATE_MAX)
		return fault_set(ret_f, RC_GUEST, 0, "QEMU wrote %lld bytes of state", (long long)st.st_size);
	rc = memory_digest_file(s->state_fd, (uint64_t)st.st_size, digest, ret_f);
	if (rc)
		return rc;
	hex(state_sum, digest);
	hex(memory_sum, s->sum.digest);
	o = json_object_new_object();
	if (!o)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	put_int(o, "format", MANIFEST_FORMAT);
	put_str(o, "engine", vm->e->base.ops->name);
	put_str(o, "qemu", vm->e->version);
	put_str(o, "shape", vm->shape);
	put_int(o, "memory_mib", vm->memory_mib);
	put_int(o, "tsc_khz", vm->e->tsc_khz);
	put_int(o, "memory_pages", s->sum.pages);
	put_str(o, "memory_sha256", memory_sum);
	put_int(o, "state_bytes", (uint64_t)st.st_size);
	put_str(o, "state_sha256", state_sum);
	text = json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY);
	rc = text ? manifest_put(s->dirfd, text, ret_f) : fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	json_object_put(o);
	return rc;
}

static void save_proceed(struct engine_vm *vm)
{
	struct fault f;

	if (!vm->save->memory_done || !vm->save->state_done)
		return;
	save_end(vm, manifest_write(vm, &f) ? &f : NULL);
}

static void on_memory(void *arg, const struct job_result *r)
{
	struct engine_vm *vm = arg;
	struct fault f = r->fault;

	if (f.rc) {
		save_end(vm, &f);
		return;
	}
	vm->save->sum = r->sum;
	vm->save->memory_done = true;
	save_proceed(vm);
}

void save_on_migration(struct engine_vm *vm, const char *status)
{
	struct fault f;

	if (!vm->save)
		return;
	if (!strcmp(status, "failed")) {
		fault_set(&f, RC_SYS, 0, "QEMU could not write its state");
		save_end(vm, &f);
	} else if (!strcmp(status, "completed")) {
		vm->save->state_done = true;
		save_proceed(vm);
	}
}

static void on_ack(void *arg, struct json_object *value, const struct fault *f)
{
	struct engine_vm *vm = arg;

	(void)value;
	if (f && vm->op == OP_SAVE)
		save_end(vm, f);
}

/* The descriptor is in: now the state may be written to it. */
static void on_state_fd(void *arg, struct json_object *value, const struct fault *f)
{
	struct engine_vm *vm = arg;

	on_ack(arg, value, f);
	if (!f && vm->op == OP_SAVE)
		vm_command(vm, "migrate", "{\"uri\":\"fd:state\"}", -1, on_ack);
}

enum rc gpa2hva_parse(const char *text, uint64_t *ret, struct fault *ret_f)
{
	static const char head[] = "Host virtual address for 0x0 (ram) is 0x";
	char *end;
	uint64_t v;

	if (strncmp(text, head, sizeof(head) - 1))
		return fault_set(ret_f, RC_PROTO, 0, "QEMU did not say where guest memory is");
	v = strtoull(text + sizeof(head) - 1, &end, 16);
	if (end == text + sizeof(head) - 1 || *end != '\r' || !v || v % 4096 || v >> 47)
		return fault_set(ret_f, RC_PROTO, 0, "QEMU gave an impossible address of guest memory");
	*ret = v;
	return RC_OK;
}

static void on_address(void *arg, struct json_object *value, const struct fault *f)
{
	struct engine_vm *vm = arg;
	struct job_spec job = { .from = { .pid = vm->process.pid, .base_fd = vm->ram_fd, .size = (uint64_t)vm->memory_mib << 20 } };
	struct fault own;

	if (vm->op != OP_SAVE || !vm->save)
		return;
	if (f) {
		save_end(vm, f);
		return;
	}
	job.out_fd = vm->save->memory_fd;
	if (!json_object_is_type(value, json_type_string))
		fault_set(&own, RC_PROTO, 0, "QEMU did not say where guest memory is");
	else if (!gpa2hva_parse(json_object_get_string(value), &job.from.address, &own) &&
		 !job_start(vm->e->base.loop, &job, on_memory, vm, &vm->save->job, &own))
		return;
	save_end(vm, &own);
}

static enum rc save_open(struct save *s, int dirfd, struct fault *ret_f)
{
	const int flags = O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW;

	s->dirfd = fcntl(dirfd, F_DUPFD_CLOEXEC, 0);
	s->state_fd = openat(dirfd, QEMU_STATE_FILE, flags, 0600);
	s->memory_fd = openat(dirfd, QEMU_MEMORY_FILE, flags, 0600);
	if (s->dirfd < 0 || s->state_fd < 0 || s->memory_fd < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "create a snapshot's files");
	return RC_OK;
}

enum rc qemu_save(struct engine_vm *vm, int dirfd, engine_done_fn *done, struct fault *ret_f)
{
	struct save *s;
	enum rc rc;

	if (!vm->op && vm->state != VM_PAUSED)
		return fault_set(ret_f, RC_STATE, 0, "machine '%s' is not paused", vm->id);
	s = calloc(1, sizeof(*s));
	if (!s)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	s->dirfd = s->state_fd = s->memory_fd = -1;
	rc = vm_op_begin(vm, OP_SAVE, QEMU_SAVE_MS, done, ret_f);
	if (rc) {
		free(s);
		return rc;
	}
	vm->save = s;
	rc = save_open(s, dirfd, ret_f);
	if (rc) {
		vm->done = NULL;
		save_end(vm, NULL);
		return rc;
	}
	if (vm_command(vm, "human-monitor-command", "{\"command-line\":\"gpa2hva 0\"}", -1, on_address))
		vm_command(vm, "getfd", "{\"fdname\":\"state\"}", s->state_fd, on_state_fd);
	return RC_OK;
}

/* --- opening -------------------------------------------------------------------------------------------------- */

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

	if (m->format != MANIFEST_FORMAT)
		return fault_set(ret_f, RC_STATE, 0, "snapshot has format %" PRIu64 ", not %d", m->format, MANIFEST_FORMAT);
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

	hex(text, digest);
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

static enum rc memory_load(int dirfd, const struct manifest *m, struct engine_snapshot *snap, struct fault *ret_f)
{
	_cleanup_fd_ int fd = openat(dirfd, QEMU_MEMORY_FILE, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	struct memory_source from = { .base_fd = fd, .size = m->memory_mib << 20 };
	struct memory_sum sum;
	struct stat st;
	enum rc rc;

	if (fd < 0 || fstat(fd, &st) < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "open a snapshot's memory");
	if ((uint64_t)st.st_size != from.size)
		return fault_set(ret_f, RC_STATE, 0, "snapshot is damaged: length of its memory");
	rc = memory_file("nestbox-ram", 0, &snap->ram_fd, ret_f);
	if (!rc)
		rc = memory_copy(&from, snap->ram_fd, true, &sum, ret_f);
	if (!rc)
		rc = sum_check("memory", sum.digest, m->memory_sum, ret_f);
	return rc ? rc : memory_seal(snap->ram_fd, ret_f);
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

typedef enum rc memory_fn(int dirfd, const struct manifest *m, struct engine_snapshot *snap, struct fault *ret_f);

static enum rc snapshot_open(struct engine *base, int dirfd, memory_fn *memory, struct engine_snapshot **ret,
			     struct fault *ret_f)
{
	_cleanup_(manifest_free) struct manifest m = { 0 };
	struct engine_snapshot *snap = calloc(1, sizeof(*snap));
	enum rc rc;

	if (!snap)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	snap->ram_fd = snap->state_fd = -1;
	rc = manifest_read(dirfd, &m, ret_f);
	if (!rc)
		rc = manifest_check(&m, (struct qemu *)base, ret_f);
	if (!rc)
		rc = state_load(dirfd, &m, snap, ret_f);
	if (!rc)
		rc = memory(dirfd, &m, snap, ret_f);
	if (rc) {
		qemu_snapshot_free(snap);
		return rc;
	}
	memcpy(snap->shape, m.shape, strlen(m.shape) + 1);
	*ret = snap;
	return RC_OK;
}

enum rc qemu_snapshot_open(struct engine *base, int dirfd, struct engine_snapshot **ret, struct fault *ret_f)
{
	return snapshot_open(base, dirfd, memory_load, ret, ret_f);
}

enum rc qemu_snapshot_map(struct engine *base, int dirfd, struct engine_snapshot **ret, struct fault *ret_f)
{
	return snapshot_open(base, dirfd, memory_map, ret, ret_f);
}

void qemu_snapshot_free(struct engine_snapshot *snap)
{
	if (!snap)
		return;
	close_fd(&snap->ram_fd);
	close_fd(&snap->state_fd);
	free(snap);
}
