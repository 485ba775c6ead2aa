/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/broker/orphan.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "vmm/broker/limits.h"
#include "vmm/broker/machine.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/stat.h>

/* The machine whose directory `path` is in, into id. */
static bool path_machine(struct broker *b, const char *path, char id[BROKER_ID_MAX])
{
	char root[CONFIG_STR_MAX + 8];
	size_t n, len;

	snprintf(root, sizeof(root), "%s/vms/", b->config->state_dir);
	n = strlen(root);
	if (strncmp(path, root, n))
		return false;
	len = strcspn(path + n, "/");
	if (!len || len >= BROKER_ID_MAX)
		return false;
	memcpy(id, path + n, len);
	id[len] = '\0';
	return true;
}

static bool process_machine(struct broker *b, const char *pid, char id[BROKER_ID_MAX])
{
	char path[64], link[64], target[PATH_MAX];
	struct dirent *e;
	bool found = false;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%.20s/fd", pid);
	dir = opendir(path);
	if (!dir)
		return false;
	while (!found && (e = readdir(dir))) {
		ssize_t n;

		snprintf(link, sizeof(link), "%.20s", e->d_name);
		n = readlinkat(dirfd(dir), link, target, sizeof(target) - 1);
		if (n <= 0)
			continue;
		target[n] = '\0';
		found = path_machine(b, target, id);
	}
	closedir(dir);
	return found;
}

static void process_check(struct broker *b, const char *pid, const char *only)
{
	uint64_t first = b->config->vm_uid_base, n = b->config->vm_max + VM_INTERNAL;
	_cleanup_fd_ int pidfd = -1;
	char path[64], id[BROKER_ID_MAX];
	struct stat st;

	/* Held first, so that the checks are of the process that is then killed. */
	pidfd = pidfd_open((pid_t)atoi(pid), 0);
	snprintf(path, sizeof(path), "/proc/%.20s/task", pid);
	if (pidfd < 0 || stat(path, &st) < 0)
		return;
	/* A process that is not dumpable belongs to root in /proc: its status tells the uid. */
	if (st.st_uid < first || st.st_uid >= first + n) {
		char line[256];
		unsigned int uid = 0;
		_cleanup_file_ FILE *f = NULL;

		snprintf(path, sizeof(path), "/proc/%.20s/status", pid);
		f = fopen(path, "re");
		while (f && fgets(line, sizeof(line), f))
			if (sscanf(line, "Uid: %u", &uid) == 1)
				break;
		if (uid < first || uid >= first + n)
			return;
	}
	if (!process_machine(b, pid, id))
		return;
	if (only ? strcmp(id, only) : machine_find(b, id) != NULL)
		return;
	log_warn("orphan killed pid=%s machine=%s", pid, id);
	pidfd_send_signal(pidfd, SIGKILL, NULL, 0);
}

void orphans_kill(struct broker *b, const char *id)
{
	DIR *dir = opendir("/proc");
	struct dirent *e;

	while (dir && (e = readdir(dir)))
		if (isdigit((unsigned char)e->d_name[0]))
			process_check(b, e->d_name, id);
	if (dir)
		closedir(dir);
}
