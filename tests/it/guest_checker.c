/* SPDX-License-Identifier: Apache-2.0 */
/*
 * guest-checker: what runs in a machine while it is saved, restored and forked, and notices if one byte, tick or flush is wrong.
 *
 *   guest-checker run PORT MIB FILE   threads that check without end; 127.0.0.1:PORT answers each line with the counts so far
 *   guest-checker touch MIB [MIB/s]   writes that much memory, says "touched", then rewrites it at that rate (0: sleeps)
 *   guest-checker rand DEVICE N       N reads of 4 KiB at random places, past the cache; prints microseconds
 *   guest-checker seq DEVICE MIB      that much in reads of 1 MiB, into pages that do not lie side by side; prints microseconds
 *   guest-checker sink ADDR PORT      reads from there to its end; prints bytes and microseconds
 *   guest-checker source ADDR PORT MIB  writes that much there
 *
 * Memory: each page holds its number, its version and bytes that follow from both; a second array says which version must be
 * there. Disk: the same with blocks of a file, written, flushed, read past the cache. Clock: neither clock ever goes back;
 * a periodic timer's ticks are as many as the time that passed has periods; a single timer fires once.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define BLOCK 16384
#define BLOCKS 64
#define TICK_NS 50000000ull
#define ONCE_NS 300000000ull

static atomic_ulong n_mem, n_disk, n_clock, n_timer, n_once, e_mem, e_disk, e_clock, e_timer, e_once, late_ms;

static void fatal(const char *what)
{
	fprintf(stderr, "guest-checker: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now_ns(clockid_t c)
{
	struct timespec t;

	clock_gettime(c, &t);
	return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static uint64_t mix(uint64_t x)
{
	x ^= x >> 30;
	x *= 0xbf58476d1ce4e5b9ull;
	x ^= x >> 27;
	x *= 0x94d049bb133111ebull;
	return x ^ x >> 31;
}

static void fill(uint64_t *p, size_t bytes, uint64_t index, uint64_t version)
{
	uint64_t x = mix(index << 32 ^ version);

	for (size_t i = 0; i < bytes / 8; i++)
		p[i] = x += 0x9e3779b97f4a7c15ull;
}

static int right(const uint64_t *p, size_t bytes, uint64_t index, uint64_t version)
{
	uint64_t x = mix(index << 32 ^ version);

	for (size_t i = 0; i < bytes / 8; i++)
		if (p[i] != (x += 0x9e3779b97f4a7c15ull))
			return 0;
	return 1;
}

static void wait_us(unsigned int us)
{
	struct timespec t = { 0, us * 1000l };

	nanosleep(&t, NULL);
}

/* --- run --- */
static struct {
	size_t pages;
	uint64_t *memory;
	uint32_t *version;
	int file;
} c;

static void *check_memory(void *arg)
{
	uint64_t x = 1;

	(void)arg;
	for (;; x++) {
		size_t i = mix(x) % c.pages;
		uint64_t *p = c.memory + i * PAGE / 8;

		if (!right(p, PAGE, i, c.version[i])) {
			n_mem++;
			e_mem++;
			fprintf(stderr, "page %zu is not version %u\n", i, c.version[i]);
		}
		if (x & 1)
			fill(p, PAGE, i, ++c.version[i]);
		n_mem++;
		if (!(x & 15))
			wait_us(10000);
	}
	return NULL;
}

static void *check_disk(void *arg)
{
	uint32_t version[BLOCKS] = { 0 };
	uint64_t *b = NULL, x = 7;

	(void)arg;
	if (posix_memalign((void **)&b, PAGE, BLOCK))
		fatal("memory");
	for (;; x++) {
		size_t i = mix(x) % BLOCKS;

		fill(b, BLOCK, i, version[i] + 1);
		if (pwrite(c.file, b, BLOCK, (off_t)(i * BLOCK)) != BLOCK || fdatasync(c.file) < 0)
			fatal("write");
		version[i]++;
		i = mix(x + 1000000) % BLOCKS;
		if (version[i]) {
			if (pread(c.file, b, BLOCK, (off_t)(i * BLOCK)) != BLOCK)
				fatal("read");
			if (!right(b, BLOCK, i, version[i])) {
				e_disk++;
				fprintf(stderr, "block %zu is not version %u\n", i, version[i]);
			}
		}
		n_disk++;
		wait_us(30000);
	}
	return NULL;
}

static void *check_clock(void *arg)
{
	uint64_t mono = 0, real = 0;

	(void)arg;
	for (;;) {
		uint64_t m = now_ns(CLOCK_MONOTONIC), r = now_ns(CLOCK_REALTIME);

		if (m < mono) {
			e_clock++;
			fprintf(stderr, "monotonic went back by %llu ns\n", (unsigned long long)(mono - m));
		}
		if (r < real) {
			e_clock++;
			fprintf(stderr, "realtime went back by %llu ns\n", (unsigned long long)(real - r));
		}
		mono = m;
		real = r;
		n_clock++;
		if (!(n_clock & 31))
			wait_us(20000);
	}
	return NULL;
}

static void timer_set(int fd, uint64_t first, uint64_t period)
{
	struct itimerspec t = { .it_value = { (time_t)(first / 1000000000), (long)(first % 1000000000) },
				.it_interval = { (time_t)(period / 1000000000), (long)(period % 1000000000) } };

	if (timerfd_settime(fd, TFD_TIMER_ABSTIME, &t, NULL) < 0)
		fatal("timer");
}

static void *check_timer(void *arg)
{
	int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
	uint64_t start = now_ns(CLOCK_MONOTONIC), ticks = 0;

	(void)arg;
	timer_set(fd, start + TICK_NS, TICK_NS);
	for (;;) {
		uint64_t n, before = now_ns(CLOCK_MONOTONIC);

		if (read(fd, &n, sizeof(n)) != sizeof(n))
			fatal("timer");
		ticks += n;
		n_timer++;
		/* Those of all periods that were over when it was asked must be there, and none of one that is not over. */
		if (ticks < (before - start) / TICK_NS || ticks > (now_ns(CLOCK_MONOTONIC) - start) / TICK_NS) {
			e_timer++;
			fprintf(stderr, "%llu ticks after %llu ns\n", (unsigned long long)ticks,
				(unsigned long long)(now_ns(CLOCK_MONOTONIC) - start));
		}
	}
	return NULL;
}

static void *check_once(void *arg)
{
	int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);

	(void)arg;
	for (;;) {
		uint64_t n = 0, at = now_ns(CLOCK_MONOTONIC) + ONCE_NS, late;

		timer_set(fd, at, 0);
		while (read(fd, &n, sizeof(n)) < 0)
			wait_us(20000);
		late = now_ns(CLOCK_MONOTONIC);
		if (late < at || n != 1)
			e_once++;
		late = late < at ? 0 : (late - at) / 1000000;
		if (late > late_ms)
			late_ms = late;
		wait_us(20000);
		if (read(fd, &n, sizeof(n)) >= 0)
			e_once++;
		n_once++;
	}
	return NULL;
}

static void *serve(void *arg)
{
	FILE *io = fdopen((int)(intptr_t)arg, "r+");
	char line[64];

	while (io && fgets(line, sizeof(line), io)) {
		fseek(io, 0, SEEK_CUR);
		fprintf(io, "mem %lu disk %lu clock %lu timer %lu once %lu errors %lu %lu %lu %lu %lu late %lu\n", n_mem, n_disk, n_clock,
			n_timer, n_once, e_mem, e_disk, e_clock, e_timer, e_once, late_ms);
		fflush(io);
	}
	if (io)
		fclose(io);
	return NULL;
}

static void thread(void *(*fn)(void *), void *arg)
{
	pthread_t t;

	if (pthread_create(&t, NULL, fn, arg))
		fatal("thread");
	pthread_detach(t);
}

static void run(uint16_t port, size_t mib, const char *file)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;

	c.pages = mib << 20 >> 12;
	c.memory = mmap(NULL, mib << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	c.version = calloc(c.pages, sizeof(*c.version));
	c.file = open(file, O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);
	if (c.memory == MAP_FAILED || !c.version || c.file < 0 || ftruncate(c.file, BLOCK * BLOCKS) < 0)
		fatal("set-up");
	for (size_t i = 0; i < c.pages; i++)
		fill(c.memory + i * PAGE / 8, PAGE, i, 0);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0 || listen(fd, 64) < 0)
		fatal("listen");
	thread(check_memory, NULL);
	thread(check_disk, NULL);
	thread(check_clock, NULL);
	thread(check_timer, NULL);
	thread(check_once, NULL);
	puts("running");
	fflush(stdout);
	for (;;) {
		int s = accept4(fd, NULL, NULL, SOCK_CLOEXEC);

		if (s >= 0)
			thread(serve, (void *)(intptr_t)s);
	}
}

/* --- loads --- */
static volatile sig_atomic_t writing;

static void on_write(int sig)
{
	(void)sig;
	writing = 1;
}

/* One word of each page, which makes it differ from a page of zeroes; what it says is read as progress. From SIGUSR1 on it writes. */
static void touch(size_t mib, size_t rate)
{
	uint64_t *p = mmap(NULL, mib << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	size_t words = (mib << 20) / 8;

	if (p == MAP_FAILED)
		fatal("memory");
	signal(SIGUSR1, on_write);
	for (size_t i = 0; i < words; i += PAGE / 8) {
		p[i] = mix(i) | 1;
		if (!((i + PAGE / 8) * 8 % (32 << 20))) {
			printf("%zu\n", ((i + PAGE / 8) * 8) >> 20);
			fflush(stdout);
		}
	}
	printf("touched %d\n", (int)getpid());
	fflush(stdout);
	while (!writing)
		wait_us(20000);
	/* One page in a millisecond is 4 MB/s. */
	for (uint64_t x = 1;; x++) {
		for (size_t k = 0; k < rate * 1000000 / 1000 / PAGE + 1; k++)
			p[mix(x * 1000 + k) % words] ^= x;
		wait_us(1000);
	}
}

/* Engines give the same disks in another order. */
static int disk_open(const char *serial)
{
	for (char c = 'a'; c <= 'h'; c++) {
		char path[64], is[32] = "";
		int fd;

		snprintf(path, sizeof(path), "/sys/block/vd%c/serial", c);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || read(fd, is, sizeof(is) - 1) <= 0 || strcmp(is, serial)) {
			close(fd);
			continue;
		}
		close(fd);
		snprintf(path, sizeof(path), "/dev/vd%c", c);
		return open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	}
	return -1;
}

static void disk_reads(const char *serial, size_t bytes, size_t n, int at_random)
{
	int fd = disk_open(serial);
	off_t size = fd < 0 ? 0 : lseek(fd, 0, SEEK_END), at = 0;
	uint64_t t = now_ns(CLOCK_MONOTONIC);
	void *b = NULL;

	if (size < (off_t)(2 * bytes) || posix_memalign(&b, PAGE, bytes))
		fatal(serial);
	/* A kernel whose memory is still whole hands pages out one beside the other, in the order in which they are touched. */
	for (size_t i = 0; i < bytes / PAGE; i++)
		((volatile char *)b)[i * 97 % (bytes / PAGE) * PAGE] = 0;
	for (size_t i = 0; i < n; i++) {
		if (at_random)
			at = (off_t)(mix(i) % ((uint64_t)size / bytes) * bytes);
		else if (at + (off_t)bytes > size)
			at = 0;
		if (pread(fd, b, bytes, at) != (ssize_t)bytes)
			fatal("read");
		at += (off_t)bytes;
	}
	printf("%llu\n", (unsigned long long)((now_ns(CLOCK_MONOTONIC) - t) / 1000));
}

static int dial(const char *address, const char *port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port)) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (inet_pton(AF_INET, address, &a.sin_addr) != 1 || connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0)
		fatal("connect");
	return fd;
}

static void net(int fd, size_t mib)
{
	static uint8_t b[262144];
	uint64_t total = 0, t = now_ns(CLOCK_MONOTONIC);
	ssize_t n;

	if (mib)
		while (total < mib << 20 && (n = write(fd, b, sizeof(b))) > 0)
			total += (uint64_t)n;
	else
		while ((n = read(fd, b, sizeof(b))) > 0)
			total += (uint64_t)n;
	shutdown(fd, SHUT_WR);
	while (mib && read(fd, b, sizeof(b)) > 0)
		; /* until the other side has read all */
	printf("%llu %llu\n", (unsigned long long)total, (unsigned long long)((now_ns(CLOCK_MONOTONIC) - t) / 1000));
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	if (!strcmp(what, "run") && argc == 5)
		run((uint16_t)atoi(argv[2]), (size_t)atoi(argv[3]), argv[4]);
	else if (!strcmp(what, "touch") && (argc == 3 || argc == 4))
		touch((size_t)atoi(argv[2]), argc == 4 ? (size_t)atoi(argv[3]) : 0);
	else if (!strcmp(what, "rand") && argc == 4)
		disk_reads(argv[2], PAGE, (size_t)atoi(argv[3]), 1);
	else if (!strcmp(what, "seq") && argc == 4)
		disk_reads(argv[2], 1 << 20, (size_t)atoi(argv[3]), 0);
	else if (!strcmp(what, "sink") && argc == 4)
		net(dial(argv[2], argv[3]), 0);
	else if (!strcmp(what, "source") && argc == 5)
		net(dial(argv[2], argv[3]), (size_t)atoi(argv[4]));
	else {
		fprintf(stderr, "usage: guest-checker run|touch|rand|seq|sink|source ...; see the source\n");
		return 2;
	}
	return 0;
}
