/* SPDX-License-Identifier: Apache-2.0 */
/*
 * HTTP/2 and secrets between programs that know nothing of each other: Node's client in the guest, Node's server and nginx in
 * the world, the daemon between them.
 */
#include "base/cleanup.h"
#include "base/fd.h"
#include "tests/it/egressbed.h"
#include "tests/lib/check.h"
#include "tests/lib/seal.h"
#include "vmm/egress/ca.h"
#include "vmm/egress/dns.h"

#include <fcntl.h>
#include <openssl/pem.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define PH "nbsecret_0123456789abcdef"
#define VALUE "sk-real-value-0042"

static const uint8_t key[EGRESS_KEY_BYTES] = "0123456789abcdef0123456789abcde", root_key[EGRESS_KEY_BYTES] = "roots";
static struct bed bed;
static struct ca *root;
static pid_t servers[2];

static FILE *file_in(const char *dir, const char *name)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	return fopen(path, "we");
}

/* A certificate for this name, signed by the test's root. */
static void server_files(const char *dir, const char *name, const char *cert, const char *private_key)
{
	SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());
	SSL *ssl = SSL_new(ctx);
	FILE *f = file_in(dir, cert);

	ca_use(root, ssl, name, NULL);
	PEM_write_X509(f, SSL_get_certificate(ssl));
	fclose(f);
	f = file_in(dir, private_key);
	PEM_write_PrivateKey(f, SSL_get_privatekey(ssl), NULL, NULL, 0, NULL, NULL);
	fclose(f);
	SSL_free(ssl);
	SSL_CTX_free(ctx);
}

static void prepare(const char *dir)
{
	char path[256];
	FILE *f;

	ca_new(root_key, "root", &root, NULL);
	snprintf(path, sizeof(path), "%s/keys", dir);
	mkdir(path, 0755);
	f = file_in(dir, "keys/egress.key");
	fwrite(key, 1, sizeof(key), f);
	fclose(f);
	f = file_in(dir, "roots.pem");
	fputs(ca_pem(root), f);
	fclose(f);
	server_files(dir, "api.test", "api.pem", "api.key");
	server_files(dir, "x.svc.test", "web.pem", "web.key");
	f = file_in(dir, "nginx.conf");
	fprintf(f,
		"daemon off;\nmaster_process off;\npid %s/nginx.pid;\nerror_log stderr crit;\nevents {}\nhttp {\naccess_log off;\n"
		"gzip on;\ngzip_min_length 1;\ngzip_types *;\nserver {\nlisten " BED_OTHER ":443 ssl http2;\n"
		"ssl_certificate %s/web.pem;\nssl_certificate_key %s/web.key;\n"
		"location / { return 200 \"nginx $http_authorization $server_protocol\"; }\n}\n}\n", dir, dir, dir);
	fclose(f);
}

static const char *node(void)
{
	const char *path = getenv("NESTBOX_NODE");

	return path && *path ? path : "node";
}

/* In a network namespace; its standard output goes to *ret_out unless that is NULL. */
static pid_t run_in(int ns, int *ret_out, char *const argv[])
{
	int p[2];
	pid_t pid;

	if (ret_out && pipe2(p, O_CLOEXEC) < 0)
		return -1;
	pid = fork();
	if (!pid) {
		testns_enter(ns);
		if (ret_out)
			dup2(p[1], 1);
		execvp(argv[0], argv);
		_exit(127);
	}
	if (ret_out) {
		close(p[1]);
		*ret_out = p[0];
	}
	return pid;
}

#define ARG(text) ((char *)(uintptr_t)(text))

static bool up(const char *src)
{
	static char script[512], cert[128], private_key[128], conf[128], policy[3 * SEAL_MAX], pem[BROKER_CA_MAX], sealed[SEAL_MAX];
	_cleanup_fd_ int out = -1;
	char line[6] = "";
	FILE *f;

	snprintf(script, sizeof(script), "%s/tests/it/lib-h2_server.mjs", src);
	snprintf(cert, sizeof(cert), "%s/api.pem", bed.dir);
	snprintf(private_key, sizeof(private_key), "%s/api.key", bed.dir);
	snprintf(conf, sizeof(conf), "%s/nginx.conf", bed.dir);
	snprintf(policy, sizeof(policy),
		 POLICY_HEAD "\ndefault public\norg acme\nsecret KEY " PH " %s api.test,x.svc.test\n"
			     "rule api.test GET /\nrule api.test POST /svc\nrule api.test POST /sum\n",
		 seal(key, "sbx_test", "KEY", VALUE, sealed));
	bed_send_vm(&bed, &bed.net, policy);
	if (!bed_ca(&bed, pem) || !*pem)
		return false;
	f = file_in(bed.dir, "guest-ca.pem");
	fputs(pem, f);
	fclose(f);
	servers[0] = run_in(bed.world_ns, &out, (char *[]){ ARG(node()), script, ARG(BED_WEB), cert, private_key, ARG(VALUE), NULL });
	servers[1] = run_in(bed.world_ns, NULL, (char *[]){ ARG("nginx"), ARG("-p"), bed.dir, ARG("-c"), conf, NULL });
	return !fd_read_exact(out, line, 5, now_ms() + 60000, NULL) && !strcmp(line, "ready");
}

static bool have(const char *program)
{
	char cmd[256];

	snprintf(cmd, sizeof(cmd), "command -v %s >/dev/null 2>&1", program);
	return !system(cmd);
}

TEST(programs_that_speak_http2_work_with_secrets_and_rules)
{
	const char *src = getenv("srcdir");
	char script[512], ca[128], api[16], web[16];
	int status = -1;
	pid_t pid;

	if (getuid() || access("/dev/net/tun", R_OK | W_OK) || !have(node()) || !have("nginx"))
		SKIP("needs root, /dev/net/tun, node and nginx");
	REQUIRE(bed_up(&bed, NULL, prepare));
	REQUIRE(up(src ? src : "."));
	snprintf(script, sizeof(script), "%s/tests/it/lib-h2_client.mjs", src ? src : ".");
	snprintf(ca, sizeof(ca), "%s/guest-ca.pem", bed.dir);
	CHECK_EQ(bed_dns(&bed, false, "api.test", DNS_TYPE_A, api, NULL, NULL), 0);
	CHECK_EQ(bed_dns(&bed, false, "x.svc.test", DNS_TYPE_A, web, NULL, NULL), 0);
	pid = run_in(bed.guest.ns_fd, NULL, (char *[]){ ARG(node()), script, ca, ARG(PH), ARG(VALUE), api, web, NULL });
	CHECK(pid > 0 && waitpid(pid, &status, 0) == pid);
	CHECK_EQ(status, 0);
	CHECK(bed_ledger(&bed, "\"protocol\":\"https\"", "\"path\":\"/echo\"", "\"secret\":\"KEY\"", "\"status\":200", NULL));
	CHECK(bed_ledger(&bed, "\"decision\":\"deny\"", "\"status\":403", "\"path\":\"/denied\"", NULL));
	CHECK_EQ(bed_ledger_count(&bed, VALUE), 0);
}

__attribute__((destructor)) static void cleanup(void)
{
	for (int i = 0; i < 2; i++)
		if (servers[i] > 0) {
			kill(servers[i], SIGKILL);
			waitpid(servers[i], NULL, 0);
		}
	bed_down(&bed);
	ca_free(root);
}

CHECK_MAIN()
