/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nestbox-api: the parent of the FastCGI workers.
 *
 * Theory: started as root, it makes directories, key files and the socket, leaves root for good, migrates the database,
 * and then only forks and reaps. It never reads a byte of a client. Every worker opens its own database handle. A
 * worker that ends unasked is replaced, with a growing pause if it did not live long. There are api_workers of them, and more
 * while requests wait for machines (fcgi/pool.h). One that is let go finishes what it has. One more child is no worker but the
 * guide (fcgi/guide.h).
 */
#include "base/cleanup.h"
#include "base/config.h"
#include "base/fd.h"
#include "base/harden.h"
#include "base/log.h"
#include "fcgi/db.h"
#include "fcgi/guide.h"
#include "fcgi/limits.h"
#include "fcgi/pool.h"
#include "fcgi/seal.h"
#include "fcgi/worker.h"
#include "schema/policy.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <locale.h>
#include <poll.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define BACKOFF_MIN_MS 100
#define BACKOFF_MAX_MS 10000
#define YOUNG_MS 5000    /* a worker that ends younger is pausing the next one */
#define STOP_GRACE_MS 20000
#define STOP_AGAIN_MS 200

static struct log_limit pool_lines = LOG_LIMIT_INIT(1, 20);

struct slot {
	pid_t pid; /* 0: none now */
	bool wanted, leaving;
	uint64_t started_ms, not_before_ms;
	unsigned int pause_ms;
};

struct parent {
	struct config config;
	int listen_fd, signal_fd;
	struct slot *slots;
	size_t n, usual;
	struct pool *pool;
	struct pool_shrink shrink;
	bool stopping;
};

struct ids {
	uid_t api, me;
	gid_t api_gid, egress_gid, web_gid;
};

static gid_t group_of(const char *name, gid_t otherwise)
{
	const struct group *gr = getgrnam(name);

	return gr ? gr->gr_gid : otherwise;
}

/* Not root (tests, development): everything belongs to whoever started it. */
static enum rc ids_get(const struct config *c, struct ids *ret, struct fault *ret_f)
{
	const struct passwd *pw;
	struct ids ids = { .api = getuid(), .me = getuid(), .api_gid = getgid() };

	ids.egress_gid = ids.web_gid = ids.api_gid;
	if (ids.me == 0) {
		pw = getpwnam(c->user_api);
		if (!pw)
			return fault_set(ret_f, RC_ABSENT, 0, "no user '%s' (user_api)", c->user_api);
		ids.api = pw->pw_uid;
		ids.api_gid = pw->pw_gid;
		pw = getpwnam(c->user_egress);
		ids.egress_gid = pw ? pw->pw_gid : ids.api_gid;
		ids.web_gid = group_of(c->group_web, ids.api_gid);
	}
	*ret = ids;
	return RC_OK;
}

/* Owner and mode are set by descriptor and follow no link: what lies in a directory of ours may have been put there by one of us. */
static enum rc dir_make(const char *base, const char *name, mode_t mode, uid_t uid, gid_t gid, struct fault *ret_f)
{
	_cleanup_fd_ int fd = -1;
	char path[PATH_MAX];
	enum rc rc = *name ? path_join(path, sizeof(path), base, name, ret_f) : RC_OK;

	if (rc)
		return rc;
	if (!*name)
		snprintf(path, sizeof(path), "%s", base);
	if (mkdir(path, mode) < 0) {
		if (errno != EEXIST)
			return fault_set(ret_f, rc_from_errno(errno), errno, "make directory %s", path);
		if (!*name)
			return RC_OK; /* shared with the other daemons: as it was made */
	}
	if (getuid() != 0)
		return RC_OK;
	fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0 || fchown(fd, uid, gid) < 0 || fchmod(fd, mode) < 0)
		return fault_set(ret_f, RC_SYS, errno, "owner and mode of %s", path);
	return RC_OK;
}

static enum rc own_file(const char *base, const char *name, uid_t uid, gid_t gid, struct fault *ret_f)
{
	char path[PATH_MAX];
	enum rc rc = path_join(path, sizeof(path), base, name, ret_f);

	if (!rc && getuid() == 0 && lchown(path, uid, gid) < 0 && errno != ENOENT)
		rc = fault_set(ret_f, RC_SYS, errno, "owner of %s", path);
	return rc;
}

/*
 * The state directory itself belongs to root, and so does each in which root makes or opens something. SQLite makes files beside its own,
 * so the database has a directory.
 */
static enum rc dirs_make(const struct config *c, const struct ids *ids, struct fault *ret_f)
{
	static const struct {
		const char *name;
		mode_t mode;
		bool ours;
	} dirs[] = { { "keys", 0711, false }, { "db", 0700, true }, { "bundles", 0700, true }, { "logs", 0755, false },
		     { "logs/revisions", 0750, true }, { "logs/apps", 0750, true } };
	static const char *const files[] = { DB_FILE, DB_FILE "-wal", DB_FILE "-shm" };
	enum rc rc = dir_make(c->state_dir, "", 0755, 0, 0, ret_f);

	if (!rc)
		rc = dir_make(c->run_dir, "", 0755, 0, 0, ret_f);
	for (size_t i = 0; !rc && i < ARRAY_SIZE(dirs); i++)
		rc = dir_make(c->state_dir, dirs[i].name, dirs[i].mode, dirs[i].ours ? ids->api : 0, dirs[i].ours ? ids->api_gid : 0,
			      ret_f);
	for (size_t i = 0; !rc && i < ARRAY_SIZE(files); i++)
		rc = own_file(c->state_dir, files[i], ids->api, ids->api_gid, ret_f);
	if (!rc)
		rc = seal_key_ensure(c->state_dir, SEAL_API_KEY_FILE, ids->api, ids->api_gid, 0600, ret_f);
	if (!rc)
		rc = seal_key_ensure(c->state_dir, POLICY_KEY_FILE, ids->api, ids->egress_gid, 0640, ret_f);
	return rc;
}

static enum rc socket_make(const struct config *c, const struct ids *ids, int *ret_fd, struct fault *ret_f)
{
	const struct timeval timeout = { .tv_sec = ACCEPT_S };
	char path[PATH_MAX];
	enum rc rc = path_join(path, sizeof(path), c->run_dir, "api.sock", ret_f);
	int fd = -1, flags;

	if (!rc)
		rc = unix_listen(path, SOCK_STREAM, 0660, ids->me == 0 ? ids->web_gid : (gid_t)-1, &fd, ret_f);
	if (rc)
		return rc;
	/*
	 * libfcgi waits in accept(2). A signal ends that, but only where there is a timeout (signal(7)); in everything else of a worker
	 * calls are begun again. The timeout also catches a signal that fell between a worker's check and its accept.
	 */
	flags = fcntl(fd, F_GETFL);
	if (flags < 0 || fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) < 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)) < 0) {
		close(fd);
		return fault_set(ret_f, RC_SYS, errno, "api.sock");
	}
	*ret_fd = fd;
	return RC_OK;
}

static enum rc migrate(const struct config *c, struct fault *ret_f)
{
	_cleanup_db_ struct db *db = NULL;
	enum rc rc = db_open_state(&db, c->state_dir, ret_f);

	return rc ? rc : db_migrate(db, NULL, ret_f);
}

static enum rc signals_make(int *ret_fd, struct fault *ret_f)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGCHLD);
	if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
		return fault_set(ret_f, RC_SYS, errno, "signals");
	*ret_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return *ret_fd < 0 ? fault_set(ret_f, RC_SYS, errno, "signalfd") : RC_OK;
}

/* The last slot, behind the workers'. */
static bool is_guide(const struct parent *p, const struct slot *s)
{
	return s == &p->slots[p->n];
}

static void set_alive(struct parent *p, const struct slot *s, bool alive)
{
	if (!is_guide(p, s))
		pool_set_alive(p->pool, (size_t)(s - p->slots), alive);
}

static void slot_start(struct parent *p, struct slot *s)
{
	size_t at = (size_t)(s - p->slots);
	pid_t parent = getpid(), pid;

	set_alive(p, s, true);
	pid = fork();
	if (pid < 0) {
		log_error("fork: %s", strerror(errno));
		set_alive(p, s, false);
		s->not_before_ms = now_ms() + BACKOFF_MAX_MS;
		return;
	}
	if (pid == 0) {
		/* A worker without its parent would never be replaced nor stopped. */
		if (prctl(PR_SET_PDEATHSIG, SIGTERM) < 0 || getppid() != parent)
			_exit(1);
		close(p->signal_fd);
		if (is_guide(p, s)) {
			close(p->listen_fd);
			_exit(guide_main(&p->config));
		}
		_exit(worker_main(&p->config, p->listen_fd, p->pool, at));
	}
	s->pid = pid;
	s->started_ms = now_ms();
}

static void slot_ended(struct parent *p, struct slot *s, int status)
{
	uint64_t now = now_ms();

	if (!p->stopping && !(s->leaving && !status))
		log_warn("%s ended pid=%d status=%#x", is_guide(p, s) ? "guide" : "worker", s->pid, (unsigned int)status);
	set_alive(p, s, false);
	s->pid = 0;
	if (s->leaving && !status) {
		s->leaving = false;
		return;
	}
	s->leaving = false;
	if (now - s->started_ms >= YOUNG_MS)
		s->pause_ms = 0;
	else
		s->pause_ms = s->pause_ms ? MIN_OF(2 * s->pause_ms, BACKOFF_MAX_MS) : BACKOFF_MIN_MS;
	s->not_before_ms = now + s->pause_ms;
}

static void reap(struct parent *p)
{
	pid_t pid;
	int status;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		for (size_t i = 0; i <= p->n; i++)
			if (p->slots[i].pid == pid)
				slot_ended(p, &p->slots[i], status);
}

static void on_signals(struct parent *p)
{
	struct signalfd_siginfo info;

	while (read(p->signal_fd, &info, sizeof(info)) == (ssize_t)sizeof(info))
		if (info.ssi_signo != SIGCHLD)
			p->stopping = true;
	reap(p);
}

/* Starts what is due; how long until the next is. */
static int slots_due(struct parent *p)
{
	uint64_t now = now_ms(), next = UINT64_MAX;

	for (size_t i = 0; i <= p->n; i++) {
		struct slot *s = &p->slots[i];

		if (s->wanted && !s->pid && s->not_before_ms <= now)
			slot_start(p, s);
		if (s->wanted && !s->pid)
			next = MIN_OF(next, s->not_before_ms);
	}
	return next == UINT64_MAX ? -1 : (int)(next > now ? next - now : 1);
}

static void grow(struct parent *p, size_t n, const struct pool_view *v)
{
	for (size_t i = 0; n && i < p->n; i++) {
		if (p->slots[i].wanted || p->slots[i].pid)
			continue;
		p->slots[i].wanted = true;
		n--;
	}
	log_limited(&pool_lines, LOG_LEVEL_INFO, "more workers busy=%zu waiting=%zu of=%zu", v->busy, v->waiting, v->alive);
}

/* Those that have nothing to do. A request that one of them takes meanwhile is served, too. */
static void shrink(struct parent *p, size_t n)
{
	for (size_t i = p->n; n && i-- > p->usual;) {
		struct slot *s = &p->slots[i];

		if (!s->wanted || (s->pid && !pool_is_idle(p->pool, i)))
			continue;
		s->wanted = false;
		s->leaving = s->pid != 0;
		if (s->pid)
			kill(s->pid, SIGTERM);
		n--;
	}
}

/* How many there should be; how long until that is to be looked at again. */
static int pool_due(struct parent *p)
{
	uint64_t now = now_ms();
	struct pool_view v;
	size_t n;

	pool_look(p->pool, now, &v);
	n = pool_growth(&v, p->n);
	if (n)
		grow(p, n, &v);
	n = pool_surplus(&p->shrink, &v, p->usual, now);
	if (n)
		shrink(p, n);
	if (v.busy >= v.alive && v.alive < p->n)
		return POOL_YOUNG_MS;
	return v.alive > p->usual ? POOL_LOOK_MS : -1;
}

static int sooner(int a, int b)
{
	return a < 0 ? b : b < 0 ? a : MIN_OF(a, b);
}

static size_t slots_signal(struct parent *p, int sig)
{
	size_t n = 0;

	for (size_t i = 0; i <= p->n; i++)
		if (p->slots[i].pid) {
			kill(p->slots[i].pid, sig);
			n++;
		}
	return n;
}

/* Requests under way are finished. The signal is repeated because it may fall between a worker's check and its accept. */
static void stop_all(struct parent *p)
{
	uint64_t deadline = now_ms() + STOP_GRACE_MS;
	struct pollfd pfd = { .fd = p->signal_fd, .events = POLLIN };

	while (slots_signal(p, now_ms() < deadline ? SIGTERM : SIGKILL)) {
		poll(&pfd, 1, STOP_AGAIN_MS);
		on_signals(p);
	}
}

static enum rc parent_init(struct parent *p, const char *path, struct fault *ret_f)
{
	struct ids ids = { 0 };
	enum rc rc = config_load(&p->config, path, ret_f);

	if (!rc)
		rc = ids_get(&p->config, &ids, ret_f);
	if (!rc)
		rc = dirs_make(&p->config, &ids, ret_f);
	if (!rc)
		rc = socket_make(&p->config, &ids, &p->listen_fd, ret_f);
	if (!rc)
		rc = harden_ids(p->config.user_api, NULL, 0, ret_f);
	umask(0077);
	if (!rc)
		rc = migrate(&p->config, ret_f);
	if (!rc)
		rc = signals_make(&p->signal_fd, ret_f);
	if (rc)
		return rc;
	p->usual = (size_t)p->config.api_workers;
	p->n = (size_t)MAX_OF(p->config.api_workers, p->config.api_workers_max);
	p->slots = calloc(p->n + 1, sizeof(*p->slots));
	if (!p->slots)
		return fault_set(ret_f, RC_NOMEM, 0, "worker table");
	for (size_t i = 0; i < p->usual; i++)
		p->slots[i].wanted = true;
	p->slots[p->n].wanted = true; /* the guide */
	return pool_make(&p->pool, p->n, ret_f);
}

static int usage(FILE *to, int status)
{
	fputs("usage: nestbox-api [-c nestbox.conf]\n"
	      "Serves the sandbox and management API to nginx over FastCGI on <run_dir>/api.sock. See nestbox-api(8).\n",
	      to);
	return status;
}

int main(int argc, char **argv)
{
	struct parent p = { .listen_fd = -1, .signal_fd = -1 };
	const char *conf = NULL;
	struct fault f = { 0 };
	int opt;

	if (argc == 2 && !strcmp(argv[1], "--help"))
		return usage(stdout, 0);
	if (argc == 2 && !strcmp(argv[1], "--version")) {
		puts("nestbox-api " NB_VERSION);
		return 0;
	}
	while ((opt = getopt(argc, argv, "c:h")) != -1) {
		if (opt == 'h')
			return usage(stdout, 0);
		if (opt != 'c')
			return usage(stderr, 2);
		conf = optarg;
	}
	setlocale(LC_CTYPE, "C.UTF-8"); /* names in trees: libarchive converts by the locale */
	log_init("nestbox-api");
	if (parent_init(&p, conf, &f)) {
		log_fault(LOG_LEVEL_ERROR, &f, "start");
		return 1;
	}
	log_info("ready workers=%zu max=%zu socket=%s/api.sock", p.usual, p.n, p.config.run_dir);
	while (!p.stopping) {
		struct pollfd pfds[] = { { .fd = p.signal_fd, .events = POLLIN }, { .fd = pool_fd(p.pool), .events = POLLIN } };
		int look = pool_due(&p);

		if (poll(pfds, ARRAY_SIZE(pfds), sooner(look, slots_due(&p))) <= 0)
			continue;
		if (pfds[0].revents)
			on_signals(&p);
		if (pfds[1].revents)
			pool_heard(p.pool);
	}
	stop_all(&p);
	log_info("stopped");
	free(p.slots);
	return 0;
}
