/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/lib/check.h"
#include "vmm/engines/engine.h"
#include "vmm/engines/probe.h"

#include <stdbool.h>
#include <unistd.h>

/* Independent evidence: the host's processor has the extensions that KVM needs, and the device can be opened. */
static bool host_has_kvm(void)
{
	bool flags = false;
	char line[8192];
	FILE *in = fopen("/proc/cpuinfo", "re");

	while (in && fgets(line, sizeof(line), in))
		if (!strncmp(line, "flags", 5) && (strstr(line, " vmx") || strstr(line, " svm")))
			flags = true;
	if (in)
		fclose(in);
	return flags && access("/dev/kvm", R_OK | W_OK) == 0;
}

TEST(verdict_agrees_with_processor)
{
	struct probe p;

	probe_kvm("/dev/kvm", 1000, &p);
	printf("  %s: %s\n", p.usable ? "usable" : "unusable", p.reason);
	CHECK_EQ(p.usable, host_has_kvm());
	CHECK(p.reason[0]);
	CHECK(p.took_ms < 1000 + 2500);
}

TEST(other_devices_are_unusable)
{
	struct probe p;

	probe_kvm("/dev/null", 1000, &p);
	CHECK(!p.usable && strstr(p.reason, "/dev/null"));
	probe_kvm("/nonexistent", 1000, &p);
	CHECK(!p.usable && strstr(p.reason, "does not open"));
}

TEST(choice)
{
	struct engine_verdict v;
	struct fault f;
	bool kvm = host_has_kvm();

	REQUIRE(!engine_choose("auto", "/bin/true", "/bin/true", 1000, &v, &f));
	CHECK_STR(v.name, kvm ? "kvm" : "qemu-tcg");
	CHECK_STR(v.tier, kvm ? "hardware" : "emulated");
	CHECK_EQ(v.kvm_usable, kvm);
	REQUIRE(!engine_choose("auto", "/bin/true", NULL, 1000, &v, &f));
	CHECK_STR(v.name, kvm ? "qemu-kvm" : "qemu-tcg");
	REQUIRE(!engine_choose("qemu-tcg", "/bin/true", NULL, 1000, &v, &f));
	CHECK_STR(v.name, "qemu-tcg");
	CHECK_EQ(engine_choose("kvm", "/bin/true", "/nonexistent", 1000, &v, &f), kvm ? RC_ABSENT : RC_STATE);
	CHECK_EQ(engine_choose("xen", "/bin/true", "/bin/true", 1000, &v, &f), RC_INVALID);
	CHECK_EQ(engine_choose("auto", "/nonexistent", "/nonexistent", 1000, &v, &f), RC_ABSENT);
}

CHECK_MAIN()
