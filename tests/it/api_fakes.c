/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stand-ins for the broker and the gateway, for tests of the API workers alone: `api_fakes RUN_DIR`. Machines are rows in a
 * table; what goes wrong is chosen by the memory size a create asks for (FAIL_*). A line per request on standard output.
 * A create of HELD_MEMORY is carried out only when that machine is killed, after the kill was answered: "no such machine". A policy with the word "late."
 * is set, and the answer to one with the word "hold." given, when any machine is extended, one of them each time.
 * A machine of UNDYING_MEMORY has an agent that refuses and is not ended by the first kill. While there is a file <run_dir>/hold no tar-in ends.
 * The agent of one of STALLED_MEMORY does not answer as long as there is a file <run_dir>/stall.
 * The agent behind a dial is a process of its own that knows rpc (holds the line), exec (its exit status) and tar-out.
 */
#include "base/cleanup.h"
#include "base/fd.h"
#include "schema/broker.h"
#include "schema/gateway.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define VMS 64
#define CONNS 256
#define KEPT 256

enum { FAIL_LIMIT = 4001, FAIL_NOSPACE, FAIL_SILENT, FAIL_AGENT_ERROR, FAIL_AGENT_GARBAGE, FAIL_HANGUP, FAIL_AGENT_EOF,
       FAIL_SYS };
#define HELD_MEMORY 4009
#define UNDYING_MEMORY 4010
#define STALLED_MEMORY 4011
#define MADE_VOLUME 400000000 /* bytes; others are not supported */

struct vm {
	char id[BROKER_ID_MAX];
	uint32_t memory, flags;
	uint64_t stop_at;
	int lease; /* our end */
	char *policy;
	bool undying;
};

/* A question that is answered later, on the connection that it came by. */
static struct held {
	int fd; /* 0: none */
	struct message_head head;
	uint8_t mem[MESSAGE_MAX];
	size_t n;
} held_create, held_set, held_answer;

static struct vm vms[VMS];
static struct pollfd fds[4 + CONNS];
static size_t n_fds = 2;
static int kept[KEPT]; /* what tickets carried */
static size_t n_kept;
static uint8_t mem[MESSAGE_MAX], out[MESSAGE_MAX];

static void keep(int fd)
{
	if (n_kept == KEPT) {
		close(kept[0]);
		memmove(kept, kept + 1, sizeof(kept) - sizeof(kept[0]));
		n_kept--;
	}
	kept[n_kept++] = fd;
}

static struct vm *vm_find(const char *id)
{
	for (size_t i = 0; i < VMS; i++)
		if (*vms[i].id && !strcmp(vms[i].id, id))
			return &vms[i];
	return NULL;
}

static void vm_drop(struct vm *vm)
{
	if (vm->lease >= 0)
		close(vm->lease);
	free(vm->policy);
	memset(vm, 0, sizeof(*vm));
	vm->lease = -1;
}

/* Sends rc and what is in w behind it. */
static void answer(int fd, const struct message_head *head, enum rc rc, const char *text, struct wire *w,
		   const int *pass, size_t n_pass)
{
	struct wire o;
	size_t n;

	message_begin(&o, out, sizeof(out));
	message_put_result(&o, rc, text);
	if (!rc && w)
		for (uint8_t *p = w->start; p < w->at; p++)
			wire_put_u8(&o, *p);
	if (!message_end(&o, (uint16_t)(head->op | MESSAGE_REPLY), head->sequence, n_pass, &n, NULL))
		packet_send(fd, out, n, pass, n_pass, NULL);
}

static void hold(struct held *h, int fd, const struct message_head *head, const uint8_t *body, size_t n)
{
	h->fd = fd;
	h->head = *head;
	memcpy(h->mem, body, n);
	h->n = n;
}

static void create(int fd, const struct message_head *head, struct wire *in, bool now)
{
	const uint8_t *body = in->at;
	size_t body_n = (size_t)(in->end - in->at);
	struct broker_vm_create req;
	struct broker_vm_created done = { 1, 2, 3 };
	uint8_t text[64];
	struct wire w;
	struct vm *vm = NULL;
	int pair[2];

	broker_vm_create_get(in, &req);
	printf("create id=%s memory=%u flags=%u stop_at=%llu hostname=%s root=%s policy=%zu env=%zu mounts=%zu\n", req.id,
	       req.memory_mib, req.flags, (unsigned long long)req.stop_at_ms, req.hostname, req.root_volume, req.policy_n,
	       req.env_n, req.mounts_n);
	printf("policy %.*s\n", (int)req.policy_n, (const char *)req.policy);
	if (!wire_done(in))
		return answer(fd, head, RC_PROTO, "malformed", NULL, NULL, 0);
	if (req.memory_mib == FAIL_LIMIT)
		return answer(fd, head, RC_LIMIT, "no memory left", NULL, NULL, 0);
	if (req.memory_mib == FAIL_NOSPACE)
		return answer(fd, head, RC_NOSPACE, "no disk left", NULL, NULL, 0);
	if (req.memory_mib == FAIL_SYS)
		return answer(fd, head, RC_SYS, "qemu ended: /secret/path", NULL, NULL, 0);
	if (req.memory_mib == FAIL_SILENT)
		return;
	if (req.memory_mib == HELD_MEMORY && !now)
		return hold(&held_create, fd, head, body, body_n);
	if (req.memory_mib == FAIL_HANGUP) {
		shutdown(fd, SHUT_RDWR);
		return;
	}
	for (size_t i = 0; i < VMS && !vm; i++)
		if (!*vms[i].id)
			vm = &vms[i];
	if (!vm)
		return answer(fd, head, RC_LIMIT, "table full", NULL, NULL, 0);
	vm->lease = -1;
	if (req.flags & BROKER_VM_LEASE) {
		if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
			return answer(fd, head, RC_SYS, "socketpair", NULL, NULL, 0);
		vm->lease = pair[0];
	}
	memcpy(vm->id, req.id, sizeof(vm->id));
	vm->memory = req.memory_mib;
	vm->flags = req.flags;
	vm->stop_at = req.stop_at_ms;
	vm->undying = req.memory_mib == UNDYING_MEMORY;
	vm->policy = strndup((const char *)req.policy, req.policy_n);
	wire_init(&w, text, sizeof(text));
	broker_vm_created_put(&w, &done);
	answer(fd, head, RC_OK, "", &w, &pair[1], vm->lease >= 0 ? 1 : 0);
	if (vm->lease >= 0)
		close(pair[1]);
}

static void send_exit(int fd, const char *line)
{
	bool no = strstr(line, "missing") || strstr(line, "nodir");
	const char *text = no ? "{\"code\":1,\"signal\":null,\"oom\":false}" : "{\"code\":0,\"signal\":null,\"oom\":false}";
	uint8_t head[5] = { 3, (uint8_t)strlen(text), 0, 0, 0 };

	fd_write_all(fd, head, sizeof(head), UINT64_MAX, NULL);
	fd_write_all(fd, text, strlen(text), UINT64_MAX, NULL);
}

/* <run_dir>/tree.tar, which the test has put there. */
static void send_tar(int fd)
{
	_cleanup_fd_ int in = open("tree.tar", O_RDONLY | O_CLOEXEC);
	static uint8_t part[65536];
	ssize_t n;

	while (in >= 0 && (n = read(in, part, sizeof(part))) > 0)
		if (fd_write_all(fd, part, (size_t)n, UINT64_MAX, NULL))
			return;
}

/* A process per connection, as it would be in a guest. */
static void agent(int fd, uint32_t memory)
{
	static const char garbage[] = "{[garbage\n", ok[] = "{\"ok\": true}\n";
	static const char refuse[] = "{\"error\": {\"code\": \"ENOENT\", \"message\": \"nothing here\"}}\n";
	static char line[16384];
	bool is_tar_in;
	const char *say = memory == FAIL_AGENT_ERROR || memory == UNDYING_MEMORY ? refuse : memory == FAIL_AGENT_GARBAGE ? garbage : ok;

	if (memory == FAIL_AGENT_EOF || fd_read_line(fd, line, sizeof(line), UINT64_MAX, NULL))
		_exit(0);
	while (memory == STALLED_MEMORY && !access("stall", F_OK))
		if (poll(&(struct pollfd){ .fd = fd, .events = POLLRDHUP }, 1, 250))
			_exit(0);
	is_tar_in = strstr(line, "tar-in");
	printf("agent %s\n", line);
	fflush(stdout);
	if (fd_write_all(fd, say, strlen(say), UINT64_MAX, NULL))
		_exit(0);
	if (strstr(line, "\"exec\""))
		send_exit(fd, line);
	else if (strstr(line, "\"tar-out\""))
		send_tar(fd);
	else
		while (read(fd, line, sizeof(line)) > 0)
			;
	while (is_tar_in && !access("hold", F_OK))
		nanosleep(&(struct timespec){ 0, 20000000 }, NULL);
	_exit(0);
}

static void dial(int fd, const struct message_head *head, struct wire *in)
{
	struct broker_vm_dial req;
	struct broker_vm_dialed done = { 0 };
	uint8_t body[16];
	struct wire w;
	const struct vm *vm;
	int pair[2];

	broker_vm_dial_get(in, &req);
	vm = vm_find(req.id);
	printf("dial id=%s lease=%u\n", req.id, req.want_lease);
	if (!vm)
		return answer(fd, head, RC_ABSENT, "no such machine", NULL, NULL, 0);
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return answer(fd, head, RC_SYS, "socketpair", NULL, NULL, 0);
	if (fork() == 0) {
		/* Nothing of ours may outlive us in it. */
		if (dup2(pair[0], 3) != 3 || close_range(4, ~0u, 0) < 0)
			_exit(1);
		agent(3, vm->memory);
	}
	close(pair[0]);
	wire_init(&w, body, sizeof(body));
	broker_vm_dialed_put(&w, &done);
	answer(fd, head, RC_OK, "", &w, &pair[1], 1);
	close(pair[1]);
}

static void list(int fd, const struct message_head *head)
{
	static uint8_t body[8192], rows[4096];
	struct broker_vm_list done = { 0 };
	struct wire w, r;

	wire_init(&r, rows, sizeof(rows));
	for (size_t i = 0; i < VMS && done.n < BROKER_LIST_MAX - 1; i++) {
		struct broker_vm_stat s = { .state = BROKER_VM_RUNNING, .memory_mib = vms[i].memory };

		if (!*vms[i].id)
			continue;
		memcpy(s.id, vms[i].id, sizeof(s.id));
		broker_vm_stat_put(&r, &s);
		done.n++;
	}
	done.rows = rows;
	done.rows_n = wire_len(&r);
	wire_init(&w, body, sizeof(body));
	broker_vm_list_put(&w, &done);
	answer(fd, head, RC_OK, "", &w, NULL, 0);
}

static void policy_set(int fd, const struct message_head *head, struct wire *in, bool now)
{
	const uint8_t *body = in->at;
	size_t body_n = (size_t)(in->end - in->at);
	struct broker_vm_policy_set req;
	struct vm *vm;

	broker_vm_policy_set_get(in, &req);
	vm = vm_find(req.id);
	if (!vm)
		return answer(fd, head, RC_ABSENT, "no such machine", NULL, NULL, 0);
	printf("policy set id=%s\n%.*s\n", req.id, (int)req.policy_n, (const char *)req.policy);
	if (!now && memmem(req.policy, req.policy_n, "late.", 5))
		return hold(&held_set, fd, head, body, body_n);
	free(vm->policy);
	vm->policy = strndup((const char *)req.policy, req.policy_n);
	if (memmem(req.policy, req.policy_n, "hold.", 5))
		return hold(&held_answer, fd, head, body, 0);
	answer(fd, head, RC_OK, "", NULL, NULL, 0);
}

static void policy_get(int fd, const struct message_head *head, struct wire *in)
{
	static uint8_t body[BROKER_POLICY_MAX + 256];
	struct broker_vm_policy done = { 0 };
	struct broker_vm_id req;
	struct wire w;
	struct vm *vm;

	broker_vm_id_get(in, &req);
	vm = vm_find(req.id);
	if (!vm || !vm->policy)
		return answer(fd, head, RC_ABSENT, "no such machine", NULL, NULL, 0);
	memcpy(done.id, vm->id, sizeof(done.id));
	done.policy = (const uint8_t *)vm->policy;
	done.policy_n = strlen(vm->policy);
	wire_init(&w, body, sizeof(body));
	broker_vm_policy_put(&w, &done);
	answer(fd, head, RC_OK, "", &w, NULL, 0);
}

static void release_create(void)
{
	struct wire w;
	int fd = held_create.fd;

	held_create.fd = 0;
	wire_init(&w, held_create.mem, held_create.n);
	if (fd)
		create(fd, &held_create.head, &w, true);
}

static void release_policy(void)
{
	struct held *h = held_set.fd ? &held_set : &held_answer;
	struct wire w;
	int fd = h->fd;

	h->fd = 0;
	wire_init(&w, h->mem, h->n);
	if (fd && h == &held_set)
		policy_set(fd, &h->head, &w, true);
	else if (fd)
		answer(fd, &h->head, RC_OK, "", NULL, NULL, 0);
}

static struct wire *volume_put(struct wire *w, uint8_t *body, size_t size)
{
	struct broker_volume made = { 0 };

	wire_init(w, body, size);
	broker_volume_put(w, &made);
	return w;
}

static void broker(int fd, const struct message_head *head, struct wire *in)
{
	struct broker_vm_kill kill_req;
	struct broker_vm_extend extend;
	struct broker_volume_create volume;
	struct broker_expose expose;
	uint8_t body[128];
	struct wire w;
	struct vm *vm;

	switch (head->op) {
	case BROKER_VM_CREATE:
		return create(fd, head, in, false);
	case BROKER_VM_DIAL:
		return dial(fd, head, in);
	case BROKER_VM_LIST:
		return list(fd, head);
	case BROKER_VM_KILL:
		broker_vm_kill_get(in, &kill_req);
		vm = vm_find(kill_req.id);
		printf("kill id=%s reason=%s found=%d\n", kill_req.id, kill_req.reason, vm != NULL);
		if (vm && vm->undying) {
			vm->undying = false;
			return answer(fd, head, RC_SYS, "it does not end", NULL, NULL, 0);
		}
		if (vm)
			vm_drop(vm);
		answer(fd, head, vm ? RC_OK : RC_ABSENT, "no such machine", NULL, NULL, 0);
		return release_create();
	case BROKER_VM_POLICY:
		return policy_set(fd, head, in, false);
	case BROKER_VM_POLICY_GET:
		return policy_get(fd, head, in);
	case BROKER_VM_EXTEND:
		release_policy();
		broker_vm_extend_get(in, &extend);
		vm = vm_find(extend.id);
		if (vm)
			vm->stop_at = extend.stop_at_ms;
		wire_init(&w, body, sizeof(body));
		broker_vm_extend_put(&w, &extend);
		return answer(fd, head, vm ? RC_OK : RC_ABSENT, "no such machine", &w, NULL, 0);
	case BROKER_EXPOSE_ADD:
		broker_expose_get(in, &expose);
		vm = vm_find(expose.id);
		printf("expose host=%s id=%s line=%s\n", expose.host, expose.id, expose.line);
		return answer(fd, head, vm ? RC_OK : RC_ABSENT, "no such machine", NULL, NULL, 0);
	case BROKER_VOLUME_CREATE:
		broker_volume_create_get(in, &volume);
		return answer(fd, head, volume.bytes == MADE_VOLUME ? RC_OK : RC_STATE, "not built into this engine",
			      volume_put(&w, body, sizeof(body)), NULL, 0);
	case BROKER_EXPOSE_LIST:
	case BROKER_CAPTURE_LIST:
		/* Nothing, as both have it: a number of rows and their bytes. */
		wire_init(&w, body, sizeof(body));
		broker_vm_list_put(&w, &(struct broker_vm_list){ .n = 0, .rows = body });
		return answer(fd, head, RC_OK, "", &w, NULL, 0);
	case BROKER_SUBSCRIBE:
	case BROKER_EXPOSE_DELETE:
		return answer(fd, head, RC_OK, "", NULL, NULL, 0);
	default:
		return answer(fd, head, RC_STATE, "not built into this engine", NULL, NULL, 0);
	}
}

static void gateway(int fd, const struct message_head *head, struct wire *in, const int *pass, size_t n)
{
	struct gateway_ticket_ws ws;
	struct gateway_ticket_log log;

	if (head->op == GATEWAY_TICKET_WS) {
		gateway_ticket_ws_get(in, &ws);
		printf("ticket ws fds=%zu ttl=%u token=%zu headers=%zu\n", n, ws.ttl_ms, strlen(ws.token), strlen(ws.headers));
	} else {
		gateway_ticket_log_get(in, &log);
		printf("ticket log fds=%zu ttl=%u offset=%llu\n", n, log.ttl_ms, (unsigned long long)log.offset);
	}
	for (size_t i = 0; i < n; i++)
		keep(pass[i]);
	answer(fd, head, wire_done(in) ? RC_OK : RC_PROTO, "malformed", NULL, NULL, 0);
}

/* False: the peer is gone. */
static bool serve(int fd, bool is_gateway)
{
	int pass[FD_PASS_MAX];
	size_t n = 0, n_pass = 0;
	struct message_head head;
	struct wire in;

	if (packet_recv(fd, mem, sizeof(mem), &n, pass, &n_pass, NULL) || !n)
		return false;
	if (message_open(mem, n, n_pass, &head, &in, NULL)) {
		fds_close(pass, n_pass);
		return false;
	}
	if (is_gateway)
		gateway(fd, &head, &in, pass, n_pass);
	else
		broker(fd, &head, &in);
	fflush(stdout);
	return true;
}

int main(int argc, char **argv)
{
	static bool is_gateway[ARRAY_SIZE(fds)];
	char path[108];
	const char *names[2] = { "broker.sock", "gateway.sock" };

	/* What the test hears of, it finds in the log. */
	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGCHLD, SIG_IGN);
	for (size_t i = 0; i < VMS; i++)
		vms[i].lease = -1;
	for (size_t i = 0; i < 2 && argc > 1; i++) {
		snprintf(path, sizeof(path), "%s/%s", argv[1], names[i]);
		if (unix_listen(path, SOCK_SEQPACKET, 0666, (gid_t)-1, &fds[i].fd, NULL)) {
			perror(path);
			return 1;
		}
		fds[i].events = POLLIN;
	}
	if (argc > 1 && chdir(argv[1]) < 0)
		return 1;
	puts("ready");
	fflush(stdout);
	while (poll(fds, n_fds, -1) >= 0 || errno == EINTR) {
		for (size_t i = n_fds; i-- > 2;) {
			if (!fds[i].revents || serve(fds[i].fd, is_gateway[i]))
				continue;
			close(fds[i].fd);
			fds[i] = fds[--n_fds];
			is_gateway[i] = is_gateway[n_fds];
		}
		for (size_t i = 0; i < 2; i++) {
			int fd = fds[i].revents ? accept4(fds[i].fd, NULL, NULL, SOCK_CLOEXEC) : -1;

			if (fd < 0 || n_fds == ARRAY_SIZE(fds))
				continue;
			is_gateway[n_fds] = i == 1;
			fds[n_fds++] = (struct pollfd){ .fd = fd, .events = POLLIN };
		}
	}
	return 1;
}
