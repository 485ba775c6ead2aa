/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nestbox-egress [-c FILE]. Starts as root to open the ledger's directory and raise its descriptor limit, then is user_egress
 * without capabilities for good, and filtered before it has heard from the broker. It can open sockets and write its ledger.
 */
#include "base/cleanup.h"
#include "base/fd.h"
#include "base/harden.h"
#include "base/log.h"
#include "vmm/egress/attach.h"
#include "vmm/egress/limits.h"
#include "vmm/egress/sandbox.h"
#include "vmm/egress/tls.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <openssl/crypto.h>
#include <seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>

#define CALL(name, why) { SCMP_SYS(name), why, 0, { { 0, 0, 0 } } }
#define FAMILY(af, why) { SCMP_SYS(socket), why, 1, { { 0, 0xffffffff, af } } }

static const struct harden_call calls[] = {
	FAMILY(AF_INET, "upstream connections, resolver"),
	FAMILY(AF_INET6, "upstream connections, resolver"),
	FAMILY(AF_UNIX, "the broker, after it restarted"),
	CALL(bind, "asking whether an address is the host's own; resolver"),
	CALL(connect, "upstream connections"),
	CALL(setsockopt, "keep-alive, no delay, reset on close"),
	CALL(getsockname, "resolver"),
	CALL(getpeername, "resolver"),
	{ SCMP_SYS(openat), "the ledger's files", 1, { { 2, O_WRONLY | O_APPEND | O_CREAT, O_WRONLY | O_APPEND | O_CREAT } } },
	CALL(mkdirat, "the ledger's directories"),
	CALL(unlinkat, "old files of the ledger"),
	CALL(getdents64, "old files of the ledger"),
	{ SCMP_SYS(openat), "resolv.conf, certificates", 1, { { 2, O_ACCMODE | O_CREAT | O_TRUNC, O_RDONLY } } },
};

/* As many as the host gives: each relayed connection takes two. */
static enum rc limits_raise(struct usage *ret_most, struct fault *ret_f)
{
	struct rlimit want = { EGRESS_FDS, EGRESS_FDS }, r;

	*ret_most = (struct usage){ .conns = EGRESS_FDS / EGRESS_FDS_PER_CONN, .tls = EGRESS_TLS_CONNS_ALL, .held = EGRESS_HELD_ALL };
	if (setrlimit(RLIMIT_NOFILE, &want) == 0)
		return RC_OK;
	if (getrlimit(RLIMIT_NOFILE, &r) < 0)
		return fault_set(ret_f, RC_SYS, errno, "getrlimit");
	r.rlim_cur = r.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &r) < 0)
		return fault_set(ret_f, RC_SYS, errno, "set the limit of descriptors to %llu", (unsigned long long)r.rlim_cur);
	ret_most->conns = (size_t)r.rlim_cur / EGRESS_FDS_PER_CONN;
	log_info("descriptors are limited to %llu", (unsigned long long)r.rlim_cur);
	return RC_OK;
}

/* Absent: there are no secrets on this host, and policies that have some are told so. */
static enum rc key_load(struct egress *eg, struct fault *ret_f)
{
	char path[PATH_MAX], *text = NULL;
	size_t n = 0;
	enum rc rc = path_join(path, sizeof(path), eg->config.state_dir, POLICY_KEY_FILE, ret_f);

	if (!rc)
		rc = file_read_at(AT_FDCWD, path, EGRESS_KEY_BYTES, &text, &n, ret_f);
	if (rc == RC_ABSENT) {
		log_info("no %s: secrets cannot be used", path);
		return RC_OK;
	}
	if (!rc && n != EGRESS_KEY_BYTES)
		rc = fault_set(ret_f, RC_INVALID, 0, "'%s' is not %d bytes", path, EGRESS_KEY_BYTES);
	if (!rc) {
		memcpy(eg->key, text, n);
		eg->has_key = true;
	}
	if (text)
		explicit_bzero(text, n);
	free(text);
	return rc;
}

static void on_signal(void *arg, int sig)
{
	log_info("ending on signal %d", sig);
	loop_stop(arg);
}

static enum rc serve(struct egress *eg, struct fault *ret_f)
{
	struct source *term = NULL, *intr = NULL;
	struct attach *attach = NULL;
	enum rc rc = ledger_start(eg->ledger, ret_f);

	if (!rc)
		rc = loop_signal(eg->loop, SIGTERM, on_signal, eg->loop, &term, ret_f);
	if (!rc)
		rc = loop_signal(eg->loop, SIGINT, on_signal, eg->loop, &intr, ret_f);
	if (!rc)
		rc = resolver_new(eg->loop, eg->config.egress_resolver, &eg->resolver, ret_f);
	if (!rc)
		rc = harden_final(calls, ARRAY_SIZE(calls), ret_f);
	if (!rc)
		rc = attach_new(eg, &attach, ret_f);
	if (!rc) {
		log_info("ready");
		rc = loop_run(eg->loop, ret_f);
	}
	attach_free(attach);
	while (eg->sandboxes)
		sandbox_free(eg->sandboxes);
	resolver_free(eg->resolver);
	loop_drop(term);
	loop_drop(intr);
	return rc;
}

static enum rc run(struct egress *eg, const char *config_path, struct fault *ret_f)
{
	enum rc rc = config_load(&eg->config, config_path, ret_f);

	eg->reach.is_local = address_is_local;
	if (!rc)
		rc = prefixes_parse(&eg->reach.private_ok, eg->config.egress_allow_private, ret_f);
	if (!rc)
		rc = limits_raise(&eg->most, ret_f);
	if (!rc)
		rc = ledger_new(&eg->config, &eg->ledger, ret_f);
	if (!rc)
		rc = tls_new(eg->config.egress_ca_file, &eg->tls, ret_f);
	if (!rc)
		rc = key_load(eg, ret_f);
	/* Locked memory is counted against root's limit, or against none. */
	if (!rc && CRYPTO_secure_malloc_init(EGRESS_SECURE_BYTES, 32) != 1)
		log_warn("no locked memory for secrets");
	if (!rc)
		rc = harden_ids(eg->config.user_egress, NULL, 0, ret_f);
	if (!rc)
		rc = loop_new(&eg->loop, ret_f);
	if (!rc)
		rc = serve(eg, ret_f);
	tls_free(eg->tls);
	explicit_bzero(eg->key, sizeof(eg->key));
	ledger_free(eg->ledger);
	loop_free(eg->loop);
	return rc;
}

int main(int argc, char **argv)
{
	static struct egress eg;
	const char *config_path = NULL;
	struct fault f = { 0 };
	int opt;

	log_init("nestbox-egress");
	signal(SIGPIPE, SIG_IGN); /* OpenSSL writes to sockets with write(2) */
	while ((opt = getopt(argc, argv, "c:V")) != -1) {
		switch (opt) {
		case 'c': config_path = optarg; break;
		case 'V': printf("nestbox-egress %s\n", NB_VERSION); return 0;
		default: fprintf(stderr, "usage: nestbox-egress [-c FILE]\n"); return 2;
		}
	}
	if (run(&eg, config_path, &f)) {
		log_fault(LOG_LEVEL_ERROR, &f, "ending");
		return 1;
	}
	return 0;
}
