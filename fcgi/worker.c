/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory: a worker serves one request at a time and keeps nothing of it. What it could need later is opened before the
 * first byte of a client is read: database, key files, directories; then the filter is set. A request that lasts longer
 * than any deadline inside it allows is a defect: the alarm ends the process and the parent starts another.
 */
#include "fcgi/worker.h"

#include "base/fd.h"
#include "base/harden.h"
#include "base/log.h"
#include "fcgi/peers.h"
#include "fcgi/pool.h"
#include "schema/policy.h"

#include <errno.h>
#include <fcgiapp.h>
#include <fcntl.h>
#include <limits.h>
#include <seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define CALL(name, why) { SCMP_SYS(name), why, 0, { { 0, 0, 0 } } }

static const struct harden_call worker_calls[] = {
	CALL(accept, "libfcgi"),
	CALL(select, "libfcgi"),
	CALL(pselect6, "libfcgi, where select is made of it"),
	CALL(getpeername, "libfcgi"),
	CALL(alarm, "end of a request that hangs"),
	CALL(setitimer, "alarm, where it is made of it"),
	{ SCMP_SYS(socket), "broker, gateway, runner: Unix sockets only", 1, { { 0, UINT64_MAX, AF_UNIX } } },
	CALL(connect, "broker, gateway"),
	CALL(openat, "database journal, logs, bundles"),
	CALL(fsync, "database, bundles"),
	CALL(fdatasync, "database, bundles"),
	CALL(ftruncate, "database"),
	CALL(unlink, "database journal"),
	CALL(unlinkat, "unfinished bundles"),
	CALL(renameat, "finished bundles"),
	CALL(renameat2, "finished bundles"),
	CALL(mkdirat, "log directories"),
	CALL(access, "database journal"),
	CALL(faccessat, "database journal"),
	CALL(faccessat2, "database journal"),
	CALL(stat, "database"),
	CALL(lstat, "database"),
	CALL(statx, "libraries"),
	CALL(fstatfs, "free space"),
	CALL(getcwd, "database path"),
	CALL(readlink, "database path"),
	CALL(fchmod, "database journal"),
	CALL(getdents64, "app logs"),
	CALL(fallocate, "bundles"),
	CALL(fadvise64, "bundles"),
	CALL(umask, "libarchive"),
	CALL(sysinfo, "qsort(3) of more than a kilobyte asks how much memory there is"),
	CALL(dup, "libraries"),
};

static volatile sig_atomic_t stopping;

static void on_term(int sig)
{
	(void)sig;
	stopping = 1;
}

static void on_alarm(int sig)
{
	static const char text[] = "nestbox-api: a request hung, the worker ends\n";

	(void)sig;
	if (write(STDERR_FILENO, text, sizeof(text) - 1) < 0)
		_exit(1);
	_exit(1);
}

static enum rc dir_open(const char *state_dir, const char *name, int *ret, struct fault *ret_f)
{
	char path[PATH_MAX];
	enum rc rc = path_join(path, sizeof(path), state_dir, name, ret_f);

	if (rc)
		return rc;
	*ret = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return *ret < 0 ? fault_set(ret_f, rc_from_errno(errno), errno, "directory %s", path) : RC_OK;
}

static enum rc api_open(struct api *api, const struct config *config, struct fault *ret_f)
{
	enum rc rc;

	api->config = *config;
	rc = db_open_state(&api->db, config->state_dir, ret_f);
	if (!rc)
		rc = peer_init(&api->broker, config->run_dir, "broker.sock", ret_f);
	if (!rc)
		rc = peer_init(&api->gateway, config->run_dir, "gateway.sock", ret_f);
	if (!rc)
		rc = seal_key_load(&api->app_key, config->state_dir, SEAL_API_KEY_FILE, ret_f);
	if (!rc)
		rc = seal_key_load(&api->egress_key, config->state_dir, POLICY_KEY_FILE, ret_f);
	api->has_egress_key = !rc;
	if (!rc)
		rc = dir_open(config->state_dir, "bundles", &api->bundles_fd, ret_f);
	if (!rc)
		rc = dir_open(config->state_dir, "logs/revisions", &api->logs_fd, ret_f);
	if (!rc)
		rc = dir_open(config->state_dir, "logs/apps", &api->app_logs_fd, ret_f);
	return rc;
}

struct body_stream {
	FCGX_Stream *in;
	const char *length; /* CONTENT_LENGTH, NULL if unknown */
};

static enum rc read_body(void *arg, size_t max, char **ret, size_t *ret_n, struct fault *ret_f)
{
	struct body_stream *s = arg;
	unsigned long long want = s->length ? strtoull(s->length, NULL, 10) : 0;
	_cleanup_free_ char *body = NULL;
	size_t n = 0;

	if (want > max)
		return fault_set(ret_f, RC_LIMIT, 0, "body of %llu bytes", want);
	body = malloc((size_t)want + 1);
	if (!body)
		return fault_set(ret_f, RC_NOMEM, 0, "body of %llu bytes", want);
	while (n < want) {
		int got = FCGX_GetStr(body + n, (int)MIN_OF(want - n, 65536u), s->in);

		if (got <= 0)
			return fault_set(ret_f, RC_CLOSED, 0, "body ended early");
		n += (size_t)got;
	}
	body[n] = '\0';
	*ret = take_ptr(body);
	*ret_n = n;
	return RC_OK;
}

static const char *reason(int status)
{
	static const struct {
		int status;
		const char *text;
	} reasons[] = {
		{ 200, "OK" },		       { 201, "Created" },	     { 202, "Accepted" },
		{ 204, "No Content" },	       { 400, "Bad Request" },	     { 401, "Unauthorized" },
		{ 404, "Not Found" },	       { 405, "Method Not Allowed" }, { 409, "Conflict" },
		{ 413, "Content Too Large" },  { 426, "Upgrade Required" },  { 429, "Too Many Requests" },
		{ 431, "Header Too Large" },   { 500, "Internal Error" },    { 501, "Not Implemented" },
		{ 502, "Bad Gateway" },	       { 503, "Unavailable" },	     { 504, "Timeout" },
		{ 507, "Insufficient Storage" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(reasons); i++)
		if (reasons[i].status == status)
			return reasons[i].text;
	return "Status";
}

static void respond(FCGX_Stream *out, const struct request *r)
{
	FCGX_FPrintF(out, "Status: %d %s\r\n", r->status, reason(r->status));
	FCGX_PutStr(r->headers, (int)r->headers_n, out);
	if (r->content_type)
		FCGX_FPrintF(out, "Content-Type: %s\r\nContent-Length: %lu\r\n", r->content_type, (unsigned long)r->out_n);
	FCGX_PutS("\r\n", out);
	for (size_t at = 0; at < r->out_n;) {
		int n = FCGX_PutStr(r->out + at, (int)MIN_OF(r->out_n - at, 1u << 20), out);

		if (n <= 0)
			return;
		at += (size_t)n;
	}
}

static void serve_one(struct api *api, struct request *r, FCGX_Request *fcgi)
{
	struct body_stream body = { fcgi->in, FCGX_GetParam("CONTENT_LENGTH", fcgi->envp) };

	memset(r, 0, sizeof(*r));
	r->api = api;
	r->params = fcgi->envp;
	r->read_body = read_body;
	r->read_arg = &body;
	api_handle(r);
	respond(fcgi->out, r);
	request_free(r);
}

static enum rc signals_set(struct fault *ret_f)
{
	/* What is read and written for a request goes on, since libfcgi takes an interrupted call for a broken connection. Accept alone ends,
	 * because its socket has a timeout. */
	struct sigaction term = { .sa_handler = on_term, .sa_flags = SA_RESTART }, hang = { .sa_handler = on_alarm };
	sigset_t none;

	sigemptyset(&none);
	if (sigaction(SIGTERM, &term, NULL) < 0 || sigaction(SIGALRM, &hang, NULL) < 0 ||
	    sigprocmask(SIG_SETMASK, &none, NULL) < 0)
		return fault_set(ret_f, RC_SYS, errno, "signals");
	signal(SIGPIPE, SIG_IGN);
	return RC_OK;
}

static enum rc worker_init(struct api *api, const struct config *config, FCGX_Request *fcgi, int listen_fd,
			   struct fault *ret_f)
{
	enum rc rc = signals_set(ret_f);

	if (!rc)
		rc = api_open(api, config, ret_f);
	if (rc)
		return rc;
	if (FCGX_Init() || FCGX_InitRequest(fcgi, listen_fd, FCGI_FAIL_ACCEPT_ON_INTR))
		return fault_set(ret_f, RC_SYS, 0, "libfcgi");
	/* Opened while it is still allowed: libcrypto's tables, time zone data. */
	random_hex((char[3]){ 0 }, 1);
	return harden_final(worker_calls, ARRAY_SIZE(worker_calls), ret_f);
}

/* Waits for a request. False: it is to end. */
static bool next_request(FCGX_Request *fcgi)
{
	int got = -EAGAIN;

	while (!stopping && (got == -EAGAIN || got == -EINTR))
		got = FCGX_Accept_r(fcgi);
	return !got;
}

int worker_main(const struct config *config, int listen_fd, struct pool *pool, size_t slot)
{
	struct api *api = calloc(1, sizeof(*api));
	struct request *r = calloc(1, sizeof(*r));
	unsigned int hang_s = HTTP_REQUEST_S + (unsigned int)(config->create_timeout_ms / 1000);
	struct fault f = { 0 };
	FCGX_Request fcgi;

	if (!api || !r || worker_init(api, config, &fcgi, listen_fd, &f)) {
		log_fault(LOG_LEVEL_ERROR, &f, "worker start");
		return 1;
	}
	api->pool = pool;
	api->slot = slot;
	while (next_request(&fcgi)) {
		pool_take(pool, slot);
		alarm(hang_s);
		serve_one(api, r, &fcgi);
		FCGX_Finish_r(&fcgi);
		alarm(0);
		pool_release(pool, slot);
	}
	db_close(api->db);
	return stopping ? 0 : 1;
}
