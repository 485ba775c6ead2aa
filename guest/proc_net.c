/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which TCP port does a process, or a process it started, listen on? The kernel's tables name the socket inode of each
 * listener; the descriptors of the processes name the inodes they hold. All of it is read through /proc of processes
 * that may change meanwhile: anything missing is simply not there.
 */
#include "guest/proc.h"

#include "base/cleanup.h"
#include "guest/rpc_limits.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LISTENERS_MAX 1024
#define TCP_LISTEN_STATE 0x0a

struct listener {
	unsigned long inode;
	uint16_t port;
	bool v6_only; /* bound to an IPv6 address that 127.0.0.1 does not reach */
};

struct listeners {
	struct listener of[LISTENERS_MAX];
	size_t n;
};

static void read_table(const char *path, bool v6, struct listeners *l)
{
	_cleanup_file_ FILE *f = fopen(path, "re");
	char line[512], addr[40];
	unsigned int port, state;
	unsigned long inode;

	while (f && l->n < LISTENERS_MAX && fgets(line, sizeof(line), f)) {
		if (sscanf(line, " %*u: %32[0-9A-F]:%x %*[0-9A-F]:%*x %x %*s %*s %*s %*u %*u %lu", addr, &port, &state,
			   &inode) != 4 || state != TCP_LISTEN_STATE)
			continue;
		/* [::] takes IPv4 too; ::ffff:127.0.0.1 is IPv4. */
		l->of[l->n++] = (struct listener){ .inode = inode, .port = (uint16_t)port,
			.v6_only = v6 && strspn(addr, "0") != strlen(addr) &&
				   strncmp(addr, "0000000000000000FFFF0000", 24) };
	}
}

static const struct listener *find_fd(pid_t pid, const struct listeners *l)
{
	const struct listener *found = NULL;
	char path[64];
	struct dirent *d;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
	dir = opendir(path);
	if (!dir)
		return NULL;
	while (!found && (d = readdir(dir))) {
		char target[64];
		unsigned long inode;
		ssize_t n = readlinkat(dirfd(dir), d->d_name, target, sizeof(target) - 1);

		if (n < 0)
			continue;
		target[n] = 0;
		if (sscanf(target, "socket:[%lu]", &inode) != 1)
			continue;
		for (size_t i = 0; i < l->n && !found; i++)
			if (l->of[i].inode == inode)
				found = &l->of[i];
	}
	closedir(dir);
	return found;
}

struct tree {
	pid_t pid[PROC_TREE_MAX];
	size_t n;
};

static bool in_tree(const struct tree *t, pid_t pid)
{
	for (size_t i = 0; i < t->n; i++)
		if (t->pid[i] == pid)
			return true;
	return false;
}

/* A process belongs to the tree if its parent does, or its session is the first process's. */
static void read_tree(struct tree *t, pid_t root)
{
	struct dirent *d;
	DIR *dir = opendir("/proc");

	t->pid[t->n++] = root;
	while (dir && t->n < PROC_TREE_MAX && (d = readdir(dir))) {
		char path[64], line[512];
		const char *rest;
		int parent, group, session;
		_cleanup_file_ FILE *f = NULL;

		if (!isdigit((unsigned char)d->d_name[0]))
			continue;
		snprintf(path, sizeof(path), "/proc/%.16s/stat", d->d_name);
		f = fopen(path, "re");
		if (!f || !fgets(line, sizeof(line), f))
			continue;
		rest = strrchr(line, ')');
		if (!rest || sscanf(rest, ") %*c %d %d %d", &parent, &group, &session) != 3 || atoi(d->d_name) == root)
			continue;
		if (session == root || in_tree(t, parent))
			t->pid[t->n++] = atoi(d->d_name);
	}
	if (dir)
		closedir(dir);
}

/* Whether there is a reason to look through the processes. */
static bool worth_a_look(struct proc_look *look, const struct listeners *l)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < l->n; i++)
		sum += (l->of[i].inode + 1) * UINT64_C(0x9e3779b97f4a7c15);
	if (look && look->listeners == sum && ++look->n % PROC_LOOK_EACH)
		return false;
	if (look)
		look->listeners = sum;
	return l->n;
}

enum rc proc_listens(pid_t pid, struct proc_look *look, uint16_t *ret_port, bool *ret_v6)
{
	_cleanup_free_ struct listeners *l = calloc(1, sizeof(*l));
	_cleanup_free_ struct tree *t = calloc(1, sizeof(*t));
	const struct listener *found = NULL;

	if (!l || !t)
		return RC_NOMEM;
	read_table("/proc/net/tcp", false, l);
	read_table("/proc/net/tcp6", true, l);
	if (!worth_a_look(look, l))
		return RC_ABSENT;
	found = find_fd(pid, l);
	if (!found) {
		read_tree(t, pid);
		for (size_t i = 1; i < t->n && !found; i++)
			found = find_fd(t->pid[i], l);
	}
	if (!found)
		return RC_ABSENT;
	*ret_port = found->port;
	*ret_v6 = found->v6_only;
	return RC_OK;
}
