/* SPDX-License-Identifier: Apache-2.0 */
/* nestboxd: the privileged broker. See nestboxd(8) and doc/broker.md. */
#include "base/cleanup.h"
#include "base/config.h"
#include "base/fd.h"
#include "base/log.h"
#include "vmm/broker/broker.h"
#include "vmm/broker/privilege.h"

#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#define PROBE_MS 1000

static void on_signal(void *arg, int signal)
{
	log_info("ending, machines go on signal=%d", signal);
	broker_close(arg);
}

static void usage(FILE *to)
{
	fputs("usage: nestboxd [-c nestbox.conf]\n"
	      "The privileged broker of nestbox: makes, watches and ends virtual machines. See nestboxd(8).\n",
	      to);
}

/* Two brokers on one state directory would sweep away each other's machines. */
static enum rc lock_take(const struct config *config, int *ret_fd, struct fault *ret_f)
{
	char path[CONFIG_STR_MAX];
	enum rc rc = path_join(path, sizeof(path), config->state_dir, "nestboxd.lock", ret_f);
	int fd;

	if (rc)
		return rc;
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "open '%.100s'", path);
	if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
		close(fd);
		return fault_set(ret_f, RC_EXISTS, errno, "another nestboxd runs on '%.80s'", config->state_dir);
	}
	*ret_fd = fd;
	return RC_OK;
}

static enum rc engine_make(struct loop *loop, const struct config *config, struct engine_verdict *ret_verdict,
			   struct engine **ret, struct fault *ret_f)
{
	enum rc rc = engine_choose(config->engine, config->qemu_path, NB_LIBEXECDIR "/nestbox-vmm", PROBE_MS, ret_verdict,
				   ret_f);

	if (rc)
		return rc;
	log_info("engine chosen engine=%s tier=%s reason=\"%s\"", ret_verdict->name, ret_verdict->tier,
		 ret_verdict->reason);
	if (!strcmp(ret_verdict->name, "kvm"))
		return engine_kvm_new(loop, NB_LIBEXECDIR "/nestbox-vmm", ret, ret_f);
	return engine_qemu_new(loop, config->qemu_path, !strcmp(ret_verdict->name, "qemu-kvm"), ret, ret_f);
}

static enum rc make_dirs(const struct config *config, struct fault *ret_f)
{
	if ((mkdir(config->state_dir, 0755) < 0 && errno != EEXIST) || (mkdir(config->run_dir, 0755) < 0 && errno != EEXIST))
		return fault_set(ret_f, rc_from_errno(errno), errno, "make '%.60s' and '%.60s'", config->state_dir,
				 config->run_dir);
	return RC_OK;
}

static enum rc run(const struct config *config, struct fault *ret_f)
{
	struct engine_verdict verdict = { .name = "" };
	struct source *term = NULL, *quit = NULL;
	_cleanup_fd_ int lock = -1;
	struct engine *engine = NULL;
	struct broker *b = NULL;
	struct loop *loop = NULL;
	enum rc rc = make_dirs(config, ret_f);

	if (!rc)
		rc = lock_take(config, &lock, ret_f);
	if (!rc)
		rc = loop_new(&loop, ret_f);
	if (!rc)
		rc = engine_make(loop, config, &verdict, &engine, ret_f);
	if (!rc)
		rc = privilege_drop(ret_f);
	if (!rc)
		rc = broker_new(loop, config, engine, &verdict, &b, ret_f);
	if (!rc)
		rc = loop_signal(loop, SIGTERM, on_signal, b, &term, ret_f);
	if (!rc)
		rc = loop_signal(loop, SIGINT, on_signal, b, &quit, ret_f);
	if (!rc)
		rc = broker_start(b, ret_f);
	if (!rc) {
		log_info("ready state_dir=%s run_dir=%s memory_mib=%u", config->state_dir, config->run_dir,
			 (unsigned int)b->memory_mib_max);
		rc = loop_run(loop, ret_f);
	}
	broker_free(b);
	if (engine)
		engine->ops->engine_free(engine);
	loop_free(loop);
	return rc;
}

int main(int argc, char **argv)
{
	static const struct option options[] = { { "help", no_argument, NULL, 'h' }, { 0 } };
	const char *path = NULL;
	struct config config;
	struct fault f;
	int c;

	while ((c = getopt_long(argc, argv, "c:h", options, NULL)) != -1) {
		switch (c) {
		case 'c': path = optarg; break;
		case 'h': usage(stdout); return 0;
		default: usage(stderr); return 2;
		}
	}
	log_init("nestboxd");
	signal(SIGPIPE, SIG_IGN);
	umask(0022);
	if (config_load(&config, path, &f) || run(&config, &f)) {
		log_fault(LOG_LEVEL_ERROR, &f, "cannot go on");
		return 1;
	}
	return 0;
}
