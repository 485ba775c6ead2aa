# SPDX-License-Identifier: Apache-2.0
sbin_PROGRAMS += nestbox-ssh
nestbox_ssh_CFLAGS = $(AM_CFLAGS) $(NB_PIE_CFLAGS) $(LIBSSH_CFLAGS)
SSH_SOURCES = fcgi/ssh/channel.c fcgi/ssh/frames.c fcgi/ssh/frames.h fcgi/ssh/gate.c fcgi/ssh/gate.h fcgi/ssh/limits.h \
	fcgi/ssh/rate.c fcgi/ssh/rate.h fcgi/ssh/server.c fcgi/ssh/server.h fcgi/ssh/session.c fcgi/ssh/session.h
nestbox_ssh_SOURCES = fcgi/ssh/main.c $(SSH_SOURCES) fcgi/gateway/acceptor.c fcgi/gateway/acceptor.h fcgi/gateway/link.c fcgi/gateway/link.h
nestbox_ssh_LDADD = libnbfcgi.a libnbschema.a libnbbase.a $(JSONC_LIBS) $(LIBSSH_LIBS) $(OPENSSL_LIBS) $(HARDEN_LIBS)

dist_man_MANS += doc/man/nestbox-ssh.8

check_PROGRAMS += tests/unit/test_ssh tests/fuzz/fuzz_ssh
tests_unit_test_ssh_SOURCES = tests/unit/test_ssh.c fcgi/ssh/frames.c fcgi/ssh/rate.c
tests_unit_test_ssh_LDADD = libnbfcgi.a libnbbase.a $(JSONC_LIBS) $(OPENSSL_LIBS)
tests_fuzz_fuzz_ssh_SOURCES = tests/fuzz/fuzz_ssh.c fcgi/ssh/frames.c $(FUZZ_DRIVER)
tests_fuzz_fuzz_ssh_LDFLAGS = $(AM_LDFLAGS) $(FUZZ_LINK)
tests_fuzz_fuzz_ssh_LDADD = libnbfcgi.a libnbbase.a $(JSONC_LIBS) $(OPENSSL_LIBS)
