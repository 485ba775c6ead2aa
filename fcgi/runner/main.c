/* SPDX-License-Identifier: Apache-2.0 */
/* nestbox-runner: long jobs. Without a verb it is the daemon; `job` and `again` are what it starts itself as. */
#include "base/cleanup.h"
#include "base/fd.h"
#include "base/harden.h"
#include "base/log.h"
#include "fcgi/runner/job.h"
#include "fcgi/runner/keep.h"
#include "fcgi/runner/sleep.h"
#include "fcgi/runner/watch.h"

#include <errno.h>
#include <getopt.h>
#include <grp.h>
#include <locale.h>
#include <pwd.h>
#include <seccomp.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sysexits.h>
#include <time.h>

static const char usage[] =
	"usage: nestbox-runner [-c FILE]\n"
	"\n"
	"Builds, starts and replaces revisions of apps, and writes down which machines ended.\n"
	"\n"
	"  -c FILE     configuration (nestbox.conf(5))\n"
	"  --help      this text\n"
	"  --version\n"
	"\n"
	"It starts itself as `nestbox-runner job|again REVISION`, one process a revision, `nestbox-runner keep|sleep INSTANCE`, one\n"
	"for the log of each running instance and to put one to sleep, and `nestbox-runner drain APP` to end what was replaced.\n";

#define CALL(name, why) { SCMP_SYS(name), why, 0, { { 0, 0, 0 } } }

/* One filter for the daemon and its jobs: a job is the daemon's child and could gain nothing by another one. */
static const struct harden_call calls[] = {
	CALL(openat, "database, logs, bundles"),
	CALL(open, "libraries"),
	CALL(access, "SQLite"),
	CALL(unlink, "SQLite's journal"),
	CALL(unlinkat, "bundles"),
	CALL(rename, "bundles"),
	CALL(renameat, "bundles"),
	CALL(stat, "SQLite"),
	CALL(lstat, "SQLite"),
	CALL(fstatfs, "SQLite"),
	CALL(statfs, "libraries"),
	CALL(fsync, "database, bundles"),
	CALL(fdatasync, "database"),
	CALL(ftruncate, "SQLite"),
	CALL(fchmod, "SQLite"),
	CALL(fchown, "SQLite"),
	CALL(flock, "claim on a revision"),
	CALL(getcwd, "SQLite"),
	CALL(readlink, "SQLite, own program"),
	CALL(readlinkat, "libraries"),
	CALL(getdents64, "directories"),
	CALL(mkdir, "logs"),
	CALL(umask, "sockets"),
	CALL(socket, "broker"),
	CALL(connect, "broker"),
	CALL(sendmmsg, "libraries"),
	CALL(pipe2, "libraries"),
	CALL(dup, "libraries"),
	CALL(clone, "jobs"),
	CALL(clone3, "jobs"),
	CALL(vfork, "jobs"),
	CALL(execve, "jobs: this program again"),
	CALL(wait4, "jobs"),
	CALL(waitid, "jobs"),
	CALL(pidfd_open, "jobs"),
	CALL(kill, "jobs"),
	CALL(setsid, "jobs"),
	CALL(arch_prctl, "start of a program"),
	CALL(set_tid_address, "start of a program"),
	CALL(prlimit64, "start of a program"),
	CALL(prctl, "no core dumps"),
	CALL(seccomp, "a job's own filter"),
	CALL(setrlimit, "no core dumps"),
	CALL(getrlimit, "libraries"),
	CALL(getppid, "libraries"),
	CALL(getgid, "libraries"),
	CALL(getegid, "libraries"),
	CALL(geteuid, "libraries"),
	CALL(capget, "libcap-ng"),
	CALL(capset, "libcap-ng"),
	CALL(setuid, "proof that root cannot be regained"),
	CALL(setgid, "libcap-ng"),
	CALL(setresuid, "libcap-ng"),
	CALL(setresgid, "libcap-ng"),
	CALL(setgroups, "libcap-ng"),
	CALL(setreuid, "proof that root cannot be regained"),
	CALL(sysinfo, "libraries"),
	CALL(sched_getaffinity, "compression"),
	CALL(timerfd_create, "libraries"),
	{ SCMP_SYS(mmap), "loading libraries of a job", 1, { { 2, 0x2, 0 } } }, /* writable or executable, never both */
	CALL(pread64, "files"),
};

static enum rc open_database(const struct config *c, struct db **ret, struct fault *ret_f)
{
	char path[512];
	enum rc rc = path_join(path, sizeof(path), c->state_dir, DB_FILE, ret_f);

	/* The API makes the database; the runner may have started first. */
	for (int i = 0; !rc && i < 300; i++) {
		struct timespec pause = { 0, 100000000 };
		_cleanup_db_q_ struct db_q q = DB_Q_INIT;
		struct stat st;

		if (stat(path, &st) == 0 && !(rc = db_open(ret, path, ret_f))) {
			db_start(&q, *ret, "SELECT count(*) FROM instances");
			if (!db_row(&q, NULL))
				return RC_OK;
			db_end(&q);
			db_close(*ret);
		}
		nanosleep(&pause, NULL);
	}
	return rc ? rc : fault_set(ret_f, RC_TIMEOUT, 0, "no database at '%.100s' after 30 s", path);
}

/* The API kicks here after every change; anybody else's datagram costs a look at the database. */
static enum rc kick_socket(const struct config *c, int *ret, struct fault *ret_f)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	_cleanup_fd_ int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return fault_set(ret_f, RC_SYS, errno, "socket");
	if (path_join(addr.sun_path, sizeof(addr.sun_path), c->run_dir, "runner.sock", ret_f))
		return RC_INVALID;
	if (unlink(addr.sun_path) < 0 && errno != ENOENT)
		return fault_set(ret_f, RC_SYS, errno, "remove stale socket");
	if (bind(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0 || chmod(addr.sun_path, 0600) < 0)
		return fault_set(ret_f, RC_SYS, errno, "bind '%s'", addr.sun_path);
	*ret = take_fd(&fd);
	return RC_OK;
}

static enum rc run(const char *config_path, const char *verb, const char *revision, struct fault *ret_f)
{
	_cleanup_fd_ int kick = -1, lock = -1;
	struct db *db = NULL;
	struct config c;
	enum rc rc = config_load(&c, config_path, ret_f);

	if (!rc)
		rc = harden_ids(c.user_api, NULL, 0, ret_f);
	if (!rc && !verb)
		rc = kick_socket(&c, &kick, ret_f);
	if (!rc)
		rc = open_database(&c, &db, ret_f);
	if (!rc)
		rc = harden_final(calls, ARRAY_SIZE(calls), ret_f);
	/* The other two take the app's lock when they need it, and a keeper has its instance's. */
	if (!rc && verb && strcmp(verb, "sleep") && strcmp(verb, "drain"))
		rc = watch_lock(&c, revision, &lock, ret_f);
	if (!rc && verb && !strcmp(verb, "keep"))
		rc = keep_run(&c, db, revision, lock, ret_f);
	else if (!rc && verb && !strcmp(verb, "sleep"))
		rc = sleep_run(&c, db, revision, ret_f);
	else if (!rc && verb && !strcmp(verb, "drain"))
		rc = drain_run(&c, db, revision, ret_f);
	else if (!rc && verb)
		rc = job_run(&c, db, revision, !strcmp(verb, "again"), ret_f);
	else if (!rc)
		rc = watch_run(&c, config_path, db, kick, ret_f);
	db_close(db);
	return rc;
}

static bool verb_is_known(const char *verb)
{
	static const char *const verbs[] = { "job", "again", "keep", "sleep", "drain" };

	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
		if (!strcmp(verbs[i], verb))
			return true;
	return false;
}

int main(int argc, char **argv)
{
	static const struct option options[] = { { "help", 0, NULL, 'h' }, { "version", 0, NULL, 'V' }, { NULL, 0, NULL, 0 } };
	const char *config = NULL, *verb = NULL;
	struct fault f;
	int c;

	setlocale(LC_CTYPE, "C.UTF-8"); /* names in trees: libarchive converts by the locale */
	log_init("nestbox-runner");
	signal(SIGPIPE, SIG_IGN);
	while ((c = getopt_long(argc, argv, "c:h", options, NULL)) != -1) {
		switch (c) {
		case 'c': config = optarg; break;
		case 'h': fputs(usage, stdout); return 0;
		case 'V': puts("nestbox-runner " NB_VERSION); return 0;
		default: fputs(usage, stderr); return 2;
		}
	}
	if (optind < argc)
		verb = argv[optind];
	if (verb && (!verb_is_known(verb) || optind + 2 != argc)) {
		fputs(usage, stderr);
		return 2;
	}
	if (!run(config, verb, verb ? argv[optind + 1] : NULL, &f))
		return 0;
	log_fault(LOG_LEVEL_ERROR, &f, "%s%s%s", verb ? verb : "start", verb ? " id=" : "", verb ? argv[optind + 1] : "");
	/* What is over when the host has room again, or its daemons answer, is no failure of the app's. */
	return f.rc == RC_LIMIT || f.rc == RC_NOMEM || f.rc == RC_CLOSED || f.rc == RC_AGAIN || f.rc == RC_SYS ? EX_TEMPFAIL : 1;
}
