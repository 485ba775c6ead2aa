/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control service: what the broker asks of the machine itself. Whatever may wait for a disk runs in a child that owns
 * a copy of the connection and answers; the loop goes on. Thaw is done at once: it must work while everything else waits
 * for the frozen disk.
 */
#include "guest/agent.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "guest/agent_limits.h"
#include "schema/agent.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysinfo.h>
#include <sys/wait.h>
#include <time.h>

#define OK_LINE "{\"ok\": true}\n"
#define VOLUMES_MAX AGENT_SPARE_DISKS

/* Roots of mounted volumes, for freeze and sync. Opened by the loop, inherited by children's path lookups only. */
static char volumes[VOLUMES_MAX][PATH_MAX];

static int answer_rc(int fd, enum rc rc, const struct fault *f)
{
	if (rc)
		agent_answer_fault(fd, f);
	else
		agent_answer(fd, OK_LINE);
	return rc ? 1 : 0;
}

/* --- mount ------------------------------------------------------------------------------------------------------ */
struct mount_job {
	int64_t device;
	const char *path;
};

static int make_dirs(const char *path)
{
	char copy[PATH_MAX];

	snprintf(copy, sizeof(copy), "%s", path);
	for (char *p = copy + 1; *p; p++)
		if (*p == '/') {
			*p = '\0';
			if (mkdir(copy, 0755) < 0 && errno != EEXIST)
				return -1;
			*p = '/';
		}
	return mkdir(copy, 0755) < 0 && errno != EEXIST ? -1 : 0;
}

/* The disk's new size is announced by an interrupt that may still be on its way: that is what the retries are for. */
static int mount_disk(const char *disk, const char *path)
{
	const struct timespec pause = { .tv_nsec = 5000000 };

	for (int tries = 0; tries < 200; tries++) {
		int fd = open(disk, O_RDONLY | O_CLOEXEC);

		if (fd >= 0) {
			ioctl(fd, BLKFLSBUF, 0); /* what was read of the placeholder */
			close(fd);
		}
		if (mount(disk, path, "ext4", MS_NOATIME | MS_NOSUID | MS_NODEV, "errors=remount-ro") == 0)
			return 0;
		if (errno != EINVAL && errno != EIO && errno != ENXIO)
			return -1;
		nanosleep(&pause, NULL);
	}
	return -1;
}

static enum rc do_mount(const struct mount_job *j, struct fault *ret_f)
{
	char serial[16], disk[64];
	struct stat st;
	enum rc rc;

	snprintf(serial, sizeof(serial), "spare%d", (int)j->device);
	rc = agent_disk_find(serial, disk, sizeof(disk), ret_f);
	if (rc)
		return rc;
	if (make_dirs(j->path) < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "make the mount point: %s", strerrordesc_np(errno));
	if (mount_disk(disk, j->path) < 0)
		return fault_set(ret_f, RC_SYS, errno, "mount disk %s: %s", serial, strerrordesc_np(errno));
	/* A new file system belongs to root; the user shall be able to use it. */
	if (stat(j->path, &st) == 0 && st.st_uid == 0 && chown(j->path, AGENT_UID, AGENT_GID) < 0)
		return fault_set(ret_f, RC_SYS, errno, "chown of the volume");
	return RC_OK;
}

static int mount_child(int fd, void *arg)
{
	struct fault f = { 0 };

	return answer_rc(fd, do_mount(arg, &f), &f);
}

static enum rc op_mount(int fd, const struct agent_request *req, struct fault *ret_f)
{
	struct mount_job j;

	if (agent_get_int(req->root, "device", 0, AGENT_SPARE_DISKS - 1, -1, &j.device, ret_f) ||
	    agent_get_str(req->root, "path", PATH_MAX - 1, NULL, &j.path, ret_f))
		return RC_INVALID;
	if (j.path[0] != '/' || !j.path[1])
		return fault_set(ret_f, RC_INVALID, 0, "'path' is not an absolute directory");
	snprintf(volumes[j.device], sizeof(volumes[0]), "%s", j.path);
	return agent_fork(mount_child, fd, NULL, &j, NULL, NULL, NULL, ret_f);
}

/* --- the writable file systems ------------------------------------------------------------------------------------ */
/* Calls fn for each; the first failure is reported, the others are still done. */
static enum rc each_writable(int (*fn)(int fd), const char *what, struct fault *ret_f)
{
	enum rc rc = RC_OK;

	for (int i = 0; i < VOLUMES_MAX; i++) {
		_cleanup_fd_ int fd = volumes[i][0] ? open(volumes[i], O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;

		if (fd >= 0 && fn(fd) < 0 && !rc)
			rc = fault_set(ret_f, RC_SYS, errno, "%s of a volume: %s", what, strerrordesc_np(errno));
	}
	if (agent.upper_fd >= 0 && fn(agent.upper_fd) < 0 && !rc)
		rc = fault_set(ret_f, RC_SYS, errno, "%s of the disk: %s", what, strerrordesc_np(errno));
	return rc;
}

static int fs_freeze(int fd)
{
	return ioctl(fd, FIFREEZE, 0) < 0 && errno != EBUSY ? -1 : 0;
}

static int fs_thaw(int fd)
{
	return ioctl(fd, FITHAW, 0) < 0 && errno != EINVAL ? -1 : 0;
}

static int sync_child(int fd, void *arg)
{
	struct fault f = { 0 };

	(void)arg;
	return answer_rc(fd, each_writable(syncfs, "sync", &f), &f);
}

static int freeze_child(int fd, void *arg)
{
	struct fault f = { 0 };
	enum rc rc = each_writable(fs_freeze, "freeze", &f);

	(void)arg;
	if (rc)
		each_writable(fs_thaw, "thaw", NULL);
	return answer_rc(fd, rc, &f);
}

static int drop_caches_child(int fd, void *arg)
{
	struct fault f = { 0 };
	enum rc rc;
	char serial[16], disk[64];

	(void)arg;
	sync();
	rc = agent_file_put("/proc/sys/vm/drop_caches", "3", &f);
	for (int i = 0; i < AGENT_SPARE_DISKS; i++) {
		snprintf(serial, sizeof(serial), "spare%d", i);
		if (agent_disk_find(serial, disk, sizeof(disk), NULL) == RC_OK) {
			_cleanup_fd_ int d = open(disk, O_RDONLY | O_CLOEXEC);

			if (d >= 0)
				ioctl(d, BLKFLSBUF, 0);
		}
	}
	return answer_rc(fd, rc, &f);
}

/* --- power off -------------------------------------------------------------------------------------------------- */
static bool any_process(void)
{
	DIR *d = opendir("/proc");
	bool any = false;

	for (struct dirent *e; d && !any && (e = readdir(d));) {
		char path[64], stat_line[256];
		pid_t pid = (pid_t)atoi(e->d_name);
		ssize_t n = 0;
		int fd;

		if (pid <= 1 || pid == getpid())
			continue;
		snprintf(path, sizeof(path), "/proc/%d/cmdline", (int)pid);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd >= 0) {
			n = read(fd, stat_line, sizeof(stat_line)); /* kernel threads and zombies have none */
			close(fd);
		}
		any = n > 0;
	}
	if (d)
		closedir(d);
	return any;
}

static int poweroff_child(int fd, void *arg)
{
	const struct timespec pause = { .tv_nsec = 20000000 };
	char path[64];

	(void)arg;
	agent_answer(fd, OK_LINE);
	signal(SIGTERM, SIG_IGN);
	kill(-1, SIGTERM);
	for (int i = 0; i < AGENT_POWEROFF_TERM_MS / 20 && any_process(); i++)
		nanosleep(&pause, NULL);
	kill(-1, SIGKILL); /* not the caller, not PID 1 */
	for (int i = 0; i < 50 && any_process(); i++)
		nanosleep(&pause, NULL);
	sync();
	for (int i = 0; i < VOLUMES_MAX; i++)
		if (volumes[i][0])
			umount2(volumes[i], 0);
	mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL);
	if (agent.upper_fd >= 0) {
		snprintf(path, sizeof(path), "/proc/self/fd/%d", agent.upper_fd);
		mount(NULL, path, NULL, MS_REMOUNT | MS_RDONLY, NULL);
	}
	sync();
	reboot(RB_POWER_OFF);
	reboot(RB_AUTOBOOT);
	return 1;
}

/* --- answers at once -------------------------------------------------------------------------------------------- */
static enum rc op_hello(int fd)
{
	char line[512];

	snprintf(line, sizeof(line), "{\"ok\": true, \"version\": \"%s\", \"generation\": %llu, \"image\": \"%s\"}\n", NB_VERSION,
		 (unsigned long long)agent.generation, agent.image);
	agent_answer(fd, line);
	return RC_OK;
}

static enum rc op_stat(int fd)
{
	struct sysinfo s;
	struct statvfs v = { 0 };
	_cleanup_free_ char *text = NULL;
	unsigned long long available = 0;
	const char *at;
	char line[512];
	size_t n;

	if (sysinfo(&s) < 0)
		memset(&s, 0, sizeof(s));
	if (!file_read_at(AT_FDCWD, "/proc/meminfo", 65536, &text, &n, NULL) && (at = strstr(text, "MemAvailable:")))
		available = strtoull(at + strlen("MemAvailable:"), NULL, 10) * 1024;
	if (agent.upper_fd >= 0)
		fstatvfs(agent.upper_fd, &v);
	snprintf(line, sizeof(line),
		 "{\"ok\": true, \"memory_total\": %llu, \"memory_available\": %llu, \"load1\": %.2f, \"uptime_s\": %ld, "
		 "\"processes\": %u, \"disk_total\": %llu, \"disk_free\": %llu, \"oom_kills\": %llu}\n",
		 (unsigned long long)s.totalram * s.mem_unit, available, (double)s.loads[0] / 65536.0, s.uptime, s.procs,
		 (unsigned long long)v.f_blocks * v.f_frsize, (unsigned long long)v.f_bavail * v.f_frsize,
		 (unsigned long long)agent_oom_kills());
	agent_answer(fd, line);
	return RC_OK;
}

static enum rc op_thaw(int fd, struct fault *ret_f)
{
	enum rc rc = each_writable(fs_thaw, "thaw", ret_f);

	if (!rc)
		agent_answer(fd, OK_LINE);
	return rc;
}

static int hooks_child(int fd, void *arg)
{
	(void)arg;
	agent_identity_hooks();
	agent_answer(fd, OK_LINE);
	return 0;
}

static enum rc op_identity(int fd, const struct agent_request *req, struct fault *ret_f)
{
	enum rc rc = agent_identity(req, ret_f);
	DIR *d;
	bool hooks = false;

	if (rc)
		return rc;
	d = opendir("/etc/nestbox/on-clone.d");
	for (struct dirent *e; d && !hooks && (e = readdir(d));)
		hooks = e->d_name[0] != '.';
	if (d)
		closedir(d);
	if (hooks)
		return agent_fork(hooks_child, fd, NULL, NULL, NULL, NULL, NULL, ret_f);
	agent_answer(fd, OK_LINE);
	return RC_OK;
}

static enum rc control_op(int fd, const struct agent_request *req, struct fault *ret_f)
{
	if (!strcmp(req->op, "hello"))
		return op_hello(fd);
	if (!strcmp(req->op, "stat"))
		return op_stat(fd);
	if (!agent.guest)
		return fault_set(ret_f, RC_DENIED, 0, "this is not a machine");
	if (!strcmp(req->op, "identity"))
		return op_identity(fd, req, ret_f);
	if (!strcmp(req->op, "mount"))
		return op_mount(fd, req, ret_f);
	if (!strcmp(req->op, "sync"))
		return agent_fork(sync_child, fd, NULL, NULL, NULL, NULL, NULL, ret_f);
	if (!strcmp(req->op, "freeze"))
		return agent_fork(freeze_child, fd, NULL, NULL, NULL, NULL, NULL, ret_f);
	if (!strcmp(req->op, "thaw"))
		return op_thaw(fd, ret_f);
	if (!strcmp(req->op, "drop_caches"))
		return agent_fork(drop_caches_child, fd, NULL, NULL, NULL, NULL, NULL, ret_f);
	if (!strcmp(req->op, "poweroff"))
		return agent_fork(poweroff_child, fd, NULL, NULL, NULL, NULL, NULL, ret_f);
	return fault_set(ret_f, RC_INVALID, 0, "there is no such control operation");
}

void agent_control_start(int fd, const struct agent_request *req)
{
	struct fault f = { 0 };

	if (control_op(fd, req, &f))
		agent_answer_fault(fd, &f);
	close(fd);
	agent_connection_done();
}
