/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control service: what the broker asks of the machine itself. Whatever may wait for a disk runs in a child that owns
 * a copy of the connection and answers; the loop goes on. Which file systems are writable is read from the mount table each
 * time, so nothing is remembered that users could change behind the agent's back.
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
#include <mntent.h>
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
#define PLACEHOLDER_BYTES 1048576u

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

/* The volume's size is announced to a template's placeholder by an interrupt that may still be on its way. */
static void wait_for_volume(int disk)
{
	const struct timespec pause = { .tv_nsec = 2000000 };
	uint64_t bytes = 0;

	for (int tries = 0; tries < 250; tries++) {
		if (ioctl(disk, BLKGETSIZE64, &bytes) < 0 || bytes > PLACEHOLDER_BYTES)
			break;
		nanosleep(&pause, NULL);
	}
	ioctl(disk, BLKFLSBUF, 0); /* what was read of the placeholder */
}

/* What is freed goes back to the host: the mount option, since nothing else in a machine would ask for it. */
int agent_volume_mount(const char *disk, const char *path, unsigned long flags)
{
	int fd = open(disk, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return -1;
	wait_for_volume(fd);
	close(fd);
	return mount(disk, path, "ext4", flags | MS_SILENT, "errors=remount-ro,discard");
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
	if (agent_volume_mount(disk, j->path, MS_NOATIME | MS_NOSUID | MS_NODEV) < 0)
		return fault_set(ret_f, RC_SYS, errno, "mount disk %s: %s", serial, strerrordesc_np(errno));
	agent_fs_grow(disk, j->path);
	/* A new file system belongs to root; the user shall be able to use it. */
	if (stat(j->path, &st) == 0 && st.st_uid == 0 && chown(j->path, AGENT_UID, AGENT_GID) < 0)
		return fault_set(ret_f, RC_SYS, errno, "chown of the volume");
	return RC_OK;
}

/* The first request of a machine may name its root. In the loop: nobody else is here yet, and every process is taken along. */
static enum rc root_asked(const struct agent_request *req, struct fault *ret_f)
{
	const char *root;

	if (agent_get_str(req->root, "root", 16, "", &root, ret_f))
		return RC_INVALID;
	if (!*root)
		return RC_OK;
	if (strcmp(root, "volume") != 0 && strcmp(root, "snapshot") != 0)
		return fault_set(ret_f, RC_INVALID, 0, "'root' is neither a volume nor a snapshot");
	return agent_root_change(!strcmp(root, "snapshot"), ret_f);
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
	if (root_asked(req, ret_f))
		return ret_f->rc;
	return agent_fork(mount_child, fd, NULL, &j, NULL, NULL, NULL, ret_f);
}

/* --- the writable file systems ------------------------------------------------------------------------------------ */
static int open_mount(const struct mntent *m)
{
	if (strncmp(m->mnt_fsname, "/dev/vd", 7) || strcmp(m->mnt_type, "ext4") || !hasmntopt(m, "rw"))
		return -1;
	return open(m->mnt_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

/* Calls fn for each; the first failure is reported, the others are still done. The root's disk last: the volumes' mount
 * points may be on it. */
static enum rc each_writable(int (*fn)(int fd), const char *what, struct fault *ret_f)
{
	FILE *table = setmntent("/proc/self/mounts", "re");
	enum rc rc = RC_OK;

	for (struct mntent *m; table && (m = getmntent(table));) {
		_cleanup_fd_ int fd = open_mount(m);

		if (fd >= 0 && fn(fd) < 0 && !rc)
			rc = fault_set(ret_f, RC_SYS, errno, "%s of a volume: %s", what, strerrordesc_np(errno));
	}
	if (table)
		endmntent(table);
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

static int thaw_child(int fd, void *arg)
{
	struct fault f = { 0 };

	(void)arg;
	return answer_rc(fd, each_writable(fs_thaw, "thaw", &f), &f);
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

static void spares_forget(void)
{
	char serial[16], disk[64];

	for (int i = 0; i < AGENT_SPARE_DISKS; i++) {
		snprintf(serial, sizeof(serial), "spare%d", i);
		if (agent_disk_find(serial, disk, sizeof(disk), NULL) == RC_OK) {
			_cleanup_fd_ int d = open(disk, O_RDONLY | O_CLOEXEC);

			if (d >= 0)
				ioctl(d, BLKFLSBUF, 0);
		}
	}
}

/* What was read by chance goes, what every machine will read comes: a template's memory is shared by all made from it. */
static int drop_caches_child(int fd, void *arg)
{
	struct fault f = { 0 };
	enum rc rc;

	(void)arg;
	sync();
	rc = agent_file_put("/proc/sys/vm/drop_caches", "3", &f);
	spares_forget();
	if (!rc)
		agent_program_run(AGENT_WARM, false, now_ms() + AGENT_WARM_DEADLINE_MS);
	sync();
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

static int fs_read_only(int fd)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return mount(NULL, path, NULL, MS_REMOUNT | MS_RDONLY, NULL);
}

static int poweroff_child(int fd, void *arg)
{
	const struct timespec pause = { .tv_nsec = 20000000 };

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
	mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL);
	each_writable(fs_read_only, "remount", NULL);
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
	unsigned long long available = 0;
	char line[512], text[512];
	const char *at;

	if (sysinfo(&s) < 0)
		memset(&s, 0, sizeof(s));
	agent_proc_read("/proc/meminfo", text, sizeof(text));
	at = strstr(text, "MemAvailable:");
	if (at)
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

static int hooks_child(int fd, void *arg)
{
	(void)arg;
	agent_identity_hooks();
	agent_answer(fd, OK_LINE);
	return 0;
}

static enum rc op_identity(int fd, const struct agent_request *req, struct fault *ret_f)
{
	bool hooks = false;
	enum rc rc;
	DIR *d;

	rc = root_asked(req, ret_f);
	if (rc)
		return rc;
	/* A clone may have been cut while its disks were frozen: the loop must not write to them before they thaw. */
	if (agent.upper_fd >= 0 && ioctl(agent.upper_fd, FITHAW, 0) == 0)
		agent_fork(thaw_child, -1, NULL, NULL, NULL, NULL, NULL, NULL);
	rc = agent_identity(req, ret_f);
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

static enum rc op_trust(int fd, const struct agent_request *req, struct fault *ret_f)
{
	enum rc rc = agent_trust(req, ret_f);

	if (!rc)
		agent_answer(fd, OK_LINE);
	return rc;
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
	if (!strcmp(req->op, "trust"))
		return op_trust(fd, req, ret_f);
	if (!strcmp(req->op, "mount"))
		return op_mount(fd, req, ret_f);
	if (!strcmp(req->op, "sync"))
		return agent_fork(sync_child, fd, NULL, NULL, NULL, NULL, NULL, ret_f);
	if (!strcmp(req->op, "freeze"))
		return agent_fork(freeze_child, fd, NULL, NULL, NULL, NULL, NULL, ret_f);
	if (!strcmp(req->op, "thaw"))
		return agent_fork(thaw_child, fd, NULL, NULL, NULL, NULL, NULL, ret_f);
	if (!strcmp(req->op, "drop_caches"))
		return agent_fork(drop_caches_child, fd, NULL, NULL, NULL, NULL, NULL, ret_f);
	if (!strcmp(req->op, "poweroff") && agent.guest) /* anywhere else it would end what is not ours */
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
