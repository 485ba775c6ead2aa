/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/it/guestns.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "schema/agent.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <net/route.h>
#include <netinet/ether.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#define FRAME_MAX 65536
#define PUMP_FDS 1024

int testns_own(void)
{
	return open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
}

int testns_new(void)
{
	return unshare(CLONE_NEWNET);
}

void testns_enter(int ns_fd)
{
	if (setns(ns_fd, CLONE_NEWNET) < 0) {
		perror("setns");
		abort();
	}
}

static struct sockaddr_in addr_of(const char *text, uint16_t port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(port) };

	inet_pton(AF_INET, text, &a.sin_addr);
	return a;
}

int testns_address(const char *ifname, const char *addr, unsigned int prefix)
{
	_cleanup_fd_ int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct sockaddr_in a = addr_of(addr, 0);
	struct ifreq ifr = { 0 };

	snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", ifname);
	memcpy(&ifr.ifr_addr, &a, sizeof(a));
	if (ioctl(sock, SIOCSIFADDR, &ifr) < 0)
		return -1;
	a.sin_addr.s_addr = htonl(~0u << (32 - prefix));
	memcpy(&ifr.ifr_netmask, &a, sizeof(a));
	if (ioctl(sock, SIOCSIFNETMASK, &ifr) < 0)
		return -1;
	ifr.ifr_flags = IFF_UP | IFF_RUNNING;
	return ioctl(sock, SIOCSIFFLAGS, &ifr);
}

static int guest_tap(const char *name, const char *mac)
{
	_cleanup_fd_ int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	_cleanup_fd_ int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
	struct ifreq ifr = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
	struct ether_addr ether;
	int header = 12;

	snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", name);
	if (fd < 0 || ioctl(fd, TUNSETIFF, &ifr) < 0 || ioctl(fd, TUNSETVNETHDRSZ, &header) < 0)
		return -1;
	ifr.ifr_hwaddr.sa_family = ARPHRD_ETHER;
	ether_aton_r(mac, &ether);
	memcpy(ifr.ifr_hwaddr.sa_data, &ether, sizeof(ether));
	if (ioctl(sock, SIOCSIFHWADDR, &ifr) < 0)
		return -1;
	return take_fd(&fd);
}

static int guest_route(void)
{
	_cleanup_fd_ int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct sockaddr_in any = addr_of("0.0.0.0", 0), gw = addr_of(AGENT_NET_HOST_ADDR, 0);
	struct rtentry rt = { .rt_flags = RTF_UP | RTF_GATEWAY };

	memcpy(&rt.rt_dst, &any, sizeof(any));
	memcpy(&rt.rt_genmask, &any, sizeof(any));
	memcpy(&rt.rt_gateway, &gw, sizeof(gw));
	return ioctl(sock, SIOCADDRT, &rt);
}

static void carry(int from, int to)
{
	static uint8_t frame[FRAME_MAX];
	ssize_t n;

	while ((n = read(from, frame, sizeof(frame))) > 0)
		if (write(to, frame, (size_t)n) < 0)
			return; /* a full or closed tap loses frames, as wires do */
}

static _Noreturn void pump(int pairs[2][2])
{
	struct pollfd p[4];

	/* An inherited listener or tap would live on here after the test closed it. */
	for (int fd = 3; fd < PUMP_FDS; fd++)
		if (fd != pairs[0][0] && fd != pairs[0][1] && fd != pairs[1][0] && fd != pairs[1][1])
			close(fd);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (int i = 0; i < 4; i++)
		p[i] = (struct pollfd){ .fd = pairs[i / 2][i % 2], .events = POLLIN };
	for (;;) {
		if (poll(p, 4, -1) < 0 && errno != EINTR)
			_exit(1);
		for (int i = 0; i < 4; i++)
			if (p[i].revents & POLLIN)
				carry(p[i].fd, p[i ^ 1].fd);
			else if (p[i].revents & (POLLERR | POLLNVAL))
				_exit(0);
	}
}

enum rc guestns_start(struct guestns *g, int tap_fd, int mgmt_fd, struct fault *ret_f)
{
	_cleanup_fd_ int own = testns_own(), ns = -1, net = -1, mgmt = -1;
	int pairs[2][2], err;

	g->pump = -1;
	if (testns_new() < 0)
		return fault_set(ret_f, RC_SYS, errno, "unshare");
	ns = testns_own();
	net = guest_tap("eth0", AGENT_NET_MAC);
	mgmt = guest_tap("eth1", AGENT_MGMT_MAC);
	err = net < 0 || mgmt < 0 || testns_address("eth0", AGENT_NET_GUEST_ADDR, AGENT_NET_PREFIX) < 0 ||
	      testns_address("eth1", AGENT_MGMT_GUEST_ADDR, AGENT_MGMT_PREFIX) < 0 || guest_route() < 0;
	testns_enter(own);
	if (err)
		return fault_set(ret_f, RC_SYS, errno, "guest's links");
	memcpy(pairs, (int[2][2]){ { tap_fd, net }, { mgmt_fd, mgmt } }, sizeof(pairs));
	g->pump = fork();
	if (g->pump < 0)
		return fault_set(ret_f, RC_SYS, errno, "fork");
	if (!g->pump)
		pump(pairs);
	g->ns_fd = take_fd(&ns);
	return RC_OK;
}

void guestns_stop(struct guestns *g)
{
	if (g->pump > 0) {
		kill(g->pump, SIGKILL);
		waitpid(g->pump, NULL, 0);
		close(g->ns_fd);
	}
	g->pump = -1;
}

int guestns_socket(const struct guestns *g, int type)
{
	_cleanup_fd_ int own = testns_own();
	int fd;

	testns_enter(g->ns_fd);
	fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);
	testns_enter(own);
	return fd;
}

int guestns_connect(const struct guestns *g, const char *addr, uint16_t port, int timeout_ms)
{
	_cleanup_fd_ int fd = guestns_socket(g, SOCK_STREAM | SOCK_NONBLOCK);
	struct sockaddr_in a = addr_of(addr, port);
	int err = 0;
	socklen_t n = sizeof(err);

	if (connect(fd, (const struct sockaddr *)&a, sizeof(a)) < 0 && errno != EINPROGRESS)
		return -1;
	if (fd_wait(fd, POLLOUT, now_ms() + (uint64_t)timeout_ms, NULL)) {
		errno = ETIMEDOUT;
		return -1;
	}
	getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &n);
	if (err) {
		errno = err;
		return -1;
	}
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
	return take_fd(&fd);
}
