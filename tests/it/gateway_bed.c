/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The gateway's surroundings, driven by lines on standard input: a broker with exposures, an API worker that makes tickets,
 * and a FastCGI responder that answers /t/<token> by X-Accel-Redirect. "Agent connections" are TCP connections to a port on
 * loopback where the test listens. Usage: gateway_bed RUN_DIR
 *
 *   ws TOKEN TTL_MS PORT [lease]     log TOKEN TTL_MS OFFSET FORMAT PATH [PLACE]     stat
 *   guide (waits for a question)     guide PLACE (nothing so far)     guide PLACE NEXT PATH (answers)
 *   host NAME PORT (0: no machine; 1: dials are never answered)   unhost NAME     drop (the broker's connections)    lease (ends the last lease)
 *
 * Each line is answered by one line: "ok ..." or "error NAME text".
 */
#include "base/cleanup.h"
#include "base/fd.h"
#include "base/loop.h"
#include "schema/broker.h"
#include "schema/gateway.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcgiapp.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>

#define HOSTS 128
#define PEERS 8

static struct loop *loop;
static struct {
	char name[BROKER_HOST_MAX];
	uint16_t port;
	char org[BROKER_ORG_MAX];
} hosts[HOSTS];
static size_t n_hosts;
static struct peer {
	int fd;
	struct source *source;
	bool subscribed;
} peers[PEERS];
static int api_fd = -1, lease_far = -1;
static uint8_t mem[MESSAGE_MAX], out[MESSAGE_MAX];

static int dial(uint16_t port)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(port),
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd >= 0 && connect(fd, (struct sockaddr *)&to, sizeof(to)) < 0)
		close_fd(&fd);
	return fd;
}

static void send_to(struct peer *p, struct wire *w, uint16_t op, uint32_t sequence, int *fd)
{
	size_t n;

	if (!message_end(w, op, sequence, fd ? 1 : 0, &n, NULL))
		packet_send(p->fd, out, n, fd, fd ? 1 : 0, NULL);
}

static void event_expose(const char *name, const char *org, bool present)
{
	struct broker_expose_event m = { .present = present };
	struct wire w;

	snprintf(m.host, sizeof(m.host), "%.*s", BROKER_HOST_MAX - 1, name);
	snprintf(m.org, sizeof(m.org), "%s", org);
	for (size_t i = 0; i < PEERS; i++)
		if (peers[i].subscribed) {
			message_begin(&w, out, sizeof(out));
			broker_expose_event_put(&w, &m);
			send_to(&peers[i], &w, BROKER_EVENT_EXPOSE | MESSAGE_EVENT, 0, NULL);
		}
}

static void answer_list(struct peer *p, struct wire *in, uint32_t sequence)
{
	static uint8_t rows[MESSAGE_MAX / 2];
	struct broker_expose_list list = { .rows = rows };
	struct broker_cursor c;
	struct wire w, r;

	broker_cursor_get(in, &c);
	wire_init(&r, rows, sizeof(rows));
	for (size_t i = 0; i < n_hosts && list.n < BROKER_LIST_MAX; i++) {
		struct broker_exposed m;

		if (strcmp(hosts[i].name, c.after) <= 0)
			continue;
		snprintf(m.host, sizeof(m.host), "%.*s", BROKER_HOST_MAX - 1, hosts[i].name);
		memcpy(m.org, hosts[i].org, sizeof(m.org));
		broker_exposed_put(&r, &m);
		list.n++;
	}
	list.rows_n = wire_len(&r);
	message_begin(&w, out, sizeof(out));
	message_put_result(&w, RC_OK, "");
	broker_expose_list_put(&w, &list);
	send_to(p, &w, BROKER_EXPOSE_LIST | MESSAGE_REPLY, sequence, NULL);
}

static void answer_dial(struct peer *p, struct wire *in, uint32_t sequence)
{
	_cleanup_fd_ int fd = -1;
	struct broker_host m;
	struct wire w;

	broker_host_get(in, &m);
	for (size_t i = 0; i < n_hosts; i++)
		if (!strcmp(hosts[i].name, m.host) && hosts[i].port == 1)
			return;
		else if (!strcmp(hosts[i].name, m.host) && hosts[i].port)
			fd = dial(hosts[i].port);
	message_begin(&w, out, sizeof(out));
	message_put_result(&w, fd < 0 ? RC_ABSENT : RC_OK, fd < 0 ? "no machine" : "");
	send_to(p, &w, BROKER_EXPOSE_DIAL | MESSAGE_REPLY, sequence, fd < 0 ? NULL : &fd);
}

static void peer_end(struct peer *p)
{
	source_drop(&p->source);
	close_fd(&p->fd);
	p->subscribed = false;
}

static void on_peer(void *arg, uint32_t events)
{
	struct peer *p = arg;
	int fds[FD_PASS_MAX];
	struct message_head head;
	size_t n, n_fds = 0;
	struct wire w;

	(void)events;
	if (packet_recv(p->fd, mem, sizeof(mem), &n, fds, &n_fds, NULL) || !n ||
	    message_open(mem, n, n_fds, &head, &w, NULL)) {
		peer_end(p);
		return;
	}
	if (head.op == BROKER_EXPOSE_LIST) {
		answer_list(p, &w, head.sequence);
	} else if (head.op == BROKER_EXPOSE_DIAL) {
		answer_dial(p, &w, head.sequence);
	} else {
		p->subscribed |= head.op == BROKER_SUBSCRIBE;
		message_begin(&w, out, sizeof(out));
		message_put_result(&w, head.op == BROKER_SUBSCRIBE ? RC_OK : RC_PROTO, "");
		send_to(p, &w, (uint16_t)(head.op | MESSAGE_REPLY), head.sequence, NULL);
	}
	fds_close(fds, n_fds);
}

static void on_broker(void *arg, uint32_t events)
{
	int fd = accept4(*(int *)arg, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	(void)events;
	for (size_t i = 0; i < PEERS && fd >= 0; i++)
		if (peers[i].fd < 0) {
			peers[i].fd = take_fd(&fd);
			if (loop_fd(loop, peers[i].fd, EPOLLIN, on_peer, &peers[i], &peers[i].source, NULL))
				abort();
		}
	close_fd(&fd);
}

static enum rc call(uint16_t op, message_put_fn *put, const void *req, const int *fds, size_t n, message_get_fn *get,
		    void *reply, const char *path, struct fault *f)
{
	static struct message_call c;
	enum rc rc;

	if (api_fd < 0 && unix_connect(path, SOCK_SEQPACKET, &api_fd, f))
		return f->rc;
	c = (struct message_call){ .op = op, .put = put, .request = req, .send_fds = fds, .n_send_fds = n, .get = get,
				   .reply = reply };
	rc = message_call(api_fd, &c, now_ms() + 5000, f);
	if (rc == RC_PROTO || rc == RC_CLOSED || rc == RC_TIMEOUT)
		close_fd(&api_fd);
	return rc;
}

static void say(enum rc rc, const struct fault *f, const char *detail)
{
	if (rc)
		printf("error %s %s\n", rc_name(rc), f->text);
	else
		printf("ok%s\n", detail);
	fflush(stdout);
}

static enum rc do_ws(char **word, const char *path, struct fault *f)
{
	struct gateway_ticket_ws m = { .ttl_ms = (uint32_t)atoi(word[2]) };
	int fds[2] = { dial((uint16_t)atoi(word[3])), -1 }, lease[2];
	size_t n = 1;
	enum rc rc;

	if (fds[0] < 0)
		return fault_set(f, RC_ABSENT, errno, "nobody listens");
	if (word[4] && !strcmp(word[4], "lease") && !socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, lease)) {
		close_fd(&lease_far);
		lease_far = lease[0];
		fds[1] = lease[1];
		n = 2;
	}
	snprintf(m.token, sizeof(m.token), "%s", word[1]);
	snprintf(m.headers, sizeof(m.headers), "x-deno-sandbox-id: sbx_test\r\nx-deno-trace-id: abc\r\n");
	rc = call(GATEWAY_TICKET_WS, (message_put_fn *)gateway_ticket_ws_put, &m, fds, n, NULL, NULL, path, f);
	fds_close(fds, 2);
	return rc;
}

static enum rc do_log(char **word, const char *path, struct fault *f)
{
	struct gateway_ticket_log m = { .ttl_ms = (uint32_t)atoi(word[2]), .offset = strtoull(word[3], NULL, 10),
					.format = (uint32_t)atoi(word[4]) };
	_cleanup_fd_ int fd = open(word[5], O_RDONLY | O_CLOEXEC);

	snprintf(m.token, sizeof(m.token), "%s", word[1]);
	snprintf(m.place, sizeof(m.place), "%s", word[6] ? word[6] : "");
	return call(GATEWAY_TICKET_LOG, (message_put_fn *)gateway_ticket_log_put, &m, &fd, 1, NULL, NULL, path, f);
}

static enum rc do_guide(char **word, const char *path, char *detail, size_t detail_n, struct fault *f)
{
	static struct message_call c;
	static int fd = -1;
	struct gateway_follow m = { .place = "" };
	struct gateway_place asked;
	_cleanup_fd_ int file = word[1] && word[3] ? open(word[3], O_RDONLY | O_CLOEXEC) : -1;
	enum rc rc = RC_OK;

	if (fd < 0)
		rc = unix_connect(path, SOCK_SEQPACKET, &fd, f);
	snprintf(m.place, sizeof(m.place), "%s", word[1] ? word[1] : "");
	snprintf(m.next, sizeof(m.next), "%s", file >= 0 ? word[2] : "");
	c = (struct message_call){ .op = GATEWAY_FOLLOW, .put = (message_put_fn *)gateway_follow_put, .request = &m, .send_fds = &file,
				   .n_send_fds = file >= 0, .get = (message_get_fn *)gateway_place_get, .reply = &asked };
	/* Nobody asks: it goes, as the API's guide never does. */
	if (!rc)
		rc = message_call(fd, &c, now_ms() + 1500, f);
	if (rc)
		close_fd(&fd);
	else
		snprintf(detail, detail_n, " %s", asked.place);
	return rc;
}

static void do_host(char **word)
{
	size_t i = 0;

	while (i < n_hosts && strcmp(hosts[i].name, word[1]))
		i++;
	if (i == HOSTS)
		return;
	if (i == n_hosts)
		n_hosts++;
	snprintf(hosts[i].name, sizeof(hosts[i].name), "%.*s", BROKER_HOST_MAX - 1, word[1]);
	hosts[i].port = (uint16_t)atoi(word[2]);
	snprintf(hosts[i].org, sizeof(hosts[i].org), "%.*s", BROKER_ORG_MAX - 1, word[3] ? word[3] : "");
	event_expose(word[1], hosts[i].org, true);
}

static void do_unhost(char **word)
{
	for (size_t i = 0; i < n_hosts; i++)
		if (!strcmp(hosts[i].name, word[1])) {
			hosts[i] = hosts[--n_hosts];
			break;
		}
	event_expose(word[1], "", false);
}

/* "lease?": whether the gateway still holds the last lease. */
static bool lease_held(void)
{
	char c;

	return lease_far >= 0 && recv(lease_far, &c, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN;
}

static void command(char *line, const char *path)
{
	char *word[8] = { 0 }, *save = NULL, detail[GATEWAY_PLACE_MAX + 8] = "";
	struct fault f = { .rc = RC_OK };
	struct gateway_stat s;
	enum rc rc = RC_OK;

	for (int i = 0; i < 7 && (word[i] = strtok_r(i ? NULL : line, " ", &save)); i++)
		;
	if (!word[0])
		rc = fault_set(&f, RC_INVALID, 0, "empty");
	else if (!strcmp(word[0], "ws") && word[3])
		rc = do_ws(word, path, &f);
	else if (!strcmp(word[0], "log") && word[5])
		rc = do_log(word, path, &f);
	else if (!strcmp(word[0], "guide"))
		rc = do_guide(word, path, detail, sizeof(detail), &f);
	else if (!strcmp(word[0], "host") && word[2])
		do_host(word);
	else if (!strcmp(word[0], "unhost") && word[1])
		do_unhost(word);
	else if (!strcmp(word[0], "drop"))
		for (size_t i = 0; i < PEERS; i++)
			peer_end(&peers[i]);
	else if (!strcmp(word[0], "lease"))
		close_fd(&lease_far);
	else if (!strcmp(word[0], "lease?"))
		snprintf(detail, sizeof(detail), " %s", lease_held() ? "held" : "gone");
	else if (!strcmp(word[0], "stat")) {
		rc = call(GATEWAY_STAT, NULL, NULL, NULL, 0, (message_get_fn *)gateway_stat_get, &s, path, &f);
		if (!rc)
			snprintf(detail, sizeof(detail), " %u %u %u %llu", s.tickets, s.streams, s.exposures,
				 (unsigned long long)s.bytes);
	} else
		rc = fault_set(&f, RC_INVALID, 0, "unknown command");
	say(rc, &f, detail);
}

static void on_stdin(void *arg, uint32_t events)
{
	static char text[65536];
	static size_t n;
	ssize_t got = read(0, text + n, sizeof(text) - 1 - n);
	char *nl;

	(void)events;
	if (got <= 0) {
		loop_stop(loop);
		return;
	}
	n += (size_t)got;
	text[n] = '\0';
	while ((nl = strchr(text, '\n'))) {
		*nl = '\0';
		command(text, arg);
		n -= (size_t)(nl + 1 - text);
		memmove(text, nl + 1, n + 1);
	}
}

/* /t/TOKEN: redirect; /json429: an error of the API; anything else: what came, as JSON. */
static void *responder(void *arg)
{
	FCGX_Request r;

	FCGX_InitRequest(&r, *(int *)arg, 0);
	while (FCGX_Accept_r(&r) == 0) {
		const char *uri = FCGX_GetParam("REQUEST_URI", r.envp);
		const char *config = FCGX_GetParam("HTTP_X_DENO_SANDBOX_CONFIG", r.envp);
		const char *length = FCGX_GetParam("CONTENT_LENGTH", r.envp);
		char waste[4096];
		long body = 0;
		int n;

		while ((n = FCGX_GetStr(waste, sizeof(waste), r.in)) > 0)
			body += n;
		if (uri && !strncmp(uri, "/t/", 3))
			FCGX_FPrintF(r.out, "Status: 200 OK\r\nX-Accel-Redirect: /_stream/%s\r\n\r\n", uri + 3);
		else if (uri && !strcmp(uri, "/json429"))
			FCGX_FPrintF(r.out, "Status: 429 Too Many Requests\r\nContent-Type: application/json\r\n\r\n"
					    "{\"code\":\"QUOTA\",\"message\":\"m\"}");
		else
			FCGX_FPrintF(r.out, "Content-Type: application/json\r\n\r\n{\"uri\":\"%s\",\"config\":%d,\"body\":%ld,"
					    "\"length\":\"%s\"}", uri ? uri : "", config ? (int)strlen(config) : -1, body,
				     length ? length : "");
		FCGX_Finish_r(&r);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	static char broker_path[256], api_path[256], fcgi_path[256];
	struct source *a, *b;
	struct fault f;
	pthread_t thread;
	int broker_fd, fcgi_fd;

	if (argc != 2)
		return 2;
	for (size_t i = 0; i < PEERS; i++)
		peers[i].fd = -1;
	snprintf(broker_path, sizeof(broker_path), "%s/broker.sock", argv[1]);
	snprintf(api_path, sizeof(api_path), "%s/gateway.sock", argv[1]);
	snprintf(fcgi_path, sizeof(fcgi_path), "%s/api.sock", argv[1]);
	FCGX_Init();
	fcgi_fd = FCGX_OpenSocket(fcgi_path, 64);
	if (fcgi_fd < 0 || chmod(fcgi_path, 0666) < 0 || pthread_create(&thread, NULL, responder, &fcgi_fd))
		return 1;
	if (loop_new(&loop, &f) || unix_listen(broker_path, SOCK_SEQPACKET, 0666, (gid_t)-1, &broker_fd, &f) ||
	    loop_fd(loop, broker_fd, EPOLLIN, on_broker, &broker_fd, &a, &f) ||
	    loop_fd(loop, 0, EPOLLIN, on_stdin, api_path, &b, &f)) {
		fprintf(stderr, "gateway_bed: %s\n", f.text);
		return 1;
	}
	puts("ok ready");
	fflush(stdout);
	return loop_run(loop, &f) ? 1 : 0;
}
