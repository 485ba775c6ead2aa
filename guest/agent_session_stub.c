/* SPDX-License-Identifier: Apache-2.0 */
/* For an agent without the RPC: takes and closes what it is sent. */
#include "guest/agent_session.h"

#include "base/fd.h"

__attribute__((weak)) int session_main(int fd)
{
	static char mem[AGENT_SESSION_PACKET_MAX];
	int fds[FD_PASS_MAX];
	size_t n, n_fds;

	while (!fd_wait(fd, 1 /* POLLIN */, UINT64_MAX, NULL) && !packet_recv(fd, mem, sizeof(mem), &n, fds, &n_fds, NULL) && n)
		fds_close(fds, n_fds);
	return 0;
}
