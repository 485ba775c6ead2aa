/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/broker/cgroup.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "vmm/store/copy.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define CGROUP_ROOT "/sys/fs/cgroup"
#define CPU_PERIOD_US 100000u

static const char *const controller_names[CGROUP_CONTROLLERS] = { "memory", "pids", "cpu" };

/* cgroup files take one write(2) each, without creating or renaming anything. */
static enum rc put_at(int dirfd, const char *name, const char *text, struct fault *ret_f)
{
	_cleanup_fd_ int fd = openat(dirfd, name, O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
	size_t n = strlen(text);

	if (fd < 0 || write(fd, text, n) != (ssize_t)n)
		return fault_set(ret_f, RC_SYS, errno, "write cgroup file '%s'", name);
	return RC_OK;
}

/* The kernel says that such a file's size is 0, whatever is in it. */
static bool get_at(int dirfd, const char *name, char *out, size_t size)
{
	_cleanup_fd_ int fd = openat(dirfd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	size_t n = 0;
	ssize_t got = fd < 0 ? -1 : 0;

	while (fd >= 0 && n < size - 1 && (got = read(fd, out + n, size - 1 - n)) > 0)
		n += (size_t)got;
	out[n] = '\0';
	return got >= 0;
}

static bool word_in(const char *text, const char *word)
{
	size_t n = strlen(word);

	for (const char *p = text; (p = strstr(p, word)); p += n)
		if ((p == text || p[-1] == ' ') && (p[n] == ' ' || p[n] == '\n' || !p[n]))
			return true;
	return false;
}

static bool host_v2(struct cgroup_host *h)
{
	_cleanup_fd_ int root = open(CGROUP_ROOT, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	char text[4096];
	int fd;

	if (root < 0 || !get_at(root, "cgroup.controllers", text, sizeof(text)))
		return false;
	for (int i = 0; i < CGROUP_CONTROLLERS; i++) {
		char enable[16];

		snprintf(enable, sizeof(enable), "+%s", controller_names[i]);
		if (word_in(text, controller_names[i]))
			put_at(root, "cgroup.subtree_control", enable, NULL);
	}
	if (dir_open_at(root, h->name, 0755, &fd, NULL))
		return false;
	for (int i = 0; i < CGROUP_CONTROLLERS; i++) {
		char enable[16];

		snprintf(enable, sizeof(enable), "+%s", controller_names[i]);
		if (!put_at(fd, "cgroup.subtree_control", enable, NULL))
			h->dirfd[i] = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	}
	close(fd);
	h->version = 2;
	return true;
}

static void host_v1(struct cgroup_host *h)
{
	for (int i = 0; i < CGROUP_CONTROLLERS; i++) {
		_cleanup_fd_ int root = -1;
		char path[64];
		int fd;

		snprintf(path, sizeof(path), CGROUP_ROOT "/%s", controller_names[i]);
		root = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (root < 0 || faccessat(root, "cgroup.procs", W_OK, 0) < 0)
			continue;
		if (!dir_open_at(root, h->name, 0755, &fd, NULL)) {
			h->dirfd[i] = fd;
			h->version = 1;
		}
	}
}

void cgroup_host_init(struct cgroup_host *h, const char *tag)
{
	*h = (struct cgroup_host){ .dirfd = { -1, -1, -1 } };
	snprintf(h->name, sizeof(h->name), "nestbox-%.20s", tag);
	if (!host_v2(h))
		host_v1(h);
}

void cgroup_host_free(struct cgroup_host *h)
{
	for (int i = 0; i < CGROUP_CONTROLLERS; i++) {
		char path[96];

		if (h->dirfd[i] < 0)
			continue;
		close_fd(&h->dirfd[i]);
		snprintf(path, sizeof(path), CGROUP_ROOT "/%s%s%s", h->version == 1 ? controller_names[i] : "",
			 h->version == 1 ? "/" : "", h->name);
		rmdir(path); /* busy as long as machines are in it */
	}
}

static void limit_put(int fd, const char *name, uint64_t value)
{
	struct fault f;
	char text[32];

	snprintf(text, sizeof(text), "%" PRIu64, value);
	if (put_at(fd, name, text, &f))
		log_fault(LOG_LEVEL_WARN, &f, "cgroup limit");
}

static void weight_put(const struct cgroup_host *h, int fd, uint32_t weight)
{
	if (h->version == 1)
		limit_put(fd, "cpu.shares", (uint64_t)weight * 1024 / CGROUP_WEIGHT);
	else
		limit_put(fd, "cpu.weight", weight);
}

static const char *memory_file(const struct cgroup_host *h)
{
	return h->version == 2 ? "memory.max" : "memory.limit_in_bytes";
}

static void limit_set(const struct cgroup_host *h, int which, int fd, const struct cgroup_limits *l)
{
	char text[64];

	switch (which) {
	case CGROUP_MEMORY:
		limit_put(fd, memory_file(h), l->memory_bytes);
		break;
	case CGROUP_PIDS:
		limit_put(fd, "pids.max", l->pids);
		break;
	default:
		weight_put(h, fd, l->weight);
		/* One processor beyond the virtual ones, for the VM process's own threads. */
		if (h->version == 1) {
			limit_put(fd, "cpu.cfs_period_us", CPU_PERIOD_US);
			limit_put(fd, "cpu.cfs_quota_us", (uint64_t)(l->cpus + 1) * CPU_PERIOD_US);
			break;
		}
		snprintf(text, sizeof(text), "%u %u", (l->cpus + 1) * CPU_PERIOD_US, CPU_PERIOD_US);
		put_at(fd, "cpu.max", text, NULL);
	}
}

enum rc cgroup_make(const struct cgroup_host *h, const char *id, const struct cgroup_limits *limits, struct cgroup *ret,
		    struct fault *ret_f)
{
	*ret = (struct cgroup){ .made = true, .procs_fd = -1 };
	snprintf(ret->id, sizeof(ret->id), "%s", id);
	for (int i = 0; i < CGROUP_CONTROLLERS; i++) {
		_cleanup_fd_ int fd = -1;
		enum rc rc;

		if (h->dirfd[i] < 0)
			continue;
		rc = dir_open_at(h->dirfd[i], id, 0755, &fd, ret_f);
		if (rc)
			return fault_wrap(ret_f, "cgroup");
		limit_set(h, i, fd, limits);
		if (ret->procs_fd < 0)
			ret->procs_fd = openat(fd, "cgroup.procs", O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
	}
	return RC_OK;
}

static int group_open(const struct cgroup_host *h, int which, const char *id)
{
	return h->dirfd[which] < 0 ? -1 : openat(h->dirfd[which], id, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

void cgroup_reweigh(const struct cgroup_host *h, const char *id, uint32_t weight)
{
	_cleanup_fd_ int fd = group_open(h, CGROUP_CPU, id);

	if (fd >= 0)
		weight_put(h, fd, weight);
}

static bool number_get(int fd, const char *name, uint64_t *ret)
{
	char text[64];

	return get_at(fd, name, text, sizeof(text)) && sscanf(text, "%" SCNu64, ret) == 1;
}

void cgroup_memory_set(const struct cgroup_host *h, const char *id, uint64_t bytes)
{
	_cleanup_fd_ int fd = group_open(h, CGROUP_MEMORY, id);
	uint64_t used, bound;

	if (fd < 0)
		return;
	/* A bound below what is used: the kernel would take memory back until it fits, in here, and at worst end the machine. */
	if (number_get(fd, h->version == 2 ? "memory.current" : "memory.usage_in_bytes", &used) && used > bytes &&
	    (!number_get(fd, memory_file(h), &bound) || bound > bytes))
		return;
	limit_put(fd, memory_file(h), bytes);
}

bool cgroup_memory_get(const struct cgroup_host *h, const char *id, uint64_t *ret)
{
	_cleanup_fd_ int fd = group_open(h, CGROUP_MEMORY, id);

	return fd >= 0 && number_get(fd, memory_file(h), ret);
}

void cgroup_join_rest(const struct cgroup_host *h, const struct cgroup *g, pid_t pid)
{
	char text[32];
	bool first = true;

	if (h->version != 1 || !g->made || pid <= 0)
		return;
	snprintf(text, sizeof(text), "%d", (int)pid);
	for (int i = 0; i < CGROUP_CONTROLLERS; i++) {
		_cleanup_fd_ int fd = -1;

		if (h->dirfd[i] < 0)
			continue;
		if (!first) {
			fd = openat(h->dirfd[i], g->id, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
			if (fd >= 0)
				put_at(fd, "cgroup.procs", text, NULL);
		}
		first = false;
	}
}

enum rc cgroup_remove(const struct cgroup_host *h, const char *id, struct fault *ret_f)
{
	enum rc rc = RC_OK;

	for (int i = 0; i < CGROUP_CONTROLLERS; i++)
		if (h->dirfd[i] >= 0 && unlinkat(h->dirfd[i], id, AT_REMOVEDIR) < 0 && errno != ENOENT)
			rc = fault_set(ret_f, errno == EBUSY ? RC_AGAIN : RC_SYS, errno, "remove cgroup '%s'", id);
	return rc;
}

static void group_kill(int dirfd, const char *id)
{
	_cleanup_fd_ int fd = openat(dirfd, id, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	char text[65536];

	if (fd < 0 || !get_at(fd, "cgroup.procs", text, sizeof(text)))
		return;
	for (char *p = text, *end; *p; p = end + 1) {
		long pid = strtol(p, &end, 10);

		/* A number that was cut off would be somebody else's. */
		if (end == p || *end != '\n')
			break;
		if (pid > 1)
			kill((pid_t)pid, SIGKILL);
	}
}

static void hierarchy_sweep(const struct cgroup_host *h, int dirfd, bool (*kept)(void *, const char *), void *arg)
{
	int fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;

	if (!dir) {
		close_fd(&fd);
		return;
	}
	while ((e = readdir(dir))) {
		struct fault f;
		enum rc rc;

		if (e->d_type != DT_DIR || e->d_name[0] == '.' || kept(arg, e->d_name))
			continue;
		group_kill(dirfd, e->d_name);
		/* Only at start, before anything else runs: waiting here holds nobody up. */
		for (int i = 0; (rc = cgroup_remove(h, e->d_name, &f)) == RC_AGAIN && i < 100; i++)
			usleep(10000);
		if (rc)
			log_fault(LOG_LEVEL_WARN, &f, "sweep");
	}
	closedir(dir);
}

void cgroup_sweep(const struct cgroup_host *h, bool (*kept)(void *arg, const char *id), void *arg)
{
	for (int i = 0; i < CGROUP_CONTROLLERS; i++)
		if (h->dirfd[i] >= 0 && (h->version == 1 || !i))
			hierarchy_sweep(h, h->dirfd[i], kept, arg);
}
