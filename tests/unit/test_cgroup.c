/* SPDX-License-Identifier: Apache-2.0 */
/* Control groups of this host, where the caller may make some: as root. */
#include "tests/lib/check.h"

#include "base/cleanup.h"
#include "vmm/broker/cgroup.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static struct cgroup_host host;

static bool kept(void *arg, const char *id)
{
	return !strcmp(id, arg);
}

/* A process in a group; it ends by itself if nobody ends it. */
static pid_t member(const char *id)
{
	static const struct cgroup_limits limits = { 256 << 20, 16, 1, CGROUP_WEIGHT };
	struct cgroup g;
	struct fault f;
	char text[16];
	pid_t pid;

	if (cgroup_make(&host, id, &limits, &g, &f) || g.procs_fd < 0)
		return -1;
	pid = fork();
	if (!pid) {
		alarm(120);
		for (;;)
			pause();
	}
	snprintf(text, sizeof(text), "%d", (int)pid);
	if (write(g.procs_fd, text, strlen(text)) < 0) {
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		pid = -1;
	}
	close(g.procs_fd);
	cgroup_join_rest(&host, &g, pid);
	return pid;
}

TEST(a_sweep_ends_what_is_in_groups_that_nobody_keeps)
{
	char name[32], keep[] = "keep";
	pid_t swept, stays;
	struct fault f;
	int status = 0;

	snprintf(name, sizeof(name), "test-%d", (int)getpid());
	cgroup_host_init(&host, name);
	if (!host.version || (host.dirfd[0] < 0 && host.dirfd[1] < 0 && host.dirfd[2] < 0))
		SKIP("no control groups that could be used");
	/* In the first hierarchy there is. The child is this process's, and dead ones leave their group at once. */
	swept = member("swept");
	stays = member(keep);
	if (swept < 0 || stays < 0) {
		cgroup_sweep(&host, kept, (char[]){ "" });
		cgroup_host_free(&host);
		SKIP("no process can be put in a group here");
	}
	cgroup_sweep(&host, kept, keep);
	if (waitpid(swept, &status, WNOHANG) != swept) {
		CHECK(!"the process in the group lives");
		kill(swept, SIGKILL);
		waitpid(swept, &status, 0);
	}
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	CHECK_EQ(waitpid(stays, &status, WNOHANG), 0);
	kill(stays, SIGKILL);
	waitpid(stays, &status, 0);
	cgroup_sweep(&host, kept, (char[]){ "" });
	for (int i = 0; i < CGROUP_CONTROLLERS; i++)
		if (host.dirfd[i] >= 0)
			CHECK(faccessat(host.dirfd[i], "swept", F_OK, 0) < 0 && faccessat(host.dirfd[i], keep, F_OK, 0) < 0);
	CHECK_EQ(cgroup_remove(&host, "swept", &f), RC_OK);
	cgroup_host_free(&host);
}

/* A bound below what is used would be waited for, and could end the process. */
TEST(a_bound_is_lowered_when_less_is_used)
{
	static const struct cgroup_limits limits = { 256 << 20, 16, 1, CGROUP_WEIGHT };
	char name[32], byte;
	int ready[2], go[2];
	struct cgroup g;
	struct fault f;
	uint64_t bound = 0;
	int status = -1;
	pid_t pid;

	snprintf(name, sizeof(name), "test-%d", (int)getpid());
	cgroup_host_init(&host, name);
	if (host.dirfd[CGROUP_MEMORY] < 0)
		SKIP("no control groups for memory");
	REQUIRE(!cgroup_make(&host, "one", &limits, &g, &f) && g.procs_fd >= 0 && !pipe(ready) && !pipe(go));
	pid = fork();
	if (!pid) {
		size_t n = 64 << 20;
		char *at;

		alarm(120);
		if (write(g.procs_fd, "0", 1) != 1 || !(at = malloc(n)))
			_exit(1);
		memset(at, 1, n);
		if (write(ready[1], at + n - 1, 1) != 1)
			_exit(1);
		_exit(read(go[0], &byte, 1) == 1 && at[n / 2] == 1 ? 0 : 2);
	}
	close(ready[1]);
	if (read(ready[0], &byte, 1) != 1) {
		waitpid(pid, NULL, 0);
		cgroup_sweep(&host, kept, (char[]){ "" });
		cgroup_host_free(&host);
		SKIP("no process can be put in a group here");
	}
	cgroup_memory_set(&host, "one", 32 << 20);
	CHECK(cgroup_memory_get(&host, "one", &bound) && bound == 256 << 20);
	cgroup_memory_set(&host, "one", 160 << 20);
	CHECK(cgroup_memory_get(&host, "one", &bound) && bound == 160 << 20);
	cgroup_memory_set(&host, "one", 512 << 20);
	CHECK(cgroup_memory_get(&host, "one", &bound) && bound == 512 << 20);
	CHECK_EQ(write(go[1], "x", 1), 1);
	CHECK(waitpid(pid, &status, 0) == pid);
	CHECK_EQ(status, 0);
	close(ready[0]);
	close(go[0]);
	close(go[1]);
	close(g.procs_fd);
	cgroup_sweep(&host, kept, (char[]){ "" });
	cgroup_host_free(&host);
}

CHECK_MAIN()
