/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs inside the jail (static: its root is empty) and tries to get out. Each argument names an attempt; "all" makes
 * every one. A line per attempt on standard error: "<name> <errno name or OK>". "wait" then reads descriptor 3 until its end.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/keyctl.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static long try_passwd(void)
{
	return open("/etc/passwd", O_RDONLY);
}

static long try_list(void)
{
	return open("/proc/1/status", O_RDONLY);
}

static long try_dotdot(void)
{
	return chdir("../../../..") < 0 ? -1 : open("etc/passwd", O_RDONLY);
}

static long try_create(void)
{
	return open("/new", O_WRONLY | O_CREAT, 0600);
}

static long try_inet(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(22), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	return fd < 0 ? -1 : connect(fd, (struct sockaddr *)&a, sizeof(a));
}

static long try_packet(void)
{
	return socket(AF_PACKET, SOCK_RAW, 0);
}

/* The test listens on this name in its own network namespace. */
static long try_abstract(void)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX, .sun_path = "\0nestbox-test-jail" };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	return fd < 0 ? -1 : connect(fd, (struct sockaddr *)&a, sizeof(sa_family_t) + 18);
}

static long try_ptrace(void)
{
	return ptrace(PTRACE_ATTACH, getppid() ? getppid() : 2, NULL, NULL);
}

static long try_kill(void)
{
	return kill(2, 0); /* every host has a process 2 */
}

static long try_kill_all(void)
{
	return kill(-1, SIGTERM);
}

static long try_mount(void)
{
	return mount("x", "/", "tmpfs", 0, NULL);
}

static long try_remount(void)
{
	return mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND, NULL);
}

static long try_umount(void)
{
	return umount2("/", MNT_DETACH);
}

static long try_chroot(void)
{
	return chroot("/");
}

static long try_mknod(void)
{
	return mknod("/kmem", S_IFCHR | 0666, 1 << 8 | 1);
}

static long try_setuid(void)
{
	return setuid(0);
}

static long try_setgroups(void)
{
	return (long)syscall(SYS_setgroups, 0, NULL);
}

static long try_setns(void)
{
	return setns(3, 0);
}

static long try_unshare(void)
{
	return unshare(CLONE_NEWUSER);
}

static long try_hostname(void)
{
	return sethostname("x", 1);
}

static long try_exec(void)
{
	char *const none[] = { NULL };

	return execve("/proc/self/exe", none, none);
}

static long try_fork(void)
{
	pid_t pid = fork();

	if (!pid)
		_exit(0);
	if (pid > 0)
		waitpid(pid, NULL, 0);
	return pid;
}

static long try_keyctl(void)
{
	return (long)syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_USER_KEYRING, 1);
}

static long try_bpf(void)
{
	return (long)syscall(SYS_bpf, 0, NULL, 0);
}

static long try_perf(void)
{
	return (long)syscall(SYS_perf_event_open, NULL, 0, -1, -1, 0);
}

static long try_userfaultfd(void)
{
	return (long)syscall(SYS_userfaultfd, 0);
}

static long try_io_uring(void)
{
	return (long)syscall(SYS_io_uring_setup, 0, NULL);
}

static long try_module(void)
{
	return (long)syscall(SYS_init_module, NULL, 0, "");
}

static long try_reboot(void)
{
	return (long)syscall(SYS_reboot, 0, 0, 0, NULL);
}

static long try_handle(void)
{
	return (long)syscall(SYS_open_by_handle_at, 3, NULL, 0);
}

static long try_readv(void)
{
	return (long)syscall(SYS_process_vm_readv, 1, NULL, 0, NULL, 0, 0);
}

static long try_terminal(void)
{
	char c = 'x';

	return (long)syscall(SYS_ioctl, 0, 0x5412 /* TIOCSTI */, &c);
}

#define ATTEMPTS(X)                                                                                            \
	X(passwd) X(list) X(dotdot) X(create) X(inet) X(packet) X(abstract) X(ptrace) X(kill) X(kill_all) X(mount) \
	X(remount) X(umount) X(chroot) X(mknod) X(setuid) X(setgroups) X(setns) X(unshare) X(hostname) X(exec)   \
	X(fork) X(keyctl) X(bpf) X(perf) X(userfaultfd) X(io_uring) X(module) X(reboot) X(handle) X(readv)         \
	X(terminal)

static const struct {
	const char *name;
	long (*fn)(void);
} attempts[] = {
#define X(name) { #name, try_##name },
	ATTEMPTS(X)
#undef X
};

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		char byte;

		if (!strcmp(argv[i], "wait"))
			return read(3, &byte, 1) == 0 ? 0 : 2;
		for (size_t k = 0; k < sizeof(attempts) / sizeof(attempts[0]); k++) {
			long r;

			if (strcmp(argv[i], attempts[k].name))
				continue;
			errno = 0;
			r = attempts[k].fn();
			dprintf(2, "%s %s\n", attempts[k].name, r < 0 ? strerrorname_np(errno) : "OK");
		}
	}
	return 0;
}
