/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vmm-bed: nestbox-vmm on real KVM, asked directly (vmm/engines/kvm/control.h).
 *
 *   vmm-bed hostile VMM HOSTILE.ELF [-t SECONDS] [-s SEED]
 *       A guest that scribbles over rings, registers and ports, is paused, saved, forked and restored meanwhile. It may end, and is
 *       then followed by one with the next seed; its process may not crash. A second machine must not notice.
 *   vmm-bed nth VMM-NTH HOSTILE.ELF [-t SECONDS]
 *       Each allocation, mapping, descriptor, read, write and KVM request of a cold start, a restore, a fork and a save fails once
 *       (tests/kvmbed/nth.c is linked into that VMM). A start that fails ends its process with a reason; a machine that is
 *       forked or saved lives on, with the descriptors it had.
 *   vmm-bed balloon VMM IMAGE-DIRECTORY OVERLAY [-t SECONDS]
 *       The guest image boots, reports its free memory by itself, is asked for more and gets it back.
 */
#include "base/cleanup.h"
#include "base/fd.h"
#include "schema/agent.h"
#include "vmm/engines/kvm/control.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>

#define MEMORY_MIB 64
#define ANSWER_MS 60000
#define DISK_BYTES (4 << 20)
#define TEXT_MAX 4096

struct machine {
	pid_t pid;
	int fd, err_fd, log_fd, disk_fd;
};

static const char *vmm, *kernel_path;
static int failures;
static unsigned int taps, memory_mib = MEMORY_MIB;
static int image_fd = -1; /* a second disk; -1: the first again, for reading */

__attribute__((format(printf, 1, 2))) static void bad(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	printf("not ok ");
	vprintf(fmt, ap);
	printf("\n");
	va_end(ap);
	failures++;
}

_Noreturn static void die(const char *what)
{
	fprintf(stderr, "vmm-bed: %s: %s\n", what, strerror(errno));
	exit(2);
}

/* --- a machine ----------------------------------------------------------------------------------------------------- */

static int tap_new(void)
{
	struct ifreq ifr = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK), sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "bed%u", taps++);
	if (fd < 0 || ioctl(fd, TUNSETIFF, &ifr) < 0)
		die("tap");
	ifr.ifr_flags = IFF_UP;
	if (sock < 0 || ioctl(sock, SIOCSIFFLAGS, &ifr) < 0)
		die("tap up");
	close(sock);
	return fd;
}

/* The process alone: listening at its descriptor 3, and this end connected. */
static struct machine process_new(const char *nth)
{
	struct machine m = { .fd = -1, .log_fd = memfd_create("log", 0), .disk_fd = memfd_create("disk", 0) };
	char path[64], env[64];
	char *envp[] = { env, NULL };
	int listen_fd, pipe_fds[2];

	snprintf(path, sizeof(path), "/tmp/vmm-bed.%d", (int)getpid());
	snprintf(env, sizeof(env), "NESTBOX_NTH=%s", nth ? nth : "0");
	if (unix_listen(path, SOCK_SEQPACKET, 0600, (gid_t)-1, &listen_fd, NULL) || pipe2(pipe_fds, O_CLOEXEC) < 0 ||
	    unix_connect(path, SOCK_SEQPACKET, &m.fd, NULL) || ftruncate(m.disk_fd, DISK_BYTES) < 0)
		die("control socket");
	unlink(path);
	m.err_fd = pipe_fds[0];
	m.pid = fork();
	if (m.pid < 0)
		die("fork");
	if (!m.pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (dup2(pipe_fds[1], 2) < 0 || dup2(listen_fd, 3) < 0)
			_exit(126);
		execle(vmm, "nestbox-vmm", "serve", NULL, envp);
		_exit(127);
	}
	close(listen_fd);
	close(pipe_fds[1]);
	return m;
}

static struct message_call call;

static enum rc ask(struct machine *m, uint16_t op, message_put_fn *put, const void *request, const int *fds, size_t n_fds,
		   message_get_fn *get, void *reply, struct fault *f)
{
	call.op = op;
	call.put = put;
	call.request = request;
	call.send_fds = fds;
	call.n_send_fds = n_fds;
	call.get = get;
	call.reply = reply;
	call.n_fds = 0;
	return message_call(m->fd, &call, now_ms() + ANSWER_MS, f);
}

static enum rc ask_plain(struct machine *m, uint16_t op, struct fault *f)
{
	return ask(m, op, NULL, NULL, NULL, 0, NULL, NULL, f);
}

static enum rc resume(struct machine *m, struct fault *f)
{
	struct control_resumed r;

	return ask(m, CONTROL_RESUME, NULL, NULL, NULL, 0, (message_get_fn *)control_resumed_get, &r, f);
}

/* layers 0: cold, with last = kernel, initrd (any file); else as control.h has it. */
static enum rc start(struct machine *m, uint32_t layers, const char *cmdline, const int *last, size_t n_last, struct fault *f)
{
	static const uint8_t disks[] = "overlay\0rw\0image\0ro", nics[] = AGENT_NET_MAC "\0" AGENT_MGMT_MAC;
	struct control_start s = { .cpus = 2, .memory_mib = memory_mib, .layers = layers, .disks = disks, .disks_n = sizeof(disks),
				   .nics = nics, .nics_n = sizeof(nics) };
	int fds[FD_PASS_MAX] = { open("/dev/kvm", O_RDWR | O_CLOEXEC), m->log_fd, m->disk_fd, image_fd >= 0 ? image_fd : m->disk_fd, tap_new(), tap_new() };
	size_t n = 6;
	enum rc rc;

	if (fds[0] < 0)
		die("/dev/kvm");
	snprintf(s.cmdline, sizeof(s.cmdline), "%s", cmdline);
	for (size_t i = 0; i < n_last; i++)
		fds[n++] = last[i];
	rc = ask(m, CONTROL_START, (message_put_fn *)control_start_put, &s, fds, n, NULL, NULL, f);
	close(fds[0]);
	close(fds[4]);
	close(fds[5]);
	return rc;
}

static enum rc start_cold(struct machine *m, unsigned int seed, const char *more, struct fault *f)
{
	char cmdline[64];
	int kernel = open(kernel_path, O_RDONLY | O_CLOEXEC);
	enum rc rc;

	if (kernel < 0)
		die(kernel_path);
	snprintf(cmdline, sizeof(cmdline), "seed=%u%s", seed, more);
	rc = start(m, 0, cmdline, (int[]){ kernel, kernel }, 2, f);
	close(kernel);
	return rc;
}

/* Ended within the time? *status as of waitpid(). */
static bool ended(struct machine *m, uint64_t ms, int *status)
{
	uint64_t end = now_ms() + ms;

	for (;;) {
		struct timespec wait = { 0, 5000000 };
		pid_t got = waitpid(m->pid, status, WNOHANG);

		if (got == m->pid)
			return true;
		if (now_ms() >= end)
			return false;
		nanosleep(&wait, NULL);
	}
}

static void last_words(struct machine *m, char *out, size_t size)
{
	ssize_t n;

	if (fcntl(m->err_fd, F_SETFL, O_NONBLOCK) < 0)
		die("fcntl");
	n = read(m->err_fd, out, size - 1);
	out[n < 0 ? 0 : n] = '\0';
}

static void machine_close(struct machine *m)
{
	close(m->fd);
	close(m->err_fd);
	close(m->log_fd);
	close(m->disk_fd);
}

static void machine_kill(struct machine *m)
{
	int status;

	kill(m->pid, SIGKILL);
	while (waitpid(m->pid, &status, 0) < 0 && errno == EINTR)
		;
	machine_close(m);
}

static uint32_t state_of(struct machine *m)
{
	struct control_stat s = { 0 };
	struct fault f;

	return ask(m, CONTROL_STAT, NULL, NULL, NULL, 0, (message_get_fn *)control_stat_get, &s, &f) ? UINT32_MAX : s.state;
}

static enum rc balloon(struct machine *m, uint32_t mib, struct fault *f)
{
	struct control_balloon b = { .mib = mib };

	return ask(m, CONTROL_BALLOON, (message_put_fn *)control_balloon_put, &b, NULL, 0, NULL, NULL, f);
}

/* --- hostile ------------------------------------------------------------------------------------------------------- */

/* How far the guest says it came: the last number in its log. */
static unsigned long progress(struct machine *m)
{
	char text[8192], *at;
	off_t size = lseek(m->log_fd, 0, SEEK_END), from = size > (off_t)sizeof(text) - 1 ? size - (off_t)sizeof(text) + 1 : 0;
	ssize_t n = pread(m->log_fd, text, sizeof(text) - 1, from);
	unsigned long v = 0;

	text[n < 0 ? 0 : n] = '\0';
	for (at = text; (at = strstr(at, "hostile: ")); at++)
		if (at[9] >= '0' && at[9] <= '9')
			v = strtoul(at + 9, NULL, 10);
	return v;
}

/* Pause, save, fork; a child of the fork runs a while. Refusals are answers, too: the guest may end at any moment. */
static void disturb(struct machine *m, unsigned int what)
{
	int memory, state, status, fds[3];
	struct control_forked forked;
	struct machine child;
	struct fault f;
	size_t n;

	if (ask_plain(m, CONTROL_STAT, &f) == RC_CLOSED || balloon(m, what % MEMORY_MIB, &f) == RC_CLOSED)
		return;
	if (balloon(m, MEMORY_MIB + 1, &f) == RC_OK)
		bad("a balloon larger than memory was accepted");
	switch (what % 3) {
	case 0:
		if (!ask_plain(m, CONTROL_PAUSE, &f))
			resume(m, &f);
		break;
	case 1:
		memory = memfd_create("memory", 0);
		state = memfd_create("state", 0);
		if (!ask_plain(m, CONTROL_PAUSE, &f)) {
			if (ask(m, CONTROL_SAVE, NULL, NULL, (int[]){ memory, state }, 2, NULL, NULL, &f) == RC_OK &&
			    lseek(state, 0, SEEK_END) < 1000)
				bad("a save left no state");
			resume(m, &f);
		}
		close(memory);
		close(state);
		break;
	default:
		if (ask(m, CONTROL_FORK, NULL, NULL, NULL, 0, (message_get_fn *)control_forked_get, &forked, &f))
			break;
		n = call.n_fds;
		memcpy(fds, call.fds, MIN_OF(n, ARRAY_SIZE(fds)) * sizeof(int));
		resume(m, &f);
		child = process_new(NULL);
		/* What a hostile guest left in its devices may be refused by the child's load, never more. */
		if (!start(&child, forked.layers, "", fds, n, &f) && ended(&child, 300, &status) && WIFSIGNALED(status))
			bad("a child of the hostile machine ended by signal %d", WTERMSIG(status));
		else if (ended(&child, 0, &status) && WIFSIGNALED(status))
			bad("a child of the hostile machine ended by signal %d at its start", WTERMSIG(status));
		machine_kill(&child);
		fds_close(fds, n);
	}
}

static void report(struct machine *m, unsigned int seed, int status)
{
	char text[TEXT_MAX];

	last_words(m, text, sizeof(text));
	if (WIFSIGNALED(status) || WEXITSTATUS(status) > 1)
		bad("seed %u: the VMM ended by %s %d: %s", seed, WIFSIGNALED(status) ? "signal" : "status",
		    WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status), text);
	else
		printf("  seed %u ended its machine after %lu steps: %s\n", seed, progress(m), text);
}

static void hostile(unsigned int seconds, unsigned int seed)
{
	struct machine witness = process_new(NULL), m;
	uint64_t end = now_ms() + seconds * 1000ull;
	unsigned int machines = 0, disturbed = 0;
	unsigned long steps = 0;
	struct fault f = { 0 };
	int status;

	printf("  seeds from %u\n", seed);
	/* The witness runs the same kernel, but sleeps. */
	if (start_cold(&witness, 0, " sleep=1", &f)) {
		bad("the witness does not start: %s", f.text);
		return;
	}
	for (; now_ms() < end; seed++) {
		bool gone = false;

		m = process_new(NULL);
		if (start_cold(&m, seed, "", &f)) {
			bad("seed %u: start: %s", seed, f.text);
			machine_kill(&m);
			break;
		}
		machines++;
		/* Several seeds in the time, even if none ends itself. */
		for (uint64_t until = MIN_OF(end, now_ms() + seconds * 250ull); !gone && now_ms() < until;) {
			gone = ended(&m, 700, &status);
			if (!gone)
				disturb(&m, disturbed++);
		}
		steps += progress(&m);
		if (gone || ended(&m, 0, &status)) {
			report(&m, seed, status);
			machine_close(&m);
		} else {
			machine_kill(&m);
		}
	}
	if (ended(&witness, 0, &status) || state_of(&witness) != 1 /* VM_RUNNING */)
		bad("the other machine has ended or stopped");
	machine_kill(&witness);
	printf("  %u machines, %u times paused, saved or forked, at least %lu steps\n", machines, disturbed, steps);
	if (!machines || !disturbed || !steps)
		bad("nothing was done");
	if (!failures)
		printf("ok a hostile guest reaches nothing but its own end\n");
}

/* --- nth ----------------------------------------------------------------------------------------------------------- */

static size_t entries(pid_t pid)
{
	char path[64];
	DIR *d;
	size_t n = 0;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
	d = opendir(path);
	while (d && readdir(d))
		n++;
	if (d)
		closedir(d);
	return n;
}

struct forked {
	int fds[3];
	size_t n;
	uint32_t layers;
};

/* A start whose n-th call fails. False: n was beyond the last. */
static bool start_nth(const char *what, unsigned long n, const struct forked *from, unsigned int *tolerated)
{
	char text[TEXT_MAX], number[24];
	struct machine m;
	struct fault f = { 0 };
	bool happened;
	int status = 0;
	enum rc rc;

	snprintf(number, sizeof(number), "%lu", n);
	m = process_new(number);
	rc = from ? start(&m, from->layers, "", from->fds, from->n, &f) : start_cold(&m, 0, " sleep=1", &f);
	if (rc) {
		if (!ended(&m, 20000, &status))
			bad("%s, failure %lu: the process of a machine that did not start lives on", what, n);
		else if (WIFSIGNALED(status) || WEXITSTATUS(status) > 1)
			bad("%s, failure %lu: ended by %s %d", what, n, WIFSIGNALED(status) ? "signal" : "status",
			    WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
	}
	last_words(&m, text, sizeof(text));
	if (failures)
		printf("  it said: %s\n", text);
	happened = strstr(text, "nth: ") != NULL;
	if (rc && !happened)
		bad("%s, failure %lu: it failed by itself: %s %s", what, n, f.text, text);
	if (!rc && happened) {
		if (getenv("VMM_BED_VERBOSE"))
			printf("  %s, failure %lu tolerated: %s", what, n, strstr(text, "nth: ") + 5);
		++*tolerated;
	}
	if (!rc && state_of(&m) != 1)
		bad("%s, failure %lu: started, and does not run", what, n);
	if (rc && !failures && !WIFEXITED(status)) {
		machine_kill(&m);
	} else if (rc) {
		machine_close(&m);
	} else {
		machine_kill(&m);
	}
	return happened || rc;
}

/* Out of time, it says how far it came and no more. */
static void said(const char *what, unsigned long n, unsigned long reported, uint64_t end)
{
	if (!failures)
		printf("ok %s: %s%lu calls fail once, %lu of them reported\n", what, now_ms() >= end ? "out of time, the first " : "all ", n,
		       reported);
}

static void every_start(const char *what, const struct forked *from, uint64_t end)
{
	unsigned int tolerated = 0;
	unsigned long n = getenv("VMM_BED_FROM") ? strtoul(getenv("VMM_BED_FROM"), NULL, 10) : 1;

	while (!failures && now_ms() < end && start_nth(what, n, from, &tolerated))
		n++;
	if (n < 20)
		bad("%s: only %lu calls could fail", what, n - 1);
	said(what, n - 1, n - 1 - tolerated, end);
}

static void arm(struct machine *m, unsigned long n)
{
	union sigval v = { .sival_int = (int)n };

	if (sigqueue(m->pid, SIGUSR2, v) < 0)
		die("sigqueue");
}

static enum rc fork_once(struct machine *m, struct forked *ret, struct fault *f)
{
	struct control_forked forked;
	enum rc rc = ask(m, CONTROL_FORK, NULL, NULL, NULL, 0, (message_get_fn *)control_forked_get, &forked, f);

	if (rc)
		return rc;
	ret->n = MIN_OF(call.n_fds, ARRAY_SIZE(ret->fds));
	memcpy(ret->fds, call.fds, ret->n * sizeof(int));
	ret->layers = forked.layers;
	return resume(m, f);
}

static enum rc save_once(struct machine *m, struct fault *f)
{
	int memory = memfd_create("memory", 0), state = memfd_create("state", 0);
	enum rc rc = ask(m, CONTROL_SAVE, NULL, NULL, (int[]){ memory, state }, 2, NULL, NULL, f);

	close(memory);
	close(state);
	return rc;
}

/* In a machine that lives: fork, or save of it while it is paused. */
static void every_in_life(const char *what, struct machine *m, bool save, uint64_t end)
{
	unsigned long n, failed = 0;
	size_t fds = entries(m->pid);
	struct fault f;

	for (n = 1; !failures && now_ms() < end; n++) {
		struct forked got = { .n = 0 };
		char text[TEXT_MAX];
		enum rc rc;

		if (save && ask_plain(m, CONTROL_PAUSE, &f)) {
			bad("%s, failure %lu: cannot be paused: %s", what, n, f.text);
			break;
		}
		arm(m, n);
		rc = save ? save_once(m, &f) : fork_once(m, &got, &f);
		arm(m, 0);
		fds_close(got.fds, got.n);
		if (save && resume(m, &f))
			bad("%s, failure %lu: cannot be resumed: %s", what, n, f.text);
		if (state_of(m) != 1)
			bad("%s, failure %lu: the machine does not run any more (%s)", what, n, f.text);
		if (entries(m->pid) != fds)
			bad("%s, failure %lu: %zu descriptors before, %zu after", what, n, fds, entries(m->pid));
		failed += rc != RC_OK;
		last_words(m, text, sizeof(text));
		if (!strstr(text, "nth: ")) {
			if (rc)
				bad("%s, failure %lu: it failed by itself: %s", what, n, f.text);
			break;
		}
	}
	if (failed < 10)
		bad("%s: only %lu calls could fail", what, failed);
	said(what, n - 1, failed, end);
}

static void nth(unsigned int seconds)
{
	uint64_t begin = now_ms(), quarter = seconds * 250ull;
	struct forked family = { .n = 0 };
	struct machine parent = process_new(NULL);
	struct fault f = { 0 };

	if (start_cold(&parent, 0, " sleep=1", &f) || fork_once(&parent, &family, &f)) {
		bad("the parent does not start: %s", f.text);
		return;
	}
	every_in_life("fork", &parent, false, begin + quarter);
	every_in_life("save", &parent, true, begin + 2 * quarter);
	every_start("restore", &family, begin + 3 * quarter);
	every_start("cold start", NULL, begin + 4 * quarter);
	if (state_of(&parent) != 1)
		bad("the parent does not run any more");
	machine_kill(&parent);
	fds_close(family.fds, family.n);
}

/* --- balloon ------------------------------------------------------------------------------------------------------- */

/* What it said before it went wrong. */
static void told(struct machine *m)
{
	char text[TEXT_MAX];
	off_t size = lseek(m->log_fd, 0, SEEK_END);
	ssize_t n = pread(m->log_fd, text, sizeof(text), MAX_OF(size - (off_t)sizeof(text), 0));

	printf("its console's end:\n%.*s\n", (int)MAX_OF(n, 0), text);
	last_words(m, text, sizeof(text));
	printf("its last words: %s\n", text);
}

static bool until(struct machine *m, uint64_t end, const char *what, uint64_t reported_mib, uint32_t mib)
{
	struct control_stat s = { 0 };
	struct timespec wait = { 0, 200000000 };
	uint64_t begin = now_ms();
	struct fault f;

	while (now_ms() < end) {
		if (ask(m, CONTROL_STAT, NULL, NULL, NULL, 0, (message_get_fn *)control_stat_get, &s, &f)) {
			bad("%s: %s", what, f.text);
			told(m);
			return false;
		}
		if (s.reported_bytes >> 20 >= reported_mib && s.balloon_pages == mib << 8) {
			printf("ok balloon: %s, after %llu ms; %llu MiB reported in all\n", what,
			       (unsigned long long)(now_ms() - begin), (unsigned long long)s.reported_bytes >> 20);
			return true;
		}
		nanosleep(&wait, NULL);
	}
	bad("%s: not in time; %llu MiB reported, %u pages in the balloon", what, (unsigned long long)s.reported_bytes >> 20,
	    s.balloon_pages);
	told(m);
	return false;
}

static int open_in(const char *dir, const char *name)
{
	char path[512];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		die(path);
	return fd;
}

static void balloons(const char *image, const char *overlay, unsigned int seconds)
{
	int last[] = { open_in(image, "kernel"), open_in(image, "initrd") };
	uint64_t end = now_ms() + seconds * 1000ull;
	struct machine m;
	struct fault f;

	image_fd = open_in(image, "root.erofs");
	memory_mib = 384;
	m = process_new(NULL);
	close(m.disk_fd);
	m.disk_fd = open(overlay, O_RDWR | O_CLOEXEC);
	if (m.disk_fd < 0)
		die(overlay);
	if (start(&m, 0, "console=ttyS0 quiet panic=-1 reboot=k cryptomgr.notests nestbox.root=image", last, 2, &f))
		bad("the guest image does not start: %s", f.text);
	/* More than a hundred MiB of 384 are free after the boot, in large blocks. */
	else if (until(&m, end, "free memory is reported by itself", 100, 0) && !balloon(&m, 32, &f) &&
		 until(&m, end, "32 MiB are given up when asked for", 100, 32) && !balloon(&m, 0, &f))
		until(&m, end, "and taken back", 100, 0);
	machine_kill(&m);
	fds_close(last, 2);
}

int main(int argc, char **argv)
{
	unsigned int seconds = 60, seed = (unsigned int)time(NULL) % 100000;
	int c;

	setvbuf(stdout, NULL, _IOLBF, 0);
	while ((c = getopt(argc, argv, "t:s:")) != -1)
		switch (c) {
		case 't': seconds = (unsigned int)atoi(optarg); break;
		case 's': seed = (unsigned int)atoi(optarg); break;
		default: return 2;
		}
	if (argc - optind < 3 || argc - optind != (strcmp(argv[optind], "balloon") ? 3 : 4)) {
		fputs("usage: vmm-bed [-t SECONDS] [-s SEED] hostile|nth VMM HOSTILE.ELF, or balloon VMM DIRECTORY OVERLAY\n", stderr);
		return 2;
	}
	vmm = argv[optind + 1];
	kernel_path = argv[optind + 2];
	/* Taps of its own, in a network of its own. */
	if (unshare(CLONE_NEWNET) < 0)
		die("network namespace");
	if (!strcmp(argv[optind], "hostile"))
		hostile(seconds, seed);
	else if (!strcmp(argv[optind], "balloon"))
		balloons(kernel_path, argv[optind + 3], seconds);
	else
		nth(seconds);
	return failures != 0;
}
