/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/broker/machine.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "schema/agent.h"
#include "vmm/broker/attach.h"
#include "vmm/broker/capture.h"
#include "vmm/broker/charge.h"
#include "vmm/broker/dial.h"
#include "vmm/broker/expose.h"
#include "vmm/broker/fork.h"
#include "vmm/broker/image.h"
#include "vmm/broker/list.h"
#include "vmm/broker/limits.h"
#include "vmm/broker/login.h"
#include "vmm/broker/peer.h"
#include "vmm/broker/record.h"
#include "vmm/broker/repolicy.h"
#include "vmm/broker/volume.h"
#include "vmm/store/copy.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>

#define SPARE_BYTES (1u << 20)

_Static_assert(MACHINE_DISKS <= ENGINE_DISKS_MAX, "an engine has a place for each disk");
_Static_assert(VOLUME_BYTES_MAX <= AGENT_BASE_BYTES, "a snapshot fits");

static void machine_finish(void *arg);

static enum rc check_limits(struct broker *b, const struct machine_spec *s, struct fault *ret_f)
{
	uint64_t used = machine_memory_used(b), disk;
	size_t max = b->config->vm_max + (s->id[0] == '_' ? VM_INTERNAL : 0);
	enum rc rc;

	if (machine_find(b, s->id))
		return fault_set(ret_f, RC_EXISTS, 0, "machine '%s' exists already", s->id);
	if (b->n_machines >= max)
		return fault_set(ret_f, RC_LIMIT, 0, "this host runs its maximum of %" PRIu64 " machines",
				 b->config->vm_max);
	if (used + s->memory_mib > b->memory_mib_max)
		return fault_set(ret_f, RC_LIMIT, 0,
				 "no memory left on this host: machines have %" PRIu64 " of %" PRIu64
				 " MiB, %u more were asked for",
				 used, b->memory_mib_max, s->memory_mib);
	rc = machine_disk_free(b, &disk, ret_f);
	if (!rc && disk < (uint64_t)DISK_RESERVE_MIB << 20)
		return fault_set(ret_f, RC_NOSPACE, 0, "no disk space left on this host: %" PRIu64 " MiB, %d are kept free",
				 disk >> 20, DISK_RESERVE_MIB);
	return rc;
}

static enum rc slot_take(struct broker *b, uint32_t *ret, struct fault *ret_f)
{
	for (uint32_t i = 0; i < b->config->vm_max + VM_INTERNAL; i++)
		if (!b->slots[i]) {
			b->slots[i] = 1;
			*ret = i;
			return RC_OK;
		}
	return fault_set(ret_f, RC_LIMIT, 0, "no uid left for another machine");
}

static void machine_free(struct machine *m)
{
	for (size_t i = 0; i < ENGINE_DISKS_MAX; i++)
		close_fd(&m->disks[i]);
	agent_cancel(m->settle);
	charge_machine_gone(m);
	repolicy_cancel(m);
	source_drop(&m->lease);
	source_drop(&m->grace);
	source_drop(&m->finish);
	close_fd(&m->lease_fd);
	close_fd(&m->log_fd);
	close_fd(&m->cgroup.procs_fd);
	close_fd(&m->dirfd);
	free(m->policy);
	free(m->ca_pem);
	free(m);
}

void machine_forget(struct machine *m)
{
	close_fd(&m->net.ns_fd);
	close_fd(&m->net.tap_fd);
	close_fd(&m->net.mgmt_fd);
	close_fd(&m->net.tcp_fd);
	close_fd(&m->net.dns_udp_fd);
	close_fd(&m->net.dns_tcp_fd);
	machine_free(m);
}

static struct machine *machine_alloc(struct broker *b, const char *id)
{
	struct machine *m = calloc(1, sizeof(*m));

	if (!m)
		return NULL;
	m->b = b;
	m->state = BROKER_VM_STARTING;
	m->internal = id[0] == '_';
	m->dirfd = m->log_fd = m->lease_fd = m->cgroup.procs_fd = -1;
	m->net = (struct net){ .ns_fd = -1, .tap_fd = -1, .mgmt_fd = -1, .tcp_fd = -1, .dns_udp_fd = -1, .dns_tcp_fd = -1 };
	for (size_t i = 0; i < ENGINE_DISKS_MAX; i++)
		m->disks[i] = -1;
	snprintf(m->id, sizeof(m->id), "%s", id);
	return m;
}

static enum rc policy_copy(struct machine *m, const uint8_t *policy, size_t n, struct fault *ret_f)
{
	uint8_t *mem = malloc(n + 1);

	if (!mem)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	if (n)
		memcpy(mem, policy, n);
	free(m->policy);
	m->policy = mem;
	m->policy_n = n;
	return RC_OK;
}

enum rc machine_new(struct broker *b, const struct machine_spec *s, struct machine **ret, struct fault *ret_f)
{
	enum rc rc = check_limits(b, s, ret_f);
	struct machine *m;

	if (rc)
		return rc;
	m = machine_alloc(b, s->id);
	if (!m)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	m->flags = s->flags;
	m->background = s->background;
	m->memory_mib = s->memory_mib;
	m->stop_at_ms = s->stop_at_ms;
	m->created_ms = wall_ms();
	snprintf(m->image, sizeof(m->image), "%s", s->image);
	rc = policy_copy(m, s->policy, s->policy_n, ret_f);
	if (!rc)
		rc = loop_timer(b->loop, UINT64_MAX, machine_finish, m, &m->finish, ret_f);
	if (!rc)
		rc = slot_take(b, &m->slot, ret_f);
	if (!rc) {
		rc = machine_list_add(b, m, ret_f);
		if (rc)
			b->slots[m->slot] = 0;
	}
	if (rc) {
		machine_free(m);
		return rc;
	}
	machine_timers_update(b);
	*ret = m;
	return RC_OK;
}

static enum rc record_put(struct machine *m, struct fault *ret_f)
{
	struct record r = { .state = m->state, .flags = m->flags, .memory_mib = m->memory_mib,
			    .vcpus = (uint32_t)m->b->config->vm_vcpus, .slot = m->slot, .own_root = m->own_root,
			    .created_ms = m->created_ms,
			    .stop_at_ms = m->stop_at_ms };

	snprintf(r.engine, sizeof(r.engine), "%s", m->b->verdict.name);
	snprintf(r.image, sizeof(r.image), "%s", m->image);
	memcpy(r.image_tag, m->image_tag, sizeof(r.image_tag));
	attach_text(m, r.volumes);
	return record_write(m->dirfd, &r, ret_f);
}

static const char *const serials[MACHINE_DISKS] = { "image",  "overlay", "spare0",	    "spare1",
						    "spare2", "spare3",	 AGENT_ROOT_SERIAL, AGENT_BASE_SERIAL };

/* Read-only is what the engine asks of the descriptor, too. */
static enum rc base_make(struct machine *m, struct fault *ret_f)
{
	_cleanup_fd_ int fd = -1;
	enum rc rc = disk_make_at(m->dirfd, AGENT_BASE_SERIAL, AGENT_BASE_BYTES, &fd, ret_f);

	if (rc)
		return rc;
	m->disks[DISK_BASE] = openat(m->dirfd, AGENT_BASE_SERIAL, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	return m->disks[DISK_BASE] < 0 ? fault_set(ret_f, RC_SYS, errno, "open placeholder") : RC_OK;
}

/*
 * An open file of its own for each machine. A duplicate would share the flags that a VM process may set: one that was taken over
 * could make every other machine's reads of the image bypass the page cache, or fail (O_DIRECT).
 */
static enum rc image_reopen(int image_fd, int *ret_fd, struct fault *ret_f)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", image_fd);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "open the image again");
	*ret_fd = fd;
	return RC_OK;
}

static enum rc disks_make(struct machine *m, int image_fd, int overlay_fd, struct fault *ret_f)
{
	uint64_t bytes = overlay_fd < 0 ? m->b->config->vm_disk_mib << 20 : 0;
	enum rc rc = image_reopen(image_fd, &m->disks[DISK_IMAGE], ret_f);

	if (rc)
		return rc;
	if (m->disks[DISK_OVERLAY] < 0) {
		rc = disk_make_at(m->dirfd, "overlay", bytes, &m->disks[DISK_OVERLAY], ret_f);
		if (!rc && overlay_fd >= 0)
			rc = copy_disk(overlay_fd, m->disks[DISK_OVERLAY], NULL, ret_f);
	}
	for (int i = DISK_SPARE; !rc && i <= DISK_ROOT; i++)
		if (m->disks[i] < 0)
			rc = disk_make_at(m->dirfd, serials[i], SPARE_BYTES, &m->disks[i], ret_f);
	if (rc || m->disks[DISK_BASE] >= 0)
		return rc;
	if (overlay_fd < 0)
		return base_make(m, ret_f);
	/* The guest has learnt its size when the template was made; what is in it matters to nobody. */
	m->disks[DISK_BASE] = fcntl(m->disks[DISK_IMAGE], F_DUPFD_CLOEXEC, 3);
	return m->disks[DISK_BASE] < 0 ? fault_set(ret_f, RC_SYS, errno, "duplicate image") : RC_OK;
}

static enum rc net_make(struct machine *m, struct fault *ret_f)
{
	enum rc rc = net_create(m->id, &m->net, ret_f);

	if (rc)
		return fault_wrap(ret_f, "network");
	m->has_net = true;
	return RC_OK;
}

static enum rc lease_make(struct machine *m, struct fault *ret_f)
{
	if (!(m->flags & BROKER_VM_LEASE))
		return RC_OK;
	if (mkfifoat(m->dirfd, "lease", 0600) < 0)
		return fault_set(ret_f, RC_SYS, errno, "make lease");
	m->lease_fd = openat(m->dirfd, "lease", O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC);
	return m->lease_fd < 0 ? fault_set(ret_f, RC_SYS, errno, "open lease") : RC_OK;
}

enum rc machine_prepare(struct machine *m, int image_fd, int overlay_fd, struct fault *ret_f)
{
	struct cgroup_limits limits = { .memory_bytes = charge_bound(m),
					.pids = VM_PIDS_MAX, .cpus = (uint32_t)m->b->config->vm_vcpus,
					.weight = m->background ? BACKGROUND_WEIGHT : CGROUP_WEIGHT };
	enum rc rc;

	if (mkdirat(m->b->vms_dirfd, m->id, 0700) < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "make directory of machine '%s'", m->id);
	m->has_dir = true;
	rc = dir_open_at(m->b->vms_dirfd, m->id, 0700, &m->dirfd, ret_f);
	if (!rc)
		rc = image_tag(image_fd, m->image_tag, ret_f);
	if (!rc)
		rc = record_put(m, ret_f);
	if (!rc && m->policy_n)
		rc = file_replace_at(m->dirfd, "policy", m->policy, m->policy_n, ret_f);
	if (!rc)
		rc = disks_make(m, image_fd, overlay_fd, ret_f);
	if (!rc)
		rc = lease_make(m, ret_f);
	if (!rc) {
		m->log_fd = openat(m->dirfd, "console.log", O_RDWR | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0600);
		if (m->log_fd < 0)
			rc = fault_set(ret_f, rc_from_errno(errno), errno, "make console log");
	}
	if (!rc)
		rc = cgroup_make(&m->b->cgroup, m->id, &limits, &m->cgroup, ret_f);
	if (!rc)
		rc = net_make(m, ret_f);
	if (!rc)
		broker_egress_vm(m->b, m);
	return rc;
}

/* --- the engine ------------------------------------------------------------------------------------------------- */

static void on_engine_done(void *arg, enum rc rc, const struct fault *f)
{
	struct machine *m = arg;
	engine_done_fn *done = m->on_engine;
	void *done_arg = m->on_engine_arg;

	m->busy = false;
	m->on_engine = NULL;
	if (done)
		done(done_arg, rc, f);
}

static void on_engine_exit(void *arg, const char *reason)
{
	struct machine *m = arg;

	m->exited = true;
	machine_end(m, "the virtual machine's process ended: %s", reason);
	loop_timer_set(m->finish, now_ms());
}

static enum rc engine_begin(struct machine *m, engine_done_fn *done, void *arg, struct fault *ret_f)
{
	if (m->ending)
		return fault_set(ret_f, RC_STATE, 0, "machine '%s' is ending", m->id);
	if (m->busy)
		return fault_set(ret_f, RC_AGAIN, 0, "machine '%s' is busy with another operation", m->id);
	m->busy = true;
	m->on_engine = done;
	m->on_engine_arg = arg;
	return RC_OK;
}

static void engine_begun(struct machine *m, enum rc rc)
{
	if (rc) {
		m->busy = false;
		m->on_engine = NULL;
	}
}

static void spec_fill(struct machine *m, const struct machine_boot *boot, struct engine_spec *s)
{
	*s = (struct engine_spec){ .memory_mib = m->memory_mib, .vcpus = (uint32_t)m->b->config->vm_vcpus,
				   .uid = (uid_t)(m->b->config->vm_uid_base + m->slot), .vm_dirfd = m->dirfd,
				   .cgroup_procs_fd = m->cgroup.procs_fd, .netns_fd = -1,
				   .kernel_fd = boot ? boot->kernel_fd : -1, .initrd_fd = boot ? boot->initrd_fd : -1,
				   .cmdline = boot ? boot->cmdline : NULL, .log_fd = m->log_fd,
				   .n_disks = ARRAY_SIZE(serials), .n_nics = 2, .paused = m->state == BROKER_VM_PAUSED,
				   .nics = { { AGENT_NET_MAC, m->net.tap_fd }, { AGENT_MGMT_MAC, m->net.mgmt_fd } } };
	snprintf(s->id, sizeof(s->id), "%s", m->id);
	if (!boot) { /* a template is made as fast as it can be */
		s->disk_iops = (uint32_t)m->b->config->vm_disk_iops;
		s->disk_mbps = (uint32_t)m->b->config->vm_disk_mbps;
		s->net_pps = (uint32_t)m->b->config->vm_net_pps;
		s->net_mbps = (uint32_t)m->b->config->vm_net_mbps;
	}
	for (size_t i = 0; i < ARRAY_SIZE(serials); i++) {
		snprintf(s->disks[i].serial, sizeof(s->disks[i].serial), "%s", serials[i]);
		s->disks[i].fd = m->disks[i];
		s->disks[i].read_only = i == DISK_IMAGE || i == DISK_BASE;
	}
}

static void on_started(void *arg, enum rc rc, const struct fault *f);

struct launch {
	struct machine *m;
	engine_done_fn *done;
	void *arg;
};

enum rc machine_launch(struct machine *m, const struct machine_boot *boot, struct engine_snapshot *snap,
		       engine_done_fn *done, void *arg, struct fault *ret_f)
{
	struct launch *l = malloc(sizeof(*l));
	struct engine_spec spec;
	enum rc rc;

	if (!l)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	*l = (struct launch){ m, done, arg };
	rc = engine_begin(m, on_started, l, ret_f);
	if (!rc) {
		spec_fill(m, boot, &spec);
		rc = m->b->engine->ops->start(m->b->engine, &spec, snap, on_engine_done, on_engine_exit, m, &m->vm, ret_f);
		engine_begun(m, rc);
	}
	if (rc)
		free(l);
	return rc;
}

static void on_started(void *arg, enum rc rc, const struct fault *f)
{
	struct launch *l = arg;
	struct machine *m = l->m;
	engine_done_fn *done = l->done;
	void *done_arg = l->arg;
	struct engine_stat st = { 0 };

	free(l);
	if (rc) {
		machine_end(m, "start failed: %s", f->text);
	} else {
		/* The VM process has its own; ours would keep taps and disks alive beyond it. The log stays, to be bounded. */
		for (size_t i = 0; i < ENGINE_DISKS_MAX; i++)
			close_fd(&m->disks[i]);
		close_fd(&m->net.tap_fd);
		close_fd(&m->net.mgmt_fd);
		m->b->engine->ops->stat(m->vm, &st);
		cgroup_join_rest(&m->b->cgroup, &m->cgroup, st.pid);
	}
	done(done_arg, rc, f);
}

void machine_running(struct machine *m)
{
	struct fault f;

	m->state = BROKER_VM_RUNNING;
	if (record_put(m, &f))
		log_fault(LOG_LEVEL_WARN, &f, "machine %s", m->id);
	broker_event_vm(m->b, m, BROKER_VM_RUNNING, "");
	repolicy_missed(m);
}

static void on_paused(void *arg, enum rc rc, const struct fault *f)
{
	struct machine *m = arg;
	struct machine_pausing p = m->pausing;
	struct fault write_f;

	if (!rc && !m->ending && !m->internal) {
		m->state = p.pause ? BROKER_VM_PAUSED : BROKER_VM_RUNNING;
		if (record_put(m, &write_f))
			log_fault(LOG_LEVEL_WARN, &write_f, "machine %s", m->id);
		broker_event_vm(m->b, m, m->state, "");
		repolicy_missed(m);
	}
	p.done(p.arg, rc, f);
}

enum rc machine_pause(struct machine *m, bool pause, engine_done_fn *done, void *arg, struct fault *ret_f)
{
	const struct engine_ops *ops = m->b->engine->ops;
	enum rc rc = engine_begin(m, on_paused, m, ret_f);

	if (rc)
		return rc;
	m->pausing = (struct machine_pausing){ pause, done, arg };
	rc = (pause ? ops->pause : ops->resume)(m->vm, on_engine_done, ret_f);
	engine_begun(m, rc);
	return rc;
}

enum rc machine_snapshot(struct machine *m, void (*cut)(void *arg), void *cut_arg, engine_done_fn *done, void *arg,
			 struct engine_snapshot **ret, struct fault *ret_f)
{
	enum rc rc = engine_begin(m, done, arg, ret_f);

	if (!rc) {
		rc = m->b->engine->ops->take(m->vm, cut, cut_arg, on_engine_done, ret, ret_f);
		engine_begun(m, rc);
	}
	return rc;
}

enum rc machine_disk_resized(struct machine *m, const char *serial, engine_done_fn *done, void *arg, struct fault *ret_f)
{
	enum rc rc = engine_begin(m, done, arg, ret_f);

	if (!rc) {
		rc = m->b->engine->ops->disk_resized(m->vm, serial, on_engine_done, ret_f);
		engine_begun(m, rc);
	}
	return rc;
}

enum rc machine_save(struct machine *m, int dirfd, engine_done_fn *done, void *arg, struct fault *ret_f)
{
	enum rc rc = engine_begin(m, done, arg, ret_f);

	if (!rc) {
		rc = m->b->engine->ops->save(m->vm, dirfd, on_engine_done, ret_f);
		engine_begun(m, rc);
	}
	return rc;
}

static enum rc fork_begin_children(size_t n, struct machine *children[], struct engine_spec specs[],
				   struct launch *launches[], engine_done_fn *done, void *args[], struct fault *ret_f)
{
	for (size_t i = 0; i < n; i++) {
		enum rc rc;

		launches[i] = malloc(sizeof(**launches));
		if (!launches[i])
			return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
		*launches[i] = (struct launch){ children[i], done, args[i] };
		rc = engine_begin(children[i], on_started, launches[i], ret_f);
		if (rc)
			return rc;
		spec_fill(children[i], NULL, &specs[i]);
	}
	return RC_OK;
}

enum rc machine_fork(struct machine *parent, size_t n, struct machine *children[], void (*cut)(void *arg), void *cut_arg,
		     engine_done_fn *done, void *args[], struct fault *ret_f)
{
	struct launch *launches[ENGINE_FORK_MAX] = { NULL };
	struct engine_spec specs[ENGINE_FORK_MAX];
	struct engine_vm *vms[ENGINE_FORK_MAX] = { NULL };
	void *machines[ENGINE_FORK_MAX];
	enum rc rc = engine_begin(parent, NULL, NULL, ret_f);

	if (rc)
		return rc;
	for (size_t i = 0; i < n; i++)
		machines[i] = children[i];
	rc = fork_begin_children(n, children, specs, launches, done, args, ret_f);
	if (!rc)
		rc = parent->b->engine->ops->fork(parent->vm, n, specs, cut, cut_arg, on_engine_done, on_engine_exit, machines, vms,
						  ret_f);
	engine_begun(parent, rc);
	for (size_t i = 0; i < n; i++) {
		children[i]->vm = vms[i];
		if (vms[i])
			continue;
		engine_begun(children[i], RC_STATE);
		free(launches[i]);
	}
	return rc;
}

void machine_fork_go(struct machine *parent, const struct fault *f)
{
	parent->b->engine->ops->fork_go(parent->vm, f);
}

bool machine_in_use(const struct machine *m)
{
	return capture_machine_busy(m) || fork_machine_busy(m);
}

/* --- the end ---------------------------------------------------------------------------------------------------- */

/* What its users wrote to volumes is worth a flush; true if that is under way and stops it afterwards. */
static bool settles(struct machine *m, enum broker_vm_state was)
{
	if (!m->has_volumes || (was != BROKER_VM_RUNNING && was != BROKER_VM_PAUSED))
		return false;
	if (was == BROKER_VM_PAUSED && !m->busy && !m->b->engine->ops->resume(m->vm, on_engine_done, NULL))
		m->busy = true;
	return attach_settle(m);
}

void machine_end(struct machine *m, const char *fmt, ...)
{
	enum broker_vm_state was = m->state;
	void (*on_end)(void *, const char *) = m->on_end;
	va_list ap;

	if (m->ending)
		return;
	m->ending = true;
	m->on_end = NULL;
	va_start(ap, fmt);
	vsnprintf(m->reason, sizeof(m->reason), fmt, ap);
	va_end(ap);
	m->state = BROKER_VM_STOPPING;
	source_drop(&m->lease);
	source_drop(&m->grace);
	machine_timers_update(m->b);
	dials_cancel(m);
	repolicy_cancel(m);
	login_machine_ends(m);
	volume_machine_ends(m);
	capture_machine_ends(m);
	fork_machine_ends(m);
	if (on_end)
		on_end(m->arg, m->reason);
	if (!m->vm || m->exited)
		loop_timer_set(m->finish, now_ms());
	else if (!settles(m, was))
		m->b->engine->ops->stop(m->vm);
}

enum rc machine_wait_gone(struct machine *m, struct request *r, struct fault *ret_f)
{
	if (m->n_waiters == MACHINE_WAITERS_MAX)
		return fault_set(ret_f, RC_LIMIT, 0, "too many wait for the end of machine '%s' already", m->id);
	m->waiters[m->n_waiters++] = r;
	return RC_OK;
}

/* True when the machine may be freed; else it was set up to be called again. */
static bool host_release(struct machine *m)
{
	struct fault f;
	enum rc rc;

	agent_cancel(m->settle);
	m->settle = NULL;
	if (m->vm) {
		m->b->engine->ops->vm_free(m->vm);
		m->vm = NULL;
	}
	if (m->has_net) {
		broker_egress_gone(m->b, m);
		net_destroy(&m->net);
		m->has_net = false;
	}
	if (m->cgroup.made) {
		rc = cgroup_remove(&m->b->cgroup, m->id, &f);
		if (rc == RC_AGAIN && m->cgroup_tries++ < CGROUP_REMOVE_TRIES) {
			loop_timer_set(m->finish, now_ms() + CGROUP_REMOVE_MS);
			return false;
		}
		if (rc)
			log_fault(LOG_LEVEL_WARN, &f, "machine %s", m->id);
	}
	if (m->has_dir && tree_remove_at(m->b->vms_dirfd, m->id, &f))
		log_fault(LOG_LEVEL_ERROR, &f, "machine %s", m->id);
	return true;
}

static void machine_finish(void *arg)
{
	struct machine *m = arg;
	struct broker *b = m->b;
	struct gone g = { .flags = m->flags, .memory_mib = m->memory_mib, .created_ms = m->created_ms };

	if (!host_release(m))
		return;
	machine_list_remove(b, m);
	b->slots[m->slot] = 0;
	if (!m->internal) {
		log_info("machine gone id=%s reason=\"%s\"", m->id, m->reason);
		memcpy(g.id, m->id, sizeof(g.id));
		memcpy(g.reason, m->reason, sizeof(g.reason));
		machine_gone_note(b, &g);
		expose_machine_gone(b, m->id);
		broker_event_vm(b, m, BROKER_VM_GONE, m->reason);
	}
	for (size_t i = 0; i < m->n_waiters; i++)
		request_reply(m->waiters[i], NULL, NULL, NULL, 0);
	if (m->on_gone)
		m->on_gone(m->arg);
	machine_free(m);
}

/* --- lease, lifetime, policy ------------------------------------------------------------------------------------ */

static void on_grace_over(void *arg)
{
	machine_end(arg, "the connection that it belonged to was closed");
}

static void grace_begin(struct machine *m)
{
	uint64_t at = now_ms() + m->b->config->lease_grace_ms;
	struct fault f;

	source_drop(&m->lease);
	if (m->grace)
		loop_timer_set(m->grace, at);
	else if (loop_timer(m->b->loop, at, on_grace_over, m, &m->grace, &f))
		machine_end(m, "its lease was closed and no grace could be given: %s", f.text);
}

static void on_lease(void *arg, uint32_t events)
{
	char drop[64];
	struct machine *m = arg;

	/* What a holder writes means nothing, but must not keep the loop awake. */
	if (events & EPOLLIN && read(m->lease_fd, drop, sizeof(drop)) > 0)
		return;
	grace_begin(m);
}

enum rc machine_lease_take(struct machine *m, int *ret_fd, struct fault *ret_f)
{
	_cleanup_fd_ int fd = -1;

	if (!(m->flags & BROKER_VM_LEASE) || m->lease)
		return fault_set(ret_f, RC_STATE, 0, m->lease ? "the lease of '%s' is held" : "'%s' has no lease", m->id);
	fd = openat(m->dirfd, "lease", O_WRONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return fault_set(ret_f, RC_SYS, errno, "open lease");
	if (loop_fd(m->b->loop, m->lease_fd, EPOLLIN, on_lease, m, &m->lease, ret_f))
		return RC_SYS;
	if (m->grace)
		loop_timer_set(m->grace, UINT64_MAX);
	*ret_fd = take_fd(&fd);
	return RC_OK;
}

enum rc machine_extend(struct machine *m, uint64_t stop_at_ms, struct fault *ret_f)
{
	uint64_t old = m->stop_at_ms;
	enum rc rc;

	m->stop_at_ms = stop_at_ms;
	rc = record_put(m, ret_f);
	if (rc)
		m->stop_at_ms = old;
	machine_timers_update(m->b);
	return rc;
}

enum rc machine_set_policy(struct machine *m, const uint8_t *policy, size_t n, struct fault *ret_f)
{
	enum rc rc = file_replace_at(m->dirfd, "policy", policy, n, ret_f);

	if (!rc)
		rc = policy_copy(m, policy, n, ret_f);
	if (!rc)
		broker_egress_policy(m->b, m);
	return rc;
}

/* --- adoption --------------------------------------------------------------------------------------------------- */

static enum rc lease_adopt(struct machine *m, struct fault *ret_f)
{
	char c;

	if (!(m->flags & BROKER_VM_LEASE))
		return RC_OK;
	m->lease_fd = openat(m->dirfd, "lease", O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC);
	if (m->lease_fd < 0)
		return fault_set(ret_f, RC_ABSENT, errno, "open lease");
	/* End of file: nobody has the writing end. Nothing to read now: somebody has. */
	if (read(m->lease_fd, &c, 1) < 0 && errno == EAGAIN)
		return loop_fd(m->b->loop, m->lease_fd, EPOLLIN, on_lease, m, &m->lease, ret_f);
	grace_begin(m);
	return RC_OK;
}

static enum rc adopt_parts(struct machine *m, const struct record *r, struct fault *ret_f)
{
	struct engine_spec spec;
	char *policy;
	size_t n;
	enum rc rc;

	if (strcmp(r->engine, m->b->verdict.name))
		return fault_set(ret_f, RC_STATE, 0, "made by engine %s, which this host does not use any more", r->engine);
	if (!file_read_at(m->dirfd, "policy", BROKER_POLICY_MAX, &policy, &n, NULL)) {
		m->policy = (uint8_t *)policy;
		m->policy_n = n;
	}
	m->log_fd = openat(m->dirfd, "console.log", O_RDWR | O_APPEND | O_NOFOLLOW | O_CLOEXEC);
	login_load(m);
	rc = net_adopt(m->id, &m->net, ret_f);
	if (rc)
		return rc;
	spec_fill(m, NULL, &spec);
	charge_adopt(m);
	rc = m->b->engine->ops->adopt(m->b->engine, &spec, on_engine_exit, m, &m->vm, ret_f);
	return rc ? rc : lease_adopt(m, ret_f);
}

enum rc machine_adopt(struct broker *b, const char *id, const struct record *r, struct fault *ret_f)
{
	struct machine *m = machine_alloc(b, id);
	struct fault f;
	enum rc rc;

	if (!m)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	m->flags = r->flags;
	m->memory_mib = r->memory_mib;
	m->stop_at_ms = r->stop_at_ms;
	m->created_ms = r->created_ms;
	m->slot = r->slot;
	m->own_root = r->own_root != 0;
	snprintf(m->image, sizeof(m->image), "%s", r->image);
	memcpy(m->image_tag, r->image_tag, sizeof(m->image_tag));
	m->state = r->state == BROKER_VM_PAUSED ? BROKER_VM_PAUSED : BROKER_VM_RUNNING;
	/* Half of each may be there: whatever there is goes with the machine. */
	m->cgroup.made = m->has_dir = m->has_net = true;
	snprintf(m->cgroup.id, sizeof(m->cgroup.id), "%s", id);
	snprintf(m->net.id, sizeof(m->net.id), "%s", id);
	if (!attach_from_text(m, r->volumes))
		log_warn("machine's record names no valid volumes id=%s", id);
	rc = loop_timer(b->loop, UINT64_MAX, machine_finish, m, &m->finish, ret_f);
	if (!rc)
		rc = dir_open_at(b->vms_dirfd, id, 0700, &m->dirfd, ret_f);
	if (!rc)
		rc = machine_list_add(b, m, ret_f);
	if (rc) {
		machine_free(m);
		return rc;
	}
	b->slots[m->slot] = 1;
	rc = adopt_parts(m, r, &f);
	if (rc)
		machine_end(m, "lost while the broker was away: %s", f.text);
	else if (m->internal || r->state == BROKER_VM_STARTING)
		machine_end(m, "the broker ended while it was being made");
	else
		log_info("machine adopted id=%s", id);
	if (!m->ending && m->has_volumes && m->state == BROKER_VM_RUNNING)
		attach_thaw(m);
	return RC_OK;
}
