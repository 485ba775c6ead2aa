/* SPDX-License-Identifier: Apache-2.0 */
/* A broker with a fake engine, network and agent, and one client that asks it: for test programs, which include this once. */
#ifndef NB_TESTS_BROKER_BED_H
#define NB_TESTS_BROKER_BED_H

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "schema/broker.h"
#include "tests/lib/check.h"
#include "tests/unit/fake_vmm.h"
#include "vmm/broker/broker.h"
#include "vmm/broker/limits.h"
#include "vmm/broker/machine.h"
#include "vmm/broker/peer.h"
#include "vmm/store/copy.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>

#define PATIENCE_MS 20000

static char dir[] = "/tmp/test_broker.XXXXXX";
static struct config config;
static struct loop *loop;
static struct broker *b;
static int client = -1;
static uint8_t mem[MESSAGE_MAX];
static int got_fds[FD_PASS_MAX];
static size_t got_n_fds;
static char events[8192]; /* what was told without being asked, as text */

/* --- the world around it ---------------------------------------------------------------------------------------- */

static int peer_open(unsigned int who)
{
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0 || peer_add(b, pair[0], who, NULL))
		abort();
	return pair[1];
}

static void broker_up(void)
{
	struct engine_verdict verdict = { .name = "fake", .tier = "emulated", .reason = "a test" };
	struct fault f;

	if (loop_new(&loop, NULL))
		abort();
	fake_open(loop);
	if (broker_new(loop, &config, &fake.engine, &verdict, &b, &f) || broker_start(b, &f)) {
		printf("  %s\n", f.text);
		abort();
	}
	client = peer_open(PEER_API);
}

/* As if it had been killed: nothing is ended, nothing told. */
static void broker_down(void)
{
	close_fd(&client);
	broker_free(b);
	fake_close();
	fake.live_nets = 0;
	loop_free(loop);
	b = NULL;
}

static void setup(void)
{
	static bool made;

	if (!made)
		fake_world(&config, dir);
	made = true;
	fake_reset();
	events[0] = '\0';
	broker_up();
}

static size_t files_below(const char *path)
{
	DIR *d = opendir(path);
	struct dirent *e;
	size_t n = 0;

	while (d && (e = readdir(d)))
		n += e->d_name[0] != '.';
	if (d)
		closedir(d);
	return n;
}

static bool nothing_left(void)
{
	size_t slots = 0;

	for (size_t i = 0; i < config.vm_max + VM_INTERNAL; i++)
		slots += b->slots[i];
	return !b->n_machines && !slots && !fake.live_vms && !fake.live_nets && !files_below("state/vms");
}

#define UNTIL(cond)                                                                \
	do {                                                                       \
		uint64_t until_ = now_ms() + PATIENCE_MS;                          \
		while (!(cond) && now_ms() < until_)                               \
			loop_once(loop, 20, NULL);                                 \
		CHECK(cond);                                                       \
	} while (0)

static void teardown(void)
{
	while (b->n_machines) {
		machine_end(b->machines[0], "test is over");
		UNTIL(!b->n_machines || !b->machines[0]->ending);
	}
	UNTIL(nothing_left());
	broker_down();
	CHECK_EQ(fake.live_snapshots, 0);
}

/* --- asking ----------------------------------------------------------------------------------------------------- */

static void event_note(const struct message_head *head, struct wire *w)
{
	struct broker_vm_event vm;
	struct broker_expose_event x;
	struct broker_host h;
	struct broker_vm_id id;
	char text[700] = "?";

	switch (head->op & ~MESSAGE_EVENT) {
	case BROKER_EVENT_VM:
		broker_vm_event_get(w, &vm);
		snprintf(text, sizeof(text), "vm %s %u %s", vm.id, vm.state, vm.reason);
		break;
	case BROKER_EVENT_EXPOSE:
		broker_expose_event_get(w, &x);
		snprintf(text, sizeof(text), "expose %s %u%s%s", x.host, x.present, *x.org ? " " : "", x.org);
		break;
	case BROKER_EVENT_LOGIN_GONE: {
		struct broker_login_key k;

		broker_login_key_get(w, &k);
		snprintf(text, sizeof(text), "login gone %s", k.key);
		break;
	}
	case BROKER_EVENT_WANTED:
		broker_host_get(w, &h);
		snprintf(text, sizeof(text), "wanted %s", h.host);
		break;
	case BROKER_EVENT_EGRESS_GONE:
		broker_vm_id_get(w, &id);
		snprintf(text, sizeof(text), "egress gone %s", id.id);
		break;
	case BROKER_EVENT_EGRESS_VM: {
		struct broker_egress_vm v;

		broker_egress_vm_get(w, &v);
		snprintf(text, sizeof(text), "egress vm %s %.*s fds %zu", v.id, (int)v.policy_n, (const char *)v.policy,
			 got_n_fds);
		break;
	}
	case BROKER_EVENT_EGRESS_POLICY: {
		struct broker_vm_policy v;

		broker_vm_policy_get(w, &v);
		snprintf(text, sizeof(text), "egress policy %s %.*s", v.id, (int)v.policy_n, (const char *)v.policy);
		break;
	}
	}
	CHECK(wire_done(w));
	if (strlen(events) + strlen(text) + 2 < sizeof(events)) {
		strcat(events, text);
		strcat(events, "\n");
	}
}

/* One packet from fd, if there is one: an event is noted, a reply leaves *ret_w behind its result. */
static bool receive(int fd, uint16_t op, enum rc *ret_rc, struct wire *ret_w, struct fault *ret_f)
{
	struct message_head head;
	size_t n;

	if (recv(fd, mem, 1, MSG_PEEK | MSG_DONTWAIT) < 0 && errno == EAGAIN)
		return false;
	if (packet_recv(fd, mem, sizeof(mem), &n, got_fds, &got_n_fds, ret_f) || !n) {
		*ret_rc = RC_CLOSED;
		return true;
	}
	if (message_open(mem, n, got_n_fds, &head, ret_w, ret_f)) {
		*ret_rc = RC_PROTO;
		return true;
	}
	if (head.op & MESSAGE_EVENT) {
		event_note(&head, ret_w);
		fds_close(got_fds, got_n_fds);
		got_n_fds = 0;
		return false;
	}
	CHECK_EQ(head.op, op | MESSAGE_REPLY);
	*ret_rc = message_get_result(ret_w, ret_f);
	return true;
}

static enum rc ask_send(int fd, uint16_t op, message_put_fn *put, const void *q)
{
	struct wire w;
	size_t n;

	message_begin(&w, mem, sizeof(mem));
	if (put)
		put(&w, q);
	if (message_end(&w, op, 7, 0, &n, NULL))
		return RC_LIMIT;
	return packet_send(fd, mem, n, NULL, 0, NULL);
}

static struct fault last;

static enum rc ask_receive(int fd, uint16_t op, message_get_fn *get, void *ret)
{
	uint64_t until = now_ms() + PATIENCE_MS;
	enum rc rc = RC_TIMEOUT;
	struct wire w;

	got_n_fds = 0;
	while (!receive(fd, op, &rc, &w, &last)) {
		if (now_ms() > until)
			return RC_TIMEOUT;
		loop_once(loop, 20, NULL);
	}
	if (!rc && get)
		get(&w, ret);
	if (!rc && get)
		CHECK(wire_done(&w));
	return rc;
}

static enum rc ask_on(int fd, uint16_t op, message_put_fn *put, const void *q, message_get_fn *get, void *ret)
{
	enum rc rc = ask_send(fd, op, put, q);

	return rc ? rc : ask_receive(fd, op, get, ret);
}

#define ASK(op, request, q, reply, ret)                                                              \
	ask_on(client, BROKER_##op, (message_put_fn *)request##_put, q, (message_get_fn *)reply##_get, ret)

static struct broker_none none;

static struct broker_vm_create create_request(const char *id, uint32_t flags)
{
	static const uint8_t policy[] = "nestbox-policy 1\n";
	static const uint8_t env[] = "A=1\0B=two words";
	struct broker_vm_create q = { .memory_mib = 1024, .flags = flags, .hostname = "box", .policy = policy,
				      .policy_n = sizeof(policy) - 1, .env = env, .env_n = sizeof(env) };

	snprintf(q.id, sizeof(q.id), "%s", id);
	return q;
}

static enum rc create(const char *id, uint32_t flags)
{
	struct broker_vm_create q = create_request(id, flags);
	struct broker_vm_created created;

	return ASK(VM_CREATE, broker_vm_create, &q, broker_vm_created, &created);
}

static enum rc vm_kill(const char *id)
{
	struct broker_vm_kill q = { .reason = "because" };

	snprintf(q.id, sizeof(q.id), "%s", id);
	return ASK(VM_KILL, broker_vm_kill, &q, broker_none, &none);
}

static struct broker_vm_stat vm_stat_of(const char *id)
{
	struct broker_vm_stat s = { 0 };
	struct broker_vm_id q;

	snprintf(q.id, sizeof(q.id), "%s", id);
	if (ASK(VM_STAT, broker_vm_id, &q, broker_vm_stat, &s))
		s.state = 0;
	return s;
}

static int bed_main(const char *name, int argc, char **argv)
{
	int rc;

	if (!getenv("NESTBOX_LOG"))
		setenv("NESTBOX_LOG", "error", 1);
	log_init(name);
	signal(SIGPIPE, SIG_IGN);
	rc = check_main(argc, argv);
	if (chdir("/") == 0)
		tree_remove_at(AT_FDCWD, dir, NULL);
	return rc;
}

#endif
