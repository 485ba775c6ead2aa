/* SPDX-License-Identifier: Apache-2.0 */
/* vmm/net against the kernel: real namespaces, and a hostile guest that writes frames into the taps. */
#include "base/cleanup.h"
#include "base/fd.h"
#include "schema/agent.h"
#include "tests/it/guestns.h"
#include "tests/lib/check.h"
#include "vmm/net/limits.h"
#include "vmm/net/net.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netfilter_ipv4.h>
#include <netinet/ether.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>

#define WAIT_MS 5000
#define CREATE_RUNS 30
#define CREATE_P50_US 10000 /* of processor time, which a busy host does not lengthen */

static char run_dir[] = "/tmp/nb-test-net-XXXXXX";
static bool ready;

static bool setup(void)
{
	struct fault f = { 0 };

	if (ready)
		return true;
	if (getuid() || access("/dev/net/tun", R_OK | W_OK))
		return false;
	if (!mkdtemp(run_dir) || net_init(run_dir, &f)) {
		printf("  setup: %s\n", f.text);
		exit(1);
	}
	return ready = true;
}

#define SETUP()                                                  \
	do {                                                     \
		if (!setup())                                    \
			SKIP("needs root and /dev/net/tun");     \
	} while (0)

static enum rc make(const char *id, struct net *net)
{
	struct fault f = { 0 };
	enum rc rc = net_create(id, net, &f);

	if (rc)
		printf("  net_create: %s sys=%d\n", f.text, f.sys);
	return rc;
}

static int entries(void)
{
	char path[128];
	DIR *d;
	int n = 0;

	snprintf(path, sizeof(path), "%s/netns", run_dir);
	d = opendir(path);
	for (struct dirent *e; d && (e = readdir(d));)
		n += e->d_name[0] != '.';
	if (d)
		closedir(d);
	return n;
}

static ino_t own_ns(void)
{
	struct stat st = { 0 };

	stat("/proc/thread-self/ns/net", &st);
	return st.st_ino;
}

static int by_value(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;

	return (*x > *y) - (*x < *y);
}

static uint64_t used_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

TEST(create_is_fast_and_destroy_is_complete)
{
	uint64_t us[CREATE_RUNS], cpu_us[CREATE_RUNS];
	ino_t before;

	SETUP();
	before = own_ns();
	for (size_t i = 0; i < CREATE_RUNS; i++) {
		struct net net;
		uint64_t start = now_us(), cpu_start = used_us();

		REQUIRE(make("speed", &net) == RC_OK);
		us[i] = now_us() - start;
		cpu_us[i] = used_us() - cpu_start;
		CHECK(own_ns() == before);
		CHECK_EQ(entries(), 1);
		CHECK(net.tap_fd >= 0 && net.mgmt_fd >= 0);
		net_destroy(&net);
		CHECK_EQ(entries(), 0);
	}
	qsort(us, CREATE_RUNS, sizeof(us[0]), by_value);
	qsort(cpu_us, CREATE_RUNS, sizeof(cpu_us[0]), by_value);
	printf("  net_create: p50 %llu us, p95 %llu us; of processor time p50 %llu us\n", (unsigned long long)us[CREATE_RUNS / 2],
	       (unsigned long long)us[CREATE_RUNS * 95 / 100], (unsigned long long)cpu_us[CREATE_RUNS / 2]);
	CHECK(cpu_us[CREATE_RUNS / 2] < CREATE_P50_US);
}

/* libnftables cannot have a descriptor above 1023: what asks for one ends the process. */
TEST(a_broker_with_thousands_of_descriptors_makes_networks)
{
	struct rlimit was, more;
	int fds[1500];
	struct net net;

	SETUP();
	REQUIRE(!getrlimit(RLIMIT_NOFILE, &was));
	more = was;
	more.rlim_cur = MAX_OF(was.rlim_cur, (rlim_t)4096);
	more.rlim_max = MAX_OF(was.rlim_max, (rlim_t)4096);
	REQUIRE(!setrlimit(RLIMIT_NOFILE, &more));
	for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
		REQUIRE((fds[i] = dup(0)) >= 0);
	for (int i = 0; i < 3; i++) {
		REQUIRE(make("many", &net) == RC_OK);
		CHECK(net.tap_fd >= FD_SETSIZE);
		net_destroy(&net);
	}
	for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
		close(fds[i]);
	CHECK(!setrlimit(RLIMIT_NOFILE, &was));
}

TEST(ids_are_checked_and_unique)
{
	struct net a, b;
	struct fault f;

	SETUP();
	CHECK_EQ(net_create("../up", &b, &f), RC_INVALID);
	CHECK_EQ(net_create("", &b, &f), RC_INVALID);
	CHECK_EQ(net_create("a2345678901234567890123456789012345678901", &b, &f), RC_INVALID);
	REQUIRE(make("twice", &a) == RC_OK);
	CHECK_EQ(net_create("twice", &b, &f), RC_EXISTS);
	CHECK_EQ(entries(), 1);
	net_destroy(&a);
	net_destroy(&a);
	CHECK_EQ(net_adopt("twice", &b, &f), RC_ABSENT);
}

/* --- frames of a hostile guest ------------------------------------------------------------------------------- */

struct packet {
	uint8_t vnet[12];
	uint8_t dst[6], src[6];
	uint16_t ethertype;
	uint8_t version_ihl, tos;
	uint16_t total, ident, fragment;
	uint8_t ttl, protocol;
	uint16_t ip_sum;
	uint32_t from, to;
	uint16_t sport, dport;
	uint8_t rest[16]; /* TCP from the sequence number on, or UDP's length and checksum */
} __attribute__((packed));

static uint16_t sum_of(const void *data, size_t n, uint32_t sum)
{
	const uint8_t *p = data;

	for (size_t i = 0; i + 1 < n; i += 2)
		sum += (uint32_t)(p[i] << 8 | p[i + 1]);
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return htons((uint16_t)~sum);
}

#define TCP_SYN 0x02
#define TCP_ACK 0x10

static void packet_make(struct packet *p, const char *mac, const char *from, const char *to, uint8_t protocol,
			uint16_t sport, uint16_t dport, uint8_t tcp_flags)
{
	size_t n = protocol == IPPROTO_TCP ? 20 : 8;
	uint32_t pseudo;
	uint16_t sum;

	memset(p, 0, sizeof(*p));
	memset(p->dst, 0xff, 6);
	memcpy(p->dst, (uint8_t[]){ 0x02, 0x6e, 0x62, 0x00, 0x01, !strncmp(to, "169.254.100.", 12) ? 2 : 1 }, 6);
	memcpy(p->src, ether_aton(mac), 6);
	p->ethertype = htons(0x0800);
	p->version_ihl = 0x45;
	p->total = htons((uint16_t)(20 + n));
	p->ttl = 64;
	p->protocol = protocol;
	inet_pton(AF_INET, from, &p->from);
	inet_pton(AF_INET, to, &p->to);
	p->ip_sum = sum_of(&p->version_ihl, 20, 0);
	p->sport = htons(sport);
	p->dport = htons(dport);
	if (protocol == IPPROTO_TCP) {
		p->rest[3] = 1;
		p->rest[8] = 0x50;
		p->rest[9] = tcp_flags;
		p->rest[10] = 0x20;
	} else {
		p->rest[1] = 8;
	}
	pseudo = (uint32_t)protocol + (uint32_t)n;
	for (int i = 0; i < 4; i += 2)
		pseudo += (uint32_t)(((const uint8_t *)&p->from)[i] << 8 | ((const uint8_t *)&p->from)[i + 1]) +
			  (uint32_t)(((const uint8_t *)&p->to)[i] << 8 | ((const uint8_t *)&p->to)[i + 1]);
	sum = sum_of(&p->sport, n, pseudo);
	memcpy(p->rest + (protocol == IPPROTO_TCP ? 12 : 2), &sum, 2);
}

enum answer { SILENCE, SYN_ACK, RESET, PROHIBITED, OTHER };

/* A tap hands the frame to the stack within write(2): what the stack answers at once is there when it returns. */
static enum answer answer_to(int tap, const struct packet *p)
{
	size_t n = 12 + 14 + ntohs(p->total);
	enum answer got = SILENCE;
	uint8_t r[2048];
	ssize_t k;

	if (write(tap, p, n) != (ssize_t)n)
		return OTHER;
	while ((k = read(tap, r, sizeof(r))) > 0) {
		const uint8_t *ip = r + 26;

		if (k < 26 + 20 || r[24] != 0x08 || r[25] != 0)
			continue; /* ARP, IPv6 housekeeping */
		if (ip[9] == IPPROTO_TCP)
			got = (ip[33] & 0x3f) == (TCP_SYN | TCP_ACK) ? SYN_ACK : ip[33] & 4 ? RESET : OTHER;
		else if (ip[9] == IPPROTO_ICMP)
			got = ip[20] == 3 && ip[21] == 13 ? PROHIBITED : OTHER;
		else
			got = OTHER;
	}
	return got;
}

static const struct {
	const char *what;
	bool mgmt;
	const char *mac, *from, *to;
	uint8_t protocol;
	uint16_t sport, dport;
	enum answer expected;
} cases[] = {
	{ "TCP goes to the proxy", false, AGENT_NET_MAC, "100.64.0.2", "1.2.3.4", 6, 2000, 80, SYN_ACK },
	{ "TCP to the gateway too", false, AGENT_NET_MAC, "100.64.0.2", "100.64.0.1", 6, 2001, 22, SYN_ACK },
	{ "TCP to the metadata address too", false, AGENT_NET_MAC, "100.64.0.2", "169.254.169.254", 6, 2002, 80, SYN_ACK },
	{ "TCP to loopback too", false, AGENT_NET_MAC, "100.64.0.2", "127.0.0.1", 6, 2003, 80, SYN_ACK },
	{ "another source address", false, AGENT_NET_MAC, "100.64.0.3", "1.2.3.4", 6, 2004, 80, SILENCE },
	{ "the gateway's address", false, AGENT_NET_MAC, "100.64.0.1", "1.2.3.4", 6, 2005, 80, SILENCE },
	{ "the management guest's address on the traffic link", false, AGENT_NET_MAC, "169.254.100.2", "169.254.100.1", 6,
	  1024, 9999, SILENCE },
	{ "another MAC", false, "02:6e:62:00:00:07", "100.64.0.2", "1.2.3.4", 6, 2006, 80, SILENCE },
	{ "other UDP is refused", false, AGENT_NET_MAC, "100.64.0.2", "1.2.3.4", 17, 2007, 443, PROHIBITED },
	{ "UDP to the gateway is refused", false, AGENT_NET_MAC, "100.64.0.2", "100.64.0.1", 17, 2008, 123, PROHIBITED },
	{ "ICMP is dropped", false, AGENT_NET_MAC, "100.64.0.2", "100.64.0.1", 1, 0x0800, 0, SILENCE },
	{ "GRE is dropped", false, AGENT_NET_MAC, "100.64.0.2", "1.2.3.4", 47, 0, 0, SILENCE },
	{ "SCTP is dropped", false, AGENT_NET_MAC, "100.64.0.2", "1.2.3.4", 132, 1, 1, SILENCE },
	{ "management: a connection from the guest", true, AGENT_MGMT_MAC, "169.254.100.2", "169.254.100.1", 6, 2009, 9999,
	  SILENCE },
	{ "management: from the agent's port", true, AGENT_MGMT_MAC, "169.254.100.2", "169.254.100.1", 6, 1024, 9999, SILENCE },
	{ "management: to the proxy's port", true, AGENT_MGMT_MAC, "169.254.100.2", "100.64.0.1", 6, 1024, NET_TCP_PORT, SILENCE },
	{ "management: to the internet", true, AGENT_MGMT_MAC, "169.254.100.2", "1.2.3.4", 6, 1024, 80, SILENCE },
	{ "management: DNS", true, AGENT_MGMT_MAC, "169.254.100.2", "169.254.100.1", 17, 1024, 53, SILENCE },
	{ "management: ICMP", true, AGENT_MGMT_MAC, "169.254.100.2", "169.254.100.1", 1, 0x0800, 0, SILENCE },
};

TEST(rules_hold_against_frames)
{
	_cleanup_fd_ int own = -1, any = -1;
	struct sockaddr_in all = { .sin_family = AF_INET, .sin_port = htons(9999) };
	struct net net;

	SETUP();
	REQUIRE(make("frames", &net) == RC_OK);
	/* Somebody listens everywhere: silence is then the rules' doing, not an empty port's. */
	own = testns_own();
	testns_enter(net.ns_fd);
	any = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	CHECK(!bind(any, (const struct sockaddr *)&all, sizeof(all)) && !listen(any, 1));
	testns_enter(own);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct packet p;
		enum answer got;

		packet_make(&p, cases[i].mac, cases[i].from, cases[i].to, cases[i].protocol, cases[i].sport,
			    cases[i].dport, TCP_SYN);
		got = answer_to(cases[i].mgmt ? net.mgmt_fd : net.tap_fd, &p);
		if (got != cases[i].expected) {
			printf("  %s: answer %d, expected %d\n", cases[i].what, got, cases[i].expected);
			CHECK(!"answer as expected");
		}
	}
	net_destroy(&net);
}

TEST(ipv6_is_dropped)
{
	/* A neighbour solicitation for the all-nodes group from a link-local address. */
	uint8_t frame[12 + 14 + 40 + 24] = { 0 };
	struct net net;
	uint8_t reply[2048];

	SETUP();
	REQUIRE(make("v6", &net) == RC_OK);
	while (read(net.tap_fd, reply, sizeof(reply)) > 0)
		;
	memcpy(frame + 12, (uint8_t[]){ 0x33, 0x33, 0, 0, 0, 1, 0x02, 0x6e, 0x62, 0, 0, 1, 0x86, 0xdd, 0x60 }, 15);
	frame[31] = 24, frame[32] = 58, frame[33] = 255;
	frame[34] = 0xfe, frame[35] = 0x80, frame[49] = 2;
	frame[50] = 0xff, frame[51] = 2, frame[65] = 1;
	frame[66] = 135;
	CHECK_EQ(write(net.tap_fd, frame, sizeof(frame)), sizeof(frame));
	CHECK(read(net.tap_fd, reply, sizeof(reply)) < 0);
	net_destroy(&net);
}

TEST(a_stale_connection_is_reset)
{
	struct packet p;
	struct net net;

	SETUP();
	REQUIRE(make("stale", &net) == RC_OK);
	packet_make(&p, AGENT_NET_MAC, "100.64.0.2", "93.184.216.34", IPPROTO_TCP, 3000, 443, TCP_ACK);
	CHECK_EQ(answer_to(net.tap_fd, &p), RESET);
	net_destroy(&net);
}

TEST(a_syn_flood_is_bounded)
{
	struct packet p;
	struct net net;
	int answers = 0;

	SETUP();
	REQUIRE(make("flood", &net) == RC_OK);
	for (uint16_t i = 0; i < 4 * NET_SYN_BURST; i++) {
		packet_make(&p, AGENT_NET_MAC, "100.64.0.2", "1.2.3.4", IPPROTO_TCP, (uint16_t)(4000 + i), 80, TCP_SYN);
		answers += answer_to(net.tap_fd, &p) != SILENCE;
	}
	printf("  %d of %d SYNs answered\n", answers, 4 * NET_SYN_BURST);
	CHECK(answers > 0);
	CHECK(answers <= 2 * NET_SYN_BURST);
	net_destroy(&net);
}

static int tracked(const struct net *net)
{
	_cleanup_fd_ int own = testns_own();
	_cleanup_file_ FILE *file = NULL;
	int n = -1;

	testns_enter(net->ns_fd);
	file = fopen("/proc/sys/net/netfilter/nf_conntrack_count", "re");
	if (file && fscanf(file, "%d", &n) != 1)
		n = -1;
	testns_enter(own);
	return n;
}

/* Each would be an entry of connection tracking: memory of the host's kernel that is on nobody's account. To everybody's MAC, because
 * TCP says nothing to those: a reset would take the entry away again. */
TEST(a_flood_of_unknown_segments_is_bounded)
{
	static const uint8_t flags[] = { TCP_ACK, TCP_ACK | 8, TCP_ACK | 1, 0, 4 }; /* PSH, FIN, none, RST */
	int n, answers = 0;
	struct packet p;
	struct net net;

	SETUP();
	REQUIRE(make("unknown", &net) == RC_OK);
	for (uint16_t i = 0; i < 16 * NET_STALE_BURST; i++) {
		packet_make(&p, AGENT_NET_MAC, "100.64.0.2", "1.2.3.4", IPPROTO_TCP, (uint16_t)(4000 + i), 80, flags[i % 5]);
		memset(p.dst, 0xff, sizeof(p.dst));
		answer_to(net.tap_fd, &p);
	}
	n = tracked(&net);
	CHECK_EQ(n, 0);
	/* As the guest sends them that means no harm: bounded all the same. */
	for (uint16_t i = 0; i < 4 * NET_STALE_BURST; i++) {
		packet_make(&p, AGENT_NET_MAC, "100.64.0.2", "1.2.3.4", IPPROTO_TCP, (uint16_t)(4000 + i), 80, TCP_ACK);
		answers += answer_to(net.tap_fd, &p) != SILENCE;
	}
	n = tracked(&net);
	printf("  %d of %d segments answered, %d tracked\n", answers, 4 * NET_STALE_BURST, n);
	CHECK(answers > 0 && answers <= 2 * NET_STALE_BURST);
	CHECK(n >= 0 && n <= 2 * NET_STALE_BURST);
	net_destroy(&net);
}

/* --- a guest that behaves --------------------------------------------------------------------------------------- */

static int accepted(int listener)
{
	if (fd_wait(listener, POLLIN, now_ms() + WAIT_MS, NULL))
		return -1;
	return accept4(listener, NULL, NULL, SOCK_CLOEXEC);
}

TEST(tcp_keeps_its_destination)
{
	struct guestns g;
	struct net net;
	struct sockaddr_in dst;
	socklen_t n = sizeof(dst);

	SETUP();
	REQUIRE(make("tcp", &net) == RC_OK);
	REQUIRE(guestns_start(&g, net.tap_fd, net.mgmt_fd, NULL) == RC_OK);
	{
		_cleanup_fd_ int c = guestns_connect(&g, "203.0.113.9", 8443, WAIT_MS), s = accepted(net.tcp_fd);

		CHECK(c >= 0 && s >= 0);
		CHECK_EQ(getsockopt(s, IPPROTO_IP, SO_ORIGINAL_DST, &dst, &n), 0);
		CHECK_EQ(ntohs(dst.sin_port), 8443);
		CHECK_EQ(ntohl(dst.sin_addr.s_addr), 0xcb007109);
	}
	{
		_cleanup_fd_ int c = guestns_connect(&g, "8.8.8.8", 53, WAIT_MS), s = accepted(net.dns_tcp_fd);

		CHECK(c >= 0 && s >= 0);
	}
	guestns_stop(&g);
	net_destroy(&net);
}

TEST(udp_dns_is_answered_in_any_servers_name)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(53), .sin_addr.s_addr = htonl(0x08080404) }, from;
	socklen_t n = sizeof(from);
	struct guestns g;
	struct net net;
	char text[8] = "";

	SETUP();
	REQUIRE(make("udp", &net) == RC_OK);
	REQUIRE(guestns_start(&g, net.tap_fd, net.mgmt_fd, NULL) == RC_OK);
	{
		_cleanup_fd_ int c = guestns_socket(&g, SOCK_DGRAM);

		/* Connected: an answer from any other address would not be delivered. */
		CHECK_EQ(connect(c, (const struct sockaddr *)&to, sizeof(to)), 0);
		CHECK_EQ(send(c, "ping", 4, 0), 4);
		CHECK_EQ(fd_wait(net.dns_udp_fd, POLLIN, now_ms() + WAIT_MS, NULL), RC_OK);
		CHECK_EQ(recvfrom(net.dns_udp_fd, text, sizeof(text), 0, (struct sockaddr *)&from, &n), 4);
		CHECK_EQ(sendto(net.dns_udp_fd, "pong", 4, 0, (const struct sockaddr *)&from, n), 4);
		CHECK_EQ(fd_wait(c, POLLIN, now_ms() + WAIT_MS, NULL), RC_OK);
		CHECK_EQ(recv(c, text, sizeof(text), 0), 4);
		CHECK(!memcmp(text, "pong", 4));
	}
	{
		_cleanup_fd_ int c = guestns_socket(&g, SOCK_DGRAM);
		int err = 0;
		socklen_t k = sizeof(err);

		to.sin_port = htons(443);
		CHECK_EQ(connect(c, (const struct sockaddr *)&to, sizeof(to)), 0);
		CHECK_EQ(send(c, "quic", 4, 0), 4);
		CHECK_EQ(fd_wait(c, POLLIN, now_ms() + WAIT_MS, NULL), RC_OK);
		getsockopt(c, SOL_SOCKET, SO_ERROR, &err, &k);
		CHECK_EQ(err, EHOSTUNREACH);
	}
	guestns_stop(&g);
	net_destroy(&net);
}

TEST(dial_reaches_the_agent_only)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(AGENT_PORT) };
	struct guestns g;
	struct net net;

	SETUP();
	REQUIRE(make("dial", &net) == RC_OK);
	REQUIRE(guestns_start(&g, net.tap_fd, net.mgmt_fd, NULL) == RC_OK);
	{
		_cleanup_fd_ int l = guestns_socket(&g, SOCK_STREAM), c = -1, s = -1;
		char text[5] = "";

		inet_pton(AF_INET, AGENT_MGMT_GUEST_ADDR, &a.sin_addr);
		CHECK_EQ(bind(l, (const struct sockaddr *)&a, sizeof(a)), 0);
		CHECK_EQ(listen(l, 1), 0);
		CHECK_EQ(net_dial(&net, &c, NULL), RC_OK);
		s = accepted(l);
		CHECK(s >= 0);
		CHECK_EQ(fd_wait(c, POLLOUT, now_ms() + WAIT_MS, NULL), RC_OK);
		CHECK_EQ(fd_write_all(c, "abcd", 4, now_ms() + WAIT_MS, NULL), RC_OK);
		CHECK_EQ(fd_read_exact(s, text, 4, now_ms() + WAIT_MS, NULL), RC_OK);
		CHECK_STR(text, "abcd");
	}
	guestns_stop(&g);
	net_destroy(&net);
}

TEST(destroy_aborts_what_is_connected)
{
	struct guestns guest;
	struct sockaddr_in addr = { .sin_family = AF_INET, .sin_port = htons(AGENT_PORT) };
	int listener, fd = -1, err = 0, one = 1;
	struct fault f = { 0 };
	struct net net;
	struct pollfd p;
	char c;

	SETUP();
	REQUIRE(!make("cut", &net));
	REQUIRE(!guestns_start(&guest, net.tap_fd, net.mgmt_fd, &f));
	listener = guestns_socket(&guest, SOCK_STREAM);
	inet_pton(AF_INET, AGENT_MGMT_GUEST_ADDR, &addr.sin_addr);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	CHECK(!bind(listener, (struct sockaddr *)&addr, sizeof(addr)) && !listen(listener, 1));
	CHECK(!net_dial(&net, &fd, &f));
	p = (struct pollfd){ .fd = fd, .events = POLLOUT };
	CHECK(poll(&p, 1, WAIT_MS) == 1 && !(p.revents & POLLERR));
	/* The guest is gone without a word. */
	guestns_stop(&guest);
	p.events = POLLIN;
	CHECK_EQ(poll(&p, 1, 50), 0);
	net_destroy(&net);
	CHECK_EQ(poll(&p, 1, WAIT_MS), 1);
	CHECK(read(fd, &c, 1) < 0 && (err = errno) == ECONNABORTED);
	printf("  errno after destroy: %s\n", strerrorname_np(err));
	close(fd);
	close(listener);
}

TEST(adopt_takes_over_the_listeners)
{
	struct guestns g;
	struct net net, again;

	SETUP();
	REQUIRE(make("adopt", &net) == RC_OK);
	REQUIRE(guestns_start(&g, net.tap_fd, net.mgmt_fd, NULL) == RC_OK);
	REQUIRE(net_adopt("adopt", &again, NULL) == RC_OK);
	CHECK_EQ(again.tap_fd, -1);
	close_fd(&net.tcp_fd);
	for (uint16_t i = 0; i < 4; i++) {
		_cleanup_fd_ int c = guestns_connect(&g, "203.0.113.9", (uint16_t)(80 + i), WAIT_MS), s = accepted(again.tcp_fd);

		CHECK(c >= 0 && s >= 0);
	}
	guestns_stop(&g);
	net_destroy(&net);
	net_destroy(&again);
	CHECK_EQ(entries(), 0);
}

static bool keep_one(void *arg, const char *id)
{
	return !strcmp(id, arg);
}

TEST(sweep_removes_the_others)
{
	char keep[] = "keep", path[128];
	struct net a, b, again;
	int fd;

	SETUP();
	REQUIRE(make("keep", &a) == RC_OK);
	REQUIRE(make("drop", &b) == RC_OK);
	/* What a broker leaves behind that died between making the file and the mount. */
	snprintf(path, sizeof(path), "%s/netns/half", run_dir);
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0);
	CHECK(fd >= 0);
	close_fd(&fd);
	CHECK_EQ(net_adopt("half", &again, NULL), RC_ABSENT);
	CHECK_EQ(net_init(run_dir, NULL), RC_OK);
	CHECK_EQ(net_sweep(keep_one, keep, NULL), RC_OK);
	CHECK_EQ(entries(), 1);
	CHECK_EQ(net_adopt("drop", &again, NULL), RC_ABSENT);
	CHECK_EQ(net_adopt("keep", &again, NULL), RC_OK);
	net_destroy(&again);
	net_destroy(&a);
	net_destroy(&b);
	CHECK_EQ(entries(), 0);
}

__attribute__((destructor)) static void cleanup(void)
{
	char path[128];

	if (!ready)
		return;
	snprintf(path, sizeof(path), "%s/netns", run_dir);
	umount2(path, MNT_DETACH);
	rmdir(path);
	rmdir(run_dir);
}

CHECK_MAIN()
