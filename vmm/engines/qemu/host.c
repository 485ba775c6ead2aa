/* SPDX-License-Identifier: Apache-2.0 */
/* Asked once, when the engine is made: this blocks, bounded by HOST_MS. */
#include "vmm/engines/qemu/vm.h"

#include "base/cleanup.h"
#include "base/fd.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <x86intrin.h>

#define HOST_MS 10000
#define HOST_OUTPUT_MAX 65536
#define LOADER "/lib64/ld-linux-x86-64.so.2"
#define MODULE_TCG "/usr/lib/x86_64-linux-gnu/qemu/accel-tcg-x86_64.so"
#define FIRMWARE "/usr/share/qemu/bios-microvm.bin"
#define COW_TARGET "/nestbox-qemu-cow.so"

static enum rc output_read(int fd, char *out, size_t size, struct fault *ret_f)
{
	uint64_t deadline = now_ms() + HOST_MS;
	size_t n = 0;

	for (;;) {
		ssize_t got;
		enum rc rc = fd_wait(fd, POLLIN, deadline, ret_f);

		if (rc)
			return rc;
		got = read(fd, out + n, size - 1 - n);
		if (got < 0)
			return fault_set(ret_f, RC_SYS, errno, "read");
		if (!got)
			break;
		n += (size_t)got;
		if (n == size - 1)
			return fault_set(ret_f, RC_LIMIT, 0, "more than %zu bytes of output", size - 1);
	}
	out[n] = '\0';
	return RC_OK;
}

/* Standard output of a program of the host, which is trusted. */
static enum rc host_run(const char *const argv[], char *out, size_t size, struct fault *ret_f)
{
	char *const env[] = { NULL };
	int fds[2], status = -1;
	enum rc rc;
	pid_t pid;

	if (pipe2(fds, O_CLOEXEC) < 0)
		return fault_set(ret_f, RC_SYS, errno, "pipe");
	pid = fork();
	if (!pid) {
		if (dup2(fds[1], 1) == 1)
			execve(argv[0], (char *const *)(uintptr_t)argv, env);
		_exit(127);
	}
	close(fds[1]);
	rc = pid < 0 ? fault_set(ret_f, RC_SYS, errno, "fork") : output_read(fds[0], out, size, ret_f);
	close(fds[0]);
	if (pid < 0)
		return rc;
	if (rc)
		kill(pid, SIGKILL);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (!rc && status)
		rc = fault_set(ret_f, RC_SYS, 0, "status %d", status);
	return rc ? fault_wrap(ret_f, "run '%s'", argv[0]) : RC_OK;
}

enum rc host_version(const char *qemu_path, char out[QEMU_VERSION_MAX], struct fault *ret_f)
{
	const char *const argv[] = { qemu_path, "--version", NULL };
	char text[HOST_OUTPUT_MAX];
	enum rc rc = host_run(argv, text, sizeof(text), ret_f);

	if (rc)
		return rc;
	text[strcspn(text, "\n")] = '\0';
	if (!text[0] || strlen(text) >= QEMU_VERSION_MAX)
		return fault_set(ret_f, RC_SYS, 0, "'%s --version' says nothing usable", qemu_path);
	memcpy(out, text, strlen(text) + 1);
	return RC_OK;
}

struct root_list {
	struct jail_mount m[JAIL_MOUNTS_MAX];
	char *names[JAIL_MOUNTS_MAX];
	size_t n;
};

static void root_list_free(struct root_list *l)
{
	for (size_t i = 0; i < l->n; i++)
		free(l->names[i]);
}

static enum rc root_add(struct root_list *l, const char *source, const char *target, struct fault *ret_f)
{
	char *name;

	for (size_t i = 0; i < l->n; i++)
		if (!strcmp(l->m[i].target, target))
			return RC_OK;
	if (l->n == JAIL_MOUNTS_MAX)
		return fault_set(ret_f, RC_LIMIT, 0, "QEMU needs more than %d files", JAIL_MOUNTS_MAX);
	/* source and target, one after the other */
	if (asprintf(&name, "%s%c%s", source, 0, target) < 0)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	l->m[l->n] = (struct jail_mount){ name, name + strlen(source) + 1 };
	l->names[l->n++] = name;
	return RC_OK;
}

/* Lines of the loader: "\tlibfoo.so.1 => /lib/x86_64-linux-gnu/libfoo.so.1 (0x00007f..)". */
static enum rc root_add_libraries(struct root_list *l, const char *program, struct fault *ret_f)
{
	const char *const argv[] = { LOADER, "--list", program, NULL };
	_cleanup_free_ char *text = malloc(HOST_OUTPUT_MAX);
	char *save = NULL;
	enum rc rc;

	if (!text)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	rc = host_run(argv, text, HOST_OUTPUT_MAX, ret_f);
	for (char *line = strtok_r(text, "\n", &save); line && !rc; line = strtok_r(NULL, "\n", &save)) {
		char *path = strchr(line, '/');

		if (!path)
			continue; /* the vDSO */
		path[strcspn(path, " ")] = '\0';
		rc = root_add(l, path, path, ret_f);
	}
	return rc;
}

static const char *cow_path(void)
{
	const char *dir = getenv("NESTBOX_LIBEXECDIR"); /* for tests in the build tree */
	static char path[256];

	snprintf(path, sizeof(path), "%s/nestbox-qemu-cow.so", dir ? dir : NB_LIBEXECDIR);
	return path;
}

enum rc host_root(const char *qemu_path, bool kvm, struct jail_root **ret, struct fault *ret_f)
{
	_cleanup_(root_list_free) struct root_list l = { .n = 0 };
	enum rc rc = root_add(&l, LOADER, LOADER, ret_f);

	if (!rc)
		rc = root_add_libraries(&l, qemu_path, ret_f);
	if (!rc)
		rc = root_add(&l, FIRMWARE, FIRMWARE, ret_f);
	if (!rc)
		rc = root_add(&l, cow_path(), COW_TARGET, ret_f);
	if (!rc && kvm)
		rc = root_add(&l, "/dev/kvm", "/dev/kvm", ret_f);
	if (!rc && !kvm)
		rc = root_add(&l, MODULE_TCG, MODULE_TCG, ret_f);
	if (!rc && !kvm)
		rc = root_add_libraries(&l, MODULE_TCG, ret_f);
	return rc ? rc : jail_root_new(l.m, l.n, true, ret, ret_f);
}

struct tick {
	uint64_t ns, tsc;
};

/* Both clocks at one moment: the tightest of several tries. */
static struct tick tick_read(void)
{
	struct tick best = { 0, 0 };
	uint64_t narrow = UINT64_MAX;

	for (int i = 0; i < 16; i++) {
		uint64_t a = __rdtsc(), b;
		struct timespec t;

		clock_gettime(CLOCK_MONOTONIC_RAW, &t);
		b = __rdtsc();
		if (b - a < narrow) {
			narrow = b - a;
			best.ns = (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
			best.tsc = a + (b - a) / 2;
		}
	}
	return best;
}

uint32_t host_tsc_khz(void)
{
	struct tick from = tick_read(), to;
	struct timespec wait = { 0, 20 * 1000000 };

	while (nanosleep(&wait, &wait) < 0 && errno == EINTR)
		;
	to = tick_read();
	return (uint32_t)((to.tsc - from.tsc) * 1000000 / (to.ns - from.ns));
}
