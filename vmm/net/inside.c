/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory: what a namespace contains. Two taps with fixed names and MACs (a clone's ARP cache must stay true), and rules in
 * three places: `early` (raw, before connection tracking: what is dropped here costs no memory) decides what a frame
 * may be; `steer` sends TCP and DNS to our sockets whatever address they were meant for; `input` and `output` have policy
 * drop and name the few flows that remain. Forwarding is off and dropped besides.
 */
#include "vmm/net/inside.h"

#include "base/cleanup.h"
#include "schema/agent.h"
#include "vmm/net/limits.h"
#include "vmm/net/net.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <netinet/ether.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <nftables/libnftables.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/socket.h>

#define STR_(x) #x
#define STR(x) STR_(x)

#define TRAFFIC_IF "net0"
#define MGMT_IF "mgmt0"
#define TRAFFIC_MAC "02:6e:62:00:01:01"
#define MGMT_MAC "02:6e:62:00:01:02"
#define VNET_HDR_BYTES 12

static const char rules[] =
	"table inet nestbox {\n"
	" chain early {\n"
	"  type filter hook prerouting priority raw; policy drop;\n"
	/* To everybody's MAC: TCP would be silent about it, and what is not answered is remembered for long. */
	"  meta pkttype != host drop\n"
	"  iifname " MGMT_IF " ether saddr " AGENT_MGMT_MAC " ip saddr " AGENT_MGMT_GUEST_ADDR
	" ip daddr " AGENT_MGMT_HOST_ADDR " tcp sport " STR(AGENT_PORT) " accept\n"
	"  iifname != " TRAFFIC_IF " drop\n"
	"  ether saddr != " AGENT_NET_MAC " drop\n"
	"  ip saddr != " AGENT_NET_GUEST_ADDR " drop\n"
	"  tcp flags & (fin|syn|rst|ack) == syn limit rate over " STR(NET_SYN_PER_S) "/second burst "
	STR(NET_SYN_BURST) " packets drop\n"
	"  ip protocol tcp accept\n"
	"  udp dport 53 limit rate over " STR(NET_DNS_PER_S) "/second burst " STR(NET_DNS_BURST) " packets drop\n"
	"  udp dport 53 accept\n"
	"  ip protocol udp fib daddr type != { broadcast, multicast } limit rate " STR(NET_REJECT_PER_S)
	"/second reject with icmpx admin-prohibited\n"
	" }\n"
	" chain steer {\n"
	"  type nat hook prerouting priority dstnat; policy accept;\n"
	"  iifname " TRAFFIC_IF " udp dport 53 redirect to :" STR(NET_DNS_PORT) "\n"
	"  iifname " TRAFFIC_IF " tcp dport 53 redirect to :" STR(NET_DNS_PORT) "\n"
	"  iifname " TRAFFIC_IF " ip protocol tcp redirect to :" STR(NET_TCP_PORT) "\n"
	" }\n"
	" chain input {\n"
	"  type filter hook input priority filter; policy drop;\n"
	"  iifname " MGMT_IF " ct state established accept\n"
	/* Any segment begins an entry of connection tracking; one that is dropped here never gets into its table. */
	"  iifname " TRAFFIC_IF " ct state new tcp flags & (fin|syn|rst|ack) != syn limit rate over " STR(NET_STALE_PER_S)
	"/second burst " STR(NET_STALE_BURST) " packets drop\n"
	"  iifname " TRAFFIC_IF " ip daddr " AGENT_NET_HOST_ADDR " tcp dport { " STR(NET_DNS_PORT) ", "
	STR(NET_TCP_PORT) " } accept\n"
	"  iifname " TRAFFIC_IF " ip daddr " AGENT_NET_HOST_ADDR " udp dport " STR(NET_DNS_PORT) " accept\n"
	" }\n"
	" chain forward {\n"
	"  type filter hook forward priority filter; policy drop;\n"
	" }\n"
	" chain output {\n"
	"  type filter hook output priority filter; policy drop;\n"
	"  oifname " MGMT_IF " ip daddr " AGENT_MGMT_GUEST_ADDR " tcp dport " STR(AGENT_PORT) " accept\n"
	"  oifname " TRAFFIC_IF " ct direction reply accept\n"
	"  oifname " TRAFFIC_IF " icmp type destination-unreachable accept\n"
	" }\n"
	"}\n";

static enum rc tune_one(const char *path, const char *value, struct fault *ret_f)
{
	_cleanup_fd_ int fd = open(path, O_WRONLY | O_CLOEXEC);

	/* A kernel without IPv6 has nothing to switch off. */
	if (fd < 0 && errno == ENOENT && strstr(path, "/ipv6/"))
		return RC_OK;
	if (fd < 0 || write(fd, value, strlen(value)) < 0)
		return fault_set(ret_f, RC_SYS, errno, "set %s", path);
	return RC_OK;
}

enum rc inside_tune(struct fault *ret_f)
{
	static const char *const table[][2] = {
		{ "/proc/sys/net/ipv6/conf/all/disable_ipv6", "1" },
		{ "/proc/sys/net/ipv6/conf/default/disable_ipv6", "1" },
		{ "/proc/sys/net/ipv4/ip_forward", "0" },
		{ "/proc/sys/net/ipv4/conf/all/arp_ignore", "1" }, /* an address is answered for on its own link only */
		{ "/proc/sys/net/ipv4/conf/all/accept_redirects", "0" },
		{ "/proc/sys/net/ipv4/conf/all/rp_filter", "1" },
		{ "/proc/sys/net/ipv4/icmp_ratelimit", "0" }, /* the rule below limits refusals; 1/s would stall QUIC */
	};

	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		enum rc rc = tune_one(table[i][0], table[i][1], ret_f);

		if (rc)
			return rc;
	}
	return RC_OK;
}

/*
 * libnftables waits for its socket with select(2), which knows descriptors below 1024 only: glibc ends the whole process at one above it, and a broker
 * has some fifty for each machine. So a low one is held from the start, and let go for as long as the library needs it: the
 * kernel gives the lowest that is free, and nobody else opens any meanwhile, as the broker has one thread.
 */
static int low_fd = -1;

enum rc inside_init(struct fault *ret_f)
{
	int fd = low_fd >= 0 ? low_fd : open("/dev/null", O_RDONLY | O_CLOEXEC);

	if (fd < 0 || fd >= FD_SETSIZE) {
		int sys = fd < 0 ? errno : 0;

		close_fd(&fd);
		return fault_set(ret_f, RC_LIMIT, sys, "no descriptor below %d is free for libnftables", FD_SETSIZE);
	}
	low_fd = fd;
	return RC_OK;
}

enum rc inside_rules(struct fault *ret_f)
{
	struct nft_ctx *ctx;
	enum rc rc = inside_init(ret_f);

	if (rc)
		return rc;
	close_fd(&low_fd);
	ctx = nft_ctx_new(NFT_CTX_DEFAULT); /* its netlink socket is of this namespace */
	if (!ctx)
		rc = fault_set(ret_f, RC_NOMEM, 0, "libnftables has no context");
	else if (nft_ctx_buffer_error(ctx) || nft_ctx_buffer_output(ctx))
		rc = fault_set(ret_f, RC_NOMEM, 0, "libnftables has no buffers");
	else if (nft_run_cmd_from_buffer(ctx, rules))
		rc = fault_set(ret_f, RC_SYS, 0, "nftables: %.120s", nft_ctx_get_error_buffer(ctx));
	if (ctx)
		nft_ctx_free(ctx);
	inside_init(NULL); /* if it cannot be had back, the next call says so */
	return rc;
}

static enum rc tap_open(const char *name, int *ret_fd, struct fault *ret_f)
{
	_cleanup_fd_ int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
	struct ifreq ifr = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
	int header = VNET_HDR_BYTES;

	if (fd < 0)
		return fault_set(ret_f, RC_SYS, errno, "open /dev/net/tun");
	snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", name);
	if (ioctl(fd, TUNSETIFF, &ifr) < 0)
		return fault_set(ret_f, RC_SYS, errno, "make tap '%s'", name);
	/* The engine raises the offloads to what its guest negotiated. */
	if (ioctl(fd, TUNSETVNETHDRSZ, &header) < 0 || ioctl(fd, TUNSETOFFLOAD, 0) < 0)
		return fault_set(ret_f, RC_SYS, errno, "set up tap '%s'", name);
	*ret_fd = take_fd(&fd);
	return RC_OK;
}

static struct sockaddr_in addr_in(const char *text, uint16_t port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(port) };

	inet_pton(AF_INET, text, &a.sin_addr);
	return a;
}

static void addr_set(struct sockaddr *to, const char *text)
{
	struct sockaddr_in a = addr_in(text, 0);

	memcpy(to, &a, sizeof(a));
}

static void mac_set(struct sockaddr *to, const char *text)
{
	struct ether_addr mac = { 0 };

	ether_aton_r(text, &mac);
	to->sa_family = ARPHRD_ETHER;
	memcpy(to->sa_data, &mac, sizeof(mac));
}

struct link {
	const char *name, *mac, *addr, *peer_addr, *peer_mac;
	unsigned int prefix;
};

static const struct link traffic = { TRAFFIC_IF, TRAFFIC_MAC, AGENT_NET_HOST_ADDR, AGENT_NET_GUEST_ADDR, AGENT_NET_MAC,
				     AGENT_NET_PREFIX };
static const struct link mgmt = { MGMT_IF, MGMT_MAC, AGENT_MGMT_HOST_ADDR, AGENT_MGMT_GUEST_ADDR, AGENT_MGMT_MAC,
				  AGENT_MGMT_PREFIX };

static enum rc link_up(int sock, const struct link *link, struct fault *ret_f)
{
	struct sockaddr_in mask = { .sin_family = AF_INET };
	struct arpreq arp = { .arp_flags = ATF_PERM | ATF_COM };
	struct ifreq ifr = { 0 };

	snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", link->name);
	mac_set(&ifr.ifr_hwaddr, link->mac);
	if (ioctl(sock, SIOCSIFHWADDR, &ifr) < 0)
		return fault_set(ret_f, RC_SYS, errno, "set the MAC of %s", link->name);
	addr_set(&ifr.ifr_addr, link->addr);
	if (ioctl(sock, SIOCSIFADDR, &ifr) < 0)
		return fault_set(ret_f, RC_SYS, errno, "set the address of %s", link->name);
	mask.sin_addr.s_addr = htonl(~0u << (32 - link->prefix));
	memcpy(&ifr.ifr_netmask, &mask, sizeof(mask));
	if (ioctl(sock, SIOCSIFNETMASK, &ifr) < 0)
		return fault_set(ret_f, RC_SYS, errno, "set the netmask of %s", link->name);
	ifr.ifr_flags = IFF_UP | IFF_RUNNING;
	if (ioctl(sock, SIOCSIFFLAGS, &ifr) < 0)
		return fault_set(ret_f, RC_SYS, errno, "bring %s up", link->name);
	/* Permanent: the first dial does not wait for ARP, and a guest cannot move its neighbour entry. */
	addr_set(&arp.arp_pa, link->peer_addr);
	mac_set(&arp.arp_ha, link->peer_mac);
	snprintf(arp.arp_dev, sizeof(arp.arp_dev), "%s", link->name);
	if (ioctl(sock, SIOCSARP, &arp) < 0)
		return fault_set(ret_f, RC_SYS, errno, "set the neighbour of %s", link->name);
	return RC_OK;
}

enum rc inside_taps(struct net *net, struct fault *ret_f)
{
	_cleanup_fd_ int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	enum rc rc;

	if (sock < 0)
		return fault_set(ret_f, RC_SYS, errno, "socket");
	rc = tap_open(TRAFFIC_IF, &net->tap_fd, ret_f);
	if (!rc)
		rc = tap_open(MGMT_IF, &net->mgmt_fd, ret_f);
	if (!rc)
		rc = link_up(sock, &traffic, ret_f);
	if (!rc)
		rc = link_up(sock, &mgmt, ret_f);
	return rc;
}

static enum rc socket_open(int type, uint16_t port, int *ret_fd, struct fault *ret_f)
{
	_cleanup_fd_ int fd = socket(AF_INET, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct sockaddr_in a = addr_in(AGENT_NET_HOST_ADDR, port);
	int on = 1;

	if (fd < 0)
		return fault_set(ret_f, RC_SYS, errno, "socket");
	/* A restarted broker opens new ones while egress still serves the old. */
	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on)) < 0)
		return fault_set(ret_f, RC_SYS, errno, "setsockopt");
	/* FREEBIND: adopted while the VM process, whose tap carries the address, is just ending. */
	if (setsockopt(fd, IPPROTO_IP, IP_FREEBIND, &on, sizeof(on)) < 0)
		return fault_set(ret_f, RC_SYS, errno, "setsockopt");
	if (bind(fd, (const struct sockaddr *)&a, sizeof(a)) < 0)
		return fault_set(ret_f, RC_SYS, errno, "bind port %u", port);
	if (type == SOCK_STREAM && listen(fd, NET_LISTEN_BACKLOG) < 0)
		return fault_set(ret_f, RC_SYS, errno, "listen on port %u", port);
	*ret_fd = take_fd(&fd);
	return RC_OK;
}

enum rc inside_sockets(struct net *net, struct fault *ret_f)
{
	enum rc rc = socket_open(SOCK_STREAM, NET_TCP_PORT, &net->tcp_fd, ret_f);

	if (!rc)
		rc = socket_open(SOCK_DGRAM, NET_DNS_PORT, &net->dns_udp_fd, ret_f);
	if (!rc)
		rc = socket_open(SOCK_STREAM, NET_DNS_PORT, &net->dns_tcp_fd, ret_f);
	return rc;
}

enum rc inside_dial(int *ret_fd, struct fault *ret_f)
{
	_cleanup_fd_ int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct sockaddr_in a = addr_in(AGENT_MGMT_GUEST_ADDR, AGENT_PORT);
	int on = 1, retries = NET_DIAL_SYN_RETRIES;

	if (fd < 0)
		return fault_set(ret_f, RC_SYS, errno, "socket");
	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) < 0 ||
	    setsockopt(fd, IPPROTO_TCP, TCP_SYNCNT, &retries, sizeof(retries)) < 0)
		return fault_set(ret_f, RC_SYS, errno, "setsockopt");
	if (connect(fd, (const struct sockaddr *)&a, sizeof(a)) < 0 && errno != EINPROGRESS)
		return fault_set(ret_f, RC_SYS, errno, "connect to the agent");
	*ret_fd = take_fd(&fd);
	return RC_OK;
}
