/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The two network cards, known by MAC: "eth0" for traffic, "mgmt0" for the management link. The listener is bound to mgmt0, and
 * a connection that doesn't come from the host's address is closed unanswered: what runs in the guest has another.
 */
#include "guest/agent.h"

#include "base/cleanup.h"
#include "guest/agent_limits.h"
#include "schema/agent.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <net/route.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>

#define TRAFFIC_NAME "eth0"
#define MGMT_NAME "mgmt0"

static enum rc nic_find(const char *mac, char out[IFNAMSIZ], struct fault *ret_f)
{
	DIR *d = opendir("/sys/class/net");
	bool found = false;

	for (struct dirent *e; d && !found && (e = readdir(d));) {
		char path[300], text[32];

		if (e->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/sys/class/net/%s/address", e->d_name);
		agent_proc_read(path, text, sizeof(text));
		if (!strncasecmp(text, mac, strlen(mac))) {
			snprintf(out, IFNAMSIZ, "%.15s", e->d_name);
			found = true;
		}
	}
	if (d)
		closedir(d);
	return found ? RC_OK : fault_set(ret_f, RC_ABSENT, 0, "no network card with address %s", mac);
}

static enum rc nic_ioctl(int s, unsigned long op, struct ifreq *r, const char *what, struct fault *ret_f)
{
	if (ioctl(s, op, r) < 0)
		return fault_set(ret_f, RC_SYS, errno, "%s of %s: %s", what, r->ifr_name, strerrordesc_np(errno));
	return RC_OK;
}

static void put_addr(struct sockaddr *to, in_addr_t addr)
{
	const struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = addr };

	memcpy(to, &a, sizeof(a));
}

static enum rc nic_flags_up(int s, struct ifreq *r, struct fault *ret_f)
{
	enum rc rc = nic_ioctl(s, SIOCGIFFLAGS, r, "flags", ret_f);

	r->ifr_flags |= IFF_UP;
	return rc ? rc : nic_ioctl(s, SIOCSIFFLAGS, r, "flags", ret_f);
}

static enum rc nic_rename(int s, const char *from, const char *to, struct fault *ret_f)
{
	struct ifreq r = { 0 };

	if (!strcmp(from, to))
		return RC_OK;
	snprintf(r.ifr_name, IFNAMSIZ, "%.15s", from);
	snprintf(r.ifr_newname, IFNAMSIZ, "%.15s", to);
	return nic_ioctl(s, SIOCSIFNAME, &r, "rename", ret_f);
}

static enum rc nic_up(int s, const char *name, const char *addr, int prefix, struct fault *ret_f)
{
	struct ifreq r = { 0 };
	char path[96];
	enum rc rc;

	snprintf(path, sizeof(path), "/proc/sys/net/ipv6/conf/%s/disable_ipv6", name);
	if (access(path, F_OK) == 0 && agent_file_put(path, "1", ret_f))
		return RC_SYS;
	snprintf(r.ifr_name, IFNAMSIZ, "%.15s", name);
	put_addr(&r.ifr_addr, inet_addr(addr));
	rc = nic_ioctl(s, SIOCSIFADDR, &r, "address", ret_f);
	put_addr(&r.ifr_netmask, htonl(~0u << (32 - prefix)));
	if (!rc)
		rc = nic_ioctl(s, SIOCSIFNETMASK, &r, "netmask", ret_f);
	return rc ? rc : nic_flags_up(s, &r, ret_f);
}

static enum rc default_route(int s, struct fault *ret_f)
{
	struct rtentry route = { .rt_flags = RTF_UP | RTF_GATEWAY };

	put_addr(&route.rt_dst, 0);
	put_addr(&route.rt_genmask, 0);
	put_addr(&route.rt_gateway, inet_addr(AGENT_NET_HOST_ADDR));
	if (ioctl(s, SIOCADDRT, &route) < 0)
		return fault_set(ret_f, RC_SYS, errno, "default route: %s", strerrordesc_np(errno));
	return RC_OK;
}

enum rc agent_net_up(struct fault *ret_f)
{
	_cleanup_fd_ int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	char traffic[IFNAMSIZ], mgmt[IFNAMSIZ];
	struct ifreq lo = { .ifr_name = "lo" };
	enum rc rc;

	if (s < 0)
		return fault_set(ret_f, RC_SYS, errno, "socket");
	rc = nic_flags_up(s, &lo, ret_f);
	if (!rc)
		rc = nic_find(AGENT_MGMT_MAC, mgmt, ret_f);
	if (!rc)
		rc = nic_rename(s, mgmt, MGMT_NAME, ret_f);
	if (!rc)
		rc = nic_up(s, MGMT_NAME, AGENT_MGMT_GUEST_ADDR, AGENT_MGMT_PREFIX, ret_f);
	/* A machine without traffic card is a legal shape: it has no network. */
	if (rc || nic_find(AGENT_NET_MAC, traffic, NULL))
		return rc;
	rc = nic_rename(s, traffic, TRAFFIC_NAME, ret_f);
	if (!rc)
		rc = nic_up(s, TRAFFIC_NAME, AGENT_NET_GUEST_ADDR, AGENT_NET_PREFIX, ret_f);
	return rc ? rc : default_route(s, ret_f);
}

enum rc agent_net_listen(int *ret_fd, struct fault *ret_f)
{
	_cleanup_fd_ int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(AGENT_PORT) };
	const int one = 1;

	a.sin_addr.s_addr = inet_addr(AGENT_MGMT_GUEST_ADDR);
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) < 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, MGMT_NAME, sizeof(MGMT_NAME)) < 0 ||
	    bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0 || listen(fd, 1024) < 0)
		return fault_set(ret_f, RC_SYS, errno, "listen on the management link: %s", strerrordesc_np(errno));
	*ret_fd = take_fd(&fd);
	return RC_OK;
}

/* The gateway of a clone has another MAC than the one that the template may have met. */
void agent_net_forget_neighbours(void)
{
	_cleanup_fd_ int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct arpreq r = { .arp_dev = TRAFFIC_NAME };

	put_addr(&r.arp_pa, inet_addr(AGENT_NET_HOST_ADDR));
	if (s >= 0)
		ioctl(s, SIOCDARP, &r); /* absent is fine */
}
