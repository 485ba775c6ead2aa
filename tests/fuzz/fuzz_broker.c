/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a peer may send: up to 8 packets, each with a u8 of who sends it and a u16 little-endian length before it, to a broker
 * with one running machine and a fake engine. Whatever comes, the broker must still make and end a machine's life properly,
 * which is checked by ending everything that the input made.
 */
#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "schema/broker.h"
#include "tests/unit/fake_vmm.h"
#include "vmm/broker/broker.h"
#include "vmm/broker/create.h"
#include "vmm/broker/expose.h"
#include "vmm/broker/machine.h"
#include "vmm/broker/peer.h"
#include "vmm/broker/template.h"
#include "vmm/store/copy.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define PACKETS_MAX 8

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char dir[] = "/dev/shm/fuzz_broker.XXXXXX"; /* thousands of machines are made there */
static struct config config;
static struct loop *loop;
static struct broker *b;

static void cleanup(void)
{
	broker_free(b);
	fake_close();
	loop_free(loop);
	if (!chdir("/"))
		tree_remove_at(AT_FDCWD, dir, NULL);
}

static void setup(void)
{
	struct engine_verdict verdict = { .name = "fake", .tier = "emulated", .reason = "a test" };
	int here = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	setenv("NESTBOX_LOG", "error", 0);
	log_init("fuzz_broker");
	fake_reset();
	fake_world(&config, dir);
	if (fchdir(here) < 0) /* whoever feeds this has relative paths */
		abort();
	close(here);
	atexit(cleanup);
	config.create_timeout_ms = 1000;
	if (loop_new(&loop, NULL))
		abort();
	fake_open(loop);
	if (broker_new(loop, &config, &fake.engine, &verdict, &b, NULL))
		abort();
	cgroup_host_free(&b->cgroup); /* the real ones: slow, and not what is tested here */
	if (broker_start(b, NULL))
		abort();
	while (fake.live_snapshots != 1 || b->n_machines)
		loop_once(loop, 20, NULL);
}

static void turn(int fd)
{
	uint8_t drop[4096];
	int fds[FD_PASS_MAX];
	size_t n, n_fds;

	for (int i = 0; i < 4; i++)
		loop_once(loop, 0, NULL);
	while (!packet_recv(fd, drop, sizeof(drop), &n, fds, &n_fds, NULL) && n)
		fds_close(fds, n_fds);
}

static void send_one(uint8_t who, const uint8_t *data, size_t n)
{
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
		abort();
	if (!peer_add(b, pair[0], who & PEER_ANY ? who & PEER_ANY : PEER_API, NULL)) {
		if (packet_send(pair[1], data, n, NULL, 0, NULL) == RC_OK)
			turn(pair[1]);
	}
	close(pair[1]);
}

static bool none_left(void)
{
	return !b->n_machines;
}

static void on_launched(void *arg, enum rc rc, const struct fault *f)
{
	(void)f;
	if (rc)
		abort();
	machine_running(arg);
}

static void machine_make(void)
{
	struct machine_spec spec = { .id = "x", .memory_mib = 1024, .image = "debian-13" };
	struct machine_boot boot = { -1, -1, "" };
	struct machine *m;

	/* Not through VM_CREATE: a running machine is where the input begins. */
	if (machine_new(b, &spec, &m, NULL) || machine_prepare(m, STDERR_FILENO, -1, NULL) ||
	    machine_launch(m, &boot, NULL, on_launched, m, NULL))
		abort();
	while (m->state != BROKER_VM_RUNNING)
		loop_once(loop, 20, NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (!b)
		setup();
	machine_make();
	for (int i = 0; i < PACKETS_MAX && size >= 3; i++) {
		size_t n = (size_t)data[1] | (size_t)data[2] << 8;

		n = MIN_OF(n, size - 3);
		send_one(data[0], data + 3, n);
		data += 3 + n;
		size -= 3 + n;
	}
	while (!none_left()) {
		machine_end(b->machines[0], "end of input");
		loop_once(loop, 1, NULL);
	}
	for (size_t i = 0; i < config.vm_max; i++)
		if (b->slots[i])
			abort();
	if (fake.live_vms || fake.live_nets)
		abort();
	loop_once(loop, 0, NULL);
	return 0;
}
