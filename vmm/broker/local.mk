# SPDX-License-Identifier: Apache-2.0
noinst_LIBRARIES += libnbbroker.a
libnbbroker_a_CFLAGS = $(AM_CFLAGS) $(NB_PIE_CFLAGS)
libnbbroker_a_SOURCES = vmm/store/copy.c vmm/store/copy.h vmm/store/task.c vmm/store/task.h vmm/store/volume.c vmm/store/volume.h \
	vmm/store/sum.c vmm/store/sum.h vmm/broker/verify.c vmm/broker/verify.h \
	vmm/broker/agent_link.c vmm/broker/agent_link.h vmm/broker/broker.c vmm/broker/broker.h vmm/broker/build.c \
	vmm/broker/build.h vmm/broker/cgroup.c vmm/broker/cgroup.h vmm/broker/charge.c vmm/broker/charge.h vmm/broker/create.c vmm/broker/create.h \
	vmm/broker/dial.c vmm/broker/dial.h vmm/broker/expose.c vmm/broker/expose.h vmm/broker/identity.c \
	vmm/broker/image.c vmm/broker/image.h vmm/broker/attach.c vmm/broker/attach.h vmm/broker/volume.c vmm/broker/volume.h \
	vmm/broker/limits.h vmm/broker/list.c vmm/broker/list.h vmm/broker/login.c vmm/broker/login.h vmm/broker/machine.c vmm/broker/machine.h vmm/broker/ops.c \
	vmm/broker/orphan.c vmm/broker/orphan.h vmm/broker/peer.c vmm/broker/peer.h vmm/broker/record.c \
	vmm/broker/capture.c vmm/broker/capture.h vmm/broker/capture_make.c vmm/broker/capture_set.h vmm/broker/fork.c vmm/broker/fork.h \
	vmm/broker/newborn.c vmm/broker/newborn.h \
	vmm/broker/record.h vmm/broker/repolicy.c vmm/broker/repolicy.h vmm/broker/template.c vmm/broker/template.h

sbin_PROGRAMS += nestboxd
nestboxd_CFLAGS = $(AM_CFLAGS) $(NB_PIE_CFLAGS)
nestboxd_SOURCES = vmm/broker/main.c vmm/broker/privilege.c vmm/broker/privilege.h
nestboxd_LDADD = libnbbroker.a $(ENGINE_LIBS) libnbnet.a libnbschema.a libnbbase.a $(ENGINE_SYSLIBS) $(NET_LIBS) $(HARDEN_LIBS)

nestboxlibexec_PROGRAMS += nestbox-disk
nestbox_disk_CFLAGS = $(AM_CFLAGS) $(NB_PIE_CFLAGS)
nestbox_disk_SOURCES = vmm/store/disk_main.c vmm/store/sum.c vmm/store/sum.h vmm/store/task.h
nestbox_disk_LDADD = libnbbase.a $(OPENSSL_LIBS)

sbin_PROGRAMS += nestboxctl
nestboxctl_CFLAGS = $(AM_CFLAGS) $(NB_PIE_CFLAGS)
nestboxctl_SOURCES = vmm/broker/ctl.c vmm/broker/ctl_exec.c vmm/broker/ctl_exec.h vmm/broker/doctor.c vmm/broker/doctor.h
nestboxctl_LDADD = $(nestboxd_LDADD)

BROKER_LIBS = libnbbroker.a libnbschema.a libnbbase.a $(JSONC_LIBS) $(OPENSSL_LIBS)
check_PROGRAMS += tests/unit/test_broker
tests_unit_test_broker_SOURCES = tests/unit/test_broker.c tests/unit/broker_bed.h tests/unit/fake_vmm.c tests/unit/fake_vmm.h
tests_unit_test_broker_LDADD = $(BROKER_LIBS)
# Any allocation may fail there (fake_vmm.c).
tests_unit_test_broker_LDFLAGS = $(AM_LDFLAGS) -Wl,--wrap=malloc,--wrap=calloc
check_PROGRAMS += tests/unit/test_fork
tests_unit_test_fork_SOURCES = tests/unit/test_fork.c tests/unit/broker_bed.h tests/unit/fake_vmm.c tests/unit/fake_vmm.h
tests_unit_test_fork_LDADD = $(BROKER_LIBS)
tests_unit_test_fork_LDFLAGS = $(AM_LDFLAGS) -Wl,--wrap=malloc,--wrap=calloc

check_PROGRAMS += tests/unit/test_cgroup
tests_unit_test_cgroup_SOURCES = tests/unit/test_cgroup.c
tests_unit_test_cgroup_LDADD = $(BROKER_LIBS)

check_PROGRAMS += tests/unit/test_store
tests_unit_test_store_SOURCES = tests/unit/test_store.c
tests_unit_test_store_LDADD = $(BROKER_LIBS)

check_PROGRAMS += tests/fuzz/fuzz_broker tests/fuzz/fuzz_agent_answer tests/fuzz/fuzz_record
tests_fuzz_fuzz_broker_SOURCES = tests/fuzz/fuzz_broker.c tests/unit/fake_vmm.c $(FUZZ_DRIVER)
tests_fuzz_fuzz_broker_LDADD = $(BROKER_LIBS)
tests_fuzz_fuzz_broker_LDFLAGS = $(AM_LDFLAGS) $(FUZZ_LINK) -Wl,--wrap=malloc,--wrap=calloc
tests_fuzz_fuzz_agent_answer_SOURCES = tests/fuzz/fuzz_agent_answer.c tests/unit/fake_vmm.c $(FUZZ_DRIVER)
tests_fuzz_fuzz_agent_answer_LDADD = $(BROKER_LIBS)
tests_fuzz_fuzz_agent_answer_LDFLAGS = $(AM_LDFLAGS) $(FUZZ_LINK) -Wl,--wrap=malloc,--wrap=calloc
tests_fuzz_fuzz_record_SOURCES = tests/fuzz/fuzz_record.c tests/unit/fake_vmm.c $(FUZZ_DRIVER)
tests_fuzz_fuzz_record_LDADD = $(BROKER_LIBS)
tests_fuzz_fuzz_record_LDFLAGS = $(AM_LDFLAGS) $(FUZZ_LINK) -Wl,--wrap=malloc,--wrap=calloc

dist_man_MANS += doc/man/nestboxd.8 doc/man/nestboxctl.8
EXTRA_DIST += doc/broker.md doc/storage.md tests/sdk/volumes.mjs tests/sdk/snapshots.mjs tests/perf/storage.mjs tests/it/storage.mjs
EXTRA_DIST += tests/alone/broker.sh
