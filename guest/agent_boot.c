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

/* Those of a machine never change, and looking for one takes a while: what was found once is remembered. */
enum rc agent_disk_find(const char *serial, char *out, size_t size, struct fault *ret_f)
{
	static struct {
		char serial[24], name[36];
	} known[AGENT_DISKS_KNOWN];
	size_t n = 0;
	DIR *d;

	while (n < ARRAY_SIZE(known) && *known[n].serial && strcmp(known[n].serial, serial) != 0)
		n++;
	if (n == ARRAY_SIZE(known))
		n = 0;
	d = strcmp(known[n].serial, serial) ? opendir("/sys/block") : NULL;
	*known[n].serial = d ? '\0' : *known[n].serial;
	for (struct dirent *e; d && !*known[n].serial && (e = readdir(d));)
		if (!strncmp(e->d_name, "vd", 2) && disk_has_serial(e->d_name, serial)) {
			snprintf(known[n].serial, sizeof(known[n].serial), "%s", serial);
			snprintf(known[n].name, sizeof(known[n].name), "%.32s", e->d_name);
		}
	if (d)
		closedir(d);
	if (strcmp(known[n].serial, serial) != 0)
		return fault_set(ret_f, RC_ABSENT, 0, "there is no disk \"%s\"", serial);
	snprintf(out, size, "/dev/%s", known[n].name);
	return RC_OK;
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
#define LAYER_HOSTS_MAX 65536
static const char *const layer_files[] = { "disk/upper1/etc/hostname", "disk/upper1/etc/hosts", "disk/upper1/etc/machine-id" };

/* For agent_root_change(), which is in a hurry. */
static void root_change_prepare(void)
{
	_cleanup_free_ char *hosts = NULL;
	char name[64];
	size_t n;

	mkdir("/disk/upper1", 0755);
	mkdir("/disk/work1", 0700);
	mkdir("/disk/upper1/etc", 0755);
	for (size_t i = 0; i < ARRAY_SIZE(layer_files); i++)
		agent_file_put(layer_files[i], "", NULL);
	if (!file_read_at(AT_FDCWD, "/lower/etc/hosts", LAYER_HOSTS_MAX, &hosts, &n, NULL))
		agent_file_put(layer_files[1], hosts, NULL);
	mkdir("/volume", 0755);
	mkdir("/base", 0755);
	agent_disk_find(AGENT_ROOT_SERIAL, name, sizeof(name), NULL);
	agent_disk_find(AGENT_BASE_SERIAL, name, sizeof(name), NULL);
}

/* volatile would save the syncs of copy-ups, but a snapshot of a running machine's disk must be consistent. */
static enum rc root_mount(struct fault *ret_f)
{
	enum rc rc = disk_mount("image", "/lower", "erofs", MS_RDONLY | MS_NODEV, NULL, ret_f);

	if (!rc)
		rc = disk_mount("overlay", "/disk", "ext4", MS_NOATIME | MS_NODEV, "errors=remount-ro", ret_f);
	if (rc)
		return rc;
	agent.upper_fd = open("/disk", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	mkdir("/disk/upper", 0755);
	mkdir("/disk/work", 0700);
	mkdir("/root", 0755);
	root_change_prepare();
	if (mount("overlay", "/root", "overlay", MS_NODEV, "lowerdir=/lower,upperdir=/disk/upper,workdir=/disk/work") < 0)
		return fault_set(ret_f, RC_SYS, errno, "mount the root: %s", strerrordesc_np(errno));
	return RC_OK;
}

static enum rc root_move(const char *to, const char *const moved[], size_t n, struct fault *ret_f)
{
	char path[32];

	for (size_t i = 0; i < n; i++) {
		snprintf(path, sizeof(path), "%s%s", to, moved[i]);
		mkdir(path, 0755);
		if (mount(moved[i], path, NULL, MS_MOVE, NULL) < 0)
			return fault_set(ret_f, RC_SYS, errno, "move %s", moved[i]);
	}
	return RC_OK;
}

static enum rc root_switch(struct fault *ret_f)
{
	static const char *const moved[] = { "/proc", "/sys", "/dev" };
	enum rc rc = root_move("/root", moved, ARRAY_SIZE(moved), ret_f);

	if (rc)
		return rc;
	/* The binary stays in memory as long as it runs; what else was in the initramfs goes back. */
	unlink("/init");
	unlink("/image");
	rmdir("/modules");
	agent.below_fd = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (chdir("/root") < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
		return fault_set(ret_f, RC_SYS, errno, "switch to the root");
	return RC_OK;
}

/* Only where it is otherwise: on a layer of its own each change is a copy that is flushed. */
static void root_files(void)
{
	static const char resolver[] = "nameserver " AGENT_NET_HOST_ADDR "\noptions single-request-reopen\n";
	char now[sizeof(resolver) + 1];
	struct stat st;

	agent_proc_read("/etc/resolv.conf", now, sizeof(now));
	if (strcmp(now, resolver) != 0)
		agent_file_put("/etc/resolv.conf", resolver, NULL);
	/* /tmp is on the disk: files there may be larger than memory. */
	if (stat("/tmp", &st) < 0 || (st.st_mode & 07777) != 01777)
		chmod("/tmp", 01777);
}

/* --- another root ----------------------------------------------------------------------------------------------- */
/*
 * A machine that was restored from a template has the default root mounted and nobody in it but the agent and the session.
 * Another one takes its place here: the same image below, and a bootable volume's ext4 as the upper layer, or a snapshot's as a
 * read-only layer between the image and a new directory of the machine's own disk. pivot_root() takes every process along,
 * and the image's pages in memory stay what they are. below_fd is the initramfs: the only place from where the layers
 * can be named, once the root covers it.
 */
#define BASE_LAYER "base/upper"
#define OLD_ROOT "/run/nestbox/template"

static enum rc other_volume(struct fault *ret_f)
{
	char disk[64];
	enum rc rc = agent_disk_find(AGENT_ROOT_SERIAL, disk, sizeof(disk), ret_f);

	if (rc)
		return rc;
	if (agent_volume_mount(disk, "volume", MS_NOATIME | MS_NODEV) < 0)
		return fault_set(ret_f, RC_SYS, errno, "mount the root volume: %s", strerrordesc_np(errno));
	agent_fs_grow(disk, "volume");
	mkdir("volume/upper", 0755);
	mkdir("volume/work", 0700);
	if (mount("overlay", "/mnt", "overlay", MS_NODEV, "lowerdir=lower,upperdir=volume/upper,workdir=volume/work") < 0)
		return fault_set(ret_f, RC_SYS, errno, "mount the root: %s", strerrordesc_np(errno));
	return RC_OK;
}

/*
 * What identity writes is in the new layer beforehand (root_change_prepare): copied up it would be flushed, one by one. Its content does
 * not matter but for hosts, which keeps what the snapshot's users wrote. Anything but plain files and directories there: copied up.
 */
static void layer_fit(void)
{
	_cleanup_free_ char *hosts = NULL;
	struct stat etc, st;
	size_t n;

	if (lstat(BASE_LAYER "/etc", &etc) < 0)
		return;
	if (S_ISDIR(etc.st_mode) && lstat(BASE_LAYER "/etc/hosts", &st) == 0 && S_ISREG(st.st_mode) &&
	    !file_read_at(AT_FDCWD, BASE_LAYER "/etc/hosts", LAYER_HOSTS_MAX, &hosts, &n, NULL) &&
	    (etc.st_mode & 07777) == 0755 && !etc.st_uid && !etc.st_gid && !agent_file_put("disk/upper1/etc/hosts", hosts, NULL))
		return;
	for (size_t i = 0; i < ARRAY_SIZE(layer_files); i++)
		unlinkat(AT_FDCWD, layer_files[i], 0);
	rmdir("disk/upper1/etc");
}

static enum rc other_snapshot(bool *ret_bare, struct fault *ret_f)
{
	char disk[64];
	struct stat st;
	bool layer;
	enum rc rc = agent_disk_find(AGENT_BASE_SERIAL, disk, sizeof(disk), ret_f);

	if (rc)
		return rc;
	/* The host gives only what needs no recovery. */
	if (mount(disk, "base", "ext4", MS_RDONLY | MS_NOATIME | MS_NOSUID | MS_NODEV | MS_SILENT, "noload,noblock_validity") < 0)
		return fault_set(ret_f, RC_SYS, errno, "mount the root snapshot: %s", strerrordesc_np(errno));
	/* Of a volume that nobody has started from yet there is none. */
	layer = lstat(BASE_LAYER, &st) == 0 && S_ISDIR(st.st_mode);
	layer_fit();
	if (mount("overlay", "/mnt", "overlay", MS_NODEV,
		  layer ? "lowerdir=" BASE_LAYER ":lower,upperdir=disk/upper1,workdir=disk/work1" :
			  "lowerdir=lower,upperdir=disk/upper1,workdir=disk/work1") < 0)
		return fault_set(ret_f, RC_SYS, errno, "mount the root: %s", strerrordesc_np(errno));
	*ret_bare = !layer;
	return RC_OK;
}

static enum rc other_enter(struct fault *ret_f)
{
	static const char *const moved[] = { "/proc", "/sys", "/dev", "/run" };
	enum rc rc = root_move("/mnt", moved, ARRAY_SIZE(moved), ret_f);

	if (rc)
		return rc;
	mkdir("/mnt" OLD_ROOT, 0700);
	if (syscall(SYS_pivot_root, "/mnt", "/mnt" OLD_ROOT) < 0)
		return fault_set(ret_f, RC_SYS, errno, "switch to the other root: %s", strerrordesc_np(errno));
	return RC_OK;
}

static int old_root_child(int fd, void *arg)
{
	(void)arg;
	if (umount2(OLD_ROOT, MNT_DETACH) < 0 || rmdir(OLD_ROOT) < 0)
		log_warn("the template's root stays errno=%d", errno);
	if (fd >= 0 && (fchdir(fd) < 0 || umount2("disk", MNT_DETACH) < 0))
		log_warn("the template's disk stays errno=%d", errno);
	return 0;
}

/* Forgetting what the template knew of its root takes as long as all that comes before the first command. */
static void on_old_root(void *arg)
{
	struct fault f = { 0 };

	(void)arg;
	if (agent_fork(old_root_child, agent.below_fd, NULL, NULL, NULL, NULL, NULL, &f))
		log_fault(LOG_LEVEL_WARN, &f, "the template's root");
	close_fd(&agent.below_fd);
}

enum rc agent_root_change(bool snapshot, struct fault *ret_f)
{
	static struct source *timer;
	bool bare = true;
	int fd = -1;
	enum rc rc;

	if (agent.generation || agent.below_fd < 0 || timer)
		return fault_set(ret_f, RC_STATE, 0, "this machine has its root already");
	if (fchdir(agent.below_fd) < 0)
		return fault_set(ret_f, RC_SYS, errno, "there is nothing below the root");
	umask(0);
	rc = snapshot ? other_snapshot(&bare, ret_f) : other_volume(ret_f);
	if (!rc && !snapshot)
		fd = open("volume", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (!rc)
		rc = other_enter(ret_f);
	umask(022);
	if (chdir("/") < 0 && !rc)
		rc = fault_set(ret_f, RC_SYS, errno, "go to the other root");
	if (!rc)
		rc = loop_timer(agent.loop, now_ms() + AGENT_OLD_ROOT_MS, on_old_root, NULL, &timer, ret_f);
	if (rc)
		return rc;
	if (snapshot) {
		close_fd(&agent.below_fd); /* its disk stays in use */
	} else {
		close_fd(&agent.upper_fd);
		agent.upper_fd = fd;
	}
	/* A snapshot of a volume that was started from has them. */
	if (bare)
		root_files();
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
	root_files();
	agent_identity_prepare();
	return agent_net_up(ret_f);
}
