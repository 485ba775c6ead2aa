/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nestbox-gateway: relays bytes, decides nothing. Theory: as root it only makes its directory and its two sockets; then it
 * leaves root for user_gateway and puts its filter on. Everything it relays was opened by somebody else and handed
 * over: by an API worker with a ticket, or by the broker for an exposed host. It parses one thing a client wrote, the request
 * head that nginx passes on (head.c), and one thing a guest wrote, the answer line of an agent (visit.c).
 */
#include "base/cleanup.h"
#include "base/fd.h"
#include "base/harden.h"
#include "fcgi/gateway/acceptor.h"
#include "fcgi/gateway/answer.h"
#include "fcgi/gateway/control.h"
#include "fcgi/gateway/expose.h"
#include "fcgi/gateway/follow.h"
#include "fcgi/gateway/gateway.h"
#include "fcgi/gateway/head.h"
#include "fcgi/gateway/stream.h"

#include <getopt.h>
#include <grp.h>
#include <pwd.h>
#include <seccomp.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>

#define CALL(name, why) { SCMP_SYS(name), why, 0, { { 0, 0, 0 } } }

static const struct harden_call gateway_calls[] = {
	CALL(splice, "relays"),
	CALL(pipe2, "relays"),
	CALL(inotify_add_watch, "logs that grow"),
	CALL(inotify_rm_watch, "logs that grow"),
	{ SCMP_SYS(socket), "exposure sockets and the broker; Unix only", 1, { { 0, UINT64_MAX, AF_UNIX } } },
	CALL(bind, "exposure sockets"),
	CALL(listen, "exposure sockets"),
	CALL(connect, "the broker"),
	CALL(chmod, "exposure sockets"),
	CALL(umask, "exposure sockets"),
	CALL(unlink, "exposure sockets"),
};

struct setup {
	uid_t api_uid, gw_uid;
	gid_t api_gid, gw_gid, web_gid;
	int control_fd, stream_fd;
};

static enum rc setup_ids(const struct config *cfg, struct setup *s, struct fault *ret_f)
{
	struct passwd *pw = getpwnam(cfg->user_api);
	struct group *gr;

	if (!pw)
		return fault_set(ret_f, RC_ABSENT, 0, "no user '%s' (user_api)", cfg->user_api);
	s->api_uid = pw->pw_uid;
	s->api_gid = pw->pw_gid;
	pw = getpwnam(cfg->user_gateway);
	if (!pw)
		return fault_set(ret_f, RC_ABSENT, 0, "no user '%s' (user_gateway)", cfg->user_gateway);
	s->gw_uid = pw->pw_uid;
	s->gw_gid = pw->pw_gid;
	gr = getgrnam(cfg->group_web);
	if (!gr)
		return fault_set(ret_f, RC_ABSENT, 0, "no group '%s' (group_web)", cfg->group_web);
	s->web_gid = gr->gr_gid;
	return RC_OK;
}

/* Ends with the working directory in <run_dir>/expose. */
static enum rc setup_files(const struct config *cfg, struct setup *s, struct fault *ret_f)
{
	char path[CONFIG_STR_MAX * 2];
	enum rc rc = path_join(path, sizeof(path), cfg->run_dir, "gateway.sock", ret_f);

	if (!rc)
		rc = unix_listen(path, SOCK_SEQPACKET, 0660, s->api_gid, &s->control_fd, ret_f);
	if (!rc)
		rc = path_join(path, sizeof(path), cfg->run_dir, "stream.sock", ret_f);
	if (!rc)
		rc = unix_listen(path, SOCK_STREAM, 0660, s->web_gid, &s->stream_fd, ret_f);
	if (!rc)
		rc = path_join(path, sizeof(path), cfg->run_dir, "expose", ret_f);
	if (rc)
		return rc;
	if (mkdir(path, 0750) < 0 && errno != EEXIST)
		return fault_set(ret_f, rc_from_errno(errno), errno, "make '%s'", path);
	if (chdir(path) < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "enter '%s'", path);
	/* Set-group-ID: the sockets made here later, without privilege, belong to the web server's group. */
	if (chown(".", s->gw_uid, s->web_gid) < 0 || chmod(".", 02750) < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "set owner and mode of '%s'", path);
	return RC_OK;
}

/* More descriptors if that is allowed; streams beyond them are refused, not broken. */
static void raise_files(void)
{
	struct rlimit lim, more = { GATEWAY_FILES, GATEWAY_FILES };

	if (getrlimit(RLIMIT_NOFILE, &lim) < 0 || lim.rlim_cur >= GATEWAY_FILES)
		return;
	if (lim.rlim_max < GATEWAY_FILES && !setrlimit(RLIMIT_NOFILE, &more))
		return;
	lim.rlim_cur = MIN_OF(lim.rlim_max, (rlim_t)GATEWAY_FILES);
	if (setrlimit(RLIMIT_NOFILE, &lim) < 0 || lim.rlim_cur < GATEWAY_FILES)
		log_warn("fewer descriptors than wished files=%llu", (unsigned long long)lim.rlim_cur);
}

/* The example of RFC 6455: also makes libcrypto load what it loads before files are out of reach. */
static enum rc try_sha1(struct fault *ret_f)
{
	char accept[HEAD_WS_ACCEPT + 1];
	enum rc rc = head_ws_accept("dGhlIHNhbXBsZSBub25jZQ==", accept, ret_f);

	if (!rc && strcmp(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="))
		rc = fault_set(ret_f, RC_SYS, 0, "libcrypto computes a wrong SHA-1");
	return rc;
}

static void on_signal(void *arg, int signal)
{
	struct gateway *gw = arg;

	log_info("ending signal=%d streams=%zu", signal, gw->n_streams);
	loop_stop(gw->loop);
}

static void on_link_state(void *arg, bool up)
{
	expose_link_state(arg, up);
}

static void on_link_event(void *arg, uint16_t event, struct wire *w)
{
	expose_link_event(arg, event, w);
}

static enum rc gateway_start(struct gateway *gw, struct setup *s, struct acceptor *streams, struct fault *ret_f)
{
	const struct link_client client = { .event = on_link_event, .state = on_link_state, .arg = gw };
	struct source *term, *intr;
	char path[CONFIG_STR_MAX * 2];
	enum rc rc = loop_new(&gw->loop, ret_f);

	gw->pool.loop = gw->loop;
	if (!rc)
		rc = loop_signal(gw->loop, SIGTERM, on_signal, gw, &term, ret_f);
	if (!rc)
		rc = loop_signal(gw->loop, SIGINT, on_signal, gw, &intr, ret_f);
	if (!rc)
		rc = tickets_new(gw->loop, &gw->tickets, ret_f);
	if (!rc)
		rc = follow_init(gw, ret_f);
	if (!rc)
		rc = expose_init(gw, ret_f);
	if (!rc)
		rc = control_start(gw, take_fd(&s->control_fd), s->api_uid, ret_f);
	if (!rc)
		rc = acceptor_start(streams, gw->loop, take_fd(&s->stream_fd), stream_accept, gw, ret_f);
	if (!rc)
		rc = path_join(path, sizeof(path), gw->cfg.run_dir, "broker.sock", ret_f);
	if (!rc)
		rc = link_new(gw->loop, path, &client, &gw->link, ret_f);
	return rc;
}

static void gateway_free(struct gateway *gw, struct acceptor *streams)
{
	acceptor_stop(streams);
	control_free();
	streams_free(gw);
	follow_free(gw);
	expose_free(gw);
	partings_free(gw);
	link_free(gw->link);
	tickets_free(gw->tickets);
	relay_pool_free(&gw->pool);
	loop_free(gw->loop);
}

static enum rc gateway_run(struct gateway *gw, struct fault *ret_f)
{
	struct setup s = { .control_fd = -1, .stream_fd = -1 };
	struct acceptor streams = { .loop = NULL };
	enum rc rc;

	raise_files();
	rc = setup_ids(&gw->cfg, &s, ret_f);
	if (!rc)
		rc = setup_files(&gw->cfg, &s, ret_f);
	if (!rc)
		rc = harden_ids(gw->cfg.user_gateway, NULL, 0, ret_f);
	if (!rc)
		rc = try_sha1(ret_f);
	if (!rc)
		rc = gateway_start(gw, &s, &streams, ret_f);
	if (!rc)
		rc = harden_final(gateway_calls, ARRAY_SIZE(gateway_calls), ret_f);
	if (!rc) {
		log_info("ready run_dir=%s", gw->cfg.run_dir);
		rc = loop_run(gw->loop, ret_f);
	}
	close_fd(&s.control_fd);
	close_fd(&s.stream_fd);
	gateway_free(gw, &streams);
	return rc;
}

static int usage(FILE *to, int status)
{
	fputs("usage: nestbox-gateway [-c nestbox.conf]\n", to);
	return status;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "help", no_argument, NULL, 'h' }, { "version", no_argument, NULL, 'V' }, { NULL, 0, NULL, 0 }
	};
	static struct gateway gw = { .inotify = -1 };
	const char *conf = NULL;
	struct fault f;
	int c;

	while ((c = getopt_long(argc, argv, "c:h", options, NULL)) != -1) {
		switch (c) {
		case 'c': conf = optarg; break;
		case 'h': return usage(stdout, 0);
		case 'V': puts("nestbox-gateway " NB_VERSION); return 0;
		default: return usage(stderr, 2);
		}
	}
	if (optind != argc)
		return usage(stderr, 2);
	log_init("nestbox-gateway");
	signal(SIGPIPE, SIG_IGN); /* splice(2) has no MSG_NOSIGNAL */
	if (config_load(&gw.cfg, conf, &f) || gateway_run(&gw, &f)) {
		log_fault(LOG_LEVEL_ERROR, &f, "cannot go on");
		return 1;
	}
	return 0;
}
