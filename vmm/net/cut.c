/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A machine that is killed cannot close its connections, and a connection of ours keeps its namespace in being: whoever waits
 * at the other end of an agent connection would wait for ever. So the kernel is asked, over NETLINK_SOCK_DIAG, to abort
 * every TCP connection in the namespace; their holders read an error at once.
 */
#include "vmm/net/inside.h"

#include "base/cleanup.h"
#include "vmm/net/limits.h"

#include <errno.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>

#define CUT_BATCH 256

struct ask {
	struct nlmsghdr head;
	struct inet_diag_req_v2 body;
};

static enum rc ask_send(int fd, uint16_t type, uint16_t flags, const struct inet_diag_sockid *id, struct fault *ret_f)
{
	/* Listening sockets belong to the proxy, which closes them by itself. */
	struct ask ask = { .head = { .nlmsg_len = sizeof(ask), .nlmsg_type = type, .nlmsg_flags = (uint16_t)(NLM_F_REQUEST | flags) },
			   .body = { .sdiag_family = AF_INET, .sdiag_protocol = IPPROTO_TCP,
				     .idiag_states = ~(1u << TCP_LISTEN) } };

	if (id)
		ask.body.id = *id;
	if (send(fd, &ask, sizeof(ask), 0) != (ssize_t)sizeof(ask))
		return fault_set(ret_f, RC_SYS, errno, "ask for the namespace's connections");
	return RC_OK;
}

/* One dump, at most CUT_BATCH ids of it. The kernel answers from memory: nothing here waits for anybody. */
static enum rc list(int fd, struct inet_diag_sockid *ids, size_t *ret_n, struct fault *ret_f)
{
	char mem[16384] __attribute__((aligned(__alignof__(struct nlmsghdr))));
	size_t n = 0;
	enum rc rc = ask_send(fd, SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, NULL, ret_f);

	while (!rc) {
		ssize_t got = recv(fd, mem, sizeof(mem), 0);
		unsigned int left = got > 0 ? (unsigned int)got : 0;

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return fault_set(ret_f, RC_SYS, errno, "list the namespace's connections");
		for (struct nlmsghdr *h = (void *)mem; NLMSG_OK(h, left); h = NLMSG_NEXT(h, left)) {
			if (h->nlmsg_type == NLMSG_DONE) {
				*ret_n = n;
				return RC_OK;
			}
			if (h->nlmsg_type != SOCK_DIAG_BY_FAMILY || h->nlmsg_len < NLMSG_LENGTH(sizeof(struct inet_diag_msg)))
				return fault_set(ret_f, RC_SYS, 0, "the kernel does not list connections");
			if (n < CUT_BATCH)
				ids[n++] = ((const struct inet_diag_msg *)NLMSG_DATA(h))->id;
		}
	}
	return rc;
}

enum rc inside_cut(struct fault *ret_f)
{
	_cleanup_fd_ int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
	struct inet_diag_sockid ids[CUT_BATCH];
	size_t n = CUT_BATCH;
	enum rc rc = RC_OK;

	if (fd < 0)
		return fault_set(ret_f, RC_SYS, errno, "open NETLINK_SOCK_DIAG");
	/* A full batch means that there may be more; a socket that was destroyed is not listed again. */
	for (int round = 0; !rc && n == CUT_BATCH && round < NET_CUT_ROUNDS; round++) {
		rc = list(fd, ids, &n, ret_f);
		for (size_t i = 0; !rc && i < n; i++)
			rc = ask_send(fd, SOCK_DESTROY, 0, &ids[i], ret_f);
	}
	return rc;
}
