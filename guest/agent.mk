# SPDX-License-Identifier: Apache-2.0
# The guest's first process. Static: it runs before there is a root file system, and in images of any C library.
AGENT_SOURCES = guest/agent.h guest/agent_boot.c guest/agent_child.c guest/agent_control.c guest/agent_dial.c \
	guest/agent_env.c guest/agent_exec.c guest/agent_identity.c guest/agent_limits.h guest/agent_line.c guest/agent_line.h \
	guest/agent_main.c guest/agent_net.c guest/agent_service.c guest/agent_session.c guest/agent_session.h \
	guest/agent_tar.c guest/agent_unit.c

nestboxlibexec_PROGRAMS += nestbox-agent
nestbox_agent_SOURCES = $(AGENT_SOURCES)
nestbox_agent_LDADD = $(SESSION_LIBS)
if ASAN
nestbox_agent_CFLAGS = $(AM_CFLAGS) $(NB_PIE_CFLAGS)
else
nestbox_agent_CFLAGS = $(AM_CFLAGS) -fno-pie
nestbox_agent_LDFLAGS = -static -no-pie -Wl,-z,relro,-z,now -Wl,--gc-sections
endif
EXTRA_DIST += guest/image/build.sh guest/image/code-server.sh guest/image/kernel.sh guest/image/lib.sh guest/image/modules guest/image/npm guest/image/packages guest/image/root.sh guest/image/warm

check_PROGRAMS += tests/unit/test_agent_line tests/fuzz/fuzz_agent_line
tests_unit_test_agent_line_SOURCES = tests/unit/test_agent_line.c guest/agent_line.c guest/agent_line.h
tests_unit_test_agent_line_LDADD = libnbbase.a $(JSONC_LIBS)
tests_fuzz_fuzz_agent_line_SOURCES = tests/fuzz/fuzz_agent_line.c guest/agent_line.c guest/agent_line.h $(FUZZ_DRIVER)
tests_fuzz_fuzz_agent_line_LDFLAGS = $(AM_LDFLAGS) $(FUZZ_LINK)
tests_fuzz_fuzz_agent_line_LDADD = libnbbase.a $(JSONC_LIBS)
EXTRA_DIST += tests/alone/agent.sh tests/it/boot_agent.sh tests/it/lib-agent.mjs
dist_man_MANS += doc/man/nestbox-agent.8
EXTRA_DIST += doc/agent.md doc/fork-safety.md doc/image.md
