/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From the initramfs to a running system. Theory: everything that can be done without a program of the image is done here by
 * system calls, so a boot is a few dozen of them and the image's content cannot break it. Order: pseudo file systems, modules,
 * disks, root (EROFS below, ext4 above, or a bootable volume alone), cgroups, network. The agent stays the binary of the
 * initramfs, whose files are deleted before the new root covers them.
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
#include <string.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/vfs.h>
#include <time.h>

#define EXT4_RESIZE _IOW('f', 16, uint64_t) /* EXT4_IOC_RESIZE_FS, in no header of user space */

struct pseudo {
	const char *source, *target, *type, *options;
	unsigned long flags;
	mode_t mode;
};

static const struct pseudo early[] = {
	{ "proc", "/proc", "proc", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC, 0555 },
	{ "sysfs", "/sys", "sysfs", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC, 0555 },
	{ "devtmpfs", "/dev", "devtmpfs", "mode=0755", MS_NOSUID, 0755 },
};
static const struct pseudo late[] = {
	{ "devpts", "/dev/pts", "devpts", "gid=5,mode=0620,ptmxmode=0666", MS_NOSUID | MS_NOEXEC, 0755 },
	{ "tmpfs", "/dev/shm", "tmpfs", "mode=1777", MS_NOSUID | MS_NODEV, 01777 },
	{ "tmpfs", "/run", "tmpfs", "mode=0755,size=25%", MS_NOSUID | MS_NODEV, 0755 },
	{ "cgroup2", "/sys/fs/cgroup", "cgroup2", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC, 0755 },
};

/* Not truncated first: ext4 takes that for a replacement and writes the file out before close() returns. */
enum rc agent_file_put(const char *path, const char *text, struct fault *ret_f)
{
	_cleanup_fd_ int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
	size_t n = strlen(text);
	struct stat st;

	if (fd < 0 || write(fd, text, n) != (ssize_t)n ||
	    (fstat(fd, &st) == 0 && st.st_size > (off_t)n && ftruncate(fd, (off_t)n) < 0))
		return fault_set(ret_f, rc_from_errno(errno), errno, "write %s: %s", path, strerrordesc_np(errno));
	return RC_OK;
}

void agent_proc_read(const char *path, char *out, size_t size)
{
	_cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd >= 0 ? read(fd, out, size - 1) : -1;

	out[n > 0 ? n : 0] = '\0';
}

static enum rc pseudo_mount(const struct pseudo *p, struct fault *ret_f)
{
	mkdir(p->target, p->mode);
	if (mount(p->source, p->target, p->type, p->flags, p->options) < 0 && errno != EBUSY)
		return fault_set(ret_f, RC_SYS, errno, "mount %s: %s", p->target, strerrordesc_np(errno));
	return RC_OK;
}

/* --- modules ---------------------------------------------------------------------------------------------------- */
static int module_filter(const struct dirent *e)
{
	return e->d_name[0] != '.';
}

static enum rc modules_load(struct fault *ret_f)
{
	struct dirent **names;
	int n = scandir("/modules", &names, module_filter, alphasort);
	enum rc rc = RC_OK;
	char path[300];

	for (int i = 0; i < n; i++) {
		int fd;

		snprintf(path, sizeof(path), "/modules/%s", names[i]->d_name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST))
			rc = fault_set(ret_f, RC_SYS, errno, "load module %.80s", names[i]->d_name);
		if (fd >= 0)
			close(fd);
		unlink(path);
		free(names[i]);
	}
	if (n >= 0)
		free(names);
	return rc;
}

/* --- disks ------------------------------------------------------------------------------------------------------ */
static bool disk_has_serial(const char *name, const char *serial)
{
	char path[300], text[32];

	snprintf(path, sizeof(path), "/sys/block/%s/serial", name);
	agent_proc_read(path, text, sizeof(text));
	text[strcspn(text, "\n")] = '\0';
	return !strcmp(text, serial);
}

enum rc agent_disk_find(const char *serial, char *out, size_t size, struct fault *ret_f)
{
	DIR *d = opendir("/sys/block");
	bool found = false;

	for (struct dirent *e; d && !found && (e = readdir(d));)
		if (!strncmp(e->d_name, "vd", 2) && disk_has_serial(e->d_name, serial)) {
			snprintf(out, size, "/dev/%.32s", e->d_name);
			found = true;
		}
	if (d)
		closedir(d);
	return found ? RC_OK : fault_set(ret_f, RC_ABSENT, 0, "there is no disk \"%s\"", serial);
}

static enum rc disk_wait(const char *serial, char *out, size_t size, struct fault *ret_f)
{
	const struct timespec pause = { .tv_nsec = 2000000 };
	uint64_t deadline = now_ms() + AGENT_DEVICE_WAIT_MS;
	enum rc rc;

	while ((rc = agent_disk_find(serial, out, size, ret_f)) && now_ms() < deadline)
		nanosleep(&pause, NULL);
	return rc;
}

/* A copy of a smaller disk: the file system is as large as that was. Nothing happens if it fits already. */
void agent_fs_grow(const char *disk, const char *path)
{
	_cleanup_fd_ int disk_fd = open(disk, O_RDONLY | O_CLOEXEC);
	_cleanup_fd_ int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct statfs st;
	uint64_t bytes, blocks;

	if (disk_fd < 0 || fd < 0 || ioctl(disk_fd, BLKGETSIZE64, &bytes) < 0 || fstatfs(fd, &st) < 0 || st.f_bsize <= 0)
		return;
	blocks = bytes / (uint64_t)st.f_bsize;
	if (ioctl(fd, EXT4_RESIZE, &blocks) < 0)
		log_warn("file system could not grow errno=%d", errno);
}

static enum rc disk_mount(const char *serial, const char *at, const char *type, unsigned long flags, const char *options,
			  struct fault *ret_f)
{
	char disk[64];
	enum rc rc = disk_wait(serial, disk, sizeof(disk), ret_f);

	if (rc)
		return rc;
	mkdir(at, 0755);
	if (mount(disk, at, type, flags, options) < 0)
		return fault_set(ret_f, RC_SYS, errno, "mount disk \"%s\": %s", serial, strerrordesc_np(errno));
	if (!(flags & MS_RDONLY))
		agent_fs_grow(disk, at);
	return RC_OK;
}

/* --- root ------------------------------------------------------------------------------------------------------- */
static bool root_is_volume(void)
{
	char text[4096];

	agent_proc_read("/proc/cmdline", text, sizeof(text));
	return strstr(text, "nestbox.root=volume");
}

static enum rc root_overlay(struct fault *ret_f)
{
	enum rc rc = disk_mount("image", "/lower", "erofs", MS_RDONLY | MS_NODEV, NULL, ret_f);

	if (!rc)
		rc = disk_mount("overlay", "/disk", "ext4", MS_NOATIME | MS_NODEV, "errors=remount-ro", ret_f);
	if (rc)
		return rc;
	agent.upper_fd = open("/disk", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	mkdir("/disk/upper", 0755);
	mkdir("/disk/work", 0700);
	/* volatile would save the syncs of copy-ups, but a snapshot of a running machine's disk must be consistent. */
	if (mount("overlay", "/root", "overlay", MS_NODEV, "lowerdir=/lower,upperdir=/disk/upper,workdir=/disk/work") < 0)
		return fault_set(ret_f, RC_SYS, errno, "mount the root: %s", strerrordesc_np(errno));
	return RC_OK;
}

static enum rc root_mount(struct fault *ret_f)
{
	enum rc rc;

	mkdir("/root", 0755);
	if (!root_is_volume())
		return root_overlay(ret_f);
	rc = disk_mount("overlay", "/root", "ext4", MS_NOATIME | MS_NODEV, "errors=remount-ro", ret_f);
	if (!rc)
		agent.upper_fd = open("/root", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return rc;
}

static enum rc root_switch(struct fault *ret_f)
{
	static const char *const moved[] = { "/proc", "/sys", "/dev" };
	char to[32];

	for (size_t i = 0; i < ARRAY_SIZE(moved); i++) {
		snprintf(to, sizeof(to), "/root%s", moved[i]);
		mkdir(to, 0755);
		if (mount(moved[i], to, NULL, MS_MOVE, NULL) < 0)
			return fault_set(ret_f, RC_SYS, errno, "move %s", moved[i]);
	}
	/* The binary stays in memory as long as it runs; what else was in the initramfs goes back. */
	unlink("/init");
	unlink("/image");
	rmdir("/modules");
	if (chdir("/root") < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
		return fault_set(ret_f, RC_SYS, errno, "switch to the root");
	return RC_OK;
}

/* --- the rest --------------------------------------------------------------------------------------------------- */
static void links_make(void)
{
	static const char *const links[][2] = {
		{ "/proc/self/fd", "/dev/fd" },	  { "/proc/self/fd/0", "/dev/stdin" }, { "/proc/self/fd/1", "/dev/stdout" },
		{ "/proc/self/fd/2", "/dev/stderr" }, { "pts/ptmx", "/dev/ptmx" },
	};

	unlink("/dev/ptmx");
	for (size_t i = 0; i < ARRAY_SIZE(links); i++)
		if (symlink(links[i][0], links[i][1]) < 0 && errno != EEXIST)
			log_warn("cannot make %s", links[i][1]);
	mkdir("/run/nestbox", 0755);
	mkdir("/run/lock", 01777);
	chmod("/run/lock", 01777);
	/* /tmp is on the disk: files there may be larger than memory. */
	chmod("/tmp", 01777);
}

static void cgroup_make(void)
{
	struct sysinfo s;
	unsigned long long mib;
	char text[32];

	if (sysinfo(&s) < 0)
		return;
	mib = (unsigned long long)s.totalram * s.mem_unit >> 20;
	agent_file_put("/sys/fs/cgroup/cgroup.subtree_control", "+pids +memory +cpu +io", NULL);
	mkdir(AGENT_CGROUP, 0755);
	if (mib > 2 * AGENT_MEMORY_RESERVE_MIB) {
		snprintf(text, sizeof(text), "%llu", (mib - AGENT_MEMORY_RESERVE_MIB) << 20);
		agent_file_put(AGENT_CGROUP "/memory.max", text, NULL);
	}
	snprintf(text, sizeof(text), "%llu", MIN_OF(MAX_OF(mib * 2, 1024ull), (unsigned long long)AGENT_PIDS_MAX));
	agent_file_put(AGENT_CGROUP "/pids.max", text, NULL);
	agent.cgroup_fd = open(AGENT_CGROUP "/cgroup.procs", O_WRONLY | O_CLOEXEC);
	if (agent.cgroup_fd < 0)
		log_warn("no cgroup for user processes errno=%d", errno);
}

static void kernel_settings(void)
{
	static const char *const settings[][2] = {
		{ "/proc/self/oom_score_adj", "-1000" },
		{ "/proc/sys/kernel/pid_max", "4194304" },
		{ "/proc/sys/net/ipv4/ping_group_range", "0 2147483647" },
		{ "/proc/sys/net/ipv4/ip_unprivileged_port_start", "0" },
		{ "/proc/sys/fs/inotify/max_user_watches", "524288" },
		{ "/proc/sys/kernel/hostname", "sandbox" },
		{ "/proc/sys/kernel/printk", "4 4 1 7" },
	};
	struct fault f;

	for (size_t i = 0; i < ARRAY_SIZE(settings); i++)
		if (agent_file_put(settings[i][0], settings[i][1], &f))
			log_fault(LOG_LEVEL_WARN, &f, "setting");
	setrlimit(RLIMIT_NOFILE, &(struct rlimit){ 65536, 1048576 });
}

static void image_name_read(void)
{
	_cleanup_free_ char *text = NULL;
	size_t n;

	if (file_read_at(AT_FDCWD, "/image", sizeof(agent.image) - 1, &text, &n, NULL))
		return;
	text[strcspn(text, "\n")] = '\0';
	if (!text[strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789.- ")])
		snprintf(agent.image, sizeof(agent.image), "%s", text);
}

enum rc agent_boot(struct fault *ret_f)
{
	enum rc rc = RC_OK;

	umask(0);
	for (size_t i = 0; !rc && i < ARRAY_SIZE(early); i++)
		rc = pseudo_mount(&early[i], ret_f);
	image_name_read();
	if (!rc)
		rc = modules_load(ret_f);
	if (!rc)
		rc = root_mount(ret_f);
	if (!rc)
		rc = root_switch(ret_f);
	for (size_t i = 0; !rc && i < ARRAY_SIZE(late); i++)
		rc = pseudo_mount(&late[i], ret_f);
	if (rc)
		return rc;
	umask(022);
	kernel_settings();
	links_make();
	cgroup_make();
	agent_file_put("/run/nestbox/generation", "0\n", NULL);
	agent_file_put("/etc/resolv.conf", "nameserver " AGENT_NET_HOST_ADDR "\noptions single-request-reopen\n", NULL);
	agent_identity_prepare();
	return agent_net_up(ret_f);
}
