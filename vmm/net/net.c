/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory: a machine's namespace exists as long as a bind mount of it below <run_dir>/netns. The calling thread enters it for
 * a handful of system calls and returns to the namespace it had at net_init() before anything else runs; a thread that
 * cannot return would run the rest of the broker in a guest's network, so that is the end of the process. Nothing here waits
 * for a guest.
 */
#include "vmm/net/net.h"

#include "base/cleanup.h"
#include "base/config.h"
#include "base/log.h"
#include "vmm/net/inside.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <linux/magic.h>

#define NET_SELF "/proc/thread-self/ns/net"

static struct {
	int own_ns; /* where the calling thread belongs */
	char dir[PATH_MAX];
} net_state = { .own_ns = -1 };

static void dir_cleanup(DIR **d)
{
	if (*d)
		closedir(*d);
}

static enum rc id_check(const char *id, struct fault *ret_f)
{
	size_t n = strspn(id, "abcdefghijklmnopqrstuvwxyz0123456789_");

	if (!n || id[n] || n >= sizeof(((struct net *)0)->id))
		return fault_set(ret_f, RC_INVALID, 0, "not a machine id");
	return RC_OK;
}

static enum rc ns_path(char *out, size_t size, const char *id, struct fault *ret_f)
{
	if (net_state.own_ns < 0)
		return fault_set(ret_f, RC_STATE, 0, "net_init was not called");
	return path_join(out, size, net_state.dir, id, ret_f);
}

static void leave(void)
{
	if (setns(net_state.own_ns, CLONE_NEWNET) < 0) {
		log_error("cannot return to the host's network namespace sys=%d", errno);
		abort();
	}
}

static enum rc enter(int ns_fd, struct fault *ret_f)
{
	if (setns(ns_fd, CLONE_NEWNET) < 0)
		return fault_set(ret_f, RC_SYS, errno, "enter the machine's network namespace");
	return RC_OK;
}

enum rc net_init(const char *run_dir, struct fault *ret_f)
{
	_cleanup_fd_ int own = -1;
	char dir[PATH_MAX];
	struct statx st;
	enum rc rc = path_join(dir, sizeof(dir), run_dir, "netns", ret_f);

	if (rc)
		return rc;
	if (mkdir(dir, 0700) < 0 && errno != EEXIST)
		return fault_set(ret_f, RC_SYS, errno, "make directory '%s'", dir);
	if (statx(AT_FDCWD, dir, AT_SYMLINK_NOFOLLOW, STATX_TYPE, &st) < 0 || !S_ISDIR(st.stx_mode))
		return fault_set(ret_f, RC_INVALID, errno, "'%s' is not a directory", dir);
	/* A broker that starts again finds the mount point of the one before it. */
	if (!(st.stx_attributes & STATX_ATTR_MOUNT_ROOT) && mount(dir, dir, NULL, MS_BIND, NULL) < 0)
		return fault_set(ret_f, RC_SYS, errno, "make '%s' a mount point", dir);
	if (mount(NULL, dir, NULL, MS_PRIVATE, NULL) < 0)
		return fault_set(ret_f, RC_SYS, errno, "make '%s' private", dir);
	own = open(NET_SELF, O_RDONLY | O_CLOEXEC);
	if (own < 0)
		return fault_set(ret_f, RC_SYS, errno, "open the host's network namespace");
	rc = inside_init(ret_f);
	if (rc)
		return rc;
	close_fd(&net_state.own_ns);
	net_state.own_ns = take_fd(&own);
	memcpy(net_state.dir, dir, sizeof(dir));
	return RC_OK;
}

/* On success the thread is inside the new namespace. */
static enum rc ns_make(const char *path, int *ret_ns, struct fault *ret_f)
{
	_cleanup_fd_ int mark = open(path, O_RDONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0);
	_cleanup_fd_ int ns = -1;
	int sys;

	if (mark < 0)
		return fault_set(ret_f, errno == EEXIST ? RC_EXISTS : RC_SYS, errno, "make '%s'", path);
	if (unshare(CLONE_NEWNET) < 0) {
		sys = errno;
		unlink(path);
		return fault_set(ret_f, RC_SYS, sys, "make a network namespace");
	}
	ns = open(NET_SELF, O_RDONLY | O_CLOEXEC);
	if (ns < 0 || mount(NET_SELF, path, NULL, MS_BIND, NULL) < 0) {
		sys = errno;
		leave();
		unlink(path);
		return fault_set(ret_f, RC_SYS, sys, "keep the network namespace at '%s'", path);
	}
	*ret_ns = take_fd(&ns);
	return RC_OK;
}

static void net_blank(struct net *net, const char *id)
{
	memset(net, 0, sizeof(*net));
	snprintf(net->id, sizeof(net->id), "%s", id);
	net->ns_fd = net->tap_fd = net->mgmt_fd = net->tcp_fd = net->dns_udp_fd = net->dns_tcp_fd = -1;
}

enum rc net_create(const char *id, struct net *ret, struct fault *ret_f)
{
	char path[PATH_MAX];
	struct net net;
	enum rc rc = id_check(id, ret_f);

	if (!rc)
		rc = ns_path(path, sizeof(path), id, ret_f);
	if (rc)
		return rc;
	net_blank(&net, id);
	rc = ns_make(path, &net.ns_fd, ret_f);
	if (rc)
		return rc;
	rc = inside_tune(ret_f);
	/* Rules before taps: there is no moment in which a frame meets an open namespace. */
	if (!rc)
		rc = inside_rules(ret_f);
	if (!rc)
		rc = inside_taps(&net, ret_f);
	if (!rc)
		rc = inside_sockets(&net, ret_f);
	leave();
	if (rc) {
		net_destroy(&net);
		return rc;
	}
	*ret = net;
	return RC_OK;
}

static enum rc ns_open(const char *path, int *ret_ns, struct fault *ret_f)
{
	_cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	struct statfs fs;

	if (fd < 0 && errno != EACCES)
		return fault_set(ret_f, errno == ENOENT ? RC_ABSENT : RC_SYS, errno, "open '%s'", path);
	if (fd < 0 || fstatfs(fd, &fs) < 0 || fs.f_type != NSFS_MAGIC)
		return fault_set(ret_f, RC_ABSENT, 0, "'%s' is not a namespace any more", path);
	*ret_ns = take_fd(&fd);
	return RC_OK;
}

enum rc net_adopt(const char *id, struct net *ret, struct fault *ret_f)
{
	char path[PATH_MAX];
	struct net net;
	enum rc rc = id_check(id, ret_f);

	if (!rc)
		rc = ns_path(path, sizeof(path), id, ret_f);
	if (rc)
		return rc;
	net_blank(&net, id);
	rc = ns_open(path, &net.ns_fd, ret_f);
	if (!rc)
		rc = enter(net.ns_fd, ret_f);
	if (!rc) {
		rc = inside_sockets(&net, ret_f);
		leave();
	}
	if (rc) {
		/* Only what was opened here: whether the namespace goes is the caller's decision. */
		close_fd(&net.ns_fd);
		close_fd(&net.tcp_fd);
		close_fd(&net.dns_udp_fd);
		close_fd(&net.dns_tcp_fd);
		return rc;
	}
	*ret = net;
	return RC_OK;
}

static void ns_remove(const char *id)
{
	char path[PATH_MAX];

	if (ns_path(path, sizeof(path), id, NULL))
		return;
	while (umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW) == 0)
		;
	if (unlink(path) < 0 && errno != ENOENT)
		log_warn("cannot remove a network namespace's file path=%s sys=%d", path, errno);
}

/* Whoever still talks to the machine learns now that it is gone. */
static void ns_cut(int ns_fd)
{
	struct fault f;
	enum rc rc = enter(ns_fd, &f);

	if (!rc) {
		rc = inside_cut(&f);
		leave();
	}
	if (rc)
		log_fault(LOG_LEVEL_WARN, &f, "connections of a machine that ended may linger");
}

void net_destroy(struct net *net)
{
	if (!net)
		return;
	if (net->ns_fd >= 0 && net->id[0])
		ns_cut(net->ns_fd);
	close_fd(&net->tap_fd);
	close_fd(&net->mgmt_fd);
	close_fd(&net->tcp_fd);
	close_fd(&net->dns_udp_fd);
	close_fd(&net->dns_tcp_fd);
	close_fd(&net->ns_fd);
	if (!id_check(net->id, NULL))
		ns_remove(net->id);
	net->id[0] = '\0';
}

enum rc net_sweep(bool (*kept)(void *arg, const char *id), void *arg, struct fault *ret_f)
{
	_cleanup_(dir_cleanup) DIR *dir = NULL;
	struct dirent *e;

	if (net_state.own_ns < 0)
		return fault_set(ret_f, RC_STATE, 0, "net_init was not called");
	dir = opendir(net_state.dir);
	if (!dir)
		return fault_set(ret_f, RC_SYS, errno, "open '%s'", net_state.dir);
	for (errno = 0; (e = readdir(dir)); errno = 0)
		if (!id_check(e->d_name, NULL) && !kept(arg, e->d_name))
			ns_remove(e->d_name);
	if (errno)
		return fault_set(ret_f, RC_SYS, errno, "read '%s'", net_state.dir);
	return RC_OK;
}

enum rc net_dial(const struct net *net, int *ret_fd, struct fault *ret_f)
{
	enum rc rc = enter(net->ns_fd, ret_f);

	if (rc)
		return rc;
	rc = inside_dial(ret_fd, ret_f);
	leave();
	return rc;
}
