/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/engines/qemu/args.h"

#include "base/buf.h"
#include "base/cleanup.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define DATA_DIR "/usr/share/qemu"
#define TEXT_MAX 65536u

__attribute__((format(printf, 2, 3))) static void arg(struct args *a, const char *fmt, ...)
{
	va_list ap;

	if (a->failed || a->n >= QEMU_ARGS_MAX) {
		a->failed = true;
		return;
	}
	va_start(ap, fmt);
	if (vasprintf(&a->v[a->n], fmt, ap) < 0) {
		a->v[a->n] = NULL;
		a->failed = true;
	} else {
		a->n++;
	}
	va_end(ap);
}

static int grant(struct args *a, int fd)
{
	if (a->described)
		return 0;
	if (a->n_fds >= JAIL_FDS_MAX) {
		a->failed = true;
		return -1;
	}
	a->fds[a->n_fds] = fd;
	return JAIL_FD_FIRST + (int)a->n_fds++;
}

static bool text_plain(const char *s, size_t max, const char *more)
{
	size_t n = strnlen(s, max);

	for (size_t i = 0; i < n; i++)
		if (!((s[i] >= 'a' && s[i] <= 'z') || (s[i] >= '0' && s[i] <= '9') || strchr(more, s[i])))
			return false;
	return n > 0 && n < max;
}

static enum rc spec_check(const struct engine_spec *s, struct fault *ret_f)
{
	if (!text_plain(s->id, sizeof(s->id), "_"))
		return fault_set(ret_f, RC_INVALID, 0, "machine id is not [a-z0-9_]{1,40}");
	if (!s->memory_mib || s->memory_mib > QEMU_MEMORY_MIB_MAX || !s->vcpus || s->vcpus > QEMU_VCPUS_MAX)
		return fault_set(ret_f, RC_INVALID, 0, "%u MiB of memory or %u processors are out of range",
				 s->memory_mib, s->vcpus);
	if (s->n_disks > ENGINE_DISKS_MAX || s->n_nics > ENGINE_NICS_MAX)
		return fault_set(ret_f, RC_INVALID, 0, "%zu disks or %zu network cards are too many", s->n_disks,
				 s->n_nics);
	for (size_t i = 0; i < s->n_disks; i++)
		if (!text_plain(s->disks[i].serial, sizeof(s->disks[i].serial), "-_"))
			return fault_set(ret_f, RC_INVALID, 0, "serial of disk %zu is not [a-z0-9_-]{1,20}", i);
	for (size_t i = 0; i < s->n_nics; i++)
		if (!text_plain(s->nics[i].mac, sizeof(s->nics[i].mac), ":"))
			return fault_set(ret_f, RC_INVALID, 0, "address of network card %zu is no MAC", i);
	return RC_OK;
}

static const char *cpu_model(bool kvm)
{
	/* Under TCG a 16-byte compare-and-exchange of the guest is not reliably atomic with more than one processor; and where strings of
	 * bytes are said to be fast, the guest copies and clears with them, which TCG does a byte at a time: a cached file of 100 MB costs
	 * 0.3 s of a processor to read instead of 1. */
	return kvm ? "host,migratable=on,-vmx,-svm" : "max,-cx16,-erms,-fsrm";
}

static void args_machine(struct args *a, const struct args_in *in)
{
	const struct engine_spec *s = in->spec;

	arg(a, "/usr/bin/qemu-system-x86_64");
	arg(a, "-nodefaults");
	arg(a, "-no-user-config");
	arg(a, "-no-reboot");
	arg(a, "-display");
	arg(a, "none");
	arg(a, "-L");
	arg(a, DATA_DIR);
	arg(a, "-sandbox");
	arg(a, "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
	arg(a, "-M");
	arg(a, "microvm,acpi=on,pic=on,pit=on,rtc=on,isa-serial=on,ioapic2=on,x-option-roms=off,"
	       "auto-kernel-cmdline=off,dump-guest-core=off,mem-merge=off,memory-backend=ram");
	arg(a, "-accel");
	if (in->kvm)
		arg(a, "kvm");
	else
		arg(a, "tcg,thread=multi,tb-size=%d", QEMU_TB_MIB);
	arg(a, "-cpu");
	arg(a, "%s", cpu_model(in->kvm));
	arg(a, "-smp");
	arg(a, "%u", s->vcpus);
	arg(a, "-m");
	arg(a, "%u", s->memory_mib);
	arg(a, "-global");
	arg(a, "virtio-mmio.force-legacy=false");
}

static void args_memory(struct args *a, const struct args_in *in)
{
	/* share=on keeps memory out of the device state; the preloaded library maps it privately all the same. */
	a->ram_fd = grant(a, in->ram_fd);
	arg(a, "-object");
	arg(a, "memory-backend-file,id=ram,size=%uM,mem-path=/proc/self/fd/%d,share=on,dump=off,merge=off",
	    in->spec->memory_mib, a->ram_fd);
	if (in->state_fd >= 0) {
		(void)grant(a, in->state_fd); /* ARGS_STATE_FD */
		arg(a, "-incoming");
		arg(a, "defer");
	}
}

static void args_control(struct args *a, const struct args_in *in)
{
	arg(a, "-chardev");
	arg(a, "socket,id=qmp,fd=%d,server=on,wait=off", grant(a, in->qmp_fd));
	arg(a, "-mon");
	arg(a, "chardev=qmp,mode=control");
	arg(a, "-add-fd");
	arg(a, "fd=%d,set=1", grant(a, in->log_fd));
	arg(a, "-chardev");
	arg(a, "file,id=log,path=/dev/fdset/1,append=on");
	arg(a, "-serial");
	arg(a, "chardev:log");
}

/* Slot 0 gets no interrupts with two I/O APICs in this QEMU; there are 24, so nothing is lost by leaving it empty. */
static void args_devices(struct args *a, const struct engine_spec *s)
{
	unsigned int slot = 1;

	for (size_t i = 0; i < s->n_disks; i++) {
		const struct engine_disk *d = &s->disks[i];

		arg(a, "-add-fd");
		arg(a, "fd=%d,set=%zu", grant(a, d->fd), i + 2);
		arg(a, "-blockdev");
		arg(a, "driver=file,node-name=%s,filename=/dev/fdset/%zu,locking=off,aio=threads,discard=unmap,read-only=%s",
		    d->serial, i + 2, d->read_only ? "on" : "off");
		/* A host without space is the guest's EIO: by default QEMU would stop the machine, and nobody starts it again. */
		arg(a, "-device");
		arg(a, "virtio-blk-device,id=blk-%s,drive=%s,serial=%s,bus=virtio-mmio-bus.%u%s", d->serial, d->serial, d->serial,
		    slot++, d->read_only ? "" : ",werror=report");
	}
	for (size_t i = 0; i < s->n_nics; i++) {
		arg(a, "-netdev");
		arg(a, "tap,id=tap%zu,fd=%d,vhost=off", i, grant(a, s->nics[i].tap_fd));
		arg(a, "-device");
		arg(a, "virtio-net-device,id=net%zu,netdev=tap%zu,mac=%s,bus=virtio-mmio-bus.%u", i, i, s->nics[i].mac, slot++);
	}
	arg(a, "-object");
	arg(a, "rng-builtin,id=rng");
	arg(a, "-device");
	arg(a, "virtio-rng-device,rng=rng,bus=virtio-mmio-bus.%u", slot++);
	arg(a, "-device");
	arg(a, "virtio-balloon-device,free-page-reporting=on,bus=virtio-mmio-bus.%u", slot);
}

static void args_kernel(struct args *a, const struct args_in *in)
{
	const struct engine_spec *s = in->spec;

	arg(a, "-kernel");
	arg(a, "/proc/self/fd/%d", grant(a, s->kernel_fd));
	if (s->initrd_fd >= 0) {
		arg(a, "-initrd");
		arg(a, "/proc/self/fd/%d", grant(a, s->initrd_fd));
	}
	arg(a, "-append");
	/* Without KVM's clock the kernel would calibrate the TSC against a timer that a busy host serves late, call
	 * the TSC unstable and hang. TCG's TSC runs at the host's rate. TCG finds what it has translated by virtual address:
	 * where each process has other addresses, each translates all of its code again, most of what its start costs. */
	if (in->kvm)
		arg(a, "%s", s->cmdline);
	else
		arg(a, "%s tsc_early_khz=%u tsc=reliable norandmaps", s->cmdline, in->tsc_khz);
}

enum rc args_build(const struct args_in *in, struct args *ret, struct fault *ret_f)
{
	enum rc rc = spec_check(in->spec, ret_f);

	memset(ret, 0, sizeof(*ret));
	if (rc)
		return rc;
	ret->described = in->described;
	args_machine(ret, in);
	args_memory(ret, in);
	args_control(ret, in);
	args_devices(ret, in->spec);
	if (in->state_fd < 0) {
		if (in->spec->kernel_fd < 0 || !in->spec->cmdline)
			return fault_set(ret_f, RC_INVALID, 0, "a cold start needs a kernel and its command line");
		args_kernel(ret, in);
	}
	if (!ret->failed)
		return RC_OK;
	args_free(ret);
	return fault_set(ret_f, RC_NOMEM, 0, "QEMU's command line does not fit");
}

void args_free(struct args *a)
{
	for (size_t i = 0; i < a->n; i++)
		free(a->v[i]);
	memset(a, 0, sizeof(*a));
}

/* --- what they make of a machine ---------------------------------------------------------------------------------- */

/* Each with the word behind it. What is not named here is taken for a part of the machine, so that nothing new can be forgotten. */
static bool of_the_host(const char *option)
{
	static const char *const names[] = { "-display", "-L", "-sandbox", "-chardev", "-mon", "-add-fd", "-incoming" };

	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		if (!strcmp(option, names[i]))
			return true;
	return false;
}

enum rc args_text(const struct args *a, bool all, struct buf *out, struct fault *ret_f)
{
	for (size_t i = 0; i < a->n; i++) {
		if (!all && of_the_host(a->v[i]))
			i++;
		else if (buf_printf(out, "%s\n", a->v[i]))
			return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	}
	return RC_OK;
}

static enum rc shape_of_args(const struct args_in *in, bool all, const char *before, char out[SHAPE_MAX], struct fault *ret_f)
{
	_cleanup_args_ struct args a = { .n = 0 };
	_cleanup_buf_ struct buf text = BUF_INIT(TEXT_MAX);
	enum rc rc = args_build(in, &a, ret_f);

	if (!rc && buf_printf(&text, "%s\n", before))
		rc = fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	if (!rc)
		rc = args_text(&a, all, &text, ret_f);
	return rc ? rc : shape_of(buf_data(&text), buf_len(&text), out, ret_f);
}

enum rc args_shape(const struct engine_spec *s, bool kvm, char *out, size_t size, struct fault *ret_f)
{
	struct args_in in = { .spec = s, .kvm = kvm, .state_fd = 0, .described = true };
	char shape[SHAPE_MAX];
	enum rc rc = shape_of_args(&in, false, "", shape, ret_f);

	if (rc)
		return rc;
	if ((size_t)snprintf(out, size, "microvm %s cpu=%s vcpus=%u memory=%u", shape, cpu_model(kvm), s->vcpus, s->memory_mib) >= size)
		return fault_set(ret_f, RC_LIMIT, 0, "machine shape is too long to describe");
	return RC_OK;
}

enum rc args_engine_shape(const char *version, bool kvm, char out[SHAPE_MAX], struct fault *ret_f)
{
	/* One of everything that a machine may have. */
	static const struct engine_spec s = { .id = "any", .memory_mib = 64, .vcpus = 1, .cmdline = "",
					      .disks = { { .serial = "writable" }, { .serial = "fixed", .read_only = true } }, .n_disks = 2,
					      .nics = { { .mac = "02:00:00:00:00:01" } }, .n_nics = 1 };
	struct args_in in = { .spec = &s, .kvm = kvm, .state_fd = -1, .described = true };

	return shape_of_args(&in, true, version, out, ret_f);
}
