/* SPDX-License-Identifier: Apache-2.0 */
/* The jail from both sides: a program in it that tries to get out, and /proc of a live one. Needs root. */
#include "base/cleanup.h"
#include "base/fd.h"
#include "tests/lib/check.h"
#include "vmm/engines/qemu/vm.h"
#include "vmm/jail/jail.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#define UID 791234
#define OUTPUT 8192

struct jailed {
	pid_t pid;
	int pidfd, err_fd, hold_fd; /* closing hold_fd ends a probe that waits */
};

static struct jail_root *empty_root(void)
{
	struct jail_root *root = NULL;
	struct fault f = { 0 };

	if (jail_root_new(NULL, 0, false, &root, &f))
		printf("  %s\n", f.text);
	return root;
}

static int probe_open(void)
{
	char path[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);
	char *name;

	path[n < 0 ? 0 : n] = '\0';
	name = strrchr(path, '/');
	if (!name)
		return -1;
	strcpy(name, "/jail-probe");
	return open(path, O_RDONLY | O_CLOEXEC);
}

/* attempts: up to 3 arguments of the probe */
static bool jailed_start(struct jailed *j, const struct jail_root *root, const struct jail_filter *filter,
			 const char *const attempts[])
{
	_cleanup_fd_ int exec_fd = probe_open(), null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	char *const env[] = { NULL };
	char *argv[40] = { (char *)(uintptr_t)"probe" };
	int err[2], hold[2];
	struct fault f = { 0 };
	struct jail_spec spec = { .root = root, .filter = filter, .exec_fd = exec_fd, .argv = argv, .envp = env, .uid = UID,
				  .null_fd = null_fd, .n_fds = 1, .cgroup_procs_fd = -1, .max_file_bytes = 1 << 20,
				  .max_locked_bytes = 65536, .max_processes = 8, .max_files = 32 };

	for (size_t i = 0; attempts[i] && i < 38; i++)
		argv[i + 1] = (char *)(uintptr_t)attempts[i];
	if (exec_fd < 0 || pipe2(err, O_CLOEXEC) < 0 || pipe2(hold, O_CLOEXEC) < 0)
		return false;
	spec.err_fd = err[1];
	spec.fds = &hold[0];
	if (jail_spawn(&spec, &j->pid, &j->pidfd, &f)) {
		printf("  %s\n", f.text);
		return false;
	}
	close(err[1]);
	close(hold[0]);
	j->err_fd = err[0];
	j->hold_fd = hold[1];
	return true;
}

static int jailed_end(struct jailed *j, char out[OUTPUT])
{
	size_t n = 0;
	ssize_t got;
	int status = -1;

	close(j->hold_fd);
	while ((got = read(j->err_fd, out + n, OUTPUT - 1 - n)) > 0)
		n += (size_t)got;
	out[n] = '\0';
	close(j->err_fd);
	close(j->pidfd);
	while (waitpid(j->pid, &status, 0) < 0 && errno == EINTR)
		;
	return status;
}

static char *proc_read(pid_t pid, const char *name)
{
	static char text[16384];
	char path[64];
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, name);
	_cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? 0 : read(fd, text, sizeof(text) - 1);
	text[n < 0 ? 0 : n] = '\0';
	return text;
}

static bool status_has(pid_t pid, const char *line)
{
	char wanted[128];

	snprintf(wanted, sizeof(wanted), "\n%s\n", line);
	return strstr(proc_read(pid, "status"), wanted) != NULL;
}

static size_t entries(pid_t pid, const char *name)
{
	char path[64];
	size_t n = 0;
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, name);
	d = opendir(path);
	for (struct dirent *e; d && (e = readdir(d));)
		n += e->d_name[0] != '.';
	if (d)
		closedir(d);
	return n;
}

/* exec has happened when the probe's name is there; before it the process still is a copy of ours. */
static bool executed(pid_t pid)
{
	for (int i = 0; i < 2000; i++) {
		if (!strncmp(proc_read(pid, "cmdline"), "probe", 5))
			return true;
		poll(NULL, 0, 1);
	}
	return false;
}

static int abstract_listen(void)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX, .sun_path = "\0nestbox-test-jail" };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (bind(fd, (struct sockaddr *)&a, sizeof(sa_family_t) + 18) < 0 || listen(fd, 1) < 0)
		close_fd(&fd);
	return fd;
}

/* Namespaces, ids and capabilities alone, without the system call filter. */
TEST(nothing_is_reachable_even_without_filter)
{
	static const struct {
		const char *attempt, *result;
	} expected[] = {
		{ "passwd", "ENOENT" },   { "list", "ENOENT" },     { "dotdot", "ENOENT" },  { "create", "EROFS" },
		{ "inet", "ENETUNREACH" }, { "packet", "EPERM" },    { "abstract", "ECONNREFUSED" },
		{ "ptrace", "ESRCH" },    { "kill", "ESRCH" },      { "kill_all", "ESRCH" }, { "mount", "EPERM" },
		{ "remount", "EPERM" },   { "umount", "EPERM" },    { "chroot", "EPERM" },   { "mknod", "EROFS" },
		{ "setuid", "EPERM" },    { "setgroups", "EPERM" }, { "hostname", "EPERM" }, { "exec", "ENOENT" },
		{ "reboot", "EPERM" },    { "terminal", "ENOTTY" },
	};
	const char *attempts[ARRAY_SIZE(expected) + 1] = { NULL };
	struct jail_root *root;
	_cleanup_fd_ int listener = abstract_listen();
	char out[OUTPUT];
	struct jailed j;

	if (getuid())
		SKIP("needs root");
	REQUIRE(listener >= 0);
	root = empty_root();
	REQUIRE(root);
	for (size_t i = 0; i < ARRAY_SIZE(expected); i++)
		attempts[i] = expected[i].attempt;
	REQUIRE(jailed_start(&j, root, NULL, attempts));
	CHECK_EQ(jailed_end(&j, out), 0);
	for (size_t i = 0; i < ARRAY_SIZE(expected); i++) {
		char line[64];
		bool there;

		snprintf(line, sizeof(line), "%s %s\n", expected[i].attempt, expected[i].result);
		there = strstr(out, line) != NULL;
		CHECK(there);
		if (!there)
			printf("  no line: %s", line);
	}
	if (check_failed_here)
		printf("%s", out);
	jail_root_free(root);
}

/* Each of these kills QEMU at once. */
TEST(forbidden_calls_kill)
{
	static const char *const forbidden[] = { "ptrace", "kill", "mount", "remount", "umount", "chroot", "mknod", "setuid",
						 "setgroups", "setns", "unshare", "hostname", "exec", "fork", "keyctl", "bpf",
						 "perf", "userfaultfd", "module", "reboot", "handle", "readv", "terminal" };
	struct jail_filter *filter = NULL;
	struct jail_root *root;
	struct fault f = { 0 };

	if (getuid())
		SKIP("needs root");
	root = empty_root();
	REQUIRE(root);
	REQUIRE(!jail_filter_new(&qemu_calls, &filter, &f));
	for (size_t i = 0; i < ARRAY_SIZE(forbidden); i++) {
		const char *const attempts[] = { forbidden[i], NULL };
		char out[OUTPUT];
		struct jailed j;
		int status;

		REQUIRE(jailed_start(&j, root, filter, attempts));
		status = jailed_end(&j, out);
		CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS);
		if (!WIFSIGNALED(status))
			printf("  %s: status %d, '%s'\n", forbidden[i], status, out);
	}
	jail_filter_free(filter);
	jail_root_free(root);
}

/* These are probed by libraries: they fail, and QEMU goes on. */
TEST(refused_calls_fail)
{
	static const char *const attempts[] = { "inet", "packet", "abstract", "io_uring", NULL };
	struct jail_filter *filter = NULL;
	struct jail_root *root;
	struct fault f = { 0 };
	char out[OUTPUT];
	struct jailed j;

	if (getuid())
		SKIP("needs root");
	root = empty_root();
	REQUIRE(root);
	REQUIRE(!jail_filter_new(&qemu_calls, &filter, &f));
	REQUIRE(jailed_start(&j, root, filter, attempts));
	CHECK_EQ(jailed_end(&j, out), 0);
	CHECK_STR(out, "inet EPERM\npacket EPERM\nabstract EPERM\nio_uring ENOSYS\n");
	jail_filter_free(filter);
	jail_root_free(root);
}

static void check_namespaces(pid_t pid)
{
	static const char *const names[] = { "pid", "mnt", "ipc", "uts", "net", "cgroup" };

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		char path[64], theirs[64] = "", ours[64] = "";

		snprintf(path, sizeof(path), "/proc/%d/ns/%s", (int)pid, names[i]);
		CHECK(readlink(path, theirs, sizeof(theirs) - 1) > 0);
		snprintf(path, sizeof(path), "/proc/self/ns/%s", names[i]);
		CHECK(readlink(path, ours, sizeof(ours) - 1) > 0);
		CHECK(strcmp(theirs, ours));
	}
}

/* Soft and hard limit of /proc/<pid>/limits, which must be equal. */
static uint64_t limit(pid_t pid, const char *name)
{
	const char *at = strstr(proc_read(pid, "limits"), name);
	unsigned long long soft = 1, hard = 2;

	CHECK(at && sscanf(at + strlen(name), "%llu %llu", &soft, &hard) == 2);
	return soft == hard ? hard : UINT64_MAX;
}

TEST(live_process_from_outside)
{
	static const char *const attempts[] = { "wait", NULL };
	struct jail_filter *filter = NULL;
	struct jail_root *root;
	struct fault f = { 0 };
	char out[OUTPUT], uid[64];
	struct jailed j;

	if (getuid())
		SKIP("needs root");
	root = empty_root();
	REQUIRE(root);
	REQUIRE(!jail_filter_new(&qemu_calls, &filter, &f));
	REQUIRE(jailed_start(&j, root, filter, attempts));
	REQUIRE(executed(j.pid));
	snprintf(uid, sizeof(uid), "Uid:\t%d\t%d\t%d\t%d", UID, UID, UID, UID);
	CHECK(status_has(j.pid, uid));
	memcpy(uid, "Gid", 3);
	CHECK(status_has(j.pid, uid));
	CHECK(status_has(j.pid, "Groups:\t "));
	CHECK(status_has(j.pid, "NoNewPrivs:\t1"));
	CHECK(status_has(j.pid, "Seccomp:\t2"));
	CHECK(status_has(j.pid, "CapInh:\t0000000000000000"));
	CHECK(status_has(j.pid, "CapPrm:\t0000000000000000"));
	CHECK(status_has(j.pid, "CapEff:\t0000000000000000"));
	CHECK(status_has(j.pid, "CapBnd:\t0000000000000000"));
	CHECK(status_has(j.pid, "CapAmb:\t0000000000000000"));
	CHECK(status_has(j.pid, "SigBlk:\t0000000000000000"));
	CHECK_EQ(entries(j.pid, "root"), 0);
	CHECK_EQ(entries(j.pid, "fd"), 4); /* null, null, standard error, the one granted */
	CHECK_EQ(proc_read(j.pid, "environ")[0], '\0');
	CHECK_EQ(limit(j.pid, "Max core file size"), 0);
	CHECK_EQ(limit(j.pid, "Max file size"), 1 << 20);
	CHECK_EQ(limit(j.pid, "Max processes"), 8);
	CHECK_EQ(limit(j.pid, "Max open files"), 32);
	check_namespaces(j.pid);
	CHECK_EQ(jailed_end(&j, out), 0);
	CHECK_STR(out, "");
	jail_filter_free(filter);
	jail_root_free(root);
}

/* The reason of a failure in the child arrives. */
TEST(failure_has_a_reason)
{
	struct jail_root *root;
	_cleanup_fd_ int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	char *const none[] = { NULL };
	struct fault f = { 0 };
	char out[OUTPUT];
	struct jailed j;
	int err[2];

	if (getuid())
		SKIP("needs root");
	root = empty_root();
	REQUIRE(root && pipe2(err, O_CLOEXEC) == 0);
	struct jail_spec spec = { .root = root, .exec_fd = null_fd, .argv = none, .envp = none, .uid = UID, .null_fd = null_fd,
				  .err_fd = err[1], .cgroup_procs_fd = -1, .max_files = 32 };
	REQUIRE(!jail_spawn(&spec, &j.pid, &j.pidfd, &f));
	close(err[1]);
	j.err_fd = err[0];
	j.hold_fd = dup(null_fd);
	CHECK_EQ(WEXITSTATUS(jailed_end(&j, out)), JAIL_EXIT);
	CHECK(!strncmp(out, "jail: execute: ", 15));
	spec.uid = 0;
	CHECK_EQ(jail_spawn(&spec, &j.pid, &j.pidfd, &f), RC_INVALID);
	jail_root_free(root);
}

TEST(missing_file_for_a_root)
{
	const struct jail_mount m = { "/nonexistent/file", "/file" };
	struct jail_root *root = NULL;
	struct fault f = { 0 };

	if (getuid())
		SKIP("needs root");
	CHECK(jail_root_new(&m, 1, false, &root, &f) != RC_OK);
	CHECK(!root && strstr(f.text, "/nonexistent/file"));
}

CHECK_MAIN()
