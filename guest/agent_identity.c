/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who this machine is. Theory: a machine starts as a copy of a template or of another machine, with that one's random
 * numbers, clock, names and connections. The broker sends the new identity before anything else may reach the clone; every
 * create waits for it, so it is done in the loop, in memory and small files, without a process or an fsync. Order: first what
 * others depend on (random numbers, clock), then names, then what tells the rest of the machine. doc/fork-safety.md
 * is the contract.
 */
#include "guest/agent.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "guest/agent_limits.h"
#include "guest/b64.h"
#include "schema/agent.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <limits.h>
#include <linux/random.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#define ENTROPY_BYTES 64
#define BUNDLE "/etc/ssl/certs/ca-certificates.crt"
#define OPENSSL_DEFAULT "/usr/lib/ssl/cert.pem"
#define BUNDLE_MARK "# the machine's own authority\n"
#define HOOKS "/etc/nestbox/on-clone.d"

static const char *const touched[] = { "/etc/hostname", "/etc/hosts", "/etc/machine-id", BUNDLE };

static enum rc set_entropy(const char *text, struct fault *ret_f)
{
	struct {
		struct rand_pool_info head;
		unsigned char bytes[B64_ROOM(B64_LEN(ENTROPY_BYTES))];
	} pool;
	_cleanup_fd_ int fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
	size_t n = 0;

	if (strlen(text) > B64_LEN(ENTROPY_BYTES) || !b64_decode(pool.bytes, &n, text, strlen(text)) || n != ENTROPY_BYTES)
		return fault_set(ret_f, RC_INVALID, 0, "'entropy' is not base64 of %d bytes", ENTROPY_BYTES);
	pool.head.entropy_count = ENTROPY_BYTES * 8;
	pool.head.buf_size = ENTROPY_BYTES;
	/* Mixed in and credited; the second call makes every later getrandom() use it at once. */
	if (fd < 0 || ioctl(fd, RNDADDENTROPY, &pool) < 0 || ioctl(fd, RNDRESEEDCRNG) < 0)
		return fault_set(ret_f, RC_SYS, errno, "reseed the random number generator");
	explicit_bzero(&pool, sizeof(pool));
	return RC_OK;
}

static enum rc set_clock(int64_t time_ns, struct fault *ret_f)
{
	const struct timespec t = { .tv_sec = time_ns / 1000000000, .tv_nsec = time_ns % 1000000000 };

	if (clock_settime(CLOCK_REALTIME, &t) < 0)
		return fault_set(ret_f, RC_SYS, errno, "set the clock");
	return RC_OK;
}

/* The line of 127.0.1.1 is ours, the others are whoever wrote them. */
static enum rc set_hosts(const char *hostname, struct fault *ret_f)
{
	_cleanup_buf_ struct buf out = BUF_INIT(131072);
	_cleanup_free_ char *old = NULL;
	size_t n;

	if (file_read_at(AT_FDCWD, "/etc/hosts", 65536, &old, &n, NULL))
		old = strdup("127.0.0.1 localhost\n::1 localhost\n");
	for (char *line = old; line && *line;) {
		char *end = strchrnul(line, '\n');
		size_t len = (size_t)(end - line) + (*end ? 1 : 0);

		if (strncmp(line, "127.0.1.1", 9) && buf_put(&out, line, len))
			return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
		line += len;
	}
	if (buf_printf(&out, "127.0.1.1 %s\n", hostname) || buf_put(&out, "", 1))
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	return agent_file_put("/etc/hosts", (const char *)buf_data(&out), ret_f);
}

static bool hostname_ok(const char *h)
{
	return *h && strlen(h) <= 63 && h[strspn(h, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")] == '\0';
}

static enum rc set_names(const char *hostname, const char *machine_id, struct fault *ret_f)
{
	char line[80];
	enum rc rc;

	if (*hostname) {
		if (!hostname_ok(hostname))
			return fault_set(ret_f, RC_INVALID, 0, "'hostname' is not [a-zA-Z0-9._-]{1,63}");
		if (sethostname(hostname, strlen(hostname)) < 0)
			return fault_set(ret_f, RC_SYS, errno, "set the host name");
		snprintf(line, sizeof(line), "%s\n", hostname);
		rc = agent_file_put("/etc/hostname", line, ret_f);
		if (!rc)
			rc = set_hosts(hostname, ret_f);
		if (rc)
			return rc;
	}
	if (!*machine_id)
		return RC_OK;
	if (strlen(machine_id) != 32 || strspn(machine_id, "0123456789abcdef") != 32)
		return fault_set(ret_f, RC_INVALID, 0, "'machine_id' is not 32 hexadecimal digits");
	snprintf(line, sizeof(line), "%s\n", machine_id);
	return agent_file_put("/etc/machine-id", line, ret_f);
}

/* Appended to the bundle where programs look; below /usr/local/share it survives a regeneration of the bundle. */
static enum rc set_ca(const char *pem, struct fault *ret_f)
{
	_cleanup_fd_ int fd = open(BUNDLE, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
	_cleanup_free_ char *old = NULL;
	const char *mark;
	struct stat st;
	size_t n;

	if (fd < 0 || fstat(fd, &st) < 0)
		return fault_set(ret_f, RC_SYS, errno, "open the certificate bundle");
	n = (size_t)MIN_OF(st.st_size, (off_t)(sizeof(BUNDLE_MARK) + AGENT_CA_MAX));
	old = calloc(1, n + 1);
	if (!old || pread(fd, old, n, st.st_size - (off_t)n) != (ssize_t)n)
		return fault_set(ret_f, RC_SYS, errno, "read the certificate bundle");
	mark = memmem(old, n, BUNDLE_MARK, strlen(BUNDLE_MARK));
	if (mark)
		st.st_size -= (off_t)n - (mark - old);
	if (ftruncate(fd, st.st_size) < 0 || lseek(fd, 0, SEEK_END) < 0 ||
	    dprintf(fd, "%s%s%s", BUNDLE_MARK, pem, pem[strlen(pem) - 1] == '\n' ? "" : "\n") < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "write the certificate bundle");
	if (mkdir("/usr/local/share/ca-certificates", 0755) < 0 && errno != EEXIST)
		return fault_set(ret_f, RC_SYS, errno, "make the certificate directory");
	/* OpenSSL's own default, which Debian leaves empty: what is started without our variables (sudo -i, cron, ssh) looks there, and
	 * else only in a directory of hashes that the bundle is not part of. */
	if (symlink(BUNDLE, OPENSSL_DEFAULT) < 0 && errno != EEXIST)
		log_warn("cannot make %s sys=%d", OPENSSL_DEFAULT, errno);
	/* As update-ca-certificates names it: what a Java that is installed later makes its own store of. */
	if (symlink("/usr/local/share/ca-certificates/nestbox.crt", "/etc/ssl/certs/nestbox.pem") < 0 && errno != EEXIST)
		log_warn("cannot make nestbox.pem sys=%d", errno);
	return agent_file_put("/usr/local/share/ca-certificates/nestbox.crt", pem, ret_f);
}

static void drop_inherited(void)
{
	struct attached *next;

	for (struct attached *a = agent.attached; a; a = next) {
		next = a->next;
		a->inherited(a);
	}
}

static enum rc identity_files(const struct agent_request *req, struct fault *ret_f)
{
	const char *hostname, *machine_id, *ca;
	enum rc rc;

	if (agent_get_str(req->root, "hostname", 64, "", &hostname, ret_f) ||
	    agent_get_str(req->root, "machine_id", 64, "", &machine_id, ret_f) ||
	    agent_get_str(req->root, "ca_pem", AGENT_CA_MAX, "", &ca, ret_f))
		return RC_INVALID;
	rc = set_names(hostname, machine_id, ret_f);
	if (rc || !*ca)
		return rc;
	agent.has_ca = true;
	return set_ca(ca, ret_f);
}

enum rc agent_identity(const struct agent_request *req, struct fault *ret_f)
{
	char **env, text[32];
	const char *entropy;
	int64_t time_ns;
	enum rc rc;

	if (agent_get_int(req->root, "time_ns", 0, INT64_MAX, 0, &time_ns, ret_f) ||
	    agent_get_str(req->root, "entropy", 128, "", &entropy, ret_f))
		return RC_INVALID;
	rc = *entropy ? set_entropy(entropy, ret_f) : RC_OK;
	if (!rc && time_ns)
		rc = set_clock(time_ns, ret_f);
	if (!rc)
		rc = identity_files(req, ret_f);
	if (!rc)
		rc = agent_get_env(req->root, "env", &env, ret_f);
	if (rc)
		return rc;
	agent_env_free(agent.env);
	agent.env = env;
	agent.generation++;
	drop_inherited();
	agent_net_forget_neighbours();
	snprintf(text, sizeof(text), "%llu\n", (unsigned long long)agent.generation);
	rc = agent_file_put("/run/nestbox/generation", text, ret_f);
	agent_session_identity();
	return rc;
}

enum rc agent_trust(const struct agent_request *req, struct fault *ret_f)
{
	const char *ca;
	char **env;
	enum rc rc = agent_get_str(req->root, "ca_pem", AGENT_CA_MAX, "", &ca, ret_f);

	if (!rc)
		rc = agent_get_env(req->root, "env", &env, ret_f);
	if (rc)
		return rc;
	rc = *ca ? set_ca(ca, ret_f) : RC_OK;
	if (!rc) {
		agent.has_ca |= *ca != '\0';
		rc = agent_env_add(env, ret_f);
	}
	agent_env_free(env);
	if (!rc)
		agent_session_environment();
	return rc;
}

void agent_identity_prepare(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(touched); i++) {
		int fd = open(touched[i], O_RDWR | O_CLOEXEC);

		if (fd >= 0)
			close(fd);
	}
}

/* --- hooks ------------------------------------------------------------------------------------------------------ */
static int hook_filter(const struct dirent *e)
{
	return e->d_name[0] != '.';
}

void agent_program_run(const char *path, bool root, uint64_t deadline_ms)
{
	pid_t pid = access(path, X_OK) == 0 ? fork() : -1;
	int fd, status;

	if (pid == 0) {
		setpgid(0, 0);
		agent_become(root);
		setenv("PATH", AGENT_PATH, 1);
		setenv("HOME", root ? "/root" : AGENT_HOME, 1);
		execl(path, path, (char *)NULL);
		_exit(127);
	}
	if (pid < 0)
		return;
	fd = pidfd_open(pid, 0);
	if (fd < 0 || fd_wait(fd, POLLIN, deadline_ms, NULL)) {
		log_warn("%s did not end in time", path);
		kill(-pid, SIGKILL);
		kill(pid, SIGKILL);
	}
	waitpid(pid, &status, 0);
	if (fd >= 0)
		close(fd);
}

void agent_identity_hooks(void)
{
	uint64_t deadline_ms = now_ms() + AGENT_HOOK_DEADLINE_MS;
	struct dirent **names;
	int n = scandir(HOOKS, &names, hook_filter, alphasort);
	char path[PATH_MAX];

	for (int i = 0; i < n; i++) {
		snprintf(path, sizeof(path), "%s/%s", HOOKS, names[i]->d_name);
		agent_program_run(path, true, deadline_ms);
		free(names[i]);
	}
	if (n >= 0)
		free(names);
}
