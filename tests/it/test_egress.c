/* SPDX-License-Identifier: Apache-2.0 */
/* nestbox-egress as a guest, a server and a broker see it. The bed is tests/it/egressbed.h. */
#include "base/cleanup.h"
#include "base/fd.h"
#include "tests/it/egressbed.h"
#include "tests/lib/check.h"
#include "tests/lib/hello.h"
#include "vmm/egress/dns.h"
#include "vmm/egress/limits.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>

#define HEAD "nestbox-policy 1\n"
#define ORG "org acme\n"
#define PUBLIC HEAD "default public\n" ORG
#define NOTHING HEAD "default none\n" ORG

static struct bed bed;

static bool up(const char *policy)
{
	static bool asked, can;

	if (!asked) {
		can = bed_up(&bed, NULL, NULL);
		asked = true;
	}
	if (can) {
		bed_send_vm(&bed, &bed.net, policy);
		bed_settle(&bed);
	}
	return can;
}

#define UP(policy)                                                \
	do {                                                      \
		if (!up(policy))                                  \
			SKIP("needs root and /dev/net/tun");      \
	} while (0)

static bool pass(int from, int to, const char *text)
{
	char got[64] = "";
	uint64_t until = now_ms() + BED_WAIT_MS;

	return fd_write_all(from, text, strlen(text), until, NULL) == RC_OK &&
	       fd_read_exact(to, got, strlen(text), until, NULL) == RC_OK && !strcmp(got, text);
}

TEST(dns_answers_from_the_policy_alone)
{
	uint8_t raw[1500];
	char addr[16], again[16], arpa[64];
	unsigned int before, b[4];
	size_t n = 0;

	UP(HEAD "default none\nallow web.test\nallow *.sub.test\nallow port.test:443\n" ORG);
	before = bed_resolved(NULL);
	CHECK_EQ(bed_dns(&bed, false, "web.test", DNS_TYPE_A, addr, NULL, NULL), DNS_NOERROR);
	CHECK(!strncmp(addr, "198.18.", 7));
	CHECK_EQ(bed_dns(&bed, true, "WEB.test", DNS_TYPE_A, again, NULL, NULL), DNS_NOERROR);
	CHECK_STR(again, addr);
	CHECK_EQ(bed_dns(&bed, false, "a.b.sub.test", DNS_TYPE_A, again, NULL, NULL), DNS_NOERROR);
	CHECK(again[0] && strcmp(again, addr));
	CHECK_EQ(bed_dns(&bed, false, "port.test", DNS_TYPE_A, again, NULL, NULL), DNS_NOERROR);
	CHECK_EQ(bed_dns(&bed, false, "sub.test", DNS_TYPE_A, again, NULL, NULL), DNS_NXDOMAIN);
	CHECK_EQ(bed_dns(&bed, false, "web.test", DNS_TYPE_AAAA, again, raw, &n), DNS_NOERROR);
	CHECK_EQ(raw[7], 0);
	CHECK_EQ(bed_dns(&bed, false, "web.test", DNS_TYPE_HTTPS, again, raw, &n), DNS_NOERROR);
	CHECK_EQ(raw[7], 0);
	CHECK_EQ(bed_dns(&bed, false, "web.test", 16, again, raw, &n), DNS_NOERROR);
	CHECK_EQ(raw[7], 0);
	CHECK_EQ(sscanf(addr, "%u.%u.%u.%u", &b[0], &b[1], &b[2], &b[3]), 4);
	snprintf(arpa, sizeof(arpa), "%u.%u.%u.%u.in-addr.arpa", b[3], b[2], b[1], b[0]);
	CHECK_EQ(bed_dns(&bed, false, arpa, DNS_TYPE_PTR, NULL, raw, &n), DNS_NOERROR);
	CHECK(memmem(raw, n, "\3web\4test", 10));
	CHECK_EQ(bed_dns(&bed, false, "secret-data.evil.test", DNS_TYPE_A, again, raw, &n), DNS_NXDOMAIN);
	CHECK(memmem(raw, n, "no allow rule names it", 22));
	CHECK_EQ(bed_dns(&bed, false, "secret-data.evil.test", 16, again, raw, &n), DNS_NXDOMAIN);
	CHECK_EQ(bed_resolved(NULL), before);
	CHECK(bed_ledger(&bed, "\"protocol\":\"dns\"", "secret-data.evil.test", "\"decision\":\"deny\"", "\"org\":\"acme\"", NULL));
}

TEST(a_name_is_reached_where_it_resolves)
{
	UP(HEAD "default none\nallow web.test:8080\n" ORG);
	{
		_cleanup_fd_ int l = bed_listen(&bed, BED_WEB, 8080), c = bed_connect(&bed, "web.test", 8080), s = bed_accept(l);

		REQUIRE(c >= 0 && s >= 0);
		CHECK(pass(c, s, "question"));
		CHECK(pass(s, c, "answer"));
		/* A half-close passes, and the other direction still works. */
		CHECK_EQ(shutdown(c, SHUT_WR), 0);
		CHECK_EQ(bed_end_of(s), 'E');
		CHECK(pass(s, c, "more"));
		close_fd(&s);
		CHECK_EQ(bed_end_of(c), 'E');
	}
	CHECK(bed_ledger(&bed, "\"name\":\"web.test\"", "\"address\":\"" BED_WEB "\"", "\"port\":8080", "\"decision\":\"allow\"",
			 "\"rule\":\"allow web.test:8080\"", "\"bytes_out\":8,\"bytes_in\":10", "\"sandbox\":\"sbx_test\"", NULL));
	{
		_cleanup_fd_ int c = bed_connect(&bed, "web.test", 8081);

		CHECK(c < 0 || bed_end_of(c) == 'R');
		CHECK(bed_ledger(&bed, "\"name\":\"web.test\"", "\"port\":8081", "\"decision\":\"deny\"", NULL));
	}
}

TEST(a_servers_reset_reaches_the_guest)
{
	struct linger now = { .l_onoff = 1 };

	UP(PUBLIC);
	_cleanup_fd_ int l = bed_listen(&bed, BED_WEB, 8082), c = bed_connect(&bed, "web.test", 8082), s = bed_accept(l);

	REQUIRE(c >= 0 && s >= 0);
	CHECK(pass(c, s, "x"));
	setsockopt(s, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
	close_fd(&s);
	CHECK_EQ(bed_end_of(c), 'R');
}

static char reach(const char *addr, uint16_t port)
{
	_cleanup_fd_ int c = guestns_connect(&bed.guest, addr, port, BED_WAIT_MS);

	return c < 0 ? (errno == ECONNREFUSED || errno == ECONNRESET ? 'R' : 'T') : bed_end_of(c);
}

TEST(literal_addresses_are_judged_as_addresses)
{
	static const struct {
		const char *addr, *rule;
	} refused[] = {
		{ BED_PRIVATE, "private address" },        { "169.254.169.254", "link-local address" },
		{ "100.64.0.1", "shared (CGNAT) address" }, { "127.0.0.1", "loopback address" },
		{ "192.168.1.1", "private address" },      { "0.0.0.0", "" },
		{ "224.0.0.1", "" },                       { BED_PROXY, "the host's own address" },
		{ "198.18.77.77", "synthetic address of no name" },
	};

	UP(PUBLIC);
	for (size_t i = 0; i < ARRAY_SIZE(refused); i++) {
		char rule[96];

		if (!*refused[i].rule)
			continue; /* the guest's own kernel does not send there */
		if (!strcmp(refused[i].addr, "127.0.0.1"))
			continue; /* nor there; tests/it/test_net.c writes such frames */
		snprintf(rule, sizeof(rule), "\"rule\":\"%s\"", refused[i].rule);
		if (reach(refused[i].addr, 9000) != 'R') {
			printf("  %s is not reset\n", refused[i].addr);
			CHECK(!"reset");
		}
		CHECK(bed_ledger(&bed, refused[i].addr, "\"decision\":\"deny\"", rule, NULL));
	}
	{
		_cleanup_fd_ int l = bed_listen(&bed, BED_OTHER, 9000), l2 = bed_listen(&bed, BED_PERMITTED, 9000);
		_cleanup_fd_ int c = guestns_connect(&bed.guest, BED_OTHER, 9000, BED_WAIT_MS), s = bed_accept(l);
		_cleanup_fd_ int c2 = guestns_connect(&bed.guest, BED_PERMITTED, 9000, BED_WAIT_MS), s2 = bed_accept(l2);

		CHECK(c >= 0 && s >= 0 && pass(c, s, "public"));
		CHECK(c2 >= 0 && s2 >= 0 && pass(s2, c2, "permitted"));
	}
	bed_send_policy(&bed, HEAD "default public\ndeny 93.184.216.0/24\n" ORG);
	CHECK_EQ(reach(BED_OTHER, 9000), 'R');
	CHECK(bed_ledger(&bed, BED_OTHER, "\"rule\":\"deny 93.184.216.0/24\"", NULL));
	bed_send_policy(&bed, HEAD "default none\nallow web.test\n" ORG);
	CHECK_EQ(reach(BED_WEB, 9000), 'R');
}

TEST(names_that_resolve_inside_are_refused)
{
	static const char *const names[] = { "rebind.test", "meta.test", "loop.test", "own.test", "fake.test" };

	UP(PUBLIC);
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		_cleanup_fd_ int c = bed_connect(&bed, names[i], 9100);

		if (c >= 0)
			CHECK_EQ(bed_end_of(c), 'R');
		CHECK(bed_ledger(&bed, names[i], "\"port\":9100", "\"decision\":\"deny\"", "address\"", NULL));
	}
	{
		_cleanup_fd_ int l = bed_listen(&bed, BED_PERMITTED, 9100), c = bed_connect(&bed, "inside.test", 9100), s = bed_accept(l);

		CHECK(c >= 0 && s >= 0);
	}
	{
		_cleanup_fd_ int c = bed_connect(&bed, "nowhere.test", 9100);

		CHECK(c < 0 || bed_end_of(c) == 'R');
		CHECK(bed_ledger(&bed, "nowhere.test", "\"decision\":\"error\"", "does not exist", NULL));
	}
}

TEST(http_is_told_why)
{
	static const char request[] = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
	char got[2048] = "";
	size_t n = 0;

	UP(HEAD "default none\nallow web.test:443\n" ORG);
	{
		_cleanup_fd_ int c = bed_connect(&bed, "web.test", 80);

		REQUIRE(c >= 0);
		CHECK_EQ(fd_write_all(c, request, sizeof(request) - 1, now_ms() + BED_WAIT_MS, NULL), RC_OK);
		for (ssize_t k; n < sizeof(got) - 1 && !fd_wait(c, POLLIN, now_ms() + BED_WAIT_MS, NULL) &&
				(k = read(c, got + n, sizeof(got) - 1 - n)) > 0;)
			n += (size_t)k;
		CHECK(!strncmp(got, "HTTP/1.1 403 ", 13));
		CHECK(strstr(got, "web.test port 80 was refused by this sandbox's network policy: no allow rule names it"));
	}
	{
		_cleanup_fd_ int c = bed_connect(&bed, "web.test", 80);

		REQUIRE(c >= 0);
		CHECK_EQ(fd_write_all(c, "\x16\x03\x01", 3, now_ms() + BED_WAIT_MS, NULL), RC_OK);
		CHECK_EQ(bed_end_of(c), 'R');
	}
}

static char tls(const char *to, const char *sni, size_t padding, size_t cut, int listener)
{
	_cleanup_fd_ int c = bed_connect(&bed, to, 443), s = -1;
	uint8_t hello[HELLO_TEST_MAX], got[HELLO_TEST_MAX];
	size_t n = hello_make(hello, sni, padding, cut), half = n / 2;

	if (c < 0)
		return '-';
	/* In two writes, so that the first cannot be the whole. */
	if (fd_write_all(c, hello, half, now_ms() + BED_WAIT_MS, NULL))
		return 'R';
	if (fd_write_all(c, hello + half, n - half, now_ms() + BED_WAIT_MS, NULL))
		return 'R';
	if (listener < 0)
		return bed_end_of(c);
	s = bed_accept(listener);
	if (s < 0)
		return 'T';
	return fd_read_exact(s, got, n, now_ms() + BED_WAIT_MS, NULL) == RC_OK && !memcmp(got, hello, n) ? 'P' : 'X';
}

TEST(tls_must_ask_for_the_resolved_name)
{
	UP(HEAD "default none\nallow web.test\nallow other.test\n" ORG);
	_cleanup_fd_ int l = bed_listen(&bed, BED_WEB, 443);

	CHECK_EQ(tls("web.test", "web.test", 0, 16384, l), 'P');
	CHECK_EQ(tls("web.test", "WEB.test", 1800, 16384, l), 'P');
	CHECK_EQ(tls("web.test", "web.test", 1800, 100, l), 'P');
	CHECK_EQ(tls("web.test", "other.test", 0, 16384, -1), 'R');
	CHECK(bed_ledger(&bed, "\"name\":\"web.test\"", "TLS server name is not the resolved name", NULL));
	CHECK_EQ(tls("web.test", NULL, 0, 16384, -1), 'R');
	CHECK_EQ(tls("web.test", "", 0, 16384, -1), 'R');
	{
		_cleanup_fd_ int c = bed_connect(&bed, "web.test", 443);

		REQUIRE(c >= 0);
		CHECK_EQ(fd_write_all(c, "GET / HTTP/1.1\r\n\r\n", 18, now_ms() + BED_WAIT_MS, NULL), RC_OK);
		CHECK_EQ(bed_end_of(c), 'R');
		CHECK(bed_ledger(&bed, "not TLS where TLS is expected", NULL));
	}
}

/* A connection that is there within a moment. */
static int bed_accept_now(int listener)
{
	return fd_wait(listener, POLLIN, now_ms() + 500, NULL) ? -1 : accept4(listener, NULL, NULL, SOCK_CLOEXEC);
}

struct flow {
	int from, to;
	uint64_t bytes, bad;
};

#define FLOW_BYTES (32u << 20)

static void *flow_send(void *arg)
{
	struct flow *f = arg;
	uint32_t mem[4096], v = 1;

	for (uint64_t sent = 0; sent < FLOW_BYTES; sent += sizeof(mem)) {
		for (size_t i = 0; i < ARRAY_SIZE(mem); i++)
			mem[i] = v = v * 1664525u + 1013904223u;
		if (fd_write_all(f->from, mem, sizeof(mem), now_ms() + 60000, NULL))
			break;
	}
	shutdown(f->from, SHUT_WR);
	return NULL;
}

static void *flow_recv(void *arg)
{
	struct flow *f = arg;
	uint32_t mem[4096], v = 1;

	while (f->bytes < FLOW_BYTES && !fd_read_exact(f->to, mem, sizeof(mem), now_ms() + 60000, NULL)) {
		for (size_t i = 0; i < ARRAY_SIZE(mem); i++) {
			v = v * 1664525u + 1013904223u;
			f->bad += mem[i] != v;
		}
		f->bytes += sizeof(mem);
	}
	return NULL;
}

TEST(bytes_pass_unchanged_both_ways_at_once)
{
	pthread_t t[4];
	uint64_t start;

	UP(PUBLIC);
	_cleanup_fd_ int l = bed_listen(&bed, BED_WEB, 8083), c = bed_connect(&bed, "web.test", 8083), s = bed_accept(l);
	struct flow out = { .from = c, .to = s }, in = { .from = s, .to = c };

	REQUIRE(c >= 0 && s >= 0);
	start = now_ms();
	pthread_create(&t[0], NULL, flow_send, &out);
	pthread_create(&t[1], NULL, flow_recv, &out);
	pthread_create(&t[2], NULL, flow_send, &in);
	pthread_create(&t[3], NULL, flow_recv, &in);
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
	CHECK_EQ(out.bytes, FLOW_BYTES);
	CHECK_EQ(in.bytes, FLOW_BYTES);
	CHECK_EQ(out.bad + in.bad, 0);
	printf("  %u MiB each way in %llu ms\n", FLOW_BYTES >> 20, (unsigned long long)(now_ms() - start));
}

/* A number of /proc/<daemon>/status; ULONG_MAX if it is not there. */
static unsigned long status_of(const char *key, int base)
{
	char path[64], line[256];
	unsigned long v = ULONG_MAX;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/status", bed.daemon);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f))
		if (!strncmp(line, key, strlen(key)))
			v = strtoul(line + strlen(key), NULL, base);
	if (f)
		fclose(f);
	return v;
}

TEST(a_reader_that_does_not_read_holds_the_sender)
{
	uint8_t mem[65536] = { 0 };
	uint64_t sent = 0;
	unsigned long rss;
	ssize_t n;

	UP(PUBLIC);
	_cleanup_fd_ int l = bed_listen(&bed, BED_WEB, 8084), c = bed_connect(&bed, "web.test", 8084), s = bed_accept(l);

	REQUIRE(c >= 0 && s >= 0);
	CHECK(pass(c, s, "warm"));
	rss = status_of("VmRSS:", 10);
	/* Until nothing was taken for a second: the socket buffers on the way are full then. */
	fd_nonblock(c, NULL);
	while (sent < (512u << 20) && !fd_wait(c, POLLOUT, now_ms() + 1000, NULL) && (n = send(c, mem, sizeof(mem), 0)) > 0)
		sent += (uint64_t)n;
	printf("  the sender was held after %llu KiB\n", (unsigned long long)sent >> 10);
	CHECK(sent < (64u << 20));
	CHECK(status_of("VmRSS:", 10) < rss + 1024);
}

#define SLOW_BYTES 1500000
#define SLOW_RATE 500000

struct pour {
	int from, to;
	size_t n, got;
	uint64_t ms;
	bool done;
	pthread_t threads[2];
};

static void *pour_in(void *arg)
{
	static const uint8_t mem[65536];
	struct pour *p = arg;

	for (size_t left = p->n; left;) {
		ssize_t k = send(p->from, mem, MIN_OF(left, sizeof(mem)), MSG_NOSIGNAL);

		if (k < 0)
			break;
		left -= (size_t)k;
	}
	shutdown(p->from, SHUT_WR);
	return NULL;
}

static void *pour_out(void *arg)
{
	struct pour *p = arg;
	uint64_t start = now_ms();
	uint8_t mem[65536];
	ssize_t k;

	while ((k = recv(p->to, mem, sizeof(mem), 0)) > 0)
		p->got += (size_t)k;
	p->ms = now_ms() - start;
	__atomic_store_n(&p->done, true, __ATOMIC_SEQ_CST);
	return NULL;
}

static void pour_start(struct pour *p)
{
	pthread_create(&p->threads[0], NULL, pour_in, p);
	pthread_create(&p->threads[1], NULL, pour_out, p);
}

static void pour_end(struct pour *p)
{
	pthread_join(p->threads[0], NULL);
	pthread_join(p->threads[1], NULL);
}

TEST(a_sandbox_at_its_rate_does_not_slow_another)
{
	struct bed two;
	struct fault f;
	uint64_t worst = 0;

	UP(PUBLIC "limit bytes_per_s=500000\n");
	two = bed;
	REQUIRE(!net_create("sbx_two", &two.net, &f));
	REQUIRE(!guestns_start(&two.guest, two.net.tap_fd, two.net.mgmt_fd, &f));
	bed_send_vm(&two, &two.net, PUBLIC);
	bed_settle(&bed);
	{
		_cleanup_fd_ int l = bed_listen(&bed, BED_WEB, 8091), slow = bed_connect(&bed, "web.test", 8091), slow_s = bed_accept(l);
		_cleanup_fd_ int up = bed_connect(&bed, "web.test", 8091), up_s = bed_accept(l);
		_cleanup_fd_ int fast = bed_connect(&two, "web.test", 8091), fast_s = bed_accept(l);
		_cleanup_fd_ int chat = bed_connect(&two, "web.test", 8091), chat_s = bed_accept(l);
		struct pour a = { .from = slow_s, .to = slow, .n = SLOW_BYTES / 2 }, b = { .from = up, .to = up_s, .n = SLOW_BYTES / 2 };
		struct pour c = { .from = fast_s, .to = fast, .n = 16u << 20 };

		REQUIRE(slow >= 0 && slow_s >= 0 && up >= 0 && up_s >= 0 && fast >= 0 && fast_s >= 0 && chat >= 0 && chat_s >= 0);
		pour_start(&a);
		pour_start(&b);
		for (int i = 0; i < 100; i++) {
			uint64_t start = now_ms();

			CHECK(pass(chat, chat_s, "x") && pass(chat_s, chat, "y"));
			worst = MAX_OF(worst, now_ms() - start);
		}
		pour_start(&c);
		pour_end(&c);
		CHECK_EQ(c.got, 16u << 20);
		CHECK(!__atomic_load_n(&a.done, __ATOMIC_SEQ_CST) || !__atomic_load_n(&b.done, __ATOMIC_SEQ_CST));
		pour_end(&a);
		pour_end(&b);
		CHECK_EQ(a.got + b.got, SLOW_BYTES);
		/* Both directions together; what may come at once comes at once. */
		CHECK(MAX_OF(a.ms, b.ms) >= (SLOW_BYTES - EGRESS_METER_BURST_MIN) / (SLOW_RATE / 1000) * 9 / 10);
		printf("  limited: %d bytes in %llu ms; meanwhile: 16 MiB in %llu ms, slowest exchange %llu ms\n", SLOW_BYTES,
		       (unsigned long long)MAX_OF(a.ms, b.ms), (unsigned long long)c.ms, (unsigned long long)worst);
	}
	bed_send_gone(&two);
	guestns_stop(&two.guest);
	net_destroy(&two.net);
}

#define STALLS 180 /* of names, and as many of handshakes: what a sandbox may open at once */
#define VISITS 15

static int by_size(const void *a, const void *b)
{
	return (*(const uint64_t *)a > *(const uint64_t *)b) - (*(const uint64_t *)a < *(const uint64_t *)b);
}

/* A guest's first bytes to a host that its proxy has never heard of, and an answer: the slowest, and the median in microseconds. */
static uint64_t first_visits(struct bed *of, int l, int round, uint64_t *ret_most)
{
	uint64_t took[VISITS];

	for (int i = 0; i < VISITS; i++) {
		_cleanup_fd_ int fd = -1, far = -1;
		struct timespec a, b;
		char name[32];

		snprintf(name, sizeof(name), "n%d-%d.new.test", round, i);
		clock_gettime(CLOCK_MONOTONIC, &a);
		fd = bed_connect(of, name, 8093);
		far = bed_accept(l);
		CHECK(fd >= 0 && far >= 0 && pass(fd, far, "x") && pass(far, fd, "y"));
		clock_gettime(CLOCK_MONOTONIC, &b);
		took[i] = (uint64_t)((b.tv_sec - a.tv_sec) * 1000000 + (b.tv_nsec - a.tv_nsec) / 1000);
	}
	qsort(took, VISITS, sizeof(took[0]), by_size);
	*ret_most = took[VISITS - 1];
	return took[VISITS / 2];
}

/* Hundreds of ever-new names that nobody resolves and of handshakes that do not come, of one tenant; the other's first visits meanwhile. */
TEST(a_tenant_that_stalls_does_not_delay_anothers_first_visits)
{
	static int stalls[2 * STALLS];
	uint64_t before, during, most_before, most;
	struct bed two;
	struct fault f;
	size_t open = 0;

	UP(PUBLIC);
	two = bed;
	REQUIRE(!net_create("sbx_two", &two.net, &f));
	REQUIRE(!guestns_start(&two.guest, two.net.tap_fd, two.net.mgmt_fd, &f));
	bed_send_vm(&two, &two.net, HEAD "default public\norg bolt\n");
	bed_settle(&bed);
	{
		_cleanup_fd_ int l = bed_listen(&bed, BED_WEB, 8093);

		before = first_visits(&two, l, 0, &most_before);
		for (int i = 0; i < 2 * STALLS; i++) {
			char name[32];

			snprintf(name, sizeof(name), i % 2 ? "s%d.stall.test" : "t%d.new.test", i);
			stalls[i] = bed_connect(&bed, name, i % 2 ? 8094 : 443);
			open += stalls[i] >= 0;
		}
		/* A question or two beyond the rate may have been dropped. */
		CHECK(open > 300);
		during = first_visits(&two, l, 1, &most);
		printf("  a first visit: %llu us (at most %llu); while another tenant has %zu stalled: %llu us (at most %llu)\n",
		       (unsigned long long)before, (unsigned long long)most_before, open, (unsigned long long)during, (unsigned long long)most);
		/* Not behind any of them: the shortest of their times is EGRESS_RESOLVE_MS. */
		CHECK(during < 10 * before + 50000);
		CHECK(most / 1000 < EGRESS_RESOLVE_MS / 2);
		for (size_t i = 0; i < 2 * STALLS; i++)
			close_fd(&stalls[i]);
	}
	bed_send_gone(&two);
	guestns_stop(&two.guest);
	net_destroy(&two.net);
	/* The next test has all of the machine's places again. */
	bed_send_gone(&bed);
	bed_settle(&bed);
}

TEST(a_total_ends_connections)
{
	UP(PUBLIC "limit total_bytes=100000000000\n");
	_cleanup_fd_ int l = bed_listen(&bed, BED_WEB, 8092), c = bed_connect(&bed, "web.test", 8092), s = bed_accept(l), h = -1;
	_cleanup_fd_ int web = bed_listen(&bed, BED_WEB, 80);
	char text[256] = "";

	REQUIRE(c >= 0 && s >= 0);
	CHECK(pass(c, s, "within"));
	/* Less than went through already. */
	bed_send_policy(&bed, PUBLIC "limit total_bytes=5\n");
	CHECK_EQ(bed_end_of(c), 'R');
	CHECK(bed_ledger(&bed, "\"port\":8092", "\"decision\":\"deny\"", "limit of total bytes", NULL));
	h = bed_connect(&bed, "web.test", 80);
	REQUIRE(h >= 0);
	CHECK(send(h, "GET / HTTP/1.1\r\n\r\n", 18, 0) == 18);
	for (size_t n = 0; n < sizeof(text) - 1 && !fd_wait(h, POLLIN, now_ms() + BED_WAIT_MS, NULL);) {
		ssize_t k = recv(h, text + n, sizeof(text) - 1 - n, 0);

		if (k <= 0)
			break;
		n += (size_t)k;
	}
	CHECK(!strncmp(text, "HTTP/1.1 403 ", 13));
	bed_send_policy(&bed, PUBLIC);
}

TEST(a_policy_change_ends_what_it_no_longer_allows)
{
	UP(HEAD "default none\nallow web.test\nallow other.test\n" ORG);
	_cleanup_fd_ int l = bed_listen(&bed, BED_WEB, 8085), c = bed_connect(&bed, "web.test", 8085), s = bed_accept(l);
	_cleanup_fd_ int l2 = bed_listen(&bed, BED_OTHER, 8085), c2 = bed_connect(&bed, "other.test", 8085), s2 = bed_accept(l2);

	REQUIRE(c >= 0 && s >= 0 && c2 >= 0 && s2 >= 0);
	CHECK(pass(c, s, "before"));
	bed_send_policy(&bed, HEAD "default none\nallow other.test\n" ORG);
	CHECK_EQ(bed_end_of(c), 'R');
	CHECK_EQ(bed_end_of(s), 'R');
	CHECK(pass(c2, s2, "after"));
	CHECK(bed_ledger(&bed, "\"name\":\"web.test\"", "the policy changed", NULL));
	bed_send_policy(&bed, HEAD "nonsense\n");
	CHECK_EQ(bed_end_of(c2), 'R');
	CHECK_EQ(bed_dns(&bed, false, "other.test", DNS_TYPE_A, NULL, NULL, NULL), DNS_NXDOMAIN);
}

TEST(connections_outlive_the_broker)
{
	struct net again;

	UP(PUBLIC);
	_cleanup_fd_ int l = bed_listen(&bed, BED_WEB, 8086), c = bed_connect(&bed, "web.test", 8086), s = bed_accept(l);

	REQUIRE(c >= 0 && s >= 0);
	close_fd(&bed.broker);
	CHECK(pass(c, s, "without a broker"));
	{
		_cleanup_fd_ int c2 = bed_connect(&bed, "web.test", 8086), s2 = bed_accept(l);

		CHECK(c2 >= 0 && s2 >= 0);
	}
	REQUIRE(bed_attach(&bed));
	REQUIRE(net_adopt("sbx_test", &again, NULL) == RC_OK);
	bed_send_vm(&bed, &again, PUBLIC);
	bed_settle(&bed);
	close_fd(&bed.net.tcp_fd);
	close_fd(&bed.net.dns_udp_fd);
	close_fd(&bed.net.dns_tcp_fd);
	bed.net.tcp_fd = again.tcp_fd;
	bed.net.dns_udp_fd = again.dns_udp_fd;
	bed.net.dns_tcp_fd = again.dns_tcp_fd;
	close_fd(&again.ns_fd);
	CHECK(pass(c, s, "the old one goes on"));
	{
		_cleanup_fd_ int c2 = bed_connect(&bed, "web.test", 8086), s2 = bed_accept(l);

		CHECK(c2 >= 0 && s2 >= 0);
	}
}

/* Which of the two bounds comes first depends on the machine's speed; that one comes does not. */
TEST(connections_are_bounded)
{
	static int fds[EGRESS_CONNS_MAX + 8], ends[EGRESS_CONNS_MAX + 8];
	char addr[16];
	size_t n = 0, k = 0;
	bool refused = false;

	UP(PUBLIC);
	_cleanup_fd_ int l = bed_listen(&bed, BED_WEB, 8087);

	CHECK_EQ(bed_dns(&bed, false, "web.test", DNS_TYPE_A, addr, NULL, NULL), DNS_NOERROR);
	fd_nonblock(l, NULL);
	while (n < ARRAY_SIZE(fds) && !refused) {
		/* Taken, or the server's own queue would be the bound. */
		while (k < ARRAY_SIZE(ends) && (ends[k] = accept4(l, NULL, NULL, SOCK_CLOEXEC)) >= 0)
			k++;
		fds[n] = guestns_connect(&bed.guest, addr, 8087, BED_WAIT_MS);
		refused = fds[n] < 0 || !fd_wait(fds[n], POLLIN, n < EGRESS_CONNS_MAX ? now_ms() : now_ms() + BED_WAIT_MS, NULL);
		n++;
	}
	/* A reset may have come after its own look. */
	for (size_t i = 0; i < n && !refused; i++)
		refused = fds[i] < 0 || !fd_wait(fds[i], POLLIN, now_ms(), NULL);
	printf("  the first refusal was seen after %zu connections\n", n);
	CHECK(refused);
	CHECK(n > EGRESS_CONN_BURST);
	CHECK(bed_ledger(&bed, "\"decision\":\"deny\"", "\"rule\":\"limit of ", NULL));
	while (n--)
		close_fd(&fds[n]);
	while (k--)
		close_fd(&ends[k]);
}

/* After the test above, which wants the full burst. */
TEST(a_policys_rate_of_new_connections_holds)
{
	int fds[60], taken = 0, refused = 0;
	uint64_t start;
	char addr[16];

	UP(PUBLIC "limit conns_per_s=3\n");
	_cleanup_fd_ int l = bed_listen(&bed, BED_WEB, 8093);

	CHECK_EQ(bed_dns(&bed, false, "web.test", DNS_TYPE_A, addr, NULL, NULL), DNS_NOERROR);
	start = now_ms();
	/* The test before has left nothing: a third of a second, and one may come. */
	while (!taken && now_ms() < start + BED_WAIT_MS) {
		_cleanup_fd_ int c = guestns_connect(&bed.guest, addr, 8093, BED_WAIT_MS), s = bed_accept_now(l);

		taken += s >= 0;
	}
	CHECK_EQ(taken, 1);
	for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
		fds[i] = guestns_connect(&bed.guest, addr, 8093, BED_WAIT_MS);
	/* A refused one is reset as soon as it is there; the others reach the server, which closes them. */
	for (int s; (s = bed_accept_now(l)) >= 0; taken++)
		close_fd(&s);
	for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
		refused += fds[i] < 0 || bed_end_of(fds[i]) == 'R';
		close_fd(&fds[i]);
	}
	CHECK(taken <= 6 + 3 * (int)((now_ms() - start) / 1000 + 1));
	CHECK(refused >= 20);
	CHECK(bed_ledger(&bed, "limit of new connections per second", NULL));
	bed_send_policy(&bed, PUBLIC);
}

/* EGRESS_DNS_CONNS_MAX */
TEST(dns_connections_are_bounded)
{
	int fds[EGRESS_DNS_CONNS_MAX + 1];
	size_t open = 0;

	UP(PUBLIC);
	for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
		fds[i] = guestns_connect(&bed.guest, "9.9.9.9", 53, BED_WAIT_MS);
	CHECK(bed_end_of(fds[EGRESS_DNS_CONNS_MAX]) != 'T');
	for (size_t i = 0; i < EGRESS_DNS_CONNS_MAX; i++)
		open += fds[i] >= 0 && fd_wait(fds[i], POLLIN, now_ms(), NULL);
	CHECK_EQ(open, EGRESS_DNS_CONNS_MAX);
	for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
		close_fd(&fds[i]);
	/* Their ends are seen one after the other. */
	for (uint64_t late = now_ms() + BED_WAIT_MS; bed_dns(&bed, true, "web.test", DNS_TYPE_A, NULL, NULL, NULL) != DNS_NOERROR;)
		REQUIRE(now_ms() < late);
}

static unsigned int answers_of(int fd)
{
	uint8_t mem[512];
	unsigned int n = 0;

	while (recv(fd, mem, sizeof(mem), MSG_DONTWAIT) > 0)
		n++;
	return n;
}

/* EGRESS_DNS_PER_S, EGRESS_DNS_BURST, and of what is refused EGRESS_DNS_ROWS_PER_S, EGRESS_DNS_ROWS_BURST */
TEST(dns_questions_are_bounded)
{
	static const uint8_t q[] = "\x12\x34\1\0\0\1\0\0\0\0\0\0\5flood\4test\0\0\1\0\1";
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(53) };
	unsigned int n = 0, most, rows;
	uint64_t begun, ms;

	UP(NOTHING);
	_cleanup_fd_ int fd = guestns_socket(&bed.guest, SOCK_DGRAM);

	inet_pton(AF_INET, "100.64.0.1", &to.sin_addr);
	REQUIRE(connect(fd, (const struct sockaddr *)&to, sizeof(to)) == 0);
	begun = now_ms();
	for (int i = 0; i < 2000; i++) {
		if (send(fd, q, sizeof(q) - 1, 0) < 0)
			break;
		if (i % 50 == 49)
			bed_settle(&bed); /* or the socket's own queue would be the bound */
		n += answers_of(fd);
	}
	bed_settle(&bed);
	while (!fd_wait(fd, POLLIN, now_ms() + 200, NULL))
		n += answers_of(fd);
	ms = now_ms() - begun;
	most = (unsigned int)(EGRESS_DNS_BURST + EGRESS_DNS_PER_S * (ms / 1000 + 1));
	rows = bed_ledger_count(&bed, "flood.test");
	printf("  %u of 2000 answered, %u rows, in %llu ms\n", n, rows, (unsigned long long)ms);
	CHECK(n >= 100 && n <= most && (n < 2000 || ms > 15000));
	CHECK(rows >= 1 && rows <= EGRESS_DNS_ROWS_BURST + EGRESS_DNS_ROWS_PER_S * (ms / 1000 + 1));
}

TEST(nothing_is_left_of_a_sandbox_that_ended)
{
	UP(PUBLIC);
	_cleanup_fd_ int l = bed_listen(&bed, BED_WEB, 8088), c = bed_connect(&bed, "web.test", 8088), s = bed_accept(l);

	REQUIRE(c >= 0 && s >= 0);
	bed_send_gone(&bed);
	CHECK_EQ(bed_end_of(c), 'R');
	CHECK_EQ(bed_end_of(s), 'R');
	CHECK(bed_ledger(&bed, "\"port\":8088", "the sandbox ended", NULL));
}

TEST(the_daemon_has_no_rights_left)
{
	char path[64], line[128] = "", want[64];
	struct rlimit mine = { 0, 0 };
	struct stat st;
	bool core = false, files = false;
	FILE *f;

	UP(PUBLIC);
	/* It leaves no core and nobody traces it: what is not dumpable is root's in /proc. */
	snprintf(path, sizeof(path), "/proc/%d/limits", bed.daemon);
	f = fopen(path, "re");
	REQUIRE(f);
	getrlimit(RLIMIT_NOFILE, &mine);
	snprintf(want, sizeof(want), "Max open files            %d ", EGRESS_FDS);
	while (fgets(line, sizeof(line), f)) {
		core |= !strncmp(line, "Max core file size        0                    0 ", 49);
		files |= !strncmp(line, want, strlen(want));
	}
	fclose(f);
	CHECK(core);
	CHECK(files || mine.rlim_max < EGRESS_FDS);
	snprintf(path, sizeof(path), "/proc/%d/maps", bed.daemon);
	CHECK_EQ(stat(path, &st), 0);
	CHECK_EQ(st.st_uid, 0);
	CHECK_EQ(status_of("Seccomp:", 10), 2);
	CHECK_EQ(status_of("NoNewPrivs:", 10), 1);
	CHECK_EQ(status_of("CapEff:", 16), 0);
	CHECK_EQ(status_of("CapBnd:", 16), 0);
	CHECK_EQ(status_of("Uid:", 10), 65534);
	CHECK_EQ(status_of("Groups:", 10) == 0, 0);
	CHECK_EQ(kill(bed.daemon, 0), 0);
}

__attribute__((destructor)) static void cleanup(void)
{
	bed_down(&bed);
}

CHECK_MAIN()
