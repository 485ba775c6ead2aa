/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/engines/qemu/vm.h"

#include "base/cleanup.h"
#include "vmm/engines/limits.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

static void qemu_free(struct engine *base)
{
	struct qemu *e = (struct qemu *)base;

	if (!e)
		return;
	while (e->vms)
		vm_release(e->vms);
	process_graves_free(&e->graves);
	jail_root_free(e->root);
	jail_filter_free(e->filter);
	close_fd(&e->exec_fd);
	close_fd(&e->null_fd);
	free(e);
}

static const struct engine_ops ops_tcg = {
	.name = "qemu-tcg",
	.overhead_mib = ENGINE_QEMU_OVERHEAD_MIB,
	.start = qemu_start,
	.adopt = qemu_adopt,
	.pause = qemu_pause,
	.resume = qemu_resume,
	.save = qemu_save,
	.take = qemu_take,
	.snapshot_store = qemu_snapshot_store,
	.snapshot_open = qemu_snapshot_open,
	.snapshot_check = qemu_snapshot_check,
	.snapshot_map = qemu_snapshot_map,
	.snapshot_free = qemu_snapshot_free,
	.disk_resized = qemu_disk_resized,
	.fork = qemu_fork,
	.fork_go = qemu_fork_go,
	.stop = qemu_stop,
	.stat = qemu_stat,
	.times = qemu_times,
	.vm_free = qemu_vm_free,
	.engine_free = qemu_free,
};

static enum rc qemu_open(struct qemu *e, const char *path, struct fault *ret_f)
{
	enum rc rc;

	e->exec_fd = open(path, O_RDONLY | O_CLOEXEC);
	if (e->exec_fd < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "open '%s'", path);
	e->null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (e->null_fd < 0)
		return fault_set(ret_f, RC_SYS, errno, "open /dev/null");
	rc = host_version(path, e->version, ret_f);
	if (!rc)
		rc = args_engine_shape(e->version, e->kvm, e->base.shape, ret_f);
	if (!rc)
		rc = host_root(path, e->kvm, &e->root, ret_f);
	if (!rc)
		rc = jail_filter_new(&qemu_calls, &e->filter, ret_f);
	return rc;
}

enum rc engine_qemu_new(struct loop *loop, const char *qemu_path, bool kvm, struct engine **ret, struct fault *ret_f)
{
	static struct engine_ops ops_kvm;
	struct qemu *e = calloc(1, sizeof(*e));
	enum rc rc;

	if (!e)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	ops_kvm = ops_tcg;
	ops_kvm.name = "qemu-kvm";
	e->base.ops = kvm ? &ops_kvm : &ops_tcg;
	e->base.loop = loop;
	e->kvm = kvm;
	e->exec_fd = e->null_fd = -1;
	e->tsc_khz = host_tsc_khz();
	rc = qemu_open(e, qemu_path, ret_f);
	if (rc) {
		qemu_free(&e->base);
		return fault_wrap(ret_f, "QEMU engine");
	}
	*ret = &e->base;
	return RC_OK;
}
