/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/engines/engine.h"

#include "vmm/engines/probe.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const struct {
	const char *name, *tier;
	bool needs_kvm, needs_vmm;
} engines[] = { /* in order of preference */
	{ "kvm", "hardware", true, true },
	{ "qemu-kvm", "hardware", true, false },
	{ "qemu-tcg", "emulated", false, false },
};

static bool runnable(const char *path)
{
	return path && access(path, X_OK) == 0;
}

static void verdict(size_t i, const char *reason, struct engine_verdict *ret)
{
	snprintf(ret->name, sizeof(ret->name), "%s", engines[i].name);
	snprintf(ret->tier, sizeof(ret->tier), "%s", engines[i].tier);
	snprintf(ret->reason, sizeof(ret->reason), "%s", reason);
}

enum rc engine_choose(const char *forced, const char *qemu_path, const char *vmm_path, uint32_t deadline_ms,
		      struct engine_verdict *ret, struct fault *ret_f)
{
	bool automatic = !forced || !forced[0] || !strcmp(forced, "auto"), known = automatic;
	struct probe probe;

	probe_kvm("/dev/kvm", deadline_ms, &probe);
	memset(ret, 0, sizeof(*ret));
	ret->kvm_usable = probe.usable;
	for (size_t i = 0; i < sizeof(engines) / sizeof(engines[0]); i++) {
		const char *program = engines[i].needs_vmm ? vmm_path : qemu_path;

		if (!automatic && strcmp(forced, engines[i].name))
			continue;
		known = true;
		if (engines[i].needs_kvm && !probe.usable) {
			if (!automatic)
				return fault_set(ret_f, RC_STATE, 0, "engine '%s' is forced, but %s", forced, probe.reason);
			continue;
		}
		if (!runnable(program)) {
			if (!automatic)
				return fault_set(ret_f, RC_ABSENT, errno, "engine '%s' is forced, but there is no '%s'", forced,
						 program ? program : "program");
			continue;
		}
		verdict(i, probe.reason, ret);
		return RC_OK;
	}
	if (!known)
		return fault_set(ret_f, RC_INVALID, 0, "no engine is called '%.40s'", forced);
	return fault_set(ret_f, RC_ABSENT, 0, "neither '%s' nor '%s' can be executed", vmm_path ? vmm_path : "(no VMM)",
			 qemu_path ? qemu_path : "(no QEMU)");
}
