/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The same work without nginx, API, gateway and client: asks the broker itself (as root) and speaks to the agent. Prints a
 * JSON line a run, microseconds. What tests/perf compares the whole system with.
 *
 *   direct create BROKER_SOCKET RUNS     {"create", "restore", "agent", "first"}: first is create to the output of a first command
 *   direct exec BROKER_SOCKET ID RUNS    {"exec"}: `true`, connection included
 *   direct cat BROKER_SOCKET ID MIB      {"us", "bytes"}: that many MiB of zeroes through the exec service
 */
#include "base/cleanup.h"
#include "base/fd.h"
#include "schema/agent.h"
#include "schema/broker.h"

#include <string.h>
#include <sys/socket.h>

#define MS 60000

static int broker;
static struct message_call shared;

_Noreturn static void die(const struct fault *f)
{
	fprintf(stderr, "direct: %s\n", f->text);
	exit(1);
}

static void call(uint16_t op, message_put_fn *put, const void *m, message_get_fn *get, void *reply)
{
	struct fault f;

	shared = (struct message_call){ .op = op, .put = put, .request = m, .get = get, .reply = reply };
	if (message_call(broker, &shared, now_ms() + MS, &f))
		die(&f);
}

/* The exit frame of a command, its output thrown away. Returns the bytes of output. */
static uint64_t run(const char *id, const char *argv)
{
	struct broker_vm_dial dial = { .want_lease = 0 };
	struct broker_vm_dialed dialed;
	char line[1024], answer[1024];
	static uint8_t data[AGENT_FRAME_MAX];
	uint64_t bytes = 0;
	struct fault f;

	snprintf(dial.id, sizeof(dial.id), "%s", id);
	call(BROKER_VM_DIAL, (message_put_fn *)broker_vm_dial_put, &dial, (message_get_fn *)broker_vm_dialed_get, &dialed);
	_cleanup_fd_ int fd = shared.fds[0];
	snprintf(line, sizeof(line), "{\"service\":\"exec\",\"argv\":[%s]}\n", argv);
	if (fd_write_all(fd, line, strlen(line), now_ms() + MS, &f) ||
	    fd_read_line(fd, answer, sizeof(answer), now_ms() + MS, &f))
		die(&f);
	for (;;) {
		uint8_t head[5];
		uint32_t n;

		if (fd_read_exact(fd, head, 5, now_ms() + MS, &f))
			die(&f);
		n = (uint32_t)head[1] | (uint32_t)head[2] << 8 | (uint32_t)head[3] << 16 | (uint32_t)head[4] << 24;
		if (n > sizeof(data) || fd_read_exact(fd, data, n, now_ms() + MS, &f))
			die(&f);
		if (head[0] == 3)
			return bytes;
		bytes += n;
	}
}

static void create(int runs)
{
	static const char policy[] = "nestbox-policy 1\ndefault none\norg perf\n";

	for (int i = 0; i < runs; i++) {
		struct broker_vm_create m = { .memory_mib = 1280, .policy = (const uint8_t *)policy, .policy_n = strlen(policy) };
		struct broker_vm_kill kill = { .reason = "measured" };
		struct broker_vm_created done;
		uint64_t t0 = now_us(), t1, t2;

		snprintf(m.id, sizeof(m.id), "perf_%d_%d", (int)getpid(), i);
		snprintf(m.hostname, sizeof(m.hostname), "perf");
		call(BROKER_VM_CREATE, (message_put_fn *)broker_vm_create_put, &m, (message_get_fn *)broker_vm_created_get, &done);
		t1 = now_us();
		run(m.id, "\"echo\",\"hello\"");
		t2 = now_us();
		printf("{\"create\":%llu,\"restore\":%u,\"agent\":%u,\"first\":%llu}\n", (unsigned long long)(t1 - t0),
		       done.restore_us, done.agent_us, (unsigned long long)(t2 - t0));
		memcpy(kill.id, m.id, sizeof(kill.id));
		call(BROKER_VM_KILL, (message_put_fn *)broker_vm_kill_put, &kill, NULL, NULL);
	}
}

int main(int argc, char **argv)
{
	struct fault f;

	if (argc < 4)
		return 2;
	if (unix_connect(argv[2], SOCK_SEQPACKET, &broker, &f))
		die(&f);
	if (!strcmp(argv[1], "create"))
		create(atoi(argv[3]));
	for (int i = 0; argc == 5 && !strcmp(argv[1], "exec") && i < atoi(argv[4]); i++) {
		uint64_t t = now_us();

		run(argv[3], "\"true\"");
		printf("{\"exec\":%llu}\n", (unsigned long long)(now_us() - t));
	}
	if (argc == 5 && !strcmp(argv[1], "cat")) {
		char command[128];
		uint64_t t = now_us(), n;

		snprintf(command, sizeof(command), "\"head\",\"-c\",\"%dM\",\"/dev/zero\"", atoi(argv[4]));
		n = run(argv[3], command);
		printf("{\"us\":%llu,\"bytes\":%llu}\n", (unsigned long long)(now_us() - t), (unsigned long long)n);
	}
	return 0;
}
