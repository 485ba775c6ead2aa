/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nestbox-ssh: the SSH gateway. Theory: as root it only binds its port and reads (at first: makes) its host key; then it leaves root
 * for user_ssh. The daemon parses nothing that a client or a guest wrote but the questions of its own processes (gate.h), of which
 * there is one a connection (`nestbox-ssh session`, started by the daemon only) with a narrower filter of its own.
 */
#include "base/cleanup.h"
#include "base/config.h"
#include "base/fd.h"
#include "base/harden.h"
#include "base/log.h"
#include "fcgi/ssh/server.h"
#include "fcgi/ssh/session.h"

#include <fcntl.h>
#include <getopt.h>
#include <netdb.h>
#include <seccomp.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#define CALL(name, why) { SCMP_SYS(name), why, 0, { { 0, 0, 0 } } }
#define KEY_FILE "ssh_host_ed25519_key"
#define KEY_MAX 16384

/* Also what its processes need to begin; they then narrow themselves (session.c). */
static const struct harden_call calls[] = {
	{ SCMP_SYS(socket), "the broker; Unix only", 1, { { 0, UINT64_MAX, AF_UNIX } } },
	CALL(connect, "the broker"),
	CALL(socketpair, "gates"),
	CALL(setsockopt, "clients' keepalive"),
	CALL(getpeername, "clients' addresses"),
	CALL(clone, "processes of connections"),
	CALL(clone3, "processes of connections"),
	CALL(execve, "processes of connections: this program again"),
	CALL(wait4, "processes of connections"),
	CALL(waitid, "processes of connections"),
	CALL(pidfd_open, "processes of connections"),
	CALL(kill, "processes of connections"),
	CALL(dup2, "processes of connections"),
	CALL(prctl, "start of a program, no core dumps"),
	CALL(seccomp, "a process's own filter"),
	CALL(openat, "start of a program: libraries"),
	CALL(access, "start of a program"),
	CALL(arch_prctl, "start of a program"),
	CALL(set_tid_address, "start of a program"),
	CALL(prlimit64, "start of a program, its limits"),
	CALL(setrlimit, "a process's limits"),
	CALL(getrlimit, "libraries"),
	CALL(statfs, "libraries"),
	CALL(fstatfs, "libcap-ng"),
	CALL(capget, "libcap-ng"),
	CALL(getdents64, "libraries"),
	CALL(getppid, "libraries"),
	CALL(getgid, "libraries"),
	CALL(getegid, "libraries"),
	CALL(readlink, "libraries"),
	CALL(sysinfo, "libraries"),
	CALL(ioctl, "libssh"),
	{ SCMP_SYS(mmap), "start of a program; writable or executable, never both", 1, { { 2, 0x2, 0 } } },
};

/* --- as root ---------------------------------------------------------------------------------------------------- */

static enum rc listen_at(const char *host, uint64_t port, int *ret_fd, struct fault *ret_f)
{
	const struct addrinfo hints = { .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | AI_PASSIVE, .ai_socktype = SOCK_STREAM };
	_cleanup_fd_ int fd = -1;
	struct addrinfo *a = NULL;
	const int on = 1;
	char service[24];
	enum rc rc = RC_OK;

	snprintf(service, sizeof(service), "%llu", (unsigned long long)port);
	if (getaddrinfo(*host ? host : NULL, service, &hints, &a))
		return fault_set(ret_f, RC_INVALID, 0, "ssh_listen '%.60s' is no address", host);
	fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0 || bind(fd, a->ai_addr, a->ai_addrlen) < 0 ||
	    listen(fd, 128) < 0)
		rc = fault_set(ret_f, rc_from_errno(errno), errno, "listen at %.60s port %s", host, service);
	freeaddrinfo(a);
	if (!rc)
		*ret_fd = take_fd(&fd);
	return rc;
}

static enum rc key_make(int dirfd, struct fault *ret_f)
{
	ssh_key key = NULL;
	char *text = NULL;
	enum rc rc;

	if (ssh_pki_generate(SSH_KEYTYPE_ED25519, 0, &key) != SSH_OK)
		return fault_set(ret_f, RC_SYS, 0, "libssh makes no host key");
	if (ssh_pki_export_privkey_base64(key, NULL, NULL, NULL, &text) != SSH_OK)
		rc = fault_set(ret_f, RC_SYS, 0, "libssh exports no host key");
	else
		rc = file_write_at(dirfd, KEY_FILE, text, strlen(text), 0600, ret_f);
	if (text)
		explicit_bzero(text, strlen(text));
	ssh_string_free_char(text);
	ssh_key_free(key);
	if (!rc)
		log_info("made a host key file=" KEY_FILE);
	return rc;
}

/* "SHA256:..." of the public key, so that the log says what a client will be shown. */
static enum rc key_log(const char *text, struct fault *ret_f)
{
	unsigned char *hash = NULL;
	ssh_key key = NULL;
	char *shown = NULL;
	size_t n;

	if (ssh_pki_import_privkey_base64(text, NULL, NULL, NULL, &key) != SSH_OK)
		return fault_set(ret_f, RC_INVALID, 0, KEY_FILE " is no private key");
	if (ssh_get_publickey_hash(key, SSH_PUBLICKEY_HASH_SHA256, &hash, &n) == SSH_OK)
		shown = ssh_get_fingerprint_hash(SSH_PUBLICKEY_HASH_SHA256, hash, n);
	log_info("host key %s", shown ? shown : "?");
	ssh_string_free_char(shown);
	ssh_clean_pubkey_hash(&hash);
	ssh_key_free(key);
	return RC_OK;
}

/* Into a sealed file without a name: each process reads it from there, nobody writes it. */
static enum rc key_open(const struct config *cfg, int *ret_fd, struct fault *ret_f)
{
	_cleanup_fd_ int dirfd = -1, fd = -1;
	_cleanup_free_ char *text = NULL;
	char path[CONFIG_STR_MAX * 2];
	size_t n = 0;
	enum rc rc = path_join(path, sizeof(path), cfg->state_dir, "keys", ret_f);

	if (rc)
		return rc;
	dirfd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dirfd < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "open '%s'", path);
	rc = file_read_at(dirfd, KEY_FILE, KEY_MAX, &text, &n, ret_f);
	if (rc == RC_ABSENT) {
		rc = key_make(dirfd, ret_f);
		if (!rc)
			rc = file_read_at(dirfd, KEY_FILE, KEY_MAX, &text, &n, ret_f);
	}
	if (!rc)
		rc = key_log(text, ret_f);
	if (rc)
		return rc;
	fd = memfd_create("ssh-host-key", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0 || write(fd, text, n) != (ssize_t)n ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) < 0)
		rc = fault_set(ret_f, RC_SYS, errno, "keep the host key");
	explicit_bzero(text, n);
	if (!rc)
		*ret_fd = take_fd(&fd);
	return rc;
}

/* --- the daemon ------------------------------------------------------------------------------------------------- */

static void on_signal(void *arg, int signal)
{
	log_info("ending signal=%d", signal);
	loop_stop(arg);
}

static enum rc serve(const struct config *cfg, const char *conf, struct fault *ret_f)
{
	_cleanup_fd_ int listen_fd = -1, key_fd = -1;
	struct server *server = NULL;
	struct loop *loop = NULL;
	struct source *term, *intr;
	enum rc rc = RC_OK;

	if (cfg->ssh_port) {
		rc = listen_at(cfg->ssh_listen, cfg->ssh_port, &listen_fd, ret_f);
		if (!rc)
			rc = key_open(cfg, &key_fd, ret_f);
	}
	if (!rc)
		rc = harden_ids(cfg->user_ssh, NULL, 0, ret_f);
	if (!rc)
		rc = loop_new(&loop, ret_f);
	if (!rc)
		rc = loop_signal(loop, SIGTERM, on_signal, loop, &term, ret_f);
	if (!rc)
		rc = loop_signal(loop, SIGINT, on_signal, loop, &intr, ret_f);
	if (!rc && cfg->ssh_port)
		rc = server_new(loop, cfg, conf, take_fd(&listen_fd), take_fd(&key_fd), &server, ret_f);
	if (!rc)
		rc = harden_final(calls, ARRAY_SIZE(calls), ret_f);
	if (!rc) {
		if (cfg->ssh_port)
			log_info("ready listen=%s port=%llu", cfg->ssh_listen, (unsigned long long)cfg->ssh_port);
		else
			log_info("off: ssh_port is 0");
		rc = loop_run(loop, ret_f);
	}
	server_free(server);
	loop_free(loop);
	return rc;
}

static int usage(FILE *to, int status)
{
	fputs("usage: nestbox-ssh [-c nestbox.conf]\n", to);
	return status;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "help", no_argument, NULL, 'h' }, { "version", no_argument, NULL, 'V' }, { NULL, 0, NULL, 0 }
	};
	static struct config cfg;
	const char *conf = NULL;
	struct fault f;
	int c;

	log_init("nestbox-ssh");
	signal(SIGPIPE, SIG_IGN);
	while ((c = getopt_long(argc, argv, "c:h", options, NULL)) != -1) {
		switch (c) {
		case 'c': conf = optarg; break;
		case 'h': return usage(stdout, 0);
		case 'V': puts("nestbox-ssh " NB_VERSION); return 0;
		default: return usage(stderr, 2);
		}
	}
	/* The configuration is only in its name, so that ps tells whose it is. */
	if (optind == argc - 1 && !strcmp(argv[optind], "session"))
		return session_main();
	if (optind != argc)
		return usage(stderr, 2);
	if (config_load(&cfg, conf, &f) || serve(&cfg, conf, &f)) {
		log_fault(LOG_LEVEL_ERROR, &f, "cannot go on");
		return 1;
	}
	return 0;
}
