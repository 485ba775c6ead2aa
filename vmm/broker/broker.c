/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/broker/broker.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/hex.h"
#include "base/log.h"
#include "vmm/broker/capture.h"
#include "vmm/broker/expose.h"
#include "vmm/broker/fork.h"
#include "vmm/broker/limits.h"
#include "vmm/broker/machine.h"
#include "vmm/broker/orphan.h"
#include "vmm/broker/peer.h"
#include "vmm/broker/template.h"
#include "vmm/broker/verify.h"
#include "vmm/net/net.h"
#include "vmm/broker/volume.h"
#include "vmm/store/copy.h"

#include <ctype.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>

bool broker_id_ok(const char *id)
{
	size_t n = strlen(id);

	if (!n || n >= BROKER_ID_MAX || id[0] == '_')
		return false;
	for (const char *p = id; *p; p++)
		if (!((*p >= 'a' && *p <= 'z') || (*p >= '0' && *p <= '9') || *p == '_'))
			return false;
	return true;
}

bool broker_name_ok(const char *name)
{
	if (!*name || *name == '.' || strlen(name) >= BROKER_NAME_MAX)
		return false;
	for (const char *p = name; *p; p++)
		if (!isalnum((unsigned char)*p) && !strchr("._-", *p))
			return false;
	return true;
}

static enum rc dirs_open(struct broker *b, struct fault *ret_f)
{
	/* logs/ is others' as well; the rest is ours alone. */
	_cleanup_fd_ int logs = -1;
	const struct { const char *name; int *fd; unsigned int mode; } dirs[] = {
		{ "logs", &logs, 0755 },
		{ "vms", &b->vms_dirfd, 0700 },
		{ "templates", &b->templates_dirfd, 0700 },
		{ "exposures", &b->exposures_dirfd, 0700 },
	};

	if (mkdir(b->config->state_dir, 0755) < 0 && errno != EEXIST)
		return fault_set(ret_f, rc_from_errno(errno), errno, "make '%.80s'", b->config->state_dir);
	b->state_dirfd = open(b->config->state_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (b->state_dirfd < 0)
		return fault_set(ret_f, RC_SYS, errno, "open '%.80s'", b->config->state_dir);
	for (size_t i = 0; i < ARRAY_SIZE(dirs); i++) {
		enum rc rc = dir_open_at(b->state_dirfd, dirs[i].name, dirs[i].mode, dirs[i].fd, ret_f);

		if (rc)
			return rc;
	}
	/* The operator's, and perhaps a link: installations share images. */
	if (mkdirat(b->state_dirfd, "images", 0755) < 0 && errno != EEXIST)
		return fault_set(ret_f, RC_SYS, errno, "make directory 'images'");
	b->images_dirfd = openat(b->state_dirfd, "images", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (b->images_dirfd < 0)
		return fault_set(ret_f, RC_SYS, errno, "open directory 'images'");
	return dir_open_at(logs, "kernel", 0700, &b->logs_dirfd, ret_f);
}

static uint64_t host_memory_mib(const struct config *config)
{
	struct sysinfo si;

	if (config->vm_memory_mib_host)
		return config->vm_memory_mib_host;
	return sysinfo(&si) < 0 ? 0 : ((uint64_t)si.totalram * si.mem_unit >> 20) * 9 / 10;
}

/* What tells our cgroups from those of another installation on this host. */
static void installation_tag(const struct config *config, char out[17])
{
	unsigned char hash[EVP_MAX_MD_SIZE] = { 0 };

	EVP_Digest(config->state_dir, strlen(config->state_dir), hash, NULL, EVP_sha256(), NULL);
	hex_of(out, hash, 8);
}

enum rc broker_new(struct loop *loop, const struct config *config, struct engine *engine,
		   const struct engine_verdict *verdict, struct broker **ret, struct fault *ret_f)
{
	struct broker *b = calloc(1, sizeof(*b));
	char tag[17];
	enum rc rc;

	if (!b)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	*b = (struct broker){ .loop = loop, .config = config, .engine = engine, .verdict = *verdict,
			      .started_ms = wall_ms(), .memory_mib_max = host_memory_mib(config), .state_dirfd = -1,
			      .vms_dirfd = -1, .images_dirfd = -1, .templates_dirfd = -1, .exposures_dirfd = -1,
			      .logs_dirfd = -1, .volumes_dirfd = -1, .snapshots_dirfd = -1, .stop_timer_fd = -1 };
	installation_tag(config, tag);
	cgroup_host_init(&b->cgroup, tag);
	rc = dirs_open(b, ret_f);
	if (!rc)
		rc = volumes_init(b, ret_f);
	if (!rc)
		rc = verify_new(b, ret_f);
	if (!rc)
		rc = captures_init(b, ret_f);
	if (!rc)
		rc = machines_init(b, ret_f);
	if (!rc)
		rc = templates_new(b, ret_f);
	if (rc) {
		broker_free(b);
		return rc;
	}
	*ret = b;
	return RC_OK;
}

void broker_free(struct broker *b)
{
	if (!b)
		return;
	b->leaving = true;
	b->closing = true;
	source_drop(&b->close_timer);
	templates_free(b);
	volumes_free(b);
	captures_free(b);
	forks_free(b);
	verify_free(b);
	peers_free(b);
	expose_free(b);
	machines_free(b);
	cgroup_host_free(&b->cgroup);
	close_fd(&b->vms_dirfd);
	close_fd(&b->images_dirfd);
	close_fd(&b->templates_dirfd);
	close_fd(&b->exposures_dirfd);
	close_fd(&b->logs_dirfd);
	close_fd(&b->state_dirfd);
	free(b);
}

static bool half_made(const struct machine *m)
{
	return m->internal || m->state == BROKER_VM_STARTING || m->ending;
}

static void on_close_timer(void *arg)
{
	struct broker *b = arg;
	size_t left = 0;

	for (size_t i = 0; i < b->n_machines; i++)
		left += half_made(b->machines[i]);
	if (left && now_ms() < b->close_by_ms)
		loop_timer_set(b->close_timer, now_ms() + CLOSE_CHECK_MS);
	else
		loop_stop(b->loop);
}

void broker_close(struct broker *b)
{
	if (b->closing)
		return;
	b->closing = true;
	b->close_by_ms = now_ms() + CLOSE_MS;
	for (size_t i = 0; i < b->n_machines; i++)
		if (half_made(b->machines[i]))
			machine_end(b->machines[i], "the broker is ending");
	if (loop_timer(b->loop, now_ms(), on_close_timer, b, &b->close_timer, NULL))
		loop_stop(b->loop);
}

enum rc broker_start(struct broker *b, struct fault *ret_f)
{
	_cleanup_fd_ int fd = -1;
	char path[CONFIG_STR_MAX];
	enum rc rc = net_init(b->config->run_dir, ret_f);

	if (!rc)
		rc = machines_adopt(b, ret_f);
	if (rc)
		return rc;
	/* What is left now belongs to nobody. Processes first: they hold the rest. */
	orphans_kill(b, NULL);
	cgroup_sweep(&b->cgroup, machine_kept, b);
	rc = net_sweep(machine_kept, b, ret_f);
	if (!rc)
		rc = expose_load(b, ret_f);
	if (!rc)
		rc = path_join(path, sizeof(path), b->config->run_dir, "broker.sock", ret_f);
	if (!rc)
		rc = unix_listen(path, SOCK_SEQPACKET, 0666, (gid_t)-1, &fd, ret_f);
	if (!rc)
		rc = peers_new(b, take_fd(&fd), ret_f);
	return rc ? rc : templates_start(b, ret_f);
}
