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
#include "base/hex.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>


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

void digest_hex(char out[2 * MEMORY_DIGEST + 1], const uint8_t in[MEMORY_DIGEST])
{
	hex_of(out, in, MEMORY_DIGEST);
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

enum rc manifest_write(const struct qemu *e, int dirfd, const char *shape, uint32_t memory_mib, int state_fd,
		       const struct memory_sum *sum, struct fault *ret_f)
{
	char memory_sum[2 * MEMORY_DIGEST + 1], state_sum[2 * MEMORY_DIGEST + 1];
	uint8_t digest[MEMORY_DIGEST];
	struct json_object *o;
	const char *text;
	struct stat st;
	enum rc rc;

	if (fstat(state_fd, &st) < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "size of the device state");
	if (st.st_size <= 0 || st.st_size > QEMU_STATE_MAX)
		return fault_set(ret_f, RC_GUEST, 0, "QEMU wrote %lld bytes of state", (long long)st.st_size);
	rc = memory_digest_file(state_fd, (uint64_t)st.st_size, digest, ret_f);
	if (rc)
		return rc;
	digest_hex(state_sum, digest);
	digest_hex(memory_sum, sum->digest);
	o = json_object_new_object();
	if (!o)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	put_int(o, "format", QEMU_MANIFEST_FORMAT);
	put_str(o, "engine", e->base.ops->name);
	put_str(o, "qemu", e->version);
	put_str(o, "shape", shape);
	put_int(o, "memory_mib", memory_mib);
	put_int(o, "tsc_khz", e->tsc_khz);
	put_int(o, "memory_pages", sum->pages);
	put_str(o, "memory_sha256", memory_sum);
	put_int(o, "state_bytes", (uint64_t)st.st_size);
	put_str(o, "state_sha256", state_sum);
	text = json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY);
	rc = text ? manifest_put(dirfd, text, ret_f) : fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	json_object_put(o);
	return rc;
}

static void save_proceed(struct engine_vm *vm)
{
	struct fault f;

	if (!vm->save->memory_done || !vm->save->state_done)
		return;
	save_end(vm, manifest_write(vm->e, vm->save->dirfd, vm->shape, vm->memory_mib, vm->save->state_fd, &vm->save->sum, &f) ? &f : NULL);
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
	job.graves = &vm->e->graves;
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
