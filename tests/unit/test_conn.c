/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The proxy's connections at their limits: its own code on loopback sockets, with a clock that the test sets, a resolver and a ledger that
 * are the test's, and connections to the internet that end at the test's server. What takes an hour takes a line here.
 */
#include "base/cleanup.h"
#include "base/fd.h"
#include "tests/lib/check.h"
#include "tests/lib/hello.h"
#include "vmm/egress/attach.h"
#include "vmm/egress/ca.h"
#include "vmm/egress/conn.h"
#include "vmm/egress/dns.h"
#include "vmm/egress/tls.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netfilter_ipv4.h>
#include <netinet/tcp.h>
#include <openssl/pem.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define HEAD POLICY_HEAD "\ndefault public\norg acme\n"
#define RULED HEAD "rule api.test * /\n"
#define WEB "93.184.216.34"

/* --- the world ------------------------------------------------------------------------------------------------ */

static uint64_t clock_ms = 1000000;
static struct {
	struct address dst;
	uint16_t port;
} original;
static enum { UP_SERVER, UP_REFUSED, UP_SILENT } upstream;
static unsigned int connects, accepts, lookups;
static bool accept_fails;
static int server = -1, silent = -1, fillers[8];

uint64_t __wrap_now_ms(void);
uint64_t __wrap_now_ms(void)
{
	return clock_ms;
}

int __real_getsockopt(int fd, int level, int name, void *value, socklen_t *n);
int __wrap_getsockopt(int fd, int level, int name, void *value, socklen_t *n);
int __wrap_getsockopt(int fd, int level, int name, void *value, socklen_t *n)
{
	struct sockaddr_storage sa;

	if (level != IPPROTO_IP || name != SO_ORIGINAL_DST)
		return __real_getsockopt(fd, level, name, value, n);
	address_to_sockaddr(&sa, &original.dst, original.port);
	memcpy(value, &sa, sizeof(struct sockaddr_in));
	return 0;
}

int __real_accept4(int fd, struct sockaddr *sa, socklen_t *n, int flags);
int __wrap_accept4(int fd, struct sockaddr *sa, socklen_t *n, int flags);
int __wrap_accept4(int fd, struct sockaddr *sa, socklen_t *n, int flags)
{
	accepts++;
	if (!accept_fails)
		return __real_accept4(fd, sa, n, flags);
	errno = EMFILE;
	return -1;
}

/* What goes to the internet goes to the test's server, to a port where nobody is, or to one that never answers. */
int __real_connect(int fd, const struct sockaddr *sa, socklen_t n);
int __wrap_connect(int fd, const struct sockaddr *sa, socklen_t n);
int __wrap_connect(int fd, const struct sockaddr *sa, socklen_t n)
{
	const struct sockaddr_in *in = (const struct sockaddr_in *)(const void *)sa;
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(1), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t to_n = sizeof(to);

	if (sa->sa_family != AF_INET || ntohl(in->sin_addr.s_addr) >> 24 != 93)
		return __real_connect(fd, sa, n);
	connects++;
	if (upstream != UP_REFUSED)
		getsockname(upstream == UP_SERVER ? server : silent, (struct sockaddr *)&to, &to_n);
	return __real_connect(fd, (struct sockaddr *)&to, sizeof(to));
}

struct lookup {
	resolved_fn *fn;
	void *arg;
};
struct lookup_share {
	int nothing;
};
static struct lookup pending;

enum rc resolver_lookup(struct resolver *r, struct lookup_share *share, const char *name, resolved_fn *fn, void *arg, struct lookup **ret,
			struct fault *ret_f)
{
	(void)r, (void)share, (void)name, (void)ret_f;
	lookups++;
	pending = (struct lookup){ fn, arg };
	*ret = &pending;
	return RC_OK;
}

void lookup_cancel(struct lookup *l)
{
	if (l)
		l->fn = NULL;
}

enum rc lookup_share_new(struct lookup_share *above, struct lookup_share **ret, struct fault *ret_f)
{
	(void)above, (void)ret_f;
	*ret = calloc(1, sizeof(**ret));
	return *ret ? RC_OK : RC_NOMEM;
}

void lookup_share_move(struct lookup_share *s, struct lookup_share *above)
{
	(void)s, (void)above;
}

void lookup_share_free(struct lookup_share *s)
{
	free(s);
}

static bool resolve(size_t n, uint32_t ttl_s)
{
	struct lookup l = pending;
	struct address a[32];

	pending.fn = NULL;
	if (!l.fn)
		return false;
	for (size_t i = 0; i < n; i++) {
		address_parse(&a[i], WEB);
		a[i].bytes[3] = (uint8_t)(34 + i);
	}
	l.fn(l.arg, a, n, ttl_s, NULL);
	return true;
}

static struct {
	char decision[16], reason[160];
	uint64_t count;
} rows[4096];
static size_t n_rows;

bool ledger_add(struct ledger *l, const struct ledger_row *row)
{
	(void)l;
	if (n_rows == ARRAY_SIZE(rows))
		return false;
	snprintf(rows[n_rows].decision, sizeof(rows[0].decision), "%s", row->decision);
	snprintf(rows[n_rows].reason, sizeof(rows[0].reason), "%s", row->reason ? row->reason : "");
	rows[n_rows++].count = row->count;
	return true;
}

void ledger_begin(struct ledger *l, const char *org)
{
	(void)l, (void)org;
}

static const char *last_reason(void)
{
	return n_rows ? rows[n_rows - 1].reason : "(no row)";
}

/* --- the proxy ------------------------------------------------------------------------------------------------ */

static struct egress eg;
static struct ca *root;
static char dir[64];

static int listener(int sndbuf)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (sndbuf)
		setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &sndbuf, sizeof(sndbuf));
	if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0 || listen(fd, 1024) < 0)
		abort();
	return fd;
}

static int dial(int to, int rcvbuf)
{
	struct sockaddr_in a;
	socklen_t n = sizeof(a);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (rcvbuf)
		setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &rcvbuf, sizeof(rcvbuf));
	if (fd < 0 || getsockname(to, (struct sockaddr *)&a, &n) < 0 ||
	    (__real_connect(fd, (struct sockaddr *)&a, n) < 0 && errno != EINPROGRESS))
		abort();
	return fd;
}

static int udp(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0)
		abort();
	return fd;
}

static bool never_local(const struct address *a)
{
	(void)a;
	return false;
}

static void begin(void)
{
	static const uint8_t root_key[EGRESS_KEY_BYTES] = "roots";
	struct rlimit files = { 8192, 8192 };
	char path[128];
	struct fault f;
	FILE *to;

	if (eg.loop)
		return;
	signal(SIGPIPE, SIG_IGN);
	setrlimit(RLIMIT_NOFILE, &files);
	strcpy(dir, "/tmp/nb-conn-XXXXXX");
	if (!mkdtemp(dir) || loop_new(&eg.loop, &f) || ca_new(root_key, "root", &root, &f))
		abort();
	snprintf(path, sizeof(path), "%s/roots.pem", dir);
	to = fopen(path, "we");
	fputs(ca_pem(root), to);
	fclose(to);
	if (tls_new(path, &eg.tls, &f)) {
		printf("  %s\n", f.text);
		abort();
	}
	unlink(path);
	eg.has_key = true;
	eg.most = (struct usage){ .conns = EGRESS_FDS / EGRESS_FDS_PER_CONN, .tls = EGRESS_TLS_CONNS_ALL, .held = EGRESS_HELD_ALL };
	eg.reach.is_local = never_local;
	snprintf(eg.config.run_dir, sizeof(eg.config.run_dir), "%s", dir);
	server = listener(0);
	/* One connection in its queue and no room for more: a SYN is not answered. */
	silent = listener(0);
	listen(silent, 0);
	for (size_t i = 0; i < ARRAY_SIZE(fillers); i++)
		fillers[i] = dial(silent, 0);
}

static void turn(void)
{
	loop_once(eg.loop, 1, NULL);
}

#define UNTIL(cond)                                        \
	do {                                               \
		for (int i_ = 0; i_ < 2000 && !(cond); i_++) \
			turn();                            \
		CHECK(cond);                               \
	} while (0)

static void pass_ms(uint64_t ms)
{
	clock_ms += ms;
	/* The first sees the time, what it ends is closed in the next. */
	loop_once(eg.loop, 0, NULL);
	loop_once(eg.loop, 0, NULL);
}

/* A sandbox whose guests connect to *ret_tcp. */
static struct sandbox *sandbox(const char *id, const char *policy, int sndbuf, int *ret_tcp)
{
	int fds[3] = { listener(sndbuf), udp(), listener(0) };
	struct fault f;

	begin();
	loop_once(eg.loop, 0, NULL);
	*ret_tcp = fds[0];
	n_rows = connects = accepts = lookups = 0;
	upstream = UP_SERVER;
	address_parse(&original.dst, WEB);
	original.port = 8080;
	if (sandbox_set(&eg, id, policy, strlen(policy), fds, &f)) {
		printf("  %s\n", f.text);
		abort();
	}
	return sandbox_find(&eg, id);
}

static void aim_at(struct sandbox *sb, const char *name, uint16_t port)
{
	struct name_entry *e = names_get(sb->names, name);

	original.dst = (struct address){ .family = AF_INET };
	memcpy(original.dst.bytes, e->address, 4);
	original.port = port;
}

struct through {
	int guest, up;
	struct conn *conn;
};

/* A connection of a guest that has reached the server. */
static struct through through(struct sandbox *sb, int tcp, int rcvbuf)
{
	struct through t = { dial(tcp, rcvbuf), -1, NULL };
	struct conn *before = sb->conns;

	for (int i = 0; i < 2000 && t.up < 0; i++) {
		turn();
		t.up = __real_accept4(server, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	}
	for (int i = 0; i < 2000 && sb->conns && sb->conns->state == CONN_CONNECTING; i++)
		turn();
	t.conn = sb->conns != before ? sb->conns : NULL;
	return t;
}

static void through_end(struct through *t)
{
	close_fd(&t->guest);
	close_fd(&t->up);
}

/* 'R', 'E', 'T': still open. */
static char end_of(int fd)
{
	char c;
	ssize_t n = recv(fd, &c, 1, MSG_DONTWAIT | MSG_PEEK);

	return n == 0 ? 'E' : n < 0 && errno != EAGAIN ? 'R' : 'T';
}

/* --- times ----------------------------------------------------------------------------------------------------- */

/* A connection that nothing moves on ends after so long, and no sooner; all is freed. */
static void ends_idle_after(struct through *t, struct sandbox *sb, uint64_t ms)
{
	for (uint64_t left = ms - 1, step; left; left -= step) {
		step = MIN_OF(left, (uint64_t)EGRESS_HALF_MS);
		pass_ms(step);
	}
	CHECK_EQ(sb->usage.conns, 1);
	pass_ms(1);
	CHECK_EQ(sb->usage.conns, 0);
	CHECK_STR(last_reason(), "idle");
	through_end(t);
	sandbox_free(sb);
}

TEST(a_quiet_connection_ends_after_its_time)
{
	int tcp, value = 0;
	struct sandbox *sb = sandbox("idle", HEAD, 0, &tcp);
	struct through t = through(sb, tcp, 0);
	socklen_t n = sizeof(value);

	REQUIRE(t.up >= 0 && t.conn);
	for (int i = 0; i < 2; i++) {
		CHECK_EQ(getsockopt(i ? t.conn->up.fd : t.conn->guest.fd, IPPROTO_TCP, TCP_KEEPIDLE, &value, &n), 0);
		CHECK_EQ(value, EGRESS_KEEPALIVE_S);
		CHECK_EQ(getsockopt(i ? t.conn->up.fd : t.conn->guest.fd, SOL_SOCKET, SO_KEEPALIVE, &value, &n), 0);
		CHECK_EQ(value, 1);
	}
	pass_ms(EGRESS_IDLE_MS / 2);
	CHECK_EQ(write(t.up, "x", 1), 1);
	UNTIL(t.conn->in.bytes == 1);
	ends_idle_after(&t, sb, EGRESS_IDLE_MS); /* from the last byte on */
}

TEST(a_half_closed_connection_ends_after_its_time)
{
	int tcp;
	struct sandbox *sb = sandbox("half", HEAD, 0, &tcp);
	struct through t = through(sb, tcp, 0);

	REQUIRE(t.up >= 0 && t.conn);
	shutdown(t.guest, SHUT_WR);
	UNTIL(t.conn->out.shut);
	ends_idle_after(&t, sb, EGRESS_HALF_MS);
}

TEST(a_hello_a_name_and_an_address_have_their_time)
{
	int tcp;
	struct sandbox *sb = sandbox("times", HEAD, 0, &tcp);
	_cleanup_fd_ int a = -1, b = -1, c = -1;

	aim_at(sb, "web.test", 443);
	a = dial(tcp, 0);
	UNTIL(sb->usage.conns == 1);
	pass_ms(EGRESS_FIRST_MS - 1);
	CHECK_EQ(sb->usage.conns, 1);
	pass_ms(1);
	CHECK_EQ(sb->usage.conns, 0);
	CHECK_STR(last_reason(), "no ClientHello in time");
	aim_at(sb, "web.test", 8080);
	b = dial(tcp, 0);
	UNTIL(lookups == 1);
	pass_ms(EGRESS_RESOLVE_MS - 1);
	CHECK_EQ(sb->usage.conns, 1);
	pass_ms(1);
	CHECK_EQ(sb->usage.conns, 0);
	CHECK_STR(last_reason(), "the resolver did not answer");
	/* Addresses that say nothing: the next one after its time, and an end to all. */
	upstream = UP_SILENT;
	c = dial(tcp, 0);
	UNTIL(lookups == 2);
	REQUIRE(resolve(20, 60));
	CHECK_EQ(connects, 1);
	pass_ms(EGRESS_CONNECT_ONE_MS - 1);
	CHECK_EQ(connects, 1);
	for (unsigned int i = 1; i * EGRESS_CONNECT_ONE_MS < EGRESS_CONNECT_MS; i++) {
		pass_ms(i == 1 ? 1 : EGRESS_CONNECT_ONE_MS);
		CHECK_EQ(connects, 1 + i);
	}
	pass_ms(EGRESS_CONNECT_ONE_MS - 1);
	CHECK_EQ(sb->usage.conns, 1);
	pass_ms(1);
	CHECK_EQ(sb->usage.conns, 0);
	CHECK_STR(last_reason(), "no answer");
	sandbox_free(sb);
}

TEST(not_all_addresses_of_a_name_are_tried)
{
	int tcp;
	struct sandbox *sb = sandbox("addresses", HEAD, 0, &tcp);
	_cleanup_fd_ int a = -1;

	upstream = UP_REFUSED;
	aim_at(sb, "many.test", 8080);
	a = dial(tcp, 0);
	UNTIL(lookups == 1);
	REQUIRE(resolve(20, 60));
	UNTIL(!sb->usage.conns);
	CHECK_STR(last_reason(), "connection refused");
	CHECK_EQ(connects, EGRESS_ADDRS_MAX);
	sandbox_free(sb);
}

TEST(a_refusal_waits_so_long_for_its_reader)
{
	int tcp;
	struct sandbox *sb = sandbox("linger", POLICY_HEAD "\ndefault none\norg acme\n", 0, &tcp);
	_cleanup_fd_ int a = -1;
	char text[256] = "";

	original.port = 80;
	a = dial(tcp, 0);
	UNTIL(sb->usage.conns == 1);
	CHECK(write(a, "GET / HTTP/1.1\r\nHost: x\r\n\r\n", 27) == 27);
	UNTIL(sb->conns->state == CONN_LINGER);
	pass_ms(EGRESS_LINGER_MS - 1);
	CHECK_EQ(sb->usage.conns, 1);
	pass_ms(1);
	CHECK_EQ(sb->usage.conns, 0);
	CHECK(recv(a, text, sizeof(text) - 1, MSG_DONTWAIT) > 12 && !strncmp(text, "HTTP/1.1 403", 12));
	sandbox_free(sb);
}

/* --- what is remembered ----------------------------------------------------------------------------------------- */

static void connect_once(struct sandbox *sb, int tcp, uint32_t ttl_s)
{
	int fd = dial(tcp, 0);
	int up = -1;

	UNTIL(sb->usage.conns == 1);
	if (pending.fn)
		resolve(1, ttl_s);
	for (int i = 0; i < 2000 && up < 0; i++) {
		turn();
		up = __real_accept4(server, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	}
	CHECK(up >= 0);
	pending.fn = NULL;
	close_fd(&fd);
	close_fd(&up);
	UNTIL(sb->usage.conns == 0);
}

TEST(addresses_are_remembered_neither_too_short_nor_too_long)
{
	int tcp;
	struct sandbox *sb = sandbox("cache", HEAD, 0, &tcp);

	aim_at(sb, "quick.test", 8080);
	connect_once(sb, tcp, 0);
	pass_ms(EGRESS_CACHE_MIN_S * 1000 - 1);
	connect_once(sb, tcp, 0);
	CHECK_EQ(lookups, 1);
	pass_ms(1);
	connect_once(sb, tcp, 86400);
	CHECK_EQ(lookups, 2);
	pass_ms(EGRESS_CACHE_MAX_S * 1000 - 1);
	connect_once(sb, tcp, 86400);
	CHECK_EQ(lookups, 2);
	pass_ms(1);
	connect_once(sb, tcp, 30);
	CHECK_EQ(lookups, 3);
	pass_ms(29999);
	connect_once(sb, tcp, 30);
	CHECK_EQ(lookups, 3);
	pass_ms(1);
	connect_once(sb, tcp, 30);
	CHECK_EQ(lookups, 4);
	sandbox_free(sb);
}

static X509 *leaf(struct ca *ca, SSL *ssl, int i)
{
	char name[32];

	clock_ms++;
	snprintf(name, sizeof(name), "n%d.test", i);
	return ca_use(ca, ssl, name, NULL) ? NULL : SSL_get_certificate(ssl);
}

TEST(certificates_of_a_sandbox_are_bounded)
{
	static const uint8_t key[EGRESS_KEY_BYTES] = "leaves";
	SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());
	SSL *ssl = SSL_new(ctx);
	ASN1_INTEGER *serials[EGRESS_LEAVES_MAX + 1];
	struct ca *ca = NULL;

	begin();
	REQUIRE(!ca_new(key, "leaves", &ca, NULL));
	for (int i = 0; i < EGRESS_LEAVES_MAX; i++)
		serials[i] = ASN1_INTEGER_dup(X509_get0_serialNumber(leaf(ca, ssl, i)));
	/* All are kept; the first is used again, so that the second is the oldest when one more comes. */
	for (int i = EGRESS_LEAVES_MAX - 1; i >= 0; i--)
		CHECK(!ASN1_INTEGER_cmp(serials[i], X509_get0_serialNumber(leaf(ca, ssl, i))));
	serials[EGRESS_LEAVES_MAX] = ASN1_INTEGER_dup(X509_get0_serialNumber(leaf(ca, ssl, EGRESS_LEAVES_MAX)));
	for (int i = 0; i <= EGRESS_LEAVES_MAX; i++)
		if (i != EGRESS_LEAVES_MAX - 1)
			CHECK(!ASN1_INTEGER_cmp(serials[i], X509_get0_serialNumber(leaf(ca, ssl, i))));
	CHECK(ASN1_INTEGER_cmp(serials[EGRESS_LEAVES_MAX - 1], X509_get0_serialNumber(leaf(ca, ssl, EGRESS_LEAVES_MAX - 1))) != 0);
	for (int i = 0; i <= EGRESS_LEAVES_MAX; i++)
		ASN1_INTEGER_free(serials[i]);
	SSL_free(ssl);
	SSL_CTX_free(ctx);
	ca_free(ca);
}

TEST(rows_of_a_sandbox_have_a_rate)
{
	int tcp;
	struct sandbox *sb = sandbox("rows", HEAD, 0, &tcp);
	struct ledger_row row = { .decision = "allow" };

	for (int i = 0; i < EGRESS_ROWS_BURST + 100; i++)
		sandbox_row(sb, &row);
	CHECK_EQ(n_rows, EGRESS_ROWS_BURST);
	clock_ms += 1000;
	loop_once(eg.loop, 0, NULL);
	n_rows = 0;
	for (int i = 0; i < 100; i++)
		sandbox_row(sb, &row);
	/* What is missing is told first. */
	CHECK_STR(rows[0].decision, "dropped");
	CHECK_EQ(rows[0].count, 100);
	CHECK_EQ(n_rows, EGRESS_ROWS_PER_S + 1);
	n_rows = 0;
	sandbox_free(sb);
	CHECK_STR(rows[n_rows - 1].decision, "dropped");
	CHECK_EQ(rows[n_rows - 1].count, 100 - EGRESS_ROWS_PER_S);
}

TEST(sandboxes_are_bounded)
{
	static int fds[3];
	size_t made = 0;
	enum rc rc = RC_OK;
	struct fault f;

	begin();
	REQUIRE(!eg.n_sandboxes);
	while (!rc && made <= EGRESS_SANDBOXES_MAX) {
		char id[32];

		snprintf(id, sizeof(id), "many%zu", made);
		/* Descriptors are not what is bounded here. */
		fds[0] = made < EGRESS_SANDBOXES_MAX - 1 ? -1 : udp();
		fds[1] = made < EGRESS_SANDBOXES_MAX - 1 ? -1 : udp();
		fds[2] = made < EGRESS_SANDBOXES_MAX - 1 ? -1 : udp();
		if (fds[0] < 0) {
			struct sandbox *sb = calloc(1, sizeof(*sb));

			snprintf(sb->id, sizeof(sb->id), "%s", id);
			sb->tcp.fd = sb->dns_udp.fd = sb->dns_tcp.fd = -1;
			sb->eg = &eg;
			sb->next = eg.sandboxes;
			eg.sandboxes = sb;
			eg.n_sandboxes++;
		} else {
			rc = sandbox_set(&eg, id, HEAD, strlen(HEAD), fds, &f);
		}
		made += !rc;
	}
	CHECK_EQ(rc, RC_LIMIT);
	CHECK_EQ(made, EGRESS_SANDBOXES_MAX);
	while (eg.sandboxes)
		sandbox_free(eg.sandboxes);
}

/* --- one sandbox and another ------------------------------------------------------------------------------------ */

TEST(a_flood_of_connections_of_one_does_not_hold_up_another)
{
	int tcp, other_tcp, flood[200];
	struct sandbox *sb = sandbox("flood", HEAD, 0, &tcp), *other = sandbox("other", HEAD, 0, &other_tcp);
	_cleanup_fd_ int one = -1;

	for (size_t i = 0; i < ARRAY_SIZE(flood); i++)
		flood[i] = dial(tcp, 0);
	one = dial(other_tcp, 0);
	loop_once(eg.loop, 5, NULL);
	CHECK_EQ(sb->usage.conns, EGRESS_ACCEPT_BATCH);
	CHECK_EQ(other->usage.conns, 1);
	for (size_t i = 0; i < ARRAY_SIZE(flood); i++)
		close(flood[i]);
	sandbox_free(sb);
	sandbox_free(other);
	for (int fd; (fd = __real_accept4(server, NULL, NULL, SOCK_CLOEXEC)) >= 0;)
		close(fd);
}

TEST(without_descriptors_a_listener_rests)
{
	int tcp;
	struct sandbox *sb = sandbox("pause", HEAD, 0, &tcp);
	_cleanup_fd_ int a = dial(tcp, 0);
	unsigned int before;

	accept_fails = true;
	UNTIL(accepts == 1);
	for (int i = 0; i < 20; i++)
		loop_once(eg.loop, 0, NULL);
	pass_ms(EGRESS_ACCEPT_PAUSE_MS - 1);
	CHECK_EQ(accepts, 1);
	accept_fails = false;
	before = accepts;
	pass_ms(1);
	UNTIL(accepts > before && sb->usage.conns == 1);
	sandbox_free(sb);
	for (int fd; (fd = __real_accept4(server, NULL, NULL, SOCK_CLOEXEC)) >= 0;)
		close(fd);
}

static void large_buffers(int fd)
{
	int n = 4 << 20;

	setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &n, sizeof(n));
	setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &n, sizeof(n));
}

TEST(a_stream_of_one_does_not_hold_up_another)
{
	static char mem[1 << 20];
	int tcp, other_tcp, left = 0;
	struct sandbox *sb = sandbox("stream", HEAD, 0, &tcp), *other = sandbox("small", HEAD, 0, &other_tcp);
	struct through t, o;
	uint64_t before;

	if (getuid())
		SKIP("needs root for large socket buffers");
	large_buffers(tcp);
	large_buffers(server);
	t = through(sb, tcp, 0);
	o = through(other, other_tcp, 0);
	REQUIRE(t.conn && o.conn);
	large_buffers(t.guest);
	large_buffers(t.conn->up.fd);
	for (int i = 0; i < 200 && left < (int)sizeof(mem) / 2; i++) {
		CHECK(write(t.guest, mem, sizeof(mem)) > 0 || errno == EAGAIN);
		CHECK_EQ(ioctl(t.conn->guest.fd, FIONREAD, &left), 0);
		usleep(1000);
	}
	CHECK(left > EGRESS_RELAY_ROUNDS * EGRESS_BUFFER);
	CHECK_EQ(write(o.guest, mem, 1000), 1000);
	before = t.conn->out.bytes;
	/* One turn: a share of the one, all of the other. */
	loop_once(eg.loop, 5, NULL);
	if (!o.conn->out.bytes)
		loop_once(eg.loop, 5, NULL);
	CHECK_EQ(o.conn->out.bytes, 1000);
	CHECK(t.conn->out.bytes - before <= 2 * EGRESS_RELAY_ROUNDS * EGRESS_BUFFER);
	through_end(&t);
	through_end(&o);
	sandbox_free(sb);
	sandbox_free(other);
}

/* Reads what is there. */
static size_t swallow(int fd)
{
	static char mem[65536];
	size_t sum = 0;
	ssize_t n;

	while ((n = recv(fd, mem, sizeof(mem), MSG_DONTWAIT)) > 0)
		sum += (size_t)n;
	return sum;
}

#define HOARD 700
#define EACH 262144

TEST(memory_of_a_sandbox_is_bounded_and_no_neighbours_business)
{
	static char mem[65536];
	static struct through t[HOARD];
	static size_t got[HOARD], sent[HOARD];
	int tcp, other_tcp, small = 4096;
	struct sandbox *sb = sandbox("hoard", HEAD, 4096, &tcp), *other = sandbox("neighbour", HEAD, 4096, &other_tcp);
	struct through o;
	size_t most = 0, passed = 0, alone = 0, turns = 0, done;

	for (size_t i = 0; i < HOARD; i++) {
		if (i % 200 == 199)
			pass_ms(1000); /* its rate of new connections */
		t[i] = through(sb, tcp, 4096);
		REQUIRE(t[i].conn);
		setsockopt(t[i].up, SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
	}
	/* Nobody reads. */
	for (int round = 0; round < 40; round++) {
		for (size_t i = 0; i < HOARD; i++) {
			ssize_t n = sent[i] < EACH ? send(t[i].up, mem, MIN_OF(sizeof(mem), EACH - sent[i]), MSG_DONTWAIT) : 0;

			sent[i] += n > 0 ? (size_t)n : 0;
		}
		for (int k = 0; k < 4; k++)
			loop_once(eg.loop, 0, NULL);
		most = MAX_OF(most, sb->usage.held);
	}
	CHECK(most > EGRESS_HELD_MAX);
	/* Each would hold EGRESS_BUFFER. */
	CHECK(most <= EGRESS_HELD_MAX + EGRESS_BUFFER + (HOARD - EGRESS_HELD_MAX / EGRESS_BUFFER) * EGRESS_HELD_FLOOR);
	printf("  %zu connections that nobody reads from hold %zu KiB\n", (size_t)HOARD, most >> 10);
	/* One of them that is read from goes on. */
	for (int i = 0; i < 4000 && got[0] < EACH; i++) {
		ssize_t n = sent[0] < EACH ? send(t[0].up, mem, MIN_OF(sizeof(mem), EACH - sent[0]), MSG_DONTWAIT) : 0;

		sent[0] += n > 0 ? (size_t)n : 0;
		got[0] += swallow(t[0].guest);
		loop_once(eg.loop, 1, NULL);
	}
	CHECK_EQ(got[0], EACH);
	CHECK(sb->usage.held > EGRESS_HELD_MAX / 4 * 3);
	/* A neighbour does not notice. */
	o = through(other, other_tcp, 0);
	REQUIRE(o.conn);
	for (; turns < 20000 && passed < 1 << 20; turns++) {
		ssize_t n = alone < 1 << 20 ? send(o.up, mem, sizeof(mem), MSG_DONTWAIT) : 0;

		alone += n > 0 ? (size_t)n : 0;
		loop_once(eg.loop, 1, NULL);
		passed += swallow(o.guest);
		CHECK(other->usage.held <= EGRESS_BUFFER);
		CHECK(!o.conn->full[WAY_IN]);
	}
	CHECK(passed >= 1 << 20);
	/* Everything comes, once it is taken. */
	for (int round = 0; round < 20000; round++) {
		done = 0;
		for (size_t i = 0; i < HOARD; i++) {
			ssize_t n = sent[i] < EACH ? send(t[i].up, mem, MIN_OF(sizeof(mem), EACH - sent[i]), MSG_DONTWAIT) : 0;

			sent[i] += n > 0 ? (size_t)n : 0;
			got[i] += swallow(t[i].guest);
			done += got[i] == EACH;
		}
		if (done == HOARD)
			break;
		loop_once(eg.loop, 1, NULL);
	}
	CHECK_EQ(done, HOARD);
	UNTIL(sb->usage.held == 0);
	for (size_t i = 0; i < HOARD; i++)
		through_end(&t[i]);
	through_end(&o);
	sandbox_free(sb);
	sandbox_free(other);
}

/* --- DNS ------------------------------------------------------------------------------------------------------- */

static const uint8_t question[] = { 0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 3, 'w', 'e', 'b', 4, 't', 'e', 's', 't', 0, 0, 1, 0, 1 };

TEST(dns_is_answered_in_turns_with_its_time_to_live)
{
	int tcp;
	struct sandbox *sb = sandbox("dns", HEAD, 0, &tcp);
	struct sockaddr_in a;
	socklen_t n = sizeof(a);
	_cleanup_fd_ int fd = udp();
	uint8_t answer[512];
	int answers = 0;

	CHECK_EQ(getsockname(sb->dns_udp.fd, (struct sockaddr *)&a, &n), 0);
	CHECK_EQ(__real_connect(fd, (struct sockaddr *)&a, n), 0);
	for (int i = 0; i < EGRESS_DNS_BATCH + 10; i++)
		CHECK_EQ(send(fd, question, sizeof(question), 0), sizeof(question));
	loop_once(eg.loop, 5, NULL);
	for (ssize_t k; (k = recv(fd, answer, sizeof(answer), 0)) > 0; answers++) {
		REQUIRE((size_t)k >= sizeof(question) + 16);
		/* A pointer, type, class, then the time. */
		CHECK_EQ(answer[sizeof(question) + 6] << 24 | answer[sizeof(question) + 7] << 16 | answer[sizeof(question) + 8] << 8 |
				 answer[sizeof(question) + 9], EGRESS_DNS_TTL_S);
	}
	CHECK_EQ(answers, EGRESS_DNS_BATCH);
	loop_once(eg.loop, 5, NULL);
	while (recv(fd, answer, sizeof(answer), 0) > 0)
		answers++;
	CHECK_EQ(answers, EGRESS_DNS_BATCH + 10);
	sandbox_free(sb);
}

TEST(a_quiet_dns_connection_ends)
{
	int tcp;
	struct sandbox *sb = sandbox("dnstcp", HEAD, 0, &tcp);
	_cleanup_fd_ int fd = dial(sb->dns_tcp.fd, 0);

	UNTIL(sb->n_dns_conns == 1);
	pass_ms(EGRESS_DNS_IDLE_MS - 1);
	CHECK_EQ(sb->n_dns_conns, 1);
	pass_ms(1);
	CHECK_EQ(sb->n_dns_conns, 0);
	CHECK_EQ(end_of(fd), 'E');
	sandbox_free(sb);
}

/* --- TLS that is ended here --------------------------------------------------------------------------------------- */

struct talk {
	struct through t;
	SSL_CTX *ctx[2];
	SSL *guest, *up;
};

static const char *up_name = "api.test", *guest_alpn;

static bool talk_begin(struct talk *k, struct sandbox *sb, int tcp)
{
	memset(k, 0, sizeof(*k));
	k->ctx[0] = SSL_CTX_new(TLS_client_method());
	k->ctx[1] = SSL_CTX_new(TLS_server_method());
	k->guest = SSL_new(k->ctx[0]);
	k->up = SSL_new(k->ctx[1]);
	k->t = (struct through){ dial(tcp, 4096), -1, NULL };
	SSL_set_fd(k->guest, k->t.guest);
	SSL_set_tlsext_host_name(k->guest, "api.test");
	if (guest_alpn)
		SSL_set_alpn_protos(k->guest, (const unsigned char *)guest_alpn, (unsigned int)strlen(guest_alpn));
	ca_use(root, k->up, up_name, NULL);
	for (int i = 0; i < 2000 && k->t.up < 0; i++) {
		SSL_connect(k->guest);
		turn();
		if (pending.fn)
			resolve(1, 60);
		k->t.up = __real_accept4(server, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	}
	UNTIL(sb->conns && sb->conns->state == CONN_TLS);
	k->t.conn = sb->conns;
	SSL_set_fd(k->up, k->t.up);
	return k->t.up >= 0 && k->t.conn;
}

static bool talk_shake(struct talk *k)
{
	int a = 0, b = 0;

	for (int i = 0; i < 2000 && (a != 1 || b != 1); i++) {
		b = SSL_accept(k->up);
		a = SSL_connect(k->guest);
		turn();
	}
	return a == 1 && b == 1;
}

static void talk_end(struct talk *k)
{
	SSL_free(k->guest);
	SSL_free(k->up);
	SSL_CTX_free(k->ctx[0]);
	SSL_CTX_free(k->ctx[1]);
	through_end(&k->t);
}

TEST(a_handshake_has_its_time)
{
	int tcp;
	struct sandbox *sb = sandbox("shake", RULED, 0, &tcp);
	struct talk k;

	aim_at(sb, "api.test", 443);
	REQUIRE(talk_begin(&k, sb, tcp));
	pass_ms(EGRESS_TLS_HANDSHAKE_MS - 1);
	CHECK_EQ(sb->usage.conns, 1);
	pass_ms(1);
	CHECK_EQ(sb->usage.conns, 0);
	CHECK_EQ(sb->usage.tls, 0);
	CHECK_STR(last_reason(), "the TLS handshake took too long");
	talk_end(&k);
	sandbox_free(sb);
}

TEST(a_bad_certificate_is_the_reason_also_for_a_guest_that_speaks_no_http)
{
	int tcp, n = 0;
	struct sandbox *sb = sandbox("alpn", RULED, 0, &tcp);
	struct talk k;

	up_name = "somebody.else.test";
	aim_at(sb, "api.test", 443);
	guest_alpn = "\12postgresql";
	REQUIRE(talk_begin(&k, sb, tcp));
	for (int i = 0; i < 2000 && sb->usage.conns; i++) {
		SSL_accept(k.up);
		n = SSL_connect(k.guest);
		turn();
	}
	CHECK(n != 1);
	CHECK_EQ(sb->usage.conns, 0);
	CHECK_STR(last_reason(), "hostname mismatch");
	up_name = "api.test";
	guest_alpn = NULL;
	talk_end(&k);
	sandbox_free(sb);
}

TEST(a_quiet_intercepted_connection_holds_nothing_and_ends)
{
	static const char ask[] = "GET / HTTP/1.1\r\nHost: api.test\r\n\r\n", say[] = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
	int tcp, n = -1;
	struct sandbox *sb = sandbox("quiet", RULED, 0, &tcp);
	char text[512];
	struct talk k;

	aim_at(sb, "api.test", 443);
	REQUIRE(talk_begin(&k, sb, tcp) && talk_shake(&k));
	CHECK(SSL_write(k.guest, ask, sizeof(ask) - 1) > 0);
	for (int i = 0; i < 2000 && (n = SSL_read(k.up, text, sizeof(text))) <= 0; i++)
		turn();
	CHECK(n > 0);
	CHECK(SSL_write(k.up, say, sizeof(say) - 1) > 0);
	for (int i = 0; i < 2000 && (n = SSL_read(k.guest, text, sizeof(text))) <= 0; i++)
		turn();
	CHECK(n > 0);
	turn();
	CHECK_EQ(sb->usage.held, 0);
	pass_ms(EGRESS_TLS_IDLE_MS - 1);
	CHECK_EQ(sb->usage.conns, 1);
	pass_ms(1);
	CHECK_EQ(sb->usage.conns, 0);
	CHECK_STR(last_reason(), "idle");
	talk_end(&k);
	sandbox_free(sb);
}

TEST(a_body_is_taken_in_pieces_and_what_waits_is_counted)
{
	static const char say[] = "HTTP/1.1 200 OK\r\nContent-Length: 4000000\r\n\r\n";
	static const char ask[] = "GET / HTTP/1.1\r\nHost: api.test\r\n\r\n";
	static char mem[16384], text[16384];
	int tcp, n = -1;
	struct sandbox *sb = sandbox("pieces", RULED, 4096, &tcp);
	size_t sent = 0, got = 0, most = 0;
	struct talk k;

	aim_at(sb, "api.test", 443);
	REQUIRE(talk_begin(&k, sb, tcp) && talk_shake(&k));
	CHECK(SSL_write(k.guest, ask, sizeof(ask) - 1) > 0);
	for (int i = 0; i < 2000 && (n = SSL_read(k.up, text, sizeof(text))) <= 0; i++)
		turn();
	CHECK(SSL_write(k.up, say, sizeof(say) - 1) > 0);
	/* The guest reads only once nothing moves any more. */
	for (int still = 0; got < 4000000 && still < 20000; still++) {
		int w = sent < 4000000 ? SSL_write(k.up, mem, (int)MIN_OF(sizeof(mem), 4000000 - sent)) : 0;

		sent += w > 0 ? (size_t)w : 0;
		loop_once(eg.loop, 1, NULL);
		most = MAX_OF(most, sb->usage.held);
		if (w > 0 && !got)
			continue;
		if (!got && still < 200)
			continue;
		while ((n = SSL_read(k.guest, text, sizeof(text))) > 0)
			got += (size_t)n;
	}
	CHECK(got >= 4000000);
	/* At most as much as one connection may hold, and counted. */
	CHECK(most >= 65536);
	CHECK(most <= EGRESS_TLS_BUFFER + EGRESS_TLS_PIECE + EGRESS_TLS_OUT);
	UNTIL(sb->usage.held == 0);
	talk_end(&k);
	sandbox_free(sb);
}

TEST(an_intercepted_connection_waits_for_room_and_is_woken)
{
	static const char say[] = "HTTP/1.1 200 OK\r\nContent-Length: 4000000\r\n\r\n", ask[] = "GET / HTTP/1.1\r\nHost: api.test\r\n\r\n";
	static char mem[16384], text[16384];
	int tcp, n = -1;
	struct sandbox *sb = sandbox("room", RULED, 4096, &tcp);
	struct through other;
	struct talk k;

	aim_at(sb, "other.test", 8080);
	other.guest = dial(tcp, 0);
	UNTIL(lookups == 1);
	REQUIRE(resolve(1, 60));
	for (other.up = -1; other.up < 0;) {
		turn();
		other.up = __real_accept4(server, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	}
	aim_at(sb, "api.test", 443);
	REQUIRE(talk_begin(&k, sb, tcp) && talk_shake(&k));
	/* As if others held it. */
	sandbox_count(sb, 0, 0, EGRESS_HELD_MAX);
	CHECK(SSL_write(k.guest, ask, sizeof(ask) - 1) > 0);
	for (int i = 0; i < 2000 && (n = SSL_read(k.up, text, sizeof(text))) <= 0; i++)
		turn();
	CHECK(SSL_write(k.up, say, sizeof(say) - 1) > 0);
	for (int i = 0; i < 300; i++) {
		SSL_write(k.up, mem, sizeof(mem));
		loop_once(eg.loop, 0, NULL);
	}
	CHECK(k.t.conn->full[WAY_IN] && !k.t.conn->full[WAY_OUT]);
	/* A piece, and what its framing makes of it. */
	CHECK(k.t.conn->held[WAY_IN] >= EGRESS_HELD_FLOOR && k.t.conn->held[WAY_IN] <= 4 * EGRESS_HELD_FLOOR);
	/* There is room; whoever notices it is another connection. */
	sandbox_count(sb, 0, 0, (size_t)-EGRESS_HELD_MAX);
	CHECK_EQ(write(other.guest, "x", 1), 1);
	for (int i = 0; i < 300; i++) {
		SSL_write(k.up, mem, sizeof(mem));
		loop_once(eg.loop, 0, NULL);
	}
	CHECK(k.t.conn->held[WAY_IN] > 8 * EGRESS_HELD_FLOOR);
	talk_end(&k);
	through_end(&other);
	sandbox_free(sb);
}

/* --- organizations ----------------------------------------------------------------------------------------------- */

/* Each is open, or has its row. */
static size_t dial_many(int tcp, int *fds, size_t n, struct sandbox *sb)
{
	size_t before = sb->usage.conns + n_rows;

	for (size_t i = 0; i < n; i++)
		fds[i] = dial(tcp, 0);
	UNTIL(sb->usage.conns + n_rows == before + n);
	return sb->usage.conns;
}

static void server_forget(void)
{
	int fd;

	while ((fd = __real_accept4(server, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)) >= 0)
		close(fd);
}

/* One organization stalls on everything, with two machines; another one's first visits go as if it were alone. */
TEST(an_organization_leaves_as_much_as_it_has)
{
	const struct usage most = eg.most;
	int tcp[3], fds[60];
	struct sandbox *a = sandbox("a1", HEAD, 0, &tcp[0]), *b = sandbox("a2", HEAD, 0, &tcp[1]),
		       *other = sandbox("b1", POLICY_HEAD "\ndefault public\norg bolt\n", 0, &tcp[2]);
	uint64_t hurry = clock_ms;
	struct through t;

	eg.most.conns = 24;
	CHECK(a->tenant == b->tenant && a->tenant != other->tenant);
	upstream = UP_SILENT;
	CHECK_EQ(dial_many(tcp[0], fds, 9, a), 9);
	dial_many(tcp[1], fds + 9, 20, b);
	CHECK_EQ(n_rows, 17);
	CHECK_EQ(a->tenant->usage.conns, 12);
	CHECK_EQ(b->usage.conns, 3);
	CHECK_STR(rows[0].decision, "deny");
	/* The second's, at once, with the clock standing still. */
	upstream = UP_SERVER;
	t = through(other, tcp[2], 0);
	CHECK(t.conn && t.conn->state == CONN_RELAY);
	CHECK_EQ(clock_ms, hurry);
	dial_many(tcp[2], fds + 29, 20, other);
	CHECK_EQ(other->usage.conns, 6);
	/* What one gives back is both's. */
	for (size_t i = 0; i < 29; i++)
		close(fds[i]);
	pass_ms(EGRESS_CONNECT_MS);
	n_rows = 0;
	CHECK_EQ(eg.usage.conns, 6);
	CHECK_EQ(dial_many(tcp[2], fds, 10, other), 12);
	for (size_t i = 0; i < 10; i++)
		close(fds[i]);
	for (size_t i = 29; i < 49; i++)
		close(fds[i]);
	through_end(&t);
	server_forget();
	UNTIL(eg.usage.conns == 0);
	sandbox_free(a);
	CHECK(b->tenant->n_sandboxes == 1);
	/* A machine whose policy tells another name takes its counts along. */
	sandbox_set_policy(b, POLICY_HEAD "\ndefault none\norg bolt\n", strlen(POLICY_HEAD "\ndefault none\norg bolt\n"));
	CHECK(b->tenant == other->tenant && other->tenant->n_sandboxes == 2);
	sandbox_free(b);
	sandbox_free(other);
	CHECK(!eg.tenants || eg.tenants->n_sandboxes);
	eg.most = most;
}

TEST(an_organization_s_handshakes_leave_as_much_as_it_has)
{
	const struct usage most = eg.most;
	int tcp[2];
	struct sandbox *sb = sandbox("a1", RULED, 0, &tcp[0]), *other = sandbox("b1", POLICY_HEAD "\ndefault public\norg bolt\nrule api.test * /\n", 0, &tcp[1]);
	struct talk a, b, c;

	eg.most.tls = 2;
	aim_at(sb, "api.test", 443);
	REQUIRE(talk_begin(&a, sb, tcp[0]));
	CHECK(!talk_begin(&b, sb, tcp[0]) || b.t.conn == a.t.conn);
	CHECK_EQ(sb->usage.tls, 1);
	CHECK_STR(last_reason(), "limit of intercepted connections of the organization");
	talk_end(&b);
	aim_at(other, "api.test", 443);
	REQUIRE(talk_begin(&c, other, tcp[1]));
	CHECK_EQ(eg.usage.tls, 2);
	CHECK(talk_shake(&c));
	talk_end(&a);
	talk_end(&c);
	UNTIL(eg.usage.tls == 0);
	sandbox_free(sb);
	sandbox_free(other);
	eg.most = most;
}

TEST(an_organization_s_memory_leaves_as_much_as_it_has)
{
	static const char say[] = "HTTP/1.1 200 OK\r\nContent-Length: 4000000\r\n\r\n", ask[] = "GET / HTTP/1.1\r\nHost: api.test\r\n\r\n";
	static char mem[16384], text[16384], big[65536];
	const struct usage most = eg.most;
	int tcp[3], n = -1;
	struct sandbox *a = sandbox("a1", HEAD, 4096, &tcp[0]), *b = sandbox("a2", RULED, 4096, &tcp[1]),
		       *other = sandbox("b1", POLICY_HEAD "\ndefault public\norg bolt\n", 4096, &tcp[2]);
	struct through t = through(other, tcp[2], 4096);
	struct talk k;

	REQUIRE(t.conn);
	aim_at(b, "api.test", 443);
	REQUIRE(talk_begin(&k, b, tcp[1]) && talk_shake(&k));
	/* As if its other machine held what it may. */
	eg.most.held = 1 << 20;
	sandbox_count(a, 0, 0, 1 << 19);
	CHECK(SSL_write(k.guest, ask, sizeof(ask) - 1) > 0);
	for (int i = 0; i < 2000 && (n = SSL_read(k.up, text, sizeof(text))) <= 0; i++)
		turn();
	CHECK(SSL_write(k.up, say, sizeof(say) - 1) > 0);
	for (int i = 0; i < 300; i++) {
		SSL_write(k.up, mem, sizeof(mem));
		send(t.up, big, sizeof(big), MSG_NOSIGNAL | MSG_DONTWAIT);
		loop_once(eg.loop, 0, NULL);
	}
	CHECK(k.t.conn->full[WAY_IN] && k.t.conn->held[WAY_IN] <= 4 * EGRESS_HELD_FLOOR);
	/* Another organization's connection holds what a connection may. */
	CHECK(other->usage.held > 2 * EGRESS_HELD_FLOOR);
	/* There is room; whoever notices it is that other one. */
	sandbox_count(a, 0, 0, (size_t) - (1 << 19));
	for (int i = 0; i < 2000 && k.t.conn->held[WAY_IN] <= 8 * EGRESS_HELD_FLOOR; i++) {
		if (recv(t.guest, text, sizeof(text), MSG_DONTWAIT) < 0 && errno != EAGAIN)
			break;
		SSL_write(k.up, mem, sizeof(mem));
		turn();
	}
	CHECK(k.t.conn->held[WAY_IN] > 8 * EGRESS_HELD_FLOOR);
	talk_end(&k);
	through_end(&t);
	UNTIL(eg.usage.held == 0);
	sandbox_free(a);
	sandbox_free(b);
	sandbox_free(other);
	eg.most = most;
}

/* --- the broker ------------------------------------------------------------------------------------------------- */

TEST(the_broker_is_tried_again_ever_more_slowly_and_what_it_forgot_goes)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	_cleanup_fd_ int broker = -1, conn = -1;
	static uint8_t mem[MESSAGE_MAX];
	struct attach *at = NULL;
	struct message_head head;
	uint64_t waited = 0;
	int tcp, fds[FD_PASS_MAX];
	struct sandbox *sb = sandbox("stale", HEAD, 0, &tcp);
	size_t n, n_fds = 0;
	struct wire w;

	sb->stale = false;
	REQUIRE(!attach_new(&eg, &at, NULL));
	loop_once(eg.loop, 0, NULL);
	/* Nobody is there: 100, 200, .. 5000, 5000 ms. */
	for (uint64_t wait = EGRESS_RETRY_MIN_MS; waited < 20000; wait = MIN_OF(wait * 2, (uint64_t)EGRESS_RETRY_MAX_MS)) {
		pass_ms(wait);
		waited += wait;
	}
	snprintf(a.sun_path, sizeof(a.sun_path), "%s/broker.sock", dir);
	broker = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	REQUIRE(!bind(broker, (struct sockaddr *)&a, sizeof(a)) && !listen(broker, 4));
	pass_ms(EGRESS_RETRY_MAX_MS - 1);
	CHECK(__real_accept4(broker, NULL, NULL, SOCK_CLOEXEC) < 0);
	pass_ms(1);
	conn = __real_accept4(broker, NULL, NULL, SOCK_CLOEXEC);
	REQUIRE(conn >= 0);
	REQUIRE(!packet_recv(conn, mem, sizeof(mem), &n, fds, &n_fds, NULL) && !message_open(mem, n, 0, &head, &w, NULL));
	message_begin(&w, mem, sizeof(mem));
	message_put_result(&w, RC_OK, "");
	REQUIRE(!message_end(&w, BROKER_EGRESS_ATTACH | MESSAGE_REPLY, head.sequence, 0, &n, NULL) && !packet_send(conn, mem, n, NULL, 0, NULL));
	UNTIL(sb->stale);
	pass_ms(EGRESS_STALE_MS - 1);
	CHECK(sandbox_find(&eg, "stale"));
	pass_ms(1);
	CHECK(!sandbox_find(&eg, "stale"));
	attach_free(at);
	unlink(a.sun_path);
	rmdir(dir);
}

CHECK_MAIN()
