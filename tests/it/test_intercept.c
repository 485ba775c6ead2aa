/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Secrets, end to end: a guest with OpenSSL that trusts what the broker would have told it to trust, and a real TLS server in
 * the world whose certificate comes from a root of the test's. What the server read is compared with what the guest sent.
 */
#include "base/cleanup.h"
#include "base/fd.h"
#include "tests/it/egressbed.h"
#include "tests/lib/check.h"
#include "tests/lib/hello.h"
#include "tests/lib/seal.h"
#include "vmm/egress/ca.h"
#include "vmm/egress/dns.h"
#include "vmm/egress/limits.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>

#define HEAD POLICY_HEAD "\ndefault public\norg acme\n"
#define PH "nbsecret_0123456789abcdef"
#define PH2 "nbsecret_fedcba9876543210"
#define VALUE "sk-real-value-0042"
#define ROTATED "sk-other-value-0043"
#define GET "GET /v1/models?x=1 HTTP/1.1\r\nHost: api.test\r\n"
#define OK_EMPTY "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
#define TEXT_MAX 65536

static const uint8_t key[EGRESS_KEY_BYTES] = "0123456789abcdef0123456789abcde", root_key[EGRESS_KEY_BYTES] = "roots",
		     stranger_key[EGRESS_KEY_BYTES] = "strangers";
static struct bed bed;
static struct ca *root, *stranger;
static char sandbox_ca[BROKER_CA_MAX];

static void prepare(const char *dir)
{
	char path[256];
	FILE *f;

	ca_new(root_key, "root", &root, NULL);
	ca_new(stranger_key, "stranger", &stranger, NULL);
	snprintf(path, sizeof(path), "%s/keys", dir);
	mkdir(path, 0755);
	snprintf(path, sizeof(path), "%s/keys/egress.key", dir);
	f = fopen(path, "we");
	fwrite(key, 1, sizeof(key), f);
	fclose(f);
	snprintf(path, sizeof(path), "%s/roots.pem", dir);
	f = fopen(path, "we");
	fputs(ca_pem(root), f);
	fclose(f);
}

static void policy_text(char *out, size_t size, const char *value)
{
	char a[SEAL_MAX], b[SEAL_MAX];

	snprintf(out, size, HEAD "secret KEY " PH " %s api.test\nsecret OTHER " PH2 " %s *.svc.test\n",
		 seal(key, "sbx_test", "KEY", value, a), seal(key, "sbx_test", "OTHER", "value-of-the-other", b));
}

static bool up(void)
{
	static bool asked, can;
	char policy[3 * SEAL_MAX];

	if (asked && !can)
		return false;
	if (!asked) {
		asked = true;
		can = bed_up(&bed, NULL, prepare);
	}
	if (can) {
		policy_text(policy, sizeof(policy), VALUE);
		bed_send_vm(&bed, &bed.net, policy);
		if (!bed_ca(&bed, sandbox_ca) || !*sandbox_ca) {
			printf("  no certificate authority came\n");
			exit(1);
		}
	}
	return can;
}

#define UP()                                                      \
	do {                                                      \
		if (!up())                                        \
			SKIP("needs root and /dev/net/tun");      \
	} while (0)

/* --- the server ---------------------------------------------------------------------------------------------- */

struct server {
	int listener;
	struct ca *ca;
	const char *name;
	const char *answers[3];  /* one a request; a '\1' in it: the write is cut there */
	size_t body_n;           /* bytes of a body to read after each head */
	char got[TEXT_MAX];
	size_t n;
	bool handshake;
	pthread_t thread;
};

static void answer_write(SSL *ssl, const char *text)
{
	while (*text) {
		size_t n = strcspn(text, "\1");

		if (n && SSL_write(ssl, text, (int)n) <= 0)
			return;
		text += n + (text[n] == '\1');
	}
}

static void serve_requests(struct server *s, SSL *ssl)
{
	size_t start = 0;

	for (size_t i = 0; i < ARRAY_SIZE(s->answers) && s->answers[i]; i++) {
		const char *end;
		int k;

		while (!(end = memmem(s->got + start, s->n - start, "\r\n\r\n", 4)) ||
		       s->n < (size_t)(end + 4 - s->got) + s->body_n) {
			k = SSL_read(ssl, s->got + s->n, (int)(TEXT_MAX - 1 - s->n));
			if (k <= 0)
				return;
			s->n += (size_t)k;
		}
		start = (size_t)(end + 4 - s->got) + s->body_n;
		answer_write(ssl, s->answers[i]);
	}
	SSL_shutdown(ssl);
}

static void *serve(void *arg)
{
	struct server *s = arg;
	_cleanup_fd_ int fd = bed_accept(s->listener);
	struct timeval patience = { BED_WAIT_MS / 1000, 0 };
	SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());
	SSL *ssl = SSL_new(ctx);

	if (fd >= 0) {
		setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
		ca_use(s->ca, ssl, s->name, NULL);
		SSL_set_fd(ssl, fd);
		s->handshake = SSL_accept(ssl) == 1;
		if (s->handshake)
			serve_requests(s, ssl);
		s->got[s->n] = '\0';
	}
	SSL_free(ssl);
	SSL_CTX_free(ctx);
	return NULL;
}

static void server_start(struct server *s, const char *addr)
{
	s->listener = bed_listen(&bed, addr, 443);
	s->ca = s->ca ? s->ca : root;
	s->name = s->name ? s->name : "api.test";
	pthread_create(&s->thread, NULL, serve, s);
}

static void server_end(struct server *s)
{
	pthread_join(s->thread, NULL);
	close(s->listener);
}

/* --- the guest ----------------------------------------------------------------------------------------------- */

struct client {
	SSL_CTX *ctx;
	SSL *ssl;
	int fd;
	char text[TEXT_MAX];
	size_t n;
};

static bool client_open(struct client *c, const char *name)
{
	struct timeval patience = { BED_WAIT_MS / 1000, 0 };
	BIO *pem = BIO_new_mem_buf(sandbox_ca, -1);
	X509 *ca = PEM_read_bio_X509(pem, NULL, NULL, NULL);

	memset(c, 0, sizeof(*c));
	c->ctx = SSL_CTX_new(TLS_client_method());
	X509_STORE_add_cert(SSL_CTX_get_cert_store(c->ctx), ca);
	SSL_CTX_set_verify(c->ctx, SSL_VERIFY_PEER, NULL);
	X509_free(ca);
	BIO_free(pem);
	c->ssl = SSL_new(c->ctx);
	c->fd = bed_connect(&bed, name, 443);
	if (c->fd < 0)
		return false;
	setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	SSL_set_fd(c->ssl, c->fd);
	SSL_set_tlsext_host_name(c->ssl, name);
	SSL_set1_host(c->ssl, name);
	SSL_set_alpn_protos(c->ssl, (const unsigned char *)"\2h2\10http/1.1", 12);
	if (SSL_connect(c->ssl) == 1)
		return true;
	ERR_print_errors_fp(stdout);
	return false;
}

static void client_close(struct client *c)
{
	SSL_free(c->ssl);
	SSL_CTX_free(c->ctx);
	close_fd(&c->fd);
}

static bool client_send(struct client *c, const char *text)
{
	return SSL_write(c->ssl, text, (int)strlen(text)) == (int)strlen(text);
}

/* Until the text has this in it, or the end. */
static bool client_read(struct client *c, const char *until)
{
	for (;;) {
		int k;

		c->text[c->n] = '\0';
		if (until && strstr(c->text, until))
			return true;
		k = SSL_read(c->ssl, c->text + c->n, (int)(TEXT_MAX - 1 - c->n));
		if (k <= 0)
			return !until;
		c->n += (size_t)k;
	}
}

TEST(a_placeholder_becomes_the_value_for_its_host)
{
	struct server s = { .answers = { OK_EMPTY } };
	struct client c;

	UP();
	server_start(&s, BED_WEB);
	REQUIRE(client_open(&c, "api.test"));
	CHECK(client_send(&c, GET "Authorization: Bearer " PH "\r\nUser-Agent: " PH "\r\nX-Other: " PH2 "\r\n\r\n"));
	CHECK(client_read(&c, "\r\n\r\n"));
	CHECK(!strncmp(c.text, "HTTP/1.1 200 OK\r\n", 17));
	server_end(&s);
	CHECK(strstr(s.got, "GET /v1/models?x=1 HTTP/1.1\r\nHost: api.test\r\n"));
	CHECK(strstr(s.got, "\r\nAuthorization: Bearer " VALUE "\r\n"));
	CHECK(strstr(s.got, "\r\nUser-Agent: " PH "\r\n"));
	CHECK(strstr(s.got, "\r\nX-Other: " PH2 "\r\n"));
	CHECK(strstr(s.got, "\r\nAccept-Encoding: identity\r\n"));
	client_close(&c);
	CHECK(bed_ledger(&bed, "\"protocol\":\"https\"", "\"method\":\"GET\"", "\"path\":\"/v1/models\"", "\"secret\":\"KEY\"",
			 "\"status\":200", "not bound to this host", NULL));
}

TEST(an_answer_that_echoes_the_value_gets_the_placeholder_back)
{
	struct server s = { .answers = {
		"HTTP/1.1 200 OK\r\nX-Echo: a" VALUE "b\r\nSet-Cookie: k=" VALUE "\r\nContent-Length: 44\r\n\r\n"
		"<<sk-real\1-value-\1" "0042>>" "<<" VALUE ">>",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nsk-real-\r\n\1a\r\nvalue-0042\r\n1\r\n!\r\n0\r\n\r\n",
		"HTTP/1.0 200 OK\r\n\r\nends with " VALUE } };
	struct client c;

	UP();
	server_start(&s, BED_WEB);
	REQUIRE(client_open(&c, "api.test"));
	CHECK(client_send(&c, GET "Authorization: " PH "\r\n\r\n"));
	CHECK(client_read(&c, "\r\n0\r\n\r\n"));
	CHECK(strstr(c.text, "\r\nX-Echo: a" PH "b\r\n"));
	CHECK(strstr(c.text, "\r\nSet-Cookie: k=" PH "\r\n"));
	CHECK(!strstr(c.text, "Content-Length"));
	CHECK(!strstr(c.text, "sk-real"));
	c.n = 0;
	CHECK(client_send(&c, GET "\r\n"));
	CHECK(client_read(&c, "\r\n0\r\n\r\n"));
	CHECK(strstr(c.text, PH));
	CHECK(!strstr(c.text, "sk-real") && !strstr(c.text, "value-0042"));
	c.n = 0;
	CHECK(client_send(&c, GET "\r\n"));
	CHECK(client_read(&c, NULL));
	CHECK(strstr(c.text, PH));
	CHECK(!strstr(c.text, VALUE));
	client_close(&c);
	server_end(&s);
	CHECK(bed_ledger(&bed, "\"protocol\":\"https\"", "the answer held a secret", NULL));
}

TEST(a_compressed_answer_is_refused)
{
	struct server s = { .answers = { "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nxyz" } };
	struct client c;

	UP();
	server_start(&s, BED_WEB);
	REQUIRE(client_open(&c, "api.test"));
	CHECK(client_send(&c, GET "Authorization: " PH "\r\n\r\n"));
	CHECK(client_read(&c, NULL));
	CHECK(!strncmp(c.text, "HTTP/1.1 502 ", 13));
	CHECK(!strstr(c.text, "xyz"));
	client_close(&c);
	server_end(&s);
}

TEST(bodies_pass_in_both_framings)
{
	struct server s = { .answers = { OK_EMPTY }, .body_n = 11 };
	struct server t = { .answers = { OK_EMPTY }, .body_n = strlen("6\r\nhello \r\n5\r\nworld\r\n0\r\n\r\n") };
	struct client c;

	UP();
	server_start(&s, BED_WEB);
	REQUIRE(client_open(&c, "api.test"));
	CHECK(client_send(&c, "POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: 11\r\n\r\nhello"));
	CHECK(client_send(&c, " world"));
	CHECK(client_read(&c, "\r\n\r\n"));
	client_close(&c);
	server_end(&s);
	CHECK(strstr(s.got, "\r\nContent-Length: 11\r\n\r\nhello world"));
	server_start(&t, BED_WEB);
	REQUIRE(client_open(&c, "api.test"));
	CHECK(client_send(&c, "POST / HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\n\r\n6;e=1\r\nhello \r\n"));
	CHECK(client_send(&c, "5\r\nworld\r\n0\r\nT: " PH "\r\n\r\n"));
	CHECK(client_read(&c, "\r\n\r\n"));
	client_close(&c);
	server_end(&t);
	CHECK(strstr(t.got, "\r\nTransfer-Encoding: chunked\r\n"));
	CHECK(strstr(t.got, "6\r\nhello \r\n5\r\nworld\r\n"));
	CHECK(!strstr(t.got, "T: "));
}

static void refused(const char *request, const char *status)
{
	struct server s = { .answers = { OK_EMPTY } };
	struct client c;

	server_start(&s, BED_WEB);
	REQUIRE(client_open(&c, "api.test"));
	CHECK(client_send(&c, request));
	CHECK(client_read(&c, NULL));
	if (strncmp(c.text + 9, status, 3)) {
		printf("  %s -> %.60s\n", request, c.text);
		CHECK(!"refused");
	}
	client_close(&c);
	server_end(&s);
	CHECK_EQ(s.n, 0);
}

TEST(requests_that_two_parsers_could_read_differently_go_nowhere)
{
	UP();
	refused("GET / HTTP/1.1\r\nHost: evil.test\r\nAuthorization: " PH "\r\n\r\n", "421");
	refused("GET / HTTP/1.1\r\nAuthorization: " PH "\r\n\r\n", "421");
	refused("GET https://evil.test/ HTTP/1.1\r\nHost: api.test\r\n\r\n", "421");
	refused("POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400");
	refused("GET / HTTP/1.1\r\nHost: api.test\r\nA: b\r\n c\r\n\r\n", "400");
	refused("GET / HTTP/1.1\nHost: api.test\n\n", "400");
}

static void bad_upstream(struct ca *ca, const char *name, const char *why)
{
	struct server s = { .answers = { OK_EMPTY }, .ca = ca, .name = name };
	struct client c;

	server_start(&s, BED_WEB);
	REQUIRE(client_open(&c, "api.test"));
	CHECK(client_send(&c, GET "Authorization: " PH "\r\n\r\n"));
	CHECK(client_read(&c, NULL));
	CHECK(!strncmp(c.text, "HTTP/1.1 502 ", 13));
	CHECK(strstr(c.text, why));
	client_close(&c);
	server_end(&s);
	CHECK_EQ(s.n, 0);
}

TEST(upstream_must_be_who_it_says)
{
	UP();
	bad_upstream(stranger, "api.test", "unable to get local issuer certificate");
	bad_upstream(root, "evil.test", "hostname mismatch");
}

TEST(a_rotated_value_is_used_from_the_next_request_on)
{
	struct server s = { .answers = { OK_EMPTY, "HTTP/1.1 200 OK\r\nContent-Length: 19\r\n\r\n" ROTATED } };
	char policy[3 * SEAL_MAX], pem[BROKER_CA_MAX];
	struct client c;

	UP();
	server_start(&s, BED_WEB);
	REQUIRE(client_open(&c, "api.test"));
	CHECK(client_send(&c, GET "Authorization: " PH "\r\n\r\n"));
	CHECK(client_read(&c, "\r\n\r\n"));
	policy_text(policy, sizeof(policy), ROTATED);
	bed_send_policy(&bed, policy);
	CHECK(bed_ca(&bed, pem));
	CHECK_STR(pem, sandbox_ca);
	c.n = 0;
	CHECK(client_send(&c, GET "Authorization: " PH "\r\n\r\n"));
	CHECK(client_read(&c, "\r\n0\r\n\r\n"));
	CHECK(strstr(c.text, PH) && !strstr(c.text, ROTATED));
	client_close(&c);
	server_end(&s);
	CHECK(strstr(s.got, "\r\nAuthorization: " VALUE "\r\n"));
	CHECK(strstr(s.got, "\r\nAuthorization: " ROTATED "\r\n"));
}

TEST(plain_http_never_carries_a_value)
{
	char got[512] = "";
	static const char request[] = GET "Authorization: " PH "\r\n\r\n";

	UP();
	_cleanup_fd_ int l = bed_listen(&bed, BED_WEB, 80), c = bed_connect(&bed, "api.test", 80), s = -1;

	REQUIRE(c >= 0);
	CHECK_EQ(fd_write_all(c, request, sizeof(request) - 1, now_ms() + BED_WAIT_MS, NULL), RC_OK);
	s = bed_accept(l);
	CHECK_EQ(fd_read_exact(s, got, sizeof(request) - 1, now_ms() + BED_WAIT_MS, NULL), RC_OK);
	CHECK_STR(got, request);
}

TEST(a_long_answer_comes_whole_and_is_held_back_by_a_slow_reader)
{
	static char big[TEXT_MAX * 16];
	struct server s = { .answers = { big } };
	struct client c;
	size_t n, total = 0;
	int k;

	UP();
	n = (size_t)snprintf(big, sizeof(big), "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
	memset(big + n, 'x', sizeof(big) - 1 - n);
	server_start(&s, BED_WEB);
	REQUIRE(client_open(&c, "api.test"));
	CHECK(client_send(&c, "GET / HTTP/1.0\r\nHost: api.test\r\n\r\n"));
	while ((k = SSL_read(c.ssl, c.text, TEXT_MAX)) > 0)
		total += (size_t)k;
	CHECK(total > sizeof(big) - 1 - n);
	CHECK(total < sizeof(big) + 200);
	client_close(&c);
	server_end(&s);
}

/* One request on a connection of its own; the answer is in c. */
static void ask(struct client *c, const char *request)
{
	REQUIRE(client_open(c, "api.test"));
	CHECK(client_send(c, request));
	CHECK(client_read(c, "\r\n\r\n"));
	client_close(c);
}

TEST(a_byte_rate_holds_for_intercepted_connections)
{
	static char big[600000];
	struct server s = { .answers = { big } };
	char policy[3 * SEAL_MAX], pem[BROKER_CA_MAX];
	uint64_t start;
	struct client c;
	size_t total = 0;
	int k;

	UP();
	policy_text(policy, sizeof(policy), VALUE);
	strcat(policy, "limit bytes_per_s=300000\n");
	bed_send_policy(&bed, policy);
	CHECK(bed_ca(&bed, pem));
	strcpy(big, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
	memset(big + strlen(big), 'x', sizeof(big) - 1 - strlen(big));
	server_start(&s, BED_WEB);
	REQUIRE(client_open(&c, "api.test"));
	start = now_ms();
	CHECK(client_send(&c, "GET / HTTP/1.0\r\nHost: api.test\r\n\r\n"));
	while ((k = SSL_read(c.ssl, c.text, TEXT_MAX)) > 0)
		total += (size_t)k;
	CHECK(total > sizeof(big) - 200);
	/* What may come at once, then the rate. */
	CHECK(now_ms() - start >= (sizeof(big) - 65536) * 1000 / 300000 * 9 / 10);
	client_close(&c);
	server_end(&s);
}

TEST(rules_of_a_host_and_of_a_secret_hold)
{
	struct server s = { .answers = { OK_EMPTY } }, t = { .answers = { OK_EMPTY } }, none = { .answers = { OK_EMPTY } };
	char policy[3 * SEAL_MAX], pem[BROKER_CA_MAX];
	_cleanup_fd_ int fd = -1;
	struct client c;

	UP();
	policy_text(policy, sizeof(policy), VALUE);
	strcat(policy, "rule api.test GET,POST /v1/\nrule other.test GET /\nsecret-rule KEY methods=GET headers=x-key query=key\n");
	bed_send_policy(&bed, policy);
	CHECK(bed_ca(&bed, pem));
	server_start(&s, BED_WEB);
	ask(&c, "GET /v1/./m?key=" PH "&o=" PH " HTTP/1.1\r\nHost: api.test\r\nX-Key: " PH "\r\nAuthorization: " PH "\r\n\r\n");
	server_end(&s);
	CHECK(strstr(s.got, "GET /v1/m?key=" VALUE "&o=" PH " HTTP/1.1\r\n"));
	CHECK(strstr(s.got, "\r\nX-Key: " VALUE "\r\n"));
	CHECK(strstr(s.got, "\r\nAuthorization: " PH "\r\n"));
	CHECK(bed_ledger(&bed, "\"rule\":\"rule GET,POST /v1/\"", "where its secret may not go", "\"secret\":\"KEY\"", NULL));
	server_start(&t, BED_WEB);
	ask(&c, "POST /v1/m HTTP/1.1\r\nHost: api.test\r\nX-Key: " PH "\r\nContent-Length: 0\r\n\r\n");
	server_end(&t);
	CHECK(strstr(t.got, "\r\nX-Key: " PH "\r\n"));
	server_start(&none, BED_WEB);
	ask(&c, "DELETE /v1/m HTTP/1.1\r\nHost: api.test\r\nX-Key: " PH "\r\n\r\n");
	CHECK(!strncmp(c.text, "HTTP/1.1 403 Forbidden\r\n", 24));
	server_end(&none);
	CHECK_EQ(none.n, 0);
	none.n = 0;
	server_start(&none, BED_WEB);
	ask(&c, "GET /v1/..%2f..%2fadmin HTTP/1.1\r\nHost: api.test\r\nX-Key: " PH "\r\n\r\n");
	CHECK(!strncmp(c.text, "HTTP/1.1 400 Bad Request\r\n", 24));
	server_end(&none);
	CHECK_EQ(none.n, 0);
	/* Nor is there a port on which nobody would look. */
	fd = bed_connect(&bed, "other.test", 22);
	CHECK(fd < 0 || bed_end_of(fd) == 'R');
	policy_text(policy, sizeof(policy), VALUE);
	bed_send_policy(&bed, policy);
	CHECK(bed_ca(&bed, pem));
}

#define UPGRADE "GET /chat HTTP/1.1\r\nHost: api.test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"      \
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"                            \
		"Sec-WebSocket-Extensions: permessage-deflate\r\nAuthorization: " PH "\r\n\r\n"
#define ACCEPTED "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Accept: x\r\n"

TEST(a_websocket_opens_and_its_messages_are_looked_through)
{
	/* The client's frame is what the server's second answer waits for. */
	static const char frame[] = "\x81\xa2\1\2\3\4", end[] = "\r\n\r\n";
	struct server s = { .answers = { ACCEPTED "\r\n\x02\x0c{\"k\":\"sk-rea\1\x80\x0el-value-0042\"}", "\x88\x05\x03\xe8" "bye" } };
	char masked[64];
	struct client c;

	UP();
	server_start(&s, BED_WEB);
	REQUIRE(client_open(&c, "api.test"));
	CHECK(client_send(&c, UPGRADE));
	CHECK(client_read(&c, PH "\"}"));
	CHECK(!strncmp(c.text, "HTTP/1.1 101 ", 13));
	CHECK(strstr(c.text, "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x02\x06{\"k\":\""));
	CHECK(!strstr(c.text, "sk-rea"));
	memcpy(masked, frame, 6);
	for (size_t i = 0; i < 34; i++)
		masked[6 + i] = (char)((i < 30 ? (PH "     ")[i] : end[i - 30]) ^ frame[2 + (i & 3)]);
	/* The server of this test looks for an empty line; a second frame carries it in the clear, under a mask of zeros. */
	CHECK_EQ(SSL_write(c.ssl, masked, 40), 40);
	CHECK_EQ(SSL_write(c.ssl, "\x81\x84\0\0\0\0\r\n\r\n", 10), 10);
	CHECK(client_read(&c, NULL));
	CHECK(memmem(c.text, c.n, "\x88\x05\x03\xe8" "bye", 7));
	client_close(&c);
	server_end(&s);
	CHECK(strstr(s.got, "\r\nAuthorization: " VALUE "\r\n"));
	CHECK(strstr(s.got, "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"));
	CHECK(!strcasestr(s.got, "extensions"));
	CHECK(memmem(s.got, s.n, masked, 40));
	CHECK(bed_ledger(&bed, "\"path\":\"/chat\"", "\"status\":101", "\"secret\":\"KEY\"", "a message held a secret", NULL));
}

static void no_websocket(const char *request, const char *response, const char *status)
{
	struct server s = { .answers = { response } };
	struct client c;

	server_start(&s, BED_WEB);
	REQUIRE(client_open(&c, "api.test"));
	CHECK(client_send(&c, request));
	CHECK(client_read(&c, NULL));
	if (strncmp(c.text + 9, status, 3)) {
		printf("  %.40s -> %.60s\n", response, c.text);
		check_failed_here++;
	}
	client_close(&c);
	server_end(&s);
}

TEST(what_is_no_websocket_is_not_switched_to)
{
	UP();
	no_websocket(UPGRADE, ACCEPTED "Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n", "502");
	no_websocket(GET "\r\n", ACCEPTED "\r\n", "502");
	no_websocket(GET "Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
		     "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", "502");
	no_websocket(UPGRADE, "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", "403");
	/* A frame that breaks the protocol closes it, and the guest hears why. */
	no_websocket(UPGRADE, ACCEPTED "\r\n\xc1\x02xx", "101");
	CHECK(bed_ledger(&bed, "\"status\":101", "extension that was not agreed upon", NULL));
}

/* Each is a known way to make two parsers see different requests (RFC 9112 11.2, 9.2). */
TEST(smuggling_is_refused)
{
#define POST "POST / HTTP/1.1\r\nHost: api.test\r\n"
#define INNER "GET /admin HTTP/1.1\r\nHost: api.test\r\n\r\n"
	static const struct {
		const char *request, *status;
	} tried[] = {
		{ POST "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG", "400" },  /* CL.TE */
		{ POST "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n8\r\nSMUGGLED\r\n0\r\n\r\n", "400" }, /* TE.CL */
		{ POST "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", "400" }, /* TE.TE */
		{ POST "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", "400" },
		{ POST "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", "400" },
		{ POST "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", "400" },
		{ POST "Transfer-Encoding: chunked\x0b\r\n\r\n0\r\n\r\n", "400" },
		{ POST "Content-Length: 0\r\nContent-Length: 43\r\n\r\n" INNER, "400" },
		{ POST "Content-Length: 0, 43\r\n\r\n" INNER, "400" },
		{ POST "Content-Length: +5\r\n\r\nhello", "400" },
		{ POST "Content-Length: 0x5\r\n\r\nhello", "400" },
		{ POST "Content-Length: 99999999999999999999\r\n\r\n", "400" },
		{ "POST / HTTP/1.0\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400" },
		{ "GET / HTTP/1.1\r\nHost: api.test\r\nX: a\r\n\tHost: evil.test\r\n\r\n", "400" },          /* obs-fold */
		{ "GET / HTTP/1.1\r\nHost: api.test\nX: y\r\n\r\n", "400" },                               /* bare LF */
		{ "GET / HTTP/1.1\r\nHost: api.test\r\nX: a\rb\r\n\r\n", "400" },                          /* bare CR */
		{ "GET / HTTP/1.1\r\nHost: api.test\r\nHost: api.test\r\n\r\n", "421" },
		{ "GET / HTTP/1.1\r\nHost: api.test\r\nHost: evil.test\r\n\r\n", "421" },
		{ "GET / HTTP/1.1\r\nHost: api.test@evil.test\r\n\r\n", "421" },
		{ "GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n", "421" },
		{ "GET https://api.test/ HTTP/1.1\r\nHost: api.test\r\n\r\n", "421" },                      /* absolute-form */
		{ "GET //evil.test/ HTTP/1.0\r\n\r\n", "421" },
		{ "CONNECT evil.test:443 HTTP/1.1\r\nHost: api.test\r\n\r\n", "421" },
		{ "CONNECT api.test:443 HTTP/1.1\r\nHost: api.test\r\n\r\n", "421" },
		{ "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "400" },                                         /* h2 without ALPN */
		{ "GET / HTTP/1.1 \r\nHost: api.test\r\n\r\n", "400" },
		{ "GET /a b HTTP/1.1\r\nHost: api.test\r\n\r\n", "400" },
		{ " GET / HTTP/1.1\r\nHost: api.test\r\n\r\n", "400" },
		{ "\r\n\r\nGET / HTTP/1.1\r\nHost: api.test\r\n\r\n", "400" },
	};

	UP();
	for (size_t i = 0; i < ARRAY_SIZE(tried); i++)
		refused(tried[i].request, tried[i].status);
}

TEST(a_chunk_that_is_malformed_ends_the_request_where_it_is)
{
	struct server s = { .answers = { OK_EMPTY }, .body_n = 100 };
	struct client c;

	UP();
	server_start(&s, BED_WEB);
	REQUIRE(client_open(&c, "api.test"));
	CHECK(client_send(&c, POST "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\n0\r\n\r\n" INNER));
	CHECK(client_read(&c, NULL));
	CHECK(!strncmp(c.text, "HTTP/1.1 400 ", 13));
	client_close(&c);
	server_end(&s);
	CHECK(!strstr(s.got, "admin"));
}

/* EGRESS_TLS_CONNS_MAX: those that may hold the most memory. The rate of new ones is the other bound on the way there. */
TEST(intercepted_connections_are_bounded)
{
	static int fds[EGRESS_CONNS_MAX + 1], ends[EGRESS_CONNS_MAX + 1];
	uint8_t hello[HELLO_TEST_MAX];
	size_t hello_n = hello_make(hello, "api.test", 0, 4096), n = 0, k = 0;
	uint64_t late;
	char addr[16];

	UP();
	_cleanup_fd_ int l = bed_listen(&bed, BED_WEB, 443);

	REQUIRE(bed_dns(&bed, false, "api.test", DNS_TYPE_A, addr, NULL, NULL) == DNS_NOERROR && *addr);
	fd_nonblock(l, NULL);
	late = now_ms() + 12 * BED_WAIT_MS;
	while (now_ms() < late && !bed_ledger_count(&bed, "limit of intercepted connections")) {
		for (int i = 0; i < 32 && n < ARRAY_SIZE(fds); i++) {
			fds[n] = guestns_connect(&bed.guest, addr, 443, BED_WAIT_MS);
			if (fds[n] >= 0 && send(fds[n], hello, hello_n, MSG_NOSIGNAL) > 0)
				n++;
			else
				close_fd(&fds[n]);
		}
		bed_settle(&bed);
		while (k < ARRAY_SIZE(ends) && (ends[k] = accept4(l, NULL, NULL, SOCK_CLOEXEC)) >= 0)
			k++;
		/* Those that the rate refused make room for others. */
		for (size_t i = n; i-- > 0;)
			if (!fd_wait(fds[i], POLLIN, now_ms(), NULL)) {
				close_fd(&fds[i]);
				fds[i] = fds[--n];
			}
	}
	printf("  %zu connections at the server\n", k);
	CHECK(bed_ledger_count(&bed, "limit of intercepted connections") > 0);
	CHECK(k >= EGRESS_TLS_CONNS_MAX);
	while (n--)
		close_fd(&fds[n]);
	while (k--)
		close_fd(&ends[k]);
}

TEST(no_value_is_in_the_ledger)
{
	UP();
	CHECK_EQ(bed_ledger_count(&bed, VALUE), 0);
	CHECK_EQ(bed_ledger_count(&bed, ROTATED), 0);
	CHECK(bed_ledger_count(&bed, "\"secret\":\"KEY\"") > 0);
	CHECK_EQ(kill(bed.daemon, 0), 0);
}

__attribute__((destructor)) static void cleanup(void)
{
	bed_down(&bed);
	ca_free(root);
	ca_free(stranger);
}

CHECK_MAIN()
