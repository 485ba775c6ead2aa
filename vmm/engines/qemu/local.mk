# SPDX-License-Identifier: Apache-2.0
noinst_LIBRARIES += libnbengine.a libnbjail.a
libnbjail_a_CFLAGS = $(AM_CFLAGS) $(NB_PIE_CFLAGS)
libnbjail_a_SOURCES = vmm/jail/filter.c vmm/jail/jail.c vmm/jail/jail.h vmm/jail/limits.h vmm/jail/root.c vmm/jail/root.h
libnbengine_a_CFLAGS = $(AM_CFLAGS) $(NB_PIE_CFLAGS)
libnbengine_a_SOURCES = vmm/engines/choose.c vmm/engines/engine.h vmm/engines/probe.c vmm/engines/probe.h \
	vmm/engines/qemu/args.c vmm/engines/qemu/args.h vmm/engines/qemu/calls.c \
	vmm/engines/qemu/fork.c vmm/engines/qemu/host.c vmm/engines/qemu/job.c vmm/engines/qemu/limits.h \
	vmm/engines/qemu/memory.c vmm/engines/qemu/memory.h vmm/engines/qemu/qemu.c vmm/engines/qemu/qmp.c \
	vmm/engines/qemu/qmp.h vmm/engines/qemu/save.c vmm/engines/qemu/stored.c vmm/engines/qemu/spawn.c vmm/engines/qemu/vm.c vmm/engines/qemu/vm.h
# What a program with the engines links, before libnbbase.a.
ENGINE_LIBS = libnbengine.a libnbjail.a
ENGINE_SYSLIBS = $(JSONC_LIBS) $(SECCOMP_LIBS) $(OPENSSL_LIBS)

# Preloaded into QEMU (vmm/engines/qemu/cow.c): a shared object without anything but libc.
nestboxlibexec_DATA += nestbox-qemu-cow.so
nestbox-qemu-cow.so: $(srcdir)/vmm/engines/qemu/cow.c
	$(AM_V_CCLD)$(CC) -std=gnu17 -D_GNU_SOURCE -O2 -g -Wall -Wextra -fPIC -fvisibility=hidden -shared -nostartfiles \
		-Wl,-z,relro,-z,now -Wl,-z,defs -o $@ $(srcdir)/vmm/engines/qemu/cow.c
EXTRA_DIST += vmm/engines/qemu/cow.c
CLEANFILES += nestbox-qemu-cow.so

# Programs that drive an engine without a broker.
noinst_PROGRAMS += tests/it/engine-driver tests/it/engine-figures tests/it/engine-cycles tests/it/guest-checker
ENGINE_RIG = tests/it/engine_rig.c tests/it/engine_rig.h
ENGINE_RIG_LIBS = $(ENGINE_LIBS) libnbnet.a libnbschema.a libnbbase.a $(ENGINE_SYSLIBS) $(NFTABLES_LIBS)
tests_it_engine_driver_SOURCES = tests/it/engine_driver.c tests/it/engine_parity.c tests/it/engine_parity.h $(ENGINE_RIG)
tests_it_engine_driver_LDADD = $(ENGINE_RIG_LIBS)
tests_it_engine_figures_SOURCES = tests/it/engine_figures.c $(ENGINE_RIG)
tests_it_engine_figures_LDADD = $(ENGINE_RIG_LIBS)
tests_it_engine_cycles_SOURCES = tests/it/engine_cycles.c $(ENGINE_RIG)
tests_it_engine_cycles_LDADD = $(ENGINE_RIG_LIBS)
# Runs in the guest; static, so never with a sanitizer.
tests_it_guest_checker_SOURCES = tests/it/guest_checker.c
tests_it_guest_checker_CFLAGS = -std=gnu17 -O2 -Wall -Wextra
tests_it_guest_checker_LDFLAGS = -static -pthread

check_PROGRAMS += tests/unit/test_probe
tests_unit_test_probe_SOURCES = tests/unit/test_probe.c
tests_unit_test_probe_LDADD = $(ENGINE_LIBS) $(UNIT_LIBS) $(ENGINE_SYSLIBS)

noinst_PROGRAMS += tests/sec/jail-probe
tests_sec_jail_probe_SOURCES = tests/sec/jail_probe.c
# Static, so never with a sanitizer.
tests_sec_jail_probe_CFLAGS = -std=gnu17 -Wall -Wextra
tests_sec_jail_probe_LDFLAGS = -static
check_PROGRAMS += tests/sec/test_jail
tests_sec_test_jail_SOURCES = tests/sec/test_jail.c
tests_sec_test_jail_LDADD = $(ENGINE_LIBS) $(UNIT_LIBS) $(ENGINE_SYSLIBS)

check_PROGRAMS += tests/unit/test_qmp tests/unit/test_memory tests/fuzz/fuzz_qmp
tests_unit_test_qmp_SOURCES = tests/unit/test_qmp.c
tests_unit_test_qmp_LDADD = $(ENGINE_LIBS) $(UNIT_LIBS) $(ENGINE_SYSLIBS)
tests_unit_test_memory_SOURCES = tests/unit/test_memory.c
tests_unit_test_memory_LDADD = $(ENGINE_LIBS) $(UNIT_LIBS) $(ENGINE_SYSLIBS)
tests_fuzz_fuzz_qmp_SOURCES = tests/fuzz/fuzz_qmp.c $(FUZZ_DRIVER)
tests_fuzz_fuzz_qmp_LDADD = $(ENGINE_LIBS) $(UNIT_LIBS) $(ENGINE_SYSLIBS)
tests_fuzz_fuzz_qmp_LDFLAGS = $(AM_LDFLAGS) $(FUZZ_LINK)
