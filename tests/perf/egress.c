/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the egress proxy costs: the same transfers from a guest's namespace to the same server, through the kernel's NAT in one
 * machine's namespace and through nestbox-egress in another's, one after the other in one run. The way to both is the same
 * (tests/it/guestns.h: taps and a process that carries frames), so what is compared is NAT and proxy, and not what a virtual
 * machine adds. Prints JSON rows: figure, way, the median of its rounds, that of its reference, the median of the rounds' ratios (a way and
 * its reference are measured one after the other, so a busy moment of the host spoils one round and not the ratio), and, of single
 * exchanges or streams of all rounds, how many there were and their 50th, 95th and 99th percentile in microseconds; and what the daemon
 * grew by for each of the 500 connections when they were open and quiet. A figure ends with the round in which its time is used up, so
 * all of it takes four minutes at most, however slow the host. Arguments: a part of a figure's name, a part of a way's name.
 */
#include "base/cleanup.h"
#include "base/fd.h"
#include "tests/it/egressbed.h"
#include "tests/lib/seal.h"
#include "vmm/egress/ca.h"
#include "vmm/egress/dns.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <openssl/pem.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define PLAIN 8080
#define CONNECTIONS 120      /* below what a sandbox may open at once */
#define REQUESTS 600
#define STREAM_BYTES (24u << 20)
#define STREAMS 500
#define STREAM_EACH (64u << 10)
#define FIGURE_S 48          /* no new round of a figure after this */
#define NAT_ADDR "93.184.216.77"

static const uint8_t key[EGRESS_KEY_BYTES] = "0123456789abcdef0123456789abcde", root_key[EGRESS_KEY_BYTES] = "roots";
static struct bed bed, nat;
static struct ca *root;
static SSL_CTX *client_ctx, *server_ctx;
static uint8_t junk[65536];
static pthread_mutex_t ca_lock = PTHREAD_MUTEX_INITIALIZER;

struct way {
	const char *name, *host, *reference;
	struct bed *bed;
	uint16_t port;
};

static const struct way ways[] = {
	{ "tcp, kernel NAT", "web.test", NULL, &nat, PLAIN },
	{ "tcp, proxy", "web.test", "tcp, kernel NAT", &bed, PLAIN },
	{ "tls, kernel NAT", "web.test", NULL, &nat, 443 },
	{ "tls, proxy", "web.test", "tls, kernel NAT", &bed, 443 },
	{ "tls, intercepted", "api.test", "tls, kernel NAT", &bed, 443 },
};
#define WAYS (sizeof(ways) / sizeof(ways[0]))

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static double seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* User and system time of the daemon so far. */
static double daemon_seconds(void)
{
	char path[64], text[512] = "";
	unsigned long user = 0, sys = 0;
	const char *p;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/stat", bed.daemon);
	f = fopen(path, "re");
	if (!f || !fgets(text, sizeof(text), f))
		die(path);
	fclose(f);
	p = strrchr(text, ')');
	if (!p || sscanf(p + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &sys) != 2)
		die("stat");
	return (double)(user + sys) / (double)sysconf(_SC_CLK_TCK);
}

static long daemon_kib(void)
{
	char path[64], line[256];
	long kib = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/status", bed.daemon);
	f = fopen(path, "re");
	if (!f)
		die(path);
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "VmRSS: %ld", &kib) == 1)
			break;
	fclose(f);
	return kib;
}

/* --- one connection, in the clear or not --------------------------------------------------------------------- */

struct peer {
	int fd;
	SSL *ssl;
};

static ssize_t peer_read(struct peer *p, void *mem, size_t n)
{
	return p->ssl ? SSL_read(p->ssl, mem, (int)n) : recv(p->fd, mem, n, 0);
}

static bool peer_write(struct peer *p, const void *mem, size_t n)
{
	return p->ssl ? SSL_write(p->ssl, mem, (int)n) == (int)n : fd_write_all(p->fd, mem, n, now_ms() + 60000, NULL) == RC_OK;
}

static void peer_close(struct peer *p)
{
	SSL_free(p->ssl);
	close_fd(&p->fd);
}

static void patience(int fd)
{
	struct timeval t = { 120, 0 };
	int on = 1;

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof(t));
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

/* --- the server: "GET /<bytes>" ------------------------------------------------------------------------------ */

static bool serve_one(struct peer *p)
{
	char head[2048], answer[128];
	size_t n = 0, left;
	ssize_t k;

	do {
		k = peer_read(p, head + n, sizeof(head) - 1 - n);
		if (k <= 0)
			return false;
		n += (size_t)k;
		head[n] = '\0';
	} while (!strstr(head, "\r\n\r\n"));
	left = strtoul(head + 5, NULL, 10);
	k = snprintf(answer, sizeof(answer), "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n", left);
	if (left < 512) {
		memset(head, 'x', left);
		memmove(head + k, head, left);
		memcpy(head, answer, (size_t)k);
		return peer_write(p, head, (size_t)k + left);
	}
	if (!peer_write(p, answer, (size_t)k))
		return false;
	while (left) {
		n = MIN_OF(left, sizeof(junk));
		if (!peer_write(p, junk, n))
			return false;
		left -= n;
	}
	return true;
}

static void *serve(void *arg)
{
	struct peer p = { .fd = (int)((intptr_t)arg >> 1) };

	patience(p.fd);
	if ((intptr_t)arg & 1) {
		p.ssl = SSL_new(server_ctx);
		/* One of the two names; the client that sees it does not look, the proxy asks for api.test. */
		pthread_mutex_lock(&ca_lock);
		ca_use(root, p.ssl, "api.test", NULL);
		pthread_mutex_unlock(&ca_lock);
		SSL_set_fd(p.ssl, p.fd);
		if (SSL_accept(p.ssl) != 1) {
			peer_close(&p);
			return NULL;
		}
	}
	while (serve_one(&p))
		;
	peer_close(&p);
	return NULL;
}

static void *listen_on(void *arg)
{
	int port = (int)(intptr_t)arg, l = bed_listen(&bed, BED_WEB, (uint16_t)port);
	pthread_attr_t small;

	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 256u << 10);
	pthread_attr_setdetachstate(&small, PTHREAD_CREATE_DETACHED);
	for (;;) {
		int fd = accept4(l, NULL, NULL, SOCK_CLOEXEC);
		pthread_t t;

		if (fd < 0 || pthread_create(&t, &small, serve, (void *)((intptr_t)fd << 1 | (port == 443))))
			die("accept");
	}
	return NULL;
}

/* --- the client ---------------------------------------------------------------------------------------------- */

static bool open_way(const struct way *w, const char *addr, struct peer *p)
{
	*p = (struct peer){ .fd = guestns_connect(&w->bed->guest, addr, w->port, 60000) };
	if (p->fd < 0)
		return false;
	patience(p->fd);
	if (w->port != 443)
		return true;
	p->ssl = SSL_new(client_ctx);
	SSL_set_fd(p->ssl, p->fd);
	SSL_set_tlsext_host_name(p->ssl, w->host);
	if (SSL_connect(p->ssl) == 1)
		return true;
	peer_close(p);
	return false;
}

static bool ask(struct peer *p, const char *host, size_t bytes, void *mem, size_t mem_n)
{
	char request[256], *end;
	int n = snprintf(request, sizeof(request), "GET /%zu HTTP/1.1\r\nHost: %s\r\n\r\n", bytes, host);
	size_t have = 0, got;
	bool chunked;
	ssize_t k;

	if (!peer_write(p, request, (size_t)n))
		return false;
	do {
		k = peer_read(p, (char *)mem + have, mem_n - 1 - have);
		if (k <= 0)
			return false;
		have += (size_t)k;
		((char *)mem)[have] = '\0';
		end = strstr(mem, "\r\n\r\n");
	} while (!end);
	if (strncmp(mem, "HTTP/1.1 200", 12))
		return false;
	/* The proxy frames bodies as chunks: their lines count as what they are, overhead. */
	chunked = strstr(mem, "chunked") && strstr(mem, "chunked") < end;
	got = have - (size_t)(end + 4 - (char *)mem);
	while (chunked ? have < 5 || memcmp((char *)mem + have - 5, "0\r\n\r\n", 5) != 0 : got < bytes) {
		size_t keep = chunked ? MIN_OF(have, (size_t)4) : 0;

		memmove(mem, (char *)mem + have - keep, keep);
		k = peer_read(p, (char *)mem + keep, mem_n - 1 - keep);
		if (k <= 0)
			return false;
		have = keep + (size_t)k;
		got += (size_t)k;
	}
	return chunked || got == bytes;
}

static void address_of(const struct way *w, char addr[16])
{
	if (w->bed == &nat)
		strcpy(addr, BED_WEB);
	else if (bed_dns(w->bed, false, w->host, DNS_TYPE_A, addr, NULL, NULL))
		die("dns");
}

#define SAMPLES_MAX 4096
static double samples[WAYS][SAMPLES_MAX]; /* seconds */
static size_t n_samples[WAYS];

static void sample(const struct way *w, double took)
{
	size_t i = (size_t)(w - ways);

	if (n_samples[i] < SAMPLES_MAX)
		samples[i][n_samples[i]++] = took;
}

static double connections(const struct way *w, const char *addr)
{
	char mem[4096];
	double start = seconds();

	for (int i = 0; i < CONNECTIONS; i++) {
		double began = seconds();
		struct peer p;

		if (!open_way(w, addr, &p) || !ask(&p, w->host, 1, mem, sizeof(mem)))
			die(w->name);
		peer_close(&p);
		sample(w, seconds() - began);
	}
	return CONNECTIONS / (seconds() - start);
}

static int by_size(const void *a, const void *b)
{
	return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b);
}

/* Median, in microseconds. */
static double latency(const struct way *w, const char *addr)
{
	static double took[REQUESTS];
	char mem[4096];
	struct peer p;

	if (!open_way(w, addr, &p))
		die(w->name);
	for (int i = 0; i < REQUESTS; i++) {
		double start = seconds();

		if (!ask(&p, w->host, 64, mem, sizeof(mem)))
			die(w->name);
		took[i] = seconds() - start;
		sample(w, took[i]);
	}
	peer_close(&p);
	qsort(took, REQUESTS, sizeof(took[0]), by_size);
	return took[REQUESTS / 2] * 1e6;
}

static double one_stream(const struct way *w, const char *addr)
{
	static char mem[65537];
	double start;
	struct peer p;

	if (!open_way(w, addr, &p))
		die(w->name);
	start = seconds();
	if (!ask(&p, w->host, STREAM_BYTES, mem, sizeof(mem)))
		die(w->name);
	start = seconds() - start;
	sample(w, start);
	peer_close(&p);
	return STREAM_BYTES / start / (1 << 20);
}

struct stream {
	const struct way *w;
	struct peer p;
	bool ok;
	double took;
};

static void *stream_run(void *arg)
{
	struct stream *s = arg;
	char mem[16384];

	s->took = seconds();
	s->ok = ask(&s->p, s->w->host, STREAM_EACH, mem, sizeof(mem));
	s->took = seconds() - s->took;
	return NULL;
}

static double grew_kib[WAYS]; /* for each open connection, first round */

static double many_streams(const struct way *w, const char *addr)
{
	static struct stream s[STREAMS];
	static pthread_t t[STREAMS];
	pthread_attr_t small;
	double start;
	long before;

	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 128u << 10);
	before = daemon_kib();
	for (int i = 0; i < STREAMS; i++) {
		s[i] = (struct stream){ .w = w };
		/* A sandbox opens 200 a second once its first 400 are used. */
		if (w->bed == &bed)
			usleep(6000);
		if (!open_way(w, addr, &s[i].p))
			die(w->name);
	}
	if (!grew_kib[w - ways] && w->bed == &bed)
		grew_kib[w - ways] = (double)(daemon_kib() - before) / STREAMS;
	start = seconds();
	for (int i = 0; i < STREAMS; i++)
		if (pthread_create(&t[i], &small, stream_run, &s[i]))
			die("pthread_create");
	for (int i = 0; i < STREAMS; i++) {
		pthread_join(t[i], NULL);
		if (!s[i].ok)
			die(w->name);
	}
	start = seconds() - start;
	for (int i = 0; i < STREAMS; i++) {
		sample(w, s[i].took);
		peer_close(&s[i].p);
	}
	return (double)STREAMS * STREAM_EACH / start / (1 << 20);
}

static const struct figure {
	const char *name, *unit;
	double (*run)(const struct way *, const char *);
	bool pause;
	int rounds;
} figures[] = {
	{ "connection, request, answer, close", "per s", connections, true, 5 },
	{ "request on an open connection", "us", latency, false, 5 },
	{ "one stream", "MiB/s", one_stream, false, 5 },
	{ "500 streams together", "MiB/s", many_streams, true, 3 },
};
#define ROUNDS_MAX 5

static double middle(const double *from, int n)
{
	double sorted[ROUNDS_MAX];

	memcpy(sorted, from, (size_t)n * sizeof(*from));
	qsort(sorted, (size_t)n, sizeof(*sorted), by_size);
	return sorted[n / 2];
}

static double percentile(size_t way, size_t of_100)
{
	size_t n = n_samples[way];

	return n ? samples[way][MIN_OF(n * of_100 / 100, n - 1)] * 1e6 : 0;
}

static void print_row(const struct figure *f, int rounds, size_t k, double (*value)[ROUNDS_MAX], double cpu, const char *comma)
{
	double ratios[ROUNDS_MAX] = { 0 };
	size_t j = 0;

	while (ways[k].reference && strcmp(ways[j].name, ways[k].reference))
		j++;
	for (int r = 0; r < rounds; r++)
		ratios[r] = value[k][r] / value[j][r];
	qsort(samples[k], n_samples[k], sizeof(samples[k][0]), by_size);
	printf("%s{\"figure\":\"%s\",\"unit\":\"%s\",\"way\":\"%s\",\"value\":%.1f,\"reference\":%.1f,\"ratio\":%.3f,\"proxy_cpu_s\":%.2f,"
	       "\"rounds\":%d,\"n\":%zu,\"p50_us\":%.0f,\"p95_us\":%.0f,\"p99_us\":%.0f,\"kib_each\":%.1f}", comma, f->name, f->unit, ways[k].name,
	       middle(value[k], rounds), ways[k].reference ? middle(value[j], rounds) : 0, ways[k].reference ? middle(ratios, rounds) : 0,
	       cpu / rounds, rounds, n_samples[k], percentile(k, 50), percentile(k, 95), percentile(k, 99), f->run == many_streams ? grew_kib[k] : 0);
	fflush(stdout);
}

/* only: a part of a figure's name, or NULL for all. */
static void measure(const char *only, const char *way)
{
	const char *comma = "";

	printf("[\n");
	for (size_t i = 0; i < sizeof(figures) / sizeof(figures[0]); i++) {
		const struct figure *f = &figures[i];
		double value[WAYS][ROUNDS_MAX] = { 0 }, cpu[WAYS] = { 0 }, began = seconds();
		int rounds = 0;

		if (only && !strstr(f->name, only))
			continue;
		memset(n_samples, 0, sizeof(n_samples));
		for (int r = 0; r < f->rounds && (!r || seconds() - began < FIGURE_S); r++, rounds++)
			for (size_t k = 0; k < WAYS; k++) {
				char addr[16];
				double before;

				if (way && !strstr(ways[k].name, way))
					continue;
				address_of(&ways[k], addr);
				before = daemon_seconds();
				value[k][r] = f->run(&ways[k], addr);
				cpu[k] += daemon_seconds() - before;
				fprintf(stderr, "%s, %s: %.1f %s\n", f->name, ways[k].name, value[k][r], f->unit);
				if (f->pause && ways[k].bed == &bed)
					sleep(1); /* the rate of new connections recovers */
			}
		for (size_t k = 0; k < WAYS; k++) {
			print_row(f, rounds, k, value, cpu[k], comma);
			comma = ",\n";
		}
	}
	printf("\n]\n");
}

/* --- set up -------------------------------------------------------------------------------------------------- */

static void prepare(const char *dir)
{
	char path[256];
	FILE *f;

	ca_new(root_key, "root", &root, NULL);
	snprintf(path, sizeof(path), "%s/keys", dir);
	mkdir(path, 0755);
	snprintf(path, sizeof(path), "%s/keys/egress.key", dir);
	f = fopen(path, "we");
	fwrite(key, 1, sizeof(key), f);
	fclose(f);
	snprintf(path, sizeof(path), "%s/roots.pem", dir);
	f = fopen(path, "we");
	fputs(ca_pem(root), f);
	fclose(f);
}

/* The same machine's network with a way out, as a host without a proxy would make it. */
static void nat_up(void)
{
	_cleanup_fd_ int own = testns_own();
	char cmd[1024];
	struct fault f;

	nat = bed;
	if (net_create("sbx_nat", &nat.net, &f) || guestns_start(&nat.guest, nat.net.tap_fd, nat.net.mgmt_fd, &f))
		die(f.text);
	testns_enter(nat.net.ns_fd);
	snprintf(cmd, sizeof(cmd),
		 "nft delete table inet nestbox && ip link add nat0 type veth peer name nat1 && ip link set nat1 netns /proc/%d/fd/%d && "
		 "ip addr add " NAT_ADDR "/32 dev nat0 && ip link set nat0 up && ip route add " BED_WEB "/32 dev nat0 && "
		 "echo 1 >/proc/sys/net/ipv4/ip_forward && nft add table ip nat && "
		 "nft 'add chain ip nat out { type nat hook postrouting priority 100; }' && nft add rule ip nat out oifname nat0 masquerade",
		 getpid(), bed.world_ns);
	if (system(cmd))
		die("nat");
	testns_enter(bed.world_ns);
	if (system("ip link set nat1 up && ip route add " NAT_ADDR "/32 dev nat1 && "
		   "echo 1 >/proc/sys/net/ipv4/conf/nat1/proxy_arp 2>/dev/null; true"))
		die("nat");
	testns_enter(own);
}

int main(int argc, char **argv)
{
	static char policy[2 * SEAL_MAX], sealed[SEAL_MAX], pem[BROKER_CA_MAX];
	pthread_t t;

	if (!bed_up(&bed, NULL, prepare)) {
		fprintf(stderr, "needs root and /dev/net/tun\n");
		return 2;
	}
	snprintf(policy, sizeof(policy), POLICY_HEAD "\ndefault public\nsecret KEY nbsecret_0123456789abcdef %s api.test\n",
		 seal(key, "sbx_test", "KEY", "sk-real-value-0042", sealed));
	bed_send_vm(&bed, &bed.net, policy);
	if (!bed_ca(&bed, pem) || !*pem)
		die("no certificate authority");
	client_ctx = SSL_CTX_new(TLS_client_method());
	server_ctx = SSL_CTX_new(TLS_server_method());
	nat_up();
	pthread_create(&t, NULL, listen_on, (void *)(intptr_t)PLAIN);
	pthread_create(&t, NULL, listen_on, (void *)(intptr_t)443);
	usleep(200000);
	measure(argc > 1 ? argv[1] : NULL, argc > 2 ? argv[2] : NULL);
	fflush(stdout);
	guestns_stop(&nat.guest);
	net_destroy(&nat.net);
	bed_down(&bed);
	return 0;
}
