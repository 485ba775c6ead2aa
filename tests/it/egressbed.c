/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/it/egressbed.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "schema/message.h"
#include "schema/policy.h"
#include "vmm/egress/dns.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define LEDGER_MAX (64u << 20)

static const struct {
	const char *name, *addr;
} zone[] = {
	{ "web.test", BED_WEB },         { "other.test", BED_OTHER },     { "a.sub.test", BED_WEB },
	{ "rebind.test", BED_PRIVATE },  { "meta.test", "169.254.169.254" }, { "loop.test", "127.0.0.1" },
	{ "api.test", BED_WEB },         { "x.svc.test", BED_OTHER },
	{ "own.test", BED_PROXY },       { "inside.test", BED_PERMITTED }, { "fake.test", "198.18.0.1" },
};
#define ZONE_N (sizeof(zone) / sizeof(zone[0]))
static unsigned int asked[ZONE_N + 1];
static pthread_mutex_t asked_lock = PTHREAD_MUTEX_INITIALIZER;

static void die(const char *what)
{
	printf("  bed: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void run(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static void run(const char *fmt, ...)
{
	char cmd[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(cmd, sizeof(cmd), fmt, ap);
	va_end(ap);
	if (system(cmd))
		die(cmd);
}

static bool ends_with(const char *s, const char *end)
{
	size_t n = strlen(s), k = strlen(end);

	return n >= k && !strcmp(s + n - k, end);
}

static void *resolver_thread(void *arg)
{
	int fd = (int)(intptr_t)arg;

	for (;;) {
		uint8_t msg[1500], out[1500];
		struct sockaddr_storage from;
		socklen_t from_n = sizeof(from);
		ssize_t n = recvfrom(fd, msg, sizeof(msg), 0, (struct sockaddr *)&from, &from_n);
		struct dns_answer a = { .rcode = DNS_NXDOMAIN, .ttl_s = 30 };
		struct dns_question q;
		size_t k, i;

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return NULL;
		if (dns_parse(msg, (size_t)n, &q))
			continue;
		for (i = 0; i < ZONE_N && strcmp(zone[i].name, q.name);)
			i++;
		pthread_mutex_lock(&asked_lock);
		asked[i]++;
		pthread_mutex_unlock(&asked_lock);
		if (ends_with(q.name, ".stall.test"))
			continue; /* nobody ever answers */
		if (ends_with(q.name, ".new.test")) {
			a.rcode = DNS_NOERROR;
			a.has_address = q.type == DNS_TYPE_A && inet_pton(AF_INET, BED_WEB, a.address) == 1;
		}
		if (i < ZONE_N) {
			a.rcode = DNS_NOERROR;
			a.has_address = q.type == DNS_TYPE_A && inet_pton(AF_INET, zone[i].addr, a.address) == 1;
		}
		k = dns_answer(msg, &q, &a, out, sizeof(out));
		sendto(fd, out, k, 0, (const struct sockaddr *)&from, from_n);
	}
}

unsigned int bed_resolved(const char *name)
{
	unsigned int n = 0;

	pthread_mutex_lock(&asked_lock);
	for (size_t i = 0; i <= ZONE_N; i++)
		if (!name || (i < ZONE_N && !strcmp(zone[i].name, name)))
			n += asked[i];
	pthread_mutex_unlock(&asked_lock);
	return n;
}

static int world_socket(struct bed *bed, int type, const char *addr, uint16_t port)
{
	_cleanup_fd_ int own = testns_own(), fd = -1;
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(port) };
	int on = 1;

	inet_pton(AF_INET, addr, &a.sin_addr);
	testns_enter(bed->world_ns);
	fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);
	testns_enter(own);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(fd, (const struct sockaddr *)&a, sizeof(a)) < 0 || (type == SOCK_STREAM && listen(fd, 512) < 0))
		die(addr);
	return take_fd(&fd);
}

int bed_listen(struct bed *bed, const char *addr, uint16_t port)
{
	return world_socket(bed, SOCK_STREAM, addr, port);
}

int bed_accept(int listener)
{
	if (fd_wait(listener, POLLIN, now_ms() + BED_WAIT_MS, NULL))
		return -1;
	return accept4(listener, NULL, NULL, SOCK_CLOEXEC);
}

static void namespaces(struct bed *bed)
{
	_cleanup_fd_ int own = testns_own();
	pthread_t t;

	if (testns_new() < 0)
		die("unshare");
	bed->world_ns = testns_own();
	testns_enter(own);
	if (testns_new() < 0)
		die("unshare");
	bed->proxy_ns = testns_own();
	run("ip link set lo up && ip link add up0 type veth peer name up1 && ip link set up1 netns /proc/%d/fd/%d && "
	    "ip addr add " BED_PROXY "/24 dev up0 && ip link set up0 up && ip route add default via " BED_WEB,
	    getpid(), bed->world_ns);
	testns_enter(bed->world_ns);
	run("ip link set lo up && ip addr add " BED_WEB "/24 dev up1 && ip addr add " BED_OTHER "/24 dev up1 && "
	    "ip addr add 93.184.216.53/24 dev up1 && ip addr add " BED_PRIVATE "/32 dev up1 && "
	    "ip addr add " BED_PERMITTED "/32 dev up1 && ip addr add 169.254.169.254/32 dev up1 && ip link set up1 up");
	testns_enter(own);
	pthread_create(&t, NULL, resolver_thread, (void *)(intptr_t)world_socket(bed, SOCK_DGRAM, "93.184.216.53", 53));
	pthread_detach(t);
}

static void daemon_start(struct bed *bed, const char *extra, bool prepared)
{
	const char *program = getenv("NESTBOX_EGRESS");
	char conf[128];
	FILE *f;

	snprintf(conf, sizeof(conf), "%s/nestbox.conf", bed->dir);
	f = fopen(conf, "we");
	fprintf(f, "state_dir = %s\nrun_dir = %s\nuser_egress = nobody\negress_resolver = 93.184.216.53\n"
		   "egress_allow_private = 10.8.0.0/16\n%s", bed->dir, bed->dir, extra ? extra : "");
	if (prepared)
		fprintf(f, "egress_ca_file = %s/roots.pem\n", bed->dir);
	fclose(f);
	bed->daemon = fork();
	if (bed->daemon)
		return;
	testns_enter(bed->proxy_ns);
	execl(program ? program : "./nestbox-egress", "nestbox-egress", "-c", conf, (char *)NULL);
	perror("exec nestbox-egress");
	_exit(127);
}

bool bed_up(struct bed *bed, const char *extra, void (*prepare)(const char *dir))
{
	char sock[128];
	struct fault f = { 0 };

	memset(bed, 0, sizeof(*bed));
	bed->broker = bed->listener = -1;
	if (getuid() || access("/dev/net/tun", R_OK | W_OK))
		return false;
	signal(SIGPIPE, SIG_IGN);
	strcpy(bed->dir, "/tmp/nb-egress-XXXXXX");
	if (!mkdtemp(bed->dir) || chmod(bed->dir, 0755) < 0)
		die("mkdtemp");
	if (net_init(bed->dir, &f) || net_create("sbx_test", &bed->net, &f) ||
	    guestns_start(&bed->guest, bed->net.tap_fd, bed->net.mgmt_fd, &f))
		die(f.text);
	namespaces(bed);
	snprintf(sock, sizeof(sock), "%s/broker.sock", bed->dir);
	if (unix_listen(sock, SOCK_SEQPACKET, 0666, (gid_t)-1, &bed->listener, &f))
		die(f.text);
	if (prepare)
		prepare(bed->dir);
	daemon_start(bed, extra, prepare != NULL);
	if (!bed_attach(bed))
		die("the daemon did not attach");
	return true;
}

void bed_down(struct bed *bed)
{
	char path[128];

	if (!bed->dir[0])
		return;
	if (bed->daemon > 0) {
		kill(bed->daemon, SIGTERM);
		waitpid(bed->daemon, NULL, 0);
	}
	guestns_stop(&bed->guest);
	net_destroy(&bed->net);
	close_fd(&bed->broker);
	close_fd(&bed->listener);
	close_fd(&bed->proxy_ns);
	close_fd(&bed->world_ns);
	snprintf(path, sizeof(path), "%s/netns", bed->dir);
	umount2(path, MNT_DETACH);
	run("rm -rf %s", bed->dir);
	bed->dir[0] = '\0';
}

/* --- the broker's part --------------------------------------------------------------------------------------- */

static void send_message(struct bed *bed, uint16_t op, uint32_t sequence, message_put_fn *put, const void *m,
			 const int *fds, size_t n_fds)
{
	static uint8_t mem[MESSAGE_MAX];
	struct wire w;
	size_t n;

	message_begin(&w, mem, sizeof(mem));
	if (op & MESSAGE_REPLY)
		message_put_result(&w, RC_OK, "");
	if (put)
		put(&w, m);
	if (message_end(&w, op, sequence, n_fds, &n, NULL) || packet_send(bed->broker, mem, n, fds, n_fds, NULL))
		die("send to the daemon");
}

bool bed_attach(struct bed *bed)
{
	static uint8_t mem[MESSAGE_MAX];
	struct message_head head;
	int fds[FD_PASS_MAX];
	size_t n, n_fds;
	struct wire w;

	if (fd_wait(bed->listener, POLLIN, now_ms() + BED_WAIT_MS, NULL))
		return false;
	close_fd(&bed->broker);
	bed->broker = accept4(bed->listener, NULL, NULL, SOCK_CLOEXEC);
	if (bed->broker < 0 || fd_wait(bed->broker, POLLIN, now_ms() + BED_WAIT_MS, NULL) ||
	    packet_recv(bed->broker, mem, sizeof(mem), &n, fds, &n_fds, NULL) || message_open(mem, n, 0, &head, &w, NULL) ||
	    head.op != BROKER_EGRESS_ATTACH)
		return false;
	send_message(bed, BROKER_EGRESS_ATTACH | MESSAGE_REPLY, head.sequence, NULL, NULL, NULL, 0);
	return true;
}

bool bed_ca(struct bed *bed, char pem[BROKER_CA_MAX])
{
	static uint8_t mem[MESSAGE_MAX];
	struct broker_egress_ca m;
	struct message_head head;
	int fds[FD_PASS_MAX];
	size_t n, n_fds;
	struct wire w;

	do {
		if (fd_wait(bed->broker, POLLIN, now_ms() + BED_WAIT_MS, NULL) ||
		    packet_recv(bed->broker, mem, sizeof(mem), &n, fds, &n_fds, NULL) ||
		    message_open(mem, n, 0, &head, &w, NULL) || head.op != BROKER_EGRESS_CA)
			return false;
		broker_egress_ca_get(&w, &m);
	} while (wire_done(&w) && strcmp(m.id, bed->net.id));
	memcpy(pem, m.pem, sizeof(m.pem));
	return wire_done(&w);
}

void bed_send_vm(struct bed *bed, const struct net *net, const char *policy)
{
	struct broker_egress_vm m = { .policy = (const uint8_t *)policy, .policy_n = strlen(policy) };
	int fds[3] = { net->tcp_fd, net->dns_udp_fd, net->dns_tcp_fd };

	snprintf(m.id, sizeof(m.id), "%s", net->id);
	send_message(bed, BROKER_EVENT_EGRESS_VM | MESSAGE_EVENT, 0, (message_put_fn *)broker_egress_vm_put, &m, fds, 3);
}

void bed_send_policy(struct bed *bed, const char *policy)
{
	struct broker_vm_policy m = { .policy = (const uint8_t *)policy, .policy_n = strlen(policy) };

	snprintf(m.id, sizeof(m.id), "%s", bed->net.id);
	send_message(bed, BROKER_EVENT_EGRESS_POLICY | MESSAGE_EVENT, 0, (message_put_fn *)broker_vm_policy_put, &m, NULL, 0);
	bed_settle(bed);
}

void bed_send_gone(struct bed *bed)
{
	struct broker_vm_id m = { 0 };

	snprintf(m.id, sizeof(m.id), "%s", bed->net.id);
	send_message(bed, BROKER_EVENT_EGRESS_GONE | MESSAGE_EVENT, 0, (message_put_fn *)broker_vm_id_put, &m, NULL, 0);
	bed_settle(bed);
}

void bed_settle(struct bed *bed)
{
	/* A socket pair's other end is passed with a message for a machine that is not: its fds are closed when the
	 * message has been worked off, which is after all that came before it. */
	static const char none[] = POLICY_HEAD "\ndefault none\n";
	struct broker_egress_vm m = { .id = "settle", .policy = (const uint8_t *)none, .policy_n = sizeof(none) - 1 };
	struct broker_vm_id gone = { .id = "settle" };
	int pairs[3][2], fds[3];
	char byte;

	for (int i = 0; i < 3; i++) {
		if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pairs[i]) < 0)
			die("socketpair");
		fds[i] = pairs[i][1];
	}
	send_message(bed, BROKER_EVENT_EGRESS_VM | MESSAGE_EVENT, 0, (message_put_fn *)broker_egress_vm_put, &m, fds, 3);
	send_message(bed, BROKER_EVENT_EGRESS_GONE | MESSAGE_EVENT, 0, (message_put_fn *)broker_vm_id_put, &gone, NULL, 0);
	for (int i = 0; i < 3; i++)
		close(fds[i]);
	if (fd_wait(pairs[0][0], POLLIN, now_ms() + BED_WAIT_MS, NULL) || read(pairs[0][0], &byte, 1) > 0)
		die("the daemon does not work its messages off");
	for (int i = 0; i < 3; i++)
		close(pairs[i][0]);
}

/* --- the guest's part ---------------------------------------------------------------------------------------- */

static size_t query_make(uint8_t *q, const char *name, uint16_t type)
{
	static uint16_t id;
	size_t n = 12;

	memset(q, 0, 12);
	id++;
	q[0] = (uint8_t)(id >> 8);
	q[1] = (uint8_t)id;
	q[2] = 1;
	q[5] = 1;
	q[11] = 1;
	while (*name) {
		size_t k = strcspn(name, ".");

		q[n++] = (uint8_t)k;
		memcpy(q + n, name, k);
		n += k;
		name += k + (name[k] == '.');
	}
	q[n++] = 0;
	memcpy(q + n, (uint8_t[]){ (uint8_t)(type >> 8), (uint8_t)type, 0, 1, 0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0 }, 15);
	return n + 15;
}

static ssize_t ask_udp(struct bed *bed, const uint8_t *q, size_t n, uint8_t *r, size_t size)
{
	_cleanup_fd_ int fd = guestns_socket(&bed->guest, SOCK_DGRAM);
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(53) };

	inet_pton(AF_INET, "100.64.0.1", &to.sin_addr);
	if (connect(fd, (const struct sockaddr *)&to, sizeof(to)) < 0 || send(fd, q, n, 0) < 0 ||
	    fd_wait(fd, POLLIN, now_ms() + BED_WAIT_MS, NULL))
		return -1;
	return recv(fd, r, size, 0);
}

static ssize_t ask_tcp(struct bed *bed, const uint8_t *q, size_t n, uint8_t *r, size_t size)
{
	_cleanup_fd_ int fd = guestns_connect(&bed->guest, "9.9.9.9", 53, BED_WAIT_MS);
	uint8_t head[2] = { (uint8_t)(n >> 8), (uint8_t)n };
	uint64_t until = now_ms() + BED_WAIT_MS;
	size_t k;

	if (fd < 0 || fd_write_all(fd, head, 2, until, NULL) || fd_write_all(fd, q, n, until, NULL) ||
	    fd_read_exact(fd, head, 2, until, NULL))
		return -1;
	k = (size_t)head[0] << 8 | head[1];
	return k > size || fd_read_exact(fd, r, k, until, NULL) ? -1 : (ssize_t)k;
}

int bed_dns(struct bed *bed, bool tcp, const char *name, uint16_t type, char ret_addr[16], uint8_t *answer, size_t *ret_n)
{
	uint8_t q[512], mem[1500], *r = answer ? answer : mem;
	size_t n = query_make(q, name, type);
	ssize_t k = tcp ? ask_tcp(bed, q, n, r, 1500) : ask_udp(bed, q, n, r, 1500);

	if (ret_addr)
		ret_addr[0] = '\0';
	if (ret_n)
		*ret_n = k > 0 ? (size_t)k : 0;
	if (k < 12 || r[0] != q[0] || r[1] != q[1])
		return -1;
	/* The question without its OPT, then a compressed name, type, class, TTL, length and the address. */
	if (ret_addr && r[7] == 1 && (size_t)k >= n - 11 + 16 && r[n - 11 + 3] == 1)
		inet_ntop(AF_INET, r + n - 11 + 12, ret_addr, 16);
	return r[3] & 15;
}

int bed_connect(struct bed *bed, const char *name, uint16_t port)
{
	char addr[16];

	if (bed_dns(bed, false, name, DNS_TYPE_A, addr, NULL, NULL) || !addr[0])
		return -1;
	return guestns_connect(&bed->guest, addr, port, BED_WAIT_MS);
}

char bed_end_of(int fd)
{
	char mem[4096];
	ssize_t n;

	do {
		if (fd_wait(fd, POLLIN, now_ms() + BED_WAIT_MS, NULL))
			return 'T';
		n = read(fd, mem, sizeof(mem));
	} while (n > 0);
	return n ? 'R' : 'E';
}

/* --- the ledger ---------------------------------------------------------------------------------------------- */

/* Of the tests' organization and of none; freed by the caller. */
static char *ledger_text(struct bed *bed)
{
	static const char *const orgs[] = { "acme", "_" };
	char *text = calloc(1, 1);

	for (size_t i = 0; i < 2; i++) {
		char path[128];
		DIR *d;

		snprintf(path, sizeof(path), "%s/logs/egress/%s", bed->dir, orgs[i]);
		d = opendir(path);
		for (struct dirent *e; d && (e = readdir(d));) {
			_cleanup_free_ char *one = NULL;
			size_t n = 0, have = strlen(text);

			if (!strstr(e->d_name, ".jsonl") || file_read_at(dirfd(d), e->d_name, LEDGER_MAX, &one, &n, NULL))
				continue;
			text = realloc(text, have + n + 1);
			memcpy(text + have, one, n + 1);
		}
		if (d)
			closedir(d);
	}
	return text;
}

static bool line_has(const char *line, size_t n, const char *const *parts)
{
	for (; *parts; parts++)
		if (!memmem(line, n, *parts, strlen(*parts)))
			return false;
	return true;
}

static unsigned int lines_with(struct bed *bed, const char *const *parts)
{
	_cleanup_free_ char *text = ledger_text(bed);
	unsigned int found = 0;

	for (char *line = text, *end; line && (end = strchr(line, '\n')); line = end + 1)
		found += line_has(line, (size_t)(end - line), parts);
	return found;
}

unsigned int bed_ledger_count(struct bed *bed, const char *part)
{
	return lines_with(bed, (const char *const[]){ part, NULL });
}

bool bed_ledger(struct bed *bed, ...)
{
	_cleanup_fd_ int watch = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	uint64_t until = now_ms() + BED_WAIT_MS;
	const char *parts[9] = { NULL };
	char path[128], events[4096];
	va_list ap;

	va_start(ap, bed);
	for (size_t i = 0; i < 8 && (parts[i] = va_arg(ap, const char *));)
		i++;
	va_end(ap);
	for (;;) {
		/* The directories come with their first row. */
		static const char *const dirs[] = { "", "/acme", "/_" };

		for (size_t i = 0; i < 3; i++) {
			snprintf(path, sizeof(path), "%s/logs/egress%s", bed->dir, dirs[i]);
			inotify_add_watch(watch, path, IN_CREATE | IN_MODIFY);
		}
		if (lines_with(bed, parts))
			break;
		if (fd_wait(watch, POLLIN, until, NULL)) {
			_cleanup_free_ char *text = ledger_text(bed);

			printf("  no ledger row with");
			for (size_t i = 0; parts[i]; i++)
				printf(" %s", parts[i]);
			printf(" in:\n%s", text ? text : "(nothing)\n");
			return false;
		}
		while (read(watch, events, sizeof(events)) > 0)
			;
	}
	return true;
}
