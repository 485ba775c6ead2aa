/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/agent.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "guest/agent_session.h"

#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <time.h>

static enum rc run(int listen_fd, struct fault *ret_f)
{
	enum rc rc = agent_child_init(ret_f);

	if (!rc)
		rc = agent_session_init(ret_f);
	if (!rc)
		rc = agent_service_init(listen_fd, ret_f);
	return rc ? rc : loop_run(agent.loop, ret_f);
}

/* PID 1 must not end: the kernel would panic before the reason is on the console. */
static _Noreturn void give_up(const struct fault *f)
{
	const struct timespec pause = { .tv_sec = 1 };

	log_fault(LOG_LEVEL_ERROR, f, "cannot start the machine");
	nanosleep(&pause, NULL);
	reboot(RB_POWER_OFF);
	for (;;)
		nanosleep(&pause, NULL);
}

static void first_process(void)
{
	struct fault f = { 0 };
	int fd = -1;
	enum rc rc;

	agent.guest = true;
	prctl(PR_SET_NAME, "nestbox-agent");
	rc = agent_boot(&f);
	if (!rc)
		rc = loop_new(&agent.loop, &f);
	if (!rc)
		rc = agent_net_listen(&fd, &f);
	if (!rc) {
		struct timespec t;

		clock_gettime(CLOCK_BOOTTIME, &t);
		log_info("machine up image=%s after_ms=%lld", agent.image, (long long)t.tv_sec * 1000 + t.tv_nsec / 1000000);
		run(fd, &f);
	}
	give_up(&f);
}

/* For tests on a host: the same services on a loopback port of the kernel's choice, which is printed. */
static int serve(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t n = sizeof(a);
	struct fault f = { 0 };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0 || listen(fd, 64) < 0 ||
	    getsockname(fd, (struct sockaddr *)&a, &n) < 0) {
		log_error("cannot listen errno=%d", errno);
		return 1;
	}
	printf("%u\n", ntohs(a.sin_port));
	fflush(stdout);
	snprintf(agent.image, sizeof(agent.image), "none");
	if (!loop_new(&agent.loop, &f))
		run(fd, &f);
	log_fault(LOG_LEVEL_ERROR, &f, "agent");
	return 1;
}

int main(int argc, char **argv)
{
	const char *verb = argc > 1 ? argv[1] : "";

	signal(SIGPIPE, SIG_IGN);
	if (!strcmp(verb, "session")) {
		log_init("nestbox-session");
		return agent_session_enter();
	}
	log_init("nestbox-agent");
	if (getpid() == 1)
		first_process();
	if (!strcmp(verb, "serve"))
		return serve();
	fprintf(stderr, "nestbox-agent is the first process of a nestbox machine; see nestbox-agent(8)\n");
	return 2;
}
